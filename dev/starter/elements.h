/* The elements of free scenes (circles, rectangles, polygons, lines), and the tests of whether they can be recognized
 * in a small image. */
#ifndef STARTER_ELEMENTS_H
#define STARTER_ELEMENTS_H

#include <string.h>

#include "geometry.h"

#define MIN_GAP 0.7     // least distance of outlines that do not cross, in units; 8 pixels of 96
#define MAX_OUTLINE 24  // most segments of an outline; the distance tests treat circles as 24-gons

typedef enum { CIRCLE, RECTANGLE, POLYGON, LINE } Kind;

typedef struct {
    Kind kind;
    Point p[4];     // circle: centre; rectangle: lower left, upper right; polygon: corners; line: ends
    int n, radius;  // n: number of points
    bool closed, filled;
    char command[80];  // such as "\draw[red, dashed]"
} Element;

/* Puts the corners of a polygon in canonical order: the smallest first, then counterclockwise. */
static inline void make_canonical(Point *p, int n) {
    Point q[4];
    int first = 0, step = cross(vector(p[0]), vector(p[1]), vector(p[2])) > 0 ? 1 : n - 1;
    for (int i = 1; i < n; i++)
        if (point_order(p[i], p[first]) < 0) first = i;
    for (int i = 0; i < n; i++) q[i] = p[(first + i * step) % n];
    memcpy(p, q, n * sizeof *p);
}

/* Whether a polygon is counterclockwise, convex, not an axis-aligned rectangle, and has clear corners: each one is
 * far enough from the line through its neighbours. */
static inline bool polygon_is_clear(const Point *p, int n) {
    bool axis_aligned = true;
    for (int i = 0; i < n; i++) {
        Vector a = vector(p[i]), b = vector(p[(i + 1) % n]), c = vector(p[(i + 2) % n]);
        if (cross(a, b, c) < 1.2 * hypot(c.x - a.x, c.y - a.y)) return false;
        if (point_distance(p[i], p[(i + 1) % n]) < 2) return false;
        axis_aligned = axis_aligned && (a.x == b.x || a.y == b.y);
    }
    return !axis_aligned;
}

/* Writes the segments of an element's outline to `out` and returns their number. */
static inline int outline(const Element *e, Segment *out) {
    Vector v[MAX_OUTLINE];
    int n = e->n;
    if (e->kind == CIRCLE) {
        n = MAX_OUTLINE;
        for (int i = 0; i < n; i++) {
            double angle = 2 * 3.14159265358979 * i / n;
            v[i].x = e->p[0].x + e->radius * cos(angle), v[i].y = e->p[0].y + e->radius * sin(angle);
        }
    } else if (e->kind == RECTANGLE) {
        n = 4;
        for (int i = 0; i < n; i++) v[i].x = e->p[i == 1 || i == 2].x, v[i].y = e->p[i >= 2].y;
    } else {
        for (int i = 0; i < n; i++) v[i] = vector(e->p[i]);
    }
    int segments = e->closed ? n : n - 1;
    for (int i = 0; i < segments; i++) out[i].a = v[i], out[i].b = v[(i + 1) % n];
    return segments;
}

/* Whether a point lies inside a closed outline of n segments (even-odd rule). */
static inline bool inside(Vector p, const Segment *s, int n) {
    bool in = false;
    for (int i = 0; i < n; i++)
        if ((s[i].a.y > p.y) != (s[i].b.y > p.y) &&
            p.x < s[i].a.x + (p.y - s[i].a.y) / (s[i].b.y - s[i].a.y) * (s[i].b.x - s[i].a.x))
            in = !in;
    return in;
}

/* Whether two elements of a scene can be told apart and neither hides the other. */
static inline bool compatible(const Element *e, const Element *f) {
    Segment s[MAX_OUTLINE], t[MAX_OUTLINE];
    int n = outline(e, s), m = outline(f, t);
    bool crossing = false;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            if (vector_segment_distance(s[i].a, t[j]) < MIN_GAP || vector_segment_distance(s[i].b, t[j]) < MIN_GAP)
                return false;
            if (vector_segment_distance(t[j].a, s[i]) < MIN_GAP || vector_segment_distance(t[j].b, s[i]) < MIN_GAP)
                return false;
            if (!segments_cross(s[i], t[j])) continue;
            crossing = true;
            if (segment_sine(s[i], t[j]) < 0.6) return false;
        }
    if (crossing)  // one of the two must be a line, and neither may be filled or a circle
        return (e->kind == LINE || f->kind == LINE) && !e->filled && !f->filled && e->kind != CIRCLE &&
               f->kind != CIRCLE;
    if (e->closed && e->filled && inside(t[0].a, s, n)) return false;
    return !(f->closed && f->filled && inside(s[0].a, t, m));
}

/* Compares elements by kind, then by position, for qsort. */
static inline int element_order(const void *a, const void *b) {
    const Element *e = a, *f = b;
    if (e->kind != f->kind) return (int)e->kind - (int)f->kind;
    for (int i = 0; i < 4; i++) {
        int order = point_order(e->p[i], f->p[i]);
        if (order) return order;
    }
    return e->radius - f->radius;
}

/* Whether the bounding box of the elements is the whole box of width x height units. */
static inline bool fills_box(const Element *e, int n, int width, int height) {
    int x0 = width, y0 = height, x1 = 0, y1 = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < e[i].n; j++) {
            int x = e[i].p[j].x, y = e[i].p[j].y, r = e[i].radius;
            if (x - r < x0) x0 = x - r;
            if (x + r > x1) x1 = x + r;
            if (y - r < y0) y0 = y - r;
            if (y + r > y1) y1 = y + r;
        }
    return x0 == 0 && y0 == 0 && x1 == width && y1 == height;
}

#endif
