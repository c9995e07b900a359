/* A file that takes long to write: what has been written stays when the program is stopped, and the next run continues it.
 *
 *     kept_open(&f, path, &err);           opens PATH.partial, with the f.size bytes that are in it
 *     ... kept_write(&f, data, n, at, &err) ...
 *     kept_commit(&f, &err);               PATH.partial becomes PATH
 *
 * Unlike an AtomicFile (file.h), PATH.partial is not removed when the program ends. The caller must be able to tell which of
 * its bytes are good: after a crash a block may hold zeros. */
#ifndef LIB_KEPT_FILE_H
#define LIB_KEPT_FILE_H

#include "file.h"

typedef struct {
    int fd;
    char *path, *partial;
    uint64_t size;  // bytes of PATH.partial when it was opened
} KeptFile;

/* Closes the file; PATH.partial stays. */
static inline void kept_close(KeptFile *f) {
    if (f->path) close(f->fd);
    free(f->path);
    free(f->partial);
    memset(f, 0, sizeof *f);
}

static inline int kept_problem(KeptFile *f, const char *problem, Error *err) {
    error_set(err, "cannot write %s: %s", f->partial, problem);
    kept_close(f);
    return -1;
}

/* Opens and locks PATH.partial, or creates it; -2: it has got its name since (kept_commit), so that there is none. */
static inline int kept_open_partial(KeptFile *f, const char *path, Error *err) {
    struct stat ours, named;
    const char *problem;
    char *partial = partial_name(path);
    int fd = file_create(partial, O_RDWR, &problem);
    if (fd < 0) {
        error_set(err, "cannot write %s: %s", file_exists(partial) ? partial : path, problem);
        free(partial);
        return -1;
    }
    *f = (KeptFile){.fd = fd, .path = xstrdup(path), .partial = partial};
    if (flock(fd, LOCK_EX | LOCK_NB) != 0)
        return kept_problem(f, errno == EWOULDBLOCK ? "another process is writing it" : strerror(errno), err);
    if (fstat(fd, &ours) != 0) return kept_problem(f, strerror(errno), err);
    f->size = (uint64_t)ours.st_size;
    if (lstat(partial, &named) == 0 && named.st_ino == ours.st_ino && named.st_dev == ours.st_dev) return 0;
    kept_close(f);
    return -2;
}

/* Opens and locks PATH.partial, or creates it. Refuses a PATH that is not a file. */
static inline int kept_open(KeptFile *f, const char *path, Error *err) {
    struct stat s;
    int status;
    memset(f, 0, sizeof *f);
    if (stat(path, &s) == 0 && !S_ISREG(s.st_mode))
        return error_set(err, "cannot write %s: it is %s", path,
                         S_ISDIR(s.st_mode) ? "a folder" : "not a regular file");
    while ((status = kept_open_partial(f, path, err)) == -2) {}
    return status;
}

/* Sets the size of PATH.partial: 0 to begin anew. */
static inline int kept_resize(KeptFile *f, uint64_t size, Error *err) {
    if (ftruncate(f->fd, (off_t)size) != 0) return error_set(err, "cannot write %s: %s", f->partial, strerror(errno));
    f->size = size;
    return 0;
}

/* Makes the file n bytes long and asks the disk for all of them now, rather than to be told in hours that it is full. */
static inline int kept_reserve(KeptFile *f, uint64_t n, Error *err) {
    const int problem = posix_fallocate(f->fd, 0, (off_t)n);
    f->size = n;
    if (!problem) return 0;
    if (problem == EINVAL || problem == EOPNOTSUPP) return kept_resize(f, n, err);  // the file system cannot
    error_set(err, "cannot write %s, which will have %.1f MB: %s", f->path, (double)n / 1e6, strerror(problem));
    unlink(f->partial);
    return -1;
}

/* Writes n bytes at byte `at`. */
static inline int kept_write(KeptFile *f, const void *data, size_t n, uint64_t at, Error *err) {
    for (size_t done = 0; done < n;) {
        const ssize_t written = pwrite(f->fd, (const char *)data + done, n - done, (off_t)(at + done));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0)
            return error_set(err,
                             "cannot write %s: %s; what is written stays in %s",
                             f->path, strerror(written < 0 ? errno : EIO), f->partial);
        done += (size_t)written;
    }
    return 0;
}

/* Reads n bytes at byte `at` of what is there; fewer are an error. */
static inline int kept_read(KeptFile *f, void *data, size_t n, uint64_t at, Error *err) {
    for (size_t done = 0; done < n;) {
        const ssize_t got = pread(f->fd, (char *)data + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return error_set(err, "cannot read %s: %s", f->partial, got < 0 ? strerror(errno) : "it became shorter");
        done += (size_t)got;
    }
    return 0;
}

/* Brings the file to the disk and gives it its name. */
static inline int kept_commit(KeptFile *f, Error *err) {
    if (fsync(f->fd) != 0 || rename(f->partial, f->path) != 0)
        return error_set(err, "cannot write %s: %s; %s is complete, and the same command continues it", f->path,
                         strerror(errno), f->partial);
    char *folder = folder_of(f->path);
    folder_sync(folder);
    free(folder);
    kept_close(f);
    return 0;
}

#endif
