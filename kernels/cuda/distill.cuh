/* The row kernel of the distillation objective on a GPU: loss and gradient of a row from the student's and the
 * teacher's logits.
 *
 * Symbols, formulas and gradients are those at the top of loss.cuh; q and p are over the first V = min(V_s, V_t)
 * entries, Q = softmax(s) is over all V_s. Exponentials are powers of two: with k = log2(e)/tau,
 * log2 q_i = k s_i - k max - log2 Z, so that an exponential is one multiply-add and one instruction of the special
 * function unit. That unit is the scarce one, with a quarter of the throughput. At tau = 1 the exponentials at tau
 * serve for tau = 1 too, and at tau = 2 their squares do.
 *
 * A block, or a cluster of up to eight blocks where a row is too long for one block's shared memory, computes a row.
 * One kernel does it all: both maxima and their indices, all sums of both softmaxes at both temperatures (relative to
 * running maxima, so that one pass is enough), the divergence, and the gradient, which replaces the student's logits.
 *
 * The floor is the bytes: rows (2 V_s + V_t) times the element size with a gradient, rows (V_s + V_t) without. At
 * 8192 x 32768 in bf16 that is 1.61 GB, which an H100 SXM moves in 0.48 ms at its 3.35 TB/s. To get there:
 *   - Each logit is read from memory once. A block's share of both rows stays in shared memory between the passes. A
 *     third of an H100's multiprocessor (75 KB) holds 18 thousand entries of both rows in bf16, so with a teacher
 *     V up to 18432 takes one block, 36864 two, 73728 four, 147456 eight (without a teacher twice as much each); see
 *     row_plan. Longer rows, and on GPUs without clusters those above 27 thousand (A100: 18), keep what fits into
 *     half a multiprocessor and read the rest again in each pass, from L2 where the rows in flight fit into it.
 *     Rows that are not whole vectors of 16 bytes keep nothing.
 *   - Enough loads are in flight. 3.35 TB/s times 0.7 us of latency under load is 2.3 MB, 18 KB for each
 *     multiprocessor. A thread starts the copies of ROW_DEPTH turns of its share at once (cp.async: 16 bytes for
 *     each row and turn, no registers), which is the whole share of 64 KB of a block at V = 32768. The three blocks
 *     of a multiprocessor are at different points: one has 64 KB in flight while the others compute or write.
 *   - The arithmetic hides behind the bytes. It takes 4 exponentials for each entry at tau 1 and 2, else 7. At 8192 x
 *     32768, 4 take an H100's special function units 0.29 ms and 7 take 0.51 ms, so when tau is neither 1 nor 2 the
 *     exponentials are the floor. KL(q||p) and the mixtures take 2 more, because their gradient needs a mean that only a
 *     pass of its own gives; where the student is far from the teacher JSD takes 2 more in each pass, the skew
 *     divergences 3. */
#ifndef KERNELS_CUDA_DISTILL_CUH
#define KERNELS_CUDA_DISTILL_CUH

#include "../mixture.h"
#include "common.cuh"

enum {
    ROW_THREADS = 384,    // of a block when a multiprocessor runs two of them, which leaves 80 registers for a thread
    ROW_THREADS_3 = 256,  // when it runs three, with as many registers
    ROW_DEPTH = 8,        // turns whose copies to shared memory a thread has in flight
    ROW_WARPS = ROW_THREADS / 32,
    NO_TEACHER = -1  // beside the kinds of SoftLoss: a row without a teacher
};

/* W neighbouring entries of a row, loaded and stored at once. */
template <int W> struct alignas(W * sizeof(floatX)) Group { floatX x[W]; };

/* The student's and the teacher's row, in groups. The threads of all blocks of the row take the groups in turns: a
 * thread's group of turn j is first + j step. In every pass the same thread reads and writes them, in shared memory
 * too, so no barrier is needed between the passes for their data. */
template <int W> struct Rows {
    Group<W> *student;
    const Group<W> *teacher;
    Group<W> *kept_student, *kept_teacher;  // shared memory: the block's groups of the first `kept` turns
    int kept, first, step;
    int both, all;  // groups of the first V entries; of all V_s

    enum { AHEAD = W > 1 ? 1 : 8 };  // beyond the kept turns: those that are loaded together

    __device__ int group(int turn) const { return first + turn * step; }
    __device__ int kept_at(int turn) const { return turn * (int)blockDim.x + (int)threadIdx.x; }

    /* Starts the copies of the calling thread's groups of a turn, if it is a kept one. */
    __device__ __forceinline__ void fetch(int turn) const {
        int g = group(turn);
        if (turn < kept && g < all) {
            copy_async_16(kept_student + kept_at(turn), student + g);
            if (g < both) copy_async_16(kept_teacher + kept_at(turn), teacher + g);
        }
        copy_async_commit();
    }
};

/* The largest entry of a row and its group, later its index; the first of equals. NaN entries are skipped. */
struct Peak {
    float largest;
    int at;
};

static __device__ __forceinline__ Peak better(Peak a, Peak b) {
    return b.largest > a.largest || (b.largest == a.largest && b.at < a.at) ? b : a;
}

template <int W> static __device__ __forceinline__ float largest_of(const Group<W> &x) {
    float largest = to_float(x.x[0]);
#pragma unroll
    for (int i = 1; i < W; i++) largest = fmaxf(largest, to_float(x.x[i]));
    return largest;
}

static __device__ __forceinline__ void peak_add(Peak *p, float largest, int group) {
    if (largest > p->largest) *p = {largest, group};
}

/* Sums over a row, relative to the maxima so far. With the exponents a_q = k (s - q_max) and a_p = k (t - p_max):
 *   zq = sum of 2^a_q, zp = sum of 2^a_p, z1 and t1 the same at tau = 1, entropy = sum of 2^a_p a_p.
 * rest is the sum at tau = 1 over the student's entries beyond V, which have a maximum of their own. */
struct RowSums {
    float q_max, p_max, rest_max;
    float z1, zq, t1, zp, entropy, rest;
};

struct Scales {
    float at_tau, at_one;  // log2(e) / tau, log2(e); in a policy gradient, both log2(e) / tau
};

/* k times a maximum, which exponents subtract. It is rounded, and everywhere to the same number: an exponent computed
 * with it (one multiply-add) may differ from the exact one, but by the same amount for all entries of a row, and that
 * cancels. */
static __device__ __forceinline__ float offset(float largest, float k) { return __fmul_rn(largest, k); }

/* An exponential at tau = 1: from the one at tau when tau is 1 or 2 (POWER), else from the exponent at tau = 1. */
template <int POWER> static __device__ __forceinline__ float at_one(float at_tau, float exponent) {
    return POWER == 1 ? at_tau : POWER == 2 ? at_tau * at_tau : exp2_approx(exponent);
}

/* Makes the sums relative to larger maxima. */
template <int POWER> static __device__ __forceinline__ void rebase(RowSums *r, float q_max, float p_max, Scales k) {
    float dq = offset(r->q_max, k.at_tau) - offset(q_max, k.at_tau), fq = exp2_approx(dq);  // <= 0, <= 1
    float dp = offset(r->p_max, k.at_tau) - offset(p_max, k.at_tau), fp = exp2_approx(dp);
    r->entropy = fp * (r->entropy + dp * r->zp);
    r->zq *= fq;
    r->zp *= fp;
    r->z1 *= at_one<POWER>(fq, offset(r->q_max, k.at_one) - offset(q_max, k.at_one));
    r->t1 *= at_one<POWER>(fp, offset(r->p_max, k.at_one) - offset(p_max, k.at_one));
    r->q_max = q_max;
    r->p_max = p_max;
}

/* Adds a group of each row. */
template <int POWER, int W>
static __device__ __forceinline__ void sums_add(RowSums *r, const Group<W> &s, const Group<W> &t, Scales k) {
    float q_offset = offset(r->q_max, k.at_tau), p_offset = offset(r->p_max, k.at_tau);
    float q_offset1 = offset(r->q_max, k.at_one), p_offset1 = offset(r->p_max, k.at_one);
#pragma unroll
    for (int i = 0; i < W; i++) {
        float x = to_float(s.x[i]), y = to_float(t.x[i]);
        float aq = fmaf(x, k.at_tau, -q_offset), ap = fmaf(y, k.at_tau, -p_offset);
        float eq = exp2_approx(aq), ep = exp2_approx(ap);
        r->z1 += at_one<POWER>(eq, fmaf(x, k.at_one, -q_offset1));
        r->t1 += at_one<POWER>(ep, fmaf(y, k.at_one, -p_offset1));
        r->zq += eq;
        r->zp += ep;
        r->entropy += ep * ap;
    }
}

/* Makes the sum beyond V relative to a larger maximum. */
static __device__ __forceinline__ void rest_rebase(RowSums *r, float largest, Scales k) {
    r->rest *= exp2_approx(offset(r->rest_max, k.at_one) - offset(largest, k.at_one));
    r->rest_max = largest;
}

/* Adds a group of entries beyond V, which only the student has. */
template <int W>
static __device__ __forceinline__ void rest_add(RowSums *sums, const Group<W> &s, float largest, Scales k) {
    if (largest > sums->rest_max) rest_rebase(sums, largest, k);
    float rest_offset = offset(sums->rest_max, k.at_one);
#pragma unroll
    for (int i = 0; i < W; i++) sums->rest += exp2_approx(fmaf(to_float(s.x[i]), k.at_one, -rest_offset));
}

/* Takes one group of each row into the sums and maxima. */
template <int KIND, int POWER, int W>
static __device__ __forceinline__ void row_add(RowSums *sums, Peak *student, Peak *teacher, const Rows<W> &rows,
                                               int g, const Group<W> &s, const Group<W> &t, Scales k) {
    float largest = largest_of(s);
    peak_add(student, largest, g);
    if (KIND == NO_TEACHER || g >= rows.both) {
        rest_add(sums, s, largest, k);
        return;
    }
    peak_add(teacher, largest_of(t), g);
    if (student->largest > sums->q_max || teacher->largest > sums->p_max)
        rebase<POWER>(sums, fmaxf(student->largest, sums->q_max), fmaxf(teacher->largest, sums->p_max), k);
    sums_add<POWER>(sums, s, t, k);
}

/* Loads the groups of some turns from `turn` on, as far as there are any, from memory. */
template <int W, int AHEAD>
static __device__ __forceinline__ void load_turns(Group<W> (&s)[AHEAD], Group<W> (&t)[AHEAD], const Rows<W> &rows,
                                                  int turn) {
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
        int g = rows.group(turn + u);
        if (g < rows.all) s[u] = rows.student[g];
        if (g < rows.both) t[u] = rows.teacher[g];
    }
}

/* The first pass: takes the calling thread's groups of both rows into the sums and maxima. */
template <int KIND, int POWER, int W>
static __device__ void read_rows(RowSums *sums, Peak *student, Peak *teacher, const Rows<W> &rows, Scales k) {
    if (W > 1)
        for (int turn = 0; turn < ROW_DEPTH; turn++) rows.fetch(turn);
    for (int turn = 0; turn < rows.kept; turn++) {
        copy_async_wait<ROW_DEPTH - 1>();
        int g = rows.group(turn), i = rows.kept_at(turn);
        if (g < rows.all)
            row_add<KIND, POWER>(sums, student, teacher, rows, g, rows.kept_student[i], rows.kept_teacher[i], k);
        rows.fetch(turn + ROW_DEPTH);
    }
    for (int turn = rows.kept; rows.group(turn) < rows.all; turn += Rows<W>::AHEAD) {
        Group<W> s[Rows<W>::AHEAD], t[Rows<W>::AHEAD];
        load_turns(s, t, rows, turn);
#pragma unroll
        for (int u = 0; u < Rows<W>::AHEAD; u++) {
            int g = rows.group(turn + u);
            if (g < rows.all) row_add<KIND, POWER>(sums, student, teacher, rows, g, s[u], t[u], k);
        }
    }
}

/* ---- reductions over a block ---- their order depends on its size only */

/* The sums over the block, for its first warp only. */
template <int N> static __device__ void block_sums(float (&x)[N], float (*space)[ROW_WARPS]) {
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = warp_sum(x[i]);
        if (threadIdx.x % 32 == 0) space[i][warp] = x[i];
    }
    __syncthreads();
    if (warp > 0) return;
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = space[i][0];
        for (int w = 1; w < warps; w++) x[i] += space[i][w];
    }
}

static __device__ __forceinline__ Peak warp_peak(Peak p) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) {
        Peak other = {__shfl_xor_sync(ALL_LANES, p.largest, distance), __shfl_xor_sync(ALL_LANES, p.at, distance)};
        p = better(p, other);
    }
    return p;
}

struct PeakSpace {
    Peak student[ROW_WARPS], teacher[ROW_WARPS];
    float q_max[ROW_WARPS], rest_max[ROW_WARPS];
};

/* Both rows' peaks, and the maxima that the sums are relative to, over the block. */
static __device__ void block_peaks(Peak *student, Peak *teacher, float *q_max, float *rest_max, PeakSpace *space) {
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    Peak s = warp_peak(*student), t = warp_peak(*teacher);
    float q = warp_max(*q_max), rest = warp_max(*rest_max);
    if (threadIdx.x % 32 == 0) {
        space->student[warp] = s;
        space->teacher[warp] = t;
        space->q_max[warp] = q;
        space->rest_max[warp] = rest;
    }
    __syncthreads();
    *student = space->student[0];
    *teacher = space->teacher[0];
    *q_max = space->q_max[0];
    *rest_max = space->rest_max[0];
    for (int w = 1; w < warps; w++) {
        *student = better(*student, space->student[w]);
        *teacher = better(*teacher, space->teacher[w]);
        *q_max = fmaxf(*q_max, space->q_max[w]);
        *rest_max = fmaxf(*rest_max, space->rest_max[w]);
    }
}

/* ---- from the sums to the gradient ---- */

/* What the gradient needs to know about a row. With the exponentials e_q and e_p at tau, relative to the offsets, and
 * e_1 at tau = 1: q = e_q / z_q, p = e_p / z_p, and the gradient is weight_1 e_1 + soft (...). */
struct RowState {
    Scales k;
    float q_offset, p_offset, q_offset1, offset;  // offset: of the whole row, at tau = 1
    float q_max, p_max, inverse;                  // inverse: 1 / tau
    float shift;                                  // log (q / p) = ((s - q_max) - (t - p_max)) / tau - shift
    float one_over_zq, one_over_zp;
    Mixture mix;   // of the divergences from a mixture
    float centre;  // the mean under q of SoftTerm.back, which the gradient subtracts
    float weight_1, weight_z;        // weight_z: of e_1 relative to `offset`, beyond V
    float ce, hard, soft;  // weights of the label, of the teacher's argmax, of the soft term, with scale and gate
    int label, top;
};

/* A block's results for its share of a row. */
struct RowPart {
    RowSums sums;
    Peak student, teacher;   // at: the index
    float at_top, at_label;  // the student's logits of the teacher's argmax and of the label
};

/* A block's shared memory; the groups that it keeps follow. */
struct alignas(16) RowSpace {
    PeakSpace peaks;
    float sums[6][ROW_WARPS], soft[2][ROW_WARPS];
    RowPart part[MAX_CLUSTER];  // of every block of the row
    float soft_part[MAX_CLUSTER][2];
    RowState state;
    RowStats stats;
};

/* ---- the divergence ---- summed in the form that kernels/cpu/distill.h derives, in which nothing cancels */

static const float NEAR = 0.5f;  // the series serve for |log (q / p)| below this

/* e^x - 1 - x for |x| < 1/2, with a relative error of 1e-7 (Taylor). */
static __device__ __forceinline__ float phi(float x) {
    float p = fmaf(x, 1.0f / 40320, 1.0f / 5040);
    p = fmaf(p, x, 1.0f / 720);
    p = fmaf(p, x, 1.0f / 120);
    p = fmaf(p, x, 1.0f / 24);
    p = fmaf(p, x, 1.0f / 6);
    return fmaf(p, x, 0.5f) * x * x;
}

/* log (1 + x) for -0.4 < x < 0.65, with a relative error of 1e-7: 2 (y + y^3/3 + ...) with y = x / (2 + x). */
static __device__ __forceinline__ float log_1_plus(float x) {
    float y = __fdividef(x, 2 + x), z = y * y;
    float p = fmaf(z, 2.0f / 9, 2.0f / 7);
    p = fmaf(p, z, 0.4f);
    p = fmaf(p, z, 2.0f / 3);
    return fmaf(y * z, p, 2 * y);
}

/* An entry of the vocabulary: q; its share of D; `back` of kernels/mixture.h, which is log (q / p) for KL(q||p); and q - p. */
struct SoftTerm {
    float q, share, back, difference;
};

static __device__ __forceinline__ void mixture_term(SoftTerm *x, const Mixture &m, float p, float ratio) {
    float u, skew;  // u: log (m / p); skew: p / m - 1
    if (fabsf(ratio) < NEAR) {
        float growth = ratio + phi(ratio);
        u = log_1_plus(m.rest * growth);
        x->back = ratio - u;
        x->share = p * (m.p_weight * phi(u) + m.q_weight * (1 + growth) * phi(-x->back));
        skew = phi(-u) - u;
    } else {  // log (m / p) from the larger of both parts of m, so that neither overflows
        float a = m.log_beta, b = ratio + m.log_rest, high = fmaxf(a, b), low = fminf(a, b);
        u = high + LN2 * log2_approx(1 + exp2_approx((low - high) * LOG2E));
        x->back = ratio - u;
        x->share = m.q_weight * x->q * x->back - m.p_weight * p * u + m.slope * (p - x->q);
        skew = m.slope != 0 ? exp2_approx(-u * LOG2E) - 1 : 0.0f;
    }
    x->back = m.log_weight * x->back + m.slope * skew;
}

/* The terms of an event with the probabilities p and q, ratio = log (q / p). */
template <int KIND>
static __device__ __forceinline__ SoftTerm event_term(const RowState &r, float p, float q, float ratio) {
    SoftTerm x = {q, 0, 0, 0};
    bool near = fabsf(ratio) < NEAR;
    if (KIND == SOFT_KL) {
        float f = phi(ratio);
        x.share = near ? __fmul_rn(p, f) : fmaf(-p, ratio, x.q - p);
        x.difference = near ? p * (ratio + f) : x.q - p;
    } else if (KIND == SOFT_REVERSE_KL) {
        x.back = ratio;
        x.share = near ? __fmul_rn(x.q, phi(-ratio)) : fmaf(x.q, ratio, p - x.q);
    } else {
        mixture_term(&x, r.mix, p, ratio);
    }
    return x;
}

template <int KIND>
static __device__ __forceinline__ SoftTerm soft_term(const RowState &r, float s, float t, float eq) {
    // Every rounding is given, so that D has the same bits with the gradient and without.
    float p = __fmul_rn(exp2_approx(fmaf(t, r.k.at_tau, -r.p_offset)), r.one_over_zp);
    float ratio = fmaf((s - r.q_max) - (t - r.p_max), r.inverse, -r.shift);
    return event_term<KIND>(r, p, __fmul_rn(eq, r.one_over_zq), ratio);
}

/* Adds a group to D and to the mean that its gradient subtracts. */
template <int KIND, int W>
static __device__ __forceinline__ void soft_add(float (&sums)[2], const Group<W> &s, const Group<W> &t,
                                                const RowState &r) {
#pragma unroll
    for (int i = 0; i < W; i++) {
        float a = to_float(s.x[i]);
        SoftTerm x = soft_term<KIND>(r, a, to_float(t.x[i]), exp2_approx(fmaf(a, r.k.at_tau, -r.q_offset)));
        sums[0] += x.share;
        sums[1] += x.q * x.back;
    }
}

/* The same for all of the calling thread's groups. */
template <int KIND, int W>
static __device__ void soft_sums(float (&sums)[2], const Rows<W> &rows, const RowState &r) {
    for (int turn = 0; turn < rows.kept && rows.group(turn) < rows.both; turn++)
        soft_add<KIND>(sums, rows.kept_student[rows.kept_at(turn)], rows.kept_teacher[rows.kept_at(turn)], r);
    for (int turn = rows.kept; rows.group(turn) < rows.both; turn += Rows<W>::AHEAD) {
        Group<W> s[Rows<W>::AHEAD], t[Rows<W>::AHEAD];
        load_turns(s, t, rows, turn);
#pragma unroll
        for (int u = 0; u < Rows<W>::AHEAD; u++)
            if (rows.group(turn + u) < rows.both) soft_add<KIND>(sums, s[u], t[u], r);
    }
}

/* ---- the gradient ---- */

/* The gradient of one entry, without the one-hot terms of the label and of the teacher's argmax. Adds the entry's
 * share of KL(p||q), which comes out on the way, to `divergence`. */
template <int KIND, int POWER>
static __device__ __forceinline__ float both_gradient(const RowState &r, float s, float t, float *divergence) {
    float eq = exp2_approx(fmaf(s, r.k.at_tau, -r.q_offset));
    float e1 = at_one<POWER>(eq, fmaf(s, r.k.at_one, -r.q_offset1));
    SoftTerm x = soft_term<KIND>(r, s, t, eq);
    if (KIND == SOFT_KL) *divergence += x.share;
    return r.weight_1 * e1 + r.soft * (KIND == SOFT_KL ? x.difference : x.q * (x.back - r.centre));
}

/* Subtracts the one-hot terms of the label and of the teacher's argmax, if they lie in this group, and stores the
 * group. */
template <int W>
static __device__ __forceinline__ void store_gradient(const Rows<W> &rows, int g, float (&d)[W], const RowState &r) {
    if (g == r.label / W || g == r.top / W)
#pragma unroll
        for (int i = 0; i < W; i++)
            d[i] -= (g * W + i == r.label ? r.ce : 0.0f) + (g * W + i == r.top ? r.hard : 0.0f);
    Group<W> out;
#pragma unroll
    for (int i = 0; i < W; i++) out.x[i] = from_float<floatX>(d[i]);
    rows.student[g] = out;
}

template <int KIND, int POWER, int W>
static __device__ __forceinline__ void write_group(const Rows<W> &rows, int g, const Group<W> &s, const Group<W> &t,
                                                   const RowState &r, float *divergence) {
    float d[W];
    if (KIND != NO_TEACHER && g < rows.both) {
#pragma unroll
        for (int i = 0; i < W; i++)
            d[i] = both_gradient<KIND, POWER>(r, to_float(s.x[i]), to_float(t.x[i]), divergence);
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) d[i] = r.weight_z * exp2_approx(fmaf(to_float(s.x[i]), r.k.at_one, -r.offset));
    }
    store_gradient(rows, g, d, r);
}

template <int KIND, int POWER, int W>
static __device__ void write_gradient(const Rows<W> &rows, const RowState &r, float *divergence) {
    for (int turn = 0; turn < rows.kept && rows.group(turn) < rows.all; turn++)
        write_group<KIND, POWER>(rows, rows.group(turn), rows.kept_student[rows.kept_at(turn)],
                                 rows.kept_teacher[rows.kept_at(turn)], r, divergence);
    for (int turn = rows.kept; rows.group(turn) < rows.all; turn += Rows<W>::AHEAD) {
        Group<W> s[Rows<W>::AHEAD], t[Rows<W>::AHEAD];
        load_turns(s, t, rows, turn);
#pragma unroll
        for (int u = 0; u < Rows<W>::AHEAD; u++)
            if (rows.group(turn + u) < rows.all)
                write_group<KIND, POWER>(rows, rows.group(turn + u), s[u], t[u], r, divergence);
    }
}

/* ---- the kernel ---- */

/* Computes the statistics, except the divergence, and what it and the gradient need, from the sums over the row,
 * which are all relative to its maxima. */
template <int KIND>
static __device__ RowStats finish_sums(RowState *r, const RowPart &row, const ObjectiveRow &o, float row_gate,
                                       float mix, const PolicyRow *policy) {
    const bool teacher = KIND != NO_TEACHER;
    const RowSums &b = row.sums;
    r->top = teacher ? row.teacher.at : -1;
    RowStats out = {0, 0, 0, 0, 0, 0, 0, 0, row.student.at, r->top};
    float s_max = teacher ? fmaxf(b.q_max, b.rest_max) : b.rest_max;
    r->offset = offset(s_max, r->k.at_one);
    float share =
        exp2_approx(offset(b.q_max, r->k.at_one) - r->offset);  // by which exponentials relative to q_max shrink
    float z = b.rest * exp2_approx(offset(b.rest_max, r->k.at_one) - r->offset) + (teacher ? b.z1 * share : 0.0f);
    float log_z = log2f(z);
    out.ce = LN2 * (log_z - fmaf(row.at_label, r->k.at_one, -r->offset));
    if (teacher) {
        r->q_offset = offset(b.q_max, r->k.at_tau), r->p_offset = offset(b.p_max, r->k.at_tau);
        r->q_offset1 = offset(b.q_max, r->k.at_one);
        r->q_max = b.q_max, r->p_max = b.p_max, r->inverse = 1.0f / o.temperature;
        r->one_over_zq = 1.0f / b.zq, r->one_over_zp = 1.0f / b.zp;
        float rounded = fmaf(b.q_max, r->k.at_tau, -r->q_offset) - fmaf(b.p_max, r->k.at_tau, -r->p_offset);
        r->shift = LN2 * (log2f(b.zq / b.zp) - rounded);  // the offsets are rounded, and both z with them
        out.entropy = LN2 * (log2f(b.zp) - b.entropy / b.zp);
        out.confidence = 1.0f / b.t1;
        out.hard = LN2 * (log_z - fmaf(row.at_top, r->k.at_one, -r->offset));
        bool confident = r->top == r->label && out.confidence >= o.gate_confidence;
        out.gate = row_gate * (confident ? o.gate_factor : 1.0f);
    }
    r->mix = mixture_of(o.soft, mix);
    const PolicyTerm term = policy_term(policy, o.clip_ratio, out.ce);
    out.policy = term.value, out.clipped = term.clipped;
    const float one = policy ? 1.0f / o.temperature : 1.0f;
    r->ce = o.scale * o.w_ce * term.slope * one, r->hard = o.scale * out.gate * o.w_hard * one;
    r->soft = o.scale * out.gate * o.w_soft * o.temperature * r->mix.factor;
    r->weight_z = (r->ce + r->hard) / z, r->weight_1 = r->weight_z * share;
    return out;
}

/* Finds the indices of the block's peaks and the logits there. They are read again from memory, where L2 has them. */
template <int W> static __device__ void place_peaks(RowPart *part, const Rows<W> &rows, int label, bool teacher) {
    Group<W> at_student = rows.student[part->student.at], at_teacher = {}, student = {};
    if (teacher) at_teacher = rows.teacher[part->teacher.at], student = rows.student[part->teacher.at];
    int s = 0, t = 0;
#pragma unroll
    for (int i = W - 1; i >= 0; i--) {  // backwards, so that the first of equals remains
        if (to_float(at_student.x[i]) == part->student.largest) s = i;
        if (to_float(at_teacher.x[i]) == part->teacher.largest) t = i;
    }
    part->at_label = to_float(((const floatX *)rows.student)[label]);
    part->at_top = 0;
#pragma unroll
    for (int i = 0; i < W; i++)
        if (i == t) part->at_top = to_float(student.x[i]);
    part->student.at = part->student.at * W + s;
    part->teacher.at = part->teacher.at * W + t;
}

/* Combines the results of the row's blocks, in their order, relative to the largest of their maxima. */
template <int KIND, int POWER> static __device__ RowPart combine_parts(const RowPart *part, int blocks, Scales k) {
    RowPart row = part[0];
    for (int b = 1; b < blocks; b++) {
        RowPart other = part[b];
        float q_max = fmaxf(row.sums.q_max, other.sums.q_max), p_max = fmaxf(row.sums.p_max, other.sums.p_max);
        float rest_max = fmaxf(row.sums.rest_max, other.sums.rest_max);
        if (KIND != NO_TEACHER) {
            rebase<POWER>(&row.sums, q_max, p_max, k);
            rebase<POWER>(&other.sums, q_max, p_max, k);
        }
        rest_rebase(&row.sums, rest_max, k);
        rest_rebase(&other.sums, rest_max, k);
        row.sums.z1 += other.sums.z1, row.sums.zq += other.sums.zq;
        row.sums.t1 += other.sums.t1, row.sums.zp += other.sums.zp;
        row.sums.entropy += other.sums.entropy, row.sums.rest += other.sums.rest;
        if (better(row.teacher, other.teacher).at != row.teacher.at) row.at_top = other.at_top;
        row.student = better(row.student, other.student);
        row.teacher = better(row.teacher, other.teacher);
    }
    return row;
}

/* A barrier of all threads of the row's blocks. */
static __device__ __forceinline__ void row_barrier(int blocks) {
    if (blocks == 1) {
        __syncthreads();
    } else {
        cluster_arrive();
        cluster_wait();
    }
}

/* Computes sums, peaks and logits of the block's share and stores them in place `rank` of every block of the row. */
template <int KIND, int POWER, int W>
static __device__ __forceinline__ void share_rows(RowSpace *space, const Rows<W> &rows, const RowState &r, int rank,
                                                  int blocks) {
    const bool teacher = KIND != NO_TEACHER;
    const float lowest = -1e30f;  // finite, so that the first rebase multiplies zeros by zero
    RowPart part = {{lowest, lowest, lowest, 0, 0, 0, 0, 0, 0}, {-INFINITY, 0}, {-INFINITY, 0}, 0, 0};
    read_rows<KIND, POWER>(&part.sums, &part.student, &part.teacher, rows, r.k);
    float q_max = part.sums.q_max, rest_max = part.sums.rest_max;
    block_peaks(&part.student, &part.teacher, &q_max, &rest_max, &space->peaks);
    if (teacher) rebase<POWER>(&part.sums, q_max, fmaxf(part.teacher.largest, lowest), r.k);
    rest_rebase(&part.sums, rest_max, r.k);
    RowSums &sums = part.sums;
    float total[6] = {sums.z1, sums.zq, sums.t1, sums.zp, sums.entropy, sums.rest};
    block_sums(total, space->sums);
    if (blocks > 1) cluster_wait();  // all blocks have begun
    if ((int)threadIdx.x < blocks) {
        place_peaks(&part, rows, r.label, teacher);
        sums.z1 = total[0], sums.zq = total[1], sums.t1 = total[2], sums.zp = total[3];
        sums.entropy = total[4], sums.rest = total[5];
        *cluster_address(&space->part[rank], threadIdx.x) = part;
    }
    row_barrier(blocks);
}

/* Adds up the two sums over all threads of the row's blocks, for all of them. */
static __device__ __forceinline__ void share_soft(RowSpace *space, float (&sums)[2], int rank, int blocks) {
    block_sums(sums, space->soft);
    if ((int)threadIdx.x < blocks) {
        float *there = cluster_address(&space->soft_part[rank][0], threadIdx.x);
        there[0] = sums[0], there[1] = sums[1];
    }
    row_barrier(blocks);
    sums[0] = sums[1] = 0;
    for (int b = 0; b < blocks; b++) sums[0] += space->soft_part[b][0], sums[1] += space->soft_part[b][1];
}

/* Grid: `blocks` neighbouring blocks for each row, a cluster if they are more than one. */
template <int KIND, int POWER, int W>
static __global__ void __launch_bounds__(ROW_THREADS, 2)
    distill_rows_kernel(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                        RowStats *stats, ObjectiveRow o, int Vs, int Vt, int blocks, int kept, bool gradient) {
    DYNAMIC_SHARED(RowSpace, space);
    const bool with_teacher = KIND != NO_TEACHER;
    const int rank = blockIdx.x % blocks, threads = blockDim.x;
    const size_t row = blockIdx.x / blocks;
    if (blocks > 1) cluster_arrive();
    Group<W> *kept_groups = (Group<W> *)(void *)(space + 1);
    Rows<W> rows = {(Group<W> *)(void *)(student + row * Vs),
                    nullptr,
                    kept_groups,
                    kept_groups + kept * threads,
                    kept,
                    rank * threads + (int)threadIdx.x,
                    blocks * threads,
                    0,
                    Vs / W};
    if (with_teacher)
        rows.teacher = (const Group<W> *)(const void *)(teacher + row * Vt), rows.both = min(Vs, Vt) / W;
    RowState r = {};
    r.k = {LOG2E / o.temperature, o.policy ? LOG2E / o.temperature : LOG2E};
    r.label = labels[row];
    share_rows<KIND, POWER>(space, rows, r, rank, blocks);

    if (threadIdx.x == 0) {
        RowPart whole = combine_parts<KIND, POWER>(space->part, blocks, r.k);
        space->stats = finish_sums<KIND>(&r, whole, o, row_gate ? row_gate[row] : 1.0f,
                                         o.row_mix ? o.row_mix[row] : o.mix, o.policy ? o.policy + row : nullptr);
        space->state = r;
    }
    __syncthreads();
    r = space->state;
    const bool soft_gradient = gradient && r.soft != 0.0f;
    float sums[2] = {0, 0};
    if (with_teacher && !(KIND == SOFT_KL && soft_gradient)) {  // KL(p||q) is summed while its gradient is written
        soft_sums<KIND>(sums, rows, r);
        share_soft(space, sums, rank, blocks);
        r.centre = sums[1];
    }
    if (!soft_gradient) rows.both = 0;  // no soft term: softmax(s) alone
    if (gradient) write_gradient<KIND, POWER>(rows, r, &sums[0]);
    if (KIND == SOFT_KL && soft_gradient) share_soft(space, sums, rank, blocks);
    if (threadIdx.x == 0 && rank == 0) {
        stats[row] = space->stats;
        stats[row].soft = sums[0];
    }
}

/* ---- launches ---- */

/* How a row is divided: blocks, their threads, the turns whose groups stay in shared memory, and its bytes. */
struct RowPlan {
    int blocks, threads, kept;
    size_t shared;
};

/* Divides a row's groups among p->blocks blocks of at most `threads` threads. */
static void row_divide(RowPlan *p, int groups, size_t bytes, int threads) {
    size_t share = cuda_div_up((size_t)groups, (size_t)p->blocks);
    p->threads = min(threads, (int)cuda_div_up(share, 32) * 32);
    p->kept = (int)cuda_div_up(share, (size_t)p->threads);
    p->shared = (size_t)(p->kept * p->threads) * bytes + sizeof(RowSpace);
}

/* Chooses the division of a row with so many groups, each `bytes` large together with the teacher's. A multiprocessor
 * runs three blocks of 256 threads where a third of its shared memory holds a block's share, else two of 384 that
 * keep what fits. It has 1 KB more than a block may ask for, and takes 1 KB for itself for each block. */
static RowPlan row_plan(int groups, size_t bytes, int most_blocks) {
    int most;
    CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda_current->gpu));
    const size_t third = ((size_t)most + 1024) / 3 - 1024, half = ((size_t)most + 1024) / 2 - 1024;
    RowPlan p = {1, 0, 0, 0};
    row_divide(&p, groups, bytes, ROW_THREADS_3);
    while (p.shared > third && p.blocks * 2 <= most_blocks) {
        p.blocks *= 2;
        row_divide(&p, groups, bytes, ROW_THREADS_3);
    }
    if (p.shared > third) {
        row_divide(&p, groups, bytes, ROW_THREADS);
        p.kept = min(p.kept, (int)((half - sizeof(RowSpace)) / ((size_t)p.threads * bytes)));
        p.shared = (size_t)(p.kept * p.threads) * bytes + sizeof(RowSpace);
    }
    return p;
}

template <int KIND, int POWER, int W>
static void launch_rows(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                        RowStats *stats, const ObjectiveRow &o, size_t rows, int Vs, int Vt, bool gradient) {
    auto kernel = distill_rows_kernel<KIND, POWER, W>;
    RowPlan p = {1, ROW_THREADS, 0, sizeof(RowSpace)};
    if (W > 1)
        p = row_plan(Vs / W, (KIND == NO_TEACHER ? 1 : 2) * sizeof(Group<W>),
                     cuda_has_clusters(kernel) ? MAX_CLUSTER : 1);
    cuda_allow_shared(kernel, p.shared);
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
    unsigned grid = (unsigned)(rows * (size_t)p.blocks), threads = (unsigned)p.threads, blocks = (unsigned)p.blocks;
    if (p.blocks == 1)
        LAUNCH(kernel, grid, threads, p.shared, student, teacher, labels, row_gate, stats, o, Vs, Vt, p.blocks,
               p.kept, gradient);
    else
        LAUNCH_CLUSTER(blocks, kernel, grid, threads, p.shared, student, teacher, labels, row_gate, stats, o, Vs, Vt,
                       p.blocks, p.kept, gradient);
}

template <int KIND>
static void choose_rows(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                        RowStats *stats, const ObjectiveRow &o, size_t rows, int Vs, int Vt, bool gradient) {
    bool whole = vectors_fit((size_t)Vs, VECTOR, student) && (!teacher || vectors_fit((size_t)Vt, VECTOR, teacher));
    const int two = KIND == NO_TEACHER ? 1 : 2, other = KIND == NO_TEACHER ? 1 : 0;  // without a teacher no tau
    auto launch = !whole                              ? launch_rows<KIND, other, 1>
                  : o.temperature == 1.0f || o.policy ? launch_rows<KIND, 1, VECTOR>
                  : o.temperature == 2.0f             ? launch_rows<KIND, two, VECTOR>
                                                      : launch_rows<KIND, other, VECTOR>;
    launch(student, teacher, labels, row_gate, stats, o, rows, Vs, Vt, gradient);
}

static void cuda_distill_rows(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                              RowStats *stats, ObjectiveRow o, size_t rows, int Vs, int Vt, bool gradient) {
    if (!rows) return;
    auto choose = !teacher                    ? choose_rows<NO_TEACHER>
                  : o.soft == SOFT_KL         ? choose_rows<SOFT_KL>
                  : o.soft == SOFT_REVERSE_KL ? choose_rows<SOFT_REVERSE_KL>
                                              : choose_rows<SOFT_JSD>;
    choose(student, teacher, labels, row_gate, stats, o, rows, Vs, Vt, gradient);
}

#endif
