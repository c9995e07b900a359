/* The peak rate of this processor's arithmetic: multiplications and additions of numbers that stay in registers, on
 * all cores, by the instruction that the matmuls use. */
#ifndef KERNELS_CPU_PEAK_H
#define KERNELS_CPU_PEAK_H

#include "microkernel.h"
#include "../../lib/clock.h"

#ifdef MICROKERNEL_AMX
enum { PEAK_STEP = 4 * 2 * 16 * 16 * 32 };  // FLOPs of one step: four matmuls of tiles

static void peak_steps(int steps) {
    microkernel_begin();
    for (int t = 0; t < steps; t++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    microkernel_end();
}
#else
enum { PEAK_SUMS = 12, PEAK_STEP = PEAK_SUMS * 2 * LANES * PAIR };

/* Twelve sums that do not wait for each other: more than latency times instructions per cycle. */
static void peak_steps(int steps) {
    vf sum[PEAK_SUMS], x = vf_set(0.999f), y = vf_set(1e-3f);
    volatile float start = 1;  // unknown to the compiler, which would compute the sums itself
    for (int i = 0; i < PEAK_SUMS; i++) sum[i] = vf_set(start + (float)i);
    for (int t = 0; t < steps; t++)
        for (int i = 0; i < PEAK_SUMS; i++) sum[i] = word_fma(y, sum[i], x);
    for (int i = 1; i < PEAK_SUMS; i++) sum[0] += sum[i];
    volatile float result = vf_sum(sum[0]);  // is used, so that the loop stays
    (void)result;
}
#endif

/* FLOP/s of all threads together: the best of some runs of a few milliseconds, each as long as its slowest thread. */
static double cpu_peak_flops(void) {
    enum { STEPS = 300000, RUNS = 8 };
    double best = 0;
    for (int run = 0; run < RUNS; run++) {
        double slowest = 0;
        int threads = 0;
#pragma omp parallel reduction(+ : threads) reduction(max : slowest)
        {
#pragma omp barrier
            double begin = seconds_now();
            peak_steps(STEPS);
            slowest = seconds_now() - begin;
            threads = 1;
        }
        double rate = (double)threads * STEPS * PEAK_STEP / slowest;
        if (rate > best) best = rate;
    }
    return best;
}

#endif
