/* Threads: how OpenMP's wait, and starting others. */
#ifndef LIB_THREADS_H
#define LIB_THREADS_H

#include "error.h"

#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

/* Called first in main. By default OpenMP's threads spin for long while they wait, which on a machine that does
 * anything else makes every step many times slower (seen here: 8.5 minutes instead of one); not spinning at all costs
 * 15 % on an idle one. So they spin briefly. They read their policy before main: the program sets it and starts
 * itself again, once; whoever has chosen a policy keeps it. */
static inline void threads_wait_politely(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME")) return;
    bool set = setenv("GOMP_SPINCOUNT", "20000", 1) == 0 && setenv("KMP_BLOCKTIME", "1", 1) == 0;  // GNU's, LLVM's
    if (set) execv("/proc/self/exe", argv);
    /* where that fails the program goes on with what it has */
}

/* count 0: one per processor. */
static inline void threads_use(int count) {
    if (count > 0) omp_set_num_threads(count);
}

/* A thread that leaves signals to the others. */
static inline void thread_start(pthread_t *thread, void *(*run)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) die("cannot start a thread: %s", strerror(failed));
}

#endif
