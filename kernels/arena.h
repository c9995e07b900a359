/* One block of device memory, cut into pieces by a planning function that runs twice: first with base == NULL, to
 * count the bytes, then with the block in place, to hand out the pieces. */
#ifndef KERNELS_ARENA_H
#define KERNELS_ARENA_H

#include "../lib/error.h"
#include "device.h"

typedef struct {
    char *base;   // NULL: counting
    size_t used;  // bytes
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

/* ---- what is allocated, for the sentence when another arena does not fit ---- */

enum { ARENAS_LISTED = 32 };
static struct {
    const char *base, *owner, *content;
    const Ops *op;
    size_t bytes;
} arenas_listed[ARENAS_LISTED];

static inline void arena_list(const char *base, const Ops *op, const char *owner, const char *content, size_t bytes) {
    int i = 0;
    while (i < ARENAS_LISTED && arenas_listed[i].base) i++;
    if (i == ARENAS_LISTED) return;
    arenas_listed[i].base = base;
    arenas_listed[i].owner = owner;
    arenas_listed[i].content = content;
    arenas_listed[i].op = op;
    arenas_listed[i].bytes = bytes;
}

/* Writes "parameters 1.2 MB, the teacher's parameters 2.4 MB", or "nothing": what the arenas hold on op's device. */
static inline void arena_listing(char *text, size_t size, const Ops *op) {
    size_t length = (size_t)snprintf(text, size, "nothing");
    bool first = true;
    for (int i = 0; i < ARENAS_LISTED && length < size; i++) {
        if (!arenas_listed[i].base || !ops_share_memory(arenas_listed[i].op, op)) continue;
        if (first) length = 0;
        length += (size_t)snprintf(text + length, size - length, "%s%s%s %.1f MB", first ? "" : ", ",
                                   arenas_listed[i].owner, arenas_listed[i].content,
                                   (double)arenas_listed[i].bytes / 1e6);
        first = false;
    }
}

/* ---- allocation ---- */

/* Allocates what was counted and rewinds. owner and content name the arena in messages ("the teacher's ",
 * "activations"; owner is "" where there is one model) and must outlive it. Returns -1 when the memory does not fit; the
 * arena is then empty. */
static inline int arena_try_allocate(Arena *a, const Ops *op, const char *owner, const char *content, Error *err) {
    char held[640];
    const size_t bytes = a->used;
    a->base = (char *)op->alloc(bytes ? bytes : 64);
    a->used = 0;
    if (!a->base) {
        arena_listing(held, sizeof held, op);
        return error_set(err,
                         "cannot allocate %.1f MB on device %s for %s%s; it holds %s already; a smaller --batch or "
                         "model needs less, and in training also a smaller --chunk, or --recompute",
                         (double)bytes / 1e6, op->name, owner, content, held);
    }
    arena_list(a->base, op, owner, content, bytes);
    return 0;
}

/* The same for programs that end where the memory does not fit. */
static inline void arena_allocate(Arena *a, const Ops *op, const char *owner, const char *content) {
    Error err;
    die_if(arena_try_allocate(a, op, owner, content, &err), &err);
}

static inline void arena_release(Arena *a, const Ops *op) {
    for (int i = 0; a->base && i < ARENAS_LISTED; i++)
        if (arenas_listed[i].base == a->base) arenas_listed[i].base = NULL;
    if (a->base) op->release(a->base);
    a->base = NULL;
    a->used = 0;
}

#endif
