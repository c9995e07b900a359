/* Automata: states in rows, transitions with labels, loops, accepting states. */
#ifndef FIGURES_AUTOMATON_H
#define FIGURES_AUTOMATON_H

#include "blocks.h"

/* Where the label of a transition stands: beside its line, on the outer side of a bent one. */
static inline const char *transition_side(const Blocks *b, int i, int j, bool bent) {
    if (b->row[i] == b->row[j]) return bent && b->column[j] < b->column[i] ? "below" : "above";
    return bent && b->row[j] < b->row[i] ? "left" : "right";
}

static inline void put_transition(Text *t, const Blocks *b, int i, int j, bool bent, const char *label) {
    put(t, "  \\draw[->] (%c) to", 'a' + i);
    if (bent) put(t, "[bend left]");
    put(t, " node[%s] {%s} (%c);\n", transition_side(b, i, j, bent), label, 'a' + j);
}

/* Writes the transitions of each state: its loop, then those to other states in their order. */
static inline void put_transitions(Text *t, const Blocks *b, int rows, int loops, int both, const char *const *label,
                                   int labels) {
    bool loop[BLOCKS_MAX], two[LINKS_MAX];
    for (int i = 0; i < b->n; i++) loop[i] = chance(loops);
    for (int k = 0; k < b->links; k++) two[k] = chance(both);
    for (int i = 0; i < b->n; i++) {
        const char *side = rows > 1 && b->row[i] == rows - 1 ? "below" : "above";
        if (loop[i])
            put(t, "  \\draw[->] (%c) to[loop %s] node[%s] {%s} (%c);\n", 'a' + i, side, side, label[choose(labels)],
                'a' + i);
        for (int j = 0; j < b->n; j++)
            for (int k = 0; k < b->links; k++) {
                Link l = b->link[k];
                if ((l.from == i && l.to == j) || (two[k] && l.from == j && l.to == i))
                    put_transition(t, b, i, j, two[k], label[choose(labels)]);
            }
    }
}

static inline bool automaton_figure(Text *t, int level) {
    static const char *const letters[] = {"a", "b", "c"}, *const bits[] = {"0", "1"},
                             *const more[] = {"a", "b", "a, b", "$\\epsilon$"};
    static const char *const *const alphabets[] = {letters, bits, more};
    static const int sizes[] = {3, 2, 4}, most[] = {0, 0, 3, 4, 5, 6};
    int rows = level > 2 ? choose_between(1, 2) : 1, columns = choose_between(rows > 1 ? 2 : level > 2 ? 3 : 2, 3);
    int alphabet = choose(level > 3 ? 3 : 2), dx = choose_between(columns == 3 ? 7 : 8, columns == 3 ? 8 : 12),
        dy = choose_between(8, 10);
    Blocks b = {.n = choose_between(2, most[level])};
    if (level > 3 && b.n < 4) return false;
    if (!place_blocks(&b, rows, columns, dx, dy) || !join_blocks(&b, 20 * level, 0)) return false;
    if (b.column[0]) return false;  // the arrow "start" stands on the left of the first state
    random_labels(b.label, b.n, (LabelKind[]){SUBSCRIPTS, LETTERS, DIGITS}[choose_weighted((int[]){60, 25, 15}, 3)]);
    int accepting = 1 + choose((1 << b.n) - 1);
    const char *tint = level > 2 && chance(30) ? random_tint() : NULL;
    begin_picture(t, "\\usetikzlibrary{automata}\n");
    for (int i = 0; i < b.n; i++) {
        bool last = accepting >> i & 1 && (i == b.n - 1 || chance(50));
        Style s = {.shape = i      ? last ? "state, accepting" : "state"
                            : last ? "state, initial, accepting"
                                   : "state, initial",
                   .fill = tint};
        put_node(t, &s, (char)('a' + i), b.at[i], b.label[i]);
    }
    put_transitions(t, &b, rows, 25 + 5 * level, level > 2 ? 35 : 20, alphabets[alphabet], sizes[alphabet]);
    end_picture(t);
    return true;
}

#endif
