/* Errors and memory.
 *
 * Functions that can fail on what a user gives them return 0 or -1 and leave one sentence in an Error: what was being
 * read, where, what was expected, what was found, what to do. Only programs call die(). */
#ifndef LIB_ERROR_H
#define LIB_ERROR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE  // POSIX functions under -std=c11; takes effect when no system header came before
#endif

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char text[1024];
} Error;

static const char *program_name_text = "tikz.c";
static bool stderr_line_open = false;  // a progress bar stands on the current line of stderr (lib/progress.h)

/* Sets the program name that every message begins with: the last component of `path`, which is argv[0]. */
static inline void program_name_set(const char *path) {
    const char *slash = path ? strrchr(path, '/') : NULL;
    if (path && *path) program_name_text = slash ? slash + 1 : path;
}

/* Fills err (which may be NULL) and returns -1, so that `return error_set(err, ...)` reads as one step. */
__attribute__((format(printf, 2, 3))) static inline int error_set(Error *err, const char *format, ...) {
    if (!err) return -1;
    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    return -1;
}

/* Replaces control characters by '?': the name of a file may hold line ends and commands to the terminal. */
static inline char *printable(char *text) {
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127) *p = '?';
    return text;
}

/* Prints "NAME: KIND: sentence" on stderr, clearing a progress bar first. The line is formatted before it is written,
 * so that the messages of several processes do not interleave. */
static inline void error_print(const char *kind, const char *format, va_list args) {
    char text[2048];
    vsnprintf(text, sizeof text, format, args);
    printable(text);
    fflush(stdout);
    fprintf(stderr, "%s%s: %s: %s\n", stderr_line_open ? "\r\033[K" : "", program_name_text, kind, text);
    stderr_line_open = false;
}

/* In a data-parallel run, the function that ends all ranks with this rank's error sentence (set by dist/comm.h); it
 * does not return. The symbol is weak, so that every object of a program shares one variable and a die() in kernels/
 * calls the hook too. */
__attribute__((weak)) void (*die_hook)(const char *text) = NULL;

/* For programs only: prints "NAME: error: ..." on stderr and exits with status 1. */
__attribute__((format(printf, 1, 2), noreturn)) static inline void die(const char *format, ...) {
    va_list args;
    if (die_hook) {
        Error sentence;
        va_start(args, format);
        vsnprintf(sentence.text, sizeof sentence.text, format, args);
        va_end(args);
        die_hook(sentence.text);
    }
    va_start(args, format);
    error_print("error", format, args);
    va_end(args);
    exit(1);
}

/* Calls die() with the sentence in err when a function has returned failure. */
static inline void die_if(int failed, const Error *err) {
    if (failed) die("%s", err->text);
}

/* Prints the sentence of die() but returns: for a program that continues, for example with the next image. */
__attribute__((format(printf, 1, 2))) static inline void report_error(const char *format, ...) {
    va_list args;
    va_start(args, format);
    error_print("error", format, args);
    va_end(args);
}

__attribute__((format(printf, 1, 2))) static inline void warn(const char *format, ...) {
    va_list args;
    va_start(args, format);
    error_print("warning", format, args);
    va_end(args);
}

/* malloc, calloc and realloc that end the program when memory runs out. A size of 0 returns a valid pointer too. */
static inline void *xmalloc(size_t size) {
    void *p = malloc(size ? size : 1);
    if (!p) die("out of memory: %zu bytes were asked for; use a smaller model, batch or cache", size);
    return p;
}

static inline void *xcalloc(size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) die("out of memory: %zu times %zu bytes were asked for", count, size);
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p) die("out of memory: %zu bytes were asked for; use a smaller model, batch or cache", count * size);
    return p;
}

static inline void *xrealloc(void *old, size_t size) {
    void *p = realloc(old, size ? size : 1);
    if (!p) die("out of memory: %zu bytes were asked for; use a smaller model, batch or cache", size);
    return p;
}

static inline char *xstrdup(const char *s) {
    size_t size = strlen(s) + 1;
    return (char *)memcpy(xmalloc(size), s, size);
}

/* printf into a newly allocated string of exactly the length needed; the caller frees it. */
__attribute__((format(printf, 1, 2))) static inline char *format_string(const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (length < 0) die("cannot format a message: the text after '%s' is not valid", format);
    char *s = (char *)xmalloc((size_t)length + 1);
    vsnprintf(s, (size_t)length + 1, format, again);
    va_end(again);
    return s;
}

#endif
