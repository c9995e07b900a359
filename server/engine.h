/* The engine: the one thread that owns the device. Between two tokens it takes newcomers in, runs what needs a model to
 * itself, and loads models again. */
#ifndef SERVER_ENGINE_H
#define SERVER_ENGINE_H

#include "alone.h"

typedef struct {
    Registry *registry;
    Metrics *metrics;
    JobQueue queue;  // jobs that wait for a slot
    Outlet *outlet;  // where finished programs go
    int threads;     // of the model's arithmetic; 0: all processors
    pthread_t thread;
    bool reload, sweep;  // below queue.lock: models are to be loaded again, or closed
    pthread_mutex_t alone_lock;
    Job *alone;  // the job that runs alone now; below alone_lock
} Engine;

/* Stops what runs alone, if it is this job. The rest looks at its job's cancellation between two tokens. */
static inline void engine_interrupt(Engine *e, const Job *j) {
    pthread_mutex_lock(&e->alone_lock);
    if (e->alone == j) interrupt_set(true);
    pthread_mutex_unlock(&e->alone_lock);
}

static inline void engine_set_alone(Engine *e, Job *j) {
    pthread_mutex_lock(&e->alone_lock);
    e->alone = j;
    interrupt_set(j && job_cancelled(j) != GOES_ON);
    pthread_mutex_unlock(&e->alone_lock);
}

/* Takes the first job that can begin: of each model in the order of arrival, one that runs alone when no other runs. The lock
 * of the queue is held. */
static inline Job *engine_pick(Engine *e) {
    for (Job **at = &e->queue.first; *at; at = &(*at)->next) {
        const Job *j = *at;
        const Instance *i = j->instance;
        bool blocked = j->alone ? i->running > 0 : i->running == i->generator.max_B;
        for (const Job *before = e->queue.first; before != j && !blocked; before = before->next)
            blocked = before->instance == i;
        if (!blocked) return queue_take(&e->queue, at);
    }
    return NULL;
}

/* Loads all models again; one whose file cannot be used stays as it is. */
static inline void engine_reload(Engine *e) {
    Registry *r = e->registry;
    for (int m = 0; m < r->count; m++) {
        Error err;
        ServedModel *served = &r->models[m];
        if (registry_load(r, served, &err)) {
            report_error("the model %s stays as it was: %s", served->name, err.text);
            metrics_add(&e->metrics->failed_reloads, 1);
        } else {
            fprintf(stderr, "%s: loaded %s again from %s\n", program_name_text, served->name, served->path);
            metrics_add(&e->metrics->reloads, 1);
        }
    }
}

static inline int engine_running(const Registry *r) {
    int running = 0;
    for (const Instance *i = r->all; i; i = i->next) running += i->running;
    return running;
}

/* Waits for work. Returns false when the queue is closed and all is done; *job: the one that begins now, or NULL. */
static inline bool engine_wait(Engine *e, Job **job, bool *reload) {
    pthread_mutex_lock(&e->queue.lock);
    const int running = engine_running(e->registry);
    while (!running && !e->queue.first && !e->reload && !e->sweep && !e->queue.closed)
        pthread_cond_wait(&e->queue.more, &e->queue.lock);
    *reload = e->reload;
    e->reload = e->sweep = false;
    *job = engine_pick(e);
    const bool over = e->queue.closed && !running && !*job;
    pthread_mutex_unlock(&e->queue.lock);
    return !over;
}

static inline void engine_begin(Engine *e, Job *j) {
    if (job_left(j)) {
        outlet_push(e->outlet, j);
        return;
    }
    if (!j->alone) {
        decode_admit(j->instance, j, e->outlet, e->metrics);
        return;
    }
    engine_set_alone(e, j);
    alone_run(j->instance, j, e->outlet);
    engine_set_alone(e, NULL);
}

static inline void *engine_thread(void *argument) {
    Engine *e = (Engine *)argument;
    Job *job;
    bool reload;
    threads_use(e->threads);  // OpenMP's number belongs to the thread that sets it
    while (engine_wait(e, &job, &reload)) {
        if (reload) engine_reload(e);
        if (job) engine_begin(e, job);
        for (Instance *i = e->registry->all; i; i = i->next) decode_step(i, e->outlet, e->metrics);
        registry_sweep(e->registry);
    }
    return NULL;
}

static inline void engine_ask(Engine *e, bool *what) {
    pthread_mutex_lock(&e->queue.lock);
    *what = true;
    pthread_cond_signal(&e->queue.more);
    pthread_mutex_unlock(&e->queue.lock);
}

static inline void engine_ask_sweep(Engine *e) { engine_ask(e, &e->sweep); }
static inline void engine_ask_reload(Engine *e) { engine_ask(e, &e->reload); }

static inline void engine_open(Engine *e, Registry *r, Outlet *outlet, Metrics *m, int threads) {
    e->registry = r;
    e->threads = threads;
    e->outlet = outlet;
    e->metrics = m;
    queue_open(&e->queue);
    pthread_mutex_init(&e->alone_lock, NULL);
    thread_start(&e->thread, engine_thread, e);
}

/* Finishes all jobs, and ends the thread. */
static inline void engine_close(Engine *e) {
    queue_close(&e->queue);
    pthread_join(e->thread, NULL);
}

#endif
