/* The objective beside its row kernel (distill.cuh): the entropy band gate and the cosine of the embedding term. */
#ifndef KERNELS_CUDA_OBJECTIVE_CUH
#define KERNELS_CUDA_OBJECTIVE_CUH

#include "distill.cuh"

/* ---- the entropy band gate ---- */

enum { BAND_THREADS = 1024 };

/* One block does it all, because the rows are few (4 bytes of each are read and 4 written) and whether the band
 * applies depends on all of them. */
static __global__ void __launch_bounds__(BAND_THREADS)
    entropy_band_kernel(float *row_gate, const RowStats *stats, size_t rows, float low, float high, int percent) {
    double inside = 0;
    for (size_t i = threadIdx.x; i < rows; i += blockDim.x) {
        float h = stats[i].entropy, gate = h >= low && h <= high ? 1.0f : 0.0f;
        row_gate[i] = gate;
        inside += (double)gate;
    }
    if (block_sum(inside) * 100 >= (double)rows * percent) return;
    for (size_t i = threadIdx.x; i < rows; i += blockDim.x) row_gate[i] = 1.0f;
}

static void cuda_entropy_band(float *row_gate, const RowStats *stats, size_t rows, float low, float high,
                              int percent) {
    if (rows) LAUNCH(entropy_band_kernel, 1, BAND_THREADS, 0, row_gate, stats, rows, low, high, percent);
}

/* ---- cosine ---- */

enum { COSINE_THREADS = 256, COSINE_PART = 8192 };

/* parts [B, gridDim.x, 3] = sums of a*t, a*a and t*t over one part of one image. The cosine takes two kernels, this
 * one and the next, because an image is too large for one block and its gradient needs all three sums; the second
 * kernel reads from L2 what the first has read. Bytes: 2 B n elements, 3 B n with a gradient. */
template <int W>
static __global__ void __launch_bounds__(COSINE_THREADS)
    cosine_sums_kernel(float *parts, const floatX *a, const floatX *t, size_t n) {
    __shared__ float space[3][ROW_WARPS];
    const floatX *x = a + blockIdx.y * n, *y = t + blockIdx.y * n;
    size_t begin = (size_t)blockIdx.x * COSINE_PART, end = begin + COSINE_PART < n ? begin + COSINE_PART : n;
    float sums[3] = {0, 0, 0};
    for (size_t i = begin + threadIdx.x * W; i < end; i += blockDim.x * W) {
        Floats<W> u = load<W>(x + i), v = load<W>(y + i);
#pragma unroll
        for (int k = 0; k < W; k++) {
            sums[0] += u.x[k] * v.x[k];
            sums[1] += u.x[k] * u.x[k];
            sums[2] += v.x[k] * v.x[k];
        }
    }
    block_sums(sums, space);
    float *out = parts + 3 * ((size_t)blockIdx.y * gridDim.x + blockIdx.x);
    if (threadIdx.x < 3) out[threadIdx.x] = threadIdx.x == 0 ? sums[0] : threadIdx.x == 1 ? sums[1] : sums[2];
}

/* Adds up the parts (every block of an image does, with the same bits) and writes its part of the gradient. Where a
 * norm is below 1e-12 the cosine has no meaning: it is 0, and so is its gradient. */
template <int W>
static __global__ void __launch_bounds__(COSINE_THREADS)
    cosine_finish_kernel(float *cosine, floatX *da, const float *parts, const floatX *a, const floatX *t, size_t n,
                         int part_count, float scale) {
    double xy = 0, xx = 0, yy = 0;
    for (int i = threadIdx.x % 32; i < part_count; i += 32) {
        const float *p = parts + 3 * ((size_t)blockIdx.y * part_count + i);
        xy += (double)p[0];
        xx += (double)p[1];
        yy += (double)p[2];
    }
    for (int distance = 16; distance; distance /= 2) {
        xy += __shfl_xor_sync(ALL_LANES, xy, distance);
        xx += __shfl_xor_sync(ALL_LANES, xx, distance);
        yy += __shfl_xor_sync(ALL_LANES, yy, distance);
    }
    double norm_x = sqrt(xx), norm_y = sqrt(yy);
    bool defined = !(norm_x < 1e-12 || norm_y < 1e-12);
    double c = defined ? xy / (norm_x * norm_y) : 0.0;
    if (blockIdx.x == 0 && threadIdx.x == 0) cosine[blockIdx.y] = (float)c;
    if (!da) return;
    float from_t = defined ? (float)(-scale / (norm_x * norm_y)) : 0.0f;
    float from_a = defined ? (float)(scale * c / xx) : 0.0f;
    size_t row = blockIdx.y * n, begin = (size_t)blockIdx.x * COSINE_PART;
    size_t end = begin + COSINE_PART < n ? begin + COSINE_PART : n;
    for (size_t i = begin + threadIdx.x * W; i < end; i += blockDim.x * W) {
        Floats<W> u = load<W>(a + row + i), v = load<W>(t + row + i);
#pragma unroll
        for (int k = 0; k < W; k++) v.x[k] = from_t * v.x[k] + from_a * u.x[k];
        store<W>(da + row + i, v);
    }
}

template <int W>
static void launch_cosine(float *cosine, floatX *da, const floatX *a, const floatX *t, int B, size_t n, float scale) {
    unsigned parts = (unsigned)((n + COSINE_PART - 1) / COSINE_PART);
    float *sums = (float *)cuda_scratch((size_t)B * parts * 3 * sizeof(float));
    dim3 all(parts, (unsigned)B), last(da ? parts : 1, (unsigned)B);
    LAUNCH(cosine_sums_kernel<W>, all, COSINE_THREADS, 0, sums, a, t, n);
    LAUNCH(cosine_finish_kernel<W>, last, COSINE_THREADS, 0, cosine, da, sums, a, t, n, (int)parts, scale);
}

static void cuda_cosine(float *cosine, floatX *da, const floatX *a, const floatX *t, int B, size_t n, float scale) {
    if (!B) return;
    (vectors_fit(n, VECTOR, a, t, da) ? launch_cosine<VECTOR> : launch_cosine<1>)(cosine, da, a, t, B, n, scale);
}

#endif
