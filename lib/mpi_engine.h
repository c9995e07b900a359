/* MPI's start and end, in a program built with it (WITH_MPI) and started by mpirun. What is moved by it:
 * lib/transport.h. */
#ifndef LIB_MPI_ENGINE_H
#define LIB_MPI_ENGINE_H

#include "error.h"

#ifdef WITH_MPI
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <pthread.h>

/* Several threads use MPI, one at a time (MPI_THREAD_SERIALIZED): held around every call. */
static pthread_mutex_t mpi_lock = PTHREAD_MUTEX_INITIALIZER;

static inline int mpi_begin(Error *err) {
    int provided = 0;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS)
        return error_set(err, "MPI does not start; see what mpirun says, or use --rendezvous HOST:PORT");
    if (provided < MPI_THREAD_SERIALIZED)
        return error_set(err, "this MPI cannot be used by several threads; use --rendezvous HOST:PORT instead");
    return 0;
}

/* Rank 0's bytes go to all; before there are other threads. */
static inline void mpi_share(void *data, size_t bytes) { MPI_Bcast(data, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD); }

static inline void mpi_end(void) { MPI_Finalize(); }
#else
static inline int mpi_begin(Error *err) { return error_set(err, "this program was built without MPI"); }
static inline void mpi_share(void *data, size_t bytes) { (void)data, (void)bytes; }
static inline void mpi_end(void) {}
#endif

#endif
