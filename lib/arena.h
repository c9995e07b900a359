/* One block of device memory cut into pieces by a planning function that runs twice: first with base == NULL to
 * count the bytes, then with the block in place to hand out the pieces. */
#ifndef LIB_ARENA_H
#define LIB_ARENA_H

#include "../kernels/ops.h"
#include "error.h"

typedef struct {
    char *base;
    size_t used;
} Arena;

/* The next piece, aligned to 64 bytes; NULL while counting. */
static inline void *arena_take(Arena *a, size_t count, size_t element_size) {
    size_t bytes = count * element_size;
    void *piece = a->base ? a->base + a->used : NULL;
    a->used += (bytes + 63) & ~(size_t)63;
    return piece;
}

static inline floatX *arena_x(Arena *a, size_t count) { return (floatX *)arena_take(a, count, sizeof(floatX)); }
static inline float *arena_f32(Arena *a, size_t count) { return (float *)arena_take(a, count, sizeof(float)); }
static inline int *arena_int(Arena *a, size_t count) { return (int *)arena_take(a, count, sizeof(int)); }

/* Allocates what was counted and rewinds. Stops the program with a sentence when the memory is not there. */
static inline void arena_allocate(Arena *a, const Ops *op, const char *what) {
    a->base = (char *)op->alloc(a->used ? a->used : 64);
    if (!a->base)
        die("cannot allocate %.1f MB on device %s for %s; try a smaller --batch or a smaller model, or --recompute",
            (double)a->used / 1e6, op->name, what);
    a->used = 0;
}

static inline void arena_release(Arena *a, const Ops *op) {
    if (a->base) op->release(a->base);
    a->base = NULL;
    a->used = 0;
}

#endif
