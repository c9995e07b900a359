/* The text of a figure that is being written, for generators of figures. */
#ifndef STARTER_TEXT_H
#define STARTER_TEXT_H

#include "../../lib/error.h"

#include <stdarg.h>
#include <stdio.h>

#define COUNT_OF(a) ((int)(sizeof(a) / sizeof((a)[0])))

typedef struct {
    char s[4096];
    size_t n;
} Text;

/* Appends formatted text. */
__attribute__((format(printf, 2, 3))) static inline void put(Text *t, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(t->s + t->n, sizeof t->s - t->n, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof t->s - t->n) die("a figure is longer than %zu bytes", sizeof t->s);
    t->n += n;
}

#endif
