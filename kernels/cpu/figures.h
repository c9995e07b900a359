/* The figures of positions from rows of logits (kernels/figures.h). A thread has a row at a time: it is read from memory once,
 * and further passes find it, its exponentials and its ranks in the cache. */
#ifndef KERNELS_CPU_FIGURES_H
#define KERNELS_CPU_FIGURES_H

#include "../ops.h"
#include "rank.h"
#include "softmax.h"

/* A thread's memory. */
typedef struct {
    double *exp[2];  // [V, whole vectors]: exponentials at T, of s, of t
    int *twice[2];   // [V, whole vectors]: twice the ranks
    RankScratch rank;
} FiguresScratch;

static FiguresScratch figures_scratch(size_t V) {
    const size_t whole = round_up(V, LANES);
    char *memory = (char *)scratch(SCRATCH_A, 2 * whole * (sizeof(double) + sizeof(int)) + rank_scratch_bytes(V));
    FiguresScratch m;
    for (int i = 0; i < 2; i++, memory += whole * sizeof(double)) m.exp[i] = (double *)(void *)memory;
    for (int i = 0; i < 2; i++, memory += whole * sizeof(int)) m.twice[i] = (int *)(void *)memory;
    m.rank = rank_scratch(memory, V);
    return m;
}

/* The logits of one model: all its ids' or, of these, the first V, which are compared; with their ranges. */
typedef struct {
    const float *x;
    int own, V;
    RowRange shared, rest;  // of x[:V] and x[V:]
} FiguresRow;

static FiguresRow figures_row(const float *x, int own, int V) {
    return (FiguresRow){x, own, V, row_range(x, (size_t)V), row_range(x + V, (size_t)(own - V))};
}

static inline bool figures_finite(const FiguresRow *r) { return r->shared.finite && r->rest.finite; }

/* The sums over one model's row, whose exponentials and ranks are left in memory `i`. */
static FigureSums figures_sum(const FiguresScratch *m, int i, const FiguresRow *row, double T) {
    const size_t V = (size_t)row->V;
    FigureSums s, rest;
    rank_averages(m->twice[i], &m->rank, row->x, row->V, row->shared);
    memset(m->twice[i] + V, 0, (round_up(V, VD_LANES) - V) * sizeof(int));
    softmax_row(&s, m->exp[i], m->twice[i], row->x, V, (double)row->shared.high, T);
    if (row->own > row->V) {
        softmax_row(&rest, NULL, NULL, row->x + V, (size_t)(row->own - row->V), (double)row->rest.high, 1);
        softmax_join(&s, &rest);
    }
    return s;
}

/* The figures of one position: s [Vs], t [Vt] or NULL. */
static void figures_of_row(LogitsFigures *out, const float *s, const float *t, int label, double T, int Vs, int Vt) {
    const int V = t && Vt < Vs ? Vt : Vs;
    const FiguresScratch m = figures_scratch((size_t)V);
    const FiguresRow student = figures_row(s, Vs, V);
    FigureTops tops = {.count = 0};
    double *value = out->value, aa, bb, ab;
    memset(out, 0, sizeof *out);
    if (!figures_finite(&student)) {
        out->state = FIGURES_BAD_STUDENT;
        return;
    }
    const FiguresRow teacher = t ? figures_row(t, Vt, V) : student;
    if (!figures_finite(&teacher)) {
        out->state = FIGURES_BAD_TEACHER;
        return;
    }
    const FigureSums sums = figures_sum(&m, 0, &student, T);
    const FigureTops s_tops = rank_top(s, Vs, FIGURES_TOP);
    figures_of_model(value, &sums, (double)s[label], V);
    if (t) {
        const FigureSums its = figures_sum(&m, 1, &teacher, T);
        const DivergenceSums both = softmax_divergences(t, &its, m.exp[1], s, &sums, m.exp[0], (size_t)V, T);
        tops = rank_top(t, V, FIGURES_TOP);
        figures_of_model(value + FIGURE_TEACHER, &its, (double)t[label], V);
        value[FIGURE_TEACHER + SIDE_CORRECT] = tops.ids[0] == label && !(teacher.rest.high > teacher.shared.high);
        figures_of_both(value, &both, &its, &sums, T);
        rank_products(&aa, &bb, &ab, m.twice[0], m.twice[1], V);
        figures_of_ranks(value, aa, bb, ab);
    }
    figures_of_tops(value, &s_tops, &tops, label);
}

static void cpu_logits_figures(LogitsFigures *out, const float *student, const float *teacher, const int *labels,
                               double temperature, size_t rows, int Vs, int Vt) {
#pragma omp parallel for schedule(dynamic) if (rows * (size_t)Vs > 4096)
    for (size_t i = 0; i < rows; i++)
        figures_of_row(out + i, student + i * (size_t)Vs, teacher ? teacher + i * (size_t)Vt : NULL, labels[i],
                       temperature, Vs, Vt);
}

#endif
