/* Attention forward from the plainest version to the one that ships (kernels/cuda/attention.cuh). README.md beside
 * this file explains the steps.
 *
 * For every query row t of a head, under a causal mask: out_t = sum over j <= t of softmax_j(scale <q_t, k_j>) v_j.
 * --rows is T, the positions of a sequence, --width D, the channels of a head. The queries, keys and values of a
 * position lie side by side, as the matmul before leaves them: qkv [B, T, (H + 2K) D], out [B, T, H D]; H / K heads
 * of queries share one of keys. No RoPE here: the shipped kernel would do that as well.
 * FLOPs at least: two matmuls, 4 D for each of the B H T (T + 1) / 2 pairs. Bytes at least: qkv read, out
 * written. */
#include "learn.cuh"

#include "../../kernels/cuda/attention.cuh"
#include "../../kernels/cuda/linear.cuh"

/* ---- what all versions read and write ---- */

/* Rows of one head; those of q, k and v are `row` elements apart, those of out `out_row`. */
struct Head {
    const floatX *q, *k, *v;
    floatX *out;
    size_t row, out_row;
};

static __device__ __forceinline__ Head head_of(floatX *out, const floatX *qkv, const AttentionShape &s, int b,
                                               int h) {
    size_t row = (size_t)(s.H + 2 * s.K) * s.D, out_row = (size_t)s.H * s.D;
    const floatX *x = qkv + (size_t)b * s.T * row;
    int kv = s.H + h / (s.H / s.K);
    return {x + h * s.D, x + kv * s.D, x + (kv + s.K) * s.D, out + (size_t)b * s.T * out_row + h * s.D, row, out_row};
}

template <int N> static __device__ __forceinline__ float dot_of(const Floats<N> &a, const Floats<N> &b) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < N; i++) sum = fmaf(a.x[i], b.x[i], sum);
    return sum;
}

/* o = o keep + p v */
template <int N> static __device__ __forceinline__ void weigh(Floats<N> &o, float keep, float p, const Floats<N> &v) {
#pragma unroll
    for (int i = 0; i < N; i++) o.x[i] = fmaf(p, v.x[i], o.x[i] * keep);
}

template <int N> static __device__ __forceinline__ void scale_by(Floats<N> &x, float factor) {
#pragma unroll
    for (int i = 0; i < N; i++) x.x[i] *= factor;
}

/* ---- 1 naive: a thread per query, its scores in memory ---- */

/* scores [B, H, T, T]; grid (queries, H, B) as in all that follow */
static __global__ void naive_kernel(floatX *out, float *scores, const floatX *qkv, AttentionShape s) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= s.T) return;
    const Head x = head_of(out, qkv, s, blockIdx.z, blockIdx.y);
    float *p = scores + (((size_t)blockIdx.z * s.H + blockIdx.y) * s.T + t) * s.T;
    float top = -INFINITY, sum = 0;
    for (int j = 0; j <= t; j++) {
        float dot = 0;
        for (int c = 0; c < s.D; c++) dot += to_float(x.q[t * x.row + c]) * to_float(x.k[j * x.row + c]);
        p[j] = dot * s.scale;
        top = fmaxf(top, p[j]);
    }
    for (int j = 0; j <= t; j++) {
        p[j] = expf(p[j] - top);
        sum += p[j];
    }
    for (int c = 0; c < s.D; c++) {
        float o = 0;
        for (int j = 0; j <= t; j++) o += p[j] * to_float(x.v[j * x.row + c]);
        x.out[t * x.out_row + c] = from_float<floatX>(o / sum);
    }
}

/* ---- 2 online: a warp per query, no scores in memory ---- */

/* A running softmax: the sum of the exponentials relative to the largest score so far (Milakov & Gimelshein 2018).
 * Returns what the sums so far are to be multiplied with; `score` becomes its exponential. */
static __device__ __forceinline__ float online(float &top, float &sum, float &score) {
    const float before = top;
    top = fmaxf(top, score);
    const float keep = expf(before - top);
    score = expf(score - top);
    sum = sum * keep + score;
    return keep;
}

template <int D> static __global__ void online_kernel(floatX *out, const floatX *qkv, AttentionShape s) {
    constexpr int PART = D / 32;  // channels of a lane
    int t = (blockIdx.x * blockDim.x + threadIdx.x) / 32, c = threadIdx.x % 32 * PART;
    if (t >= s.T) return;
    const Head x = head_of(out, qkv, s, blockIdx.z, blockIdx.y);
    const Floats<PART> q = load<PART>(x.q + t * x.row + c);
    Floats<PART> o = {};
    float top = -INFINITY, sum = 0;
    for (int j = 0; j <= t; j++) {
        float p = warp_sum(dot_of(q, load<PART>(x.k + j * x.row + c))) * s.scale;
        float keep = online(top, sum, p);
        weigh(o, keep, p, load<PART>(x.v + j * x.row + c));
    }
    scale_by(o, 1 / sum);
    store<PART>(x.out + t * x.out_row + c, o);
}

/* ---- 3 tiles: keys and values in shared memory, once for 64 queries ---- */

enum { TILED_QUERIES = 64, TILED_KEYS = 32, TILED_THREADS = 4 * TILED_QUERIES };

/* tile [TILED_KEYS, D] = rows j0.. of a head, the last one again beyond T. */
template <int D>
static __device__ __forceinline__ void tile_load(floatX *tile, const floatX *x, size_t row, int j0, int T) {
    for (int i = threadIdx.x * 8; i < TILED_KEYS * D; i += TILED_THREADS * 8)
        store<8>(tile + i, load<8>(x + min(j0 + i / D, T - 1) * row + i % D));
}

/* Four neighbouring lanes share a query; each has every fourth group of eight channels, so that the lanes of a warp
 * read 16-byte groups of shared memory that lie in different banks, or the same one. */
template <int D> static __global__ void tiles_kernel(floatX *out, const floatX *qkv, AttentionShape s) {
    constexpr int GROUPS = D / 32;
    __shared__ __align__(16) floatX k[TILED_KEYS * D], v[TILED_KEYS * D];
    const int t0 = blockIdx.x * TILED_QUERIES, t = t0 + threadIdx.x / 4, first = threadIdx.x % 4 * 8;
    const Head x = head_of(out, qkv, s, blockIdx.z, blockIdx.y);
    Floats<8> q[GROUPS], o[GROUPS] = {};
    float top = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) q[i] = load<8>(x.q + min(t, s.T - 1) * x.row + 32 * i + first);
    for (int j0 = 0; j0 < min(t0 + TILED_QUERIES, s.T); j0 += TILED_KEYS) {
        __syncthreads();  // all have read the last tile
        tile_load<D>(k, x.k, x.row, j0, s.T);
        tile_load<D>(v, x.v, x.row, j0, s.T);
        __syncthreads();
        for (int j = 0; j < TILED_KEYS; j++) {
            float p = 0;
#pragma unroll
            for (int i = 0; i < GROUPS; i++) p += dot_of(q[i], load<8>(k + j * D + 32 * i + first));
            p += __shfl_xor_sync(ALL_LANES, p, 1);
            p += __shfl_xor_sync(ALL_LANES, p, 2);
            p = j0 + j <= t ? p * s.scale : -INFINITY;
            float keep = online(top, sum, p);
#pragma unroll
            for (int i = 0; i < GROUPS; i++) weigh(o[i], keep, p, load<8>(v + j * D + 32 * i + first));
        }
    }
    if (t >= s.T) return;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        scale_by(o[i], 1 / sum);
        store<8>(x.out + t * x.out_row + 32 * i + first, o[i]);
    }
}

/* ---- 4 tensor cores: scores, softmax and weights in the registers of a warp ---- */

#ifndef PRECISION_FP32

enum { MMA_QUERIES = 16 * FLASH_WARPS, MMA_KEYS = 64 };

/* tile [ROWS, D] = rows t0.. of a head, its chunks where ldmatrix finds them in different banks. */
template <int D, int ROWS>
static __device__ __forceinline__ void mma_tile_load(bf16 *tile, const bf16 *x, size_t row, int t0, int T) {
    for (int i = threadIdx.x; i < ROWS * D / 8; i += FLASH_THREADS) {
        const int r = i / (D / 8), chunk = i % (D / 8);
        *(uint4 *)(tile + tile_place<D>(r, chunk)) = *(const uint4 *)(x + min(t0 + r, T - 1) * row + chunk * 8);
    }
}

/* Turns the scores of a tile into probabilities, and makes the sums so far relative to the new maxima. A lane has
 * columns of rows lane / 4 and lane / 4 + 8 (half 0 and 1); the four lanes of a row share its maximum. */
template <int N, int COLUMNS>
static __device__ __forceinline__ void mma_softmax(float (&s)[1][N][4], float (&top)[2], float (&sum)[2],
                                                   float (&o)[1][COLUMNS][4], float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float before = top[half];
        float largest = -INFINITY;
#pragma unroll
        for (int n = 0; n < N; n++) largest = fmaxf(largest, fmaxf(s[0][n][2 * half], s[0][n][2 * half + 1]));
        top[half] = fmaxf(before, quad_max(largest) * scale);
        const float keep = expf(before - top[half]);
        sum[half] *= keep;
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) o[0][n][2 * half] *= keep, o[0][n][2 * half + 1] *= keep;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++)
                sum[half] += s[0][n][i] = expf(s[0][n][i] * scale - top[half]);
    }
}

/* A warp owns 16 queries alone. The sums of mma.sync are laid out as its A operand must be, so that scores
 * become weights without leaving the registers (Dao 2023, FlashAttention-2). */
template <int D>
static __global__ void __launch_bounds__(FLASH_THREADS) mma_kernel(floatX *out, const floatX *qkv, AttentionShape s) {
    DYNAMIC_SHARED(bf16, q);
    bf16 *k = q + MMA_QUERIES * D, *v = k + MMA_KEYS * D;
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const int t0 = blockIdx.x * MMA_QUERIES, query0 = t0 + warp_row;
    const Head x = head_of(out, qkv, s, blockIdx.z, blockIdx.y);
    mma_tile_load<D, MMA_QUERIES>(q, x.q, x.row, t0, s.T);
    __syncthreads();
    const RowFragments<D, 1, true> queries_a(q + warp_row * D);
    float o[1][D / 8][4], top[2] = {-INFINITY, -INFINITY}, sum[1][2] = {{0, 0}};
    sums_zero(o);
    for (int j0 = 0; j0 < min(t0 + MMA_QUERIES, s.T); j0 += MMA_KEYS) {
        float scores[1][MMA_KEYS / 8][4];
        unsigned weights[1][MMA_KEYS / 16][4];
        __syncthreads();  // all have read the last tiles
        mma_tile_load<D, MMA_KEYS>(k, x.k, x.row, j0, s.T);
        mma_tile_load<D, MMA_KEYS>(v, x.v, x.row, j0, s.T);
        __syncthreads();
        warp_scores(scores, queries_a, k);
        mask_scores(scores, query0, j0, lane, s);
        mma_softmax(scores, top, sum[0], o, s.scale);
        warp_pack(weights, scores);
        warp_weigh<D>(o, weights, v);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) sum[0][half] = 1 / quad_sum(sum[0][half]);
    store_rows<D, 1>(x.out, x.out_row, o, sum, q + warp_row * D, query0, s);
}

#endif

/* ---- the problem ---- */

static struct {
    AttentionShape s;
    size_t numbers;  // of qkv
    floatX *qkv, *out, *block;
    float *scores;
} at;

static dim3 grid_of(int queries) {
    return dim3(cuda_blocks((size_t)at.s.T, (size_t)queries), (unsigned)at.s.H, (unsigned)at.s.B);
}

static void run_naive() { LAUNCH(naive_kernel, grid_of(128), 128, 0, at.out, at.scores, at.qkv, at.s); }

template <int D> static void run_online() { LAUNCH(online_kernel<D>, grid_of(8), 256, 0, at.out, at.qkv, at.s); }

template <int D> static void run_tiles() {
    LAUNCH(tiles_kernel<D>, grid_of(TILED_QUERIES), TILED_THREADS, 0, at.out, at.qkv, at.s);
}

#ifndef PRECISION_FP32
template <int D> static void run_mma() {
    size_t shared = (size_t)(MMA_QUERIES + 2 * MMA_KEYS) * D * sizeof(bf16);
    cuda_allow_shared(mma_kernel<D>, shared);
    LAUNCH(mma_kernel<D>, grid_of(MMA_QUERIES), FLASH_THREADS, shared, at.out, at.qkv, at.s);
}
#endif

static void run_shipped() { cuda_attention_forward(at.out, NULL, at.qkv, at.s); }

static void reset() {
    CUDA_CHECK(
        cudaMemsetAsync(at.out, 0xff, (size_t)at.s.B * at.s.T * at.s.H * at.s.D * sizeof(floatX), cuda_stream()));
}

/* Element c of head `head` (queries, then keys, then values) at position t of sequence b. */
static double element(int b, int t, int head, int c) {
    return learn_element(at.block, (((size_t)b * at.s.T + t) * (at.s.H + 2 * at.s.K) + head) * at.s.D + c);
}

/* The plain reference of one row against what came out. Tensor cores take weights that are rounded to bf16; the
 * result is rounded in all versions. */
static double row_error(int b, int h, int t, const floatX *got, double *p) {
    const double rounding = sizeof(floatX) == 2 ? 1.01 / 256 : 2e-5;
    const int D = at.s.D, key = at.s.H + h / (at.s.H / at.s.K);
    double top = -INFINITY, sum = 0, worst = 0;
    for (int j = 0; j <= t; j++) {
        p[j] = 0;
        for (int c = 0; c < D; c++) p[j] += element(b, t, h, c) * element(b, j, key, c) * (double)at.s.scale;
        top = fmax(top, p[j]);
    }
    for (int j = 0; j <= t; j++) sum += p[j] = exp(p[j] - top);
    for (int c = 0; c < D; c++) {
        double want = 0, size = 0;
        for (int j = 0; j <= t; j++) {
            double v = p[j] / sum * element(b, j, key + at.s.K, c);
            want += v, size += fabs(v);
        }
        double off = fabs((double)from_x(got[c]) - want) / (rounding * (size + fabs(want)));
        worst = off <= worst ? worst : off < INFINITY ? off : INFINITY;  // not a number: infinite
    }
    return worst;
}

/* Of up to 24 rows of all sequences and heads, the first and the last among them. */
static double error() {
    const AttentionShape s = at.s;
    long long rows = (long long)s.B * s.H * s.T, checked = rows < 24 ? rows : 24;
    floatX *got = (floatX *)malloc((size_t)s.D * sizeof *got);
    double *p = (double *)malloc((size_t)s.T * sizeof *p), worst = 0;
    if (!got || !p) die("out of memory");
    for (long long i = 0; i < checked; i++) {
        long long row = checked > 1 ? i * (rows - 1) / (checked - 1) : 0;
        int t = (int)(row % s.T), h = (int)(row / s.T % s.H), b = (int)(row / s.T / s.H);
        learn_download(got, at.out + (((size_t)b * s.T + t) * s.H + h) * s.D, (size_t)s.D * sizeof *got);
        worst = fmax(worst, row_error(b, h, t, got, p));
    }
    free(got);
    free(p);
    return worst;
}

/* Operations per second of cuBLASLt's matmul of two matrices of 8192 x 8192. */
static double large_matmul() {
    const size_t n = 8192;
    floatX *x = learn_alloc<floatX>(n * n), *w = learn_alloc<floatX>(n * n), *y = learn_alloc<floatX>(n * n);
    learn_fill(x, n * n, at.block);
    learn_fill(w, n * n, at.block);
    Weight weight = {w, DT_FLOATX, (int)n, (int)n, NULL};
    double ms = learn_time([&] { cuda_linear_forward(y, x, weight, NULL, ACT_NONE, NULL, n); });
    CUDA_CHECK(cudaFree(x));
    CUDA_CHECK(cudaFree(w));
    CUDA_CHECK(cudaFree(y));
    return 2e3 * (double)n * (double)n * (double)n / ms;
}

static void make_problem() {
    int T = learn_options.rows ? learn_options.rows : timed ? 2048 : 150;
    int D = learn_options.width ? learn_options.width : timed ? 128 : 64;
    at.s = {timed ? 4 : 1, T, timed ? 16 : 2, timed ? 4 : 1, D, true, 1 / sqrtf((float)D), NULL};
    at.numbers = (size_t)at.s.B * T * (at.s.H + 2 * at.s.K) * D;
    at.qkv = learn_alloc<floatX>(at.numbers);
    at.out = learn_alloc<floatX>((size_t)at.s.B * T * at.s.H * D);
    at.scores = learn_alloc<float>((size_t)at.s.B * at.s.H * T * T);
    at.block = learn_block(1, 3);
    learn_fill(at.qkv, at.numbers, at.block);
}

int main(int argc, char **argv) {
    learn_read_options(argc, argv);
    learn_open();
    make_problem();
    const AttentionShape s = at.s;
    const double pairs = 0.5 * s.B * s.H * s.T * (s.T + 1.0), X = sizeof(floatX), array = (double)s.T * s.D;
    const double least = 2.0 * s.B * (s.H + s.K);
    const bool wide = s.D == 128, fits = wide || s.D == 64;
    // a block asks for keys and values up to its last query: half a tile of queries more than the pairs, on average
    const double tiles = least + pairs / array * 2 * s.D * (1.0 / TILED_QUERIES + 1.0 / s.T);
    const double shipped = least + pairs / array * 2 * s.D * (1.0 / (2 * TILED_QUERIES) + 1.0 / s.T);
    const Version versions[] = {
        {"naive", "a thread per query, scores in memory", pairs / array * (3 * s.D + 4 * (s.D + 3) / X), run_naive,
         true},
        {"online", "a warp per query, no scores in memory", least + pairs / array * 2 * s.D,
         wide ? run_online<128> : run_online<64>, fits},
        {"tiles", "keys and values in shared memory, for 64 queries", tiles, wide ? run_tiles<128> : run_tiles<64>,
         fits},
#ifndef PRECISION_FP32
        {"tensor cores", "mma.sync, all but the tiles in registers", tiles, wide ? run_mma<128> : run_mma<64>, fits},
#endif
        {"shipped", "asynchronous copies, 32 queries a warp, few rescalings", shipped, run_shipped, true},
    };
    char more[100];
    snprintf(more, sizeof more, "%d sequences, %d heads of queries, %d of keys, causal", s.B, s.H, s.K);
    Lesson lesson = {"attention", s.T, s.D, least, reset, error, more, 4 * pairs * s.D, large_matmul};
    return learn_run(&lesson, versions, sizeof versions / sizeof *versions);
}
