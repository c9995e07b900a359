/* How a metric is named and explained, in JSON, tables and reports. */
#ifndef METRICS_METRIC_TEXT_H
#define METRICS_METRIC_TEXT_H

typedef struct {
    const char *key, *title;  // in files; for people
    const char *meaning;      // one sentence
    int better;               // 1: more is better, -1: less is, 0: neither
    const char *axis;         // its short name on a radar chart, where a share has its place; NULL: none
} MetricText;

#endif
