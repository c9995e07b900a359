/* Circuits with the package circuitikz: meshes beside each other, one component on each branch. */
#ifndef FIGURES_CIRCUIT_H
#define FIGURES_CIRCUIT_H

#include "labels.h"

typedef struct {
    const char *name, *letter;
} Component;

static const Component sources_of_power[] = {{"battery1", "V"}, {"sV", "v"}, {"I", "I"}, {"V", "U"}};
static const Component components[] = {{"R", "R"}, {"C", "C"},      {"L", "L"},  {"R", "R"}, {"lamp", NULL},
                                       {"D", "D"}, {"switch", "S"}, {"vR", "R"}, {"eC", "C"}};

/* Writes "to[R, l=$R_1$] (X,Y)" with a number that counts the components with this letter; or a wire. */
static inline void put_branch(Text *t, const Component *c, bool labelled, int *counts, Point to) {
    if (!c) {
        put(t, " -- ");
    } else {
        put(t, " to[%s", c->name);
        if (labelled && c->letter) put(t, ", l=$%s_%d$", c->letter, ++counts[c->letter[0] & 31]);
        put(t, "] ");
    }
    put_point(t, to);
}

/* Meshes from left to right: a source, components along the top, components or wires down, a wire along the bottom. */
static inline bool circuit_figure(Text *t, int level) {
    int meshes = level == 2 ? 1 : choose_between(level > 3 ? 2 : 1, level > 4 ? 3 : 2),
        w = meshes == 3   ? 7
            : meshes == 2 ? 2 * choose_between(4, 5)
                          : 2 * choose_between(5, 8);
    int h = 2 * choose_between(4, 6), counts[32] = {0}, kinds = level == 2 ? 5 : COUNT_OF(components);
    bool labelled = chance(85);
    begin_picture(t, "\\usepackage{circuitikz}\n");
    put(t, "  \\draw (0,0)");
    put_branch(t, &sources_of_power[choose(level == 2 ? 2 : 4)], labelled, counts, point(0, h));
    for (int i = 0; i < meshes; i++)
        put_branch(t, chance(i ? 75 : 90) ? &components[choose(kinds)] : NULL, labelled, counts,
                   point((i + 1) * w, h));
    put_branch(t, chance(85) ? &components[choose(kinds)] : NULL, labelled, counts, point(meshes * w, 0));
    for (int i = meshes; i > 0; i--)
        put_branch(t, level > 3 && i == meshes && chance(25) ? &components[choose(kinds)] : NULL, labelled, counts,
                   point((i - 1) * w, 0));
    put(t, ";\n");
    for (int i = 1; i < meshes; i++) {
        put(t, "  \\draw ");
        put_point(t, point(i * w, h));
        put_branch(t, &components[choose(kinds)], labelled, counts, point(i * w, 0));
        put(t, ";\n");
    }
    if (level > 2 && chance(40)) put(t, "  \\node[ground] at (0,0) {};\n");
    for (int i = 1; i < meshes; i++)
        for (int y = h; y >= 0; y -= h) put_node(t, &(Style){.shape = "circ"}, 0, point(i * w, y), "");
    end_picture(t);
    return true;
}

#endif
