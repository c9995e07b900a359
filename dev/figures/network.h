/* Neural networks: columns of units, each unit joined to those of the next column. */
#ifndef FIGURES_NETWORK_H
#define FIGURES_NETWORK_H

#include "labels.h"

typedef struct {
    int units;
    const char *fill, *label;  // label: of a unit, with its number, or ""
} NetLayer;

/* Writes the units of layer i, the j-th at height j, moved up so that all layers have one middle. dx: quarters. */
static inline void put_layer(Text *t, const NetLayer *l, int i, int dx, int most, const Style *unit) {
    static const char *const up[] = {"", "+0.5", "+1", "+1.5", "+2", "+2.5"};
    Style s = *unit;
    s.fill = l->fill;
    put(t, "  \\foreach \\i in {1,...,%d} \\node", l->units);
    put_style(t, &s);
    put(t, " (%c\\i) at (", 'a' + i);
    put_cm(t, i * dx);
    put(t, ",\\i%s) {%s};\n", up[most - l->units], l->label);
}

static inline bool network_figure(Text *t, int level) {
    static const char *const labels[] = {"", "$x_\\i$", "$h_\\i$", "$y_\\i$", "$z_\\i$", "\\i"};
    static const char *const names[] = {"Input", "Hidden", "Output"};
    int layers = level == 2 ? choose_between(2, 3) : level == 3 ? 3 : choose_between(3, level == 4 ? 4 : 5), most = 2;
    NetLayer l[5];
    bool labelled = level > 2 && chance(60), coloured = chance(25 + 10 * level), same = chance(30);
    const char *tint = random_tint();
    for (int i = 0; i < layers; i++) {
        l[i] = (NetLayer){.units = choose_between(i + 1 == layers && i > 1 ? 1 : 2, level == 2   ? 3
                                                                                    : level == 3 ? 4
                                                                                                 : level),
                          .label = ""};
        if (coloured) l[i].fill = same ? tint : random_tint();
        if (labelled)
            l[i].label = i == 0 ? labels[1] : i + 1 == layers ? labels[3] : labels[chance(70) ? 2 : choose(6)];
        if (l[i].units > most) most = l[i].units;
    }
    int dx = layers > 4 ? 5 : choose_between(6, layers > 3 ? 7 : layers > 2 ? 10 : 12);
    Style unit = {.shape = "circle", .draw = true, .tight = true, .size = choose_between(2, 3)};
    Style edge = {.arrow = level > 2 && chance(35) ? "->" : NULL,
                  .colour = level > 3 && chance(25) ? random_colour() : NULL};
    begin_picture(t, "");
    for (int i = 0; i < layers; i++) put_layer(t, &l[i], i, dx, most, &unit);
    for (int i = 0; i + 1 < layers; i++) {
        put(t, "  \\foreach \\i in {1,...,%d} \\foreach \\j in {1,...,%d} \\draw", l[i].units, l[i + 1].units);
        put_style(t, &edge);
        put(t, " (%c\\i) -- (%c\\j);\n", 'a' + i, 'b' + i);
    }
    if (level > 2 && layers < 5 && chance(50))
        for (int i = 0; i < layers; i++)
            put_node(t, &(Style){0}, 0, point(i * dx, 1), names[i == 0 ? 0 : i + 1 == layers ? 2 : 1]);
    end_picture(t);
    return true;
}

#endif
