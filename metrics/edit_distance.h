/* Edit distances of two sequences of symbols: Levenshtein's, and the extended edit distance. */
#ifndef METRICS_EDIT_DISTANCE_H
#define METRICS_EDIT_DISTANCE_H

#include "symbols.h"

/* ---- Levenshtein ---- */

typedef struct {
    uint32_t symbol, row;
} EditRow;

static inline int edit_compare_rows(const void *a, const void *b) {
    const uint32_t x = ((const EditRow *)a)->symbol, y = ((const EditRow *)b)->symbol;
    return x < y ? -1 : x > y;
}

/* The different symbols of a[0, n), sorted, in rows; returns how many. */
static inline size_t edit_alphabet(EditRow *rows, const uint32_t *a, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) rows[i] = (EditRow){a[i], 0};
    qsort(rows, n, sizeof *rows, edit_compare_rows);
    for (size_t i = 0; i < n; i++)
        if (count == 0 || rows[count - 1].symbol != rows[i].symbol) {
            rows[count] = rows[i];
            rows[count].row = (uint32_t)count;
            count++;
        }
    return count;
}

/* The fewest insertions, deletions and substitutions that make b of a, in O(nm/64) (Myers 1999, in blocks of 64 symbols as
 * by Hyyro 2003): a column of the table of distances is kept as bits that say where the distance grows (up) or falls
 * (down) by one from a row to the next. */
static inline size_t edit_distance(const uint32_t *a, size_t n, const uint32_t *b, size_t m) {
    while (n && m && a[0] == b[0]) a++, b++, n--, m--;
    while (n && m && a[n - 1] == b[m - 1]) n--, m--;
    if (n == 0 || m == 0) return n + m;
    const size_t blocks = (n + 63) / 64;
    EditRow *rows = (EditRow *)xmalloc(n * sizeof *rows);
    const size_t count = edit_alphabet(rows, a, n);
    /* where each symbol stands in a; none of it for those that only b has */
    uint64_t *places = (uint64_t *)xcalloc((count + 1) * blocks + 2 * blocks, sizeof *places);
    uint64_t *up = places + (count + 1) * blocks, *down = up + blocks;
    for (size_t i = 0; i < n; i++) {
        const EditRow key = {a[i], 0},
                      *row = (const EditRow *)bsearch(&key, rows, count, sizeof key, edit_compare_rows);
        places[row->row * blocks + i / 64] |= (uint64_t)1 << i % 64;
    }
    memset(up, 0xff, blocks * sizeof *up);
    size_t distance = n;
    for (size_t j = 0; j < m; j++) {
        const EditRow key = {b[j], 0},
                      *row = (const EditRow *)bsearch(&key, rows, count, sizeof key, edit_compare_rows);
        const uint64_t *equal = places + (row ? row->row : count) * blocks;
        uint64_t grows = 1, falls = 0;  // from the last column to this one, in the row above the block
        for (size_t k = 0; k < blocks; k++) {
            const uint64_t last = (uint64_t)1 << (k + 1 == blocks ? (n - 1) % 64 : 63);
            const uint64_t e = equal[k] | falls, x = equal[k] | down[k];
            const uint64_t zero = (((e & up[k]) + up[k]) ^ up[k]) | e;  // diagonals on which it stays the same
            const uint64_t right_up = down[k] | ~(zero | up[k]), right_down = up[k] & zero;
            const uint64_t shifted_up = right_up << 1 | grows, shifted_down = right_down << 1 | falls;
            grows = (right_up & last) != 0;
            falls = (right_down & last) != 0;
            up[k] = shifted_down | ~(x | shifted_up);
            down[k] = shifted_up & x;
        }
        distance = distance + grows - falls;
    }
    free(places);
    free(rows);
    return distance;
}

/* ---- the extended edit distance ---- */

/* Costs, as in Stanchev, Wang and Ney 2019, "EED: Extended Edit Distance Measure for Machine Translation". */
#define EED_JUMP 2.0      // alpha: to any place of the hypothesis, behind a space of the reference
#define EED_COVERAGE 0.3  // rho: for characters of the hypothesis that are used several times, or never
#define EED_DELETION 0.2
#define EED_INSERTION 1.0  // and substitution

/* The extended edit distance of a hypothesis and a reference, both of code points, as torchmetrics computes it: in [0, 1],
 * lower is better. Equal texts do not give 0 but 0.3 / (n + 0.3): a character is counted as never visited where the best
 * path begins. Where the reference is empty it is 1, also of two empty texts. O(nm). */
static inline double extended_edit_distance(const uint32_t *hypothesis, size_t n, const uint32_t *reference,
                                            size_t m) {
    double *row = (double *)xmalloc(2 * (n + 1) * sizeof *row), *next = row + n + 1;
    int *visits = (int *)xmalloc((n + 1) * sizeof *visits);
    double *const memory = row;
    for (size_t i = 0; i <= n; i++) {
        row[i] = i > 0;
        visits[i] = -1;
    }
    for (size_t j = 0; j < m; j++) {
        const uint32_t r = reference[j];
        size_t best = 0;
        double last = next[0] = row[0] + 1, lowest = last;
        for (size_t i = 1; i <= n; i++) {
            const double left = last + EED_DELETION, above = row[i] + EED_INSERTION;
            const double diagonal = row[i - 1] + (hypothesis[i - 1] != r),
                         other = diagonal < above ? diagonal : above;
            next[i] = last = left < other ? left : other;
            if (last < lowest) lowest = last, best = i;
        }
        visits[best]++;
        for (size_t i = 0; r == ' ' && i <= n; i++)
            if (next[i] > EED_JUMP + lowest) next[i] = EED_JUMP + lowest;
        double *const swap = row;
        row = next;
        next = swap;
    }
    double coverage = 0;
    for (size_t i = 0; i <= n; i++) coverage += visits[i] >= 0 ? visits[i] : 1;
    coverage *= EED_COVERAGE;
    const double score = (row[n] + coverage) / ((double)m + coverage);
    free(visits);
    free(memory);
    return score < 1 ? score : 1;
}

#endif
