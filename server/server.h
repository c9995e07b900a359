/* All that the server's threads share. */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include "engine.h"

enum { READERS = 2, DRAWERS_MOST = 16 };

/* A connection: the library closes one that is silent, but not one whose headers come byte by byte for ever. */
typedef struct Connection {
    int descriptor;
    bool asking;   // the headers of a request are there, and its answer is not sent yet
    double since;  // when it came, or its last request ended
    struct Connection *newer, *older;
} Connection;

/* What the command line says. */
typedef struct {
    const char *address, *web, *api_key, *cors;
    int port, queue, drawers, connections;
    double timeout;         // seconds that a request may take
    double header_timeout;  // seconds that the headers of a request may take
    size_t max_body, max_pixels;
    bool quiet;
} ServeLimits;

typedef struct Server {
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
    Connection *connections_open;  // below lock
    Job *jobs;                     // that are not finished, the newest first; below lock
    int job_count;
} Server;

static inline bool server_stopping(const Server *server) {
    return __atomic_load_n(&server->stopping, __ATOMIC_ACQUIRE);
}

/* ---- jobs ---- */

/* Frees the body, of which all together may take so much memory only. */
static inline void job_free_body(Server *server, Job *j) {
    free(j->body);
    __atomic_fetch_sub(&server->bodies, (int64_t)j->body_capacity, __ATOMIC_RELAXED);
    j->body = NULL;
    j->body_capacity = j->body_bytes = 0;
}

/* Frees what was worked on: a client that reads slowly keeps no more than its answer, or what a stream has not yet sent. */
static inline void job_free_work(Server *server, Job *j) {
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
    job_free_body(server, j);
    fields_free(&j->fields);
    if (j->instance && instance_release(&server->registry, j->instance)) engine_ask_sweep(&server->engine);
    j->instance = NULL;
}

static inline void job_free(Server *server, Job *j) {
    job_free_work(server, j);
    free(j->content_type);
    free(j->answer);
    free(j->events);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

/* A new job. It is freed when both its connection and its worker have released it. */
static inline Job *server_job(Server *server, const Route *route) {
    Job *j = (Job *)xcalloc(1, sizeof *j);
    j->route = route;
    j->fields = fields_default;
    j->number = __atomic_add_fetch(&server->requests, 1, __ATOMIC_RELAXED);
    j->references = 1;
    j->arrived = seconds_now();
    j->deadline = j->arrived + server->o.timeout;
    j->program.log_probability = j->program.confidence = j->program.similarity = NAN;
    pthread_mutex_init(&j->lock, NULL);
    return j;
}

static inline void server_release(Server *server, Job *j) {
    if (__atomic_sub_fetch(&j->references, 1, __ATOMIC_ACQ_REL) == 0) job_free(server, j);
}

/* Enters a job whose body has been read into the list. False: the queue is full, or the server stops. */
static inline bool server_enter(Server *server, Job *j) {
    pthread_mutex_lock(&server->lock);
    const bool full = server->stopping || server->job_count >= server->o.queue;
    if (!full) {
        j->older = server->jobs;
        if (server->jobs) server->jobs->newer = j;
        server->jobs = j;
        server->job_count++;
        j->references++;
        __atomic_store_n(&server->metrics.jobs, server->job_count, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&server->lock);
    return !full;
}

/* The job is finished: takes it out of the list. Its worker calls it last. */
static inline void server_leave(Server *server, Job *j) {
    pthread_mutex_lock(&server->lock);
    if (j->newer)
        j->newer->older = j->older;
    else
        server->jobs = j->older;
    if (j->older) j->older->newer = j->newer;
    server->job_count--;
    __atomic_store_n(&server->metrics.jobs, server->job_count, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&server->lock);
    job_free_work(server, j);
    server_release(server, j);
}

#endif
