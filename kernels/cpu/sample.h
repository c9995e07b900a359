/* Choosing the next token; kernels/sample.h has the arithmetic. */
#ifndef KERNELS_CPU_SAMPLE_H
#define KERNELS_CPU_SAMPLE_H

#include "vector.h"
#include "../sample_host.h"

/* The next token of one sequence, or -1 as sample_best. */
static int sample_row(const float *logits, const uint8_t *token_mask, const Sampling *s, int stream, int position,
                      int V) {
    if (sample_is_greedy(s)) return sample_best(logits, token_mask, V);
    uint32_t *distance = (uint32_t *)scratch(SCRATCH_A, (size_t)V * sizeof *distance);
    SampleItem *items = NULL;
    if (sample_is_limited(s)) items = (SampleItem *)scratch(SCRATCH_B, (size_t)V * sizeof *items);
    if (sample_kept(distance, items, logits, token_mask, s, V) < 0) return -1;
    uint64_t total = 0;
    for (int i = 0; i < V; i++) total += sample_weight(distance[i]);
    return sample_pick(distance, total, s, stream, position);
}

static void cpu_sample(int *ids, int *positions, const float *logits, const uint8_t *token_mask, const int *streams,
                       Sampling s, int B, int V) {
#pragma omp parallel for schedule(dynamic) if (B > 1)
    for (int b = 0; b < B; b++) {
        const int position = ++positions[b];
        ids[b] = sample_row(logits + (size_t)b * V, token_mask, &s, streams[b], position, V);
    }
}

#endif
