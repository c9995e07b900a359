/* Threads: the OpenMP settings, and starting other threads. */
#ifndef LIB_THREADS_H
#define LIB_THREADS_H

#include "error.h"

#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

/* Makes OpenMP's threads spin only briefly while they wait; to be called in main right after program_begin. By
 * default they spin for long, which makes every step many times slower on a machine that is busy with something else
 * (seen: 8.5 minutes instead of one), while not spinning at all costs 15 % on an idle machine. The OpenMP runtime
 * reads its settings before main, so the program sets them in the environment and executes itself once more. A policy
 * that the user has set is kept. */
static inline void threads_wait_politely(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME")) return;
    bool set = setenv("GOMP_SPINCOUNT", "20000", 1) == 0 && setenv("KMP_BLOCKTIME", "1", 1) == 0;  // GNU's, LLVM's
    if (set) execv("/proc/self/exe", argv);
    /* if that fails, the program continues with the default policy */
}

/* Sets the number of OpenMP threads; 0 keeps OpenMP's default, one per processor. */
static inline void threads_use(int count) {
    if (count > 0) omp_set_num_threads(count);
}

/* Starts a thread with all signals blocked, so that other threads receive them; but not those of its own faults,
 * which would end the process without a word. */
static inline void thread_start(pthread_t *thread, void *(*run)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) die("cannot start a thread: %s", strerror(failed));
}

#endif
