/* Shared by the tests of kernels/ops.h: random shapes and data, buffers between guard zones, comparisons. A test
 * draws from `random_state`, works on the device `op` and frees nothing: its buffers end with the case. */
#ifndef DEV_TEST_KERNELS_H
#define DEV_TEST_KERNELS_H

#include "reference.h"
#include "../../lib/random.h"
#include <stdarg.h>
#include <stdio.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#endif

#ifdef PRECISION_FP32
static const double FORWARD = 1e-5, BACKWARD = 1e-4, ATTENTION = 1e-4;
#else
/* A result rounded to bf16 is off by up to 2^-8 = 0.004; attention also rounds between its matmuls. */
static const double FORWARD = 1e-2, BACKWARD = 1e-2, ATTENTION = 6e-2;
#endif
static const double FP32 = 2e-5;  // results that stay in fp32 on every build

static const Ops *op;
static int passed, failed;
static char case_name[256];
static bool comparing;      // false when a case only runs again for its bits
static uint64_t case_hash;  // of all outputs of this run of the case

/* ---- random numbers ---- */

static uint64_t random_state;

static uint64_t random_bits(void) { return random_splitmix(&random_state); }

static double uniform(void) { return (double)(random_bits() >> 11) * 0x1p-53; }
static double normal(void) { return sqrt(-2 * log(1 - uniform())) * cos(2 * PI * uniform()); }
static int below(int n) { return (int)(random_bits() % (uint64_t)n); }

#define ONE_OF(type, ...) (((const type[]){__VA_ARGS__})[below(sizeof((const type[]){__VA_ARGS__}) / sizeof(type))])
static size_t min_of(size_t a, size_t b) { return a < b ? a : b; }
static int ragged(void) { return ONE_OF(int, 1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 129); }

/* ---- buffers: host memory in double, device memory between guards; all freed when the case ends ---- */

enum { GUARD = 64, MAX_BUFFERS = 64 };
static void *host_buffers[MAX_BUFFERS];
static struct {
    char *base;
    size_t bytes;
} device_buffers[MAX_BUFFERS];
static int host_count, device_count;

static void report(bool ok, const char *format, ...) {
    if (ok) {
        passed++;
        return;
    }
    failed++;
    va_list list;
    va_start(list, format);
    printf("FAIL %s: ", case_name);
    vprintf(format, list);
    printf("\n");
    va_end(list);
}

static void *host(size_t bytes) {
    void *p = calloc(1, bytes + 1);
    if (!p || host_count == MAX_BUFFERS) exit(1);
    return host_buffers[host_count++] = p;
}

static double *zeros(size_t n) { return (double *)host(n * sizeof(double)); }

/* Device memory that AddressSanitizer watches: the host's, an emulated GPU's. */
static bool is_watched(void) {
#ifdef CUDA_EMULATION
    return true;
#else
    return op->host_memory;
#endif
}

static void *device(size_t bytes) {  // poisoned: all bits one is NaN in every type
    size_t total = bytes + 2 * GUARD;
    char *base = (char *)op->alloc(total), *fill = (char *)malloc(total);
    if (!base || !fill || device_count == MAX_BUFFERS) exit(1);
    memset(fill, 0xff, total);
    op->upload(base, fill, total);
    free(fill);
    if (is_watched()) {
        op->sync();
        ASAN_POISON_MEMORY_REGION(base, GUARD);
        ASAN_POISON_MEMORY_REGION(base + GUARD + bytes, GUARD);
    }
    device_buffers[device_count].base = base;
    device_buffers[device_count++].bytes = bytes;
    return base + GUARD;
}

static void end_buffers(void) {
    for (int i = 0; i < device_count; i++) {
        unsigned char guard[2][GUARD];
        bool whole = true;
        if (is_watched()) ASAN_UNPOISON_MEMORY_REGION(device_buffers[i].base, device_buffers[i].bytes + 2 * GUARD);
        op->download(guard[0], device_buffers[i].base, GUARD);
        op->download(guard[1], device_buffers[i].base + GUARD + device_buffers[i].bytes, GUARD);
        for (int j = 0; j < 2 * GUARD; j++) whole = whole && guard[j / GUARD][j % GUARD] == 0xff;
        if (comparing) report(whole, "wrote outside of buffer %d (%zu bytes)", i, device_buffers[i].bytes);
        op->release(device_buffers[i].base);
    }
    for (int i = 0; i < host_count; i++) free(host_buffers[i]);
    host_count = device_count = 0;
}

static float *out_f(size_t n) { return (float *)device(n * sizeof(float)); }
static floatX *out_x(size_t n) { return (floatX *)device(n * sizeof(floatX)); }

/* Uploads round the host's copy to the device's type, so that the reference reads what the device reads. */
static floatX *put_x(double *x, size_t n) {
    floatX *d = out_x(n), *h = (floatX *)malloc(n * sizeof *h + 1);
    for (size_t i = 0; i < n; i++) h[i] = to_x((float)x[i]), x[i] = from_x(h[i]);
    op->upload(d, h, n * sizeof *h);
    free(h);
    return d;
}

static float *put_f(double *x, size_t n) {
    float *d = out_f(n), *h = (float *)malloc(n * sizeof *h + 1);
    for (size_t i = 0; i < n; i++) h[i] = (float)x[i], x[i] = h[i];
    op->upload(d, h, n * sizeof *h);
    free(h);
    return d;
}

static int *put_i(const int *x, size_t n) {
    int *d = (int *)device(n * sizeof(int));
    op->upload(d, x, n * sizeof(int));
    return d;
}

static double *draw(size_t n, double size) {
    double *x = zeros(n);
    for (size_t i = 0; i < n; i++) x[i] = size * normal();
    return x;
}

static double *copy_of(const double *x, size_t n) { return (double *)memcpy(zeros(n), x, n * sizeof *x); }

/* ---- checks ---- */

static void add_hash(const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) case_hash = (case_hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
}

/* |got - want| <= tolerance * (|want| + root mean square of want) for every element, and half of that for the root
 * mean square of the errors. The root mean square is taken to be at least `least`. */
static void compare_with(const char *what, const float *got, const double *want, size_t n, double tolerance,
                         double least) {
    if (!comparing) return;
    double square = 0, worst = 0, mean = 0;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) square += want[i] * want[i] / (double)n;
    square = fmax(square, least * least);
    for (size_t i = 0; i < n; i++) {
        mean += (got[i] - want[i]) * (got[i] - want[i]) / (double)n;
        double error = fabs(got[i] - want[i]) / (fabs(want[i]) + sqrt(square) + 1e-30);
        if (!(error <= worst)) worst = error, at = i;
        if (error != error) break;
    }
    report(worst <= tolerance, "%s[%zu of %zu] is %.9g, expected %.9g (error %.2g, allowed %.2g)", what, at, n,
           n ? got[at] : 0.0, n ? want[at] : 0.0, worst, tolerance);
    report(n < 16 || sqrt(mean) <= tolerance / 2 * sqrt(square), "%s [%zu] is off by %.2g in the mean, allowed %.2g",
           what, n, sqrt(mean / (square + 1e-60)), tolerance / 2);
}

static void compare(const char *what, const float *got, const double *want, size_t n, double tolerance) {
    compare_with(what, got, want, n, tolerance, 0);
}

static void check_f(const char *what, const float *d, const double *want, size_t n, double tolerance) {
    float *got = (float *)malloc(n * sizeof *got + 1);
    op->download(got, d, n * sizeof *got);
    add_hash(got, n * sizeof *got);
    compare(what, got, want, n, tolerance);
    free(got);
}

static void check_x_with(const char *what, const floatX *d, const double *want, size_t n, double tolerance,
                         double least) {
    floatX *raw = (floatX *)malloc(n * sizeof *raw + 1);
    float *got = (float *)malloc(n * sizeof *got + 1);
    op->download(raw, d, n * sizeof *raw);
    add_hash(raw, n * sizeof *raw);
    for (size_t i = 0; i < n; i++) got[i] = from_x(raw[i]);
    compare_with(what, got, want, n, tolerance, least);
    free(got);
    free(raw);
}

static void check_x(const char *what, const floatX *d, const double *want, size_t n, double tolerance) {
    check_x_with(what, d, want, n, tolerance, 0);
}

/* a and b [n] are the same bits. */
static void check_same(const char *what, const floatX *a, const floatX *b, size_t n) {
    floatX *host_a = (floatX *)malloc(n * sizeof *host_a), *host_b = (floatX *)malloc(n * sizeof *host_b);
    op->download(host_a, a, n * sizeof *host_a);
    op->download(host_b, b, n * sizeof *host_b);
    report(!memcmp(host_a, host_b, n * sizeof *host_a), "%s: bits differ", what);
    free(host_a);
    free(host_b);
}

/* grad against (loss(x + h) - loss(x - h)) / 2h at some coordinates of x; loss reads x */
typedef double (*Loss)(void *context);

static void check_difference(const char *what, Loss loss, void *context, double *x, const double *grad, size_t n) {
    if (!comparing) return;
    double square = 0, worst = 0;
    for (size_t i = 0; i < n; i++) square += grad[i] * grad[i] / (double)n;
    for (int k = 0; k < 12; k++) {
        size_t i = random_bits() % n;
        double h = 1e-5 * (1 + fabs(x[i])), keep = x[i];
        x[i] = keep + h;
        double up = loss(context);
        x[i] = keep - h;
        double down = loss(context);
        x[i] = keep;
        double error = fabs((up - down) / (2 * h) - grad[i]) / (fabs(grad[i]) + sqrt(square) + 1e-30);
        if (!(error <= worst)) worst = error;
    }
    report(worst < 1e-5, "reference %s differs from finite differences by %.2g", what, worst);
}

#endif
