/* What ranks do together with arrays on their devices: sums, gathering, broadcasts (Comm), and sending from one to
 * another (Link).
 *
 *     Comm c;
 *     comm_open(&c, &w, 0, w.ranks, op, &err);
 *     comm_all_reduce(&c, gradients, n);     // started, not waited for
 *     ... compute ...
 *     comm_finish(&c);                       // from here on op sees the sums
 *     comm_close(&c);
 *
 * The members of a group make the same calls in the same order. Engines: NCCL between GPUs, where every member has
 * its own and the library is there; otherwise, through the host's memory, MPI under mpirun and sockets elsewhere,
 * with a thread that does the work while the caller computes (arrays on a GPU are moved by the caller, at once). */
#ifndef LIB_COMM_H
#define LIB_COMM_H

#include "nccl.h"
#include "../kernels/ops.h"
#include "../lib/transport.h"

typedef enum { COMM_REDUCE, COMM_ALL_REDUCE, COMM_GATHER, COMM_BROADCAST } CommKind;

/* Something to do in the host's memory. n: floats when a sum, else bytes. */
typedef struct {
    CommKind kind;
    char *buffer;
    size_t n;
    int root;
} CommJob;

enum { COMM_JOBS = 256, COMM_CHUNK_BYTES = 4 << 20 };

typedef struct Comm {
    int rank, ranks;     // within the group
    const char *engine;  // none, sockets, MPI, NCCL
    const Ops *op;
    double seconds_busy;    // communication in all; what is through, as of comm_finish
    double seconds_waited;  // of it, how long the caller (with NCCL: the device) had to wait for its end
    NcclGroup *group;       // NULL: the engine is not NCCL
    Transport transport;
    pthread_t worker;
    pthread_mutex_t lock;  // of all below
    pthread_cond_t changed;
    CommJob jobs[COMM_JOBS];  // the job of number i at i % COMM_JOBS
    uint64_t started, done;   // how many have been given, and are through
    bool closing;
    Message *messages;  // [2 * ranks], the worker's
    float *parts;       // what other members sent for a sum, `part` floats of each; the worker's
    size_t part;
    char *staging;  // what is on a GPU, in the host's memory
    size_t staging_bytes;
} Comm;

/* Grows a buffer of the host's memory; its contents are lost. */
static inline char *staging_for(char **buffer, size_t *capacity, size_t bytes) {
    if (bytes > *capacity) {
        free(*buffer);
        *buffer = (char *)xmalloc(bytes);
        *capacity = bytes;
    }
    return *buffer;
}

/* ---- the algorithms ---- every member is responsible for one piece of an array and exchanges pieces with all others
 * at once: as many bytes per member as in a ring, without its many steps. */

/* Where the piece of a member begins among n elements; the first n % ranks pieces have one more. */
static inline size_t piece_begin(const Comm *c, size_t n, int member) {
    size_t ranks = (size_t)c->ranks, m = (size_t)member, more = n % ranks;
    return n / ranks * m + (m < more ? m : more);
}

static inline size_t piece_size(const Comm *c, size_t n, int member) {
    return piece_begin(c, n, member + 1) - piece_begin(c, n, member);
}

/* The part from `at` on, at most `most` elements, of a member's piece: its size; *begin: where. */
static inline size_t piece_part(const Comm *c, size_t n, int member, size_t at, size_t most, size_t *begin) {
    size_t size = piece_size(c, n, member), left = size > at ? size - at : 0;
    *begin = piece_begin(c, n, member) + at;
    return left < most ? left : most;
}

/* sum = parts[0] + parts[1] + ..., in this order, whoever adds: so the bits do not depend on how an array is cut. */
static inline void add_in_order(const Comm *c, float *own, size_t n) {
    float *sum = c->rank ? c->parts : own;
    for (int r = 1; r < c->ranks; r++) {
        const float *part = r == c->rank ? own : c->parts + (size_t)r * c->part;
        for (size_t i = 0; i < n; i++) sum[i] += part[i];
    }
    if (sum != own) memcpy(own, sum, n * sizeof *own);
}

/* This member's piece of n floats becomes the sum over all members; the other pieces stay as they were. */
static inline void host_reduce(Comm *c, float *buffer, size_t n) {
    if (!c->parts) c->parts = (float *)xmalloc((size_t)c->ranks * c->part * sizeof *c->parts);
    for (size_t at = 0; at < piece_size(c, n, 0); at += c->part) {
        size_t begin, own, mine = piece_part(c, n, c->rank, at, c->part, &own);
        int count = 0;
        for (int r = 0; r < c->ranks; r++) {
            if (r == c->rank) continue;
            size_t theirs = piece_part(c, n, r, at, c->part, &begin);
            if (theirs) c->messages[count++] = message_to(r, buffer + begin, theirs * sizeof *buffer);
            if (mine) c->messages[count++] = message_from(r, c->parts + (size_t)r * c->part, mine * sizeof *buffer);
        }
        transport_move(&c->transport, c->messages, count);
        add_in_order(c, buffer + own, mine);
    }
}

/* Everyone gets every member's piece of n elements of `unit` bytes. */
static inline void host_gather(Comm *c, char *buffer, size_t n, size_t unit) {
    size_t own = piece_begin(c, n, c->rank) * unit, mine = piece_size(c, n, c->rank) * unit;
    int count = 0;
    for (int r = 0; r < c->ranks; r++) {
        if (r == c->rank) continue;
        size_t theirs = piece_size(c, n, r) * unit;
        if (mine) c->messages[count++] = message_to(r, buffer + own, mine);
        if (theirs) c->messages[count++] = message_from(r, buffer + piece_begin(c, n, r) * unit, theirs);
    }
    transport_move(&c->transport, c->messages, count);
}

/* The root gives every member its piece; then all give theirs to all (van de Geijn's broadcast): the root sends twice
 * the bytes, whatever the number of members. */
static inline void host_broadcast(Comm *c, char *buffer, size_t bytes, int root) {
    int count = 0;
    for (int r = 0; r < c->ranks && c->rank == root; r++)
        if (r != root && piece_size(c, bytes, r))
            c->messages[count++] = message_to(r, buffer + piece_begin(c, bytes, r), piece_size(c, bytes, r));
    size_t mine = piece_size(c, bytes, c->rank);
    if (c->rank != root && mine)
        c->messages[count++] = message_from(root, buffer + piece_begin(c, bytes, c->rank), mine);
    transport_move(&c->transport, c->messages, count);
    host_gather(c, buffer, bytes, 1);
}

/* ---- the worker ---- */

static inline void comm_run(Comm *c, const CommJob *job) {
    if (job->kind == COMM_REDUCE || job->kind == COMM_ALL_REDUCE)
        host_reduce(c, (float *)(void *)job->buffer, job->n);
    if (job->kind == COMM_ALL_REDUCE) host_gather(c, job->buffer, job->n, sizeof(float));
    if (job->kind == COMM_GATHER) host_gather(c, job->buffer, job->n, 1);
    if (job->kind == COMM_BROADCAST) host_broadcast(c, job->buffer, job->n, job->root);
}

static inline void *comm_work(void *argument) {
    Comm *c = (Comm *)argument;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (c->done == c->started && !c->closing) pthread_cond_wait(&c->changed, &c->lock);
        if (c->done == c->started) break;
        CommJob job = c->jobs[c->done % COMM_JOBS];
        pthread_mutex_unlock(&c->lock);
        double begin = seconds_now();
        comm_run(c, &job);
        pthread_mutex_lock(&c->lock);
        c->seconds_busy += seconds_now() - begin;
        c->done++;
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static inline void comm_start(Comm *c, CommKind kind, void *buffer, size_t n, int root) {
    pthread_mutex_lock(&c->lock);
    while (c->started - c->done == COMM_JOBS) pthread_cond_wait(&c->changed, &c->lock);
    CommJob *job = &c->jobs[c->started++ % COMM_JOBS];
    job->kind = kind;
    job->buffer = (char *)buffer;
    job->n = n;
    job->root = root;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static inline void comm_wait(Comm *c) {
    double begin = seconds_now();
    pthread_mutex_lock(&c->lock);
    while (c->done < c->started) pthread_cond_wait(&c->changed, &c->lock);
    c->seconds_waited += seconds_now() - begin;
    pthread_mutex_unlock(&c->lock);
}

/* Starts a job on an array of the device. On a GPU the `before` bytes from `before_at` on are fetched first, and the
 * `after` bytes from `after_at` on are put back when it is done. */
typedef struct {
    size_t bytes, before_at, before, after_at, after;
} CommStage;

static inline void comm_start_staged(Comm *c, CommKind kind, void *buffer, size_t n, int root, CommStage s) {
    if (c->op->host_memory) {
        comm_start(c, kind, buffer, n, root);
        return;
    }
    char *host = staging_for(&c->staging, &c->staging_bytes, s.bytes);
    if (s.before) c->op->download(host + s.before_at, (char *)buffer + s.before_at, s.before);
    comm_start(c, kind, host, n, root);
    comm_wait(c);
    if (s.after) c->op->upload((char *)buffer + s.after_at, host + s.after_at, s.after);
}

/* all [ranks, bytes], in the host's memory as `mine`: what every member gave. Done when it returns. */
static inline void comm_gather_host(Comm *c, const void *mine, size_t bytes, void *all) {
    memcpy((char *)all + bytes * (size_t)c->rank, mine, bytes);
    if (c->ranks == 1) return;
    comm_start(c, COMM_GATHER, all, bytes * (size_t)c->ranks, 0);
    comm_wait(c);
}

static inline void comm_barrier(Comm *c) {
    char mine = 0, *all = (char *)xmalloc((size_t)c->ranks);
    comm_gather_host(c, &mine, 1, all);
    free(all);
}

/* ---- NCCL ---- */

typedef struct {
    uint64_t machine;
    char place[NCCL_PLACE_BYTES];  // the GPU's; "": a CPU, or no NCCL
} GpuPlace;

/* Every member has a GPU that no other has, and NCCL. The answer is the same on all. */
static inline bool comm_gpus_differ(Comm *c, const World *w, const Ops *op) {
    GpuPlace mine, *all = (GpuPlace *)xcalloc((size_t)c->ranks, sizeof mine);
    bool differ = true;
    memset(&mine, 0, sizeof mine);
    mine.machine = w->peers[w->rank].machine;
    if (op->host_memory || !cuda_nccl() || !cuda_nccl()->place(op, mine.place)) mine.place[0] = '\0';
    comm_gather_host(c, &mine, sizeof mine, all);
    for (int a = 0; a < c->ranks; a++) {
        differ = differ && all[a].place[0];
        for (int b = 0; b < a; b++)
            differ = differ && (all[a].machine != all[b].machine || strcmp(all[a].place, all[b].place));
    }
    free(all);
    return differ;
}

/* Connects the GPUs of c's members, called by all of them. NULL: they do not use NCCL. */
static inline int comm_join_gpus(NcclGroup **group, Comm *c, const World *w, const Ops *op, bool to_wait,
                                 Error *err) {
    *group = NULL;
    if (!comm_gpus_differ(c, w, op)) return 0;
    char key[NCCL_KEY_BYTES], *keys = (char *)xcalloc((size_t)c->ranks, sizeof key);
    memset(key, 0, sizeof key);
    int status = c->rank == 0 ? cuda_nccl()->key_make(key, err) : 0;
    if (status == 0) {
        comm_gather_host(c, key, sizeof key, keys);
        *group = cuda_nccl()->join(op, keys, c->rank, c->ranks, to_wait, err);
        status = *group ? 0 : -1;
    }
    free(keys);
    return status;
}

/* ---- a group ---- */

/* Ranks first .. first+count-1 of the world open it together; their arrays are memory of op. -1: wrong usage. */
static inline int comm_open(Comm *c, World *w, int first, int count, const Ops *op, Error *err) {
    memset(c, 0, sizeof *c);
    c->op = op;
    c->ranks = count;
    c->rank = w->rank - first;
    c->engine = "none";
    if (count == 1 && c->rank == 0) return 0;
    if (transport_open(&c->transport, w, first, count, err)) return -1;
    c->engine = w->mpi ? "MPI" : "sockets";
    c->messages = (Message *)xmalloc((size_t)count * 2 * sizeof *c->messages);
    c->part = COMM_CHUNK_BYTES / sizeof *c->parts / (size_t)count;
    pthread_mutex_init(&c->lock, NULL);
    condition_make(&c->changed);
    thread_start(&c->worker, comm_work, c);
    if (comm_join_gpus(&c->group, c, w, op, false, err)) return -1;
    if (c->group) c->engine = "NCCL";
    return 0;
}

/* buffer fp32 [ranks, piece]: piece `rank` becomes the sum over the members, added in their order (NCCL: in one of
 * its own); the others are undefined after. Started, not waited for, as the next three. */
static inline void comm_reduce_scatter(Comm *c, float *buffer, size_t piece) {
    size_t n = piece * (size_t)c->ranks, bytes = piece * sizeof *buffer;
    CommStage s = {n * sizeof *buffer, 0, n * sizeof *buffer, bytes * (size_t)c->rank, bytes};
    if (c->group)
        cuda_nccl()->reduce_scatter(c->group, buffer, piece);
    else if (c->ranks > 1)
        comm_start_staged(c, COMM_REDUCE, buffer, n, 0, s);
}

/* buffer fp32 [n] becomes the sum over the members: the bits of comm_reduce_scatter, but for NCCL. */
static inline void comm_all_reduce(Comm *c, float *buffer, size_t n) {
    CommStage s = {n * sizeof *buffer, 0, n * sizeof *buffer, 0, n * sizeof *buffer};
    if (c->group)
        cuda_nccl()->all_reduce(c->group, buffer, n);
    else if (c->ranks > 1)
        comm_start_staged(c, COMM_ALL_REDUCE, buffer, n, 0, s);
}

/* buffer [ranks, piece_bytes]: every member's piece goes to all. */
static inline void comm_all_gather(Comm *c, void *buffer, size_t piece_bytes) {
    size_t n = piece_bytes * (size_t)c->ranks;
    CommStage s = {n, piece_bytes * (size_t)c->rank, piece_bytes, 0, n};
    if (c->group)
        cuda_nccl()->all_gather(c->group, buffer, piece_bytes);
    else if (c->ranks > 1)
        comm_start_staged(c, COMM_GATHER, buffer, n, 0, s);
}

/* The bytes of member `root` go to all. */
static inline void comm_broadcast(Comm *c, void *buffer, size_t bytes, int root) {
    CommStage s = {bytes, 0, c->rank == root ? bytes : 0, 0, c->rank == root ? 0 : bytes};
    if (c->group)
        cuda_nccl()->broadcast(c->group, buffer, bytes, root);
    else if (c->ranks > 1)
        comm_start_staged(c, COMM_BROADCAST, buffer, bytes, root, s);
}

/* What op is asked for from now on sees the results of all that was started. The host waits only for the CPU's. */
static inline void comm_finish(Comm *c) {
    if (c->group)
        cuda_nccl()->finish(c->group, &c->seconds_busy, &c->seconds_waited);
    else if (c->ranks > 1)
        comm_wait(c);
}

/* All members; what was started is done first. */
static inline void comm_close(Comm *c) {
    if (c->ranks == 1) return;
    if (c->group) cuda_nccl()->leave(c->group);
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->worker, NULL);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    transport_close(&c->transport);
    free(c->messages);
    free(c->parts);
    free(c->staging);
    memset(c, 0, sizeof *c);
    c->ranks = 1;
}

/* ---- from one rank to another ---- */

/* Between any two ranks of the world. One thread may send while another receives. */
typedef struct Link {
    const char *engine;
    bool device_buffers;  // NCCL: link_send and link_receive take arrays of op; otherwise the host's memory
    World *w;
    NcclGroup *group;
    Transport sending, receiving;
} Link;

static inline bool link_over(void *link) { return world_over(((const Link *)link)->w); }

/* All ranks of the world together. */
static inline int link_open(Link *l, World *w, const Ops *op, Error *err) {
    Comm all;
    memset(l, 0, sizeof *l);
    l->w = w;
    l->engine = w->ranks == 1 ? "none" : w->mpi ? "MPI" : "sockets";
    if (transport_open(&l->sending, w, 0, w->ranks, err)) return -1;
    if (transport_open(&l->receiving, w, 0, w->ranks, err)) return -1;
    l->receiving.channel = l->sending.channel;  // the other ranks' sending
    if (w->ranks == 1) return 0;
    if (comm_open(&all, w, 0, w->ranks, &cpu_ops, err)) return -1;
    int status = comm_join_gpus(&l->group, &all, w, op, true, err);
    comm_close(&all);
    l->device_buffers = l->group != NULL;
    if (l->device_buffers) l->engine = "NCCL";
    return status;
}

/* Sends bytes of the host's memory to a rank; returns when they may be changed. The receiver asks for as many.
 * COMM_OVER: the run is over (world_finish), and they may not have gone out. */
static inline CommStatus link_send_host(Link *l, const void *data, size_t bytes, int to) {
    return transport_send(&l->sending, data, bytes, to);
}

/* Receives bytes into the host's memory; returns when they are there. COMM_OVER: the run is over, and they are not.
 */
static inline CommStatus link_receive_host(Link *l, void *data, size_t bytes, int from) {
    return transport_receive(&l->receiving, data, bytes, from);
}

/* The same for an array of the device when the link has device_buffers. A send waits for what op has been given so
 * far. */
static inline CommStatus link_send(Link *l, const void *buffer, size_t bytes, int to) {
    if (!l->device_buffers) return link_send_host(l, buffer, bytes, to);
    return cuda_nccl()->send(l->group, buffer, bytes, to, link_over, l) ? COMM_OK : COMM_OVER;
}

static inline CommStatus link_receive(Link *l, void *buffer, size_t bytes, int from) {
    if (!l->device_buffers) return link_receive_host(l, buffer, bytes, from);
    return cuda_nccl()->receive(l->group, buffer, bytes, from, link_over, l) ? COMM_OK : COMM_OVER;
}

/* What is received from now on waits for what op has been given so far: its buffers may still be read by that. Called
 * by the thread that uses op, while another may be receiving. */
static inline void link_after(Link *l) {
    if (l->device_buffers) cuda_nccl()->after(l->group);
}

static inline void link_close(Link *l) {
    if (l->group) cuda_nccl()->leave(l->group);
    transport_close(&l->sending);
    transport_close(&l->receiving);
    memset(l, 0, sizeof *l);
}

#endif
