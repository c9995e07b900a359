/* Trees, in TikZ's syntax of children. */
#ifndef FIGURES_TREE_H
#define FIGURES_TREE_H

#include "labels.h"

enum { TREE_MAX = 16 };

typedef struct {
    int n;
    int parent[TREE_MAX], depth[TREE_MAX], children[TREE_MAX];  // nodes are in the order of their depth
    int deepest;
    int spread[4];  // sibling distance of a depth, quarters
} Tree;

static inline void add_child(Tree *r, int parent) {
    r->parent[r->n] = parent, r->depth[r->n] = r->depth[parent] + 1, r->children[r->n] = 0;
    r->deepest = r->depth[r->n++];
    r->children[parent]++;
}

/* Grows a tree of n nodes at most, level by level. */
static inline void grow_tree(Tree *r, int n, int depth, int widest) {
    *r = (Tree){.n = 1};
    for (int i = 0; i < r->n; i++) {
        if (r->depth[i] == depth || (i && chance(30))) continue;
        int children = choose_between(i ? 1 : 2, widest);
        if (i && children == 1 && chance(70)) children = 2;
        for (int k = 0; k < children && r->n < n; k++) add_child(r, i);
    }
}

/* Sets the sibling distances so that no subtrees overlap. Returns the width of the tree, quarters. */
static inline int spread_tree(Tree *r, int leaf) {
    int most[4] = {0};
    for (int i = 0; i < r->n; i++)
        if (r->children[i] > most[r->depth[i]]) most[r->depth[i]] = r->children[i];
    r->spread[r->deepest] = leaf;
    for (int d = r->deepest - 1; d > 0; d--) r->spread[d] = r->spread[d + 1] * (most[d] > 1 ? most[d] : 1);
    int low = 0, high = 0, x[TREE_MAX] = {0}, child[TREE_MAX] = {0};  // in eighths
    for (int i = 1; i < r->n; i++) {
        int p = r->parent[i];
        x[i] = x[p] + r->spread[r->depth[i]] * (2 * child[p]++ - (r->children[p] - 1));
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
    }
    return (high - low) / 2;
}

typedef struct {
    const Tree *tree;
    const Label *label;
    const Style *inner, *leaf;
    const char *edge;       // options of the edges or NULL
    const char *const *on;  // labels of the edges of two children or NULL
} TreeLook;

static inline void put_tree_node(Text *t, const TreeLook *look, int i) {
    put(t, "node");
    put_style(t, look->tree->children[i] ? look->inner : look->leaf);
    put(t, " {%s}", look->label[i]);
}

/* Writes the children of node i, each on a line that is indented by its depth. */
static inline void put_children(Text *t, const TreeLook *look, int i) {
    const Tree *r = look->tree;
    int which = 0;
    for (int k = i + 1; k < r->n; k++) {
        if (r->parent[k] != i) continue;
        put(t, "\n%*schild {", 2 + 2 * r->depth[k], "");
        put_tree_node(t, look, k);
        put_children(t, look, k);
        if (look->edge || (look->on && r->children[i] == 2)) put(t, " edge from parent");
        if (look->edge) put(t, "[%s]", look->edge);
        if (look->on && r->children[i] == 2) put(t, " node[%s] {%s}", which ? "right" : "left", look->on[which]);
        put(t, "}");
        which++;
    }
}

/* Makes a tree of a level's size that is at most 7 cm wide, with its nodes, and 5 cm high. Returns its level distance, or 0. */
static inline int random_tree(Tree *r, int level, int leaf_low, int leaf_high) {
    static const int most[] = {0, 0, 5, 7, 11, 15};
    int depth = level == 2 ? choose_between(1, 2) : level == 3 ? 2 : choose_between(2, 3);
    grow_tree(r, most[level], depth, chance(60) ? 2 : 3);
    if (r->n < (level > 3 ? most[level - 1] - 1 : 3)) return 0;
    if (spread_tree(r, choose_between(leaf_low, leaf_high)) + leaf_low - 1 > 28) return 0;
    return choose_between(4, r->deepest == 3 ? 5 : 7);
}

static inline bool tree_figure(Text *t, int level) {
    enum { ROUND, PLAIN, BOXES, DOTS };
    static const int weights[] = {50, 20, 20, 10};
    static const char *const pairs[][2] = {{"0", "1"}, {"yes", "no"}, {"$p$", "$q$"}, {"L", "R"}};
    int look = choose_weighted(weights, 4);
    LabelKind kind = (LabelKind[]){LETTERS, DIGITS, SUBSCRIPTS, FORMULAS}[choose(look == ROUND ? 3 : 4)];
    if (look == BOXES && chance(50)) kind = SHORT_WORDS;
    int leaf = kind == SHORT_WORDS ? 7 : look == PLAIN && kind == FORMULAS ? 5 : look == BOXES ? 5 : 3;
    Tree r;
    int distance = random_tree(&r, level, leaf, leaf + 2);
    if (!distance) return false;
    Label label[TREE_MAX];
    if (kind == SUBSCRIPTS && r.n > 9) kind = DIGITS;
    random_labels(label, r.n, kind);
    Style inner = {.shape = "circle", .draw = true, .tight = true, .size = 2}, leaf_style;
    if (look == PLAIN) inner = (Style){0};
    if (look == BOXES)
        inner = (Style){.draw = true, .tight = true, .width = kind == SHORT_WORDS ? 6 : 4, .height = 2};
    if (look == DOTS)
        inner = (Style){.shape = "circle", .tight = true, .size = 1, .fill = chance(60) ? "black" : random_colour()};
    for (int i = 0; look == DOTS && i < r.n; i++) label[i][0] = 0;
    leaf_style = inner;
    if (look != PLAIN && look != DOTS && level > 2 && chance(50)) inner.fill = random_tint();
    if (look != PLAIN && look != DOTS && level > 2 && chance(40)) leaf_style.fill = random_tint();
    if (look == ROUND && level > 3 && chance(30))
        leaf_style = (Style){.draw = true, .tight = true, .size = 2, .fill = leaf_style.fill};
    bool labelled = level > 2 && r.spread[r.deepest] > 4 && distance > 4 && chance(30);
    TreeLook tree = {&r, label, &inner, &leaf_style, chance(25) ? "->" : NULL, labelled ? pairs[choose(4)] : NULL};
    begin_document(t, "");
    put(t, "\\begin{tikzpicture}[level distance=");
    put_cm(t, distance);
    put(t, "cm");
    for (int d = 1; d <= r.deepest; d++) {
        put(t, ", level %d/.style={sibling distance=", d);
        put_cm(t, r.spread[d]);
        put(t, "cm}");
    }
    put(t, "]\n  \\");
    put_tree_node(t, &tree, 0);
    put_children(t, &tree, 0);
    put(t, ";\n");
    end_picture(t);
    return true;
}

#endif
