/* Plane geometry: triangles with angles, lengths and heights; circles with radii, chords and tangents; vectors. */
#ifndef FIGURES_EUCLID_H
#define FIGURES_EUCLID_H

#include "labels.h"

static const char *const angle_names[] = {"$\\alpha$", "$\\beta$", "$\\gamma$", "$\\theta$", "$\\phi$"};
static const char *const side_names[] = {"$a$", "$b$", "$c$", "$d$", "$h$", "$r$", "$x$",
                                         "3",   "4",   "5",   "6",   "8",   "12"};
static const char *const vector_names[] = {"$u$", "$v$", "$w$", "$\\vec{a}$", "$\\vec{b}$", "$\\vec{c}$"};

/* The side of `at` that looks away from `from`, one of eight. */
static inline const char *away_from(Point at, Vector from) {
    static const char *const sides[] = {"right", "above right", "above", "above left",
                                        "left",  "below left",  "below", "below right"};
    double angle = atan2(at.y - from.y, at.x - from.x) / 0.78539816339744831;
    return sides[((int)floor(angle + 0.5) + 8) % 8];
}

static inline Vector middle_of(const Point *p, int n) {
    Vector m = {0, 0};
    for (int i = 0; i < n; i++) m.x += (double)p[i].x / n, m.y += (double)p[i].y / n;
    return m;
}

/* "  \\fill (X,Y) circle (2pt);" */
static inline void put_dot(Text *t, Point at) {
    put(t, "  \\fill ");
    put_point(t, at);
    put(t, " circle (2pt);\n");
}

/* A label at a point, on the side away from another point. */
static inline void put_label_at(Text *t, Point at, Vector from, const char *label) {
    put_node(t, &(Style){.more = away_from(at, from)}, 0, at, label);
}

/* A triangle or quadrilateral whose longer side is a whole number of cm, with its lowest and leftmost places at 0. */
static inline bool random_corners(Point *p, int n, bool right) {
    int width = 4 * choose_between(4, 6), height = choose_between(8, width < 20 ? width : 20), x1 = 0, y1 = 0,
        x0 = 99, y0 = 99;
    for (int i = 0; i < n; i++) p[i] = point(choose(width / 2 + 1) * 2, choose(height / 2 + 1) * 2);
    if (right) p[0] = point(0, 0), p[1] = point(width, 0), p[2] = point(0, height);
    for (int i = 0; i < n; i++) {
        x0 = p[i].x < x0 ? p[i].x : x0, x1 = p[i].x > x1 ? p[i].x : x1;
        y0 = p[i].y < y0 ? p[i].y : y0, y1 = p[i].y > y1 ? p[i].y : y1;
    }
    int longer = x1 > y1 ? x1 : y1;
    if (x0 || y0 || longer % 4 || longer > 24) return false;
    for (int i = 0; i < n; i++) {
        Vector a = vector(p[i]), b = vector(p[(i + 1) % n]), c = vector(p[(i + 2) % n]);
        if (cross(a, b, c) < 5 * hypot(c.x - a.x, c.y - a.y) || point_distance(p[i], p[(i + 1) % n]) < 8)
            return false;
    }
    return true;
}

/* Turns a polygon so that its smallest corner comes first; it runs counterclockwise already. */
static inline void first_corner(Point *p, int n) {
    Point q[5];
    int first = 0;
    for (int i = 1; i < n; i++)
        if (point_order(p[i], p[first]) < 0) first = i;
    for (int i = 0; i < n; i++) q[i] = p[(first + i) % n];
    memcpy(p, q, (size_t)n * sizeof *p);
}

/* Whether the angle at the i-th of n corners is wide enough for its name: 35 degrees. */
static inline bool angle_is_wide(const Point *p, int n, int i) {
    Point a = p[(i + n - 1) % n], b = p[i], c = p[(i + 1) % n];
    double dot = (a.x - b.x) * (c.x - b.x) + (a.y - b.y) * (c.y - b.y);
    return dot < 0.82 * point_distance(a, b) * point_distance(c, b);
}

/* Angles, labels of sides and corners of a polygon whose corners are named A, B, ... */
static inline void put_polygon_labels(Text *t, const Point *p, int n, int level, int right) {
    int angles[5], sides[5];
    choose_some(angles, n, COUNT_OF(angle_names));
    choose_some(sides, n, COUNT_OF(side_names));
    bool named = chance(80);
    for (int i = 0; i < n; i++) {
        char before = (char)('A' + (i + n - 1) % n), after = (char)('A' + (i + 1) % n);
        if (i == right)
            put(t, "  \\pic[draw, angle radius=0.25cm] {right angle=%c--%c--%c};\n", after, 'A' + i, before);
        else if (level > 2 && angle_is_wide(p, n, i) && chance(45))
            put(t, "  \\pic[draw, \"%s\", angle radius=0.75cm, angle eccentricity=0.6] {angle=%c--%c--%c};\n",
                angle_names[angles[i]], after, 'A' + i, before);
    }
    for (int i = 0; named && i < n; i++)
        put(t, "  \\node[%s] at (%c) {$%c$};\n", away_from(p[i], middle_of(p, n)), 'A' + i, 'A' + i);
    for (int i = 0; i < n; i++) {
        Point a = p[i], b = p[(i + 1) % n], m = point((a.x + b.x) / 2, (a.y + b.y) / 2);
        if ((level > 2 || n == 3) && chance(level == 2 ? 35 : 50))
            put_label_at(t, m, (Vector){m.x - (b.y - a.y), m.y + (b.x - a.x)}, side_names[sides[i]]);
    }
}

static inline bool polygon_figure(Text *t, int level) {
    Point p[5];
    int n = chance(70) ? 3 : 4;
    bool right = n == 3 && chance(35);
    int tries = 0;
    while (!random_corners(p, n, right))
        if (++tries == 3000) return false;
    first_corner(p, n);
    int corner = right ? 0 : -1;
    begin_picture(t, level > 2 || right ? "\\usetikzlibrary{angles}\n\\usetikzlibrary{quotes}\n" : "");
    for (int i = 0; i < n; i++) {
        put(t, "  \\coordinate (%c) at ", 'A' + i);
        put_point(t, p[i]);
        put(t, ";\n");
    }
    Style s = {.colour = chance(30) ? random_colour() : NULL, .fill = level > 2 && chance(30) ? random_tint() : NULL};
    put(t, "  \\draw");
    put_style(t, &s);
    for (int i = 0; i < n; i++) put(t, "%s(%c)", i ? " -- " : " ", 'A' + i);
    put(t, " -- cycle;\n");
    if (n == 4 && level > 3) put(t, "  \\draw[dashed] (A) -- (C);\n");
    put_polygon_labels(t, p, n, level, corner);
    end_picture(t);
    return true;
}

/* A circle with its centre, a radius or a chord, perhaps an inscribed polygon; all points lie on the lattice, because the
 * radius is 5 or 10 units (3, 4, 5). */
static inline bool circle_figure(Text *t, int level) {
    static const Point unit[12] = {{5, 0},  {4, 3},   {3, 4},   {0, 5},  {-3, 4}, {-4, 3},
                                   {-5, 0}, {-4, -3}, {-3, -4}, {0, -5}, {3, -4}, {4, -3}};
    int n = choose_between(1, level), picked[6], order[6] = {0}, scale = 2, names = chance(70);
    choose_some(picked, n, 12);
    for (int k = 0; k < n; k++) {  // in the order of their angles
        int smaller = 0;
        for (int j = 0; j < n; j++) smaller += picked[j] < picked[k];
        order[smaller] = picked[k];
    }
    Point centre = point(0, 0), p[6];
    for (int i = 0; i < n; i++) p[i] = point(unit[order[i]].x * scale, unit[order[i]].y * scale);
    for (int i = 0; i + 1 < n; i++)
        if (point_distance(p[i], p[i + 1]) < 5) return false;
    if (n > 2 && point_distance(p[0], p[n - 1]) < 5) return false;
    begin_picture(t, "");
    put_circle(t,
               &(Style){.colour = chance(20) ? random_colour() : NULL,
                        .thick = chance(20),
                        .fill = chance(20) ? random_tint() : NULL},
               centre, 5 * scale);
    bool radii = n == 1 || chance(60);
    if (n > 1 && (!radii || chance(50))) {
        put_path(t, &(Style){.colour = chance(40) ? random_colour() : NULL}, p, n);
        put(t, "%s;\n", n > 2 ? " -- cycle" : "");
    }
    for (int i = 0; radii && i < n; i++)
        put_line(t, &(Style){.dash = level > 2 && chance(40) ? "dashed" : NULL}, centre, p[i]);
    put_dot(t, centre);
    for (int i = 0; i < n && level > 2; i++) put_dot(t, p[i]);
    if (names) put_node(t, &(Style){.more = "below"}, 0, centre, chance(50) ? "$O$" : "$M$");
    for (int i = 0; names && i < n; i++) {
        char name[8];
        snprintf(name, sizeof name, "$%c$", 'A' + i);
        put_label_at(t, p[i], (Vector){0, 0}, name);
    }
    end_picture(t);
    return true;
}

/* Vectors from the origin, on axes or a grid, with their sum or their components. */
static inline bool vector_figure(Text *t, int level) {
    int width = 4 * choose_between(4, 6), height = 4 * choose_between(3, 5), n = level == 2 ? 1 : 2, names[2];
    Point p[2];
    for (int i = 0; i < n; i++)
        p[i] = point(2 * choose_between(2, width / 2 - 2), 2 * choose_between(2, height / 2 - 2));
    for (int i = 0; i < n; i++)
        for (int k = 0; k < i; k++)
            if (segment_sine(segment(point(0, 0), p[i]), segment(point(0, 0), p[k])) < 0.3 ||
                point_order(p[k], p[i]) >= 0)
                return false;
    if (n > 1 && (p[0].x + p[1].x > width || p[0].y + p[1].y > height)) return false;
    choose_some(names, n, COUNT_OF(vector_names));
    bool grid = chance(40), sum = n == 2 && chance(60), parts = n == 1 && chance(60);
    begin_picture(t, "");
    if (grid) put(t, "  \\draw[gray!50] (0,0) grid (%d,%d);\n", width / 4, height / 4);
    put(t, "  \\draw[->] (0,0) -- (%d,0) node[right] {$x$};\n  \\draw[->] (0,0) -- (0,%d) node[above] {$y$};\n",
        width / 4, height / 4);
    Style s = {.arrow = "-latex", .thick = true};
    for (int i = 0; i < n; i++) {
        s.colour = line_colours[choose(COUNT_OF(line_colours))];
        put_path(t, &s, (Point[]){{0, 0}, p[i]}, 2);
        bool left = n > 1 && cross((Vector){0, 0}, vector(p[i]), vector(p[i ? 0 : 1])) < 0;
        put(t, " node[%s] {%s};\n", n == 1 ? "above" : left ? "above left" : "below right", vector_names[names[i]]);
    }
    Point end = point(p[0].x + p[1 % n].x, p[0].y + p[1 % n].y);
    for (int i = 0; sum && i < 2; i++) put_line(t, &(Style){.dash = "dashed"}, p[i], end);
    if (sum) put_line(t, &(Style){.arrow = "-latex", .thick = true}, point(0, 0), end);
    if (parts) {
        put_line(t, &(Style){.dash = "dashed"}, point(p[0].x, 0), p[0]);
        put_line(t, &(Style){.dash = "dashed"}, point(0, p[0].y), p[0]);
    }
    end_picture(t);
    return true;
}

static inline bool euclid_figure(Text *t, int level) {
    static const int weights[] = {50, 25, 25};
    static bool (*const figures[])(Text *, int) = {polygon_figure, circle_figure, vector_figure};
    return figures[choose_weighted(weights, 3)](t, level);
}

#endif
