/* The part of lib/world.h that runs beside the program: the control connections between the ranks, the thread that
 * watches over them, and how all ranks end when one does.
 *
 * Rank 0 listens; every other rank keeps one control connection to it. A monitor thread in every rank writes a sign
 * of life into it every two seconds and reads the other's. So whatever ends one rank (its own die(), kill -9, a
 * machine that is switched off, a cut network) ends all of them within seconds, each with the same one sentence that
 * names the rank and the cause. The connections also carry world_agree, world_finish and world_close.
 *
 * The network between the ranks is trusted: what knows the protocol can end a run. What does not is ignored. */
#ifndef LIB_WORLD_MONITOR_H
#define LIB_WORLD_MONITOR_H

#include "file.h"
#include "launch.h"
#include "socket.h"
#include "threads.h"

#include <pthread.h>
#include <sys/eventfd.h>

enum { NEWCOMERS = 32, HOST_NAME_BYTES = 64 };
#define BEAT_SECONDS 2.0

/* What is known of a rank; sent as it is. */
typedef struct {
    char host[HOST_NAME_BYTES];   // its machine's name, for sentences
    char address[ADDRESS_BYTES];  // where its data connections are taken; "": at the address of rank 0
    int32_t port, process;
    uint64_t machine;     // equal for ranks on one machine
    uint64_t processors;  // equal for ranks that may use the same of its processors
} Peer;

/* A data connection that another rank has opened and no one here has asked for yet. */
typedef struct {
    int fd, from;
    uint32_t channel;
} Incoming;

/* How often a group of ranks has opened a channel. */
typedef struct {
    int first, count, opened;
} WorldGroup;

typedef struct World {
    int rank, ranks;              // 0 .. ranks-1
    int local_rank, local_ranks;  // among the ranks on this machine
    int sharing;                  // ranks that may use the processors which this one may, itself included
    bool launched_here;           // rank 0 of a run that started its other ranks itself
    bool mpi;                     // data travels by MPI
    const char *advice;  // may be set by the program: what to do when a rank has gone, the end of that sentence
    Peer *peers;         // [ranks]

    /* Below: for this file, lib/world.h and lib/transport.h. */
    Launch launch;
    Copies copies;
    uint64_t id;          // of this run, drawn by rank 0; data connections prove with it that they belong
    Connection *control;  // [ranks]; on rank 0 to every other rank, elsewhere only [0]; read by the monitor
    Connection newcomers[NEWCOMERS];
    struct pollfd *polled;  // what the monitor waits for: wake, listener, newcomers, control
    int listener;
    int wake, over_event;  // eventfds: the monitor shall look; the run is over
    double arrival_seconds, silence_seconds;
    pthread_t monitor;
    pthread_mutex_t sending;  // one message at a time
    pthread_mutex_t lock;     // of all below
    pthread_cond_t changed;
    bool ready;        // all are there, and peers is filled; written by the monitor, as `arrived`
    int arrived;       // rank 0: how many are there
    bool *goodbye;     // [ranks]; that rank is in world_close
    char **agreement;  // [ranks]; texts of world_agree that have come (rank 0)
    int agreed;        // calls of world_agree that rank 0 has found equal
    bool over, closing;
    Incoming *incoming;
    int incoming_count;
    WorldGroup *groups;
    int group_count;
    char failing;
} World;

typedef enum {
    MESSAGE_HELLO = 1,  // Hello: who I am, and whether this is a control (channel 0) or a data connection
    MESSAGE_TABLE,      // Table: who all are
    MESSAGE_BEAT,       // I am alive
    MESSAGE_FAILURE,    // a sentence: the run ends
    MESSAGE_AGREE,      // a text that shall be the same everywhere
    MESSAGE_AGREED,     // it is
    MESSAGE_OVER,       // the run is over
    MESSAGE_GOODBYE     // my end is no failure any more
} MessageKind;

typedef struct {
    uint32_t channel;
    int32_t ranks;
    uint64_t world;  // its id; not yet known (0) on channel 0
    Peer peer;
} Hello;

static World *world_current = NULL;  // the one that die() tells

/* ---- failure ---- */

/* "rank 1 (on HOST, process 4711)" in `out`. */
static inline const char *world_name(const World *w, int rank, char *out, size_t size) {
    const Peer *p = &w->peers[rank];
    if (p->process)
        snprintf(out, size, "rank %d (on %s, process %d)", rank, p->host, (int)p->process);
    else
        snprintf(out, size, "rank %d (at %.99s:%d)", rank, w->launch.host, w->launch.port);
    return out;
}

static inline void world_send(World *w, int to, MessageKind kind, const void *body, size_t bytes) {
    pthread_mutex_lock(&w->sending);
    if (w->control[to].fd >= 0) message_send(w->control[to].fd, kind, w->rank, body, bytes);
    pthread_mutex_unlock(&w->sending);
}

static inline void control_begin(World *w, int rank, int fd) {
    struct timeval patience = {5, 0};  // for a rank that reads no more: its silence will be seen
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    pthread_mutex_lock(&w->sending);
    connection_begin(&w->control[rank], fd);
    pthread_mutex_unlock(&w->sending);
}

/* To all that this rank is connected with: on rank 0 to all others, else to rank 0. */
static inline void world_send_all(World *w, int except, MessageKind kind, const void *body, size_t bytes) {
    for (int r = 0; r < w->ranks; r++)
        if (r != except && r != w->rank) world_send(w, r, kind, body, bytes);
}

/* Gives the others up to a second to read what was sent: a connection that is closed with bytes unread may take with
 * it what was on its way. */
static inline void world_linger(World *w) {
    char bytes[4096];
    double until = seconds_now() + 1;
    for (int r = 0; r < w->ranks; r++)
        if (w->control[r].fd >= 0) shutdown(w->control[r].fd, SHUT_WR);  // after all that was sent
    for (int r = 0; r < w->ranks; r++) {
        struct pollfd p = {w->control[r].fd, POLLIN, 0};
        while (p.fd >= 0 && seconds_now() < until && poll(&p, 1, 50) >= 0)
            if (p.revents && recv(p.fd, bytes, sizeof bytes, MSG_DONTWAIT) <= 0) break;
    }
}

/* Ends this process with a sentence, and the others with the same. The first thread to come here does it; any other
 * stays for the rest of its short life. `except`: the rank that knows already; -1. */
__attribute__((noreturn)) static inline void world_fail(World *w, int except, const char *sentence) {
    int status;
    if (__atomic_exchange_n(&w->failing, 1, __ATOMIC_ACQ_REL))
        for (;;) pause();
    signal(SIGALRM, SIG_DFL);
    alarm(10);  // whatever still holds it up, a terminal that takes no text for example
    if (w->rank == 0 || except != 0) world_send_all(w, except, MESSAGE_FAILURE, sentence, strlen(sentence));
    files_abandon();
    world_linger(w);
    copies_end(&w->copies, 2, &status);
    flockfile(stderr);  // the main thread may be at work, and print, until now
    report_error("%s", sentence);
    _exit(1);
}

/* The same for a sentence about another rank. */
__attribute__((noreturn)) static inline void world_fail_rank(World *w, int rank, const char *what) {
    Error sentence;
    char name[160];
    error_set(&sentence, "%s %s%s%s", world_name(w, rank, name, sizeof name), what, w->advice ? "; " : "",
              w->advice ? w->advice : "");
    world_fail(w, rank, sentence.text);
}

static inline void world_die(const char *text) {
    World *w = world_current;
    Error sentence;
    error_set(&sentence, "rank %d (on %s): %s", w->rank, w->peers[w->rank].host, text);
    world_fail(w, -1, sentence.text);
}

/* ---- arrivals ---- */

static inline void world_ready(World *w) {
    pthread_mutex_lock(&w->lock);
    w->ready = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

/* Rank 0: who comes twice or with other expectations ends the run; who comes when it has begun is sent away. */
static inline void world_refuse(World *w, Connection *c, const Hello *h) {
    Error sentence;
    const Peer *p = &h->peer;
    int rank = (int)c->header.rank;
    if (w->ready)
        error_set(&sentence, "the run at this address has all its %d ranks; choose another port", w->ranks);
    else if (h->ranks != w->ranks)
        error_set(&sentence, "rank %d (on %s, process %d) was started with --ranks %d, rank 0 with --ranks %d", rank,
                  p->host, (int)p->process, (int)h->ranks, w->ranks);
    else
        error_set(&sentence, "two processes have --rank %d: process %d on %s and process %d on %s", rank,
                  (int)w->peers[rank].process, w->peers[rank].host, (int)p->process, p->host);
    message_send(c->fd, MESSAGE_FAILURE, 0, sentence.text, strlen(sentence.text));
    if (!w->ready) world_fail(w, -1, sentence.text);
    shutdown(c->fd, SHUT_WR);
    connection_close(c);
}

/* Rank 0: all are there. Everyone is told who all are. */
static inline void world_begin(World *w) {
    const size_t all = (size_t)w->ranks * sizeof(Peer);
    char *table = (char *)xmalloc(sizeof w->id + all);
    memcpy(table, &w->id, sizeof w->id);
    memcpy(table + sizeof w->id, w->peers, all);
    world_send_all(w, -1, MESSAGE_TABLE, table, sizeof w->id + all);
    free(table);
    world_ready(w);
}

/* Rank 0: a hello on a control connection. */
static inline void world_welcome(World *w, Connection *c, Hello *h) {
    int rank = (int)c->header.rank;
    h->peer.host[HOST_NAME_BYTES - 1] = '\0';
    if (w->ready || h->ranks != w->ranks || w->peers[rank].process) {
        world_refuse(w, c, h);
        return;
    }
    (void)socket_name(c->fd, true, h->peer.address);
    if (address_is_loopback(h->peer.address)) h->peer.address[0] = '\0';
    control_begin(w, rank, c->fd);
    pthread_mutex_lock(&w->lock);
    w->peers[rank] = h->peer;
    pthread_mutex_unlock(&w->lock);
    c->fd = -1;  // it is the rank's now
    connection_close(c);
    if (++w->arrived == w->ranks) world_begin(w);
}

static inline void world_keep_incoming(World *w, Connection *c, const Hello *h) {
    pthread_mutex_lock(&w->lock);
    w->incoming = (Incoming *)xrealloc(w->incoming, (size_t)(w->incoming_count + 1) * sizeof *w->incoming);
    Incoming *i = &w->incoming[w->incoming_count++];
    i->fd = c->fd;
    i->from = (int)c->header.rank;
    i->channel = h->channel;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    c->fd = -1;
    connection_close(c);
}

/* Reads a newcomer's hello; strangers are sent away without a word. */
static inline void newcomer_read(World *w, Connection *c) {
    Hello hello;
    ReadResult result = connection_read(c, sizeof hello);
    if (result == READ_MORE) return;
    bool known = result == READ_MESSAGE && c->header.kind == MESSAGE_HELLO && c->header.bytes == sizeof hello;
    if (known) memcpy(&hello, c->body, sizeof hello);
    known = known && hello.ranks > 0 && c->header.rank < (uint32_t)hello.ranks;
    if (known && hello.channel == 0 && w->rank == 0)
        world_welcome(w, c, &hello);
    else if (known && hello.channel && hello.world == w->id && hello.ranks == w->ranks)
        world_keep_incoming(w, c, &hello);
    else
        connection_close(c);
}

/* A place for a newcomer: a free one, else that of the one longest silent, if it has been so for a second; -1: none,
 * let more wait at the listener. */
static inline int newcomer_place(const World *w) {
    int place = 0;
    for (int i = 0; i < NEWCOMERS; i++) {
        if (w->newcomers[i].fd < 0) return i;
        if (w->newcomers[i].heard < w->newcomers[place].heard) place = i;
    }
    return seconds_now() - w->newcomers[place].heard > 1 ? place : -1;
}

/* Takes the connections that wait at the listener. Ranks may arrive in any number at once, and their hellos with
 * them: nobody goes who has not been read. */
static inline void newcomers_accept(World *w) {
    for (int place, fd; (place = newcomer_place(w)) >= 0;) {
        if (w->newcomers[place].fd >= 0) newcomer_read(w, &w->newcomers[place]);
        if (w->newcomers[place].fd >= 0) connection_close(&w->newcomers[place]);
        if ((fd = accept4(w->listener, NULL, NULL, SOCK_CLOEXEC)) < 0) break;
        socket_at_once(fd);
        connection_begin(&w->newcomers[place], fd);
    }
}

/* ---- the monitor ---- */

static inline void world_set_over(World *w, int from) {
    uint64_t one = 1;
    pthread_mutex_lock(&w->lock);
    bool news = !__atomic_exchange_n(&w->over, true, __ATOMIC_ACQ_REL);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (!news) return;
    if (write(w->over_event, &one, sizeof one) < 0) world_die("cannot signal the end of the run");
    world_send_all(w, from, MESSAGE_OVER, NULL, 0);
}

static inline void world_take_table(World *w, const Connection *c) {
    const size_t all = (size_t)w->ranks * sizeof(Peer);
    if (c->header.bytes != sizeof w->id + all) world_fail_rank(w, 0, "is of another version of this program");
    pthread_mutex_lock(&w->lock);
    memcpy(&w->id, c->body, sizeof w->id);
    memcpy(w->peers, c->body + sizeof w->id, all);
    pthread_mutex_unlock(&w->lock);
    world_ready(w);
}

static inline void control_message(World *w, int from, const Connection *c) {
    MessageKind kind = (MessageKind)c->header.kind;
    if (kind == MESSAGE_BEAT) return;
    if (kind == MESSAGE_FAILURE) world_fail(w, from, c->body);
    if (kind == MESSAGE_OVER) {
        world_set_over(w, from);
        return;
    }
    if (kind == MESSAGE_TABLE && from == 0) {
        world_take_table(w, c);
        return;
    }
    pthread_mutex_lock(&w->lock);
    if (kind == MESSAGE_AGREE && w->rank == 0) {
        free(w->agreement[from]);
        w->agreement[from] = xstrdup(c->body);
    } else if (kind == MESSAGE_AGREED) {
        w->agreed++;
    } else if (kind == MESSAGE_GOODBYE) {
        w->goodbye[from] = true;
    }
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static inline void control_read(World *w, int from) {
    Connection *c = &w->control[from];
    ReadResult result;
    while ((result = connection_read(c, MESSAGE_LONGEST)) == READ_MESSAGE) control_message(w, from, c);
    if (result == READ_MORE) return;
    if (!w->goodbye[from] && result == READ_STRANGE) world_fail_rank(w, from, "is not a rank of this program");
    if (!w->goodbye[from]) world_fail_rank(w, from, "has gone");
    pthread_mutex_lock(&w->sending);
    connection_close(c);
    pthread_mutex_unlock(&w->sending);
}

/* Waits for something to read, at most until the next beat. polled: wake, listener, newcomers, control. When this
 * took much longer, it is this process that was stopped (Ctrl-Z), perhaps with all others: their silence counts from
 * now. */
static inline void monitor_wait(World *w, double until) {
    struct pollfd *p = w->polled;
    nfds_t count = 0;
    double left = until - seconds_now();
    bool open = w->rank == 0 || w->ready;  // before, it is not known which data connections belong to this run
    p[count++].fd = w->wake;
    p[count++].fd = open && newcomer_place(w) >= 0 ? w->listener : -1;
    for (int i = 0; i < NEWCOMERS; i++) p[count++].fd = w->newcomers[i].fd;
    for (int r = 0; r < w->ranks; r++) p[count++].fd = w->control[r].fd;
    for (nfds_t i = 0; i < count; i++) p[i].events = POLLIN, p[i].revents = 0;
    poll(p, count, left > 0 ? (int)(left * 1000) + 1 : 0);
    for (int r = 0; r < w->ranks && seconds_now() - until > w->silence_seconds / 4; r++)
        w->control[r].heard = seconds_now();
}

static inline void monitor_judge(World *w) {
    char what[96];
    int status;
    double now = seconds_now();
    for (int i = 0; i < NEWCOMERS; i++)
        if (w->newcomers[i].fd >= 0 && now - w->newcomers[i].heard > 10) connection_close(&w->newcomers[i]);
    for (int r = 0; r < w->ranks; r++)
        if (w->control[r].fd >= 0 && !w->goodbye[r] && now - w->control[r].heard > w->silence_seconds) {
            snprintf(what, sizeof what, "has given no sign of life for %.0f s", w->silence_seconds);
            world_fail_rank(w, r, what);
        }
    int ended = w->ready ? 0 : copies_ended(&w->copies, &status);
    if (ended && !w->peers[ended].process) {
        Error sentence;
        error_set(&sentence, "rank %d ended with %s before it arrived", ended, copies_status(status, what));
        world_fail(w, -1, sentence.text);
    }
}

static inline void *monitor_run(void *argument) {
    World *w = (World *)argument;
    const struct pollfd *newcomers = w->polled + 2, *control = newcomers + NEWCOMERS;
    double next_beat = seconds_now();
    for (bool closing = false; !closing;) {
        if (seconds_now() >= next_beat) {
            world_send_all(w, -1, MESSAGE_BEAT, NULL, 0);
            next_beat =
                seconds_now() + (w->silence_seconds < 4 * BEAT_SECONDS ? w->silence_seconds / 4 : BEAT_SECONDS);
        }
        monitor_wait(w, next_beat);
        for (int r = 0; r < w->ranks; r++)
            if (control[r].revents) control_read(w, r);
        for (int i = 0; i < NEWCOMERS; i++)
            if (newcomers[i].revents) newcomer_read(w, &w->newcomers[i]);
        if (w->polled[1].revents) newcomers_accept(w);
        monitor_judge(w);  // last: a process that was stopped itself has read by now what others wrote meanwhile
        pthread_mutex_lock(&w->lock);
        closing = w->closing;
        pthread_mutex_unlock(&w->lock);
    }
    return NULL;
}

/* A condition whose timed waits go by the clock of seconds_now. */
static inline void condition_make(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

#endif
