/* Products with weights: y = x W^T with bias and activation in its epilogue, dx = dy W, dW += dy^T x. Tasks are
 * panels of the result whose size depends on the shape only; inside a task everything is on the engine of cpu_tile.h. */
#ifndef KERNELS_CPU_PRODUCT_H
#define KERNELS_CPU_PRODUCT_H

#include "cpu_pointwise.h"
#include "cpu_tile.h"

/* What happens to a finished block of C, while it is in cache. Exactly one of out and sum is set. */
typedef struct {
    size_t ld;  // of out, preact and sum
    floatX *out, *preact;
    const floatX *bias;
    Activation act;
    float *sum;
    bool accumulate;
} Epilogue;

enum { BLOCK = 32 };  // C is made in blocks of BLOCK x BLOCK

static void epilogue_block(const Epilogue *e, const float *c, size_t m0, size_t rows, size_t n0, size_t cols) {
    for (size_t r = 0; r < rows; r++)
        FOR_LANES(i, m, 0, cols) {
            size_t at = (m0 + r) * e->ld + n0 + i;
            vf v = vf_load(c + r * BLOCK + i);
            if (e->sum) {
                vf_store_n(e->sum + at, e->accumulate ? v + vf_load_n(e->sum + at, m) : v, m);
                continue;
            }
            if (e->bias) v += vx_load_n(e->bias + n0 + i, m);
            if (e->accumulate) v += vx_load_n(e->out + at, m);
            if (e->preact) vx_store_n(e->preact + at, v, m);
            if (e->act != ACT_NONE) v = vf_gelu(vx_round(v), e->act);  // what the backward pass will see
            vx_store_n(e->out + at, v, m);
        }
}

/* Rows m0 .. m0+rows and columns n0 .. n0+cols of C, with the columns of B packed (from its own column 0 on). */
static void product_panel(const Matrix *a, const Right *b, const Epilogue *e, size_t m0, size_t rows, size_t n0,
                          size_t cols, size_t K) {
    size_t depth = round_up(K, K_STEP);
    bool direct = a->dtype == DT_FLOATX && sizeof(unit) == sizeof(floatX) && K % K_STEP == 0;
    unit *packed = (unit *)scratch(SCRATCH_A, BLOCK * depth * sizeof(unit));
    float *c = (float *)scratch(SCRATCH_C, BLOCK * BLOCK * sizeof(float));
    tile_begin();
    for (size_t m = 0; m < rows; m += BLOCK) {
        size_t height = min_size(BLOCK, rows - m), lda = depth;
        const unit *left = packed;
        if (direct && height % M_STEP == 0) {
            left = (const unit *)a->data + (m0 + m) * a->ld;
            lda = a->ld;
        } else {
            left_from_rows(packed, depth, a, m0 + m, 0, height, K);
        }
        for (size_t n = 0; n < cols; n += BLOCK) {
            size_t width = min_size(BLOCK, cols - n);
            tile_product(c, BLOCK, left, lda, b, 0, n, height, width, depth, false);
            epilogue_block(e, c, m0 + m, height, n0 + n, width);
        }
    }
    tile_end();
}

/* C [M, N] = A [M, K] B through the epilogue; w is B^T [N, K] when by_columns, else B [K, N]. A small B is packed
 * once for all; of a large one each task packs the columns it needs, and takes many rows to make that worth it. */
static void product(const Matrix *a, const Matrix *w, bool by_columns, const Epilogue *e, size_t M, size_t N,
                    size_t K) {
    const size_t cache = 512 * 1024;
    bool shared = right_units(K, N) <= cache;
    size_t panel_n = shared ? N : max_size(BLOCK, cache / 2 / round_up(K, K_STEP) / BLOCK * BLOCK);
    size_t panel_m = shared ? 256 : 4096;
    if (shared && M <= 1024) panel_n = BLOCK * 4;
    size_t rows = div_up(M, panel_m), cols = div_up(N, panel_n);
    unit *whole = (unit *)scratch(SCRATCH_SHARED, shared ? right_units(K, N) * sizeof(unit) : 1);
#pragma omp parallel if (M * N * K > 100000)
    {
        if (shared) {
#pragma omp for schedule(static)
            for (size_t n = 0; n < N; n += BLOCK) {
                Right part = right_at(whole + right_units(K, n), K, min_size(BLOCK, N - n));
                if (by_columns)
                    right_from_columns(&part, w, n, 0, K, min_size(BLOCK, N - n));
                else
                    right_from_rows(&part, w, 0, n, K, min_size(BLOCK, N - n));
            }
        }
#pragma omp for schedule(dynamic)
        for (size_t task = 0; task < rows * cols; task++) {
            size_t m0 = task % rows * panel_m, n0 = task / rows * panel_n, width = min_size(panel_n, N - n0);
            Right b = right_at(whole + right_units(K, n0), K, width);
            if (!shared) {
                b.data = (unit *)scratch(SCRATCH_B, right_units(K, width) * sizeof(unit));
                if (by_columns)
                    right_from_columns(&b, w, n0, 0, K, width);
                else
                    right_from_rows(&b, w, 0, n0, K, width);
            }
            product_panel(a, &b, e, m0, min_size(panel_m, M - m0), n0, width, K);
        }
    }
}

static Matrix activation_matrix(const floatX *x, size_t cols) {
    Matrix m = {x, DT_FLOATX, cols};
    return m;
}

static Matrix weight_matrix(Weight w) {
    Matrix m = {w.data, w.dtype, (size_t)w.cols};
    return m;
}

static void cpu_linear_forward(floatX *out, const floatX *inp, Weight w, const floatX *bias, Activation act,
                               floatX *preact, size_t rows) {
    Matrix a = activation_matrix(inp, w.cols), b = weight_matrix(w);
    Epilogue e = {(size_t)w.rows, out, preact, bias, act, NULL, false};
    product(&a, &b, true, &e, rows, w.rows, w.cols);
}

static void cpu_linear_logits(float *out, const floatX *inp, Weight w, size_t rows) {
    Matrix a = activation_matrix(inp, w.cols), b = weight_matrix(w);
    Epilogue e = {(size_t)w.rows, NULL, NULL, NULL, ACT_NONE, out, false};
    product(&a, &b, true, &e, rows, w.rows, w.cols);
}

static void cpu_linear_backward_input(floatX *dinp, const floatX *dout, Weight w, size_t rows, bool accumulate) {
    Matrix a = activation_matrix(dout, w.rows), b = weight_matrix(w);
    Epilogue e = {(size_t)w.cols, dinp, NULL, NULL, ACT_NONE, NULL, accumulate};
    product(&a, &b, false, &e, rows, w.cols, w.rows);
}

/* ---- dW += dout^T inp, dbias += column sums of dout ---- */

enum { CHUNK = 512, PANEL_O = 512, PANEL_I = 512 };

static void column_sums(float *sums, const floatX *x, size_t rows, size_t cols) {  // added
    for (size_t c = 0; c < cols; c += 4 * LANES) {
        size_t end = min_size(cols, c + 4 * LANES);
        vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
        for (size_t r = 0; r < rows; r++)
            FOR_LANES(i, m, c, end) sum[(i - c) / LANES] += vx_load_n(x + r * cols + i, m);
        FOR_LANES(i, m, c, end) vf_store_n(sums + i, vf_load_n(sums + i, m) + sum[(i - c) / LANES], m);
    }
}

/* One panel of dW (outputs m0.., inputs n0..), summed over the rows k0 .. k1 into sum [O, I]. */
static void weight_panel(float *sum, float *bias_sum, const Matrix *dout, const Matrix *inp, size_t m0, size_t n0,
                         size_t k0, size_t k1) {
    size_t O = dout->ld, I = inp->ld, height = min_size(PANEL_O, O - m0), width = min_size(PANEL_I, I - n0);
    size_t ldc = round_up(width, N_STEP), M = round_up(height, M_STEP);
    float *c = (float *)scratch(SCRATCH_C, M * ldc * sizeof(float));
    unit *a = (unit *)scratch(SCRATCH_A, M * CHUNK * sizeof(unit));
    unit *packed = (unit *)scratch(SCRATCH_B, right_units(CHUNK, width) * sizeof(unit));
    tile_begin();
    for (size_t k = k0; k < k1; k += CHUNK) {
        size_t depth = min_size(CHUNK, k1 - k);
        Right b = right_at(packed, depth, width);
        left_from_columns(a, b.K, dout, k, m0, height, depth);
        right_from_rows(&b, inp, k, n0, depth, width);
        tile_product(c, ldc, a, b.K, &b, 0, 0, height, width, depth, k > k0);
        if (bias_sum && n0 == 0 && m0 == 0) column_sums(bias_sum, (const floatX *)dout->data + k * O, depth, O);
    }
    tile_end();
    for (size_t m = 0; m < height; m++)
        FOR_LANES(n, i, 0, width) vf_store_n(sum + (m0 + m) * I + n0 + n, vf_load(c + m * ldc + n), i);
}

/* The rows are cut into parts by shape; each is a product of its own, and the parts are added in order. */
static void cpu_linear_backward_weight(float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                       size_t rows, int O, int I) {
    size_t size = (size_t)O * I, part_rows = size > 1 << 18 ? max_size(rows, 1) : max_size(CHUNK, div_up(rows, 16));
    part_rows = round_up(part_rows, 32);
    size_t parts = div_up(rows, part_rows), ms = div_up(O, PANEL_O), ns = div_up(I, PANEL_I), tasks = parts * ms * ns;
    float *sums = (float *)scratch(SCRATCH_SHARED, (parts * (size + O) + 1) * sizeof(float));
    float *bias_sums = sums + parts * size;
    Matrix a = activation_matrix(dout, O), b = activation_matrix(inp, I);
    memset(bias_sums, 0, parts * O * sizeof(float));
#pragma omp parallel if (rows * size > 100000)
    {
#pragma omp for schedule(dynamic)
        for (size_t task = 0; task < tasks; task++) {
            size_t part = task / (ms * ns), k0 = part * part_rows;
            weight_panel(sums + part * size, dbias ? bias_sums + part * O : NULL, &a, &b, task / ns % ms * PANEL_O,
                         task % ns * PANEL_I, k0, min_size(rows, k0 + part_rows));
        }
#pragma omp for schedule(static)
        for (size_t i = 0; i < size; i += 1024)
            for (size_t part = 0; part < parts; part++)
                FOR_LANES(j, m, i, min_size(size, i + 1024))
        vf_store_n(dweight + j, vf_load_n(dweight + j, m) + vf_load_n(sums + part * size + j, m), m);
    }
    for (size_t part = 0; dbias && part < parts; part++)
        for (int o = 0; o < O; o++) dbias[o] += bias_sums[part * O + o];
}

#endif
