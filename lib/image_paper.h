/* Finds the paper of an image and makes it white: paper of one colour by scaling each channel, uneven light by dividing
 * by the light, which is measured on a grid of cells. Used by lib/image_clean.h. */
#ifndef LIB_IMAGE_PAPER_H
#define LIB_IMAGE_PAPER_H

#include "image_frame.h"

typedef struct {
    bool found;    // the image has paper: most of its border is a light colour, or fades smoothly
    bool changed;  // the paper was not white, and is now
    bool uneven;   // its light was not even
    int colour[3];
} ImagePaper;

/* ---- paper of one colour ---- */

enum { IMAGE_PAPER_SPREAD = 10, IMAGE_PAPER_LEAST = 90 };  // brightness levels

/* Calls for the index of each pixel of the image's border, `depth` pixels wide. Returns the number of pixels; NULL for
 * `indices` only counts. */
static inline size_t image_border(const Image *p, int depth, size_t *indices) {
    size_t n = 0;
    for (int y = 0; y < p->height; y++) {
        const bool whole = y < depth || y >= p->height - depth || 2 * depth >= p->width;
        for (int x = 0; x < p->width; x++) {
            if (!whole && x == depth) x = p->width - depth;
            if (indices) indices[n] = (size_t)y * p->width + x;
            n++;
        }
    }
    return n;
}

/* The middle one of counted values. */
static inline int image_median(const size_t *counts, size_t total) {
    size_t seen = 0;
    for (int v = 0; v < 256; v++)
        if (2 * (seen += counts[v]) >= total) return v;
    return 255;
}

/* The colour of the paper: the brightest colour that a quarter of the border has, give or take IMAGE_PAPER_SPREAD, as
 * its medians. Returns the share of the border that has it, 0 if there is no such colour. */
static inline double image_paper_colour(const Image *p, int *colour) {
    const int shorter = p->width < p->height ? p->width : p->height, depth = 1 + shorter / 200;
    const size_t n = image_border(p, depth, NULL);
    size_t *border = xcalloc(n, sizeof *border), counts[256] = {0}, channels[3][256] = {{0}}, most = 0, total = 0;
    int peak = -1;
    image_border(p, depth, border);
    for (size_t i = 0; i < n; i++) counts[image_brightness(p->rgb + 3 * border[i])]++;
    for (int v = 255; v >= 0 && (peak < 0 || v > peak - IMAGE_PAPER_SPREAD); v--) {
        size_t near = 0;
        for (int k = v - IMAGE_PAPER_SPREAD; k <= v + IMAGE_PAPER_SPREAD; k++)
            if (k >= 0 && k < 256) near += counts[k];
        if (4 * near >= n && near > most) peak = v, most = near;
    }
    for (size_t i = 0; i < n; i++) {
        const uint8_t *rgb = p->rgb + 3 * border[i];
        if (peak < 0 || abs(image_brightness(rgb) - peak) > IMAGE_PAPER_SPREAD) continue;
        for (int k = 0; k < 3; k++) channels[k][rgb[k]]++;
        total++;
    }
    free(border);
    for (int k = 0; k < 3; k++) colour[k] = total ? image_median(channels[k], total) : 255;
    return (double)total / (double)n;
}

/* Scales each channel so that `colour` becomes white, and with `black` > 0 that this level becomes black. */
static inline void image_scale(Image *p, const int *colour, int black) {
    uint8_t table[3][256];
    for (int k = 0; k < 3; k++)
        for (int v = 0; v < 256; v++) {
            const int white = colour[k] - black, x = v <= black ? 0 : ((v - black) * 255 + white / 2) / white;
            table[k][v] = (uint8_t)(x > 255 ? 255 : x);
        }
    for (size_t i = 0, n = (size_t)p->width * p->height; i < n; i++)
        for (int k = 0; k < 3; k++) p->rgb[3 * i + k] = table[k][p->rgb[3 * i + k]];
}

/* The level of the darkest ink on white paper: the 2 % quantile of the darkest channel over pixels below half. */
static inline int image_black(const Image *p) {
    size_t counts[256] = {0}, dark = 0, seen = 0;
    for (size_t i = 0, n = (size_t)p->width * p->height; i < n; i++) counts[255 - image_depth(p->rgb + 3 * i)]++;
    for (int v = 0; v < 128; v++) dark += counts[v];
    for (int v = 0; v < 128; v++)
        if (50 * (seen += counts[v]) > dark) return v;
    return 0;
}

/* ---- uneven light ---- */

enum { IMAGE_CELLS = 24, IMAGE_TERMS = 6 };  // most cells a side; terms of a quadratic polynomial of x and y

/* The paper's colour in each cell of a grid. */
typedef struct {
    int columns, rows;
    float level[IMAGE_CELLS * IMAGE_CELLS][3];
    bool paper[IMAGE_CELLS * IMAGE_CELLS];
} ImageLight;

static inline void image_terms(double *t, double x, double y) {
    t[0] = 1, t[1] = x, t[2] = y, t[3] = x * x, t[4] = x * y, t[5] = y * y;
}

/* Solves the symmetric equations a x = b in place (Gauss, with pivots); false if they have no single solution. */
static inline bool image_solve(double a[IMAGE_TERMS][IMAGE_TERMS], double *b) {
    for (int i = 0; i < IMAGE_TERMS; i++) {
        int pivot = i;
        for (int r = i + 1; r < IMAGE_TERMS; r++)
            if (fabs(a[r][i]) > fabs(a[pivot][i])) pivot = r;
        if (fabs(a[pivot][i]) < 1e-9) return false;
        for (int c = 0; c < IMAGE_TERMS; c++) {
            const double t = a[i][c];
            a[i][c] = a[pivot][c];
            a[pivot][c] = t;
        }
        const double t = b[i];
        b[i] = b[pivot];
        b[pivot] = t;
        for (int r = 0; r < IMAGE_TERMS; r++) {
            if (r == i) continue;
            const double f = a[r][i] / a[i][i];
            for (int c = i; c < IMAGE_TERMS; c++) a[r][c] -= f * a[i][c];
            b[r] -= f * b[i];
        }
    }
    for (int i = 0; i < IMAGE_TERMS; i++) b[i] /= a[i][i];
    return true;
}

/* The 70 % quantile of each channel in each cell: paper, where less than 70 % of the cell is ink. */
static inline void image_light_measure(ImageLight *l, const Image *p) {
    l->columns = p->width / 8 < IMAGE_CELLS ? p->width / 8 : IMAGE_CELLS;
    l->rows = p->height / 8 < IMAGE_CELLS ? p->height / 8 : IMAGE_CELLS;
    for (int i = 0; i < l->rows * l->columns; i++) {
        const int row = i / l->columns, column = i % l->columns;
        const int top = (int)((int64_t)row * p->height / l->rows),
                  bottom = (int)((int64_t)(row + 1) * p->height / l->rows);
        const int left = (int)((int64_t)column * p->width / l->columns),
                  right = (int)((int64_t)(column + 1) * p->width / l->columns);
        size_t counts[3][256] = {{0}}, total = (size_t)(bottom - top) * (right - left);
        for (int y = top; y < bottom; y++)
            for (int x = left; x < right; x++)
                for (int k = 0; k < 3; k++) counts[k][image_at(p, x, y)[k]]++;
        for (int k = 0; k < 3; k++) {
            size_t seen = 0;
            int v = 0;
            while (v < 255 && 10 * (seen += counts[k][v]) < 7 * total) v++;
            l->level[i][k] = (float)v;
        }
    }
}

/* Fits a quadratic polynomial to channel k of the cells that are paper. */
static inline bool image_light_fit(const ImageLight *l, int k, double *solution) {
    double a[IMAGE_TERMS][IMAGE_TERMS] = {{0}}, t[IMAGE_TERMS];
    memset(solution, 0, IMAGE_TERMS * sizeof *solution);
    for (int i = 0; i < l->rows * l->columns; i++) {
        if (!l->paper[i]) continue;
        image_terms(t, (i % l->columns + 0.5) / l->columns, ((double)(i / l->columns) + 0.5) / l->rows);
        for (int r = 0; r < IMAGE_TERMS; r++) {
            for (int c = 0; c < IMAGE_TERMS; c++) a[r][c] += t[r] * t[c];
            solution[r] += t[r] * l->level[i][k];
        }
    }
    return image_solve(a, solution);
}

/* The fitted surface at the middle of cell i. */
static inline void image_light_at(const ImageLight *l, double solution[3][IMAGE_TERMS], int i, float *fit) {
    double t[IMAGE_TERMS];
    image_terms(t, (i % l->columns + 0.5) / l->columns, ((double)(i / l->columns) + 0.5) / l->rows);
    for (int k = 0; k < 3; k++) {
        fit[k] = 0;
        for (int r = 0; r < IMAGE_TERMS; r++) fit[k] += (float)(t[r] * solution[k][r]);
    }
}

/* Whether cell i is as bright as its neighbour j, of which it is known that it is paper, but for the light, which changes
 * slowly and in all channels alike. */
static inline bool image_light_continues(const ImageLight *l, int i, int j) {
    float low = 1e9f, high = 0;
    for (int k = 0; k < 3; k++) {
        const float ratio = l->level[i][k] / fmaxf(l->level[j][k], 1);
        low = fminf(low, ratio);
        high = fmaxf(high, ratio);
    }
    return low > 0.94f && high < 1.06f && high - low < 0.03f;
}

/* Adds the cells that continue paper: a shadow is no smooth surface, but begins softly. */
static inline void image_light_grow(ImageLight *l) {
    static const int steps[4][2] = {{-1, 0}, {1, 0}, {0, -1}, {0, 1}};
    for (bool grown = true; grown;) {
        grown = false;
        for (int i = 0; i < l->rows * l->columns; i++)
            for (int s = 0; s < 4 && !l->paper[i]; s++) {
                const int row = i / l->columns + steps[s][0], column = i % l->columns + steps[s][1];
                if (row < 0 || row >= l->rows || column < 0 || column >= l->columns) continue;
                const int j = row * l->columns + column;
                if (l->paper[j] && image_light_continues(l, i, j)) l->paper[i] = grown = true;
            }
    }
}

/* Finds the cells that are paper: at first those that are nearly as bright as the brightest near them, then again and
 * again those that are near a smooth surface through all of them, and at last those that continue them. The others get
 * the value of that surface. Returns how much of the light is missing where there is least of it, 0 to 1; -1: the
 * cells are not those of paper. */
static inline double image_light_find(ImageLight *l) {
    enum { NEAR = 3, ROUNDS = 8 };
    const int n = l->rows * l->columns;
    double solution[3][IMAGE_TERMS], least = 1e9, most = 0;
    float fit[3];
    for (int i = 0; i < n; i++) {
        float best = 0;
        for (int j = 0; j < n; j++)
            if (abs(i / l->columns - j / l->columns) <= NEAR && abs(i % l->columns - j % l->columns) <= NEAR)
                best = fmaxf(best, l->level[j][1]);
        l->paper[i] = l->level[i][1] > 0.92f * best;
    }
    for (int round = 0; round < ROUNDS; round++) {
        int kept = 0;
        for (int k = 0; k < 3; k++)
            if (!image_light_fit(l, k, solution[k])) return -1;
        for (int i = 0; i < n; i++) {
            l->paper[i] = true;
            image_light_at(l, solution, i, fit);
            for (int k = 0; k < 3; k++) {
                if (fit[k] < 32) return -1;
                if (fabsf(l->level[i][k] - fit[k]) >= 0.07f * fit[k]) l->paper[i] = false;
            }
            kept += l->paper[i];
        }
        if (2 * kept < n) return -1;
    }
    image_light_grow(l);
    for (int i = 0; i < n; i++) {
        image_light_at(l, solution, i, fit);
        if (!l->paper[i]) memcpy(l->level[i], fit, sizeof fit);
        least = fmin(least, l->level[i][1]);
        most = fmax(most, l->level[i][1]);
    }
    return (most - least) / most;
}

/* Divides the image by the light, interpolated between the centres of the cells. */
static inline void image_light_divide(Image *p, const ImageLight *l) {
    float(*line)[3] = xcalloc(l->columns, sizeof *line);
    for (int y = 0; y < p->height; y++) {
        const float v = fminf(fmaxf((y + 0.5f) * l->rows / p->height - 0.5f, 0), (float)l->rows - 1);
        const int above = (int)v, below = above + 1 < l->rows ? above + 1 : above;
        for (int i = 0; i < l->columns; i++)
            for (int k = 0; k < 3; k++) {
                const float a = l->level[above * l->columns + i][k], b = l->level[below * l->columns + i][k];
                line[i][k] = a + (v - above) * (b - a);
            }
        for (int x = 0; x < p->width; x++) {
            const float u = fminf(fmaxf((x + 0.5f) * l->columns / p->width - 0.5f, 0), (float)l->columns - 1);
            const int left = (int)u, right = left + 1 < l->columns ? left + 1 : left;
            uint8_t *rgb = p->rgb + 3 * ((size_t)y * p->width + x);
            for (int k = 0; k < 3; k++) {
                const float light = line[left][k] + (u - left) * (line[right][k] - line[left][k]);
                const float value = rgb[k] * 255.0f / light + 0.5f;
                rgb[k] = (uint8_t)(value > 255 ? 255 : value);
            }
        }
    }
    free(line);
}

/* ---- both ---- */

/* Whether a quarter of the image, or of its border, is exactly white: then that is the paper. */
static inline bool image_paper_white(const Image *p) {
    static const uint8_t white[3] = {255, 255, 255};
    const size_t n = image_border(p, 1, NULL);
    size_t *border = xcalloc(n, sizeof *border), count = 0;
    image_border(p, 1, border);
    for (size_t i = 0; i < n; i++) count += !memcmp(p->rgb + 3 * border[i], white, 3);
    free(border);
    return 4 * count >= n;
}

/* Makes the paper white. `inverted`: the image was in dark mode, whose lines often are not quite white. */
static inline ImagePaper image_paper_whiten(Image *p, bool inverted) {
    ImagePaper paper = {.colour = {255, 255, 255}};
    if (image_paper_white(p)) {
        paper.found = true;
        return paper;
    }
    ImageLight *light = xcalloc(1, sizeof *light);
    const double share = image_paper_colour(p, paper.colour);
    if (p->width >= 64 && p->height >= 64) {
        image_light_measure(light, p);
        paper.uneven = image_light_find(light) > 0.04;
    }
    int low = 255, high = 0;
    for (int k = 0; k < 3; k++) {
        if (paper.colour[k] < low) low = paper.colour[k];
        if (paper.colour[k] > high) high = paper.colour[k];
    }
    paper.found = paper.uneven || (share > 0.5 && low >= IMAGE_PAPER_LEAST && 10 * low >= 7 * high);
    if (paper.uneven)
        image_light_divide(p, light);
    else if (paper.found && low < 255)
        image_scale(p, paper.colour, 0);
    paper.changed = paper.found && (paper.uneven || low < 255);
    free(light);
    const int black = paper.changed && (inverted || paper.uneven || low < 235) ? image_black(p) : 0;
    if (black >= 8 && black <= 110) image_scale(p, (int[]){255, 255, 255}, black);
    return paper;
}

#endif
