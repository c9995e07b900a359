/* Timelines with dated events, number lines with intervals, bars of a schedule. */
#ifndef FIGURES_TIMELINE_H
#define FIGURES_TIMELINE_H

#include "labels.h"

/* A time axis with ticks at whole places; events stand above, dates below. */
static inline bool events_figure(Text *t, int level) {
    int n = choose_between(level > 3 ? 4 : 3, level == 2  ? 3
                                              : level > 3 ? 5
                                                          : 4),
        at[5],
        gap = n == 5   ? 4
              : n == 4 ? 6
                       : 8,
        year = 1900 + 10 * choose(12);
    at[0] = 2;
    for (int i = 1; i < n; i++) at[i] = at[i - 1] + gap + (i % 2 ? choose(2) : 0);
    int length = (at[n - 1] + 2 + 3) / 4 * 4;
    if (length > 24) return false;
    Label event[5];
    random_labels(event, n, gap > 6 ? SHORT_WORDS : chance(50) ? LETTERS : FORMULAS);
    bool dots = chance(50), lifted = level > 2 && chance(40), years = chance(70);
    const char *colour = level > 2 && chance(50) ? random_colour() : NULL;
    begin_picture(t, "");
    put_path(t, &(Style){.arrow = chance(60) ? "-latex" : "->", .thick = chance(30)}, (Point[]){{0, 0}, {length, 0}},
             2);
    put(t, "%s;\n", chance(25) ? " node[right] {$t$}" : "");
    for (int i = 0; i < n; i++) {
        if (dots)
            put_node(t, &(Style){.shape = "circle", .tight = true, .size = 1, .fill = colour ? colour : "black"}, 0,
                     point(at[i], 0), "");
        else
            put_line(t, &(Style){.colour = colour}, point(at[i], -1), point(at[i], 1));
    }
    for (int i = 0; i < n; i++) {
        char date[8];
        year += years ? choose_between(1, 12) : 1;
        snprintf(date, sizeof date, years ? "%d" : "$t_%d$", years ? year : i);
        put_node(t, &(Style){.more = "below"}, 0, point(at[i], -1), date);
    }
    for (int i = 0; i < n; i++) {
        int up = lifted && i % 2 ? 4 : 1;
        if (up > 1) put_line(t, &(Style){.dash = "dotted"}, point(at[i], 1), point(at[i], up));
        put_node(t, &(Style){.more = "above"}, 0, point(at[i], up), event[i]);
    }
    end_picture(t);
    return true;
}

/* A number line with ticks, and intervals above it whose ends are open or closed dots. */
static inline bool interval_figure(Text *t, int level) {
    int units = choose_between(4, 6), low = choose(2) ? 0 : -choose_between(1, 3),
        n = choose_between(1, level > 3 ? 3 : 2);
    begin_picture(t, "");
    put(t, "  \\draw[->] (0,0) -- (%d.5,0);\n", units);
    put(t, "  \\foreach \\i in {0,...,%d} \\draw (\\i,0.1) -- (\\i,-0.1);\n", units);
    for (int i = 0; i <= units; i++) {
        char number[8];
        snprintf(number, sizeof number, low + i < 0 ? "$%d$" : "%d", low + i);
        put_node(t, &(Style){.more = "below"}, 0, point(4 * i, 0), number);
    }
    for (int k = 0; k < n; k++) {
        int a = choose(units), b = choose_between(a + 1, units), y = 2 + 2 * k;
        const char *colour = random_colour();
        put_line(t, &(Style){.colour = colour, .thick = true}, point(4 * a, y), point(4 * b, y));
        for (int end = 0; end < 2; end++) {
            bool open = chance(40);
            Style s = {.shape = "circle",
                       .draw = open,
                       .colour = open ? colour : NULL,
                       .tight = true,
                       .size = 1,
                       .fill = open ? "white" : colour};
            put_node(t, &s, 0, point(4 * (end ? b : a), y), "");
        }
    }
    end_picture(t);
    return true;
}

/* Bars of tasks over time, each in a row, with its name in it or on its left. */
static inline bool schedule_figure(Text *t, int level) {
    int n = choose_between(level > 3 ? 4 : 3, level > 3 ? 6 : level + 1), begin = 0, height = 2, total = 22, some[6];
    bool inside = chance(50), lines = level > 2 && chance(40);
    choose_some(some, n, COUNT_OF(short_words));
    int from[6], to[6];
    for (int i = 0; i < n; i++) {
        from[i] = begin, to[i] = from[i] + choose_between(inside ? 6 : 3, 9);
        begin = chance(60) ? to[i] : from[i] + choose_between(2, 4);
        if (to[i] > total || begin > total - 3) return false;
    }
    const char *tint = random_tint();
    bool mixed = chance(50);
    begin_picture(t, "");
    int end = 0;
    for (int i = 0; i < n; i++) end = to[i] > end ? to[i] : end;
    end = (end + 3) / 4 * 4;
    if (lines)
        for (int x = 0; x <= end; x += 4) put_line(t, &(Style){.colour = "gray"}, point(x, 0), point(x, n * 3));
    for (int i = 0; i < n; i++) {
        int y = (n - 1 - i) * 3;
        put_rectangle(t, &(Style){.fill = mixed ? random_tint() : tint}, point(from[i], y), point(to[i], y + height));
    }
    for (int i = 0; i < n; i++) {
        Point at = inside ? point((from[i] + to[i]) / 2, (n - 1 - i) * 3 + 1) : point(0, (n - 1 - i) * 3 + 1);
        put_node(t, &(Style){.more = inside ? NULL : "left"}, 0, at, short_words[some[i]]);
    }
    put_path(t, &(Style){.arrow = "->"}, (Point[]){{0, -1}, {end, -1}}, 2);
    put(t, " node[right] {$t$};\n");
    end_picture(t);
    return true;
}

static inline bool timeline_figure(Text *t, int level) {
    static const int weights[] = {50, 25, 25};
    static bool (*const figures[])(Text *, int) = {events_figure, interval_figure, schedule_figure};
    return figures[choose_weighted(weights, 3)](t, level);
}

#endif
