/* LayerNorm and RMSNorm, alone or fused with the residual addition before them: the sum is written once and
 * normalised while it is in cache. A row is read from memory once; the passes over it hit the first-level cache. */
#ifndef KERNELS_CPU_NORM_H
#define KERNELS_CPU_NORM_H

#include "vector.h"

/* ---- forward ---- */

/* x = a row's m elements that are left, the sum of a and b where there is a b; then `sum` gets it, and x is what was
 * stored. */
ALWAYS_INLINE void norm_load(vf *x, floatX *sum, const floatX *a, const floatX *b, size_t m) {
    vx_load_group(x, a, m, 0.0f);
    if (!b) return;
    vf y[GROUP];
    vx_load_group(y, b, m, 0.0f);
    for (int k = 0; k < GROUP; k++) x[k] += y[k];
    vx_store_group(sum, x, m);
    vx_load_group(x, sum, m, 0.0f);
}

/* The sum of (x - mean)^2. */
static inline float row_sum_of_squares(const floatX *x, int C, float mean) {
    vf sum[GROUP] = {{0}};
    FOR_GROUPS (c, m, 0, (size_t)C) {
        vf d[GROUP], valid[GROUP];
        floatX ones[GROUP_SIZE];
        vx_load_group(d, x + c, m, 0.0f);
        for (int k = 0; k < GROUP; k++) d[k] -= mean;
        if (m < GROUP_SIZE) {  // the elements beyond the row count nothing
            for (size_t i = 0; i < m; i++) ones[i] = to_x(1.0f);
            vx_load_group(valid, ones, m, 0.0f);
            for (int k = 0; k < GROUP; k++) d[k] *= valid[k];
        }
        for (int k = 0; k < GROUP; k++) sum[k] += d[k] * d[k];
    }
    return vf_sum_group(sum);
}

typedef struct {
    float mean, rstd;
} NormStats;

/* One row; arguments as in norm_forward. */
ALWAYS_INLINE NormStats norm_forward_row(floatX *sum, floatX *out, const floatX *a, const floatX *b,
                                         const floatX *weight, const floatX *bias, int C, float eps,
                                         const bool layer) {
    NormStats n = {0.0f, 0.0f};
    vf total[GROUP] = {{0}};  // of x for LayerNorm, of x^2 for RMSNorm
    FOR_GROUPS (c, m, 0, (size_t)C) {
        vf x[GROUP];
        norm_load(x, sum + c, a + c, b ? b + c : NULL, m);
        for (int k = 0; k < GROUP; k++) total[k] += layer ? x[k] : x[k] * x[k];
    }
    const floatX *row = b ? sum : a;
    float squares = vf_sum_group(total);
    if (layer) {
        n.mean = squares / (float)C;
        squares = row_sum_of_squares(row, C, n.mean);
    }
    n.rstd = 1.0f / sqrtf(squares / (float)C + eps);
    FOR_GROUPS (c, m, 0, (size_t)C) {
        vf x[GROUP], w[GROUP], shift[GROUP];
        vx_load_group(x, row + c, m, 0.0f);
        vx_load_group(w, weight + c, m, 0.0f);
        if (layer) vx_load_group(shift, bias + c, m, 0.0f);
        for (int k = 0; k < GROUP; k++)
            x[k] = layer ? (x[k] - n.mean) * n.rstd * w[k] + shift[k] : x[k] * n.rstd * w[k];
        vx_store_group(out + c, x, m);
    }
    return n;
}

/* All four forward operations. b and sum NULL: no addition. layer: LayerNorm (with mean and bias), else RMSNorm. */
ALWAYS_INLINE void norm_forward(floatX *sum, floatX *out, float *mean, float *rstd, const floatX *a, const floatX *b,
                                const floatX *weight, const floatX *bias, size_t rows, int C, float eps,
                                const bool layer) {
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++) {
        floatX *row = b ? sum + r * C : out + r * C;
        NormStats n =
            norm_forward_row(row, out + r * C, a + r * C, b ? b + r * C : NULL, weight, bias, C, eps, layer);
        if (mean) mean[r] = n.mean;
        if (rstd) rstd[r] = n.rstd;
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

/* dweight and dbias are in the order of groups. */
ALWAYS_INLINE void norm_backward_row(floatX *dinp, float *dweight, float *dbias, const floatX *dout,
                                     const floatX *inp, const floatX *weight, float mean, float rstd, int C,
                                     const bool layer) {
    vf sum_g[GROUP] = {{0}}, sum_gx[GROUP] = {{0}};
    FOR_GROUPS (c, m, 0, (size_t)C) {
        vf d[GROUP], w[GROUP], x[GROUP];
        vx_load_group(d, dout + c, m, 0.0f);
        vx_load_group(w, weight + c, m, 0.0f);
        vx_load_group(x, inp + c, m, 0.0f);
        for (int k = 0; k < GROUP; k++) {
            x[k] = (x[k] - mean) * rstd;
            sum_g[k] += d[k] * w[k];
            sum_gx[k] += d[k] * w[k] * x[k];
            const size_t at = c + (size_t)k * LANES;
            if (dweight) vf_store(dweight + at, vf_load(dweight + at) + d[k] * x[k]);
            if (dbias) vf_store(dbias + at, vf_load(dbias + at) + d[k]);
        }
    }
    float mean_g = layer ? vf_sum_group(sum_g) / (float)C : 0.0f, mean_gx = vf_sum_group(sum_gx) / (float)C;
    FOR_GROUPS (c, m, 0, (size_t)C) {
        vf d[GROUP], w[GROUP], x[GROUP], dx[GROUP];
        vx_load_group(d, dout + c, m, 0.0f);
        vx_load_group(w, weight + c, m, 0.0f);
        vx_load_group(x, inp + c, m, 0.0f);
        vx_load_group(dx, dinp + c, m, 0.0f);
        for (int k = 0; k < GROUP; k++) dx[k] += rstd * (d[k] * w[k] - mean_g - (x[k] - mean) * rstd * mean_gx);
        vx_store_group(dinp + c, dx, m);
    }
}

ALWAYS_INLINE void norm_backward(floatX *dinp, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                 const floatX *weight, const float *mean, const float *rstd, size_t rows, int C,
                                 const bool layer) {
    size_t part_rows = max_size(32, div_up(rows, NORM_PARTS)), parts = div_up(rows, part_rows);
    size_t ld = div_up(C, GROUP_SIZE) * GROUP_SIZE;
    float *sums = (float *)scratch(SCRATCH_SHARED, (parts * 2 * ld + 1) * sizeof(float));
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t part = 0; part < parts; part++) {
        float *dw = dweight ? sums + part * 2 * ld : NULL, *db = dbias ? sums + part * 2 * ld + ld : NULL;
        memset(sums + part * 2 * ld, 0, 2 * ld * sizeof(float));
        for (size_t r = part * part_rows; r < min_size(rows, (part + 1) * part_rows); r++)
            norm_backward_row(dinp + r * C, dw, db, dout + r * C, inp + r * C, weight, layer ? mean[r] : 0.0f,
                              rstd[r], C, layer);
    }
    for (size_t part = 0; part < parts; part++)
        for (size_t c = 0; c < (size_t)C; c++) {
            if (dweight) dweight[c] += sums[part * 2 * ld + group_place(c)];
            if (dbias) dbias[c] += sums[part * 2 * ld + ld + group_place(c)];
        }
}

static void cpu_layernorm_backward(floatX *dinp, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                   const floatX *weight, const float *mean, const float *rstd, size_t rows, int C) {
    norm_backward(dinp, dweight, dbias, dout, inp, weight, mean, rstd, rows, C, true);
}

static void cpu_rmsnorm_backward(floatX *dinp, float *dweight, const floatX *dout, const floatX *inp,
                                 const floatX *weight, const float *rstd, size_t rows, int C) {
    norm_backward(dinp, dweight, NULL, dout, inp, weight, NULL, rstd, rows, C, false);
}

#endif
