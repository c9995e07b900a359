/* RMSNorm from the plainest version to the one that ships (kernels/cuda/norm.cuh). README.md beside this file
 * explains the steps.
 *
 * For every row x of C elements: out = x rstd weight, rstd = 1 / sqrt(mean of squares + eps).
 * Bytes at least: x read, out written: 2 rows C elements. */
#include "learn.cuh"

#include "../../kernels/cuda/norm.cuh"

static const float EPS = 1e-5f;

/* ---- 1 naive: a thread per row ---- */

static __global__ void naive_kernel(floatX *out, const floatX *inp, const floatX *weight, int rows, int C) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const floatX *x = inp + (size_t)row * C;
    float squares = 0;
    for (int c = 0; c < C; c++) squares += to_float(x[c]) * to_float(x[c]);
    float rstd = 1.0f / sqrtf(squares / (float)C + EPS);
    for (int c = 0; c < C; c++)
        out[(size_t)row * C + c] = from_float<floatX>(to_float(x[c]) * rstd * to_float(weight[c]));
}

/* ---- 2 coalesced: a block per row, neighbours read neighbours ---- */

static __global__ void coalesced_kernel(floatX *out, const floatX *inp, const floatX *weight, int rows, int C) {
    const floatX *x = inp + (size_t)blockIdx.x * C;
    float squares = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) squares += to_float(x[c]) * to_float(x[c]);
    float rstd = 1.0f / sqrtf(block_sum(squares) / (float)C + EPS);
    for (int c = threadIdx.x; c < C; c += blockDim.x)
        out[(size_t)blockIdx.x * C + c] = from_float<floatX>(to_float(x[c]) * rstd * to_float(weight[c]));
    (void)rows;
}

/* ---- 3 warps: a warp per row, no barriers ---- */

static __global__ void warps_kernel(floatX *out, const floatX *inp, const floatX *weight, int rows, int C) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const floatX *x = inp + (size_t)row * C;
    float squares = 0;
    for (int c = lane; c < C; c += 32) squares += to_float(x[c]) * to_float(x[c]);
    float rstd = 1.0f / sqrtf(warp_sum(squares) / (float)C + EPS);
    for (int c = lane; c < C; c += 32)
        out[(size_t)row * C + c] = from_float<floatX>(to_float(x[c]) * rstd * to_float(weight[c]));
}

/* ---- 4 vectors: 16 bytes a load ---- */

static __device__ __forceinline__ float squares_of(const Packed<floatX> &x) {
    float squares = 0;
#pragma unroll
    for (int k = 0; k < VECTOR; k++) squares += x.x[k] * x.x[k];
    return squares;
}

static __device__ __forceinline__ Packed<floatX> scaled(Packed<floatX> x, const Packed<floatX> &weight, float rstd) {
#pragma unroll
    for (int k = 0; k < VECTOR; k++) x.x[k] *= rstd * weight.x[k];
    return x;
}

static __global__ void vectors_kernel(floatX *out, const floatX *inp, const floatX *weight, int rows, int C) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const floatX *x = inp + (size_t)row * C;
    float squares = 0;
    for (int c = lane * VECTOR; c < C; c += 32 * VECTOR) squares += squares_of(load128(x + c));
    float rstd = 1.0f / sqrtf(warp_sum(squares) / (float)C + EPS);
    for (int c = lane * VECTOR; c < C; c += 32 * VECTOR)
        store128(out + (size_t)row * C + c, scaled(load128(x + c), load128(weight + c), rstd));
}

/* ---- 5 registers: the row stays on the chip, all its loads at once ---- */

/* COUNT: vectors a lane, at least C / (32 VECTOR). */
template <int COUNT>
static __global__ void registers_kernel(floatX *out, const floatX *inp, const floatX *weight, int rows, int C) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const floatX *x = inp + (size_t)row * C;
    Packed<floatX> kept[COUNT];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        int c = (i * 32 + lane) * VECTOR;
        kept[i] = {};
        if (c < C) kept[i] = load128(x + c);
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) squares += squares_of(kept[i]);
    float rstd = 1.0f / sqrtf(warp_sum(squares) / (float)C + EPS);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        int c = (i * 32 + lane) * VECTOR;
        if (c < C) store128(out + (size_t)row * C + c, scaled(kept[i], load128(weight + c), rstd));
    }
}

/* ---- the problem ---- */

static struct {
    int rows, C;
    floatX *inp, *out, *weight, *x_block, *w_block;
    float *rstd;
} at;

#define RUN(name, kernel, rows_per_block, threads)                                                                   \
    static void run_##name() {                                                                                       \
        LAUNCH(kernel, cuda_blocks((size_t)at.rows, rows_per_block), threads, 0, at.out, at.inp, at.weight, at.rows, \
               at.C);                                                                                                \
    }
RUN(naive, naive_kernel, 128, 128)
RUN(coalesced, coalesced_kernel, 1, 256)
RUN(warps, warps_kernel, 8, 256)
RUN(vectors, vectors_kernel, 8, 256)
RUN(registers_4, registers_kernel<4>, 8, 256)
RUN(registers_8, registers_kernel<8>, 8, 256)

static void run_shipped() { cuda_rmsnorm_forward(at.out, at.rstd, at.inp, at.weight, (size_t)at.rows, at.C, EPS); }

static void reset() {
    CUDA_CHECK(cudaMemsetAsync(at.out, 0xff, (size_t)at.rows * at.C * sizeof(floatX), cuda_stream()));
}

/* The plain reference, of up to 64 rows, the first and the last among them. */
static double error() {
    const double rounding = sizeof(floatX) == 2 ? 1.01 / 256 : 1e-5;
    floatX *got = (floatX *)malloc((size_t)at.C * sizeof *got);
    double worst = 0;
    if (!got) die("out of memory");
    int checked = at.rows < 64 ? at.rows : 64;
    for (int i = 0; i < checked; i++) {
        int row = checked > 1 ? (int)((long long)i * (at.rows - 1) / (checked - 1)) : 0;
        size_t first = (size_t)row * at.C;
        double squares = 0;
        learn_download(got, at.out + first, (size_t)at.C * sizeof *got);
        for (int c = 0; c < at.C; c++)
            squares += learn_element(at.x_block, first + c) * learn_element(at.x_block, first + c);
        double rstd = 1 / sqrt(squares / at.C + (double)EPS);
        for (int c = 0; c < at.C; c++) {
            double want = learn_element(at.x_block, first + c) * rstd * learn_element(at.w_block, (size_t)c);
            double off = fabs((double)from_x(got[c]) - want) / (rounding * fabs(want) + 1e-30);
            worst = off <= worst ? worst : off < INFINITY ? off : INFINITY;  // not a number: infinite
        }
    }
    free(got);
    return worst;
}

int main(int argc, char **argv) {
    learn_read_options(argc, argv);
    learn_open();
    at.rows = learn_options.rows ? learn_options.rows : timed ? 65536 : 20;
    at.C = learn_options.width ? learn_options.width : timed ? 2048 : 512;
    size_t n = (size_t)at.rows * at.C;
    at.inp = learn_alloc<floatX>(n), at.out = learn_alloc<floatX>(n), at.weight = learn_alloc<floatX>((size_t)at.C);
    at.rstd = learn_alloc<float>((size_t)at.rows);
    at.x_block = learn_block(1, 3), at.w_block = learn_block(2, 2);
    learn_fill(at.inp, n, at.x_block);
    learn_fill(at.weight, (size_t)at.C, at.w_block);
    const bool whole = at.C % VECTOR == 0;
    const int lanes = 32 * VECTOR;
    const Version versions[] = {
        {"naive", "a thread per row", 3, run_naive, true},
        {"coalesced", "a block per row", 3, run_coalesced, true},
        {"warps", "a warp per row, no barriers", 3, run_warps, true},
        {"vectors", "16 bytes a load", 3, run_vectors, whole},
        {"registers", "the row stays in registers", 2, at.C <= 4 * lanes ? run_registers_4 : run_registers_8,
         whole && at.C <= 8 * lanes},
        {"shipped", "any length; in shared memory", 2, run_shipped, true},
    };
    Lesson lesson = {"rmsnorm", at.rows, at.C, 2, reset, error, "", 0, NULL};
    return learn_run(&lesson, versions, sizeof versions / sizeof *versions);
}
