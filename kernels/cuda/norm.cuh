/* LayerNorm and RMSNorm, alone or fused with the residual addition before them: the sum is written once and
 * normalised while it is on the chip. Rows are read in 16-byte vectors (N elements) where their length allows. */
#ifndef KERNELS_CUDA_NORM_CUH
#define KERNELS_CUDA_NORM_CUH

#include "common.cuh"

/* ---- forward ---- */

/* The threads that work on a row: a warp, or the whole block where rows are too few to keep the GPU busy. A thread
 * takes vectors that are `threads` apart and keeps what it has read, as floats, in shared memory: element i of its
 * j-th vector is cache[(j * N + i) * threads], so neighbours never use the same bank, and no barrier is needed. */
template <bool BLOCK> struct RowWorkers {
    int threads, rank, row_in_block, rows_per_block;
    __device__ RowWorkers()
        : threads(BLOCK ? (int)blockDim.x : 32), rank(BLOCK ? (int)threadIdx.x : (int)threadIdx.x % 32),
          row_in_block(BLOCK ? 0 : (int)threadIdx.x / 32), rows_per_block(BLOCK ? 1 : (int)blockDim.x / 32) {}
    __device__ float sum(float v) const {
        if constexpr (BLOCK)
            return block_sum(v);
        else
            return warp_sum(v);
    }
};

/* All four forward operations. b NULL: no addition. LAYER: LayerNorm (with mean and bias), else RMSNorm. Reads a (and
 * b) and writes out (and sum), C elements a row each; weight and bias stay in the caches. */
template <bool LAYER, bool BLOCK, int N>
static __global__ void norm_forward_kernel(floatX *sum, floatX *out, float *mean, float *rstd, const floatX *a,
                                           const floatX *b, const floatX *weight, const floatX *bias, int rows, int C,
                                           float eps) {
    DYNAMIC_SHARED(float, shared);
    RowWorkers<BLOCK> w;
    int r = (int)blockIdx.x * w.rows_per_block + w.row_in_block, step = w.threads * N;
    let_next_begin();
    wait_for_previous();
    if (r >= rows) return;  // true for a whole warp or block
    size_t at = (size_t)r * C;
    float *cache = shared + w.row_in_block * ((C + step - 1) / step * step) + w.rank;
    float total = 0.0f, squares = 0.0f;
    for (int c = w.rank * N, j = 0; c < C; c += step, j += step) {
        Floats<N> x = load<N>(a + at + c);
        if (b) {
            Floats<N> y = load<N>(b + at + c);
#pragma unroll
            for (int i = 0; i < N; i++) x.x[i] = rounded<floatX>(x.x[i] + y.x[i]);
            store<N>(sum + at + c, x);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            cache[j + i * w.threads] = x.x[i];
            total += LAYER ? x.x[i] : x.x[i] * x.x[i];
        }
    }
    total = w.sum(total) / (float)C;
    float mu = LAYER ? total : 0.0f;
    if constexpr (LAYER) {
        for (int c = w.rank * N, j = 0; c < C; c += step, j += step)
#pragma unroll
            for (int i = 0; i < N; i++) squares += (cache[j + i * w.threads] - mu) * (cache[j + i * w.threads] - mu);
        total = w.sum(squares) / (float)C;
    }
    float scale = 1.0f / sqrtf(total + eps);
    for (int c = w.rank * N, j = 0; c < C; c += step, j += step) {
        Floats<N> g = load<N>(weight + c), y;
        if constexpr (LAYER) y = load<N>(bias + c);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float x = (cache[j + i * w.threads] - mu) * scale;
            y.x[i] = LAYER ? x * g.x[i] + y.x[i] : x * g.x[i];
        }
        store<N>(out + at + c, y);
    }
    if (w.rank == 0 && mean) mean[r] = mu;
    if (w.rank == 0 && rstd) rstd[r] = scale;
}

template <bool LAYER, bool BLOCK, int N>
static void norm_forward_launch(floatX *sum, floatX *out, float *mean, float *rstd, const floatX *a, const floatX *b,
                                const floatX *weight, const floatX *bias, size_t rows, int C, float eps,
                                unsigned threads, size_t row_bytes) {
    size_t at_once = BLOCK ? 1 : threads / 32;
    cuda_allow_shared(norm_forward_kernel<LAYER, BLOCK, N>, at_once * row_bytes);
    LAUNCH_EARLY((norm_forward_kernel<LAYER, BLOCK, N>), cuda_blocks(rows, at_once), threads, at_once * row_bytes,
                 sum, out, mean, rstd, a, b, weight, bias, (int)rows, C, eps);
}

/* A warp takes a row, and a block as many rows as fit into 32 KB; or, for few rows and for very long ones, a block
 * takes a row. */
template <bool LAYER, int N>
static void norm_forward(floatX *sum, floatX *out, float *mean, float *rstd, const floatX *a, const floatX *b,
                         const floatX *weight, const floatX *bias, size_t rows, int C, float eps) {
    size_t vectors = (size_t)C / N, row_bytes = cuda_div_up(vectors, 32) * 32 * N * sizeof(float);
    size_t warps = 32768 / row_bytes < 8 ? 32768 / row_bytes : 8;
    if (rows < 256 || warps == 0) {
        unsigned threads = cuda_row_threads(vectors);
        row_bytes = cuda_div_up(vectors, threads) * threads * N * sizeof(float);
        norm_forward_launch<LAYER, true, N>(sum, out, mean, rstd, a, b, weight, bias, rows, C, eps, threads,
                                            row_bytes);
    } else {
        norm_forward_launch<LAYER, false, N>(sum, out, mean, rstd, a, b, weight, bias, rows, C, eps,
                                             (unsigned)warps * 32, row_bytes);
    }
}

template <bool LAYER>
static void norm_forward(floatX *sum, floatX *out, float *mean, float *rstd, const floatX *a, const floatX *b,
                         const floatX *weight, const floatX *bias, size_t rows, int C, float eps) {
    if (rows == 0) return;
    if (vectors_fit(C, VECTOR, sum, out, a, b, weight, bias))
        norm_forward<LAYER, VECTOR>(sum, out, mean, rstd, a, b, weight, bias, rows, C, eps);
    else
        norm_forward<LAYER, 1>(sum, out, mean, rstd, a, b, weight, bias, rows, C, eps);
}

static void cuda_layernorm_forward(floatX *out, float *mean, float *rstd, const floatX *inp, const floatX *weight,
                                   const floatX *bias, size_t rows, int C, float eps) {
    norm_forward<true>(NULL, out, mean, rstd, inp, NULL, weight, bias, rows, C, eps);
}

static void cuda_residual_layernorm_forward(floatX *sum, floatX *out, float *mean, float *rstd, const floatX *a,
                                            const floatX *b, const floatX *weight, const floatX *bias, size_t rows,
                                            int C, float eps) {
    norm_forward<true>(sum, out, mean, rstd, a, b, weight, bias, rows, C, eps);
}

static void cuda_rmsnorm_forward(floatX *out, float *rstd, const floatX *inp, const floatX *weight, size_t rows,
                                 int C, float eps) {
    norm_forward<false>(NULL, out, NULL, rstd, inp, NULL, weight, NULL, rows, C, eps);
}

static void cuda_residual_rmsnorm_forward(floatX *sum, floatX *out, float *rstd, const floatX *a, const floatX *b,
                                          const floatX *weight, size_t rows, int C, float eps) {
    norm_forward<false>(sum, out, NULL, rstd, a, b, weight, NULL, rows, C, eps);
}

/* ---- backward ----
 * With x^ = (x - mean) rstd and g = dout weight:
 *   LayerNorm  dx = rstd (g - mean(g) - x^ mean(g x^)),  RMSNorm  dx = rstd (g - x^ mean(g x^))
 *   dweight = sum over rows of dout x^,  dbias = sum over rows of dout.
 * The rows are divided, by shape alone, into at most NORM_PARTS parts, one for each block. A block sums its dweight
 * and dbias in shared memory (each thread its own channels, laid out like the forward kernel's cache) and stores them
 * in scratch memory; a second kernel adds the parts in order. */
enum { NORM_PARTS = 528, NORM_PART_ROWS = 8 };  // 528: four blocks for each of an H100's multiprocessors

/* Reads dout, inp and dinp and writes dinp, C elements a row each, where dout and inp come from the caches the second
 * time. Writes 2C floats a part (C for RMSNorm). */
template <bool LAYER, int N>
static __global__ void norm_backward_kernel(floatX *dinp, float *parts, const floatX *dout, const floatX *inp,
                                            const floatX *weight, const float *mean, const float *rstd, int rows,
                                            int part_rows, int C) {
    DYNAMIC_SHARED(float, shared);
    int threads = (int)blockDim.x, step = threads * N, first = (int)threadIdx.x * N,
        padded = (C + step - 1) / step * step;
    float *dweight = shared + threadIdx.x, *dbias = dweight + padded;  // dbias: LayerNorm only
    if (parts)
        for (int j = 0; j < (LAYER ? 2 : 1) * padded; j += threads) dweight[j] = 0.0f;
    int begin = (int)blockIdx.x * part_rows, end = begin + part_rows < rows ? begin + part_rows : rows;
    for (int r = begin; r < end; r++) {
        size_t at = (size_t)r * C;
        float mu = LAYER ? mean[r] : 0.0f, scale = rstd[r], sum_g = 0.0f, sum_gx = 0.0f;
        for (int c = first, j = 0; c < C; c += step, j += step) {
            Floats<N> d = load<N>(dout + at + c), x = load<N>(inp + at + c), w = load<N>(weight + c);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float normed = (x.x[i] - mu) * scale, g = d.x[i] * w.x[i];
                sum_g += g;
                sum_gx += g * normed;
                if (parts) dweight[j + i * threads] += d.x[i] * normed;
                if (LAYER && parts) dbias[j + i * threads] += d.x[i];
            }
        }
        if constexpr (LAYER)
            block_sum_pair(sum_g, sum_gx);
        else
            sum_gx = block_sum(sum_gx);
        float mean_g = sum_g / (float)C, mean_gx = sum_gx / (float)C;
        for (int c = first; c < C; c += step) {
            Floats<N> d = load<N>(dout + at + c), x = load<N>(inp + at + c), w = load<N>(weight + c);
            Floats<N> dx = load<N>(dinp + at + c);
#pragma unroll
            for (int i = 0; i < N; i++)
                dx.x[i] += scale * (d.x[i] * w.x[i] - (LAYER ? mean_g : 0.0f) - (x.x[i] - mu) * scale * mean_gx);
            store<N>(dinp + at + c, dx);
        }
    }
    if (!parts) return;
    float *part = parts + (size_t)blockIdx.x * (LAYER ? 2 : 1) * C;
    for (int c = first, j = 0; c < C; c += step, j += step)
#pragma unroll
        for (int i = 0; i < N; i++) {
            part[c + i] = dweight[j + i * threads];
            if (LAYER) part[C + c + i] = dbias[j + i * threads];
        }
}

/* total[c] += the sum of parts[p * stride + c] over p; each of eight warps takes every eighth part of the same 32
 * channels. */
static __global__ void norm_combine_kernel(float *total, const float *parts, int count, int stride, int C) {
    __shared__ float sums[8][32];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, c = (int)blockIdx.x * 32 + lane;
    float sum = 0.0f;
    for (int p = warp; p < count && c < C; p += 8) sum += parts[(size_t)p * stride + c];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || c >= C) return;
    for (int k = 1; k < 8; k++) sum += sums[k][lane];
    total[c] += sum;
}

template <bool LAYER, int N>
static void norm_backward(floatX *dinp, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                          const floatX *weight, const float *mean, const float *rstd, size_t rows, int C) {
    size_t part_rows = cuda_div_up(rows, NORM_PARTS), kinds = LAYER ? 2 : 1;
    if (part_rows < NORM_PART_ROWS) part_rows = NORM_PART_ROWS;
    unsigned blocks = cuda_blocks(rows, part_rows), threads = cuda_row_threads((size_t)C / N);
    size_t shared = cuda_div_up((size_t)C, threads * N) * threads * N * kinds * sizeof(float);
    float *parts = dweight ? (float *)cuda_scratch(blocks * kinds * C * sizeof(float)) : NULL;
    cuda_allow_shared(norm_backward_kernel<LAYER, N>, shared);
    LAUNCH((norm_backward_kernel<LAYER, N>), blocks, threads, shared, dinp, parts, dout, inp, weight, mean, rstd,
           (int)rows, (int)part_rows, C);
    int stride = (int)kinds * C;
    if (dweight)
        LAUNCH(norm_combine_kernel, cuda_blocks((size_t)C, 32), 256, 0, dweight, parts, (int)blocks, stride, C);
    if (dweight && dbias)
        LAUNCH(norm_combine_kernel, cuda_blocks((size_t)C, 32), 256, 0, dbias, parts + C, (int)blocks, stride, C);
}

template <bool LAYER>
static void norm_backward(floatX *dinp, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                          const floatX *weight, const float *mean, const float *rstd, size_t rows, int C) {
    if (rows == 0) return;
    if (vectors_fit(C, VECTOR, dinp, dout, inp, weight))
        norm_backward<LAYER, VECTOR>(dinp, dweight, dbias, dout, inp, weight, mean, rstd, rows, C);
    else
        norm_backward<LAYER, 1>(dinp, dweight, dbias, dout, inp, weight, mean, rstd, rows, C);
}

static void cuda_layernorm_backward(floatX *dinp, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                    const floatX *weight, const float *mean, const float *rstd, size_t rows, int C) {
    norm_backward<true>(dinp, dweight, dbias, dout, inp, weight, mean, rstd, rows, C);
}

static void cuda_rmsnorm_backward(floatX *dinp, float *dweight, const floatX *dout, const floatX *inp,
                                  const floatX *weight, const float *rstd, size_t rows, int C) {
    norm_backward<false>(dinp, dweight, NULL, dout, inp, weight, NULL, rstd, rows, C);
}

#endif
