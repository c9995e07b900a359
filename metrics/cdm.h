/* Character detection matching (Wang, Wu, Wang et al., "CDM: A Reliable Metric for Fair and Accurate Formula Recognition
 * Evaluation", 2024): compares two formulas by what is seen of them, symbol by symbol, and not by how they are written.
 *
 *   CdmDrawing a, b;                                             // of the reference and the hypothesis
 *   if (cdm_draw(&a, &renderer, formula, n, &err)) ...           // no verdict: the machine fails
 *   CdmScore s = cdm_score(&a, &b);                              // s.f1, s.perfect
 *   cdm_drawing_free(&a), cdm_drawing_free(&b);
 *
 * Each token is drawn in a colour of its own (metrics/cdm_colour.h), and its box is the box of that colour. Boxes of the two
 * formulas are matched one to one, so that the sum of
 *
 *   1 [other token] + 0.05 |difference of the boxes| + 0.15 |difference of the places in the order|
 *
 * is the least; boxes are relative to the image, their difference is the mean over the four sides, and a place in the order
 * is i / n. A match counts if the tokens are the same and the box is where the others are: in at most three rounds, the shift
 * that most of the remaining matches have in common, about an em across and a tenth of it down, takes those that have it; but
 * no round after the first takes a single one. So a longer numerator does not count against what comes after it, an exponent
 * on the line does. The authors fit a scale too, which formulas set by the same TeX do not need.
 *
 * F1 = 2 matches / (boxes of the reference + boxes of the hypothesis); perfect: all boxes of both match. */
#ifndef METRICS_CDM_H
#define METRICS_CDM_H

#include "../lib/assignment.h"
#include "../lib/render.h"
#include "cdm_colour.h"

typedef struct {
    int token;                        // of the drawing's colouring
    double left, top, right, bottom;  // pixels
} CdmBox;

typedef struct {
    CdmColouring colouring;
    char *formula;  // the text that the tokens point into
    char *problem;  // why nothing is drawn; NULL: it is
    bool stopped;   // a limit has ended TeX
    int width, height, count;
    CdmBox *boxes;  // [count], in the order of the tokens
} CdmDrawing;

typedef struct {
    int reference, hypothesis, matched;  // boxes, and pairs of them
    double f1;
    bool perfect;
} CdmScore;

#define CDM_DPI 300.0
#define CDM_EM (10 / 72.27 * CDM_DPI)  // pixels of an em of 10 pt

static inline void cdm_drawing_free(CdmDrawing *d) {
    cdm_colouring_free(&d->colouring);
    free(d->formula);
    free(d->problem);
    free(d->boxes);
    memset(d, 0, sizeof *d);
}

/* ---- boxes ---- */

/* The colour's number; black, white and what the program has coloured itself are none of the tokens'. */
static inline int cdm_colour_of(const uint8_t *rgb) {
    return (rgb[0] + 8) / 17 * 256 + (rgb[1] + 8) / 17 * 16 + (rgb[2] + 8) / 17;
}

/* Finds the boxes of the colours. Tokens without ink have none. */
static inline void cdm_find_boxes(CdmDrawing *d, const Image *p) {
    const int n = d->colouring.count;
    d->boxes = (CdmBox *)xcalloc((size_t)n + 1, sizeof *d->boxes);
    for (int t = 0; t < n; t++) d->boxes[t] = (CdmBox){t, p->width, p->height, -1, -1};
    for (int y = 0; y < p->height; y++)
        for (int x = 0; x < p->width; x++) {
            const int t = cdm_colour_of(p->rgb + 3 * ((size_t)y * p->width + x)) - 1;
            if (t < 0 || t >= n) continue;
            CdmBox *b = &d->boxes[t];
            if (x < b->left) b->left = x;
            if (x + 1 > b->right) b->right = x + 1;
            if (y < b->top) b->top = y;
            if (y + 1 > b->bottom) b->bottom = y + 1;
        }
    for (int t = 0; t < n; t++)
        if (d->boxes[t].right >= 0) d->boxes[d->count++] = d->boxes[t];
    d->width = p->width;
    d->height = p->height;
}

/* Colours and draws a formula of n bytes. Returns 0 with d->problem NULL where it is drawn (also with errors that TeX
 * recovers from), or said why not; -1 with *err filled where no verdict is possible. Free with cdm_drawing_free. Needs
 * pdflatex; several threads may draw at a time. */
static inline int cdm_draw(CdmDrawing *d, Renderer *r, const char *formula, size_t n, Error *err) {
    Compiled c;
    Image image;
    Error why;
    memset(d, 0, sizeof *d);
    d->formula = (char *)xmalloc(n + 1);
    memcpy(d->formula, formula, n);
    d->formula[n] = '\0';
    cdm_colour(&d->colouring, d->formula, n);
    if (d->colouring.problem) return d->problem = xstrdup(d->colouring.problem), 0;
    const bool installed = r->tex.engines[TEX_PDFLATEX];
    if (!installed) error_set(err, "pdflatex is not installed; formulas cannot be compared by their symbols");
    if (!installed ||
        render_compile_with(r, 1 << TEX_PDFLATEX, RENDER_FORMULA, d->colouring.out, d->colouring.used, &c, err)) {
        cdm_drawing_free(d);
        return -1;
    }
    d->stopped = c.stopped;
    if (!c.pdf) {
        d->problem = xstrdup(c.problem ? c.problem : "nothing was compiled");
    } else if (render_hard(r, &c, CDM_DPI, &image, &why)) {
        d->problem = xstrdup(why.text);  // for example too large a page
    } else {
        cdm_find_boxes(d, &image);
        image_free(&image);
    }
    compiled_free(&c);
    return 0;
}

/* ---- tokens ---- */

/* The first of a group of spellings of the same symbol stands for all. */
static inline CdmWord cdm_spelling(CdmWord word) {
    static const char *const same[] = {"\\le \\leq",
                                       "\\ge \\geq",
                                       "\\ne \\neq \\not=",
                                       "\\to \\rightarrow",
                                       "\\gets \\leftarrow",
                                       "\\wedge \\land",
                                       "\\vee \\lor",
                                       "\\neg \\lnot",
                                       "\\ni \\owns",
                                       "\\{ \\lbrace",
                                       "\\} \\rbrace",
                                       "[ \\lbrack",
                                       "] \\rbrack",
                                       "| \\vert \\lvert \\rvert \\mid",
                                       "\\| \\Vert \\lVert \\rVert \\parallel",
                                       "* \\ast",
                                       "\\langle <",
                                       "\\rangle >",
                                       "\\ldots \\dots \\dotsc",
                                       "\\cdots \\dotsb",
                                       "\\frac \\dfrac \\tfrac \\cfrac",
                                       "\\binom \\dbinom \\tbinom",
                                       "' \\prime",
                                       "\\hat \\widehat",
                                       "\\tilde \\widetilde",
                                       "\\iff \\Longleftrightarrow",
                                       ": \\colon"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (cdm_in(word, same[i])) return (CdmWord){same[i], (int)strcspn(same[i], " ")};
    return word;
}

/* The font that a command sets: \mathbf, \textbf and \bf set the same. */
static inline CdmWord cdm_font(CdmWord font) {
    static const char *const same[] = {"rm text mbox hbox normal operatorname rmfamily", "bf bfseries", "it itshape",
                                       "boldsymbol bm pmb"};
    if (font.n > 0) font.at++, font.n--;
    if (font.n > 4 && (!memcmp(font.at, "math", 4) || !memcmp(font.at, "text", 4))) font.at += 4, font.n -= 4;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        if (cdm_in(font, same[i])) return (CdmWord){same[i], (int)strcspn(same[i], " ")};
    return font;
}

static inline bool cdm_same_token(const CdmToken *a, const CdmToken *b) {
    return cdm_equal(cdm_spelling(a->word), cdm_spelling(b->word)) && cdm_equal(cdm_font(a->font), cdm_font(b->font));
}

/* ---- matching ---- */

/* A pair of boxes with the same token, and how far the middle of the second is from the first's. */
typedef struct {
    double across, down;
    bool counted;
} CdmMatch;

/* Where a box is: the sides in parts of the image. */
static inline double cdm_box_difference(const CdmDrawing *a, const CdmBox *x, const CdmDrawing *b, const CdmBox *y) {
    return (fabs(x->left / a->width - y->left / b->width) + fabs(x->right / a->width - y->right / b->width) +
            fabs(x->top / a->height - y->top / b->height) + fabs(x->bottom / a->height - y->bottom / b->height)) /
           4;
}

/* Matches the boxes of a, which has no more than b. matches: memory for a->count. Returns how many have the same token. */
static inline int cdm_match(CdmMatch *matches, const CdmDrawing *a, const CdmDrawing *b) {
    const int n = a->count, m = b->count;
    double *cost = (double *)xcalloc((size_t)n * m + 1, sizeof *cost);
    int *column = (int *)xmalloc(((size_t)n + 1) * sizeof *column), count = 0;
#define CDM_SAME(i, j) \
    cdm_same_token(&a->colouring.tokens[a->boxes[i].token], &b->colouring.tokens[b->boxes[j].token])
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++)
            cost[(size_t)i * m + j] = !CDM_SAME(i, j) + 0.05 * cdm_box_difference(a, &a->boxes[i], b, &b->boxes[j]) +
                                      0.15 * fabs((double)i / n - (double)j / m);
    assignment_solve(column, cost, n, m);
    for (int i = 0; i < n; i++) {
        const CdmBox *x = &a->boxes[i], *y = &b->boxes[column[i]];
        if (!CDM_SAME(i, column[i])) continue;
        matches[count++] = (CdmMatch){(y->left + y->right - x->left - x->right) / 2,
                                      (y->top + y->bottom - x->top - x->bottom) / 2, false};
    }
#undef CDM_SAME
    free(column);
    free(cost);
    return count;
}

static inline bool cdm_shifted_alike(const CdmMatch *a, const CdmMatch *b) {
    return fabs(a->across - b->across) <= CDM_EM && fabs(a->down - b->down) <= 0.12 * CDM_EM;
}

/* How many of the matches have shifts that agree with others'. */
static inline int cdm_count_consistent(CdmMatch *matches, int count) {
    int counted = 0;
    for (int round = 0; round < 3; round++) {
        int best = -1, most = 0;
        for (int i = 0; i < count; i++) {
            int agree = 0;
            for (int j = 0; j < count; j++)
                agree += !matches[j].counted && cdm_shifted_alike(&matches[i], &matches[j]);
            if (!matches[i].counted && agree > most) most = agree, best = i;
        }
        if (most < (round == 0 ? 1 : 2)) break;
        const CdmMatch centre = matches[best];
        for (int j = 0; j < count; j++)
            if (!matches[j].counted && cdm_shifted_alike(&centre, &matches[j])) matches[j].counted = true, counted++;
    }
    return counted;
}

/* Compares two drawings; of what could not be drawn, nothing matches. Two formulas without ink are alike. */
static inline CdmScore cdm_score(const CdmDrawing *reference, const CdmDrawing *hypothesis) {
    CdmScore s = {.reference = reference->count, .hypothesis = hypothesis->count};
    const bool fewer = reference->count <= hypothesis->count;
    CdmMatch *matches = (CdmMatch *)xcalloc((size_t)s.reference + s.hypothesis + 1, sizeof *matches);
    const int count = fewer ? cdm_match(matches, reference, hypothesis) : cdm_match(matches, hypothesis, reference);
    s.matched = cdm_count_consistent(matches, count);
    free(matches);
    const bool drawn = !reference->problem && !hypothesis->problem;
    const int boxes = s.reference + s.hypothesis;
    s.f1 = boxes > 0 ? 2.0 * s.matched / boxes : drawn;
    s.perfect = drawn && 2 * s.matched == boxes;
    return s;
}

#endif
