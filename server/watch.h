/* The watch: a thread that looks, twenty times a second, which jobs have taken too long, whose clients have gone, and which
 * clients do not come to the point. */
#ifndef SERVER_WATCH_H
#define SERVER_WATCH_H

#include "server.h"

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
static inline void watch_end(Server *server, Job *j) {
    JobQueue *const queues[] = {&server->readers, &server->engine.queue, &server->outlet.drawers,
                                &server->outlet.writers};
    bool waited = false;
    engine_interrupt(&server->engine, j);
    for (int q = 0; q < 4 && !waited; q++) waited = queue_remove(queues[q], j);
    if (!waited) return;
    if (!j->done) job_left(j);
    server_leave(server, j);
}

static inline void watch_once(Server *server) {
    Job *ended[WATCH_JOBS];
    int n = 0;
    const double now = seconds_now();
    pthread_mutex_lock(&server->lock);
    for (Job *j = server->jobs; j && n < WATCH_JOBS; j = j->older) {
        if (now > j->deadline) job_cancel(j, LATE);
        if (watch_client_gone(j)) job_cancel(j, GONE);
        if (job_cancelled(j) == GOES_ON) continue;
        __atomic_add_fetch(&j->references, 1, __ATOMIC_ACQ_REL);
        ended[n++] = j;
    }
    pthread_mutex_unlock(&server->lock);
    for (int i = 0; i < n; i++) {
        watch_end(server, ended[i]);
        server_release(server, ended[i]);
    }
}

/* Hangs up on those whose headers take too long. */
static inline void watch_connections(Server *server) {
    const double now = seconds_now();
    pthread_mutex_lock(&server->lock);
    for (const Connection *v = server->connections_open; v; v = v->older)
        if (!v->asking && now - v->since > server->o.header_timeout) shutdown(v->descriptor, SHUT_RDWR);
    pthread_mutex_unlock(&server->lock);
}

static inline void *watch_thread(void *argument) {
    Server *server = (Server *)argument;
    while (__atomic_load_n(&server->watching, __ATOMIC_ACQUIRE)) {
        watch_once(server);
        watch_connections(server);
        usleep(WATCH_MS * 1000);
    }
    return NULL;
}

#endif
