/* The tokenizer that travels inside a model file: the bytes of every token, for turning ids into text. Making ids out
 * of text happens once, in Python, when a dataset is converted; lib/tokenizer_encode.h does it for infer --prefix.
 *
 * Tensors: tokenizer.bytes U8 [total] (all tokens one after another), tokenizer.offsets I32 [V+1], tokenizer.flags
 * U8 [V] (bit 0: special, never printed; bit 1: one byte of a byte fallback), tokenizer.json U8 [n] (optional; as
 * Hugging Face's `tokenizers` writes it). Metadata: tokenizer.kind, tokenizer.end (the id of the end token), and
 * where there is one: tokenizer.begin (the id of the token before every text), tokenizer.strip (how many spaces at
 * the beginning of a text are not printed).
 *
 * Kinds. byte_level_bpe (GPT-2, DeepSeek, Llama 3): tokens are bytes, a character may lie across several of them.
 * byte_fallback_bpe (SentencePiece as in Llama 2): tokens are text, except that characters without a token are spelt
 * with tokens of one byte each. */
#ifndef LIB_TOKENIZER_H
#define LIB_TOKENIZER_H

#include "error.h"

#include "safetensors.h"

enum { TOKEN_SPECIAL = 1, TOKEN_BYTE = 2 };

typedef struct {
    int count;
    const uint8_t *bytes;
    const int32_t *offsets;  // token i is bytes[offsets[i] .. offsets[i+1])
    const uint8_t *flags;
    int end;
    int begin;             // -1: none
    int strip;             // spaces to drop at the beginning of a text
    bool fallback;         // byte_fallback_bpe
    uint64_t fingerprint;  // FNV-1a, 64 bits, over per token: length (4 bytes, little-endian), bytes, flags
    const uint8_t *json;   // NULL when the file has none
    size_t json_bytes;
    char kind[32];
    char end_text[16], begin_text[16], strip_text[16];  // in decimal, as in the metadata; empty: not there
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

/* A number from 0 to `limit` - 1 in the metadata, and its text; absent is fine unless it is needed. */
static inline int tokenizer_number(const SafeTensors *st, const char *key, int limit, bool needed, int *number,
                                   char text[16], Error *err) {
    const char *value = safetensors_metadata(st, key);
    if (!value && !needed) return 0;
    char *rest = NULL;
    long n = value && *value >= '0' && *value <= '9' ? strtol(value, &rest, 10) : -1;
    if (n < 0 || n >= limit || *rest != '\0')
        return error_set(err, "%s: the metadata %s is '%.20s', a number from 0 to %d was expected", st->file.path,
                         key, value ? value : "(missing)", limit - 1);
    *number = (int)n;
    snprintf(text, 16, "%d", (int)n);
    return 0;
}

static inline int tokenizer_metadata_read(Tokenizer *t, const SafeTensors *st, Error *err) {
    const char *path = st->file.path, *kind = safetensors_metadata(st, "tokenizer.kind");
    if (!kind || (strcmp(kind, "byte_level_bpe") != 0 && strcmp(kind, "byte_fallback_bpe") != 0))
        return error_set(err,
                         "%s: the metadata tokenizer.kind is '%.40s', byte_level_bpe or byte_fallback_bpe was "
                         "expected",
                         path, kind ? kind : "(missing)");
    snprintf(t->kind, sizeof t->kind, "%s", kind);
    t->fallback = !strcmp(kind, "byte_fallback_bpe");
    t->begin = -1;
    return tokenizer_number(st, "tokenizer.end", t->count, true, &t->end, t->end_text, err) ||
           tokenizer_number(st, "tokenizer.begin", t->count, false, &t->begin, t->begin_text, err) ||
           tokenizer_number(st, "tokenizer.strip", 1000, false, &t->strip, t->strip_text, err);
}

/* What byte fallback relies on: a byte is one byte, everything else is text. */
static inline int tokenizer_check_fallback(const Tokenizer *t, const char *path, Error *err) {
    for (int i = 0; i < t->count; i++) {
        const uint8_t *s = t->bytes + t->offsets[i];
        size_t n = (size_t)(t->offsets[i + 1] - t->offsets[i]), at = 0;
        if (t->flags[i] & TOKEN_BYTE) {
            if (n != 1)
                return error_set(err, "%s: token %d is marked as one byte of tokenizer.bytes but has %zu", path, i,
                                 n);
            continue;
        }
        while (at < n) {
            int length = utf8_sequence(s + at, n - at);
            if (!length)
                return error_set(err, "%s: token %d in tokenizer.bytes is not valid UTF-8 at its byte %zu", path, i,
                                 at);
            at += (size_t)length;
        }
    }
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
    if (t->fallback && tokenizer_check_fallback(t, path, err) != 0) return -1;
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

/* ---- text from ids as they come ---- */

typedef struct {
    char *data;
    size_t count, capacity;
} TokenText;

/* Gives the bytes of every token as soon as it is certain what they are; what comes out is always whole characters of
 * UTF-8, and all of it together is what decode(ids, skip_special_tokens=True) of `tokenizers` gives. Held back are:
 * byte_level_bpe: the first bytes of a character (at most 3). Bytes that are no character become U+FFFD, one for each
 * longest beginning of a valid sequence (Unicode 15, section 3.9, "maximal subpart"; Rust's from_utf8_lossy).
 * byte_fallback_bpe: a run of byte tokens, until another token ends it. A run is text only when all of it is valid;
 * else every byte of it becomes U+FFFD (the decoder ByteFallback of `tokenizers`), at once when that is certain. */
typedef struct {
    const Tokenizer *t;
    TokenText text, held;
    size_t whole;  // bytes of `held` that are whole characters
    bool broken;   // the run of byte tokens is not valid
    int strip;     // spaces still to drop
} TokenDecoder;

typedef enum { UTF8_WHOLE, UTF8_UNFINISHED, UTF8_WRONG } Utf8State;

/* Looks at the character that begins at s, where n > 0 bytes are known. *length: its bytes, or those of the longest
 * beginning of a character there (at least 1). */
static inline Utf8State utf8_scan(const uint8_t *s, size_t n, size_t *length) {
    uint8_t c = s[0], low = 0x80, high = 0xbf;  // the range of the second byte
    if (c == 0xe0) low = 0xa0;
    if (c == 0xf0) low = 0x90;
    if (c == 0xed) high = 0x9f;
    if (c == 0xf4) high = 0x8f;
    size_t needed = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
    *length = 1;
    if (needed == 0) return UTF8_WRONG;
    for (; *length < needed; ++*length, low = 0x80, high = 0xbf) {
        if (*length >= n) return UTF8_UNFINISHED;
        if (s[*length] < low || s[*length] > high) return UTF8_WRONG;
    }
    return UTF8_WHOLE;
}

static inline void token_text_add(TokenText *to, const void *bytes, size_t n) {
    if (to->capacity - to->count <= n) {
        to->capacity = 2 * (to->count + n) + 64;
        to->data = (char *)xrealloc(to->data, to->capacity);
    }
    if (n) memcpy(to->data + to->count, bytes, n);
    to->count += n;
    to->data[to->count] = '\0';
}

static inline void token_decoder_begin(TokenDecoder *d, const Tokenizer *t) {
    memset(d, 0, sizeof *d);
    d->t = t;
    d->strip = t->strip;
    token_text_add(&d->text, NULL, 0);
    token_text_add(&d->held, NULL, 0);
}

static inline void token_decoder_free(TokenDecoder *d) {
    free(d->text.data);
    free(d->held.data);
    memset(d, 0, sizeof *d);
}

static inline void token_decoder_emit(TokenDecoder *d, const char *bytes, size_t n) {
    for (; n > 0 && d->strip > 0; bytes++, n--, d->strip--) {
        if (*bytes == ' ') continue;
        d->strip = 0;
        break;
    }
    token_text_add(&d->text, bytes, n);
}

static inline void token_decoder_replace(TokenDecoder *d, size_t times) {  // U+FFFD, the replacement character
    while (times-- > 0) token_decoder_emit(d, "\xef\xbf\xbd", 3);
}

/* Emits the characters at the beginning of `held` and keeps what is unfinished. */
static inline void token_decoder_characters(TokenDecoder *d) {
    size_t at = 0, length;
    while (at < d->held.count) {
        Utf8State state = utf8_scan((const uint8_t *)d->held.data + at, d->held.count - at, &length);
        if (state == UTF8_UNFINISHED) break;
        if (state == UTF8_WHOLE)
            token_decoder_emit(d, d->held.data + at, length);
        else
            token_decoder_replace(d, 1);
        at += length;
    }
    memmove(d->held.data, d->held.data + at, d->held.count - at);
    d->held.count -= at;
}

static inline void token_decoder_byte(TokenDecoder *d, uint8_t byte) {
    size_t length;
    token_text_add(&d->held, &byte, 1);
    if (!d->broken) {
        Utf8State state = utf8_scan((const uint8_t *)d->held.data + d->whole, d->held.count - d->whole, &length);
        if (state == UTF8_WHOLE) d->whole = d->held.count;
        d->broken = state == UTF8_WRONG;
    }
    if (!d->broken) return;
    token_decoder_replace(d, d->held.count);
    d->held.count = 0;
}

/* The end of a run of byte tokens, or of a text. */
static inline void token_decoder_flush(TokenDecoder *d) {
    if (!d->t->fallback)
        token_decoder_replace(d, d->held.count > 0);  // the beginning of one character
    else if (d->whole == d->held.count)
        token_decoder_emit(d, d->held.data, d->held.count);
    else
        token_decoder_replace(d, d->held.count);
    d->held.count = d->whole = 0;
    d->broken = false;
}

static inline void token_decoder_add(TokenDecoder *d, int id) {
    const Tokenizer *t = d->t;
    const uint8_t *piece;
    size_t n = tokenizer_piece(t, id, &piece);
    if (id < 0 || id >= t->count || (t->flags[id] & TOKEN_SPECIAL)) return;
    if (!t->fallback) {
        token_text_add(&d->held, piece, n);
        token_decoder_characters(d);
    } else if (t->flags[id] & TOKEN_BYTE) {
        token_decoder_byte(d, piece[0]);
    } else {
        token_decoder_flush(d);
        token_decoder_emit(d, (const char *)piece, n);
    }
}

/* The bytes that became certain with this id: how many, and where they are until the next call. */
static inline size_t token_decoder_next(TokenDecoder *d, int id, const char **text) {
    d->text.count = 0;
    token_decoder_add(d, id);
    *text = d->text.data;
    return d->text.count;
}

/* The bytes that were still held back; the decoder is then ready for another text. */
static inline size_t token_decoder_end(TokenDecoder *d, const char **text) {
    d->text.count = 0;
    token_decoder_flush(d);
    d->strip = d->t->strip;
    *text = d->text.data;
    return d->text.count;
}

/* The text of n ids as a new NUL-terminated string (the caller frees it) and its length without the NUL. */
static inline void tokenizer_decode(const Tokenizer *t, const int *ids, int n, char **text, size_t *bytes) {
    TokenDecoder d;
    token_decoder_begin(&d, t);
    for (int i = 0; i < n; i++) token_decoder_add(&d, ids[i]);
    token_decoder_flush(&d);
    *text = d.text.data;
    (*text)[d.text.count] = '\0';
    if (bytes) *bytes = d.text.count;
    free(d.held.data);
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
    if (a->begin != b->begin)
        return error_set(err, "the two tokenizers begin a text with different tokens: %d and %d (-1: none)", a->begin,
                         b->begin);
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

/* Fills 2 to 4 pairs of metadata, valid as long as t, and returns their number. */
static inline int tokenizer_metadata(const Tokenizer *t, const char **keys, const char **values) {
    const char *const names[] = {"tokenizer.kind", "tokenizer.end", "tokenizer.begin", "tokenizer.strip"};
    const char *const texts[] = {t->kind, t->end_text, t->begin_text, t->strip_text};
    int n = 0;
    for (int i = 0; i < 4; i++) {
        if (!*texts[i]) continue;
        keys[n] = names[i];
        values[n++] = texts[i];
    }
    return n;
}

static inline int tokenizer_write(const Tokenizer *t, SafeTensorsWriter *w, Error *err) {
    if (safetensors_write_data(w, t->offsets, ((size_t)t->count + 1) * sizeof *t->offsets, err) != 0) return -1;
    if (safetensors_write_data(w, t->bytes, (size_t)t->offsets[t->count], err) != 0) return -1;
    if (safetensors_write_data(w, t->flags, (size_t)t->count, err) != 0) return -1;
    return t->json ? safetensors_write_data(w, t->json, t->json_bytes, err) : 0;
}

#endif
