/* An endless sequence of figures, of which no two are equal, and the part of it that a command line asks for:
 *
 *   [--seed S] [--skip K] [--count N] [--out FOLDER]
 *
 * The seed S determines the sequence. Figures K .. K+N-1 of it are written as FOLDER/000000.tex and so on, or, if FOLDER
 * is "-", to stdout, each followed by a NUL byte. */
#ifndef STARTER_SEQUENCE_H
#define STARTER_SEQUENCE_H

#include "../../lib/program.h"

#include "../../lib/hash.h"
#include "geometry.h"
#include "text.h"

typedef struct {
    long seed, skip, count;
    const char *folder;
} SequenceOptions;

/* Tries for a new figure. A part that holds one figure of 32 gets some 3 000 of them. If all of these are known, then fewer than
 * one in 600 of the part's figures is new, with a probability of 99 %. */
#define MAX_TRIES 100000
#define SEQUENCE_DEFAULTS ((SequenceOptions){.seed = 1, .count = 100, .folder = "-"})
#define SEQUENCE_USAGE "[--seed S] [--skip K] [--count N] [--out FOLDER or -]"

static uint64_t *seen;  // hash set, with open addressing, of the figures so far; 0: empty slot
static size_t seen_size, seen_count;

/* Inserts a hash; false if it is in the set already. */
static bool insert_hash(uint64_t hash) {
    size_t i = hash & (seen_size - 1);
    for (; seen[i]; i = (i + 1) & (seen_size - 1))
        if (seen[i] == hash) return false;
    seen[i] = hash;
    return true;
}

/* Whether a figure is new in the sequence; figures are compared by their 64-bit hashes. */
static bool is_new(const Text *t) {
    uint64_t hash = hash_bytes(HASH_BEGIN, t->s, t->n);
    if (seen_count * 2 >= seen_size) {
        uint64_t *old = seen;
        size_t old_size = seen_size;
        seen_size = old_size ? old_size * 2 : 1 << 16;
        seen = calloc(seen_size, sizeof *seen);
        if (!seen) die("out of memory for %zu figures", seen_count);
        for (size_t i = 0; i < old_size; i++)
            if (old[i]) insert_hash(old[i]);
        free(old);
    }
    bool fresh = insert_hash(hash | 1);
    seen_count += fresh;
    return fresh;
}

static void write_figure(const Text *t, const char *folder, long number) {
    char path[4200];
    FILE *f = stdout;
    bool to_stdout = !strcmp(folder, "-");
    snprintf(path, sizeof path, "%s/%06ld.tex", folder, number);
    if (!to_stdout) {
        const char *problem;
        int fd = file_create(path, O_WRONLY | O_TRUNC, &problem);
        if (fd < 0) die("cannot write %s: %s", path, problem);
        f = fdopen(fd, "wb");
    }
    size_t bytes = t->n + (to_stdout ? 1 : 0);  // including the terminating NUL
    if (!f || fwrite(t->s, 1, bytes, f) != bytes || (to_stdout ? fflush(f) : fclose(f)))
        die("cannot write %s: %s", to_stdout ? "stdout" : path, strerror(errno));
}

/* A number from 0 to 1000000000; ends the program with a sentence if the text is none. */
static long number_option(const char *name, const char *value) {
    char *end;
    errno = 0;
    long n = value ? strtol(value, &end, 10) : -1;
    if (!value || errno || end == value || *end || n < 0 || n > 1000000000) {
        fprintf(stderr, "generate: error: %s needs a number from 0 to 1000000000, got '%s'\n", name,
                value ? value : "");
        exit(2);
    }
    return n;
}

/* Takes an option of the command line. False if it is none of a sequence's. */
static bool sequence_option(SequenceOptions *o, const char *name, const char *value) {
    if (!strcmp(name, "--seed"))
        o->seed = number_option(name, value);
    else if (!strcmp(name, "--skip"))
        o->skip = number_option(name, value);
    else if (!strcmp(name, "--count"))
        o->count = number_option(name, value);
    else if (!strcmp(name, "--out") && value)
        o->folder = value;
    else
        return false;
    return true;
}

/* Makes a figure that is new in the sequence. False if MAX_TRIES have made none. */
static bool next_figure(Text *t, bool (*figure)(Text *)) {
    for (int tries = 0; tries < MAX_TRIES; tries++)
        if (figure(t) && is_new(t)) return true;
    return false;
}

/* Writes the figures that are asked for. figure: writes a random figure, or returns false if it found none. */
static void sequence_write(const SequenceOptions *o, bool (*figure)(Text *)) {
    Error err;
    Text t;
    if (strcmp(o->folder, "-")) die_if(make_folder(o->folder, &err), &err);
    random_state = o->seed;
    for (long i = 0; i < o->skip + o->count; i++) {
        if (!next_figure(&t, figure))
            die("only %ld different figures were found, %ld are needed (--skip and --count): %d more tries made no "
                "new one. Ask for fewer, or for more kinds and levels",
                i, o->skip + o->count, MAX_TRIES);
        if (i >= o->skip) write_figure(&t, o->folder, i);
    }
    free(seen);
}

#endif
