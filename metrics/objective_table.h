/* The terms of the objective as a table of metrics, for all that prints them: the log, the progress notes, eval's table and its
 * JSON. The page that eval --report writes is made in report_*.h. */
#ifndef METRICS_OBJECTIVE_TABLE_H
#define METRICS_OBJECTIVE_TABLE_H

#include "../lib/json.h"
#include "../loss.cuh"

typedef enum { PER_POSITION, PER_IMAGE, PER_LAYER_ROW } MetricUnit;

typedef struct {
    const char *key, *title;  // in JSON; at the head of a column, or NULL: not in tables
    size_t sum;               // offset in ObjectiveSums
    MetricUnit unit;          // what the sum is divided by
    bool teacher;             // only where there is a teacher
    bool percent;             // shown as per cent in tables
} Metric;

static const Metric metrics[] = {
    {"ce", "CE", offsetof(ObjectiveSums, ce), PER_POSITION, false, false},
    {"accuracy", "accuracy", offsetof(ObjectiveSums, correct), PER_POSITION, false, true},
    {"soft", "soft", offsetof(ObjectiveSums, soft), PER_POSITION, true, false},
    {"hard", NULL, offsetof(ObjectiveSums, hard), PER_POSITION, true, false},
    {"agreement", "agreement", offsetof(ObjectiveSums, agreement), PER_POSITION, true, true},
    {"entropy", NULL, offsetof(ObjectiveSums, entropy), PER_POSITION, true, false},
    {"gate", NULL, offsetof(ObjectiveSums, gate), PER_POSITION, true, false},
    {"embed", NULL, offsetof(ObjectiveSums, embed), PER_IMAGE, true, false},
    {"layer", NULL, offsetof(ObjectiveSums, layer), PER_LAYER_ROW, true, false},
};
enum { METRICS = sizeof metrics / sizeof metrics[0] };

/* How many positions, images or rows of layers a sum is of. */
static inline double metric_count(const Metric *m, const ObjectiveSums *s) {
    return m->unit == PER_POSITION ? s->positions : m->unit == PER_IMAGE ? s->images : s->layer_rows;
}

static inline bool metric_applies(const Metric *m, const ObjectiveSums *s, bool has_teacher) {
    return (has_teacher || !m->teacher) && (m->unit == PER_POSITION || metric_count(m, s) > 0);
}

/* The mean of a metric over what was counted. */
static inline double metric_value(const Metric *m, const ObjectiveSums *s) {
    return *(const double *)(const void *)((const char *)s + m->sum) / metric_count(m, s);
}

/* Adds all metrics to an open JSON object. */
static inline void metrics_json(JsonWriter *w, const ObjectiveSums *s, bool has_teacher) {
    for (int i = 0; i < METRICS; i++) {
        if (!metric_applies(&metrics[i], s, has_teacher)) continue;
        json_key(w, metrics[i].key);
        json_number(w, metric_value(&metrics[i], s));
    }
}

/* The titles, or with sums the values, of the table's columns; each begins with a space. */
static inline void metrics_print_row(FILE *f, const ObjectiveSums *s, bool has_teacher) {
    for (int i = 0; i < METRICS; i++) {
        const Metric *m = &metrics[i];
        if (!m->title || (m->teacher && !has_teacher)) continue;
        if (!s)
            fprintf(f, " %9s", m->title);
        else if (m->percent)
            fprintf(f, " %8.2f%%", 100 * metric_value(m, s));
        else
            fprintf(f, " %9.4f", metric_value(m, s));
    }
}

#endif
