/* Free scenes on the lattice: circles, rectangles, polygons, lines and arrows, with colours, fills and names. Nothing in them
 * tells their scale, so the longer side is always 6 cm. */
#ifndef FIGURES_SHAPES_H
#define FIGURES_SHAPES_H

#include "../starter/elements.h"
#include "labels.h"

#define SCENE_SPAN 24  // quarters
enum { SCENE_MAX = 7 };

static inline Style random_shape_style(const Element *e, int level) {
    static const int closed[] = {35, 15, 15, 35}, open[] = {55, 20, 25, 0};
    int look = choose_weighted(e->closed ? closed : open, 4);
    Style s = {.colour = chance(level > 2 ? 50 : 35) ? random_colour() : NULL};
    if (!e->closed && look == 0 && chance(60))
        s.arrow = level > 2 && chance(20) ? "<->" : chance(60) ? "-latex" : "->";
    if (look == 1) s.dash = level > 2 && !s.colour && chance(40) ? "dotted" : "dashed";
    if (look == 2) s.thick = e->kind != POLYGON;  // the tips of its corners would lie outside the page
    if (look == 3) s.fill = random_tint();
    if (e->kind == RECTANGLE && level > 2 && chance(25)) s.rounded = true;
    return s;
}

/* A random element in a box of width x height quarters. False if it would not be clear. */
static inline bool random_shape(Element *e, Kind kind, int width, int height) {
    int n = kind == CIRCLE ? 1 : kind == POLYGON ? chance(70) ? 3 : 4 : 2, step = chance(60) ? 2 : 1;
    *e = (Element){.kind = kind, .n = n, .closed = kind != LINE};
    for (int i = 0; i < n; i++) e->p[i] = point(step * choose(width / step + 1), step * choose(height / step + 1));
    Point p = e->p[0], q = e->p[1];
    if (kind == CIRCLE) {
        int r = e->radius = choose_between(2, 7);
        return p.x >= r && p.x + r <= width && p.y >= r && p.y + r <= height;
    }
    if (kind == RECTANGLE) return q.x - p.x >= 3 && q.y - p.y >= 3;
    if (kind == LINE) return point_distance(p, q) >= 5;
    make_canonical(e->p, n);
    if (!polygon_is_clear(e->p, n)) return false;
    for (int i = 0; i < n; i++) {
        Vector a = vector(e->p[i]), b = vector(e->p[(i + 1) % n]), c = vector(e->p[(i + 2) % n]);
        if (cross(a, b, c) < 3 * hypot(c.x - a.x, c.y - a.y)) return false;
        if (segment_sine((Segment){a, b}, (Segment){b, c}) < 0.4) return false;
    }
    return true;
}

static inline void put_shape(Text *t, const Element *e, const Style *s) {
    if (e->kind == CIRCLE) {
        put_circle(t, s, e->p[0], e->radius);
    } else if (e->kind == RECTANGLE) {
        put_rectangle(t, s, e->p[0], e->p[1]);
    } else {
        put_path(t, s, e->p, e->n);
        put(t, "%s;\n", e->kind == POLYGON ? " -- cycle" : "");
    }
}

/* A name at the middle of a closed shape that is large enough and holds nothing else. */
static inline bool has_room(const Element *e, int n, int i) {
    Segment s[MAX_OUTLINE];
    int m = outline(&e[i], s);
    if (!e[i].closed || e[i].kind == POLYGON || (e[i].kind == CIRCLE && e[i].radius < 3)) return false;
    if (e[i].kind == RECTANGLE && ((e[i].p[0].x + e[i].p[1].x) % 2 || (e[i].p[0].y + e[i].p[1].y) % 2)) return false;
    for (int k = 0; k < n; k++) {
        if (k == i) continue;
        Segment r[MAX_OUTLINE];
        int other = outline(&e[k], r);
        for (int j = 0; j < other; j++) {
            if (inside(r[j].a, s, m)) return false;
            for (int l = 0; l < m; l++)
                if (segments_cross(r[j], s[l])) return false;
        }
    }
    return true;
}

static inline void put_names(Text *t, const Element *e, int n) {
    Label label[SCENE_MAX];
    random_labels(label, n, chance(60) ? LETTERS : FORMULAS);
    for (int i = 0; i < n; i++) {
        if (!has_room(e, n, i) || !chance(60)) continue;
        Point p = e[i].p[0], q = e[i].p[1];
        put_node(t, &(Style){0}, 0, e[i].kind == CIRCLE ? p : point((p.x + q.x) / 2, (p.y + q.y) / 2), label[i]);
    }
}

static inline bool shapes_figure(Text *t, int level) {
    static const int kind_weights[] = {28, 27, 20, 25};
    Element e[SCENE_MAX];
    Kind kind[SCENE_MAX];  // chosen once: choosing in each attempt would favour kinds that fit easily
    int n = choose_between(level, level + 2), width = SCENE_SPAN, height = 4 * choose_between(3, 6), made = 0;
    if (chance(40)) width = height, height = SCENE_SPAN;
    for (int i = 0; i < n; i++) kind[i] = (Kind)choose_weighted(kind_weights, 4);
    for (int tries = 0; made < n; tries++) {
        if (tries > 4000) return false;
        if (!random_shape(&e[made], kind[made], width, height)) continue;
        e[made].filled = true;  // for the test whether it would hide another one
        Element open = e[made];
        open.filled = false;
        bool ok = true, free_inside = true;
        for (int i = 0; i < made; i++)
            ok = ok && compatible(&e[i], &open), free_inside = free_inside && compatible(&e[i], &e[made]);
        e[made].filled = free_inside && chance(45);
        made += ok;
    }
    if (!fills_box(e, n, width, height)) return false;
    qsort(e, n, sizeof e[0], element_order);
    begin_picture(t, "");
    for (int i = 0; i < n; i++) {
        Style s = random_shape_style(&e[i], level);
        Point a = e[i].p[0], b = e[i].p[1];
        if (!e[i].filled || !e[i].closed) s.fill = NULL;
        // half of a tip on the edge of the page would lie outside of it
        if ((a.x == b.x && (a.x == 0 || a.x == width)) || (a.y == b.y && (a.y == 0 || a.y == height))) s.arrow = NULL;
        bool swap = e[i].kind == LINE && (!s.arrow || s.arrow[0] == '<') && point_order(e[i].p[0], e[i].p[1]) > 0;
        if (swap) {
            Point p = e[i].p[0];
            e[i].p[0] = e[i].p[1], e[i].p[1] = p;
        }
        put_shape(t, &e[i], &s);
    }
    if (level > 2) put_names(t, e, n);
    end_picture(t);
    return true;
}

#endif
