/* The row kernel of the distillation objective on the processor, from the plainest version to the one that ships.
 * ../README.md explains the steps.
 *
 * For every row, with student logits s, teacher logits t (V each) and the label y, at temperature tau:
 *   p = softmax(t / tau), q = softmax(s / tau), Q = softmax(s)
 *   loss = w_ce (-log Q_y) + w_soft tau^2 KL(p||q)
 *   d loss / d s = w_ce (Q - onehot_y) + w_soft tau (q - p), times `scale`, which replaces s.
 * Bytes at least: s and t read, the gradient written: 3 rows V elements. */
#include "learn.h"

static const float W_CE = 0.3f, W_SOFT = 0.7f, TAU = 3.0f, SCALE = 0.25f;

/* ---- 1 naive: one step of the formula after the other, each for all rows ---- */

/* out [rows, V] = log softmax(x / tau) */
static void log_softmax(float *out, const floatX *x, float tau, size_t rows, size_t V) {
    for (size_t r = 0; r < rows; r++) {
        float largest = -INFINITY, sum = 0;
        for (size_t i = r * V; i < (r + 1) * V; i++)
            largest = from_x(x[i]) / tau > largest ? from_x(x[i]) / tau : largest;
        for (size_t i = r * V; i < (r + 1) * V; i++) sum += expf(from_x(x[i]) / tau - largest);
        for (size_t i = r * V; i < (r + 1) * V; i++) out[i] = from_x(x[i]) / tau - largest - logf(sum);
    }
}

/* The way a framework runs it without a fused kernel: three arrays of fp32, each twice as large as the logits, are
 * written to memory and read again by the loss and by the gradient. */
static void naive(floatX *student, const floatX *teacher, const int *labels, float *loss, size_t rows, size_t V,
                  float *scratch) {
    float *log_p = scratch, *log_q = scratch + rows * V, *log_Q = scratch + 2 * rows * V;
    log_softmax(log_p, teacher, TAU, rows, V);
    log_softmax(log_q, student, TAU, rows, V);
    log_softmax(log_Q, student, 1, rows, V);
    for (size_t r = 0; r < rows; r++) {
        float kl = 0;
        for (size_t i = r * V; i < (r + 1) * V; i++) kl += expf(log_p[i]) * (log_p[i] - log_q[i]);
        loss[r] = -W_CE * log_Q[r * V + (size_t)labels[r]] + W_SOFT * TAU * TAU * kl;
    }
    for (size_t i = 0; i < rows * V; i++) {
        float onehot = i % V == (size_t)labels[i / V] ? 1 : 0;
        student[i] =
            to_x(SCALE * (W_CE * (expf(log_Q[i]) - onehot) + W_SOFT * TAU * (expf(log_q[i]) - expf(log_p[i]))));
    }
}

/* ---- what the other versions know of a row ---- */

/* Sums of exponentials relative to the largest logits so far, from which both the loss and the gradient follow. */
typedef struct {
    float s_max, t_max;
    float z1, zq, zp;  // of exp(s - s_max), exp((s - s_max) / tau), exp((t - t_max) / tau)
    float apart;       // of exp((t - t_max) / tau) ((t - t_max) - (s - s_max)) / tau
} Sums;

static const float LOWEST = -1e30f;  // finite: -inf - -inf would be no number

static inline float row_loss(const Sums *x, float s_label) {
    float ce = logf(x->z1) - (s_label - x->s_max), kl = x->apart / x->zp - logf(x->zp) + logf(x->zq);
    return W_CE * ce + W_SOFT * TAU * TAU * kl;
}

/* The same sums relative to larger maxima (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax") */
static inline void rebase(Sums *x, float s_max, float t_max) {
    float ds = x->s_max - s_max, dt = x->t_max - t_max, fp = expf(dt / TAU);  // <= 0, <= 1
    x->apart = fp * (x->apart + (dt - ds) / TAU * x->zp);
    x->z1 *= expf(ds), x->zq *= expf(ds / TAU), x->zp *= fp;
    x->s_max = s_max, x->t_max = t_max;
}

/* ---- 2 online: two passes over a row, nothing in between ---- */

/* Sums that are relative to the largest logits so far need no pass for the maxima, and from the sums follow both the
 * loss and the gradient: a row is read twice and no array is written in between. The exponentials are as many as
 * before, three for the sums and three for the gradient. */
static void online(floatX *student, const floatX *teacher, const int *labels, float *loss, size_t rows, size_t V,
                   float *scratch) {
    (void)scratch;
    for (size_t r = 0; r < rows; r++) {
        floatX *s = student + r * V;
        const floatX *t = teacher + r * V;
        Sums x = {LOWEST, LOWEST, 0, 0, 0, 0};
        for (size_t i = 0; i < V; i++) {
            float si = from_x(s[i]), ti = from_x(t[i]);
            if (si > x.s_max || ti > x.t_max) rebase(&x, fmaxf(si, x.s_max), fmaxf(ti, x.t_max));
            float a = si - x.s_max, b = ti - x.t_max, ep = expf(b / TAU);
            x.z1 += expf(a);
            x.zq += expf(a / TAU);
            x.zp += ep;
            x.apart += ep * (b - a) / TAU;
        }
        loss[r] = row_loss(&x, from_x(s[labels[r]]));
        for (size_t i = 0; i < V; i++) {
            float a = from_x(s[i]) - x.s_max, b = from_x(t[i]) - x.t_max;
            float Q = expf(a) / x.z1, q = expf(a / TAU) / x.zq, p = expf(b / TAU) / x.zp;
            float onehot = i == (size_t)labels[r] ? 1 : 0;
            s[i] = to_x(SCALE * (W_CE * (Q - onehot) + W_SOFT * TAU * (q - p)));
        }
    }
}

/* ---- 3 vectors: LANES exponentials at once ---- */

enum { BLOCK = 1024 };  // entries of a row that are handled together, a multiple of PAIR

static inline size_t block_size(size_t V, size_t begin) { return V - begin < BLOCK ? V - begin : BLOCK; }

static inline size_t whole_pairs(size_t n) { return (n + PAIR - 1) / PAIR * PAIR; }

/* Returns x, or, where n is not a multiple of PAIR, a copy that is padded with (almost) minus infinity. */
static inline const floatX *padded(const floatX *x, size_t n, floatX *copy) {
    if (n % PAIR == 0) return x;
    memcpy(copy, x, n * sizeof *x);
    for (size_t i = n; i < whole_pairs(n); i++) copy[i] = to_x(LOWEST);
    return copy;
}

static inline float block_max(const floatX *x, size_t n) {
    vf even = (vf){0} + LOWEST, odd = even;
    for (size_t i = 0; i < n; i += PAIR) {
        Pair v = pair_load(x + i);
        even = vector_max(even, v.even);
        odd = vector_max(odd, v.odd);
    }
    return max_lanes(vector_max(even, odd));
}

/* Writes the three exponentials of LANES entries to e and adds them to the sums of a block (z1, zq, zp, apart). */
static inline void add_lanes(vf sum[4], float *e, vf a, vf b) {
    vf e1 = vector_exp(a), eq = vector_exp(a * (1 / TAU)), ep = vector_exp(b * (1 / TAU));
    sum[0] += e1, sum[1] += eq, sum[2] += ep, sum[3] += ep * (b - a);
    vector_store(e, e1), vector_store(e + LANES, eq), vector_store(e + 2 * LANES, ep);
}

/* Adds a block to the sums of a row and writes its exponentials to e [3 BLOCK]. The maxima take a loop of their own,
 * but the block is in the first-level cache afterwards, and the sums are rescaled at most once for all of it. */
static void add_block(Sums *x, float *e, const floatX *student, const floatX *teacher, size_t n) {
    floatX s_copy[BLOCK], t_copy[BLOCK];
    const floatX *s = padded(student, n, s_copy), *t = padded(teacher, n, t_copy);
    float s_max = block_max(s, whole_pairs(n)), t_max = block_max(t, whole_pairs(n));
    if (s_max > x->s_max || t_max > x->t_max) rebase(x, fmaxf(s_max, x->s_max), fmaxf(t_max, x->t_max));
    s_max = x->s_max, t_max = x->t_max;
    vf sum[4] = {{0}};
    for (size_t i = 0; i < n; i += PAIR) {
        Pair a = pair_load(s + i), b = pair_load(t + i);
        add_lanes(sum, e + 3 * i, a.even - s_max, b.even - t_max);
        add_lanes(sum, e + 3 * i + 3 * LANES, a.odd - s_max, b.odd - t_max);
    }
    x->z1 += sum_lanes(sum[0]), x->zq += sum_lanes(sum[1]), x->zp += sum_lanes(sum[2]);
    x->apart += sum_lanes(sum[3]) / TAU;
}

/* The weights of the three exponentials in the gradient, where these are relative to the given maxima. */
typedef struct {
    float Q, q, p;
} Factors;

static inline Factors factors(const Sums *x, float s_max, float t_max) {
    float ds = s_max - x->s_max, dt = t_max - x->t_max;
    return (Factors){SCALE * W_CE * expf(ds) / x->z1, SCALE * W_SOFT * TAU * expf(ds / TAU) / x->zq,
                     SCALE * W_SOFT * TAU * expf(dt / TAU) / x->zp};
}

static inline vf gradient_lanes(Factors f, const float *e) {
    return f.Q * vector_load(e) + f.q * vector_load(e + LANES) - f.p * vector_load(e + 2 * LANES);
}

/* The gradient of a block without the term of the label. */
static void gradient_block(floatX *student, const float *e, Factors f, size_t n) {
    floatX copy[BLOCK], *s = n % PAIR ? copy : student;
    for (size_t i = 0; i < n; i += PAIR)
        pair_store(s + i, (Pair){gradient_lanes(f, e + 3 * i), gradient_lanes(f, e + 3 * i + 3 * LANES)});
    if (n % PAIR) memcpy(student, copy, n * sizeof *copy);
}

static inline floatX label_gradient(const Sums *x, float s, float t) {
    Factors f = factors(x, s, t);
    return to_x(f.Q + f.q - f.p - SCALE * W_CE);
}

/* The two loops of `online` with vector_exp of learn.h. A call of expf handles one number, and GCC cannot vectorise a
 * loop with a call in it; vector_exp is plain arithmetic. The second loop computes the exponentials of a block again,
 * now relative to the final maxima. */
static void vectors(floatX *student, const floatX *teacher, const int *labels, float *loss, size_t rows, size_t V,
                    float *scratch) {
    for (size_t r = 0; r < rows; r++) {
        floatX *s = student + r * V;
        const floatX *t = teacher + r * V;
        float s_label = from_x(s[labels[r]]), t_label = from_x(t[labels[r]]);
        Sums x = {LOWEST, LOWEST, 0, 0, 0, 0};
        for (size_t i = 0; i < V; i += BLOCK) add_block(&x, scratch, s + i, t + i, block_size(V, i));
        loss[r] = row_loss(&x, s_label);
        for (size_t i = 0; i < V; i += BLOCK) {
            Sums again = x;
            add_block(&again, scratch, s + i, t + i, block_size(V, i));
            gradient_block(s + i, scratch, factors(&x, x.s_max, x.t_max), block_size(V, i));
        }
        s[labels[r]] = label_gradient(&x, s_label, t_label);
    }
}

/* ---- 4 kept: every exponential is taken once ---- */

/* Floats of scratch for a row: three exponentials for every entry, two maxima for every block. */
static inline size_t kept_size(size_t V) { return 3 * whole_pairs(V) + 2 * (V / BLOCK + 1); }

/* Exponentials are most of the time, so the first loop stores them, 12 bytes for every entry, and the second loop
 * finds them in the second-level cache. They are relative to the maxima at the time of their block; one factor for
 * each block corrects for maxima that came later. The second loop is three multiplications for every entry, and the
 * logits are read once. */
static void kept_row(floatX *s, const floatX *t, int label, float *loss, size_t V, float *scratch) {
    float s_label = from_x(s[label]), t_label = from_x(t[label]), *maxima = scratch + 3 * whole_pairs(V);
    Sums x = {LOWEST, LOWEST, 0, 0, 0, 0};
    for (size_t i = 0; i < V; i += BLOCK) {
        add_block(&x, scratch + 3 * i, s + i, t + i, block_size(V, i));
        maxima[i / BLOCK * 2] = x.s_max, maxima[i / BLOCK * 2 + 1] = x.t_max;
    }
    *loss = row_loss(&x, s_label);
    for (size_t i = 0; i < V; i += BLOCK) {
        Factors f = factors(&x, maxima[i / BLOCK * 2], maxima[i / BLOCK * 2 + 1]);
        gradient_block(s + i, scratch + 3 * i, f, block_size(V, i));
    }
    s[label] = label_gradient(&x, s_label, t_label);
}

static void kept(floatX *student, const floatX *teacher, const int *labels, float *loss, size_t rows, size_t V,
                 float *scratch) {
    for (size_t r = 0; r < rows; r++) kept_row(student + r * V, teacher + r * V, labels[r], loss + r, V, scratch);
}

/* ---- 5 threads: rows shared ---- */

/* Rows are independent. Every thread keeps its exponentials in the cache of its own core. */
static void threads(floatX *student, const floatX *teacher, const int *labels, float *loss, size_t rows, size_t V,
                    float *scratch) {
#pragma omp parallel for schedule(static)
    for (size_t r = 0; r < rows; r++)
        kept_row(student + r * V, teacher + r * V, labels[r], loss + r, V,
                 scratch + (size_t)omp_get_thread_num() * kept_size(V));
}

/* ---- 6 shipped ---- */

/* It also computes the argmax of both rows and the teacher's entropy and confidence, for the gates and the log. */
static void shipped(floatX *student, const floatX *teacher, const int *labels, float *loss, size_t rows, size_t V,
                    float *scratch) {
    ObjectiveRow o = {W_CE, W_SOFT, 0, TAU, SOFT_KL, 0.5f, 2, 1, SCALE, NULL, 0, NULL};
    RowStats *stats = (RowStats *)scratch;
    cpu_ops()->distill_rows(student, teacher, labels, NULL, stats, o, rows, (int)V, (int)V, true);
    for (size_t r = 0; r < rows; r++) loss[r] = W_CE * stats[r].ce + W_SOFT * TAU * TAU * stats[r].soft;
}

/* ---- the problem ---- */

static struct {
    size_t rows, V, bytes;               // bytes of an array
    floatX *student, *teacher, *logits;  // logits: the student's, which the gradient replaces
    int *labels;
    float *loss, *scratch;
} at;

#define RUN(version)                                                                    \
    static void run_##version(void) {                                                   \
        version(at.student, at.teacher, at.labels, at.loss, at.rows, at.V, at.scratch); \
    }
RUN(naive)
RUN(online)
RUN(vectors)
RUN(kept)
RUN(threads)
RUN(shipped)

/* Every third row of the student and every fifth of the teacher rises by 60 from its first entry to its last, so that
 * the maxima grow in every block and the sums are rescaled each time. */
static void open_shape(Shape s) {
    at.rows = (size_t)s.rows, at.V = (size_t)s.width, at.bytes = at.rows * at.V * sizeof(floatX);
    at.student = (floatX *)learn_alloc(at.bytes), at.teacher = (floatX *)learn_alloc(at.bytes);
    at.logits = (floatX *)learn_alloc(at.bytes);
    at.labels = (int *)learn_alloc(at.rows * sizeof(int));
    at.loss = (float *)learn_alloc(at.rows * sizeof(float));
    size_t threads = (size_t)omp_get_max_threads(), share = kept_size(at.V) + sizeof(RowStats);
    at.scratch = (float *)learn_alloc((at.rows > threads ? at.rows : threads) * share * sizeof(float));
    learn_fill(at.logits, at.rows * at.V, 1, 6);
    learn_fill(at.teacher, at.rows * at.V, 2, 6);
    for (size_t r = 0; r < at.rows; r++) {
        at.labels[r] = (int)(r * 7919 % at.V);
        for (size_t i = 0; i < at.V; i++) {
            size_t k = r * at.V + i;
            float rise = 60.0f * (float)i / (float)at.V;
            if (r % 3 == 2) at.logits[k] = to_x(from_x(at.logits[k]) + rise);
            if (r % 5 == 4) at.teacher[k] = to_x(from_x(at.teacher[k]) + rise);
        }
    }
}

static void reset(void) {
    memcpy(at.student, at.logits, at.bytes);
    learn_poison(at.loss, at.rows * sizeof *at.loss);
}

static void close_shape(void) {
    learn_free(at.student), learn_free(at.teacher), learn_free(at.logits), learn_free(at.labels), learn_free(at.loss);
    learn_free(at.scratch);
}

/* out = log softmax(x / tau) of a row */
static void log_softmax_64(double *out, const floatX *x, double tau) {
    double largest = -INFINITY, sum = 0;
    for (size_t i = 0; i < at.V; i++) largest = fmax(largest, (double)from_x(x[i]) / tau);
    for (size_t i = 0; i < at.V; i++) sum += exp((double)from_x(x[i]) / tau - largest);
    for (size_t i = 0; i < at.V; i++) out[i] = (double)from_x(x[i]) / tau - largest - log(sum);
}

/* l: space for 3 V numbers */
static double row_error(size_t row, double *l) {
    const double rounding = sizeof(floatX) == 2 ? 1.01 / 256 : 2e-5, tau = (double)TAU, ce = (double)W_CE,
                 soft = (double)W_SOFT;
    double *lQ = l, *lq = l + at.V, *lp = l + 2 * at.V, kl = 0, worst = 0;
    size_t label = (size_t)at.labels[row];
    log_softmax_64(lQ, at.logits + row * at.V, 1);
    log_softmax_64(lq, at.logits + row * at.V, tau);
    log_softmax_64(lp, at.teacher + row * at.V, tau);
    for (size_t i = 0; i < at.V; i++) {
        double Q = exp(lQ[i]), q = exp(lq[i]), p = exp(lp[i]), onehot = i == label;
        double want = (double)SCALE * (ce * (Q - onehot) + soft * tau * (q - p));
        double size = (double)SCALE * (ce * (Q + onehot) + soft * tau * (q + p));
        double got = (double)from_x(at.student[row * at.V + i]);
        kl += p * (lp[i] - lq[i]);
        worst = learn_worse(worst, fabs(got - want) / (rounding * size + 1e-30));
    }
    double loss = -ce * lQ[label] + soft * tau * tau * kl;
    return learn_worse(worst, fabs((double)at.loss[row] - loss) / (1e-4 * loss + 1e-6));
}

static double error(int rows) {
    size_t checked = at.rows < (size_t)rows ? at.rows : (size_t)rows;
    double worst = 0, *l = (double *)xmalloc(3 * at.V * sizeof *l);
    if (!learn_guards_intact(at.student, at.bytes) || !learn_guards_intact(at.loss, at.rows * sizeof *at.loss))
        worst = INFINITY;
    for (size_t i = 0; i < checked; i++) worst = learn_worse(worst, row_error(learn_row(i, checked, at.rows), l));
    free(l);
    return worst;
}

static double bytes(Shape s) { return 3.0 * s.rows * s.width * sizeof(floatX); }

int main(int argc, char **argv) {
    static const Version versions[] = {
        {"naive", "one step of the formula after the other", run_naive},
        {"online", "maxima and sums in one pass over a row", run_online},
        {"vectors", "the exponential of a whole vector", run_vectors},
        {"kept", "exponentials stay in cache for the gradient", run_kept},
        {"threads", "rows shared among threads", run_threads},
        {"shipped", "kernels/ops.h: distill_rows", run_shipped},
    };
    static const Shape ragged[] = {{1, 1, 0, 0, 0},    {3, 7, 0, 0, 0},     {5, 33, 0, 0, 0},   {6, 1000, 0, 0, 0},
                                   {6, 1024, 0, 0, 0}, {15, 1040, 0, 0, 0}, {7, 5003, 0, 0, 0}, {3, 32022, 0, 0, 0}};
    Lesson lesson = {"distill_rows",
                     versions,
                     sizeof versions / sizeof *versions,
                     {256, 32768, 0, 0, 0},
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
