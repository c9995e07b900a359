/* The peak rates of this machine, measured: floating-point operations and bandwidth, the denominators of every "share
 * of peak" that is printed. On the CPU the loops are not those that are measured against them: arithmetic on
 * registers (kernels/cpu/peak.h), and a streaming read. A measurement takes about a tenth of a second. */
#ifndef KERNELS_PEAK_H
#define KERNELS_PEAK_H

#include "ops.h"
#include "../lib/clock.h"

/* The sum of `words` 64-bit words. Cache lines are prefetched 2 KiB ahead, because the processor's own prefetching
 * stops at every page. */
static inline uint64_t read_words(const uint64_t *data, size_t words) {
    enum { LINE = 8, AHEAD = 256 };  // words
    uint64_t sum = 0;
    for (size_t i = 0; i < words; i += LINE) {
        __builtin_prefetch(data + i + AHEAD);
        for (size_t k = i; k < i + LINE; k++) sum += data[k];
    }
    return sum;
}

/* Bytes per second at which all threads together read `bytes` of the host's memory from `data` on, once. Caches
 * count, so read as much as the work to compare with does, or more than they hold. */
static inline double measure_read_bandwidth(const void *data, size_t bytes) {
    const size_t block = 1 << 15;  // words, 256 KiB
    const uint64_t *words = (const uint64_t *)data;
    size_t blocks = bytes / sizeof(uint64_t) / block;
    uint64_t total = 0;
    double begin = seconds_now();
#pragma omp parallel for schedule(static) reduction(+ : total)
    for (size_t b = 0; b < blocks; b++) total += read_words(words + b * block, block);
    double seconds = seconds_now() - begin;
    __asm__ volatile("" : : "r"(total));  // uses the sum, so that the reads are not optimised away
    return (double)(blocks * block * sizeof(uint64_t)) / seconds;
}

/* n random elements on the device, a block of them repeated; NULL when they do not fit. They are not zeros, because a
 * GPU multiplies zeros faster: they cost less power. */
static inline floatX *random_block(const Ops *op, size_t n) {
    enum { FIRST = 4096 };
    floatX host[FIRST], *x = (floatX *)op->alloc(n * sizeof(floatX));
    uint32_t state = 12345;
    for (int i = 0; i < FIRST; i++) {
        state = state * 1664525u + 1013904223u;
        host[i] = to_x((float)(state >> 8) / 8388608.0f - 1.0f);
    }
    if (x) op->upload(x, host, (n < (size_t)FIRST ? n : (size_t)FIRST) * sizeof(floatX));
    for (size_t done = (size_t)FIRST; x && done < n; done *= 2)
        op->copy(x + done, x, (n - done < done ? n - done : done) * sizeof(floatX));
    return x;
}

/* Floating-point operations per second of a linear layer in floatX, of `rows` rows and `width` to `width` channels,
 * the best of a few runs; 0 when it does not fit. */
static inline double measure_matmul(const Ops *op, size_t rows, size_t width) {
    floatX *x = random_block(op, rows * width), *w = random_block(op, width * width);
    floatX *y = (floatX *)op->alloc(rows * width * sizeof(floatX));
    Weight weight = {w, DT_FLOATX, (int)width, (int)width, NULL};
    double best = 0.0, start = seconds_now();
    for (int run = 0; x && y && w && (run < 2 || (run < 20 && seconds_now() - start < 0.1)); run++) {
        op->sync();
        double begin = seconds_now();
        op->linear_forward(y, x, weight, NULL, ACT_NONE, NULL, rows);
        op->sync();
        double rate = 2.0 * (double)(rows * width * width) / (seconds_now() - begin);
        if (rate > best) best = rate;
    }
    if (x) op->release(x);
    if (y) op->release(y);
    if (w) op->release(w);
    return best;
}

/* Floating-point operations per second: of the CPU's arithmetic, or of a GPU's fastest matmul. On a GPU, where a
 * launch costs as much as a small matmul, the sizes grow until one takes a millisecond. */
static inline double measure_peak_flops(const Ops *op) {
    if (op->peak_flops) return op->peak_flops();
    double best = 0.0;
    for (size_t width = 128; width <= 8192; width *= 2) {
        double rate = measure_matmul(op, width, width);
        if (rate > best) best = rate;
        if (rate <= 0.0 || 2.0 * (double)(width * width * width) / rate > 1e-3) break;
    }
    return best;
}

/* Bytes per second, read and written together, at which the device copies `bytes` of its memory; 0 when they do not
 * fit twice. */
static inline double measure_copy_bandwidth(const Ops *op, size_t bytes) {
    void *from = op->alloc(bytes), *to = op->alloc(bytes);
    double best = 0.0;
    for (int run = 0; from && to && run < 8; run++) {
        op->sync();
        double begin = seconds_now();
        for (int i = 0; i < 4; i++) op->copy(to, from, bytes);
        op->sync();
        double rate = 8.0 * (double)bytes / (seconds_now() - begin);
        if (rate > best) best = rate;
    }
    if (from) op->release(from);
    if (to) op->release(to);
    return best;
}

#endif
