/* Random numbers and plane geometry for generate.c. */
#ifndef STARTER_GEOMETRY_H
#define STARTER_GEOMETRY_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

/* ---- random numbers (splitmix64, Steele et al. 2014) ---- */

static uint64_t random_state;

static inline uint64_t random_u64(void) {
    uint64_t z = (random_state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline int random_below(int n) { return (int)((random_u64() >> 32) * (uint64_t)n >> 32); }
static inline int random_between(int low, int high) { return low + random_below(high - low + 1); }
static inline bool chance(int percent) { return random_below(100) < percent; }

/* Index i with probability weights[i] / sum of weights. */
static inline int random_weighted(const int *weights, int n) {
    int total = 0;
    for (int i = 0; i < n; i++) total += weights[i];
    int r = random_below(total), i = 0;
    while (r >= weights[i]) r -= weights[i++];
    return i;
}

static inline void shuffle(int *a, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = random_below(i + 1), t = a[i];
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

static inline int point_order(Point a, Point b) { return a.x != b.x ? a.x - b.x : a.y - b.y; }
static inline Vector vector(Point p) { return (Vector){p.x, p.y}; }
static inline Segment segment(Point a, Point b) { return (Segment){vector(a), vector(b)}; }
/* Twice the signed area of the triangle o a b; positive when it runs counterclockwise. */
static inline double cross(Vector o, Vector a, Vector b) {
    return (a.x - o.x) * (b.y - o.y) - (a.y - o.y) * (b.x - o.x);
}

static inline double point_distance(Point a, Point b) { return hypot(a.x - b.x, a.y - b.y); }

static inline double to_segment(Vector p, Segment s) {
    double dx = s.b.x - s.a.x, dy = s.b.y - s.a.y;
    double t = ((p.x - s.a.x) * dx + (p.y - s.a.y) * dy) / (dx * dx + dy * dy);
    t = fmin(1, fmax(0, t));
    return hypot(p.x - s.a.x - t * dx, p.y - s.a.y - t * dy);
}

/* Distance of the point p from the segment a-b. */
static inline double segment_distance(Point p, Point a, Point b) { return to_segment(vector(p), segment(a, b)); }

static inline bool segments_cross(Segment s, Segment t) {
    return cross(s.a, s.b, t.a) * cross(s.a, s.b, t.b) < 0 && cross(t.a, t.b, s.a) * cross(t.a, t.b, s.b) < 0;
}

/* Sine of the angle between two segments, 0 .. 1. */
static inline double segment_sine(Segment s, Segment t) {
    double ux = s.b.x - s.a.x, uy = s.b.y - s.a.y, vx = t.b.x - t.a.x, vy = t.b.y - t.a.y;
    return fabs(ux * vy - uy * vx) / (hypot(ux, uy) * hypot(vx, vy));
}

#endif
