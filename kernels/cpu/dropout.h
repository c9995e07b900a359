/* Dropout, and scaling: memory-bound where nothing is dropped. */
#ifndef KERNELS_CPU_DROPOUT_H
#define KERNELS_CPU_DROPOUT_H

#include "../dropout.h"
#include "pointwise.h"

/* Elements begin .. end, each times its factor; out alone if !accumulate. */
ALWAYS_INLINE void dropout_range(floatX *out, const floatX *inp, size_t begin, size_t end, const float *factors,
                                 float factor, bool accumulate) {
    FOR_LANES (i, m, begin, end) {
        vf x = vx_load_n(inp + i, m) * (factors ? vf_load_n(factors + (i - begin), m) : vf_set(factor));
        if (accumulate) x += vx_load_n(out + i, m);
        vx_store_n(out + i, x, m);
    }
}

static void cpu_dropout(floatX *out, const floatX *inp, size_t n, float scale, float p, const uint64_t *key,
                        int stream, bool accumulate) {
    enum { CHUNK_FACTORS = 256 };
    const bool drops = p > 0 && *key != 0;
    const uint64_t start = drops ? dropout_stream(*key, stream) : 0;
    const uint32_t threshold = dropout_threshold(p);
    const float kept = scale / (1.0f - p);
    FOR_BLOCKS (begin, end, n) {
        float factors[CHUNK_FACTORS];
        for (size_t at = begin; at < end; at += CHUNK_FACTORS) {
            const size_t stop = min_size(end, at + CHUNK_FACTORS);
            for (size_t i = at; i < stop && drops; i++)
                factors[i - at] = dropout_bits(start, i) >= threshold ? kept : 0.0f;
            dropout_range(out, inp, at, stop, drops ? factors : NULL, scale, accumulate);
        }
    }
}

#endif
