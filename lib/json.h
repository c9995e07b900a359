/* JSON (RFC 8259): a strict parser for headers and configurations, and a writer for log lines and --json.
 *
 * The parser makes an array of values, in the order of the text; the children of an object or array are linked
 * through `next`. Strings are valid UTF-8, unescaped and NUL-terminated. The parser rejects invalid UTF-8, a NUL
 * inside a string, a key that occurs twice in one object, numbers outside the range of a double, more than 64 levels
 * of nesting, and text after the end. (This file is also compiled as C++, for dev/learn.) */
#ifndef LIB_JSON_H
#define LIB_JSON_H

#include "error.h"

#include "hash.h"
#include "utf8.h"

#include <math.h>

enum { JSON_MAX_DEPTH = 64 };

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

typedef struct {
    JsonType type;
    bool boolean;
    bool is_integer;  // the number has no fraction or exponent and fits an int64_t: its value is `integer`
    double number;
    int64_t integer;
    const char *string;  // of a JSON_STRING, else NULL
    const char *key;     // if the parent is an object, else NULL
    int count;           // number of children
    int child, next;     // first child, next child of the same parent; -1: none
} JsonValue;

typedef struct {
    JsonValue *values;  // values[0] is the root
    int count, capacity;
    char *strings;
} Json;

static inline void json_free(Json *j) {
    free(j->values);
    free(j->strings);
    memset(j, 0, sizeof *j);
}

/* ---- parsing ---- */

typedef struct {
    const char *text;
    size_t size, at, strings_used;
    const char *name;  // what is parsed, for error messages
    Json *out;
    int *slots;  // hash set of (parent, value) pairs with open addressing, to find keys that occur twice
    size_t slot_count, slots_used;
    Error *err;
} JsonParser;

static inline int json_fail(JsonParser *p, const char *what) {
    return error_set(p->err, "cannot read %s: %s at byte %zu of the JSON text", p->name, what, p->at);
}

static inline void json_skip_space(JsonParser *p) {
    while (p->at < p->size && memchr(" \t\n\r", p->text[p->at], 4)) p->at++;
}

static inline bool json_take(JsonParser *p, char c) {
    bool taken = p->at < p->size && p->text[p->at] == c;
    p->at += taken;
    return taken;
}

static inline int json_hex4(JsonParser *p, uint32_t *out) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        char c = p->at < p->size ? p->text[p->at] : '\0';
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return json_fail(p, "\\u is not followed by four hexadecimal digits");
        value = value * 16 + (uint32_t)digit;
        p->at++;
    }
    *out = value;
    return 0;
}

/* Parses an escape, after its backslash. An escape is never shorter than what it stands for, so the output fits. */
static inline int json_escape(JsonParser *p, char *out, size_t *n) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = p->at < p->size ? p->text[p->at] : '\0';
    const char *known = c ? strchr(from, c) : NULL;
    if (known) {
        out[(*n)++] = to[known - from];
        p->at++;
        return 0;
    }
    if (c != 'u') return json_fail(p, "a backslash is not followed by a known escape");
    p->at++;
    uint32_t high = 0, low = 0;
    if (json_hex4(p, &high) != 0) return -1;
    if (high == 0) return json_fail(p, "a NUL character is not supported inside a string,");
    if (high >= 0xdc00 && high <= 0xdfff) return json_fail(p, "the second half of a surrogate pair stands alone");
    if (high >= 0xd800 && high <= 0xdbff) {
        if (!json_take(p, '\\') || !json_take(p, 'u')) return json_fail(p, "half a surrogate pair stands alone");
        if (json_hex4(p, &low) != 0) return -1;
        if (low < 0xdc00 || low > 0xdfff) return json_fail(p, "half a surrogate pair stands alone");
        high = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
    }
    *n += (size_t)utf8_write(out + *n, high);
    return 0;
}

/* Parses a string, from its opening quote. */
static inline int json_parse_string(JsonParser *p, const char **string) {
    if (!json_take(p, '"')) return json_fail(p, "a string in double quotes was expected");
    char *out = p->out->strings + p->strings_used;
    size_t n = 0;
    for (;;) {
        if (p->at >= p->size) return json_fail(p, "a string does not end");
        uint8_t c = (uint8_t)p->text[p->at];
        if (c < 0x20) return json_fail(p, "a control character stands in a string");
        if (c == '"') break;
        if (c == '\\') {
            p->at++;
            if (json_escape(p, out, &n) != 0) return -1;
            continue;
        }
        int length = utf8_sequence((const uint8_t *)p->text + p->at, p->size - p->at);
        if (length == 0) return json_fail(p, "a string is not valid UTF-8");
        memcpy(out + n, p->text + p->at, (size_t)length);
        n += (size_t)length;
        p->at += (size_t)length;
    }
    p->at++;
    out[n] = '\0';
    p->strings_used += n + 1;
    *string = out;
    return 0;
}

static inline bool json_digits(JsonParser *p) {
    size_t before = p->at;
    while (p->at < p->size && p->text[p->at] >= '0' && p->text[p->at] <= '9') p->at++;
    return p->at > before;
}

static inline int json_parse_number(JsonParser *p, JsonValue *v) {
    size_t begin = p->at;
    bool whole = true;
    json_take(p, '-');
    if (!json_take(p, '0') && !json_digits(p)) return json_fail(p, "a value was expected");
    if (json_take(p, '.')) {
        whole = false;
        if (!json_digits(p)) return json_fail(p, "a digit was expected after the decimal point");
    }
    if (json_take(p, 'e') || json_take(p, 'E')) {
        whole = false;
        if (!json_take(p, '+')) json_take(p, '-');
        if (!json_digits(p)) return json_fail(p, "a digit was expected in the exponent");
    }
    char copy[128];
    size_t length = p->at - begin;
    if (length >= sizeof copy) return json_fail(p, "a number has more than 127 characters");
    memcpy(copy, p->text + begin, length);
    copy[length] = '\0';
    v->type = JSON_NUMBER;
    v->number = strtod(copy, NULL);
    if (!isfinite(v->number)) return json_fail(p, "a number is too large");
    if (whole) {
        errno = 0;
        v->integer = strtoll(copy, NULL, 10);
        v->is_integer = errno == 0;
    }
    return 0;
}

static inline int json_new_value(JsonParser *p) {
    Json *j = p->out;
    if (j->count == j->capacity) {
        if (j->capacity > INT32_MAX / 2) return json_fail(p, "there are too many values");
        j->capacity = j->capacity ? 2 * j->capacity : 64;
        j->values = (JsonValue *)xrealloc(j->values, (size_t)j->capacity * sizeof *j->values);
    }
    JsonValue *v = &j->values[j->count];
    memset(v, 0, sizeof *v);
    v->child = v->next = -1;
    return j->count++;
}

static inline size_t json_key_slot(const JsonParser *p, int parent, const char *key) {
    return hash_slot(hash_bytes(hash_bytes(HASH_BEGIN, &parent, sizeof parent), key, strlen(key)), p->slot_count);
}

/* Enters the key of value v, a child of `parent`, into the set; false when the parent has that key already. */
static inline bool json_add_key(JsonParser *p, int parent, int v) {
    const JsonValue *values = p->out->values;
    if (2 * (p->slots_used + 1) > p->slot_count) {
        size_t old_count = p->slot_count;
        int *old = p->slots;
        p->slot_count = old_count ? 2 * old_count : 128;
        p->slots = (int *)xmalloc(p->slot_count * 2 * sizeof *p->slots);
        memset(p->slots, 0xff, p->slot_count * 2 * sizeof *p->slots);
        for (size_t i = 0; i < old_count; i++) {
            if (old[2 * i + 1] < 0) continue;
            size_t at = json_key_slot(p, old[2 * i], values[old[2 * i + 1]].key);
            while (p->slots[2 * at + 1] >= 0) at = (at + 1) & (p->slot_count - 1);
            memcpy(p->slots + 2 * at, old + 2 * i, 2 * sizeof *old);
        }
        free(old);
    }
    size_t at = json_key_slot(p, parent, values[v].key);
    for (; p->slots[2 * at + 1] >= 0; at = (at + 1) & (p->slot_count - 1))
        if (p->slots[2 * at] == parent && !strcmp(values[p->slots[2 * at + 1]].key, values[v].key)) return false;
    p->slots[2 * at] = parent;
    p->slots[2 * at + 1] = v;
    p->slots_used++;
    return true;
}

static inline int json_parse_value(JsonParser *p, int depth, const char *key);

/* Parses the children of value `self`, after its opening bracket. */
static inline int json_parse_children(JsonParser *p, int self, int depth) {
    bool object = p->out->values[self].type == JSON_OBJECT;
    char close = object ? '}' : ']';
    int previous = -1;
    json_skip_space(p);
    if (json_take(p, close)) return 0;
    for (;;) {
        const char *key = NULL;
        json_skip_space(p);
        if (object) {
            if (json_parse_string(p, &key) != 0) return -1;
            json_skip_space(p);
            if (!json_take(p, ':')) return json_fail(p, "a colon was expected after a key");
        }
        int v = json_parse_value(p, depth + 1, key);
        if (v < 0) return -1;
        if (object && !json_add_key(p, self, v)) return json_fail(p, "a key occurs twice in one object,");
        if (previous < 0)
            p->out->values[self].child = v;
        else
            p->out->values[previous].next = v;
        previous = v;
        p->out->values[self].count++;
        json_skip_space(p);
        if (json_take(p, close)) return 0;
        if (!json_take(p, ','))
            return json_fail(p, object ? "a comma or } was expected" : "a comma or ] was expected");
    }
}

/* Parses any value. Returns its index in values, or -1. */
static inline int json_parse_value(JsonParser *p, int depth, const char *key) {
    static const char *const words[] = {"null", "false", "true"};
    if (depth > JSON_MAX_DEPTH) return json_fail(p, "there are more than 64 nested levels");
    json_skip_space(p);
    int self = json_new_value(p);
    if (self < 0) return -1;
    JsonValue *v = &p->out->values[self];
    v->key = key;
    char c = p->at < p->size ? p->text[p->at] : '\0';
    if (c == '{' || c == '[') {
        v->type = c == '{' ? JSON_OBJECT : JSON_ARRAY;
        p->at++;
        return json_parse_children(p, self, depth) == 0 ? self : -1;
    }
    if (c == '"') {
        v->type = JSON_STRING;
        return json_parse_string(p, &v->string) == 0 ? self : -1;
    }
    for (int i = 0; i < 3; i++) {
        size_t length = strlen(words[i]);
        if (p->size - p->at < length || memcmp(p->text + p->at, words[i], length) != 0) continue;
        v->type = i == 0 ? JSON_NULL : JSON_BOOL;
        v->boolean = i == 2;
        p->at += length;
        return self;
    }
    return json_parse_number(p, v) == 0 ? self : -1;
}

/* Parses `size` bytes of text; `name` says in error messages what is parsed ("the header of FILE"). Free with
 * json_free; after an error there is nothing to free. */
static inline int json_parse(Json *j, const char *text, size_t size, const char *name, Error *err) {
    memset(j, 0, sizeof *j);
    JsonParser p;
    memset(&p, 0, sizeof p);
    p.text = text;
    p.size = size;
    p.name = name;
    p.out = j;
    p.err = err;
    j->strings = (char *)xmalloc(size + 1);  // enough: a string and its NUL are shorter than its text with quotes
    int status = json_parse_value(&p, 0, NULL) < 0 ? -1 : 0;
    if (status == 0) {
        json_skip_space(&p);
        if (p.at != size) status = json_fail(&p, "there is text after the end");
    }
    free(p.slots);
    if (status != 0) json_free(j);
    return status;
}

/* The index in values of the member `key` of an object; -1 when there is none, or `object` is not an object. */
static inline int json_find(const Json *j, int object, const char *key) {
    if (object < 0 || j->values[object].type != JSON_OBJECT) return -1;
    int v = j->values[object].child;
    while (v >= 0 && strcmp(j->values[v].key, key) != 0) v = j->values[v].next;
    return v;
}

/* The member `key` if it is true or false, else `otherwise`. */
static inline bool json_get_bool(const Json *j, int object, const char *key, bool otherwise) {
    int v = json_find(j, object, key);
    return v >= 0 && j->values[v].type == JSON_BOOL ? j->values[v].boolean : otherwise;
}

/* The member `key` if it is a string, else NULL. */
static inline const char *json_get_string(const Json *j, int object, const char *key) {
    int v = json_find(j, object, key);
    return v >= 0 ? j->values[v].string : NULL;
}

/* ---- writing ---- */

/* Builds JSON in a growing string. Initialize it with zeros; it inserts the commas itself. */
typedef struct {
    char *text;
    size_t length, capacity;
    bool comma;  // a value precedes at this level, so the next one needs a comma
} JsonWriter;

static inline void json_append(JsonWriter *w, const char *bytes, size_t n) {
    if (w->capacity - w->length <= n) {
        w->capacity = 2 * (w->length + n) + 256;
        w->text = (char *)xrealloc(w->text, w->capacity);
    }
    memcpy(w->text + w->length, bytes, n);
    w->length += n;
    w->text[w->length] = '\0';
}

static inline void json_append_value(JsonWriter *w, const char *text) {
    if (w->comma) json_append(w, ",", 1);
    json_append(w, text, strlen(text));
    w->comma = true;
}

static inline void json_begin(JsonWriter *w, const char *bracket) {
    json_append_value(w, bracket);
    w->comma = false;
}

static inline void json_end(JsonWriter *w, const char *bracket) {
    json_append(w, bracket, 1);
    w->comma = true;
}

static inline void json_begin_object(JsonWriter *w) { json_begin(w, "{"); }
static inline void json_end_object(JsonWriter *w) { json_end(w, "}"); }
static inline void json_begin_array(JsonWriter *w) { json_begin(w, "["); }
static inline void json_end_array(JsonWriter *w) { json_end(w, "]"); }
static inline void json_bool(JsonWriter *w, bool b) { json_append_value(w, b ? "true" : "false"); }
static inline void json_null(JsonWriter *w) { json_append_value(w, "null"); }

/* Writes n bytes as a string. Invalid UTF-8 becomes U+FFFD, so that the output is always valid JSON. */
static inline void json_string_bytes(JsonWriter *w, const char *s, size_t n) {
    json_append_value(w, "\"");
    for (size_t i = 0; i < n;) {
        uint8_t c = (uint8_t)s[i];
        const char *from = "\"\\\b\f\n\r\t", *to = "\"\\bfnrt";
        const char *special = c ? strchr(from, c) : NULL;
        char escape[8];
        int length = utf8_sequence((const uint8_t *)s + i, n - i);
        if (special) {
            escape[0] = '\\';
            escape[1] = to[special - from];
            json_append(w, escape, 2);
        } else if (c < 0x20 || c == 0x7f) {
            snprintf(escape, sizeof escape, "\\u%04x", c);
            json_append(w, escape, 6);
        } else if (length == 0) {
            json_append(w, "\xef\xbf\xbd", 3);
        } else {
            json_append(w, s + i, (size_t)length);
        }
        i += length ? (size_t)length : 1;
    }
    json_append(w, "\"", 1);
}

/* Writes a string, or null for NULL. */
static inline void json_string(JsonWriter *w, const char *s) {
    if (s)
        json_string_bytes(w, s, strlen(s));
    else
        json_null(w);
}

static inline void json_key(JsonWriter *w, const char *key) {
    json_string(w, key);
    json_append(w, ":", 1);
    w->comma = false;
}

static inline void json_integer(JsonWriter *w, int64_t x) {
    char s[32];
    snprintf(s, sizeof s, "%lld", (long long)x);
    json_append_value(w, s);
}

/* Writes the shortest decimal that reads back as the same double. NaN and infinities become null. */
static inline void json_number(JsonWriter *w, double x) {
    char s[40] = "null";
    for (int digits = 15; isfinite(x) && digits <= 17; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, x);
        if (strtod(s, NULL) == x) break;
    }
    json_append_value(w, s);
}

/* Writes the shortest decimal that reads back as the same float: 0.1f becomes 0.1. */
static inline void json_float(JsonWriter *w, float x) {
    char s[40] = "null";
    for (int digits = 6; isfinite(x) && digits <= 9; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, (double)x);
        if (strtof(s, NULL) == x) break;
    }
    json_append_value(w, s);
}

/* Writes the JSON as one line to f and empties the writer but keeps its memory. Returns 0, or -1 with errno set. */
static inline int json_write_line(JsonWriter *w, FILE *f) {
    json_append(w, "\n", 1);
    bool ok = fwrite(w->text, 1, w->length, f) == w->length && fflush(f) == 0;
    w->length = 0;
    w->comma = false;
    return ok ? 0 : -1;
}

static inline void json_writer_free(JsonWriter *w) {
    free(w->text);
    memset(w, 0, sizeof *w);
}

#endif
