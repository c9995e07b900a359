/* Byte pair encoding (Sennrich et al. 2016) of single words with the vocabulary and merges of a tokenizer.json. As in
 * the package `tokenizers`, the merge of lowest rank is applied first, and of equal ranks the leftmost. */
#ifndef LIB_BPE_H
#define LIB_BPE_H

#include "error.h"

#include "hash.h"
#include "json.h"
#include "utf8.h"

typedef struct {
    int left, right;   // token ids; left < 0: empty slot
    int rank, result;  // result: id of the merged token
} BpeMerge;

typedef struct {
    const Json *json;
    int *tokens;  // hash table of the vocabulary: indices into json->values, -1: empty slot
    size_t token_slots;
    BpeMerge *merges;  // hash table, by (left, right)
    size_t merge_slots;
    bool byte_fallback, fuse_unknown, ignore_merges;
    int unknown;               // id of the unknown token, -1: none, characters without a token are skipped
    const char *unknown_text;  // text of an unknown token that is missing in the vocabulary, else NULL
    int vocab_size;            // all ids are below it
} Bpe;

/* A growing list of token ids. */
typedef struct {
    int *ids;
    int count, capacity;
} TokenIds;

static inline void token_ids_add(TokenIds *list, int id) {
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->ids = xrealloc(list->ids, list->capacity * sizeof(int));
    }
    list->ids[list->count++] = id;
}

/* The id of the token whose text is the n bytes at s, or -1. */
static inline int bpe_token(const Bpe *b, const char *s, size_t n) {
    size_t at = hash_slot(hash_bytes(HASH_BEGIN, s, n), b->token_slots);
    for (; b->tokens[at] >= 0; at = (at + 1) & (b->token_slots - 1)) {
        const JsonValue *v = &b->json->values[b->tokens[at]];
        if (strlen(v->key) == n && !memcmp(v->key, s, n)) return (int)v->integer;
    }
    return -1;
}

/* The slot of the merge of two tokens: filled, or the empty one where it would be inserted. */
static inline BpeMerge *bpe_merge_slot(const Bpe *b, int left, int right) {
    const int pair[2] = {left, right};
    size_t at = hash_slot(hash_bytes(HASH_BEGIN, pair, sizeof pair), b->merge_slots);
    while (b->merges[at].left >= 0 && (b->merges[at].left != left || b->merges[at].right != right))
        at = (at + 1) & (b->merge_slots - 1);
    return &b->merges[at];
}

/* ---- reading tokenizer.json ---- */

/* The size of a hash table for `count` entries: a power of two, at most half full. */
static inline size_t bpe_slots(int count) {
    size_t slots = 64;
    while (slots < 2 * (size_t)count + 2) slots *= 2;
    return slots;
}

static inline int bpe_read_vocabulary(Bpe *b, int vocab, const char *name, Error *err) {
    const JsonValue *values = b->json->values;
    if (vocab < 0 || values[vocab].type != JSON_OBJECT)
        return error_set(err, "%s: model.vocab is missing or is not an object of tokens and ids", name);
    b->token_slots = bpe_slots(values[vocab].count);
    b->tokens = xmalloc(b->token_slots * sizeof(int));
    memset(b->tokens, 0xff, b->token_slots * sizeof(int));
    for (int v = values[vocab].child; v >= 0; v = values[v].next) {
        if (!values[v].is_integer || values[v].integer < 0 || values[v].integer >= b->vocab_size)
            return error_set(err, "%s: the id of the token '%.40s' is not a number from 0 to %d", name, values[v].key,
                             b->vocab_size - 1);
        size_t at = hash_slot(hash_bytes(HASH_BEGIN, values[v].key, strlen(values[v].key)), b->token_slots);
        while (b->tokens[at] >= 0) at = (at + 1) & (b->token_slots - 1);
        b->tokens[at] = v;
    }
    return 0;
}

/* Reads a merge, "left right" or ["left", "right"]. Both tokens and their concatenation must be in the vocabulary. */
static inline int bpe_read_merge(Bpe *b, int v, int rank, const char *name, Error *err) {
    const JsonValue *values = b->json->values, *m = &values[v];
    const char *left = NULL, *right = NULL;
    size_t left_bytes = 0;
    if (m->type == JSON_STRING && (right = strchr(m->string, ' ')) && !strchr(right + 1, ' ')) {
        left = m->string;
        left_bytes = (size_t)(right++ - left);
    } else if (m->type == JSON_ARRAY && m->count == 2) {
        left = values[m->child].string;
        right = values[values[m->child].next].string;
        left_bytes = left ? strlen(left) : 0;
    }
    if (!left || !right) return error_set(err, "%s: merge %d is not a pair of tokens", name, rank);
    char *both = format_string("%.*s%s", (int)left_bytes, left, right);
    int l = bpe_token(b, left, left_bytes), r = bpe_token(b, right, strlen(right));
    int result = bpe_token(b, both, strlen(both));
    free(both);
    if (l < 0 || r < 0 || result < 0)
        return error_set(err, "%s: merge %d ('%.*s' and '%.40s') has a token that is not in model.vocab", name, rank,
                         (int)(left_bytes < 40 ? left_bytes : 40), left, right);
    *bpe_merge_slot(b, l, r) = (BpeMerge){l, r, rank, result};  // a pair that occurs twice has the later rank
    return 0;
}

static inline int bpe_read_merges(Bpe *b, int merges, const char *name, Error *err) {
    const JsonValue *values = b->json->values;
    int rank = 0;
    if (merges < 0 || values[merges].type != JSON_ARRAY)
        return error_set(err, "%s: model.merges is missing or is not an array", name);
    b->merge_slots = bpe_slots(values[merges].count);
    b->merges = xmalloc(b->merge_slots * sizeof *b->merges);
    memset(b->merges, 0xff, b->merge_slots * sizeof *b->merges);
    for (int v = values[merges].child; v >= 0; v = values[v].next) {
        if (values[v].type == JSON_STRING && !strncmp(values[v].string, "#version", 8))
            continue;  // the first line of a merges.txt
        if (bpe_read_merge(b, v, rank++, name, err) != 0) return -1;
    }
    return 0;
}

static inline void bpe_close(Bpe *b) {
    free(b->tokens);
    free(b->merges);
    memset(b, 0, sizeof *b);
}

/* Reads the BPE model from the value "model" of a tokenizer.json, which must stay valid. Ids must be below
 * vocab_size. To be closed with bpe_close, also after an error. */
static inline int bpe_open(Bpe *b, const Json *json, int model, int vocab_size, const char *name, Error *err) {
    *b = (Bpe){.json = json, .vocab_size = vocab_size};
    const char *type = json_get_string(json, model, "type"), *unknown = json_get_string(json, model, "unk_token");
    if (type && strcmp(type, "BPE") != 0)
        return error_set(err, "%s: the tokenizer is of the kind %.40s; only BPE is supported", name, type);
    int dropout = json_find(json, model, "dropout");
    if (dropout >= 0 && json->values[dropout].type != JSON_NULL)
        return error_set(err, "%s: the tokenizer drops merges at random (model.dropout); set it to null", name);
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *affix = json_get_string(json, model, affixes[i]);
        if (affix && *affix)
            return error_set(err, "%s: the tokenizer has a model.%s, which is not supported", name, affixes[i]);
    }
    b->byte_fallback = json_get_bool(json, model, "byte_fallback", false);
    b->fuse_unknown = json_get_bool(json, model, "fuse_unk", false);
    b->ignore_merges = json_get_bool(json, model, "ignore_merges", false);
    if (bpe_read_vocabulary(b, json_find(json, model, "vocab"), name, err) != 0) return -1;
    if (bpe_read_merges(b, json_find(json, model, "merges"), name, err) != 0) return -1;
    b->unknown = unknown ? bpe_token(b, unknown, strlen(unknown)) : -1;
    b->unknown_text = unknown && b->unknown < 0 ? unknown : NULL;
    return 0;
}

/* ---- encoding ---- */

typedef struct {
    int id, previous, next;  // indices of the neighbours, -1: none; id < 0: merged into the symbol before it
} BpeSymbol;

typedef struct {
    int rank, at, result;  // a possible merge of symbol `at` with the symbol after it
} BpeCandidate;

/* A word that is being encoded: a linked list of symbols and a priority queue (binary heap) of possible merges. */
typedef struct {
    const Bpe *bpe;
    BpeSymbol *symbols;
    int count;
    BpeCandidate *heap;
    int heap_count;
} BpeWord;

static inline bool bpe_before(const BpeCandidate *a, const BpeCandidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

/* Queues the merge of symbol `at` with the one after it, if there is such a merge. */
static inline void bpe_push(BpeWord *w, int at) {
    if (at < 0 || w->symbols[at].next < 0) return;
    const BpeMerge *m = bpe_merge_slot(w->bpe, w->symbols[at].id, w->symbols[w->symbols[at].next].id);
    if (m->left < 0) return;
    BpeCandidate c = {m->rank, at, m->result};
    int i = w->heap_count++;
    for (; i > 0 && bpe_before(&c, &w->heap[(i - 1) / 2]); i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static inline BpeCandidate bpe_pop(BpeWord *w) {
    BpeCandidate top = w->heap[0], last = w->heap[--w->heap_count];
    int i = 0, child;
    while ((child = 2 * i + 1) < w->heap_count) {
        if (child + 1 < w->heap_count && bpe_before(&w->heap[child + 1], &w->heap[child])) child++;
        if (!bpe_before(&w->heap[child], &last)) break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

/* Applies merges until none is left. A queued candidate is skipped if its symbols have changed since, unless they
 * would still merge into the same token. */
static inline void bpe_merge_all(BpeWord *w) {
    for (int i = 0; i + 1 < w->count; i++) bpe_push(w, i);
    while (w->heap_count > 0) {
        BpeCandidate c = bpe_pop(w);
        BpeSymbol *s = &w->symbols[c.at];
        if (s->id < 0 || s->next < 0) continue;
        BpeSymbol *right = &w->symbols[s->next];
        const BpeMerge *m = bpe_merge_slot(w->bpe, s->id, right->id);
        if (m->left < 0 || m->result != c.result) continue;
        s->id = c.result;
        s->next = right->next;
        right->id = -1;
        if (s->next >= 0) w->symbols[s->next].previous = c.at;
        bpe_push(w, s->previous);
        bpe_push(w, c.at);
    }
}

static inline void bpe_add_symbol(BpeWord *w, int id) {
    BpeSymbol *s = &w->symbols[w->count];
    *s = (BpeSymbol){id, w->count - 1, -1};
    if (w->count > 0) s[-1].next = w->count;
    w->count++;
}

/* Byte fallback: adds the n bytes of a character as tokens <0x00> to <0xFF>; false if the vocabulary lacks one. */
static inline bool bpe_add_bytes(BpeWord *w, const char *s, int n) {
    int ids[4];
    for (int i = 0; i < n; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (uint8_t)s[i]);
        if ((ids[i] = bpe_token(w->bpe, name, 6)) < 0) return false;
    }
    for (int i = 0; i < n; i++) bpe_add_symbol(w, ids[i]);
    return true;
}

/* Splits the n bytes of a word into one symbol per character, with byte fallback or the unknown token for characters
 * without a token. As in `tokenizers`, an unknown token is added only before the next known character or at the end,
 * so it comes after the byte tokens of characters in between. */
static inline int bpe_split(BpeWord *w, const char *s, size_t n, Error *err) {
    const Bpe *b = w->bpe;
    bool unknown = false;
    for (size_t at = 0; at < n;) {
        int length = utf8_sequence((const uint8_t *)s + at, n - at);
        if (length == 0) return error_set(err, "the text is not valid UTF-8 at byte %zu of a word", at);
        int id = bpe_token(b, s + at, (size_t)length);
        if (id >= 0) {
            if (unknown) bpe_add_symbol(w, b->unknown);
            unknown = false;
            bpe_add_symbol(w, id);
        } else if (!(b->byte_fallback && bpe_add_bytes(w, s + at, length))) {
            if (b->unknown_text)
                return error_set(err,
                                 "the tokenizer has no token for '%.*s' and its unknown token '%.40s' is not in "
                                 "its vocabulary",
                                 length, s + at, b->unknown_text);
            if (unknown && !b->fuse_unknown) bpe_add_symbol(w, b->unknown);
            unknown = b->unknown >= 0;
        }
        at += (size_t)length;
    }
    if (unknown) bpe_add_symbol(w, b->unknown);
    return 0;
}

/* Encodes one word, n bytes of valid UTF-8, and appends its token ids to `out`. */
static inline int bpe_encode(const Bpe *b, const char *s, size_t n, TokenIds *out, Error *err) {
    int id = b->ignore_merges && n > 0 ? bpe_token(b, s, n) : -1;
    if (id >= 0) {
        token_ids_add(out, id);
        return 0;
    }
    if (n > INT32_MAX / 4) return error_set(err, "a word of the text has %zu bytes, which is too long", n);
    BpeWord w = {.bpe = b,
                 .symbols = xmalloc((n + 1) * sizeof *w.symbols),
                 .heap = xmalloc((3 * n + 1) * sizeof *w.heap)};  // n at first, and each merge adds two
    int bad = bpe_split(&w, s, n, err);
    if (!bad) bpe_merge_all(&w);
    for (int i = 0; !bad && i >= 0 && i < w.count; i = w.symbols[i].next) token_ids_add(out, w.symbols[i].id);
    free(w.symbols);
    free(w.heap);
    return bad;
}

#endif
