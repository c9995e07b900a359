/* Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 as a flag, for a program that wants to finish its step and save. A signal that was
 * ignored when the program began (nohup, a shell's background job) stays ignored. SIGUSR1 is for mpirun, which passes it on
 * to its processes and leaves them alone, where it kills them a second after Ctrl-C.
 *
 * A thread of its own waits for them; no handler ever runs, so none can meet a thread in the middle of anything. */
#ifndef LIB_INTERRUPT_H
#define LIB_INTERRUPT_H

#include "file.h"
#include "threads.h"

static bool interrupts_kept, interrupt_came;

/* Whether the program has been asked to stop. */
static inline bool interrupted(void) { return __atomic_load_n(&interrupt_came, __ATOMIC_ACQUIRE); }

/* Makes interrupted() true or false: for a program that takes no signals here, but stops its work for another reason. */
static inline void interrupt_set(bool stop) { __atomic_store_n(&interrupt_came, stop, __ATOMIC_RELEASE); }

static inline sigset_t interrupt_signals(void) {
    const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < 4; i++) {
        struct sigaction action;
        if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN) sigaddset(&set, numbers[i]);
    }
    return set;
}

static inline void *interrupt_wait(void *argument) {
    sigset_t set = interrupt_signals();
    (void)argument;
    for (int number; sigwait(&set, &number) == 0;) {
        if (__atomic_load_n(&interrupts_kept, __ATOMIC_ACQUIRE) && !interrupted()) {
            __atomic_store_n(&interrupt_came, true, __ATOMIC_RELEASE);
            continue;
        }
        if (interrupted()) signal(number, SIG_DFL);  // a second Ctrl-C stops at once
        files_abandon();
        pthread_sigmask(SIG_UNBLOCK, &set, NULL);
        raise(number);
        pthread_sigmask(SIG_BLOCK, &set, NULL);  // reached when the signal is ignored
    }
    return NULL;
}

/* Blocks the signals and starts the thread that waits for them. SIGPIPE is ignored: a closed stderr is no reason to
 * stop. To be called before any other thread exists, because threads inherit the signal mask. Until interrupts_keep the
 * signals keep their default effect. */
static inline void interrupts_take(void) {
    pthread_t thread;
    sigset_t set = interrupt_signals();
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    thread_start(&thread, interrupt_wait, NULL);
    pthread_detach(thread);
}

/* From now on the first signal makes interrupted() true, and the second ends the program. */
static inline void interrupts_keep(void) { __atomic_store_n(&interrupts_kept, true, __ATOMIC_RELEASE); }

#endif
