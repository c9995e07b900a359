/* What the server counts, in the text format of Prometheus (version 0.0.4). */
#ifndef SERVER_METRICS_H
#define SERVER_METRICS_H

#include "../lib/clock.h"
#include "routes.h"

enum { METRICS_STATUSES = 600, METRICS_BUCKETS = 14 };

/* Upper bounds of the durations' buckets in seconds; the last is +Inf. */
static const double metrics_bounds[METRICS_BUCKETS - 1] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                           0.25,  0.5,    1,     2.5,  5,     10};

/* Counters are raised by atomic additions. `jobs` is stored, by whoever holds the server's lock; `started` before there is any
 * thread. */
typedef struct {
    uint64_t requests[ROUTES + 1][METRICS_STATUSES];  // by route (the last: files) and status
    uint64_t durations[METRICS_BUCKETS], microseconds;
    uint64_t tokens, steps, rows;  // written; decoding steps, and programs in them
    uint64_t prefills, renders, reloads, failed_reloads;
    int64_t jobs, connections;  // now
    double started;
} Metrics;

static inline void metrics_add(uint64_t *counter, uint64_t n) { __atomic_fetch_add(counter, n, __ATOMIC_RELAXED); }

/* Counts a request that was answered. */
static inline void metrics_request(Metrics *m, const Route *route, int status, double seconds) {
    const int r = route && route->kind != ROUTE_FILE ? (int)(route - routes) : ROUTES;
    int bucket = 0;
    while (bucket < METRICS_BUCKETS - 1 && seconds > metrics_bounds[bucket]) bucket++;
    metrics_add(&m->requests[r][status > 0 && status < METRICS_STATUSES ? status : 0], 1);
    metrics_add(&m->durations[bucket], 1);
    metrics_add(&m->microseconds, (uint64_t)(seconds * 1e6));
}

static inline void metrics_line(FILE *f, const char *name, const char *type, const char *help, double value) {
    fprintf(f, "# HELP tikzc_%s %s\n# TYPE tikzc_%s %s\ntikzc_%s %.17g\n", name, help, name, type, name, value);
}

/* Returns the text, allocated. queued: jobs that wait for the engine. */
static inline char *metrics_text(const Metrics *m, int queued, size_t *size) {
    char *text = NULL;
    FILE *f = open_memstream(&text, size);
    if (!f) die("out of memory");
    fprintf(f, "# HELP tikzc_requests_total Requests that were answered.\n# TYPE tikzc_requests_total counter\n");
    for (int r = 0; r <= ROUTES; r++)
        for (int s = 0; s < METRICS_STATUSES; s++)
            if (m->requests[r][s])
                fprintf(f, "tikzc_requests_total{path=\"%s\",status=\"%d\"} %llu\n",
                        r < ROUTES ? routes[r].path : "/", s, (unsigned long long)m->requests[r][s]);
    fprintf(f, "# HELP tikzc_request_seconds Time from a request to the end of its answer.\n"
               "# TYPE tikzc_request_seconds histogram\n");
    uint64_t sum = 0;
    for (int b = 0; b < METRICS_BUCKETS; b++) {
        sum += m->durations[b];
        if (b + 1 < METRICS_BUCKETS)
            fprintf(f, "tikzc_request_seconds_bucket{le=\"%g\"} %llu\n", metrics_bounds[b], (unsigned long long)sum);
    }
    fprintf(f, "tikzc_request_seconds_bucket{le=\"+Inf\"} %llu\ntikzc_request_seconds_sum %.6f\n",
            (unsigned long long)sum, 1e-6 * (double)m->microseconds);
    fprintf(f, "tikzc_request_seconds_count %llu\n", (unsigned long long)sum);
    metrics_line(f, "tokens_total", "counter", "Tokens that were written.", (double)m->tokens);
    metrics_line(f, "prefills_total", "counter", "Images that were encoded.", (double)m->prefills);
    metrics_line(f, "decode_steps_total", "counter", "Decoding steps.", (double)m->steps);
    metrics_line(f, "decode_rows_total", "counter", "Programs that decoding steps went on with.", (double)m->rows);
    metrics_line(f, "renders_total", "counter", "Programs that were compiled.", (double)m->renders);
    metrics_line(f, "reloads_total", "counter", "Models that were loaded again.", (double)m->reloads);
    metrics_line(f, "failed_reloads_total", "counter", "Models that could not be loaded again.",
                 (double)m->failed_reloads);
    metrics_line(f, "jobs", "gauge", "Requests that wait or are worked on.", (double)m->jobs);
    metrics_line(f, "queued", "gauge", "Requests that wait for the model.", queued);
    metrics_line(f, "connections", "gauge", "Open connections.", (double)m->connections);
    metrics_line(f, "uptime_seconds", "gauge", "Time since the server began.", seconds_now() - m->started);
    fclose(f);
    return text;
}

#endif
