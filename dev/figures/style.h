/* How figures are spelled: numbers, points, options, and the document around them. README.md lists the rules. */
#ifndef FIGURES_STYLE_H
#define FIGURES_STYLE_H

#include "../starter/geometry.h"
#include "../starter/text.h"

/* ---- lengths: all positions are whole numbers of quarters of a centimetre ---- */

/* Writes a length in cm without zeros at its end: 1, 1.5, 0.25, -0.75. */
static inline void put_cm(Text *t, int quarters) {
    static const char *const part[] = {"", ".25", ".5", ".75"};
    int size = quarters < 0 ? -quarters : quarters;
    put(t, "%s%d%s", quarters < 0 ? "-" : "", size / 4, part[size % 4]);
}

static inline Point point(int x, int y) { return (Point){x, y}; }

static inline void put_point(Text *t, Point p) {
    put(t, "(");
    put_cm(t, p.x);
    put(t, ",");
    put_cm(t, p.y);
    put(t, ")");
}

/* ---- options, always in the order of the members ---- */

typedef struct {
    const char *arrow;        // "-latex", "->", "<->"
    const char *shape;        // "circle", "state", "diamond, aspect=2"
    bool draw;                // of a node: it has an outline
    const char *colour;       // of lines and text; NULL: black
    const char *dash;         // "dashed", "dotted"
    bool thick;               // ultra thick
    bool rounded;             // rounded corners
    bool tight;               // inner sep=0pt
    int width, height, size;  // minimum width, height and size in quarters; 0: not given
    const char *fill;
    bool clear;        // half transparent
    const char *more;  // "bend left", "loop above", "above", "below left"
} Style;

static inline void put_option(Text *t, int *count, const char *option) {
    put(t, "%s%s", (*count)++ ? ", " : "[", option);
}

static inline void put_length(Text *t, int *count, const char *name, int quarters) {
    if (!quarters) return;
    put_option(t, count, name);
    put(t, "=");
    put_cm(t, quarters);
    put(t, "cm");
}

/* Writes the options in brackets; nothing where there are none. */
static inline void put_style(Text *t, const Style *s) {
    int n = 0;
    if (s->arrow) put_option(t, &n, s->arrow);
    if (s->shape) put_option(t, &n, s->shape);
    if (s->draw) put_option(t, &n, "draw");
    if (s->colour) put_option(t, &n, s->colour);
    if (s->dash) put_option(t, &n, s->dash);
    if (s->thick) put_option(t, &n, "ultra thick");
    if (s->rounded) put_option(t, &n, "rounded corners");
    if (s->tight) put_option(t, &n, "inner sep=0pt");
    put_length(t, &n, "minimum width", s->width);
    put_length(t, &n, "minimum height", s->height);
    put_length(t, &n, "minimum size", s->size);
    if (s->fill) {
        put_option(t, &n, "fill=");
        put(t, "%s", s->fill);
    }
    if (s->clear) put_option(t, &n, "fill opacity=0.5");
    if (s->more) put_option(t, &n, s->more);
    if (n) put(t, "]");
}

/* ---- statements ---- */

/* "  \node[STYLE] (NAME) at (X,Y) {LABEL};"; without a name if it is 0. */
static inline void put_node(Text *t, const Style *s, char name, Point at, const char *label) {
    put(t, "  \\node");
    put_style(t, s);
    if (name) put(t, " (%c)", name);
    put(t, " at ");
    put_point(t, at);
    put(t, " {%s};\n", label);
}

/* "  \draw[STYLE] (X,Y) -- (X,Y) ... ", without its end. */
static inline void put_path(Text *t, const Style *s, const Point *p, int n) {
    put(t, "  \\draw");
    put_style(t, s);
    for (int i = 0; i < n; i++) {
        put(t, i ? " -- " : " ");
        put_point(t, p[i]);
    }
}

static inline void put_line(Text *t, const Style *s, Point a, Point b) {
    put_path(t, s, (Point[]){a, b}, 2);
    put(t, ";\n");
}

static inline void put_rectangle(Text *t, const Style *s, Point a, Point b) {
    put(t, "  \\draw");
    put_style(t, s);
    put(t, " ");
    put_point(t, a);
    put(t, " rectangle ");
    put_point(t, b);
    put(t, ";\n");
}

static inline void put_circle(Text *t, const Style *s, Point at, int radius) {
    put(t, "  \\draw");
    put_style(t, s);
    put(t, " ");
    put_point(t, at);
    put(t, " circle (");
    put_cm(t, radius);
    put(t, ");\n");
}

/* ---- the document ---- */

/* Begins a document; preamble: what it loads, such as "\\usepackage{tikz-cd}\n", each on a line of its own. */
static inline void begin_document(Text *t, const char *preamble) {
    put(t, "\\documentclass[tikz]{standalone}\n%s\\begin{document}\n", preamble);
}

static inline void begin_picture(Text *t, const char *preamble) {
    begin_document(t, preamble);
    put(t, "\\begin{tikzpicture}\n");
}

static inline void end_picture(Text *t) { put(t, "\\end{tikzpicture}\n\\end{document}\n"); }

/* ---- random parts ---- */

/* Puts the first n of `all`, at most 96, in random order into out. */
static inline void choose_some(int *out, int n, int all) {
    int order[96];
    for (int i = 0; i < all; i++) order[i] = i;
    shuffle(order, all);
    for (int i = 0; i < n; i++) out[i] = order[i];
}

static const char *const line_colours[] = {"red", "blue", "green", "magenta", "orange", "cyan"};
static const char *const fill_tints[] = {"red!30",    "blue!30", "green!30", "yellow!30",
                                         "orange!30", "cyan!30", "gray!50"};

static inline const char *random_colour(void) { return line_colours[choose(COUNT_OF(line_colours))]; }
static inline const char *random_tint(void) { return fill_tints[choose(COUNT_OF(fill_tints))]; }

#endif
