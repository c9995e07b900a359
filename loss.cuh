/* The distillation objective: what the student is asked to match, its gradient, and how the vocabulary-wide arrays
 * are kept small.
 *
 * For a position with label y, student logits s (V_s values), teacher logits t (V_t), temperature tau,
 * V = min(V_s, V_t), p = softmax(t[:V]/tau), q = softmax(s[:V]/tau):
 *
 *   CE    = -log softmax(s)[y]                                                 over V_s
 *   soft  = tau^2 D(p, q)                                                      over V
 *           KL   D = sum p log(p/q)          reverse KL   D = sum q log(q/p)
 *           JSD  D = beta KL(p||m) + (1-beta) KL(q||m),  m = beta p + (1-beta) q
 *   hard  = -log softmax(s)[argmax t]                                          over V_s, argmax over V
 *   embed = 1 - cos(e_s, e_t), per image: the flattened image tokens; e_s goes through a learned linear map first
 *           when the widths differ
 *   loss  = mean over counted positions of (w_ce CE + gate (w_soft soft + w_hard hard)) + w_embed mean of embed
 *
 * Gradients. With z = s/tau, dq_i/dz_j = q_i (delta_ij - q_j), and for any D(q) whose partial derivative in q_i is
 * D_i:  dD/dz_j = q_j (D_j - sum_i q_i D_i). Then d(tau^2 D)/ds = tau dD/dz.
 *   KL:       D_i = -p_i/q_i            ->  tau (q - p)
 *   reverse:  D_i = log(q_i/p_i) + 1    ->  tau q (log(q/p) - KL(q||p))
 *   JSD:      D_i = (1-beta) log(q_i/m_i) + const
 *                                       ->  tau (1-beta) q (log(q/m) - KL(q||m))
 *   CE, hard: softmax(s) - onehot
 *   cos:      d cos/d a = t/(|a||t|) - cos a/|a|^2
 * (Hinton, Vinyals & Dean 2015 for tau^2; Agarwal et al. 2024, "On-Policy Distillation", for JSD_beta.)
 *
 * Gates, all optional, multiply the soft and hard terms of a position:
 *   band   1 where the teacher's entropy at tau lies inside [low, high], else 0; not applied when fewer than 45 % of
 *          the positions of a micro-batch would remain. The mean stays over all counted positions, so that only this
 *          limit can tell accumulated micro-batches from one large batch.
 *   sure   0.3 where the teacher's argmax is the label with probability at least 0.75
 *
 * Memory. Only hidden states of all n positions are kept, never all logits. The driver walks the positions in
 * chunks: student chunk = h_s W_sᵀ, teacher chunk = h_t W_tᵀ, the row kernel (Ops.distill_rows, each row read
 * from memory once, the gradient written over the student's logits), dh_s = g W_s, dW_s += gᵀ h_s. Extra memory: the
 * logits of a chunk, of two on a GPU.
 *
 * Time. The products make the most of it: 8 n V d FLOPs with a teacher as wide as the student (two heads forward, dh
 * and dW), against 6 bytes of logits per position and entry in the row kernel. A GPU has two lanes: the row kernel of
 * a chunk, which waits for memory, runs in one beside the products of the chunks before and after it, which do not,
 * in the other. dW is added to in the product's own epilogue (fp32, beta = 1): 8 V d bytes a chunk, no pass of its
 * own; a chunk of r rows multiplies for 2 r V d FLOPs meanwhile, so r should be above a thousand.
 * Never writing the logits, as Cut Cross-Entropy does, costs more here: dev/learn/README.md has the figures.
 *
 * Devices. Everything here runs on the student's device. A teacher on another one sends its hidden states and image
 * tokens, which are narrow, and once its head; its logits, which are wide, come into being here. The statistics of a
 * pass stay on the device until objective_collect asks for them, so that the host need not wait inside a step. */
#ifndef LOSS_CUH
#define LOSS_CUH

#include "kernels/ops.h"
#include "kernels/arena.h"
#include "params.h"

typedef struct {
    float w_ce, w_soft, w_hard, w_embed;
    float temperature;
    SoftLoss soft;
    float jsd_beta;
    float band_low, band_high;           // nats; the band gate is off when low <= 0 and high is infinite
    float gate_confidence, gate_factor;  // the sure gate is off when the confidence is > 1
} ObjectiveConfig;

enum {
    OBJECTIVE_BAND_FLOOR = 45,  // per cent of positions the band must leave, or it is not applied
    OBJECTIVE_ROWS = 65536,     // positions whose statistics wait on the device, at least
    OBJECTIVE_IMAGES = 4096,  // images whose cosines do
    OBJECTIVE_CHUNK = 4096,     // positions in a chunk, where the device does not tell how much memory is free
    OBJECTIVE_MEGABYTES = 512   // of logits, at most, where it does
};

/* Sums over positions (and images) of one or more passes; divide by positions (images) for means. */
typedef struct {
    double ce, soft, hard, embed;  // soft includes tau^2; soft and hard are not gated here
    double entropy, gate;
    double right, agree;  // student's argmax equals the label; the teacher's argmax
    double positions, images;
    double loss;  // the weighted, gated sum that is differentiated, times positions
} ObjectiveSums;

typedef struct {
    const Ops *op;
    ObjectiveConfig config;  // changes only when nothing waits for objective_collect
    int Vs, Vt, chunk, max_positions;
    Arena arena;
    const Ops *second;                // where the row kernels run: the device's other lane, or op
    floatX *student[2], *teacher[2];  // [chunk, Vs], [chunk, Vt], of chunks in turn; where there is one lane only [0]
    int *labels;                      // device [max_positions]
    float *row_gate;                  // [max_positions]
    /* the teacher */
    const Ops *teacher_op;  // its device; NULL without a teacher
    Weight teacher_head;    // on our device
    void *staged_head;        // copies of what lies on another device, else NULL: the head,
    floatX *staged_hidden;    // [max_positions, Wt]
    floatX *staged_tokens;    // [B, P, Wt]
    /* embedding loss, when a teacher is there */
    int images, tokens, width, teacher_width;  // per image: image tokens, their widths
    Params map;                                  // "embed_map" [Wt, Ws] when the widths differ
    floatX *mapped, *d_mapped, *d_tokens;        // [B, P, Wt] twice, [B, P, Ws]
    /* what waits for objective_collect: rows and images so far, room for more */
    int rows, rows_room, cosine_count, cosine_room;
    RowStats *stats, *host_stats;   // [rows_room]
    int *host_labels;               // [rows_room]
    float *cosines, *host_cosines;  // [cosine_room]
    ObjectiveSums sums;             // of what is no longer waiting
} Objective;

/* How many chunks have their logits at a time. */
static inline int objective_slots(const Objective *o) { return o->second == o->op ? 1 : 2; }

static inline void objective_plan_pass(Objective *o) {
    size_t rows = (size_t)o->chunk, n = (size_t)o->max_positions, B = (size_t)o->images;
    for (int i = 0; i < objective_slots(o); i++) {
        o->student[i] = arena_x(&o->arena, rows * (size_t)o->Vs);
        o->teacher[i] = arena_x(&o->arena, rows * (size_t)o->Vt);
    }
    o->labels = arena_int(&o->arena, n);
    o->stats = (RowStats *)arena_take(&o->arena, (size_t)o->rows_room, sizeof(RowStats));
    o->row_gate = arena_f32(&o->arena, n);
    bool far = o->teacher_op && o->teacher_op != o->op, embed = o->config.w_embed > 0 && o->Vt;
    size_t tokens = B * (size_t)o->tokens;
    if (far && !ops_share_memory(o->teacher_op, o->op))
        o->staged_head =
            arena_take(&o->arena, (size_t)o->Vt * (size_t)o->teacher_width, dtype_size(o->teacher_head.dtype));
    if (far) o->staged_hidden = arena_x(&o->arena, n * (size_t)o->teacher_width);
    if (far && embed) o->staged_tokens = arena_x(&o->arena, tokens * (size_t)o->teacher_width);
    if (embed) {
        o->mapped = arena_x(&o->arena, tokens * (size_t)o->teacher_width);
        o->d_mapped = arena_x(&o->arena, tokens * (size_t)o->teacher_width);
        o->d_tokens = arena_x(&o->arena, tokens * (size_t)o->width);
    }
    o->cosines = arena_f32(&o->arena, (size_t)o->cosine_room);
}

/* Positions in a chunk, where nobody asks for a number: as many as a quarter of the free memory holds the logits of,
 * but not for more than 512 MB (so with 2 GB free it is always the same number, and with it the bits of the head's
 * gradient); whole tiles of the products. */
static inline int objective_chunk(const Objective *o) {
    const size_t tile = 256, free_bytes = o->op->memory_free();
    size_t position = (size_t)objective_slots(o) * (size_t)(o->Vs + o->Vt) * sizeof(floatX),
           most = OBJECTIVE_MEGABYTES;
    if (!free_bytes) return OBJECTIVE_CHUNK;
    most = (free_bytes / 4 < most << 20 ? free_bytes / 4 : most << 20) / position / tile * tile;
    return most < tile ? (int)tile : most > (size_t)o->max_positions ? o->max_positions : (int)most;
}

/* Buffers for up to max_positions positions of up to `images` images in a pass, `chunk` of them (0: by the memory
 * that is free) at a time through the heads. The student's head is [Vs, width]. teacher_op and teacher_head: the
 * teacher's device and its head there; NULL without a teacher. tokens: image tokens of an image, for the embedding
 * loss. */
static inline void objective_open(Objective *o, const Ops *op, ObjectiveConfig config, int Vs, int width,
                                  const Ops *teacher_op, Weight teacher_head, int chunk, int max_positions,
                                  int images, int tokens, uint64_t seed) {
    memset(o, 0, sizeof *o);
    o->op = op;
    o->config = config;
    o->Vs = Vs;
    o->teacher_op = teacher_op;
    o->teacher_head = teacher_head;
    o->Vt = teacher_op ? teacher_head.rows : 0;
    o->teacher_width = teacher_op ? teacher_head.cols : 0;
    o->max_positions = max_positions;
    o->second = ops_second_stream(op);
    o->chunk = chunk > 0 ? chunk : objective_chunk(o);
    if (o->chunk >= max_positions) {  // one chunk, nothing to run beside it
        o->chunk = max_positions;
        o->second = op;
    }
    o->rows_room = max_positions > OBJECTIVE_ROWS ? max_positions : OBJECTIVE_ROWS;
    o->cosine_room = images > OBJECTIVE_IMAGES ? images : OBJECTIVE_IMAGES;
    o->images = images;
    o->tokens = tokens;
    o->width = width;
    objective_plan_pass(o);
    arena_allocate(&o->arena, op, "the objective's chunks");
    objective_plan_pass(o);
    if (o->staged_head) {
        size_t bytes = (size_t)o->Vt * (size_t)o->teacher_width * dtype_size(teacher_head.dtype);
        op->copy_from(o->staged_head, teacher_op, teacher_head.data, bytes);
        o->teacher_head.data = o->staged_head;
    } else if (teacher_op) {
        teacher_op->sync();  // the head may have come through the other lane
    }
    o->host_stats = (RowStats *)xcalloc((size_t)o->rows_room, sizeof(RowStats));
    o->host_labels = (int *)xcalloc((size_t)o->rows_room, sizeof(int));
    o->host_cosines = (float *)xcalloc((size_t)o->cosine_room, sizeof(float));
    params_reserve(&o->map, 1);
    if (config.w_embed > 0 && o->Vt && width != o->teacher_width) {
        param_add(&o->map, GROUP_CONNECTOR, "", -1, "embed_map", o->teacher_width, width, 1 / sqrtf((float)width));
        params_allocate_values(&o->map, op);
        params_randomise(&o->map, op, GROUP_ALL, seed + 1000);  // not the student's first stream
    }
}

static inline void objective_close(Objective *o) {
    params_release(&o->map, o->op);
    arena_release(&o->arena, o->op);
    free(o->host_stats);
    free(o->host_labels);
    free(o->host_cosines);
}

static inline ObjectiveRow objective_row(const ObjectiveConfig *c, bool teacher, float scale) {
    ObjectiveRow r;
    r.w_ce = c->w_ce;
    r.w_soft = teacher ? c->w_soft : 0;
    r.w_hard = teacher ? c->w_hard : 0;
    r.temperature = c->temperature;
    r.soft = c->soft;
    r.jsd_beta = c->jsd_beta;
    r.gate_confidence = c->gate_confidence;
    r.gate_factor = c->gate_factor;
    r.scale = scale;
    return r;
}

/* ---- statistics ---- */

static inline void objective_add(Objective *o) {
    const ObjectiveConfig *c = &o->config;
    ObjectiveSums *sums = &o->sums;
    double tau2 = (double)c->temperature * (double)c->temperature;
    for (int i = 0; i < o->rows; i++) {
        const RowStats *r = &o->host_stats[i];
        double soft = tau2 * (double)r->soft;
        sums->ce += (double)r->ce;
        sums->soft += soft;
        sums->hard += (double)r->hard;
        sums->entropy += (double)r->entropy;
        sums->gate += (double)r->gate;
        sums->loss += (double)c->w_ce * (double)r->ce;
        if (r->teacher_top >= 0)
            sums->loss += (double)r->gate * ((double)c->w_soft * soft + (double)c->w_hard * (double)r->hard);
        sums->agree += r->student_top == r->teacher_top;
        sums->right += r->student_top == o->host_labels[i];
    }
    for (int i = 0; i < o->cosine_count; i++) sums->embed += 1 - (double)o->host_cosines[i];
    sums->positions += o->rows;
    sums->images += o->cosine_count;
}

/* Waits for the device and adds up what is there. */
static inline void objective_drain(Objective *o) {
    if (o->rows) o->op->download(o->host_stats, o->stats, (size_t)o->rows * sizeof(RowStats));
    if (o->cosine_count) o->op->download(o->host_cosines, o->cosines, (size_t)o->cosine_count * sizeof(float));
    objective_add(o);
    o->rows = o->cosine_count = 0;
}

/* The sums over all passes since the last call. Waits for the device. */
static inline ObjectiveSums objective_collect(Objective *o) {
    objective_drain(o);
    ObjectiveSums sums = o->sums;
    memset(&o->sums, 0, sizeof o->sums);
    return sums;
}

/* ---- passes ---- */

/* What the teacher's device has computed, on ours. */
static inline const floatX *objective_bring(Objective *o, floatX *near, const floatX *from, size_t n) {
    if (!from || o->teacher_op == o->op) return from;
    o->op->copy_from(near, o->teacher_op, from, n * sizeof(floatX));
    return near;
}

/* One pass: its arguments, and the rows of a chunk, at .. at + rows. */
typedef struct {
    const floatX *hidden, *teacher_hidden;
    Weight head;
    floatX *d_hidden;
    float *d_head;
    int n;
} ObjectivePass;

static inline size_t objective_rows(const Objective *o, const ObjectivePass *p, int at) {
    return (size_t)(p->n - at < o->chunk ? p->n - at : o->chunk);
}

static inline int objective_slot(const Objective *o, int at) { return at / o->chunk % objective_slots(o); }

/* Both heads' logits of the chunk starting at row `at`. */
static inline void objective_logits(Objective *o, const ObjectivePass *p, int at) {
    Weight head = p->head, teacher_head = o->teacher_head;
    size_t rows = objective_rows(o, p, at);
    int turn = objective_slot(o, at);
    o->op->linear_forward(o->student[turn], p->hidden + (size_t)at * (size_t)head.cols, head, NULL, ACT_NONE, NULL,
                          rows);
    if (p->teacher_hidden)
        o->op->linear_forward(o->teacher[turn], p->teacher_hidden + (size_t)at * (size_t)teacher_head.cols,
                              teacher_head, NULL, ACT_NONE, NULL, rows);
}

/* What the chunk's gradients, which lie where the student's logits were, give the hidden states and the head. */
static inline void objective_backward(Objective *o, const ObjectivePass *p, int at) {
    size_t rows = objective_rows(o, p, at), first = (size_t)at * (size_t)p->head.cols;
    const floatX *d_logits = o->student[objective_slot(o, at)];
    if (!p->d_hidden) return;
    o->op->linear_backward_input(p->d_hidden + first, d_logits, p->head, rows, false);
    if (p->d_head)
        o->op->linear_backward_weight(p->d_head, NULL, d_logits, p->hidden + first, rows, p->head.rows, p->head.cols);
}

/* The band gate needs every position's entropy before the first gradient, so it costs a pass of its own. Returns the
 * device gates, or NULL when the gate is off. */
static inline const float *objective_band(Objective *o, const ObjectivePass *p, RowStats *stats) {
    const ObjectiveConfig *c = &o->config;
    if (!p->teacher_hidden || (c->band_low <= 0 && isinf(c->band_high))) return NULL;
    ObjectiveRow row = objective_row(c, true, 1);
    for (int at = 0; at < p->n; at += o->chunk) {
        int turn = objective_slot(o, at);
        objective_logits(o, p, at);
        o->op->distill_rows(o->student[turn], o->teacher[turn], o->labels + at, NULL, stats + at, row,
                            objective_rows(o, p, at), o->Vs, o->Vt, false);
    }
    o->op->entropy_band(o->row_gate, stats, (size_t)p->n, c->band_low, c->band_high, OBJECTIVE_BAND_FLOOR);
    return o->row_gate;
}

/* One pass over n positions: hidden states [n, Ws], those of the teacher [n, Wt] on its device (NULL: without it),
 * host labels [n]. d_hidden [n, Ws], if not NULL, gets the gradient times `scale` (1 / counted positions of the whole
 * batch), and d_head [Vs, Ws], if not NULL, has its own added. objective_collect gives the statistics.
 *
 * With two lanes the products go back from a chunk (`behind` rows ago) while the row kernel is at the next one, and
 * forward for the one after. Where there is one lane, each chunk is finished before the next begins. */
static inline void objective_run(Objective *o, floatX *d_hidden, float *d_head, const floatX *hidden, Weight head,
                                 const floatX *teacher_hidden, const int *labels, int n, float scale) {
    const Ops *op = o->op, *second = o->second;
    const int behind = second == op ? 0 : o->chunk;
    if (n > o->rows_room - o->rows) objective_drain(o);
    RowStats *stats = o->stats + o->rows;
    memcpy(o->host_labels + o->rows, labels, (size_t)n * sizeof(int));
    o->rows += n;
    op->upload(o->labels, labels, (size_t)n * sizeof(int));
    teacher_hidden = objective_bring(o, o->staged_hidden, teacher_hidden, (size_t)n * (size_t)o->teacher_width);
    ObjectivePass pass = {hidden, teacher_hidden, head, d_hidden, d_head, n};
    const float *gate = objective_band(o, &pass, stats);
    ObjectiveRow row = objective_row(&o->config, teacher_hidden != NULL, scale);
    int at = 0;
    for (; at < n; at += o->chunk) {
        int turn = objective_slot(o, at);
        objective_logits(o, &pass, at);
        op->wait_for(second);  // the last chunk's rows
        second->wait_for(op);  // this one's logits
        second->distill_rows(o->student[turn], teacher_hidden ? o->teacher[turn] : NULL, o->labels + at,
                             gate ? gate + at : NULL, stats + at, row, objective_rows(o, &pass, at), o->Vs, o->Vt,
                             d_hidden != NULL);
        if (at >= behind) objective_backward(o, &pass, at - behind);
    }
    op->wait_for(second);
    if (behind && at) objective_backward(o, &pass, at - behind);
}

/* The embedding loss over B images: image tokens e_s [B, P, Ws], e_t [B, P, Wt] on the teacher's device. Returns
 * its gradient with respect to e_s times scale (1 / images of the whole batch) times w_embed, or NULL when
 * `gradient` is false or the term is off; the map's own gradient is added to it. */
static inline const floatX *objective_embed(Objective *o, const floatX *student, const floatX *teacher, int B,
                                            float scale, bool gradient) {
    if (!(o->config.w_embed > 0) || !teacher) return NULL;
    const Ops *op = o->op;
    Param *map = o->map.count ? &o->map.list[0] : NULL;
    size_t tokens = (size_t)B * (size_t)o->tokens, per_image = (size_t)o->tokens * (size_t)o->teacher_width;
    const floatX *e = student;
    teacher = objective_bring(o, o->staged_tokens, teacher, (size_t)B * per_image);
    if (map) {
        op->linear_forward(o->mapped, student, param_weight(map), NULL, ACT_NONE, NULL, tokens);
        e = o->mapped;
    }
    if (B > o->cosine_room - o->cosine_count) objective_drain(o);
    op->cosine(o->cosines + o->cosine_count, gradient ? o->d_mapped : NULL, e, teacher, B, per_image,
               scale * o->config.w_embed);
    o->cosine_count += B;
    if (!gradient || !map) return gradient ? o->d_mapped : NULL;
    op->linear_backward_weight(map->gradient, NULL, o->d_mapped, student, tokens, o->teacher_width, o->width);
    op->linear_backward_input(o->d_tokens, o->d_mapped, param_weight(map), tokens, false);
    return o->d_tokens;
}

/* Mean loss that was differentiated. */
static inline double objective_mean(const Objective *o, const ObjectiveSums *s) {
    double loss = s->positions > 0 ? s->loss / s->positions : 0;
    if (s->images > 0) loss += (double)o->config.w_embed * s->embed / s->images;
    return loss;
}

/* How the objective moves while it trains. */
typedef enum { SCHEDULE_NONE, SCHEDULE_ANNEAL, SCHEDULE_IMAGE2TIKZ } KdSchedule;

/* Image2TikZ's: the temperature falls in quarters (1, 0.85, 0.70, then 0.60 of its base but not below 2), the weight
 * of the soft term stays at its base to 10 %, falls linearly to 55 % of it by 40 % and to 40 % by 70 %, CE taking the
 * rest; the entropy band opens at 40 %. */
static inline ObjectiveConfig schedule_image2tikz(ObjectiveConfig base, double progress) {
    static const float quarters[4] = {1.0f, 0.85f, 0.70f, 0.60f};
    ObjectiveConfig c = base;
    int quarter = progress < 0.25 ? 0 : progress < 0.5 ? 1 : progress < 0.75 ? 2 : 3;
    c.temperature = base.temperature * quarters[quarter];
    if (quarter == 3 && c.temperature < 2) c.temperature = base.temperature < 2 ? base.temperature : 2;
    double share = progress < 0.1   ? 1
                   : progress < 0.4 ? 1 - 0.45 * (progress - 0.1) / 0.3
                   : progress < 0.7 ? 0.55 - 0.15 * (progress - 0.4) / 0.3
                                    : 0.40;
    c.w_soft = base.w_soft * (float)share;
    c.w_ce = base.w_ce + (base.w_soft - c.w_soft);
    if (progress < 0.4) {
        c.band_low = 0;
        c.band_high = INFINITY;
    }
    return c;
}

/* The objective at `progress` in [0, 1] of the training.
 *
 * Annealing (after Jafari et al. 2021, "Annealing Knowledge Distillation"): the temperature goes linearly from its
 * base to 1 at 80 % and stays. A high temperature makes the student learn where it doubts: tau^2 (q - p) at tau = 4
 * is many times the gradient at 1 where q is neither 0 nor 1. But at its minimum the student's distribution is right
 * at tau, not at 1, where it writes: so it ends there. */
static inline ObjectiveConfig objective_schedule(ObjectiveConfig base, KdSchedule schedule, double progress) {
    const double annealed = 0.8;
    if (schedule == SCHEDULE_IMAGE2TIKZ) return schedule_image2tikz(base, progress);
    if (schedule == SCHEDULE_ANNEAL) {
        double share = progress < annealed ? progress / annealed : 1;
        base.temperature += (float)share * (1 - base.temperature);
    }
    return base;
}

#endif
