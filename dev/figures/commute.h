/* Commutative diagrams, with the package tikz-cd. */
#ifndef FIGURES_COMMUTE_H
#define FIGURES_COMMUTE_H

#include "labels.h"

typedef struct {
    int rows, columns;
    const char *object[3][3];  // NULL: none
    char arrows[3][3][200];    // of each object, in the order right, down, diagonal
} Diagram;

static const char *const objects[] = {"A",           "B",
                                      "C",           "D",
                                      "E",           "F",
                                      "G",           "H",
                                      "K",           "M",
                                      "N",           "P",
                                      "X",           "Y",
                                      "Z",           "0",
                                      "A'",          "B'",
                                      "X'",          "Y'",
                                      "X_1",         "X_2",
                                      "A_n",         "\\mathbb{R}",
                                      "\\mathbb{Z}", "\\mathcal{C}",
                                      "A \\times B", "X \\times Y",
                                      "F(X)",        "F(Y)",
                                      "A \\oplus B", "\\ker f",
                                      "M/N"};
static const char *const morphisms[] = {"f",     "g",  "h",       "k",      "p",       "q",      "i",      "j",
                                        "u",     "v",  "\\alpha", "\\beta", "\\gamma", "\\phi",  "\\psi",  "\\pi",
                                        "\\eta", "f'", "g'",      "F",      "f_1",     "\\pi_1", "\\pi_2", "\\iota"};

/* Appends an arrow to those of a cell. side: whether its label stands on the other side ('). */
static inline void add_morphism(Diagram *d, int r, int c, const char *way, bool side, int level) {
    static const char *const looks[] = {"hook", "two heads", "dashed", "Rightarrow", "tail"};
    char *s = d->arrows[r][c];
    size_t n = strlen(s), size = sizeof d->arrows[r][c];
    n += (size_t)snprintf(s + n, size - n, " \\arrow[%s", way);
    if (chance(85))
        n += (size_t)snprintf(s + n, size - n, ", \"%s\"%s", morphisms[choose(COUNT_OF(morphisms))], side ? "'" : "");
    if (level > 2 && chance(4 * level))
        n += (size_t)snprintf(s + n, size - n, ", %s", looks[choose(COUNT_OF(looks))]);
    snprintf(s + n, size - n, "]");
}

static inline void random_morphisms(Diagram *d, int level) {
    for (int r = 0; r < d->rows; r++)
        for (int c = 0; c < d->columns; c++) {
            if (!d->object[r][c]) continue;
            bool right = c + 1 < d->columns && d->object[r][c + 1], down = r + 1 < d->rows && d->object[r + 1][c];
            bool diagonal = r + 1 < d->rows && c + 1 < d->columns && d->object[r + 1][c + 1];
            if (right && (level == 2 || chance(92))) add_morphism(d, r, c, "r", r + 1 == d->rows && r, level);
            if (down && (level == 2 || chance(92))) add_morphism(d, r, c, "d", c == 0, level);
            if (diagonal && (!right || !down || chance(5 * level))) add_morphism(d, r, c, "dr", false, level);
        }
}

static inline bool commute_figure(Text *t, int level) {
    static const int most[] = {0, 0, 4, 4, 6, 9}, least[] = {0, 0, 2, 3, 4, 6};
    Diagram d = {.rows = choose_between(1, level > 3 ? 3 : 2), .columns = choose_between(2, 3)};
    int n = 0, used[16], last = level == 2 ? 24 : COUNT_OF(objects);
    if (d.rows * d.columns > most[level] || d.rows * d.columns < least[level]) return false;
    choose_some(used, d.rows * d.columns, last);
    bool triangle = d.rows == 2 && d.columns == 2 && chance(35);
    for (int r = 0; r < d.rows; r++)
        for (int c = 0; c < d.columns; c++, n++)
            d.object[r][c] = triangle && r == 1 && c == 0 ? NULL : objects[used[n]];
    random_morphisms(&d, level);
    begin_document(t, "\\usepackage{amssymb}\n\\usepackage{tikz-cd}\n");
    put(t, "\\begin{tikzcd}\n");
    for (int r = 0; r < d.rows; r++) {
        put(t, "  ");
        for (int c = 0; c < d.columns; c++)
            put(t, "%s%s%s", c ? " & " : "", d.object[r][c] ? d.object[r][c] : "", d.arrows[r][c]);
        put(t, "%s\n", r + 1 < d.rows ? " \\\\" : "");
    }
    put(t, "\\end{tikzcd}\n\\end{document}\n");
    return true;
}

#endif
