/* Grids with filled cells and numbers, arrays with indices, matrices. */
#ifndef FIGURES_GRID_H
#define FIGURES_GRID_H

#include "labels.h"

/* A grid whose cells are 0.5 or 1 cm wide; some are filled, some have a number. */
static inline bool cells_figure(Text *t, int level) {
    bool numbered_ones = chance(60);  // without a number nothing tells how large the cells are
    int step = numbered_ones && level > 3 && chance(60) ? 2 : 4, longest = step == 4 ? level > 3 ? 6 : 5 : 9;
    int columns = choose_between(3, longest), rows = choose_between(2, columns), filled = 0, numbered = 0;
    if (level < 4 && columns * rows > 6 * level) return false;
    int fills = chance(75) ? choose_between(1, 2 + 2 * level) : 0,
        numbers = numbered_ones || !fills ? choose_between(1, 2 * level + 2) : 0;
    const char *tint[2] = {random_tint(), random_tint()};
    int order[96], colours = level > 2 && chance(50) ? 2 : 1;
    bool taken[96] = {false};
    if (fills > columns * rows / 2) return false;
    choose_some(order, columns * rows, columns * rows);
    begin_picture(t, "");
    for (int i = 0; i < fills; i++) taken[order[i]] = true;
    for (int i = 0; i < columns * rows && filled < fills; i++) {
        if (!taken[i]) continue;
        Point p = point(i % columns * step, (rows - 1 - i / columns) * step);
        put(t, "  \\fill[%s] ", tint[choose(colours)]);
        put_point(t, p);
        put(t, " rectangle ");
        put_point(t, point(p.x + step, p.y + step));
        put(t, ";\n");
        filled++;
    }
    put(t, "  \\draw%s (0,0) grid ", step == 2 ? "[step=0.5cm]" : "");
    put_point(t, point(columns * step, rows * step));
    put(t, ";\n");
    memset(taken, 0, sizeof taken);
    choose_some(order, columns * rows, columns * rows);
    for (int i = 0; i < numbers && i < columns * rows; i++) taken[order[i]] = true;
    for (int i = 0; i < columns * rows && numbered < numbers; i++) {
        if (!taken[i]) continue;
        char number[12];
        snprintf(number, sizeof number, "%d", choose(10));
        put_node(t, &(Style){0}, 0, point(i % columns * step + step / 2, (rows - 1 - i / columns) * step + step / 2),
                 number);
        numbered++;
    }
    end_picture(t);
    return true;
}

/* Arrays as squares with their values and indices, some marked, one above another, with pointers. */
static inline bool array_figure(Text *t, int level) {
    int n = choose_between(3, level == 2 ? 5 : 7), size = n > 6 ? 3 : choose_between(3, 4),
        rows = level > 3 ? choose_between(1, 2) : 1, marked = choose(n);
    LabelKind kind = chance(70) ? DIGITS : LETTERS;
    bool marks = chance(50), indices = chance(60), pointer = level > 2 && chance(50);
    const char *tint = random_tint();
    begin_picture(t, "");
    for (int r = 0; r < rows; r++) {
        Label label[8];
        random_labels(label, n, kind);
        for (int i = 0; i < n; i++) {
            Style s = {.draw = true,
                       .tight = true,
                       .size = size,
                       .fill = marks && (i == marked || (level > 3 && chance(20))) ? tint : NULL};
            put_node(t, &s, 0, point(i * size, (rows - 1 - r) * 8), label[i]);
        }
    }
    for (int i = 0; indices && i < n; i++) {
        char index[12];
        snprintf(index, sizeof index, "%d", i);
        put_node(t, &(Style){0}, 0, point(i * size, -4), index);
    }
    if (pointer) {
        int at = choose(n), top = (rows - 1) * 8;
        put_path(t, &(Style){.arrow = "-latex"},
                 (Point[]){{at * size, top + 6}, {at * size, top + (size == 3 ? 2 : 3)}}, 2);
        put(t, ";\n");
        put_node(t, &(Style){.more = "above"}, 0, point(at * size, top + 6),
                 (const char *[]){"$i$", "$j$", "top", "head", "$k$"}[choose(5)]);
    }
    for (int i = 0; rows == 2 && i < n; i++)
        if (chance(60))
            put_line(t, &(Style){.arrow = "->"}, point(i * size, 8 - (size + 1) / 2),
                     point(i * size, (size + 1) / 2));
    end_picture(t);
    return true;
}

static inline bool matrix_figure(Text *t, int level) {
    static const char *const fences[][2] = {{"(", ")"}, {"{[}", "{]}"}, {"|", "|"}};
    static const char *const symbols[] = {"a",        "b",      "c",      "d",      "x",      "y",  "0", "1",
                                          "\\lambda", "a_{11}", "a_{12}", "a_{21}", "a_{22}", "-1", "2", "\\cdots"};
    int rows = choose_between(2, level), columns = choose_between(2, level), fence = choose(3);
    bool digits = chance(65), identity = chance(15);
    begin_picture(t, "\\usetikzlibrary{matrix}\n");
    put(t, "  \\matrix[matrix of math nodes, left delimiter=%s, right delimiter=%s] (m) {\n", fences[fence][0],
        fences[fence][1]);
    for (int r = 0; r < rows; r++) {
        put(t, "    ");
        for (int c = 0; c < columns; c++) {
            put(t, "%s", c ? " & " : "");
            if (identity)
                put(t, "%d", r == c);
            else if (digits)
                put(t, "%d", choose(level > 3 ? 20 : 10));
            else
                put(t, "%s", symbols[choose(COUNT_OF(symbols))]);
        }
        put(t, " \\\\\n");
    }
    put(t, "  };\n");
    if (level > 3 && chance(50)) {
        int r = choose_between(1, rows), c = choose_between(1, columns);
        put(t, "  \\draw[%s] (m-%d-%d) circle (0.25);\n", random_colour(), r, c);
    }
    end_picture(t);
    return true;
}

static inline bool grid_figure(Text *t, int level) {
    static const int weights[] = {40, 30, 30};
    static bool (*const figures[])(Text *, int) = {cells_figure, array_figure, matrix_figure};
    return figures[choose_weighted(weights, 3)](t, level);
}

#endif
