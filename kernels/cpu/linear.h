/* Products with weights: y = x W^T with bias and activation in its epilogue, dx = dy W, dW += dy^T x. Tasks are
 * panels of the result whose size depends on the shape only. Inside a task the engine of cpu/microkernel.h works, or
 * oneDNN where it is built in (WITH_ONEDNN) and the engine is not AMX; of the two on AMX ours measured faster at the
 * shapes of small models and equal at large ones. */
#ifndef KERNELS_CPU_PRODUCT_H
#define KERNELS_CPU_PRODUCT_H

#include "gemv.h"
#include "pointwise.h"
#include "microkernel.h"
#if defined(WITH_ONEDNN) && !defined(TILE_AMX)
#define USE_ONEDNN
#include "onednn.h"
#endif

/* What happens to a finished block of C, while it is in cache. Exactly one of out and sum is set. */
typedef struct {
    size_t ld;  // of out, preact and sum
    floatX *out, *preact;
    const floatX *bias;
    Activation act;
    float *sum;
    bool accumulate;
} Epilogue;

enum { BLOCK_M = 32, BLOCK_N = 64 };  // C is made in blocks of this size, rows BLOCK_N apart

ALWAYS_INLINE void epilogue_rows(const Epilogue *e, const float *c, size_t ldc, size_t m0, size_t rows, size_t n0,
                                 size_t cols, const Activation act, const bool accumulate, const bool full) {
    enum { VECTORS = BLOCK_N / LANES };
    size_t width[VECTORS];
    vf bias[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        size_t begin = min_size(cols, v * LANES);
        width[v] = full ? LANES : min_size(LANES, cols - begin);
        bias[v] = e->bias ? vx_load_n(e->bias + n0 + begin, width[v]) : vf_zero();
    }
    for (size_t r = 0; r < rows; r++) {
        size_t at = (m0 + r) * e->ld + n0;
        for (int v = 0; v < VECTORS && (full || width[v] > 0); v++, at += LANES) {
            vf x = vf_load(c + r * ldc + v * LANES) + bias[v];
            if (accumulate) x += vx_load_n(e->out + at, width[v]);
            if (e->preact) vx_store_n(e->preact + at, x, width[v]);
            if (act != ACT_NONE) x = vf_gelu(vx_round(x), act);  // of what the backward pass will see
            vx_store_n(e->out + at, x, width[v]);
        }
    }
}

/* c: the block's values, rows ldc apart */
static void epilogue_block(const Epilogue *e, const float *c, size_t ldc, size_t m0, size_t rows, size_t n0,
                           size_t cols) {
    if (e->sum)
        for (size_t r = 0; r < rows; r++)
            FOR_LANES (i, m, 0, cols)
                vf_store_n(e->sum + (m0 + r) * e->ld + n0 + i, vf_load_n(c + r * ldc + i, m), m);
    else if (e->accumulate)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_NONE, true, false);
    else if (e->act == ACT_NONE && cols == BLOCK_N)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_NONE, false, true);
    else if (e->act == ACT_NONE)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_NONE, false, false);
    else if (e->act == ACT_GELU_TANH)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_GELU_TANH, false, false);
    else
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_GELU_ERF, false, false);
}

/* Rows m0 .. m0+rows and columns n0 .. n0+cols of C, with the columns of B packed (from its own column 0 on). */
static void product_panel(const Matrix *a, const Right *b, const Epilogue *e, size_t m0, size_t rows, size_t n0,
                          size_t cols, size_t K) {
    size_t depth = round_up(K, K_STEP);
    bool direct = a->dtype == DT_FLOATX && sizeof(unit) == sizeof(floatX) && K % K_STEP == 0;
    unit *packed = (unit *)scratch(SCRATCH_A, BLOCK_M * depth * sizeof(unit));
    float *c = (float *)scratch(SCRATCH_C, BLOCK_M * BLOCK_N * sizeof(float));
    tile_begin();
    for (size_t m = 0; m < rows; m += BLOCK_M) {
        size_t height = min_size(BLOCK_M, rows - m), lda = depth;
        const unit *left = packed;
        if (direct && height % M_STEP == 0) {
            left = (const unit *)a->data + (m0 + m) * a->ld;
            lda = a->ld;
        } else {
            left_from_rows(packed, depth, a, m0 + m, 0, height, K);
        }
        for (size_t n = 0; n < cols; n += BLOCK_N) {
            size_t width = min_size(BLOCK_N, cols - n);
            tile_product(c, BLOCK_N, left, lda, b, 0, n, height, width, depth, false);
            epilogue_block(e, c, BLOCK_N, m0 + m, height, n0 + n, width);
        }
    }
    tile_end();
}

/* B's columns n0 .. n0+cols; w is B^T [N, K] when by_columns, else B [K, N]. */
static void pack_right(const Right *b, const Matrix *w, bool by_columns, size_t n0, size_t cols, size_t K) {
    if (by_columns)
        right_from_columns(b, w, n0, 0, K, cols);
    else
        right_from_rows(b, w, 0, n0, K, cols);
}

/* The same product as product() in panels that each pack the columns they need. */
static void product_own_panel(const Matrix *a, const Matrix *w, bool by_columns, const Epilogue *e, size_t m0,
                              size_t rows, size_t n0, size_t cols, size_t K) {
    Right b = right_at((unit *)scratch(SCRATCH_B, right_units(K, cols) * sizeof(unit)), K, cols);
    pack_right(&b, w, by_columns, n0, cols, K);
    product_panel(a, &b, e, m0, rows, n0, cols, K);
}

#ifdef USE_ONEDNN
/* A panel through oneDNN into fp32 in cache, then the epilogue; through our engine where oneDNN refuses. */
static void product_library_panel(const Matrix *a, const Matrix *w, bool by_columns, const Epilogue *e, size_t m0,
                                  size_t rows, size_t n0, size_t cols, size_t K) {
    size_t ldc = round_up(cols, BLOCK_N);
    float *c = (float *)scratch(SCRATCH_C, rows * ldc * sizeof(float));
    if (!onednn_product(c, ldc, a, false, m0, 0, w, by_columns, by_columns ? n0 : 0, by_columns ? 0 : n0, rows, cols,
                        K)) {
        product_own_panel(a, w, by_columns, e, m0, rows, n0, cols, K);
        return;
    }
    for (size_t n = 0; n < cols; n += BLOCK_N)
        epilogue_block(e, c + n, ldc, m0, rows, n0 + n, min_size(BLOCK_N, cols - n));
}
#endif

/* C [M, N] = A [M, K] B through the epilogue; w as in pack_right. A small B is packed once for all; of a large one
 * each task packs the columns it needs, and takes many rows to make that worth it. */
static void product(const Matrix *a, const Matrix *w, bool by_columns, const Epilogue *e, size_t M, size_t N,
                    size_t K) {
    const size_t cache = 512 * 1024;  // units
    bool shared = right_units(K, N) <= cache;
    size_t panel_m = shared ? 256 : 4096, panel_n = cache / 2 / round_up(K, K_STEP) / BLOCK_N * BLOCK_N;
    panel_n = !shared ? max_size(BLOCK_N, panel_n) : M <= 1024 ? 2 * BLOCK_N : N;
#ifdef USE_ONEDNN
    shared = false, panel_m = 256, panel_n = 256;
#endif
    size_t rows = div_up(M, panel_m), tasks = rows * div_up(N, panel_n);
    unit *whole = (unit *)scratch(SCRATCH_SHARED, shared ? right_units(K, N) * sizeof(unit) : 1);
#pragma omp parallel if (M * N * K > 100000)
    {
#pragma omp for schedule(static)
        for (size_t n = 0; n < (shared ? N : 0); n += BLOCK_N) {
            Right part = right_at(whole + right_units(K, n), K, min_size(BLOCK_N, N - n));
            pack_right(&part, w, by_columns, n, min_size(BLOCK_N, N - n), K);
        }
#pragma omp for schedule(dynamic)
        for (size_t task = 0; task < tasks; task++) {
            size_t m0 = task % rows * panel_m, height = min_size(panel_m, M - m0);
            size_t n0 = task / rows * panel_n, width = min_size(panel_n, N - n0);
            Right b = right_at(whole + right_units(K, shared ? n0 : 0), K, width);
            if (shared) product_panel(a, &b, e, m0, height, n0, width, K);
#ifdef USE_ONEDNN
            else
                product_library_panel(a, w, by_columns, e, m0, height, n0, width, K);
#else
            else
                product_own_panel(a, w, by_columns, e, m0, height, n0, width, K);
#endif
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

static void product_gemv(const floatX *inp, const Weight *w, const Epilogue *e, size_t rows) {
    float *x = gemv_input(inp, rows, w->cols, w->dtype);
    size_t tasks = div_up(w->rows, BLOCK_N);
#pragma omp parallel for schedule(static) if ((size_t)w->rows * w->cols > 16384)
    for (size_t task = 0; task < tasks; task++) {
        float c[GEMV * BLOCK_N];
        size_t begin = task * BLOCK_N, end = min_size(w->rows, begin + BLOCK_N);
        memset(c, 0, sizeof c);
        gemv_product(c, BLOCK_N, x, w, rows, begin, end);
        epilogue_block(e, c, BLOCK_N, 0, rows, begin, end - begin);
    }
}

static void cpu_linear_forward(floatX *out, const floatX *inp, Weight w, const floatX *bias, Activation act,
                               floatX *preact, size_t rows) {
    Matrix a = activation_matrix(inp, w.cols), b = weight_matrix(w);
    Epilogue e = {(size_t)w.rows, out, preact, bias, act, NULL, false};
    if (rows <= GEMV)
        product_gemv(inp, &w, &e, rows);
    else
        product(&a, &b, true, &e, rows, w.rows, w.cols);
}

static void cpu_linear_logits(float *out, const floatX *inp, Weight w, size_t rows) {
    Matrix a = activation_matrix(inp, w.cols), b = weight_matrix(w);
    Epilogue e = {(size_t)w.rows, NULL, NULL, NULL, ACT_NONE, out, false};
    if (rows <= GEMV)
        product_gemv(inp, &w, &e, rows);
    else
        product(&a, &b, true, &e, rows, w.rows, w.cols);
}

static void cpu_linear_backward_input(floatX *dinp, const floatX *dout, Weight w, size_t rows, bool accumulate) {
    Matrix a = activation_matrix(dout, w.rows), b = weight_matrix(w);
    Epilogue e = {(size_t)w.cols, dinp, NULL, NULL, ACT_NONE, NULL, accumulate};
    product(&a, &b, false, &e, rows, w.cols, w.rows);
}

/* ---- dW += dout^T inp, dbias += column sums of dout ----
 * The narrower of dout and inp is the left operand, because that one must be transposed while it is packed: where inp
 * is narrower, dW^T is made and turned at the end. The rows are cut into parts by shape, so that a small dW has
 * enough tasks; each part is summed apart, and the parts are added in order. */

enum { CHUNK = 512, PANEL_M = 512, PANEL_N = 256 };

/* sums [cols] += column sums of x [rows, ld] */
static void column_sums(float *sums, const floatX *x, size_t rows, size_t cols, size_t ld) {
    size_t c = 0;
    for (; c + 4 * LANES <= cols; c += 4 * LANES) {
        vf s0 = vf_zero(), s1 = s0, s2 = s0, s3 = s0;
        for (size_t r = 0; r < rows; r++) {
            const floatX *p = x + r * ld + c;
            s0 += vx_load(p), s1 += vx_load(p + LANES), s2 += vx_load(p + 2 * LANES), s3 += vx_load(p + 3 * LANES);
        }
        vf_store(sums + c, vf_load(sums + c) + s0);
        vf_store(sums + c + LANES, vf_load(sums + c + LANES) + s1);
        vf_store(sums + c + 2 * LANES, vf_load(sums + c + 2 * LANES) + s2);
        vf_store(sums + c + 3 * LANES, vf_load(sums + c + 3 * LANES) + s3);
    }
    FOR_LANES (i, m, c, cols) {
        vf sum = vf_load_n(sums + i, m);
        for (size_t r = 0; r < rows; r++) sum += vx_load_n(x + r * ld + i, m);
        vf_store_n(sums + i, sum, m);
    }
}

/* dst [cols, ld] = src^T for src [rows, lds] */
static void store_transposed(float *dst, size_t ld, const float *src, size_t lds, size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r += LANES)
        for (size_t c = 0; c < cols; c += LANES) {
            vf x[LANES];
            for (size_t i = 0; i < LANES; i++)
                x[i] = r + i < rows ? vf_load_n(src + (r + i) * lds + c, min_size(LANES, cols - c)) : vf_zero();
            transpose_lanes(x);
            for (size_t i = 0; i < LANES && c + i < cols; i++)
                vf_store_n(dst + (c + i) * ld + r, x[i], min_size(LANES, rows - r));
        }
}

typedef struct {
    const floatX *dout, *inp;
    size_t O, I, part_rows, rows;
    bool turned;           // the left operand is inp, C is dW^T
    float *sums, *biases;  // [parts, O, I], [parts, O]; biases NULL: not wanted
} WeightGradient;

/* c [height, ldc] = sum over the rows begin .. end of left's columns m0.. times right's columns n0.. */
static void weight_panel_sum(float *c, size_t ldc, const Matrix *left, const Matrix *right, size_t m0, size_t height,
                             size_t n0, size_t width, size_t begin, size_t end) {
#ifdef USE_ONEDNN
    if (onednn_product(c, ldc, left, true, begin, m0, right, false, begin, n0, height, width, end - begin)) return;
#endif
    unit *a = (unit *)scratch(SCRATCH_A, round_up(height, M_STEP) * CHUNK * sizeof(unit));
    unit *packed = (unit *)scratch(SCRATCH_B, right_units(CHUNK, width) * sizeof(unit));
    tile_begin();
    for (size_t k = begin; k < end; k += CHUNK) {
        size_t depth = min_size(CHUNK, end - k);
        Right b = right_at(packed, depth, width);
        left_from_columns(a, b.K, left, k, m0, height, depth);
        right_from_rows(&b, right, k, n0, depth, width);
        tile_product(c, ldc, a, b.K, &b, 0, 0, height, width, depth, k > begin);
    }
    tile_end();
}

/* Of one part: rows m0.. and columns n0.. of C. */
static void weight_panel(const WeightGradient *g, size_t part, size_t m0, size_t n0) {
    size_t M = g->turned ? g->I : g->O, N = g->turned ? g->O : g->I;
    size_t height = min_size(PANEL_M, M - m0), width = min_size(PANEL_N, N - n0), ldc = round_up(width, N_STEP);
    size_t begin = part * g->part_rows, end = min_size(g->rows, begin + g->part_rows);
    Matrix left = activation_matrix(g->turned ? g->inp : g->dout, M);
    Matrix right = activation_matrix(g->turned ? g->dout : g->inp, N);
    float *c = (float *)scratch(SCRATCH_C, round_up(height, M_STEP) * ldc * sizeof(float));
    weight_panel_sum(c, ldc, &left, &right, m0, height, n0, width, begin, end);
    if (g->biases && !g->turned && n0 == 0)
        column_sums(g->biases + part * g->O + m0, g->dout + begin * g->O + m0, end - begin, height, g->O);
    if (g->biases && g->turned && m0 == 0)
        column_sums(g->biases + part * g->O + n0, g->dout + begin * g->O + n0, end - begin, width, g->O);
    float *sum = g->sums + part * g->O * g->I;
    if (g->turned) {
        store_transposed(sum + n0 * g->I + m0, g->I, c, ldc, height, width);
    } else {
        for (size_t m = 0; m < height; m++)
            FOR_LANES (n, i, 0, width) vf_store_n(sum + (m0 + m) * g->I + n0 + n, vf_load(c + m * ldc + n), i);
    }
}

static void cpu_linear_backward_weight(float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                       size_t rows, int O, int I) {
    size_t size = (size_t)O * I, most = min_size(16, max_size(1, (1 << 19) / size));
    WeightGradient g = {dout, inp, O, I, max_size(CHUNK, round_up(div_up(rows, most), 32)), rows, I < O, NULL, NULL};
    size_t parts = div_up(rows, g.part_rows), ms = div_up(g.turned ? I : O, PANEL_M),
           ns = div_up(g.turned ? O : I, PANEL_N);
    g.sums = (float *)scratch(SCRATCH_SHARED, (parts * (size + O) + 1) * sizeof(float));
    g.biases = dbias ? g.sums + parts * size : NULL;
    if (dbias) memset(g.biases, 0, parts * O * sizeof(float));
#pragma omp parallel if (rows * size > 100000)
    {
#pragma omp for schedule(dynamic)
        for (size_t task = 0; task < parts * ms * ns; task++)
            weight_panel(&g, task / (ms * ns), task / ns % ms * PANEL_M, task % ns * PANEL_N);
#pragma omp for schedule(static)
        for (size_t i = 0; i < size; i += 1024)
            for (size_t part = 0; part < parts; part++)
                FOR_LANES (j, m, i, min_size(size, i + 1024))
                    vf_store_n(dweight + j, vf_load_n(dweight + j, m) + vf_load_n(g.sums + part * size + j, m), m);
    }
    for (size_t part = 0; dbias && part < parts; part++)
        for (int o = 0; o < O; o++) dbias[o] += g.biases[part * O + o];
}

#endif
