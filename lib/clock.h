/* The clock that all durations are measured with. */
#ifndef LIB_CLOCK_H
#define LIB_CLOCK_H

#include "error.h"

#include <time.h>

/* Seconds on a monotonic clock; only differences have a meaning. */
static inline double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
