/* Encodes text into token ids with the tokenizer.json inside a model file. The result equals that of
 * encode(text, add_special_tokens=False) of `tokenizers`; a tokenizer for which it could differ is rejected with a
 * sentence.
 *
 * The steps are those of `tokenizers`: added tokens are cut out of the text; the pieces between them are normalized
 * and split into words by the pre-tokenizer; each word goes through byte pair encoding (lib/bpe.h). */
#ifndef LIB_TOKENIZER_ENCODE_H
#define LIB_TOKENIZER_ENCODE_H

#include "error.h"

#include "bpe.h"
#include "regex_ascii.h"
#include "tokenizer.h"

enum { ENCODER_MAX_STEPS = 16 };

typedef struct {
    const char *text;
    size_t bytes;
    int id;
    bool normalized, single_word, lstrip, rstrip;
} AddedToken;

/* A step of the normalizer: "Prepend" puts `to` before every non-empty piece, "Replace" replaces every `from` by
 * `to`. */
typedef struct {
    const char *from, *to;  // from is NULL for Prepend
} Normalizer;

typedef enum { SPLIT_REGEX, SPLIT_STRING, SPLIT_DIGITS } SplitKind;

/* What becomes of a match (SplitDelimiterBehavior of `tokenizers`): removed, a piece of its own, joined to the text
 * before or after it, or joined to adjacent matches. */
typedef enum { CUT_REMOVED, CUT_ISOLATED, CUT_MERGED_PREVIOUS, CUT_MERGED_NEXT, CUT_CONTIGUOUS } CutBehaviour;

/* A step of the pre-tokenizer: splits every piece at the matches of a pattern. */
typedef struct {
    SplitKind kind;
    CutBehaviour behaviour;
    bool invert;
    Regex regex;       // of SPLIT_REGEX
    const char *text;  // of SPLIT_STRING
} SplitStep;

typedef enum { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } PrependScheme;

typedef struct {
    const char *name;  // "the tokenizer.json inside FILE", for error messages
    Json json;
    Bpe bpe;
    AddedToken *added;
    int added_count;
    Normalizer normalizers[ENCODER_MAX_STEPS];
    int normalizer_count;
    const char *ascii_only;  // the reason why only ASCII text can be encoded, NULL: any text can
    SplitStep *steps;        // [ENCODER_MAX_STEPS]
    int step_count;
    bool metaspace, metaspace_split;  // Metaspace: replaces spaces by `space`
    const char *space;
    PrependScheme prepend;
    bool byte_level, prefix_space;  // ByteLevel: maps bytes to the characters of GPT-2's alphabet
    bool byte_level_regex;          // the last step is GPT-2's regular expression
} Encoder;

/* A piece of the text, or an added token. */
typedef struct {
    const char *text;
    size_t bytes;
    int id;      // id of an added token, -1: text
    bool first;  // whether it is the beginning of the text
} TextPiece;

typedef struct {
    TextPiece *items;
    int count, capacity;
} TextPieces;

/* The state of encoding one text: its pieces, the list that a step builds to replace them, and the strings that steps
 * have allocated. */
typedef struct {
    const Encoder *e;
    TextPieces pieces, next;
    char **strings;
    int string_count, string_capacity;
    Error *err;
} Encoding;

/* ---- reading tokenizer.json ---- */

/* JSON value number v; a null value if v is -1. */
static inline const JsonValue *encoder_value(const Encoder *e, int v) {
    static const JsonValue none = {.type = JSON_NULL, .child = -1, .next = -1};
    return v >= 0 ? &e->json.values[v] : &none;
}

static inline const char *encoder_type(const Encoder *e, int v) {
    const char *type = json_get_string(&e->json, v, "type");
    return type ? type : "(without a type)";
}

static inline int encoder_refuse(const Encoder *e, const char *part, const char *what, Error *err) {
    return error_set(err, "%s: the %s %.60s is not supported; leave out --prefix", e->name, part, what);
}

static inline int encoder_read_added(Encoder *e, int vocab_size, Error *err) {
    int list = json_find(&e->json, 0, "added_tokens");
    if (encoder_value(e, list)->type != JSON_ARRAY) return 0;
    e->added = xcalloc(encoder_value(e, list)->count, sizeof *e->added);
    for (int v = encoder_value(e, list)->child; v >= 0; v = e->json.values[v].next) {
        const char *text = json_get_string(&e->json, v, "content");
        const JsonValue *id = encoder_value(e, json_find(&e->json, v, "id"));
        if (!text || !id->is_integer || id->integer < 0 || id->integer >= vocab_size)
            return error_set(err, "%s: an added token has no content or no id from 0 to %d", e->name, vocab_size - 1);
        if (!*text) continue;
        int known = bpe_token(&e->bpe, text, strlen(text));
        if (known >= 0 && known != id->integer)
            return error_set(err, "%s: the added token '%.40s' has the id %lld, but %d in the vocabulary", e->name,
                             text, (long long)id->integer, known);
        AddedToken *t = &e->added[e->added_count++];
        *t = (AddedToken){.text = text,
                          .bytes = strlen(text),
                          .id = id->integer,
                          .normalized = json_get_bool(&e->json, v, "normalized", true),
                          .single_word = json_get_bool(&e->json, v, "single_word", false),
                          .lstrip = json_get_bool(&e->json, v, "lstrip", false),
                          .rstrip = json_get_bool(&e->json, v, "rstrip", false)};
        if (t->single_word || t->lstrip || t->rstrip)
            e->ascii_only = "added tokens that look at the text beside them";
    }
    return 0;
}

/* Reads a normalizer, or a Sequence of them. */
static inline int encoder_read_normalizer(Encoder *e, int v, Error *err) {
    static const char *const composing[] = {"NFC", "NFD", "NFKC", "NFKD"};  // they do not change ASCII
    if (encoder_value(e, v)->type == JSON_NULL) return 0;
    const char *type = encoder_type(e, v);
    for (int i = 0; i < 4; i++) {
        if (strcmp(type, composing[i]) != 0) continue;
        e->ascii_only = "a normalizer of Unicode";
        return 0;
    }
    if (!strcmp(type, "Sequence")) {
        int list = json_find(&e->json, v, "normalizers");
        for (int i = encoder_value(e, list)->child; i >= 0; i = e->json.values[i].next)
            if (encoder_read_normalizer(e, i, err) != 0) return -1;
        return 0;
    }
    bool prepend = !strcmp(type, "Prepend");
    if (!prepend && strcmp(type, "Replace") != 0) return encoder_refuse(e, "normalizer", type, err);
    if (e->normalizer_count == ENCODER_MAX_STEPS)
        return error_set(err, "%s: the normalizer has more than %d steps", e->name, ENCODER_MAX_STEPS);
    Normalizer *n = &e->normalizers[e->normalizer_count++];
    n->from = prepend ? NULL : json_get_string(&e->json, json_find(&e->json, v, "pattern"), "String");
    n->to = json_get_string(&e->json, v, prepend ? "prepend" : "content");
    if (!n->to || (!prepend && (!n->from || !*n->from)))
        return encoder_refuse(e, "normalizer", "Replace with a regular expression", err);
    return 0;
}

static inline SplitStep *encoder_new_step(Encoder *e, SplitKind kind, CutBehaviour behaviour, Error *err) {
    if (e->step_count == ENCODER_MAX_STEPS) {
        error_set(err, "%s: the pre-tokenizer has more than %d steps", e->name, ENCODER_MAX_STEPS);
        return NULL;
    }
    SplitStep *s = &e->steps[e->step_count++];
    *s = (SplitStep){.kind = kind, .behaviour = behaviour};
    if (kind != SPLIT_STRING) e->ascii_only = "a pre-tokenizer that sorts characters by their Unicode properties";
    return s;
}

static inline int encoder_read_split(Encoder *e, int v, Error *err) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    int pattern = json_find(&e->json, v, "pattern"), behaviour = 0;
    const char *name = json_get_string(&e->json, v, "behavior"), *regex = json_get_string(&e->json, pattern, "Regex");
    const char *text = json_get_string(&e->json, pattern, "String");
    while (behaviour < 5 && (!name || strcmp(name, names[behaviour]) != 0)) behaviour++;
    if (behaviour == 5 || (!regex && (!text || !*text)))
        return encoder_refuse(e, "pre-tokenizer", "Split without a pattern or with an unknown behavior", err);
    SplitStep *s = encoder_new_step(e, regex ? SPLIT_REGEX : SPLIT_STRING, (CutBehaviour)behaviour, err);
    if (!s) return -1;
    s->invert = json_get_bool(&e->json, v, "invert", false);
    s->text = text;
    return regex ? regex_parse(&s->regex, regex, err) : 0;
}

static inline int encoder_read_byte_level(Encoder *e, int v, Error *err) {
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    e->byte_level = true;
    e->prefix_space = json_get_bool(&e->json, v, "add_prefix_space", true);
    if (!json_get_bool(&e->json, v, "use_regex", true)) return 0;
    e->byte_level_regex = true;
    SplitStep *s = encoder_new_step(e, SPLIT_REGEX, CUT_ISOLATED, err);
    return s ? regex_parse(&s->regex, gpt2, err) : -1;
}

static inline int encoder_read_metaspace(Encoder *e, int v, Error *err) {
    static const char *const schemes[] = {"never", "first", "always"};
    const char *scheme = json_get_string(&e->json, v, "prepend_scheme");
    e->prepend = PREPEND_ALWAYS;
    for (int i = 0; scheme && i < 3; i++)
        if (!strcmp(scheme, schemes[i])) e->prepend = (PrependScheme)i;
    if (!json_get_bool(&e->json, v, "add_prefix_space", true) && e->prepend != PREPEND_NEVER)
        return encoder_refuse(e, "pre-tokenizer", "Metaspace with add_prefix_space against its prepend_scheme", err);
    e->space = json_get_string(&e->json, v, "replacement");
    if (!e->space || !*e->space) return encoder_refuse(e, "pre-tokenizer", "Metaspace without a replacement", err);
    e->metaspace = true;
    e->metaspace_split = json_get_bool(&e->json, v, "split", true);
    return 0;
}

/* Reads a pre-tokenizer, or a Sequence of them. No other step may follow ByteLevel, and Metaspace must be alone. */
static inline int encoder_read_pre_tokenizer(Encoder *e, int v, Error *err) {
    if (encoder_value(e, v)->type == JSON_NULL) return 0;
    const char *type = encoder_type(e, v);
    if (!strcmp(type, "Sequence")) {
        int list = json_find(&e->json, v, "pretokenizers");
        for (int i = encoder_value(e, list)->child; i >= 0; i = e->json.values[i].next)
            if (encoder_read_pre_tokenizer(e, i, err) != 0) return -1;
        return 0;
    }
    if (e->byte_level) return encoder_refuse(e, "pre-tokenizer behind ByteLevel", type, err);
    if (e->metaspace) return encoder_refuse(e, "pre-tokenizer behind Metaspace", type, err);
    if (!strcmp(type, "Split")) return encoder_read_split(e, v, err);
    if (!strcmp(type, "ByteLevel")) return encoder_read_byte_level(e, v, err);
    if (!strcmp(type, "Digits")) {
        bool single = json_get_bool(&e->json, v, "individual_digits", false);
        return encoder_new_step(e, SPLIT_DIGITS, single ? CUT_ISOLATED : CUT_CONTIGUOUS, err) ? 0 : -1;
    }
    if (strcmp(type, "Metaspace") != 0) return encoder_refuse(e, "pre-tokenizer", type, err);
    if (e->step_count || e->normalizer_count)
        return encoder_refuse(e, "pre-tokenizer", "Metaspace behind other steps", err);
    return encoder_read_metaspace(e, v, err);
}

static inline void encoder_close(Encoder *e) {
    bpe_close(&e->bpe);
    json_free(&e->json);
    free(e->added);
    free(e->steps);
    memset(e, 0, sizeof *e);
}

/* Reads the tokenizer.json of t. `name` says in error messages where it is, and must stay valid, as must t. To be
 * closed with encoder_close, also after an error. */
static inline int encoder_open(Encoder *e, const Tokenizer *t, const char *name, Error *err) {
    *e = (Encoder){.name = name};
    if (!t->json)
        return error_set(err, "%s is missing, so that text cannot be encoded; convert the model again", name);
    if (json_parse(&e->json, (const char *)t->json, t->json_bytes, name, err) != 0) return -1;
    if (e->json.values[0].type != JSON_OBJECT || json_find(&e->json, 0, "model") < 0)
        return error_set(err, "%s has no model, so that text cannot be encoded; convert the model again", name);
    e->steps = xcalloc(ENCODER_MAX_STEPS, sizeof *e->steps);
    if (bpe_open(&e->bpe, &e->json, json_find(&e->json, 0, "model"), t->count, name, err) != 0) return -1;
    if (encoder_read_added(e, t->count, err) != 0) return -1;
    if (encoder_read_normalizer(e, json_find(&e->json, 0, "normalizer"), err) != 0) return -1;
    return encoder_read_pre_tokenizer(e, json_find(&e->json, 0, "pre_tokenizer"), err);
}

/* ---- pieces ---- */

static inline void pieces_add(TextPieces *list, const char *text, size_t bytes, int id, bool first) {
    if (bytes == 0 && id < 0) return;  // as in `tokenizers`, empty pieces are dropped
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->items = xrealloc(list->items, list->capacity * sizeof *list->items);
    }
    list->items[list->count++] = (TextPiece){text, bytes, id, first};
}

/* Ends a step: the pieces in g->next replace those in g->pieces. */
static inline void encoding_end_step(Encoding *g) {
    TextPieces old = g->pieces;
    g->pieces = g->next;
    g->next = old;
    g->next.count = 0;
}

/* Replaces the text of a piece; the encoding frees the new text at the end. */
static inline void encoding_set(Encoding *g, TextPiece *p, char *text) {
    if (g->string_count == g->string_capacity) {
        g->string_capacity = g->string_capacity ? 2 * g->string_capacity : 64;
        g->strings = xrealloc(g->strings, g->string_capacity * sizeof *g->strings);
    }
    g->strings[g->string_count++] = text;
    p->text = text;
    p->bytes = strlen(text);
}

/* Replaces every `from` in a piece by `to`. */
static inline void encoding_replace(Encoding *g, TextPiece *p, const char *from, const char *to) {
    size_t used = 0, from_bytes = strlen(from), to_bytes = strlen(to);
    char *out = xmalloc(p->bytes * (to_bytes > 0 ? to_bytes : 1) + 1);
    for (size_t i = 0; i < p->bytes;) {
        bool found = p->bytes - i >= from_bytes && !memcmp(p->text + i, from, from_bytes);
        memcpy(out + used, found ? to : p->text + i, found ? to_bytes : 1);
        used += found ? to_bytes : 1;
        i += found ? from_bytes : 1;
    }
    out[used] = '\0';
    encoding_set(g, p, out);
}

static inline void encoding_prepend(Encoding *g, TextPiece *p, const char *text) {
    encoding_set(g, p, format_string("%s%.*s", text, (int)p->bytes, p->text));
}

static inline bool piece_begins(const TextPiece *p, const char *text) {
    size_t n = strlen(text);
    return p->bytes >= n && !memcmp(p->text, text, n);
}

static inline void encoding_normalize(Encoding *g, TextPiece *p) {
    for (int i = 0; i < g->e->normalizer_count && p->bytes > 0; i++) {
        const Normalizer *n = &g->e->normalizers[i];
        if (n->from)
            encoding_replace(g, p, n->from, n->to);
        else
            encoding_prepend(g, p, n->to);
    }
}

/* ---- added tokens ---- */

static inline bool ascii_is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static inline bool ascii_is_word(char c) { return isalnum((uint8_t)c) || c == '_'; }

/* The index of the longest added token, among those that are normalized or among those that are not, that the n bytes
 * at s begin with, or -1. names[i]: added token i as it would stand in the text. */
static inline int added_at(const Encoder *e, const TextPiece *names, bool normalized, const char *s, size_t n) {
    int best = -1;
    for (int i = 0; i < e->added_count; i++) {
        size_t length = names[i].bytes;
        if (e->added[i].normalized != normalized || !length || length > n || memcmp(s, names[i].text, length) != 0)
            continue;
        if (best < 0 || length > names[best].bytes) best = i;
    }
    return best;
}

/* Splits one piece at added tokens that are normalized, or at those that are not. A token with lstrip or rstrip takes
 * the spaces beside it, but on its left not those that an earlier token took. */
static inline void encoding_split_added_piece(Encoding *g, const TextPiece *names, bool normalized,
                                              const TextPiece *p) {
    const char *s = p->text;
    size_t done = 0, at = 0;
    while (at < p->bytes) {
        int i = added_at(g->e, names, normalized, s + at, p->bytes - at);
        size_t begin = at, end = at + (i < 0 ? 1 : names[i].bytes);
        at = end;
        if (i < 0) continue;
        const AddedToken *t = &g->e->added[i];
        bool beside_word = (begin > 0 && ascii_is_word(s[begin - 1])) || (end < p->bytes && ascii_is_word(s[end]));
        if (t->single_word && beside_word) continue;
        while (t->lstrip && begin > done && ascii_is_space(s[begin - 1])) begin--;
        while (t->rstrip && end < p->bytes && ascii_is_space(s[end])) end++;
        if (done < begin) pieces_add(&g->next, s + done, begin - done, -1, p->first && done == 0);
        pieces_add(&g->next, "", 0, t->id, false);
        done = end;
    }
    if (done < p->bytes) pieces_add(&g->next, s + done, p->bytes - done, -1, p->first && done == 0);
}

/* Splits the text at added tokens: in pass 0 at those that are not normalized, in pass 1 normalizes the pieces
 * between them and splits those at the normalized added tokens. */
static inline void encoding_split_added(Encoding *g) {
    TextPiece *names = xcalloc(g->e->added_count, sizeof *names);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < g->e->added_count; i++) {
            names[i].text = g->e->added[i].text;
            names[i].bytes = g->e->added[i].bytes;
            if (pass == 1 && g->e->added[i].normalized) encoding_normalize(g, &names[i]);
        }
        for (int i = 0; i < g->pieces.count; i++) {
            TextPiece *p = &g->pieces.items[i];
            if (pass == 1 && p->id < 0) encoding_normalize(g, p);
            if (p->id < 0)
                encoding_split_added_piece(g, names, pass == 1, p);
            else
                pieces_add(&g->next, p->text, p->bytes, p->id, false);
        }
        encoding_end_step(g);
    }
    free(names);
}

/* ---- the pre-tokenizer ---- */

/* Finds the next match of a step's pattern in a piece, at or after `from`. */
static inline bool split_find(const SplitStep *step, RegexSearch *search, size_t from, size_t *begin, size_t *end) {
    if (step->kind == SPLIT_REGEX) return regex_find(search, from, begin, end);
    size_t length = step->kind == SPLIT_STRING ? strlen(step->text) : 1;
    for (; from + length <= search->n; from++) {
        const char *s = search->text + from;
        if (step->kind == SPLIT_STRING ? memcmp(s, step->text, length) != 0 : !isdigit((uint8_t)*s)) continue;
        *begin = from;
        *end = from + length;
        return true;
    }
    return false;
}

/* Whether a segment joins the one before it. Segments are the matches and the text between them; match and
 * previous_match say whether this segment and the one before it are matches. */
static inline bool segment_is_joined(CutBehaviour behaviour, bool previous_match, bool match) {
    switch (behaviour) {
    case CUT_MERGED_PREVIOUS: return match && !previous_match;
    case CUT_MERGED_NEXT: return previous_match && !match;
    case CUT_CONTIGUOUS: return match == previous_match;
    default: return false;
    }
}

/* Splits one piece at the matches of a step's pattern; with `invert` matches and the text between them swap their
 * roles. */
static inline int encoding_split_piece(Encoding *g, const SplitStep *step, const TextPiece *p) {
    RegexSearch search = {&step->regex, p->text, p->bytes, 50000000};
    size_t at = 0, part = 0, begin = 0, end = 0;  // part: where the current part begins; [begin, end): next match
    bool previous_match = false;
    while (at < p->bytes) {
        if (end <= at && !split_find(step, &search, at, &begin, &end)) begin = end = p->bytes;
        if (search.steps < 0)
            return error_set(g->err, "%s: the pre-tokenizer's regular expression needs too many steps on this text",
                             g->e->name);
        bool match = (at == begin && begin < end) != step->invert;
        size_t stop = at == begin && begin < end ? end : begin;
        if (at > 0 && !segment_is_joined(step->behaviour, previous_match, match)) {
            pieces_add(&g->next, p->text + part, at - part, -1, p->first && part == 0);
            part = at;
        }
        if (step->behaviour == CUT_REMOVED && match) part = stop;
        previous_match = match;
        at = stop;
    }
    pieces_add(&g->next, p->text + part, p->bytes - part, -1, p->first && part == 0);
    return 0;
}

static inline int encoding_split(Encoding *g, const SplitStep *step) {
    for (int i = 0; i < g->pieces.count; i++) {
        const TextPiece *p = &g->pieces.items[i];
        if (p->id >= 0)
            pieces_add(&g->next, p->text, p->bytes, p->id, false);
        else if (encoding_split_piece(g, step, p) != 0)
            return -1;
    }
    encoding_end_step(g);
    return 0;
}

/* Prepends a space to the pieces that the scheme names, unless they begin with one. */
static inline void encoding_prefix(Encoding *g, const char *space, PrependScheme scheme) {
    for (int i = 0; i < g->pieces.count; i++) {
        TextPiece *p = &g->pieces.items[i];
        if (p->id < 0 && !piece_begins(p, space) &&
            (scheme == PREPEND_ALWAYS || (scheme == PREPEND_FIRST && p->first)))
            encoding_prepend(g, p, space);
    }
}

static inline int encoding_metaspace(Encoding *g) {
    const Encoder *e = g->e;
    for (int i = 0; i < g->pieces.count; i++)
        if (g->pieces.items[i].id < 0) encoding_replace(g, &g->pieces.items[i], " ", e->space);
    encoding_prefix(g, e->space, e->prepend);
    if (!e->metaspace_split) return 0;
    SplitStep *step = xcalloc(1, sizeof *step);  // large, because of its regular expression
    step->kind = SPLIT_STRING;
    step->behaviour = CUT_MERGED_NEXT;
    step->text = e->space;
    int bad = encoding_split(g, step);
    free(step);
    return bad;
}

/* Replaces every byte by its character in GPT-2's alphabet: the Latin-1 character of the byte if that is visible,
 * else the next character from U+0100 on. */
static inline void encoding_byte_level(Encoding *g, TextPiece *p) {
    int character[256], next = 256;
    for (int b = 0; b < 256; b++) character[b] = (b >= '!' && b <= '~') || (b >= 0xa1 && b != 0xad) ? b : next++;
    char *out = xmalloc(2 * p->bytes + 1);
    size_t used = 0;
    for (size_t i = 0; i < p->bytes; i++) used += utf8_write(out + used, character[(uint8_t)p->text[i]]);
    out[used] = '\0';
    encoding_set(g, p, out);
}

static inline int encoding_pre_tokenize(Encoding *g) {
    const Encoder *e = g->e;
    // ByteLevel prepends its space to every piece that the earlier steps made, then splits by its own expression.
    int own = e->byte_level && e->byte_level_regex ? 1 : 0;
    for (int i = 0; i < e->step_count - own; i++)
        if (encoding_split(g, &e->steps[i]) != 0) return -1;
    if (e->metaspace) return encoding_metaspace(g);
    if (e->byte_level && e->prefix_space) encoding_prefix(g, " ", PREPEND_ALWAYS);
    if (own && encoding_split(g, &e->steps[e->step_count - 1]) != 0) return -1;
    for (int i = 0; e->byte_level && i < g->pieces.count; i++)
        if (g->pieces.items[i].id < 0) encoding_byte_level(g, &g->pieces.items[i]);
    return 0;
}

/* ---- encoding ---- */

static inline int encoder_check_text(const Encoder *e, const char *text, size_t bytes, Error *err) {
    if (bytes > INT32_MAX / 8) return error_set(err, "the text has %zu bytes, which is too long", bytes);
    for (size_t i = 0; i < bytes;) {
        int length = utf8_sequence((const uint8_t *)text + i, bytes - i);
        if (length == 0 || !text[i]) return error_set(err, "the text is not valid UTF-8 at byte %zu", i);
        if (length > 1 && e->ascii_only)
            return error_set(err,
                             "the text has '%.*s' at byte %zu, but this tokenizer has %s: only ASCII can be encoded",
                             length, text + i, i, e->ascii_only);
        i += length;
    }
    return 0;
}

/* Encodes a text and appends its token ids to `out`, without begin or end token. */
static inline int encoder_run(const Encoder *e, const char *text, size_t bytes, TokenIds *out, Error *err) {
    if (encoder_check_text(e, text, bytes, err) != 0) return -1;
    Encoding g = {.e = e, .err = err};
    pieces_add(&g.pieces, text, bytes, -1, true);
    encoding_split_added(&g);
    int bad = encoding_pre_tokenize(&g);
    for (int i = 0; !bad && i < g.pieces.count; i++) {
        const TextPiece *p = &g.pieces.items[i];
        if (p->id >= 0)
            token_ids_add(out, p->id);
        else
            bad = bpe_encode(&e->bpe, p->text, p->bytes, out, err);
    }
    for (int i = 0; i < g.string_count; i++) free(g.strings[i]);
    free(g.strings);
    free(g.pieces.items);
    free(g.next.items);
    return bad;
}

#endif
