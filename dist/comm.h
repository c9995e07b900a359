/* What the data-parallel processes (ranks) of one training run do together: sums, gathering, agreement, failing.
 *
 *     Comm c;
 *     die_if(comm_init(&c, &err), &err);      // rank 0 of 1, unless mpirun or srun started several
 *     comm_check_same(&c, settings);          // ends all ranks where one differs from rank 0
 *     die_if(comm_use_device(&c, op, &err), &err);
 *     comm_all_reduce(&c, gradients, n);      // started, not waited for
 *     ... compute ...
 *     comm_finish(&c);                        // from here on op sees the sums
 *     comm_close(&c);
 *
 * All ranks make the same calls in the same order. Gradients go through NCCL where every rank has a GPU of its own and
 * the library is there. Otherwise they go through the host's memory and MPI: a worker thread makes the calls while the
 * caller computes (arrays on a GPU are moved by the caller, at once).
 *
 * die() on any rank says its sentence and ends all ranks. A rank that is killed is noticed by the launcher, which ends
 * the others. */
#ifndef DIST_COMM_H
#define DIST_COMM_H

#include "../kernels/ops.h"
#include "../lib/clock.h"
#include "../lib/file.h"
#include "../lib/hash.h"
#include "../lib/threads.h"
#include "mpi.h"
#include "nccl.h"

#include <sched.h>

typedef enum { COMM_REDUCE_SCATTER, COMM_ALL_REDUCE, COMM_ALL_GATHER, COMM_BROADCAST } CommKind;

/* A collective in the host's memory. n: floats of a sum (of each piece, for reduce-scatter), else bytes of a piece. */
typedef struct {
    CommKind kind;
    void *buffer;
    size_t n;
} CommJob;

enum { COMM_JOBS = 256 };

typedef struct Comm {
    int rank, ranks;
    int local_rank, local_ranks;  // among the ranks of this machine
    int sharing;                  // ranks that run on the same processor cores as this one, itself included
    const char *engine;           // none, MPI or NCCL
    const Ops *op;
    double seconds_waited;  // in which the caller had nothing to do but wait for MPI (NCCL is not timed)
    NcclGroup *nccl;        // NULL: the engine is not NCCL
    pthread_t worker;
    pthread_mutex_t lock;  // of all below
    pthread_cond_t changed;
    CommJob jobs[COMM_JOBS];  // job number i is at i % COMM_JOBS
    uint64_t started, done;   // jobs given to the worker, and finished by it
    bool closing;
    float *parts;  // the worker's: what other ranks sent for a sum
    size_t parts_bytes;
    char *staging;  // copies of arrays on a GPU, in the host's memory
    size_t staging_bytes;
} Comm;

/* ---- failing ---- */

static const Comm *comm_world;  // for die(), which has no arguments of ours; NULL with a single rank

/* What die() does with its sentence: says which rank it is, and ends all of them. */
static void comm_die(const char *sentence) {
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    report_error("rank %d of %d (on %s): %s", comm_world->rank, comm_world->ranks, host, sentence);
    files_abandon();
    if (comm_world->nccl) nccl_abort(comm_world->nccl);
    mpi_abort();
}

/* ---- the worker: collectives in the host's memory ---- */

/* Grows a buffer; its contents are lost. */
static inline void *comm_grow(void *buffer, size_t *capacity, size_t bytes) {
    if (bytes <= *capacity) return buffer;
    free(buffer);
    *capacity = bytes;
    return xmalloc(bytes);
}

/* sum[i] = parts[0][i] + parts[1][i] + ...: in this order on every rank. */
static inline void comm_add(float *sum, const float *parts, int ranks, size_t n) {
    memcpy(sum, parts, n * sizeof *sum);
    for (int r = 1; r < ranks; r++)
        for (size_t i = 0; i < n; i++) sum[i] += parts[(size_t)r * n + i];
}

static inline void host_reduce_scatter(Comm *c, float *buffer, size_t piece) {
    if (!piece) return;
    c->parts = comm_grow(c->parts, &c->parts_bytes, piece * c->ranks * sizeof *buffer);
    mpi_all_to_all(c->parts, buffer, piece);
    comm_add(buffer + c->rank * piece, c->parts, c->ranks, piece);
}

/* Equal pieces are reduced and gathered; each rank adds up the few elements that are left over by itself. */
static inline void host_all_reduce(Comm *c, float *buffer, size_t n) {
    size_t piece = n / c->ranks, rest = n - piece * c->ranks;
    float *tail = buffer + piece * c->ranks;
    host_reduce_scatter(c, buffer, piece);
    if (piece) mpi_all_gather(buffer, piece * sizeof *buffer);
    if (!rest) return;
    c->parts = comm_grow(c->parts, &c->parts_bytes, rest * c->ranks * sizeof *buffer);
    memcpy(c->parts + c->rank * rest, tail, rest * sizeof *tail);
    mpi_all_gather(c->parts, rest * sizeof *tail);
    comm_add(tail, c->parts, c->ranks, rest);
}

static inline void comm_run(Comm *c, const CommJob *job) {
    switch (job->kind) {
    case COMM_REDUCE_SCATTER: host_reduce_scatter(c, job->buffer, job->n); break;
    case COMM_ALL_REDUCE: host_all_reduce(c, job->buffer, job->n); break;
    case COMM_ALL_GATHER: mpi_all_gather(job->buffer, job->n); break;
    case COMM_BROADCAST: mpi_broadcast(job->buffer, job->n); break;
    }
}

static inline void *comm_work(void *argument) {
    Comm *c = argument;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (c->done == c->started && !c->closing) pthread_cond_wait(&c->changed, &c->lock);
        if (c->done == c->started) break;
        CommJob job = c->jobs[c->done % COMM_JOBS];
        pthread_mutex_unlock(&c->lock);
        comm_run(c, &job);
        pthread_mutex_lock(&c->lock);
        c->done++;
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static inline void comm_start(Comm *c, CommKind kind, void *buffer, size_t n) {
    pthread_mutex_lock(&c->lock);
    while (c->started - c->done == COMM_JOBS) pthread_cond_wait(&c->changed, &c->lock);
    c->jobs[c->started++ % COMM_JOBS] = (CommJob){kind, buffer, n};
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

/* ---- values in the host's memory; finished when the call returns ---- */

/* all [ranks, bytes]: what every rank gave. */
static inline void comm_gather_host(Comm *c, const void *mine, size_t bytes, void *all) {
    memcpy((char *)all + bytes * c->rank, mine, bytes);
    if (c->ranks == 1) return;
    comm_start(c, COMM_ALL_GATHER, all, bytes);
    comm_wait(c);
}

/* Rank 0's bytes go to all. */
static inline void comm_broadcast_host(Comm *c, void *data, size_t bytes) {
    if (c->ranks == 1) return;
    comm_start(c, COMM_BROADCAST, data, bytes);
    comm_wait(c);
}

/* Returns when all ranks have called it. */
static inline void comm_barrier(Comm *c) {
    char mine = 0, *all = xmalloc(c->ranks);
    comm_gather_host(c, &mine, 1, all);
    free(all);
}

/* ---- beginning and agreeing ---- */

/* Counts the ranks of this machine that run on the same processor cores. */
static inline int comm_count_sharing(Comm *c) {
    struct {
        uint64_t host, cores;
    } mine, *all = xcalloc(c->ranks, sizeof mine);
    char host[256] = "";
    cpu_set_t cores;
    int sharing = 0;
    gethostname(host, sizeof host - 1);
    CPU_ZERO(&cores);
    sched_getaffinity(0, sizeof cores, &cores);
    mine.host = hash_bytes(HASH_BEGIN, host, strlen(host));
    mine.cores = hash_bytes(HASH_BEGIN, &cores, sizeof cores);
    comm_gather_host(c, &mine, sizeof mine, all);
    for (int r = 0; r < c->ranks; r++) sharing += all[r].host == mine.host && all[r].cores == mine.cores;
    free(all);
    return sharing;
}

/* Finds out which rank this process is. With several, die() ends all of them from here to comm_close. */
static inline int comm_init(Comm *c, Error *err) {
    MpiRank r = {0, 1, 0, 1};
    *c = (Comm){.ranks = 1, .local_ranks = 1, .sharing = 1, .engine = "none"};
    if (launched_ranks() == 1) return 0;
    if (mpi_begin(&r, err)) return -1;
    c->rank = r.rank;
    c->ranks = r.ranks;
    c->local_rank = r.local_rank;
    c->local_ranks = r.local_ranks;
    c->engine = "MPI";
    comm_world = c;
    die_hook = comm_die;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    thread_start(&c->worker, comm_work, c);
    c->sharing = comm_count_sharing(c);
    return 0;
}

/* "another --lr than rank 0: 0.002 instead of 0.001": what the first line that differs says. Lines are "key = value". */
static inline void comm_difference(char *out, size_t size, char *mine, char *theirs) {
    char *rest_mine = NULL, *rest_theirs = NULL;
    char *a = strtok_r(mine, "\n", &rest_mine), *b = strtok_r(theirs, "\n", &rest_theirs);
    while (a && b && !strcmp(a, b)) {
        a = strtok_r(NULL, "\n", &rest_mine);
        b = strtok_r(NULL, "\n", &rest_theirs);
    }
    char *value_a = a ? strstr(a, " = ") : NULL, *value_b = b ? strstr(b, " = ") : NULL;
    if (!value_a || !value_b || value_a - a != value_b - b || strncmp(a, b, value_a - a))
        snprintf(out, size, "another build than rank 0");
    else
        snprintf(out, size, "another %.*s than rank 0: %.300s instead of %.300s", (int)(value_a - a), a, value_a + 3,
                 value_b + 3);
}

/* Ends all ranks with a sentence where this rank's settings, lines of "key = value", are not those of rank 0. */
static inline void comm_check_same(Comm *c, const char *settings) {
    char what[700];
    uint64_t size = strlen(settings) + 1;
    comm_broadcast_host(c, &size, sizeof size);
    char *theirs = xcalloc(size + 1, 1), *mine = xstrdup(settings);
    if (c->rank == 0) memcpy(theirs, settings, size);
    comm_broadcast_host(c, theirs, size);
    if (strcmp(mine, theirs)) {
        comm_difference(what, sizeof what, mine, theirs);
        die("this rank has %s; start all ranks alike", what);
    }
    comm_barrier(c);  // nobody goes on where one differs
    free(theirs);
    free(mine);
}

/* ---- the device ---- */

/* Whether every rank has a GPU that no other has, and NCCL. The answer is the same on all ranks. */
static inline bool comm_gpus_differ(Comm *c, const Ops *op) {
    typedef struct {
        uint64_t host;
        char place[GPU_PLACE_BYTES];  // "": a CPU, or no NCCL
    } Gpu;
    char host[256] = "";
    Gpu mine = {0}, *all = xcalloc(c->ranks, sizeof mine);
    bool differ = true;
    gethostname(host, sizeof host - 1);
    mine.host = hash_bytes(HASH_BEGIN, host, strlen(host));
    if (op->host_memory || !nccl_place(op, mine.place)) mine.place[0] = '\0';
    comm_gather_host(c, &mine, sizeof mine, all);
    for (int a = 0; a < c->ranks; a++) {
        differ = differ && all[a].place[0];
        for (int b = 0; b < a; b++)
            differ = differ && (all[a].host != all[b].host || strcmp(all[a].place, all[b].place));
    }
    free(all);
    return differ;
}

/* The arrays of the collectives below are memory of op, on every rank; all ranks call this together. */
static inline int comm_use_device(Comm *c, const Ops *op, Error *err) {
    char id[NCCL_ID_BYTES] = "";
    c->op = op;
    if (c->ranks == 1 || !comm_gpus_differ(c, op)) return 0;
    if (c->rank == 0 && nccl_unique_id(id, err)) return -1;
    comm_broadcast_host(c, id, sizeof id);
    c->nccl = nccl_join(op, id, c->rank, c->ranks, err);
    if (!c->nccl) return -1;
    c->engine = "NCCL";
    return 0;
}

/* ---- collectives on arrays of the device: started, not waited for ---- */

/* Starts a collective on `bytes` of the device's memory; on a GPU without NCCL, by way of the host's memory. */
static inline void comm_start_on_device(Comm *c, CommKind kind, void *buffer, size_t bytes, size_t n) {
    if (c->op->host_memory) {
        comm_start(c, kind, buffer, n);
        return;
    }
    c->staging = comm_grow(c->staging, &c->staging_bytes, bytes);
    c->op->download(c->staging, buffer, bytes);
    comm_start(c, kind, c->staging, n);
    comm_wait(c);
    c->op->upload(buffer, c->staging, bytes);
}

/* buffer fp32 [ranks, piece]: piece `rank` becomes the sum over the ranks, added in their order (NCCL: in one of its
 * own); the others are undefined afterwards. */
static inline void comm_reduce_scatter(Comm *c, float *buffer, size_t piece) {
    if (c->nccl)
        nccl_reduce_scatter(c->nccl, buffer, piece);
    else if (c->ranks > 1)
        comm_start_on_device(c, COMM_REDUCE_SCATTER, buffer, piece * c->ranks * sizeof *buffer, piece);
}

/* buffer fp32 [n] becomes the sum over the ranks, with the bits of comm_reduce_scatter. */
static inline void comm_all_reduce(Comm *c, float *buffer, size_t n) {
    if (c->nccl)
        nccl_all_reduce(c->nccl, buffer, n);
    else if (c->ranks > 1)
        comm_start_on_device(c, COMM_ALL_REDUCE, buffer, n * sizeof *buffer, n);
}

/* buffer [ranks, piece_bytes]: every rank's piece goes to all. */
static inline void comm_all_gather(Comm *c, void *buffer, size_t piece_bytes) {
    if (c->nccl)
        nccl_all_gather(c->nccl, buffer, piece_bytes);
    else if (c->ranks > 1)
        comm_start_on_device(c, COMM_ALL_GATHER, buffer, piece_bytes * c->ranks, piece_bytes);
}

/* What op is given from now on sees the results of everything that was started. Only on a CPU does the host wait. */
static inline void comm_finish(Comm *c) {
    if (c->nccl)
        nccl_finish(c->nccl);
    else if (c->ranks > 1)
        comm_wait(c);
}

/* All ranks together, after everything that was started has finished. */
static inline void comm_close(Comm *c) {
    if (c->ranks == 1) return;
    comm_barrier(c);
    die_hook = NULL;
    if (c->nccl) nccl_leave(c->nccl);
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->worker, NULL);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    free(c->parts);
    free(c->staging);
    mpi_end();
    *c = (Comm){.ranks = 1, .local_ranks = 1, .sharing = 1, .engine = "none"};
}

#endif
