/* Venn diagrams: two or three circles that overlap, named, with numbers or a marked part. */
#ifndef FIGURES_VENN_H
#define FIGURES_VENN_H

#include "labels.h"

typedef struct {
    int n, radius, distance;
    Point at[3];
} Venn;

/* Fills the part that the first two circles share, or the first without the second. */
static inline void put_shared(Text *t, const Venn *v, const char *tint) {
    put(t, "  \\begin{scope}\n    \\clip ");
    put_point(t, v->at[0]);
    put(t, " circle (");
    put_cm(t, v->radius);
    put(t, ");\n    \\fill[%s] ", tint);
    put_point(t, v->at[1]);
    put(t, " circle (");
    put_cm(t, v->radius);
    put(t, ");\n  \\end{scope}\n");
}

static inline bool venn_figure(Text *t, int level) {
    static const char *const names[] = {"$A$", "$B$", "$C$", "$S$", "$T$",  "$U$",  "$P$", "$Q$",
                                        "$X$", "$Y$", "NP",  "P",   "Cats", "Dogs", "Red", "Blue"};
    Venn v = {.n = level == 2 ? 2 : level == 5 ? 3 : choose_between(2, 3), .radius = choose_between(5, 7)};
    v.distance = 2 * choose_between((v.radius + 2) / 2, v.radius - 2);
    if (2 * v.radius + v.distance > 26) return false;
    bool below = v.n == 3 && chance(50), framed = level > 2 && chance(30), styled = chance(50), same = chance(40);
    int dx = framed ? v.radius + 2 : 0, lift = v.n == 3 ? v.distance : 0, dy = framed ? v.radius + 2 : 0, some[3],
        tints[3];
    for (int i = 0; i < 3; i++)
        v.at[i] = point(dx + (i == 2 ? v.distance / 2 : i * v.distance), dy + (i == 2  ? below ? 0 : lift
                                                                               : below ? lift
                                                                                       : 0));
    choose_some(some, 3, COUNT_OF(names));
    choose_some(tints, 3, COUNT_OF(line_colours));
    begin_picture(t, "");
    if (framed) put_rectangle(t, &(Style){0}, point(0, 0), point(2 * dx + v.distance, 2 * dy + lift));
    bool shared = !styled && level > 2 && chance(60);
    if (shared) put_shared(t, &v, random_tint());
    for (int i = 0; i < v.n; i++) {
        Style s = {0};
        if (styled) s.fill = line_colours[tints[same ? 0 : i]], s.clear = true;
        put_circle(t, &s, v.at[i], v.radius);
    }
    for (int i = 0; i < v.n; i++) {  // the names stand in the outer parts
        Point p = v.at[i];
        int out = (v.radius - 2) * (v.n == 3 ? 3 : 2) / 4;
        if (i < 2) p.x += i ? out : -out;
        if (v.n == 3) p.y += (i == 2) == below ? -out : out;
        if (v.n == 3 && i < 2) p.y = v.at[i].y + (below ? 1 : -1) * (v.radius / 4);
        put_node(t, &(Style){0}, 0, p, names[some[i]]);
    }
    double low = lift - v.radius,
           high = sqrt(v.radius * v.radius - v.distance * v.distance / 4.0);  // what three circles share
    if (!shared && level > 2 && (v.n == 2 || high - low > 3) && chance(60)) {
        char number[8];
        snprintf(number, sizeof number, "%d", choose_between(1, 40));
        int up = v.n == 2 ? 0 : (int)lround((low + high) / 2);
        Point middle = point((v.at[0].x + v.at[1].x) / 2, v.at[0].y + (below ? -up : up));
        put_node(t, &(Style){0}, 0, middle, number);
    }
    if (framed && chance(60)) put_node(t, &(Style){0}, 0, point(2, 2), "$\\Omega$");
    end_picture(t);
    return true;
}

#endif
