/* train_distill: trains a small image-to-code model, alone (--teacher none) or from a large one.
 *
 *   load teacher, student, data
 *   for each batch:  teacher forward, student forward, loss, backward   (per micro-batch)
 *                    add up the gradients of all ranks, gradient norm, AdamW
 *   now and then:    evaluate, save
 *
 * As one process, or as several that share the work: teachers apart from students, students with a part of each
 * batch. Every rank runs this file; the steps in which they differ ask for r->ranks.
 *
 * The options are in train/options.h, the formulas in loss.cuh, the models in model.h and vision.h, the data in
 * dataloader.h, what goes between the ranks in ranks.h. */
#include "dataloader.h"
#include "lib/interrupt.h"
#include "lib/json.h"
#include "kernels/peak.h"
#include "lib/progress.h"
#include "train/checkpoint.h"
#include "lib/threads.h"
#include "loss.cuh"
#include "model.h"
#include "ranks.h"
#include "train/options.h"

#include <dirent.h>
#include <limits.h>

/* ---------------------------------------------------------------------------------------------------------------
 * The run */

typedef struct {
    Ranks ranks;
    const Ops *op, *teacher_op;  // the student's device, the teacher's; of a teacher rank, both are its own
    Model student, teacher;      // a teacher rank has no student; a student of teacher ranks uses the teacher's head
    bool has_teacher, has_val;
    bool own_steps;      // a --resume that says itself how large its steps are
    bool overlaps;       // the teacher computes beside the student: it looks at the next items ahead
    int64_t looked_at;   // the item of training whose lesson the teacher here has ready; -1: none
    int teacher_pixels;  // which of a batch's images the teacher looks at: 1 when it wants another size
    int parts;           // of the student that are trained
    Recompute recompute;
    Dataset data, val;
    Loader loader;
    int text;                // most text tokens of a sample
    ObjectiveConfig config;  // as given; the schedule moves objective.config
    KdSchedule schedule;     // how it moves
    Objective objective;
    Optimizer optimizer;
    Reduction reduction;
    Feed feed;  // from teacher ranks
    Waiting waiting;
    LearningRate lr;
    Timetable timetable;
    int64_t steps, step, steps_per_epoch;
    double best;     // validation CE of the best checkpoint
    int64_t worse;   // evaluations since
    double peak;     // measured product rate of the devices of all ranks, FLOP/s
    double seconds;  // that training took
    FILE *log;
    char *student_path, *best_path, *state_path, *log_path, *options_path;
} Run;

static bool leads(const Run *r) { return r->ranks.world.rank == 0; }
static bool taught_from_afar(const Run *r) { return r->ranks.teachers > 0; }

/* The name in a model of `from` layers of what the student calls `name`: layer l of n stands for the layer at the
 * same share of the depth, first for first and last for last (Sanh et al. 2019, "DistilBERT", take every other
 * layer). */
static void name_in_source(char *out, size_t size, const char *name, const ModelConfig *c, const ModelConfig *from) {
    int l, at = 0, vision = !strncmp(name, "vision.", 7);
    int n = vision ? c->vision.layers : c->lm.layers, m = vision ? from->vision.layers : from->lm.layers;
    if (sscanf(name, vision ? "vision.%d.%n" : "lm.%d.%n", &l, &at) != 1 || !at) {
        snprintf(out, size, "%s", name);
        return;
    }
    int source = n > 1 ? (l * (m - 1) + (n - 1) / 2) / (n - 1) : 0;
    snprintf(out, size, "%s.%d.%s", vision ? "vision" : "lm", source, name + at);
}

/* --init: copies every tensor of another model that has its place in the student. */
static void start_from(Run *r, const char *path) {
    Error err;
    SafeTensors st;
    ModelConfig from;
    int taken = 0;
    Tokenizer tokenizer;
    die_if(safetensors_open(&st, path, &err) || config_load(&from, &st, &err) ||
               tokenizer_load(&tokenizer, &st, &err),
           &err);
    bool same_tokens = !tokenizer_same(&r->student.tokenizer, &tokenizer, &err);
    Params *params = &r->student.params;
    for (int i = 0; i < params->count; i++) {
        Param source = params->list[i], *p = &params->list[i];
        if (!same_tokens && (p == r->student.embed || p == r->student.head)) continue;
        name_in_source(source.name, sizeof source.name, p->name, &r->student.c, &from);
        const SafeTensor *t = param_find(&source, &st, &err);
        if (!t) continue;
        param_copy_from(p, t, r->op);
        taken++;
    }
    safetensors_close(&st);
    if (!taken && options_given(&opt.init))
        die("--init: no tensor of %s has the name and shape of one of the student's", path);
    if (leads(r)) progress_note("student: %d of %d tensors start from %s", taken, params->count, path);
}

static void open_student(Run *r) {
    Error err;
    const char *student = opt.resume ? r->student_path : opt.student;
    if (opt.resume || file_exists(student)) {
        die_if(model_open(&r->student, r->op, student, &err), &err);
    } else {
        const char *tokenizer = opt.tokenizer    ? opt.tokenizer
                                : r->has_teacher ? opt.teacher
                                                 : "dev/starter/tokenizer.safetensors";
        die_if(model_create(&r->student, r->op, student, tokenizer, (uint64_t)opt.seed, &err), &err);
        if (strcmp(opt.init, "none")) start_from(r, strcmp(opt.init, "teacher") ? opt.init : opt.teacher);
    }
    if (r->has_teacher && tokenizer_same(&r->student.tokenizer, &r->teacher.tokenizer, &err))
        die("teacher %s and student %s do not share a tokenizer: %s", opt.teacher, student, err.text);
    r->teacher_pixels = r->has_teacher && r->teacher.c.vision.image_size != r->student.c.vision.image_size;
    model_train(&r->student, r->parts, r->recompute);
}

/* A student of teacher ranks needs the teacher's head and sizes only. A file of weights of this build's type gives
 * them without being loaded. */
static void open_models(Run *r) {
    Error err;
    bool file_only = taught_from_afar(r) && !r->ranks.teaches;
    r->has_teacher = strcmp(opt.teacher, "none") != 0;
    arena_whose = "the teacher's ";
    if (r->has_teacher)
        die_if(model_open(&r->teacher, file_only ? &cpu_ops : r->teacher_op, opt.teacher, &err), &err);
    arena_whose = "";
    if (!r->ranks.teaches) open_student(r);
}

static void open_dataset(const Run *r, Dataset *d, const char *pattern) {
    Error err;
    die_if(dataset_open(d, pattern, &err), &err);
    const Tokenizer *tokenizer = r->ranks.teaches ? &r->teacher.tokenizer : &r->student.tokenizer;
    if (d->fingerprint != tokenizer->fingerprint)
        die("%s was made with another tokenizer (fingerprint %016llx) than the student's (%016llx); convert the data "
            "again with the student's tokenizer",
            pattern, (unsigned long long)d->fingerprint, (unsigned long long)tokenizer->fingerprint);
}

/* What this rank loads of batches of `batch` images: its items of them. */
static LoaderConfig loader_config(const Run *r, int batch, bool shuffle) {
    const Ranks *k = &r->ranks;
    LoaderConfig c;
    memset(&c, 0, sizeof c);
    c.batch = batch;
    c.size_count = 1;
    if (k->teaches) {
        c.sizes[0] = r->teacher.c.vision.image_size;
        c.vocab = r->teacher.c.lm.vocab;
    } else {
        c.sizes[0] = r->student.c.vision.image_size;
        c.vocab = r->student.tokenizer.count;
        if (r->has_teacher && r->teacher.c.lm.vocab < c.vocab) c.vocab = r->teacher.c.lm.vocab;
        if (r->teacher_pixels && !taught_from_afar(r)) c.sizes[c.size_count++] = r->teacher.c.vision.image_size;
    }
    c.max_tokens = r->text;
    c.seed = (uint64_t)opt.seed;
    c.shuffle = shuffle;
    c.drop_last = shuffle;
    c.cache_bytes = shuffle ? (size_t)opt.cache << 20 : 0;  // an evaluation looks at each image once
    c.augment = shuffle && opt.augment;
    c.hold = shuffle && r->overlaps ? 2 : 1;
    c.item_rows = (int)opt.batch;
    c.parts = k->teaches ? k->teachers : k->students;
    c.part = k->index;
    return c;
}

/* How long a text may be in all models: the students know. */
static void agree_on_text(Run *r, int longest) {
    int room = 0, *all = (int *)xmalloc((size_t)r->ranks.world.ranks * sizeof(int));
    if (!r->ranks.teaches) {
        room = model_text_room(&r->student);
        if (r->has_teacher && model_text_room(&r->teacher) < room) room = model_text_room(&r->teacher);
        if (opt.max_tokens && opt.max_tokens < room) room = (int)opt.max_tokens;
    }
    comm_gather_host(&r->ranks.everyone, &room, sizeof room, all);
    r->text = (longest + 7) / 8 * 8;
    if (r->text > all[0]) r->text = all[0];
    free(all);
}

/* Batches in an evaluation. */
static int64_t evaluation_batches(const Run *r) {
    int64_t kept = 0;
    if (!r->has_val) return 0;
    for (uint64_t i = 0; i < r->val.count; i++) kept += dataset_sample(&r->val, i).token_count <= (uint32_t)r->text;
    int64_t batches = (kept + opt.batch - 1) / opt.batch;
    return opt.eval_batches && opt.eval_batches < batches ? opt.eval_batches : batches;
}

static void open_data(Run *r) {
    open_dataset(r, &r->data, opt.data);
    r->has_val = opt.val_data && strcmp(opt.val_data, "none");
    if (r->has_val) open_dataset(r, &r->val, opt.val_data);
}

/* Starts the loader, works out how long the run is and who does what when. */
static void start_loader(Run *r) {
    Error err;
    Timetable *t = &r->timetable;
    t->students = r->ranks.students;
    t->teachers = r->ranks.teachers ? r->ranks.teachers : 1;
    t->items = (int)opt.accum * t->students;
    LoaderConfig c = loader_config(r, (int)opt.batch * t->items, true);
    c.first_batch = (uint64_t)r->step;
    die_if(loader_start(&r->loader, &r->data, c, &err), &err);
    if (r->loader.skipped && leads(r))
        warn("%llu of %llu samples have more than %d text tokens and are left out",
             (unsigned long long)r->loader.skipped, (unsigned long long)r->data.count, r->text);
    r->steps_per_epoch = (int64_t)r->loader.batches_per_epoch;
    r->steps = opt.steps ? opt.steps : opt.epochs * r->steps_per_epoch;
    t->step = r->step;
    t->steps = r->steps;
    t->every = opt.eval_every ? opt.eval_every : (r->steps + 9) / 10;
    t->evaluation = evaluation_batches(r);
    if (r->has_val && !t->evaluation)
        die("every sample of %s has more than %d text tokens, so that nothing is left to evaluate; use other data or "
            "--val-data none",
            opt.val_data, r->text);
}

/* Of the student and the objective's map. */
static void plan_optimizer(Run *r) {
    AdamW adamw;
    Params *lists[2] = {&r->student.params, &r->objective.map};
    int parts[2] = {r->parts, GROUP_ALL};
    adamw.beta1 = (float)opt.beta1;
    adamw.beta2 = (float)opt.beta2;
    adamw.eps = 1e-8f;
    adamw.decay = (float)opt.decay;
    adamw.max_norm = (float)opt.clip;
    optimizer_open(&r->optimizer, r->op, adamw, lists, parts, 2, r->ranks.index, r->ranks.students, opt.shard);
}

static void plan_objective(Run *r) {
    const Model *s = &r->student, *t = &r->teacher;
    int B = (int)opt.batch, tokens = model_image_tokens(s);
    if (r->has_teacher && r->config.w_embed > 0 && model_image_tokens(t) != tokens)
        die("--w-embed needs as many image tokens in the student (%d) as in the teacher (%d)", tokens,
            model_image_tokens(t));
    Weight teacher_head = param_weight(r->has_teacher ? t->head : s->head);
    const Ops *from = r->has_teacher ? t->op : NULL;
    if (taught_from_afar(r) && r->ranks.link.device_buffers) {  // the lessons arrive on our device: the head as well
        size_t bytes = t->head->n * sizeof(floatX);
        void *head = r->op->alloc(bytes);
        if (!head)
            die("cannot allocate %.1f MB on device %s for the teacher's head", (double)bytes / 1e6, r->op->name);
        r->op->copy_from(head, t->op, t->head->value, bytes);
        teacher_head.data = head;
        from = r->op;
    }
    objective_open(&r->objective, r->op, r->config, s->c.lm.vocab, s->c.lm.width, from, teacher_head, (int)opt.chunk,
                   B * r->text, B, tokens, (uint64_t)opt.seed);
}

static void plan_models(Run *r) {
    int B = (int)opt.batch;
    arena_whose = "the teacher's ";
    if (r->has_teacher && (r->ranks.teaches || !taught_from_afar(r))) model_plan(&r->teacher, B, r->text);
    arena_whose = "";
    if (r->ranks.teaches) return;
    bool same_images = r->has_teacher && !taught_from_afar(r) && !r->teacher_pixels;
    if (same_images && model_share_encoder(&r->student, &r->teacher) && leads(r))
        progress_note("student: its frozen encoder is the teacher's, which looks at the images for both");
    plan_objective(r);
    plan_optimizer(r);
    model_plan(&r->student, B, r->text);
}

static void plan_schedule(Run *r) {
    r->lr.base = opt.lr;
    r->lr.final_share = opt.lr_final;
    r->lr.gamma = opt.lr_gamma;
    r->lr.steps = r->steps;
    int64_t twentieth = r->steps / 20 < 1000 ? r->steps / 20 : 1000;
    r->lr.warmup = opt.warmup >= 0 ? opt.warmup : twentieth;
}

/* ---------------------------------------------------------------------------------------------------------------
 * One pass, one step */

/* Hidden states [n, Wt] and image tokens [B, P, Wt] of the teacher. */
typedef struct {
    const floatX *hidden, *tokens;
    int64_t n, B;
} Teaching;

/* The teacher that runs in this process looks at rows first .. first+B-1 of a batch. */
static void teacher_looks(Run *r, const Batch *batch, int first, int B) {
    Model *t = &r->teacher;
    size_t S = (size_t)t->c.vision.image_size;
    const uint8_t *pixels = batch->pixels[r->ranks.teaches ? 0 : r->teacher_pixels];
    model_forward(t, pixels + (size_t)first * S * S * 3, batch->ids + (size_t)first * (size_t)batch->T, B, batch->T);
}

/* What the teacher makes of these rows, from wherever it is; `item` as for r->looked_at. */
static Teaching teaching(Run *r, const Batch *batch, int first, int B, int64_t item) {
    Teaching x = {NULL, NULL, 0, 0};
    if (!r->has_teacher) return x;
    if (taught_from_afar(r)) {
        const FeedSlot *lesson = feed_next(&r->feed);
        x.hidden = lesson->hidden;
        x.tokens = lesson->tokens;
        x.n = lesson->header.n;
        x.B = lesson->header.images;
        return x;
    }
    if (item < 0 || item != r->looked_at) teacher_looks(r, batch, first, B);
    r->looked_at = -1;
    x.hidden = r->teacher.hidden;
    x.tokens = r->teacher.vision.tokens;
    x.n = r->teacher.n;
    x.B = r->teacher.B;
    return x;
}

/* Forward of both models and the objective over rows first .. first+B-1 of a batch. With scale > 0 the gradient
 * follows: of the loss with respect to the student's hidden states, and to its image tokens, which is returned (NULL:
 * nothing but the hidden states depends on them). */
static const floatX *pass(Run *r, const Batch *batch, int first, int B, int64_t item, double scale,
                          double image_scale) {
    Model *s = &r->student;
    int T = batch->T;
    size_t S = (size_t)s->c.vision.image_size;
    bool learn = scale > 0;
    Teaching teacher = teaching(r, batch, first, B, item);
    model_forward(s, batch->pixels[0] + (size_t)first * S * S * 3, batch->ids + (size_t)first * (size_t)T, B, T);
    if (r->has_teacher && (teacher.n != s->n || teacher.B != B))
        die("internal error: the teacher looked at %lld positions of %lld images where the student has %d of %d",
            (long long)teacher.n, (long long)teacher.B, s->n, B);
    objective_run(&r->objective, learn ? s->d_hidden : NULL, learn ? s->head->gradient : NULL, s->hidden,
                  param_weight(s->head), teacher.hidden, s->labels, s->n, (float)scale);
    const floatX *d_tokens =
        objective_embed(&r->objective, s->vision.tokens, teacher.tokens, B, (float)image_scale, learn);
    if (taught_from_afar(r)) feed_done(&r->feed);
    return d_tokens;
}

/* Operations of one training pass: both forward passes and the student's backward pass. */
static double pass_flops(const Run *r, int B, int T) {
    const Model *s = &r->student;
    double forward = model_flops(s, B, T, s->n), encoder = vision_flops(&s->vision, B);
    double flops = forward + 2 * (r->parts & GROUP_VISION ? forward : forward - encoder);
    return r->has_teacher ? flops + model_flops(&r->teacher, B, T, s->n) : flops;
}

/* What a student has seen in a step or an evaluation, and whether it was asked to stop. */
typedef struct {
    ObjectiveSums sums;
    double flops, interrupted;
    Waited waited;
} Report;

/* The reports of all students added up, in their order: the same on all of them. But waited is the slowest's. */
static Report everyones(Run *r, Report mine) {
    int students = r->ranks.students;
    Report total, *all = (Report *)xmalloc((size_t)students * sizeof *all);
    Waited *waited = (Waited *)xcalloc((size_t)students, sizeof *waited);
    mine.waited = waited_since(&r->waiting, &r->ranks, &r->feed);
    comm_gather_host(&r->ranks.comm, &mine, sizeof mine, all);
    memset(&total, 0, sizeof total);
    for (int i = 0; i < students; i++) {
        for (size_t k = 0; k < sizeof total / sizeof(double); k++) ((double *)&total)[k] += ((double *)&all[i])[k];
        waited[i] = all[i].waited;
    }
    total.waited = waited_by_slowest(&r->waiting, waited, students);
    free(waited);
    free(all);
    return total;
}

typedef struct {
    Report report;
    double norm, lr, loss;
    int tokens;
} StepResult;

/* The teacher looks at the micro-batch after the one at `first`, if it can while the student learns this one. */
static void look_ahead(Run *r, const Batch *batch, const Batch *next, int first, int64_t item) {
    int B = (int)opt.batch;
    if (!r->overlaps) return;
    first += B;
    if (first >= batch->B) batch = next, first = 0;
    if (!batch) return;
    teacher_looks(r, batch, first, batch->B - first < B ? batch->B - first : B);
    r->looked_at = item + 1;
}

/* Gradients of a whole batch, in micro-batches of --batch rows, then one update. */
static StepResult train_step(Run *r, const Batch *batch, const Batch *next) {
    StepResult result;
    Report report;
    Model *s = &r->student;
    float norm_squared;
    memset(&result, 0, sizeof result);
    memset(&report, 0, sizeof report);
    r->objective.config = objective_schedule(r->config, r->schedule, (double)r->step / (double)r->steps);
    optimizer_zero_gradients(&r->optimizer);
    reduction_begin(&r->reduction, &r->ranks.comm, &r->optimizer, &s->params);
    int64_t item = r->step * opt.accum;
    for (int first = 0; first < batch->B; first += (int)opt.batch, item++) {
        int B = batch->B - first < opt.batch ? batch->B - first : (int)opt.batch;
        const floatX *d_tokens = pass(r, batch, first, B, item, 1.0 / batch->tokens, 1.0 / batch->rows);
        report.flops += pass_flops(r, B, batch->T);
        look_ahead(r, batch, next, first, item);
        bool last = first + B == batch->B;
        s->hook.ready = last && r->ranks.students > 1 ? reduction_ready : NULL;
        s->hook.context = &r->reduction;
        model_backward(s, s->d_hidden, d_tokens);
    }
    reduction_finish(&r->reduction);
    result.lr = learning_rate(&r->lr, r->step);
    optimizer_step(&r->optimizer, (float)result.lr, (int)r->step + 1);
    share_values(&r->ranks.comm, &r->optimizer);
    report.sums = objective_collect(&r->objective);  // here the host waits for the device, not before
    report.interrupted = interrupted() || r->feed.interrupted;
    result.report = everyones(r, report);
    r->op->download(&norm_squared, r->optimizer.norm_squared, sizeof norm_squared);
    result.norm = sqrt((double)norm_squared);
    result.loss = objective_mean(&r->objective, &result.report.sums);
    result.tokens = batch->tokens;
    return result;
}

/* Means over the validation data, with the objective as it was given. */
static ObjectiveSums evaluate(Run *r) {
    Error err;
    Loader loader;
    const Batch *batch;
    Report report;
    memset(&report, 0, sizeof report);
    r->objective.config = r->config;
    r->looked_at = -1;
    die_if(loader_start(&loader, &r->val, loader_config(r, (int)opt.batch, false), &err), &err);
    if (loader.skipped && r->best == INFINITY && leads(r))  // once
        warn("%llu of %llu validation samples have more than %d text tokens and are left out",
             (unsigned long long)loader.skipped, (unsigned long long)r->val.count, r->text);
    err.text[0] = 0;
    for (int64_t i = 0; i < r->timetable.evaluation; i++) {
        if (!(batch = loader_next(&loader, &err))) break;
        if (batch->B) pass(r, batch, 0, batch->B, -1, 0, 0);
    }
    if (err.text[0]) die("%s", err.text);
    loader_stop(&loader);
    report.sums = objective_collect(&r->objective);
    return everyones(r, report).sums;
}

/* A teacher rank's run: the lessons of the timetable that are its own. */
static void teach(Run *r) {
    Error err;
    Lesson lesson;
    Loader val;
    const Batch *batch = NULL;
    int row = 0;
    bool going = true;
    while (going && timetable_next(&r->timetable, &lesson)) {
        if (lesson.evaluation && lesson.item == 0)
            die_if(loader_start(&val, &r->val, loader_config(r, (int)opt.batch, false), &err), &err);
        if (lesson.evaluation || lesson.item == 0) {
            batch = loader_next(lesson.evaluation ? &val : &r->loader, &err);
            if (!batch)
                die("%s", err.text[0] ? err.text : "internal error: an evaluation has fewer batches than planned");
            row = 0;
        }
        if (lesson.teacher == r->ranks.index) {
            int B = batch->B - row < opt.batch ? batch->B - row : (int)opt.batch;
            teacher_looks(r, batch, row, B);
            going = lesson_send(&r->ranks, &r->teacher, &lesson, r->config.w_embed > 0, interrupted(),
                                &r->waiting.told.lessons);
            row += B;
        }
        if (lesson.evaluation && (!going || lesson.item + 1 == r->timetable.evaluation)) loader_stop(&val);
    }
}

/* ---------------------------------------------------------------------------------------------------------------
 * Saving and going on */

static void name_files(Run *r) {
    r->student_path = format_string("%s/student.safetensors", opt.out);
    r->best_path = format_string("%s/best.safetensors", opt.out);
    r->state_path = format_string("%s/state.safetensors", opt.out);
    r->log_path = format_string("%s/log.jsonl", opt.out);
    r->options_path = format_string("%s/options.txt", opt.out);
}

/* The state file of one of several students. */
static char *shard_path(int64_t step, int rank, int ranks) {
    return format_string("%s/state-%lld.%d-of-%d.safetensors", opt.out, (long long)step, rank, ranks);
}

/* Removes the parts of other checkpoints than that of `step`, which has `ranks` of them (0: none), and what a rank
 * that was killed has left half-written. When no rank is saving. */
static void remove_old_shards(int64_t step, int ranks) {
    DIR *folder = opendir(opt.out);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        long long at;
        int rank, of, end = 0;
        if (sscanf(entry->d_name, "state-%lld.%d-of-%d.safetensors%n", &at, &rank, &of, &end) != 3 || !end) continue;
        if (at == step && of == ranks && !entry->d_name[end]) continue;
        char *path = format_string("%s/%s", opt.out, entry->d_name);
        unlink(path);
        free(path);
    }
    if (folder) closedir(folder);
}

/* The student first: if the state cannot follow, the old state still fits, for it carries all that is trained. Where
 * the students divide the state, each writes its part beside the last checkpoint's; when all are there the state
 * file, which then has nothing in it but the step and their number, makes them the checkpoint. */
static void save(Run *r) {
    Error err;
    Optimizer none = {}, *o = &r->optimizer;
    char step[32], best[40], worse[32], shards[16];
    snprintf(step, sizeof step, "%lld", (long long)r->step);
    snprintf(best, sizeof best, "%.17g", r->best);
    snprintf(worse, sizeof worse, "%lld", (long long)r->worse);
    snprintf(shards, sizeof shards, "%d", o->sharded ? o->ranks : 0);
    const char *keys[] = {"format", "step", "best", "worse", "shards"};
    const char *values[] = {"tikz.c/state/1", step, best, worse, shards};
    if (o->sharded) {
        char *path = shard_path(r->step, o->rank, o->ranks);
        die_if(state_save(path, o, keys, values, 5, &err), &err);
        free(path);
        comm_barrier(&r->ranks.comm);
    }
    if (!leads(r)) return;
    none.bucket = 1;
    die_if(model_save(&r->student, r->student_path, &err), &err);
    die_if(state_save(r->state_path, o->sharded ? &none : o, keys, values, 5, &err), &err);
    remove_old_shards(r->step, o->sharded ? o->ranks : 0);
}

static void restore_optimizer(Run *r, const SafeTensors *st, int shards) {
    Error err;
    SafeTensors *files = (SafeTensors *)xcalloc((size_t)shards + 1, sizeof *files);
    for (int i = 0; i < shards; i++) {
        char *path = shard_path(r->step, i, shards);
        die_if(safetensors_open(&files[i], path, &err), &err);
        free(path);
    }
    die_if(shards ? state_load(files, shards, &r->optimizer, &err) : state_load(st, 1, &r->optimizer, &err), &err);
    for (int i = 0; i < shards; i++) safetensors_close(&files[i]);
    free(files);
}

static void restore(Run *r) {
    Error err;
    SafeTensors st;
    die_if(safetensors_open(&st, r->state_path, &err), &err);
    const char *format = safetensors_metadata(&st, "format"), *step = safetensors_metadata(&st, "step");
    const char *best = safetensors_metadata(&st, "best"), *worse = safetensors_metadata(&st, "worse");
    const char *shards = safetensors_metadata(&st, "shards");  // there since ranks share the state
    long long at, since;
    int parts = 0;
    if (!format || strcmp(format, "tikz.c/state/1") || !step || !best || !worse || sscanf(step, "%lld", &at) != 1 ||
        at < 0 || at > INT_MAX || sscanf(worse, "%lld", &since) != 1 ||
        (shards && (sscanf(shards, "%d", &parts) != 1 || parts < 0 || parts > 4096)))
        die("%s is not a training state of this program", r->state_path);
    r->step = at;
    r->best = strtod(best, NULL);
    r->worse = since;
    if (!r->ranks.teaches) restore_optimizer(r, &st, parts);
    safetensors_close(&st);
}

/* Opens the log. When resuming, lines of steps after the checkpoint are dropped: those steps run again. */
static void open_log(Run *r) {
    if (!leads(r)) return;
    char *line = NULL;
    size_t capacity = 0;
    FILE *old = opt.resume ? fopen(r->log_path, "r") : NULL;
    char *kept_path = format_string("%s.new", r->log_path);
    r->log = fopen(kept_path, "w");
    if (!r->log) die("cannot write %s: %s", kept_path, strerror(errno));
    while (old && getline(&line, &capacity, old) > 0) {
        long long step;
        if (sscanf(line, "{\"step\":%lld", &step) == 1 && step <= (long long)r->step) fputs(line, r->log);
    }
    if (old) fclose(old);
    if (fflush(r->log) || rename(kept_path, r->log_path)) die("cannot write %s: %s", r->log_path, strerror(errno));
    free(kept_path);
    free(line);
}

static void log_sums(JsonWriter *w, const Run *r, const ObjectiveSums *s) {
    json_key(w, "ce"), json_number(w, s->ce / s->positions);
    json_key(w, "accuracy"), json_number(w, s->right / s->positions);
    if (!r->has_teacher) return;
    json_key(w, "soft"), json_number(w, s->soft / s->positions);
    json_key(w, "hard"), json_number(w, s->hard / s->positions);
    json_key(w, "agreement"), json_number(w, s->agree / s->positions);
    json_key(w, "entropy"), json_number(w, s->entropy / s->positions);
    json_key(w, "gate"), json_number(w, s->gate / s->positions);
    if (s->images > 0) json_key(w, "embed"), json_number(w, s->embed / s->images);
}

static void log_line(Run *r, JsonWriter *w) {
    json_end_object(w);
    if (r->log && (json_write_line(w, r->log) || fflush(r->log)))
        die("cannot write %s: %s", r->log_path, strerror(errno));
    json_writer_free(w);
}

static JsonWriter log_begin(const Run *r) {
    JsonWriter w;
    memset(&w, 0, sizeof w);
    json_begin_object(&w);
    json_key(&w, "step"), json_integer(&w, r->step);
    return w;
}

/* comm, wait: seconds in which the step's slowest student could do nothing but wait, for messages between the
 * students and for teachers. */
static void log_step(Run *r, const StepResult *x, double seconds) {
    JsonWriter w = log_begin(r);
    json_key(&w, "loss"), json_number(&w, x->loss);
    log_sums(&w, r, &x->report.sums);
    json_key(&w, "lr"), json_number(&w, x->lr);
    json_key(&w, "norm"), json_number(&w, x->norm);
    json_key(&w, "tokens_per_second"), json_number(&w, x->tokens / seconds);
    json_key(&w, "peak_share"), json_number(&w, x->report.flops / seconds / r->peak);
    if (r->ranks.students > 1) json_key(&w, "comm"), json_number(&w, x->report.waited.collectives);
    if (taught_from_afar(r)) json_key(&w, "wait"), json_number(&w, x->report.waited.lessons);
    log_line(r, &w);
}

/* Evaluates, keeps the best student, saves. Returns false when patience has run out. */
static bool evaluate_and_save(Run *r) {
    if (r->has_val) {
        ObjectiveSums s = evaluate(r);
        double ce = s.ce / s.positions;
        bool better = ce < r->best;
        JsonWriter w = log_begin(r);
        json_key(&w, "val");
        json_begin_object(&w);
        log_sums(&w, r, &s);
        json_end_object(&w);
        log_line(r, &w);
        if (leads(r))
            progress_note("step %lld: validation ce %.4f, token accuracy %.2f %%", (long long)r->step, ce,
                          100 * s.right / s.positions);
        if (r->has_teacher && leads(r))
            progress_note("          soft loss %.4f, agreement with the teacher %.2f %%", s.soft / s.positions,
                          100 * s.agree / s.positions);
        r->worse = better ? 0 : r->worse + 1;
        if (better) {
            Error err;
            r->best = ce;
            if (leads(r)) die_if(model_save(&r->student, r->best_path, &err), &err);
        }
    }
    save(r);
    return !opt.patience || r->worse < opt.patience;
}

/* ---------------------------------------------------------------------------------------------------------------
 * The loop */

static double megabytes(const Arena *a) { return (double)a->used / 1e6; }

static void print_ranks(const Run *r) {
    const Ranks *k = &r->ranks;
    if (k->world.ranks == 1) return;
    fprintf(stderr, "ranks: %d student%s through %s", k->students, k->students > 1 ? "s" : "", k->comm.engine);
    if (r->optimizer.sharded) fprintf(stderr, ", each with a part of the optimizer's state");
    if (k->teachers) fprintf(stderr, "; %d teacher%s", k->teachers, k->teachers > 1 ? "s" : "");
    if (k->teachers) fprintf(stderr, ", whose hidden states come through %s", k->link.engine);
    fputc('\n', stderr);
}

static void print_summary(const Run *r) {
    const Model *s = &r->student;
    fprintf(stderr, "device %s, %d threads, measured product peak %.2f TFLOP/s\n", r->op->name, omp_get_max_threads(),
            r->peak / 1e12);
    print_ranks(r);
    if (r->has_teacher)
        fprintf(stderr, "teacher %s: %.2f M parameters, %s%s\n", opt.teacher,
                (double)params_total(&r->teacher.params, GROUP_ALL) / 1e6,
                taught_from_afar(r) ? "on ranks of its own" : "on ", taught_from_afar(r) ? "" : r->teacher_op->name);
    fprintf(stderr, "student %s: %.2f M parameters (vision %.2f, connector %.2f, lm %.2f), %.2f M trained\n",
            opt.resume ? r->student_path : opt.student, (double)params_total(&s->params, GROUP_ALL) / 1e6,
            (double)params_total(&s->params, GROUP_VISION) / 1e6,
            (double)params_total(&s->params, GROUP_CONNECTOR) / 1e6, (double)params_total(&s->params, GROUP_LM) / 1e6,
            (double)params_total(&s->params, r->parts) / 1e6);
    fprintf(
        stderr,
        "memory: parameters %.1f MB, gradients %.1f MB, optimizer %.1f MB, activations %.1f MB (teacher %.1f MB), "
        "logits %.1f MB\n",
        megabytes(&s->params.values) + megabytes(&r->optimizer.value_memory),
        megabytes(&r->optimizer.gradient_memory), megabytes(&r->optimizer.state_memory), megabytes(&s->arena),
        megabytes(&r->teacher.arena), megabytes(&r->objective.arena));
    fprintf(stderr, "data: %llu samples, %lld steps of %lld images, %lld steps an epoch\n",
            (unsigned long long)r->data.count, (long long)r->steps,
            (long long)(opt.batch * opt.accum * r->ranks.students), (long long)r->steps_per_epoch);
}

/* The next batch, but none after the last step. */
static const Batch *next_batch(Run *r, int64_t step) {
    Error err;
    if (step >= r->steps) return NULL;
    const Batch *batch = loader_next(&r->loader, &err);
    if (!batch) die("%s", err.text);
    return batch;
}

static void check_finite(const Run *r, const StepResult *x) {
    if (isfinite(x->loss) && isfinite(x->norm)) return;
    bool saved = file_exists(r->state_path);
    die("the loss became %g (gradient norm %g) at step %lld%s%s with a smaller --lr", x->loss, x->norm,
        (long long)r->step + 1, saved ? "; --resume goes on from the checkpoint in " : "",
        saved ? opt.out : ", before the first checkpoint; start anew");
}

/* After a step: evaluates and saves where that is due. False when the run ends here, although steps are left. */
static bool after_step(Run *r, bool stop, Progress *progress) {
    bool due = evaluation_due(&r->timetable, r->step);
    if (due && !evaluate_and_save(r)) {
        progress_end(progress);
        if (leads(r))
            fprintf(stderr, "stopped early: no better validation for %lld evaluations\n", (long long)r->worse);
        return false;
    }
    if (!stop || r->step == r->steps) return true;
    if (!due) save(r);
    progress_end(progress);
    if (leads(r))
        fprintf(stderr, "interrupted: saved step %lld in %s; --resume goes on from there\n", (long long)r->step,
                opt.out);
    return false;
}

static void train(Run *r) {
    Progress progress;
    if (r->step >= r->steps) {
        if (leads(r))
            warn("%s has all of its %lld steps already; --steps or --epochs can raise their number", opt.out,
                 (long long)r->steps);
        return;
    }
    progress_begin(&progress, "train", r->step, r->steps);
    progress.quiet = !leads(r);
    const Batch *batch = next_batch(r, r->step);
    double start = seconds_now(), before = start;
    bool going = true;
    while (going && r->step < r->steps) {
        const Batch *next = r->overlaps ? next_batch(r, r->step + 1) : NULL;
        StepResult x = train_step(r, batch, next);
        check_finite(r, &x);
        r->step++;
        double now = seconds_now(), seconds = now - before;
        before = now;
        log_step(r, &x, seconds);
        progress_update(&progress, r->step, "loss %.4f, %.0f tokens/s, %.0f %% of peak", x.loss, x.tokens / seconds,
                        100 * x.report.flops / seconds / r->peak);
        going = after_step(r, x.report.interrupted > 0, &progress);
        if (evaluation_due(&r->timetable, r->step)) before = seconds_now();
        if (going) batch = r->overlaps ? next : next_batch(r, r->step);
    }
    if (going) progress_end(&progress);
    r->seconds = seconds_now() - start;
}

/* --resume: the options of the first run, then again what the command line says. */
static void recall_options(Run *r, int argc, char **argv, const char *usage) {
    Error err;
    const char *out = opt.out;
    r->own_steps = options_given(&opt.accum);
    if (opt.overwrite) options_die("--resume and --overwrite exclude each other");
    if (!file_exists(r->state_path))
        die("--resume: there is no checkpoint %s; name its folder with --out, or start without --resume",
            r->state_path);
    die_if(options_config(table, OPTIONS, r->options_path, &err), &err);
    const char *student = opt.student;
    options_parse(table, OPTIONS, argc, argv, usage, NULL);
    if (strcmp(opt.student, student))
        die("--resume goes on with the student in %s, which began as %s; --student %s is another: leave it out, or "
            "start anew in another --out folder",
            out, student, opt.student);
    opt.out = out;  // the folder may have been moved
    opt.resume = true;
}

/* A file that is missing, or a shape that is not one, told apart before anything is loaded. */
static void check_student(const char *student) {
    Error err;
    ModelConfig c;
    size_t length = strlen(student);
    if (file_exists(student)) return;
    if (strchr(student, '/') || (length > 12 && !strcmp(student + length - 12, ".safetensors")))
        die("cannot read the student %s: %s", student, strerror(errno));
    if (config_from_shape(&c, student, 1024, &err)) options_die("--student: %s", err.text);
}

/* ---- ranks ---- */

/* Two GPUs, a teacher, and nothing said of how to use them: one for each model. */
static void choose_gpus(void) {
    Launch launch;
    Error err;
    bool alone =
        !launch_find(&launch, opt.rendezvous, (int)opt.rank, (int)opt.ranks, &err) && launch.kind == LAUNCH_ALONE;
    bool free_choice = !strcmp(opt.device, "auto") && !opt.teacher_device && !opt.student_device;
    if (!opt.gpus && alone && free_choice && strcmp(opt.teacher, "none") && gpus_visible() >= 2) opt.gpus = 2;
    if (opt.gpus > gpus_visible())
        options_die("--gpus is %lld; this machine has %d", (long long)opt.gpus, gpus_visible());
    if (opt.gpus > 1 && opt.ranks && opt.ranks != opt.gpus)
        options_die("--gpus is %lld and --ranks %lld; leave out one of them", (long long)opt.gpus,
                    (long long)opt.ranks);
    if (opt.gpus > 1 && alone) opt.ranks = opt.gpus;
}

/* How many of the ranks are teachers, how many students: found out before they meet. */
static void take_parts(Ranks *k) {
    Error err;
    Launch launch;
    choose_gpus();
    if (launch_find(&launch, opt.rendezvous, (int)opt.rank, (int)opt.ranks, &err)) options_die("%s", err.text);
    int ranks = launch.ranks;
    bool has_teacher = strcmp(opt.teacher, "none") != 0;
    int teachers = (int)opt.teachers, students = (int)opt.students;
    if (teachers > 0 && !has_teacher) options_die("--teachers is %d without a --teacher", teachers);
    if (teachers < 0 && students)
        teachers = ranks > students && has_teacher ? ranks - students : 0;
    else if (teachers < 0)
        teachers = has_teacher ? ranks / 2 : 0;
    if (!students) students = ranks > teachers ? ranks - teachers : 1;
    if (teachers + students != ranks)
        options_die("%d teacher%s and %d student%s need --ranks %d, but there %s %d", teachers,
                    teachers == 1 ? "" : "s", students, students == 1 ? "" : "s", teachers + students,
                    ranks == 1 ? "is" : "are", ranks);
    k->teachers = teachers;
    k->students = students;
}

/* Meets the other ranks. */
static void open_world(Run *r, int argc, char **argv) {
    Error err;
    Ranks *k = &r->ranks;
    if (world_open(&k->world, argc, argv, opt.rendezvous, (int)opt.rank, (int)opt.ranks, &err)) die("%s", err.text);
    k->world.advice = "--resume goes on from the last checkpoint";
    k->teaches = k->world.rank >= k->students;
    k->index = k->teaches ? k->world.rank - k->students : k->world.rank;
}

/* A run that goes on keeps the images of a step, which record_options has as one process's --batch and --accum, and
 * deals them among the students that there are now: in micro-batches of --batch or, where they do not divide so, of
 * less. */
static void deal_again(const Run *r) {
    int64_t students = r->ranks.students, images = opt.batch * opt.accum, batch = opt.batch;
    if (!opt.resume || students == 1 || r->own_steps) return;
    if (images % students)
        die("--resume: the %lld images of a step cannot be divided among %lld students; use a number of students "
            "that "
            "divides %lld",
            (long long)images, (long long)students, (long long)images);
    while (images / students % batch) batch--;
    opt.eval_batches = (opt.eval_batches * opt.batch + batch - 1) / batch;  // as many images, or a few more
    opt.batch = batch;
    opt.accum = images / students / batch;
}

/* The device of that option, else of --device; of several ranks on a machine each takes a GPU in turn. */
static const Ops *open_device(const Run *r, const char *option, const char *name) {
    Error err;
    char text[24];
    const World *w = &r->ranks.world;
    if (!name) {
        name = opt.device;
        option = "device";
        if (w->local_ranks > 1 && (!strcmp(name, "auto") || !strcmp(name, "cuda")) && gpus_visible()) {
            snprintf(text, sizeof text, "cuda:%d", w->local_rank % gpus_visible());
            name = text;
        }
    }
    const Ops *op = ops_open(name, &err);
    if (!op && w->ranks > 1) die("--%s: %s", option, err.text);
    if (!op) options_die("--%s: %s", option, err.text);
    return op;
}

static void open_devices(Run *r) {
    const Ranks *k = &r->ranks;
    int processors = omp_get_max_threads() / (getenv("OMP_NUM_THREADS") ? 1 : k->world.sharing);
    threads_use(opt.threads ? (int)opt.threads : processors ? processors : 1);
    r->teacher_op = open_device(r, "teacher-device", opt.teacher_device);
    r->op = k->teaches ? r->teacher_op : open_device(r, "student-device", opt.student_device);
    if (strcmp(opt.teacher, "none") && !k->teachers && r->teacher_op == r->op) r->teacher_op = ops_second_stream(r->op);
    r->overlaps =
        strcmp(opt.teacher, "none") && !k->teachers && r->teacher_op != r->op && !r->teacher_op->host_memory;
    r->looked_at = -1;
}

/* "key = checksum" of a file, or of all that a pattern matches, for agree(); what names no file goes as it is. Large
 * files: of parts throughout. */
static void agree_on_file(FILE *text, const char *key, const char *path) {
    Error err;
    glob_t found;
    uint32_t crc = 0;
    int files = 0;
    memset(&found, 0, sizeof found);
    bool one = !path || file_exists(path) || glob(path, 0, NULL, &found) || !found.gl_pathc;
    for (size_t i = 0; path && i < (one ? 1 : found.gl_pathc); i++) {
        MappedFile file;
        const char *name = one ? path : found.gl_pathv[i];
        if (!file_exists(name) || file_map(&file, name, &err)) continue;
        size_t piece = 1 << 20, stride = file.size / 64 > piece ? file.size / 64 : piece;
        for (size_t at = 0; at < file.size; at += stride)
            crc = crc32_bytes(crc, file.data + at, file.size - at < piece ? file.size - at : piece);
        crc = crc32_bytes(crc, (const uint8_t *)&file.size, sizeof file.size);
        file_unmap(&file);
        files++;
    }
    globfree(&found);
    if (files)
        fprintf(text, "%s = checksum %08x\n", key, crc);
    else
        fprintf(text, "%s = %s\n", key, path ? path : "none");
}

/* Makes sure that all ranks run the same program with the same settings on the same models and data. */
static void agree(const Run *r) {
    char *options = NULL, *text = NULL, *rest = NULL;
    size_t size;
    if (r->ranks.world.ranks == 1) return;
    FILE *f = open_memstream(&options, &size);
    options_write(table, OPTIONS, f);
    fclose(f);
    f = open_memstream(&text, &size);
    agree_on_file(f, "build", "/proc/self/exe");
    agree_on_file(f, "teacher", opt.teacher);
    agree_on_file(f, "student", opt.resume ? r->student_path : opt.student);
    agree_on_file(f, "init", opt.init);
    agree_on_file(f, "tokenizer", opt.tokenizer);
    agree_on_file(f, "training data", opt.data);
    agree_on_file(f, "validation data", opt.val_data);
    if (opt.resume && opt.shard) agree_on_file(f, "checkpoint", r->state_path);
    fprintf(f, "number of teachers = %d\nnumber of students = %d\n", r->ranks.teachers, r->ranks.students);
    for (char *line = strtok_r(options, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        if (!is_local_option(line)) fprintf(f, "--%s\n", line);
    fclose(f);
    world_agree((World *)&r->ranks.world, text);
    free(options);
    free(text);
}

/* What moves data between the ranks, on the devices that they have by now. */
static void open_comms(Run *r) {
    Error err;
    Ranks *k = &r->ranks;
    die_if(comm_open(&k->everyone, &k->world, 0, k->world.ranks, &cpu_ops, &err), &err);
    if (!k->teaches) die_if(comm_open(&k->comm, &k->world, 0, k->students, r->op, &err), &err);
    if (k->teachers) die_if(link_open(&k->link, &k->world, r->op, &err), &err);
}

static void close_ranks(Run *r) {
    Ranks *k = &r->ranks;
    if (!k->teaches) world_finish(&k->world);
    waiting_tell(&r->waiting, k, r->seconds);
    feed_close(&r->feed);
    if (k->teachers) link_close(&k->link);
    if (!k->teaches) comm_close(&k->comm);
    comm_close(&k->everyone);
    world_close(&k->world);
}

/* Measured together, as the devices will work: the product rates of all ranks. */
static void measure_peak(Run *r) {
    int ranks = r->ranks.world.ranks;
    double *all = (double *)xmalloc((size_t)ranks * sizeof(double)), mine = measure_peak_flops(r->op);
    bool another = r->has_teacher && !taught_from_afar(r) && strcmp(r->teacher_op->name, r->op->name);
    if (another) mine += measure_peak_flops(r->teacher_op);
    comm_gather_host(&r->ranks.everyone, &mine, sizeof mine, all);
    for (int i = 0; i < ranks; i++) r->peak += all[i];
    free(all);
}

/* All students begin with the same weights, whatever they were read from. */
static void check_weights(const Run *r) {
    const Optimizer *o = &r->optimizer;
    const size_t most = 1 << 20;
    uint32_t crc = 0, *all = (uint32_t *)xmalloc((size_t)r->ranks.students * sizeof *all);
    floatX *host = (floatX *)xmalloc(most * sizeof(floatX));
    for (size_t at = 0; at < o->n && r->ranks.students > 1; at += most) {
        size_t bytes = (o->n - at < most ? o->n - at : most) * sizeof(floatX);
        r->op->download(host, o->values + at, bytes);
        crc = crc32_bytes(crc, (const uint8_t *)host, bytes);
    }
    comm_gather_host((Comm *)&r->ranks.comm, &crc, sizeof crc, all);
    for (int i = 1; i < r->ranks.students; i++)
        if (all[i] != all[0]) die("the student of rank %d does not begin with the weights of rank 0's", i);
    free(all);
    free(host);
}

/* ---- */

static void parse_options(Run *r, int argc, char **argv) {
    static const char *const schedules[] = {"cosine", "linear", "constant", "multistep"};
    static const char *const moves[] = {"none", "anneal", "image2tikz"};
    static const char *const recomputes[] = {"none", "activations", "blocks"};
    const char *usage =
        "[options]\n\nTrains an image-to-TikZ model, by default from the starter teacher on the starter data.";
    options_parse(table, OPTIONS, argc, argv, usage, NULL);
    name_files(r);
    if (opt.resume) recall_options(r, argc, argv, usage);
    if (!opt.resume) check_student(opt.student);
    r->parts = parse_parts(opt.train);
    r->config = parse_objective();
    if (!strcmp(opt.init, "teacher") && !strcmp(opt.teacher, "none")) {
        if (options_given(&opt.init)) options_die("--init teacher needs a --teacher");
        opt.init = "none";
    }
    if (r->config.w_embed > 0 && r->parts == GROUP_LM)
        options_die("--w-embed has nothing to train: --train leaves out the vision encoder and the connector");
    if (opt.patience && !strcmp(opt.val_data, "none")) options_die("--patience needs --val-data");
    if (!strcmp(opt.recompute, "true")) opt.recompute = "blocks";  // as checkpoints from before have it
    if (!strcmp(opt.recompute, "false")) opt.recompute = "none";
    r->recompute = (Recompute)choice("recompute", opt.recompute, recomputes, 3);
    r->schedule = (KdSchedule)choice("kd-schedule", opt.kd_schedule, moves, 3);
    r->lr.kind = (LrSchedule)choice("lr-schedule", opt.schedule, schedules, 4);
    r->best = INFINITY;
}

/* Takes the output folder for this run. A finished or stopped run there is only touched with --resume. */
static void claim_folder(Run *r) {
    Error err;
    if (!leads(r)) return;
    die_if(make_folder(opt.out, &err), &err);
    die_if(folder_lock(opt.out, &err) < 0, &err);
    if (!opt.resume && !opt.overwrite && file_exists(r->student_path))
        die("%s already holds a trained student; --resume goes on with it, --overwrite starts anew, --out DIR goes "
            "elsewhere",
            opt.out);
}

/* Students that share the optimizer's state all write into the folder: whether it is the same one, which rank 0 has
 * locked, is better known now than at the first checkpoint. */
static void find_folder(const Run *r) {
    const World *w = &r->ranks.world;
    char owner[24] = "";
    if (leads(r) || r->ranks.teaches || !opt.shard) return;
    char *path = format_string("%s/.lock", opt.out);
    FILE *f = fopen(path, "r");
    bool same = f && fgets(owner, sizeof owner, f) && strtol(owner, NULL, 10) == (long)w->peers[0].process;
    if (f) fclose(f);
    free(path);
    if (!same)
        die("%s is not the folder of rank 0, where each student saves its part of the optimizer's state; give all "
            "ranks "
            "an --out that they share, or --no-shard",
            opt.out);
}

/* The options of this run, for a --resume. After all that can fail, so that a mistake in one attempt to resume does
 * not reach the next; with --overwrite the old checkpoint goes now, lest a --resume take it for one of this run, and
 * the old best, lest infer does. */
static void record_options(const Run *r) {
    Error err;
    AtomicFile file;
    bool resume = opt.resume;
    int64_t accum = opt.accum;
    if (!leads(r)) return;
    die_if(atomic_open(&file, r->options_path, &err), &err);
    opt.resume = opt.overwrite = false;  // the file also serves as --config of another run
    opt.rank = opt.teachers = -1;        // and with other ranks: in it, one process takes these steps
    opt.ranks = opt.gpus = opt.students = 0;
    opt.rendezvous = NULL;
    opt.accum = accum * r->ranks.students;
    options_write(table, OPTIONS, file.f);
    opt.resume = resume;
    opt.accum = accum;
    die_if(atomic_commit(&file, &err), &err);
    if (resume) return;
    unlink(r->state_path);
    unlink(r->best_path);
    remove_old_shards(-1, 0);
}

static void check_batch(const Run *r) {
    int64_t images = opt.batch * opt.accum * r->ranks.students;
    if (images > 1 << 20)
        options_die(
            "--batch times --accum, of all students, makes a step of %lld images; at most 1048576 are supported",
            (long long)images);
}

int main(int argc, char **argv) {
    static Run run;
    Run *r = &run;
    threads_wait_politely(argv);
    interrupts_take();
    parse_options(r, argc, argv);
    take_parts(&r->ranks);
    deal_again(r);
    check_batch(r);
    open_world(r, argc, argv);
    open_devices(r);
    open_models(r);
    open_data(r);
    claim_folder(r);
    agree(r);
    find_folder(r);
    open_comms(r);
    agree_on_text(r, (int)(r->has_val && r->val.longest > r->data.longest ? r->val.longest : r->data.longest));
    plan_models(r);
    if (opt.resume) restore(r);
    measure_peak(r);  // before the loader's thread takes a core
    start_loader(r);
    plan_schedule(r);
    interrupts_keep();
    if (r->ranks.teaches) {
        teach(r);
    } else {
        check_weights(r);
        if (taught_from_afar(r))
            feed_open(&r->feed, &r->ranks, r->op, r->timetable, r->teacher.c.lm.width,
                      r->config.w_embed > 0 ? model_image_tokens(&r->teacher) : 0, (int)opt.batch,
                      (int)opt.batch * r->text);
        record_options(r);
        open_log(r);
        if (leads(r)) print_summary(r);
        train(r);
    }
    bool prints = leads(r);  // asked before the ranks part
    close_ranks(r);
    if (prints) printf("%s\n", isfinite(r->best) ? r->best_path : r->student_path);
    return 0;
}
