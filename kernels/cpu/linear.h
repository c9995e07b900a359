/* Linear layers: y = x W^T + bias with the activation in the epilogue, dx = dy W, dW += dy^T x. Tasks are panels of
 * the result whose size depends on the shape only. Inside a task the microkernel multiplies (microkernel.h). */
#ifndef KERNELS_CPU_LINEAR_H
#define KERNELS_CPU_LINEAR_H

#include "gemv.h"
#include "pointwise.h"
#include "quantised.h"
#include "microkernel.h"

/* What happens to a finished block of C while it is in cache. Exactly one of out and sum is set. */
typedef struct {
    size_t ld;  // of out, preact and sum
    floatX *out, *preact;
    const floatX *bias;
    Activation act;
    float *sum;
    bool accumulate;
} Epilogue;

enum { BLOCK_M = BLOCK_ROWS, BLOCK_N = 64 };  // C is computed in blocks of this size, rows BLOCK_N apart

ALWAYS_INLINE void epilogue_rows(const Epilogue *e, const float *c, size_t ldc, size_t m0, size_t rows, size_t n0,
                                 size_t cols, const Activation act, const bool accumulate, const bool full) {
    vf bias[BLOCK_N / LANES];
    for (size_t n = 0; n < BLOCK_N; n += LANES) {
        size_t begin = min_size(cols, n);
        bias[n / LANES] =
            e->bias ? vx_load_n(e->bias + n0 + begin, full ? LANES : min_size(LANES, cols - begin)) : vf_zero();
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t n = 0; n < (full ? BLOCK_N : cols); n += GROUP_SIZE) {
            size_t at = (m0 + r) * e->ld + n0 + n, width[GROUP];
            vf x[GROUP];
            for (size_t v = 0; v < GROUP; v++) {
                size_t begin = min_size(cols, n + v * LANES);
                width[v] = full ? LANES : min_size(LANES, cols - begin);
                x[v] = vf_load(c + r * ldc + n + v * LANES) + bias[n / LANES + v];
            }
            for (size_t v = 0; accumulate && v < GROUP; v++) x[v] += vx_load_n(e->out + at + v * LANES, width[v]);
            if (e->preact)
                for (size_t v = 0; v < GROUP; v++) vx_store_n(e->preact + at + v * LANES, x[v], width[v]);
            if (act != ACT_NONE) {  // GELU of the rounded value, which is what the backward pass will read
                for (size_t v = 0; v < GROUP; v++) x[v] = vx_round(x[v]);
                vf_gelu_each(x, act, GROUP);
            }
            for (size_t v = 0; v < GROUP; v++) vx_store_n(e->out + at + v * LANES, x[v], width[v]);
        }
}

/* c: the block's values, rows ldc apart. */
static void epilogue_block(const Epilogue *e, const float *c, size_t ldc, size_t m0, size_t rows, size_t n0,
                           size_t cols) {
    if (e->sum)
        for (size_t r = 0; r < rows; r++)
            FOR_LANES (i, m, 0, cols)
                vf_store_n(e->sum + (m0 + r) * e->ld + n0 + i, vf_load_n(c + r * ldc + i, m), m);
    else if (e->accumulate && cols == BLOCK_N)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_NONE, true, true);
    else if (e->accumulate)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_NONE, true, false);
    else if (e->act == ACT_NONE && cols == BLOCK_N)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_NONE, false, true);
    else if (e->act == ACT_NONE)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_NONE, false, false);
    else if (e->act == ACT_GELU_TANH && cols == BLOCK_N)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_GELU_TANH, false, true);
    else if (e->act == ACT_GELU_TANH)
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_GELU_TANH, false, false);
    else
        epilogue_rows(e, c, ldc, m0, rows, n0, cols, ACT_GELU_ERF, false, false);
}

/* Rows m0 .. m0+rows and columns n0 .. n0+cols of C; b has these columns of B, packed from its column 0 on. */
static void matmul_panel(const Matrix *a, const PackedB *b, const Epilogue *e, size_t m0, size_t rows, size_t n0,
                         size_t cols, size_t K) {
    size_t depth = round_up(K, K_STEP);
    bool direct = A_IN_PLACE && a->dtype == DT_FLOATX && sizeof(element) == sizeof(floatX) && K % K_STEP == 0;
    const size_t ld = depth + A_PADDING;
    element *packed = (element *)scratch(SCRATCH_A, BLOCK_M * ld * sizeof(element));
    float *c = (float *)scratch(SCRATCH_C, BLOCK_M * BLOCK_N * sizeof(float));
    microkernel_begin();
    for (size_t m = 0; m < rows; m += BLOCK_M) {
        size_t height = min_size(BLOCK_M, rows - m), lda = ld;
        const element *block_a = packed;
        if (direct && height % M_STEP == 0) {
            block_a = (const element *)a->data + (m0 + m) * a->ld;
            lda = a->ld;
        } else {
            pack_a_from_rows(packed, ld, a, m0 + m, 0, height, K);
        }
        for (size_t n = 0; n < cols; n += BLOCK_N) {
            size_t width = min_size(BLOCK_N, cols - n);
            microkernel_matmul(c, BLOCK_N, block_a, lda, b, 0, n, height, width, depth, false);
            epilogue_block(e, c, BLOCK_N, m0 + m, height, n0 + n, width);
        }
    }
    microkernel_end();
}

/* Where B comes from: a matrix that holds B^T [N, K] when transposed, else B [K, N]; or a quantised weight, B^T. */
typedef struct {
    Matrix matrix;
    const Weight *quantised;  // instead of the matrix, or NULL
    bool transposed;
} MatrixB;

/* Packs B's columns n0 .. n0+cols. */
static void pack_b(const PackedB *b, const MatrixB *source, size_t n0, size_t cols, size_t K) {
    if (source->quantised) {
        Matrix wide = {scratch(SCRATCH_WIDE, cols * K * sizeof(float)), DT_F32, K};
        for (size_t n = 0; n < cols; n++) widen_row((float *)wide.data + n * K, source->quantised, n0 + n);
        pack_b_from_columns(b, &wide, 0, 0, K, cols);
    } else if (source->transposed) {
        pack_b_from_columns(b, &source->matrix, n0, 0, K, cols);
    } else {
        pack_b_from_rows(b, &source->matrix, 0, n0, K, cols);
    }
}

/* matmul_panel that packs the columns of B it needs. */
static void matmul_pack_panel(const Matrix *a, const MatrixB *source, const Epilogue *e, size_t m0, size_t rows,
                              size_t n0, size_t cols, size_t K) {
    PackedB b = packed_b_at((element *)scratch(SCRATCH_B, packed_b_size(K, cols) * sizeof(element)), K, cols);
    pack_b(&b, source, n0, cols, K);
    matmul_panel(a, &b, e, m0, rows, n0, cols, K);
}

/* C [M, N] = A [M, K] B, through the epilogue. A small B is packed once, for all tasks. Of a large
 * one each task packs the columns it needs, and takes many rows to make that worth it. */
static void matmul(const Matrix *a, const MatrixB *source, const Epilogue *e, size_t M, size_t N, size_t K) {
    const size_t cache = 512 * 1024;  // elements
    bool shared = packed_b_size(K, N) <= cache;
    size_t panel_m = shared ? 256 : 4096, panel_n = cache / 2 / round_up(K, K_STEP) / BLOCK_N * BLOCK_N;
    panel_n = !shared ? max_size(BLOCK_N, panel_n) : M <= 1024 ? 2 * BLOCK_N : N;
    size_t rows = div_up(M, panel_m), tasks = rows * div_up(N, panel_n);
    element *whole = (element *)scratch(SCRATCH_SHARED, shared ? packed_b_size(K, N) * sizeof(element) : 1);
#pragma omp parallel if (M * N * K > 100000)
    {
#pragma omp for schedule(static)
        for (size_t n = 0; n < (shared ? N : 0); n += BLOCK_N) {
            PackedB part = packed_b_at(whole + packed_b_size(K, n), K, min_size(BLOCK_N, N - n));
            pack_b(&part, source, n, min_size(BLOCK_N, N - n), K);
        }
#pragma omp for schedule(dynamic)
        for (size_t task = 0; task < tasks; task++) {
            size_t m0 = task % rows * panel_m, height = min_size(panel_m, M - m0);
            size_t n0 = task / rows * panel_n, width = min_size(panel_n, N - n0);
            PackedB b = packed_b_at(whole + packed_b_size(K, shared ? n0 : 0), K, width);
            if (shared)
                matmul_panel(a, &b, e, m0, height, n0, width, K);
            else
                matmul_pack_panel(a, source, e, m0, height, n0, width, K);
        }
    }
}

static Matrix activation_matrix(const floatX *x, size_t cols) {
    Matrix m = {x, DT_FLOATX, cols};
    return m;
}

static MatrixB weight_b(const Weight *w, bool transposed) {
    MatrixB b = {{w->data, w->dtype, (size_t)w->cols}, dtype_is_quantised(w->dtype) ? w : NULL, transposed};
    return b;
}

_Static_assert((int)GEMV_ROWS == (int)QUANT_ROWS, "matmul_gemv takes both kinds of weight");

/* With few rows: tasks are output channels. */
static void matmul_gemv(const floatX *inp, const Weight *w, const Epilogue *e, size_t rows) {
    const bool quantised = dtype_is_quantised(w->dtype);
    const float *x = quantised ? NULL : gemv_input(inp, rows, w->cols, w->dtype);
    QuantRows q = {0};
    if (quantised) q = quantise_rows(inp, rows, w->cols);
    size_t tasks = div_up(w->rows, BLOCK_N);
#pragma omp parallel for schedule(static) if ((size_t)w->rows * w->cols > 16384)
    for (size_t task = 0; task < tasks; task++) {
        float c[GEMV_ROWS * BLOCK_N];
        size_t begin = task * BLOCK_N, end = min_size(w->rows, begin + BLOCK_N);
        memset(c, 0, sizeof c);
        if (quantised)
            quant_channels(c, BLOCK_N, &q, w, rows, begin, end);
        else
            gemv_channels(c, BLOCK_N, x, w, rows, begin, end);
        epilogue_block(e, c, BLOCK_N, 0, rows, begin, end - begin);
    }
}

static void matmul_weight(const floatX *inp, const Weight *w, const Epilogue *e, size_t rows) {
    const Matrix a = activation_matrix(inp, w->cols);
    const MatrixB source = weight_b(w, true);
    if (rows <= GEMV_ROWS)
        matmul_gemv(inp, w, e, rows);
    else
        matmul(&a, &source, e, rows, w->rows, w->cols);
}

static void cpu_linear_forward(floatX *out, const floatX *inp, Weight w, const floatX *bias, Activation act,
                               floatX *preact, size_t rows) {
    const Epilogue e = {(size_t)w.rows, out, preact, bias, act, NULL, false};
    matmul_weight(inp, &w, &e, rows);
}

static void cpu_linear_logits(float *out, const floatX *inp, Weight w, size_t rows) {
    const Epilogue e = {(size_t)w.rows, NULL, NULL, NULL, ACT_NONE, out, false};
    matmul_weight(inp, &w, &e, rows);
}

static void cpu_linear_backward_input(floatX *dinp, const floatX *dout, Weight w, size_t rows, bool accumulate) {
    const Matrix a = activation_matrix(dout, w.rows);
    const MatrixB source = weight_b(&w, false);
    const Epilogue e = {(size_t)w.cols, dinp, NULL, NULL, ACT_NONE, NULL, accumulate};
    matmul(&a, &source, &e, rows, w.cols, w.rows);
}

/* ---- the weight's gradient, dW += dout^T inp, and dbias += column sums of dout ----
 * Where packing transposes the A operand (COLUMNS_TRANSPOSED), that is the narrower of dout and inp: where inp is
 * narrower, dW^T is computed and transposed at the end. The rows are divided into parts by shape, so that a small dW has enough
 * tasks; each part is summed by itself, and the parts are added in order. */

enum { CHUNK = 512, PANEL_M = 512, PANEL_N = 256 };

/* sums [cols] += column sums of x [rows, ld]. */
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

/* dst [cols, ld] = src^T for src [rows, lds]. */
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
    bool transposed;       // A is inp, and C is dW^T
    float *sums, *biases;  // [parts, O, I], [parts, O]; biases NULL: not wanted
} WeightGradient;

/* c [height, ldc] = x^T y over the rows begin .. end, for x's columns m0.. and y's columns n0.. */
static void weight_panel_sum(float *c, size_t ldc, const Matrix *x, const Matrix *y, size_t m0, size_t height,
                             size_t n0, size_t width, size_t begin, size_t end) {
    const size_t lda = CHUNK + A_PADDING;
    element *a = (element *)scratch(SCRATCH_A, packed_columns_size(height, lda) * sizeof(element));
    element *packed = (element *)scratch(SCRATCH_B, packed_b_size(CHUNK, width) * sizeof(element));
    microkernel_begin();
    for (size_t k = begin; k < end; k += CHUNK) {
        size_t depth = min_size(CHUNK, end - k);
        PackedB b = packed_b_at(packed, depth, width);
        pack_a_from_columns(a, lda, x, k, m0, height, depth);
        pack_b_from_rows(&b, y, k, n0, depth, width);
        microkernel_matmul_columns(c, ldc, a, lda, &b, 0, 0, height, width, depth, k > begin);
    }
    microkernel_end();
}

/* Rows m0.. and columns n0.. of C, of one part. Where C needs no padding, it is computed in its place. */
static void weight_panel(const WeightGradient *g, size_t part, size_t m0, size_t n0) {
    size_t M = g->transposed ? g->I : g->O, N = g->transposed ? g->O : g->I;
    size_t height = min_size(PANEL_M, M - m0), width = min_size(PANEL_N, N - n0), ldc = round_up(width, N_STEP);
    size_t begin = part * g->part_rows, end = min_size(g->rows, begin + g->part_rows);
    Matrix x = activation_matrix(g->transposed ? g->inp : g->dout, M);
    Matrix y = activation_matrix(g->transposed ? g->dout : g->inp, N);
    float *sum = g->sums + part * g->O * g->I;
    bool in_place = !g->transposed && height % M_STEP == 0 && ldc == width;
    float *c =
        in_place ? sum + m0 * g->I + n0 : (float *)scratch(SCRATCH_C, round_up(height, M_STEP) * ldc * sizeof(float));
    weight_panel_sum(c, in_place ? g->I : ldc, &x, &y, m0, height, n0, width, begin, end);
    if (g->biases && !g->transposed && n0 == 0)
        column_sums(g->biases + part * g->O + m0, g->dout + begin * g->O + m0, end - begin, height, g->O);
    if (g->biases && g->transposed && m0 == 0)
        column_sums(g->biases + part * g->O + n0, g->dout + begin * g->O + n0, end - begin, width, g->O);
    if (g->transposed)
        store_transposed(sum + n0 * g->I + m0, g->I, c, ldc, height, width);
    else if (!in_place)
        for (size_t m = 0; m < height; m++)
            FOR_LANES (n, i, 0, width) vf_store_n(sum + (m0 + m) * g->I + n0 + n, vf_load(c + m * ldc + n), i);
}

static void cpu_linear_backward_weight(float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                       size_t rows, int O, int I) {
    size_t size = (size_t)O * I, most = min_size(16, max_size(1, (1 << 19) / size));
    WeightGradient g = {.dout = dout, .inp = inp, .O = O, .I = I, .rows = rows};
    g.part_rows = max_size(CHUNK, round_up(div_up(rows, most), 32));
    g.transposed = COLUMNS_TRANSPOSED && I < O;
    size_t parts = div_up(rows, g.part_rows), ms = div_up(g.transposed ? I : O, PANEL_M),
           ns = div_up(g.transposed ? O : I, PANEL_N);
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
