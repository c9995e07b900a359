/* The starter's figures: free scenes, graphs and block diagrams, plots.
 *
 * A model must be able to recover a figure from an image of 96 x 96 pixels without its position and scale. Therefore:
 *   - Every figure spans the same square of 8 units of 0.5 cm; a unit is 12 pixels of the image (graphs: 6 units
 *     between the outermost node centres). A figure that is lower or narrower is centred in the square, so that a
 *     position in the image always means the same coordinate. Plots have a fixed frame.
 *   - All coordinates are integers. Outlines that do not cross stay MIN_GAP apart; lines that cross others do so at a
 *     large angle.
 *   - Each image has one program: elements are sorted by kind and position, lines run from the smaller point (x, then
 *     y) to the larger, polygons start at their smallest point and run counterclockwise.
 *   - Nothing is hidden: an element that encloses or crosses another one is not filled. */
#ifndef STARTER_SCENES_H
#define STARTER_SCENES_H

#include "elements.h"
#include "text.h"

#define SPAN 8          // side of the square, in units of 0.5 cm
#define MAX_ELEMENTS 3  // of a free scene
#define MAX_NODES 5     // of a graph or block diagram
#define MAX_EDGES 6

/* ---- free scenes: circles, rectangles, polygons, lines and arrows ---- */

static const char *const colours[] = {"red", "blue", "green", "magenta"};
static const char *const tints[] = {"red!30", "blue!30", "green!30", "yellow!30", "gray!50"};

/* A random point with even coordinates in a box; such points are at least 24 pixels of the model's image apart. */
static Point random_point(int width, int height) {
    Point p;
    p.x = 2 * choose(width / 2 + 1), p.y = 2 * choose(height / 2 + 1);
    return p;
}

/* Chooses the TikZ options of an element. Their order is always arrow, colour, dashed, width, fill. */
static void random_style(Element *e) {
    static const int closed_weights[] = {30, 25, 15, 20, 10}, line_weights[] = {50, 30, 20, 0, 0};
    enum { PLAIN, DASHED, THICK, TINTED, SOLID };
    int style = choose_weighted(e->closed ? closed_weights : line_weights, COUNT_OF(line_weights));
    const char *colour = chance(50) ? colours[choose(COUNT_OF(colours))] : NULL;
    char options[64] = "";
    bool arrow = !e->closed && style != THICK && chance(60);
    const char *width = style == THICK ? ", ultra thick" : arrow ? ", thick" : "";  // thick: for a visible arrow tip
    e->filled = style == TINTED || style == SOLID;
    if (style == TINTED)
        snprintf(options, sizeof options, ", fill=%s", tints[choose(COUNT_OF(tints))]);
    else
        snprintf(options, sizeof options, "%s%s%s%s%s", arrow ? ", -latex" : "", colour ? ", " : "",
                 colour ? colour : "", style == DASHED ? ", dashed" : "", width);
    const char *command = style == SOLID ? "fill" : "draw";
    if (options[0])
        snprintf(e->command, sizeof e->command, "\\%s[%s]", command, options + 2);
    else
        snprintf(e->command, sizeof e->command, "\\%s", command);
    if (!e->closed && !arrow && point_order(e->p[0], e->p[1]) > 0) {
        Point t = e->p[0];
        e->p[0] = e->p[1], e->p[1] = t;
    }
}

/* Makes a random element of the given kind in a box of width x height units. False if it would not be clear. */
static bool random_element(Element *e, Kind kind, int corners, int width, int height) {
    int n = kind == CIRCLE ? 1 : kind == POLYGON ? corners : 2;
    *e = (Element){.kind = kind, .n = n, .closed = kind != LINE};
    for (int i = 0; i < e->n; i++) e->p[i] = random_point(width, height);
    if (kind == POLYGON) make_canonical(e->p, e->n);
    double length = point_distance(e->p[0], e->p[e->n - 1]);
    if (kind == CIRCLE) {
        e->radius = chance(10) ? 4 : choose_between(1, 2);
        int x = e->p[0].x, y = e->p[0].y, r = e->radius;
        if (x < r || x + r > width || y < r || y + r > height) return false;
    }
    if (kind == RECTANGLE && (e->p[1].x <= e->p[0].x || e->p[1].y <= e->p[0].y)) return false;
    if (kind == POLYGON && !polygon_is_clear(e->p, e->n)) return false;
    if (kind == LINE && length < 3) return false;
    random_style(e);
    return kind != LINE || length >= 4 || !strstr(e->command, "dashed");
}

static void put_points(Text *t, const Point *p, int n) {
    for (int i = 0; i < n; i++) put(t, "%s(%d,%d)", i ? " -- " : "", p[i].x, p[i].y);
}

static void put_element(Text *t, const Element *e) {
    put(t, "  %s ", e->command);
    if (e->kind == CIRCLE)
        put(t, "(%d,%d) circle (%d)", e->p[0].x, e->p[0].y, e->radius);
    else if (e->kind == RECTANGLE)
        put(t, "(%d,%d) rectangle (%d,%d)", e->p[0].x, e->p[0].y, e->p[1].x, e->p[1].y);
    else
        put_points(t, e->p, e->n);
    put(t, "%s;\n", e->kind == POLYGON ? " -- cycle" : "");
}

/* One to three elements in a box that has the full width or height of the square. False if no placement was found. */
static bool free_scene(Text *t) {
    static const int counts[] = {12, 48, 40};
    static const int kind_weights[] = {30, 25, 22, 23};
    Element e[MAX_ELEMENTS];
    Kind kind[MAX_ELEMENTS];  // chosen once: choosing in each attempt would favour kinds that fit easily
    int corners[MAX_ELEMENTS], n = 1 + choose_weighted(counts, COUNT_OF(counts));
    for (int i = 0; i < n; i++) {
        kind[i] = (Kind)choose_weighted(kind_weights, COUNT_OF(kind_weights));
        corners[i] = chance(75) ? 3 : 4;
    }
    int width = SPAN, height = chance(30) ? 4 : SPAN;
    if (chance(50)) width = height, height = SPAN;
    for (int attempt = 0; attempt < 3000; attempt++) {
        int made = 0;
        for (int tries = 0; made < n && tries < 60; tries++) {
            if (!random_element(&e[made], kind[made], corners[made], width, height)) continue;
            bool ok = true;
            for (int i = 0; i < made; i++) ok = ok && compatible(&e[i], &e[made]);
            made += ok;
        }
        if (made < n || !fills_box(e, n, width, height)) continue;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < e[i].n; j++) e[i].p[j].x += (SPAN - width) / 2, e[i].p[j].y += (SPAN - height) / 2;
        qsort(e, n, sizeof e[0], element_order);
        for (int i = 0; i < n; i++) put_element(t, &e[i]);
        return true;
    }
    return false;
}

/* ---- graphs and block diagrams: labelled nodes joined by lines or arrows ---- */

typedef struct {
    int from, to;
} Edge;

typedef struct {
    Point at[MAX_NODES];
    char label[MAX_NODES];
    const char *fill[MAX_NODES];  // tint or NULL
    int nodes, edges;
    Edge edge[MAX_EDGES];
    bool directed;
} Graph;

/* Labels the nodes A, B, C ... in their order, which makes labels predictable: a letter is only six pixels high, and
 * learning to read it would take far more training than everything else. */
static void label_nodes(Graph *g) {
    for (int i = 0; i < g->nodes; i++) g->label[i] = (char)('A' + i);
}

/* Fills no node, all nodes with one tint, or a single node. */
static void random_fills(Graph *g) {
    static const int modes[] = {50, 30, 20};
    int mode = choose_weighted(modes, COUNT_OF(modes)), marked = choose(g->nodes);
    const char *tint = tints[choose(COUNT_OF(tints))];
    for (int i = 0; i < g->nodes; i++) g->fill[i] = mode == 1 || (mode == 2 && i == marked) ? tint : NULL;
}

static int edge_order(const void *a, const void *b) {
    const Edge *e = a, *f = b;
    return e->from != f->from ? e->from - f->from : e->to - f->to;
}

/* Whether a straight edge from node i to node j stays clear of the other nodes and of the existing edges. */
static bool edge_is_clear(const Graph *g, int i, int j) {
    for (int k = 0; k < g->nodes; k++)
        if (k != i && k != j && segment_distance(g->at[k], g->at[i], g->at[j]) < 1.2) return false;
    for (int k = 0; k < g->edges; k++) {
        Edge e = g->edge[k];
        if ((e.from == i && e.to == j) || (e.from == j && e.to == i)) return false;
        if (segments_cross(segment(g->at[e.from], g->at[e.to]), segment(g->at[i], g->at[j]))) return false;
    }
    return true;
}

/* Connects the nodes by a random spanning tree of allowed edges and some additional edges. False if that is
 * impossible. */
static bool random_edges(Graph *g, bool axis_aligned) {
    int component[MAX_NODES], pairs[MAX_NODES * MAX_NODES], limit = g->nodes == 5 ? 5 : MAX_EDGES;
    g->edges = 0;
    for (int i = 0; i < g->nodes; i++) component[i] = i;
    for (int i = 0; i < g->nodes * g->nodes; i++) pairs[i] = i;
    shuffle(pairs, g->nodes * g->nodes);
    for (int pass = 0; pass < 2; pass++)  // 0: edges that join two components; 1: additional ones
        for (int k = 0; k < g->nodes * g->nodes; k++) {
            int i = pairs[k] / g->nodes, j = pairs[k] % g->nodes;
            if (i >= j || g->edges == limit || (pass == 0) != (component[i] != component[j])) continue;
            if (axis_aligned && g->at[i].x != g->at[j].x && g->at[i].y != g->at[j].y) continue;
            if (!edge_is_clear(g, i, j) || (pass == 1 && !chance(30))) continue;
            bool backward = g->directed && chance(axis_aligned ? 25 : 50);
            g->edge[g->edges].from = backward ? j : i, g->edge[g->edges++].to = backward ? i : j;
            for (int c = component[j], m = 0; m < g->nodes; m++)
                if (component[m] == c) component[m] = component[i];
        }
    for (int i = 1; i < g->nodes; i++)
        if (component[i] != component[0]) return false;
    qsort(g->edge, g->edges, sizeof g->edge[0], edge_order);
    return true;
}

/* Writes a graph. node_options: the options of all nodes, such as "circle, draw"; edge_colour: a colour or NULL. */
static void put_graph(Text *t, const Graph *g, const char *node_options, const char *edge_colour) {
    for (int i = 0; i < g->nodes; i++) {
        put(t, "  \\node[%s", node_options);
        if (g->fill[i]) put(t, ", fill=%s", g->fill[i]);
        put(t, "] (%c) at (%d,%d) {%c};\n", g->label[i], g->at[i].x, g->at[i].y, g->label[i]);
    }
    for (int i = 0; i < g->edges; i++) {
        const char *colour = edge_colour ? edge_colour : "", *comma = edge_colour ? ", " : "";
        put(t, "  \\draw");
        if (g->directed)
            put(t, "[-latex%s%s, thick]", comma, colour);
        else if (edge_colour)
            put(t, "[%s]", colour);
        put(t, " (%c) -- (%c);\n", g->label[g->edge[i].from], g->label[g->edge[i].to]);
    }
}

/* A graph with its nodes on a 4 x 4 grid of pitch 2. False if no layout was found. */
static bool graph_scene(Text *t) {
    static const int counts[] = {12, 40, 36, 12};
    Graph g = {0};
    int cells[16];
    g.nodes = 2 + choose_weighted(counts, COUNT_OF(counts));
    g.directed = chance(50);
    for (int attempt = 0; attempt < 1000; attempt++) {
        bool taken[16] = {false};
        for (int i = 0; i < 16; i++) cells[i] = i;
        shuffle(cells, 16);
        for (int i = 0; i < g.nodes; i++) taken[cells[i]] = true;
        for (int i = 0, n = 0; i < 16; i++)
            if (taken[i]) g.at[n].x = i / 4 * 2, g.at[n++].y = i % 4 * 2;
        int x0 = 6, y0 = 6, x1 = 0, y1 = 0;
        for (int i = 0; i < g.nodes; i++) {
            int x = g.at[i].x, y = g.at[i].y;
            x0 = x < x0 ? x : x0, x1 = x > x1 ? x : x1, y0 = y < y0 ? y : y0, y1 = y > y1 ? y : y1;
        }
        if (x1 - x0 < 6 && y1 - y0 < 6) continue;
        for (int i = 0; i < g.nodes; i++) g.at[i].x += (6 - x0 - x1) / 2, g.at[i].y += (6 - y0 - y1) / 2;
        if (!random_edges(&g, false)) continue;
        label_nodes(&g);
        random_fills(&g);
        put_graph(t, &g, "circle, draw", chance(25) ? colours[choose(COUNT_OF(colours))] : NULL);
        return true;
    }
    return false;
}

/* A block diagram: square blocks of 2 units in three columns and one to three rows, or transposed. */
static bool block_scene(Text *t) {
    static const int row_weights[] = {25, 50, 25}, counts[] = {10, 40, 35, 15};
    static const int position[3][3] = {{4, 0, 0}, {2, 6, 0}, {1, 4, 7}};  // coordinates of 1, 2 and 3 rows
    for (int attempt = 0; attempt < 1000; attempt++) {
        Graph g = {0};
        int lines = 1 + choose_weighted(row_weights, 3), used[3] = {0}, cells[9], total = 3 * lines;
        bool transposed = chance(30), taken[9] = {false};
        g.nodes = 2 + choose_weighted(counts, COUNT_OF(counts));
        g.directed = chance(80);
        if (g.nodes > total) continue;
        for (int i = 0; i < total; i++) cells[i] = i;
        shuffle(cells, total);
        for (int i = 0; i < g.nodes; i++) taken[cells[i]] = true, used[cells[i] % lines] |= 1 << cells[i] / lines;
        int columns = 0, ends = 0;
        for (int i = 0; i < lines; i++) columns |= used[i], ends += used[i] != 0;
        if ((columns & 5) != 5 || ends < lines) continue;  // the outer columns must be used and no row empty
        int n = 0;
        for (int i = 0; i < 9; i++) {  // in the order of x, then y
            int column = transposed ? i % 3 : i / 3, line = transposed ? i / 3 : i % 3;
            if (line >= lines || !taken[column * lines + line]) continue;
            int along = position[2][column], over = position[lines - 1][line];
            g.at[n].x = transposed ? over : along, g.at[n++].y = transposed ? along : over;
        }
        if (!random_edges(&g, true)) continue;
        label_nodes(&g);
        random_fills(&g);
        put_graph(t, &g, "draw, minimum size=1cm", NULL);
        return true;
    }
    return false;
}

/* ---- plots ---- */

/* Makes the points of a curve from left to right, at least 2 units apart, such that every inner point is a visible
 * bend. Returns their number. */
static int random_curve(Point *p) {
    for (;;) {
        int n = 0, skipped = choose(8);  // 4 to 7: none is skipped
        for (int i = 0; i < 4; i++)
            if (i != skipped) p[n].x = 2 * i, p[n++].y = choose_between(1, 5);
        bool ok = true;
        for (int i = 1; i + 1 < n; i++) ok = ok && segment_distance(p[i], p[i - 1], p[i + 1]) >= 0.8;
        if (ok) return n;
    }
}

/* Whether no point of curve p lies on or near curve q. */
static bool curves_are_clear(const Point *p, int n, const Point *q, int m) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j + 1 < m; j++)
            if (segment_distance(p[i], q[j], q[j + 1]) < 0.9) return false;
    return true;
}

/* Writes one or two curves of different colours; the one that starts further left, or lower, comes first. */
static void put_curves(Text *t) {
    Point p[5], q[5];
    int order[COUNT_OF(colours)], n = random_curve(p), m = 0;
    bool two = chance(45);
    for (int tries = 0; two && (!m || !curves_are_clear(p, n, q, m) || !curves_are_clear(q, m, p, n));) {
        if (++tries % 1000 == 0) n = random_curve(p);  // some curves leave no space for a second one
        m = random_curve(q);
    }
    for (int i = 0; i < COUNT_OF(order); i++) order[i] = i;
    shuffle(order, COUNT_OF(order));
    bool swap = m && point_order(q[0], p[0]) < 0, dashed[2] = {chance(25), chance(25)};
    for (int i = 0; i < (m ? 2 : 1); i++) {
        bool second = (i == 1) != swap;
        put(t, "  \\draw[%s, %sultra thick] ", colours[order[i]], dashed[i] ? "dashed, " : "");
        put_points(t, second ? q : p, second ? m : n);
        put(t, ";\n");
    }
}

/* Writes two or three bars, one unit wide and one unit apart. */
static void put_bars(Text *t) {
    int n = choose_between(2, 3), colour = choose(COUNT_OF(tints));
    bool mixed = chance(35);
    for (int i = 0; i < n; i++) {
        int x = 1 + 2 * i;
        if (mixed) colour = choose(COUNT_OF(tints));
        put(t, "  \\draw[fill=%s] (%d,0) rectangle (%d,%d);\n", tints[colour], x, x + 1, choose_between(1, 5));
    }
}

/* Axes with curves or bars; always succeeds. */
static bool plot_scene(Text *t) {
    put(t, "  \\draw[->] (0,0) -- (8,0);\n  \\draw[->] (0,0) -- (0,6);\n");
    if (chance(60))
        put_curves(t);
    else
        put_bars(t);
    return true;
}

/* Writes a random figure, a whole document. False if no placement of its elements was found. */
static inline bool starter_figure(Text *t) {
    static bool (*const scenes[])(Text *) = {free_scene, graph_scene, plot_scene, block_scene};
    static const int weights[] = {40, 25, 20, 15};
    t->n = 0;
    put(t, "\\documentclass[tikz]{standalone}\n\\begin{document}\n\\begin{tikzpicture}[scale=0.5]\n");
    if (!scenes[choose_weighted(weights, COUNT_OF(weights))](t)) return false;
    put(t, "\\end{tikzpicture}\n\\end{document}\n");
    return true;
}

#endif
