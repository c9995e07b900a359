/* The training curve of a model, from the log.jsonl that lies beside its file. */
#ifndef METRICS_CURVE_H
#define METRICS_CURVE_H

#include "../lib/file.h"
#include "../lib/json.h"
#include "chart.h"

static inline void curve_free(ChartSeries *s) {
    free((void *)(uintptr_t)s->x);
    free((void *)(uintptr_t)s->y);
    *s = (ChartSeries){0};
}

/* The number of a key; not a number where the line has none. */
static inline double curve_number(const Json *j, const char *key) {
    const int at = json_find(j, 0, key);
    return at >= 0 && j->values[at].type == JSON_NUMBER ? j->values[at].number : NAN;
}

/* Adds a line's step and loss. A step that comes again, after a run was resumed from an earlier checkpoint, replaces it and
 * all after it. Lines without both, such as evaluations, and damaged lines are left out. */
static inline int curve_add(double *x, double *y, int count, const char *line, size_t n) {
    Json j;
    Error err;
    if (json_parse(&j, line, n, "a line of the log", &err)) return count;
    const double step = curve_number(&j, "step"), loss = curve_number(&j, "loss");
    json_free(&j);
    if (!isfinite(step) || !isfinite(loss)) return count;
    while (count > 0 && x[count - 1] >= step) count--;
    x[count] = step;
    y[count] = loss;
    return count + 1;
}

/* Reads the losses over the steps of the run that wrote MODEL. A series without points if there is no log. Free with
 * curve_free. */
static inline ChartSeries curve_read(const char *model) {
    const char *slash = strrchr(model, '/');
    char *path = format_string("%.*slog.jsonl", slash ? (int)(slash - model) + 1 : 0, model);
    MappedFile f;
    Error err;
    ChartSeries s = {0};
    const bool found = file_exists(path) && file_map(&f, path, &err) == 0;
    free(path);
    if (!found) return s;
    size_t lines = 1, length;
    for (size_t i = 0; i < f.size; i++) lines += f.data[i] == '\n';
    double *x = (double *)xcalloc(lines, sizeof *x), *y = (double *)xcalloc(lines, sizeof *y);
    for (size_t i = 0; i < f.size; i += length + 1) {
        const uint8_t *end = (const uint8_t *)memchr(f.data + i, '\n', f.size - i);
        length = end ? (size_t)(end - (f.data + i)) : f.size - i;
        s.count = curve_add(x, y, s.count, (const char *)f.data + i, length);
    }
    file_unmap(&f);
    s.x = x;
    s.y = y;
    return s;
}

#endif
