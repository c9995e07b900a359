/* The row kernel of the distillation objective, and the cosine of the embedding term, on a GPU.
 *
 * Symbols, formulas and gradients are those at the top of loss.cuh; q and p are over the first V = min(V_s, V_t)
 * entries, Q = softmax(s) is over all V_s. Exponents count in powers of two: with k = log2(e)/tau,
 * log2 q_i = k s_i - k max - log2 Z, so that an exponential is one multiply-add and one instruction of the special
 * unit, of which there are four times too few: at tau = 2 (and 1) the exponentials at tau = 1 are the squares of
 * (the same as) those at tau.
 *
 * distill_rows: one block a row. What is fused: both maxima with their places, all sums of both softmaxes at both
 * temperatures (running maxima, so that one pass does it), the divergence, and the gradient, which replaces the
 * student's logits. The first pass leaves as much of both rows in shared memory as two blocks a multiprocessor have
 * room for; the gradient pass (and JSD's, whose mixture needs the normalised probabilities first) reads that, and the
 * rest again through the L2 cache, which the rows in flight fit into. Bytes, the floor: rows (2 V_s + V_t) times the
 * element size with a gradient, rows (V_s + V_t) without; exponentials per entry: 4 at tau 1 and 2, else 7, plus 4
 * for JSD. */
#ifndef KERNELS_CUDA_OBJECTIVE_CUH
#define KERNELS_CUDA_OBJECTIVE_CUH

#include "cuda_common.cuh"
#include "ops.h"

enum {
    ROW_THREADS = 384,  // two blocks a multiprocessor leave 80 registers a thread
    ROW_AHEAD = 2,      // groups of each row a thread has in flight
    REST_AHEAD = 4,     // the same, where only the student's row is read
    ROW_WARPS = ROW_THREADS / 32,
    ROW_STATIC = 1024,  // at least the bytes of the kernel's own shared arrays
    NO_TEACHER = -1     // the kind of a row without a soft term, beside those of SoftLoss
};

static const float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;

static __device__ __forceinline__ float fast_exp2(float x) {  // relative error 2^-22; below 2^-126: 0
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

static __device__ __forceinline__ float fast_log2(float x) {  // absolute error 2^-22
#ifdef __CUDA_ARCH__
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return log2f(x);
#endif
}

/* W neighbouring entries of a row, loaded and stored at once. */
template <int W> struct alignas(W * sizeof(floatX)) Group { floatX x[W]; };

/* A block's two rows, in groups. Thread i owns the groups i, i + blockDim, ...: it alone touches them, in every pass
 * and in shared memory, so the passes need no barrier for their data. */
template <int W> struct Rows {
    Group<W> *student;
    const Group<W> *teacher;
    Group<W> *near_student, *near_teacher;  // shared memory: the first `kept` groups of each
    int kept, both, all;                    // groups kept; of the first V entries; of all V_s

    __device__ Group<W> student_at(int g) const { return g < kept ? near_student[g] : student[g]; }
    __device__ Group<W> teacher_at(int g) const { return g < kept ? near_teacher[g] : teacher[g]; }
    __device__ int first_after_both() const {  // the calling thread's first group from `both` on
        int i = threadIdx.x, n = blockDim.x;
        return i < both ? i + (both - i + n - 1) / n * n : i;
    }
};

/* The largest entry and its group, the first that has it; NaN entries are passed over. */
struct Peak {
    float largest;
    int group;
};

static __device__ __forceinline__ Peak better(Peak a, Peak b) {
    return b.largest > a.largest || (b.largest == a.largest && b.group < a.group) ? b : a;
}

template <int W> static __device__ __forceinline__ void peak_add(Peak *p, const Group<W> &x, int group) {
    float largest = to_float(x.x[0]);
#pragma unroll
    for (int i = 1; i < W; i++) largest = fmaxf(largest, to_float(x.x[i]));
    if (largest > p->largest) *p = {largest, group};
}

/* Sums of a row's exponentials relative to the maxima so far: e_q = 2^(k (s - q_max)), e_p = 2^(k (t - p_max)), and
 * z1, t1 the same at tau = 1; entropy = sum of e_p a_p with a the exponents, apart = sum of e_p (a_p - a_q) for
 * KL(p||q), of e_q (a_q - a_p) for KL(q||p). The rest of the student's row, beyond V, has its own maximum. */
struct RowSums {
    float q_max, p_max, rest_max;
    float z1, zq, t1, zp, entropy, apart, rest;
};

struct Scales {
    float at_tau, at_one;  // log2(e) / tau, log2(e)
};

/* The offset of a maximum's exponents. Rounded, and everywhere to the same number: an exponent computed with it, one
 * multiply-add, may be off from the true one, but by the same amount for all entries of a row, which cancels. */
static __device__ __forceinline__ float offset(float largest, float k) { return __fmul_rn(largest, k); }

/* e^1 from e at tau, or from the exponent at tau = 1 when tau is neither 1 nor 2 */
template <int POWER> static __device__ __forceinline__ float at_one(float at_tau, float exponent) {
    return POWER == 1 ? at_tau : POWER == 2 ? at_tau * at_tau : fast_exp2(exponent);
}

/* The same sums relative to larger maxima. */
template <int KIND, int POWER>
static __device__ __forceinline__ void rebase(RowSums *r, float q_max, float p_max, Scales k) {
    float dq = offset(r->q_max, k.at_tau) - offset(q_max, k.at_tau), fq = fast_exp2(dq);  // <= 0, <= 1
    float dp = offset(r->p_max, k.at_tau) - offset(p_max, k.at_tau), fp = fast_exp2(dp);
    if (KIND == SOFT_KL) r->apart = fp * (r->apart + (dp - dq) * r->zp);
    if (KIND == SOFT_REVERSE_KL) r->apart = fq * (r->apart + (dq - dp) * r->zq);
    r->entropy = fp * (r->entropy + dp * r->zp);
    r->zq *= fq;
    r->zp *= fp;
    r->z1 *= at_one<POWER>(fq, offset(r->q_max, k.at_one) - offset(q_max, k.at_one));
    r->t1 *= at_one<POWER>(fp, offset(r->p_max, k.at_one) - offset(p_max, k.at_one));
    r->q_max = q_max;
    r->p_max = p_max;
}

template <int KIND, int POWER, int W>
static __device__ __forceinline__ void sums_add(RowSums *r, const Group<W> &s, const Group<W> &t, Scales k) {
    float q_offset = offset(r->q_max, k.at_tau), p_offset = offset(r->p_max, k.at_tau);
    float q_offset1 = offset(r->q_max, k.at_one), p_offset1 = offset(r->p_max, k.at_one);
#pragma unroll
    for (int i = 0; i < W; i++) {
        float x = to_float(s.x[i]), y = to_float(t.x[i]);
        float aq = fmaf(x, k.at_tau, -q_offset), ap = fmaf(y, k.at_tau, -p_offset);
        float eq = fast_exp2(aq), ep = fast_exp2(ap);
        r->z1 += at_one<POWER>(eq, fmaf(x, k.at_one, -q_offset1));
        r->t1 += at_one<POWER>(ep, fmaf(y, k.at_one, -p_offset1));
        r->zq += eq;
        r->zp += ep;
        r->entropy += ep * ap;
        if (KIND == SOFT_KL) r->apart += ep * (ap - aq);
        if (KIND == SOFT_REVERSE_KL) r->apart += eq * (aq - ap);
    }
}

/* The calling thread's part of both rows, as far as both go. */
template <int KIND, int POWER, int W>
static __device__ void read_both(RowSums *sums, Peak *student, Peak *teacher, const Rows<W> &rows, Scales k) {
    int threads = blockDim.x;
    for (int first = threadIdx.x; first < rows.both; first += ROW_AHEAD * threads) {
        Group<W> s[ROW_AHEAD], t[ROW_AHEAD];
#pragma unroll
        for (int u = 0; u < ROW_AHEAD; u++) {
            int g = min(first + u * threads, rows.both - 1);  // read for nothing at the end of the row
            s[u] = rows.student[g];
            t[u] = rows.teacher[g];
        }
#pragma unroll
        for (int u = 0; u < ROW_AHEAD; u++) {
            int g = first + u * threads;
            if (g >= rows.both) break;
            peak_add(student, s[u], g);
            peak_add(teacher, t[u], g);
            if (g < rows.kept) rows.near_student[g] = s[u], rows.near_teacher[g] = t[u];
        }
        if (student->largest > sums->q_max || teacher->largest > sums->p_max)
            rebase<KIND, POWER>(sums, fmaxf(student->largest, sums->q_max), fmaxf(teacher->largest, sums->p_max), k);
#pragma unroll
        for (int u = 0; u < ROW_AHEAD; u++)
            if (first + u * threads < rows.both) sums_add<KIND, POWER>(sums, s[u], t[u], k);
    }
}

/* The calling thread's part of what only the student has (all of the row when there is no teacher). */
template <int W> static __device__ void read_rest(RowSums *sums, Peak *student, const Rows<W> &rows, Scales k) {
    int threads = blockDim.x;
    for (int first = rows.first_after_both(); first < rows.all; first += REST_AHEAD * threads) {
        Group<W> s[REST_AHEAD];
        Peak here = {-INFINITY, first};
#pragma unroll
        for (int u = 0; u < REST_AHEAD; u++) s[u] = rows.student[min(first + u * threads, rows.all - 1)];
#pragma unroll
        for (int u = 0; u < REST_AHEAD; u++) {
            int g = first + u * threads;
            if (g >= rows.all) break;
            peak_add(&here, s[u], g);
            if (g < rows.kept) rows.near_student[g] = s[u];
        }
        *student = better(*student, here);
        if (here.largest > sums->rest_max) {
            sums->rest *= fast_exp2(offset(sums->rest_max, k.at_one) - offset(here.largest, k.at_one));
            sums->rest_max = here.largest;
        }
        float rest_offset = offset(sums->rest_max, k.at_one);
#pragma unroll
        for (int u = 0; u < REST_AHEAD; u++) {
            if (first + u * threads >= rows.all) break;
#pragma unroll
            for (int i = 0; i < W; i++) sums->rest += fast_exp2(fmaf(to_float(s[u].x[i]), k.at_one, -rest_offset));
        }
    }
}

/* ---- reductions over a block, in an order that depends on its size only ---- */

template <int N> static __device__ void block_sums(float (&x)[N], float (*space)[ROW_WARPS]) {
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = warp_sum(x[i]);
        if (threadIdx.x % 32 == 0) space[i][warp] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = space[i][0];
        for (int w = 1; w < warps; w++) x[i] += space[i][w];
    }
}

static __device__ __forceinline__ Peak warp_peak(Peak p) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) {
        Peak other = {__shfl_xor_sync(ALL_LANES, p.largest, distance), __shfl_xor_sync(ALL_LANES, p.group, distance)};
        p = better(p, other);
    }
    return p;
}

struct PeakSpace {
    Peak student[ROW_WARPS], teacher[ROW_WARPS];
    float q_max[ROW_WARPS], rest_max[ROW_WARPS];
};

/* Both rows' peaks, and the maxima the sums go by, over the block. */
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

template <int W>
static __device__ int place_of(const floatX *row, Peak p) {  // the first entry of its group that is the largest
    for (int i = 0; i < W; i++)
        if (to_float(row[p.group * W + i]) == p.largest) return p.group * W + i;
    return p.group * W;
}

/* ---- what a row's gradient is made of ---- */

/* With e_q, e_p the exponentials relative to the offsets (maxima times k) at tau, e_1 that at tau = 1:
 * q = e_q / z_q, p = e_p / z_p, and the gradient is weight_1 e_1 + weight_q e_q (...) - weight_p e_p. */
struct RowState {
    Scales k;
    float q_offset, p_offset, q_offset1, offset;   // the last: of the whole row at tau = 1
    float log_zq, log_zp;                          // in bits
    float weight_1, weight_q, weight_p, weight_z;  // the last: of e_1 relative to `offset`, beyond V
    float mix_q, mix_p;                            // (1 - beta) / z_q, beta / z_p
    float centre;    // the mean under q that the gradient of KL(q||p) and JSD subtracts, and the logarithms of both z
    float ce, hard;  // weights of the label and of the teacher's choice, with scale and gate
    int label, top;
};

/* The logarithm of the mixture beta p + (1 - beta) q in bits. Where that is too small, the larger of p and q stands
 * for it: off by little, in what is multiplied by less than 1e-30. */
static __device__ __forceinline__ float log2_mixture(const RowState &r, float eq, float ep, float aq, float ap) {
    float m = r.mix_q * eq + r.mix_p * ep;
    return m > 1e-30f ? fast_log2(m) : fmaxf(aq - r.log_zq, ap - r.log_zp);
}

/* JSD's two sums under the calling thread's part of the rows: of e_p log2(p/m) and e_q log2(q/m). */
template <int W> static __device__ void jsd_sums(float (&sums)[2], const Rows<W> &rows, const RowState &r) {
    for (int g = threadIdx.x; g < rows.both; g += blockDim.x) {
        Group<W> s = rows.student_at(g), t = rows.teacher_at(g);
#pragma unroll
        for (int i = 0; i < W; i++) {
            float aq = fmaf(to_float(s.x[i]), r.k.at_tau, -r.q_offset), eq = fast_exp2(aq);
            float ap = fmaf(to_float(t.x[i]), r.k.at_tau, -r.p_offset), ep = fast_exp2(ap);
            float lm = log2_mixture(r, eq, ep, aq, ap);
            sums[0] += ep * (ap - r.log_zp - lm);
            sums[1] += eq * (aq - r.log_zq - lm);
        }
    }
}

/* Of one entry, but for the label's and the teacher's choice's own. */
template <int KIND, int POWER>
static __device__ __forceinline__ float both_gradient(const RowState &r, float s, float t) {
    float aq = fmaf(s, r.k.at_tau, -r.q_offset), ap = fmaf(t, r.k.at_tau, -r.p_offset);
    float eq = fast_exp2(aq), ep = KIND == SOFT_REVERSE_KL ? 0 : fast_exp2(ap);
    float e1 = at_one<POWER>(eq, fmaf(s, r.k.at_one, -r.q_offset1));
    float soft = KIND == SOFT_KL           ? r.weight_q * eq - r.weight_p * ep
                 : KIND == SOFT_REVERSE_KL ? r.weight_q * eq * (aq - ap - r.centre)
                                           : r.weight_q * eq * (aq - log2_mixture(r, eq, ep, aq, ap) - r.centre);
    return r.weight_1 * e1 + soft;
}

/* The label's and the teacher's choice's share, if they lie in this group; then the group is stored. */
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

template <int KIND, int POWER, int W> static __device__ void write_gradient(const Rows<W> &rows, const RowState &r) {
    int threads = blockDim.x;
    for (int first = threadIdx.x; first < rows.both; first += ROW_AHEAD * threads) {
        Group<W> s[ROW_AHEAD], t[ROW_AHEAD];
#pragma unroll
        for (int u = 0; u < ROW_AHEAD; u++)
            if (u == 0 || first + u * threads < rows.both) {
                s[u] = rows.student_at(first + u * threads);
                t[u] = rows.teacher_at(first + u * threads);
            }
#pragma unroll
        for (int u = 0; u < ROW_AHEAD; u++) {
            if (first + u * threads >= rows.both) break;
            float d[W];
#pragma unroll
            for (int i = 0; i < W; i++)
                d[i] = both_gradient<KIND, POWER>(r, to_float(s[u].x[i]), to_float(t[u].x[i]));
            store_gradient(rows, first + u * threads, d, r);
        }
    }
    for (int g = rows.first_after_both(); g < rows.all; g += threads) {
        Group<W> s = rows.student_at(g);
        float d[W];
#pragma unroll
        for (int i = 0; i < W; i++) d[i] = r.weight_z * fast_exp2(fmaf(to_float(s.x[i]), r.k.at_one, -r.offset));
        store_gradient(rows, g, d, r);
    }
}

/* ---- the kernel ---- */

/* From the sums over the block, all relative to the block's maxima: the statistics, but for JSD's divergence, and
 * what the gradient needs. picked: the student's logits of the label and of the teacher's choice. */
template <int KIND>
static __device__ RowStats finish_sums(RowState *r, const RowSums &b, const float *picked, const ObjectiveRow &o,
                                       float row_gate, int student_top) {
    const bool teacher = KIND != NO_TEACHER;
    RowStats out = {0, 0, 0, 0, 0, 0, student_top, r->top};
    float s_max = teacher ? fmaxf(b.q_max, b.rest_max) : b.rest_max;
    r->offset = offset(s_max, r->k.at_one);
    float share = fast_exp2(offset(b.q_max, r->k.at_one) - r->offset);  // of an exponential relative to q_max
    float z = b.rest * fast_exp2(offset(b.rest_max, r->k.at_one) - r->offset) + (teacher ? b.z1 * share : 0.0f);
    float log_z = log2f(z);
    out.ce = LN_2 * (log_z - fmaf(picked[0], r->k.at_one, -r->offset));
    if (teacher) {
        r->q_offset = offset(b.q_max, r->k.at_tau), r->p_offset = offset(b.p_max, r->k.at_tau);
        r->q_offset1 = offset(b.q_max, r->k.at_one);
        r->log_zq = log2f(b.zq), r->log_zp = log2f(b.zp);
        out.entropy = LN_2 * (r->log_zp - b.entropy / b.zp);
        out.confidence = 1.0f / b.t1;
        if (KIND == SOFT_KL) out.soft = LN_2 * (b.apart / b.zp - r->log_zp + r->log_zq);
        if (KIND == SOFT_REVERSE_KL) {
            r->centre = b.apart / b.zq;
            out.soft = LN_2 * (r->centre - r->log_zq + r->log_zp);
        }
        out.hard = LN_2 * (log_z - fmaf(picked[1], r->k.at_one, -r->offset));
        bool sure = r->top == r->label && out.confidence >= o.sure_confidence;
        out.gate = row_gate * (sure ? o.sure_factor : 1.0f);
    }
    float soft = o.scale * out.gate * o.w_soft * o.temperature;
    if (KIND != SOFT_KL) soft *= LN_2;  // what it multiplies counts in bits
    if (KIND == SOFT_JSD) soft *= 1.0f - o.jsd_beta;
    r->ce = o.scale * o.w_ce, r->hard = o.scale * out.gate * o.w_hard;
    r->weight_z = (r->ce + r->hard) / z, r->weight_1 = r->weight_z * share;
    r->weight_q = soft / b.zq, r->weight_p = soft / b.zp;
    r->mix_q = (1.0f - o.jsd_beta) / b.zq, r->mix_p = o.jsd_beta / b.zp;
    return out;
}

template <int KIND, int POWER, int W>
static __global__ void __launch_bounds__(ROW_THREADS, 2)
    distill_rows_kernel(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                        RowStats *stats, ObjectiveRow o, int Vs, int Vt, int kept, bool gradient) {
    __shared__ PeakSpace peaks;
    __shared__ float space[7][ROW_WARPS], jsd_space[2][ROW_WARPS], picked[2];
    __shared__ int tops[2];
    DYNAMIC_SHARED(Group<W>, near);
    const bool with_teacher = KIND != NO_TEACHER;
    size_t row = blockIdx.x;
    floatX *s = student + row * Vs;
    const floatX *t = with_teacher ? teacher + row * Vt : nullptr;
    Rows<W> rows = {(Group<W> *)s, (const Group<W> *)t, near, near + kept, kept, 0, Vs / W};
    RowState r = {};
    r.k = {LOG2_E / o.temperature, LOG2_E};
    r.label = labels[row];
    const float lowest = -1e30f;  // finite, so that the first rebase multiplies zeros by a zero
    RowSums sums = {lowest, lowest, lowest, 0, 0, 0, 0, 0, 0, 0};
    Peak s_peak = {-INFINITY, 0}, t_peak = {-INFINITY, 0};
    if (with_teacher) {
        rows.both = min(Vs, Vt) / W;
        read_both<KIND, POWER>(&sums, &s_peak, &t_peak, rows, r.k);
    }
    read_rest(&sums, &s_peak, rows, r.k);

    float q_max = sums.q_max, rest_max = sums.rest_max;
    block_peaks(&s_peak, &t_peak, &q_max, &rest_max, &peaks);
    if (with_teacher) rebase<KIND, POWER>(&sums, q_max, fmaxf(t_peak.largest, lowest), r.k);
    sums.rest *= fast_exp2(offset(sums.rest_max, r.k.at_one) - offset(rest_max, r.k.at_one));
    sums.rest_max = rest_max;
    if (threadIdx.x == 0) {
        tops[0] = place_of<W>(s, s_peak);
        tops[1] = with_teacher ? place_of<W>(t, t_peak) : -1;
        picked[0] = to_float(s[r.label]);
        picked[1] = with_teacher ? to_float(s[tops[1]]) : 0.0f;
    }
    float total[7] = {sums.z1, sums.zq, sums.t1, sums.zp, sums.entropy, sums.apart, sums.rest};
    block_sums(total, space);
    sums = {q_max, sums.p_max, rest_max, total[0], total[1], total[2], total[3], total[4], total[5], total[6]};
    r.top = tops[1];
    RowStats out = finish_sums<KIND>(&r, sums, picked, o, row_gate ? row_gate[row] : 1.0f, tops[0]);
    if (KIND == SOFT_JSD) {
        float parts[2] = {0, 0};
        jsd_sums(parts, rows, r);
        block_sums(parts, jsd_space);
        out.soft = LN_2 * (r.mix_p * parts[0] + r.mix_q * parts[1]);
        r.centre = parts[1] / sums.zq + r.log_zq;
    }
    if (threadIdx.x == 0) stats[row] = out;
    if (!gradient) return;
    if (r.weight_q == 0.0f) rows.both = 0;  // no soft term: softmax(s) alone
    write_gradient<KIND, POWER>(rows, r);
}

/* Groups of `bytes_each` that two blocks of a multiprocessor can keep in shared memory; a multiprocessor has 1 KB
 * more than a block may ask for, and takes 1 KB for itself per block. */
static int groups_kept(int all, size_t bytes_each) {
    int most;
    CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda_device->number));
    size_t fit = ((size_t)(most + 1024) / 2 - 1024 - ROW_STATIC) / bytes_each;
    return (size_t)all < fit ? all : (int)fit;
}

template <int KIND, int POWER, int W>
static void launch_rows(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                        RowStats *stats, const ObjectiveRow &o, size_t rows, int Vs, int Vt, bool gradient) {
    int groups = Vs / W, threads = (groups + 31) / 32 * 32;
    if (threads > ROW_THREADS) threads = ROW_THREADS;
    size_t bytes_each = (KIND == NO_TEACHER ? 1 : 2) * sizeof(Group<W>);
    int kept = W > 1 && (gradient || KIND == SOFT_JSD) ? groups_kept(groups, bytes_each) : 0;
    size_t shared = kept * bytes_each;
    auto kernel = distill_rows_kernel<KIND, POWER, W>;
    if (shared > 48 * 1024)
        CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    LAUNCH(kernel, (unsigned)rows, (unsigned)threads, shared, student, teacher, labels, row_gate, stats, o, Vs, Vt,
           kept, gradient);
}

template <int KIND>
static void choose_rows(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                        RowStats *stats, const ObjectiveRow &o, size_t rows, int Vs, int Vt, bool gradient) {
    bool whole = vectors_fit((size_t)Vs, VECTOR, student) && (!teacher || vectors_fit((size_t)Vt, VECTOR, teacher));
    const int two = KIND == NO_TEACHER ? 1 : 2, other = KIND == NO_TEACHER ? 1 : 0;  // without a teacher no tau
    auto launch = !whole                  ? launch_rows<KIND, other, 1>
                  : o.temperature == 1.0f ? launch_rows<KIND, 1, VECTOR>
                  : o.temperature == 2.0f ? launch_rows<KIND, two, VECTOR>
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

/* ---- the band gate ---- */

enum { BAND_THREADS = 1024 };

/* One block: the rows are few (36 bytes each are read and written), and whether the band applies needs all of them.
 */
static __global__ void __launch_bounds__(BAND_THREADS)
    entropy_band_kernel(float *row_gate, const RowStats *stats, size_t rows, float low, float high, int percent) {
    double inside = 0;
    for (size_t i = threadIdx.x; i < rows; i += blockDim.x) {
        float h = stats[i].entropy, gate = h >= low && h <= high ? 1.0f : 0.0f;
        row_gate[i] = gate;
        inside += (double)gate;
    }
    if (block_sum(inside) * 100 >= (double)rows * percent) return;
    for (size_t i = threadIdx.x; i < rows; i += blockDim.x) row_gate[i] = 1.0f;
}

static void cuda_entropy_band(float *row_gate, const RowStats *stats, size_t rows, float low, float high,
                              int percent) {
    if (rows) LAUNCH(entropy_band_kernel, 1, BAND_THREADS, 0, row_gate, stats, rows, low, high, percent);
}

/* ---- cosine ---- */

enum { COSINE_THREADS = 256, COSINE_PART = 8192 };

/* Sums of a*t, a*a and t*t over one part of one picture: parts [B, gridDim.x, 3]. Two kernels, this one and the next,
 * because a picture is too much for one block and the direction needs all of it; the second reads from L2 what the
 * first has read. Bytes: 2 B n element sizes, 3 with a gradient. */
template <int W>
static __global__ void __launch_bounds__(COSINE_THREADS)
    cosine_sums_kernel(float *parts, const floatX *a, const floatX *t, size_t n) {
    __shared__ float space[3][ROW_WARPS];
    const floatX *x = a + blockIdx.y * n, *y = t + blockIdx.y * n;
    size_t begin = (size_t)blockIdx.x * COSINE_PART, end = begin + COSINE_PART < n ? begin + COSINE_PART : n;
    float sums[3] = {0, 0, 0};
    for (size_t i = begin + threadIdx.x * W; i < end; i += blockDim.x * W) {
        Floats<W> u = load<W>(x + i), v = load<W>(y + i);
#pragma unroll
        for (int k = 0; k < W; k++) {
            sums[0] += u.x[k] * v.x[k];
            sums[1] += u.x[k] * u.x[k];
            sums[2] += v.x[k] * v.x[k];
        }
    }
    block_sums(sums, space);
    float *out = parts + 3 * ((size_t)blockIdx.y * gridDim.x + blockIdx.x);
    if (threadIdx.x < 3) out[threadIdx.x] = threadIdx.x == 0 ? sums[0] : threadIdx.x == 1 ? sums[1] : sums[2];
}

/* Adds the parts up (every block of a picture does, to the same bits), then writes its part of the gradient. Where a
 * norm is below 1e-12 the direction has no meaning: the cosine is 0 and so is its gradient. */
template <int W>
static __global__ void __launch_bounds__(COSINE_THREADS)
    cosine_finish_kernel(float *cosine, floatX *da, const float *parts, const floatX *a, const floatX *t, size_t n,
                         int part_count, float scale) {
    double xy = 0, xx = 0, yy = 0;
    for (int i = threadIdx.x % 32; i < part_count; i += 32) {
        const float *p = parts + 3 * ((size_t)blockIdx.y * part_count + i);
        xy += (double)p[0];
        xx += (double)p[1];
        yy += (double)p[2];
    }
    for (int distance = 16; distance; distance /= 2) {
        xy += __shfl_xor_sync(ALL_LANES, xy, distance);
        xx += __shfl_xor_sync(ALL_LANES, xx, distance);
        yy += __shfl_xor_sync(ALL_LANES, yy, distance);
    }
    double norm_x = sqrt(xx), norm_y = sqrt(yy);
    bool defined = !(norm_x < 1e-12 || norm_y < 1e-12);
    double c = defined ? xy / (norm_x * norm_y) : 0.0;
    if (blockIdx.x == 0 && threadIdx.x == 0) cosine[blockIdx.y] = (float)c;
    if (!da) return;
    float from_t = defined ? (float)(-scale / (norm_x * norm_y)) : 0.0f;
    float from_a = defined ? (float)(scale * c / xx) : 0.0f;
    size_t row = blockIdx.y * n, begin = (size_t)blockIdx.x * COSINE_PART;
    size_t end = begin + COSINE_PART < n ? begin + COSINE_PART : n;
    for (size_t i = begin + threadIdx.x * W; i < end; i += blockDim.x * W) {
        Floats<W> u = load<W>(a + row + i), v = load<W>(t + row + i);
#pragma unroll
        for (int k = 0; k < W; k++) v.x[k] = from_t * v.x[k] + from_a * u.x[k];
        store<W>(da + row + i, v);
    }
}

template <int W>
static void launch_cosine(float *cosine, floatX *da, const floatX *a, const floatX *t, int B, size_t n, float scale) {
    unsigned parts = (unsigned)((n + COSINE_PART - 1) / COSINE_PART);
    float *sums = (float *)cuda_scratch((size_t)B * parts * 3 * sizeof(float));
    dim3 all(parts, (unsigned)B), last(da ? parts : 1, (unsigned)B);
    LAUNCH(cosine_sums_kernel<W>, all, COSINE_THREADS, 0, sums, a, t, n);
    LAUNCH(cosine_finish_kernel<W>, last, COSINE_THREADS, 0, cosine, da, sums, a, t, n, (int)parts, scale);
}

static void cuda_cosine(float *cosine, floatX *da, const floatX *a, const floatX *t, int B, size_t n, float scale) {
    if (!B) return;
    (vectors_fit(n, VECTOR, a, t, da) ? launch_cosine<VECTOR> : launch_cosine<1>)(cosine, da, a, t, B, n, scale);
}

#endif
