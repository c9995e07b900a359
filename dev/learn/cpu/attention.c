/* Causal attention forward on the processor, from the plainest version to the one that ships. ../README.md explains
 * the steps.
 *
 * For every query row t of a head: out_t = sum over j <= t of softmax_j(scale <q_t, k_j>) v_j. The queries, keys and
 * values of a position lie side by side, as the product before leaves them: qkv [B, T, (H + 2K) D], out [B, T, H D];
 * H / K heads of queries share one of keys and values (grouped-query attention). No RoPE here: the shipped kernel
 * would do that as well.
 * FLOPs at least: two products, 4 D for each of the B H T (T + 1) / 2 pairs of a query and a key that it sees. */
#include "learn.h"

/* ---- what all versions read and write ---- */

/* Rows of one head; those of q, k and v are `row` elements apart, those of out `out_row`. */
typedef struct {
    const floatX *q, *k, *v;
    floatX *out;
    size_t row, out_row;
} Head;

static inline Head head_of(floatX *out, const floatX *qkv, const AttentionShape *s, size_t b, size_t h) {
    size_t D = (size_t)s->D, H = (size_t)s->H, K = (size_t)s->K, row = (H + 2 * K) * D, kv = H + h / (H / K);
    const floatX *x = qkv + b * (size_t)s->T * row;
    return (Head){x + h * D, x + kv * D, x + (kv + K) * D, out + (b * (size_t)s->T * H + h) * D, row, H * D};
}

/* ---- 1 naive: one step of the formula after the other ---- */

/* scores [B, H, T, T]. The way a framework runs it without a fused kernel: all scores, the mask, the softmax, all
 * sums over the values. Half of the scores are computed only to be masked. */
static void naive(floatX *out, const floatX *qkv, AttentionShape s, float *scores) {
    size_t T = (size_t)s.T, D = (size_t)s.D;
    for (size_t b = 0; b < (size_t)s.B; b++)
        for (size_t h = 0; h < (size_t)s.H; h++) {
            Head x = head_of(out, qkv, &s, b, h);
            float *p = scores + (b * (size_t)s.H + h) * T * T;
            for (size_t t = 0; t < T; t++)
                for (size_t j = 0; j < T; j++) {
                    float dot = 0;
                    for (size_t c = 0; c < D; c++) dot += from_x(x.q[t * x.row + c]) * from_x(x.k[j * x.row + c]);
                    p[t * T + j] = j <= t ? s.scale * dot : -INFINITY;
                }
            for (size_t t = 0; t < T; t++) {
                float largest = -INFINITY, sum = 0;
                for (size_t j = 0; j < T; j++) largest = p[t * T + j] > largest ? p[t * T + j] : largest;
                for (size_t j = 0; j < T; j++) sum += p[t * T + j] = expf(p[t * T + j] - largest);
                for (size_t j = 0; j < T; j++) p[t * T + j] /= sum;
            }
            for (size_t t = 0; t < T; t++)
                for (size_t c = 0; c < D; c++) {
                    float o = 0;
                    for (size_t j = 0; j < T; j++) o += p[t * T + j] * from_x(x.v[j * x.row + c]);
                    x.out[t * x.out_row + c] = to_x(o);
                }
        }
}

/* ---- 2 flash: scores of a tile at a time ---- */

enum { QUERIES = 32, KEYS = 64 };  // of a tile

static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* The scores are not needed afterwards, so they are computed for 32 queries and 64 keys at a time (FlashAttention:
 * Dao et al. 2022): 8 KB, which stay in the first-level cache. Every query has a running maximum and sum (Milakov &
 * Gimelshein 2018), and its output so far is rescaled when the maximum grows. The T x T array is gone. The second
 * product now has the channels in its innermost loop, where GCC vectorises it. scratch: o [QUERIES, D] */
static void flash(floatX *out, const floatX *qkv, AttentionShape s, float *scratch) {
    size_t T = (size_t)s.T, D = (size_t)s.D;
    for (size_t task = 0; task < (size_t)s.B * (size_t)s.H; task++)
        for (size_t t0 = 0; t0 < T; t0 += QUERIES) {
            Head x = head_of(out, qkv, &s, task / (size_t)s.H, task % (size_t)s.H);
            size_t queries = smaller(QUERIES, T - t0);
            float p[QUERIES][KEYS], largest[QUERIES], sum[QUERIES] = {0};
            for (size_t i = 0; i < QUERIES; i++) largest[i] = -INFINITY;
            memset(scratch, 0, QUERIES * D * sizeof *scratch);
            for (size_t j0 = 0; j0 < T; j0 += KEYS) {
                size_t keys = smaller(KEYS, T - j0);
                for (size_t i = 0; i < queries; i++)
                    for (size_t j = 0; j < keys; j++) {
                        const floatX *q = x.q + (t0 + i) * x.row, *k = x.k + (j0 + j) * x.row;
                        float dot = 0;
                        for (size_t c = 0; c < D; c++) dot += from_x(q[c]) * from_x(k[c]);
                        p[i][j] = j0 + j <= t0 + i ? s.scale * dot : -INFINITY;
                    }
                for (size_t i = 0; i < queries; i++) {
                    float before = largest[i], *o = scratch + i * D;
                    for (size_t j = 0; j < keys; j++) largest[i] = p[i][j] > largest[i] ? p[i][j] : largest[i];
                    float keep = expf(before - largest[i]);
                    sum[i] *= keep;
                    for (size_t c = 0; c < D; c++) o[c] *= keep;
                    for (size_t j = 0; j < keys; j++) {
                        const floatX *v = x.v + (j0 + j) * x.row;
                        float weight = expf(p[i][j] - largest[i]);
                        sum[i] += weight;
                        for (size_t c = 0; c < D; c++) o[c] += weight * from_x(v[c]);
                    }
                }
            }
            for (size_t i = 0; i < queries; i++)
                for (size_t c = 0; c < D; c++) x.out[(t0 + i) * x.out_row + c] = to_x(scratch[i * D + c] / sum[i]);
        }
}

/* ---- 3 vectors: keys side by side, the exponential of a whole vector ---- */

/* A tile of queries with their running state, and a tile of keys and values: all in fp32, padded with zeros beyond
 * the end of the sequence. ld is D rounded up to whole pairs of vectors. */
typedef struct {
    size_t D, ld;
    float *q;       // [QUERIES, D], scaled
    float *o;       // [QUERIES, ld], the output before the division by sum
    float *scores;  // [QUERIES, KEYS], then the weights exp(score - largest)
    float largest[QUERIES], sum[QUERIES];
} Queries;

typedef struct {
    float *k;  // [D, KEYS], transposed: the keys lie side by side
    float *v;  // [KEYS, ld]
} Keys;

static inline size_t whole_pairs(size_t n) { return (n + PAIR - 1) / PAIR * PAIR; }

/* Floats of scratch for a tile of queries, and for a tile of keys and values. */
static inline size_t queries_size(size_t D) { return QUERIES * (D + whole_pairs(D) + KEYS); }
static inline size_t keys_size(size_t D) { return KEYS * (D + whole_pairs(D)); }

static inline Keys keys_at(float *scratch, size_t D) { return (Keys){scratch, scratch + KEYS * D}; }

static Queries queries_begin(float *scratch, const Head *x, size_t t0, const AttentionShape *s) {
    size_t T = (size_t)s->T, D = (size_t)s->D, ld = whole_pairs(D);
    Queries w = {D, ld, scratch, scratch + QUERIES * D, scratch + QUERIES * (D + ld), {0}, {0}};
    memset(w.o, 0, QUERIES * ld * sizeof(float));
    for (size_t i = 0; i < QUERIES; i++) {
        w.largest[i] = -INFINITY;
        for (size_t c = 0; c < D; c++)
            w.q[i * D + c] = t0 + i < T ? s->scale * from_x(x->q[(t0 + i) * x->row + c]) : 0;
    }
    return w;
}

static void keys_pack(Keys y, const Head *x, size_t j0, size_t T, size_t D) {
    size_t ld = whole_pairs(D);
    memset(y.v, 0, KEYS * ld * sizeof(float));
    for (size_t j = 0; j < KEYS; j++) {
        const floatX *k = x->k + (j0 + j) * x->row, *v = x->v + (j0 + j) * x->row;
        for (size_t c = 0; c < D; c++) y.k[c * KEYS + j] = j0 + j < T ? from_x(k[c]) : 0;
        for (size_t c = 0; c < D && j0 + j < T; c++) y.v[j * ld + c] = from_x(v[c]);
    }
}

/* Turns the scores of a tile into weights and rescales sums and outputs to the new maxima. Every query sees the first
 * key, so the maxima are finite from the first tile on. */
static void softmax_tile(Queries *w, size_t t0, size_t j0) {
    for (size_t i = 0; i < QUERIES; i++) {
        float *p = w->scores + i * KEYS, *o = w->o + i * w->ld, before = w->largest[i];
        for (size_t j = t0 + i + 1 > j0 ? t0 + i + 1 - j0 : 0; j < KEYS; j++) p[j] = -INFINITY;  // the causal mask
        vf most = vector_load(p), sum = {0};
        for (size_t j = LANES; j < KEYS; j += LANES) most = vector_max(most, vector_load(p + j));
        float largest = max_lanes(most);
        largest = before > largest ? before : largest;
        for (size_t j = 0; j < KEYS; j += LANES) {
            vf weight = vector_exp(vector_load(p + j) - largest);
            sum += weight;
            vector_store(p + j, weight);
        }
        w->largest[i] = largest;
        if (largest > before) {
            float keep = expf(before - largest);
            w->sum[i] *= keep;
            for (size_t c = 0; c < w->ld; c += LANES) vector_store(o + c, vector_load(o + c) * keep);
        }
        w->sum[i] += sum_lanes(sum);
    }
}

static void queries_end(const Queries *w, const Head *x, size_t t0, size_t T) {
    for (size_t i = 0; i < smaller(QUERIES, T - t0); i++) {
        float inverse = 1 / w->sum[i];
        for (size_t c = 0; c < w->D; c++) x->out[(t0 + i) * x->out_row + c] = to_x(w->o[i * w->ld + c] * inverse);
    }
}

/* c [QUERIES, columns] += a [QUERIES, n] b [n, columns], rows ldc, lda, ldb apart. */
typedef void Matmul(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t n,
                    size_t columns);

/* Adds a multiple of a row of b to a row of c, which is loaded and stored again for every element of a. */
static inline void matmul_rows(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb, size_t n,
                               size_t columns) {
    for (size_t i = 0; i < QUERIES; i++)
        for (size_t k = 0; k < n; k++)
            for (size_t j = 0; j < columns; j += LANES) {
                float *to = c + i * ldc + j;
                vector_store(to, vector_load(to) + a[i * lda + k] * vector_load(b + k * ldb + j));
            }
}

static inline void attend_tile(Queries *w, Keys y, size_t t0, size_t j0, Matmul matmul) {
    memset(w->scores, 0, QUERIES * KEYS * sizeof(float));
    matmul(w->scores, KEYS, w->q, w->D, y.k, KEYS, w->D, KEYS);
    softmax_tile(w, t0, j0);
    matmul(w->o, w->ld, w->scores, KEYS, y.v, w->ld, KEYS, w->ld);
}

static inline void attend_all_tiles(floatX *out, const floatX *qkv, const AttentionShape *s, float *scratch,
                                    Matmul matmul) {
    size_t T = (size_t)s->T, D = (size_t)s->D, H = (size_t)s->H;
    Keys y = keys_at(scratch + queries_size(D), D);
    for (size_t task = 0; task < (size_t)s->B * H; task++)
        for (size_t t0 = 0; t0 < T; t0 += QUERIES) {
            Head x = head_of(out, qkv, s, task / H, task % H);
            Queries w = queries_begin(scratch, &x, t0, s);
            for (size_t j0 = 0; j0 < T; j0 += KEYS) {
                keys_pack(y, &x, j0, T, D);
                attend_tile(&w, y, t0, j0, matmul);
            }
            queries_end(&w, &x, t0, T);
        }
}

/* The compiler may not reorder the sum over the channels, so `flash` computes one score at a time. Here the keys of a
 * tile are widened to fp32 and transposed: a vector holds the scores of LANES keys, and every lane adds up its
 * channels in the order of the formula. The exponential is vector_exp of learn.h. */
static void vectors(floatX *out, const floatX *qkv, AttentionShape s, float *scratch) {
    attend_all_tiles(out, qkv, &s, scratch, matmul_rows);
}

/* ---- 4 registers: sums stay there ---- */

enum { ROWS = 4 };  // of a register tile; it has two vectors of columns

/* `vectors` loads b, loads c and stores c for every multiply-add, so loads and stores limit it. Here four rows and
 * two vectors of c stay in registers over the whole sum: for eight multiply-adds there are two loads of b and four of
 * a. Eight independent sums also hide the latency of a multiply-add, and all of it fits in 16 registers. */
static inline void matmul_microkernel(float *c, size_t ldc, const float *a, size_t lda, const float *b, size_t ldb,
                                      size_t n, size_t columns) {
    for (size_t j = 0; j < columns; j += PAIR)
        for (size_t i = 0; i < QUERIES; i += ROWS) {
            vf sum[ROWS][2];
            for (size_t r = 0; r < ROWS; r++) {
                sum[r][0] = vector_load(c + (i + r) * ldc + j);
                sum[r][1] = vector_load(c + (i + r) * ldc + j + LANES);
            }
            for (size_t k = 0; k < n; k++) {
                vf first = vector_load(b + k * ldb + j), second = vector_load(b + k * ldb + j + LANES);
                for (size_t r = 0; r < ROWS; r++) {
                    sum[r][0] += a[(i + r) * lda + k] * first;
                    sum[r][1] += a[(i + r) * lda + k] * second;
                }
            }
            for (size_t r = 0; r < ROWS; r++) {
                vector_store(c + (i + r) * ldc + j, sum[r][0]);
                vector_store(c + (i + r) * ldc + j + LANES, sum[r][1]);
            }
        }
}

static void registers(floatX *out, const floatX *qkv, AttentionShape s, float *scratch) {
    attend_all_tiles(out, qkv, &s, scratch, matmul_microkernel);
}

/* ---- 5 causal: half the tiles, and keys packed once ---- */

/* A tile of queries against the tiles of keys up to its diagonal. */
static void attend_causal(const float *packed, const Head *x, size_t t0, const AttentionShape *s, float *scratch) {
    size_t D = (size_t)s->D;
    Queries w = queries_begin(scratch, x, t0, s);
    for (size_t j0 = 0; j0 < smaller(t0 + QUERIES, (size_t)s->T); j0 += KEYS)
        attend_tile(&w, keys_at((float *)packed + j0 / KEYS * keys_size(D), D), t0, j0, matmul_microkernel);
    queries_end(&w, x, t0, (size_t)s->T);
}

/* Two savings. Tiles of keys that lie behind the last query of a tile are masked as a whole and are skipped. And a
 * head of keys and values is packed once for all tiles of all H / K heads of queries that share it; before, every
 * tile of queries packed it again. */
static void causal(floatX *out, const floatX *qkv, AttentionShape s, float *scratch) {
    size_t T = (size_t)s.T, D = (size_t)s.D, H = (size_t)s.H, group = H / (size_t)s.K;
    float *packed = scratch + queries_size(D);
    for (size_t task = 0; task < (size_t)s.B * H; task++) {
        Head x = head_of(out, qkv, &s, task / H, task % H);
        for (size_t j0 = 0; j0 < T && task % group == 0; j0 += KEYS)
            keys_pack(keys_at(packed + j0 / KEYS * keys_size(D), D), &x, j0, T, D);
        for (size_t t0 = 0; t0 < T; t0 += QUERIES) attend_causal(packed, &x, t0, &s, scratch);
    }
}

/* ---- 6 threads: tiles of queries shared ---- */

/* All threads pack the keys and values, then they share the tiles of queries. The last tile of a head sees T keys and
 * the first one 32, so an equal number of tiles would not be equal work: a thread takes the next tile when it has
 * finished one, and the longest come first, so that all threads finish at about the same time. */
static void threads(floatX *out, const floatX *qkv, AttentionShape s, float *scratch) {
    size_t T = (size_t)s.T, D = (size_t)s.D, H = (size_t)s.H, K = (size_t)s.K, B = (size_t)s.B;
    size_t query_tiles = (T + QUERIES - 1) / QUERIES, key_tiles = (T + KEYS - 1) / KEYS;
    float *packed = scratch + (size_t)omp_get_max_threads() * queries_size(D);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (size_t i = 0; i < B * K * key_tiles; i++) {
            Head x = head_of(out, qkv, &s, i / key_tiles / K, i / key_tiles % K * (H / K));
            keys_pack(keys_at(packed + i * keys_size(D), D), &x, i % key_tiles * KEYS, T, D);
        }
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < B * H * query_tiles; i++) {
            size_t b = i % (B * H) / H, h = i % H, tile = query_tiles - 1 - i / (B * H);
            Head x = head_of(out, qkv, &s, b, h);
            attend_causal(packed + (b * K + h / (H / K)) * key_tiles * keys_size(D), &x, tile * QUERIES, &s,
                          scratch + (size_t)omp_get_thread_num() * queries_size(D));
        }
    }
}

/* ---- 7 shipped ---- */

static void shipped(floatX *out, const floatX *qkv, AttentionShape s, float *scratch) {
    (void)scratch;
    cpu_ops()->attention_forward(out, NULL, qkv, s);
}

/* ---- the problem ---- */

static struct {
    AttentionShape s;
    size_t numbers, bytes;  // of qkv; of out
    floatX *qkv, *out;
    float *scratch;
} at;

#define RUN(version) \
    static void run_##version(void) { version(at.out, at.qkv, at.s, at.scratch); }
RUN(naive)
RUN(flash)
RUN(vectors)
RUN(registers)
RUN(causal)
RUN(threads)
RUN(shipped)

static void open_shape(Shape s) {
    size_t T = (size_t)s.rows, D = (size_t)s.width, B = (size_t)s.B, H = (size_t)s.H, K = (size_t)s.K;
    size_t threads = (size_t)omp_get_max_threads(), scores = B * H * T * T;
    size_t tiles = threads * queries_size(D) + B * K * ((T + KEYS - 1) / KEYS) * keys_size(D);
    at.s = (AttentionShape){s.B, s.rows, s.H, s.K, s.width, true, 1 / sqrtf((float)s.width), NULL};
    at.numbers = B * T * (H + 2 * K) * D, at.bytes = B * T * H * D * sizeof(floatX);
    at.qkv = (floatX *)learn_alloc(at.numbers * sizeof(floatX)), at.out = (floatX *)learn_alloc(at.bytes);
    at.scratch = (float *)learn_alloc((scores > tiles ? scores : tiles) * sizeof(float));
    learn_fill(at.qkv, at.numbers, 1, 3);
}

static void reset(void) { learn_poison(at.out, at.bytes); }

static void close_shape(void) { learn_free(at.qkv), learn_free(at.out), learn_free(at.scratch); }

/* p: space for T numbers. All versions round the output to floatX; the shipped kernel also rounds the weights to bf16
 * on processors that multiply bf16. */
static double row_error(size_t b, size_t h, size_t t, double *p) {
    const double rounding = sizeof(floatX) == 2 ? 1.01 / 256 : 2e-5;
    const Head x = head_of(at.out, at.qkv, &at.s, b, h);
    const size_t D = (size_t)at.s.D;
    double largest = -INFINITY, sum = 0, worst = 0;
    for (size_t j = 0; j <= t; j++) {
        p[j] = 0;
        for (size_t c = 0; c < D; c++)
            p[j] += (double)from_x(x.q[t * x.row + c]) * (double)from_x(x.k[j * x.row + c]) * (double)at.s.scale;
        largest = fmax(largest, p[j]);
    }
    for (size_t j = 0; j <= t; j++) sum += p[j] = exp(p[j] - largest);
    for (size_t c = 0; c < D; c++) {
        double want = 0, size = 0;
        for (size_t j = 0; j <= t; j++) {
            double v = p[j] / sum * (double)from_x(x.v[j * x.row + c]);
            want += v, size += fabs(v);
        }
        double got = (double)from_x(x.out[t * x.out_row + c]);
        worst = learn_worse(worst, fabs(got - want) / (rounding * (size + fabs(want))));
    }
    return worst;
}

static double error(int most) {
    size_t T = (size_t)at.s.T, H = (size_t)at.s.H, rows = (size_t)at.s.B * H * T;
    size_t checked = smaller(rows, (size_t)most);
    double worst = learn_guards_intact(at.out, at.bytes) ? 0 : INFINITY, *p = (double *)xmalloc(T * sizeof *p);
    for (size_t i = 0; i < checked; i++) {
        size_t row = learn_row(i, checked, rows);
        worst = learn_worse(worst, row_error(row / T / H, row / T % H, row % T, p));
    }
    free(p);
    return worst;
}

static double flops(Shape s) { return 2.0 * s.width * s.B * s.H * s.rows * (s.rows + 1.0); }

int main(int argc, char **argv) {
    static const Version versions[] = {
        {"naive", "one step of the formula after the other", run_naive},
        {"flash", "scores of a tile at a time, softmax on the way", run_flash},
        {"vectors", "keys side by side, vectorised exponential", run_vectors},
        {"registers", "sums of four rows and two vectors in registers", run_registers},
        {"causal", "no masked tiles, keys packed once for all heads", run_causal},
        {"threads", "tiles of queries shared among threads", run_threads},
        {"shipped", "kernels/ops.h: attention_forward", run_shipped},
    };
    static const Shape ragged[] = {{1, 1, 1, 1, 1},   {2, 3, 1, 2, 1},   {31, 8, 2, 2, 2},  {33, 20, 1, 4, 2},
                                   {64, 16, 1, 1, 1}, {65, 64, 2, 3, 1}, {97, 40, 1, 4, 4}, {150, 80, 1, 6, 3}};
    Lesson lesson = {"attention",        versions, sizeof versions / sizeof *versions,
                     {640, 64, 1, 8, 2}, ragged,   sizeof ragged / sizeof *ragged,
                     open_shape,         reset,    error,
                     close_shape,        NULL,     flops};
    return learn_main(&lesson, argc, argv);
}
