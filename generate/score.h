/* The log-probability of a given program. */
#ifndef GENERATE_SCORE_H
#define GENERATE_SCORE_H

#include "../generate.h"

/* The log-probability of a program: ids [count], after a prefix that is not counted. Encodes the image again: for programs that
 * were not sampled one token after another. */
static inline double generator_score(Generator *g, const uint8_t *pixels, const int *prefix, int prefix_count,
                                     const int *ids, int count) {
    double sum = 0;
    generator_prefill(g, pixels, 1, prefix, prefix_count);
    for (int i = 0; i < count; i++) {
        sum += generator_log_probability(g, 0, ids[i]);
        if (i + 1 < count) generator_append(g, &ids[i]);
    }
    return sum;
}

#endif
