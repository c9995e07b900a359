/* Keys and values of some positions, kept outside of a generator's cache, on the same device, so that a sequence can be
 * continued later without reading its tokens again. Memory is in pages of PAGE_ROWS positions; when there is none left, the
 * rows that have not been used for the longest time are dropped.
 *
 * A page is [layers][keys, values][kv_heads][PAGE_ROWS][head_dim]. */
#ifndef GENERATE_KV_STORE_H
#define GENERATE_KV_STORE_H

#include "../generate.h"

enum { PAGE_ROWS = 16, SLAB_PAGES = 32 };

/* The rows of positions first .. first + count - 1. */
typedef struct KvRows {
    int first, count;
    char **pages;
    struct KvRows *newer, *older;  // by the last use
    struct KvRows **owner;         // set to NULL when the rows are dropped
} KvRows;

typedef struct {
    const Ops *op;
    LmConfig c;
    size_t page_bytes, limit;  // of one page; of all
    char **slabs, **free_pages;
    int slab_count, free_count;
    KvRows *newest, *oldest;
    int64_t dropped;  // rows, so far
} KvStore;

/* limit: bytes that the store may take. */
static inline void kv_store_open(KvStore *s, const Model *m, size_t limit) {
    const LmConfig *c = &m->c.lm;
    *s = (KvStore){.op = m->op, .c = *c, .limit = limit};
    s->page_bytes = 2 * (size_t)c->layers * c->kv_heads * PAGE_ROWS * c->head_dim * sizeof(floatX);
}

static inline void kv_rows_unlink(KvStore *s, KvRows *r) {
    if (r->newer)
        r->newer->older = r->older;
    else
        s->newest = r->older;
    if (r->older)
        r->older->newer = r->newer;
    else
        s->oldest = r->newer;
}

static inline void kv_rows_push(KvStore *s, KvRows *r) {
    r->newer = NULL;
    r->older = s->newest;
    if (s->newest)
        s->newest->newer = r;
    else
        s->oldest = r;
    s->newest = r;
}

static inline void kv_rows_drop(KvStore *s, KvRows *r) {
    const int pages = (r->count + PAGE_ROWS - 1) / PAGE_ROWS;
    for (int i = 0; i < pages; i++) s->free_pages[s->free_count++] = r->pages[i];
    kv_rows_unlink(s, r);
    *r->owner = NULL;
    s->dropped += r->count;
    free(r->pages);
    free(r);
}

static inline void kv_store_close(KvStore *s) {
    while (s->oldest) kv_rows_drop(s, s->oldest);
    for (int i = 0; i < s->slab_count; i++) s->op->release(s->slabs[i]);
    free(s->slabs);
    free(s->free_pages);
    *s = (KvStore){0};
}

/* Takes another slab from the device, if the limit and the device allow it. */
static inline bool kv_store_grow(KvStore *s) {
    const size_t bytes = SLAB_PAGES * s->page_bytes;
    if ((size_t)(s->slab_count + 1) * bytes > s->limit) return false;
    char *slab = (char *)s->op->alloc(bytes);
    if (!slab) {
        s->limit = (size_t)s->slab_count * bytes;
        return false;
    }
    s->slabs = (char **)xrealloc(s->slabs, (size_t)(s->slab_count + 1) * sizeof(char *));
    s->slabs[s->slab_count++] = slab;
    s->free_pages = (char **)xrealloc(s->free_pages, (size_t)s->slab_count * SLAB_PAGES * sizeof(char *));
    for (int i = 0; i < SLAB_PAGES; i++) s->free_pages[s->free_count++] = slab + (size_t)i * s->page_bytes;
    return true;
}

/* Makes `pages` pages free. Returns false where the store is too small for that. */
static inline bool kv_store_make_room(KvStore *s, int pages) {
    while (s->free_count < pages) {
        if (kv_store_grow(s)) continue;
        if (!s->oldest) return false;
        kv_rows_drop(s, s->oldest);
    }
    return true;
}

/* Copies rows between the pages of r and a cache of one sequence. */
static inline void kv_rows_copy(const KvStore *s, const KvRows *r, const KVCache *cache, int skip, int count,
                                bool to_cache) {
    const size_t row = (size_t)s->c.head_dim * sizeof(floatX), page = PAGE_ROWS * row,
                 head = (size_t)cache->capacity * row;
    for (int at = skip, n; at < skip + count; at += n) {
        const int in_page = at % PAGE_ROWS;
        n = PAGE_ROWS - in_page < skip + count - at ? PAGE_ROWS - in_page : skip + count - at;
        char *stored = r->pages[at / PAGE_ROWS] + (size_t)in_page * row;
        for (int l = 0; l < s->c.layers; l++)
            for (int v = 0; v < 2; v++, stored += (size_t)s->c.kv_heads * page) {
                char *cached = (char *)(v ? cache->values[l] : cache->keys[l]) + (size_t)(r->first + at) * row;
                if (to_cache)
                    s->op->copy_rows(cached, head, stored, page, (size_t)n * row, (size_t)s->c.kv_heads);
                else
                    s->op->copy_rows(stored, page, cached, head, (size_t)n * row, (size_t)s->c.kv_heads);
            }
    }
}

/* Keeps the rows of positions first .. first + count - 1 of a cache of one sequence. *owner, NULL before, gets them; it stays
 * NULL where there is no room. */
static inline void kv_store_save(KvStore *s, KvRows **owner, const KVCache *cache, int first, int count) {
    const int pages = (count + PAGE_ROWS - 1) / PAGE_ROWS;
    if (count < 1 || !kv_store_make_room(s, pages)) return;
    KvRows *r = (KvRows *)xcalloc(1, sizeof *r);
    *r = (KvRows){.first = first, .count = count, .owner = owner};
    r->pages = (char **)xmalloc((size_t)pages * sizeof(char *));
    for (int i = 0; i < pages; i++) r->pages[i] = s->free_pages[--s->free_count];
    kv_rows_copy(s, r, cache, 0, count, false);
    kv_rows_push(s, r);
    *owner = r;
}

/* Copies the rows of positions begin .. end - 1 to a cache; they must be among those of r. */
static inline void kv_store_load(KvStore *s, KvRows *r, const KVCache *cache, int begin, int end) {
    kv_rows_unlink(s, r);
    kv_rows_push(s, r);
    kv_rows_copy(s, r, cache, begin - r->first, end - begin, true);
}

#endif
