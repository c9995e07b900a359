/* How long a training step takes on machines that are not here: products, memory, links and networks, term by term.
 *
 *   scale --teachers 1 --students 1           teacher | student on two H100, a 7 B teacher and a 1.1 B student
 *   scale --students 64 --brief               data parallel on eight machines; one line instead of the table
 *   scale --measure --ranks 2                 this machine's rates, as options for the above
 *   scale --check                             tests its own arithmetic
 *
 * The arithmetic is in scale_model.h; scale.md derives it, names the sources of the figures below, and compares with
 * measured runs. */
#include "../dataloader.h"
#include "../kernels/peak.h"
#include "../lib/options.h"
#include "../lib/threads.h"
#include "scale_model.h"

/* ---------------------------------------------------------------------------------------------------------------
 * Machines and models */

/* Data sheets and NCCL's own model of latencies: dev/scale.md, "Where the figures come from". */
static const Machine machines[] = {
    {"h100-sxm", 989.4e12, 80e9, 3.35e12, 450e9, 3.4e-6, 50e9, 14e-6, 8.4e-6, 8, 0, 0, 0, 0},
    {"h100-pcie", 756e12, 80e9, 2.0e12, 64e9, 5.7e-6, 50e9, 14e-6, 8.4e-6, 2, 0, 0, 0, 0},
};
enum { MACHINES = sizeof machines / sizeof machines[0] };

/* Shapes of DESIGN's checkpoint families, and CodeLlama-34B (Roziere et al. 2023). */
static const struct {
    const char *name, *shape;
} shapes[] = {
    {"1.1b", "tl-1.1b,lm.vocab=32008"},
    {"7b",
     "tl-1.1b,lm.width=4096,lm.layers=32,lm.heads=32,lm.kv_heads=32,lm.head_dim=128,lm.ffn=11008,lm.vocab=32024"},
    {"34b",
     "tl-1.1b,lm.width=8192,lm.layers=48,lm.heads=64,lm.kv_heads=8,lm.head_dim=128,lm.ffn=22016,lm.vocab=32024"},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* ---------------------------------------------------------------------------------------------------------------
 * Options */

static struct {
    const char *machine, *teacher, *student, *train, *data, *collective, *solve, *recompute, *rendezvous, *device;
    double peak, share, teacher_share, memory, bandwidth, bandwidth_share;
    double link, link_latency, network, net_latency, call, link_share, jitter, overlap, reserve, measured, filled;
    int64_t node, teachers, students, per_device, batch, accum, text, chunk, bucket, threads, small, rank, ranks;
    bool sharded, hide_gather, brief, measure, check;
} opt = {
    .machine = "h100-sxm",
    .teacher = "7b",
    .student = "1.1b",
    .train = "connector,lm",
    .collective = "ring",
    .share = 0.6,
    .link_share = 0.8,
    .overlap = 1,
    .bandwidth_share = 0.9,
    .jitter = 0.01,
    .reserve = 3,
    .filled = 1,
    .students = 1,
    .per_device = 1,
    .batch = 8,
    .accum = 1,
    .text = 1024,
    .small = 2,
    .sharded = true,
    .recompute = "none",
    .device = "cpu",
    .rank = -1,
};

#define HEADING(text) \
    { NULL, 0, OPT_FLAG, NULL, NULL, text, 0, 0 }
static const Option table[] = {
    HEADING("the run"),
    {"teacher", 0, OPT_STRING, &opt.teacher, "FILE|SHAPE",
     "34b, 7b, 1.1b, a shape of train_distill's or none; 7b,lm.layers=16 changes a key", 0, 0},
    {"student", 0, OPT_STRING, &opt.student, "FILE|SHAPE", "the same for the student", 0, 0},
    {"train", 0, OPT_STRING, &opt.train, "PARTS", "what is trained of vision,connector,lm", 0, 0},
    {"teachers", 'A', OPT_INT, &opt.teachers, "N", "teacher ranks; 0: every student rank has its own", 0, 1e6},
    {"students", 'B', OPT_INT, &opt.students, "N", "student ranks", 1, 1e6},
    {"batch", 'b', OPT_INT, &opt.batch, "N", "images in a student rank's micro-batch", 1, 65536},
    {"accum", 0, OPT_INT, &opt.accum, "N", "micro-batches in a step", 1, 65536},
    {"text", 0, OPT_INT, &opt.text, "N", "text positions of an image, with padding", 1, 1e6},
    {"filled", 0, OPT_FLOAT, &opt.filled, "X", "share of them that count", 0.001, 1},
    {"data", 0, OPT_STRING, &opt.data, "FILE", "take --text and --filled from this dataset's batches", 0, 0},
    {"recompute", 0, OPT_STRING, &opt.recompute, "LEVEL", "none, activations or blocks, as in train_distill", 0, 0},
    {"chunk", 0, OPT_INT, &opt.chunk, "N", "as in train_distill", 0, 1e9},
    {"sharded", 0, OPT_FLAG, &opt.sharded, NULL, "each student rank keeps its share of the optimizer state (ZeRO-1)",
     0, 0},
    HEADING("the machine"),
    {"machine", 0, OPT_STRING, &opt.machine, "NAME", "h100-sxm or h100-pcie; what follows changes one figure of it",
     0, 0},
    {"peak", 0, OPT_FLOAT, &opt.peak, "FLOP/S", "product rate of a device", 0, 1e20},
    {"memory", 0, OPT_FLOAT, &opt.memory, "GB", "of a device", 0, 1e9},
    {"bandwidth", 0, OPT_FLOAT, &opt.bandwidth, "GB/S", "of a device's memory", 0, 1e9},
    {"link", 0, OPT_FLOAT, &opt.link, "GB/S", "between ranks of a node, one direction", 0, 1e9},
    {"link-latency", 0, OPT_FLOAT, &opt.link_latency, "US", "of one hop in a node", 0, 1e9},
    {"network", 0, OPT_FLOAT, &opt.network, "GB/S", "from a rank to other nodes, one direction", 0, 1e9},
    {"network-latency", 0, OPT_FLOAT, &opt.net_latency, "US", "of one hop between nodes", 0, 1e9},
    {"call", 0, OPT_FLOAT, &opt.call, "US", "to start a collective", 0, 1e9},
    {"node", 0, OPT_INT, &opt.node, "N", "ranks in a node", 1, 1e6},
    {"per-device", 0, OPT_INT, &opt.per_device, "N", "ranks that share one device", 1, 1000},
    HEADING("assumptions, or what was measured instead"),
    {"share", 0, OPT_FLOAT, &opt.share, "X", "of the product rate that the student's passes reach", 1e-6, 1},
    {"teacher-share", 0, OPT_FLOAT, &opt.teacher_share, "X", "that the teacher's reach; 0: as --share", 0, 1},
    {"bandwidth-share", 0, OPT_FLOAT, &opt.bandwidth_share, "X", "of the memory's bandwidth that AdamW reaches", 1e-6,
     1},
    {"link-share", 0, OPT_FLOAT, &opt.link_share, "X", "of links and network that messages reach", 1e-6, 1},
    {"overlap", 0, OPT_FLOAT, &opt.overlap, "X", "share of communication that can go on beside computation", 0, 1},
    {"jitter", 0, OPT_FLOAT, &opt.jitter, "X", "standard deviation of a rank's computation, relative", 0, 1},
    {"reserve", 0, OPT_FLOAT, &opt.reserve, "GB", "of a device's memory that the drivers and libraries take", 0, 1e9},
    {"small", 0, OPT_INT, &opt.small, "N", "small collectives in a step", 0, 1000},
    HEADING("ways to communicate"),
    {"collective", 0, OPT_STRING, &opt.collective, "NAME", "direct (sockets, MPI), ring (NCCL) or tiered", 0, 0},
    {"bucket", 0, OPT_INT, &opt.bucket, "N", "elements of a bucket; 0: as train/optimizer.h says", 0, 1e12},
    {"hide-gather", 0, OPT_FLAG, &opt.hide_gather, NULL, "the all-gather goes on beside the next forward pass", 0, 0},
    HEADING("output"),
    {"brief", 0, OPT_FLAG, &opt.brief, NULL, "one line", 0, 0},
    {"measure", 0, OPT_FLAG, &opt.measure, NULL, "measure this machine and print the options that say so", 0, 0},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "what to measure: cpu or cuda", 0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "threads to measure with", 0, 4096},
    {"ranks", 0, OPT_INT, &opt.ranks, "N", "processes to measure between, as for train_distill", 0, 1e6},
    {"rank", 0, OPT_INT, &opt.rank, "R", "which of them this is", -1, 1e6},
    {"rendezvous", 0, OPT_STRING, &opt.rendezvous, "HOST:PORT", "where they meet", 0, 0},
    {"solve", 0, OPT_STRING, &opt.solve, "NAME",
     "share or teacher-share: print the value of that option with which the prediction is --measured", 0, 0},
    {"measured", 0, OPT_FLOAT, &opt.measured, "TOKENS/S", "for --solve", 0, 1e15},
    {"check", 0, OPT_FLAG, &opt.check, NULL, "test the arithmetic", 0, 0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

/* An option's value in basic units, or what the machine has where it is not given. */
static double given(const double *value, double unit, double otherwise) {
    return options_given(value) ? *value * unit : otherwise;
}

static Machine the_machine(void) {
    int i = 0;
    while (i < MACHINES && strcmp(machines[i].name, opt.machine)) i++;
    if (i == MACHINES) options_die("--machine is '%s'; expected h100-sxm or h100-pcie", opt.machine);
    Machine m = machines[i];
    m.peak = given(&opt.peak, 1, m.peak);
    m.memory = given(&opt.memory, 1e9, m.memory);
    m.bandwidth = given(&opt.bandwidth, 1e9, m.bandwidth) * opt.bandwidth_share;
    m.link = given(&opt.link, 1e9, m.link) * opt.link_share;
    m.link_latency = given(&opt.link_latency, 1e-6, m.link_latency);
    m.network = given(&opt.network, 1e9, m.network) * opt.link_share;
    m.net_latency = given(&opt.net_latency, 1e-6, m.net_latency);
    m.call = given(&opt.call, 1e-6, m.call);
    if (opt.node) m.node = (int)opt.node;
    m.jitter = opt.jitter;
    m.overlap = opt.overlap;
    m.reserve = opt.reserve * 1e9;
    m.small = (int)opt.small;
    return m;
}

/* ---------------------------------------------------------------------------------------------------------------
 * Models */

static void load_config(ModelConfig *c, const char *option, const char *name) {
    Error err;
    SafeTensors st;
    if (file_exists(name)) {
        if (safetensors_open(&st, name, &err) || config_load(c, &st, &err)) die("%s", err.text);
        safetensors_close(&st);
        return;
    }
    size_t length = strcspn(name, ",");
    const char *shape = NULL;
    for (int i = 0; i < SHAPES; i++)
        if (strlen(shapes[i].name) == length && !strncmp(shapes[i].name, name, length)) shape = shapes[i].shape;
    char *text = format_string("%s%s", shape ? shape : name, shape ? name + length : "");
    if (config_from_shape(c, text, 32008, &err)) options_die("--%s: %s", option, err.text);
    free(text);
}

static void declare(Model *m, const char *option, const char *name) {
    memset(m, 0, sizeof *m);
    load_config(&m->c, option, name);
    m->op = &cpu_ops;
    model_declare(m);
}

static Pair declare_pair(const char *teacher, const char *student, const char *train) {
    Pair p;
    memset(&p, 0, sizeof p);
    p.has_teacher = strcmp(teacher, "none") != 0;
    declare(&p.student, "student", student);
    if (p.has_teacher) declare(&p.teacher, "teacher", teacher);
    if (strstr(train, "vision")) p.parts |= GROUP_VISION;
    if (strstr(train, "connector")) p.parts |= GROUP_CONNECTOR;
    if (strstr(train, "lm")) p.parts |= GROUP_LM;
    if (!p.parts) options_die("--train names no part; expected vision, connector, lm or several with commas");
    return p;
}

static void release_pair(Pair *p) {
    model_close(&p->student);
    model_close(&p->teacher);
}

/* ---------------------------------------------------------------------------------------------------------------
 * Output */

static double products(const Step *s) {
    return s->term[T_TEACHER] + s->term[T_FORWARD] + s->term[T_OBJECTIVE] + s->term[T_BACKWARD];
}

/* What makes the step as long as it is, and who waits for it. */
static const char *bound_text(const Step *s, char *text, size_t size) {
    Term most = T_JITTER;
    for (int i = T_JITTER; i < T_WAIT; i++)
        if (s->term[i] > s->term[most]) most = (Term)i;
    double idle = s->teacher > 0 ? 1 - s->teacher / s->step : 0;
    if (s->term[T_SHARED] > 0.05 * s->step)
        snprintf(text, size, "%s, %.0f %%", term_names[T_SHARED], 100 * s->term[T_SHARED] / s->step);
    else if (s->links > s->student && s->links > s->teacher)
        snprintf(text, size, "links");
    else if (s->term[T_WAIT] > 0.05 * s->step)
        snprintf(text, size, "teacher; students wait %.0f %%", 100 * s->term[T_WAIT] / s->step);
    else if (s->student - products(s) > 0.1 * s->step)
        snprintf(text, size, "%s, %.0f %%", term_names[most], 100 * s->term[most] / s->step);
    else if (idle > 0.05)
        snprintf(text, size, "products; teachers wait %.0f %%", 100 * idle);
    else
        snprintf(text, size, "products");
    return text;
}

static void print_brief(Pair *p, const Plan *plan, const Machine *m) {
    Step s = step_of(p, plan, m);
    Memory memory = memory_of(p, plan);
    char who[40], room[40], bound[80];
    if (plan->teachers)
        snprintf(who, sizeof who, "%d:%d", plan->teachers, plan->students);
    else
        snprintf(who, sizeof who, "%d", plan->students);
    if (plan->teachers && p->has_teacher)
        snprintf(room, sizeof room, "%.0f:%.0f", memory.teacher / 1e9, student_bytes(&memory, plan) / 1e9);
    else
        snprintf(room, sizeof room, "%.0f", student_bytes(&memory, plan) / 1e9);
    double messages = s.term[T_REDUCE] + s.term[T_GATHER] + s.term[T_SMALL] + s.term[T_HIDDEN];
    printf("| %s | %.0f | %.1f | %.1f | %.1f | %.1f | %.0f | %.1f | %.1f | %s%s | %s |\n", who, s.images,
           1e3 * s.step, 1e3 * (products(&s) + s.term[T_JITTER] + s.term[T_OPTIMIZER]), 1e3 * messages,
           1e3 * s.term[T_WAIT], s.tokens / s.step, 100 * s.flops / s.step / plan_devices(plan) / m->peak,
           100 * efficiency(p, plan, m, &s), room, s.fits ? "" : " no", bound_text(&s, bound, sizeof bound));
}

static void print_change(Pair *p, const Plan *plan, const Machine *m, const Step *s, const char *what) {
    Step other = step_of(p, plan, m);
    double change = other.tokens / other.step / (s->tokens / s->step) - 1;
    if (fabs(change) < 0.001 && other.fits == s->fits) return;
    printf("  %-52s %12.0f tokens/s  %+6.1f %%%s\n", what, other.tokens / other.step, 100 * change,
           other.fits ? s->fits ? "" : "  fits" : "  does not fit");
}

static void print_changes(Pair *p, const Plan *plan, const Machine *m, const Step *s) {
    char text[80];
    Plan other = *plan;
    printf("what would change it\n");
    other.batch *= 2;
    print_change(p, &other, m, s, "a micro-batch twice as large");
    other = *plan;
    other.accum *= 4;
    print_change(p, &other, m, s, "four times the micro-batches in a step");
    other = *plan;
    for (int level = RECOMPUTE_NONE; level <= RECOMPUTE_BLOCKS; level++) {
        if (level == (int)plan->recompute) continue;
        other.recompute = (Recompute)level;
        snprintf(text, sizeof text, "--recompute %s", recompute_names[level]);
        print_change(p, &other, m, s, text);
    }
    if (p->has_teacher && plan->teachers + plan->students > 1) {
        int ranks = plan->teachers + plan->students, best = best_teachers(p, plan, m, ranks);
        other = *plan;
        other.teachers = best;
        other.students = ranks - best;
        snprintf(text, sizeof text, best ? "the best split of these ranks: %d:%d" : "every rank with its own teacher",
                 best, ranks - best);
        print_change(p, &other, m, s, text);
    }
    if (plan->students < 2) return;
    for (int way = 0; way < 3; way++) {
        if (way == plan->collective) continue;
        other = *plan;
        other.collective = way;
        snprintf(text, sizeof text, "%s collectives", collectives[way]);
        print_change(p, &other, m, s, text);
    }
    Optimizer o = lay_out(p, plan);
    free(o.list);
    other = *plan;
    other.bucket = 16 * o.bucket;
    snprintf(text, sizeof text, "buckets of %.0f MB instead of %.0f", 64e-6 * (double)o.bucket,
             4e-6 * (double)o.bucket);
    print_change(p, &other, m, s, text);
    other = *plan;
    other.hide_gather = !plan->hide_gather;
    print_change(p, &other, m, s, plan->hide_gather ? "an all-gather that is waited for" : "a hidden all-gather");
}

static void print_memory(Pair *p, const Plan *plan, const Machine *m) {
    Memory b = memory_of(p, plan);
    double all = student_bytes(&b, plan);
    printf("memory of a student, GB: weights %.1f, gradients %.1f, optimizer %.1f, activations %.1f, logits %.1f",
           b.weights / 1e9, b.gradients / 1e9, b.state / 1e9, b.activations / 1e9, b.chunks / 1e9);
    if (plan->teachers)
        printf(", received %.1f", b.received / 1e9);
    else if (p->has_teacher)
        printf(", teacher %.1f", b.teacher / 1e9);
    printf("; in all %.1f\n", all / 1e9);
    if (plan->teachers) printf("memory of a teacher, GB: %.1f\n", b.teacher / 1e9);
    printf("%s %.0f GB of which %.1f are for drivers and libraries\n",
           fits(p, plan, m) ? "fits into" : "does not fit into", m->memory / 1e9, m->reserve / 1e9);
}

static void print_table(Pair *p, const Plan *plan, const Machine *m) {
    char bound[80];
    Step s = step_of(p, plan, m);
    const Params *params = &p->student.params;
    printf("student %s, %.2f G parameters, %.2f G trained; teacher %s", opt.student,
           (double)params_total(params, GROUP_ALL) / 1e9, (double)params_total(params, p->parts) / 1e9, opt.teacher);
    if (p->has_teacher) printf(", %.2f G parameters", (double)params_total(&p->teacher.params, GROUP_ALL) / 1e9);
    printf("\n%d teachers, %d students, %d x %d images a student, %d image and %d text positions\n\n",
           plan->teachers, plan->students, plan->accum, plan->batch, vision_tokens(&p->student.c.vision), plan->text);
    printf("a student's step\n");
    for (int i = 0; i < TERMS; i++)
        if (s.term[i] > 0)
            printf("  %-52s %12.3f ms  %6.1f %%\n", term_names[i], 1e3 * s.term[i], 100 * s.term[i] / s.step);
    printf("  %-52s %12.3f ms\n", "in all", 1e3 * s.step);
    if (plan->teachers && p->has_teacher) {
        printf("a teacher computes %.3f ms of it and waits %.1f %%; balanced with %.2f teachers for one student\n",
               1e3 * s.teacher, 100 * (1 - s.teacher / s.step),
               s.teacher * plan->teachers / plan->students / s.student);
        printf("hidden states take %.3f ms of a student's link\n", 1e3 * s.link_in);
    }
    if (plan->students > 1)
        printf("reduce-scatter %.3f ms in %d buckets, %.0f %% of it hidden; all-gather %.3f ms\n",
               1e3 * s.reduction.busy, s.reduction.buckets, 100 - 100 * s.reduction.exposed / s.reduction.busy,
               1e3 * s.gather_busy);
    print_memory(p, plan, m);
    printf("%.0f tokens/s, %.1f images/s; %.1f %% of the product peak; %.1f %% of one device's rate per device; "
           "bound by %s\n\n",
           s.tokens / s.step, s.images / s.step, 100 * s.flops / s.step / plan_devices(plan) / m->peak,
           100 * efficiency(p, plan, m, &s), bound_text(&s, bound, sizeof bound));
    print_changes(p, plan, m, &s);
}

/* ---------------------------------------------------------------------------------------------------------------
 * This machine */

enum {
    MEASURED_PIECE = 1 << 18,
    MEASURED_ROUNDS = 50
};  // floats, 1 MB: between the starter's buckets and larger ones

/* Seconds of the best of many reduce-scatters (sum) or all-gathers of pieces of n floats. */
static double collective_measured(Comm *c, const Ops *op, float *buffer, size_t n, bool sum) {
    double best = 1e9;
    for (int i = 0; i < MEASURED_ROUNDS; i++) {
        double begin = seconds_now();
        if (sum)
            comm_reduce_scatter(c, buffer, n);
        else
            comm_all_gather(c, buffer, n * sizeof *buffer);
        comm_finish(c);
        op->sync();
        double seconds = seconds_now() - begin;
        if (seconds < best) best = seconds;
    }
    return best;
}

/* Between ranks: bytes per second in one direction, of gradients that are summed and values that are gathered (4 and
 * 2 bytes a parameter), and seconds of a small collective. */
static void measure_link(World *w, const Ops *op, double *rate, double *small) {
    Error err;
    Comm c;
    size_t n = MEASURED_PIECE, bytes = n * sizeof(float), ranks = (size_t)w->ranks;
    if (comm_open(&c, w, 0, w->ranks, op, &err)) die("%s", err.text);
    float *buffer = (float *)op->alloc(ranks * bytes);
    if (!buffer) die("cannot allocate %zu bytes", ranks * bytes);
    op->zero(buffer, ranks * bytes);
    *small = collective_measured(&c, op, buffer, 16, false);
    double sum = collective_measured(&c, op, buffer, n, true), gather = collective_measured(&c, op, buffer, n, false);
    *rate = 1.5 * (double)(ranks - 1) * (double)bytes / (sum + 0.5 * gather - 1.5 * *small);
    op->release(buffer);
    comm_close(&c);
}

/* The options with which a prediction is one for these ranks. Of a small collective's time half is taken for its
 * start and half for its hops. On a processor nothing goes on beside the computation: both take the same cores. */
static void print_measured(int argc, char **argv) {
    Error err;
    World w;
    double link = 0, small = 0;
    char name[40];
    if (world_open(&w, argc, argv, opt.rendezvous, (int)opt.rank, (int)opt.ranks, &err)) die("%s", err.text);
    bool numbered = !strcmp(opt.device, "cuda") && w.ranks > 1;
    snprintf(name, sizeof name, "cuda:%d", w.local_rank);
    const Ops *op = ops_open(numbered ? name : opt.device, &err);
    if (!op) die("%s", err.text);
    if (w.ranks > 1) measure_link(&w, op, &link, &small);
    if (w.rank == 0) {
        threads_use((int)opt.threads);
        double peak = measure_peak_flops(op), copying = measure_copy_bandwidth(op, (size_t)64 << 20);
        printf("--peak %.4g --bandwidth %.3g --bandwidth-share 1", peak, copying / 1e9);
        if (w.ranks > 1)
            printf(" --link %.3g --link-share 1 --link-latency %.3g --call %.3g --node %d", link / 1e9,
                   0.5e6 * small / (w.ranks - 1), 0.5e6 * small, w.local_ranks);
        if (op->host_memory) printf(" --overlap 0 --jitter 0 --collective direct");
        printf("\n");
    }
    world_close(&w);
}

/* --data: what the batches of an epoch look like. */
static void look_at_data(const Pair *p, const Plan *plan) {
    Error err;
    Dataset data;
    Loader loader;
    LoaderConfig c;
    memset(&c, 0, sizeof c);
    c.batch = plan->batch * plan->accum * plan->students;
    c.sizes[0] = p->student.c.vision.image_size;
    c.size_count = 1;
    c.max_tokens = model_text_room(&p->student);
    c.seed = 1;
    c.shuffle = c.drop_last = true;
    if (dataset_open(&data, opt.data, &err) || loader_start(&loader, &data, c, &err)) die("%s", err.text);
    double texts = 0, tokens = 0, batches = (double)loader.batches_per_epoch;
    for (uint64_t i = 0; i < loader.batches_per_epoch; i++) {
        const Batch *b = loader_next(&loader, &err);
        if (!b) die("%s", err.text);
        texts += b->T / batches;
        tokens += b->tokens / batches / b->B;
    }
    loader_stop(&loader);
    dataset_close(&data);
    opt.text = (int64_t)(texts + 0.5);
    opt.filled = tokens / (double)opt.text;
}

/* The share with which one rank would make the measured tokens per second. */
static void print_solved(Pair *p, const Plan *plan, const Machine *m) {
    bool teacher = !strcmp(opt.solve, "teacher-share");
    if (!teacher && strcmp(opt.solve, "share"))
        options_die("--solve is '%s'; expected share or teacher-share", opt.solve);
    if (opt.measured <= 0 || plan->teachers || plan->students != 1)
        options_die("--solve needs --measured, from one rank");
    Plan full = *plan;
    if (teacher)
        full.teacher_share = 1;
    else
        full.share = 1;
    Step s = step_of(p, &full, m);
    double sought = teacher ? s.term[T_TEACHER] : products(&s) - s.term[T_TEACHER];
    double left = s.tokens / opt.measured - (s.step - sought);
    if (left <= 0) die("no %s is large enough for %g tokens/s", opt.solve, opt.measured);
    printf("--%s %.4g\n", opt.solve, sought / left);
}

/* ---------------------------------------------------------------------------------------------------------------
 * The program's own arithmetic */

static int passed, failed;

static void expect(const char *what, double found, double expected, double tolerance) {
    bool good = fabs(found - expected) <= tolerance * fabs(expected);
    if (!good) printf("failed: %s is %.17g; expected %.17g\n", what, found, expected);
    good ? passed++ : failed++;
}

/* The bytes planned here are those that train_distill's own calls allocate. */
static void check_memory(Recompute recompute, int ranks) {
    Error err;
    AdamW adamw;
    Optimizer o;
    Objective objective;
    ObjectiveConfig config;
    const char *shape = "tiny,lm.layers=3", *tokenizer = "dev/starter/tokenizer.safetensors";
    Pair p = declare_pair("none", shape, "connector,lm");
    Plan plan = {0, ranks, 1, 4, 1, 24, 1, recompute, true, false, RING, 0, 1, 1, 0};
    Model m;
    memset(&adamw, 0, sizeof adamw);
    memset(&config, 0, sizeof config);
    if (model_create(&m, &cpu_ops, shape, tokenizer, 1, &err)) die("%s", err.text);
    model_close(&p.student);
    p.student.c = m.c;  // the tokenizer decides on the vocabulary
    p.student.op = &cpu_ops;
    model_declare(&p.student);
    Params *list = &m.params;
    optimizer_open(&o, &cpu_ops, adamw, &list, &p.parts, 1, 0, ranks, true);
    model_train(&m, p.parts, recompute);
    model_plan(&m, plan.batch, plan.text);
    Weight none = param_weight(m.head);
    objective_open(&objective, &cpu_ops, config, m.c.lm.vocab, m.c.lm.width, NULL, none, 0, plan.batch * plan.text,
                   plan.batch, model_image_tokens(&m), 1);
    Memory b = memory_of(&p, &plan);
    double rope = (double)m.c.lm.max_positions * m.c.lm.head_dim * sizeof(float);
    expect("bytes of weights", b.weights, (double)m.params.values.used + (double)o.n * sizeof(floatX), 0);
    expect("bytes of gradients", b.gradients, (double)o.gradient_memory.used, 0);
    expect("bytes of the optimizer", b.state, (double)o.state_memory.used, 0);
    expect("bytes of activations", b.activations, (double)m.arena.used + rope, 0);
    expect("bytes of logits", b.chunks, (double)objective.arena.used, 0);
    objective_close(&objective);
    optimizer_close(&o);
    model_close(&m);
    release_pair(&p);
}

/* What is computed term by term is what train_distill counts, and, with blocks recomputed, at most a third more. */
static void check_work(const char *train, int teachers, Recompute recompute) {
    Pair p = declare_pair("7b", "1.1b", train);
    Plan plan = {teachers, 1, 1, 2, 1, 1024, 0.9, recompute, true, false, RING, 0, 1, 1, 0};
    Work w = work_of(&p, &plan);
    double sum = w.teacher + w.teacher_head + w.forward + 3 * w.head + w.layer * p.student.c.lm.layers + w.vision;
    expect("operations", sum, w.model, 1e-12);
    expect("operations of the heads", w.head + w.teacher_head,
           2 * w.positions * (double)(p.student.head->n + p.teacher.head->n), 1e-12);
    double again = w.layer_again + w.encoder_again;
    expect("recomputed operations are fewer than the forward pass's",
           recompute == RECOMPUTE_BLOCKS ? again > 0.5 * w.forward && again < w.forward : again == 0, 1, 0);
    double parameters = (double)params_total(&p.student.params, GROUP_LM) - (double)p.student.embed->n;
    double rows = 2.0 * model_sequence(&p.student, 1024), head = (double)p.student.head->n;
    double scores = 2.0 * rows * p.student.c.lm.layers * (243 + 1023) * 2048;  // causal attention
    double connector = 2.0 * 2 * 729 * 1152 * 2048, encoder = vision_flops(&p.student.vision, 2);
    expect("forward pass from the number of parameters", w.forward + w.head,
           2 * rows * (parameters - head) + 2 * w.positions * head + scores + connector + encoder, 1e-3);
    release_pair(&p);
}

static void check_collectives(void) {
    Machine m = {"test", 1, 1, 1, 100, 0.5, 10, 2, 0.25, 4, 0, 1, 0, 0};
    expect("direct, one node", collective_seconds(&m, 4, 800, DIRECT), 0.25 + 3 * (2 + 0.5), 1e-12);
    expect("ring, one node", collective_seconds(&m, 4, 800, RING), 0.25 + 3 * (2 + 0.5), 1e-12);
    expect("tiered, one node", collective_seconds(&m, 4, 800, TIERED), 0.25 + 3 * (2 + 0.5), 1e-12);
    expect("direct, two nodes", collective_seconds(&m, 8, 800, DIRECT), 0.25 + 3 * (1 + 0.5) + 4 * (10 + 2), 1e-12);
    expect("ring, two nodes", collective_seconds(&m, 8, 800, RING), 0.25 + 7 * 100 / 40.0 + 6 * 0.5 + 2, 1e-12);
    expect("tiered, two nodes", collective_seconds(&m, 8, 800, TIERED), 0.5 + 3 * (2 + 0.5) + 10 + 2, 1e-12);
    expect("one rank", collective_seconds(&m, 1, 800, RING), 0, 0);
}

/* A reduction costs nothing more than its last bucket on a fast link, and everything on a slow one. */
static void check_reduction(void) {
    Pair p = declare_pair("none", "1.1b", "connector,lm");
    Plan plan = {0, 8, 1, 2, 1, 1024, 1, RECOMPUTE_NONE, true, false, RING, 0, 1, 1, 0};
    Machine m = {"test", 1e15, 80e9, 1e12, 1e30, 0, 1e30, 0, 0, 8, 0, 1, 0, 0};
    configure(&p, &plan);
    Optimizer o = lay_out(&p, &plan);
    expect("nothing exposed on an infinite link", reduction_of(&p, &plan, &m, &o, 1, 0).exposed, 0, 0);
    m.link = 1e9;
    Reduced slow = reduction_of(&p, &plan, &m, &o, 0, 0), fast = reduction_of(&p, &plan, &m, &o, 1, 0);
    expect("bytes reduced", slow.busy, 7.0 / 8 * 4 * (double)o.n / 1e9, 1e-9);
    expect("all exposed without computation", slow.exposed, slow.busy, 1e-12);
    size_t late = o.undecayed + p.student.embed->n + p.student.vision.connector_w->n + p.student.layer[0].qkv->n +
                  p.student.layer[0].out->n + p.student.layer[0].gate_up->n + p.student.layer[0].down->n;
    expect("what is complete last is exposed, in whole buckets", fast.exposed, 7.0 / 8 * 4 * (double)late / 1e9,
           (double)o.bucket / (double)late);
    m.overlap = 0;
    expect("all exposed without overlap", reduction_of(&p, &plan, &m, &o, 1, 0).exposed, slow.busy, 1e-12);
    free(o.list);
    release_pair(&p);
}

/* A pool of teachers that is just large enough, and the share that --solve finds. */
static void check_balance(void) {
    Pair p = declare_pair("7b", "1.1b", "connector,lm");
    Machine m = machines[0];
    Plan plan = {1, 1, 1, 8, 1, 1024, 1, RECOMPUTE_NONE, true, false, RING, 0, 0.6, 0.6, 0};
    Step few = step_of(&p, &plan, &m);
    expect("the step is the teacher's", few.step, few.teacher, 0);
    plan.teachers = (int)ceil(few.teacher / few.student);
    Step enough = step_of(&p, &plan, &m);
    expect("with enough teachers it is the student's", enough.step, enough.student, 1e-12);
    expect("the same work, divided", enough.teacher * plan.teachers, few.teacher, 1e-12);
    release_pair(&p);
}

static int check_all(void) {
    for (int level = RECOMPUTE_NONE; level <= RECOMPUTE_BLOCKS; level++) {
        check_memory((Recompute)level, 1);
        check_memory((Recompute)level, 4);
        check_work("connector,lm", 1, (Recompute)level);
        check_work("connector,lm", 0, (Recompute)level);
        check_work("vision,connector,lm", 0, (Recompute)level);
    }
    check_collectives();
    check_reduction();
    check_balance();
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}

int main(int argc, char **argv) {
    threads_wait_politely(argv);
    options_parse(table, OPTIONS, argc, argv,
                  "[options]\n\nPredicts how long a training step takes on other machines.", NULL);
    if (opt.check) return check_all();
    if (opt.measure) {
        print_measured(argc, argv);
        return 0;
    }
    Pair p = declare_pair(opt.teacher, opt.student, opt.train);
    Machine m = the_machine();
    int way = name_index(opt.collective, collectives, 3), level = name_index(opt.recompute, recompute_names, 3);
    if (way < 0) options_die("--collective is '%s'; expected direct, ring or tiered", opt.collective);
    if (level < 0) options_die("--recompute is '%s'; expected none, activations or blocks", opt.recompute);
    if (opt.teachers && !p.has_teacher) options_die("--teachers needs a --teacher");
    Plan plan = {(int)opt.teachers,
                 (int)opt.students,
                 (int)opt.per_device,
                 (int)opt.batch,
                 (int)opt.accum,
                 (int)opt.text,
                 opt.filled,
                 (Recompute)level,
                 opt.sharded,
                 opt.hide_gather,
                 way,
                 (size_t)opt.bucket,
                 opt.share,
                 opt.teacher_share > 0 ? opt.teacher_share : opt.share,
                 (int)opt.chunk};
    if (opt.data) {
        look_at_data(&p, &plan);
        plan.text = (int)opt.text;
        plan.filled = opt.filled;
    }
    if (opt.text > model_text_room(&p.student))
        options_die("--text %lld is more than the %d that the student has room for", (long long)opt.text,
                    model_text_room(&p.student));
    if (opt.solve)
        print_solved(&p, &plan, &m);
    else if (opt.brief)
        print_brief(&p, &plan, &m);
    else
        print_table(&p, &plan, &m);
    release_pair(&p);
    return 0;
}
