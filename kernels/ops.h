/* What a device can do. Models and programs are written once against this table; each device fills it
 * (kernels/cpu/cpu.c, kernels/cuda/cuda.cu). The table is also the test plan: dev/kernels/test_kernels.c checks every
 * entry on every device against a plain fp32 reference.
 *
 * Conventions
 *   - Pointers are device pointers unless a comment says host. Arrays are row-major, last dimension fastest.
 *   - floatX is the storage type (lib/dtype.h); statistics, losses, gradients of parameters and optimizer state
 *     are fp32. Every sum is accumulated in fp32 or wider.
 *   - Gradients of parameters (float *d...) are ADDED to what is there; gradients of activations are written,
 *     except where a line says "+=".
 *   - rows is the number of positions (batch times time), C channels, B batch, T time, H query heads,
 *     K key/value heads (H is a multiple of K), D head size.
 *   - Results do not depend on the number of threads: reductions are split by shape.
 *   - `out` may not alias an input unless a line says so. */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include "../lib/dtype.h"
#include "../lib/error.h"
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { OPS_STREAMS = 3 };  // of one device
enum { OPS_DOWNLOADS = 4, OPS_DOWNLOAD_BYTES = 4096 };

typedef enum { ACT_NONE, ACT_GELU_TANH, ACT_GELU_ERF } Activation;

/* A matrix the product reads: y = x Wᵀ with W [rows = out channels, cols = in channels]. `scales` is for
 * quantised types to come and NULL for DT_F32 and DT_BF16. dtype may differ from floatX. */
typedef struct {
    const void *data;
    Dtype dtype;
    int rows, cols;
    const float *scales;
} Weight;

/* The shape of one attention call. rope: fp32 [max T, D], row t holds cos (D/2 values) then sin (D/2 values) for
 * position t, applied to queries and keys on the way in with the half rotation of Hugging Face's Llama:
 * (x_i, x_{i+D/2}) -> (x_i cos - x_{i+D/2} sin, x_{i+D/2} cos + x_i sin). NULL: no rotation. */
typedef struct {
    int B, T, H, K, D;
    bool causal;
    float scale;  // usually 1/sqrt(D)
    const float *rope;
} AttentionShape;

/* Which divergence D the soft term uses; p = softmax(t/tau), q = softmax(s/tau). */
typedef enum { SOFT_KL, SOFT_REVERSE_KL, SOFT_JSD } SoftLoss;

/* Weights of the objective's terms for one call of distill_rows; see loss.cuh for the formulas. The gradient of a
 * row is scaled by `scale` (normally 1 / positions that count in the whole batch). */
typedef struct {
    float w_ce, w_soft, w_hard;
    float temperature;  // tau > 0
    SoftLoss soft;
    float jsd_beta;                      // beta in (0, 1)
    float gate_confidence, gate_factor;  // distillation is scaled by gate_factor where the teacher's argmax is the
                                         // label with probability (tau = 1) >= gate_confidence; > 1: never
    float scale;
} ObjectiveRow;

/* Per-row results of distill_rows, unweighted. */
typedef struct {
    float ce;          // -log softmax(s)[label], over V_s
    float soft;        // D(p, q), without tau squared
    float hard;        // -log softmax(s)[argmax t]
    float entropy;     // of p (teacher at tau), nats
    float confidence;  // max softmax(t), tau = 1
    float gate;        // the factor the distillation terms of this row were given (row_gate times gate_factor)
    int student_top, teacher_top;  // argmax over the row; the smaller id where equal; -1 without a teacher
} RowStats;

/* How the next token is chosen: among the top_k likeliest (0: all) that together reach probability top_p (1: all) of
 * softmax(logits / temperature). Temperature 0 takes the likeliest one. */
typedef struct {
    float temperature, top_p;
    int top_k;
    uint64_t seed;
    int end, first;  // token `end` may not stand at position `first`
} Sampling;

typedef struct Ops {
    const char *name;     // as the --device option has it: cpu, cuda:0, ...
    int device;           // N of cuda:N; 0 for the CPU
    int stream;           // 0 .. OPS_STREAMS-1: which of the device's streams these calls run on (ops_stream)
    void *native_stream;  // a GPU's cudaStream_t, for libraries that queue work of their own; NULL for the CPU

    /* ---- memory ---- a device runs what it is asked for in that order, but need not be done when a call returns */
    bool host_memory;              // device pointers can be read by the host (the CPU)
    void *(*alloc)(size_t bytes);  // 64-byte aligned, zeroed; NULL when it does not fit
    void (*release)(void *p);
    size_t (*memory_free)(void);  // bytes that alloc could still give; 0 where it cannot be told (the CPU)
    void (*upload)(void *dst, const void *host_src, size_t bytes);    // host_src may change as soon as it returns
    void (*download)(void *host_dst, const void *src, size_t bytes);  // waits for the device
    void (*copy)(void *dst, const void *src, size_t bytes);           // within the device
    /* dst = src, which is memory of the device `from`, and has the value that the calls made there so far give it.
     * Later calls there wait until it has been read. */
    void (*copy_from)(void *dst, const struct Ops *from, const void *src, size_t bytes);
    /* Later calls here wait for the calls made so far on the device or lane `other`; the host does not, unless one of
     * the two is the CPU. */
    void (*wait_for)(const struct Ops *other);
    /* rows times: dst row r at dst + r*dst_stride gets `width` bytes of src + r*src_stride (strides in bytes) */
    void (*copy_rows)(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width, size_t rows);
    void (*zero)(void *p, size_t bytes);
    void (*sync)(void);
    /* A download that nobody waits for yet, of up to OPS_DOWNLOAD_BYTES, under a number below OPS_DOWNLOADS; receive
     * waits for it and returns the bytes, which stay there until the number is sent again. */
    void (*download_async)(int number, const void *src, size_t bytes);
    const void *(*download_wait)(int number);

    /* ---- recordings ---- many calls that come again with the same arguments (what these point to may differ) cost
     * the host less as one:
     *     if (!op->graph_launch(owner, variant)) { the calls; op->graph_end(); }
     * replay makes the calls recorded under this name and returns true; when it returns false the caller makes them,
     * and they may be recorded. `variant` must stand for everything that decides which calls are made and their
     * arguments; they may only be operations on device memory (none of the section "memory" but copy, copy_rows and
     * zero). forget: what was recorded for an owner is not needed any more; before its memory is released. */
    bool (*graph_launch)(const void *owner, uint64_t variant);
    void (*graph_end)(void);
    void (*graph_free)(const void *owner);

    /* ---- inputs ---- */
    /* out[r, :] = table[ids[r], :]; rows with ids[r] < 0 are left as they are (image positions) */
    void (*embedding_forward)(floatX *out, const int *ids, const floatX *table, size_t rows, int C);
    /* dtable[ids[r], :] += dout[r, :]; rows with ids[r] < 0 are skipped */
    void (*embedding_backward)(float *dtable, const floatX *dout, const int *ids, size_t rows, int C, int vocab);
    /* pixels u8 [B, S, S, 3] -> out [B * floor(S/patch)^2, 3*patch*patch], features ordered (channel, y, x) as a
     * convolution's weights are, normalised to (x/255 - 0.5) / 0.5. As in a convolution without padding, the last
     * S mod patch rows and columns of pixels are left out */
    void (*patchify)(floatX *out, const uint8_t *pixels, int B, int S, int patch);
    /* x[b, t, :] += position[t, :] */
    void (*position_forward)(floatX *x, const floatX *position, int B, int T, int C);
    /* dposition[t, :] += sum over b of dout[b, t, :] */
    void (*position_backward)(float *dposition, const floatX *dout, int B, int T, int C);
    /* out[r, :] = inp[index[r], :] */
    void (*gather_rows)(floatX *out, const floatX *inp, const int *index, size_t rows, int C);
    /* out [total, C] = 0 but out[index[r], :] = inp[r, :]; indices are distinct */
    void (*scatter_rows)(floatX *out, const floatX *inp, const int *index, size_t rows, size_t total, int C);

    /* ---- norms ---- statistics fp32 [rows], saved for the backward pass (may be NULL: not saved) */
    /* out = (inp - mean) * rstd * weight + bias; rstd = 1/sqrt(var + eps), var over C without correction */
    void (*layernorm_forward)(floatX *out, float *mean, float *rstd, const floatX *inp, const floatX *weight,
                              const floatX *bias, size_t rows, int C, float eps);
    /* sum = a + b (rounded to floatX, and the norm sees the rounded value), out = layernorm(sum); sum may alias a */
    void (*residual_layernorm_forward)(floatX *sum, floatX *out, float *mean, float *rstd, const floatX *a,
                                       const floatX *b, const floatX *weight, const floatX *bias, size_t rows, int C,
                                       float eps);
    /* dinp += ...; dweight, dbias added (both NULL when frozen) */
    void (*layernorm_backward)(floatX *dinp, float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                               const floatX *weight, const float *mean, const float *rstd, size_t rows, int C);
    /* out = inp * rstd * weight, rstd = 1/sqrt(mean of squares + eps) */
    void (*rmsnorm_forward)(floatX *out, float *rstd, const floatX *inp, const floatX *weight, size_t rows, int C,
                            float eps);
    void (*residual_rmsnorm_forward)(floatX *sum, floatX *out, float *rstd, const floatX *a, const floatX *b,
                                     const floatX *weight, size_t rows, int C, float eps);
    /* dinp += ...; dweight added (NULL when frozen) */
    void (*rmsnorm_backward)(floatX *dinp, float *dweight, const floatX *dout, const floatX *inp,
                             const floatX *weight, const float *rstd, size_t rows, int C);
    /* out = a + b; out may alias either */
    void (*residual_forward)(floatX *out, const floatX *a, const floatX *b, size_t n);

    /* ---- products ---- I = w.cols, O = w.rows */
    /* out [rows, O] = act(inp [rows, I] Wᵀ + bias [O]); bias may be NULL. preact [rows, O], if not NULL, keeps the
     * value before the activation for the backward pass. Few rows (decoding) run at memory bandwidth. */
    void (*linear_forward)(floatX *out, const floatX *inp, Weight w, const floatX *bias, Activation act,
                           floatX *preact, size_t rows);
    /* out fp32 [rows, O] = inp Wᵀ: logits where they are read by people or samplers */
    void (*linear_logits)(float *out, const floatX *inp, Weight w, size_t rows);
    /* dinp [rows, I] = dout [rows, O] W, or += when accumulate */
    void (*linear_backward_input)(floatX *dinp, const floatX *dout, Weight w, size_t rows, bool accumulate);
    /* dweight [O, I] += doutᵀ inp; dbias [O] += column sums of dout (dbias may be NULL) */
    void (*linear_backward_weight)(float *dweight, float *dbias, const floatX *dout, const floatX *inp, size_t rows,
                                   int O, int I);

    /* ---- pointwise ---- */
    /* out = act(preact), with the bits that linear_forward gave out beside this preact; out may alias preact */
    void (*gelu_forward)(floatX *out, const floatX *preact, size_t n, Activation act);
    /* dinp = dout * act'(preact); dinp may alias dout */
    void (*gelu_backward)(floatX *dinp, const floatX *dout, const floatX *preact, size_t n, Activation act);
    /* out [rows, F] = silu(gate) * up, where gate_up [rows, 2F] holds gate (F values) then up */
    void (*swiglu_forward)(floatX *out, const floatX *gate_up, size_t rows, int F);
    /* dgate_up [rows, 2F]; may alias gate_up */
    void (*swiglu_backward)(floatX *dgate_up, const floatX *dout, const floatX *gate_up, size_t rows, int F);

    /* ---- attention ---- qkv [B, T, (H + 2K) * D]: queries, keys, values of one position side by side */
    /* out [B, T, H*D]; lse fp32 [B, H, T] = log-sum-exp of the scaled scores (may be NULL) */
    void (*attention_forward)(floatX *out, float *lse, const floatX *qkv, AttentionShape s);
    /* dqkv written (with the rotation undone); dout, out [B, T, H*D] */
    void (*attention_backward)(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                               const floatX *qkv, AttentionShape s);
    /* keys (rotated) and values of positions start .. start+T-1 of every sequence go to the caches
     * [B, K, max_T, D]; qkv is [B, T, (H + 2K) * D] */
    void (*cache_store)(floatX *kcache, floatX *vcache, const floatX *qkv, AttentionShape s, int start, int max_T);
    /* one new token per sequence (s.T = 1): stores its key and value at positions[b] (int [B]) and attends to
     * positions 0 .. positions[b]. qkv [B, (H + 2K) * D], out [B, H*D] */
    void (*attention_decode)(floatX *out, floatX *kcache, floatX *vcache, const floatX *qkv, const int *positions,
                             AttentionShape s, int max_T);

    /* The next token of B sequences from their logits fp32 [B, V]: positions[b] (int) is counted up, to where the
     * token will stand, and ids[b] gets the token. token_mask u8 [V]: not 0 where a token is never chosen. What is
     * drawn depends on (s.seed, streams[b], positions[b]) alone, the same on every device bit for bit
     * (kernels/sample.h). 0 where no token is allowed or a number */
    void (*sample)(int *ids, int *positions, const float *logits, const uint8_t *token_mask, const int *streams,
                   Sampling s, int B, int V);

    /* ---- objective ---- formulas in loss.cuh */
    /* student [rows, Vs] logits in; with gradient, d(loss)/d(student) * scale out in the same place. teacher
     * [rows, Vt] or NULL. labels int [rows] in [0, Vs). row_gate fp32 [rows] scales the soft and hard terms of a row
     * (NULL: 1). A row is read from memory once (further passes find it in the cache) and written once. */
    void (*distill_rows)(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                         RowStats *stats, ObjectiveRow o, size_t rows, int Vs, int Vt, bool gradient);
    /* row_gate[r] (fp32 [rows]) = 1 where low <= stats[r].entropy <= high, else 0; but 1 everywhere when less than
     * `percent` of the rows lie inside */
    void (*entropy_band)(float *row_gate, const RowStats *stats, size_t rows, float low, float high, int percent);
    /* cosine[b] (fp32 [B]) = <a_b, t_b> / (|a_b| |t_b|), a and t [B, n]; with da not NULL,
     * da [B, n] = -scale * d cosine[b] / d a_b (the gradient of scale * (1 - cosine)) */
    void (*cosine)(float *cosine, floatX *da, const floatX *a, const floatX *t, int B, size_t n, float scale);

    /* ---- optimizer ---- */
    /* out[0] = sum of squares of x (fp32 out, accumulated wider); added to out[0] when accumulate */
    void (*squared_norm)(float *out, const float *x, size_t n, bool accumulate);
    /* AdamW (Loshchilov & Hutter 2019), decoupled decay. Gradients are first multiplied by
     * min(1, max_norm / sqrt(norm_squared[0])) (max_norm <= 0: not clipped). step counts from 1. master fp32 [n] is
     * updated and param (floatX [n]) gets its rounded copy. */
    void (*adamw)(floatX *param, float *master, float *m, float *v, const float *grad, size_t n, float lr,
                  float beta1, float beta2, float eps, float decay, const float *norm_squared, float max_norm,
                  int step);
    void (*cast_to_x)(floatX *out, const float *inp, size_t n);
    void (*cast_from_x)(float *out, const floatX *inp, size_t n);
} Ops;

extern const Ops cpu_ops;

/* The table of a stream (0 .. OPS_STREAMS-1) of GPU `device`, which the first call opens. Tables of different GPUs,
 * and of the streams of one, work side by side in one thread. NULL with a sentence in *err when there is no such GPU,
 * the driver is too old, ... */
#ifdef WITH_CUDA
int cuda_device_count(void);  // 0 where there is none or no driver
const Ops *cuda_ops_open(int device, int stream, Error *err);
#endif

/* The table that a --device option names: cpu; cuda:N, or cuda for the first GPU; auto for that if one answers, else
 * the CPU. NULL with a sentence in *err. */
static inline const Ops *ops_open(const char *name, Error *err) {
    int number = 0, end = 0;
    bool any = !strcmp(name, "auto");
    if (!strcmp(name, "cpu")) return &cpu_ops;
    if (!any && strcmp(name, "cuda") && (sscanf(name, "cuda:%4d%n", &number, &end) != 1 || name[end] || number < 0)) {
        error_set(err, "there is no device '%.40s'; expected auto, cpu, cuda or cuda:N", name);
        return NULL;
    }
#ifdef WITH_CUDA
    const Ops *op = cuda_ops_open(number, 0, err);
    return op || !any ? op : &cpu_ops;
#else
    if (any) return &cpu_ops;
    error_set(err,
              "device %.40s: this program was built without CUDA; build it again where nvcc is, or use --device cpu",
              name);
    return NULL;
#endif
}

/* The table of stream 0 .. OPS_STREAMS-1 of the same device. Its calls run beside those of the other streams, and all
 * of them see the same memory; wait_for and copy_from say what must wait for what. The CPU does one thing after
 * another, so it has one table only. */
static inline const Ops *ops_stream(const Ops *op, int stream) {
#ifdef WITH_CUDA
    Error err;
    const Ops *table = op->host_memory ? op : cuda_ops_open(op->device, stream, &err);
    if (!table) die("%s", err.text);
    return table;
#else
    (void)stream;
    return op;
#endif
}

static inline const Ops *ops_second_stream(const Ops *op) { return ops_stream(op, 1); }

/* Tables of one device, whose memory is the same. */
static inline bool ops_share_memory(const Ops *a, const Ops *b) {
    return a->host_memory == b->host_memory && a->device == b->device;
}

/* NVIDIA GPUs that this program can use. */
static inline int gpus_visible(void) {
#ifdef WITH_CUDA
    return cuda_device_count();
#else
    return 0;
#endif
}

#ifdef __cplusplus
}
#endif
#endif
