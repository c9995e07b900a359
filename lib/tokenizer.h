/* The tokenizer inside a model file: the bytes of every token, and decoding of token ids into text. Datasets are
 * encoded in Python when they are converted; lib/tokenizer_encode.h encodes the text of infer --prefix.
 *
 * Tensors: tokenizer.bytes U8 [total] (all tokens one after another), tokenizer.offsets I32 [V+1], tokenizer.flags
 * U8 [V] (bit 0: special token, never printed; bit 1: a byte token of byte fallback), tokenizer.json U8 [n]
 * (optional; as Hugging Face's `tokenizers` writes it). Metadata: tokenizer.kind, tokenizer.end (id of the end
 * token), and optionally tokenizer.before_image and tokenizer.after_image ("4,17": ids of the markers around the image,
 * which precede the text of every sequence), tokenizer.more_ends ("7,9": ids of other tokens that end a text when they are
 * generated), tokenizer.begin (id of the token that begins every text), tokenizer.strip (number of leading spaces of a text
 * that are not printed).
 *
 * Kinds: in byte_level_bpe (GPT-2, DeepSeek, Llama 3) tokens are byte strings, and a character may span several
 * tokens. In byte_fallback_bpe (SentencePiece as in Llama 2) tokens are text, except that characters without a token
 * are encoded as one token per byte. */
#ifndef LIB_TOKENIZER_H
#define LIB_TOKENIZER_H

#include "error.h"

#include "hash.h"
#include "safetensors.h"
#include "utf8.h"

enum { TOKEN_SPECIAL = 1, TOKEN_BYTE = 2, TOKENIZER_MORE_ENDS = 15, TOKENIZER_MARKERS = 256 };

/* Markers beside the image. */
typedef struct {
    int ids[TOKENIZER_MARKERS], count;
    char text[12 * TOKENIZER_MARKERS];  // decimal, as in the metadata; empty: absent
} Markers;

typedef struct {
    int count;  // vocabulary size
    const uint8_t *bytes;
    const int32_t *offsets;  // token i is bytes[offsets[i] .. offsets[i+1])
    const uint8_t *flags;
    int end;                                             // id of the end token, with which the texts of a dataset end
    int more_ends[TOKENIZER_MORE_ENDS], more_end_count;  // other ids that end a generated text
    int begin;                                           // id of the token that begins every text, -1: none
    Markers before_image, after_image;
    int strip;                                           // leading spaces of a text that are dropped
    bool byte_fallback;                                  // whether kind is byte_fallback_bpe
    uint64_t fingerprint;                                // see tokenizer_hash
    const uint8_t *json;                                 // tokenizer.json, NULL: none
    size_t json_bytes;
    char kind[32];
    char task[16];  // what its texts are, tikz or formula; empty: the file does not say
    char end_text[16], begin_text[16], strip_text[16];  // decimal, as in the metadata; empty: absent
    char more_ends_text[12 * TOKENIZER_MORE_ENDS];
} Tokenizer;

/* The one-dimensional tensor of that name and type, or NULL with a sentence in err. */
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

/* The fingerprint of a tokenizer: FNV-1a over length (4 bytes, little-endian), bytes and flags of every token. */
static inline uint64_t tokenizer_hash(const Tokenizer *t) {
    uint64_t hash = HASH_BEGIN;
    for (int i = 0; i < t->count; i++) {
        uint32_t length = t->offsets[i + 1] - t->offsets[i];
        hash = hash_bytes(hash, &length, sizeof length);
        hash = hash_bytes(hash, t->bytes + t->offsets[i], length);
        hash = hash_bytes(hash, &t->flags[i], 1);
    }
    return hash;
}

/* Reads a number from 0 to `limit` - 1 from the metadata, and its text. It may be absent unless `needed`. */
static inline int tokenizer_number(const SafeTensors *st, const char *key, int limit, bool needed, int *number,
                                   char text[16], Error *err) {
    const char *value = safetensors_metadata(st, key);
    if (!value && !needed) return 0;
    char *rest = NULL;
    long n = value && *value >= '0' && *value <= '9' ? strtol(value, &rest, 10) : -1;
    if (n < 0 || n >= limit || *rest != '\0')
        return error_set(err, "%s: the metadata %s is '%.20s', a number from 0 to %d was expected", st->file.path,
                         key, value ? value : "(missing)", limit - 1);
    *number = n;
    snprintf(text, 16, "%d", (int)n);
    return 0;
}

/* Reads up to `most` ids with a comma between them, and their text [size], from the metadata. They may be absent. */
static inline int tokenizer_ids(const Tokenizer *t, const SafeTensors *st, const char *key, int *ids, int *count, int most,
                                char *text, size_t size, Error *err) {
    const char *value = safetensors_metadata(st, key), *at = value;
    for (bool more = value != NULL; more;) {
        char *rest = NULL;
        long id = *at >= '0' && *at <= '9' ? strtol(at, &rest, 10) : -1;
        if (id < 0 || id >= t->count || (*rest != ',' && *rest != '\0') || *count == most)
            return error_set(err,
                             "%s: the metadata %s is '%.40s', up to %d numbers from 0 to %d with commas between them were "
                             "expected",
                             st->file.path, key, value, most, t->count - 1);
        size_t used = strlen(text);
        snprintf(text + used, size - used, "%s%d", used ? "," : "", (int)id);
        ids[(*count)++] = (int)id;
        more = *rest == ',';
        at = rest + 1;
    }
    return 0;
}

static inline int tokenizer_markers_read(const Tokenizer *t, Markers *m, const char *key, const SafeTensors *st, Error *err) {
    return tokenizer_ids(t, st, key, m->ids, &m->count, TOKENIZER_MARKERS, m->text, sizeof m->text, err);
}

/* Reads what the texts are. */
static inline int tokenizer_task_read(Tokenizer *t, const SafeTensors *st, Error *err) {
    const char *task = safetensors_metadata(st, "tokenizer.task");
    if (!task) return 0;
    if (strcmp(task, "formula") != 0 && strcmp(task, "tikz") != 0)
        return error_set(err, "%s: the metadata tokenizer.task is '%.40s', tikz or formula was expected", st->file.path,
                         task);
    snprintf(t->task, sizeof t->task, "%s", task);
    return 0;
}

static inline int tokenizer_metadata_read(Tokenizer *t, const SafeTensors *st, Error *err) {
    const char *path = st->file.path, *kind = safetensors_metadata(st, "tokenizer.kind");
    if (!kind || (strcmp(kind, "byte_level_bpe") != 0 && strcmp(kind, "byte_fallback_bpe") != 0))
        return error_set(err,
                         "%s: the metadata tokenizer.kind is '%.40s', byte_level_bpe or byte_fallback_bpe was expected",
                         path, kind ? kind : "(missing)");
    snprintf(t->kind, sizeof t->kind, "%s", kind);
    t->byte_fallback = !strcmp(kind, "byte_fallback_bpe");
    t->begin = -1;
    return tokenizer_number(st, "tokenizer.end", t->count, true, &t->end, t->end_text, err) ||
           tokenizer_ids(t, st, "tokenizer.more_ends", t->more_ends, &t->more_end_count, TOKENIZER_MORE_ENDS,
                         t->more_ends_text, sizeof t->more_ends_text, err) ||
           tokenizer_markers_read(t, &t->before_image, "tokenizer.before_image", st, err) ||
           tokenizer_markers_read(t, &t->after_image, "tokenizer.after_image", st, err) ||
           tokenizer_number(st, "tokenizer.begin", t->count, false, &t->begin, t->begin_text, err) ||
           tokenizer_number(st, "tokenizer.strip", 1000, false, &t->strip, t->strip_text, err) ||
           tokenizer_task_read(t, st, err);
}

/* Checks the tokens of byte_fallback_bpe: a byte token is one byte, any other token is valid UTF-8. */
static inline int tokenizer_check_fallback(const Tokenizer *t, const char *path, Error *err) {
    for (int i = 0; i < t->count; i++) {
        const uint8_t *s = t->bytes + t->offsets[i];
        size_t n = t->offsets[i + 1] - t->offsets[i], at = 0;
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
            at += length;
        }
    }
    return 0;
}

/* Loads the tokenizer of a model file. It points into st, which must stay open. Everything is checked here, so that
 * decoding needs no checks. */
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
    t->offsets = (const void *)offsets->data;
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
    if (t->byte_fallback && tokenizer_check_fallback(t, path, err) != 0) return -1;
    t->fingerprint = tokenizer_hash(t);
    return 0;
}

/* The number of markers around the image. */
static inline int tokenizer_markers(const Tokenizer *t) { return t->before_image.count + t->after_image.count; }

/* What precedes the text: the ids of the markers around `image_tokens` times -1. */
static inline void tokenizer_prompt(const Tokenizer *t, int *ids, int image_tokens) {
    const Markers *before = &t->before_image, *after = &t->after_image;
    for (int i = 0; i < before->count; i++) *ids++ = before->ids[i];
    for (int i = 0; i < image_tokens; i++) *ids++ = -1;
    for (int i = 0; i < after->count; i++) *ids++ = after->ids[i];
}

/* Checks that image and markers leave room for text in so many positions. path: where the tokenizer is from. */
static inline int tokenizer_fits(const Tokenizer *t, int image_tokens, int positions, const char *path, Error *err) {
    if (image_tokens + tokenizer_markers(t) < positions) return 0;
    return error_set(err, "%s: %d positions leave no room for text after %d image tokens and %d markers around them", path,
                     positions, image_tokens, tokenizer_markers(t));
}

/* Whether a text ends where this token is generated. */
static inline bool tokenizer_ends(const Tokenizer *t, int id) {
    bool ends = id == t->end;
    for (int i = 0; i < t->more_end_count; i++) ends |= id == t->more_ends[i];
    return ends;
}

/* The bytes of one token as printed: sets *bytes and returns their number. 0 for a special token or an invalid id. */
static inline size_t tokenizer_piece(const Tokenizer *t, int id, const uint8_t **bytes) {
    *bytes = t->bytes;
    if (id < 0 || id >= t->count || (t->flags[id] & TOKEN_SPECIAL)) return 0;
    *bytes = t->bytes + t->offsets[id];
    return t->offsets[id + 1] - t->offsets[id];
}

/* ---- streaming decoder ---- */

/* A growing NUL-terminated string. */
typedef struct {
    char *data;
    size_t count, capacity;
} TokenText;

/* Decodes token ids into text, one id at a time. Each call returns the complete UTF-8 characters that have become
 * known; together they are what decode(ids, skip_special_tokens=True) of `tokenizers` returns, except that an added
 * token is its own text (`tokenizers` takes its letters for bytes in byte_level_bpe). Bytes that are not yet
 * decided are kept in `pending`:
 *
 *   byte_level_bpe     an incomplete character, at most 3 bytes. Invalid bytes become U+FFFD, one for each maximal
 *                      subpart of a valid sequence (Unicode 15, section 3.9; as Rust's from_utf8_lossy).
 *   byte_fallback_bpe  a run of byte tokens, until another token ends it. A run that is not valid UTF-8 as a whole
 *                      becomes one U+FFFD per byte (as the decoder ByteFallback of `tokenizers`), as soon as it is
 *                      known to be invalid. */
typedef struct {
    const Tokenizer *t;
    TokenText text, pending;
    size_t complete;  // bytes of `pending` that are complete characters
    bool invalid;     // the run of byte tokens is not valid UTF-8
    int strip;        // leading spaces still to drop
} TokenDecoder;

static inline void token_text_add(TokenText *to, const void *bytes, size_t n) {
    if (to->capacity - to->count <= n) {
        to->capacity = 2 * (to->count + n) + 64;
        to->data = xrealloc(to->data, to->capacity);
    }
    if (n) memcpy(to->data + to->count, bytes, n);
    to->count += n;
    to->data[to->count] = '\0';
}

static inline void token_decoder_begin(TokenDecoder *d, const Tokenizer *t) {
    *d = (TokenDecoder){.t = t, .strip = t->strip};
    token_text_add(&d->text, NULL, 0);
    token_text_add(&d->pending, NULL, 0);
}

static inline void token_decoder_free(TokenDecoder *d) {
    free(d->text.data);
    free(d->pending.data);
    memset(d, 0, sizeof *d);
}

/* Appends bytes to the decoded text, except leading spaces that are to be dropped. */
static inline void token_decoder_emit(TokenDecoder *d, const char *bytes, size_t n) {
    for (; n > 0 && d->strip > 0; bytes++, n--, d->strip--) {
        if (*bytes == ' ') continue;
        d->strip = 0;
        break;
    }
    token_text_add(&d->text, bytes, n);
}

/* Appends U+FFFD, the replacement character, `times` times. */
static inline void token_decoder_emit_replacement(TokenDecoder *d, size_t times) {
    while (times-- > 0) token_decoder_emit(d, "\xef\xbf\xbd", 3);
}

/* Byte-level: emits the complete characters at the beginning of `pending`. */
static inline void token_decoder_characters(TokenDecoder *d) {
    size_t at = 0, length;
    while (at < d->pending.count) {
        Utf8State state = utf8_scan((const uint8_t *)d->pending.data + at, d->pending.count - at, &length);
        if (state == UTF8_INCOMPLETE) break;
        if (state == UTF8_COMPLETE)
            token_decoder_emit(d, d->pending.data + at, length);
        else
            token_decoder_emit_replacement(d, 1);
        at += length;
    }
    memmove(d->pending.data, d->pending.data + at, d->pending.count - at);
    d->pending.count -= at;
}

/* Byte fallback: appends a byte token to the current run. */
static inline void token_decoder_byte(TokenDecoder *d, uint8_t byte) {
    size_t length;
    token_text_add(&d->pending, &byte, 1);
    if (!d->invalid) {
        Utf8State state =
            utf8_scan((const uint8_t *)d->pending.data + d->complete, d->pending.count - d->complete, &length);
        if (state == UTF8_COMPLETE) d->complete = d->pending.count;
        d->invalid = state == UTF8_INVALID;
    }
    if (!d->invalid) return;
    token_decoder_emit_replacement(d, d->pending.count);
    d->pending.count = 0;
}

/* Emits the pending bytes, at the end of a run of byte tokens or of the sequence. */
static inline void token_decoder_flush(TokenDecoder *d) {
    if (!d->t->byte_fallback)
        token_decoder_emit_replacement(d, d->pending.count > 0);  // one incomplete character
    else if (d->complete == d->pending.count)
        token_decoder_emit(d, d->pending.data, d->pending.count);
    else
        token_decoder_emit_replacement(d, d->pending.count);
    d->pending.count = d->complete = 0;
    d->invalid = false;
}

static inline void token_decoder_add(TokenDecoder *d, int id) {
    const Tokenizer *t = d->t;
    const uint8_t *piece;
    size_t n = tokenizer_piece(t, id, &piece);
    if (id < 0 || id >= t->count || (t->flags[id] & TOKEN_SPECIAL)) return;
    if (!t->byte_fallback) {
        token_text_add(&d->pending, piece, n);
        token_decoder_characters(d);
    } else if (t->flags[id] & TOKEN_BYTE) {
        token_decoder_byte(d, piece[0]);
    } else {
        token_decoder_flush(d);
        token_decoder_emit(d, (const char *)piece, n);
    }
}

/* Decodes one id. Returns the number of bytes that have become known, and sets *text to them; they are valid until
 * the next call. */
static inline size_t token_decoder_next(TokenDecoder *d, int id, const char **text) {
    d->text.count = 0;
    token_decoder_add(d, id);
    *text = d->text.data;
    return d->text.count;
}

/* Ends the sequence: returns the bytes that were still pending. The decoder can then be used for another sequence. */
static inline size_t token_decoder_end(TokenDecoder *d, const char **text) {
    d->text.count = 0;
    token_decoder_flush(d);
    d->strip = d->t->strip;
    *text = d->text.data;
    return d->text.count;
}

/* Decodes n ids into a new NUL-terminated string, which the caller frees. *bytes (if not NULL): its length. */
static inline void tokenizer_decode(const Tokenizer *t, const int *ids, int n, char **text, size_t *bytes) {
    TokenDecoder d;
    token_decoder_begin(&d, t);
    for (int i = 0; i < n; i++) token_decoder_add(&d, ids[i]);
    token_decoder_flush(&d);
    *text = d.text.data;
    (*text)[d.text.count] = '\0';
    if (bytes) *bytes = d.text.count;
    free(d.pending.data);
}

/* Checks that two tokenizers have the same tokens; their vocabularies may differ in length, by padding at the end.
 * Returns 0, or -1 with a sentence that says where they differ. */
static inline int tokenizer_same(const Tokenizer *a, const Tokenizer *b, Error *err) {
    int count = a->count < b->count ? a->count : b->count;
    for (int i = 0; i < count; i++) {
        int32_t length = a->offsets[i + 1] - a->offsets[i];
        bool same = length == b->offsets[i + 1] - b->offsets[i] && a->flags[i] == b->flags[i];
        if (same && length) same = !memcmp(a->bytes + a->offsets[i], b->bytes + b->offsets[i], length);
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

/* ---- copying into another file ---- */

/* To copy a tokenizer, append its specs and metadata to those of the file, then write its data in the same order. */

static inline void tokenizer_spec(SafeTensorSpec *s, const char *name, Dtype dtype, int64_t n) {
    *s = (SafeTensorSpec){.dtype = dtype, .ndim = 1, .shape = {n}};
    snprintf(s->name, sizeof s->name, "%s", name);
}

/* Fills 3 or 4 specs and returns their number. */
static inline int tokenizer_specs(const Tokenizer *t, SafeTensorSpec specs[4]) {
    tokenizer_spec(&specs[0], "tokenizer.offsets", DT_I32, t->count + 1);
    tokenizer_spec(&specs[1], "tokenizer.bytes", DT_U8, t->offsets[t->count]);
    tokenizer_spec(&specs[2], "tokenizer.flags", DT_U8, t->count);
    if (t->json) tokenizer_spec(&specs[3], "tokenizer.json", DT_U8, t->json_bytes);
    return t->json ? 4 : 3;
}

/* Fills 2 to TOKENIZER_METADATA keys and values, which are valid as long as t, and returns their number. */
enum { TOKENIZER_METADATA = 8 };
static inline int tokenizer_metadata(const Tokenizer *t, const char **keys, const char **values) {
    const char *const names[] = {"tokenizer.kind", "tokenizer.end", "tokenizer.more_ends", "tokenizer.begin",
                                 "tokenizer.strip", "tokenizer.task", "tokenizer.before_image",
                                 "tokenizer.after_image"};
    const char *const texts[] = {t->kind, t->end_text, t->more_ends_text, t->begin_text, t->strip_text,
                                 t->task, t->before_image.text, t->after_image.text};
    int n = 0;
    for (int i = 0; i < TOKENIZER_METADATA; i++) {
        if (!*texts[i]) continue;
        keys[n] = names[i];
        values[n++] = texts[i];
    }
    return n;
}

/* Writes the data of the tensors of tokenizer_specs. */
static inline int tokenizer_write(const Tokenizer *t, SafeTensorsWriter *w, Error *err) {
    if (safetensors_write_data(w, t->offsets, (t->count + 1) * sizeof *t->offsets, err) != 0) return -1;
    if (safetensors_write_data(w, t->bytes, t->offsets[t->count], err) != 0) return -1;
    if (safetensors_write_data(w, t->flags, t->count, err) != 0) return -1;
    return t->json ? safetensors_write_data(w, t->json, t->json_bytes, err) : 0;
}

#endif
