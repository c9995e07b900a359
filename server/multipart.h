/* Forms with files: multipart/form-data (RFC 7578) whose body is in memory. */
#ifndef SERVER_MULTIPART_H
#define SERVER_MULTIPART_H

#include "../lib/error.h"

#include <strings.h>

enum { MULTIPART_BOUNDARY = 70, MULTIPART_PARTS = 64, MULTIPART_HEADER = 4096 };

typedef struct {
    const char *body;
    size_t size, at;
    char delimiter[MULTIPART_BOUNDARY + 5];  // "\r\n--" and the boundary
    size_t delimiter_bytes;
    int parts;
} Multipart;

typedef struct {
    char name[64];  // of the field
    const char *bytes;
    size_t size;
} MultipartPart;

/* The place of the next ';' from `at` on that is not in quotes; n: there is none. */
static inline size_t multipart_next_parameter(const char *header, size_t n, size_t at) {
    for (bool quoted = false; at < n && (quoted || header[at] != ';'); at++) {
        if (header[at] == '"') quoted = !quoted;
        if (quoted && header[at] == '\\') at++;
    }
    return at < n ? at : n;
}

/* Copies the value of a parameter, name="value" or name=value behind a ';', of a header's text of n bytes. False: it is not
 * there, empty, or too long. */
static inline bool multipart_parameter(const char *header, size_t n, const char *name, char *out, size_t capacity) {
    const size_t length = strlen(name);
    for (size_t i = 0; (i = multipart_next_parameter(header, n, i)) < n;) {
        while (++i < n && (header[i] == ' ' || header[i] == '\t')) {}
        if (n - i <= length || strncasecmp(header + i, name, length) || header[i + length] != '=') continue;
        size_t at = i + length + 1, used = 0;
        const bool quoted = at < n && header[at] == '"';
        at += quoted;
        while (at < n && header[at] && (quoted ? header[at] != '"' : !strchr("; \t\r\n", header[at]))) {
            if (quoted && header[at] == '\\' && at + 1 < n) at++;
            if (used + 1 >= capacity) return false;
            out[used++] = header[at++];
        }
        out[used] = 0;
        return used > 0 && (!quoted || (at < n && header[at] == '"'));
    }
    return false;
}

/* Begins to read a body, after which a 0 stands, with the boundary that the content type names. */
static inline int multipart_begin(Multipart *m, const char *content_type, const char *body, size_t size, Error *err) {
    *m = (Multipart){.body = body, .size = size};
    memcpy(m->delimiter, "\r\n--", 4);
    if (!multipart_parameter(content_type, strlen(content_type), "boundary", m->delimiter + 4,
                             MULTIPART_BOUNDARY + 1))
        return error_set(err, "the form's content type names no boundary of up to %d characters", MULTIPART_BOUNDARY);
    m->delimiter_bytes = strlen(m->delimiter);
    const char *first = (const char *)memmem(body, size, m->delimiter + 2, m->delimiter_bytes - 2);
    if (!first || (first != body && (first < body + 2 || memcmp(first - 2, "\r\n", 2))))
        return error_set(err, "the form is broken: its boundary '%s' does not come", m->delimiter + 4);
    m->at = (size_t)(first - body) + m->delimiter_bytes - 2;
    return 0;
}

/* The name of the field from the part's headers of n bytes. */
static inline int multipart_name(MultipartPart *p, const char *headers, size_t n, Error *err) {
    static const char wanted[] = "content-disposition:";
    for (size_t at = 0; at < n;) {
        const char *end = (const char *)memmem(headers + at, n - at, "\r\n", 2);
        const size_t line = end ? (size_t)(end - headers) - at : n - at;
        if (line > sizeof wanted - 1 && !strncasecmp(headers + at, wanted, sizeof wanted - 1) &&
            multipart_parameter(headers + at, line, "name", p->name, sizeof p->name))
            return 0;
        at += line + 2;
    }
    return error_set(err, "the form is broken: a part has no Content-Disposition with a name of up to %zu characters",
                     sizeof p->name - 1);
}

/* Reads the next part. Returns 1; 0 at the end; -1 with *err filled where the form is broken. */
static inline int multipart_next(Multipart *m, MultipartPart *p, Error *err) {
    const char *at = m->body + m->at, *all = m->body + m->size;
    if (all - at >= 2 && !memcmp(at, "--", 2)) return 0;
    while (at < all && (*at == ' ' || *at == '\t')) at++;  // transport padding
    if (all - at < 2 || memcmp(at, "\r\n", 2))
        return error_set(err, "the form is broken: it ends without its last boundary");
    if (++m->parts > MULTIPART_PARTS) return error_set(err, "the form has more than %d parts", MULTIPART_PARTS);
    const size_t capacity = (size_t)(all - at);
    const char *blank =
        (const char *)memmem(at, capacity < MULTIPART_HEADER ? capacity : MULTIPART_HEADER, "\r\n\r\n", 4);
    if (!blank) return error_set(err, "the form is broken: the headers of a part do not end");
    const char *begin = blank + 4;
    if (blank == at || multipart_name(p, at + 2, (size_t)(blank - at - 2), err))
        return blank == at ? error_set(err, "the form is broken: a part has no headers") : -1;
    // an empty part's delimiter begins with the headers' last line end
    const char *end = (const char *)memmem(begin - 2, (size_t)(all - begin) + 2, m->delimiter, m->delimiter_bytes);
    if (!end) return error_set(err, "the form is broken: the part %s does not end with the boundary", p->name);
    p->bytes = begin;
    p->size = end > begin ? (size_t)(end - begin) : 0;
    m->at = (size_t)(end - m->body) + m->delimiter_bytes;
    return 1;
}

#endif
