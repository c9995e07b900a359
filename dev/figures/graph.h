/* Graphs: circles at any place of the lattice, joined by lines or arrows, with weights and marked paths. */
#ifndef FIGURES_GRAPH_H
#define FIGURES_GRAPH_H

#include "labels.h"

enum { VERTICES_MAX = 9, ARCS_MAX = 16 };

typedef struct {
    int n, arcs, from[ARCS_MAX], to[ARCS_MAX];
    Point at[VERTICES_MAX];
} Net;

static inline int point_compare(const void *a, const void *b) {
    return point_order(*(const Point *)a, *(const Point *)b);
}

/* Places vertices at least `gap` apart in a box whose longer side is a whole number of cm, all of it used. */
static inline bool place_vertices(Net *g, int width, int height, double gap) {
    int x1 = 0, y1 = 0, x0 = width, y0 = height;
    for (int i = 0, tries = 0; i < g->n; tries++) {
        if (tries > 300) return false;
        Point p = point(choose(width + 1), choose(height + 1));
        if (i < 4 && chance(70))
            p = i % 2 ? point(choose(width + 1), chance(50) ? 0 : height)
                      : point(chance(50) ? 0 : width, choose(height + 1));
        bool clear = true;
        for (int k = 0; k < i; k++) clear = clear && point_distance(p, g->at[k]) >= gap;
        if (clear) g->at[i++] = p;
    }
    for (int i = 0; i < g->n; i++) {
        Point p = g->at[i];
        x0 = p.x < x0 ? p.x : x0, x1 = p.x > x1 ? p.x : x1, y0 = p.y < y0 ? p.y : y0, y1 = p.y > y1 ? p.y : y1;
    }
    qsort(g->at, g->n, sizeof g->at[0], point_compare);
    return x0 == 0 && y0 == 0 && x1 == width && y1 == height;
}

/* Whether an edge between i and j meets no other vertex and no other edge. */
static inline bool arc_is_clear(const Net *g, int i, int j) {
    for (int k = 0; k < g->n; k++)
        if (k != i && k != j && segment_distance(g->at[k], g->at[i], g->at[j]) < 2.5) return false;
    for (int k = 0; k < g->arcs; k++) {
        int a = g->from[k], b = g->to[k];
        if (a == i && b == j) return false;
        Segment s = segment(g->at[a], g->at[b]), r = segment(g->at[i], g->at[j]);
        if (segments_cross(s, r) || ((a == i || b == j || a == j || b == i) && segment_sine(s, r) < 0.35 &&
                                     point_distance(g->at[a], g->at[b]) > 0 && !(a == j || b == i)))
            return false;
    }
    return true;
}

static inline bool join_vertices(Net *g, int extra) {
    int part[VERTICES_MAX], pairs[VERTICES_MAX * VERTICES_MAX], n = g->n;
    bool joined[VERTICES_MAX][VERTICES_MAX] = {{false}};
    for (int i = 0; i < n; i++) part[i] = i;
    for (int i = 0; i < n * n; i++) pairs[i] = i;
    shuffle(pairs, n * n);
    g->arcs = 0;
    for (int pass = 0; pass < 2; pass++)  // edges that join two parts, then additional ones
        for (int k = 0; k < n * n && g->arcs < ARCS_MAX; k++) {
            int i = pairs[k] / n, j = pairs[k] % n;
            if (i >= j || (pass == 0) != (part[i] != part[j]) || !arc_is_clear(g, i, j) || (pass && !chance(extra)))
                continue;
            joined[i][j] = true, g->from[g->arcs] = i, g->to[g->arcs++] = j;
            for (int c = part[j], m = 0; m < n; m++)
                if (part[m] == c) part[m] = part[i];
        }
    for (int i = 1; i < n; i++)
        if (part[i] != part[0]) return false;
    g->arcs = 0;  // again, in order
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            if (joined[i][j]) g->from[g->arcs] = i, g->to[g->arcs++] = j;
    return true;
}

/* Writes the edges; some of a directed graph's run backward, some are marked. */
static inline void put_arcs(Text *t, const Net *g, int level, bool weighted) {
    const char *arrow = chance(50) ? chance(60) ? "-latex" : "->" : NULL,
               *mark = level > 3 && chance(50) ? random_colour() : NULL;
    const char *dash = level > 3 && chance(30) ? "dashed" : NULL;
    for (int k = 0; k < g->arcs; k++) {
        bool backward = arrow && chance(30);
        Style s = {.arrow = arrow};
        if (mark && chance(30))
            s.colour = mark, s.thick = true;
        else if (dash && chance(30))
            s.dash = dash;
        put(t, "  \\draw");
        put_style(t, &s);
        put(t, " (%c) -- ", 'a' + (backward ? g->to[k] : g->from[k]));
        if (weighted) put(t, "node[fill=white] {%d} ", choose_between(1, 9));
        put(t, "(%c);\n", 'a' + (backward ? g->from[k] : g->to[k]));
    }
}

static inline bool graph_figure(Text *t, int level) {
    static const int most[] = {0, 0, 4, 5, 7, 9};
    Net g = {.n = choose_between(level == 2 ? 3 : most[level - 1], most[level])};
    int width = 4 * choose_between(g.n > 6 ? 5 : 4, 6), height = choose_between(g.n > 6 ? 14 : 8, width);
    if (chance(35)) {
        int swap = width;
        width = height, height = swap;
    }
    bool weighted = level > 2 && chance(35);
    if (!place_vertices(&g, width, height, weighted ? 7 : 5) || !join_vertices(&g, 10 * level)) return false;
    Label label[VERTICES_MAX];
    random_labels(label, g.n, (LabelKind[]){LETTERS, DIGITS, SUBSCRIPTS}[choose(3)]);
    bool dots = !weighted && chance(15), some = level > 2 && chance(30);
    const char *tint = chance(35) ? random_tint() : NULL;
    begin_picture(t, "");
    for (int i = 0; i < g.n; i++) {
        Style s = {
            .shape = "circle", .draw = true, .tight = true, .size = 2, .fill = some && chance(50) ? NULL : tint};
        if (dots) s = (Style){.shape = "circle", .tight = true, .size = 1, .fill = "black"};
        put_node(t, &s, (char)('a' + i), g.at[i], dots ? "" : label[i]);
    }
    put_arcs(t, &g, level, weighted);
    end_picture(t);
    return true;
}

#endif
