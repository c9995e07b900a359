/* A pool of threads that divide the items of a loop among them. Which thread takes which item is left to chance, so an
 * item's result may depend on nothing but the item. */
#ifndef LIB_WORKERS_H
#define LIB_WORKERS_H

#include "threads.h"

enum { WORKERS_MOST = 64 };

typedef struct {
    pthread_t threads[WORKERS_MOST];
    int count;  // threads beside the one that calls workers_run
    pthread_mutex_t mutex;
    pthread_cond_t begun, done;
    void (*run)(void *context, int item);
    void *context;
    int items, next, finished;
    bool stop;
} Workers;

/* Takes items until there are no more. The mutex is held on entry and on return. */
static inline void workers_take(Workers *w) {
    while (w->next < w->items) {
        const int item = w->next++;
        pthread_mutex_unlock(&w->mutex);
        w->run(w->context, item);
        pthread_mutex_lock(&w->mutex);
        if (++w->finished == w->items) pthread_cond_signal(&w->done);
    }
}

static inline void *workers_thread(void *argument) {
    Workers *w = argument;
    pthread_mutex_lock(&w->mutex);
    while (!w->stop) {
        workers_take(w);
        if (!w->stop) pthread_cond_wait(&w->begun, &w->mutex);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

/* Starts the pool: `threads` in all, the one that calls workers_run among them. */
static inline void workers_start(Workers *w, int threads) {
    memset(w, 0, sizeof *w);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->begun, NULL);
    pthread_cond_init(&w->done, NULL);
    w->count = threads < 1 ? 0 : threads - 1 < WORKERS_MOST ? threads - 1 : WORKERS_MOST;
    for (int i = 0; i < w->count; i++) thread_start(&w->threads[i], workers_thread, w);
}

/* Calls run(context, item) for each item from 0 to items - 1, on all threads of the pool, and returns when all are
 * done. */
static inline void workers_run(Workers *w, int items, void (*run)(void *context, int item), void *context) {
    pthread_mutex_lock(&w->mutex);
    w->run = run;
    w->context = context;
    w->items = items;
    w->next = w->finished = 0;
    if (w->count && items > 1) pthread_cond_broadcast(&w->begun);
    workers_take(w);
    while (w->finished < items) pthread_cond_wait(&w->done, &w->mutex);
    w->items = w->next = 0;
    pthread_mutex_unlock(&w->mutex);
}

/* Ends the threads. No workers_run may be under way. */
static inline void workers_stop(Workers *w) {
    pthread_mutex_lock(&w->mutex);
    w->stop = true;
    pthread_cond_broadcast(&w->begun);
    pthread_mutex_unlock(&w->mutex);
    for (int i = 0; i < w->count; i++) pthread_join(w->threads[i], NULL);
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->begun);
    pthread_cond_destroy(&w->done);
    memset(w, 0, sizeof *w);
}

#endif
