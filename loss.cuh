/* The distillation loss and its gradient, without ever storing the full [n, V] logits.
 *
 * For a position with label y, student logits s (V_s values), teacher logits t (V_t), temperature tau,
 * V = min(V_s, V_t), p = softmax(t[:V]/tau), q = softmax(s[:V]/tau):
 *
 *   CE    = -log softmax(s)[y], or with rewards kernels/policy.h               over V_s
 *   soft  = tau^2 D(p, q)                                                      over V
 *           KL   D = sum p log(p/q)          reverse KL   D = sum q log(q/p)
 *           JSD  D = beta KL(p||m) + (1-beta) KL(q||m),  m = beta p + (1-beta) q
 *           SKL  D = KL(p||m), m = a p + (1-a) q        SRKL  D = KL(q||m), m = (1-a) p + a q
 *   hard  = -log softmax(s)[argmax t]                                          over V_s, argmax over V
 *   embed = 1 - cos(e_s, e_t), per image, of the flattened image tokens; where the widths differ, e_s first goes
 *           through a learned linear map
 *   loss  = mean over counted positions of (w_ce CE + gate (w_soft soft + w_hard hard)) + w_embed mean of embed
 *
 * Gradients. With z = s/tau, dq_i/dz_j = q_i (delta_ij - q_j), and for any D(q) whose partial derivative in q_i is
 * D_i:  dD/dz_j = q_j (D_j - sum_i q_i D_i). Then d(tau^2 D)/ds = tau dD/dz.
 *   KL:       D_i = -p_i/q_i            ->  tau (q - p)
 *   reverse:  D_i = log(q_i/p_i) + 1    ->  tau q (log(q/p) - KL(q||p))
 *   JSD:      D_i = (1-beta) log(q_i/m_i) + const
 *                                       ->  tau (1-beta) q (log(q/m) - KL(q||m))
 *   SKL:      D_i = -(1-a) p_i/m_i      SRKL: D_i = log(q_i/m_i) + (1-a) p_i/m_i + const      (kernels/mixture.h)
 *   CE, hard: softmax(s) - onehot
 *   cos:      d cos/d e_s = e_t/(|e_s||e_t|) - cos e_s/|e_s|^2
 * (Hinton, Vinyals & Dean 2015 for tau^2; Agarwal et al. 2024, "On-Policy Distillation", for JSD_beta; Ko et al. 2024,
 * "DistiLLM", for SKL and SRKL.)
 *
 * Gates, off by default, multiply the soft and the hard term of a position:
 *   entropy band     1 where the teacher's entropy at tau lies inside [low, high], else 0. Not applied when fewer than
 *                    45 % of the positions of a micro-batch would remain. Gradient accumulation equals one large batch
 *                    except where this rule applies.
 *   confidence gate  a factor where the teacher's argmax is the label with at least a given probability
 *
 * Memory. The hidden states of all n positions are kept, but logits exist for one chunk of positions at a time:
 * student chunk = h_s W_sᵀ, teacher chunk = h_t W_tᵀ, then the row kernel (Ops.distill_rows: each row is read from
 * memory once, and the gradient g is written over the student's logits), then dh_s = g W_s and dW_s += gᵀ h_s. The
 * extra memory is the logits of one chunk, or of two on a GPU.
 *
 * Time. Most of it goes into the matmuls: 8 n V d FLOPs with a teacher as wide as the student (two heads forward, dh
 * and dW), against 6 bytes per logit in the row kernel. On a GPU the row kernel, which is bound by memory, runs on a
 * second stream while the matmuls of the chunks before and after it run on the first. dW is accumulated by the matmul
 * itself (fp32, accumulating), which moves 8 V d bytes per chunk; a chunk of r rows computes 2 r V d FLOPs meanwhile, so r
 * should be above a thousand. Never writing the logits, as Cut Cross-Entropy does, costs more here:
 * dev/learn/README.md has the figures.
 *
 * Devices. Everything here runs on the student's device, where train/teacher.h brings the teacher's hidden states
 * (narrow) and its head (once); the teacher's logits (wide) are made here. The statistics of a pass stay on the device
 * until objective_collect asks for them, so that the host need not wait inside a step. */
#ifndef LOSS_CUH
#define LOSS_CUH

#include "kernels/device.h"
#include "model.h"
#include "teacher_output.h"

typedef struct {
    float w_ce, w_soft, w_hard, w_embed, w_layer;  // w_layer: of train/layer_loss.h
    float temperature;
    SoftLoss soft;
    float mix;                           // beta of JSD, a of SKL and SRKL
    float band_low, band_high;           // nats; the entropy band is off when low <= 0 and high is infinite
    float gate_confidence, gate_factor;  // the confidence gate is off when the confidence is > 1
    float clip_ratio;                    // of a policy gradient
} ObjectiveConfig;

static const char *const soft_loss_names[] = {"kl", "reverse-kl", "jsd", "skl", "srkl"};  // by SoftLoss
enum { SOFT_LOSSES = 5 };

enum {
    OBJECTIVE_BAND_FLOOR = 45,  // per cent of positions the band must leave, or it is not applied
    OBJECTIVE_ROWS = 65536,     // capacity for positions whose statistics wait on the device, at least
    OBJECTIVE_IMAGES = 4096,    // and for images whose cosines do
    OBJECTIVE_CHUNK = 4096,     // positions in a chunk where the device does not tell how much memory is free
    OBJECTIVE_MEGABYTES = 512   // of logits, at most, where it does
};

/* Factors of the gradient: 1 / counted positions and 1 / images of the whole batch. Zeros: no gradient is wanted. */
typedef struct {
    double positions, images;
} LossScale;

/* Sums over positions (and images) of one or more passes; divide by positions (images) for means. */
typedef struct {
    double ce, soft, hard, embed;  // soft includes tau²; soft and hard are not gated here
    double entropy, gate;
    double correct, agreement;  // the student's argmax equals the label; the teacher's argmax
    double clipped;             // positions whose policy gradient is clipped
    double positions, images;
    double layer, layer_rows;  // the layer loss: its sum over positions and pairs of layers; how many these are
    double loss;  // the weighted, gated sum that is differentiated, times positions
} ObjectiveSums;

typedef struct {
    const Ops *op;
    const Ops *second;       // where the row kernels run: the device's second stream, or op where one chunk is enough
    ObjectiveConfig config;  // changes only when nothing waits for objective_collect
    Weight teacher_head;     // [Vt, Wt] on op; rows 0 without a teacher
    int Vs, chunk, max_positions;
    Arena arena;
    floatX *student_logits[2], *teacher_logits[2];  // [chunk, Vs], [chunk, Vt]; with a second stream, two in turn
    int *labels;                                    // device [max_positions]
    float *row_gate;                                // [max_positions]
    /* the embedding loss, where there is a teacher */
    int max_images, image_tokens, student_width;
    Params map;                                  // "embed_map" [Wt, Ws] where the widths differ
    floatX *mapped, *d_mapped, *d_image_tokens;  // [B, P, Wt] twice, [B, P, Ws]
    /* statistics that wait for objective_collect */
    int rows, rows_capacity, cosine_count, cosine_capacity;
    RowStats *stats, *host_stats;   // [rows_capacity]
    int *host_labels;               // [rows_capacity]
    float *cosines, *host_cosines;  // [cosine_capacity]
    ObjectiveSums sums;             // of what no longer waits
} Objective;

/* ---- memory ---- */

/* How many chunks have their logits in memory at a time. */
static inline int objective_slots(const Objective *o) { return o->second == o->op ? 1 : 2; }

static inline void objective_plan(Objective *o) {
    size_t n = o->max_positions, Vt = o->teacher_head.rows, Wt = o->teacher_head.cols;
    size_t tokens = (size_t)o->max_images * o->image_tokens;
    for (int i = 0; i < objective_slots(o); i++) {
        o->student_logits[i] = arena_x(&o->arena, (size_t)o->chunk * o->Vs);
        if (o->teacher_head.data) o->teacher_logits[i] = arena_x(&o->arena, o->chunk * Vt);
    }
    o->labels = arena_int(&o->arena, n);
    o->stats = arena_take(&o->arena, o->rows_capacity, sizeof(RowStats));
    o->row_gate = arena_f32(&o->arena, n);
    if (o->config.w_embed > 0 && Vt) {
        o->mapped = arena_x(&o->arena, tokens * Wt);
        o->d_mapped = arena_x(&o->arena, tokens * Wt);
        o->d_image_tokens = arena_x(&o->arena, tokens * o->student_width);
    }
    o->cosines = arena_f32(&o->arena, o->cosine_capacity);
}

/* The default number of positions in a chunk: as many as a quarter of the free memory holds the logits of, but for at
 * most 512 MB (so with 2 GB free it is always the same number, and with it the bits of the head's gradient), in whole
 * tiles of the matmuls. */
static inline int objective_chunk(const Objective *o) {
    const size_t tile = 256, free_bytes = o->op->memory_free(), limit = (size_t)OBJECTIVE_MEGABYTES << 20;
    size_t position = objective_slots(o) * (size_t)(o->Vs + o->teacher_head.rows) * sizeof(floatX);
    if (!free_bytes) return OBJECTIVE_CHUNK;
    size_t most = (free_bytes / 4 < limit ? free_bytes / 4 : limit) / position / tile * tile;
    return most < tile ? (int)tile : most > (size_t)o->max_positions ? o->max_positions : (int)most;
}

/* For passes of up to `images` images with up to max_positions counted positions in all, `chunk` of them at a time
 * through the heads (0: as many as the free memory suggests). teacher_head: the teacher's head on the student's device;
 * rows 0 without a teacher. seed: for the map of the embedding loss. */
static inline void objective_open(Objective *o, ObjectiveConfig config, const Model *student, Weight teacher_head,
                                  int chunk, int max_positions, int images, uint64_t seed) {
    const Ops *op = student->op;
    int width = student->c.lm.hidden_size;
    *o = (Objective){.op = op,
                     .second = ops_second_stream(op),
                     .config = config,
                     .teacher_head = teacher_head,
                     .Vs = student->c.lm.vocab,
                     .max_positions = max_positions,
                     .rows_capacity = max_positions > OBJECTIVE_ROWS ? max_positions : OBJECTIVE_ROWS,
                     .cosine_capacity = images > OBJECTIVE_IMAGES ? images : OBJECTIVE_IMAGES,
                     .max_images = images,
                     .image_tokens = model_image_tokens(student),
                     .student_width = width};
    o->chunk = chunk > 0 ? chunk : objective_chunk(o);
    if (o->chunk >= max_positions) {  // a single chunk has nothing to run beside
        o->chunk = max_positions;
        o->second = op;
    }
    objective_plan(o);
    arena_allocate(&o->arena, op, "", "the objective's chunks");
    objective_plan(o);
    o->host_stats = xcalloc(o->rows_capacity, sizeof(RowStats));
    o->host_labels = xcalloc(o->rows_capacity, sizeof(int));
    o->host_cosines = xcalloc(o->cosine_capacity, sizeof(float));
    params_reserve(&o->map, 1, "");
    if (config.w_embed > 0 && teacher_head.rows && width != teacher_head.cols) {
        param_add(&o->map, GROUP_CONNECTOR, "", -1, "embed_map", teacher_head.cols, width, 1 / sqrtf((float)width));
        params_allocate(&o->map, op);
        params_init_random(&o->map, op, seed + 1000);  // another random stream than the student's
    }
}

static inline void objective_close(Objective *o) {
    params_release(&o->map, o->op);
    arena_release(&o->arena, o->op);
    free(o->host_stats);
    free(o->host_labels);
    free(o->host_cosines);
}

static inline ObjectiveRow objective_row(const ObjectiveConfig *c, bool teacher, double scale) {
    return (ObjectiveRow){.w_ce = c->w_ce,
                          .w_soft = teacher ? c->w_soft : 0,
                          .w_hard = teacher ? c->w_hard : 0,
                          .temperature = c->temperature,
                          .soft = c->soft,
                          .mix = c->mix,
                          .gate_confidence = c->gate_confidence,
                          .gate_factor = c->gate_factor,
                          .scale = (float)scale,
                          .clip_ratio = c->clip_ratio};
}

/* ---- statistics ---- */

static inline void objective_add(Objective *o) {
    const ObjectiveConfig *c = &o->config;
    ObjectiveSums *sums = &o->sums;
    double tau2 = (double)c->temperature * c->temperature;
    for (int i = 0; i < o->rows; i++) {
        const RowStats *r = &o->host_stats[i];
        double soft = tau2 * r->soft;
        sums->ce += r->ce;
        sums->soft += soft;
        sums->hard += r->hard;
        sums->entropy += r->entropy;
        sums->gate += r->gate;
        sums->loss += (double)c->w_ce * r->policy;
        sums->clipped += r->clipped;
        if (r->teacher_top >= 0) sums->loss += r->gate * (c->w_soft * soft + (double)c->w_hard * r->hard);
        sums->agreement += r->student_top == r->teacher_top;
        sums->correct += r->student_top == o->host_labels[i];
    }
    for (int i = 0; i < o->cosine_count; i++) sums->embed += 1 - (double)o->host_cosines[i];
    sums->positions += o->rows;
    sums->images += o->cosine_count;
}

/* Waits for the device and adds up the statistics that are there. */
static inline void objective_drain(Objective *o) {
    if (o->rows) o->op->download(o->host_stats, o->stats, o->rows * sizeof(RowStats));
    if (o->cosine_count) o->op->download(o->host_cosines, o->cosines, o->cosine_count * sizeof(float));
    objective_add(o);
    o->rows = o->cosine_count = 0;
}

/* The sums over all passes since the last call. Waits for the device. */
static inline ObjectiveSums objective_collect(Objective *o) {
    objective_drain(o);
    ObjectiveSums sums = o->sums;
    o->sums = (ObjectiveSums){0};
    return sums;
}

/* The mean loss that was differentiated. */
static inline double objective_mean(const Objective *o, const ObjectiveSums *s) {
    double loss = s->positions > 0 ? s->loss / s->positions : 0;
    if (s->images > 0) loss += o->config.w_embed * s->embed / s->images;
    if (s->layer_rows > 0) loss += o->config.w_layer * s->layer / s->layer_rows;
    return loss;
}

/* ---- the terms over positions ---- */

/* The arguments of one pass over n positions. */
typedef struct {
    const floatX *hidden;  // [n, Ws]
    const TeacherOutput *teacher;
    const Param *head;  // the student's
    floatX *d_hidden;   // [n, Ws], or NULL
    int n;
} ObjectivePass;

/* Rows of the chunk that begins at row `at`, and the slot where its logits lie. */
static inline size_t objective_rows(const Objective *o, const ObjectivePass *p, int at) {
    return p->n - at < o->chunk ? p->n - at : o->chunk;
}

static inline int objective_slot(const Objective *o, int at) { return at / o->chunk % objective_slots(o); }

/* Both heads' logits of the chunk at row `at`. */
static inline void objective_logits(Objective *o, const ObjectivePass *p, int at) {
    size_t rows = objective_rows(o, p, at);
    int slot = objective_slot(o, at);
    linear(o->op, o->student_logits[slot], p->hidden + (size_t)at * p->head->cols, p->head, rows);
    if (p->teacher->hidden)
        linear_weight(o->op, o->teacher_logits[slot], p->teacher->hidden + (size_t)at * o->teacher_head.cols,
                      o->teacher_head, rows);
}

/* The row kernel on the chunk at row `at`, in the form of the teacher's outputs. gate (NULL: 1), stats: of all rows. */
static inline void objective_kernel(const Objective *o, const Ops *op, const ObjectivePass *p, int at,
                                    const float *gate, RowStats *stats, ObjectiveRow row, bool gradient) {
    const TeacherOutput *q = p->teacher;
    const size_t Vt = o->teacher_head.rows, rows = objective_rows(o, p, at);
    floatX *s = o->student_logits[objective_slot(o, at)];
    const floatX *t = q->logits ? q->logits + at * Vt : q->hidden ? o->teacher_logits[objective_slot(o, at)] : NULL;
    if (gate) gate += at;
    if (q->policy) row.policy = q->policy + at;
    if (q->row_mix) row.row_mix = q->row_mix + at;
    if (q->sparse)
        op->distill_rows_sparse(s, sparse_from(q->sparse, at), o->labels + at, gate, stats + at, row, rows, o->Vs,
                                gradient);
    else
        op->distill_rows(s, t, o->labels + at, gate, stats + at, row, rows, o->Vs, Vt, gradient);
}

/* From the chunk's gradients, which lie where the student's logits were, to the hidden states and the head. */
static inline void objective_backward(Objective *o, const ObjectivePass *p, int at) {
    size_t first = (size_t)at * p->head->cols;
    if (!p->d_hidden) return;
    linear_backward(o->op, p->d_hidden + first, o->student_logits[objective_slot(o, at)], p->hidden + first, p->head,
                    NULL, objective_rows(o, p, at));
}

/* The entropy band needs every position's entropy before the first gradient, so it costs a pass of its own. Returns the
 * device's gates, or NULL when the band is off. */
static inline const float *objective_band(Objective *o, const ObjectivePass *p, RowStats *stats) {
    const ObjectiveConfig *c = &o->config;
    if (!teacher_output_given(p->teacher) || (c->band_low <= 0 && isinf(c->band_high))) return NULL;
    ObjectiveRow row = objective_row(c, true, 1);
    for (int at = 0; at < p->n; at += o->chunk) {
        objective_logits(o, p, at);
        objective_kernel(o, o->op, p, at, NULL, stats, row, false);
    }
    o->op->entropy_band(o->row_gate, stats, p->n, c->band_low, c->band_high, OBJECTIVE_BAND_FLOOR);
    return o->row_gate;
}

/* CE, soft and hard over n positions: hidden states [n, Ws], the teacher's outputs for them, host labels [n]. d_hidden
 * [n, Ws], if not NULL, gets the gradient times `scale` (1 / counted positions of the whole batch), and the gradient of the
 * head, where it is trained, is added to. objective_collect gives the statistics.
 *
 * With a second stream the matmuls go back from a chunk (`behind` rows ago) while the row kernel works on the next one,
 * and forward for the one after. With one stream, each chunk is finished before the next begins. */
static inline void objective_positions(Objective *o, floatX *d_hidden, const floatX *hidden, const Param *head,
                                       const TeacherOutput *teacher, const int *labels, int n, double scale) {
    const Ops *op = o->op, *second = o->second;
    const int behind = second == op ? 0 : o->chunk;
    if (n > o->rows_capacity - o->rows) objective_drain(o);
    RowStats *stats = o->stats + o->rows;
    memcpy(o->host_labels + o->rows, labels, n * sizeof(int));
    o->rows += n;
    op->upload(o->labels, labels, n * sizeof(int));
    ObjectivePass pass = {hidden, teacher, head, d_hidden, n};
    const float *gate = objective_band(o, &pass, stats);
    ObjectiveRow row = objective_row(&o->config, teacher_output_given(teacher), scale);
    int at = 0;
    for (; at < n; at += o->chunk) {
        objective_logits(o, &pass, at);
        op->wait_for(second);  // the last chunk's rows
        second->wait_for(op);  // this one's logits
        objective_kernel(o, second, &pass, at, gate, stats, row, d_hidden != NULL);
        if (at >= behind) objective_backward(o, &pass, at - behind);
    }
    op->wait_for(second);
    if (behind && at) objective_backward(o, &pass, at - behind);
}

/* ---- the embedding term ---- */

/* The embedding loss over B images: image tokens e_s [B, P, Ws], e_t [B, P, Wt]. Returns its gradient with respect to
 * e_s times scale (1 / images of the whole batch) times w_embed, or NULL where `gradient` is false or the term is off;
 * the map's own gradient is added to. */
static inline const floatX *objective_embed(Objective *o, const floatX *student, const floatX *teacher, int B, int P,
                                            double scale, bool gradient) {
    if (!(o->config.w_embed > 0) || !teacher) return NULL;
    const Ops *op = o->op;
    Param *map = o->map.count ? &o->map.list[0] : NULL;
    size_t tokens = (size_t)B * P, per_image = (size_t)P * o->teacher_head.cols;
    const floatX *e = student;
    if (map) {
        linear(op, o->mapped, student, map, tokens);
        e = o->mapped;
    }
    if (B > o->cosine_capacity - o->cosine_count) objective_drain(o);
    op->cosine(o->cosines + o->cosine_count, gradient ? o->d_mapped : NULL, e, teacher, B, per_image,
               (float)scale * o->config.w_embed);
    o->cosine_count += B;
    if (!gradient || !map) return gradient ? o->d_mapped : NULL;
    linear_backward(op, o->d_image_tokens, o->d_mapped, student, map, NULL, tokens);
    return o->d_image_tokens;
}

/* ---- all of it ---- */

/* The objective of the student's last forward pass. With a scale its gradient follows, for model_backward: in
 * student->d_hidden and, where the embedding loss is on, student->d_embed_loss. */
static inline void objective_run(Objective *o, Model *student, const TeacherOutput *teacher, LossScale scale) {
    bool learn = scale.positions > 0;
    objective_positions(o, learn ? student->d_hidden : NULL, student->hidden, student->lm_head, teacher,
                        student->labels, student->n, scale.positions);
    student->d_embed_loss =
        objective_embed(o, student->vision.tokens, teacher->image_tokens, student->B, model_image_tokens(student),
                        scale.images, learn);
}

#endif
