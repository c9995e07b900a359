/* The row kernel of the distillation objective, from the plainest version to the one that ships
 * (kernels/cuda/distill.cuh). README.md beside this file explains the steps.
 *
 * For every row, with student logits s, teacher logits t (V each) and the label y, at temperature tau:
 *   p = softmax(t / tau), q = softmax(s / tau), Q = softmax(s)
 *   loss = w_ce (-log Q_y) + w_soft tau^2 KL(p||q)
 *   d loss / d s = w_ce (Q - onehot_y) + w_soft tau (q - p), times `scale`, which replaces s.
 * Bytes at least: s and t read, the gradient written: 3 rows V elements. */
#include "learn.cuh"

#include "../../kernels/cuda/distill.cuh"

static const float W_CE = 0.3f, W_SOFT = 0.7f, TAU = 3.0f, SCALE = 0.25f;

/* ---- what all versions compute ---- */

/* Sums of a row's exponentials, relative to the maxima. */
struct Sums {
    float s_max, t_max;
    float z1, zq, zp;  // of exp(s - s_max), exp((s - s_max) / tau), exp((t - t_max) / tau)
    float divergence;  // of exp((t - t_max) / tau) ((t - t_max) - (s - s_max)) / tau
};

static __device__ __forceinline__ void add(Sums &x, float s, float t) {
    float a = s - x.s_max, b = t - x.t_max, ep = expf(b / TAU);
    x.z1 += expf(a);
    x.zq += expf(a / TAU);
    x.zp += ep;
    x.divergence += ep * (b - a) / TAU;
}

static __device__ __forceinline__ float row_loss(const Sums &x, float s_label) {
    float ce = logf(x.z1) - (s_label - x.s_max), kl = x.divergence / x.zp - logf(x.zp) + logf(x.zq);
    return W_CE * ce + W_SOFT * TAU * TAU * kl;
}

static __device__ __forceinline__ float gradient(const Sums &x, float s, float t, bool is_label) {
    float Q = expf(s - x.s_max) / x.z1, q = expf((s - x.s_max) / TAU) / x.zq, p = expf((t - x.t_max) / TAU) / x.zp;
    return SCALE * (W_CE * (Q - (is_label ? 1.0f : 0.0f)) + W_SOFT * TAU * (q - p));
}

/* ---- 1 naive: a thread per row ---- */

static __global__ void naive_kernel(floatX *student, const floatX *teacher, const int *labels, float *loss, int rows,
                                    int V) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    floatX *s = student + (size_t)row * V;
    const floatX *t = teacher + (size_t)row * V;
    Sums x = {-INFINITY, -INFINITY, 0, 0, 0, 0};
    for (int i = 0; i < V; i++) {
        x.s_max = fmaxf(x.s_max, to_float(s[i]));
        x.t_max = fmaxf(x.t_max, to_float(t[i]));
    }
    for (int i = 0; i < V; i++) add(x, to_float(s[i]), to_float(t[i]));
    loss[row] = row_loss(x, to_float(s[labels[row]]));
    for (int i = 0; i < V; i++)
        s[i] = from_float<floatX>(gradient(x, to_float(s[i]), to_float(t[i]), i == labels[row]));
}

/* ---- 2 coalesced: a block per row, neighbours read neighbours ---- */

static __global__ void coalesced_kernel(floatX *student, const floatX *teacher, const int *labels, float *loss,
                                        int V) {
    floatX *s = student + (size_t)blockIdx.x * V;
    const floatX *t = teacher + (size_t)blockIdx.x * V;
    int label = labels[blockIdx.x];
    float s_label = to_float(s[label]);
    Sums x = {-INFINITY, -INFINITY, 0, 0, 0, 0};
    for (int i = threadIdx.x; i < V; i += blockDim.x) {
        x.s_max = fmaxf(x.s_max, to_float(s[i]));
        x.t_max = fmaxf(x.t_max, to_float(t[i]));
    }
    x.s_max = block_max(x.s_max);
    x.t_max = block_max(x.t_max);
    for (int i = threadIdx.x; i < V; i += blockDim.x) add(x, to_float(s[i]), to_float(t[i]));
    x.z1 = block_sum(x.z1), x.zq = block_sum(x.zq), x.zp = block_sum(x.zp), x.divergence = block_sum(x.divergence);
    if (threadIdx.x == 0) loss[blockIdx.x] = row_loss(x, s_label);
    for (int i = threadIdx.x; i < V; i += blockDim.x)
        s[i] = from_float<floatX>(gradient(x, to_float(s[i]), to_float(t[i]), i == label));
}

/* ---- 3 online: maxima and sums in one pass ---- */

/* The same sums relative to larger maxima (Milakov & Gimelshein 2018, "Online normalizer calculation for
 * softmax"). */
static __device__ __forceinline__ void online_rebase(Sums &x, float s_max, float t_max) {
    float ds = x.s_max - s_max, dt = x.t_max - t_max, fp = expf(dt / TAU);  // <= 0, <= 1
    x.divergence = fp * (x.divergence + (dt - ds) / TAU * x.zp);
    x.z1 *= expf(ds), x.zq *= expf(ds / TAU), x.zp *= fp;
    x.s_max = s_max, x.t_max = t_max;
}

static __device__ __forceinline__ void online_add(Sums &x, float s, float t) {
    if (s > x.s_max || t > x.t_max) online_rebase(x, fmaxf(s, x.s_max), fmaxf(t, x.t_max));
    add(x, s, t);
}

/* Every thread's sums become the block's. */
static __device__ __forceinline__ void online_join(Sums &x) {
    online_rebase(x, block_max(x.s_max), block_max(x.t_max));
    x.z1 = block_sum(x.z1), x.zq = block_sum(x.zq), x.zp = block_sum(x.zp), x.divergence = block_sum(x.divergence);
}

static const float LOWEST = -1e30f;  // finite: -inf - -inf would be no number

static __global__ void online_kernel(floatX *student, const floatX *teacher, const int *labels, float *loss, int V) {
    floatX *s = student + (size_t)blockIdx.x * V;
    const floatX *t = teacher + (size_t)blockIdx.x * V;
    int label = labels[blockIdx.x];
    float s_label = to_float(s[label]);
    Sums x = {LOWEST, LOWEST, 0, 0, 0, 0};
    for (int i = threadIdx.x; i < V; i += blockDim.x) online_add(x, to_float(s[i]), to_float(t[i]));
    online_join(x);
    if (threadIdx.x == 0) loss[blockIdx.x] = row_loss(x, s_label);
    for (int i = threadIdx.x; i < V; i += blockDim.x)
        s[i] = from_float<floatX>(gradient(x, to_float(s[i]), to_float(t[i]), i == label));
}

/* ---- 4 vectors: 16 bytes a load ---- */

static __device__ __forceinline__ Packed<floatX> vector_gradient(const Sums &x, const Packed<floatX> &s,
                                                                 const Packed<floatX> &t, int first, int label) {
    Packed<floatX> d;
#pragma unroll
    for (int k = 0; k < VECTOR; k++) d.x[k] = gradient(x, s.x[k], t.x[k], first + k == label);
    return d;
}

static __device__ __forceinline__ void vector_add(Sums &x, const Packed<floatX> &s, const Packed<floatX> &t) {
    float s_max = x.s_max, t_max = x.t_max;
#pragma unroll
    for (int k = 0; k < VECTOR; k++) s_max = fmaxf(s_max, s.x[k]), t_max = fmaxf(t_max, t.x[k]);
    if (s_max > x.s_max || t_max > x.t_max) online_rebase(x, s_max, t_max);
#pragma unroll
    for (int k = 0; k < VECTOR; k++) add(x, s.x[k], t.x[k]);
}

static __global__ void vectors_kernel(floatX *student, const floatX *teacher, const int *labels, float *loss, int V) {
    floatX *s = student + (size_t)blockIdx.x * V;
    const floatX *t = teacher + (size_t)blockIdx.x * V;
    int label = labels[blockIdx.x], step = blockDim.x * VECTOR;
    float s_label = to_float(s[label]);
    Sums x = {LOWEST, LOWEST, 0, 0, 0, 0};
    for (int i = threadIdx.x * VECTOR; i < V; i += step) vector_add(x, load128(s + i), load128(t + i));
    online_join(x);
    if (threadIdx.x == 0) loss[blockIdx.x] = row_loss(x, s_label);
    for (int i = threadIdx.x * VECTOR; i < V; i += step)
        store128(s + i, vector_gradient(x, load128(s + i), load128(t + i), i, label));
}

/* ---- 5 on chip: the rows stay in shared memory between the passes ---- */

static __global__ void on_chip_kernel(floatX *student, const floatX *teacher, const int *labels, float *loss, int V) {
    DYNAMIC_SHARED(floatX, kept);
    floatX *s = student + (size_t)blockIdx.x * V, *kept_s = kept, *kept_t = kept + V;
    const floatX *t = teacher + (size_t)blockIdx.x * V;
    int label = labels[blockIdx.x], step = blockDim.x * VECTOR;
    float s_label = to_float(s[label]);
    Sums x = {LOWEST, LOWEST, 0, 0, 0, 0};
    for (int i = threadIdx.x * VECTOR; i < V; i += step) {  // a thread reads back only what it wrote: no barrier
        Packed<floatX> a = load128(s + i), b = load128(t + i);
        store128(kept_s + i, a);
        store128(kept_t + i, b);
        vector_add(x, a, b);
    }
    online_join(x);
    if (threadIdx.x == 0) loss[blockIdx.x] = row_loss(x, s_label);
    for (int i = threadIdx.x * VECTOR; i < V; i += step)
        store128(s + i, vector_gradient(x, load128(kept_s + i), load128(kept_t + i), i, label));
}

/* ---- the problem ---- */

static struct {
    int rows, V;
    floatX *student, *teacher, *s_block, *t_block;
    int *labels, *host_labels;
    float *loss;
    RowStats *stats;
    bool shipped;  // the last version was the shipped kernel, whose losses are in stats
} at;

static void run_naive() {
    at.shipped = false;
    LAUNCH(naive_kernel, cuda_blocks((size_t)at.rows, 128), 128, 0, at.student, at.teacher, at.labels, at.loss,
           at.rows, at.V);
}

#define RUN(name, threads, shared)                                                                                   \
    static void run_##name() {                                                                                       \
        at.shipped = false;                                                                                          \
        if ((shared) > 0)                                                                                            \
            CUDA_CHECK(                                                                                              \
                cudaFuncSetAttribute(name##_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(shared)));    \
        LAUNCH(name##_kernel, (unsigned)at.rows, threads, shared, at.student, at.teacher, at.labels, at.loss, at.V); \
    }
RUN(coalesced, 256, 0)
RUN(online, 256, 0)
RUN(vectors, 256, 0)
RUN(on_chip, 512, 2 * (size_t)at.V * sizeof(floatX))

static void run_shipped() {
    ObjectiveRow o = {W_CE, W_SOFT, 0, TAU, SOFT_KL, 0.5f, 2, 1, SCALE, NULL, 0, NULL};
    at.shipped = true;
    cuda_distill_rows(at.student, at.teacher, at.labels, NULL, at.stats, o, (size_t)at.rows, at.V, at.V, true);
}

static void reset() { learn_fill(at.student, (size_t)at.rows * at.V, at.s_block); }

/* log softmax(x / tau) of the row that begins at element `first` of the block */
static void log_softmax(double *out, const floatX *block, size_t first, double tau) {
    double largest = -INFINITY, sum = 0;
    for (int i = 0; i < at.V; i++) largest = fmax(largest, learn_element(block, first + i) / tau);
    for (int i = 0; i < at.V; i++) sum += exp(learn_element(block, first + i) / tau - largest);
    for (int i = 0; i < at.V; i++) out[i] = learn_element(block, first + i) / tau - largest - log(sum);
}

/* The plain reference of one row against what came out; rounding: of a value to floatX, relative. */
static double row_error(int row, const floatX *got, float got_loss, double *lQ, double *lq, double *lp) {
    const double rounding = sizeof(floatX) == 2 ? 1.01 / 256 : 2e-5, tau = (double)TAU;
    size_t first = (size_t)row * at.V;
    double kl = 0, worst = 0;
    int label = at.host_labels[row];
    log_softmax(lQ, at.s_block, first, 1);
    log_softmax(lq, at.s_block, first, tau);
    log_softmax(lp, at.t_block, first, tau);
    for (int i = 0; i < at.V; i++) {
        double Q = exp(lQ[i]), q = exp(lq[i]), p = exp(lp[i]), hot = i == label, ce = (double)W_CE,
               soft = (double)W_SOFT;
        double want = (double)SCALE * (ce * (Q - hot) + soft * tau * (q - p));
        double size = (double)SCALE * (ce * (Q + hot) + soft * tau * (q + p));
        kl += p * (lp[i] - lq[i]);
        worst = fmax(worst, fabs((double)from_x(got[i]) - want) / (rounding * size));
        if (!(fabs((double)from_x(got[i])) < INFINITY)) return INFINITY;
    }
    double loss = -(double)W_CE * lQ[label] + (double)W_SOFT * tau * tau * kl;
    double off = fabs((double)got_loss - loss) / (1e-4 * loss);
    return off <= worst ? worst : off < INFINITY ? off : INFINITY;  // not a number: infinite
}

/* Of up to 16 rows, the first and the last among them. */
static double error() {
    floatX *row = (floatX *)malloc((size_t)at.V * sizeof *row);
    double *l = (double *)malloc(3 * (size_t)at.V * sizeof *l), worst = 0;
    if (!row || !l) die("out of memory");
    int checked = at.rows < 16 ? at.rows : 16;
    for (int i = 0; i < checked; i++) {
        int r = checked > 1 ? (int)((long long)i * (at.rows - 1) / (checked - 1)) : 0;
        RowStats stats;
        float loss;
        learn_download(row, at.student + (size_t)r * at.V, (size_t)at.V * sizeof *row);
        learn_download(&loss, at.loss + r, sizeof loss);
        learn_download(&stats, at.stats + r, sizeof stats);
        if (at.shipped) loss = W_CE * stats.ce + W_SOFT * TAU * TAU * stats.soft;
        worst = fmax(worst, row_error(r, row, loss, l, l + at.V, l + 2 * (size_t)at.V));
    }
    free(row);
    free(l);
    return worst;
}

static void make_problem() {
    size_t n = (size_t)at.rows * at.V;
    at.student = learn_alloc<floatX>(n), at.teacher = learn_alloc<floatX>(n);
    at.s_block = learn_block(1, 6), at.t_block = learn_block(2, 6);
    at.labels = learn_alloc<int>((size_t)at.rows), at.loss = learn_alloc<float>((size_t)at.rows);
    at.stats = learn_alloc<RowStats>((size_t)at.rows);
    at.host_labels = (int *)malloc((size_t)at.rows * sizeof(int));
    if (!at.host_labels) die("out of memory");
    for (int i = 0; i < at.rows; i++) at.host_labels[i] = (int)((long long)i * 7919 % at.V);
    learn_upload(at.labels, at.host_labels, (size_t)at.rows * sizeof(int));
    learn_fill(at.teacher, n, at.t_block);
}

int main(int argc, char **argv) {
    int most;
    learn_read_options(argc, argv);
    learn_open();
    at.rows = learn_options.rows ? learn_options.rows : timed ? 8192 : 3;
    at.V = learn_options.width ? learn_options.width : timed ? 32768 : 1024;
    make_problem();
    CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    bool whole = at.V % VECTOR == 0, kept = whole && 2 * (size_t)at.V * sizeof(floatX) <= (size_t)most - 1024;
    const Version versions[] = {
        {"naive", "a thread per row", 7, run_naive, true},
        {"coalesced", "a block per row", 7, run_coalesced, true},
        {"online", "maxima and sums in one pass", 5, run_online, true},
        {"vectors", "16 bytes a load", 5, run_vectors, whole},
        {"on chip", "rows stay in shared memory", 3, run_on_chip, kept},
        {"shipped", "asynchronous copies, clusters, powers of two", 3, run_shipped, whole},
    };
    Lesson lesson = {"objective_rows", at.rows, at.V, 3, reset, error, "", 0, NULL};
    return learn_run(&lesson, versions, sizeof versions / sizeof *versions);
}
