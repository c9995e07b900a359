/* The rotation angles of rotary positions (RoPE, Su et al. 2021). The attention operations rotate queries and keys with the
 * table that is made here. */
#ifndef ROPE_H
#define ROPE_H

#include "config.h"
#include "kernels/ops.h"
#include "lib/error.h"

/* The angles of every position on the device, fp32 [max_positions, D]: cosines, then sines. Frequencies are theta^(-2i/D).
 * `linear` scaling divides the position by the factor (Chen et al. 2023). `llama3` divides low frequencies by it, keeps
 * high ones and blends between, by the number of rotations within the original context (Llama 3.1). NULL with *err
 * filled: the table cannot be allocated. The caller releases it. */
static inline float *rope_table(const LmConfig *c, const Ops *op, Error *err) {
    int half = c->head_dim / 2;
    size_t D = c->head_dim, n = (size_t)c->max_positions * D;
    float *host = malloc(n * sizeof(float)), *table = host ? op->alloc(n * sizeof(float)) : NULL;
    if (!table) error_set(err, "cannot allocate the rotary table for %d positions", c->max_positions);
    for (int i = 0; i < half && table; i++) {
        double frequency = pow((double)c->rope_theta, -(double)i / half);
        if (c->rope_scaling == ROPE_LINEAR) frequency /= (double)c->rope_factor;
        if (c->rope_scaling == ROPE_LLAMA3) {
            double turns = c->rope_original * frequency / (2 * 3.14159265358979323846);
            double blend = (turns - (double)c->rope_low) / ((double)c->rope_high - (double)c->rope_low);
            blend = blend < 0 ? 0 : blend > 1 ? 1 : blend;
            frequency = (1 - blend) * frequency / (double)c->rope_factor + blend * frequency;
        }
        for (int t = 0; t < c->max_positions; t++) {
            host[t * D + i] = (float)cos(t * frequency);
            host[t * D + half + i] = (float)sin(t * frequency);
        }
    }
    if (table) op->upload(table, host, n * sizeof(float));
    free(host);
    return table;
}

#endif
