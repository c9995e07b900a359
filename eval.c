/* eval: measures models on a dataset, against its reference programs and, if one is given, against a teacher.
 *
 *   for each model: a teacher-forced pass over all samples (cross entropy, divergence, token accuracy, agreement),
 *                   then greedy generation from all images (exact match with the reference). */
#include "dataloader.h"
#include "generate.h"
#include "lib/json.h"
#include "lib/options.h"
#include "lib/program.h"
#include "lib/progress.h"
#include "lib/threads.h"
#include "loss.cuh"
#include "metrics/report.h"

static struct {
    StringList models;
    const char *teacher, *data, *json, *logits, *texts, *device, *loss, *weights;
    int64_t batch, samples, threads;
    double temperature, beta;
    bool greedy;
} opt = {.data = "dev/starter/test.bin",
         .device = "auto",
         .loss = "kl",
         .batch = 32,
         .temperature = 2,
         .beta = 0.5,
         .greedy = true};

static const Option table[] = {
    {"model", 'm', OPT_LIST, &opt.models, "FILE", "model to measure", 0, 0},
    {"teacher", 0, OPT_STRING, &opt.teacher, "FILE", "measure divergence from and agreement with this model", 0, 0},
    {"data", 0, OPT_STRING, &opt.data, "FILE|GLOB", "dataset", 0, 0},
    {"samples", 'n', OPT_INT, &opt.samples, "N", "only the first N samples; 0: all", 0, 1e12},
    {"batch", 'b', OPT_INT, &opt.batch, "N", "images at a time", 1, 1024},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "of the soft loss", 0.01, 1000},
    {"soft-loss", 0, OPT_STRING, &opt.loss, "NAME", "kl, reverse-kl or jsd", 0, 0},
    {"jsd-beta", 0, OPT_FLOAT, &opt.beta, "X", "the teacher's share in JSD's mixture", 0.001, 0.999},
    {"greedy", 0, OPT_FLAG, &opt.greedy, NULL, "write each image's program and compare it with the text", 0, 0},
    {"json", 0, OPT_STRING, &opt.json, "FILE", "write the figures there", 0, 0},
    {"logits", 0, OPT_STRING, &opt.logits, "FILE",
     "write the teacher-forced logits of one model: safetensors, logits fp32 [samples, positions, vocabulary] and "
     "ids "
     "int32 [samples, positions], -1 where a text has ended",
     0, 0},
    {"texts", 0, OPT_STRING, &opt.texts, "DIR", "write greedy programs as DIR/N.tex and the data's as DIR/N.ref.tex",
     0, 0},
    {"weights", 'w', OPT_STRING, &opt.weights, "q8|q4", "measure the models with weights rounded to 8 or 4 bits", 0,
     0},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "cpu, cuda (the first GPU), cuda:N, or auto: a GPU if one answers",
     0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "processor threads; 0: all", 0, 4096},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

typedef struct {
    const char *path;
    double parameters;
    ObjectiveSums sums;
    int64_t samples, exact;
    double seconds, tokens_generated, generate_seconds;
} Report;

static SoftLoss soft_loss(void) {
    int i = name_index(opt.loss, soft_loss_names, SOFT_LOSSES);
    if (i < 0) options_die("--soft-loss is '%s'; expected kl, reverse-kl or jsd", opt.loss);
    return (SoftLoss)i;
}

/* Opens a loader over the dataset in its order, with images in the size of the model and, if it differs, of the
 * teacher. */
static void open_loader(Loader *l, const Dataset *d, const Model *m, const Model *teacher, int max_tokens) {
    Error err;
    LoaderConfig c = loader_config_for((int)opt.batch, max_tokens, m->c.vision.image_size, m->tokenizer.count,
                                       teacher ? teacher->c.vision.image_size : 0, teacher ? teacher->c.lm.vocab : 0);
    die_if(loader_start(l, d, c, &err), &err);
    if (l->skipped)
        warn("%llu of %llu samples have more than %d text tokens and are left out", (unsigned long long)l->skipped,
             (unsigned long long)d->count, max_tokens);
}

/* The next batch, and in *rows how many of its rows to use, so that --samples are used in all; `seen` were used so
 * far. NULL at the end. */
static const Batch *next_batch(Loader *l, int64_t seen, int *rows) {
    Error err;
    err.text[0] = 0;
    if (opt.samples && seen >= opt.samples) return NULL;
    const Batch *b = loader_next(l, &err);
    if (!b && err.text[0]) die("%s", err.text);
    if (b) *rows = opt.samples && seen + b->B > opt.samples ? (int)(opt.samples - seen) : b->B;
    return b;
}

/* ---- teacher-forced ---- */

static void die_not_finite(const Model *m) {
    Error why;
    model_not_finite(m, &why);
    die("%s", why.text);
}

/* Ends the program when the model or the teacher computed values that are not finite. */
static void check_finite(const ObjectiveSums *s, const Model *m, const Model *teacher) {
    if (!isfinite(s->ce)) die_not_finite(m);
    if (teacher && !isfinite(s->soft)) die_not_finite(teacher);
}

typedef struct {
    SafeTensorsWriter writer;
    float *row;  // [positions, V] logits of one sample
    int *ids;    // [samples, positions], written after all logits
    int positions, vocab;
    int64_t samples;  // written so far
} LogitsFile;

static void logits_open(LogitsFile *f, int64_t samples, int positions, int vocab) {
    Error err;
    SafeTensorSpec specs[2];
    const char *keys[] = {"format"}, *values[] = {"tikz.c/logits/1"};
    memset(specs, 0, sizeof specs);
    snprintf(specs[0].name, sizeof specs[0].name, "logits");
    specs[0].dtype = DT_F32;
    specs[0].ndim = 3;
    snprintf(specs[1].name, sizeof specs[1].name, "ids");
    specs[1].dtype = DT_I32;
    specs[1].ndim = 2;
    for (int i = 0; i < 2; i++) {
        specs[i].shape[0] = samples;
        specs[i].shape[1] = positions;
    }
    specs[0].shape[2] = vocab;
    f->positions = positions;
    f->vocab = vocab;
    f->samples = 0;
    f->row = xcalloc((size_t)positions * (size_t)vocab, sizeof(float));
    f->ids = xcalloc((size_t)samples * (size_t)positions, sizeof(int));
    die_if(safetensors_write_begin(&f->writer, opt.logits, specs, 2, keys, values, 1, &err), &err);
}

/* Writes the logits of the last forward pass, over B rows of ids [B, T]. m->hidden holds the final hidden states of
 * the positions that have a label, row after row. */
static void logits_add(LogitsFile *f, const Model *m, const int *ids, int B, int T) {
    Error err;
    size_t row = (size_t)f->positions * (size_t)f->vocab;
    float *device = (float *)m->op->alloc((size_t)f->positions * (size_t)f->vocab * sizeof(float));
    if (!device) die("cannot allocate the logits of one sample");
    const floatX *hidden = m->hidden;
    for (int b = 0; b < B; b++) {
        int n = 0, *out = f->ids + (size_t)f->samples++ * (size_t)f->positions;
        for (int t = 0; t < f->positions; t++) {
            out[t] = t < T ? ids[(size_t)b * (size_t)T + (size_t)t] : -1;
            n += out[t] >= 0;
        }
        memset(f->row, 0, row * sizeof(float));
        linear_logits(m->op, device, hidden, m->lm_head, n);
        m->op->download(f->row, device, (size_t)n * (size_t)f->vocab * sizeof(float));
        die_if(safetensors_write_data(&f->writer, f->row, row * sizeof(float), &err), &err);
        hidden += (size_t)n * m->c.lm.hidden_size;
    }
    m->op->release(device);
}

static void logits_close(LogitsFile *f) {
    Error err;
    size_t bytes = (size_t)f->samples * (size_t)f->positions * sizeof(int);
    die_if(safetensors_write_data(&f->writer, f->ids, bytes, &err), &err);
    die_if(safetensors_write_end(&f->writer, &err), &err);
    free(f->row);
    free(f->ids);
}

/* Counts the images of a batch that are blank as the model sees them, and notes the first of all. `seen`: samples
 * before the batch. */
static void count_blank(const Batch *b, int B, int64_t seen, int64_t *blank, int64_t *first) {
    const size_t bytes = (size_t)b->sizes[0] * b->sizes[0] * 3;
    for (int i = 0; i < B; i++)
        if (image_darkest(b->pixels[0] + i * bytes, bytes) >= IMAGE_NEAR_WHITE && (*blank)++ == 0) *first = seen + i;
}

/* The teacher-forced pass over all samples: sums up the metrics, and writes the logits with --logits. */
static void measure_forced(Report *report, Model *m, Model *teacher, const Dataset *d, int max_tokens) {
    Objective objective;
    ObjectiveConfig config = {.w_ce = 1,
                              .w_soft = teacher ? 1 : 0,
                              .temperature = (float)opt.temperature,
                              .soft = soft_loss(),
                              .jsd_beta = (float)opt.beta,
                              .band_high = INFINITY,
                              .gate_confidence = 2};
    Loader loader;
    LogitsFile logits;
    Progress progress;
    const Batch *batch;
    int B = 0;
    int64_t blank = 0, first_blank = 0;
    double start = seconds_now();
    objective_open(&objective, config, m, teacher ? param_weight(teacher->lm_head) : (Weight){0}, 0,
                   (int)opt.batch * max_tokens, (int)opt.batch, 0);
    open_loader(&loader, d, m, teacher, max_tokens);
    int64_t total = (int64_t)(d->count - loader.skipped);
    if (opt.samples && opt.samples < total) total = opt.samples;
    if (opt.logits) logits_open(&logits, total, max_tokens, m->c.lm.vocab);
    progress_begin(&progress, "measuring", 0, total);
    while ((batch = next_batch(&loader, report->samples, &B))) {
        if (teacher) model_forward(teacher, batch->pixels[batch->size_count - 1], batch->ids, B, batch->T);
        TeacherOutput q = {teacher ? teacher->hidden : NULL, NULL};
        model_forward(m, batch->pixels[0], batch->ids, B, batch->T);
        objective_run(&objective, m, &q, (LossScale){0, 0});
        if (opt.logits) logits_add(&logits, m, batch->ids, B, batch->T);
        count_blank(batch, B, report->samples, &blank, &first_blank);
        report->samples += B;
        progress_update(&progress, report->samples, NULL);
    }
    report->sums = objective_collect(&objective);
    progress_end(&progress);
    check_finite(&report->sums, m, teacher);
    if (blank)
        warn("%lld of the %lld images are blank in the model's size, or nearly so; the first is that of sample %lld",
             (long long)blank, (long long)report->samples, (long long)first_blank);
    if (opt.logits) logits_close(&logits);
    loader_stop(&loader);
    objective_close(&objective);
    report->seconds = seconds_now() - start;
}

/* ---- greedy programs ---- */

/* Writes n ids, decoded, as DIR/SAMPLE with the given ending. */
static void write_text(const Tokenizer *t, const int *ids, int n, int64_t sample, const char *ending) {
    Error err;
    char *text, *path = format_string("%s/%05lld%s", opt.texts, (long long)sample, ending);
    size_t bytes;
    tokenizer_decode(t, ids, n, &text, &bytes);
    die_if(file_write(path, text, bytes, &err), &err);
    free(text);
    free(path);
}

/* The generated programs of a batch: ids [B, max_tokens], lengths [B] without the end token, random streams [B] (all
 * 0, since greedy decoding draws nothing). */
typedef struct {
    const Model *model;
    int *ids, *lengths, *streams;
    int max_tokens;
} Programs;

/* Callback of the generator: stores token `id` of sequence b. Returns false at an end token. */
static bool read_token(void *context, int b, int id) {
    Programs *p = context;
    if (id < 0) die_not_finite(p->model);
    if (tokenizer_ends(&p->model->tokenizer, id)) return false;
    p->ids[(size_t)b * p->max_tokens + p->lengths[b]++] = id;
    return true;
}

/* Compares the generated programs of a batch with the reference programs; `first`: number of its first sample. */
static void compare_programs(Report *report, const Model *m, const Batch *batch, const Programs *p, int B,
                             int64_t first) {
    for (int b = 0; b < B; b++) {
        const int *ids = batch->ids + (size_t)b * batch->T, *mine = p->ids + (size_t)b * p->max_tokens;
        int n = 0;
        while (n < batch->T && ids[n] >= 0 && ids[n] != m->tokenizer.end) n++;
        report->exact += n == p->lengths[b] && !memcmp(ids, mine, n * sizeof(int));
        report->tokens_generated += p->lengths[b] + 1;
        if (!opt.texts) continue;
        write_text(&m->tokenizer, mine, p->lengths[b], first + b, ".tex");
        write_text(&m->tokenizer, ids, n, first + b, ".ref.tex");
    }
}

static void measure_greedy(Report *report, Model *m, const Dataset *d, int max_tokens) {
    Loader loader;
    Generator generator;
    Progress progress;
    const Batch *batch;
    Programs programs = {m, xcalloc((size_t)opt.batch * max_tokens, sizeof(int)), xcalloc(opt.batch, sizeof(int)),
                         xcalloc(opt.batch, sizeof(int)), max_tokens};
    int B = 0;
    int64_t seen = 0;
    double start = seconds_now();
    open_loader(&loader, d, m, NULL, max_tokens);
    generator_open(&generator, m, (int)opt.batch, max_tokens);
    progress_begin(&progress, "writing", 0, report->samples);
    while ((batch = next_batch(&loader, seen, &B))) {
        memset(programs.lengths, 0, B * sizeof(int));
        generator_prefill(&generator, batch->pixels[0], B, NULL, 0);
        generator_run(&generator, programs.streams, max_tokens, read_token, &programs);
        compare_programs(report, m, batch, &programs, B, seen);
        seen += B;
        progress_update(&progress, seen, "%.1f %% exact", 100 * (double)report->exact / (double)seen);
    }
    progress_end(&progress);
    generator_close(&generator);
    loader_stop(&loader);
    free(programs.ids);
    free(programs.lengths);
    free(programs.streams);
    report->generate_seconds = seconds_now() - start;
}

/* ---- the report ---- */

static void print_reports(const Report *reports, int count, bool teacher) {
    int width = 5;
    for (int i = 0; i < count; i++)
        if ((int)strlen(reports[i].path) > width) width = (int)strlen(reports[i].path);
    printf("%-*s %10s", width, "model", "parameters");
    metrics_print_row(stdout, NULL, teacher);
    printf("%s\n", opt.greedy ? "   exact" : "");
    for (int i = 0; i < count; i++) {
        const Report *r = &reports[i];
        printf("%-*s %9.2fM", width, r->path, r->parameters / 1e6);
        metrics_print_row(stdout, &r->sums, teacher);
        if (opt.greedy) printf(" %6.2f%%", 100 * (double)r->exact / (double)r->samples);
        printf("\n");
    }
}

static void json_reports(AtomicFile *file, const Report *reports, int count, bool teacher) {
    Error err;
    JsonWriter w = {0};
    json_begin_array(&w);
    for (int i = 0; i < count; i++) {
        const Report *r = &reports[i];
        json_begin_object(&w);
        json_key(&w, "model"), json_string(&w, r->path);
        json_key(&w, "data"), json_string(&w, opt.data);
        json_key(&w, "parameters"), json_number(&w, r->parameters);
        json_key(&w, "samples"), json_integer(&w, r->samples);
        json_key(&w, "tokens"), json_number(&w, r->sums.positions);
        if (teacher) json_key(&w, "temperature"), json_number(&w, opt.temperature);
        metrics_json(&w, &r->sums, teacher);
        if (opt.greedy) json_key(&w, "exact"), json_number(&w, (double)r->exact / (double)r->samples);
        json_key(&w, "tokens_per_second"), json_number(&w, r->sums.positions / r->seconds);
        if (opt.greedy)
            json_key(&w, "written_per_second"), json_number(&w, r->tokens_generated / r->generate_seconds);
        json_end_object(&w);
    }
    json_end_array(&w);
    if (json_write_line(&w, file->f)) die("cannot write %s: %s", opt.json, strerror(errno));
    die_if(atomic_commit(file, &err), &err);
    json_writer_free(&w);
}

static void measure(Report *report, const char *path, WeightFormat format, Model *teacher, const Dataset *d,
                    const Ops *op) {
    Error err;
    static Model model;
    Model *m = &model;
    die_if(model_open_as(m, op, path, "", format, &err), &err);
    if (d->fingerprint != m->tokenizer.fingerprint)
        die("%s was made with another tokenizer than %s; convert the data again with the model's tokenizer", opt.data,
            path);
    if (teacher && tokenizer_same(&m->tokenizer, &teacher->tokenizer, &err))
        die("teacher %s and %s do not share a tokenizer: %s", opt.teacher, path, err.text);
    int max_tokens = (int)d->longest, most = model_max_text(m);
    if (teacher && teacher->max_T < most) most = teacher->max_T;
    if (max_tokens > most) max_tokens = most;
    if (opt.greedy) generator_fit(m, (int)opt.batch, 1, false, max_tokens, max_tokens);
    model_plan(m, (int)opt.batch, max_tokens);
    report->path = path;
    report->parameters = (double)params_total(&m->params, GROUP_ALL);
    measure_forced(report, m, teacher, d, max_tokens);
    if (opt.greedy) measure_greedy(report, m, d, max_tokens);
    model_close(m);
}

int main(int argc, char **argv) {
    static const char *const shipped[] = {"dev/starter/teacher.safetensors", "dev/starter/student.safetensors"};
    static Model teacher;
    Dataset data;
    AtomicFile json;
    WeightFormat format;
    Error err;
    program_begin(argv);
    threads_wait_politely(argv);
    char *usage =
        ops_usage("[options]\n\nMeasures models (by default the starter teacher and student) on a dataset.");
    options_parse(table, OPTIONS, argc, argv, usage, NULL);
    free(usage);
    if (!opt.models.count)
        for (int i = 0; i < 2; i++) string_list_add(&opt.models, shipped[i]);
    if (weight_format(opt.weights, &format)) options_die("--weights must be q8 or q4, not '%.40s'", opt.weights);
    if (opt.logits && opt.models.count != 1) options_die("--logits takes exactly one --model");
    if (opt.texts && opt.models.count != 1) options_die("--texts takes exactly one --model");
    if (opt.texts && !opt.greedy) options_die("--texts are greedy programs; leave out --no-greedy");
    threads_use((int)opt.threads);
    const Ops *op = ops_open(opt.device, &err);
    if (!op) options_die("--device: %s", err.text);
    fprintf(stderr, "device %s\n", ops_name(op).text);
    if (opt.texts) die_if(make_folder(opt.texts, &err), &err);
    die_if(dataset_open(&data, opt.data, &err), &err);
    if (opt.teacher) {
        die_if(model_open(&teacher, op, opt.teacher, "the teacher's ", &err), &err);
        int most = model_max_text(&teacher), longest = (int)data.longest;
        model_plan(&teacher, (int)opt.batch, longest < most ? longest : most);
    }
    if (opt.json) die_if(atomic_open(&json, opt.json, &err), &err);  // so that a wrong path fails before the work
    Report *reports = xcalloc((size_t)opt.models.count, sizeof(Report));
    for (int i = 0; i < opt.models.count; i++)
        measure(&reports[i], opt.models.items[i], format, opt.teacher ? &teacher : NULL, &data, op);
    print_reports(reports, opt.models.count, opt.teacher != NULL);
    if (fflush(stdout) || ferror(stdout)) die("cannot write the table: %s", strerror(errno));
    if (opt.json) json_reports(&json, reports, opt.models.count, opt.teacher != NULL);
    free(reports);
    if (opt.teacher) model_close(&teacher);
    dataset_close(&data);
    return 0;
}
