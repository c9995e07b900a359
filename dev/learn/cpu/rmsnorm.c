/* RMSNorm with the residual addition before it, on the processor, from the plainest version to the one that ships.
 * ../README.md explains the steps.
 *
 * For every row of C elements: sum = a + b, rounded to floatX; out = sum rstd weight, with
 * rstd = 1 / sqrt(mean of squares of sum + eps). A decoder block does this twice: a is the residual stream, b the
 * output of the attention or of the MLP.
 * Bytes at least: a and b read, sum and out written: 4 rows C elements. */
#include "learn.h"

static const float EPS = 1e-5f;

/* ---- 1 naive: the addition, then the norm ---- */

/* GCC vectorises the first and the last loop by itself. It may not vectorise the sum of squares, because a
 * floating-point sum in another order is another sum: every addition waits for the one before it, several cycles for
 * each element. */
static void naive(floatX *sum, floatX *out, const floatX *a, const floatX *b, const floatX *weight, size_t rows,
                  size_t C) {
    for (size_t i = 0; i < rows * C; i++) sum[i] = to_x(from_x(a[i]) + from_x(b[i]));
    for (size_t r = 0; r < rows; r++) {
        const floatX *x = sum + r * C;
        float squares = 0;
        for (size_t c = 0; c < C; c++) squares += from_x(x[c]) * from_x(x[c]);
        float rstd = 1.0f / sqrtf(squares / (float)C + EPS);
        for (size_t c = 0; c < C; c++) out[r * C + c] = to_x(from_x(x[c]) * rstd * from_x(weight[c]));
    }
}

/* ---- 2 simd: the order of the sum is given up ---- */

/* The pragma allows the compiler to keep one partial sum in every lane of a vector and to add the lanes at the end.
 * Nothing else has changed. */
static void simd(floatX *sum, floatX *out, const floatX *a, const floatX *b, const floatX *weight, size_t rows,
                 size_t C) {
    for (size_t i = 0; i < rows * C; i++) sum[i] = to_x(from_x(a[i]) + from_x(b[i]));
    for (size_t r = 0; r < rows; r++) {
        const floatX *x = sum + r * C;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (size_t c = 0; c < C; c++) squares += from_x(x[c]) * from_x(x[c]);
        float rstd = 1.0f / sqrtf(squares / (float)C + EPS);
        for (size_t c = 0; c < C; c++) out[r * C + c] = to_x(from_x(x[c]) * rstd * from_x(weight[c]));
    }
}

/* ---- 3 vectors: bf16 is widened and rounded in pairs ---- */

/* The compiler widens bf16 by moving every element to a lane of twice the size, and moves it back to store it: with
 * AVX2 these moves are most of the instructions. pair_load and pair_store (learn.h) widen two neighbours in place
 * instead. The last elements of a row, fewer than a pair of vectors, are handled one by one. */
static void vectors(floatX *sum, floatX *out, const floatX *a, const floatX *b, const floatX *weight, size_t rows,
                    size_t C) {
    size_t n = rows * C, i = 0, whole = C / PAIR * PAIR;
    for (; i + PAIR <= n; i += PAIR) {
        Pair x = pair_load(a + i), y = pair_load(b + i);
        pair_store(sum + i, (Pair){x.even + y.even, x.odd + y.odd});
    }
    for (; i < n; i++) sum[i] = to_x(from_x(a[i]) + from_x(b[i]));
    for (size_t r = 0; r < rows; r++) {
        const floatX *x = sum + r * C;
        floatX *y = out + r * C;
        vf even = {0}, odd = {0};
        for (size_t c = 0; c < whole; c += PAIR) {
            Pair v = pair_load(x + c);
            even += v.even * v.even;
            odd += v.odd * v.odd;
        }
        float squares = sum_lanes(even + odd);
        for (size_t c = whole; c < C; c++) squares += from_x(x[c]) * from_x(x[c]);
        float rstd = 1.0f / sqrtf(squares / (float)C + EPS);
        for (size_t c = 0; c < whole; c += PAIR) {
            Pair v = pair_load(x + c), w = pair_load(weight + c);
            pair_store(y + c, (Pair){v.even * rstd * w.even, v.odd * rstd * w.odd});
        }
        for (size_t c = whole; c < C; c++) y[c] = to_x(from_x(x[c]) * rstd * from_x(weight[c]));
    }
}

/* ---- 4 fused: the addition, row by row ---- */

/* So far one loop wrote the whole sum to memory and the next read it again. Here a row is normalised right after it
 * was added, while its 4 KB are in the first-level cache, and its squares are added up on the way: one array less to
 * read. */
static inline void fused_row(floatX *sum, floatX *out, const floatX *a, const floatX *b, const floatX *weight,
                             size_t C) {
    size_t whole = C / PAIR * PAIR;
    vf even = {0}, odd = {0};
    for (size_t c = 0; c < whole; c += PAIR) {
        Pair x = pair_load(a + c), y = pair_load(b + c);
        x = (Pair){vector_round(x.even + y.even), vector_round(x.odd + y.odd)};  // the norm sees what is stored
        pair_store(sum + c, x);
        even += x.even * x.even;
        odd += x.odd * x.odd;
    }
    float squares = sum_lanes(even + odd);
    for (size_t c = whole; c < C; c++) {
        sum[c] = to_x(from_x(a[c]) + from_x(b[c]));
        squares += from_x(sum[c]) * from_x(sum[c]);
    }
    float rstd = 1.0f / sqrtf(squares / (float)C + EPS);
    for (size_t c = 0; c < whole; c += PAIR) {
        Pair x = pair_load(sum + c), w = pair_load(weight + c);
        pair_store(out + c, (Pair){x.even * rstd * w.even, x.odd * rstd * w.odd});
    }
    for (size_t c = whole; c < C; c++) out[c] = to_x(from_x(sum[c]) * rstd * from_x(weight[c]));
}

static void fused(floatX *sum, floatX *out, const floatX *a, const floatX *b, const floatX *weight, size_t rows,
                  size_t C) {
    for (size_t r = 0; r < rows; r++) fused_row(sum + r * C, out + r * C, a + r * C, b + r * C, weight, C);
}

/* ---- 5 threads: rows shared ---- */

/* One core alone cannot have enough reads in flight to use all of the memory's bandwidth. Rows are independent, so
 * the result has the same bits with any number of threads. */
static void threads(floatX *sum, floatX *out, const floatX *a, const floatX *b, const floatX *weight, size_t rows,
                    size_t C) {
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < rows; r++) fused_row(sum + r * C, out + r * C, a + r * C, b + r * C, weight, C);
}

/* ---- 6 shipped ---- */

static void shipped(floatX *sum, floatX *out, const floatX *a, const floatX *b, const floatX *weight, size_t rows,
                    size_t C) {
    cpu_ops()->residual_rmsnorm_forward(sum, out, NULL, a, b, weight, rows, (int)C, EPS);
}

/* ---- the problem ---- */

static struct {
    size_t rows, C, bytes;  // bytes of an array
    floatX *sum, *out, *a, *b, *weight;
} at;

#define RUN(version) \
    static void run_##version(void) { version(at.sum, at.out, at.a, at.b, at.weight, at.rows, at.C); }
RUN(naive)
RUN(simd)
RUN(vectors)
RUN(fused)
RUN(threads)
RUN(shipped)

/* Every third row is so small that eps counts. */
static void open_shape(Shape s) {
    at.rows = (size_t)s.rows, at.C = (size_t)s.width, at.bytes = at.rows * at.C * sizeof(floatX);
    at.sum = (floatX *)learn_alloc(at.bytes), at.out = (floatX *)learn_alloc(at.bytes);
    at.a = (floatX *)learn_alloc(at.bytes), at.b = (floatX *)learn_alloc(at.bytes);
    at.weight = (floatX *)learn_alloc(at.C * sizeof(floatX));
    learn_fill(at.a, at.rows * at.C, 1, 3);
    learn_fill(at.b, at.rows * at.C, 2, 3);
    learn_fill(at.weight, at.C, 3, 2);
    for (size_t i = 0; i < at.rows * at.C; i++)
        if (i / at.C % 3 == 2) at.a[i] = to_x(from_x(at.a[i]) / 1024), at.b[i] = to_x(from_x(at.b[i]) / 1024);
}

static void reset(void) {
    learn_poison(at.sum, at.bytes);
    learn_poison(at.out, at.bytes);
}

static void close_shape(void) {
    learn_free(at.sum), learn_free(at.out), learn_free(at.a), learn_free(at.b), learn_free(at.weight);
}

/* The sum must have the right bits; the output may be off by what rounding it explains. */
static double row_error(size_t row) {
    const double rounding = sizeof(floatX) == 2 ? 1.01 / 256 : 1e-6;
    double squares = 0, worst = 0;
    for (size_t i = row * at.C; i < (row + 1) * at.C; i++) {
        floatX want = to_x(from_x(at.a[i]) + from_x(at.b[i]));
        if (memcmp(&want, at.sum + i, sizeof want) != 0) return INFINITY;
        squares += (double)from_x(want) * (double)from_x(want);
    }
    double rstd = 1 / sqrt(squares / (double)at.C + (double)EPS);
    for (size_t c = 0; c < at.C; c++) {
        double want = (double)from_x(at.sum[row * at.C + c]) * rstd * (double)from_x(at.weight[c]);
        double got = (double)from_x(at.out[row * at.C + c]);
        worst = learn_worse(worst, fabs(got - want) / (rounding * fabs(want) + 1e-30));
    }
    return worst;
}

static double error(int rows) {
    size_t checked = at.rows < (size_t)rows ? at.rows : (size_t)rows;
    double worst = 0;
    if (!learn_guards_intact(at.sum, at.bytes) || !learn_guards_intact(at.out, at.bytes)) return INFINITY;
    for (size_t i = 0; i < checked; i++) worst = learn_worse(worst, row_error(learn_row(i, checked, at.rows)));
    return worst;
}

static double bytes(Shape s) { return 4.0 * s.rows * s.width * sizeof(floatX); }

int main(int argc, char **argv) {
    static const Version versions[] = {
        {"naive", "the addition, then the norm", run_naive},
        {"simd", "partial sums in the lanes of a vector", run_simd},
        {"vectors", "bf16 widened and rounded in pairs", run_vectors},
        {"fused", "addition and norm while a row is in cache", run_fused},
        {"threads", "rows shared among threads", run_threads},
        {"shipped", "kernels/ops.h: residual_rmsnorm_forward", run_shipped},
    };
    static const Shape ragged[] = {{1, 1, 0, 0, 0},    {3, 7, 0, 0, 0},   {5, 16, 0, 0, 0},    {2, 33, 0, 0, 0},
                                   {17, 100, 0, 0, 0}, {4, 257, 0, 0, 0}, {67, 1000, 0, 0, 0}, {9, 2048, 0, 0, 0}};
    Lesson lesson = {"rmsnorm",
                     versions,
                     sizeof versions / sizeof *versions,
                     {8192, 2048, 0, 0, 0},
                     ragged,
                     sizeof ragged / sizeof *ragged,
                     open_shape,
                     reset,
                     error,
                     close_shape,
                     bytes,
                     NULL};
    return learn_main(&lesson, argc, argv);
}
