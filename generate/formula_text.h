/* How infer prints a formula: without the spaces that TeX does not need, and between the delimiters of math mode that are wanted. */
#ifndef GENERATE_FORMULA_TEXT_H
#define GENERATE_FORMULA_TEXT_H

#include "../lib/error.h"

typedef enum { FORMULA_PLAIN, FORMULA_INLINE, FORMULA_DISPLAY } FormulaStyle;

/* What stands before and behind a formula of each style. */
static const char *const formula_delimiters[][2] = {
    [FORMULA_PLAIN] = {"", ""}, [FORMULA_INLINE] = {"$", "$"}, [FORMULA_DISPLAY] = {"\\[", "\\]"}};

static inline bool formula_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/* The bytes of a command at `text`, which begins with a backslash: its letters, or one other character; for commands whose
 * argument is text (\text{...}, \mbox{...}), all of that too, in which spaces count. */
static inline size_t formula_command(const char *text, size_t n) {
    size_t end = 1;
    while (end < n && formula_letter(text[end])) end++;
    if (end == 1) return n < 2 ? n : 2;
    const bool words = !strncmp(text, "\\text", 5) || (end == 5 && !strncmp(text, "\\mbox", 5));
    if (!words || end == n || text[end] != '{') return end;
    int depth = 0;
    for (size_t at = end; at < n; at++) {
        depth += text[at] == '{' ? 1 : text[at] == '}' ? -1 : 0;
        at += text[at] == '\\';
        if (depth == 0) return at + 1;
    }
    return n;
}

/* Takes out the spaces behind commands that no letter follows, and those at both ends. Returns the formula, allocated and ended
 * by a line end, of *size bytes. The text of a model may hold any bytes. */
static inline char *formula_tidy(const char *text, size_t n, size_t *size) {
    char *out = xmalloc(n + 3);
    size_t to = 0;
    while (n > 0 && strchr(" \t\r\n", text[n - 1]) && text[n - 1]) n--;
    for (size_t at = 0; at < n;) {
        const size_t length = text[at] == '\\' ? formula_command(text + at, n - at) : 1;
        const bool named = length > 1 && formula_letter(text[at + length - 1]);
        if (to > 0 || text[at] != ' ') {
            memcpy(out + to, text + at, length);
            to += length;
        }
        at += length;
        size_t space = at;
        while (named && space < n && text[space] == ' ') space++;
        if (named && space < n && !formula_letter(text[space])) at = space;
    }
    // "\ " at the end is a space that was written on purpose
    if (to > 0 && out[to - 1] == '\\' && (to < 2 || out[to - 2] != '\\')) out[to++] = ' ';
    out[to++] = '\n';
    out[to] = 0;
    *size = to;
    return out;
}

/* The formula, and the line end behind it, with the delimiters of a style around it; allocated, of *size bytes. FORMULA_PLAIN: a copy
 * of any text. */
static inline char *formula_wrap(FormulaStyle style, const char *text, size_t n, size_t *size) {
    const char *const *delimiters = formula_delimiters[style];
    const size_t before = strlen(delimiters[0]), behind = strlen(delimiters[1]), end = n > 0 && text[n - 1] == '\n';
    char *out = xmalloc(before + n + behind + 1);
    memcpy(out, delimiters[0], before);
    memcpy(out + before, text, n - end);
    memcpy(out + before + n - end, delimiters[1], behind);
    memcpy(out + before + n - end + behind, "\n", end);
    *size = before + n + behind;
    out[*size] = 0;
    return out;
}

#endif
