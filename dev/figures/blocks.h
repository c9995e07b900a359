/* Block diagrams: labelled boxes in rows and columns, joined by arrows. */
#ifndef FIGURES_BLOCKS_H
#define FIGURES_BLOCKS_H

#include "labels.h"

enum { BLOCKS_MAX = 12, LINKS_MAX = 16 };

typedef struct {
    int from, to;
    bool elbow;         // first along x, then along y
    const char *label;  // NULL: none
} Link;

typedef struct {
    int n, links;
    int column[BLOCKS_MAX], row[BLOCKS_MAX];  // rows are counted from the top; blocks are in reading order
    Point at[BLOCKS_MAX];
    Label label[BLOCKS_MAX];
    Style style[BLOCKS_MAX];
    Link link[LINKS_MAX];
} Blocks;

/* Occupies cells of a grid such that every row and column is used, and numbers them from the top, in each row from the
 * left. */
static inline bool place_blocks(Blocks *b, int rows, int columns, int dx, int dy) {
    int cells[32], used_rows = 0, used_columns = 0;
    bool taken[32] = {false};
    if (b->n > rows * columns) return false;
    choose_some(cells, b->n, rows * columns);
    for (int i = 0; i < b->n; i++) taken[cells[i]] = true;
    for (int cell = 0, n = 0; cell < rows * columns; cell++) {
        if (!taken[cell]) continue;
        int r = cell / columns, c = cell % columns;
        used_rows |= 1 << r, used_columns |= 1 << c;
        b->row[n] = r, b->column[n] = c;
        b->at[n++] = point(c * dx, (rows - 1 - r) * dy);
    }
    return used_rows == (1 << rows) - 1 && used_columns == (1 << columns) - 1;
}

/* The block at a cell, or -1. */
static inline int block_at(const Blocks *b, int row, int column) {
    for (int i = 0; i < b->n; i++)
        if (b->row[i] == row && b->column[i] == column) return i;
    return -1;
}

/* Whether a line along a row or a column from block i to block j meets no other block. */
static inline bool blocks_see(const Blocks *b, int i, int j) {
    int dr = (b->row[j] > b->row[i]) - (b->row[j] < b->row[i]),
        dc = (b->column[j] > b->column[i]) - (b->column[j] < b->column[i]);
    if (dr && dc) return false;
    for (int r = b->row[i] + dr, c = b->column[i] + dc; r != b->row[j] || c != b->column[j]; r += dr, c += dc)
        if (block_at(b, r, c) >= 0) return false;
    return true;
}

/* The segments of a link from block i to block j: one, or two of an elbow, along the row of i, then along the column of j.
 * Returns their number. */
static inline int link_segments(const Blocks *b, int i, int j, bool elbow, Segment *s) {
    Point corner = point(b->at[j].x, b->at[i].y);
    s[0] = segment(b->at[i], elbow ? corner : b->at[j]);
    if (elbow) s[1] = segment(corner, b->at[j]);
    return elbow ? 2 : 1;
}

/* Whether a new link would cross one that is there. */
static inline bool link_crosses(const Blocks *b, int i, int j, bool elbow) {
    Segment s[2], r[2];
    int n = link_segments(b, i, j, elbow, s);
    for (int k = 0; k < b->links; k++) {
        int m = link_segments(b, b->link[k].from, b->link[k].to, b->link[k].elbow, r);
        for (int x = 0; x < n * m; x++)
            if (segments_cross(s[x / m], r[x % m])) return true;
    }
    return false;
}

/* Whether an elbow from block i along its row to the column of block j is free: nobody is beside it, and no link uses the
 * same way. */
static inline bool elbow_is_free(const Blocks *b, int i, int j) {
    if (b->row[i] == b->row[j] || b->column[i] == b->column[j] || block_at(b, b->row[i], b->column[j]) >= 0)
        return false;
    int r0 = b->row[i] < b->row[j] ? b->row[i] : b->row[j], r1 = b->row[i] + b->row[j] - r0;
    int c0 = b->column[i] < b->column[j] ? b->column[i] : b->column[j], c1 = b->column[i] + b->column[j] - c0;
    for (int r = r0 + 1; r < r1; r++)
        if (block_at(b, r, b->column[j]) >= 0) return false;
    for (int c = c0 + 1; c < c1; c++)
        if (block_at(b, b->row[i], c) >= 0) return false;
    for (int k = 0; k < b->links; k++) {  // a straight link along one of the two ways, or another elbow
        int f = b->link[k].from, g = b->link[k].to;
        bool in_row = b->row[f] == b->row[i] && b->row[g] == b->row[i];
        bool in_column = b->column[f] == b->column[j] && b->column[g] == b->column[j];
        if (in_row || in_column || b->link[k].elbow) return false;
    }
    return true;
}

static inline int link_order(const void *a, const void *b) {
    const Link *x = a, *y = b;
    return x->from != y->from ? x->from - y->from : x->to - y->to;
}

static inline bool blocks_joined(const Blocks *b, int i, int j) {
    for (int k = 0; k < b->links; k++)
        if ((b->link[k].from == i && b->link[k].to == j) || (b->link[k].from == j && b->link[k].to == i)) return true;
    return false;
}

/* Whether a straight link would lie on an elbow. */
static inline bool meets_elbow(const Blocks *b, int i, int j) {
    for (int k = 0; k < b->links; k++) {
        int row = b->row[b->link[k].from], column = b->column[b->link[k].to];
        if (!b->link[k].elbow) continue;
        if ((b->row[i] == row && b->row[j] == row) || (b->column[i] == column && b->column[j] == column)) return true;
    }
    return false;
}

/* Joins the blocks: a spanning tree of straight links, some more, and elbows. False if they cannot be joined. */
static inline bool join_blocks(Blocks *b, int extra, int elbows) {
    int part[BLOCKS_MAX], pairs[BLOCKS_MAX * BLOCKS_MAX], n = b->n;
    for (int i = 0; i < n; i++) part[i] = i;
    for (int i = 0; i < n * n; i++) pairs[i] = i;
    shuffle(pairs, n * n);
    b->links = 0;
    for (int pass = 0; pass < 3;
         pass++)  // 0: links that join two parts; 1: elbows, which may do so; 2: additional links
        for (int k = 0; k < n * n && b->links < LINKS_MAX; k++) {
            int i = pairs[k] / n, j = pairs[k] % n;
            if (i == j || blocks_joined(b, i, j) || (pass == 0 && part[i] == part[j])) continue;
            if (link_crosses(b, i, j, pass == 1)) continue;
            if (pass == 1 ? !elbows || !elbow_is_free(b, i, j) : !blocks_see(b, i, j)) continue;
            if (pass == 2 && !chance(extra)) continue;
            if (pass == 2 && meets_elbow(b, i, j)) continue;
            bool backward = pass != 1 && (i < j) == chance(15);
            b->link[b->links++] = (Link){.from = backward ? j : i, .to = backward ? i : j, .elbow = pass == 1};
            elbows -= pass == 1;
            for (int c = part[j], m = 0; m < n; m++)
                if (part[m] == c) part[m] = part[i];
        }
    for (int i = 1; i < n; i++)
        if (part[i] != part[0]) return false;
    qsort(b->link, b->links, sizeof b->link[0], link_order);
    return true;
}

/* Where the label of a link stands: above a line along a row, right of one along a column. */
static inline void put_link(Text *t, const Blocks *b, const Link *l, const Style *style) {
    put(t, "  \\draw");
    put_style(t, style);
    put(t, " (%c) %s ", 'a' + l->from, l->elbow ? "-|" : "--");
    if (l->label) put(t, "node[%s] {%s} ", b->row[l->from] == b->row[l->to] ? "above" : "right", l->label);
    put(t, "(%c);\n", 'a' + l->to);
}

static inline void put_blocks(Text *t, const Blocks *b, const Style *link_style) {
    for (int i = 0; i < b->n; i++) put_node(t, &b->style[i], (char)('a' + i), b->at[i], b->label[i]);
    for (int i = 0; i < b->links; i++) put_link(t, b, &b->link[i], link_style);
}

/* The styles of blocks: all alike, or some tinted, rounded or round. */
static inline void style_blocks(Blocks *b, int level, int width, bool wordless) {
    int mode = choose(level), marked = choose(b->n);
    bool rounded = level > 2 && chance(25), round = wordless && chance(35), dashed = level > 3 && chance(20);
    const char *tint[2] = {random_tint(), random_tint()}, *colour = level > 3 && chance(15) ? random_colour() : NULL;
    for (int i = 0; i < b->n; i++) {
        Style s = {.draw = true, .rounded = rounded, .width = width, .height = 3, .colour = colour};
        if (round) s = (Style){.shape = "circle", .draw = true, .colour = colour, .tight = true, .size = 3};
        if (mode == 1 || (mode == 2 && i == marked)) s.fill = tint[0];
        if (mode == 3) s.fill = tint[b->column[i] % 2];
        if (mode == 4 && chance(60)) s.fill = chance(50) ? tint[0] : random_tint();
        if (dashed && i == marked && !s.fill) s.dash = "dashed";
        b->style[i] = s;
    }
}

static inline void label_links(Blocks *b, int level, int gap) {
    static const char *const texts[] = {"yes", "no", "$x$", "$y$", "$u$", "$e$", "0", "1", "$k$", "in", "out", "$f$"};
    for (int i = 0; level > 2 && i < b->links; i++)
        if (!b->link[i].elbow && gap >= 3 && chance(level == 3 ? 20 : 35))
            b->link[i].label = texts[choose(COUNT_OF(texts))];
}

/* A block diagram with up to four columns; words need wide blocks, letters and formulas narrow ones. */
static inline bool block_figure(Text *t, int level) {
    static const int most[] = {0, 0, 4, 5, 8, 11};
    static const int columns_of[] = {25, 30, 35, 10};
    int columns = 1 + choose_weighted(columns_of, 4), rows = choose_between(1, columns == 1 ? 4
                                                                               : level > 3  ? 4
                                                                                            : level);
    LabelKind kind =
        columns == 4 ? LETTERS : (LabelKind[]){SHORT_WORDS, SHORT_WORDS, LONG_WORDS, LETTERS, FORMULAS}[choose(5)];
    if (columns == 4 && chance(60)) kind = FORMULAS;
    bool wordless = kind != SHORT_WORDS && kind != LONG_WORDS;
    int width = kind == SHORT_WORDS ? 6 : kind == LONG_WORDS ? 8 : columns == 4 ? 4 : choose_between(4, 5);
    int room = columns > 1 ? (27 - width) / (columns - 1) : 12, dx = choose_between(width + 2, width + 6);
    int dy = choose_between(5, rows > 3 ? 6 : 8);
    if (dx > room) return false;
    Blocks b = {.n = choose_between(level > 3 ? most[level - 1] : 2, most[level])};
    if (!place_blocks(&b, rows, columns, dx, dy) || (columns == 1 && rows == 1)) return false;
    if (!join_blocks(&b, 10 * level, level > 2 ? choose(level - 1) : 0)) return false;
    random_labels(b.label, b.n, kind);
    style_blocks(&b, level, width, wordless);
    label_links(&b, level, b.style[0].shape ? dx - 3 : dx - width);
    Style link = {.arrow = chance(70) ? "-latex" : "->", .thick = false};
    if (level > 3 && chance(15)) link.colour = random_colour();
    if (level > 4 && chance(15)) link.dash = "dashed";
    begin_picture(t, "");
    put_blocks(t, &b, &link);
    end_picture(t);
    return true;
}

#endif
