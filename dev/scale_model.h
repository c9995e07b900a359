/* What a training step costs and how long it takes, from shapes and rates: the arithmetic of dev/scale.c.
 *
 * Operations and bytes are not written down here a second time: models are declared and their memory is planned by
 * the program's own code (model.h, loss.cuh, train/optimizer.h), without allocating it.
 *
 *   student   forward + objective + backward (+ recomputed blocks), `accum` times
 *             + reduce-scatter of fp32 gradients, what the last backward pass does not hide
 *             + AdamW on its share + all-gather of the new values + small messages
 *   teacher   its forward passes, (students accum / teachers) times as long, at the same time on other ranks
 *   step      the longest of: student, teacher, what goes over their links */
#ifndef SCALE_MODEL_H
#define SCALE_MODEL_H

#include "../loss.cuh"
#include "../model.h"
#include "../ranks.h"

typedef struct {
    const char *name;
    double peak;                  // product rate of one device, FLOP/s
    double memory, bandwidth;     // of one device: bytes; bytes/s, read and written together
    double link, link_latency;    // between two ranks of a node: bytes/s in one direction; seconds a hop
    double network, net_latency;  // the same from a rank to another node
    double call;                  // seconds to start a collective
    int node;                     // ranks in a node
    double jitter;                // standard deviation of a rank's computation, relative
    double overlap;               // share of communication that can go on beside computation
    double reserve;               // bytes of a device that drivers and libraries take
    int small;                    // small collectives in a step
} Machine;

typedef struct {
    Model teacher, student;  // declared and planned, never allocated
    bool has_teacher;
    int parts;
} Pair;

/* What can be chosen for a run of a pair on a machine. */
typedef struct {
    int teachers, students, per_device;
    int batch, accum, text;
    double filled;
    Recompute recompute;
    bool sharded, hide_gather;
    int collective;               // DIRECT, RING, TIERED
    size_t bucket;                // elements; 0: as train/optimizer.h says
    double share, teacher_share;  // of the product rate that their passes reach
    int chunk;                    // positions of a chunk of logits; 0: as loss.cuh says
} Plan;

enum { DIRECT, RING, TIERED };
static const char *const collectives[] = {"direct", "ring", "tiered"};
static const char *const recompute_names[] = {"none", "activations", "blocks"};

/* Prepares the models for a plan: what is trained, what is computed again, and who looks at the images. A frozen
 * encoder like the teacher's looks once where both models are on one rank (model_share_encoder). */
static void configure(Pair *p, const Plan *plan) {
    VisionConfig s = p->student.c.vision, t = p->teacher.c.vision;
    s.out = t.out = 0;
    s.concat = t.concat = 0;
    s.bias = t.bias = false;
    bool same = p->has_teacher && !memcmp(&s, &t, sizeof s);
    model_train(&p->student, p->parts, plan->recompute);
    p->student.vision.source = same && !plan->teachers && !(p->parts & GROUP_VISION) ? &p->teacher.vision : NULL;
}

/* Operations of one micro-batch. */
typedef struct {
    double teacher, forward;  // without the heads
    double teacher_head, head;
    double layer, vision;               // backward: of one decoder layer, of what comes after the decoder
    double layer_again, encoder_again;  // recomputed in the backward pass: in all decoder layers, in the encoder
    double model;                       // what train_distill counts for a pass, without what is recomputed
    double positions;                   // that count
} Work;

static Work work_of(Pair *p, const Plan *plan) {
    const ModelConfig *s = &p->student.c;
    const VisionConfig *v = &s->vision;
    Work w;
    memset(&w, 0, sizeof w);
    configure(p, plan);
    int B = plan->batch, n = (int)(plan->filled * plan->text * B + 0.5);
    double forward = model_flops(&p->student, B, plan->text, n), encoder = vision_flops(&p->student.vision, B);
    double patches = (double)B * vision_patches(v), rows = (double)B * model_sequence(&p->student, plan->text);
    double connector = 2 * patches * v->width * s->lm.width;
    double seen = p->parts & GROUP_VISION ? encoder : 0;  // by the backward pass
    w.positions = n;
    w.head = 2.0 * n * s->lm.width * s->lm.vocab;
    w.forward = forward - w.head;
    double layer = (w.forward - encoder - connector) / s->lm.layers;
    w.layer = 2 * layer;
    w.vision = 2 * (seen + connector);
    if (plan->recompute == RECOMPUTE_BLOCKS) {  // all but the last block, without its last product
        w.layer_again = (s->lm.layers - 1) * (layer - 2 * rows * s->lm.width * s->lm.ffn);
        w.encoder_again = seen * (v->layers - 1) / v->layers - 2 * patches * v->width * v->mlp * (v->layers - 1);
        if (!(p->parts & GROUP_VISION)) w.encoder_again = 0;
    }
    w.model = forward + 2 * (forward - encoder + seen);
    if (!p->has_teacher) return w;
    const LmConfig *t = &p->teacher.c.lm;
    double teacher = model_flops(&p->teacher, B, plan->text, n);
    w.teacher_head = 2.0 * n * t->width * t->vocab;
    w.teacher = teacher - w.teacher_head;
    w.model += teacher;
    return w;
}

/* The optimizer's flat arrays for `ranks` students. Release .list. */
static Optimizer lay_out(Pair *p, const Plan *plan) {
    Optimizer o;
    memset(&o, 0, sizeof o);
    o.op = &cpu_ops;
    o.ranks = plan->students;
    o.sharded = plan->sharded && plan->students > 1;
    Params *list = &p->student.params;
    optimizer_lay_out(&o, &list, &p->parts, 1);
    size_t unit = (size_t)OPTIMIZER_ALIGN * (size_t)o.ranks;
    if (plan->bucket) o.bucket = (plan->bucket + unit - 1) / unit * unit;
    return o;
}

/* ---- bytes ---- */

typedef struct {
    double weights, gradients, state, activations, chunks, received;  // of a student rank
    double teacher;                                                   // weights and activations of a teacher
} Memory;

static double planned_activations(Model *m, const Plan *plan) {
    m->max_B = plan->batch;
    m->max_T = plan->text;
    memset(&m->arena, 0, sizeof m->arena);
    model_plan_pass(m);
    return (double)m->arena.used + (double)m->c.lm.max_positions * m->c.lm.head_dim * sizeof(float);
}

static double planned_values(const Params *p, int parts) {
    Arena a = {NULL, 0};
    for (int i = 0; i < p->count; i++)
        if (p->list[i].part & parts) arena_x(&a, p->list[i].n);
    return (double)a.used;
}

static size_t ample_memory(void) { return (size_t)1 << 40; }

/* Of the objective on the student's side, as a GPU with much free memory has it; far: the teacher is another rank. */
static double planned_objective(const Pair *p, const Plan *plan, bool far) {
    static const Ops elsewhere;
    Ops device = cpu_ops;
    Objective o;
    device.memory_free = ample_memory;
    memset(&o, 0, sizeof o);
    o.op = &device;
    o.beside = &elsewhere;
    o.Vs = p->student.c.lm.vocab;
    o.width = p->student.c.lm.width;
    o.images = plan->batch;
    o.cosine_room = plan->batch > OBJECTIVE_IMAGES ? plan->batch : OBJECTIVE_IMAGES;
    o.tokens = vision_tokens(&p->student.c.vision);
    if (p->has_teacher) {
        o.teacher_op = far ? &elsewhere : &device;
        o.teacher_head = param_weight(p->teacher.head);
        o.Vt = p->teacher.c.lm.vocab;
        o.teacher_width = p->teacher.c.lm.width;
    }
    o.max_positions = o.rows_room = plan->batch * plan->text;
    if (o.rows_room < OBJECTIVE_ROWS) o.rows_room = OBJECTIVE_ROWS;
    o.chunk = plan->chunk ? plan->chunk : objective_chunk(&o);
    if (o.chunk >= o.max_positions) {
        o.chunk = o.max_positions;
        o.beside = o.op;
    }
    objective_plan_pass(&o);
    return (double)o.arena.used;
}

static Memory memory_of(Pair *p, const Plan *plan) {
    Memory m;
    memset(&m, 0, sizeof m);
    bool apart = plan->teachers > 0;
    configure(p, plan);
    Optimizer o = lay_out(p, plan);
    optimizer_plan_state(&o);
    m.weights = planned_values(&p->student.params, GROUP_ALL & ~p->parts) + (double)o.n * sizeof(floatX);
    m.gradients = (double)o.n * sizeof(float);
    m.state = (double)o.state_memory.used;
    m.activations = planned_activations(&p->student, plan);
    m.chunks = planned_objective(p, plan, apart);
    if (p->has_teacher) {
        double hidden = (double)plan->batch * plan->text * p->teacher.c.lm.width * sizeof(floatX);
        m.teacher = planned_values(&p->teacher.params, GROUP_ALL) + planned_activations(&p->teacher, plan);
        if (apart) m.received = FEED_RING * hidden;
    }
    free(o.list);
    return m;
}

static double student_bytes(const Memory *m, const Plan *plan) {
    return m->weights + m->gradients + m->state + m->activations + m->chunks + m->received +
           (plan->teachers ? 0 : m->teacher);
}

/* ---------------------------------------------------------------------------------------------------------------
 * Time */

/* Seconds of a reduce-scatter or all-gather of `bytes` among N consecutive ranks, each ending with or beginning from
 * bytes/N. Every rank sends (N-1)/N of the bytes in all three ways; they differ in who sends to whom:
 *   direct  a piece to every other rank, those of other nodes through the rank's own way to the network
 *   ring    pieces go round; the ring's strands cross nodes through all of a node's ways to the network together
 *   tiered  first inside a node, then what is left (1/ranks of a node) between the ranks of equal place in the nodes
 */
static double collective_seconds(const Machine *m, int N, double bytes, int way) {
    if (N < 2) return 0;
    int G = N < m->node ? N : (int)m->node, nodes = (N + G - 1) / G;
    double across = m->network * G < m->link ? m->network * G : m->link;
    switch (way) {
    case DIRECT:
        return m->call + (G - 1) * (bytes / N / m->link + m->link_latency) +
               (N - G) * (bytes / N / m->network + m->net_latency);
    case RING:
        return m->call + (N - 1) * (bytes / N) / (nodes > 1 ? across : m->link) + (N - nodes) * m->link_latency +
               (nodes - 1) * m->net_latency;
    default:
        return (G > 1 ? m->call : 0) + (G - 1) * (bytes / G / m->link + m->link_latency) + (nodes > 1 ? m->call : 0) +
               (nodes - 1) * (bytes / G / nodes / m->network + m->net_latency);
    }
}

/* Seconds after the beginning of the backward pass at which a parameter's gradient is complete: the head's is when
 * the objective is done, at 0; then come the decoder's layers from the last to the first, the embedding and the
 * connector, the encoder. */
static double gradient_ready(const Pair *p, const Param *x, double layer, double vision) {
    const ModelConfig *c = &p->student.c;
    int l, at = 0;
    double decoder = layer * c->lm.layers;
    if (x == p->student.head && x != p->student.embed) return 0;
    if (sscanf(x->name, "lm.%d.%n", &l, &at) == 1 && at) return layer * (c->lm.layers - l);
    if (sscanf(x->name, "vision.%d.%n", &l, &at) == 1 && at)
        return decoder + vision * (c->vision.layers - l) / c->vision.layers;
    return x->part == GROUP_VISION ? decoder + vision : decoder;
}

typedef struct {
    double busy, exposed;  // seconds
    int buckets;
} Reduced;

/* The buckets of gradients leave from the end of the flat arrays, each when it is complete and the one before it has
 * gone. */
static Reduced reduction_of(const Pair *p, const Plan *plan, const Machine *m, const Optimizer *o, double layer,
                            double vision) {
    Reduced r = {0, 0, optimizer_buckets(o)};
    double backward = layer * p->student.c.lm.layers + vision, done = 0, ready = 0;
    int next = o->count - 1;
    for (int b = r.buckets - 1; b >= 0; b--) {
        size_t begin = (size_t)b * o->bucket;
        for (; next >= 0 && o->list[next]->at + o->list[next]->n > begin; next--) {
            double t = gradient_ready(p, o->list[next], layer, vision);
            ready = t > ready ? t : ready;
            if (o->list[next]->at < begin) break;  // it reaches into the bucket before as well
        }
        double seconds = collective_seconds(m, plan->students, (double)optimizer_bucket_length(o, b) * sizeof(float),
                                            plan->collective);
        done = (ready > done ? ready : done) + seconds;
        r.busy += seconds;
    }
    double hidden = m->overlap * (r.busy - (done > backward ? done - backward : 0));
    r.exposed = r.busy - hidden;
    return r;
}

typedef enum {
    T_TEACHER,
    T_FORWARD,
    T_OBJECTIVE,
    T_BACKWARD,
    T_JITTER,
    T_OPTIMIZER,
    T_REDUCE,
    T_GATHER,
    T_SMALL,
    T_HIDDEN,
    T_WAIT,
    T_SHARED,
    TERMS
} Term;
static const char *const term_names[TERMS] = {"teacher forward",
                                              "forward",
                                              "objective",
                                              "backward",
                                              "the slowest rank",
                                              "AdamW",
                                              "reduce-scatter",
                                              "all-gather",
                                              "small messages",
                                              "hidden states",
                                              "waiting for the teacher",
                                              "other ranks on the device"};

typedef struct {
    double term[TERMS];              // seconds of a student's step, one after another
    double teacher, student, links;  // seconds of a step: a teacher's work, a student's work, a student's links
    double link_in;                  // seconds in which a student receives hidden states
    double step, tokens, images, flops;
    Reduced reduction;
    double gather_busy;
    bool fits;  // into the devices' memory
} Step;

/* AdamW reads the gradient, master and moments and writes the masters, moments and the value (30 bytes), on the
 * rank's share; the norm reads the share's gradients once more; all gradients are set to zero. */
static double optimizer_seconds(const Machine *m, const Optimizer *o) {
    double share = o->sharded ? (double)o->n / o->ranks : (double)o->n;
    return (share * (7 * sizeof(float) + sizeof(floatX)) + (double)o->n / o->ranks * sizeof(float) +
            (double)o->n * sizeof(float)) /
           m->bandwidth;
}

static void computation(Step *s, const Work *w, const Pair *p, const Plan *plan, const Machine *m) {
    double rate = m->peak * plan->share, teacher_rate = m->peak * plan->teacher_share, again = plan->accum;
    bool apart = plan->teachers > 0;
    s->term[T_FORWARD] = again * w->forward / rate;
    s->term[T_OBJECTIVE] = again * (3 * w->head + (apart ? w->teacher_head : 0)) / rate;
    s->term[T_BACKWARD] =
        again * (w->layer * p->student.c.lm.layers + w->vision + w->layer_again + w->encoder_again) / rate;
    double one = (w->teacher + (apart ? 0 : w->teacher_head)) / teacher_rate;
    if (apart)
        s->teacher = one * again * plan->students / plan->teachers;
    else
        s->term[T_TEACHER] = one * again;
    double sum = s->term[T_TEACHER] + s->term[T_FORWARD] + s->term[T_OBJECTIVE] + s->term[T_BACKWARD];
    if (plan->students > 1) s->term[T_JITTER] = sum * m->jitter * sqrt(2 * log(plan->students));
}

static void communication(Step *s, const Work *w, const Pair *p, const Plan *plan, const Machine *m,
                          const Optimizer *o) {
    double rate = m->peak * plan->share;
    double layer = (w->layer + w->layer_again / p->student.c.lm.layers) / rate;
    double vision = (w->vision + w->encoder_again) / rate;
    s->reduction = reduction_of(p, plan, m, o, layer, vision);
    s->term[T_REDUCE] = s->reduction.exposed;
    for (int b = 0; o->sharded && b < s->reduction.buckets; b++)
        s->gather_busy += collective_seconds(
            m, plan->students, (double)optimizer_bucket_length(o, b) * sizeof(floatX), plan->collective);
    if (!o->sharded) s->gather_busy = s->reduction.busy;  // an all-reduce: the sums come back in fp32
    double beside = plan->hide_gather ? m->overlap * (s->term[T_TEACHER] + s->term[T_FORWARD]) / plan->accum : 0;
    s->term[T_GATHER] = s->gather_busy > beside ? s->gather_busy - beside : 0;
    s->term[T_SMALL] =
        (double)m->small * 2 * collective_seconds(m, plan->students, 8.0 * plan->students, plan->collective);
    if (!plan->teachers || !p->has_teacher) return;
    int ranks = plan->teachers + plan->students;
    double hidden = w->positions * p->teacher.c.lm.width * sizeof(floatX) * plan->accum;
    s->link_in = hidden / (ranks > m->node ? m->network : m->link) +
                 plan->accum * (m->call + (ranks > m->node ? m->net_latency : m->link_latency));
    s->term[T_HIDDEN] = (1 - m->overlap) * s->link_in;
    s->teacher += (1 - m->overlap) * s->link_in * plan->students / plan->teachers;
    s->links = m->overlap * (s->link_in + s->reduction.busy + s->gather_busy);
    double out = m->overlap * s->link_in * plan->students / plan->teachers;
    s->links = out > s->links ? out : s->links;
}

static bool fits(Pair *p, const Plan *plan, const Machine *m) {
    Memory memory = memory_of(p, plan);
    double room = m->memory - m->reserve;
    return student_bytes(&memory, plan) * plan->per_device <= room && memory.teacher <= room;
}

static Step step_of(Pair *p, const Plan *plan, const Machine *m) {
    Step s;
    memset(&s, 0, sizeof s);
    Work w = work_of(p, plan);
    Optimizer o = lay_out(p, plan);
    computation(&s, &w, p, plan, m);
    communication(&s, &w, p, plan, m, &o);
    s.term[T_OPTIMIZER] = optimizer_seconds(m, &o);
    for (int i = 0; i < TERMS; i++) s.student += s.term[i];
    s.step = s.student > s.teacher ? s.student : s.teacher;
    if (s.links > s.step) s.step = s.links;
    int ranks = plan->teachers + plan->students, devices = (ranks + plan->per_device - 1) / plan->per_device;
    double together = (s.student * plan->students + s.teacher * plan->teachers) / devices;
    s.term[T_WAIT] = s.step - s.student;
    if (plan->per_device > 1 && together > s.step) s.term[T_SHARED] = together - s.step;
    s.step += s.term[T_SHARED];
    s.images = (double)plan->batch * plan->accum * plan->students;
    s.tokens = w.positions * plan->accum * plan->students;
    s.flops = w.model * plan->accum * plan->students;
    s.fits = fits(p, plan, m);
    free(o.list);
    return s;
}

static int plan_devices(const Plan *plan) {
    return (plan->teachers + plan->students + plan->per_device - 1) / plan->per_device;
}

/* Tokens per second and device against one device that does everything. */
static double efficiency(Pair *p, const Plan *plan, const Machine *m, const Step *s) {
    Plan one = *plan;
    one.teachers = 0;
    one.students = one.per_device = 1;
    Step alone = step_of(p, &one, m);
    return s->tokens / s->step / plan_devices(plan) / (alone.tokens / alone.step);
}

/* The teacher ranks among `ranks` with which the most tokens come through and all fits; 0 when nothing does. */
static int best_teachers(Pair *p, const Plan *plan, const Machine *m, int ranks) {
    int best = 0;
    double most = 0;
    for (int a = 0; a < ranks && p->has_teacher; a++) {
        Plan other = *plan;
        other.teachers = a;
        other.students = ranks - a;
        Step s = step_of(p, &other, m);
        if (s.tokens / s.step <= most || !s.fits) continue;
        most = s.tokens / s.step;
        best = a;
    }
    return best;
}

#endif
