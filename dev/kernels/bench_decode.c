/* How fast a large model starts and writes.
 *
 *     bench_decode --make FILE [SHAPE]    a model file with arbitrary weights (default tl-1.1b,lm.vocab=32000; 3 GB)
 *     bench_decode [--device NAME] [--json OUT] [--batch N,N...] FILE|SHAPE
 *     bench_decode [--device NAME] --serve B FILE|SHAPE
 *
 * opens the file (or makes a model of that shape on the device), looks at a grey image, and writes tokens of 1, 8
 * and, on a GPU, 64 texts together. Writing one token of each reads every weight of the decoder once, and the cache
 * of every text: the floor is their bytes over the read bandwidth, which is measured in the same run.
 *
 * With --serve it answers requests on stdin one by one, so that another program can be measured in between
 * (dev/bench/llama.py). It begins with one line, the number of image positions and the most positions of image and text;
 *
 *     decode N     milliseconds of one token of each of N <= B texts: the median of 64 steps, or of 16 if N > 1
 *     prefill N    milliseconds of the decoder alone for N positions of one text, image tokens included */
#include "../../generate/fit.h"
#include "../../lib/json.h"
#include "../../kernels/peak.h"
#include "../../lib/progress.h"
#include "../../lib/threads.h"

enum { TOKENS = 64, BATCHES = 8 };

/* What was measured; seconds. */
typedef struct {
    double opened, first;
    int count, batch[BATCHES];
    double step[BATCHES], floor[BATCHES];
} Result;

/* A model on the device whose weights are the same few numbers again and again, small ones; norms and all. Random
 * ones take minutes for a large model. */
static void create(Model *m, const Ops *op, const char *shape) {
    Error err;
    memset(m, 0, sizeof *m);
    if (safetensors_open(&m->file, "dev/starter/tokenizer.safetensors", &err)) die("%s", err.text);
    if (tokenizer_load(&m->tokenizer, &m->file, &err)) die("%s", err.text);
    if (config_from_shape(&m->c, shape, (m->tokenizer.count + 15) / 16 * 16, &err)) die("%s", err.text);
    m->op = op;
    model_declare(m, "");
    params_allocate(&m->params, op);
    for (int i = 0; i < m->params.count; i++) {
        const Param *x = &m->params.list[i];
        floatX host[4096];
        size_t n = x->n < 4096 ? x->n : 4096;
        for (size_t k = 0; k < n; k++) host[k] = to_x(((float)(k * 2654435761u % 4099) / 2049.5f - 1) * x->init_std);
        op->upload(x->value, host, n * sizeof(floatX));
        for (size_t done = n; done < x->n; done *= 2)
            op->copy(x->value + done, x->value, (x->n - done < done ? x->n - done : done) * sizeof(floatX));
    }
    m->rope = rope_table(&m->c.lm, op);
}

static void make(const char *path, const char *shape) {
    Error err;
    Model m;
    create(&m, cpu_ops(), shape);
    if (model_save(&m, path, &err)) die("%s", err.text);
    printf("%s: %.2f M parameters\n", path, (double)params_total(&m.params, GROUP_ALL) / 1e6);
    model_close(&m);
}

/* Seconds from nothing to the result of the first product with a weight of the file. */
static double open_and_multiply(Model *m, const Ops *op, const char *path) {
    Error err;
    double start = seconds_now();
    if (!file_exists(path))
        create(m, op, path);
    else if (model_open(m, op, path, "", &err))
        die("%s", err.text);
    Weight w = param_weight(m->layer[0].qkv_proj);
    floatX *x = (floatX *)op->alloc((size_t)w.cols * sizeof(floatX));
    floatX *y = (floatX *)op->alloc((size_t)w.rows * sizeof(floatX));
    if (!x || !y) die("out of memory");
    op->linear_forward(y, x, w, NULL, ACT_NONE, NULL, 1);
    op->sync();
    double seconds = seconds_now() - start;
    op->release(x);
    op->release(y);
    return seconds;
}

static uint8_t *grey_image(const Model *m) {
    size_t pixels = model_pixels(m);
    uint8_t *grey = (uint8_t *)xmalloc(pixels);
    memset(grey, 128, pixels);
    return grey;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median_of(double *values, int count) {
    qsort(values, (size_t)count, sizeof values[0], compare_doubles);
    return values[count / 2];
}

static void write_json(const char *path, const Ops *op, const Result *r) {
    FILE *f = fopen(path, "w");
    JsonWriter w;
    memset(&w, 0, sizeof w);
    json_begin_object(&w);
    json_key(&w, "device"), json_string(&w, op->name);
    json_key(&w, "open_s"), json_number(&w, r->opened);
    json_key(&w, "image_to_first_token_s"), json_number(&w, r->first);
    json_key(&w, "token_ms"), json_number(&w, 1e3 * r->step[0]);
    json_key(&w, "floor_ms"), json_number(&w, 1e3 * r->floor[0]);
    json_key(&w, "batches"), json_begin_array(&w);
    for (int i = 0; i < r->count; i++) {
        json_begin_object(&w);
        json_key(&w, "batch"), json_integer(&w, r->batch[i]);
        json_key(&w, "step_ms"), json_number(&w, 1e3 * r->step[i]);
        json_key(&w, "floor_ms"), json_number(&w, 1e3 * r->floor[i]);
        json_end_object(&w);
    }
    json_end_array(&w);
    json_end_object(&w);
    if (!f || json_write_line(&w, f) || fclose(f)) die("cannot write %s: %s", path, strerror(errno));
    json_writer_free(&w);
}

/* Bytes that one step of B texts must read: every weight of the decoder as it is stored, with its scales (of the
 * embedding a few rows, unless it is also the head), and the keys and values so far. */
static double step_bytes(const Generator *d) {
    const Model *m = d->m;
    const LmConfig *c = &m->c.lm;
    size_t weights = params_bytes(&m->params, GROUP_LM);
    if (m->lm_head != m->embed_tokens)
        weights -= param_value_bytes(m->embed_tokens) + param_scale_bytes(m->embed_tokens);
    double cached = 2.0 * c->layers * c->kv_heads * c->head_dim * d->B * d->length;
    return (double)weights + cached * sizeof(floatX);
}

/* What generator_prefill leaves, without looking: B empty texts after as many positions as an image has. */
static void begin(Generator *d, int B) {
    d->B = B;
    d->length = model_prompt(d->m);
    generator_set_all(d, d->positions, d->length - 1);
    generator_set_all(d, d->streams, 0);
    generator_set_all(d, d->ids, 0);
}

static bool read_on(void *context, int b, int id) {
    (void)context, (void)b, (void)id;
    return true;
}

/* On the CPU, writing tokens and reading as many bytes take turns, so that both see the same machine; on a GPU the
 * bandwidth is that of its own copies, and tokens come as generator_run gives them. */
static void measure_batch(Result *r, Model *m, Generator *d, int B) {
    const Ops *op = m->op;
    const int tokens = B > 1 && op->host_memory ? TOKENS / 4 : TOKENS, i = r->count++;
    double times[TOKENS], rates[TOKENS];
    int *zeros = (int *)xcalloc((size_t)B, sizeof(int));
    begin(d, B);
    generator_run(d, zeros, 4, read_on, NULL);  // graphs and plans are made
    double bytes = step_bytes(d);
    begin(d, B);
    if (op->host_memory) {
        void *data = op->alloc((size_t)bytes);
        if (!data) die("out of memory");
        for (int t = 0; t < tokens; t++) {
            rates[t] = measure_read_bandwidth(data, (size_t)bytes);
            double start = seconds_now();
            generator_step(d, true);
            times[t] = seconds_now() - start;
        }
        op->release(data);
    } else {
        double copying = measure_copy_bandwidth(op, (size_t)1 << (bytes > 1e8 ? 30 : 20));
        for (int t = 0; t < 4; t++) {
            begin(d, B);
            op->sync();
            double start = seconds_now();
            generator_run(d, zeros, tokens, read_on, NULL);
            times[t] = (seconds_now() - start) / tokens;
            rates[t] = copying;
        }
        bytes = step_bytes(d);
    }
    free(zeros);
    double seconds = median_of(times, op->host_memory ? tokens : 4);
    double bandwidth = median_of(rates, op->host_memory ? tokens : 4);
    r->batch[i] = B, r->step[i] = seconds, r->floor[i] = bytes / bandwidth;
    printf(
        "%2d texts: %.3f ms a token of each, %.1f tokens/s; %.2f GB at %.1f GB/s; %s as many bytes %.1f GB/s, share "
        "%.0f %%\n",
        B, 1e3 * seconds, B / seconds, bytes / 1e9, bytes / seconds / 1e9, op->host_memory ? "reading" : "copying",
        bandwidth / 1e9, 100 * bytes / seconds / bandwidth);
}

/* Median seconds of a step of B texts after an image. */
static double time_decode(Generator *d, int B) {
    const int steps = B > 1 ? TOKENS / 4 : TOKENS;
    double times[TOKENS];
    for (int t = -2; t < steps; t++) {  // two steps to warm up
        if (t <= 0) begin(d, B);
        d->m->op->sync();
        double start = seconds_now();
        generator_step(d, true);
        d->m->op->sync();
        if (t >= 0) times[t] = seconds_now() - start;
    }
    return median_of(times, steps);
}

/* Seconds that the decoder needs to read S positions of one text, the image tokens among them; the encoder does not
 * run again. */
static double time_prefill(Generator *d, int S) {
    const int T = S - model_prompt(d->m) + 1;
    int *ids = (int *)xcalloc((size_t)T, sizeof(int));
    model_layout(d->m, ids, 1, T);
    free(ids);
    d->m->op->sync();
    double start = seconds_now();
    decoder_prefill(d->m, 1, S, &d->cache, d->logits);
    d->m->op->sync();
    return seconds_now() - start;
}

/* Seconds of what a line asks for; ends the program if it asks for something else. */
static double answer(Generator *d, const char *line) {
    const int image = model_prompt(d->m), most = image + TOKENS;
    char what[16];
    int n = 0;
    if (sscanf(line, "%15s %d", what, &n) == 2) {
        if (!strcmp(what, "decode") && n >= 1 && n <= d->max_B) return time_decode(d, n);
        if (!strcmp(what, "prefill") && n >= image && n <= most) return time_prefill(d, n);
    }
    die("a request is \"decode N\", N from 1 to %d, or \"prefill N\", N from %d to %d; not \"%.*s\"", d->max_B, image,
        most, (int)strcspn(line, "\n"), line);
}

static void serve(const Ops *op, const char *path, int B) {
    static Model m;
    Generator d;
    char line[64];
    if (B < 1) die("--serve takes the number of texts, from 1 on");
    open_and_multiply(&m, op, path);
    B = generator_fit(&m, B, 1, false, TOKENS + 1, TOKENS + 1);
    model_plan(&m, B, TOKENS + 1);
    generator_open(&d, &m, B, TOKENS + 1);
    uint8_t *grey = grey_image(&m);
    generator_prefill(&d, grey, 1, NULL, 0);
    op->sync();
    printf("%d %d\n", model_prompt(&m), model_prompt(&m) + TOKENS);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("%.6f\n", 1e3 * answer(&d, line));
        fflush(stdout);
    }
    generator_close(&d);
    model_close(&m);
    free(grey);
}

static void measure(const Ops *op, const char *path, const char *json, const char *batches) {
    static Model m;
    Generator d;
    Result r;
    memset(&r, 0, sizeof r);
    r.opened = open_and_multiply(&m, op, path);
    printf("from nothing to the first product: %.3f s\n", r.opened);
    uint8_t *grey = grey_image(&m);
    int B = 1, wanted[BATCHES], count = 0;
    for (const char *at = batches; *at && count < BATCHES; at += strcspn(at, ","), at += *at == ',') {
        wanted[count] = atoi(at);
        if (wanted[count] < 1) die("--batch takes numbers from 1 on, with commas between");
        if (wanted[count] > B) B = wanted[count];
        count++;
    }
    double start = seconds_now();
    B = generator_fit(&m, B, 1, true, 1, TOKENS + 1);
    model_plan(&m, B, 1);
    generator_open(&d, &m, B, TOKENS + 1);  // copies the decoder's weights to large pages
    double prepared = seconds_now() - start, first[2];
    for (int i = 0; i < 2; i++) {  // the first one also brings the pages of the encoder into memory
        start = seconds_now();
        generator_prefill(&d, grey, 1, NULL, 0);
        op->sync();
        first[i] = seconds_now() - start;
    }
    r.first = first[1];
    printf("memory prepared in %.2f s; image to first token: %.3f s, again %.3f s\n", prepared, first[0], first[1]);
    for (int i = 0; i < count; i++) {
        if (wanted[i] <= B)
            measure_batch(&r, &m, &d, wanted[i]);
        else
            printf("%2d texts do not fit into the memory\n", wanted[i]);
    }
    if (json) write_json(json, op, &r);
    generator_close(&d);
    model_close(&m);
    free(grey);
}

static void usage(void) {
    die("usage: bench_decode --make FILE [SHAPE], or bench_decode [--device NAME] [--json FILE] [--batch N,N...] "
        "FILE|SHAPE, or bench_decode [--device NAME] --serve B FILE|SHAPE");
}

int main(int argc, char **argv) {
    const char *device = "cpu", *json = NULL, *batches = NULL, *served = NULL;
    Error err;
    program_name_set(argv[0]);
    threads_wait_politely(argv);  // as infer does
    if (argc >= 3 && !strcmp(argv[1], "--make")) {
        make(argv[2], argc > 3 ? argv[3] : "tl-1.1b,lm.vocab=32000");
        return 0;
    }
    int i = 1;
    for (; i + 2 < argc && argv[i][0] == '-'; i += 2) {
        const char **value = !strcmp(argv[i], "--device")  ? &device
                             : !strcmp(argv[i], "--json")  ? &json
                             : !strcmp(argv[i], "--batch") ? &batches
                             : !strcmp(argv[i], "--serve") ? &served
                                                           : NULL;
        if (!value) usage();
        *value = argv[i + 1];
    }
    if (i + 1 != argc || argv[i][0] == '-' || (served && (json || batches))) usage();
    const Ops *op = ops_open(device, &err);
    if (!op) die("%s", err.text);
    if (served)
        serve(op, argv[i], atoi(served));
    else
        measure(op, argv[i], json, batches ? batches : op->host_memory ? "1,8" : "1,8,64");
    return 0;
}
