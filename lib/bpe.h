/* Byte pair encoding (Sennrich et al. 2016) of one word: a tokenizer.json's vocabulary and merges, and the order in
 * which `tokenizers` applies them: always the merge of lowest rank, of equal ones the leftmost. */
#ifndef LIB_BPE_H
#define LIB_BPE_H

#include "error.h"

#include "json.h"

typedef struct {
    int left, right;  // ids; left < 0: an empty slot
    int rank, result;
} BpeMerge;

typedef struct {
    const Json *json;
    int *words;  // hash table of the vocabulary: indices of json->values, -1: empty
    size_t word_slots;
    BpeMerge *merges;  // hash table by (left, right)
    size_t merge_slots;
    bool byte_fallback, fuse_unknown, ignore_merges;
    int unknown;               // id of the unknown token, -1: characters without a token are left out
    const char *unknown_text;  // its text when the vocabulary lacks it, else NULL
    int limit;                 // ids lie below
} Bpe;

/* A growing list of token ids. */
typedef struct {
    int *ids;
    int count, capacity;
} TokenIds;

static inline void token_ids_add(TokenIds *list, int id) {
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->ids = (int *)xrealloc(list->ids, (size_t)list->capacity * sizeof(int));
    }
    list->ids[list->count++] = id;
}

static inline uint64_t bpe_hash(const char *s, size_t n) {  // FNV-1a, its high bits folded in
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

/* The id of a token, or -1. */
static inline int bpe_word(const Bpe *b, const char *s, size_t n) {
    for (size_t at = bpe_hash(s, n) & (b->word_slots - 1); b->words[at] >= 0; at = (at + 1) & (b->word_slots - 1)) {
        const JsonValue *v = &b->json->values[b->words[at]];
        if (strlen(v->key) == n && !memcmp(v->key, s, n)) return (int)v->integer;
    }
    return -1;
}

static inline BpeMerge *bpe_merge_slot(const Bpe *b, int left, int right) {
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    size_t at = (h ^ h >> 32) & (b->merge_slots - 1);
    while (b->merges[at].left >= 0 && (b->merges[at].left != left || b->merges[at].right != right))
        at = (at + 1) & (b->merge_slots - 1);
    return &b->merges[at];
}

/* ---- reading ---- */

static inline size_t bpe_slots(int count) {
    size_t slots = 64;
    while (slots < 2 * (size_t)count + 2) slots *= 2;
    return slots;
}

static inline int bpe_read_words(Bpe *b, int vocab, const char *name, Error *err) {
    const JsonValue *values = b->json->values;
    if (vocab < 0 || values[vocab].type != JSON_OBJECT)
        return error_set(err, "%s: model.vocab is missing or is not an object of tokens and ids", name);
    b->word_slots = bpe_slots(values[vocab].count);
    b->words = (int *)xmalloc(b->word_slots * sizeof(int));
    memset(b->words, 0xff, b->word_slots * sizeof(int));
    for (int v = values[vocab].child; v >= 0; v = values[v].next) {
        if (!values[v].is_integer || values[v].integer < 0 || values[v].integer >= b->limit)
            return error_set(err, "%s: the id of the token '%.40s' is not a number from 0 to %d", name, values[v].key,
                             b->limit - 1);
        size_t at = bpe_hash(values[v].key, strlen(values[v].key)) & (b->word_slots - 1);
        while (b->words[at] >= 0) at = (at + 1) & (b->word_slots - 1);
        b->words[at] = v;
    }
    return 0;
}

/* "left right" or ["left", "right"]: two tokens of the vocabulary whose union is one too. */
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
    int l = bpe_word(b, left, left_bytes), r = bpe_word(b, right, strlen(right)),
        result = bpe_word(b, both, strlen(both));
    free(both);
    if (l < 0 || r < 0 || result < 0)
        return error_set(err, "%s: merge %d ('%.*s' and '%.40s') has a token that is not in model.vocab", name, rank,
                         (int)(left_bytes < 40 ? left_bytes : 40), left, right);
    BpeMerge *slot = bpe_merge_slot(b, l, r);  // of two equal pairs the later counts
    slot->left = l;
    slot->right = r;
    slot->rank = rank;
    slot->result = result;
    return 0;
}

static inline int bpe_read_merges(Bpe *b, int merges, const char *name, Error *err) {
    const JsonValue *values = b->json->values;
    int rank = 0;
    if (merges < 0 || values[merges].type != JSON_ARRAY)
        return error_set(err, "%s: model.merges is missing or is not an array", name);
    b->merge_slots = bpe_slots(values[merges].count);
    b->merges = (BpeMerge *)xmalloc(b->merge_slots * sizeof *b->merges);
    memset(b->merges, 0xff, b->merge_slots * sizeof *b->merges);
    for (int v = values[merges].child; v >= 0; v = values[v].next) {
        if (values[v].type == JSON_STRING && !strncmp(values[v].string, "#version", 8)) continue;  // of merges.txt
        if (bpe_read_merge(b, v, rank++, name, err) != 0) return -1;
    }
    return 0;
}

static inline bool json_truth(const Json *j, int object, const char *key, bool otherwise) {
    int v = json_find(j, object, key);
    return v >= 0 && j->values[v].type == JSON_BOOL ? j->values[v].boolean : otherwise;
}

/* The text of a member that is a string; NULL when it is something else or not there. */
static inline const char *json_text(const Json *j, int object, const char *key) {
    int v = json_find(j, object, key);
    return v >= 0 ? j->values[v].string : NULL;
}

static inline void bpe_close(Bpe *b) {
    free(b->words);
    free(b->merges);
    memset(b, 0, sizeof *b);
}

/* `model` is the value "model" of a tokenizer.json; the JSON must stay. ids lie below `limit`. Close it also when
 * this fails. */
static inline int bpe_open(Bpe *b, const Json *json, int model, int limit, const char *name, Error *err) {
    memset(b, 0, sizeof *b);
    b->json = json;
    b->limit = limit;
    const char *type = json_text(json, model, "type"), *unknown = json_text(json, model, "unk_token");
    if (type && strcmp(type, "BPE") != 0)
        return error_set(err, "%s: the tokenizer is of the kind %.40s; only BPE is supported", name, type);
    int dropout = json_find(json, model, "dropout");
    if (dropout >= 0 && json->values[dropout].type != JSON_NULL)
        return error_set(err, "%s: the tokenizer drops merges at random (model.dropout); set it to null", name);
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *affix = json_text(json, model, affixes[i]);
        if (affix && *affix)
            return error_set(err, "%s: the tokenizer has a model.%s, which is not supported", name, affixes[i]);
    }
    b->byte_fallback = json_truth(json, model, "byte_fallback", false);
    b->fuse_unknown = json_truth(json, model, "fuse_unk", false);
    b->ignore_merges = json_truth(json, model, "ignore_merges", false);
    if (bpe_read_words(b, json_find(json, model, "vocab"), name, err) != 0) return -1;
    if (bpe_read_merges(b, json_find(json, model, "merges"), name, err) != 0) return -1;
    b->unknown = unknown ? bpe_word(b, unknown, strlen(unknown)) : -1;
    b->unknown_text = unknown && b->unknown < 0 ? unknown : NULL;
    return 0;
}

/* ---- encoding ---- */

typedef struct {
    int id, previous, next;  // neighbours in the word, -1: none; id < 0: merged into the one before
} BpeSymbol;

typedef struct {
    int rank, at, result;  // the merge of symbol `at` with the next one
} BpeCandidate;

typedef struct {
    const Bpe *bpe;
    BpeSymbol *symbols;
    int count;
    BpeCandidate *heap;  // the next merge first
    int waiting;
} BpeWord;

static inline bool bpe_before(const BpeCandidate *a, const BpeCandidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static inline void bpe_push(BpeWord *w, int at) {
    if (at < 0 || w->symbols[at].next < 0) return;
    const BpeMerge *m = bpe_merge_slot(w->bpe, w->symbols[at].id, w->symbols[w->symbols[at].next].id);
    if (m->left < 0) return;
    BpeCandidate c = {m->rank, at, m->result};
    int i = w->waiting++;
    for (; i > 0 && bpe_before(&c, &w->heap[(i - 1) / 2]); i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static inline BpeCandidate bpe_pop(BpeWord *w) {
    BpeCandidate top = w->heap[0], last = w->heap[--w->waiting];
    int i = 0, child;
    while ((child = 2 * i + 1) < w->waiting) {
        if (child + 1 < w->waiting && bpe_before(&w->heap[child + 1], &w->heap[child])) child++;
        if (!bpe_before(&w->heap[child], &last)) break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return top;
}

/* A candidate is out of date when its symbols have changed, unless they would still become the same token. */
static inline void bpe_merge_all(BpeWord *w) {
    for (int i = 0; i + 1 < w->count; i++) bpe_push(w, i);
    while (w->waiting > 0) {
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
    s->id = id;
    s->previous = w->count - 1;
    s->next = -1;
    if (w->count > 0) s[-1].next = w->count;
    w->count++;
}

/* The bytes of a character as <0x00> to <0xFF>; false when the vocabulary lacks one. */
static inline bool bpe_add_bytes(BpeWord *w, const char *s, int n) {
    int ids[4];
    for (int i = 0; i < n; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (uint8_t)s[i]);
        if ((ids[i] = bpe_word(w->bpe, name, 6)) < 0) return false;
    }
    for (int i = 0; i < n; i++) bpe_add_symbol(w, ids[i]);
    return true;
}

/* One symbol for each character that has a token. An unknown token is only added when a known character or the end
 * comes, behind the bytes of characters in between: so it is in `tokenizers`. */
static inline int bpe_split(BpeWord *w, const char *s, size_t n, Error *err) {
    const Bpe *b = w->bpe;
    bool unknown = false;
    for (size_t at = 0; at < n;) {
        int length = utf8_sequence((const uint8_t *)s + at, n - at);
        if (length == 0) return error_set(err, "the text is not valid UTF-8 at byte %zu of a word", at);
        int id = bpe_word(b, s + at, (size_t)length);
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

/* Appends the ids of one word, n bytes of valid UTF-8. */
static inline int bpe_encode(const Bpe *b, const char *s, size_t n, TokenIds *out, Error *err) {
    int id = b->ignore_merges && n > 0 ? bpe_word(b, s, n) : -1;
    if (id >= 0) {
        token_ids_add(out, id);
        return 0;
    }
    if (n > INT32_MAX / 4) return error_set(err, "a word of the text has %zu bytes, which is too long", n);
    BpeWord w = {b, NULL, 0, NULL, 0};
    w.symbols = (BpeSymbol *)xmalloc((n + 1) * sizeof *w.symbols);
    w.heap = (BpeCandidate *)xmalloc((3 * n + 1) * sizeof *w.heap);  // each merge adds two
    int bad = bpe_split(&w, s, n, err);
    if (!bad) bpe_merge_all(&w);
    for (int i = 0; !bad && i >= 0 && i < w.count; i = w.symbols[i].next) token_ids_add(out, w.symbols[i].id);
    free(w.symbols);
    free(w.heap);
    return bad;
}

#endif
