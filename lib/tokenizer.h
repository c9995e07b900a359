/* The tokenizer that travels inside a model file: the bytes of every token, for turning ids into text. Making ids out
 * of text happens once, in Python, when a dataset is converted.
 *
 * Tensors: tokenizer.bytes U8 [total] (all tokens one after another), tokenizer.offsets I32 [V+1], tokenizer.flags
 * U8 [V] (bit 0: special, never printed), tokenizer.json U8 [n] (optional; for Python). Metadata: tokenizer.kind,
 * tokenizer.end (the id of the end token). */
#ifndef LIB_TOKENIZER_H
#define LIB_TOKENIZER_H

#include "error.h"

#include "safetensors.h"

enum { TOKEN_SPECIAL = 1 };

typedef struct {
    int count;
    const uint8_t *bytes;
    const int32_t *offsets;  // token i is bytes[offsets[i] .. offsets[i+1])
    const uint8_t *flags;
    int end;
    uint64_t fingerprint;  // FNV-1a, 64 bits, over per token: length (4 bytes, little-endian), bytes, flags
    const uint8_t *json;   // NULL when the file has none
    size_t json_bytes;
    char kind[32];
    char end_text[16];  // `end` in decimal, as it stands in the metadata
} Tokenizer;

/* A tensor of the given type with one dimension; NULL with a sentence in err. */
static inline const SafeTensor *tokenizer_tensor(const SafeTensors *st, const char *name, Dtype dtype, Error *err) {
    const SafeTensor *t = safetensors_find(st, name);
    if (!t)
        error_set(err, "%s has no tensor %s: it carries no tokenizer; convert it again", st->file.path, name);
    else if (t->dtype != dtype || t->ndim != 1)
        error_set(err, "tensor %s of %s is %s with %d dimensions, %s with one was expected", name, st->file.path,
                  dtype_name(t->dtype), t->ndim, dtype_name(dtype));
    else
        return t;
    return NULL;
}

static inline uint64_t tokenizer_hash(const Tokenizer *t) {
    uint64_t h = 0xcbf29ce484222325u;
    const uint64_t prime = 0x100000001b3u;
    for (int i = 0; i < t->count; i++) {
        uint32_t length = (uint32_t)(t->offsets[i + 1] - t->offsets[i]);
        for (int k = 0; k < 4; k++) h = (h ^ (length >> (8 * k) & 0xff)) * prime;
        for (uint32_t k = 0; k < length; k++) h = (h ^ t->bytes[t->offsets[i] + (int32_t)k]) * prime;
        h = (h ^ t->flags[i]) * prime;
    }
    return h;
}

static inline int tokenizer_metadata_read(Tokenizer *t, const SafeTensors *st, Error *err) {
    const char *path = st->file.path, *kind = safetensors_metadata(st, "tokenizer.kind");
    const char *end_text = safetensors_metadata(st, "tokenizer.end");
    if (!kind || !*kind || strlen(kind) >= sizeof t->kind)
        return error_set(err, "%s: the metadata tokenizer.kind is missing or longer than 31 bytes", path);
    strcpy(t->kind, kind);
    char *rest = NULL;
    long end = end_text && *end_text >= '0' && *end_text <= '9' ? strtol(end_text, &rest, 10) : -1;
    if (end < 0 || end >= t->count || *rest != '\0')
        return error_set(err, "%s: the metadata tokenizer.end is '%.20s', a token id from 0 to %d was expected", path,
                         end_text ? end_text : "(missing)", t->count - 1);
    t->end = (int)end;
    snprintf(t->end_text, sizeof t->end_text, "%d", t->end);
    return 0;
}

/* Points into st, which must stay open. Checks everything that later reads rely on. */
static inline int tokenizer_load(Tokenizer *t, const SafeTensors *st, Error *err) {
    memset(t, 0, sizeof *t);
    const char *path = st->file.path;
    const SafeTensor *bytes = tokenizer_tensor(st, "tokenizer.bytes", DT_U8, err);
    const SafeTensor *offsets = bytes ? tokenizer_tensor(st, "tokenizer.offsets", DT_I32, err) : NULL;
    const SafeTensor *flags = offsets ? tokenizer_tensor(st, "tokenizer.flags", DT_U8, err) : NULL;
    if (!flags) return -1;
    if (flags->shape[0] < 1 || flags->shape[0] > INT32_MAX - 1 || offsets->shape[0] != flags->shape[0] + 1)
        return error_set(err,
                         "%s: tokenizer.flags has %lld entries and tokenizer.offsets %lld; one more was expected",
                         path, (long long)flags->shape[0], (long long)offsets->shape[0]);
    t->count = (int)flags->shape[0];
    t->bytes = bytes->data;
    t->offsets = (const int32_t *)(const void *)offsets->data;
    t->flags = flags->data;
    if (t->offsets[0] != 0 || t->offsets[t->count] != bytes->shape[0])
        return error_set(err, "%s: tokenizer.offsets runs from %d to %d, 0 to %lld was expected", path, t->offsets[0],
                         t->offsets[t->count], (long long)bytes->shape[0]);
    for (int i = 0; i < t->count; i++)
        if (t->offsets[i + 1] < t->offsets[i])
            return error_set(err, "%s: tokenizer.offsets falls from %d to %d at token %d", path, t->offsets[i],
                             t->offsets[i + 1], i);
    if (safetensors_find(st, "tokenizer.json")) {
        const SafeTensor *json = tokenizer_tensor(st, "tokenizer.json", DT_U8, err);
        if (!json) return -1;
        t->json = json->data;
        t->json_bytes = json->bytes;
    }
    if (tokenizer_metadata_read(t, st, err) != 0) return -1;
    t->fingerprint = tokenizer_hash(t);
    return 0;
}

/* The bytes of one token to print: their number, and where they are. 0 for a special token or an id that is not one.
 */
static inline size_t tokenizer_piece(const Tokenizer *t, int id, const uint8_t **bytes) {
    *bytes = t->bytes;
    if (id < 0 || id >= t->count || (t->flags[id] & TOKEN_SPECIAL)) return 0;
    *bytes = t->bytes + t->offsets[id];
    return (size_t)(t->offsets[id + 1] - t->offsets[id]);
}

/* The text of n ids as a new NUL-terminated string (the caller frees it) and its length without the NUL. */
static inline void tokenizer_decode(const Tokenizer *t, const int *ids, int n, char **text, size_t *bytes) {
    const uint8_t *piece;
    size_t total = 0, at = 0;
    for (int i = 0; i < n; i++) total += tokenizer_piece(t, ids[i], &piece);
    *text = (char *)xmalloc(total + 1);
    for (int i = 0; i < n; i++) {
        size_t length = tokenizer_piece(t, ids[i], &piece);
        if (length) memcpy(*text + at, piece, length);
        at += length;
    }
    (*text)[at] = '\0';
    if (bytes) *bytes = at;
}

/* Whether two tokenizers give the same text for the ids both know; vocabularies may differ in padding at the end. */
static inline int tokenizer_same(const Tokenizer *a, const Tokenizer *b, Error *err) {
    int count = a->count < b->count ? a->count : b->count;
    for (int i = 0; i < count; i++) {
        int32_t length = a->offsets[i + 1] - a->offsets[i];
        bool same = length == b->offsets[i + 1] - b->offsets[i] && a->flags[i] == b->flags[i];
        if (same && length) same = !memcmp(a->bytes + a->offsets[i], b->bytes + b->offsets[i], (size_t)length);
        if (!same)
            return error_set(err,
                             "the two tokenizers differ first at token %d of %d; distilling needs the same tokenizer",
                             i, count);
    }
    if (a->end != b->end)
        return error_set(err, "the two tokenizers end a text with different tokens: %d and %d", a->end, b->end);
    return 0;
}

/* ---- copying into another file: append the specs and the metadata, then write the data in the same order ---- */

static inline void tokenizer_spec(SafeTensorSpec *s, const char *name, Dtype dtype, int64_t n) {
    memset(s, 0, sizeof *s);
    snprintf(s->name, sizeof s->name, "%s", name);
    s->dtype = dtype;
    s->ndim = 1;
    s->shape[0] = n;
}

/* Fills 3 or 4 specs and returns their number. */
static inline int tokenizer_specs(const Tokenizer *t, SafeTensorSpec specs[4]) {
    tokenizer_spec(&specs[0], "tokenizer.offsets", DT_I32, (int64_t)t->count + 1);
    tokenizer_spec(&specs[1], "tokenizer.bytes", DT_U8, t->offsets[t->count]);
    tokenizer_spec(&specs[2], "tokenizer.flags", DT_U8, t->count);
    if (t->json) tokenizer_spec(&specs[3], "tokenizer.json", DT_U8, (int64_t)t->json_bytes);
    return t->json ? 4 : 3;
}

/* Fills 2 pairs of metadata, valid as long as t, and returns 2. */
static inline int tokenizer_metadata(const Tokenizer *t, const char *keys[2], const char *values[2]) {
    keys[0] = "tokenizer.kind";
    values[0] = t->kind;
    keys[1] = "tokenizer.end";
    values[1] = t->end_text;
    return 2;
}

static inline int tokenizer_write(const Tokenizer *t, SafeTensorsWriter *w, Error *err) {
    if (safetensors_write_data(w, t->offsets, ((size_t)t->count + 1) * sizeof *t->offsets, err) != 0) return -1;
    if (safetensors_write_data(w, t->bytes, (size_t)t->offsets[t->count], err) != 0) return -1;
    if (safetensors_write_data(w, t->flags, (size_t)t->count, err) != 0) return -1;
    return t->json ? safetensors_write_data(w, t->json, t->json_bytes, err) : 0;
}

#endif
