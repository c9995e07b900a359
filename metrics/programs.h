/* The programs that a model has written for the samples of a dataset, kept in a file, so that an interrupted run goes on.
 *
 * The file has, for each program, a line with the sample's number and the program's length in bytes, the program, and a line
 * end. What an interruption has cut off at its end is dropped. */
#ifndef METRICS_PROGRAMS_H
#define METRICS_PROGRAMS_H

#include "../lib/file.h"
#include "../lib/hash.h"

typedef struct {
    char **texts;     // [count]; NULL: not written yet
    size_t *lengths;  // [count], bytes; a program may have any
    int64_t count;
    FILE *file;  // NULL: they are only in memory
    char *path;
} ProgramStore;

/* Takes over the programs of an earlier run: those of complete entries with numbers below count. Returns how many bytes of
 * the file they are. */
static inline size_t programs_read(ProgramStore *s, const uint8_t *data, size_t size) {
    size_t at = 0;
    for (;;) {
        const uint8_t *end = (const uint8_t *)memchr(data + at, '\n', size - at);
        long long sample, bytes;
        int used = 0;
        char line[64];
        if (!end || (size_t)(end - data) - at >= sizeof line) return at;
        memcpy(line, data + at, (size_t)(end - data) - at);
        line[(size_t)(end - data) - at] = '\0';
        if (sscanf(line, "%lld %lld%n", &sample, &bytes, &used) != 2 || line[used]) return at;
        const size_t begin = (size_t)(end - data) + 1, left = size - begin;
        if (sample < 0 || sample >= s->count || bytes < 0 || (size_t)bytes >= left ||
            data[begin + (size_t)bytes] != '\n')
            return at;
        free(s->texts[sample]);
        s->texts[sample] = (char *)xcalloc((size_t)bytes + 1, 1);
        memcpy(s->texts[sample], data + begin, (size_t)bytes);
        s->lengths[sample] = (size_t)bytes;
        at = begin + (size_t)bytes + 1;
        if (at == size) return at;
    }
}

/* Opens the store for `count` samples, with the programs that PATH has from an earlier run. path NULL: in memory. */
static inline int programs_open(ProgramStore *s, const char *path, int64_t count, Error *err) {
    uint8_t *data;
    size_t size;
    *s = (ProgramStore){.texts = (char **)xcalloc((size_t)count + 1, sizeof(char *)),
                        .lengths = (size_t *)xcalloc((size_t)count + 1, sizeof(size_t)),
                        .count = count};
    if (!path) return 0;
    s->file = file_open_kept(path, &data, &size, err);
    if (!s->file) return -1;
    s->path = xstrdup(path);
    const size_t good = size ? programs_read(s, data, size) : 0;
    free(data);
    return file_cut(s->file, path, good, err);
}

/* Adds a program; the store takes the text, allocated and ended with NUL, over. */
static inline int programs_add(ProgramStore *s, int64_t sample, char *text, size_t bytes, Error *err) {
    free(s->texts[sample]);
    s->texts[sample] = text;
    s->lengths[sample] = bytes;
    if (!s->file) return 0;
    fprintf(s->file, "%lld %zu\n", (long long)sample, bytes);
    fwrite(text, 1, bytes, s->file);
    fputc('\n', s->file);
    return fflush(s->file) ? error_set(err, "cannot write %s: %s", s->path, strerror(errno)) : 0;
}

static inline void programs_close(ProgramStore *s) {
    for (int64_t i = 0; i < s->count; i++) free(s->texts[i]);
    if (s->file) fclose(s->file);
    free(s->texts);
    free(s->lengths);
    free(s->path);
    *s = (ProgramStore){0};
}

#endif
