/* What this machine can do, measured: the denominators of every "share of peak" that is printed. Each measurement
 * takes about a tenth of a second. */
#ifndef LIB_MACHINE_H
#define LIB_MACHINE_H

#include "../kernels/ops.h"
#include "clock.h"

/* The sum of `words` 64-bit words. Lines are asked for 2 KiB ahead, because the processor's own prefetching stops at
 * every page. */
static inline uint64_t read_words(const uint64_t *data, size_t words) {
    enum { LINE = 8, AHEAD = 256 };  // words
    uint64_t sum = 0;
    for (size_t i = 0; i < words; i += LINE) {
        __builtin_prefetch(data + i + AHEAD);
        for (size_t k = i; k < i + LINE; k++) sum += data[k];
    }
    return sum;
}

/* Bytes per second at which all threads together read `bytes` of the host's memory from `data` on, once. Caches count:
 * read as much as the work to compare with does, or more than they hold. */
static inline double measure_read_bandwidth(const void *data, size_t bytes) {
    const size_t block = 1 << 15;  // words, 256 KiB
    const uint64_t *words = (const uint64_t *)data;
    size_t blocks = bytes / sizeof(uint64_t) / block;
    uint64_t total = 0;
    double begin = seconds_now();
#pragma omp parallel for schedule(static) reduction(+ : total)
    for (size_t b = 0; b < blocks; b++) total += read_words(words + b * block, block);
    double seconds = seconds_now() - begin;
    __asm__ volatile("" : : "r"(total));  // it is used, so the reads happen
    return (double)(blocks * block * sizeof(uint64_t)) / seconds;
}

/* Floating-point operations per second of the device's largest ordinary product (linear_forward of 2048 rows, 1024 to
 * 1024 channels, in floatX), the best of a few runs; 0 when there is no room for that. */
static inline double measure_peak_flops(const Ops *op) {
    const size_t rows = 2048, width = 1024;
    floatX *x = (floatX *)op->alloc(rows * width * sizeof(floatX));
    floatX *y = (floatX *)op->alloc(rows * width * sizeof(floatX));
    floatX *w = (floatX *)op->alloc(width * width * sizeof(floatX));
    Weight weight = {w, DT_FLOATX, (int)width, (int)width, NULL};
    double best = 0.0, start = seconds_now();
    for (int run = 0; x && y && w && (run < 2 || (run < 20 && seconds_now() - start < 0.1)); run++) {
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

#endif
