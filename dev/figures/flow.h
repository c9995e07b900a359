/* Flow charts: a column of steps with decisions, which lead to steps beside the column and back. */
#ifndef FIGURES_FLOW_H
#define FIGURES_FLOW_H

#include "blocks.h"

#define FLOW_SIDE 14  // quarters from the column to the steps beside it

typedef struct {
    int steps;    // in the column
    int side[6];  // the step beside step i: 0: none, 1: on the right, which returns to a step above or goes on below
    int back[6];  // where the step on the right leads to, or -1
    bool decision[6];
} Flow;

static inline bool random_flow(Flow *f, int level) {
    *f = (Flow){.steps = choose_between(level > 3 ? 4 : 3, level > 3 ? 5 : 4)};
    int decisions = level < 3 ? choose(2) : level < 5 ? 1 : 2, made = 0;
    for (int i = 1; i + 1 < f->steps && made < decisions; i++)
        if (chance(60) || f->steps - 2 - i < decisions - made)
            f->decision[i] = true, f->side[i] = made++ == 0 || chance(70);
    for (int i = 0; i < f->steps; i++) {
        f->back[i] = -1;
        if (f->side[i] && chance(60)) f->back[i] = chance(50) ? i - 1 : i + 1;
    }
    int used[6] = {0};  // a step has one arrow from the side
    for (int i = 0; i < f->steps; i++)
        if (f->back[i] >= 0 && (f->decision[f->back[i]] || used[f->back[i]]++)) f->back[i] = -1;
    return made == decisions;
}

/* Writes the steps of the column and those beside it, named a, b, ... in reading order; name[i], beside[i]: their names. */
static inline void put_flow_nodes(Text *t, const Flow *f, int dy, const char *tint[3], char *name, char *beside,
                                  bool words) {
    Label words_of[12], tests[4];
    int some[4];
    random_labels(words_of, 12, words ? SHORT_WORDS : FORMULAS);
    choose_some(some, 4, COUNT_OF(conditions));
    for (int i = 0; i < 4; i++) snprintf(tests[i], sizeof tests[i], "%s", conditions[some[i]]);
    Style end = {.draw = true, .rounded = true, .width = 6, .height = 3, .fill = tint[0]};
    Style step = {.draw = true, .width = 6, .height = 3, .fill = tint[1]};
    Style decision = {
        .shape = "diamond, aspect=2", .draw = true, .tight = true, .width = 8, .height = 4, .fill = tint[2]};
    char next = 'a';
    for (int i = 0, test = 0; i < f->steps; i++) {
        bool outer = i == 0 || i == f->steps - 1;
        Point at = point(0, (f->steps - 1 - i) * dy);
        name[i] = next++;
        if (f->decision[i])
            put_node(t, &decision, name[i], at, tests[test++]);
        else
            put_node(t, outer ? &end : &step, name[i], at, outer ? (i ? "Stop" : "Start") : words_of[i]);
        if (!f->side[i]) continue;
        beside[i] = next++;
        put_node(t, &step, beside[i], point(FLOW_SIDE, at.y), words_of[6 + i]);
    }
}

/* Writes the arrows of each step: down, to the side, and from the side. */
static inline void put_flow_arrows(Text *t, const Flow *f, const char *arrow, const char *name, const char *beside,
                                   bool swap) {
    for (int i = 0; i < f->steps; i++) {
        const char *down = swap ? "no" : "yes", *side = swap ? "yes" : "no";
        if (i + 1 < f->steps) {
            put(t, "  \\draw[%s] (%c) -- ", arrow, name[i]);
            if (f->decision[i]) put(t, "node[right] {%s} ", down);
            put(t, "(%c);\n", name[i + 1]);
        }
        if (f->side[i]) put(t, "  \\draw[%s] (%c) -- node[above] {%s} (%c);\n", arrow, name[i], side, beside[i]);
        if (f->back[i] >= 0) put(t, "  \\draw[%s] (%c) |- (%c);\n", arrow, beside[i], name[f->back[i]]);
    }
}

static inline bool flow_figure(Text *t, int level) {
    Flow f;
    char name[6] = {0}, beside[6] = {0};
    if (!random_flow(&f, level)) return false;
    bool decides = false;
    for (int i = 0; i < f.steps; i++) decides = decides || f.decision[i];
    const char *tint[3] = {NULL, NULL, NULL};
    for (int i = 0; level > 2 && i < 3; i++)
        if (chance(30 + 10 * level)) tint[i] = random_tint();
    begin_picture(t, decides ? "\\usetikzlibrary{shapes.geometric}\n" : "");
    put_flow_nodes(t, &f, f.steps == 5 ? 6 : choose_between(6, 8), tint, name, beside, level < 4 || chance(70));
    put_flow_arrows(t, &f, chance(70) ? "-latex" : "->", name, beside, level > 2 && chance(40));
    end_picture(t);
    return true;
}

#endif
