/* Ids from text: what encode(text, add_special_tokens=False) of `tokenizers` gives, read from the tokenizer.json that
 * travels inside a model file. Whatever would not be exactly the same is refused with a sentence.
 *
 * Added tokens are taken out of the text first; the pieces between them are normalized, cut into words by the
 * pre-tokenizer, and each word goes through byte pair encoding (lib/bpe.h). */
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

/* "Prepend": `to` before every piece that is not empty. "Replace": every `from` becomes `to`. */
typedef struct {
    const char *from, *to;  // from: NULL for Prepend
} Normalizer;

typedef enum { STEP_REGEX, STEP_TEXT, STEP_DIGITS } StepKind;
typedef enum { CUT_REMOVED, CUT_ISOLATED, CUT_PREVIOUS, CUT_NEXT, CUT_CONTIGUOUS } CutBehaviour;

/* Cuts every piece at the matches of a pattern. */
typedef struct {
    StepKind kind;
    CutBehaviour behaviour;
    bool invert;
    Regex regex;       // STEP_REGEX
    const char *text;  // STEP_TEXT
} SplitStep;

typedef enum { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } PrependScheme;

typedef struct {
    const char *name;  // "the tokenizer.json inside FILE", for messages
    Json json;
    Bpe bpe;
    AddedToken *added;
    int added_count;
    Normalizer normalizers[ENCODER_MAX_STEPS];
    int normalizer_count;
    const char *ascii_only;  // why the text must be ASCII, NULL when it need not
    SplitStep *steps;        // [ENCODER_MAX_STEPS]
    int step_count;
    bool metaspace, metaspace_split;  // Metaspace: spaces become `space`
    const char *space;
    PrependScheme prepend;
    bool byte_level, prefix_space;  // ByteLevel: bytes become the characters of GPT-2's alphabet
    bool byte_level_regex;          // the last step is GPT-2's expression
} Encoder;

/* A part of the text. */
typedef struct {
    const char *text;
    size_t bytes;
    int id;      // of an added token; -1: still text
    bool first;  // it begins where the text begins
} TextPiece;

typedef struct {
    TextPiece *items;
    int count, capacity;
} TextPieces;

/* One text on its way: its pieces, the list that replaces it in the next step, and the strings made underway. */
typedef struct {
    const Encoder *e;
    TextPieces pieces, next;
    char **strings;
    int string_count, string_capacity;
    Error *err;
} Encoding;

/* ---- reading tokenizer.json ---- */

static inline const JsonValue *encoder_value(const Encoder *e, int v) {
    static const JsonValue none = {JSON_NULL, false, false, 0, 0, NULL, NULL, 0, -1, -1};
    return v >= 0 ? &e->json.values[v] : &none;
}

static inline const char *encoder_type(const Encoder *e, int v) {
    const char *type = json_text(&e->json, v, "type");
    return type ? type : "(without a type)";
}

static inline int encoder_refuse(const Encoder *e, const char *part, const char *what, Error *err) {
    return error_set(err, "%s: the %s %.60s is not supported; leave out --prefix", e->name, part, what);
}

static inline int encoder_read_added(Encoder *e, int limit, Error *err) {
    int list = json_find(&e->json, 0, "added_tokens");
    if (encoder_value(e, list)->type != JSON_ARRAY) return 0;
    e->added = (AddedToken *)xcalloc((size_t)encoder_value(e, list)->count, sizeof *e->added);
    for (int v = encoder_value(e, list)->child; v >= 0; v = e->json.values[v].next) {
        const char *text = json_text(&e->json, v, "content");
        const JsonValue *id = encoder_value(e, json_find(&e->json, v, "id"));
        if (!text || !id->is_integer || id->integer < 0 || id->integer >= limit)
            return error_set(err, "%s: an added token has no content or no id from 0 to %d", e->name, limit - 1);
        if (!*text) continue;
        int word = bpe_word(&e->bpe, text, strlen(text));
        if (word >= 0 && word != id->integer)
            return error_set(err, "%s: the added token '%.40s' has the id %lld, but %d in the vocabulary", e->name,
                             text, (long long)id->integer, word);
        AddedToken *t = &e->added[e->added_count++];
        t->text = text;
        t->bytes = strlen(text);
        t->id = (int)id->integer;
        t->normalized = json_truth(&e->json, v, "normalized", true);
        t->single_word = json_truth(&e->json, v, "single_word", false);
        t->lstrip = json_truth(&e->json, v, "lstrip", false);
        t->rstrip = json_truth(&e->json, v, "rstrip", false);
        if (t->single_word || t->lstrip || t->rstrip)
            e->ascii_only = "added tokens that look at the text beside them";
    }
    return 0;
}

static inline int encoder_read_normalizer(Encoder *e, int v, Error *err) {
    static const char *const composing[] = {"NFC", "NFD", "NFKC", "NFKD"};  // leave ASCII as it is
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
    n->from = prepend ? NULL : json_text(&e->json, json_find(&e->json, v, "pattern"), "String");
    n->to = json_text(&e->json, v, prepend ? "prepend" : "content");
    if (!n->to || (!prepend && (!n->from || !*n->from)))
        return encoder_refuse(e, "normalizer", "Replace with a regular expression", err);
    return 0;
}

static inline SplitStep *encoder_new_step(Encoder *e, StepKind kind, CutBehaviour behaviour, Error *err) {
    if (e->step_count == ENCODER_MAX_STEPS) {
        error_set(err, "%s: the pre-tokenizer has more than %d steps", e->name, ENCODER_MAX_STEPS);
        return NULL;
    }
    SplitStep *s = &e->steps[e->step_count++];
    memset(s, 0, sizeof *s);
    s->kind = kind;
    s->behaviour = behaviour;
    if (kind != STEP_TEXT) e->ascii_only = "a pre-tokenizer that sorts characters by their Unicode properties";
    return s;
}

static inline int encoder_read_split(Encoder *e, int v, Error *err) {
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    int pattern = json_find(&e->json, v, "pattern"), behaviour = 0;
    const char *name = json_text(&e->json, v, "behavior"), *regex = json_text(&e->json, pattern, "Regex");
    const char *text = json_text(&e->json, pattern, "String");
    while (behaviour < 5 && (!name || strcmp(name, names[behaviour]) != 0)) behaviour++;
    if (behaviour == 5 || (!regex && (!text || !*text)))
        return encoder_refuse(e, "pre-tokenizer", "Split without a pattern or with an unknown behavior", err);
    SplitStep *s = encoder_new_step(e, regex ? STEP_REGEX : STEP_TEXT, (CutBehaviour)behaviour, err);
    if (!s) return -1;
    s->invert = json_truth(&e->json, v, "invert", false);
    s->text = text;
    return regex ? regex_parse(&s->regex, regex, err) : 0;
}

static inline int encoder_read_byte_level(Encoder *e, int v, Error *err) {
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    e->byte_level = true;
    e->prefix_space = json_truth(&e->json, v, "add_prefix_space", true);
    if (!json_truth(&e->json, v, "use_regex", true)) return 0;
    e->byte_level_regex = true;
    SplitStep *s = encoder_new_step(e, STEP_REGEX, CUT_ISOLATED, err);
    return s ? regex_parse(&s->regex, gpt2, err) : -1;
}

static inline int encoder_read_metaspace(Encoder *e, int v, Error *err) {
    static const char *const schemes[] = {"never", "first", "always"};
    const char *scheme = json_text(&e->json, v, "prepend_scheme");
    e->prepend = PREPEND_ALWAYS;
    for (int i = 0; scheme && i < 3; i++)
        if (!strcmp(scheme, schemes[i])) e->prepend = (PrependScheme)i;
    if (!json_truth(&e->json, v, "add_prefix_space", true) && e->prepend != PREPEND_NEVER)
        return encoder_refuse(e, "pre-tokenizer", "Metaspace with add_prefix_space against its prepend_scheme", err);
    e->space = json_text(&e->json, v, "replacement");
    if (!e->space || !*e->space) return encoder_refuse(e, "pre-tokenizer", "Metaspace without a replacement", err);
    e->metaspace = true;
    e->metaspace_split = json_truth(&e->json, v, "split", true);
    return 0;
}

/* One pre-tokenizer, or a Sequence of them. Nothing may come behind ByteLevel or beside Metaspace. */
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
        bool single = json_truth(&e->json, v, "individual_digits", false);
        return encoder_new_step(e, STEP_DIGITS, single ? CUT_ISOLATED : CUT_CONTIGUOUS, err) ? 0 : -1;
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

/* `name` says in messages where the tokenizer.json is, and must stay. Close the encoder also when this fails. */
static inline int encoder_open(Encoder *e, const Tokenizer *t, const char *name, Error *err) {
    memset(e, 0, sizeof *e);
    e->name = name;
    if (!t->json)
        return error_set(err, "%s is missing, so that text cannot be encoded; convert the model again", name);
    if (json_parse(&e->json, (const char *)t->json, t->json_bytes, name, err) != 0) return -1;
    if (e->json.values[0].type != JSON_OBJECT || json_find(&e->json, 0, "model") < 0)
        return error_set(err, "%s has no model, so that text cannot be encoded; convert the model again", name);
    e->steps = (SplitStep *)xcalloc(ENCODER_MAX_STEPS, sizeof *e->steps);
    if (bpe_open(&e->bpe, &e->json, json_find(&e->json, 0, "model"), t->count, name, err) != 0) return -1;
    if (encoder_read_added(e, t->count, err) != 0) return -1;
    if (encoder_read_normalizer(e, json_find(&e->json, 0, "normalizer"), err) != 0) return -1;
    return encoder_read_pre_tokenizer(e, json_find(&e->json, 0, "pre_tokenizer"), err);
}

/* ---- pieces ---- */

static inline void pieces_add(TextPieces *list, const char *text, size_t bytes, int id, bool first) {
    if (bytes == 0 && id < 0) return;  // `tokenizers` drops empty pieces
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->items = (TextPiece *)xrealloc(list->items, (size_t)list->capacity * sizeof *list->items);
    }
    TextPiece *p = &list->items[list->count++];
    p->text = text;
    p->bytes = bytes;
    p->id = id;
    p->first = first;
}

/* The parts in g->next take the place of the pieces. */
static inline void encoding_step(Encoding *g) {
    TextPieces old = g->pieces;
    g->pieces = g->next;
    g->next = old;
    g->next.count = 0;
}

/* Gives a piece another text, which the encoding frees in the end. */
static inline void encoding_set(Encoding *g, TextPiece *p, char *text) {
    if (g->string_count == g->string_capacity) {
        g->string_capacity = g->string_capacity ? 2 * g->string_capacity : 64;
        g->strings = (char **)xrealloc(g->strings, (size_t)g->string_capacity * sizeof *g->strings);
    }
    g->strings[g->string_count++] = text;
    p->text = text;
    p->bytes = strlen(text);
}

/* `from` becomes `to` everywhere in the piece. */
static inline void encoding_replace(Encoding *g, TextPiece *p, const char *from, const char *to) {
    size_t used = 0, from_bytes = strlen(from), to_bytes = strlen(to);
    char *out = (char *)xmalloc(p->bytes * (to_bytes > 0 ? to_bytes : 1) + 1);
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

/* The longest added token of one sort at the beginning of s, or -1. names[i]: token i as it stands in the text. */
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

/* Cuts one piece at the added tokens of one sort. A token may take spaces beside it (lstrip, rstrip), but on its left
 * not those that an earlier one took. */
static inline void encoding_cut_added(Encoding *g, const TextPiece *names, bool normalized, const TextPiece *p) {
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

/* First the tokens that stand in the text as they are, then, in the normalized pieces between, those that are
 * normalized too. */
static inline void encoding_added(Encoding *g) {
    TextPiece *names = (TextPiece *)xcalloc((size_t)g->e->added_count, sizeof *names);
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
                encoding_cut_added(g, names, pass == 1, p);
            else
                pieces_add(&g->next, p->text, p->bytes, p->id, false);
        }
        encoding_step(g);
    }
    free(names);
}

/* ---- the pre-tokenizer ---- */

/* The next match of a step's pattern in a piece from `from` on. */
static inline bool step_find(const SplitStep *step, RegexSearch *search, size_t from, size_t *begin, size_t *end) {
    if (step->kind == STEP_REGEX) return regex_find(search, from, begin, end);
    size_t length = step->kind == STEP_TEXT ? strlen(step->text) : 1;
    for (; from + length <= search->n; from++) {
        const char *s = search->text + from;
        if (step->kind == STEP_TEXT ? memcmp(s, step->text, length) != 0 : !isdigit((uint8_t)*s)) continue;
        *begin = from;
        *end = from + length;
        return true;
    }
    return false;
}

/* Where a segment (a match or what lies between matches) begins a new part, given the match state of the segment
 * before and of this one. */
static inline bool cut_here(CutBehaviour how, bool before, bool here) {
    return how == CUT_PREVIOUS ? !(here && !before) : how == CUT_CONTIGUOUS ? here != before : true;
}

/* Cuts one piece. MergedWithNext joins a match to what follows it unless that is a match as well. */
static inline int encoding_cut(Encoding *g, const SplitStep *step, const TextPiece *p) {
    RegexSearch search = {&step->regex, p->text, p->bytes, 50000000};
    size_t at = 0, part = 0, begin = 0, end = 0;
    bool before = false;
    while (at < p->bytes) {
        if (end <= at && !step_find(step, &search, at, &begin, &end)) begin = end = p->bytes;
        if (search.steps < 0)
            return error_set(g->err, "%s: the pre-tokenizer's regular expression needs too many steps on this text",
                             g->e->name);
        bool here = (at == begin && begin < end) != step->invert;
        size_t stop = at == begin && begin < end ? end : begin;
        bool joined = step->behaviour == CUT_NEXT ? before && !here : !cut_here(step->behaviour, before, here);
        if (at > 0 && !joined) {
            pieces_add(&g->next, p->text + part, at - part, -1, p->first && part == 0);
            part = at;
        }
        if (step->behaviour == CUT_REMOVED && here) part = stop;
        before = here;
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
        else if (encoding_cut(g, step, p) != 0)
            return -1;
    }
    encoding_step(g);
    return 0;
}

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
    SplitStep *step = (SplitStep *)xcalloc(1, sizeof *step);
    step->kind = STEP_TEXT;
    step->behaviour = CUT_NEXT;
    step->text = e->space;
    int bad = encoding_split(g, step);
    free(step);
    return bad;
}

/* Every byte becomes the character that GPT-2's alphabet writes for it: itself where Latin-1 has a visible character,
 * else the next one from U+0100 on. */
static inline void encoding_byte_level(Encoding *g, TextPiece *p) {
    int stand_in[256], next = 256;
    for (int b = 0; b < 256; b++) stand_in[b] = (b >= '!' && b <= '~') || (b >= 0xa1 && b != 0xad) ? b : next++;
    char *out = (char *)xmalloc(2 * p->bytes + 1);
    size_t used = 0;
    for (size_t i = 0; i < p->bytes; i++)
        used += (size_t)utf8_write(out + used, (uint32_t)stand_in[(uint8_t)p->text[i]]);
    out[used] = '\0';
    encoding_set(g, p, out);
}

static inline int encoding_pre_tokenize(Encoding *g) {
    const Encoder *e = g->e;
    // ByteLevel puts its space before every piece that the steps before it left, then splits by its own expression.
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
        i += (size_t)length;
    }
    return 0;
}

/* Appends the ids of a text; none are added at its beginning or end. */
static inline int encoder_run(const Encoder *e, const char *text, size_t bytes, TokenIds *out, Error *err) {
    if (encoder_check_text(e, text, bytes, err) != 0) return -1;
    Encoding g;
    memset(&g, 0, sizeof g);
    g.e = e;
    g.err = err;
    pieces_add(&g.pieces, text, bytes, -1, true);
    encoding_added(&g);
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
