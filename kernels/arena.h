/* An arena: one block of device memory, divided into pieces by a planning function that runs twice, first with base
 * == NULL to count the bytes, then with the block in place to hand out the pieces. */
#ifndef KERNELS_ARENA_H
#define KERNELS_ARENA_H

#include "ops.h"
#include "../lib/error.h"

typedef struct {
    char *base;
    size_t used;
} Arena;

/* The next piece, aligned to 64 bytes; NULL while counting. When the sum overflows size_t, it stays at the largest
 * value, which arena_allocate then cannot get. */
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

/* The arenas of this program, for the error sentence when another one does not fit. */
enum { ARENAS_LISTED = 32 };
static struct {
    const char *base, *whose, *what;
    const Ops *op;
    size_t bytes;
} arenas_listed[ARENAS_LISTED];

/* The owner of the arenas that are allocated from now on, for the same sentence: "", or, where there are two models,
 * "the teacher's ". */
static const char *arena_whose = "";

/* Adds the memory at `base` to the list, or, with `what` NULL, removes it. */
static inline void arena_list(const char *base, const Ops *op, const char *what, size_t bytes) {
    int i = 0;
    const char *place = what ? NULL : base;
    while (i < ARENAS_LISTED && arenas_listed[i].base != place) i++;
    if (i == ARENAS_LISTED) return;
    arenas_listed[i].base = what ? base : NULL;
    arenas_listed[i].whose = arena_whose;
    arenas_listed[i].what = what;
    arenas_listed[i].op = op;
    arenas_listed[i].bytes = bytes;
}

/* Writes what the list has on the device of op, on any of its streams, as "parameters 1.2 MB, the teacher's
 * parameters 2.4 MB", or "nothing". */
static inline void arena_listing(char *text, size_t size, const Ops *op) {
    size_t length = (size_t)snprintf(text, size, "nothing");
    bool first = true;
    for (int i = 0; i < ARENAS_LISTED && length < size; i++) {
        const Ops *there = arenas_listed[i].op;
        if (!arenas_listed[i].base || there->host_memory != op->host_memory || there->device != op->device) continue;
        if (first) length = 0;
        length +=
            (size_t)snprintf(text + length, size - length, "%s%s%s %.1f MB", first ? "" : ", ",
                             arenas_listed[i].whose, arenas_listed[i].what, (double)arenas_listed[i].bytes / 1e6);
        first = false;
    }
}

/* Allocates the bytes that were counted and rewinds, so that the pieces can be handed out. Ends the program with a
 * sentence when they do not fit. */
static inline void arena_allocate(Arena *a, const Ops *op, const char *what) {
    char held[1024];
    a->base = (char *)op->alloc(a->used ? a->used : 64);
    if (!a->base) {
        arena_listing(held, sizeof held, op);
        die("cannot allocate %.1f MB on device %s for %s%s; it holds %s already; a smaller --batch or model needs "
            "less, and in training also a smaller --chunk, or --recompute",
            (double)a->used / 1e6, op->name, arena_whose, what, held);
    }
    arena_list(a->base, op, what, a->used);
    a->used = 0;
}

static inline void arena_release(Arena *a, const Ops *op) {
    if (a->base) {
        arena_list(a->base, op, NULL, 0);
        op->release(a->base);
    }
    a->base = NULL;
    a->used = 0;
}

#endif
