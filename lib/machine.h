/* What this machine can do, measured: the denominators of every "share of peak" that is printed. Each measurement
 * takes about a tenth of a second. */
#ifndef LIB_MACHINE_H
#define LIB_MACHINE_H

#include "../kernels/ops.h"
#include "clock.h"

/* Bytes per second at which all threads together read memory (the host's), the best of three passes over 128 MiB; 0
 * when there is no room for that. */
static inline double measure_read_bandwidth(void) {
    const size_t block = 1 << 15, blocks = 512;  // of 8-byte words: 256 KiB a block
    uint64_t *data = (uint64_t *)malloc(blocks * block * sizeof(uint64_t));
    if (!data) return 0.0;
    double best = 0.0;
    uint64_t total = 0;
    for (int pass = 0; pass < 4; pass++) {
        double begin = seconds_now();
#pragma omp parallel for schedule(static) reduction(+ : total)
        for (size_t b = 0; b < blocks; b++) {
            uint64_t *words = data + b * block, sum = 0;
            if (pass == 0) memset(words, 1, block * sizeof(uint64_t));
            for (size_t i = 0; i < block; i++) sum += words[i];
            total += sum;
        }
        double rate = (double)(blocks * block * sizeof(uint64_t)) / (seconds_now() - begin);
        if (pass > 0 && rate > best) best = rate;
    }
    best += total == 1 ? 1.0 : 0.0;  // the sum is used, so the reads happen
    free(data);
    return best;
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
