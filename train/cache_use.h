/* --teacher-cache: whether a cache suits the run that is to learn from it. */
#ifndef TRAIN_CACHE_USE_H
#define TRAIN_CACHE_USE_H

#include "../lib/file_checksum.h"
#include "options.h"
#include "teacher.h"

/* The --teacher, where there is one, is not loaded, but a new student may start from it: it must be the cache's. */
static void cache_check_teacher(const CacheHeader *h) {
    Error err;
    uint64_t checksum;
    if (!strcmp(opt.teacher, "none")) return;
    die_if(file_checksum(opt.teacher, &checksum, &err), &err);
    if (checksum != h->teacher)
        die("%s holds the outputs of another teacher (%s) than --teacher %s; name that one, or --teacher none",
            opt.teacher_cache, h->name, opt.teacher);
}

/* What is listed of a distribution serves one temperature, and draws serve KL alone. */
static void cache_check_objective(const CacheHeader *h, const Settings *s) {
    if (h->kind == CACHE_DENSE) return;
    if (s->objective.temperature != h->temperature || s->kd_schedule != KD_CONSTANT)
        die("%s was made for one temperature: give --temperature %g --kd-schedule none, or write a cache of another "
            "temperature, or a dense one, with --write-teacher-cache",
            opt.teacher_cache, (double)h->temperature);
    if (h->kind == CACHE_SAMPLE && s->objective.soft != SOFT_KL)
        die("%s holds random draws, which stand for the teacher in KL alone; leave out --soft-loss %s, or write a "
            "topk or dense cache",
            opt.teacher_cache, soft_loss_names[s->objective.soft]);
}

/* Opens the cache of a run, if it has one, for the training data d. vocab: the student's vocabulary. Ends the program where
 * the cache does not suit it. */
static void teacher_open_cache(Teacher *t, const Settings *s, const Dataset *d, int vocab) {
    Error err;
    if (!opt.teacher_cache) return;
    die_if(cache_open(&t->cache, opt.teacher_cache, d, opt.data, &err), &err);
    const CacheHeader *h = &t->cache.h;
    cache_check_teacher(h);
    cache_check_objective(h, s);
    if (h->kind != CACHE_DENSE && h->vocab > (uint32_t)vocab)
        die("%s lists tokens of a vocabulary of %u, the student has %d; only a dense cache can be cut to fewer",
            opt.teacher_cache, h->vocab, vocab);
}

#endif
