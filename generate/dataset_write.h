/* infer --dataset: the programs that a model writes for the images of a data set, as another data set, for sequence-level
 * distillation (Kim and Rush 2016): the student learns from the teacher's programs as if they were the data's.
 *
 *     generated_open(&t, o, &inputs);     the images of the data set, --samples times
 *     generated_begin(&t, ...);           takes over what an earlier run has written
 *     ... each program that is done: generated_take ...
 *     generated_finish(&t);               draws programs where --keep asks for it, writes the data set
 *
 * The data set has the images of the old one and the programs that are kept, in the order of the old one. Programs without an
 * end are never kept. With --keep same a program is drawn, and so is the old one's, both at the same resolution. */
#ifndef GENERATE_DATASET_WRITE_H
#define GENERATE_DATASET_WRITE_H

#include "../lib/dataset.h"
#include "../lib/tokenizer.h"
#include "../metrics/drawings.h"
#include "dataset_journal.h"
#include "inputs.h"

typedef enum { KEEP_ALL, KEEP_COMPILING, KEEP_SAME, KEEP_KINDS } KeepKind;
static const char *const keep_names[] = {"all", "compiling", "same"};

enum { GENERATED_DPI = 100 };

typedef struct {
    const char *output, *data_path, *model_path;
    KeepKind keep;
    RenderTask task;    // how programs are drawn
    int samples, jobs;  // programs of each image; that are drawn at a time
    bool resume, quiet;
} GeneratedOptions;

/* What became of the programs. */
typedef struct {
    int64_t kept, cut, failed, repeated, broken, other, no_reference;
} GeneratedCounts;

typedef struct {
    GeneratedOptions o;
    Dataset data;
    const Tokenizer *tokenizer;
    GeneratedProgram *programs;  // [count]: those of sample i have the numbers i * samples ...
    uint64_t count;
    int64_t done;
    Journal journal;
    char *journal_path, *folder;
    Progress progress;
    GeneratedCounts counts;
} GeneratedData;

/* ---- before ---- */

/* Opens the data set and lists its images. Ends the program where a record is damaged or TeX is missing. */
static inline void generated_open(GeneratedData *t, GeneratedOptions o, Inputs *in) {
    Error err;
    Renderer renderer;
    *t = (GeneratedData){.o = o};
    die_if(dataset_open(&t->data, o.data_path, &err) || dataset_check_tokens(&t->data, 0, &err), &err);
    for (int i = 0; i < t->data.shard_count; i++)
        if (same_file(t->data.shards[i].file.path, o.output))
            die("--dataset %s is the data set that is read; name another file", o.output);
    if (o.keep != KEEP_ALL) {  // now, and not after hours
        die_if(renderer_open(&renderer, &(RenderOptions){0}, &err), &err);
        renderer_close(&renderer);
    }
    t->count = t->data.count * (uint64_t)o.samples;
    if (t->count > INT_MAX) die("%s has too many samples for --samples %d", o.data_path, o.samples);
    t->programs = (GeneratedProgram *)xcalloc((size_t)t->count, sizeof *t->programs);
    for (uint64_t i = 0; i < t->count; i++) {
        const Sample s = dataset_sample(&t->data, i / (uint64_t)o.samples);
        inputs_add(in, format_string("record %llu of %s", (unsigned long long)s.number, s.path), false);
        in->items[in->count - 1].bytes = s.image;
        in->items[in->count - 1].size = s.image_bytes;
    }
    t->journal_path = format_string("%s.programs", o.output);
    t->folder = format_string("%s.drawings", o.output);
}

/* Opens the journal. settings: what decides the programs, beside model and data. */
static inline void generated_begin(GeneratedData *t, const Tokenizer *tokenizer, uint64_t model, const char *settings) {
    Error err;
    uint64_t identity = hash_bytes(dataset_content(&t->data), &model, sizeof model);
    identity = hash_bytes(identity, settings, strlen(settings));
    t->tokenizer = tokenizer;
    if (t->o.keep == KEEP_SAME && t->data.fingerprint != tokenizer->fingerprint)
        die("--keep same compares with the programs of %s, which were made with another tokenizer (fingerprint "
            "%016llx) than the model's (%016llx); use --keep compiling",
            t->o.data_path, (unsigned long long)t->data.fingerprint, (unsigned long long)tokenizer->fingerprint);
    t->done = journal_open(&t->journal, t->journal_path, identity, t->programs, t->count, t->o.resume, &err);
    die_if(t->done < 0, &err);
    if (t->done)
        progress_note("%s: goes on after %lld of %llu programs", t->o.output, (long long)t->done,
                      (unsigned long long)t->count);
    interrupts_keep();
    progress_begin(&t->progress, "programs", t->done, (int64_t)t->count);
    t->progress.quiet = t->o.quiet;
}

static inline bool generated_has(const GeneratedData *t, int number) { return t->programs[number].state != GENERATED_MISSING; }

/* A program is done: its ids without the end token. */
static inline void generated_take(GeneratedData *t, int number, GeneratedState state, const int *ids, int count) {
    Error err;
    GeneratedProgram *p = &t->programs[number];
    p->state = state;
    p->count = (uint32_t)count;
    p->ids = (uint32_t *)xmalloc((size_t)count * sizeof *p->ids);
    for (int i = 0; i < count; i++) p->ids[i] = (uint32_t)ids[i];
    die_if(journal_add(&t->journal, (uint32_t)number, p, &err), &err);
    progress_update(&t->progress, ++t->done, NULL);
}

/* ---- which are kept ---- */

/* Whether an earlier sample of the same image is the same program. */
static inline bool generated_repeats(const GeneratedData *t, uint64_t number) {
    const GeneratedProgram *p = &t->programs[number];
    for (uint64_t i = number - number % (uint64_t)t->o.samples; i < number; i++) {
        const GeneratedProgram *q = &t->programs[i];
        if (q->state == GENERATED_ENDED && q->count == p->count && !memcmp(q->ids, p->ids, p->count * sizeof *p->ids))
            return true;
    }
    return false;
}

/* The text of a program, allocated. */
static inline void generated_text(const GeneratedData *t, DrawnProgram *d, const uint32_t *ids, uint32_t count) {
    char *text;
    int *copy = (int *)xmalloc(count * sizeof *copy);
    for (uint32_t i = 0; i < count; i++) copy[i] = (int)ids[i];
    tokenizer_decode(t->tokenizer, copy, (int)count, &text, &d->bytes);
    d->program = text;
    free(copy);
}

/* The text of a sample's own program, without its end token. */
static inline void generated_reference(const GeneratedData *t, DrawnProgram *d, uint64_t sample) {
    Error err;
    const Sample s = dataset_sample(&t->data, sample);
    die_if(dataset_check_sample(&s, t->tokenizer->count, &err), &err);
    const bool ended = tokenizer_ends(t->tokenizer, (int)s.tokens[s.token_count - 1]);
    generated_text(t, d, s.tokens, s.token_count - ended);
}

/* Whether two drawings have the same pixels: they were written by the same encoder. */
static inline bool generated_same_drawing(const DrawingOptions *o, const DrawnProgram *a, const DrawnProgram *b) {
    Error err;
    MappedFile x, y;
    if (!strcmp(a->name, b->name)) return true;
    char *path_a = drawn_path(o, a, "png"), *path_b = drawn_path(o, b, "png");
    die_if(file_map(&x, path_a, &err) || file_map(&y, path_b, &err), &err);
    const bool same = x.size == y.size && !memcmp(x.data, y.data, x.size);
    file_unmap(&x);
    file_unmap(&y);
    free(path_a);
    free(path_b);
    return same;
}

/* Draws what has to be drawn: programs [count], and after them, with --keep same, the samples' own. keep [count] says
 * which programs come into question, and then which are kept. */
static inline void generated_judge(GeneratedData *t, bool *keep) {
    Error err;
    const uint64_t samples = t->o.keep == KEEP_SAME ? t->data.count : 0;
    const DrawingOptions o = {.task = t->o.task,
                              .dpi = GENERATED_DPI,
                              .jobs = t->o.jobs,
                              .resume = true,
                              .one_engine = true,
                              .folder = t->folder};
    DrawnProgram *drawn = (DrawnProgram *)xcalloc((size_t)(t->count + samples) + 1, sizeof *drawn);
    uint64_t *at = (uint64_t *)xcalloc((size_t)t->count + 1, sizeof *at), n = 0;
    for (uint64_t i = 0; i < t->count; i++)
        if (keep[i]) generated_text(t, &drawn[at[i] = n++], t->programs[i].ids, t->programs[i].count);
    const uint64_t references = n;
    for (uint64_t i = 0; i < samples; i++) generated_reference(t, &drawn[n++], i);
    die_if(make_folder(t->folder, &err), &err);
    die_if(drawings_make(drawn, (int)n, &o, &err), &err);
    for (uint64_t i = 0; i < t->count; i++) {
        if (!keep[i]) continue;
        const DrawnProgram *p = &drawn[at[i]],
                           *own = samples ? &drawn[references + i / (uint64_t)t->o.samples] : NULL;
        const bool clean = p->verdict == DRAWN_CLEAN, compared = clean && own;
        t->counts.broken += !clean;
        t->counts.no_reference += compared && own->verdict > DRAWN_WITH_ERRORS;
        keep[i] = clean;
        if (!compared) continue;
        keep[i] = own->verdict <= DRAWN_WITH_ERRORS && generated_same_drawing(&o, p, own);
        t->counts.other += own->verdict <= DRAWN_WITH_ERRORS && !keep[i];
    }
    for (uint64_t i = 0; i < n; i++) free((void *)drawn[i].program);
    drawings_free(drawn, (int)n);
    free(drawn);
    free(at);
}

static inline bool *generated_choose(GeneratedData *t) {
    bool *keep = (bool *)xcalloc((size_t)t->count + 1, sizeof *keep);
    for (uint64_t i = 0; i < t->count; i++) {
        const GeneratedState state = t->programs[i].state;
        t->counts.cut += state == GENERATED_CUT;
        t->counts.failed += state == GENERATED_FAILED;
        keep[i] = state == GENERATED_ENDED && !generated_repeats(t, i);
        t->counts.repeated += state == GENERATED_ENDED && !keep[i];
    }
    if (t->o.keep != KEEP_ALL) generated_judge(t, keep);
    for (uint64_t i = 0; i < t->count; i++) t->counts.kept += keep[i];
    return keep;
}

/* ---- after ---- */

static inline void generated_write(GeneratedData *t, const bool *keep) {
    Error err;
    DatasetWriter w;
    die_if(dataset_writer_open(&w, t->o.output, t->tokenizer->fingerprint, &err), &err);
    for (uint64_t i = 0; i < t->count; i++) {
        GeneratedProgram *p = &t->programs[i];
        if (!keep[i]) continue;
        const Sample s = dataset_sample(&t->data, i / (uint64_t)t->o.samples);
        p->ids = (uint32_t *)xrealloc(p->ids, (p->count + 1) * sizeof *p->ids);
        p->ids[p->count] = (uint32_t)t->tokenizer->end;
        die_if(dataset_writer_add(&w, s.image, s.image_bytes, p->ids, p->count + 1, &err), &err);
    }
    char *source = format_string("the programs of %s for the images of %s, kept: %s", t->o.model_path, t->o.data_path,
                                 keep_names[t->o.keep]);
    printable(source);
    for (char *c = source; *c; c++)
        if ((unsigned char)*c >= 128) *c = '?';
    die_if(dataset_writer_commit(&w, source, &err), &err);
    free(source);
}

static inline void generated_report(const GeneratedData *t) {
    const GeneratedCounts *c = &t->counts;
    const struct {
        int64_t count;
        const char *what;
    } dropped[] = {{c->cut, "cut before their end"},
                   {c->failed, "not written"},
                   {c->repeated, "written before for the same image"},
                   {c->broken, "with errors"},
                   {c->other, "that draw something else"},
                   {c->no_reference, "for images whose own program draws nothing"}};
    fprintf(stderr, "%s: %lld of %llu programs kept", t->o.output, (long long)c->kept, (unsigned long long)t->count);
    const char *between = "; dropped: ";
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++) {
        if (!dropped[i].count) continue;
        fprintf(stderr, "%s%lld %s", between, (long long)dropped[i].count, dropped[i].what);
        between = ", ";
    }
    fputc('\n', stderr);
}

/* Removes the drawings of this run. */
static inline void generated_remove_drawings(const GeneratedData *t) {
    DIR *folder = opendir(t->folder);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        const char *dot = strrchr(entry->d_name, '.');
        if (!dot || dot - entry->d_name != 16 || (strcmp(dot, ".png") && strcmp(dot, ".txt"))) continue;
        char *path = format_string("%s/%s", t->folder, entry->d_name);
        unlink(path);
        free(path);
    }
    if (folder) closedir(folder);
    rmdir(t->folder);
}

/* Chooses, writes and says what was kept. Ends the program where it was interrupted, or nothing is kept. */
static inline void generated_finish(GeneratedData *t) {
    progress_end(&t->progress);
    if (t->done < (int64_t)t->count)
        die("interrupted: %lld of %llu programs are in %s; the same command with --resume goes on",
            (long long)t->done, (unsigned long long)t->count, t->journal.file.partial);
    bool *keep = generated_choose(t);
    if (t->counts.kept) generated_write(t, keep);
    generated_report(t);
    if (!t->counts.kept)
        die("no program was kept, so %s is not written; the programs are in %s, for --resume with another --keep",
            t->o.output, t->journal.file.partial);
    journal_remove(&t->journal);
    generated_remove_drawings(t);
    for (uint64_t i = 0; i < t->count; i++) free(t->programs[i].ids);
    free(t->programs);
    free(keep);
    free(t->journal_path);
    free(t->folder);
    dataset_close(&t->data);
}

#endif
