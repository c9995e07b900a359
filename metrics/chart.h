/* Charts as SVG inside a page: lines and steps over two axes, bars with intervals, and radar charts.
 *
 * A chart is 360 units wide, so that its letters are as large as the page's on a telephone, and may be drawn larger. Colours
 * are the page's variables --ink, --faint, --grid and --series-0 to --series-5 (report_style.h). Series differ in their
 * dashes too. Each chart has a <title> and a <desc> with its numbers, which screen readers read. */
#ifndef METRICS_CHART_H
#define METRICS_CHART_H

#include "../lib/html.h"

#include <float.h>
#include <math.h>

enum { CHART_WIDTH = 360, CHART_COLOURS = 6, CHART_POINTS = 300 };

typedef enum { CHART_LINES, CHART_STEPS } ChartMark;

typedef struct {
    const char *name;
    const double *x, *y;  // y: not a number where there is nothing to draw
    int count;
} ChartSeries;

typedef struct {
    const char *title, *x_title, *y_title;
    const ChartSeries *series;
    int count;
    ChartMark mark;     // CHART_STEPS: y[i] reaches from x[i] to x[i + 1], the last one as far as the one before
    bool diagonal;      // also draws y = x
    double x[2], y[2];  // range of the axes; both 0: that of the data
} Chart;

/* ---- parts ---- */

/* A step of 1, 2 or 5 times a power of ten, so that at most `most` of them fit into `range`. */
static inline double chart_step(double range, int most) {
    const double power = pow(10, floor(log10(range / most))), times = range / most / power;
    return power * (times <= 1 ? 1 : times <= 2 ? 2 : times <= 5 ? 5 : 10);
}

/* A name that fits into a chart: of a long one the beginning and the end. */
static inline void chart_name(char text[64], const char *name) {
    enum { MOST = 44, HALF = 20 };
    const size_t length = strlen(name);
    size_t head = HALF, tail = length - HALF;
    if (length <= MOST) {
        snprintf(text, 64, "%s", name);
        return;
    }
    while (head && ((unsigned char)name[head] & 0xc0) == 0x80) head--;  // not inside a character of UTF-8
    while (name[tail] && ((unsigned char)name[tail] & 0xc0) == 0x80) tail++;
    snprintf(text, 64, "%.*s...%s", (int)head, name, name + tail);
}

/* A value as short as it is understood: at most 4 significant digits. */
static inline void chart_number(char text[32], double x) {
    const double size = fabs(x);
    if (x == 0) x = 0;  // not -0
    if (!isfinite(x))
        snprintf(text, 32, "none");
    else if (size >= 1e6 || (size > 0 && size < 1e-3))
        snprintf(text, 32, "%.2e", x);
    else
        snprintf(text, 32, "%.4g", x);
}

static inline void chart_begin(FILE *f, const char *title, int height) {
    fprintf(f, "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 %d %d\">\n<title>", CHART_WIDTH, height);
    html_text(f, title);
    fputs("</title>\n<desc>", f);
}

/* Ends the description, and shows the title. */
static inline void chart_head(FILE *f, const char *title) {
    fputs("</desc>\n<text class=\"head\" x=\"4\" y=\"15\">", f);
    html_text(f, title);
    fputs("</text>\n", f);
}

static inline void chart_end(FILE *f) { fputs("</svg>\n", f); }

/* Text at (x, y); `anchor`: start, middle or end. */
static inline void chart_text(FILE *f, double x, double y, const char *anchor, const char *text) {
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    html_text(f, text);
    fputs("</text>\n", f);
}

/* The style of series i. */
static inline void chart_style(FILE *f, int i) {
    static const char *const dashes[] = {"", "6 3", "2 2", "8 3 2 3", "4 4", "1 3"};
    fprintf(f, " stroke=\"var(--series-%d)\"", i % CHART_COLOURS);
    if (*dashes[i % CHART_COLOURS]) fprintf(f, " stroke-dasharray=\"%s\"", dashes[i % CHART_COLOURS]);
}

/* The names of series, one a line, from y down. Names of a single series are left out by the callers. */
static inline void chart_legend(FILE *f, const char *const *names, int count, double y) {
    char name[64];
    for (int i = 0; i < count; i++, y += 16) {
        fprintf(f, "<line class=\"series\" x1=\"8\" x2=\"32\" y1=\"%.1f\" y2=\"%.1f\"", y - 4, y - 4);
        chart_style(f, i);
        fputs("/>\n", f);
        chart_name(name, names[i]);
        chart_text(f, 38, y, "start", name);
    }
}

/* ---- two axes ---- */

typedef struct {
    double x0, x1, y0, y1;            // range of the values
    double left, right, top, bottom;  // the same in the chart
} ChartFrame;

static inline double chart_x(const ChartFrame *p, double x) {
    return p->left + (x - p->x0) / (p->x1 - p->x0) * (p->right - p->left);
}

static inline double chart_y(const ChartFrame *p, double y) {
    return p->bottom - (y - p->y0) / (p->y1 - p->y0) * (p->bottom - p->top);
}

/* How far step k of a series reaches: to the next one's x, and the last one as far as the one before. */
static inline double chart_step_width(const ChartSeries *s, int k) {
    if (s->count < 2) return 0;
    return k + 1 < s->count ? s->x[k + 1] - s->x[k] : s->x[k] - s->x[k - 1];
}

/* The range of one axis: as given, or that of all finite values of the series. */
static inline void chart_range(const Chart *c, bool vertical, const double given[2], double *low, double *high) {
    *low = given[0], *high = given[1];
    if (*low < *high) return;
    *low = DBL_MAX, *high = -DBL_MAX;
    for (int i = 0; i < c->count; i++)
        for (int k = 0; k < c->series[i].count; k++) {
            const double v = (vertical ? c->series[i].y : c->series[i].x)[k];
            const double end = !vertical && c->mark == CHART_STEPS ? v + chart_step_width(&c->series[i], k) : v;
            if (isfinite(v)) *low = fmin(*low, v), *high = fmax(*high, end);
        }
    if (*low > *high) *low = 0, *high = 1;
    const double least = 1e-6 * fmax(fabs(*low), fabs(*high));  // less would be lost in the rounding of doubles
    if (*high - *low <= least) *low -= least > 0 ? least : 0.5, *high += least > 0 ? least : 0.5;
}

static inline void chart_grid(FILE *f, const Chart *c, const ChartFrame *p) {
    char number[32];
    const double dx = chart_step(p->x1 - p->x0, 6), dy = chart_step(p->y1 - p->y0, 6);
    for (double k = ceil(p->y0 / dy - 1e-9); k * dy <= p->y1 + 1e-9 * dy; k++) {
        const double y = chart_y(p, k * dy);
        fprintf(f, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n", p->left, p->right, y,
                y);
        chart_number(number, k * dy);
        chart_text(f, p->left - 5, y + 4, "end", number);
    }
    for (double k = ceil(p->x0 / dx - 1e-9); k * dx <= p->x1 + 1e-9 * dx; k++) {
        chart_number(number, k * dx);
        chart_text(f, chart_x(p, k * dx), p->bottom + 15, "middle", number);
    }
    chart_text(f, p->right, p->bottom + 30, "end", c->x_title);
    chart_text(f, 4, p->top - 14, "start", c->y_title);
    if (c->diagonal)
        fprintf(f, "<line class=\"faint\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", p->left,
                chart_y(p, p->x0), p->right, chart_y(p, p->x1));
}

/* Draws the points of a series, connected; gaps where y is not a number. Series with many points are
 * drawn by the means of neighbours. */
static inline void chart_draw(FILE *f, const Chart *c, const ChartFrame *p, int i) {
    const ChartSeries *s = &c->series[i];
    const int each = c->mark == CHART_LINES ? (s->count + CHART_POINTS - 1) / CHART_POINTS : 1;
    bool begun = false;
    fputs("<path class=\"series\" fill=\"none\"", f);
    chart_style(f, i);
    fputs(" d=\"", f);
    for (int k = 0; k < s->count; k += each) {
        double x = 0, y = 0;
        int n = 0;
        for (int j = k; j < k + each && j < s->count; j++)
            if (isfinite(s->y[j])) x += s->x[j], y += s->y[j], n++;
        if (!n && (begun = false, true)) continue;
        x = chart_x(p, x / n), y = chart_y(p, y / n);
        fprintf(f, "%c%.1f %.1f", begun ? 'L' : 'M', x, y);
        begun = true;
        if (c->mark == CHART_STEPS) fprintf(f, "L%.1f %.1f", chart_x(p, s->x[k] + chart_step_width(s, k)), y);
    }
    fputs("\"/>\n", f);
}

/* The numbers of each series; of a long one ten of them. */
static inline void chart_describe(FILE *f, const Chart *c) {
    char x[32], y[32];
    fprintf(f, "%s over %s.", c->y_title, c->x_title);
    for (int i = 0; i < c->count; i++) {
        const ChartSeries *s = &c->series[i];
        fputs(" ", f);
        html_text(f, s->name);
        fputs(":", f);
        const int each = s->count > 20 ? (s->count + 9) / 10 : 1;
        for (int k = 0; k < s->count; k += each) {
            chart_number(x, s->x[k]);
            chart_number(y, s->y[k]);
            fprintf(f, "%s %s: %s", k ? "," : "", x, y);
        }
        fputs(".", f);
    }
}

/* Writes the chart. Where there is more than one series, their names are under it. */
static inline void chart_write(FILE *f, const Chart *c) {
    const int legend = c->count > 1 ? 16 * c->count + 8 : 0, height = 260;
    ChartFrame p = {.left = 48, .right = CHART_WIDTH - 12, .top = 50, .bottom = height - 36};
    const char **names = (const char **)xcalloc((size_t)c->count + 1, sizeof *names);
    for (int i = 0; i < c->count; i++) names[i] = c->series[i].name;
    chart_range(c, false, c->x, &p.x0, &p.x1);
    chart_range(c, true, c->y, &p.y0, &p.y1);
    chart_begin(f, c->title, height + legend);
    chart_describe(f, c);
    chart_head(f, c->title);
    chart_grid(f, c, &p);
    for (int i = 0; i < c->count; i++) chart_draw(f, c, &p, i);
    if (legend) chart_legend(f, names, c->count, height + 10);
    chart_end(f);
    free(names);
}

/* ---- bars ---- */

typedef struct {
    const char *name;
    double value, low, high;  // low and high: of its interval; not a number: none
} ChartBar;

/* Writes bars from 0, one under the other, each with its name and its value. */
static inline void chart_bars(FILE *f, const char *title, const ChartBar *bars, int count) {
    double low = 0, high = 0;
    char number[32], name[64];
    for (int i = 0; i < count; i++)
        for (int k = 0; k < 3; k++) {
            const double v = k == 0 ? bars[i].value : k == 1 ? bars[i].low : bars[i].high;
            if (isfinite(v)) low = fmin(low, v), high = fmax(high, v);
        }
    if (low == high) high = 1;
    const ChartFrame p = {.x0 = low, .x1 = high, .left = 6, .right = CHART_WIDTH - 66, .top = 26};
    chart_begin(f, title, 30 + 40 * count);
    for (int i = 0; i < count; i++) {
        chart_number(number, bars[i].value);
        html_text(f, bars[i].name);
        fprintf(f, ": %s", number);
        if (isfinite(bars[i].low)) fprintf(f, " (%.4g to %.4g)", bars[i].low, bars[i].high);
        fputs(i + 1 < count ? "; " : ".", f);
    }
    chart_head(f, title);
    for (int i = 0; i < count; i++) {
        const ChartBar *b = &bars[i];
        const double y = p.top + 40 * i, zero = chart_x(&p, 0);
        chart_name(name, b->name);
        chart_text(f, p.left, y + 12, "start", name);
        chart_number(number, b->value);
        chart_text(f, CHART_WIDTH - 4, y + 30, "end", number);
        if (!isfinite(b->value)) continue;
        const double x = chart_x(&p, b->value);
        fprintf(f, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"14\" fill=\"var(--series-%d)\"/>\n",
                fmin(x, zero), y + 18, fmax(fabs(x - zero), 0.5), i % CHART_COLOURS);
        if (!isfinite(b->low)) continue;
        fprintf(f, "<path class=\"ink\" fill=\"none\" d=\"M%.1f %.1fv8M%.1f %.1fH%.1fm0 -4v8\"/>\n",
                chart_x(&p, b->low), y + 21, chart_x(&p, b->low), y + 25, chart_x(&p, b->high));
    }
    chart_end(f);
}

/* ---- radar ---- */

/* Writes a radar chart: values [count, axes] from 0 (centre) to 1 (edge), one closed line for each name. At least 3 axes. */
static inline void chart_radar(FILE *f, const char *title, const char *const *axes, int axis_count,
                               const char *const *names, const double *values, int count) {
    const double cx = CHART_WIDTH / 2.0, cy = 150, radius = 96, turn = 2 * acos(-1) / axis_count;
    char number[32];
    chart_begin(f, title, 280 + 16 * count);
    for (int i = 0; i < count; i++) {
        html_text(f, names[i]);
        for (int a = 0; a < axis_count; a++) {
            chart_number(number, values[i * axis_count + a]);
            fprintf(f, "%s %s %s", a ? "," : ":", axes[a], number);
        }
        fputs(". ", f);
    }
    chart_head(f, title);
    for (int ring = 1; ring <= 4; ring++)
        fprintf(f, "<circle class=\"grid\" fill=\"none\" cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>\n", cx, cy,
                radius * ring / 4);
    for (int a = 0; a < axis_count; a++) {
        const double dx = sin(a * turn), dy = -cos(a * turn);
        fprintf(f, "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", cx, cy,
                cx + radius * dx, cy + radius * dy);
        chart_text(f, cx + (radius + 8) * dx, cy + (radius + 12) * dy + 4,
                   dx > 0.1    ? "start"
                   : dx < -0.1 ? "end"
                               : "middle",
                   axes[a]);
    }
    for (int i = 0; i < count; i++) {
        fputs("<path class=\"series\" fill=\"none\"", f);
        chart_style(f, i);
        fputs(" d=\"", f);
        for (int a = 0; a < axis_count; a++) {
            const double v = values[i * axis_count + a], r = radius * (isfinite(v) ? fmin(fmax(v, 0), 1) : 0);
            fprintf(f, "%c%.1f %.1f", a ? 'L' : 'M', cx + r * sin(a * turn), cy - r * cos(a * turn));
        }
        fputs("Z\"/>\n", f);
    }
    chart_legend(f, names, count, 284);
    chart_end(f);
}

#endif
