/* eval: measures models on a dataset, against its reference programs and, if one is given, against a teacher.
 *
 *   for each model: a teacher-forced pass over all samples (metrics/forced.h: the objective's terms and the metrics of
 *                   the logits), then greedy generation from all images (exact match with the reference). */
#include "generate/fit.h"
#include "lib/json.h"
#include "lib/options.h"
#include "lib/program.h"
#include "lib/progress.h"
#include "lib/threads.h"
#include "lora.h"
#include "metrics/forced.h"
#include "metrics/greedy.h"
#include "metrics/logits_table.h"
#include "metrics/objective_table.h"
#include "metrics/suite_report.h"

static struct {
    StringList models;
    const char *teacher, *baseline, *data, *json, *metrics, *logits, *texts, *report, *training, *kind, *features,
        *device, *loss, *weights, *lora;
    int64_t batch, samples, threads, jobs;
    double temperature, beta, skew;
    bool greedy, resume;
} opt = {.data = "dev/starter/test.bin",
         .device = "auto",
         .loss = "kl",
         .kind = "programs",
         .batch = 32,
         .temperature = 2,
         .beta = 0.5,
         .skew = 0.1,
         .greedy = true};

static const Option table[] = {
    {"model", 'm', OPT_LIST, &opt.models, "FILE", "model to measure", 0, 0},
    {"lora", 0, OPT_STRING, &opt.lora, "FILE", "adapter of the model, from train_distill --lora", 0, 0},
    {"teacher", 0, OPT_STRING, &opt.teacher, "FILE", "measure divergence from and agreement with this model", 0, 0},
    {"baseline", 0, OPT_STRING, &opt.baseline, "FILE", "measure this model too, before the others", 0, 0},
    {"data", 0, OPT_STRING, &opt.data, "FILE|GLOB", "dataset", 0, 0},
    {"samples", 'n', OPT_INT, &opt.samples, "N", "only the first N samples; 0: all", 0, 1e12},
    {"batch", 'b', OPT_INT, &opt.batch, "N", "images at a time", 1, 1024},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "of the soft loss, and of the metrics that have one", 0.01,
     1000},
    {"soft-loss", 0, OPT_STRING, &opt.loss, "NAME", "kl, reverse-kl, jsd, skl or srkl", 0, 0},
    {"jsd-beta", 0, OPT_FLOAT, &opt.beta, "X", "the teacher's share in JSD's mixture", 0.001, 0.999},
    {"skew", 0, OPT_FLOAT, &opt.skew, "X", "share of the one distribution that skl and srkl mix into the other", 0.001, 0.999},
    {"greedy", 0, OPT_FLAG, &opt.greedy, NULL, "generate each image's program and compare it with the text", 0, 0},
    {"json", 0, OPT_STRING, &opt.json, "FILE", "write the figures there", 0, 0},
    {"metrics", 0, OPT_STRING, &opt.metrics, "FILE",
     "write the metrics of the logits there, of baseline, model and teacher, under Image2TikZ's names and ours", 0,
     0},
    {"logits", 0, OPT_STRING, &opt.logits, "FILE",
     "write the teacher-forced logits of one model: safetensors, logits fp32 [samples, positions, vocabulary] and ids "
     "int32 [samples, positions], -1 where a text has ended",
     0, 0},
    {"texts", 0, OPT_STRING, &opt.texts, "DIR",
     "write greedy programs as DIR/N.tex and the data's as DIR/N.ref.tex; N: the sample's number in the data, "
     "from 0, in five digits (00012)",
     0, 0},
    {"report", 0, OPT_STRING, &opt.report, "DIR",
     "also compare the programs and what they draw, and write a report there: index.html, report.md, metrics.csv", 0,
     0},
    {"resume", 0, OPT_FLAG, &opt.resume, NULL, "of --report: keep what an interrupted run has done", 0,
     0},
    {"training-data", 0, OPT_STRING, &opt.training, "FILE|GLOB",
     "of --report: the texts whose commonest n-grams CrystalBLEU leaves out", 0, 0},
    {"texts-are", 0, OPT_STRING, &opt.kind, "KIND", "of --report: programs or formulas", 0, 0},
    {"features", 0, OPT_STRING, &opt.features, "FILE",
     "of --report: the model whose encoder self-similarity and KID use (default: the teacher, else the last model)",
     0, 0},
    {"jobs", 0, OPT_INT, &opt.jobs, "N", "of --report: programs that are drawn at a time; 0: one for each processor",
     0, 256},
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
    ForcedResult forced;
    LogitsSums logits;  // over all samples
    GreedyResult greedy;
} Measured;

static SoftLoss soft_loss(void) {
    int i = name_index(opt.loss, soft_loss_names, SOFT_LOSSES);
    if (i < 0) options_die("--soft-loss is '%s'; expected kl, reverse-kl, jsd, skl or srkl", opt.loss);
    return (SoftLoss)i;
}

/* ---- the report ---- */

static void print_reports(const Measured *reports, int count, bool teacher) {
    int width = 5;
    for (int i = 0; i < count; i++)
        if ((int)strlen(reports[i].path) > width) width = (int)strlen(reports[i].path);
    printf("%-*s %10s", width, "model", "parameters");
    metrics_print_row(stdout, NULL, teacher);
    printf("%s\n", opt.greedy ? "   exact" : "");
    for (int i = 0; i < count; i++) {
        const Measured *r = &reports[i];
        printf("%-*s %9.2fM", width, r->path, r->parameters / 1e6);
        metrics_print_row(stdout, &r->forced.sums, teacher);
        if (opt.greedy) printf(" %6.2f%%", 100 * (double)r->greedy.exact / (double)r->forced.samples);
        printf("\n");
    }
}

/* The logits' metrics that Image2TikZ prints, of all models and of the teacher itself. */
static void print_logits(const Measured *reports, int count) {
    const Measured *last = &reports[count - 1];
    int width = (int)strlen(opt.teacher);
    for (int i = 0; i < count; i++)
        if ((int)strlen(reports[i].path) > width) width = (int)strlen(reports[i].path);
    printf("\n%-*s", width, "logits");
    logits_print_row(stdout, NULL, false);
    for (int i = 0; i < count; i++) {
        printf("%-*s", width, reports[i].path);
        logits_print_row(stdout, &reports[i].logits, false);
    }
    printf("%-*s", width, opt.teacher);
    logits_print_row(stdout, &last->logits, true);
}

/* Writes the line of JSON and moves the file to its place. */
static void json_commit(JsonWriter *w, AtomicFile *file, const char *path) {
    Error err;
    if (json_write_line(w, file->f)) die("cannot write %s: %s", path, strerror(errno));
    die_if(atomic_commit(file, &err), &err);
    json_writer_free(w);
}

static void json_reports(AtomicFile *file, const Measured *reports, int count, bool teacher) {
    JsonWriter w = {0};
    json_begin_array(&w);
    for (int i = 0; i < count; i++) {
        const Measured *r = &reports[i];
        json_begin_object(&w);
        json_key(&w, "model"), json_string(&w, r->path);
        if (opt.baseline) json_key(&w, "baseline"), json_bool(&w, i == 0);
        json_key(&w, "data"), json_string(&w, opt.data);
        json_key(&w, "parameters"), json_number(&w, r->parameters);
        json_key(&w, "samples"), json_integer(&w, r->forced.samples);
        json_key(&w, "tokens"), json_number(&w, r->forced.sums.positions);
        if (teacher) json_key(&w, "temperature"), json_number(&w, opt.temperature);
        metrics_json(&w, &r->forced.sums, teacher);
        if (opt.greedy) json_key(&w, "exact"), json_number(&w, (double)r->greedy.exact / (double)r->forced.samples);
        json_key(&w, "tokens_per_second"), json_number(&w, r->forced.sums.positions / r->forced.seconds);
        json_key(&w, "forward_seconds"), json_number(&w, r->forced.forward_seconds);
        json_key(&w, "logits_seconds"), json_number(&w, r->forced.figures_seconds);
        if (opt.greedy) json_key(&w, "written_per_second"), json_number(&w, r->greedy.tokens / r->greedy.seconds);
        json_key(&w, "logits"), logits_json(&w, &r->logits, teacher);
        json_end_object(&w);
    }
    json_end_array(&w);
    json_commit(&w, file, opt.json);
}

/* Image2TikZ's three blocks, and ours with what they lack. reports: the baseline's, if there is one, then the model's. */
static void json_metrics(AtomicFile *file, const Measured *reports) {
    const Measured *baseline = opt.baseline ? &reports[0] : NULL, *model = &reports[baseline != NULL];
    JsonWriter w = {0};
    json_begin_object(&w);
    logits_image2tikz_block(&w, "baseline_student", logits_metrics, LOGITS_METRICS,
                            baseline ? &baseline->logits : NULL);
    logits_image2tikz_block(&w, "distilled_model", logits_metrics, LOGITS_METRICS, &model->logits);
    logits_image2tikz_block(&w, "teacher_self", logits_self_metrics, LOGITS_SELF_METRICS, &model->logits);
    json_key(&w, "tikz_c");
    json_begin_object(&w);
    json_key(&w, "teacher"), json_string(&w, opt.teacher);
    json_key(&w, "baseline"), json_string(&w, opt.baseline);
    json_key(&w, "model"), json_string(&w, model->path);
    json_key(&w, "data"), json_string(&w, opt.data);
    json_key(&w, "samples"), json_integer(&w, model->forced.samples);
    json_key(&w, "tokens"), json_number(&w, model->logits.positions);
    json_key(&w, "temperature"), json_number(&w, opt.temperature);
    json_key(&w, "averaging");
    json_string(&w, "means over the tokens of all texts; Image2TikZ averages over batches, and counts padding");
    json_key(&w, "baseline_student");
    if (baseline)
        logits_json(&w, &baseline->logits, true);
    else
        json_null(&w);
    json_key(&w, "distilled_model"), logits_json(&w, &model->logits, true);
    json_key(&w, "teacher_self"), logits_self_json(&w, &model->logits);
    json_end_object(&w);
    json_end_object(&w);
    json_commit(&w, file, opt.metrics);
}

/* Opens the file of a model's programs in the report's folder. Its name changes with the model's
 * file, the data, the longest program, and the adapter (NULL: none). */
static void open_programs(Measured *report, const Dataset *d, int max_tokens, const char *lora) {
    Error err;
    const uint64_t parts[] = {dataset_content(d), (uint64_t)max_tokens};
    uint64_t hash = hash_bytes(HASH_BEGIN, parts, sizeof parts);
    die_if(file_identity(&hash, report->path, &err), &err);
    if (opt.weights) hash = hash_bytes(hash, opt.weights, strlen(opt.weights));
    if (lora) die_if(file_identity(&hash, lora, &err), &err);
    char *path = format_string("%s/programs-%016llx", opt.report, (unsigned long long)hash);
    if (!opt.resume && file_exists(path) && remove(path)) die("cannot remove %s: %s", path, strerror(errno));
    die_if(programs_open(&report->greedy.programs, path, (int64_t)d->count, &err), &err);
    free(path);
}

/* The command as a shell takes it, allocated. */
static char *command_line(char **argv) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+./=,:@%";
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&text, &bytes);
    if (!f) die("out of memory");
    for (char **a = argv; *a; a++) {
        const bool quoted = !**a || (*a)[strspn(*a, plain)];
        fputs(a > argv ? quoted ? " '" : " " : quoted ? "'" : "", f);
        for (const char *c = *a; *c; c++) {
            if (*c == '\'') fputs("'\\'", f);
            fputc(*c, f);
        }
        if (quoted) fputc('\'', f);
    }
    if (fclose(f)) die("out of memory");
    return text;
}

/* Writes the report of all models. */
static void write_report(const Measured *reports, int count, const Dataset *d, const Dataset *training, const Ops *op,
                         char **argv) {
    Error err;
    SafeTensors file;
    Tokenizer tokenizer;
    static FeatureEncoder encoder;
    SuiteModel *models = xcalloc((size_t)count, sizeof *models);
    char *command = command_line(argv);
    for (int i = 0; i < count; i++)
        models[i] = (SuiteModel){reports[i].path, reports[i].parameters,
                                 reports[i].forced.seconds + reports[i].greedy.seconds, &reports[i].forced.logits,
                                 &reports[i].greedy.programs};
    die_if(safetensors_open(&file, reports[0].path, &err), &err);
    die_if(tokenizer_load(&tokenizer, &file, &err), &err);
    const char *features = opt.features ? opt.features : opt.teacher ? opt.teacher : reports[count - 1].path;
    die_if(feature_encoder_open(&encoder, op, features, &err), &err);
    const SuiteOptions o = {.folder = opt.report,
                            .title = "Image to program: a report",
                            .command = command,
                            .device = ops_name(op).text,
                            .data_name = opt.data,
                            .data = d,
                            .training = opt.training ? training : NULL,
                            .tokenizer = &tokenizer,
                            .kind = strcmp(opt.kind, "formulas") ? TEXT_PROGRAM : TEXT_FORMULA,
                            .encoder = &encoder,
                            .resume = opt.resume,
                            .jobs = opt.jobs ? (int)opt.jobs : omp_get_num_procs()};
    interrupts_keep();
    die_if(suite_report(&o, models, count, &err), &err);
    fprintf(stderr, "report: %s/index.html\n", opt.report);
    feature_encoder_close(&encoder);
    safetensors_close(&file);
    free(command);
    free(models);
}

static ModelConfig read_config(const char *path) {
    Error err;
    SafeTensors file;
    ModelConfig c;
    die_if(safetensors_open(&file, path, &err), &err);
    die_if(config_load(&c, &file, &err), &err);
    safetensors_close(&file);
    return c;
}

/* Tokens of the longest text that a model can take. */
static int read_max_text(const char *path) {
    Error err;
    SafeTensors file;
    ModelConfig c;
    Tokenizer t;
    die_if(safetensors_open(&file, path, &err), &err);
    die_if(config_load(&c, &file, &err) || tokenizer_load(&t, &file, &err), &err);
    die_if(tokenizer_fits(&t, vision_tokens(&c.vision), c.lm.max_positions, path, &err), &err);
    const int most = c.lm.max_positions - vision_tokens(&c.vision) - tokenizer_markers(&t);
    safetensors_close(&file);
    return most;
}

/* Tokens of the longest text that the models and the teacher (or NULL) can all take, so that all are measured on the same
 * samples. */
static int common_max_tokens(const char *const *paths, int count, const Model *teacher, const Dataset *d) {
    int tokens = (int)d->longest;
    if (teacher && teacher->max_T < tokens) tokens = teacher->max_T;
    for (int i = 0; i < count; i++) {
        const int most = read_max_text(paths[i]);
        if (most < tokens) tokens = most;
    }
    return tokens;
}

static void measure(Measured *report, const char *path, const char *lora, WeightFormat format, Model *teacher,
                    const Dataset *d, int max_tokens, const Ops *op) {
    Error err;
    static Model model;
    Model *m = &model;
    die_if(model_open_as(m, op, path, "", format, &err), &err);
    if (lora) die_if(lora_open(m, lora, &err), &err);
    if (d->fingerprint != m->tokenizer.fingerprint)
        die("%s was made with another tokenizer than %s; convert the data again with the model's tokenizer", opt.data,
            path);
    if (teacher && tokenizer_same(&m->tokenizer, &teacher->tokenizer, &err))
        die("teacher %s and %s do not share a tokenizer: %s", opt.teacher, path, err.text);
    if (opt.greedy) generator_fit(m, (int)opt.batch, 1, false, max_tokens, max_tokens);
    model_plan(m, (int)opt.batch, max_tokens);
    const ForcedOptions options = {.batch = (int)opt.batch,
                                   .samples = opt.samples,
                                   .temperature = opt.temperature,
                                   .soft = soft_loss(),
                                   .mix = soft_loss() == SOFT_JSD ? opt.beta : opt.skew,
                                   .logits_file = opt.logits};
    report->path = path;
    report->parameters = (double)params_total(&m->params, GROUP_ALL);
    forced_measure(&report->forced, &options, m, teacher, d, max_tokens);
    report->logits = logits_total(&report->forced.logits, NULL, 0);
    if (opt.greedy) {
        if (opt.report) open_programs(report, d, max_tokens, lora);
        greedy_measure(&report->greedy, &(GreedyOptions){(int)opt.batch, opt.samples, opt.texts}, m, d, max_tokens);
    }
    model_close(m);
}

/* Ends the program on options that do not go together. */
static void check_options(WeightFormat *format) {
    const bool one = opt.models.count == 1 && !opt.baseline;
    if (weight_format(opt.weights, format)) options_die("--weights must be q8 or q4, not '%.40s'", opt.weights);
    if (opt.lora && opt.models.count != 1) options_die("--lora is an adapter of one model; give exactly one --model");
    if (opt.logits && !one) options_die("--logits takes exactly one --model");
    if (opt.texts && !one) options_die("--texts takes exactly one --model");
    if (opt.texts && !opt.greedy) options_die("--texts are greedy programs; leave out --no-greedy");
    if (opt.report && !opt.greedy) options_die("--report compares greedy programs; leave out --no-greedy");
    if (!opt.report && (opt.resume || opt.training || opt.features || opt.jobs))
        options_die("--resume, --training-data, --features and --jobs are options of --report");
    if (opt.training && !strcmp(opt.kind, "formulas"))
        options_die("--training-data is for CrystalBLEU, which formulas do not have");
    if (strcmp(opt.kind, "programs") && strcmp(opt.kind, "formulas"))
        options_die("--texts-are must be programs or formulas, not '%.40s'", opt.kind);
    if (opt.metrics && opt.models.count != 1) options_die("--metrics takes exactly one --model, and one --baseline");
    if (opt.metrics && !opt.teacher) options_die("--metrics compares with a teacher; add --teacher FILE");
    soft_loss();
}

static void open_teacher(Model *teacher, const Ops *op, const Dataset *d) {
    Error err;
    die_if(model_open(teacher, op, opt.teacher, "the teacher's ", &err), &err);
    const int most = model_max_text(teacher), longest = (int)d->longest;
    model_plan(teacher, (int)opt.batch, longest < most ? longest : most);
}

int main(int argc, char **argv) {
    static const char *const shipped[] = {"dev/starter/teacher.safetensors", "dev/starter/student.safetensors"};
    static Model teacher;
    Dataset data, training;
    AtomicFile json, metrics_file;
    WeightFormat format;
    Error err;
    program_begin(argv);
    threads_wait_politely(argv);
    char *usage =
        ops_usage("[options]\n\nMeasures models (by default the starter teacher and student) on a dataset.");
    options_parse(table, OPTIONS, argc, argv, usage, NULL);
    free(usage);
    if (!opt.models.count)
        for (int i = 0; i < 2; i++) string_list_add(&opt.models, shipped_file(shipped[i]));
    opt.data = shipped_file(opt.data);
    check_options(&format);
    interrupts_take();
    threads_use((int)opt.threads);
    const Ops *op = ops_open(opt.device, &err);
    if (!op) options_die("--device: %s", err.text);
    fprintf(stderr, "device %s\n", ops_name(op).text);
    if (opt.texts) die_if(make_folder(opt.texts, &err), &err);
    if (opt.report) die_if(make_folder(opt.report, &err), &err);
    if (opt.report) die_if(folder_lock(opt.report, &err) < 0, &err);
    die_if(dataset_open(&data, opt.data, &err), &err);
    if (opt.training) die_if(dataset_open(&training, opt.training, &err), &err);
    if (opt.training && training.fingerprint != data.fingerprint)
        die("%s and %s were made with different tokenizers", opt.training, opt.data);
    if (opt.teacher) open_teacher(&teacher, op, &data);
    if (opt.json) die_if(atomic_open(&json, opt.json, &err), &err);  // so that a wrong path fails before the work
    if (opt.metrics) die_if(atomic_open(&metrics_file, opt.metrics, &err), &err);
    const int first = opt.baseline != NULL, count = opt.models.count + first;
    const char **paths = xcalloc((size_t)count, sizeof *paths);
    for (int i = 0; i < count; i++) paths[i] = i < first ? opt.baseline : opt.models.items[i - first];
    if (opt.features) read_config(opt.features);  // so that a wrong file fails before the work
    const int max_tokens = common_max_tokens(paths, count, opt.teacher ? &teacher : NULL, &data);
    Measured *reports = xcalloc((size_t)count, sizeof(Measured));
    for (int i = 0; i < count; i++)
        measure(&reports[i], paths[i], i < first ? NULL : opt.lora, format, opt.teacher ? &teacher : NULL, &data,
                max_tokens, op);
    print_reports(reports, count, opt.teacher != NULL);
    if (opt.metrics) print_logits(reports, count);
    if (fflush(stdout) || ferror(stdout)) die("cannot write the table: %s", strerror(errno));
    if (opt.json) json_reports(&json, reports, count, opt.teacher != NULL);
    if (opt.metrics) json_metrics(&metrics_file, reports);
    if (opt.report) write_report(reports, count, &data, &training, op, argv);
    for (int i = 0; i < count; i++)
        logits_result_free(&reports[i].forced.logits), programs_close(&reports[i].greedy.programs);
    free(reports);
    free(paths);
    if (opt.teacher) model_close(&teacher);
    if (opt.training) dataset_close(&training);
    dataset_close(&data);
    return 0;
}
