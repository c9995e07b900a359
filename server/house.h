/* All that the server's threads share. */
#ifndef SERVER_HOUSE_H
#define SERVER_HOUSE_H

#include "engine.h"

enum { READERS = 2, DRAWERS_MOST = 16 };

/* A connection: the library closes one that is silent, but not one whose headers come byte by byte for ever. */
typedef struct Visitor {
    int descriptor;
    bool asking;   // the headers of a request are there, and its answer is not sent yet
    double since;  // when it came, or its last request ended
    struct Visitor *newer, *older;
} Visitor;

/* What the command line says. */
typedef struct {
    const char *address, *web, *api_key, *cors;
    int port, queue, drawers, connections;
    double timeout;   // seconds that a request may take
    double patience;  // seconds that the headers of a request may take
    size_t max_body, max_pixels;
    bool quiet;
} ServeLimits;

typedef struct House {
    ServeLimits o;
    Registry registry;
    Metrics metrics;
    Engine engine;
    JobQueue readers;
    Outlet outlet;
    pthread_t reader_threads[READERS], drawer_threads[DRAWERS_MOST], writer_thread, watch_thread;
    Renderer renderer;
    bool renders;      // there is a TeX system
    Error no_tex;      // otherwise, why
    bool stopping;     // no new requests; atomic
    bool watching;     // atomic
    int64_t bodies;    // bytes of the bodies in memory; atomic
    int64_t requests;  // numbers of the jobs; atomic
    pthread_mutex_t lock;
    Visitor *visitors;  // below lock
    Job *jobs;          // that are not finished, the newest first; below lock
    int job_count;
} House;

static inline bool house_stopping(const House *h) { return __atomic_load_n(&h->stopping, __ATOMIC_ACQUIRE); }

/* ---- jobs ---- */

/* Frees what was worked on: a client that reads its answer slowly keeps no more than the answer. */
static inline void job_free_work(House *h, Job *j) {
    Program *p = &j->program;
    if (p->memory) {
        fclose(p->memory);
        token_decoder_free(&p->decoder);
    }
    free(p->text);
    free(p->ids.ids);
    free(p->preprocessing);
    *p = (Program){0};
    for (int k = 0; k < j->candidate_count; k++) free(j->candidates[k].text);
    free(j->candidates);
    free(j->pixels);
    j->candidates = NULL, j->candidate_count = 0, j->pixels = NULL;
    fields_free(&j->fields);
    if (j->instance && instance_release(&h->registry, j->instance)) engine_ask_sweep(&h->engine);
    j->instance = NULL;
}

static inline void job_free(House *h, Job *j) {
    job_free_work(h, j);
    __atomic_fetch_sub(&h->bodies, (int64_t)j->body_capacity, __ATOMIC_RELAXED);
    free(j->body);
    free(j->content_type);
    free(j->answer);
    free(j->events);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

/* A new job. It is freed when both its connection and its worker have released it. */
static inline Job *house_job(House *h, const Route *route) {
    Job *j = (Job *)xcalloc(1, sizeof *j);
    j->route = route;
    j->fields = fields_default;
    j->number = __atomic_add_fetch(&h->requests, 1, __ATOMIC_RELAXED);
    j->references = 1;
    j->arrived = seconds_now();
    j->deadline = j->arrived + h->o.timeout;
    j->program.log_probability = j->program.confidence = j->program.similarity = NAN;
    pthread_mutex_init(&j->lock, NULL);
    return j;
}

static inline void house_release(House *h, Job *j) {
    if (__atomic_sub_fetch(&j->references, 1, __ATOMIC_ACQ_REL) == 0) job_free(h, j);
}

/* Enters a job whose body has been read into the list. False: the house is full. */
static inline bool house_enter(House *h, Job *j) {
    pthread_mutex_lock(&h->lock);
    const bool full = h->stopping || h->job_count >= h->o.queue;
    if (!full) {
        j->older = h->jobs;
        if (h->jobs) h->jobs->newer = j;
        h->jobs = j;
        h->job_count++;
        j->references++;
        __atomic_store_n(&h->metrics.jobs, h->job_count, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&h->lock);
    return !full;
}

/* The job is finished: takes it out of the list. Its worker calls it last. */
static inline void house_leave(House *h, Job *j) {
    pthread_mutex_lock(&h->lock);
    if (j->newer)
        j->newer->older = j->older;
    else
        h->jobs = j->older;
    if (j->older) j->older->newer = j->newer;
    h->job_count--;
    __atomic_store_n(&h->metrics.jobs, h->job_count, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&h->lock);
    job_free_work(h, j);
    house_release(h, j);
}

#endif
