/* Draws many programs, several at a time, each in TeX's box, and keeps the drawings in a folder, so that an interrupted run
 * goes on where it was, and a program that several models write is drawn once.
 *
 * The files of a program are named after a hash of the program and of how it is drawn: HASH.png, and HASH.txt, which says
 * "clean", "errors" or "none" and on the next line the first error. HASH.txt is written last: without it there is no verdict. */
#ifndef METRICS_DRAWINGS_H
#define METRICS_DRAWINGS_H

#include "../lib/hash.h"
#include "../lib/interrupt.h"
#include "../lib/png_write.h"
#include "../lib/progress.h"
#include "../lib/render.h"
#include "../lib/threads.h"

typedef enum { DRAWN_CLEAN, DRAWN_WITH_ERRORS, DRAWN_NOT, DRAWN_UNKNOWN } DrawnVerdict;

static const char *const drawn_names[] = {"clean", "errors", "none"};

typedef struct {
    const char *program;   // text; must outlive this
    size_t bytes;          // its length
    char name[17];         // of its files, without the folder and the ending
    char *error;           // the first error, or NULL
    DrawnVerdict verdict;  // DRAWN_NOT: there is no drawing
} DrawnProgram;

typedef struct {
    RenderTask task;
    double dpi;
    int jobs;            // programs at a time
    bool resume;         // take what the folder has of an earlier run
    bool one_engine;     // where a program does not ask for another (render_engines)
    const char *folder;  // exists
} DrawingOptions;

typedef struct {
    const DrawingOptions *o;
    Renderer renderer;
    DrawnProgram *programs;
    int count, next, done;
    pthread_mutex_t lock;
    Progress progress;
    Error *err;
    bool failed;
} Drawings;

static inline void drawn_name(DrawnProgram *p, const DrawingOptions *o) {
    uint64_t hash = hash_bytes(HASH_BEGIN, p->program, p->bytes);
    hash = hash_bytes(hash, &o->dpi, sizeof o->dpi);
    hash = hash_bytes(hash, &o->task, sizeof o->task);
    snprintf(p->name, sizeof p->name, "%016llx", (unsigned long long)hash);
}

static inline char *drawn_path(const DrawingOptions *o, const DrawnProgram *p, const char *ending) {
    return format_string("%s/%s.%s", o->folder, p->name, ending);
}

/* Takes an earlier run's verdict. False: there is none, or its drawing is missing. */
static inline bool drawn_find(DrawnProgram *p, const DrawingOptions *o) {
    char *path = drawn_path(o, p, "txt"), line[1024] = "", error[1024] = "";
    FILE *f = fopen(path, "r");
    p->verdict = DRAWN_UNKNOWN;
    if (f && fgets(line, sizeof line, f)) {
        if (!fgets(error, sizeof error, f)) *error = '\0';
        line[strcspn(line, "\n")] = error[strcspn(error, "\n")] = '\0';
        for (int i = 0; i < 3; i++)
            if (!strcmp(line, drawn_names[i])) p->verdict = (DrawnVerdict)i;
        if (p->verdict != DRAWN_UNKNOWN && *error) p->error = xstrdup(error);
    }
    if (f) fclose(f);
    free(path);
    path = drawn_path(o, p, "png");
    if (p->verdict < DRAWN_NOT && !file_exists(path)) p->verdict = DRAWN_UNKNOWN;
    free(path);
    return p->verdict != DRAWN_UNKNOWN;
}

/* Writes the drawing, if there is one, and the verdict, if it is final. */
static inline int drawn_keep(DrawnProgram *p, const DrawingOptions *o, const Image *image, bool final, Error *err) {
    char *png = drawn_path(o, p, "png"), *txt = drawn_path(o, p, "txt");
    char *verdict = format_string("%s\n%s\n", drawn_names[p->verdict], p->error ? p->error : "");
    int bad = image ? image_save_png(image, png, err) : 0;
    if (!bad && final) bad = file_write(txt, verdict, strlen(verdict), err);
    free(png);
    free(txt);
    free(verdict);
    return bad;
}

/* Compiles and draws one program. A page that cannot be drawn counts as none. -1: the machine fails. */
static inline int drawn_make(Drawings *d, DrawnProgram *p, Error *err) {
    Compiled c;
    Image image = {0};
    Error why;
    const int all = (1 << TEX_ENGINES) - 1;
    const int engines = d->o->one_engine ? render_engines(&d->renderer, p->program, p->bytes) : all;
    if (render_compile_with(&d->renderer, engines, d->o->task, p->program, p->bytes, &c, err)) return -1;
    p->verdict = c.clean ? DRAWN_CLEAN : c.pdf ? DRAWN_WITH_ERRORS : DRAWN_NOT;
    const char *error = c.clean ? NULL : c.log.count ? c.log.errors[0].message : c.problem;
    const int line = !c.clean && c.log.count ? c.log.errors[0].line : 0;
    if (p->verdict != DRAWN_NOT && render_image(&d->renderer, &c, 0, d->o->dpi, &image, &why)) {
        p->verdict = DRAWN_NOT;
        error = why.text;
    }
    if (error) p->error = line > 0 ? format_string("line %d: %.500s", line, error) : format_string("%.500s", error);
    if (p->error) p->error[strcspn(p->error, "\r\n")] = '\0';
    // A limit may have ended it only because the machine was busy: the next run tries again.
    const int bad = drawn_keep(p, d->o, image.rgb ? &image : NULL, !c.stopped, err);
    image_free(&image);
    compiled_free(&c);
    return bad;
}

/* A thread: draws programs until none is left, one fails or the user interrupts. */
static inline void *drawings_work(void *argument) {
    Drawings *d = (Drawings *)argument;
    Error err;
    pthread_mutex_lock(&d->lock);
    while (d->next < d->count && !d->failed) {
        DrawnProgram *p = &d->programs[d->next++];
        pthread_mutex_unlock(&d->lock);
        int bad = interrupted() ? error_set(&err, "interrupted; the same command with --resume goes on") : 0;
        if (!bad && !(d->o->resume && drawn_find(p, d->o))) bad = drawn_make(d, p, &err);
        pthread_mutex_lock(&d->lock);
        if (bad && !d->failed) *d->err = err;
        d->failed = d->failed || bad;
        progress_update(&d->progress, ++d->done, NULL);
    }
    pthread_mutex_unlock(&d->lock);
    return NULL;
}

static inline int drawn_compare(const void *a, const void *b) {
    return strcmp(((const DrawnProgram *)a)->name, ((const DrawnProgram *)b)->name);
}

/* Draws the programs, of which text and length are given, each text once, and fills in the rest of each. -1 with *err filled: TeX is missing, a file
 * cannot be written, or the user has interrupted; what is done is kept in the folder. Free with drawings_free. */
static inline int drawings_make(DrawnProgram *programs, int count, const DrawingOptions *o, Error *err) {
    Drawings d = {.o = o, .err = err, .lock = PTHREAD_MUTEX_INITIALIZER};
    if (renderer_open(&d.renderer, &(RenderOptions){.cancelled = interrupted}, err)) return -1;
    DrawnProgram *distinct = (DrawnProgram *)xcalloc((size_t)count + 1, sizeof *distinct);
    pthread_t *threads = (pthread_t *)xcalloc((size_t)o->jobs, sizeof *threads);
    for (int i = 0; i < count; i++) {
        drawn_name(&programs[i], o);
        distinct[i] = programs[i];
    }
    qsort(distinct, (size_t)count, sizeof *distinct, drawn_compare);
    int kept = 0;
    for (int i = 0; i < count; i++)
        if (!kept || strcmp(distinct[kept - 1].name, distinct[i].name)) distinct[kept++] = distinct[i];
    d.programs = distinct;
    d.count = kept;
    progress_begin(&d.progress, "drawing", 0, kept);
    for (int i = 0; i < o->jobs; i++) thread_start(&threads[i], drawings_work, &d);
    for (int i = 0; i < o->jobs; i++) pthread_join(threads[i], NULL);
    progress_end(&d.progress);
    for (int i = 0; i < count; i++) {
        const DrawnProgram *p =
            (const DrawnProgram *)bsearch(&programs[i], distinct, (size_t)kept, sizeof *distinct, drawn_compare);
        programs[i].verdict = p->verdict;
        programs[i].error = p->error ? xstrdup(p->error) : NULL;
    }
    for (int i = 0; i < kept; i++) free(distinct[i].error);
    free(distinct);
    free(threads);
    renderer_close(&d.renderer);
    return d.failed ? -1 : 0;
}

static inline void drawings_free(DrawnProgram *programs, int count) {
    for (int i = 0; i < count; i++) free(programs[i].error);
}

#endif
