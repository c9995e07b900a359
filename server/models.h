/* The models that are served. Each has a name and a file; an Instance is one opening of the file, with its memory for
 * continuous batching. When the file is loaded again, new requests get the new instance, and the old one goes when its last
 * request has. */
#ifndef SERVER_MODELS_H
#define SERVER_MODELS_H

#include "../generate/best.h"
#include "../generate/fit.h"
#include "../generate/prefix.h"
#include "job.h"

enum { MODELS_MOST = 16 };

typedef struct Instance {
    const char *name;
    Model model;
    Generator generator;
    TokenIds prefix;
    PreprocessOptions prepare;
    RenderTask task;
    ProgramModel known;  // the model, for its programs
    Writer writer;       // the settings of server/decode.h's programs
    Best best;           // where best_open says that it is open: for candidates and search
    bool best_open;
    int max_tokens;              // of a program, with the prefix
    int64_t parameters, opened;  // opened: seconds since 1970
    Job **slots;                 // [max_B] the programs that are being written; slots 0 .. running-1 are taken
    int running;
    int references;  // the registry's and the jobs'
    struct Instance *next;
} Instance;

typedef struct {
    const char *name, *path;
    Instance *current;
} ServedModel;

typedef struct {
    const Ops *op;
    WeightFormat format;
    int slots;
    ServedModel models[MODELS_MOST];
    int count;
    pthread_mutex_t lock;  // of `current` and references
    Instance *all;         // list; only the engine's thread, which owns the device, changes it
} Registry;

/* Plans the memory of an instance: one image at a time is encoded, up to `slots` programs are written together. -1: it does not
 * fit; model_close frees what is there. */
static inline int instance_plan(Instance *i, int slots, Error *err) {
    Model *m = &i->model;
    const int T = slots > i->prefix.count + 1 ? slots : i->prefix.count + 1;
    slots = generator_try_fit(m, slots, 1, true, T, i->max_tokens, err);
    if (slots < 0 || model_try_plan(m, 1, T, err) || generator_try_open(&i->generator, m, slots, i->max_tokens, err))
        return -1;
    generator_set_sampling(&i->generator, 0, 1, 0, 1, m->tokenizer.begin >= 0);  // for `first`
    i->generator.scored = true;
    i->slots = (Job **)xcalloc((size_t)i->generator.max_B, sizeof(Job *));
    return 0;
}

static inline int64_t instance_count(const Model *m) {
    int64_t n = 0;
    for (int i = 0; i < m->params.count; i++) n += (int64_t)m->params.list[i].n;
    return n;
}

/* Opens a model's file. On the thread that owns the device. */
static inline Instance *instance_open(const Registry *r, const ServedModel *served, Error *err) {
    Instance *i = (Instance *)xcalloc(1, sizeof *i);
    Model *m = &i->model;
    if (model_open_as(m, r->op, served->path, "", r->format, err)) {
        free(i);
        return NULL;
    }
    i->max_tokens = model_max_text(m);
    const char *preprocess = preprocess_of_model(m, err);
    if (!preprocess || prefix_read(&i->prefix, NULL, &m->tokenizer, served->path, err) ||
        instance_plan(i, r->slots, err)) {
        model_close(m);
        free(i->prefix.ids);
        free(i);
        return NULL;
    }
    i->name = served->name;
    i->task = strcmp(m->tokenizer.task, "formula") ? RENDER_TIKZ : RENDER_FORMULA;
    i->prepare = (PreprocessOptions){.preprocess = preprocess, .size = vision_size(&m->c.vision)};
    i->parameters = instance_count(m);
    i->opened = (int64_t)time(NULL);
    i->references = 1;
    i->known = (ProgramModel){&m->tokenizer, i->task, i->prepare.size, i->max_tokens};
    i->writer = (Writer){.o = {.json = true, .repeat_guard = true}};
    return i;
}

static inline void instance_close(Instance *i) {
    if (i->best_open) best_close(&i->best);
    generator_close(&i->generator);
    model_close(&i->model);
    free(i->prefix.ids);
    free(i->slots);
    free(i);
}

/* Returns whether nobody uses the instance any more. */
static inline bool instance_release(Registry *r, Instance *i) {
    pthread_mutex_lock(&r->lock);
    const bool unused = --i->references == 0;
    pthread_mutex_unlock(&r->lock);
    return unused;
}

/* ---- the registry ---- */

/* Adds "NAME=PATH", or a path whose file's name without its ending is the name. */
static inline int registry_add(Registry *r, const char *text, Error *err) {
    const char *equals = strchr(text, '='), *slash = strchr(text, '/');
    const bool named = equals && equals > text && (!slash || equals < slash);
    const char *path = named ? equals + 1 : text, *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path,
               *dot = strrchr(base, '.');
    char *name = named ? format_string("%.*s", (int)(equals - text), text)
                       : format_string("%.*s", dot && dot > base ? (int)(dot - base) : (int)strlen(base), base);
    int status = 0;
    if (r->count == MODELS_MOST) status = error_set(err, "at most %d models are served", MODELS_MOST);
    for (int i = 0; i < r->count && status == 0; i++)
        if (!strcmp(r->models[i].name, name))
            status = error_set(err, "two models have the name %s; name one as --model OTHER=%s", name, path);
    if (status) {
        free(name);
        return status;
    }
    r->models[r->count++] = (ServedModel){options_keep(name), options_keep(xstrdup(path)), NULL};
    return 0;
}

/* Opens one model, or opens it again. Where that fails, what is open stays. */
static inline int registry_load(Registry *r, ServedModel *served, Error *err) {
    Instance *fresh = instance_open(r, served, err);
    if (!fresh) return -1;
    pthread_mutex_lock(&r->lock);
    if (served->current) served->current->references--;
    served->current = fresh;
    fresh->next = r->all;
    r->all = fresh;
    pthread_mutex_unlock(&r->lock);
    return 0;
}

/* Closes the instances that nobody uses. On the thread that owns the device. */
static inline void registry_sweep(Registry *r) {
    Instance *unused = NULL;
    pthread_mutex_lock(&r->lock);
    for (Instance **at = &r->all; *at;) {
        Instance *i = *at;
        if (i->references > 0) {
            at = &i->next;
            continue;
        }
        *at = i->next;
        i->next = unused;
        unused = i;
    }
    pthread_mutex_unlock(&r->lock);
    while (unused) {  // which takes long, while others use the registry
        Instance *next = unused->next;
        instance_close(unused);
        unused = next;
    }
}

/* Whether there are models of figures and of formulas. */
static inline bool registry_has_both(Registry *r) {
    bool has[2] = {false, false};
    pthread_mutex_lock(&r->lock);
    for (int i = 0; i < r->count; i++) has[r->models[i].current->task == RENDER_FORMULA] = true;
    pthread_mutex_unlock(&r->lock);
    return has[0] && has[1];
}

/* The model of a request: by its name, or the first of the task (NULL: any), in *out; the caller releases it. Returns 0, or the status of
 * the failure with *err filled. */
static inline int registry_get(Registry *r, const char *name, const char *task, Instance **out, Error *err) {
    Instance *found = NULL;
    const bool any = !task;
    pthread_mutex_lock(&r->lock);
    for (int i = 0; i < r->count && !found; i++) {
        Instance *current = r->models[i].current;
        if (name ? !strcmp(r->models[i].name, name) : any || !strcmp(render_task_names[current->task], task))
            found = current;
    }
    if (found) found->references++;
    pthread_mutex_unlock(&r->lock);
    *out = found;
    if (!found && name) return error_set(err, "there is no model '%.100s'; GET /v1/models lists them", name), 404;
    if (!found) return error_set(err, "no model here writes the task %s; GET /v1/models lists them", task), 422;
    if (!name || any || !strcmp(render_task_names[found->task], task)) return 0;
    error_set(err, "the model %s writes the task %s, not %s", name, render_task_names[found->task], task);
    instance_release(r, found);
    *out = NULL;
    return 422;
}

#endif
