/* The assignment problem: each of n rows gets a column of its own among m >= n, so that the sum of the costs is the least.
 *
 * The Hungarian method (Kuhn 1955) with shortest augmenting paths and prices (Jonker and Volgenant 1987): row after row is
 * added, and the path over reduced costs that frees a column for it is the shortest. O(n² m). */
#ifndef LIB_ASSIGNMENT_H
#define LIB_ASSIGNMENT_H

#include "error.h"

#include <math.h>

typedef struct {
    const double *cost;  // [n, m]
    int n, m;
    double *row_price, *column_price, *distance;  // distance: of the shortest path to a column
    int *row, *before;  // of a column: the row that has it, and the column before it on the path; -1: none
    bool *done;         // the shortest path to this column is known
} Assignment;

/* The column at the end of the shortest path from row i to a free column; updates the prices of all that the search has seen. */
static inline int assignment_search(Assignment *a, int i) {
    int free_column = -1, current = i, from = -1;
    double length = 0;
    for (int j = 0; j < a->m; j++) a->distance[j] = INFINITY, a->done[j] = false;
    while (free_column < 0) {
        int nearest = -1;
        for (int j = 0; j < a->m; j++) {
            if (a->done[j]) continue;
            const double d =
                length + a->cost[(size_t)current * a->m + j] - a->row_price[current] - a->column_price[j];
            if (d < a->distance[j]) a->distance[j] = d, a->before[j] = from;
            if (nearest < 0 || a->distance[j] < a->distance[nearest]) nearest = j;
        }
        length = a->distance[nearest];
        a->done[nearest] = true;
        from = nearest;
        current = a->row[nearest];
        if (current < 0) free_column = nearest;
    }
    a->row_price[i] += length;
    for (int j = 0; j < a->m; j++) {
        if (!a->done[j] || j == free_column) continue;
        a->row_price[a->row[j]] += length - a->distance[j];
        a->column_price[j] -= length - a->distance[j];
    }
    return free_column;
}

/* column [n]: what each row gets. cost [n, m] holds finite numbers, 0 <= n <= m. */
static inline void assignment_solve(int *column, const double *cost, int n, int m) {
    double *numbers = (double *)xcalloc((size_t)n + 2 * (size_t)m, sizeof *numbers);
    int *whole = (int *)xmalloc((2 * (size_t)m + 1) * sizeof *whole);
    Assignment a = {
        cost, n, m, numbers, numbers + n, numbers + n + m, whole, whole + m, (bool *)xcalloc((size_t)m + 1, 1)};
    for (int j = 0; j < m; j++) a.row[j] = -1;
    for (int i = 0; i < n; i++) {
        int j = assignment_search(&a, i);
        for (; a.before[j] >= 0; j = a.before[j]) a.row[j] = a.row[a.before[j]];
        a.row[j] = i;
    }
    for (int j = 0; j < m; j++)
        if (a.row[j] >= 0) column[a.row[j]] = j;
    free(numbers);
    free(whole);
    free(a.done);
}

#endif
