/* What the lessons on the processor share: a kernel in several versions, each of which is checked against an fp64
 * reference and timed beside what this machine can do at most.
 *
 *   PROGRAM [--check] [--version NAME] [--rows N] [--width N]
 *
 * Without --check it times every version at the lesson's shape and checks some rows of each; with --check it times
 * nothing and checks every row at small, ragged shapes. Ends with "N passed, M failed"; the exit status is 1 where a
 * version failed. Outputs are filled with NaN before a run, and every array lies between guards that hold NaN as
 * well: what a version forgets to write, reads beyond an end or writes there is noticed.
 *
 * The vectors are those of GCC and clang, not the intrinsics of one processor: + - * on a `vf` are one instruction
 * for LANES numbers, and the same source compiles for AVX2, AVX-512, SSE and NEON. */
#ifndef DEV_LEARN_CPU_LEARN_H
#define DEV_LEARN_CPU_LEARN_H

#include "../../../kernels/device.h"
#include "../../../lib/clock.h"
#include "../../../lib/threads.h"

/* ---- vectors ---- */

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));

static inline vf vector_load(const float *p) {  // memcpy: p need not be aligned
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vector_store(float *p, vf v) { memcpy(p, &v, sizeof v); }

/* A comparison of vectors gives all ones or all zeros in each lane, so a choice is made with masks. */
static inline vf vector_select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

static inline vf vector_max(vf a, vf b) { return vector_select(a > b, a, b); }

static inline float sum_lanes(vf v) {
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    return v[0];
}

static inline float max_lanes(vf v) {
    float largest = v[0];
    for (int i = 1; i < LANES; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
}

/* 2 LANES neighbouring elements. bf16 is the upper half of an fp32, and a lane of 32 bits holds two of them: the
 * first of the two becomes an fp32 by a shift to the upper half, the second by clearing the lower half. So even and
 * odd elements come in two vectors, which matters neither to a sum nor to what happens to each element alone, and
 * pair_store puts them back in order. (The bytes of a number must be stored lowest first, as on x86 and ARM.) */
enum { PAIR = 2 * LANES };

typedef struct {
    vf even, odd;
} Pair;

#ifdef PRECISION_FP32
static inline Pair pair_load(const floatX *p) { return (Pair){vector_load(p), vector_load(p + LANES)}; }

static inline void pair_store(floatX *p, Pair x) {
    vector_store(p, x.even);
    vector_store(p + LANES, x.odd);
}

static inline vf vector_round(vf v) { return v; }
#else
static inline Pair pair_load(const floatX *p) {
    vu two;
    memcpy(&two, p, sizeof two);
    return (Pair){(vf)(two << 16), (vf)(two & 0xffff0000u)};
}

/* Rounds to the nearest bf16, ties to even, in the upper half of each lane; the lower half is rubbish. What is added
 * is half of the last kept bit, or one less than half where that bit is 0. A NaN that was made from bf16 or by the
 * processor has no low bits and stays NaN; to_x looks for the others as well. */
static inline vu vector_round_bits(vf v) {
    vu bits = (vu)v;
    return bits + 0x7fffu + ((bits >> 16) & 1u);
}

static inline void pair_store(floatX *p, Pair x) {
    vu two = (vector_round_bits(x.even) >> 16) | (vector_round_bits(x.odd) & 0xffff0000u);
    memcpy(p, &two, sizeof two);
}

static inline vf vector_round(vf v) { return (vf)(vector_round_bits(v) & 0xffff0000u); }
#endif

/* e^x for x <= 0, to 2e-7 of the result. x = n ln 2 + r with a whole number n and |r| <= ln 2 / 2, so e^x = 2^n e^r:
 * e^r is the Taylor polynomial of degree 6, and 2^n is added to the exponent bits. Adding 1.5 * 2^23 leaves no room
 * for fractions in an fp32: it rounds x / ln 2 to the nearest whole number and leaves n in the lowest bits. ln 2
 * comes in two parts, the first with so few bits that n times it is exact. Below -87, where results would soon be
 * subnormal, the result is 0. A dozen instructions without a branch for LANES numbers; a call of expf takes longer
 * for one. */
static inline vf vector_exp(vf x) {
    vf shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = r * (1.0f / 720) + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (vf)((vu)(x >= -87.0f) & ((vu)p + ((vu)shifted << 23)));
}

/* ---- memory ---- */

enum { GUARD = 256 };  // bytes before and after every array

static const uint16_t LEARN_NAN = 0x7fc0;  // in bf16; two of them are NaN in fp32

/* Fills an even number of bytes with NaN. */
static inline void learn_poison(void *p, size_t bytes) {
    uint16_t *x = (uint16_t *)p;
    for (size_t i = 0; i < bytes / 2; i++) x[i] = LEARN_NAN;
}

static inline void *learn_alloc(size_t bytes) {
    size_t whole = (bytes + 63) / 64 * 64 + 2 * GUARD;
    char *block = (char *)aligned_alloc(64, whole);
    if (!block) die("out of memory: %zu bytes were asked for; choose fewer --rows", whole);
    learn_poison(block, whole);
    return block + GUARD;
}

static inline void learn_free(void *p) { free((char *)p - GUARD); }

static inline bool learn_guards_intact(const void *p, size_t bytes) {
    const uint16_t *before = (const uint16_t *)p - GUARD / 2, *after = (const uint16_t *)p + bytes / 2;
    for (size_t i = 0; i < GUARD / 2; i++)
        if (before[i] != LEARN_NAN || after[i] != LEARN_NAN) return false;
    return true;
}

/* n random numbers from -size to size. */
static inline void learn_fill(floatX *x, size_t n, uint32_t seed, float size) {
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = to_x(size * ((float)(seed >> 8) / 8388608.0f - 1.0f));
    }
}

/* ---- what this machine can do ---- */

/* FLOPs per second of all threads in fp32: multiplications and additions whose operands never leave the registers.
 * Twelve chains, because a processor begins two fused multiply-adds in a cycle and each takes four or five cycles:
 * with fewer chains it would wait for results. */
static inline double learn_flops(void) {
    enum { CHAINS = 12, STEPS = 500000 };
    volatile float unknown = 0.5f;  // keeps the compiler from knowing the result
    double best = 0;
    for (int run = 0; run < 20; run++) {
        float total = 0;
        int threads = 0;
        double begin = seconds_now();
#pragma omp parallel reduction(+ : total, threads)
        {
            vf x[CHAINS], factor = (vf){0} + unknown, summand = (vf){0} + unknown;
            for (int i = 0; i < CHAINS; i++) x[i] = (vf){0} + (float)i;
            for (int step = 0; step < STEPS; step++)
                for (int i = 0; i < CHAINS; i++) x[i] = x[i] * factor + summand;
            for (int i = 0; i < CHAINS; i++) total += x[i][0];
            threads++;
        }
        double rate = 2.0 * CHAINS * STEPS * LANES * threads / (seconds_now() - begin);
        unknown = total != 0 ? unknown : 0;  // the result is used, so it is computed
        if (rate > best) best = rate;
    }
    return best;
}

/* Bytes per second at which all threads together read 128 MB, more than the caches hold. */
static inline double learn_read_bandwidth(void) {
    const size_t bytes = (size_t)128 << 20, step = 16 * sizeof(vf);
    char *data = (char *)learn_alloc(bytes);
    volatile uint32_t sink;
    double best = 0;
    for (int run = 0; run < 6; run++) {
        uint32_t total = 0;
        double begin = seconds_now();
#pragma omp parallel for schedule(static) reduction(^ : total)
        for (size_t at = 0; at < bytes; at += step) {
            vu x[16], all = {0};
            for (size_t i = 0; i < step; i += 64) __builtin_prefetch(data + at + 2048 + i);  // over the ends of pages
            memcpy(x, data + at, sizeof x);
            for (int i = 0; i < 16; i++) all ^= x[i];
            total ^= all[0];
        }
        double rate = (double)bytes / (seconds_now() - begin);
        sink = total;
        if (rate > best) best = rate;
    }
    (void)sink;
    learn_free(data);
    return best;
}

/* ---- a lesson ---- */

typedef struct {
    const char *name, *idea;
    void (*run)(void);
} Version;

typedef struct {
    int rows, width;  // of attention: positions of a sequence, channels of a head
    int B, H, K;      // of attention alone: sequences, heads of queries, heads of keys and values
} Shape;

typedef struct {
    const char *name;
    const Version *versions;
    int version_count;
    Shape timed;
    const Shape *ragged;
    int ragged_count;
    void (*open)(Shape shape);  // makes the inputs
    void (*reset)(void);        // fills the outputs with NaN; where a kernel works in place, makes its input again
    double (*error)(int rows);  // largest error of at most so many rows, as a share of what rounding explains
    void (*close)(void);
    double (*bytes)(Shape shape);  // that must be read and written at least; NULL: the work is flops
    double (*flops)(Shape shape);
} Lesson;

/* Milliseconds of a run: the median of 15, or of fewer, at least 3, where they take longer than 0.6 seconds. */
static inline double learn_time(const Lesson *l, const Version *v) {
    double ms[15], begin = seconds_now();
    int runs = 0;
    while (runs < 3 || (runs < 15 && seconds_now() - begin < 0.6)) {
        l->reset();
        double start = seconds_now();
        v->run();
        double now = 1e3 * (seconds_now() - start);
        int i = runs++;
        for (; i > 0 && ms[i - 1] > now; i--) ms[i] = ms[i - 1];  // kept in order
        ms[i] = now;
    }
    return 0.5 * (ms[(runs - 1) / 2] + ms[runs / 2]);
}

/* The i-th of `checked` rows that are spread over all `count`, from the first to the last. */
static inline size_t learn_row(size_t i, size_t checked, size_t count) {
    return checked > 1 ? i * (count - 1) / (checked - 1) : 0;
}

/* The larger error; not a number counts as infinite. */
static inline double learn_worse(double worst, double error) {
    return error <= worst ? worst : error < INFINITY ? error : INFINITY;
}

static inline void learn_count(double error, int *passed, int *failed) {
    if (error <= 1)
        ++*passed;
    else
        ++*failed;
}

static inline void learn_check(const Lesson *l, const Version *v, int *passed, int *failed) {
    for (int i = 0; i < l->ragged_count; i++) {
        const Shape s = l->ragged[i];
        l->open(s);
        l->reset();
        v->run();
        double error = l->error(INT32_MAX);
        learn_count(error, passed, failed);
        if (!(error <= 1)) {
            printf("FAIL %s, %s, %d x %d", l->name, v->name, s.rows, s.width);
            if (s.B) printf(", %d sequences, %d heads of queries, %d of keys", s.B, s.H, s.K);
            printf(": %.3g times the error that rounding explains\n", error);
        }
        l->close();
    }
}

static inline void learn_title(const Lesson *l, double work, double limit) {
    const Shape s = l->timed;
    printf("%s, %d x %d %s", l->name, s.rows, s.width, dtype_name(DT_FLOATX));
    if (s.B) printf(", %d sequence%s, %d heads of queries, %d of keys", s.B, s.B > 1 ? "s" : "", s.H, s.K);
    printf(", %d threads: at least ", omp_get_max_threads());
    if (l->bytes)
        printf("%.1f MB; floor %.2f ms at %.1f GB/s (measured reading)\n", 1e-6 * work, 1e3 * work / limit,
               1e-9 * limit);
    else
        printf("%.2f GFLOP; floor %.2f ms at %.0f GFLOP/s (measured in registers)\n", 1e-9 * work, 1e3 * work / limit,
               1e-9 * limit);
    printf("%-16s %10s %9s %15s  %s\n", "version", "ms", l->bytes ? "GB/s" : "GFLOP/s", "floor's speed", "idea");
}

static inline void learn_run(const Lesson *l, const Version *v, double work, double limit, int *passed, int *failed) {
    l->reset();
    v->run();  // warms up
    double error = l->error(24), seconds = 1e-3 * learn_time(l, v);
    learn_count(error, passed, failed);
    printf("%-16s %10.2f %9.2f %13.1f %%  %s%s\n", v->name, 1e3 * seconds, 1e-9 * work / seconds,
           100 * work / limit / seconds, v->idea, error <= 1 ? "" : "  WRONG");
    fflush(stdout);
}

/* main of every lesson. Returns the program's exit status. */
static inline int learn_main(Lesson *l, int argc, char **argv) {
    const char *only = NULL;
    bool check = false;
    int passed = 0, failed = 0;
    program_name_set(argv[0]);
    threads_wait_politely(argv);
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        bool rows = !strcmp(argv[i], "--rows"), width = !strcmp(argv[i], "--width");
        if (!strcmp(argv[i], "--check")) {
            check = true;
            continue;
        }
        if (!value || !(rows || width || !strcmp(argv[i], "--version")))
            die("unknown or incomplete option %s; expected --check, --version NAME, --rows N or --width N", argv[i]);
        if (rows || width) {
            int number = atoi(value);
            if (number < 1 || number > 1 << 24) die("%s is '%s'; expected a number from 1 on", argv[i], value);
            *(rows ? &l->timed.rows : &l->timed.width) = number;
        } else {
            only = value;
        }
        i++;
    }
    double work = l->bytes ? l->bytes(l->timed) : l->flops(l->timed), limit = 0;
    if (!check) {
        limit = l->bytes ? learn_read_bandwidth() : learn_flops();
        learn_title(l, work, limit);
        l->open(l->timed);
    }
    for (int i = 0; i < l->version_count; i++) {
        const Version *v = &l->versions[i];
        if (only && strcmp(only, v->name)) continue;
        check ? learn_check(l, v, &passed, &failed) : learn_run(l, v, work, limit, &passed, &failed);
    }
    if (!check) l->close();
    if (passed + failed == 0) die("there is no version '%s'", only);
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}

#endif
