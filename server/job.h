/* A job: one request on its way through the server.
 *
 *   connection (server/http.h)  reads the body, then suspends itself
 *   reader (server/request.h)   reads the fields, decodes and prepares the image
 *   engine (server/engine.h)    writes the program
 *   drawer (server/drawings.h)  compiles and draws it, and writes the answer; where nothing is compiled, the writer does that
 *   connection                 resumed, sends the answer
 *
 * A job belongs to one of these at a time; what several touch is below `lock`. Its connection and its worker each hold a
 * reference. Whoever fails a job that it works on hands it on to the writer, which lets go of all that are done; a cancelled job
 * that waits in a queue is failed and let go of by the watch (server/watch.h). */
#ifndef SERVER_JOB_H
#define SERVER_JOB_H

#include "../generate/prepare.h"
#include "../lib/clock.h"
#include "fields.h"
#include "routes.h"

typedef enum { GOES_ON, GONE, LATE } Cancelled;

/* One program of several for an image. */
typedef struct {
    char *text;  // allocated
    size_t bytes;
    double log_probability, score;  // NAN: not known
    bool compiled, clean;           // clean: it compiles without errors, where `compiled` says that TeX has run
    bool ended;
} Candidate;

typedef struct Job {
    int references;
    const Route *route;
    int64_t number;
    char *body, *content_type;
    size_t body_bytes, body_capacity;
    int beam_width;  // of the path /predict/N
    double arrived, deadline;
    Fields fields;
    struct Instance *instance;  // the model, or NULL
    bool alone;                 // beam, candidates, search
    bool draws;                 // TeX is needed at the end
    Input input;
    uint8_t *pixels;  // [height, width, 3] as the model sees the image
    Program program;
    int max_tokens;  // of the program, with the prefix
    Sampling sampling;
    Candidate *candidates;  // the best first
    int candidate_count;
    double generate_seconds;
    struct Job *next;           // in a queue
    struct Job *newer, *older;  // in the list of all jobs
    // answer
    int status;
    const char *type;
    char *answer;
    size_t answer_bytes;

    pthread_mutex_t lock;
    bool done;       // `answer` is whole
    bool started;    // events are being sent: the status is 200
    bool suspended;  // the connection waits for job_wake
    void (*wake)(void *connection);
    void *connection;  // NULL: gone
    int descriptor;    // of its socket
    char *events;      // not sent yet: [event_bytes - event_sent]
    size_t event_bytes, event_sent, event_capacity;
    int cancelled;  // Cancelled; atomic
} Job;

static inline Cancelled job_cancelled(const Job *j) {
    return (Cancelled)__atomic_load_n(&j->cancelled, __ATOMIC_ACQUIRE);
}

/* Asks whoever works on the job to leave it. */
static inline void job_cancel(Job *j, Cancelled why) {
    int expected = GOES_ON;
    __atomic_compare_exchange_n(&j->cancelled, &expected, (int)why, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* Resumes the connection if it waits. The lock is held. */
static inline void job_wake(Job *j) {
    if (!j->suspended) return;
    j->suspended = false;
    j->wake(j->connection);
}

/* ---- events ---- */

/* Adds text to what is sent while the job goes on. The lock is held. */
static inline void job_add_events(Job *j, const char *text, size_t n) {
    if (j->event_bytes + n > j->event_capacity) {
        j->event_capacity = 2 * (j->event_bytes + n) + 256;
        j->events = (char *)xrealloc(j->events, j->event_capacity);
    }
    memcpy(j->events + j->event_bytes, text, n);
    j->event_bytes += n;
    j->started = true;
}

/* Sends one event: its name (NULL: none, as OpenAI's clients read it) and one line of data. */
static inline void job_event(Job *j, const char *name, const char *data) {
    char *text = name ? format_string("event: %s\ndata: %s\n\n", name, data) : format_string("data: %s\n\n", data);
    pthread_mutex_lock(&j->lock);
    job_add_events(j, text, strlen(text));
    job_wake(j);
    pthread_mutex_unlock(&j->lock);
    free(text);
}

/* ---- the answer ---- */

static inline const char *job_error_type(int status) {
    return status == 413                    ? "too_large"
           : status == 429 || status == 503 ? "busy"
           : status == 408 || status == 504 ? "timeout"
           : status == 401                  ? "unauthorized"
           : status == 501                  ? "unsupported"
           : status >= 500                  ? "internal"
                                            : "invalid_request";
}

/* {"error": {"message": ..., "type": ...}}, allocated. */
static inline char *error_json(int status, const char *message) {
    JsonWriter w = {0};
    json_begin_object(&w);
    json_key(&w, "error");
    json_begin_object(&w);
    json_key(&w, "message");
    json_string(&w, message);
    json_key(&w, "type");
    json_string(&w, job_error_type(status));
    json_end_object(&w);
    json_end_object(&w);
    return w.text;
}

/* Gives the job its answer (allocated, or NULL), and lets the connection send it. Where events are being sent they are all that
 * is sent, and the answer is freed here: a slow client would keep it for as long as it reads. */
static inline void job_finish(Job *j, int status, const char *type, char *answer, size_t n) {
    pthread_mutex_lock(&j->lock);
    if (j->started) {
        free(answer);
        answer = NULL, n = 0;
    }
    j->status = status;
    j->type = type;
    j->answer = answer;
    j->answer_bytes = n;
    j->done = true;
    job_wake(j);
    pthread_mutex_unlock(&j->lock);
}

/* Fails the job with a status and one sentence; where events are being sent, with a last event. */
__attribute__((format(printf, 3, 4))) static inline void job_fail(Job *j, int status, const char *format, ...) {
    Error e;
    va_list args;
    va_start(args, format);
    vsnprintf(e.text, sizeof e.text, format, args);
    va_end(args);
    char *json = error_json(status, e.text);
    pthread_mutex_lock(&j->lock);
    const bool started = j->started;
    pthread_mutex_unlock(&j->lock);
    if (started) job_event(j, j->route->request == FOR_CHAT ? NULL : "error", json);
    job_finish(j, status, "application/json", json, strlen(json));
}

/* Whether the job has been cancelled; if so it is finished. */
static inline bool job_left(Job *j) {
    const Cancelled why = job_cancelled(j);
    if (why == GOES_ON) return false;
    if (why == LATE)
        job_fail(j, 504, "the request took longer than the %.0f s that the server allows", j->deadline - j->arrived);
    else
        job_finish(j, 499, "application/json", NULL, 0);
    return true;
}

/* ---- queues ---- */

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    Job *first, **last;
    int count;
    bool closed;
} JobQueue;

static inline void queue_open(JobQueue *q) {
    *q = (JobQueue){.last = NULL};
    q->last = &q->first;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->more, NULL);
}

static inline void queue_push(JobQueue *q, Job *j) {
    pthread_mutex_lock(&q->lock);
    j->next = NULL;
    *q->last = j;
    q->last = &j->next;
    q->count++;
    pthread_cond_signal(&q->more);
    pthread_mutex_unlock(&q->lock);
}

/* Takes a job out of the queue, where `at` points to it. The lock is held. */
static inline Job *queue_take(JobQueue *q, Job **at) {
    Job *j = *at;
    *at = j->next;
    if (!j->next) q->last = at;
    j->next = NULL;
    q->count--;
    return j;
}

/* Waits for the first job. NULL: the queue is closed. */
static inline Job *queue_pop(JobQueue *q) {
    pthread_mutex_lock(&q->lock);
    while (!q->first && !q->closed) pthread_cond_wait(&q->more, &q->lock);
    Job *j = q->first ? queue_take(q, &q->first) : NULL;
    pthread_mutex_unlock(&q->lock);
    return j;
}

/* Takes a job out of the queue; false: it is not there. */
static inline bool queue_remove(JobQueue *q, Job *j) {
    bool found = false;
    pthread_mutex_lock(&q->lock);
    for (Job **at = &q->first; *at && !found; at = &(*at)->next) {
        found = *at == j;
        if (found) {
            queue_take(q, at);
            break;
        }
    }
    pthread_mutex_unlock(&q->lock);
    return found;
}

/* Where jobs go behind the engine. */
typedef struct {
    JobQueue drawers, writers;
} Outlet;

/* Hands a job on: to a drawer, or, where TeX has nothing to do with it or it has failed, to the writer. */
static inline void outlet_push(Outlet *o, Job *j) { queue_push(j->draws && !j->done ? &o->drawers : &o->writers, j); }

/* Lets those who wait go, once the queue is empty. */
static inline void queue_close(JobQueue *q) {
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->more);
    pthread_mutex_unlock(&q->lock);
}

#endif
