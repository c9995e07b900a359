/* The objective beside its row kernel (distill.h): the entropy band gate and the cosine of the embedding term. */
#ifndef KERNELS_CPU_OBJECTIVE_H
#define KERNELS_CPU_OBJECTIVE_H

#include "vector.h"
#include "../ops.h"

static void cpu_entropy_band(float *row_gate, const RowStats *stats, size_t rows, float low, float high,
                             int percent) {
    size_t inside = 0;
    for (size_t i = 0; i < rows; i++) {
        row_gate[i] = stats[i].entropy >= low && stats[i].entropy <= high ? 1.0f : 0.0f;
        inside += row_gate[i] > 0;
    }
    for (size_t i = 0; i < rows && inside * 100 < rows * percent; i++) row_gate[i] = 1.0f;
}

/* d cos / da = t / (|a||t|) - cos a / |a|^2. Where a norm is below 1e-12 the direction has no meaning: the cosine
 * is 0 and so is its gradient. */
static void cpu_cosine(float *cosine, floatX *da, const floatX *a, const floatX *t, int B, size_t n, float scale) {
#pragma omp parallel for schedule(static) if (B * n > 16384)
    for (int b = 0; b < B; b++) {
        const floatX *x = a + b * n, *y = t + b * n;
        double xy = 0.0, xx = 0.0, yy = 0.0;
        for (size_t i = 0; i < n; i += 1024) {
            vf vxy = vf_zero(), vxx = vf_zero(), vyy = vf_zero();
            FOR_LANES (j, m, i, min_size(n, i + 1024)) {
                vf u = vx_load_n(x + j, m), v = vx_load_n(y + j, m);
                vxy += u * v;
                vxx += u * u;
                vyy += v * v;
            }
            xy += vf_sum(vxy);
            xx += vf_sum(vxx);
            yy += vf_sum(vyy);
        }
        double norm_x = sqrt(xx), norm_y = sqrt(yy);
        bool defined = !(norm_x < 1e-12 || norm_y < 1e-12);
        double c = defined ? xy / (norm_x * norm_y) : 0.0;
        cosine[b] = (float)c;
        if (!da) continue;
        float from_t = defined ? (float)(-scale / (norm_x * norm_y)) : 0.0f;
        float from_a = defined ? (float)(scale * c / xx) : 0.0f;
        FOR_LANES (i, m, 0, n)
            vx_store_n(da + b * n + i, from_t * vx_load_n(y + i, m) + from_a * vx_load_n(x + i, m), m);
    }
}

#endif
