/* What brings inputs in: embedding, image patches, position embedding, row gather and scatter. Each kernel moves the
 * bytes that its comment says and none of them twice. Rows are read and written in 16-byte vectors (N elements) where
 * their length allows. */
#ifndef KERNELS_CUDA_INPUT_CUH
#define KERNELS_CUDA_INPUT_CUH

#include "common.cuh"
#include "quantised.cuh"

/* ---- rows selected by an index ---- */

template <int N> static __device__ __forceinline__ void copy_row(floatX *dst, const floatX *src, int C) {
    for (int i = (int)threadIdx.x * N; i < C; i += (int)blockDim.x * N) store<N>(dst + i, load<N>(src + i));
}

/* out[r, :] = inp[index[r], :], or nothing where index[r] < 0; a block for each row. Reads and writes rows * C
 * elements. */
template <int N> static __global__ void gather_kernel(floatX *out, const floatX *inp, const int *index, int C) {
    size_t r = blockIdx.x;
    if (index[r] >= 0) copy_row<N>(out + r * C, inp + (size_t)index[r] * C, C);
}

/* out[index[r], :] = inp[r, :] */
template <int N> static __global__ void scatter_kernel(floatX *out, const floatX *inp, const int *index, int C) {
    size_t r = blockIdx.x;
    copy_row<N>(out + (size_t)index[r] * C, inp + r * C, C);
}

static void cuda_gather_rows(floatX *out, const floatX *inp, const int *index, size_t rows, int C) {
    if (rows == 0) return;
    if (vectors_fit(C, VECTOR, out, inp))
        LAUNCH(gather_kernel<VECTOR>, (unsigned)rows, cuda_row_threads(C / VECTOR), 0, out, inp, index, C);
    else
        LAUNCH(gather_kernel<1>, (unsigned)rows, cuda_row_threads(C), 0, out, inp, index, C);
}

static void cuda_embedding_forward(floatX *out, const int *ids, Weight table, size_t rows) {
    if (dtype_is_quantised(table.dtype))
        widen_rows(out, table, ids, rows);
    else
        cuda_gather_rows(out, (const floatX *)table.data, ids, rows, table.cols);
}

static void cuda_scatter_rows(floatX *out, const floatX *inp, const int *index, size_t rows, size_t total, int C) {
    CUDA_CHECK(cudaMemsetAsync(out, 0, total * C * sizeof(floatX), cuda_stream()));
    if (rows == 0) return;
    if (vectors_fit(C, VECTOR, out, inp))
        LAUNCH(scatter_kernel<VECTOR>, (unsigned)rows, cuda_row_threads(C / VECTOR), 0, out, inp, index, C);
    else
        LAUNCH(scatter_kernel<1>, (unsigned)rows, cuda_row_threads(C), 0, out, inp, index, C);
}

/* ---- the gradient of the embedding ----
 * The positions are sorted by their ids (equal ids in the order of the positions), so that all that belongs to one
 * row of the table is together. Each piece of SORTED_PIECE sorted positions is summed by itself, and a row whose
 * positions span several pieces gets their sums in order. So a token that fills half of the batch costs no more than
 * others, the ids alone decide the order of the additions, and the size of the vocabulary does not matter. */
enum { SORTED_PIECE = 32, RANKED_ROWS = 4 };

/* order[k] = the k-th position in that order. A position's rank is the number of positions before it, which a warp
 * counts for RANKED_ROWS positions at a time. It reads the ids rows / RANKED_ROWS times, from the caches: 20
 * microseconds for 16 thousand positions. Negative ids compare as the largest and are left out. */
static __global__ void rank_kernel(int *order, const int *ids, int rows, int vocab) {
    int warp = (int)((blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = (int)threadIdx.x % 32;
    int first = warp * RANKED_ROWS, before[RANKED_ROWS] = {0};
    unsigned id[RANKED_ROWS];
#pragma unroll
    for (int k = 0; k < RANKED_ROWS; k++) id[k] = first + k < rows ? (unsigned)ids[first + k] : ~0u;
    for (int j = lane; j < rows; j += 32) {
        unsigned other = (unsigned)ids[j];
#pragma unroll
        for (int k = 0; k < RANKED_ROWS; k++) before[k] += other < id[k] || (other == id[k] && j < first + k);
    }
#pragma unroll
    for (int k = 0; k < RANKED_ROWS; k++) {
        int place = before[k];
#pragma unroll
        for (int bits = 16; bits > 0; bits >>= 1) place += __shfl_xor_sync(ALL_LANES, place, bits);
        if (lane == 0 && id[k] < (unsigned)vocab) order[place] = first + k;
    }
}

/* The id of the k-th position in that order; -1 past the end. */
static __device__ __forceinline__ int sorted_id(const int *order, const int *ids, int place, int rows) {
    return place >= 0 && place < rows && order[place] >= 0 ? ids[order[place]] : -1;
}

template <int N> static __device__ __forceinline__ void add_to(float *p, Floats<N> v) {
    Floats<N> sum = load<N>(p);
#pragma unroll
    for (int i = 0; i < N; i++) sum.x[i] += v.x[i];
    store<N>(p, sum);
}

/* A block for each piece (x) and 256 vectors of channels (y). The sum of an id that no other piece has is added to
 * the table; the others are stored in partial [pieces, 2, C]: in row 0 that of an id continued from the piece before,
 * in row 1 that of an id which begins here and continues in the next piece. Reads rows * C elements of dout, and
 * reads and writes C floats of the table for each id. */
template <int N>
static __global__ void embedding_piece_kernel(float *dtable, float *partial, const floatX *dout, const int *order,
                                              const int *ids, int rows, int C) {
    int piece = (int)blockIdx.x, c = (int)(blockIdx.y * blockDim.x + threadIdx.x) * N, begin = piece * SORTED_PIECE;
    int id = sorted_id(order, ids, begin, rows);
    bool from_left = id >= 0 && sorted_id(order, ids, begin - 1, rows) == id;
    if (c >= C || id < 0) return;
    Floats<N> sum = {};
    for (int k = begin; k < begin + SORTED_PIECE; k++) {
        Floats<N> v = load<N>(dout + (size_t)order[k] * C + c);
#pragma unroll
        for (int i = 0; i < N; i++) sum.x[i] += v.x[i];
        int next = sorted_id(order, ids, k + 1, rows);
        bool last = k + 1 == begin + SORTED_PIECE, goes_on = last && next == id;
        if (next == id && !last) continue;
        if (from_left || goes_on)
            store<N>(partial + ((size_t)piece * 2 + !from_left) * C + c, sum);
        else
            add_to<N>(dtable + (size_t)id * C + c, sum);
        if (next < 0) return;
        from_left = false;
        id = next;
        sum = Floats<N>();
    }
}

/* The same grid. A piece in which an id begins that continues in the next one adds up the sums of the pieces after
 * it. */
template <int N>
static __global__ void embedding_combine_kernel(float *dtable, const float *partial, const int *order, const int *ids,
                                                int rows, int C) {
    int piece = (int)blockIdx.x, c = (int)(blockIdx.y * blockDim.x + threadIdx.x) * N;
    int begin = piece * SORTED_PIECE, next = begin + SORTED_PIECE, id = sorted_id(order, ids, next - 1, rows);
    bool fills_all = sorted_id(order, ids, begin, rows) == id && sorted_id(order, ids, begin - 1, rows) == id;
    if (c >= C || id < 0 || fills_all || sorted_id(order, ids, next, rows) != id) return;
    Floats<N> sum = load<N>(partial + ((size_t)piece * 2 + 1) * C + c);
    for (; sorted_id(order, ids, next, rows) == id; next += SORTED_PIECE) {
        Floats<N> v = load<N>(partial + (size_t)(next / SORTED_PIECE) * 2 * C + c);
#pragma unroll
        for (int i = 0; i < N; i++) sum.x[i] += v.x[i];
    }
    add_to<N>(dtable + (size_t)id * C + c, sum);
}

template <int N>
static void embedding_backward(float *dtable, float *partial, const floatX *dout, const int *order, const int *ids,
                               int rows, int C) {
    unsigned threads = cuda_row_threads((size_t)C / N);
    dim3 grid(cuda_blocks((size_t)rows, SORTED_PIECE), cuda_blocks((size_t)C / N, threads));
    LAUNCH(embedding_piece_kernel<N>, grid, threads, 0, dtable, partial, dout, order, ids, rows, C);
    LAUNCH(embedding_combine_kernel<N>, grid, threads, 0, dtable, partial, order, ids, rows, C);
}

static void cuda_embedding_backward(float *dtable, const floatX *dout, const int *ids, size_t rows, int C,
                                    int vocab) {
    if (rows == 0) return;
    size_t pieces = cuda_div_up(rows, SORTED_PIECE), order_bytes = cuda_div_up(rows * sizeof(int), 256) * 256;
    char *scratch = (char *)cuda_scratch(order_bytes + pieces * 2 * C * sizeof(float));
    int *order = (int *)(void *)scratch;
    float *partial = (float *)(void *)(scratch + order_bytes);
    CUDA_CHECK(cudaMemsetAsync(order, 0xff, rows * sizeof(int), cuda_stream()));  // -1
    LAUNCH(rank_kernel, cuda_blocks(rows, 4 * RANKED_ROWS), 128, 0, order, ids, (int)rows, vocab);
    if (vectors_fit(C, VECTOR, dtable, dout))
        embedding_backward<VECTOR>(dtable, partial, dout, order, ids, (int)rows, C);
    else
        embedding_backward<1>(dtable, partial, dout, order, ids, (int)rows, C);
}

/* ---- images ---- */

/* A patch's u8 pixels to normalised features in the order (channel, y, x); a block for each patch. Reads one byte and
 * writes one element for each feature; the pixels of a patch share lines of the first-level cache. */
static __global__ void patchify_kernel(floatX *out, const uint8_t *pixels, int height, int width, int patch) {
    int rows = height / patch, columns = width / patch, area = patch * patch;
    size_t p = blockIdx.x, b = p / (rows * columns);
    size_t row = p / columns % rows * patch, col = p % columns * patch;
    const uint8_t *corner = pixels + ((b * height + row) * width + col) * 3;
    for (int i = (int)threadIdx.x; i < 3 * area; i += (int)blockDim.x) {
        int c = i / area, y = i % area / patch, x = i % patch;
        float value = (float)corner[((size_t)y * width + x) * 3 + c];
        out[p * (3 * area) + i] = from_float<floatX>(value * (2.0f / 255.0f) - 1.0f);
    }
}

static void cuda_patchify(floatX *out, const uint8_t *pixels, int B, int height, int width, int patch) {
    size_t patches = (size_t)B * (size_t)(height / patch) * (size_t)(width / patch);
    if (patches == 0) return;
    LAUNCH(patchify_kernel, (unsigned)patches, cuda_row_threads(3 * patch * patch), 0, out, pixels, height, width,
           patch);
}

/* ---- position embedding ---- */

/* x [B * T, C] += position; a block for each row. Reads x and the positions, which stay in the second-level cache,
 * and writes x. */
template <int N> static __global__ void position_forward_kernel(floatX *x, const floatX *position, int T, int C) {
    floatX *row = x + (size_t)blockIdx.x * C;
    const floatX *add = position + (size_t)(blockIdx.x % (unsigned)T) * C;
    for (int c = (int)threadIdx.x * N; c < C; c += (int)blockDim.x * N) {
        Floats<N> a = load<N>(row + c), p = load<N>(add + c);
#pragma unroll
        for (int i = 0; i < N; i++) a.x[i] += p.x[i];
        store<N>(row + c, a);
    }
}

static void cuda_position_forward(floatX *x, const floatX *position, int B, int T, int C) {
    unsigned rows = (unsigned)B * (unsigned)T;
    if (rows == 0) return;
    if (vectors_fit(C, VECTOR, x, position))
        LAUNCH(position_forward_kernel<VECTOR>, rows, cuda_row_threads(C / VECTOR), 0, x, position, T, C);
    else
        LAUNCH(position_forward_kernel<1>, rows, cuda_row_threads(C), 0, x, position, T, C);
}

/* dposition [T * C] += the sum over the batch, in order; a thread for N elements. Reads B * T * C elements of
 * dout. */
template <int N>
static __global__ void position_backward_kernel(float *dposition, const floatX *dout, int B, size_t size) {
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (i >= size) return;
    Floats<N> sum = load<N>(dposition + i);
#pragma unroll 4
    for (int b = 0; b < B; b++) {
        Floats<N> v = load<N>(dout + (size_t)b * size + i);
#pragma unroll
        for (int k = 0; k < N; k++) sum.x[k] += v.x[k];
    }
    store<N>(dposition + i, sum);
}

static void cuda_position_backward(float *dposition, const floatX *dout, int B, int T, int C) {
    size_t size = (size_t)T * C;
    if (size == 0) return;
    if (vectors_fit(size, VECTOR, dposition, dout))
        LAUNCH(position_backward_kernel<VECTOR>, cuda_blocks(size / VECTOR, 128), 128, 0, dposition, dout, B, size);
    else
        LAUNCH(position_backward_kernel<1>, cuda_blocks(size, 128), 128, 0, dposition, dout, B, size);
}

/* ---- position embedding of rows and of columns ---- */

/* x [B, R, Q, C] += rows[r] + columns[q]; a block for each patch. Reads x and the two small tables, and writes x. */
template <int N>
static __global__ void position_2d_forward_kernel(floatX *x, const floatX *rows, const floatX *columns, int R, int Q,
                                                  int C) {
    const unsigned patch = blockIdx.x;
    floatX *to = x + (size_t)patch * C;
    const floatX *row = rows + (size_t)(patch / (unsigned)Q % (unsigned)R) * C;
    const floatX *column = columns + (size_t)(patch % (unsigned)Q) * C;
    for (int c = (int)threadIdx.x * N; c < C; c += (int)blockDim.x * N) {
        Floats<N> a = load<N>(to + c), r = load<N>(row + c), q = load<N>(column + c);
#pragma unroll
        for (int i = 0; i < N; i++) a.x[i] += r.x[i] + q.x[i];
        store<N>(to + c, a);
    }
}

static void cuda_position_2d_forward(floatX *x, const floatX *rows, const floatX *columns, int B, int R, int Q,
                                     int C) {
    unsigned patches = (unsigned)B * (unsigned)R * (unsigned)Q;
    if (patches == 0) return;
    if (vectors_fit(C, VECTOR, x, rows) && vectors_fit(C, VECTOR, x, columns))
        LAUNCH(position_2d_forward_kernel<VECTOR>, patches, cuda_row_threads(C / VECTOR), 0, x, rows, columns, R, Q,
               C);
    else
        LAUNCH(position_2d_forward_kernel<1>, patches, cuda_row_threads(C), 0, x, rows, columns, R, Q, C);
}

enum { POSITION_SLICES = 8 };  // threads that share the sum of a row or a column in N channels

/* drows[r] += the sum over images and columns, dcolumns[q] += the sum over images and rows of dout [B, R, Q, C]; grid (R + Q,
 * pieces of 32 N channels), block (32, POSITION_SLICES). A slice adds up every eighth patch in their order; then the slices
 * are added in their order. Reads dout twice. */
template <int N>
static __global__ void position_2d_backward_kernel(float *drows, float *dcolumns, const floatX *dout, int B, int R,
                                                   int Q, int C) {
    __shared__ float partial[POSITION_SLICES][32 * N];
    const int task = (int)blockIdx.x, lane = (int)threadIdx.x, slice = (int)threadIdx.y;
    const bool is_row = task < R;
    const size_t first = is_row ? (size_t)task * Q : (size_t)(task - R), step = is_row ? 1 : (size_t)Q;
    const int count = is_row ? Q : R, c = ((int)blockIdx.y * 32 + lane) * N;
    float *to = is_row ? drows + (size_t)task * C : dcolumns + (size_t)(task - R) * C;
    Floats<N> sum = {};
    for (int i = slice; i < B * count && c < C; i += POSITION_SLICES) {
        const size_t patch = (size_t)(i / count) * (size_t)(R * Q) + first + (size_t)(i % count) * step;
        Floats<N> v = load<N>(dout + patch * C + c);
#pragma unroll
        for (int k = 0; k < N; k++) sum.x[k] += v.x[k];
    }
#pragma unroll
    for (int k = 0; k < N; k++) partial[slice][lane * N + k] = sum.x[k];
    __syncthreads();
    if (slice || c >= C) return;
    for (int k = 0; k < N; k++) {
        float all = to[c + k];
        for (int s = 0; s < POSITION_SLICES; s++) all += partial[s][lane * N + k];
        to[c + k] = all;
    }
}

static void cuda_position_2d_backward(float *drows, float *dcolumns, const floatX *dout, int B, int R, int Q, int C) {
    if ((size_t)B * R * Q * C == 0) return;
    const int N = vectors_fit(C, VECTOR, dout, dout) ? VECTOR : 1;
    const dim3 blocks((unsigned)(R + Q), cuda_blocks((size_t)C, (size_t)(32 * N))), threads(32, POSITION_SLICES);
    if (N == VECTOR)
        LAUNCH(position_2d_backward_kernel<VECTOR>, blocks, threads, 0, drows, dcolumns, dout, B, R, Q, C);
    else
        LAUNCH(position_2d_backward_kernel<1>, blocks, threads, 0, drows, dcolumns, dout, B, R, Q, C);
}

#endif
