/* How fast a large model starts and writes.
 *
 *     bench_decode --make FILE [SHAPE]    a model file with random weights (default tl-1.1b,lm.vocab=32000; 3 GB)
 *     bench_decode [--device NAME] [--json OUT] FILE      opens it, looks at a grey picture, writes 64 tokens
 *
 * Writing one token reads every weight of the decoder once, so the floor is their bytes over the read bandwidth,
 * which is measured in the same run. */
#include "../lib/json.h"
#include "../lib/machine.h"
#include "../lib/progress.h"
#include "../model.h"

enum { TOKENS = 64 };

static void make(const char *path, const char *shape) {
    Error err;
    Model m;
    if (model_create(&m, &cpu_ops, shape, "dev/starter/tokenizer.safetensors", 1, &err)) die("%s", err.text);
    if (model_save(&m, path, &err)) die("%s", err.text);
    printf("%s: %.2f M parameters\n", path, (double)params_total(&m.params, PART_ALL) / 1e6);
    model_close(&m);
}

/* Seconds from nothing to the result of the first product with a weight of the file. */
static double open_and_multiply(Model *m, const Ops *op, const char *path) {
    Error err;
    double start = seconds_now();
    if (model_open(m, op, path, &err)) die("%s", err.text);
    Weight w = param_weight(m->layer[0].qkv);
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

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median_of(double *values, int count) {
    qsort(values, (size_t)count, sizeof values[0], compare_doubles);
    return values[count / 2];
}

static void write_json(const char *path, const Ops *op, double opened, double first, double token, double bytes,
                       double bandwidth) {
    FILE *f = fopen(path, "w");
    JsonWriter w;
    memset(&w, 0, sizeof w);
    json_begin_object(&w);
    json_key(&w, "device"), json_string(&w, op->name);
    json_key(&w, "open_s"), json_number(&w, opened);
    json_key(&w, "picture_to_first_token_s"), json_number(&w, first);
    json_key(&w, "token_ms"), json_number(&w, 1e3 * token);
    json_key(&w, "floor_ms"), json_number(&w, 1e3 * bytes / bandwidth);
    json_end_object(&w);
    if (!f || json_write_line(&w, f) || fclose(f)) die("cannot write %s: %s", path, strerror(errno));
    json_writer_free(&w);
}

/* Writing tokens and reading as many bytes take turns on the processor, so that both see the same machine; on a GPU
 * the bandwidth is that of its own copies. */
static void measure(const Ops *op, const char *path, const char *json) {
    Model m;
    Decoder d;
    double times[TOKENS], rates[TOKENS];
    double opened = open_and_multiply(&m, op, path);
    size_t pixels = (size_t)m.c.vision.image_size * (size_t)m.c.vision.image_size * 3;
    uint8_t *grey = (uint8_t *)xmalloc(pixels);
    memset(grey, 128, pixels);
    double start = seconds_now();
    model_plan(&m, 1, 1);
    decoder_open(&d, &m, 1, TOKENS + 1);  // copies the decoder's weights to large pages
    double prepared = seconds_now() - start;
    start = seconds_now();
    decoder_start(&d, grey, 1, NULL, 0);  // also brings the pages of the encoder into memory
    double first = seconds_now() - start;
    start = seconds_now();
    decoder_start(&d, grey, 1, NULL, 0);
    double again = seconds_now() - start;
    size_t embed = m.head == m.embed ? 0 : m.embed->n;  // one row of it is read, unless it is also the head
    size_t bytes = (params_total(&m.params, PART_LM) - embed) * sizeof(floatX);
    void *data = op->host_memory ? op->alloc(bytes) : NULL;
    if (op->host_memory && !data) die("out of memory");
    double copying = data ? 0 : measure_copy_bandwidth(op, bytes);
    for (int i = 0; i < TOKENS; i++) {
        int id = i % m.c.lm.vocab;
        rates[i] = data ? measure_read_bandwidth(data, bytes) : copying;
        start = seconds_now();
        decoder_step(&d, &id);
        times[i] = seconds_now() - start;
    }
    double seconds = median_of(times, TOKENS), bandwidth = median_of(rates, TOKENS);
    printf("from nothing to the first product: %.3f s\n", opened);
    printf("memory prepared in %.2f s; picture to first token: %.2f s, again %.2f s\n", prepared, first, again);
    printf("a token: %.2f ms (median of %d), %.1f tokens/s, %.2f GB of weights at %.1f GB/s\n", 1e3 * seconds, TOKENS,
           1 / seconds, (double)bytes / 1e9, (double)bytes / seconds / 1e9);
    printf("%s as many bytes: %.1f GB/s (median), %.1f GB/s (best); share %.0f %%\n", data ? "reading" : "copying",
           bandwidth / 1e9, rates[TOKENS - 1] / 1e9, 100 * (double)bytes / seconds / bandwidth);
    if (json) write_json(json, op, opened, again, seconds, (double)bytes, bandwidth);
    if (data) op->release(data);
    decoder_close(&d);
    model_close(&m);
    free(grey);
}

int main(int argc, char **argv) {
    const char *device = "cpu", *json = NULL;
    Error err;
    program_name_set(argv[0]);
    if (argc >= 3 && !strcmp(argv[1], "--make")) {
        make(argv[2], argc > 3 ? argv[3] : "tl-1.1b,lm.vocab=32000");
        return 0;
    }
    int i = 1;
    for (; i + 2 < argc && argv[i][0] == '-'; i += 2) {
        if (!strcmp(argv[i], "--device")) device = argv[i + 1];
        if (!strcmp(argv[i], "--json")) json = argv[i + 1];
    }
    if (i + 1 != argc || argv[i][0] == '-')
        die("usage: bench_decode --make FILE [SHAPE], or bench_decode [--device NAME] [--json FILE] FILE");
    const Ops *op = ops_open(device, &err);
    if (!op) die("%s", err.text);
    measure(op, argv[i], json);
    return 0;
}
