/* Files: read-only maps, and files that are replaced whole or not at all. */
#ifndef LIB_FILE_H
#define LIB_FILE_H

#include "error.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef O_CLOEXEC
#error "compile with -D_GNU_SOURCE, or include lib/error.h before the first system header"
#endif

typedef struct {
    const uint8_t *data;
    size_t size;
    char *path;
} MappedFile;

static inline void file_unmap(MappedFile *f) {
    if (f->data) munmap((void *)f->data, f->size);
    free(f->path);
    memset(f, 0, sizeof *f);
}

/* Maps a whole file for reading. The pages come from the page cache as they are touched, so a model larger than free
 * memory still opens at once. Refuses folders, devices and empty files. */
static inline int file_map(MappedFile *f, const char *path, Error *err) {
    memset(f, 0, sizeof *f);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: a named pipe must not block the open
    if (fd < 0) return error_set(err, "cannot read %s: %s", path, strerror(errno));
    struct stat s;
    const char *problem = NULL;
    if (fstat(fd, &s) != 0)
        problem = strerror(errno);
    else if (S_ISDIR(s.st_mode))
        problem = "it is a folder, a file was expected";
    else if (!S_ISREG(s.st_mode))
        problem = "it is not a regular file";
    else if (s.st_size == 0)
        problem = "the file is empty";
    void *data = problem ? NULL : mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) problem = strerror(errno);
    close(fd);
    if (problem) return error_set(err, "cannot read %s: %s", path, problem);
    f->data = (const uint8_t *)data;
    f->size = (size_t)s.st_size;
    f->path = xstrdup(path);
    return 0;
}

static inline bool file_exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0;
}

/* A file under construction. It is written as PATH.partial; atomic_commit gives it its name once it is whole and on
 * disk, so that a crash or a full disk leaves the previous PATH as it was. */
typedef struct {
    FILE *f;
    char *path, *temporary;  // temporary is NULL for a device or pipe, which is written directly
} AtomicFile;

/* The partial files of this process, for files_abandon. */
enum { FILES_OPEN = 16 };
static char *files_open[FILES_OPEN];
static pthread_mutex_t files_lock = PTHREAD_MUTEX_INITIALIZER;  // held while one is made or goes

/* Notes, with the lock, that a partial file is there, or not any more. */
static inline void files_note(char *temporary, bool open) {
    for (int i = 0; i < FILES_OPEN; i++)
        if (files_open[i] == (open ? NULL : temporary)) {
            files_open[i] = open ? temporary : NULL;
            return;
        }
}

/* Removes all partial files, once, from whichever thread ends the process. It keeps the lock: a thread that goes on
 * writing meanwhile makes and finishes no file any more. */
static inline void files_abandon(void) {
    pthread_mutex_lock(&files_lock);
    for (int i = 0; i < FILES_OPEN; i++)
        if (files_open[i]) unlink(files_open[i]);
}

/* Gives up: removes the partial file. Safe to call at any time, also after a commit. */
static inline void atomic_abandon(AtomicFile *a) {
    if (a->temporary) {
        pthread_mutex_lock(&files_lock);
        unlink(a->temporary);
        files_note(a->temporary, false);
        pthread_mutex_unlock(&files_lock);
    }
    if (a->f) fclose(a->f);
    free(a->path);
    free(a->temporary);
    memset(a, 0, sizeof *a);
}

static inline int atomic_fail(AtomicFile *a, int error_number, Error *err) {
    const char *path = a->path ? a->path : "the file";
    if (a->path && a->temporary && file_exists(a->path))
        error_set(err, "cannot write %s: %s; the previous %s is unchanged", path, strerror(error_number), path);
    else
        error_set(err, "cannot write %s: %s", path, strerror(error_number));
    atomic_abandon(a);
    return -1;
}

/* Opens and locks PATH.partial. The lock keeps two processes from writing into the same partial file; the comparison
 * of inodes catches the other one having renamed its file between our open and our lock. */
static inline int atomic_open_partial(AtomicFile *a, Error *err) {
    for (;;) {
        int fd = open(a->temporary, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
        if (fd < 0) return -1;
        struct stat ours, named;
        if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(fd);
            error_set(err, "cannot write %s: another process is writing it", a->path);
            free(a->temporary);  // it belongs to the other process: it must not be removed
            a->temporary = NULL;
            return -2;
        }
        if (fstat(fd, &ours) == 0 && stat(a->temporary, &named) == 0 && ours.st_ino == named.st_ino) {
            if (ftruncate(fd, 0) != 0) {
                close(fd);
                return -1;
            }
            return fd;
        }
        close(fd);
    }
}

static inline int atomic_open(AtomicFile *a, const char *path, Error *err) {
    memset(a, 0, sizeof *a);
    struct stat s, named;
    bool exists = stat(path, &s) == 0;
    if (exists && S_ISDIR(s.st_mode)) return error_set(err, "cannot write %s: it is a folder", path);
    bool link = lstat(path, &named) == 0 && S_ISLNK(named.st_mode);
    char *target =
        exists && link ? realpath(path, NULL) : NULL;  // a link stays a link: what it points to is replaced
    a->path = xstrdup(target ? target : path);
    free(target);
    int fd;
    if (exists && !S_ISREG(s.st_mode)) {
        fd = open(path, O_WRONLY | O_CLOEXEC);
    } else {
        a->temporary = format_string("%s.partial", a->path);
        pthread_mutex_lock(&files_lock);
        fd = atomic_open_partial(a, err);
        if (fd >= 0) files_note(a->temporary, true);
        pthread_mutex_unlock(&files_lock);
    }
    if (fd == -2) {
        atomic_abandon(a);
        return -1;
    }
    if (fd >= 0) a->f = fdopen(fd, "wb");
    if (a->f) return 0;
    int error_number = errno;
    if (fd >= 0) close(fd);
    return atomic_fail(a, error_number, err);
}

/* On failure the partial file is gone and every later call fails too. */
static inline int atomic_write(AtomicFile *a, const void *data, size_t size, Error *err) {
    if (!a->f) return error_set(err, "cannot write: the file was closed after an earlier error");
    if (size && fwrite(data, 1, size, a->f) != size) return atomic_fail(a, errno, err);
    return 0;
}

/* Flushes, waits until the bytes are on disk, renames, then makes the rename itself durable. */
static inline int atomic_commit(AtomicFile *a, Error *err) {
    if (!a->f) return error_set(err, "cannot write: the file was closed after an earlier error");
    bool failed = ferror(a->f) != 0;  // an unchecked fprintf; its reason is lost unless the flush meets it too
    if (fflush(a->f) != 0) return atomic_fail(a, errno, err);
    if (failed) return atomic_fail(a, EIO, err);
    if (a->temporary && fsync(fileno(a->f)) != 0) return atomic_fail(a, errno, err);
    if (a->temporary && rename(a->temporary, a->path) != 0) return atomic_fail(a, errno, err);
    if (a->temporary) {
        pthread_mutex_lock(&files_lock);
        files_note(a->temporary, false);
        pthread_mutex_unlock(&files_lock);
        free(a->temporary);
        a->temporary = NULL;
        char *slash = strrchr(a->path, '/');
        char *folder = slash ? format_string("%.*s", (int)(slash - a->path) + 1, a->path) : xstrdup(".");
        int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0) {
            fsync(fd);  // some file systems refuse to sync a folder; the file itself is safe by now
            close(fd);
        }
        free(folder);
    }
    int status = fclose(a->f);
    a->f = NULL;
    if (status != 0) return atomic_fail(a, errno, err);
    atomic_abandon(a);
    return 0;
}

/* Makes a folder and the folders above it; one that exists is fine. */
static inline int make_folder(const char *path, Error *err) {
    char *copy = xstrdup(path);
    int status = 0;
    for (char *p = copy; status == 0 && *p; p++) {
        if (p[1] != '/' && p[1] != '\0') continue;
        char after = p[1];
        p[1] = '\0';
        struct stat s;
        if (mkdir(copy, 0777) != 0 && !(stat(copy, &s) == 0 && S_ISDIR(s.st_mode))) {
            const char *why =
                errno == EEXIST || errno == ENOTDIR ? "a file of that name is in the way" : strerror(errno);
            status = error_set(err, "cannot make the folder %s: %s", copy, why);
        }
        p[1] = after;
    }
    if (!*path) status = error_set(err, "cannot make a folder: its name is empty");
    free(copy);
    return status;
}

/* Takes folder/.lock for this process: the descriptor (close it to let go; it ends with the process), or -1. */
static inline int folder_lock(const char *folder, Error *err) {
    char *path = format_string("%s/.lock", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) error_set(err, "cannot write %s: %s", path, strerror(errno));
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0) {
        char owner[24] = "";
        ssize_t n = errno == EWOULDBLOCK ? pread(fd, owner, sizeof owner - 1, 0) : -1;
        if (n >= 0)
            error_set(err, "another run (process %ld) is writing into %s; stop it or choose another folder",
                      strtol(owner, NULL, 10), folder);
        else
            error_set(err, "cannot lock %s: %s", path, strerror(errno));
        close(fd);
        fd = -1;
    }
    if (fd >= 0) {
        char owner[24];
        int length = snprintf(owner, sizeof owner, "%ld\n", (long)getpid());
        if (ftruncate(fd, 0) != 0 || pwrite(fd, owner, (size_t)length, 0) != length) {
            error_set(err, "cannot write %s: %s", path, strerror(errno));
            close(fd);
            fd = -1;
        }
    }
    free(path);
    return fd;
}

#endif
