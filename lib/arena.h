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

/* The next piece, aligned to 64 bytes; NULL while counting. A sum beyond size_t stays at its largest value, which
 * arena_allocate then cannot get. */
static inline void *arena_take(Arena *a, size_t count, size_t element_size) {
    const size_t most = SIZE_MAX - 63;
    size_t bytes;
    void *piece = a->base ? a->base + a->used : NULL;
    if (__builtin_mul_overflow(count, element_size, &bytes) || bytes > most ||
        __builtin_add_overflow(a->used, (bytes + 63) & ~(size_t)63, &a->used))
        a->used = most;
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
