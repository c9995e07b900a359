/* LayerNorm and RMSNorm, alone or fused with the residual addition before them: the sum is written once and
 * normalised while it is in cache. A row is read from memory once; the passes over it hit the first-level cache. */
#ifndef KERNELS_CPU_NORM_H
#define KERNELS_CPU_NORM_H

#include "vector.h"

/* ---- forward ---- */

/* sum = a + b, rounded. Returns the row that the norm reads. */
static inline const floatX *norm_add(floatX *sum, const floatX *a, const floatX *b, int C) {
    if (!b) return a;
    FOR_LANES (c, m, 0, (size_t)C) vx_store_n(sum + c, vx_load_n(a + c, m) + vx_load_n(b + c, m), m);
    return sum;
}

static inline float row_sum(const floatX *x, int C) {
    vf sum = vf_zero();
    FOR_LANES (c, m, 0, (size_t)C) sum += vx_load_n(x + c, m);
    return vf_sum(sum);
}

static inline float row_sum_of_squares(const floatX *x, int C, float mean) {
    vf sum = vf_zero();
    size_t whole = (size_t)C / LANES * LANES;
    FOR_LANES (c, m, 0, whole) {
        vf d = vx_load_n(x + c, m) - mean;
        sum += d * d;
    }
    float total = vf_sum(sum);
    for (size_t c = whole; c < (size_t)C; c++) total += (from_x(x[c]) - mean) * (from_x(x[c]) - mean);
    return total;
}

/* All four forward operations. b and sum NULL: no addition. layer: LayerNorm (with mean and bias), else RMSNorm. */
static void norm_forward(floatX *sum, floatX *out, float *mean, float *rstd, const floatX *a, const floatX *b,
                         const floatX *weight, const floatX *bias, size_t rows, int C, float eps, bool layer) {
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++) {
        const floatX *x = norm_add(b ? sum + r * C : NULL, a + r * C, b ? b + r * C : NULL, C);
        float mu = layer ? row_sum(x, C) / (float)C : 0.0f;
        float scale = 1.0f / sqrtf(row_sum_of_squares(x, C, mu) / (float)C + eps);
        if (layer) {
            FOR_LANES (c, m, 0, (size_t)C) {
                vf y = (vx_load_n(x + c, m) - mu) * scale;
                vx_store_n(out + r * C + c, y * vx_load_n(weight + c, m) + vx_load_n(bias + c, m), m);
            }
        } else {
            FOR_LANES (c, m, 0, (size_t)C)
                vx_store_n(out + r * C + c, vx_load_n(x + c, m) * scale * vx_load_n(weight + c, m), m);
        }
        if (mean) mean[r] = mu;
        if (rstd) rstd[r] = scale;
    }
}

static void cpu_layernorm_forward(floatX *out, float *mean, float *rstd, const floatX *inp, const floatX *weight,
                                  const floatX *bias, size_t rows, int C, float eps) {
    norm_forward(NULL, out, mean, rstd, inp, NULL, weight, bias, rows, C, eps, true);
}

static void cpu_residual_layernorm_forward(floatX *sum, floatX *out, float *mean, float *rstd, const floatX *a,
                                           const floatX *b, const floatX *weight, const floatX *bias, size_t rows,
                                           int C, float eps) {
    norm_forward(sum, out, mean, rstd, a, b, weight, bias, rows, C, eps, true);
}

static void cpu_rmsnorm_forward(floatX *out, float *rstd, const floatX *inp, const floatX *weight, size_t rows, int C,
                                float eps) {
    norm_forward(NULL, out, NULL, rstd, inp, NULL, weight, NULL, rows, C, eps, false);
}

static void cpu_residual_rmsnorm_forward(floatX *sum, floatX *out, float *rstd, const floatX *a, const floatX *b,
                                         const floatX *weight, size_t rows, int C, float eps) {
    norm_forward(sum, out, NULL, rstd, a, b, weight, NULL, rows, C, eps, false);
}

/* ---- backward ----
 * With x^ = (x - mean) rstd and g = dout weight:
 *   LayerNorm  dx = rstd (g - mean(g) - x^ mean(g x^)),  RMSNorm  dx = rstd (g - x^ mean(g x^))
 *   dweight = sum over rows of dout x^,  dbias = sum over rows of dout.
 * The rows are divided, by shape alone, into at most NORM_PARTS parts. Each part sums its dweight and dbias by
 * itself, and the parts are added in order. */
enum { NORM_PARTS = 32 };

static inline void norm_backward_row(floatX *dinp, float *dweight, float *dbias, const floatX *dout,
                                     const floatX *inp, const floatX *weight, float mean, float rstd, int C,
                                     bool layer) {
    vf sum_g = vf_zero(), sum_gx = vf_zero();
    FOR_LANES (c, m, 0, (size_t)C) {
        vf d = vx_load_n(dout + c, m), g = d * vx_load_n(weight + c, m), x = (vx_load_n(inp + c, m) - mean) * rstd;
        sum_g += g;
        sum_gx += g * x;
        if (dweight) vf_store_n(dweight + c, vf_load_n(dweight + c, m) + d * x, m);
        if (dbias) vf_store_n(dbias + c, vf_load_n(dbias + c, m) + d, m);
    }
    float mean_g = layer ? vf_sum(sum_g) / (float)C : 0.0f, mean_gx = vf_sum(sum_gx) / (float)C;
    FOR_LANES (c, m, 0, (size_t)C) {
        vf g = vx_load_n(dout + c, m) * vx_load_n(weight + c, m), x = (vx_load_n(inp + c, m) - mean) * rstd;
        vx_store_n(dinp + c, vx_load_n(dinp + c, m) + rstd * (g - mean_g - x * mean_gx), m);
    }
}

static void norm_backward(floatX *dinp, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                          const floatX *weight, const float *mean, const float *rstd, size_t rows, int C) {
    size_t part_rows = max_size(32, div_up(rows, NORM_PARTS)), parts = div_up(rows, part_rows);
    float *sums = (float *)scratch(SCRATCH_SHARED, (parts * 2 * C + 1) * sizeof(float));
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t part = 0; part < parts; part++) {
        float *dw = dweight ? sums + part * 2 * C : NULL, *db = dbias ? sums + part * 2 * C + C : NULL;
        memset(sums + part * 2 * C, 0, 2 * C * sizeof(float));
        for (size_t r = part * part_rows; r < min_size(rows, (part + 1) * part_rows); r++)
            norm_backward_row(dinp + r * C, dw, db, dout + r * C, inp + r * C, weight, mean ? mean[r] : 0.0f, rstd[r],
                              C, mean != NULL);
    }
    for (size_t part = 0; part < parts; part++)
        for (int c = 0; c < C; c++) {
            if (dweight) dweight[c] += sums[part * 2 * C + c];
            if (dbias) dbias[c] += sums[part * 2 * C + C + c];
        }
}

static void cpu_layernorm_backward(floatX *dinp, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                   const floatX *weight, const float *mean, const float *rstd, size_t rows, int C) {
    norm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, rows, C);
}

static void cpu_rmsnorm_backward(floatX *dinp, float *dweight, const floatX *dout, const floatX *inp,
                                 const floatX *weight, const float *rstd, size_t rows, int C) {
    norm_backward(dinp, dweight, NULL, dout, inp, weight, NULL, rstd, rows, C);
}

#endif
