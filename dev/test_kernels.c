/* Every entry of a device's table of operations against a plain reference (dev/reference.h).
 *
 *   test_kernels [--quick | --smoke] [DEVICE]      DEVICE: cpu, cuda, ...; every one there is without it
 *
 * --quick runs a quarter of the cases, --smoke two of each operation.
 *
 * A case draws a shape and its data from a seed, runs the operation into outputs that were poisoned with NaN and sit
 * between guard zones, and compares. The backward references are themselves compared with central finite differences.
 * Each case runs three times, with 1, 2 and 3 threads and on an emulated GPU with its threads in three orders, and
 * every output must be the same bit for bit. Under AddressSanitizer nothing outside of a buffer may even be read. One
 * line per failing check, then `N passed, M failed`; the exit status is 1 if any failed. */
#include "reference.h"
#include <stdarg.h>
#include <stdio.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#endif
#ifdef CUDA_EMULATION
extern void emulation_set_seed(uint64_t seed);
#endif

#ifdef PRECISION_FP32
static const double FORWARD = 1e-5, BACKWARD = 1e-4, ATTENTION = 1e-4;
#else
/* A result rounded to bf16 is off by up to 2^-8 = 0.004; attention also rounds what lies between its products. */
static const double FORWARD = 1e-2, BACKWARD = 1e-2, ATTENTION = 6e-2;
#endif
static const double FP32 = 2e-5;  // results that stay in fp32 on every build

static const Ops *op;
static int passed, failed;
static char case_name[256];
static bool comparing;      // false when a case only runs again for its bits
static uint64_t case_hash;  // of all outputs of this run of the case

/* ---- random numbers (splitmix64) ---- */

static uint64_t random_state;

static uint64_t random_bits(void) {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

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

static void check_x(const char *what, const floatX *d, const double *want, size_t n, double tolerance) {
    floatX *raw = (floatX *)malloc(n * sizeof *raw + 1);
    float *got = (float *)malloc(n * sizeof *got + 1);
    op->download(raw, d, n * sizeof *raw);
    add_hash(raw, n * sizeof *raw);
    for (size_t i = 0; i < n; i++) got[i] = from_x(raw[i]);
    compare(what, got, want, n, tolerance);
    free(got);
    free(raw);
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

/* ---- memory and inputs ---- */

static void test_memory(void) {
    size_t n = 1 + below(100000), width = 1 + below(300), rows = 1 + below(300), a = width + below(50);
    size_t b = width + below(50);
    unsigned char *p = (unsigned char *)op->alloc(n), *h = (unsigned char *)host(n), *g = (unsigned char *)host(n);
    op->download(h, p, n);
    bool zero = true;
    for (size_t i = 0; i < n; i++) zero = zero && h[i] == 0;
    report(zero && ((uintptr_t)p & 63) == 0, "alloc gives zeroed memory on a 64-byte boundary");
    op->release(p);
    for (size_t i = 0; i < n; i++) h[i] = (unsigned char)below(256);
    void *x = device(n), *y = device(n);
    op->upload(x, h, n);
    op->copy(y, x, n);
    op->sync();
    op->download(g, y, n);
    report(memcmp(g, h, n) == 0, "upload, copy, download of %zu bytes", n);
    op->zero(y, n);
    op->copy_from(y, op, x, n);
    op->download(g, y, n);
    report(memcmp(g, h, n) == 0, "copy_from the device itself of %zu bytes", n);
    op->zero(y, n);
    op->copy_from(y, &cpu_ops, h, n);
    op->download(g, y, n);
    report(memcmp(g, h, n) == 0, "copy_from the host of %zu bytes", n);
    op->zero((char *)y + n / 3, n - n / 3);
    op->download(g, y, n);
    for (size_t i = n / 3; i < n; i++) zero = zero && g[i] == 0;
    report(zero && memcmp(g, h, n / 3) == 0, "zero of %zu bytes", n - n / 3);
    unsigned char *src = (unsigned char *)host(rows * a), *dst = (unsigned char *)host(rows * b);
    for (size_t i = 0; i < rows * a; i++) src[i] = (unsigned char)below(256);
    void *ds = device(rows * a), *dd = device(rows * b);
    op->upload(ds, src, rows * a);
    op->copy_rows(dd, b, ds, a, width, rows);
    op->download(dst, dd, rows * b);
    bool same = true;
    for (size_t r = 0; r < rows; r++) {
        same = same && memcmp(dst + r * b, src + r * a, width) == 0;
        for (size_t i = width; i < b; i++) same = same && dst[r * b + i] == 0xff;
    }
    report(same, "copy_rows %zu x %zu", rows, width);
}

/* More than goes to a GPU in one piece. */
static void test_large_copies(void) {
    size_t n = ((size_t)5 << 23) + 12345;
    unsigned char *h = (unsigned char *)host(n), *g = (unsigned char *)host(n);
    void *x = device(n), *y = device(n);
    for (size_t i = 0; i < n; i++) h[i] = (unsigned char)(i * 2654435761u >> 24);
    op->upload(x, h, n);
    op->upload(y, h + 1, n - 1);  // the next ones do not disturb the first
    h[n / 2] ^= 1;                // what is uploaded has been read
    op->copy(y, x, n);
    op->download(g, y, n);
    g[n / 2] ^= 1;
    report(memcmp(g, h, n) == 0, "upload, copy, download of %zu bytes", n);
}

static void test_embedding(void) {
    int C = ragged(), vocab = 1 + below(70);
    size_t rows = 1 + below(400);
    int *ids = (int *)host(rows * sizeof(int));
    for (size_t r = 0; r < rows; r++) ids[r] = below(4) ? below(vocab) : -1;
    double *table = draw((size_t)vocab * C, 1), *out = draw(rows * C, 1), *dout = draw(rows * C, 1);
    double *dtable = draw((size_t)vocab * C, 1);
    floatX *dev_table = put_x(table, (size_t)vocab * C), *dev_out = put_x(out, rows * C);
    floatX *dev_dout = put_x(dout, rows * C);
    float *dev_dtable = put_f(dtable, (size_t)vocab * C);
    int *dev_ids = put_i(ids, rows);
    op->embedding_forward(dev_out, dev_ids, dev_table, rows, C);
    op->embedding_backward(dev_dtable, dev_dout, dev_ids, rows, C, vocab);
    for (size_t r = 0; r < rows; r++)
        for (int c = 0; c < C && ids[r] >= 0; c++) {
            out[r * C + c] = table[(size_t)ids[r] * C + c];
            dtable[(size_t)ids[r] * C + c] += dout[r * C + c];
        }
    check_x("embedding_forward", dev_out, out, rows * C, 0);
    check_f("embedding_backward", dev_dtable, dtable, (size_t)vocab * C, FP32);
}

static void test_patchify(void) {
    int B = 1 + below(3), patch = ONE_OF(int, 1, 2, 3, 7, 8, 14, 16), side = 1 + below(7);
    int S = patch * side + (below(2) ? below(patch) : 0);  // some rows and columns left over, in half of the cases
    size_t bytes = (size_t)B * S * S * 3, n = (size_t)B * side * side * 3 * patch * patch;
    uint8_t *pixels = (uint8_t *)host(bytes), *dev = (uint8_t *)device(bytes);
    double *want = zeros(n), *w = want;
    for (size_t i = 0; i < bytes; i++) pixels[i] = (uint8_t)below(256);
    for (int b = 0; b < B; b++)
        for (int p = 0; p < side * side; p++)
            for (int c = 0; c < 3; c++)
                for (int y = 0; y < patch; y++)
                    for (int x = 0; x < patch; x++) {
                        size_t row = p / side * patch + y, col = p % side * patch + x;
                        *w++ = (pixels[(((size_t)b * S + row) * S + col) * 3 + c] / 255.0 - 0.5) / 0.5;
                    }
    op->upload(dev, pixels, bytes);
    floatX *out = out_x(n);
    op->patchify(out, dev, B, S, patch);
    check_x("patchify", out, want, n, FORWARD / 2);
}

static void test_position(void) {
    int B = 1 + below(9), T = ragged(), C = ragged();
    size_t n = (size_t)B * T * C, m = (size_t)T * C;
    double *x = draw(n, 1), *position = draw(m, 1), *dout = draw(n, 1), *dposition = draw(m, 1);
    floatX *dev_x = put_x(x, n), *dev_position = put_x(position, m), *dev_dout = put_x(dout, n);
    float *dev_dposition = put_f(dposition, m);
    op->position_forward(dev_x, dev_position, B, T, C);
    op->position_backward(dev_dposition, dev_dout, B, T, C);
    for (size_t i = 0; i < n; i++) x[i] += position[i % m], dposition[i % m] += dout[i];
    check_x("position_forward", dev_x, x, n, FORWARD / 2);
    check_f("position_backward", dev_dposition, dposition, m, FP32);
}

static void test_rows(void) {
    int C = ragged(), *index;
    size_t total = 1 + below(300), rows = 1 + below((int)total);
    index = (int *)host(total * sizeof(int));
    for (size_t i = 0; i < total; i++) index[i] = (int)i;
    for (size_t i = 0; i < total; i++) {
        size_t j = i + random_bits() % (total - i);
        int swap = index[i];
        index[i] = index[j], index[j] = swap;
    }
    double *x = draw(total * C, 1), *small = zeros(rows * C), *large = zeros(total * C);
    floatX *dev_x = put_x(x, total * C), *dev_small = out_x(rows * C), *dev_large = out_x(total * C);
    int *dev_index = put_i(index, rows);
    op->gather_rows(dev_small, dev_x, dev_index, rows, C);
    op->scatter_rows(dev_large, dev_small, dev_index, rows, total, C);
    for (size_t i = 0; i < rows * C; i++) {
        small[i] = x[(size_t)index[i / C] * C + i % C];
        large[(size_t)index[i / C] * C + i % C] = small[i];
    }
    check_x("gather_rows", dev_small, small, rows * C, 0);
    check_x("scatter_rows", dev_large, large, total * C, 0);
}

/* ---- norms ---- */

typedef struct {
    size_t rows;
    int C;
    bool layer;
    double *x, *weight, *bias, *dout, *out, *mean, *rstd;
} NormCase;

static double norm_loss(void *context) {
    NormCase *k = (NormCase *)context;
    ref_norm_forward(k->out, k->mean, k->rstd, k->x, k->weight, k->bias, k->rows, k->C, 1e-5, k->layer);
    return ref_dot(k->out, k->dout, (int)(k->rows * k->C));
}

static void norm_forward_check(NormCase *k, bool residual, bool alias, bool save) {
    size_t n = k->rows * k->C;
    double *a = draw(n, 1), *b = draw(n, 1);
    for (size_t i = 0; i < n; i++) a[i] += 1;
    floatX *dev_a = put_x(a, n), *dev_b = put_x(b, n), *sum = alias ? dev_a : out_x(n), *out = out_x(n);
    floatX *weight = put_x(k->weight, k->C), *bias = put_x(k->bias, k->C);
    float *mean = save ? out_f(k->rows) : NULL, *rstd = save ? out_f(k->rows) : NULL;
    for (size_t i = 0; i < n; i++) k->x[i] = residual ? from_x(to_x((float)(a[i] + b[i]))) : a[i];
    norm_loss(k);
    if (k->layer && residual)
        op->residual_layernorm_forward(sum, out, mean, rstd, dev_a, dev_b, weight, bias, k->rows, k->C, 1e-5f);
    else if (k->layer)
        op->layernorm_forward(out, mean, rstd, dev_a, weight, bias, k->rows, k->C, 1e-5f);
    else if (residual)
        op->residual_rmsnorm_forward(sum, out, rstd, dev_a, dev_b, weight, k->rows, k->C, 1e-5f);
    else
        op->rmsnorm_forward(out, rstd, dev_a, weight, k->rows, k->C, 1e-5f);
    if (residual) check_x("residual sum", sum, k->x, n, 1e-7);
    double spread = 0;  // a mean is rounded, and where a row's values are almost equal, rstd makes much of that
    for (size_t r = 0; r < k->rows && k->layer; r++) spread = fmax(spread, fabs(k->mean[r]) * k->rstd[r]);
    check_x(k->layer ? "layernorm_forward" : "rmsnorm_forward", out, k->out, n, FORWARD + 0x1p-22 * spread);
    if (save && k->layer) check_f("mean", mean, k->mean, k->rows, FP32);
    if (save) check_f("rstd", rstd, k->rstd, k->rows, FP32);
}

static void test_norm(void) {
    NormCase k = {.rows = 1 + below(150), .C = 1 + ragged(), .layer = below(2)};
    int unusual = below(8);  // very long rows, many rows, very many
    if (unusual == 0) k.rows = 1 + below(3), k.C = 12800 + below(2);
    if (unusual == 1) k.rows = 256 + below(100);
    if (unusual == 2) k.rows = 4300 + below(900), k.C = 1 + below(12);
    bool residual = below(2), frozen = below(4) == 0;
    size_t n = k.rows * k.C;
    k.x = draw(n, 1), k.weight = draw(k.C, 1), k.bias = draw(k.C, 1), k.dout = draw(n, 1);
    k.out = zeros(n), k.mean = zeros(k.rows), k.rstd = zeros(k.rows);
    norm_forward_check(&k, residual, residual && below(2), below(4) != 0);
    norm_loss(&k);
    double *dx = draw(n, 1), *dweight = draw(k.C, 1), *dbias = draw(k.C, 1);
    floatX *dev_dx = put_x(dx, n), *dev_dout = put_x(k.dout, n), *dev_x = put_x(k.x, n);
    floatX *dev_weight = put_x(k.weight, k.C);
    float *dev_dweight = put_f(dweight, k.C), *dev_dbias = put_f(dbias, k.C);
    float *mean = put_f(k.mean, k.rows), *rstd = put_f(k.rstd, k.rows);
    if (k.layer)
        op->layernorm_backward(dev_dx, frozen ? NULL : dev_dweight, frozen ? NULL : dev_dbias, dev_dout, dev_x,
                               dev_weight, mean, rstd, k.rows, k.C);
    else
        op->rmsnorm_backward(dev_dx, frozen ? NULL : dev_dweight, dev_dout, dev_x, dev_weight, rstd, k.rows, k.C);
    double *gx = zeros(n), *gweight = zeros(k.C), *gbias = zeros(k.C);
    ref_norm_backward(gx, gweight, gbias, k.dout, k.x, k.weight, k.mean, k.rstd, k.rows, k.C, k.layer);
    for (size_t i = 0; i < n; i++) dx[i] += gx[i];
    for (int c = 0; c < k.C && !frozen; c++) dweight[c] += gweight[c], dbias[c] += k.layer ? gbias[c] : 0;
    check_x("norm_backward dinp", dev_dx, dx, n, BACKWARD);
    check_f("norm_backward dweight", dev_dweight, dweight, k.C, 5 * FP32);
    check_f("norm_backward dbias", dev_dbias, dbias, k.C, 5 * FP32);
    if (k.C < 4) return;  // two normalised values hardly move: nothing to difference
    check_difference("norm dx", norm_loss, &k, k.x, gx, n);
    check_difference("norm dweight", norm_loss, &k, k.weight, gweight, k.C);
}

/* ---- products ---- */

static Weight put_weight(double *w, int O, int I, Dtype dtype) {
    size_t n = (size_t)O * I, size = dtype_size(dtype);
    char *h = (char *)malloc(n * size);
    for (size_t i = 0; i < n; i++) {
        float f = (float)w[i];
        bf16 x = f32_to_bf16(f);
        memcpy(h + i * size, dtype == DT_F32 ? (void *)&f : (void *)&x, size);
        w[i] = dtype == DT_F32 ? f : bf16_to_f32(x);
    }
    void *d = device(n * size);
    op->upload(d, h, n * size);
    free(h);
    Weight weight = {d, dtype, O, I, NULL};
    return weight;
}

static size_t product_rows(void) { return ONE_OF(size_t, 1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 64, 100, 129, 517, 700); }

/* Half of them whole vectors, some of them square. */
static void product_shape(int *O, int *I) {
    *O = ragged() + (below(3) ? 0 : below(500)), *I = ragged() + (below(3) ? 0 : below(600));
    if (below(2)) *O = (*O + 7) / 8 * 8, *I = (*I + 7) / 8 * 8;
    if (!below(6)) *O = *I;
}

static void test_linear_forward(void) {
    int O, I;
    product_shape(&O, &I);
    size_t rows = product_rows();
    Activation act = (Activation)below(3);
    double *x = draw(rows * I, 1), *w = draw((size_t)O * I, 1 / sqrt(I)), *bias = draw(O, 1);
    double *want = zeros(rows * O);
    Dtype dtype = below(3) ? DT_FLOATX : ONE_OF(Dtype, DT_F32, DT_BF16);
    Weight weight = put_weight(w, O, I, dtype);
    bool biased = below(3), keep = below(2);
    floatX *dev_x = put_x(x, rows * I), *dev_bias = put_x(bias, O), *out = out_x(rows * O), *preact = out_x(rows * O);
    float *logits = out_f(rows * O);
    op->linear_logits(logits, dev_x, weight, rows);
    /* twice, into other memory: what a device remembers of a shape must not hold on to the pointers */
    op->linear_forward(out_x(rows * O), dev_x, weight, biased ? put_x(draw(O, 1), O) : NULL, act,
                       keep ? out_x(rows * O) : NULL, rows);
    op->linear_forward(out, dev_x, weight, biased ? dev_bias : NULL, act, keep ? preact : NULL, rows);
    ref_product(want, x, I, 1, w, 1, I, rows, O, I);
    bool rounds = dtype != DT_FLOATX && dtype == DT_F32;  // an fp32 weight may be rounded to bf16 by the product
    check_f("linear_logits", logits, want, rows * O, rounds ? FORWARD : FP32);
    for (size_t i = 0; i < rows * O && biased; i++) want[i] += bias[i % O];
    if (keep) check_x("linear_forward preact", preact, want, rows * O, FORWARD);
    /* The activation passes on the rounding of what it is given, which is as large as that is, not as the result is.
     */
    double given = ref_dot(want, want, (int)(rows * O));
    for (size_t i = 0; i < rows * O; i++) want[i] = ref_activation(want[i], act);
    double left = ref_dot(want, want, (int)(rows * O));
    check_x("linear_forward", out, want, rows * O, FORWARD * fmax(1, sqrt(given / (left + 1e-30))));
}

static void test_linear_backward(void) {
    int O, I;
    product_shape(&O, &I);
    size_t rows = product_rows() + (below(8) ? 0 : 9000);
    if (rows > 9000) O = O % 70 + 1, I = I % 70 + 1;
    bool accumulate = below(2), biased = below(2);
    double *x = draw(rows * I, 1), *w = draw((size_t)O * I, 1 / sqrt(I)), *dout = draw(rows * O, 1);
    double *dx = draw(rows * I, 1), *dw = draw((size_t)O * I, 1), *db = draw(O, 1), *sum = zeros(rows * I);
    Weight weight = put_weight(w, O, I, below(3) ? DT_FLOATX : DT_BF16);
    floatX *dev_x = put_x(x, rows * I), *dev_dout = put_x(dout, rows * O), *dev_dx = put_x(dx, rows * I);
    float *dev_dw = put_f(dw, (size_t)O * I), *dev_db = put_f(db, O);
    op->linear_backward_input(dev_dx, dev_dout, weight, rows, accumulate);
    op->linear_backward_weight(dev_dw, biased ? dev_db : NULL, dev_dout, dev_x, rows, O, I);
    ref_product(sum, dout, O, 1, w, I, 1, rows, I, O);
    for (size_t i = 0; i < rows * I; i++) dx[i] = sum[i] + (accumulate ? dx[i] : 0);
    check_x("linear_backward_input", dev_dx, dx, rows * I, FORWARD / 2);
    double *grad = zeros((size_t)O * I);
    ref_product(grad, dout, 1, O, x, I, 1, O, I, rows);
    for (size_t i = 0; i < (size_t)O * I; i++) dw[i] += grad[i];
    for (size_t i = 0; i < rows * O && biased; i++) db[i % O] += dout[i];
    check_f("linear_backward_weight", dev_dw, dw, (size_t)O * I, 2 * FP32);
    check_f("linear_backward_weight dbias", dev_db, db, O, 2 * FP32);
}

/* ---- pointwise ---- */

static void test_gelu(void) {
    size_t n = 1 + below(below(2) ? 100 : 60000);
    Activation act = (Activation)below(3);
    double *x = draw(n, 3), *dout = draw(n, 1), *want = zeros(n);
    bool alias = below(2);
    if (n > 4) x[0] = 90, x[1] = -90, x[2] = 0, x[3] = -5.5;
    floatX *dev_x = put_x(x, n), *dev_dout = put_x(dout, n), *dinp = alias ? dev_dout : out_x(n);
    op->gelu_backward(dinp, dev_dout, dev_x, n, act);
    for (size_t i = 0; i < n; i++) want[i] = dout[i] * ref_activation_derivative(x[i], act);
    check_x("gelu_backward", dinp, want, n, FORWARD);
    for (int i = 0; i < 10 && comparing; i++) {
        double v = 3 * normal(), h = 1e-5;
        double slope = (ref_activation(v + h, act) - ref_activation(v - h, act)) / (2 * h);
        double silu = (ref_silu(v + h) - ref_silu(v - h)) / (2 * h);
        report(fabs(slope - ref_activation_derivative(v, act)) < 1e-8, "reference derivative of activation %d", act);
        report(fabs(silu - ref_silu_derivative(v)) < 1e-8, "reference derivative of silu");
    }
}

static void test_swiglu(void) {
    size_t rows = 1 + below(100), F = ragged() + below(3) * 100, n = rows * F;
    double *x = draw(2 * n, 2), *dout = draw(n, 1), *out = zeros(n), *dx = zeros(2 * n);
    bool alias = below(2);
    if (below(2)) x[0] = 100, x[F] = 2;
    if (below(2)) x[0] = -100;
    floatX *dev_x = put_x(x, 2 * n), *dev_dout = put_x(dout, n), *dev_out = out_x(n);
    floatX *dev_dx = alias ? dev_x : out_x(2 * n);
    op->swiglu_forward(dev_out, dev_x, rows, (int)F);
    op->swiglu_backward(dev_dx, dev_dout, dev_x, rows, (int)F);
    for (size_t i = 0; i < n; i++) {
        size_t gate = i / F * 2 * F + i % F, up = gate + F;
        out[i] = ref_silu(x[gate]) * x[up];
        dx[gate] = dout[i] * x[up] * ref_silu_derivative(x[gate]);
        dx[up] = dout[i] * ref_silu(x[gate]);
    }
    check_x("swiglu_forward", dev_out, out, n, FORWARD / 2);
    check_x("swiglu_backward", dev_dx, dx, 2 * n, FORWARD / 2);
}

static void test_residual_and_casts(void) {
    size_t n = 1 + below(below(2) ? 100 : 60000);
    double *a = draw(n, 1), *b = draw(n, 1), *sum = zeros(n), *f = draw(n, 1), *rounded = zeros(n);
    int alias = below(3);
    if (n > 6) f[0] = 0, f[1] = -0.0, f[2] = 3e38, f[3] = 1 + 0x1p-8, f[4] = 1 + 3 * 0x1p-8, f[5] = 1e-30;
    floatX *dev_a = put_x(a, n), *dev_b = put_x(b, n), *out = alias == 0 ? out_x(n) : alias == 1 ? dev_a : dev_b;
    float *dev_f = put_f(f, n), *wide = out_f(n);
    floatX *narrow = out_x(n);
    op->residual_forward(out, dev_a, dev_b, n);
    op->cast_to_x(narrow, dev_f, n);
    op->cast_from_x(wide, narrow, n);
    for (size_t i = 0; i < n; i++) {
        sum[i] = from_x(to_x((float)(a[i] + b[i])));
        rounded[i] = from_x(to_x((float)f[i]));
    }
    check_x("residual_forward", out, sum, n, 0);
    check_x("cast_to_x", narrow, rounded, n, 0);
    check_f("cast_from_x", wide, rounded, n, 0);
    float special[3] = {NAN, INFINITY, -INFINITY}, back[3];
    op->upload(dev_f, special, min_of(n, 3) * sizeof(float));
    op->cast_to_x(narrow, dev_f, min_of(n, 3));
    op->cast_from_x(wide, narrow, min_of(n, 3));
    op->download(back, wide, min_of(n, 3) * sizeof(float));
    report(isnan(back[0]) && (n < 3 || (back[1] == INFINITY && back[2] == -INFINITY)), "casts keep NaN and infinity");
}

/* ---- attention ---- */

static float *host_rope(int positions, int D) {
    float *rope = (float *)host((size_t)positions * D * sizeof(float));
    for (int t = 0; t < positions; t++)
        for (int i = 0; i < D / 2; i++) {
            double angle = t * pow(100.0, -2.0 * i / D);
            rope[(size_t)t * D + i] = (float)cos(angle);
            rope[(size_t)t * D + D / 2 + i] = (float)sin(angle);
        }
    return rope;
}

/* Heads of more than 128 channels come with few positions: their references are slow. */
static AttentionShape attention_shape(int positions) {
    static const int heads[][2] = {{1, 1}, {2, 1}, {4, 2}, {3, 3}, {6, 2}, {4, 1}, {10, 1}};
    const int *h = heads[below(7)];
    int D = 2 * ONE_OF(int, 1, 3, 4, 8, 9, 16, 20, 32, 36, 40, 48, 64);
    if (positions <= 33 && !below(3)) D = ONE_OF(int, 136, 200, 256, 328, 512);
    const float *rope = below(3) ? host_rope(positions, D) : NULL;
    if (!rope && !below(4)) D = ONE_OF(int, 1, 5, 63, 77);  // odd ones have no halves to turn
    AttentionShape s = {1 + below(3), positions, h[0], h[1], D, below(2), 1 / sqrtf((float)D), rope};
    return s;
}

static AttentionShape on_device(AttentionShape s, int positions) {
    if (!s.rope) return s;
    float *rope = out_f((size_t)positions * s.D);
    op->upload(rope, s.rope, (size_t)positions * s.D * sizeof(float));
    s.rope = rope;
    return s;
}

typedef struct {
    AttentionShape s;
    double *qkv, *dout, *out, *lse;
} AttentionCase;

static double attention_loss(void *context) {
    AttentionCase *k = (AttentionCase *)context;
    ref_attention_forward(k->out, k->lse, k->qkv, &k->s);
    return ref_dot(k->out, k->dout, k->s.B * k->s.T * k->s.H * k->s.D);
}

/* Columns begin .. end of x [rows, C] one row after another */
static double *columns_of(const double *x, size_t rows, size_t C, size_t begin, size_t end) {
    double *part = zeros(rows * (end - begin)), *p = part;
    for (size_t r = 0; r < rows; r++)
        for (size_t c = begin; c < end; c++) *p++ = x[r * C + c];
    return part;
}

/* The gradients of queries, keys and values apart: those of keys and values are sums over a group of heads, so they
 * and their errors are larger than the rest. */
static void check_dqkv(const floatX *dqkv, const double *want, const AttentionShape *s) {
    static const char *const names[] = {"attention_backward dq", "attention_backward dk", "attention_backward dv"};
    size_t rows = (size_t)s->B * s->T, C = (size_t)(s->H + 2 * s->K) * s->D;
    size_t ends[] = {0, (size_t)s->H * s->D, (size_t)(s->H + s->K) * s->D, C};
    floatX *raw = (floatX *)host(rows * C * sizeof(floatX));
    double *all = zeros(rows * C);
    op->download(raw, dqkv, rows * C * sizeof(floatX));
    add_hash(raw, rows * C * sizeof(floatX));
    for (size_t i = 0; i < rows * C; i++) all[i] = from_x(raw[i]);
    double whole = sqrt(ref_dot(want, want, (int)(rows * C)) / (double)(rows * C));
    for (int k = 0; k < 3; k++) {
        size_t n = rows * (ends[k + 1] - ends[k]);
        double *part = columns_of(all, rows, C, ends[k], ends[k + 1]);
        float *got = (float *)host(n * sizeof(float));
        for (size_t i = 0; i < n; i++) got[i] = (float)part[i];
        compare_with(names[k], got, columns_of(want, rows, C, ends[k], ends[k + 1]), n, ATTENTION, whole);
    }
}

static void test_attention(void) {
    AttentionCase k;
    k.s = attention_shape(below(4) ? ragged() : 130 + below(80));
    AttentionShape s = k.s;
    size_t n = (size_t)s.B * s.T * s.D, heads = s.H + 2 * s.K, rows = (size_t)s.B * s.H * s.T;
    k.qkv = draw(n * heads, s.D < 16 ? 0.5 : 1), k.dout = draw(n * s.H, 1), k.out = zeros(n * s.H),
    k.lse = zeros(rows);
    double *dqkv = zeros(n * heads);
    floatX *qkv = put_x(k.qkv, n * heads), *dout = put_x(k.dout, n * s.H), *out = out_x(n * s.H);
    floatX *bare = out_x(n * s.H), *dev_dqkv = out_x(n * heads);
    float *lse = out_f(rows);
    AttentionShape d = on_device(s, s.T);
    op->attention_forward(out, lse, qkv, d);
    op->attention_forward(bare, NULL, qkv, d);
    attention_loss(&k);
    check_x("attention_forward", out, k.out, n * s.H, ATTENTION);
    check_x("attention_forward without lse", bare, k.out, n * s.H, ATTENTION);
    check_f("attention_forward lse", lse, k.lse, rows, ATTENTION);
    double *want_out = copy_of(k.out, n * s.H), *want_lse = copy_of(k.lse, rows);
    floatX *saved = put_x(want_out, n * s.H);
    op->attention_backward(dev_dqkv, dout, saved, put_f(want_lse, rows), qkv, d);
    if (comparing) ref_attention_backward(dqkv, k.dout, k.qkv, &s);
    check_dqkv(dev_dqkv, dqkv, &s);
    if (n * heads < 4000) check_difference("attention", attention_loss, &k, k.qkv, dqkv, n * heads);
}

/* The first `count` positions of every sequence into the caches, in two pieces. */
static void store_positions(floatX *keys, floatX *values, const double *qkv, AttentionShape s, int T, int count,
                            int max_T) {
    size_t row = (size_t)(s.H + 2 * s.K) * s.D;
    for (int piece = 0; piece < 2; piece++) {
        int from = piece ? count / 2 : 0, n = piece ? count - count / 2 : count / 2;
        double *part = zeros(s.B * n * row + 1);
        for (int b = 0; b < s.B; b++)
            memcpy(part + b * n * row, qkv + ((size_t)b * T + from) * row, n * row * sizeof(double));
        s.T = n;
        if (n) op->cache_store(keys, values, put_x(part, s.B * n * row), s, from, max_T);
    }
}

/* A cache filled by cache_store for the first positions and by attention_decode for some more gives what
 * attention_forward gives for the last one of every sequence; a sequence ends `behind` positions before the one
 * before it. */
static void test_decode(void) {
    bool is_long = !below(4);
    int T = 1 + below(is_long ? 900 : 150), max_T = T + below(is_long ? 9000 : 9), steps = 1 + below(12);
    AttentionShape s = attention_shape(T);
    s.causal = true;
    int behind = below(2) ? 0 : (T - 1) / s.B, start = T - (s.B - 1) * behind - steps;
    if (start < 0) steps += start, start = 0;
    size_t heads = s.H + 2 * s.K, row = heads * s.D, n = (size_t)s.B * T * row,
           cache = (size_t)s.B * s.K * max_T * s.D;
    double *qkv = draw(n, 1), *want = zeros((size_t)s.B * s.H * s.D), *token = zeros(s.B * row), *p = zeros(T);
    floatX *keys = out_x(cache), *values = out_x(cache), *out = out_x((size_t)s.B * s.H * s.D);
    put_x(qkv, n);
    AttentionShape d = on_device(s, T);
    store_positions(keys, values, qkv, d, T, start + (s.B - 1) * behind, max_T);
    d.T = 1;
    int at[3] = {0, 0, 0};
    for (int step = 0; step < steps; step++) {
        for (int b = 0; b < s.B; b++) {
            at[b] = start + (s.B - 1 - b) * behind + step;
            memcpy(token + b * row, qkv + ((size_t)b * T + at[b]) * row, row * sizeof(double));
        }
        op->attention_decode(out, keys, values, put_x(token, s.B * row), put_i(at, s.B), d, max_T);
    }
    double *turned = ref_turned(qkv, &s, 1);
    for (int i = 0; i < s.B * s.H; i++)
        ref_attention_row(want + (size_t)i * s.D, p, turned, &s, i / s.H, at[i / s.H], i % s.H);
    free(turned);
    check_x("attention_decode", out, want, (size_t)s.B * s.H * s.D, ATTENTION);
}

/* ---- objective ---- */

typedef struct {
    ObjectiveRow o;
    double *s, *t, gate;
    int label, Vs, Vt;
    RefStats stats;
} ObjectiveCase;

static double objective_loss(void *context) {
    ObjectiveCase *k = (ObjectiveCase *)context;
    return k->o.scale * ref_objective(&k->stats, k->s, k->t, k->label, k->gate, &k->o, k->Vs, k->Vt);
}

static void check_stats(const RowStats *got, const RefStats *want, double size) {
    const float g[] = {got->ce, got->soft, got->hard, got->entropy, got->confidence, got->gate};
    const double w[] = {want->ce, want->soft, want->hard, want->entropy, want->confidence, want->gate};
    static const char *const names[] = {"ce", "soft", "hard", "entropy", "confidence", "gate"};
    for (int i = 0; i < 6; i++)
        report(fabs(g[i] - w[i]) <= 2e-5 * (fabs(w[i]) + size), "stats.%s is %.9g, expected %.9g", names[i], g[i],
               w[i]);
    report(got->student_top == want->student_top && got->teacher_top == want->teacher_top,
           "stats tops are %d %d, expected %d %d", got->student_top, got->teacher_top, want->student_top,
           want->teacher_top);
}

static void test_objective(void) {
    int Vs = below(3) ? 1 + ragged() : 300 + below(900), Vt = below(2) ? Vs : 1 + ragged();
    if (below(2)) Vs = (Vs + 7) / 8 * 8, Vt = (Vt + 7) / 8 * 8;  // whole vectors
    size_t rows = 1 + below(40);
    bool teacher = below(4) != 0, gated = below(2), gradient = below(4) != 0;
    double size = ONE_OF(double, 1, 1, 5, 30, 3000);
    ObjectiveRow o = {(float)uniform(),
                      below(4) ? (float)uniform() : 0,
                      below(2) ? (float)uniform() : 0,
                      below(3) ? 1.0f + (float)below(2) : 0.5f + 3 * (float)uniform(),
                      (SoftLoss)below(3),
                      0.1f + 0.8f * (float)uniform(),
                      below(2) ? 0.3f : 2.0f,
                      0.3f,
                      0.25f};
    double *s = draw(rows * Vs, size), *t = draw(rows * Vt, size), *gate = draw(rows, 1), *grad = zeros(rows * Vs);
    int *labels = (int *)host(rows * sizeof(int));
    if (below(3) == 0)
        for (size_t i = 0; i < rows * Vs; i++) s[i] = floor(s[i]);  // ties
    floatX *dev_s = put_x(s, rows * Vs), *dev_t = put_x(t, rows * Vt);
    for (size_t r = 0; r < rows; r++) labels[r] = below(2) ? below(Vs) : ref_argmax(t + r * Vt, Vs < Vt ? Vs : Vt);
    float *dev_gate = put_f(gate, rows);
    RowStats *dev_stats = (RowStats *)device(rows * sizeof(RowStats));
    RowStats *stats = (RowStats *)host(rows * sizeof(RowStats));
    op->distill_rows(dev_s, teacher ? dev_t : NULL, put_i(labels, rows), gated ? dev_gate : NULL, dev_stats, o, rows,
                     Vs, Vt, gradient);
    op->download(stats, dev_stats, rows * sizeof(RowStats));
    add_hash(stats, rows * sizeof(RowStats));
    for (size_t r = 0; r < rows; r++) {
        RefStats none = {0, 0, 0, 0, 0, 0, 0, 0};
        ObjectiveCase k = {o, s + r * Vs, teacher ? t + r * Vt : NULL, gated ? gate[r] : 1, labels[r], Vs, Vt, none};
        objective_loss(&k);
        if (comparing) check_stats(stats + r, &k.stats, 1 + size);
        ref_objective_gradient(grad + r * Vs, k.s, k.t, k.label, &k.stats, &o, Vs, Vt);
        if (r < 2 && size < 10) check_difference("objective", objective_loss, &k, k.s, grad + r * Vs, Vs);
    }
    /* an exponent in the thousands is off by up to 2^-12 itself */
    check_x("distill_rows gradient", dev_s, gradient ? grad : s, rows * Vs, size > 1000 ? 1e-2 : BACKWARD);
}

/* A row of a large vocabulary: more than a GPU keeps on chip, in as many terms as there are. */
static void test_objective_wide(void) {
    int Vs = 20000 + 8 * below(3000) + (below(3) == 0), Vt = Vs + 8 * (below(3) - 1) * below(1000), label = below(Vs);
    bool teacher = below(4) != 0;
    float tau = below(3) ? 1.0f + (float)below(2) : 1.7f;
    ObjectiveRow o = {0.3f, 0.6f, 0.1f, tau, (SoftLoss)below(3), 0.4f, 2, 1, 0.25f};
    double *s = draw(Vs, 4), *t = draw(Vt, 4), *grad = zeros(Vs);
    floatX *dev_s = put_x(s, Vs), *dev_t = put_x(t, Vt);
    RowStats *dev_stats = (RowStats *)device(sizeof(RowStats)), stats;
    op->distill_rows(dev_s, teacher ? dev_t : NULL, put_i(&label, 1), NULL, dev_stats, o, 1, Vs, Vt, true);
    op->download(&stats, dev_stats, sizeof stats);
    add_hash(&stats, sizeof stats);
    RefStats want;
    ref_objective(&want, s, teacher ? t : NULL, label, 1, &o, Vs, Vt);
    if (comparing) check_stats(&stats, &want, 1);
    ref_objective_gradient(grad, s, teacher ? t : NULL, label, &want, &o, Vs, Vt);
    check_x("distill_rows wide gradient", dev_s, grad, Vs, BACKWARD);
}

static void test_objective_extremes(void) {
    enum { V = 33 };
    double s[V], t[V], g[V];
    ObjectiveRow o = {1, 1, 1, 2, (SoftLoss)below(3), 0.5f, 2, 1, 1};
    for (int i = 0; i < V; i++) s[i] = below(2) ? 1e4 : -1e4, t[i] = below(2) ? 1e4 : -1e4;
    RowStats *dev_stats = (RowStats *)device(sizeof(RowStats)), stats;
    int label = below(V);
    floatX *dev_s = put_x(s, V), *dev_t = put_x(t, V);
    int *dev_label = put_i(&label, 1);
    op->distill_rows(dev_s, dev_t, dev_label, NULL, dev_stats, o, 1, V, V, true);
    op->download(&stats, dev_stats, sizeof stats);
    RefStats want;
    ref_objective(&want, s, t, label, 1, &o, V, V);
    ref_objective_gradient(g, s, t, label, &want, &o, V, V);
    if (comparing) check_stats(&stats, &want, 1e4);
    check_x("gradient for logits of 1e4", dev_s, g, V, BACKWARD);
    float bad[] = {NAN, INFINITY};
    floatX one = to_x(bad[below(2)]);
    op->upload(dev_s, &one, sizeof one);
    op->distill_rows(dev_s, dev_t, dev_label, NULL, dev_stats, o, 1, V, V, true);
    op->download(&stats, dev_stats, sizeof stats);
    report(!isfinite(stats.ce), "a logit that is not finite shows in ce (%g)", stats.ce);
}

static void test_entropy_band(void) {
    int rows = below(3) ? 1 + below(below(2) ? 20 : 3000) : 100, percent = below(100), inside = 0;
    float low = (float)uniform(), high = low + (float)uniform();
    RowStats *stats = (RowStats *)host((size_t)rows * sizeof *stats);
    double *gate = zeros(rows);
    for (int i = 0; i < rows; i++) {
        stats[i].entropy = below(8) ? 2 * (float)uniform() : low;
        gate[i] = stats[i].entropy >= low && stats[i].entropy <= high;
        inside += gate[i] > 0;
    }
    if (below(2)) percent = inside * 100 / rows;  // for some just as many as must remain
    for (int i = 0; i < rows && inside * 100 < rows * percent; i++) gate[i] = 1;
    RowStats *dev_stats = (RowStats *)device((size_t)rows * sizeof *stats);
    op->upload(dev_stats, stats, (size_t)rows * sizeof *stats);
    float *out = out_f(rows);
    op->entropy_band(out, dev_stats, (size_t)rows, low, high, percent);
    check_f("entropy_band", out, gate, rows, 0);
}

typedef struct {
    const double *t;
    double *a;
    size_t n;
} CosineCase;

static double cosine_loss(void *context) {
    CosineCase *k = (CosineCase *)context;
    int n = (int)k->n;
    return ref_dot(k->a, k->t, n) / sqrt(ref_dot(k->a, k->a, n) * ref_dot(k->t, k->t, n));
}

static void test_cosine(void) {
    int B = 1 + below(6);
    size_t n = 1 + ragged() * (1 + below(60));
    if (below(4) == 0) B = 1, n = 8 * (2000 + below(2) * 33000 + below(3000)) + below(2);  // pictures in parts
    float scale = 0.5f;
    double *a = draw(B * n, 1), *t = draw(B * n, 1), *cosine = zeros(B), *da = zeros(B * n);
    for (size_t i = 0; i < B * n; i++) a[i] += 0.5 * t[i];
    int zero = below(3) ? -1 : below(B);
    for (size_t i = 0; i < n && zero >= 0; i++) (below(2) ? a : t)[zero * n] = 0, a[zero * n + i] = 0;
    floatX *dev_a = put_x(a, B * n), *dev_t = put_x(t, B * n), *dev_da = out_x(B * n);
    float *dev_cosine = out_f(B);
    op->cosine(dev_cosine, below(4) ? dev_da : NULL, dev_a, dev_t, B, n, scale);
    random_state++;
    for (int b = 0; b < B; b++) {
        const double *x = a + b * n, *y = t + b * n;
        double xx = ref_dot(x, x, (int)n), yy = ref_dot(y, y, (int)n), xy = ref_dot(x, y, (int)n);
        if (xx == 0 || yy == 0) continue;
        cosine[b] = xy / sqrt(xx * yy);
        double *g = da + b * n;
        for (size_t i = 0; i < n; i++) g[i] = y[i] / sqrt(xx * yy) - cosine[b] * x[i] / xx;
        CosineCase k = {y, a + b * n, n};
        if (n > 2) check_difference("cosine", cosine_loss, &k, k.a, g, n);
        for (size_t i = 0; i < n; i++) g[i] *= -scale;
    }
    check_f("cosine", dev_cosine, cosine, B, FP32);
    op->cosine(dev_cosine, dev_da, dev_a, dev_t, B, n, scale);
    if (n > 2) check_x("cosine da", dev_da, da, B * n, BACKWARD);
}

/* ---- optimizer ---- */

static void test_squared_norm(void) {
    size_t n = 1 + below(below(2) ? 300 : 100000);
    double *x = draw(n, 3), before = uniform() * 100, want = 0;
    float *dev_x = put_f(x, n), *out = put_f(&before, 1);
    for (size_t i = 0; i < n; i++) want += x[i] * x[i];
    op->squared_norm(out, dev_x, n, true);
    before += want;
    check_f("squared_norm accumulated", out, &before, 1, 1e-6);
    op->squared_norm(out, dev_x, n, false);
    check_f("squared_norm", out, &want, 1, 1e-6);
}

static void test_adamw(void) {
    size_t n = 1 + below(below(2) ? 300 : 40000);
    double *w = draw(n, 1), *m = draw(n, 0.1), *v = draw(n, 0.1), *g = draw(n, 1), *rounded = zeros(n);
    for (size_t i = 0; i < n; i++) v[i] *= v[i];
    double norm = 0;
    for (size_t i = 0; i < n; i++) norm += g[i] * g[i];
    if (below(6) == 0) norm = ONE_OF(double, NAN, INFINITY);
    float lr = 0.01f, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, decay = 0.1f, limit = ONE_OF(float, 0, 1, 1e9f);
    int step = 1 + below(50);
    float *dev_w = put_f(w, n), *dev_m = put_f(m, n), *dev_v = put_f(v, n), *dev_g = put_f(g, n);
    for (size_t i = 0; i < n; i++) rounded[i] = w[i];
    floatX *param = put_x(rounded, n);
    float *dev_norm = put_f(&norm, 1);
    op->adamw(param, dev_w, dev_m, dev_v, dev_g, n, lr, beta1, beta2, eps, decay, dev_norm, limit, step);
    double clip = limit > 0 && sqrt(norm) > limit ? limit / sqrt(norm) : 1;
    for (size_t i = 0; i < n && isfinite(norm); i++) {
        m[i] = beta1 * m[i] + (1 - (double)beta1) * g[i] * clip;
        v[i] = beta2 * v[i] + (1 - (double)beta2) * g[i] * clip * g[i] * clip;
        double mhat = m[i] / (1 - pow(beta1, step)), vhat = v[i] / (1 - pow(beta2, step));
        w[i] -= lr * (mhat / (sqrt(vhat) + eps) + (double)decay * w[i]);
        rounded[i] = from_x(to_x((float)w[i]));
    }
    check_f("adamw m", dev_m, m, n, FP32);
    check_f("adamw v", dev_v, v, n, FP32);
    check_f("adamw master", dev_w, w, n, FP32);
    check_x("adamw param", param, rounded, n, FORWARD);
}

/* ---- the runner ---- */

static const struct {
    const char *name;
    void (*run)(void);
    int repeats;
} tests[] = {
    {"memory", test_memory, 6},
    {"large_copies", test_large_copies, 1},
    {"embedding", test_embedding, 20},
    {"patchify", test_patchify, 20},
    {"position", test_position, 20},
    {"rows", test_rows, 20},
    {"norm", test_norm, 60},
    {"linear_forward", test_linear_forward, 120},
    {"linear_backward", test_linear_backward, 80},
    {"gelu", test_gelu, 20},
    {"swiglu", test_swiglu, 20},
    {"residual_and_casts", test_residual_and_casts, 20},
    {"attention", test_attention, 60},
    {"decode", test_decode, 30},
    {"objective", test_objective, 150},
    {"objective_wide", test_objective_wide, 12},
    {"objective_extremes", test_objective_extremes, 20},
    {"entropy_band", test_entropy_band, 20},
    {"cosine", test_cosine, 30},
    {"squared_norm", test_squared_norm, 10},
    {"adamw", test_adamw, 30},
};

static void set_threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#endif
#ifdef CUDA_EMULATION
    emulation_set_seed((uint64_t)n);
#endif
    (void)n;
}

static void run_case(const char *name, void (*run)(void), int seed) {
    uint64_t first = 0;
    snprintf(case_name, sizeof case_name, "%s %s seed %d", op->name, name, seed);
    for (int threads = 1; threads <= 3; threads++) {
        random_state = (uint64_t)seed * 1000003u;
        case_hash = 0xcbf29ce484222325u;
        comparing = threads == 1;
        set_threads(threads);
        run();
        end_buffers();
        if (threads == 1)
            first = case_hash;
        else
            report(case_hash == first, "bits differ between the runs 1 and %d", threads);
    }
}

static void run_device(const Ops *device, bool quick, bool smoke) {
    op = device;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        for (int seed = 0; seed < (smoke ? 2 : quick ? (tests[i].repeats + 3) / 4 : tests[i].repeats); seed++)
            run_case(tests[i].name, tests[i].run, seed);
}

int main(int argc, char **argv) {
    bool quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    bool smoke = argc > 1 && strcmp(argv[1], "--smoke") == 0;
    const char *only = argc > 1 + (quick || smoke) ? argv[1 + (quick || smoke)] : NULL;
    static const char *const names[] = {"cpu", "cuda"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Error err;
        if (only && strcmp(only, names[i])) continue;
        const Ops *device = ops_open(names[i], &err);
        if (device)
            run_device(device, quick, smoke);
        else if (only || strcmp(names[i], "cuda"))
            report(false, "%s", err.text);
        else
            printf("not tested: %s\n", err.text);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
