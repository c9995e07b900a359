/* What a device can do. Models and programs are written once against this table, and each device fills it
 * (kernels/cpu/cpu.c, kernels/cuda/cuda.cu). The table is also the test plan: dev/kernels/test_kernels.c checks every
 * entry on every device against a plain reference.
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
#include "figures.h"
#include "policy.h"
#include "sparse.h"
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { OPS_STREAMS = 3 };  // of one device
enum { OPS_DOWNLOADS = 4, OPS_DOWNLOAD_BYTES = 4096 };

typedef enum { ACT_NONE, ACT_GELU_TANH, ACT_GELU_ERF } Activation;

/* The weight of a linear layer, y = x Wᵀ: W [rows = out channels, cols = in channels]; or an embedding. dtype: DT_F32 or
 * DT_BF16, which may differ from floatX (but not of an embedding); or DT_I8 (q8) or DT_U8 (q4) with `scales`, which kernels/quantised.h describes. */
typedef struct {
    const void *data;
    Dtype dtype;
    int rows, cols;
    const bf16 *scales;
} Weight;

/* The shape of one attention call. rope: fp32 [max T, D]; row t has the cosines (D/2 values) and then the sines (D/2
 * values) of position t. Queries and keys are rotated on the way in, in the half layout of Hugging Face's Llama:
 * (x_i, x_{i+D/2}) -> (x_i cos - x_{i+D/2} sin, x_{i+D/2} cos + x_i sin). NULL: no rotation. */
typedef struct {
    int B, T, H, K, D;
    bool causal;
    float scale;  // usually 1/sqrt(D)
    const float *rope;
} AttentionShape;

/* Which divergence D the soft term uses; p = softmax(t/tau), q = softmax(s/tau). */
typedef enum { SOFT_KL, SOFT_REVERSE_KL, SOFT_JSD, SOFT_SKL, SOFT_SRKL } SoftLoss;

/* Weights of the objective's terms for one call of distill_rows; see loss.cuh for the formulas. The gradient of a
 * row is scaled by `scale` (normally 1 / positions that count in the whole batch). */
typedef struct {
    float w_ce, w_soft, w_hard;
    float temperature;  // tau > 0
    SoftLoss soft;
    float mix;                           // beta of JSD, a of SKL and SRKL; in (0, 1)
    float gate_confidence, gate_factor;  // the confidence gate: the soft and hard terms are scaled by gate_factor
                                         // where the teacher's argmax is the label and has a probability (tau = 1) of
                                         // at least gate_confidence; > 1: never
    float scale;
    /* device [rows]: a policy gradient in place of CE. Then all is at tau, at which the labels were drawn. NULL: CE */
    const PolicyRow *policy;
    float clip_ratio;
    const float *row_mix;  // device [rows]: in place of mix, for distill_rows; NULL: the same for all rows
} ObjectiveRow;

/* Per-row results of distill_rows, unweighted. */
typedef struct {
    float ce;          // -log softmax(s)[label], over V_s
    float soft;        // D(p, q), without tau squared
    float hard;        // -log softmax(s)[argmax t]
    float entropy;     // of p (teacher at tau), nats
    float confidence;  // max softmax(t), tau = 1
    float gate;        // the factor of this row's soft and hard terms: row_gate, times gate_factor where that applies
    float policy;      // the term with the weight w_ce: ce, or the policy's (kernels/policy.h)
    float clipped;     // 1 where the policy's term has no gradient because the ratio is clipped, else 0
    int student_top, teacher_top;  // argmax over the row, the smaller id where equal; -1 without a teacher
} RowStats;

/* How the next token is chosen: among the top_k likeliest tokens (0: all), and of these among the likeliest that
 * together reach the probability top_p (1: all), of softmax(logits / temperature). Temperature 0 takes the likeliest
 * token. */
typedef struct {
    float temperature, top_p;
    int top_k;
    uint64_t seed;
} Sampling;

typedef struct Ops {
    const char *name;     // as in the --device option: cpu, cuda:0, ...
    const char *kernels;  // the CPU's set of instructions (kernels/cpu/choose.c); NULL: a GPU
    /* measures the FLOP/s of the arithmetic that matmuls use, without memory; NULL: a GPU, where a matmul tells */
    double (*peak_flops)(void);
    int device;           // N of cuda:N; 0 for the CPU
    int stream;           // 0 .. OPS_STREAMS-1: which of the device's streams these calls run on (ops_stream)
    void *native_stream;  // a GPU's cudaStream_t, for libraries that queue work of their own; NULL for the CPU

    /* ---- memory ---- a device makes its calls in their order, but a call may return before it is done */
    bool host_memory;              // the host can read device pointers (the CPU)
    void *(*alloc)(size_t bytes);  // 64-byte aligned and zeroed; NULL when it does not fit
    void (*release)(void *p);
    size_t (*memory_free)(void);  // bytes that alloc could still give; 0 where it cannot be told (the CPU)
    void (*upload)(void *dst, const void *host_src, size_t bytes);    // host_src may change as soon as it returns
    void (*download)(void *host_dst, const void *src, size_t bytes);  // waits for the device
    void (*copy)(void *dst, const void *src, size_t bytes);           // within the device
    /* dst = src, where src is memory of the device `from`, with the value that the calls made on that table so far
     * give it. Later calls on that table wait until it has been read. `from` may be any stream of any device. */
    void (*copy_from)(void *dst, const struct Ops *from, const void *src, size_t bytes);
    /* Later calls here wait for the calls made on the table `other` so far. The host does not wait, unless one of the
     * two is the CPU. */
    void (*wait_for)(const struct Ops *other);
    /* row r of dst, at dst + r*dst_stride, gets `width` bytes from src + r*src_stride (strides in bytes) */
    void (*copy_rows)(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width, size_t rows);
    void (*zero)(void *p, size_t bytes);
    void (*sync)(void);  // the host waits for all calls made so far
    /* A download of up to OPS_DOWNLOAD_BYTES that the host does not wait for yet. download_wait waits for the
     * download of this number (below OPS_DOWNLOADS) and returns the bytes, which stay valid until the number is used
     * again. */
    void (*download_async)(int number, const void *src, size_t bytes);
    const void *(*download_wait)(int number);

    /* ---- graphs ---- a sequence of calls that is repeated with the same arguments costs the host less as a graph
     * (the memory that the arguments point to may change):
     *     if (!op->graph_launch(owner, variant)) { the calls; op->graph_end(); }
     * graph_launch runs the graph of this name, if there is one, and returns true. When it returns false, the caller
     * makes the calls, and the device may make a graph of them. `variant` must identify everything that decides
     * which calls are made and with which arguments. The calls may only be operations on device memory: of the
     * section "memory", copy, copy_rows and zero alone. graph_free drops the graphs of an owner, before its memory
     * is released. */
    bool (*graph_launch)(const void *owner, uint64_t variant);
    void (*graph_end)(void);
    void (*graph_free)(const void *owner);

    /* ---- inputs ---- */
    /* out [rows, table.cols]: out[r, :] = table[ids[r], :]; rows with ids[r] < 0 are left as they are (image positions) */
    void (*embedding_forward)(floatX *out, const int *ids, Weight table, size_t rows);
    /* dtable[ids[r], :] += dout[r, :]; rows with ids[r] < 0 are skipped */
    void (*embedding_backward)(float *dtable, const floatX *dout, const int *ids, size_t rows, int C, int vocab);
    /* pixels u8 [B, height, width, 3] -> out [B * floor(height/patch) * floor(width/patch), 3*patch*patch], features in
     * the order (channel, y, x) of a convolution's weights, normalised to (x/255 - 0.5) / 0.5. As in a convolution without
     * padding, the last height mod patch rows and width mod patch columns of pixels are left out. */
    void (*patchify)(floatX *out, const uint8_t *pixels, int B, int height, int width, int patch);
    /* x[b, t, :] += position[t, :] */
    void (*position_forward)(floatX *x, const floatX *position, int B, int T, int C);
    /* dposition[t, :] += sum over b of dout[b, t, :] */
    void (*position_backward)(float *dposition, const floatX *dout, int B, int T, int C);
    /* x[b, r, q, :] += rows[r, :] + columns[q, :], x [B, R, Q, C] */
    void (*position_2d_forward)(floatX *x, const floatX *rows, const floatX *columns, int B, int R, int Q, int C);
    /* drows[r, :] += sum over b, q of dout[b, r, q, :]; dcolumns[q, :] += sum over b, r */
    void (*position_2d_backward)(float *drows, float *dcolumns, const floatX *dout, int B, int R, int Q, int C);
    /* out[r, :] = inp[index[r], :] */
    void (*gather_rows)(floatX *out, const floatX *inp, const int *index, size_t rows, int C);
    /* out [total, C] = 0, except out[index[r], :] = inp[r, :]; the indices are distinct */
    void (*scatter_rows)(floatX *out, const floatX *inp, const int *index, size_t rows, size_t total, int C);

    /* ---- norms ---- statistics fp32 [rows], saved for the backward pass (may be NULL: not saved) */
    /* out = (inp - mean) * rstd * weight + bias; rstd = 1/sqrt(var + eps), var over C without correction */
    void (*layernorm_forward)(floatX *out, float *mean, float *rstd, const floatX *inp, const floatX *weight,
                              const floatX *bias, size_t rows, int C, float eps);
    /* sum = a + b rounded to floatX, out = layernorm of the rounded sum; sum may alias a */
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
    /* out = inp * scale, or += when accumulate. Where p > 0 and the number at key (on the device) is not 0, an element is 0
     * with probability p, else divided by 1 - p; which ones (kernels/dropout.h) follows from key and stream. out may be inp */
    void (*dropout)(floatX *out, const floatX *inp, size_t n, float scale, float p, const uint64_t *key, int stream,
                    bool accumulate);

    /* ---- linear layers ---- I = w.cols, O = w.rows. Quantised weights have no backward operations. The CPU multiplies up
     * to QUANT_ROWS rows with them in whole numbers: it rounds inp to 8 bits as well, each group of 32 to q * scale with q in
     * -127 .. 127, scale = largest magnitude / 127. */
    /* out [rows, O] = act(inp [rows, I] Wᵀ + bias [O]); bias may be NULL. preact [rows, O], if not NULL, gets the
     * value before the activation, for the backward pass. With few rows (decoding) it runs at memory bandwidth. */
    void (*linear_forward)(floatX *out, const floatX *inp, Weight w, const floatX *bias, Activation act,
                           floatX *preact, size_t rows);
    /* out fp32 [rows, O] = inp Wᵀ: logits that a sampler reads */
    void (*linear_logits)(float *out, const floatX *inp, Weight w, size_t rows);
    /* dinp [rows, I] = dout [rows, O] W, or += when accumulate */
    void (*linear_backward_input)(floatX *dinp, const floatX *dout, Weight w, size_t rows, bool accumulate);
    /* dweight [O, I] += doutᵀ inp; dbias [O] += column sums of dout (dbias may be NULL) */
    void (*linear_backward_weight)(float *dweight, float *dbias, const floatX *dout, const floatX *inp, size_t rows,
                                   int O, int I);

    /* ---- pointwise ---- */
    /* out = act(preact), bit for bit what linear_forward gives together with this preact; out may alias preact */
    void (*gelu_forward)(floatX *out, const floatX *preact, size_t n, Activation act);
    /* dinp = dout * act'(preact); dinp may alias dout */
    void (*gelu_backward)(floatX *dinp, const floatX *dout, const floatX *preact, size_t n, Activation act);
    /* out [rows, F] = silu(gate) * up, where gate_up [rows, 2F] holds gate (F values) then up */
    void (*swiglu_forward)(floatX *out, const floatX *gate_up, size_t rows, int F);
    /* dgate_up [rows, 2F]; may alias gate_up */
    void (*swiglu_backward)(floatX *dgate_up, const floatX *dout, const floatX *gate_up, size_t rows, int F);

    /* ---- attention ---- qkv [B, T, (H + 2K) * D]: queries, keys and values of a position side by side */
    /* out [B, T, H*D]; lse fp32 [B, H, T] = log-sum-exp of the scaled scores (may be NULL) */
    void (*attention_forward)(floatX *out, float *lse, const floatX *qkv, AttentionShape s);
    /* dqkv written (with the rotation undone); dout, out [B, T, H*D] */
    void (*attention_backward)(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                               const floatX *qkv, AttentionShape s);
    /* stores the keys (rotated) and values of positions start .. start+T-1 of every sequence in the caches
     * [B, K, max_T, D]; qkv is [B, T, (H + 2K) * D] */
    void (*cache_store)(floatX *kcache, floatX *vcache, const floatX *qkv, AttentionShape s, int start, int max_T);
    /* s.T new tokens per sequence, usually one: stores the keys (rotated) and values at positions[b] (int [B]) ..
     * positions[b] + T - 1, and token t attends to positions 0 .. positions[b] + t. qkv [B, T, (H + 2K) * D], out [B, T, H*D].
     * A token's result is the same bits, however many are processed together. */
    void (*attention_decode)(floatX *out, floatX *kcache, floatX *vcache, const floatX *qkv, const int *positions,
                             AttentionShape s, int max_T);

    /* ---- sampling ---- */
    /* Chooses the next token of B sequences from their logits fp32 [B, V]: positions[b] (int) is incremented to the
     * token's position, and ids[b] gets the token, or -1 where no token is allowed, or where a logit, of a masked
     * token too, is NaN or +infinity: a model that computes those has no answer. token_mask
     * u8 [V]: not 0 for a token that is never chosen. The draw depends on (s.seed, streams[b], positions[b]) alone
     * and is the same on every device bit for bit (kernels/sample.h). */
    void (*sample)(int *ids, int *positions, const float *logits, const uint8_t *token_mask, const int *streams,
                   Sampling s, int B, int V);

    /* ---- objective ---- formulas in loss.cuh */
    /* student [rows, Vs] logits in; with gradient, d(loss)/d(student) * scale out in the same place. teacher
     * [rows, Vt] or NULL. labels int [rows] in [0, Vs). row_gate fp32 [rows] scales a row's soft and hard terms
     * (NULL: 1). A row is read from memory once (later passes find it in a cache) and written once. */
    void (*distill_rows)(floatX *student, const floatX *teacher, const int *labels, const float *row_gate,
                         RowStats *stats, ObjectiveRow o, size_t rows, int Vs, int Vt, bool gradient);
    /* the same with what is known of the teacher's distributions at o.temperature (kernels/sparse.h) */
    void (*distill_rows_sparse)(floatX *student, SparseTeacher teacher, const int *labels, const float *row_gate,
                                RowStats *stats, ObjectiveRow o, size_t rows, int Vs, bool gradient);
    /* out[r] (LogitsFigures [rows]) = what kernels/figures.h says of the logits fp32, student [rows, Vs] and teacher
     * [rows, Vt] (NULL: without one), at this temperature; labels int [rows] below both Vs and Vt */
    void (*logits_figures)(LogitsFigures *out, const float *student, const float *teacher, const int *labels,
                           double temperature, size_t rows, int Vs, int Vt);
    /* row_gate[r] (fp32 [rows]) = 1 where low <= stats[r].entropy <= high, else 0; but 1 everywhere when that holds
     * for less than `percent` of the rows */
    void (*entropy_band)(float *row_gate, const RowStats *stats, size_t rows, float low, float high, int percent);
    /* cosine[b] (fp32 [B]) = <a_b, t_b> / (|a_b| |t_b|), a and t [B, n]; with da not NULL,
     * da [B, n] = -scale * d cosine[b] / d a_b (the gradient of scale * (1 - cosine)) */
    void (*cosine)(float *cosine, floatX *da, const floatX *a, const floatX *t, int B, size_t n, float scale);

    /* ---- optimizer ---- */
    /* out[0] = sum of squares of x, or += when accumulate; out is fp32, the sum is accumulated in fp64 */
    void (*squared_norm)(float *out, const float *x, size_t n, bool accumulate);
    /* AdamW (Loshchilov & Hutter 2019), with decoupled weight decay. Gradients are first multiplied by
     * min(1, max_norm / sqrt(norm_squared[0])) (max_norm <= 0: not clipped). step counts from 1. Updates master fp32
     * [n], and param (floatX [n]) gets its rounded copy. Does nothing when norm_squared[0] is not finite. */
    void (*adamw)(floatX *param, float *master, float *m, float *v, const float *grad, size_t n, float lr,
                  float beta1, float beta2, float eps, float decay, const float *norm_squared, float max_norm,
                  int step);
    void (*cast_to_x)(floatX *out, const float *inp, size_t n);
    void (*cast_from_x)(float *out, const floatX *inp, size_t n);
} Ops;

#ifdef __cplusplus
}
#endif
#endif
