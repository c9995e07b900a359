/* MPI, for programs built with it (WITH_MPI): starting, ending, and collectives in the host's memory.
 *
 * The collectives are called by one thread at a time (the worker of dist/comm.h). They poll with sleeps instead of
 * spinning, to leave the cores to the computation. Sums are taken in rank order, so their bits depend neither on MPI's choice of an
 * algorithm nor on how an array is divided. */
#ifndef DIST_MPI_H
#define DIST_MPI_H

#include "../lib/error.h"

#include <limits.h>

/* The number of processes that the launcher has started; 1 without a launcher. */
static inline int launched_ranks(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    int ranks = 1;
    for (int i = 0; i < 3 && ranks <= 1; i++) ranks = getenv(names[i]) ? atoi(getenv(names[i])) : 1;
    return ranks > 1 ? ranks : 1;
}

typedef struct {
    int rank, ranks, local_rank, local_ranks;  // local: among the ranks of this machine
} MpiRank;

#ifdef WITH_MPI
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <pthread.h>
#include <time.h>

/* Threads use MPI one at a time (MPI_THREAD_SERIALIZED): the lock is held around every call. */
static pthread_mutex_t mpi_lock = PTHREAD_MUTEX_INITIALIZER;

static inline int mpi_begin(MpiRank *r, Error *err) {
    int provided = 0, launched = launched_ranks();
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS)
        return error_set(err, "MPI_Init failed; see mpirun's output");
    if (provided < MPI_THREAD_SERIALIZED)
        return error_set(err, "this MPI lacks MPI_THREAD_SERIALIZED; use another build of it");
    MPI_Comm_rank(MPI_COMM_WORLD, &r->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &r->ranks);
    if (r->ranks != launched)
        return error_set(
            err,
            "%d processes were started, but MPI sees %d; start them with the mpirun of the MPI that this "
            "program was built with, or with srun --mpi=pmix",
            launched, r->ranks);
    MPI_Comm local;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, r->rank, MPI_INFO_NULL, &local);
    MPI_Comm_rank(local, &r->local_rank);
    MPI_Comm_size(local, &r->local_ranks);
    MPI_Comm_free(&local);
    return 0;
}

static inline void mpi_end(void) { MPI_Finalize(); }

/* Ends all ranks. Another thread may be stuck inside MPI, so the lock is given up after two seconds. */
__attribute__((noreturn)) static inline void mpi_abort(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 2;
    pthread_mutex_timedlock(&mpi_lock, &until);
    MPI_Abort(MPI_COMM_WORLD, 1);
    _Exit(1);
}

static inline void mpi_wait(MPI_Request *request) {
    struct timespec pause = {0, 1000};
    for (int done = 0;;) {
        pthread_mutex_lock(&mpi_lock);
        MPI_Test(request, &done, MPI_STATUS_IGNORE);
        pthread_mutex_unlock(&mpi_lock);
        if (done) return;
        nanosleep(&pause, NULL);
        if (pause.tv_nsec < 100000) pause.tv_nsec += pause.tv_nsec / 4 + 1000;
    }
}

static inline int mpi_count(size_t n) {
    if (n > INT_MAX) die("internal error: %zu elements in one message", n);
    return (int)n;
}

/* All-gather of buffer [ranks, bytes]; this rank's piece must be in place. */
static inline void mpi_all_gather(void *buffer, size_t bytes) {
    MPI_Request request;
    pthread_mutex_lock(&mpi_lock);
    MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, buffer, mpi_count(bytes), MPI_BYTE, MPI_COMM_WORLD, &request);
    pthread_mutex_unlock(&mpi_lock);
    mpi_wait(&request);
}

/* All-to-all of buffer [ranks, piece]: parts[r] becomes rank r's piece for this rank. */
static inline void mpi_all_to_all(float *parts, const float *buffer, size_t piece) {
    MPI_Request request;
    pthread_mutex_lock(&mpi_lock);
    MPI_Ialltoall(buffer, mpi_count(piece), MPI_FLOAT, parts, mpi_count(piece), MPI_FLOAT, MPI_COMM_WORLD, &request);
    pthread_mutex_unlock(&mpi_lock);
    mpi_wait(&request);
}

/* Broadcasts from rank 0. */
static inline void mpi_broadcast(void *data, size_t bytes) {
    MPI_Request request;
    pthread_mutex_lock(&mpi_lock);
    MPI_Ibcast(data, mpi_count(bytes), MPI_BYTE, 0, MPI_COMM_WORLD, &request);
    pthread_mutex_unlock(&mpi_lock);
    mpi_wait(&request);
}
#else
static inline int mpi_begin(MpiRank *r, Error *err) {
    (void)r;
    return error_set(err,
                     "this is one of %d processes, but the program was built without MPI; install Open MPI "
                     "(scripts/deps.sh mpi), run make again, and start with mpirun",
                     launched_ranks());
}
static inline void mpi_end(void) {}
__attribute__((noreturn)) static inline void mpi_abort(void) { _Exit(1); }
static inline void mpi_all_gather(void *buffer, size_t bytes) { (void)buffer, (void)bytes; }
static inline void mpi_all_to_all(float *parts, const float *buffer, size_t n) { (void)parts, (void)buffer, (void)n; }
static inline void mpi_broadcast(void *data, size_t bytes) { (void)data, (void)bytes; }
#endif

#endif
