/* Where two programs differ, for showing them side by side: the pieces (words, commands, numbers, spaces, other characters)
 * that are not part of a longest common subsequence. */
#ifndef METRICS_TEXT_DIFF_H
#define METRICS_TEXT_DIFF_H

#include "../lib/html.h"

typedef struct {
    const char *text;
    int *begins;   // [count + 1], where each piece begins
    bool *marked;  // [count], not in both
    int count;
} DiffText;

enum { DIFF_MOST_PAIRS = 1 << 24 };  // beyond, all between a common beginning and end is marked

static inline int diff_class(unsigned char c) {
    if (c >= 128 || ((c | 32) >= 'a' && (c | 32) <= 'z')) return 1;
    return c >= '0' && c <= '9' ? 2 : c == ' ' || c == '\t' ? 3 : 0;
}

/* Length of the piece at `s`: a command, a word, a number, spaces, or one other character. */
static inline int diff_piece(const char *s) {
    const int kind = diff_class((unsigned char)*s);
    int n = 1;
    if (*s == '\\' && diff_class((unsigned char)s[1]) == 1)
        while (diff_class((unsigned char)s[n]) == 1) n++;
    else if (kind)
        while (diff_class((unsigned char)s[n]) == kind || (kind == 2 && s[n] == '.')) n++;
    return n;
}

static inline void diff_split(DiffText *d, const char *text) {
    const size_t most = strlen(text) + 1;
    *d = (DiffText){.text = text, .begins = (int *)xcalloc(most, sizeof(int)), .marked = (bool *)xcalloc(most, 1)};
    while (text[d->begins[d->count]]) {
        d->begins[d->count + 1] = d->begins[d->count] + diff_piece(text + d->begins[d->count]);
        d->count++;
    }
}

static inline bool diff_same(const DiffText *a, int i, const DiffText *b, int k) {
    const int n = a->begins[i + 1] - a->begins[i];
    return n == b->begins[k + 1] - b->begins[k] && !memcmp(a->text + a->begins[i], b->text + b->begins[k], (size_t)n);
}

/* Marks pieces [a0, a1) and [b0, b1) that are not in a longest common subsequence, whose lengths fill a table from the end. */
static inline void diff_middle(DiffText *a, int a0, int a1, DiffText *b, int b0, int b1) {
    const int n = a1 - a0, m = b1 - b0, width = m + 1;
    for (int i = a0; i < a1; i++) a->marked[i] = true;
    for (int k = b0; k < b1; k++) b->marked[k] = true;
    if ((int64_t)n * m > DIFF_MOST_PAIRS) return;
    int *longest = (int *)xcalloc((size_t)(n + 1) * (size_t)width, sizeof(int));
    for (int i = n - 1; i >= 0; i--)
        for (int k = m - 1; k >= 0; k--) {
            const int *here = longest + (size_t)i * width + k;
            longest[(size_t)i * width + k] = diff_same(a, a0 + i, b, b0 + k) ? here[width + 1] + 1
                                             : here[width] > here[1]         ? here[width]
                                                                             : here[1];
        }
    for (int i = 0, k = 0; i < n && k < m;) {
        const int *here = longest + (size_t)i * width + k;
        if (diff_same(a, a0 + i, b, b0 + k))
            a->marked[a0 + i++] = false, b->marked[b0 + k++] = false;
        else if (here[width] >= here[1])
            i++;
        else
            k++;
    }
    free(longest);
}

/* Splits two texts, which must outlive the result, and marks where they differ. */
static inline void diff_open(DiffText *a, DiffText *b, const char *text_a, const char *text_b) {
    int begin = 0, end = 0;
    diff_split(a, text_a);
    diff_split(b, text_b);
    while (begin < a->count && begin < b->count && diff_same(a, begin, b, begin)) begin++;
    while (end < a->count - begin && end < b->count - begin &&
           diff_same(a, a->count - 1 - end, b, b->count - 1 - end))
        end++;
    diff_middle(a, begin, a->count - end, b, begin, b->count - end);
}

static inline void diff_close(DiffText *d) {
    free(d->begins);
    free(d->marked);
}

/* Writes pieces [i, end) of a text as HTML inside an element. */
static inline void diff_write_inside(FILE *f, const DiffText *d, int i, int end, const char *element) {
    if (i == end) return;
    fprintf(f, "<%s>", element);
    html_bytes(f, (const uint8_t *)d->text + d->begins[i], (size_t)(d->begins[end] - d->begins[i]), false);
    fprintf(f, "</%s>", element);
}

/* Writes both texts as one: what they share, in <del> what only `other` has, and in <mark> what only the first has. */
static inline void diff_write_both(FILE *f, const DiffText *d, const DiffText *other) {
    for (int i = 0, k = 0; i < d->count || k < other->count;) {
        const int i0 = i, k0 = k;
        while (k < other->count && other->marked[k]) k++;
        while (i < d->count && d->marked[i]) i++;
        diff_write_inside(f, other, k0, k, "del");
        diff_write_inside(f, d, i0, i, "mark");
        const int shared = i;
        while (i < d->count && !d->marked[i] && k < other->count && !other->marked[k]) i++, k++;
        html_bytes(f, (const uint8_t *)d->text + d->begins[shared], (size_t)(d->begins[i] - d->begins[shared]),
                   false);
    }
}

#endif
