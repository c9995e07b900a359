/* Judges programs: compiles them, draws them, and compares the drawings with the input image.
 *
 *   Judge j;
 *   if (judge_open(&j, &(JudgeOptions){.model = &model, .threads = 2}, &err)) ...
 *   judge_begin(&j, pixels, extent);              // the input image: forgets the programs judged before
 *   Judged *p = judge_submit(&j, text, n);        // returns at once; threads compile and draw
 *   if (judge_wait(&j, p, 0, &err) == 0) ...      // p->clean, p->drawn, p->error_line, p->message
 *   judge_score(&j, p);                           // p->similarity, p->same
 *   judge_close(&j);
 *
 * Threads of the judge's own run TeX and Poppler and prepare the pixels; judge_score may use the model, so it is called on
 * the thread that owns the model. A program that was submitted before is the same Judged. All other functions may be called
 * from several threads. */
#ifndef GENERATE_JUDGE_H
#define GENERATE_JUDGE_H

#include "../lib/clock.h"
#include "../lib/hash.h"
#include "../lib/interrupt.h"
#include "../lib/render.h"
#include "../metrics/features.h"
#include "../metrics/similarity.h"

/* Limits of each run: a program that needs more is no useful candidate. */
static const SandboxLimits judge_limits = {10, 20, (size_t)1 << 30, 64 << 20, 128 << 20, 500, 64};

typedef struct {
    RenderTask task;
    int threads;            // that run TeX; 0: one for every second processor, 2 to 8
    bool unsafe;            // no box
    const char *cache;      // folder of preloaded formats; NULL: the user's
    ImageSize image_size;   // of prepared pixels; {0, 0}: the model's
    Similarity similarity;  // how drawings are compared
    bool compile_only;      // programs are not drawn
    bool finishes;          // Ctrl-C ends no TeX: the caller needs every verdict
    SandboxLimits limits;   // of each run; all 0: judge_limits
    Model *model;           // planned for one image at least; NULL: only pixels can be compared
} JudgeOptions;

typedef enum { JUDGED_WAITING, JUDGED_RUNNING, JUDGED_DONE } JudgedState;

/* One program. Fields below `state` are valid once judge_wait has returned 0. */
typedef struct Judged {
    char *text;
    size_t bytes;
    ImageExtent like;  // of the input that it is drawn for
    JudgedState state;
    bool orphan;        // its image is no longer of interest: freed by the thread that works on it
    bool drawn, clean;  // there is a drawing; the program compiles without errors
    bool blank;         // it compiles without errors, and draws nothing
    int error_line;     // the smallest line of an error; 0: an error has no line in the program, or there is none
    char *message;      // on the first error, one sentence without a full stop; NULL if clean
    uint8_t *pixels;    // [height, width, 3], prepared like the input; NULL: not drawn, or scored worse than another
    uint64_t pixels_hash;
    int failed;  // -1: no verdict was possible; `why` says why
    Error why;
    bool scored;                      // judge_score has run
    double similarity;                // -1 where nothing is drawn
    bool same;                        // the prepared pixels are those of the input
    struct Judged *queued, *chained;  // next in the queue, in the slot of the cache
} Judged;

enum { JUDGE_SLOTS = 4096 };

typedef struct {
    JudgeOptions o;
    Renderer renderer;
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    pthread_t *threads;
    bool closing;
    Judged *first, *last;               // the queue
    Judged *slots[JUDGE_SLOTS];         // the cache, by the hash of the text
    int count;                          // of the programs in it
    ImageExtent like;                   // of the input that the programs submitted next are drawn for
    uint8_t *input;                     // [height, width, 3]
    SimilarityInk ink;                  // of the input, or
    double *features, *drawn_features;  // [P, C] of the input and of a drawing
    floatX *host_features;              // [P, C] scratch
    double best;                        // highest similarity so far
} Judge;

static bool judge_stop;  // judge_close waits for no TeX that is running

static inline bool judge_stopped(void) { return __atomic_load_n(&judge_stop, __ATOMIC_ACQUIRE); }
static inline bool judge_cancelled(void) { return interrupted() || judge_stopped(); }

static inline void judged_free(Judged *p) {
    free(p->text);
    free(p->message);
    free(p->pixels);
    free(p);
}

/* ---- on the judge's threads ---- */

/* Draws the page and prepares its pixels as infer prepares an input image. */
static inline void judge_draw(const Judge *j, Judged *p, const Compiled *c) {
    Image image;
    Error why;
    const size_t bytes = image_size_bytes(j->o.image_size);
    const int longest = similarity_drawing_size(p->like.longest, j->o.image_size);
    if (render_image(&j->renderer, c, longest, 0, &image, &why)) {
        if (!p->message) p->message = xstrdup(why.text);
        p->blank = p->clean;
        p->clean = false;
        return;
    }
    p->pixels = (uint8_t *)xmalloc(bytes);
    image_prepare_like(p->pixels, &image, j->o.image_size, p->like);
    p->pixels_hash = hash_bytes(HASH_BEGIN, p->pixels, bytes);
    p->drawn = true;
    image_free(&image);
}

static inline void judge_work_on(Judge *j, Judged *p) {
    Compiled c;
    p->failed = render_compile_with(&j->renderer, render_engines(&j->renderer, p->text, p->bytes), j->o.task, p->text,
                                    p->bytes, &c, &p->why);
    if (p->failed) return;
    p->clean = c.clean;
    p->message = c.problem ? xstrdup(c.problem) : NULL;
    for (int i = 0; i < c.log.count; i++)
        if (i == 0 || c.log.errors[i].line < p->error_line) p->error_line = c.log.errors[i].line;
    p->drawn = c.pdf && j->o.compile_only;
    if (c.pdf && !j->o.compile_only) judge_draw(j, p, &c);
    compiled_free(&c);
}

static inline void *judge_run(void *argument) {
    Judge *j = (Judge *)argument;
    pthread_mutex_lock(&j->lock);
    for (;;) {
        while (!j->first && !j->closing) pthread_cond_wait(&j->work, &j->lock);
        if (j->closing) break;
        Judged *p = j->first;
        j->first = p->queued;
        if (!j->first) j->last = NULL;
        p->state = JUDGED_RUNNING;
        pthread_mutex_unlock(&j->lock);
        judge_work_on(j, p);
        pthread_mutex_lock(&j->lock);
        p->state = JUDGED_DONE;
        if (p->orphan) judged_free(p);
        pthread_cond_broadcast(&j->done);
    }
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

/* ---- opening ---- */

static inline bool judge_uses_model(const Judge *j) { return j->o.similarity != SIMILARITY_PIXELS; }

static inline void judge_make_locks(Judge *j) {
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->work, NULL);
    pthread_cond_init(&j->done, &clock);
    pthread_condattr_destroy(&clock);
}

/* Finds TeX and starts the threads. Without a model and an image size, programs can only be compiled. */
static inline int judge_open(Judge *j, const JudgeOptions *o, Error *err) {
    const RenderOptions render = {.limits = o->limits.cpu_seconds > 0 ? o->limits : judge_limits,
                                  .cache = o->cache,
                                  .unsafe = o->unsafe,
                                  .cancelled = o->finishes ? judge_stopped : judge_cancelled};
    *j = (Judge){.o = *o};
    if (!o->image_size.height && o->model) j->o.image_size = vision_size(&o->model->c.vision);
    if (!o->threads) j->o.threads = omp_get_num_procs() / 2;
    if (j->o.threads < 2 && !o->threads) j->o.threads = 2;
    if (j->o.threads > 8 && !o->threads) j->o.threads = 8;
    if (j->o.threads < 1) j->o.threads = 1;
    if (!j->o.image_size.height) j->o.compile_only = true;
    if (!o->model) j->o.similarity = SIMILARITY_PIXELS;
    if (renderer_open(&j->renderer, &render, err)) return -1;
    judge_make_locks(j);
    __atomic_store_n(&judge_stop, false, __ATOMIC_RELEASE);
    j->threads = (pthread_t *)xcalloc((size_t)j->o.threads, sizeof *j->threads);
    for (int i = 0; i < j->o.threads; i++) thread_start(&j->threads[i], judge_run, j);
    if (!o->model) return 0;
    const size_t n = (size_t)vision_patches(&o->model->c.vision) * o->model->c.vision.hidden_size;
    j->features = (double *)xmalloc(2 * n * sizeof(double));
    j->drawn_features = j->features + n;
    j->host_features = (floatX *)xmalloc(n * sizeof(floatX));
    return 0;
}

/* Forgets all programs; those that a thread works on are freed when it is done. Called with the lock held. */
static inline void judge_forget(Judge *j) {
    j->first = j->last = NULL;
    for (int i = 0; i < JUDGE_SLOTS; i++) {
        for (Judged *p = j->slots[i], *next; p; p = next) {
            next = p->chained;
            if (p->state == JUDGED_RUNNING)
                p->orphan = true;
            else
                judged_free(p);
        }
        j->slots[i] = NULL;
    }
    j->count = 0;
}

/* Ends the threads; a TeX that is running is stopped. */
static inline void judge_close(Judge *j) {
    pthread_mutex_lock(&j->lock);
    judge_forget(j);
    j->closing = true;
    __atomic_store_n(&judge_stop, true, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&j->work);
    pthread_mutex_unlock(&j->lock);
    for (int i = 0; i < j->o.threads; i++) pthread_join(j->threads[i], NULL);
    __atomic_store_n(&judge_stop, false, __ATOMIC_RELEASE);  // another judge may be open
    renderer_close(&j->renderer);
    pthread_mutex_destroy(&j->lock);
    pthread_cond_destroy(&j->work);
    pthread_cond_destroy(&j->done);
    free(j->threads);
    free(j->input);
    free(j->ink.ink);
    free(j->features);
    free(j->host_features);
}

/* ---- scores ---- */

/* The image that drawings are compared with from now on: pixels u8 [height, width, 3] as infer prepares them, copied. */
static inline void judge_set_input(Judge *j, const uint8_t *pixels) {
    const size_t bytes = image_size_bytes(j->o.image_size);
    j->input = (uint8_t *)xrealloc(j->input, bytes);
    memcpy(j->input, pixels, bytes);
    free(j->ink.ink);
    j->ink.ink = NULL;
    if (judge_uses_model(j))
        features_of_pixels(j->o.model, pixels, j->host_features, j->features);
    else
        j->ink = similarity_ink(pixels, j->o.image_size);
}

/* What was cut out of the input image; drawings of programs that are submitted from now on are made as large and prepared in the
 * same scale, so that they are blurred alike. */
static inline void judge_set_size(Judge *j, ImageExtent extent) { j->like = extent; }

/* Begins with another input image: as for judge_set_input and judge_set_size. Forgets the programs that were judged. */
static inline void judge_begin(Judge *j, const uint8_t *pixels, ImageExtent extent) {
    pthread_mutex_lock(&j->lock);
    judge_forget(j);
    pthread_mutex_unlock(&j->lock);
    judge_set_size(j, extent);
    j->best = -INFINITY;
    if (!j->o.compile_only) judge_set_input(j, pixels);
}

/* How alike the drawing of a finished program is to the input. */
static inline double judge_compare(Judge *j, const Judged *p) {
    if (judge_uses_model(j)) {
        const VisionConfig *c = &j->o.model->c.vision;
        features_of_pixels(j->o.model, p->pixels, j->host_features, j->drawn_features);
        return similarity_features(j->o.similarity, j->features, j->drawn_features, vision_patches(c),
                                   c->hidden_size);
    }
    SimilarityInk ink = similarity_ink(p->pixels, j->o.image_size);
    const double s = similarity_of_ink(&j->ink, &ink);
    free(ink.ink);
    return s;
}

/* Another scored program with the same drawing, or NULL. */
static inline const Judged *judge_find_drawing(Judge *j, const Judged *p) {
    const Judged *found = NULL;
    pthread_mutex_lock(&j->lock);
    for (int i = 0; i < JUDGE_SLOTS && !found; i++)
        for (const Judged *q = j->slots[i]; q && !found; q = q->chained)
            if (q != p && q->scored && q->drawn && q->pixels_hash == p->pixels_hash) found = q;
    pthread_mutex_unlock(&j->lock);
    return found;
}

/* Compares a finished program's drawing with the input, on the thread that owns the model. Drawings that were seen before
 * are not compared again. The pixels of drawings that are worse than the best so far are released. */
static inline void judge_score(Judge *j, Judged *p) {
    if (p->scored || j->o.compile_only) return;
    const Judged *q = p->drawn ? judge_find_drawing(j, p) : NULL;
    p->similarity = !p->drawn ? -1 : q ? q->similarity : judge_compare(j, p);
    if (!isfinite(p->similarity)) p->similarity = -1;
    p->same = q ? q->same : p->drawn && !memcmp(p->pixels, j->input, image_size_bytes(j->o.image_size));
    p->scored = true;
    if (p->similarity > j->best) {
        j->best = p->similarity;
    } else {
        free(p->pixels);
        p->pixels = NULL;
    }
}

/* How alike the drawing of a judged program is to the input. NAN: it was not compared, or there is none. */
static inline double judged_similarity(const Judged *p) { return p->scored && p->drawn ? p->similarity : NAN; }

/* ---- the queue ---- */

/* Queues a program of n bytes, or finds it among those that were. It stays valid until the next judge_begin. */
static inline Judged *judge_submit(Judge *j, const char *text, size_t n) {
    const size_t slot = hash_slot(hash_bytes(HASH_BEGIN, text, n), JUDGE_SLOTS);
    pthread_mutex_lock(&j->lock);
    Judged *p = j->slots[slot];
    while (p && (p->bytes != n || p->like.longest != j->like.longest || p->like.scale != j->like.scale ||
                 memcmp(p->text, text, n) != 0))
        p = p->chained;
    if (!p) {
        p = (Judged *)xcalloc(1, sizeof *p);
        p->text = (char *)xmalloc(n + 1);
        memcpy(p->text, text, n);
        p->text[n] = '\0';
        p->bytes = n;
        p->like = j->like;
        p->chained = j->slots[slot];
        j->slots[slot] = p;
        j->count++;
        if (j->last)
            j->last->queued = p;
        else
            j->first = p;
        j->last = p;
        pthread_cond_signal(&j->work);
    }
    pthread_mutex_unlock(&j->lock);
    return p;
}

/* Waits for the verdict on a program until `deadline` (of seconds_now; 0: as long as it takes). Returns 0, 1 where the
 * deadline has passed, or -1 with *err filled where no verdict was possible. */
static inline int judge_wait(Judge *j, Judged *p, double deadline, Error *err) {
    const struct timespec until = {(time_t)deadline, (long)((deadline - (double)(time_t)deadline) * 1e9)};
    int late = 0;
    pthread_mutex_lock(&j->lock);
    while (p->state != JUDGED_DONE && !late)
        late =
            deadline > 0 ? pthread_cond_timedwait(&j->done, &j->lock, &until) : pthread_cond_wait(&j->done, &j->lock);
    const bool done = p->state == JUDGED_DONE;
    pthread_mutex_unlock(&j->lock);
    if (!done) return 1;
    return p->failed ? error_set(err, "%s", p->why.text) : 0;
}

#endif
