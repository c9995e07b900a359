/* The watch: a thread that looks, twenty times a second, which jobs have taken too long, whose clients have gone, and which
 * clients do not come to the point. */
#ifndef SERVER_WATCH_H
#define SERVER_WATCH_H

#include "house.h"

#include <poll.h>
#include <sys/socket.h>

enum { WATCH_MS = 50, WATCH_JOBS = 64 };

/* Whether the client has closed its connection. The library does not look while a connection is suspended. A client that only
 * closes its own direction after the request counts as gone, as for most servers. */
static inline bool watch_client_gone(Job *j) {
    pthread_mutex_lock(&j->lock);
    struct pollfd p = {.fd = j->descriptor, .events = POLLRDHUP};
    const bool gone =
        j->connection && j->suspended && poll(&p, 1, 0) > 0 && p.revents & (POLLRDHUP | POLLHUP | POLLERR);
    pthread_mutex_unlock(&j->lock);
    return gone;
}

/* A cancelled job that only waits is finished here; one that is worked on is left by its worker. */
static inline void watch_end(House *h, Job *j) {
    JobQueue *const queues[] = {&h->readers, &h->engine.queue, &h->outlet.drawers, &h->outlet.writers};
    bool waited = false;
    engine_interrupt(&h->engine, j);
    for (int q = 0; q < 4 && !waited; q++) waited = queue_remove(queues[q], j);
    if (!waited) return;
    if (!j->done) job_left(j);
    house_leave(h, j);
}

static inline void watch_once(House *h) {
    Job *ended[WATCH_JOBS];
    int n = 0;
    const double now = seconds_now();
    pthread_mutex_lock(&h->lock);
    for (Job *j = h->jobs; j && n < WATCH_JOBS; j = j->older) {
        if (now > j->deadline) job_cancel(j, LATE);
        if (watch_client_gone(j)) job_cancel(j, GONE);
        if (job_cancelled(j) == GOES_ON) continue;
        __atomic_add_fetch(&j->references, 1, __ATOMIC_ACQ_REL);
        ended[n++] = j;
    }
    pthread_mutex_unlock(&h->lock);
    for (int i = 0; i < n; i++) {
        watch_end(h, ended[i]);
        house_release(h, ended[i]);
    }
}

/* Hangs up on those whose headers take too long. */
static inline void watch_visitors(House *h) {
    const double now = seconds_now();
    pthread_mutex_lock(&h->lock);
    for (const Visitor *v = h->visitors; v; v = v->older)
        if (!v->asking && now - v->since > h->o.patience) shutdown(v->descriptor, SHUT_RDWR);
    pthread_mutex_unlock(&h->lock);
}

static inline void *watch_thread(void *argument) {
    House *h = (House *)argument;
    while (__atomic_load_n(&h->watching, __ATOMIC_ACQUIRE)) {
        watch_once(h);
        watch_visitors(h);
        usleep(WATCH_MS * 1000);
    }
    return NULL;
}

#endif
