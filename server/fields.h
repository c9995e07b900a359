/* The fields of requests: one table says how they are read from JSON and from forms, what is allowed, and what /openapi.json
 * and /docs say of them. */
#ifndef SERVER_FIELDS_H
#define SERVER_FIELDS_H

#include "../lib/base64.h"
#include "../lib/json.h"

#include <strings.h>

/* The requests that are read with the table; bits of Field.routes. */
enum { FOR_CONVERT = 1, FOR_RENDER = 2, FOR_CHAT = 4, FOR_FILE = 8 };

typedef enum { FORMAT_PNG, FORMAT_SVG, FORMAT_PDF, FORMATS } Format;
static const char *const format_names[FORMATS] = {"png", "svg", "pdf"};

typedef struct {
    char *model, *task, *search, *program;  // allocated; NULL: not given
    double temperature, top_p;              // temperature NAN: not given
    int64_t top_k, beam, candidates, seed, max_tokens;
    unsigned formats;  // 1 << FORMAT_PNG ...
    bool stream, compile;
    uint8_t *image;  // the bytes of its file
    size_t image_bytes;
} Fields;

static const Fields fields_default = {
    .temperature = NAN, .top_p = 1, .beam = 1, .candidates = 1, .seed = 1, .compile = true};

static inline void fields_free(Fields *f) {
    free(f->model);
    free(f->task);
    free(f->search);
    free(f->program);
    free(f->image);
    *f = fields_default;
}

typedef enum {
    VALUE_TEXT,
    VALUE_NUMBER,
    VALUE_INTEGER,
    VALUE_FLAG,
    VALUE_FORMATS,
    VALUE_IMAGE,
    VALUE_MESSAGES
} ValueType;

typedef struct {
    const char *name;
    ValueType type;
    size_t offset;       // in Fields
    double min, max;     // inclusive bounds of a number
    const char *values;  // the words that a text may be, with a space behind each; NULL: any
    int routes;
    bool required;
    const char *help;
} Field;

#define FIELD_AT(member) offsetof(Fields, member)

static const Field fields_table[] = {
    {"image", VALUE_IMAGE, FIELD_AT(image), 0, 0, NULL, FOR_CONVERT, true,
     "the image file (PNG, JPEG, WebP, GIF, BMP or TIFF): in a form its bytes, in JSON base64, which may be a data: "
     "URL"},
    {"file", VALUE_IMAGE, FIELD_AT(image), 0, 0, NULL, FOR_FILE, true, "the image file"},
    {"messages", VALUE_MESSAGES, FIELD_AT(image), 0, 0, NULL, FOR_CHAT, true,
     "the conversation; the last image_url in it, a data: URL, is the image, and text is not read"},
    {"program", VALUE_TEXT, FIELD_AT(program), 0, 0, NULL, FOR_RENDER, true, "the TikZ program or the formula"},
    {"model", VALUE_TEXT, FIELD_AT(model), 0, 0, NULL, FOR_CONVERT | FOR_CHAT, false,
     "a name from /v1/models; without it the first model that fits the task"},
    {"task", VALUE_TEXT, FIELD_AT(task), 0, 0, "tikz formula auto ", FOR_CONVERT | FOR_RENDER, false,
     "what the image shows, or the program is: a figure in TikZ, or a formula in LaTeX; auto: the image's looks tell, "
     "where there are models of both"},
    {"temperature", VALUE_NUMBER, FIELD_AT(temperature), 0, 100, NULL, FOR_CONVERT | FOR_CHAT, false,
     "0 takes the likeliest token, which is the default; candidates and search sample at 0.8 by default"},
    {"top_p", VALUE_NUMBER, FIELD_AT(top_p), 0, 1, NULL, FOR_CONVERT | FOR_CHAT, false,
     "sample among the likeliest tokens that together reach this probability"},
    {"top_k", VALUE_INTEGER, FIELD_AT(top_k), 0, 1e9, NULL, FOR_CONVERT | FOR_CHAT, false,
     "sample among so many of the likeliest tokens; 0: all"},
    {"beam", VALUE_INTEGER, FIELD_AT(beam), 1, 16, NULL, FOR_CONVERT, false,
     "beam search with so many unfinished programs, for the likeliest one"},
    {"candidates", VALUE_INTEGER, FIELD_AT(candidates), 1, 64, NULL, FOR_CONVERT, false,
     "sample so many programs; the one that compiles and is most like the image comes first"},
    {"search", VALUE_TEXT, FIELD_AT(search), 0, 0, NULL, FOR_CONVERT, false,
     "search the best program by writing, compiling and comparing: for so many seconds (\"10s\"), or so many "
     "programs "
     "(\"200\"); of TikZ only"},
    {"seed", VALUE_INTEGER, FIELD_AT(seed), 0, 1e15, NULL, FOR_CONVERT | FOR_CHAT, false,
     "random seed of what is sampled"},
    {"max_tokens", VALUE_INTEGER, FIELD_AT(max_tokens), 0, 1e9, NULL, FOR_CONVERT | FOR_CHAT, false,
     "longest program in tokens; 0: as long as the model allows"},
    {"max_completion_tokens", VALUE_INTEGER, FIELD_AT(max_tokens), 0, 1e9, NULL, FOR_CHAT, false,
     "the same as max_tokens"},
    {"render", VALUE_FORMATS, FIELD_AT(formats), 0, 0, "png svg pdf ", FOR_CONVERT, false,
     "what is drawn of the program: a list, or in a form or string with commas, of png, svg and pdf"},
    {"formats", VALUE_FORMATS, FIELD_AT(formats), 0, 0, "png svg pdf ", FOR_RENDER, false,
     "what is drawn of the program: a list of png, svg and pdf"},
    {"compile", VALUE_FLAG, FIELD_AT(compile), 0, 0, NULL, FOR_CONVERT, false,
     "whether TeX checks the program, which takes up to a second"},
    {"stream", VALUE_FLAG, FIELD_AT(stream), 0, 0, NULL, FOR_CONVERT | FOR_CHAT, false,
     "answer with server-sent events while the program is written"},
};
enum { FIELD_COUNT = sizeof fields_table / sizeof *fields_table };

static inline const Field *fields_find(const char *name, int route) {
    for (int i = 0; i < FIELD_COUNT; i++)
        if (fields_table[i].routes & route && !strcmp(fields_table[i].name, name)) return &fields_table[i];
    return NULL;
}

/* ---- values ---- */

/* Whether a word of n bytes is one of the words of `values`. */
static inline bool fields_has_word(const char *values, const char *word, size_t n) {
    for (const char *at = values; *at; at += strcspn(at, " ") + 1)
        if (strcspn(at, " ") == n && !memcmp(at, word, n)) return true;
    return false;
}

/* Adds the formats that a text names, with commas between them; an empty text names none. */
static inline int fields_add_formats(unsigned *formats, const Field *f, const char *text, Error *err) {
    for (const char *at = text; *at;) {
        at += strspn(at, " ,");
        const size_t n = strcspn(at, " ,");
        int found = -1;
        for (int i = 0; i < FORMATS; i++)
            if (strlen(format_names[i]) == n && !memcmp(at, format_names[i], n)) found = i;
        if (n && found < 0)
            return error_set(err, "the field %s must name png, svg or pdf, not '%.*s'", f->name, n > 40 ? 40 : (int)n,
                             at);
        if (n) *formats |= 1u << found;
        at += n;
    }
    return 0;
}

enum { FIELD_TEXT_BYTES = 1 << 20 };  // of a text

static inline int fields_set_text(Fields *to, const Field *f, const char *text, Error *err) {
    char **at = (char **)((char *)to + f->offset);
    if (strlen(text) > FIELD_TEXT_BYTES)
        return error_set(err, "the field %s is longer than %d bytes", f->name, FIELD_TEXT_BYTES);
    if (f->values && !fields_has_word(f->values, text, strlen(text)))
        return error_set(err, "the field %s must be one of %.*s, not '%.40s'", f->name, (int)strlen(f->values) - 1,
                         f->values, text);
    free(*at);
    *at = xstrdup(text);
    return 0;
}

static inline int fields_set_number(Fields *to, const Field *f, double x, Error *err) {
    if (!(x >= f->min && x <= f->max))
        return error_set(err, "the field %s must be a number from %.10g to %.10g, not %.10g", f->name, f->min, f->max,
                         x);
    if (f->type == VALUE_INTEGER && x != floor(x))
        return error_set(err, "the field %s must be a whole number, not %.10g", f->name, x);
    if (f->type == VALUE_INTEGER)
        *(int64_t *)((char *)to + f->offset) = (int64_t)x;
    else
        *(double *)((char *)to + f->offset) = x;
    return 0;
}

/* A data: URL's base64 begins behind its comma. */
static inline const char *fields_base64_begin(const char *text) {
    const char *comma = !strncasecmp(text, "data:", 5) ? strchr(text, ',') : NULL;
    return comma ? comma + 1 : text;
}

static inline int fields_set_base64(Fields *to, const char *name, const char *text, Error *err) {
    const char *digits = fields_base64_begin(text);
    char what[80];
    snprintf(what, sizeof what, "the field %.60s", name);
    free(to->image);
    to->image = base64_decode(digits, strlen(digits), &to->image_bytes, what, err);
    return to->image ? 0 : -1;
}

/* Sets a field from the n bytes of a form's part, which a 0 follows. */
static inline int fields_set_part(Fields *to, const Field *f, const char *bytes, size_t n, Error *err) {
    char *end;
    if (f->type == VALUE_IMAGE) {
        free(to->image);
        to->image = (uint8_t *)memcpy(xmalloc(n), bytes, n);
        to->image_bytes = n;
        return 0;
    }
    if (strlen(bytes) != n || n > FIELD_TEXT_BYTES) return error_set(err, "the field %s is not a text", f->name);
    if (f->type == VALUE_TEXT) return fields_set_text(to, f, bytes, err);
    if (f->type == VALUE_FORMATS) return fields_add_formats((unsigned *)((char *)to + f->offset), f, bytes, err);
    if (f->type == VALUE_FLAG) {
        const bool yes = !strcmp(bytes, "true") || !strcmp(bytes, "1") || !strcmp(bytes, "on");
        if (!yes && strcmp(bytes, "false") && strcmp(bytes, "0") && strcmp(bytes, "off"))
            return error_set(err, "the field %s must be true or false, not '%.40s'", f->name, bytes);
        *(bool *)((char *)to + f->offset) = yes;
        return 0;
    }
    const double x = strtod(bytes, &end);
    if (end == bytes || *end) return error_set(err, "the field %s must be a number, not '%.40s'", f->name, bytes);
    return fields_set_number(to, f, x, err);
}

static inline const char *fields_type_name(const JsonValue *v) {
    static const char *const names[] = {"null", "true or false", "a number", "a string", "a list", "an object"};
    return names[v->type];
}

static inline int fields_wrong_type(const Field *f, const char *expected, const JsonValue *v, Error *err) {
    return error_set(err, "the field %s must be %s, not %s", f->name, expected, fields_type_name(v));
}

/* The image of a conversation: the last part of the kind image_url. OpenAI's clients write {"url": "data:..."}; a plain string
 * is taken too. */
static inline int fields_set_messages(Fields *to, const Json *j, const JsonValue *v, Error *err) {
    const char *url = NULL;
    for (int m = v->child; m >= 0; m = j->values[m].next) {
        const int content = json_find(j, m, "content");
        if (content < 0 || j->values[content].type != JSON_ARRAY) continue;
        for (int p = j->values[content].child; p >= 0; p = j->values[p].next) {
            const int image = json_find(j, p, "image_url");
            const char *text = image < 0                 ? NULL
                               : j->values[image].string ? j->values[image].string
                                                         : json_get_string(j, image, "url");
            if (text) url = text;
        }
    }
    if (!url) return error_set(err, "no message has an image; one with the type image_url and a data: URL is needed");
    if (strncasecmp(url, "data:", 5))
        return error_set(err, "the image must be a data: URL; nothing is fetched from '%.60s'", url);
    return fields_set_base64(to, "messages", url, err);
}

/* Sets a field from a value of JSON; null leaves the default. */
static inline int fields_set_json(Fields *to, const Field *f, const Json *j, int value, Error *err) {
    const JsonValue *v = &j->values[value];
    if (v->type == JSON_NULL) return 0;
    switch (f->type) {
    case VALUE_IMAGE:
        if (v->type != JSON_STRING) return fields_wrong_type(f, "a string of base64", v, err);
        return fields_set_base64(to, f->name, v->string, err);
    case VALUE_MESSAGES:
        if (v->type != JSON_ARRAY) return fields_wrong_type(f, "a list", v, err);
        return fields_set_messages(to, j, v, err);
    case VALUE_TEXT:
        if (f->offset == FIELD_AT(search) && v->type == JSON_NUMBER) {
            char number[40];
            snprintf(number, sizeof number, "%.17g", v->number);
            return fields_set_text(to, f, number, err);
        }
        if (v->type != JSON_STRING) return fields_wrong_type(f, "a string", v, err);
        return fields_set_text(to, f, v->string, err);
    case VALUE_FLAG:
        if (v->type != JSON_BOOL) return fields_wrong_type(f, "true or false", v, err);
        *(bool *)((char *)to + f->offset) = v->boolean;
        return 0;
    case VALUE_FORMATS:
        if (v->type == JSON_STRING)
            return fields_add_formats((unsigned *)((char *)to + f->offset), f, v->string, err);
        if (v->type != JSON_ARRAY) return fields_wrong_type(f, "a list of png, svg and pdf", v, err);
        for (int c = v->child; c >= 0; c = j->values[c].next) {
            if (j->values[c].type != JSON_STRING)
                return fields_wrong_type(f, "a list of strings", &j->values[c], err);
            if (fields_add_formats((unsigned *)((char *)to + f->offset), f, j->values[c].string, err)) return -1;
        }
        return 0;
    default:
        if (v->type != JSON_NUMBER) return fields_wrong_type(f, "a number", v, err);
        return fields_set_number(to, f, v->number, err);
    }
}

#endif
