/* Plots with the package pgfplots: lines, points, bars, functions, with axes, ticks and legends. */
#ifndef FIGURES_PLOT_H
#define FIGURES_PLOT_H

#include "labels.h"

typedef enum { PLOT_LINES, PLOT_POINTS, PLOT_BARS, PLOT_FUNCTIONS } PlotKind;

typedef struct {
    PlotKind kind;
    int series, xmax, ymax;  // functions: x from -xmax to xmax, y from -ymax to ymax
    bool legend;
} Plot;

/* Writes a value, given in tenths of the axis' length. */
static inline void put_value(Text *t, int tenths, int max) {
    int v = tenths * max;
    put(t, v % 10 ? "%d.%d" : "%d", v / 10, v % 10);
}

static inline void put_axis(Text *t, const Plot *p, int level) {
    static const char *const labels[][2] = {
        {"$x$", "$y$"},    {"$t$", "$v$"},    {"$n$", "$T(n)$"}, {"time", "loss"},  {"epoch", "accuracy"},
        {"$x$", "$f(x)$"}, {"size", "error"}, {"$k$", "cost"},   {"$t$", "$h(t)$"}, {"step", "reward"}};
    static const char *const sizes[] = {"width=6cm, height=5cm", "width=6cm, height=4cm", "width=5cm, height=5cm"};
    bool functions = p->kind == PLOT_FUNCTIONS, bars = p->kind == PLOT_BARS;
    const char *const *label = labels[choose(COUNT_OF(labels))];
    put(t, "  \\begin{axis}[%s%s", sizes[p->legend ? 0 : choose(3)], bars ? ", ybar" : "");
    if (bars)
        put(t, ", xtick=data, enlarge x limits=0.2, ymin=0, ymax=%d", p->ymax);
    else
        put(t, ", xmin=%d, xmax=%d, ymin=%d, ymax=%d", functions ? -p->xmax : 0, p->xmax, functions ? -p->ymax : 0,
            p->ymax);
    if (functions && chance(50))
        put(t, ", axis lines=middle");
    else if (!bars && chance(25))
        put(t, ", axis lines=left");
    else if (level > 2 && chance(40))
        put(t, ", grid=major");
    if (!functions && chance(40 + 10 * level)) {
        put(t, ", xlabel=%s", label[0]);
        if (chance(80)) put(t, ", ylabel=%s", label[1]);
    }
    if (p->legend) put(t, ", legend pos=north %s", chance(50) ? "east" : "west");
    put(t, "]\n");
}

/* Writes the points of a series at `n` places; places[i] is in tenths of the axis. used[x] has a bit for each height that is
 * taken at place x: no point lies on another. */
static inline void put_series(Text *t, const Plot *p, int n, int low, int high, int *used) {
    int bars = p->kind == PLOT_BARS, places[12], before = -1;
    for (int i = 0; i < n; i++) places[i] = bars ? i + 1 : i * 10 / (n - 1);
    if (p->kind == PLOT_POINTS) {
        choose_some(places, n, 11);
        for (int i = 1; i < n; i++)
            for (int k = i; k > 0 && places[k - 1] > places[k]; k--) {
                int swap = places[k];
                places[k] = places[k - 1], places[k - 1] = swap;
            }
    }
    put(t, " coordinates {");
    for (int i = 0; i < n; i++) {
        int y = choose_between(low, high);
        if (y == before && p->kind == PLOT_LINES && chance(60)) y = y < high ? y + 1 : y - 1;
        while (!bars && used[places[i]] >> y & 1) y = choose_between(low, high);
        used[places[i]] |= 1 << y;
        before = y;
        put(t, "%s(", i ? " " : "");
        if (bars)
            put(t, "%d", places[i]);
        else
            put_value(t, places[i], p->xmax);
        put(t, ",");
        put_value(t, y, p->ymax);
        put(t, ")");
    }
    put(t, "};\n");
}

static inline void put_function(Text *t, int i, int xmax) {
    static const char *const two[] = {"x^2",    "x",     "x^2-1", "-x",    "x^3", "abs(x)",
                                      "exp(x)", "1-x^2", "0.5*x", "x^3-x", "1",   "exp(-x^2)"};
    static const char *const three[] = {"sin(deg(x))",   "cos(deg(x))", "sin(deg(2*x))", "2*sin(deg(x))",
                                        "x/2",           "abs(x)-1",    "-x/3",          "cos(deg(2*x))",
                                        "2*cos(deg(x))", "1",           "exp(-x^2)",     "x"};
    put(t, ", domain=-%d:%d, samples=50] {%s};\n", xmax, xmax, (xmax == 3 ? three : two)[i]);
}

static inline void put_plots(Text *t, const Plot *p, int level) {
    static const int points[] = {0, 0, 5, 6, 6, 11};
    int order[3], functions[3], used[12] = {0},
                                n = p->kind == PLOT_BARS     ? choose_between(3, p->series > 1 ? 4 : 5)
                                    : p->kind == PLOT_POINTS ? choose_between(5, 8)
                                                             : points[level];
    bool marks = p->kind == PLOT_LINES && chance(40), solid = chance(60);
    choose_some(order, 3, COUNT_OF(line_colours));
    choose_some(functions, 3, 12);
    for (int i = 0; i < p->series; i++) {
        if (p->kind == PLOT_BARS)
            put(t, "    \\addplot[fill=%s%s]", line_colours[order[i]], solid ? "" : "!30");
        else
            put(t, "    \\addplot[%s%s", p->kind == PLOT_POINTS ? "only marks, " : "", line_colours[order[i]]);
        if (p->kind == PLOT_LINES || p->kind == PLOT_FUNCTIONS) {
            if (level > 2 && chance(20)) put(t, ", dashed");
            if (chance(30)) put(t, ", ultra thick");
        }
        if (marks) put(t, ", mark=*");
        if (p->kind == PLOT_POINTS && level > 3 && i) put(t, ", mark=square*");
        if (p->kind == PLOT_FUNCTIONS) {
            put_function(t, functions[i], p->xmax);
            continue;
        }
        if (p->kind != PLOT_BARS) put(t, "]");
        int high = p->legend ? 5 : 9;
        put_series(t, p, n, p->kind == PLOT_LINES ? 0 : 1, p->kind == PLOT_BARS || p->legend ? high : 10, used);
    }
}

static inline bool plot_figure(Text *t, int level) {
    static const char *const names[] = {"$f$", "$g$", "$h$", "A", "B", "C", "train", "test", "ours", "base"};
    // All have a tick at their end: the picture ends with its label, and holds what reaches out of the axes there.
    static const int scales[] = {4, 6, 10, 20, 100};
    Plot p = {.kind = (PlotKind)choose(level == 2 ? 3 : 4),
              .series = level < 4 ? 1 + (level == 3 && chance(40)) : choose_between(2, level - 2)};
    if (level > 3 && p.series > 1 && p.kind != PLOT_FUNCTIONS) p.legend = chance(60);
    p.xmax = scales[choose(4)], p.ymax = scales[choose(5)];
    if (p.kind == PLOT_FUNCTIONS) p.xmax = choose_between(2, 3), p.ymax = p.xmax == 3 ? 2 : 4;
    begin_picture(t, "\\usepackage{pgfplots}\n\\pgfplotsset{compat=1.16}\n");
    put_axis(t, &p, level);
    put_plots(t, &p, level);
    if (p.legend) {
        int some[3];
        choose_some(some, p.series, COUNT_OF(names));
        put(t, "    \\legend{");
        for (int i = 0; i < p.series; i++) put(t, "%s%s", i ? ", " : "", names[some[i]]);
        put(t, "}\n");
    }
    put(t, "  \\end{axis}\n");
    end_picture(t);
    return true;
}

#endif
