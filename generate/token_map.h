/* A hash table whose keys are sequences of token ids. Keys and values belong to the caller and must stay where they are. */
#ifndef GENERATE_TOKEN_MAP_H
#define GENERATE_TOKEN_MAP_H

#include "../lib/error.h"

#include "../lib/hash.h"

typedef struct {
    const int *ids;
    int count;  // of ids
    void *value;
    int number;  // a second value
} TokenEntry;

typedef struct {
    TokenEntry *entries;  // [slots]; value NULL: free
    size_t slots, used;   // slots is 0 or a power of two
} TokenMap;

static inline void token_map_free(TokenMap *m) {
    free(m->entries);
    *m = (TokenMap){NULL, 0, 0};
}

/* The entry of a key, or the free one where it belongs. There must be a free one. */
static inline TokenEntry *token_map_slot(const TokenMap *m, const int *ids, int count) {
    size_t at = hash_slot(hash_bytes(HASH_BEGIN, ids, (size_t)count * sizeof(int)), m->slots);
    for (;; at = (at + 1) & (m->slots - 1)) {
        TokenEntry *e = &m->entries[at];
        if (!e->value || (e->count == count && !memcmp(e->ids, ids, (size_t)count * sizeof(int)))) return e;
    }
}

/* The entry of a key, or NULL. */
static inline TokenEntry *token_map_find(const TokenMap *m, const int *ids, int count) {
    TokenEntry *e = m->slots ? token_map_slot(m, ids, count) : NULL;
    return e && e->value ? e : NULL;
}

static inline void token_map_grow(TokenMap *m) {
    const TokenMap old = *m;
    m->slots = old.slots ? 2 * old.slots : 64;
    m->entries = (TokenEntry *)xcalloc(m->slots, sizeof(TokenEntry));
    for (size_t i = 0; i < old.slots; i++)
        if (old.entries[i].value) *token_map_slot(m, old.entries[i].ids, old.entries[i].count) = old.entries[i];
    free(old.entries);
}

/* Sets the values of a key, in place of the ones that it may have. value is not NULL. */
static inline void token_map_set(TokenMap *m, const int *ids, int count, void *value, int number) {
    if (2 * (m->used + 1) > m->slots) token_map_grow(m);
    TokenEntry *e = token_map_slot(m, ids, count);
    if (!e->value) m->used++;
    *e = (TokenEntry){ids, count, value, number};
}

#endif
