/* Files: read-only memory maps, atomic replacement (a file is replaced completely or not at all), folders, locks. */
#ifndef LIB_FILE_H
#define LIB_FILE_H

#include "error.h"

#include "hash.h"

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

/* Maps a whole file for reading. Pages are loaded when they are first touched, so a model larger than the free memory
 * opens at once too. Refuses folders, devices and empty files. */
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
    void *data = problem ? NULL : mmap(NULL, s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) problem = strerror(errno);
    close(fd);
    if (problem) return error_set(err, "cannot read %s: %s", path, problem);
    *f = (MappedFile){data, s.st_size, xstrdup(path)};
    return 0;
}

static inline bool file_exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0;
}

/* A file that is being written. Its data go to PATH.partial (partial_name); atomic_commit renames it to PATH once it is complete and
 * on disk, so that a crash or a full disk leaves the previous PATH unchanged. */
typedef struct {
    FILE *f;
    char *path, *temporary;  // temporary is NULL for a device or pipe, which is written directly
} AtomicFile;

/* The partial files that this process is writing, for files_abandon. */
enum { FILES_OPEN = 16 };
static char *files_open[FILES_OPEN];
static pthread_mutex_t files_lock = PTHREAD_MUTEX_INITIALIZER;  // held while a partial file is created or removed

/* Enters a partial file into files_open, or removes it. The caller holds files_lock. */
static inline void files_register(char *temporary, bool open) {
    for (int i = 0; i < FILES_OPEN; i++)
        if (files_open[i] == (open ? NULL : temporary)) {
            files_open[i] = open ? temporary : NULL;
            return;
        }
}

/* Removes all partial files; an exit handler, run by the thread that ends the process. It never releases files_lock,
 * so that other threads, which may still be writing, can neither create nor commit a file any more. */
static inline void files_abandon(void) {
    pthread_mutex_lock(&files_lock);
    for (int i = 0; i < FILES_OPEN; i++)
        if (files_open[i]) unlink(files_open[i]);
}

/* Discards the file: removes PATH.partial and leaves PATH unchanged. It may be called after a commit too. */
static inline void atomic_abandon(AtomicFile *a) {
    if (a->temporary) {
        pthread_mutex_lock(&files_lock);
        unlink(a->temporary);
        files_register(a->temporary, false);
        pthread_mutex_unlock(&files_lock);
    }
    if (a->f) fclose(a->f);
    free(a->path);
    free(a->temporary);
    memset(a, 0, sizeof *a);
}

/* Reports a system error and discards the file. Returns -1. */
static inline int atomic_fail(AtomicFile *a, int error_number, Error *err) {
    const char *path = a->path ? a->path : "the file";
    if (a->path && a->temporary && file_exists(a->path))
        error_set(err, "cannot write %s: %s; the previous %s is unchanged", path, strerror(error_number), path);
    else
        error_set(err, "cannot write %s: %s", path, strerror(error_number));
    atomic_abandon(a);
    return -1;
}

/* Opens and locks PATH.partial. Returns its descriptor, -1 with errno set, or -2 with a sentence in err. The lock
 * keeps two processes from writing the same partial file. Comparing inodes detects that another process renamed its
 * file between our open and our lock; then we try again. */
static inline int atomic_open_partial(AtomicFile *a, Error *err) {
    for (;;) {
        int fd = open(a->temporary, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
        if (fd < 0) return -1;
        struct stat ours, named;
        if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(fd);
            error_set(err, "cannot write %s: another process is writing it", a->path);
            free(a->temporary);  // the file belongs to the other process and must not be removed
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

/* The name of the partial file of PATH: PATH.partial, or where that would be longer than the 255 bytes that file systems
 * allow, a shorter one that no other PATH has. The caller frees it. */
static inline char *partial_name(const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const int folder = (int)(name - path);
    if (strlen(name) <= 255 - strlen(".partial")) return format_string("%s.partial", path);
    return format_string("%.*s%.200s-%016llx.partial", folder, path, name,
                         (unsigned long long)hash_bytes(HASH_BEGIN, name, strlen(name)));
}

/* Starts writing a file. If `path` is a symbolic link, the file it points to is replaced; a device or pipe is written
 * directly. */
static inline int atomic_open(AtomicFile *a, const char *path, Error *err) {
    memset(a, 0, sizeof *a);
    struct stat s, named;
    bool exists = stat(path, &s) == 0;
    if (exists && S_ISDIR(s.st_mode)) return error_set(err, "cannot write %s: it is a folder", path);
    bool link = lstat(path, &named) == 0 && S_ISLNK(named.st_mode);
    char *target = exists && link ? realpath(path, NULL) : NULL;
    a->path = xstrdup(target ? target : path);
    free(target);
    int fd;
    if (exists && !S_ISREG(s.st_mode)) {
        fd = open(path, O_WRONLY | O_CLOEXEC);
    } else {
        a->temporary = partial_name(a->path);
        pthread_mutex_lock(&files_lock);
        fd = atomic_open_partial(a, err);
        if (fd >= 0) files_register(a->temporary, true);
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

/* Appends `size` bytes. After a failure the partial file is removed, and every later call fails too. */
static inline int atomic_write(AtomicFile *a, const void *data, size_t size, Error *err) {
    if (!a->f) return error_set(err, "cannot write: the file was closed after an earlier error");
    if (size && fwrite(data, 1, size, a->f) != size) return atomic_fail(a, errno, err);
    return 0;
}

/* Flushes and syncs the file, renames it to its final path, then syncs the folder to make the rename durable. */
static inline int atomic_commit(AtomicFile *a, Error *err) {
    if (!a->f) return error_set(err, "cannot write: the file was closed after an earlier error");
    bool failed = ferror(a->f) != 0;  // of an unchecked fprintf; its errno is lost unless the flush fails as well
    if (fflush(a->f) != 0) return atomic_fail(a, errno, err);
    if (failed) return atomic_fail(a, EIO, err);
    if (a->temporary && fsync(fileno(a->f)) != 0) return atomic_fail(a, errno, err);
    if (a->temporary && rename(a->temporary, a->path) != 0) return atomic_fail(a, errno, err);
    if (a->temporary) {
        pthread_mutex_lock(&files_lock);
        files_register(a->temporary, false);
        pthread_mutex_unlock(&files_lock);
        free(a->temporary);
        a->temporary = NULL;
        char *slash = strrchr(a->path, '/');
        char *folder = slash ? format_string("%.*s", (int)(slash - a->path) + 1, a->path) : xstrdup(".");
        int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0) {
            fsync(fd);  // some file systems cannot sync a folder; the file itself is already on disk
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

/* Creates a folder and its missing parents, as mkdir -p. */
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

/* Locks folder/.lock for this process and writes the process id into it. Returns the descriptor that holds the lock,
 * which is released by close or at the end of the process, or -1. */
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
        if (ftruncate(fd, 0) != 0 || pwrite(fd, owner, length, 0) != length) {
            error_set(err, "cannot write %s: %s", path, strerror(errno));
            close(fd);
            fd = -1;
        }
    }
    free(path);
    return fd;
}

#endif
