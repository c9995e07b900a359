/* The row kernel of the distillation objective on a GPU for a teacher of which few entries are known (kernels/sparse.h):
 * loss and gradient of a row from the student's logits.
 *
 * A block computes a row, in three passes: maxima, sums, gradient. The floor is the bytes, rows 2 V_s times the element size
 * with a gradient: a row that fits into SPARSE_KEPT bytes stays in shared memory between the passes, a longer one is read
 * again, mostly from L2. After the first pass the listed entries are taken out of the row (their logits become -infinity), so
 * that the sum over the others is a sum and not a difference, which would have lost its digits. */
#ifndef KERNELS_CUDA_DISTILL_SPARSE_CUH
#define KERNELS_CUDA_DISTILL_SPARSE_CUH

#include "../sparse.h"
#include "distill.cuh"

enum { SPARSE_THREADS = 256, SPARSE_BLOCKS = 5, SPARSE_KEPT = 72 << 10 };

/* What is known of a row before its gradient. */
struct SparseState {
    RowState r;  // what is about p is not used
    float q_others, p_others;
};

/* The terms of listed entry k of a row, or, for k = K, of all others together. */
template <int KIND>
static __device__ __forceinline__ SoftTerm sparse_term(const SparseState &s, const float *chosen, const float *p, int k,
                                                       int K) {
    if (k == K) {
        float ratio = logf(fmaxf(s.q_others, 1e-38f)) - logf(fmaxf(s.p_others, 1e-38f));
        return event_term<KIND>(s.r, s.p_others, s.q_others, ratio);
    }
    float q = __fmul_rn(exp2_approx(fmaf(chosen[k], s.r.k.at_tau, -s.r.q_offset)), s.r.one_over_zq);
    return event_term<KIND>(s.r, p[k], q, fmaf(chosen[k] - s.r.q_max, s.r.inverse, -s.r.shift) - logf(p[k]));
}

/* What multiplies q of an entry in the gradient of D, or for KL of a listed entry q times that. */
template <int KIND> static __device__ __forceinline__ float sparse_factor(const SparseState &s, const SoftTerm &x) {
    return KIND == SOFT_KL ? x.difference : x.back - s.r.centre;
}

/* The largest logits of the row and of its first V entries; copies the row to shared memory where it is kept there. */
template <int W>
static __device__ __forceinline__ void sparse_peaks(Peak *all, Peak *first, floatX *row, const floatX *student, int Vs,
                                                    int V, PeakSpace *space) {
    for (int i = (int)threadIdx.x * W; i < Vs; i += (int)blockDim.x * W) {
        Floats<W> x = load<W>(student + i);
        if (row != student) store<W>(row + i, x);
#pragma unroll
        for (int k = 0; k < W; k++) {
            peak_add(all, x.x[k], i + k);
            if (i + k < V) peak_add(first, x.x[k], i + k);
        }
    }
    float unused[2] = {-INFINITY, -INFINITY};
    block_peaks(all, first, &unused[0], &unused[1], space);
}

/* Sums over the row at tau = 1 (*z) and over its first V entries at tau; without the listed ones, which are -infinity. */
template <int W>
static __device__ __forceinline__ void sparse_sums(float *z, float *others, const floatX *row, const RowState &r, int Vs,
                                                   int V) {
    for (int i = (int)threadIdx.x * W; i < Vs; i += (int)blockDim.x * W) {
        Floats<W> x = load<W>(row + i);
#pragma unroll
        for (int k = 0; k < W; k++) {
            *z += exp2_approx(fmaf(x.x[k], r.k.at_one, -r.offset));
            if (i + k < V) *others += exp2_approx(fmaf(x.x[k], r.k.at_tau, -r.q_offset));
        }
    }
}

/* The gradient as if nothing were listed, with the one-hot terms. to_q: what multiplies an exponential at tau. */
template <int W>
static __device__ __forceinline__ void sparse_gradient(floatX *student, const floatX *row, const RowState &r, float to_q,
                                                       int Vs, int V) {
    for (int i = (int)threadIdx.x * W; i < Vs; i += (int)blockDim.x * W) {
        Floats<W> x = load<W>(row + i), g;
#pragma unroll
        for (int k = 0; k < W; k++) {
            g.x[k] = r.weight_z * exp2_approx(fmaf(x.x[k], r.k.at_one, -r.offset));
            if (i + k < V) g.x[k] += to_q * exp2_approx(fmaf(x.x[k], r.k.at_tau, -r.q_offset));
            g.x[k] -= (i + k == r.label ? r.ce : 0.0f) + (i + k == r.top ? r.hard : 0.0f);
        }
        store<W>(student + i, g);
    }
}

template <int KIND, int W>
static __global__ void __launch_bounds__(SPARSE_THREADS, SPARSE_BLOCKS)
    distill_rows_sparse_kernel(floatX *logits, SparseTeacher t, const int *labels, const float *row_gate, RowStats *stats,
                               ObjectiveRow o, int Vs, bool kept, bool gradient) {
    DYNAMIC_SHARED(floatX, kept_row);
    __shared__ float chosen[SPARSE_MOST];
    __shared__ PeakSpace peaks;
    const size_t at = blockIdx.x;
    const int K = t.K, first_thread = (int)threadIdx.x, step = (int)blockDim.x;
    const int *ids = t.ids + at * K;
    const float *p = t.p + at * K;
    const SparseRow known = t.rows[at];
    floatX *student = logits + at * Vs, *row = kept ? kept_row : student;
    SparseState s = {};
    RowState &r = s.r;
    Peak all = {-INFINITY, 0}, first = {-INFINITY, 0};
    sparse_peaks<W>(&all, &first, row, student, Vs, t.V, &peaks);
    r.k = {LOG2E / o.temperature, LOG2E};
    r.inverse = 1.0f / o.temperature;
    r.mix = mixture_of(o.soft, o.mix);
    r.q_max = first.largest;
    r.q_offset = offset(first.largest, r.k.at_tau), r.offset = offset(all.largest, r.k.at_one);
    r.label = labels[at], r.top = known.top;
    const float at_label = to_float(row[r.label]), at_top = to_float(row[r.top]);

    for (int k = first_thread; k < K; k += step) chosen[k] = ids[k] >= 0 ? to_float(row[ids[k]]) : 0.0f;
    __syncthreads();  // at_label and at_top have been read
    for (int k = first_thread; k < K; k += step)
        if (ids[k] >= 0) row[ids[k]] = from_float<floatX>(-INFINITY);
    __syncthreads();
    float z = 0, others = 0, listed = 0;
    sparse_sums<W>(&z, &others, row, r, Vs, t.V);
    for (int k = first_thread; k < K; k += step) {
        if (ids[k] < 0) continue;
        z += exp2_approx(fmaf(chosen[k], r.k.at_one, -r.offset));
        listed += exp2_approx(fmaf(chosen[k], r.k.at_tau, -r.q_offset));
    }
    z = block_sum(z), others = block_sum(others), listed = block_sum(listed);
    r.one_over_zq = 1.0f / (others + listed);
    s.q_others = others * r.one_over_zq, s.p_others = known.rest;
    r.shift = LN2 * (log2f(others + listed) - fmaf(r.q_max, r.k.at_tau, -r.q_offset));

    float sums[2] = {0, 0};
    for (int k = first_thread; k <= K; k += step) {
        if (k < K && ids[k] < 0) continue;
        SoftTerm x = sparse_term<KIND>(s, chosen, p, k, K);
        sums[0] += x.share, sums[1] += x.q * x.back;
    }
    const float divergence = block_sum(sums[0]);
    r.centre = block_sum(sums[1]);

    const float log_z = log2f(z);
    RowStats out = {0, divergence, 0, known.entropy, known.confidence, 0, 0, 0, all.at, known.top};
    out.ce = out.policy = LN2 * (log_z - fmaf(at_label, r.k.at_one, -r.offset));
    out.hard = LN2 * (log_z - fmaf(at_top, r.k.at_one, -r.offset));
    const bool confident = r.top == r.label && known.confidence >= o.gate_confidence;
    out.gate = (row_gate ? row_gate[at] : 1.0f) * (confident ? o.gate_factor : 1.0f);
    if (first_thread == 0) stats[at] = out;
    r.ce = o.scale * o.w_ce, r.hard = o.scale * out.gate * o.w_hard, r.weight_z = (r.ce + r.hard) / z;
    r.soft = o.scale * out.gate * o.w_soft * o.temperature * r.mix.factor;

    if (!gradient) {
        for (int k = first_thread; k < K && !kept; k += step)
            if (ids[k] >= 0) student[ids[k]] = from_float<floatX>(chosen[k]);
        return;
    }
    float factor = sparse_factor<KIND>(s, sparse_term<KIND>(s, chosen, p, K, K));
    if (KIND == SOFT_KL) factor = s.q_others > 1e-38f ? factor / s.q_others : 0.0f;
    sparse_gradient<W>(student, row, r, r.soft * factor * r.one_over_zq, Vs, t.V);
    __syncthreads();  // what follows replaces some of it
    for (int k = first_thread; k < K; k += step) {
        if (ids[k] < 0) continue;
        SoftTerm x = sparse_term<KIND>(s, chosen, p, k, K);
        float g = r.weight_z * exp2_approx(fmaf(chosen[k], r.k.at_one, -r.offset));
        g += r.soft * sparse_factor<KIND>(s, x) * (KIND == SOFT_KL ? 1.0f : x.q);
        g -= (ids[k] == r.label ? r.ce : 0.0f) + (ids[k] == r.top ? r.hard : 0.0f);
        student[ids[k]] = from_float<floatX>(g);
    }
}

template <int KIND, int W>
static void launch_rows_sparse(floatX *student, const SparseTeacher &t, const int *labels, const float *row_gate,
                               RowStats *stats, const ObjectiveRow &o, size_t rows, int Vs, bool gradient) {
    auto kernel = distill_rows_sparse_kernel<KIND, W>;
    const size_t bytes = (size_t)Vs * sizeof(floatX);
    const bool kept = bytes <= SPARSE_KEPT;
    if (kept) cuda_allow_shared(kernel, bytes);
    LAUNCH(kernel, (unsigned)rows, SPARSE_THREADS, kept ? bytes : 0, student, t, labels, row_gate, stats, o, Vs, kept,
           gradient);
}

template <int KIND>
static void choose_rows_sparse(floatX *student, const SparseTeacher &t, const int *labels, const float *row_gate,
                               RowStats *stats, const ObjectiveRow &o, size_t rows, int Vs, bool gradient) {
    (vectors_fit((size_t)Vs, VECTOR, student) ? launch_rows_sparse<KIND, VECTOR> : launch_rows_sparse<KIND, 1>)(
        student, t, labels, row_gate, stats, o, rows, Vs, gradient);
}

static void cuda_distill_rows_sparse(floatX *student, SparseTeacher t, const int *labels, const float *row_gate,
                                     RowStats *stats, ObjectiveRow o, size_t rows, int Vs, bool gradient) {
    if (!rows) return;
    auto choose = o.soft == SOFT_KL           ? choose_rows_sparse<SOFT_KL>
                  : o.soft == SOFT_REVERSE_KL ? choose_rows_sparse<SOFT_REVERSE_KL>
                                              : choose_rows_sparse<SOFT_JSD>;
    choose(student, t, labels, row_gate, stats, o, rows, Vs, gradient);
}

#endif
