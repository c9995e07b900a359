/* Which elements dropout keeps, the same on every device. */
#ifndef KERNELS_DROPOUT_H
#define KERNELS_DROPOUT_H

#include "../lib/random.h"

#include <stdbool.h>

/* The start of one stream of random numbers; streams of the same key are independent. */
RANDOM_INLINE uint64_t dropout_stream(uint64_t key, int stream) {
    uint64_t x = key;
    x = random_splitmix(&x) ^ (uint64_t)(uint32_t)stream;
    return random_splitmix(&x);
}

/* The 32 random bits of element i: halves of splitmix64's numbers, which can be computed in any order. */
RANDOM_INLINE uint32_t dropout_bits(uint64_t start, size_t i) {
    uint64_t x = start + (uint64_t)(i / 2) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(random_splitmix(&x) >> (i % 2 * 32));
}

/* An element is kept where its bits are at least this; p in [0, 1). */
RANDOM_INLINE uint32_t dropout_threshold(float p) { return (uint32_t)((double)p * 4294967296.0); }

#endif
