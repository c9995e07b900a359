/* AdamW and the gradient norm. Memory-bound: AdamW reads 16 bytes and writes 12 plus the rounded copy per
 * parameter. */
#ifndef KERNELS_CPU_OPTIMIZER_H
#define KERNELS_CPU_OPTIMIZER_H

#include "pointwise.h"

/* Blocks of a fixed size are summed in fp32 lanes, and the sums of the blocks in double, in order. */
static void cpu_squared_norm(float *out, const float *x, size_t n, bool accumulate) {
    size_t blocks = div_up(n, POINTWISE_BLOCK);
    double *sums = (double *)scratch(SCRATCH_SHARED, (blocks + 1) * sizeof(double));
    FOR_BLOCKS (begin, end, n) {
        double sum = 0.0;
        for (size_t i = begin; i < end; i += 1024) {  // short fp32 runs keep the rounding error small
            vf part[GROUP] = {{0}};
            size_t j = i, stop = min_size(end, i + 1024);
            for (; j + GROUP_SIZE <= stop; j += GROUP_SIZE)
                for (int v = 0; v < GROUP; v++) part[v] += vf_load(x + j + v * LANES) * vf_load(x + j + v * LANES);
            FOR_LANES (k, m, j, stop) part[0] += vf_load_n(x + k, m) * vf_load_n(x + k, m);
            sum += vf_sum_group(part);
        }
        sums[begin / POINTWISE_BLOCK] = sum;
    }
    double total = accumulate ? out[0] : 0.0;
    for (size_t i = 0; i < blocks; i++) total += sums[i];
    out[0] = (float)total;
}

/* m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
 * w -= lr (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps) + decay w).
 * A norm that is not finite means that the gradients are not usable: then nothing is changed, and the caller sees the
 * norm in norm_squared. */
static void cpu_adamw(floatX *param, float *master, float *m, float *v, const float *grad, size_t n, float lr,
                      float beta1, float beta2, float eps, float decay, const float *norm_squared, float max_norm,
                      int step) {
    float clip = 1.0f;
    if (norm_squared) {
        if (!isfinite(norm_squared[0])) return;
        float norm = sqrtf(norm_squared[0]);
        if (max_norm > 0.0f && norm > max_norm) clip = max_norm / norm;
    }
    float correct1 = (float)(1.0 / (1.0 - pow(beta1, step))), correct2 = (float)(1.0 / (1.0 - pow(beta2, step)));
    FOR_BLOCKS (begin, end, n)
        FOR_LANES (i, k, begin, end) {
            vf g = vf_load_n(grad + i, k) * clip;
            vf m1 = beta1 * vf_load_n(m + i, k) + (1.0f - beta1) * g;
            vf v1 = beta2 * vf_load_n(v + i, k) + (1.0f - beta2) * g * g;
            vf w = vf_load_n(master + i, k);
            w -= lr * (m1 * correct1 / (vf_sqrt(v1 * correct2) + eps) + decay * w);
            vf_store_n(m + i, m1, k);
            vf_store_n(v + i, v1, k);
            vf_store_n(master + i, w, k);
            vx_store_n(param + i, w, k);
        }
}

#endif
