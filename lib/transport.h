/* How bytes in the host's memory get from one rank to another: TCP sockets, or MPI under mpirun.
 *
 * A Transport belongs to a group of consecutive ranks that open it together and to the one thread that uses it at a
 * time. What different Transports move never waits for each other. Waiting takes no processor time: sockets sleep in
 * poll(); MPI is asked now and then. */
#ifndef LIB_TRANSPORT_H
#define LIB_TRANSPORT_H

#include "world.h"

typedef enum { COMM_OK, COMM_OVER } CommStatus;

typedef struct {
    World *w;
    int first, count, me;   // the members are ranks first .. first+count-1; me: this rank's number among them
    uint32_t channel;       // tells this Transport from the others of the same ranks; equal on all members, not 0
    int *in, *out;          // [count] sockets from and to each member, made when first used; -1: not yet
    struct pollfd *polled;  // [2 * count + 1]
} Transport;

/* Bytes on their way to or from another member. At most one to and one from each member at a time. */
typedef struct {
    bool sending;
    int member;
    char *data;
    size_t bytes, done;
#ifdef WITH_MPI
    MPI_Request request;  // under way, for `part` of the bytes; 0: none is
    size_t part;
    int cancelled;
#endif
} Message;

static inline Message message_to(int member, const void *data, size_t bytes) {
    Message m;
    memset(&m, 0, sizeof m);
    m.sending = true;
    m.member = member;
    m.data = (char *)data;
    m.bytes = bytes;
    return m;
}

static inline Message message_from(int member, void *data, size_t bytes) {
    Message m = message_to(member, data, bytes);
    m.sending = false;
    return m;
}

/* ---- opening ---- */

/* The number of a channel: the same on all members, for each counts how often this very group has opened one. Reused
 * after 16 more, when the old one has long been closed. */
static inline uint32_t channel_number(World *w, int first, int count) {
    int i = 0;
    while (i < w->group_count && (w->groups[i].first != first || w->groups[i].count != count)) i++;
    if (i == w->group_count) {
        w->groups = (WorldGroup *)xrealloc(w->groups, (size_t)++w->group_count * sizeof *w->groups);
        w->groups[i].first = first;
        w->groups[i].count = count;
        w->groups[i].opened = 0;
    }
    return 1 + ((uint32_t)first * (uint32_t)w->ranks + (uint32_t)count - 1) * 16 +
           (uint32_t)(w->groups[i].opened++ % 16);
}

/* Ranks first .. first+count-1 together. Connections are made when first used. */
static inline int transport_open(Transport *t, World *w, int first, int count, Error *err) {
    memset(t, 0, sizeof *t);
    t->w = w;
    t->first = first;
    t->count = count;
    t->me = w->rank - first;
    if (first < 0 || count < 1 || count > w->ranks - first || t->me < 0 || t->me >= count)
        return error_set(err, "rank %d of %d is not in the group of ranks %d to %d", w->rank, w->ranks, first,
                         first + count - 1);
    t->channel = channel_number(w, first, count);
    t->in = (int *)xmalloc((size_t)count * 2 * sizeof *t->in);
    t->out = t->in + count;
    t->polled = (struct pollfd *)xcalloc((size_t)count * 2 + 1, sizeof *t->polled);
    for (int i = 0; i < 2 * count; i++) t->in[i] = -1;
#ifdef WITH_MPI
    int *largest = NULL, found = 0;
    if (w->mpi) MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest, &found);
    if (found && (uint64_t)t->channel * 2 + 1 > (uint64_t)*largest)
        return error_set(err, "this MPI has too few tags (%d) for %d ranks; use --rendezvous", *largest, w->ranks);
#endif
    return 0;
}

static inline void transport_close(Transport *t) {
    for (int i = 0; t->in && i < 2 * t->count; i++)
        if (t->in[i] >= 0) close(t->in[i]);
    free(t->in);
    free(t->polled);
    memset(t, 0, sizeof *t);
}

/* ---- sockets ---- */

/* The address at which this rank reaches another. */
static inline const char *world_address(const World *w, int rank) {
    if (w->peers[rank].address[0]) return w->peers[rank].address;
    if (w->rank && w->launch.host[0])
        return w->launch.host;  // on the machine of rank 0, by whatever name that goes here
    return strcmp(w->launch.host, "::1") ? "127.0.0.1" : "::1";
}

static inline int socket_to(Transport *t, int member) {
    World *w = t->w;
    Error why;
    Hello hello;
    int rank = t->first + member;
    if (t->out[member] >= 0) return t->out[member];
    int fd =
        socket_connect(world_address(w, rank), w->peers[rank].port, seconds_now() + w->silence_seconds + 2, &why);
    memset(&hello, 0, sizeof hello);
    hello.channel = t->channel;
    hello.ranks = w->ranks;
    hello.world = w->id;
    if (fd < 0 || message_send(fd, MESSAGE_HELLO, w->rank, &hello, sizeof hello)) {
        usleep((useconds_t)((w->silence_seconds + 2) * 1e6));  // if that rank has gone, the monitor knows soon
        char name[160];
        die("%s takes no connection at %s:%d: %s; the ranks must reach each other on all ports",
            world_name(w, rank, name, sizeof name), world_address(w, rank), (int)w->peers[rank].port,
            fd < 0 ? why.text : strerror(errno));
    }
    return t->out[member] = fd;
}

/* The connection that a member has opened to this one, or will; -1 when the run is over first. */
static inline int socket_from(Transport *t, int member, bool until_over) {
    World *w = t->w;
    pthread_mutex_lock(&w->lock);
    while (t->in[member] < 0 && !(until_over && w->over)) {
        for (int i = 0; i < w->incoming_count && t->in[member] < 0; i++)
            if (w->incoming[i].channel == t->channel && w->incoming[i].from == t->first + member) {
                t->in[member] = w->incoming[i].fd;
                w->incoming[i] = w->incoming[--w->incoming_count];
            }
        if (t->in[member] < 0) pthread_cond_wait(&w->changed, &w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return t->in[member];
}

/* Moves what goes without waiting. false: the connection broke off. */
static inline bool socket_advance(Transport *t, Message *m) {
    while (m->done < m->bytes) {
        char *at = m->data + m->done;
        ssize_t n = m->sending ? send(t->out[m->member], at, m->bytes - m->done, MSG_DONTWAIT | MSG_NOSIGNAL)
                               : recv(t->in[m->member], at, m->bytes - m->done, MSG_DONTWAIT);
        if (n > 0)
            m->done += (size_t)n;
        else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return true;
        else if (n == 0 || errno != EINTR)
            return false;
    }
    return true;
}

/* A connection broke off. If its other end has died, the monitor knows within seconds and this process ends; if the
 * run is over, that is why. */
static inline CommStatus socket_broken(Transport *t, int member, bool until_over) {
    struct pollfd over = {until_over ? t->w->over_event : -1, POLLIN, 0};
    if (poll(&over, 1, (int)((t->w->silence_seconds + 2) * 1000)) == 1) return COMM_OVER;
    world_fail_rank(t->w, t->first + member, "has closed a connection in use: it does not take the same steps");
}

static inline CommStatus sockets_move(Transport *t, Message *messages, int count, bool until_over) {
    for (int i = 0; i < count; i++)
        if (messages[i].sending) socket_to(t, messages[i].member);
    for (int i = 0; i < count; i++)
        if (!messages[i].sending && socket_from(t, messages[i].member, until_over) < 0) return COMM_OVER;
    for (;;) {
        nfds_t waiting = 0;
        for (int i = 0; i < count; i++) {
            Message *m = &messages[i];
            if (!socket_advance(t, m)) return socket_broken(t, m->member, until_over);
            if (m->done == m->bytes) continue;
            struct pollfd *p = &t->polled[waiting++];
            p->fd = m->sending ? t->out[m->member] : t->in[m->member];
            p->events = m->sending ? POLLOUT : POLLIN;
        }
        if (!waiting) return COMM_OK;
        if (until_over && world_over(t->w)) return COMM_OVER;
        t->polled[waiting].fd = until_over ? t->w->over_event : -1;
        t->polled[waiting].events = POLLIN;
        poll(t->polled, waiting + 1, -1);
    }
}

/* ---- MPI ---- */

#ifdef WITH_MPI
/* Starts the next part of a message, for MPI counts in ints. */
static inline void mpi_post(const Transport *t, Message *m, int tag) {
    const size_t most = (size_t)1 << 30;
    m->part = m->bytes - m->done < most ? m->bytes - m->done : most;
    if (m->sending)
        MPI_Isend(m->data + m->done, (int)m->part, MPI_BYTE, t->first + m->member, tag, MPI_COMM_WORLD, &m->request);
    else
        MPI_Irecv(m->data + m->done, (int)m->part, MPI_BYTE, t->first + m->member, tag, MPI_COMM_WORLD, &m->request);
}

/* Looks at each message once, and goes on with it. How many are not done. */
static inline int mpi_advance(const Transport *t, Message *messages, int count, int tag) {
    MPI_Status status;
    int waiting = 0;
    pthread_mutex_lock(&mpi_lock);
    for (int i = 0; i < count; i++) {
        Message *m = &messages[i];
        for (int ended = 1; m->done < m->bytes && ended;) {
            if (!m->part) mpi_post(t, m, tag);
            MPI_Test(&m->request, &ended, &status);
            if (!ended) continue;
            MPI_Test_cancelled(&status, &m->cancelled);
            m->done = m->cancelled ? m->bytes : m->done + m->part;
            m->part = 0;
        }
        waiting += m->done < m->bytes;
    }
    pthread_mutex_unlock(&mpi_lock);
    return waiting;
}

/* The run is over while a message waits. A receive that has not begun is taken back; one that has comes to its end,
 * for its sender is here too. A send that the receiver has taken back just now never ends: it is left alone. */
static inline void mpi_give_up(Message *m, double since) {
    pthread_mutex_lock(&mpi_lock);
    if (!m->sending && since == 0) MPI_Cancel(&m->request);
    if (m->sending && since > 1) {
        MPI_Request_free(&m->request);
        m->cancelled = true;
        m->done = m->bytes;
    }
    pthread_mutex_unlock(&mpi_lock);
}

/* until_over: only with a single message. */
static inline CommStatus mpi_move(Transport *t, Message *messages, int count, bool until_over, int tag) {
    struct timespec pause = {0, 1000};
    double over_since = 0;
    while (mpi_advance(t, messages, count, tag)) {
        if (until_over && world_over(t->w)) {
            mpi_give_up(messages, over_since ? seconds_now() - over_since : 0);
            if (!over_since) over_since = seconds_now();
        }
        nanosleep(&pause, NULL);
        if (pause.tv_nsec < 100000) pause.tv_nsec += pause.tv_nsec / 4 + 1000;
    }
    return count && messages->cancelled ? COMM_OVER : COMM_OK;
}
#endif

/* ---- moving ---- */

/* Moves all messages, in whatever order they go. */
static inline void transport_move(Transport *t, Message *messages, int count) {
#ifdef WITH_MPI
    if (t->w->mpi) {
        mpi_move(t, messages, count, false, (int)t->channel * 2);
        return;
    }
#endif
    sockets_move(t, messages, count, false);
}

__attribute__((noreturn)) static inline void transport_sizes_differ(const Transport *t, int from, size_t sent,
                                                                    size_t expected) {
    die("rank %d sends %zu bytes where rank %d receives %zu: they do not take the same steps", t->first + from, sent,
        t->first + t->me, expected);
}

/* Sends to one member, and returns when the bytes may be changed; or when the run is over, with COMM_OVER if the
 * other has not taken them. It must receive as many. By MPI the data waits for the receiver's word that it is ready,
 * so that what nobody receives is never under way. */
static inline CommStatus transport_send(Transport *t, const void *data, size_t bytes, int to) {
    uint64_t size = bytes;
    Message body = message_to(to, data, bytes), head = message_to(to, &size, sizeof size);
#ifdef WITH_MPI
    if (t->w->mpi) {
        head = message_from(to, &size, sizeof size);
        if (mpi_move(t, &head, 1, true, (int)t->channel * 2 + 1) == COMM_OVER) return COMM_OVER;
        if (size != bytes) transport_sizes_differ(t, t->me, bytes, (size_t)size);
        return mpi_move(t, &body, 1, true, (int)t->channel * 2);
    }
#endif
    if (sockets_move(t, &head, 1, true) == COMM_OVER) return COMM_OVER;
    return sockets_move(t, &body, 1, true);
}

/* The other side of transport_send. COMM_OVER: the run is over, and nothing came. */
static inline CommStatus transport_receive(Transport *t, void *data, size_t bytes, int from) {
    uint64_t size = bytes;
    Message body = message_from(from, data, bytes), head = message_from(from, &size, sizeof size);
#ifdef WITH_MPI
    if (t->w->mpi) {
        head = message_to(from, &size, sizeof size);
        mpi_advance(t, &body, 1, (int)t->channel * 2);  // posted before the sender hears that it is
        mpi_move(t, &head, 1, false, (int)t->channel * 2 + 1);
        return mpi_move(t, &body, 1, true, (int)t->channel * 2);
    }
#endif
    if (sockets_move(t, &head, 1, true) == COMM_OVER) return COMM_OVER;
    if (size != bytes) transport_sizes_differ(t, from, (size_t)size, bytes);
    return sockets_move(t, &body, 1, true);
}

#endif
