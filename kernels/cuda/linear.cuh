/* Linear layers: y = x W^T + bias, dx = dy W, dW += dy^T x. Which matmul does the work depends on the shape:
 *
 *   gemv.cuh            1 to 4 rows (decoding), bound by the reading of the weight
 *   gemv_quantised.cuh  1 or 2 rows and a weight of 8 or 4 bits; up to 8 rows of what small_m.cuh does not take
 *   small_m.cuh         up to 32 rows in bf16 (several sequences decoded together), on tensor cores
 *   cublaslt.cuh        more rows: the library
 *   matmul.cuh          what cuBLASLt does not take or does slowly, and what is too small to matter
 *
 * With more rows a weight of 8 or 4 bits is widened to floatX, panel by panel. */
#ifndef KERNELS_CUDA_LINEAR_CUH
#define KERNELS_CUDA_LINEAR_CUH

#include "cublaslt.cuh"
#include "gemv.cuh"
#include "gemv_quantised.cuh"
#include "matmul.cuh"
#include "small_m.cuh"

/* Some rows are not a multiple of 16 bytes. cuBLASLt is slow with them where it takes them. */
static bool matmul_ragged(const Matmul &p) {
    return !vectors_fit((size_t)(p.a_transposed ? p.M : p.K), VECTOR, p.a) ||
           !vectors_fit((size_t)(p.b_transposed ? p.K : p.N), VECTOR, (const floatX *)p.b) ||
           !vectors_fit((size_t)p.ld, VECTOR, p.out, p.preact);
}

/* The same matmul without its activation: into preact, if that is wanted, else into out. */
static Matmul without_activation(Matmul p) {
    if (p.preact) p.out = p.preact;
    p.preact = NULL;
    p.act = ACT_NONE;
    return p;
}

/* The activation after cuBLASLt's matmul is a kernel of its own, not the library's epilogue. So a model gives the
 * same bits whether it stores the preactivation or computes it again in the backward pass. */
static void matmul(const Matmul &p) {
    if (p.M == 0 || p.N == 0) return;
    const bool small = (double)p.M * p.N * p.K < 1 << 20;
    if (p.b_type == DT_FLOATX && p.K > 0 && !(small && matmul_ragged(p))) {
        const Matmul linear = without_activation(p);
        if (lt_matmul(&linear)) {
            if (p.out) cuda_gelu_forward(p.out, linear.out, (size_t)p.M * p.N, p.act);
            return;
        }
    }
    if (p.b_type == DT_BF16)
        matmul_tiles<bf16>(p);
    else
        matmul_tiles<float>(p);
}

/* C = A B with a quantised weight B, which is widened to floatX in panels of output channels: each is small enough to
 * stay in the second-level cache until the matmul has read it, and scratch memory holds one of them. Reads the weight
 * once; a panel is written and read as floatX. */
static void matmul_widened(const Matmul &p) {
    const size_t row = (size_t)p.K * sizeof(floatX), fit = L2_KEPT_BYTES / row / 8 * 8;  // 8: aligned panels of C
    const int panel = (int)min(max(fit, (size_t)8), (size_t)p.N);
    /* cuBLASLt asks for scratch memory itself and gets the first bytes */
    char *scratch = (char *)cuda_scratch(CUBLASLT_WORKSPACE + panel * row);
    floatX *widened = (floatX *)(void *)(scratch + CUBLASLT_WORKSPACE);
    const size_t row_bytes = quant_row_bytes(p.b_type, (size_t)p.K),
                 row_scales = quant_row_scales(p.b_type, (size_t)p.K);
    const Matmul linear = without_activation(p);
    for (int n0 = 0; n0 < p.N; n0 += panel) {
        Matmul part = linear;
        part.N = min(panel, p.N - n0);
        const Weight w = {(const char *)p.b + n0 * row_bytes, p.b_type, part.N, p.K, p.scales + n0 * row_scales};
        widen_rows(widened, w, NULL, (size_t)part.N);
        part.b = widened, part.b_type = DT_FLOATX;
        if (p.sum) part.sum += n0;
        if (part.out) part.out += n0;
        if (p.bias) part.bias += n0;
        matmul(part);
    }
    if (p.out) cuda_gelu_forward(p.out, linear.out, (size_t)p.M * p.N, p.act);
}

/* y = x W^T. The kernels for few rows read the weight while the kernel that computes their input still runs
 * (LAUNCH_EARLY). That is safe because only AdamW and uploads write weights, and other kernels come between. */
static void matmul_forward(const Matmul &p) {
    if (p.M == 0 || p.N == 0) return;
    if (dtype_is_quantised(p.b_type)) {
        if (p.M > GEMV_QUANTISED_BEST && small_m(p)) return;
        if (p.M <= GEMV_QUANTISED_ROWS)
            gemv_quantised(p);
        else
            matmul_widened(p);
    } else if (p.M <= GEMV_ROWS)
        gemv(p);
    else if (!small_m(p))
        matmul(p);
}

/* ---- column sums ---- */

enum { SUM_THREADS = 256, SUM_ROWS = SUM_THREADS / 32, SUM_PART = 256 };

/* parts [gridDim.y, C] = sums of x [rows, C] over SUM_PART rows each. A warp takes every eighth row, a lane WIDTH
 * columns, and the warps' sums are added in order. Reads x once. */
template <int WIDTH> static __global__ void column_sum_kernel(float *parts, const floatX *x, size_t rows, int C) {
    __shared__ __align__(16) float sums[SUM_ROWS][32 * WIDTH];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, c0 = (int)blockIdx.x * 32 * WIDTH;
    const int c = c0 + lane * WIDTH;
    const size_t end = min(rows, (size_t)(blockIdx.y + 1) * SUM_PART);
    Floats<WIDTH> sum = {};
    if (c < C) {
#pragma unroll 4
        for (size_t r = (size_t)blockIdx.y * SUM_PART + warp; r < end; r += SUM_ROWS) {
            const Floats<WIDTH> v = load<WIDTH>(x + r * C + c);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) sum.x[i] += v.x[i];
        }
    }
    store<WIDTH>(&sums[warp][lane * WIDTH], sum);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < 32 * WIDTH && c0 + i < C; i += SUM_THREADS) {
        float total = 0.0f;
        for (int w = 0; w < SUM_ROWS; w++) total += sums[w][i];
        parts[(size_t)blockIdx.y * C + c0 + i] = total;
    }
}

/* sums [C] += the sum of parts [n, C], in order. */
static __global__ void add_parts_kernel(float *sums, const float *parts, int n, int C) {
    const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= C) return;
    float total = 0.0f;
    for (int i = 0; i < n; i++) total += parts[(size_t)i * C + c];
    sums[c] += total;
}

static void cuda_column_sums(float *sums, const floatX *x, size_t rows, int C) {
    const unsigned n = cuda_blocks(rows, SUM_PART);
    float *parts = (float *)cuda_scratch((size_t)n * C * sizeof(float));
    if (vectors_fit((size_t)C, VECTOR, x))
        LAUNCH(column_sum_kernel<VECTOR>, dim3(cuda_blocks((size_t)C, 32 * VECTOR), n), SUM_THREADS, 0, parts, x,
               rows, C);
    else
        LAUNCH(column_sum_kernel<1>, dim3(cuda_blocks((size_t)C, 32), n), SUM_THREADS, 0, parts, x, rows, C);
    LAUNCH(add_parts_kernel, cuda_blocks((size_t)C, SUM_THREADS), SUM_THREADS, 0, sums, parts, (int)n, C);
}

/* ---- the operations ---- */

static Matmul forward_shape(const floatX *inp, Weight w, size_t rows) {
    Matmul p;
    memset(&p, 0, sizeof p);
    p.a = inp;
    p.b = w.data;
    p.b_type = w.dtype;
    p.scales = w.scales;
    p.b_transposed = true;
    p.M = (int)rows, p.N = p.ld = w.rows, p.K = w.cols;
    return p;
}

static void cuda_linear_forward(floatX *out, const floatX *inp, Weight w, const floatX *bias, Activation act,
                                floatX *preact, size_t rows) {
    Matmul p = forward_shape(inp, w, rows);
    p.out = out, p.bias = bias, p.act = act, p.preact = preact;
    matmul_forward(p);
}

static void cuda_linear_logits(float *out, const floatX *inp, Weight w, size_t rows) {
    Matmul p = forward_shape(inp, w, rows);
    p.sum = out;
    matmul_forward(p);
}

static void cuda_linear_backward_input(floatX *dinp, const floatX *dout, Weight w, size_t rows, bool accumulate) {
    Matmul p = forward_shape(dout, w, rows);
    p.b_transposed = false;
    p.N = p.ld = w.cols, p.K = w.rows;
    p.out = dinp, p.accumulate = accumulate;
    matmul(p);
}

static void cuda_linear_backward_weight(float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                        size_t rows, int O, int I) {
    Weight w = {inp, DT_FLOATX, (int)rows, I, NULL};
    Matmul p = forward_shape(dout, w, (size_t)O);
    p.a_transposed = true, p.b_transposed = false;
    p.N = p.ld = I, p.K = (int)rows;
    p.sum = dweight, p.accumulate = true;
    if (rows == 0) return;
    matmul(p);
    if (dbias) cuda_column_sums(dbias, dout, rows, O);
}

#endif
