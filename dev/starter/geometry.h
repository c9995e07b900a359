/* Random choices and plane geometry for generators of figures. */
#ifndef STARTER_GEOMETRY_H
#define STARTER_GEOMETRY_H

#include "../../lib/random.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

/* ---- random choices (splitmix64 of lib/random.h) ---- */

static uint64_t random_state;

/* Uniform in 0..n-1. */
static inline int choose(int n) { return (random_splitmix(&random_state) >> 32) * n >> 32; }

/* Uniform in low..high. */
static inline int choose_between(int low, int high) { return low + choose(high - low + 1); }

/* True with a probability given in per cent. */
static inline bool chance(int percent) { return choose(100) < percent; }

/* Index i with probability weights[i] / (sum of the n weights). */
static inline int choose_weighted(const int *weights, int n) {
    int total = 0;
    for (int i = 0; i < n; i++) total += weights[i];
    int r = choose(total), i = 0;
    while (r >= weights[i]) r -= weights[i++];
    return i;
}

/* Fisher-Yates. */
static inline void shuffle(int *a, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = choose(i + 1), t = a[i];
        a[i] = a[j], a[j] = t;
    }
}

/* ---- geometry ---- */

typedef struct {
    int x, y;
} Point;

typedef struct {
    double x, y;
} Vector;

typedef struct {
    Vector a, b;
} Segment;

/* Compares points by x, then by y: negative, 0 or positive, as for qsort. */
static inline int point_order(Point a, Point b) { return a.x != b.x ? a.x - b.x : a.y - b.y; }
static inline Vector vector(Point p) { return (Vector){p.x, p.y}; }
static inline Segment segment(Point a, Point b) { return (Segment){vector(a), vector(b)}; }

/* Twice the signed area of the triangle o a b; positive when it runs counterclockwise. */
static inline double cross(Vector o, Vector a, Vector b) {
    return (a.x - o.x) * (b.y - o.y) - (a.y - o.y) * (b.x - o.x);
}

static inline double point_distance(Point a, Point b) { return hypot(a.x - b.x, a.y - b.y); }

/* Distance of a point from a segment. */
static inline double vector_segment_distance(Vector p, Segment s) {
    double dx = s.b.x - s.a.x, dy = s.b.y - s.a.y;
    double t = ((p.x - s.a.x) * dx + (p.y - s.a.y) * dy) / (dx * dx + dy * dy);
    t = fmin(1, fmax(0, t));
    return hypot(p.x - s.a.x - t * dx, p.y - s.a.y - t * dy);
}

/* The same for the point p and the segment from a to b. */
static inline double segment_distance(Point p, Point a, Point b) {
    return vector_segment_distance(vector(p), segment(a, b));
}

/* Whether two segments cross in their interiors. */
static inline bool segments_cross(Segment s, Segment t) {
    return cross(s.a, s.b, t.a) * cross(s.a, s.b, t.b) < 0 && cross(t.a, t.b, s.a) * cross(t.a, t.b, s.b) < 0;
}

/* Sine of the angle between two segments, 0 to 1. */
static inline double segment_sine(Segment s, Segment t) {
    double ux = s.b.x - s.a.x, uy = s.b.y - s.a.y, vx = t.b.x - t.a.x, vy = t.b.y - t.a.y;
    return fabs(ux * vy - uy * vx) / (hypot(ux, uy) * hypot(vx, vy));
}

#endif
