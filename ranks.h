/* Several processes as one training run: who does what, and what travels between them.
 *
 *   world    ranks 0 .. students-1 are students, the others are teachers. Rank 0 writes the log and the weights.
 *
 *   batch    teachers and students cut a batch of batch * accum * students images into items of `batch` images.
 *            Item i goes to student i mod students. Which teacher prepares it, and when, is the timetable below: a
 *            pure function of the options, so nobody has to be told.
 *
 *   lesson   what a teacher sends for an item: the hidden states of the positions that count [n, Wt], d wide and not
 *            vocabulary wide, and the image tokens [B, P, Wt] when the embedding loss wants them. The student holds
 *            the teacher's head and forms its logits in chunks (loss.cuh). A thread of the student's takes in up to
 *            FEED_RING lessons ahead, which bounds how far the teachers run ahead.
 *
 *   buckets  gradients are added up among the students bucket by bucket, from the end of the flat arrays
 *            (train/optimizer.h) while the backward pass is still at work on their beginning.
 *
 * The engines are in dist/comm.h, launching and failing in lib/world.h. */
#ifndef RANKS_H
#define RANKS_H

#include "train/optimizer.h"
#include "lib/clock.h"
#include "dist/comm.h"
#include "lib/world.h"
#include "model.h"

#include <pthread.h>

typedef struct {
    World world;
    int teachers, students;
    bool teaches;   // this rank is a teacher
    int index;      // among its kind
    Comm everyone;  // all ranks, host values
    Comm comm;      // the students, on their devices
    Link link;      // teachers to students
} Ranks;

static inline int teacher_rank(const Ranks *k, int teacher) { return k->students + teacher; }

/* ---------------------------------------------------------------------------------------------------------------
 * The timetable: training items step by step, the validation batches after the steps where an evaluation is due. */

typedef struct {
    int64_t steps, every;  // an evaluation after every `every` steps and at the end
    int items;             // of a step
    int64_t evaluation;    // validation batches of an evaluation, each an item
    int teachers, students;
    int64_t step, at;  // where we are: the next item of a step, or of the evaluation after it
    bool evaluating;
} Timetable;

typedef struct {
    bool evaluation;
    int64_t step;  // of training, from 0; of evaluations, the steps done
    int64_t item;  // of the step, or the number of the validation batch
    int student, teacher;
} Lesson;

static inline bool evaluation_due(const Timetable *t, int64_t steps_done) {
    return steps_done % t->every == 0 || steps_done == t->steps;
}

/* The next item of all; false when the run is over. */
static inline bool timetable_next(Timetable *t, Lesson *l) {
    if (!t->evaluating && t->at == t->items) {
        t->at = 0;
        t->step++;
        t->evaluating = evaluation_due(t, t->step) && t->evaluation > 0;
    } else if (t->evaluating && t->at == t->evaluation) {
        t->at = 0;
        t->evaluating = false;
    }
    if (!t->evaluating && t->step >= t->steps) return false;
    int64_t number = t->evaluating ? t->at : t->step * t->items + t->at;
    l->evaluation = t->evaluating;
    l->step = t->step;
    l->item = t->at++;
    l->student = (int)(number % t->students);
    l->teacher = (int)(number % t->teachers);
    return true;
}

/* ---------------------------------------------------------------------------------------------------------------
 * Lessons: the teacher's side */

typedef struct {
    int64_t step, item;
    int64_t images, n;  // n positions that count
    int64_t interrupted;  // the teacher was asked to stop
} LessonHeader;

/* Sends an array of op, through the host's memory where the link cannot. False when the run is over. *waited grows by
 * the seconds of sending, most of which the teacher waits for the student to take in what came before. */
static inline bool lesson_part(Ranks *k, const Ops *op, const void *part, size_t bytes, int student, double *waited) {
    bool direct = k->link.device_buffers && !op->host_memory;
    void *host = direct || op->host_memory ? NULL : xmalloc(bytes);
    if (host) op->download(host, part, bytes);
    double start = seconds_now();
    CommStatus status = direct ? link_send(&k->link, part, bytes, student)
                               : link_send_host(&k->link, host ? host : part, bytes, student);
    *waited += seconds_now() - start;
    free(host);
    return status == COMM_OK;
}

/* Sends what the teacher's last forward pass left, when the student has room for it. False when the run is over. */
static inline bool lesson_send(Ranks *k, const Model *teacher, const Lesson *lesson, bool tokens, bool interrupted,
                               double *waited) {
    const Ops *op = teacher->op;
    size_t row = (size_t)teacher->c.lm.width * sizeof(floatX);
    LessonHeader h = {lesson->step, lesson->item, teacher->B, teacher->n, interrupted};
    const void *parts[2] = {teacher->hidden, teacher->vision.tokens};
    size_t bytes[2] = {(size_t)teacher->n * row,
                       tokens ? (size_t)teacher->B * (size_t)model_image_tokens(teacher) * row : 0};
    char room;
    op->sync();  // so that what follows is waiting, not computing
    double start = seconds_now();
    bool going = link_receive_host(&k->link, &room, 1, lesson->student) == COMM_OK;
    *waited += seconds_now() - start;
    if (going) going = lesson_part(k, &cpu_ops, &h, sizeof h, lesson->student, waited);
    for (int i = 0; i < 2 && going; i++)
        if (bytes[i]) going = lesson_part(k, op, parts[i], bytes[i], lesson->student, waited);
    return going;
}

/* ---------------------------------------------------------------------------------------------------------------
 * Lessons: the student's side */

enum { FEED_RING = 3 };

typedef struct {
    LessonHeader header;
    floatX *hidden, *tokens;
} FeedSlot;

typedef struct {
    Ranks *ranks;
    const Ops *op;  // where the lessons lie: the student's device, or the host when the link has no device buffers
    const Ops *student;  // the student's device
    Timetable timetable;
    size_t row;               // bytes of a position
    size_t tokens;            // bytes of an image's image tokens; 0: not wanted
    int positions, images;  // of an item, at most
    Arena arena;
    FeedSlot ring[FEED_RING];
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t received, used;
    bool running, stop, over;
    double waited;     // seconds the student has waited for teachers
    bool interrupted;  // one of the teachers was asked to stop
} Feed;

static inline void feed_plan_pass(Feed *f) {
    for (int i = 0; i < FEED_RING; i++) {
        f->ring[i].hidden = (floatX *)arena_take(&f->arena, (size_t)f->positions, f->row);
        if (f->tokens) f->ring[i].tokens = (floatX *)arena_take(&f->arena, (size_t)f->images, f->tokens);
    }
}

/* One lesson into a slot; false when the run is over. */
static inline bool feed_receive(Feed *f, FeedSlot *slot, const Lesson *lesson) {
    Link *link = &f->ranks->link;
    LessonHeader *h = &slot->header;
    int from = teacher_rank(f->ranks, lesson->teacher);
    char room = 1;
    if (link_send_host(link, &room, 1, from) != COMM_OK) return false;  // however much a socket would take in
    if (link_receive_host(link, h, sizeof *h, from) != COMM_OK) return false;
    if (h->step != lesson->step || h->item != lesson->item || h->n < 0 || h->n > f->positions || h->images < 0 ||
        h->images > f->images)
        die("internal error: rank %d sent item %lld of step %lld (%lld positions) where item %lld of step %lld was "
            "due",
            from, (long long)h->item, (long long)h->step, (long long)h->n, (long long)lesson->item,
            (long long)lesson->step);
    void *parts[2] = {slot->hidden, slot->tokens};
    size_t bytes[2] = {(size_t)h->n * f->row, (size_t)h->images * f->tokens};
    CommStatus status = COMM_OK;
    for (int i = 0; i < 2 && status == COMM_OK; i++)
        if (bytes[i])
            status = link->device_buffers ? link_receive(link, parts[i], bytes[i], from)
                                          : link_receive_host(link, parts[i], bytes[i], from);
    return status == COMM_OK;
}

static inline void *feed_thread(void *argument) {
    Feed *f = (Feed *)argument;
    Lesson lesson;
    bool going = true;
    while (going && timetable_next(&f->timetable, &lesson)) {
        if (lesson.student != f->ranks->index) continue;
        pthread_mutex_lock(&f->mutex);
        while (!f->stop && f->received - f->used >= FEED_RING) pthread_cond_wait(&f->changed, &f->mutex);
        going = !f->stop;
        pthread_mutex_unlock(&f->mutex);
        if (going) going = feed_receive(f, &f->ring[f->received % FEED_RING], &lesson);
        pthread_mutex_lock(&f->mutex);
        if (going) f->received++;
        pthread_cond_broadcast(&f->changed);
        pthread_mutex_unlock(&f->mutex);
    }
    pthread_mutex_lock(&f->mutex);
    f->over = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mutex);
    return NULL;
}

/* Lessons of a teacher of `width` with `image_tokens` (0: their vectors are not wanted), for items of up to
 * `images` images and `positions` positions. */
static inline void feed_open(Feed *f, Ranks *k, const Ops *op, Timetable timetable, int width, int image_tokens,
                             int images, int positions) {
    memset(f, 0, sizeof *f);
    f->ranks = k;
    f->op = k->link.device_buffers ? op : &cpu_ops;
    f->student = op;
    f->timetable = timetable;
    f->row = (size_t)width * sizeof(floatX);
    f->tokens = (size_t)image_tokens * f->row;
    f->images = images;
    f->positions = positions;
    feed_plan_pass(f);
    arena_allocate(&f->arena, f->op, "the teacher's lessons");
    feed_plan_pass(f);
    pthread_mutex_init(&f->mutex, NULL);
    pthread_cond_init(&f->changed, NULL);
    thread_start(&f->thread, feed_thread, f);
    f->running = true;
}

/* The lesson that is due, valid until feed_done. When it is not there the device does what it has been given first:
 * only from then on does the student wait. */
static inline const FeedSlot *feed_next(Feed *f) {
    pthread_mutex_lock(&f->mutex);
    bool there = f->received > f->used;
    pthread_mutex_unlock(&f->mutex);
    if (!there) f->student->sync();
    double start = seconds_now();
    pthread_mutex_lock(&f->mutex);
    while (f->received == f->used && !f->over) pthread_cond_wait(&f->changed, &f->mutex);
    there = f->received > f->used;
    pthread_mutex_unlock(&f->mutex);
    f->waited += seconds_now() - start;
    if (!there) die("internal error: the teachers' lessons ended before the run did");
    FeedSlot *slot = &f->ring[f->used % FEED_RING];
    f->interrupted |= slot->header.interrupted != 0;
    return slot;
}

/* The device has been asked for everything that reads the lesson. */
static inline void feed_done(Feed *f) {
    link_after(&f->ranks->link);
    pthread_mutex_lock(&f->mutex);
    f->used++;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mutex);
}

/* After world_finish, which ends a receive that still waits. */
static inline void feed_close(Feed *f) {
    if (!f->running) return;
    pthread_mutex_lock(&f->mutex);
    f->stop = true;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mutex);
    pthread_join(f->thread, NULL);
    arena_release(&f->arena, f->op);
    pthread_mutex_destroy(&f->mutex);
    pthread_cond_destroy(&f->changed);
    memset(f, 0, sizeof *f);
}

/* ---------------------------------------------------------------------------------------------------------------
 * Gradients among the students */

typedef struct {
    Comm *comm;
    Optimizer *optimizer;
    const Params *params;  // of the student: what Model.ready speaks of
    int next;              // bucket to be added up next; they go from the last to the first
} Reduction;

static inline void reduction_begin(Reduction *d, Comm *comm, Optimizer *o, const Params *params) {
    d->comm = comm;
    d->optimizer = o;
    d->params = params;
    d->next = optimizer_buckets(o) - 1;
}

/* Starts the buckets whose gradients, from flat element `from` on, are final. */
static inline void reduction_advance(Reduction *d, size_t from) {
    const Optimizer *o = d->optimizer;
    for (; d->next >= 0 && (size_t)d->next * o->bucket >= from; d->next--) {
        float *bucket = o->gradients + (size_t)d->next * o->bucket;
        size_t n = optimizer_bucket_length(o, d->next);
        if (o->sharded)
            comm_reduce_scatter(d->comm, bucket, n / (size_t)o->ranks);
        else
            comm_all_reduce(d->comm, bucket, n);
    }
}

/* For Model.ready: the gradients of p and of all that the model declares after it are final. Those of norms and
 * biases, which come first in the flat arrays, wait for the end. */
static inline void reduction_ready(void *context, const Param *p) {
    Reduction *d = (Reduction *)context;
    const Param *end = d->params->list + d->params->count;
    while (p < end && !(p->gradient && p->decay)) p++;
    if (p < end) reduction_advance(d, p->at);
}

/* The rest of the gradients, then their norm; the device waits for all of it, the host does not. */
static inline void reduction_finish(Reduction *d) {
    Optimizer *o = d->optimizer;
    reduction_advance(d, 0);
    comm_finish(d->comm);
    optimizer_norm(o);
    if (o->ranks == 1) return;
    comm_all_reduce(d->comm, o->norm_squared, 1);
    comm_finish(d->comm);
}

/* After optimizer_step on shards: everyone gets everyone's values. */
static inline void share_values(Comm *comm, const Optimizer *o) {
    if (!o->sharded) return;
    for (int b = 0; b < optimizer_buckets(o); b++)
        comm_all_gather(comm, o->values + (size_t)b * o->bucket,
                        optimizer_bucket_length(o, b) / (size_t)o->ranks * sizeof(floatX));
    comm_finish(comm);
}

/* ---------------------------------------------------------------------------------------------------------------
 * Who waits for whom. What a student computes less than the slowest in a step, it waits more in the collectives, for
 * the slowest; that one waits there for nothing but the messages. */

/* Seconds of one rank. */
typedef struct {
    double lessons;      // a student waited for teachers; a teacher, to send to students
    double collectives;  // waited in the students' collectives, for slower students and for messages
    double busy;         // the collectives in all, also beside computation
} Waited;

/* Of the run so far. */
typedef struct {
    Waited told;              // of this rank, up to its last report
    double messages, hidden;  // the slowest students' waiting for messages; what messages took beside computation
} Waiting;

/* What a student has waited since it last asked. When its device is through. */
static inline Waited waited_since(Waiting *w, Ranks *k, const Feed *feed) {
    comm_finish(&k->comm);
    Waited now = {feed->waited, k->comm.seconds_waited, k->comm.seconds_busy}, before = w->told;
    Waited since = {now.lessons - before.lessons, now.collectives - before.collectives, now.busy - before.busy};
    w->told = now;
    return since;
}

/* Of what all students have waited since they were last asked: that of the slowest, which is what made the step
 * longer than its computation. */
static inline Waited waited_by_slowest(Waiting *w, const Waited *all, int students) {
    int slowest = 0;
    for (int i = 1; i < students; i++)
        if (all[i].collectives < all[slowest].collectives) slowest = i;
    double messages = all[slowest].collectives, all_messages = all[slowest].busy;
    w->messages += messages;
    if (all_messages > messages) w->hidden += all_messages - messages;
    return all[slowest];
}

/* What `count` ranks waited, on average. */
static inline Waited waited_mean(const Waited *all, int count) {
    Waited mean = {0, 0, 0};
    for (int i = 0; i < count; i++) {
        mean.lessons += all[i].lessons / count;
        mean.collectives += all[i].collectives / count;
    }
    return mean;
}

/* Rank 0 says what all ranks have waited in a run of so many seconds. */
static inline void waiting_print(const Waiting *w, const Ranks *k, const Waited *all, double seconds) {
    int slowest = 0;
    double percent = 100 / seconds;
    Waited student = waited_mean(all, k->students), teacher = waited_mean(all + k->students, k->teachers);
    double others = student.collectives - w->messages;
    for (int i = 1; i < k->students; i++)
        if (all[i].collectives < all[slowest].collectives) slowest = i;
    fprintf(stderr, "on average a student waited");
    if (k->teachers)
        fprintf(stderr, " %.2f s for teachers (%.1f %% of the time)%s", student.lessons, student.lessons * percent,
                k->students > 1 ? "," : "");
    if (k->students > 1)
        fprintf(
            stderr,
            " %.2f s for slower students (%.1f %%, mostly for rank %d), %.2f s for messages (%.1f %%), which took "
            "%.2f s in all",
            others, others * percent, slowest, w->messages, w->messages * percent, w->messages + w->hidden);
    if (k->teachers)
        fprintf(stderr, "; a teacher %.2f s for students (%.1f %%)", teacher.lessons, teacher.lessons * percent);
    fputc('\n', stderr);
}

/* Called by all ranks after their work. */
static inline void waiting_tell(const Waiting *w, Ranks *k, double seconds) {
    Waited *all = (Waited *)xmalloc((size_t)k->world.ranks * sizeof *all);
    comm_gather_host(&k->everyone, &w->told, sizeof w->told, all);
    if (k->world.rank == 0 && k->world.ranks > 1 && seconds > 0) waiting_print(w, k, all, seconds);
    free(all);
}

#endif
