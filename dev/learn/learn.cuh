/* What the programs of this folder share: they run a kernel in several versions, compare each with a plain reference
 * on the host, and time it against its floor.
 *
 *   PROGRAM [--rows N] [--width N] [--version NAME] [--json FILE]
 *
 * The floor is the time that the GPU takes to copy the fewest bytes that the kernel must read and write or, if that
 * is longer, to do its multiplications in a large matmul. On the emulated GPU nothing is timed. Ends with "N passed,
 * M failed". */
#ifndef DEV_LEARN_CUH
#define DEV_LEARN_CUH

/* A lesson uses one kernel of a header and leaves the others unused. */
#pragma GCC diagnostic ignored "-Wunused-function"
#ifdef __NVCC__
#pragma nv_diag_suppress 177
#endif

#include "../../kernels/cuda/common.cuh"
#include "../../lib/json.h"

typedef struct {
    const char *name, *idea;
    double bytes;   // that its loads and stores move, in multiples of an array of rows x width elements
    void (*run)();  // launches the kernel
    bool fits;      // false: it cannot do these shapes
} Version;

typedef struct {
    const char *name;
    int rows, width;
    double floor_bytes;  // in the same multiples
    void (*reset)();     // restores the input, which the last version may have overwritten
    double (*error)();   // of the output, as a share of what rounding explains; above 1: wrong
    const char *more;    // about the shapes
    double flops;        // of its matmuls
    double (*matmul)();  // measures the operations per second of a large matmul; NULL for a kernel without any
} Lesson;

/* ---- the GPU ---- */

static void learn_open() {
    int count = 0;
    program_name_set(program_invocation_name);
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) die("no NVIDIA GPU answers");
    cuda_current = &cuda_streams[0];
    CUDA_CHECK(cudaStreamCreateWithFlags(&cuda_current->stream, cudaStreamNonBlocking));
}

template <typename T> static T *learn_alloc(size_t n) {
    void *p = NULL;
    if (cudaMalloc(&p, n * sizeof(T)) != cudaSuccess)
        die("the GPU cannot allocate %.1f MB; choose fewer --rows", (double)(n * sizeof(T)) / 1e6);
    return (T *)p;
}

static void learn_upload(void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, cuda_stream()));
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream()));
}

static void learn_download(void *to, const void *from, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, cuda_stream()));
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream()));
}

/* ---- numbers ---- large arrays repeat a block of random numbers, so that the host knows each of their elements */

enum { PERIOD = 1000008 };

static floatX *learn_block(uint32_t seed, float size) {
    floatX *block = (floatX *)malloc(PERIOD * sizeof *block);
    if (!block) die("out of memory");
    for (int i = 0; i < PERIOD; i++) {
        seed = seed * 1664525u + 1013904223u;
        block[i] = to_x(size * ((float)(seed >> 8) / 8388608.0f - 1.0f));
    }
    return block;
}

static void learn_fill(floatX *x, size_t n, const floatX *block) {
    size_t done = n < (size_t)PERIOD ? n : (size_t)PERIOD;
    learn_upload(x, block, done * sizeof *x);
    for (; done < n; done *= 2) {
        size_t more = n - done < done ? n - done : done;
        CUDA_CHECK(cudaMemcpyAsync(x + done, x, more * sizeof *x, cudaMemcpyDeviceToDevice, cuda_stream()));
    }
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream()));
}

static double learn_element(const floatX *block, size_t i) { return (double)from_x(block[i % PERIOD]); }

/* ---- time ---- */

static const bool timed = EVENTS_TELL_TIME;

/* Milliseconds of a call: the best of five rounds of as many calls as fill five milliseconds. */
template <typename Call> static double learn_time(Call call) {
    cudaEvent_t begin, end;
    float best = INFINITY, ms;
    int calls = 1;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    for (int round = 0; round < 7;
         round++) {  // the first round warms up, the second decides how many calls a round has
        CUDA_CHECK(cudaEventRecord(begin, cuda_stream()));
        for (int i = 0; i < calls; i++) call();
        CUDA_CHECK(cudaEventRecord(end, cuda_stream()));
        CUDA_CHECK(cudaEventSynchronize(end));
        CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
        ms /= (float)calls;
        if (round == 1) calls = ms < 5 ? (int)(5 / (ms + 0.01f)) + 1 : 1;
        if ((round > 1 || ms > 300) && ms < best) best = ms;
        if (round > 0 && ms > 300) break;  // slow enough for one measurement
    }
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
    return (double)best;
}

/* Bytes per second, read and written, of a copy of 512 MB within the GPU. */
static double learn_bandwidth() {
    const size_t bytes = (size_t)512 << 20;
    char *from = learn_alloc<char>(bytes), *to = learn_alloc<char>(bytes);
    double ms =
        learn_time([&] { CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_stream())); });
    CUDA_CHECK(cudaFree(from));
    CUDA_CHECK(cudaFree(to));
    return 2e3 * (double)bytes / ms;
}

/* ---- a lesson ---- */

static struct {
    const char *only;
    FILE *json;
    int rows, width;  // 0: the lesson's
} learn_options;

static void learn_read_options(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (i + 1 == argc) die("unknown or incomplete option %s; --rows, --width, --version, --json", argv[i]);
        if (!strcmp(argv[i], "--rows") || !strcmp(argv[i], "--width")) {
            int value = atoi(argv[i + 1]);
            if (value < 1 || value > 1 << 24) die("%s is '%s'; expected a number from 1 on", argv[i], argv[i + 1]);
            (argv[i][2] == 'r' ? learn_options.rows : learn_options.width) = value;
        } else if (!strcmp(argv[i], "--version")) {
            learn_options.only = argv[i + 1];
        } else if (!strcmp(argv[i], "--json")) {
            learn_options.json = fopen(argv[i + 1], "w");
            if (!learn_options.json) die("cannot write %s: %s", argv[i + 1], strerror(errno));
        } else {
            die("unknown option %s; --rows, --width, --version, --json", argv[i]);
        }
        i++;
    }
}

/* What the GPU can do, measured; 0 where nothing is timed. */
typedef struct {
    double bandwidth, matmul, floor_ms;
} Speed;

static Speed learn_speed(const Lesson *l, double array) {
    Speed s = {0, 0, 0};
    if (!timed) return s;
    s.bandwidth = learn_bandwidth();
    s.matmul = l->matmul ? l->matmul() : 0;
    s.floor_ms = 1e3 * l->floor_bytes * array / s.bandwidth;
    if (l->matmul) s.floor_ms = fmax(s.floor_ms, 1e3 * l->flops / s.matmul);
    return s;
}

static void learn_number(JsonWriter *w, const char *key, double value) {
    json_key(w, key), value > 0 ? json_number(w, value) : json_null(w);
}

static void learn_note(const Lesson *l, const Version *v, double array, const Speed *s, double ms, double error) {
    JsonWriter w;
    memset(&w, 0, sizeof w);
    json_begin_object(&w);
    json_key(&w, "kernel"), json_string(&w, l->name);
    json_key(&w, "version"), json_string(&w, v->name);
    json_key(&w, "idea"), json_string(&w, v->idea);
    json_key(&w, "rows"), json_integer(&w, l->rows);
    json_key(&w, "width"), json_integer(&w, l->width);
    json_key(&w, "dtype"), json_string(&w, dtype_name(DT_FLOATX));
    json_key(&w, "more"), json_string(&w, l->more);
    json_key(&w, "bytes"), json_number(&w, v->bytes * array);
    json_key(&w, "floor_bytes"), json_number(&w, l->floor_bytes * array);
    json_key(&w, "flops"), json_number(&w, l->flops);
    json_key(&w, "error"), json_number(&w, error);
    learn_number(&w, "bandwidth", s->bandwidth);
    learn_number(&w, "matmul", s->matmul);
    learn_number(&w, "floor_ms", s->floor_ms);
    learn_number(&w, "ms", ms);
    json_end_object(&w);
    if (json_write_line(&w, learn_options.json)) die("cannot write the figures: %s", strerror(errno));
    json_writer_free(&w);
}

static void learn_title(const Lesson *l, double array, const Speed *s) {
    printf("%s, %d x %d %s%s%s: at least %.4g MB", l->name, l->rows, l->width, dtype_name(DT_FLOATX),
           *l->more ? ", " : "", l->more, l->floor_bytes * array * 1e-6);
    if (l->flops > 0) printf(" and %.4g GFLOP", l->flops * 1e-9);
    if (timed) printf("; floor %.4f ms at %.0f GB/s (measured copy)", s->floor_ms, s->bandwidth * 1e-9);
    if (timed && l->matmul) printf(" and %.0f TFLOP/s (measured matmul)", s->matmul * 1e-12);
    printf("%s\n", timed ? "" : " (not timed)");
}

/* Runs, checks and times the versions that --version selects. Returns the program's exit status. */
static int learn_run(const Lesson *l, const Version *versions, int count) {
    double array = (double)l->rows * l->width * sizeof(floatX);
    const Speed speed = learn_speed(l, array);
    int passed = 0, failed = 0;
    learn_title(l, array, &speed);
    for (int i = 0; i < count; i++) {
        const Version *v = &versions[i];
        if (learn_options.only && strcmp(learn_options.only, v->name)) continue;
        if (!v->fits) {
            printf("%-12s not for these shapes\n", v->name);
            continue;
        }
        l->reset();
        v->run();
        double error = l->error(), ms = timed ? learn_time(v->run) : 0;
        error <= 1 ? passed++ : failed++;
        printf("%-12s %s (error %.2f of what rounding explains)  asks for %8.4g MB  ", v->name,
               error <= 1 ? "correct" : "WRONG  ", error, v->bytes * array * 1e-6);
        timed ? printf("%9.4f ms  %3.0f %% of the floor's speed\n", ms, 100 * speed.floor_ms / ms)
              : printf("not timed\n");
        if (learn_options.json) learn_note(l, v, array, &speed, ms, error);
    }
    if (learn_options.json && fclose(learn_options.json)) die("cannot write the figures: %s", strerror(errno));
    if (passed + failed == 0) die("there is no version '%s', or none for these shapes", learn_options.only);
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}

#endif
