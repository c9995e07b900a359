/* Files: read-only memory maps, atomic replacement (a file is replaced completely or not at all), folders, locks.
 *
 * What is read must be a regular file: a folder, a device or a named pipe would hang, or never end. What is written
 * under a name that the program makes itself (PATH.partial, .lock) is never a symbolic link to something else. */
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

/* Why a file cannot be read, or NULL. */
static inline const char *file_problem(const struct stat *s) {
    if (S_ISDIR(s->st_mode)) return "it is a folder, a file was expected";
    return S_ISREG(s->st_mode) ? NULL : "it is not a regular file";
}

/* Opens a regular file for reading. Returns its descriptor and its size in bytes, or -1 and why. */
static inline int file_open(const char *path, size_t *size, const char **problem) {
    struct stat s;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: a named pipe must not block the open
    *problem = fd < 0 || fstat(fd, &s) != 0 ? strerror(errno) : file_problem(&s);
    if (!*problem) *size = (size_t)s.st_size;
    if (!*problem) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

/* Opens a file under a name that the program makes itself, and creates it if it is missing. flags: O_WRONLY or
 * O_RDWR, and O_TRUNC to empty it. Returns its descriptor, or -1 and why. */
static inline int file_create(const char *path, int flags, const char **problem) {
    struct stat s;
    int fd = open(path, flags | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    *problem = fd < 0 || fstat(fd, &s) != 0 ? strerror(errno) : file_problem(&s);
    if (fd < 0 && lstat(path, &s) == 0 && !S_ISREG(s.st_mode))
        *problem = S_ISLNK(s.st_mode) ? "it is a symbolic link, which is not followed; remove it" : file_problem(&s);
    if (!*problem) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

/* Opens a file under a name that the program makes itself, to go on with what an earlier run has written: creates it, or
 * reads it into *data [*size], allocated. What is written comes at its end. NULL with *err filled: it cannot be. */
static inline FILE *file_open_kept(const char *path, uint8_t **data, size_t *size, Error *err) {
    struct stat s;
    const char *problem;
    const int fd = file_create(path, O_RDWR | O_APPEND, &problem);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "a+b");
    *data = NULL;
    if (fd >= 0 && (!f || fstat(fd, &s) != 0)) problem = strerror(errno);
    if (f && !problem) {
        *size = (size_t)s.st_size;
        *data = (uint8_t *)xmalloc(*size + 1);
        rewind(f);
        if (fread(*data, 1, *size, f) != *size) problem = "it has become shorter";
    }
    if (!problem) return f;
    error_set(err, "cannot go on with %s: %s", path, problem);
    free(*data);
    *data = NULL;
    if (f)
        fclose(f);
    else if (fd >= 0)
        close(fd);
    return NULL;
}

/* Drops all but the first `bytes` bytes of an open file. */
static inline int file_cut(FILE *f, const char *path, size_t bytes, Error *err) {
    if (fflush(f) || ftruncate(fileno(f), (off_t)bytes))
        return error_set(err, "cannot write %s: %s", path, strerror(errno));
    return 0;
}

/* ---- maps ---- */

/* What is mapped, for the handler of SIGBUS (lib/program.h), which walks this list without a lock: entries are used
 * again, but stay in the list. */
typedef struct MappedRange {
    const uint8_t *data;
    size_t size;  // 0: unused
    const char *path;
    struct MappedRange *next;
} MappedRange;
static MappedRange *mapped_ranges;
static pthread_mutex_t mapped_lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct {
    const uint8_t *data;
    size_t size;
    char *path;
    MappedRange *range;
} MappedFile;

static inline MappedRange *mapped_register(const uint8_t *data, size_t size, const char *path) {
    pthread_mutex_lock(&mapped_lock);
    MappedRange *r = mapped_ranges;
    while (r && r->size) r = r->next;
    bool known = r != NULL;
    if (!known) r = (MappedRange *)xcalloc(1, sizeof *r);
    r->data = data;
    r->path = path;
    __atomic_store_n(&r->size, size, __ATOMIC_RELEASE);
    if (!known) {
        r->next = mapped_ranges;
        __atomic_store_n(&mapped_ranges, r, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&mapped_lock);
    return r;
}

/* The path of the mapped file that an address lies in, or NULL. Safe in a signal handler. */
static inline const char *mapped_path(const void *address) {
    for (MappedRange *r = __atomic_load_n(&mapped_ranges, __ATOMIC_ACQUIRE); r; r = r->next) {
        size_t size = __atomic_load_n(&r->size, __ATOMIC_ACQUIRE);
        if ((uintptr_t)address >= (uintptr_t)r->data && (uintptr_t)address - (uintptr_t)r->data < size)
            return r->path;
    }
    return NULL;
}

/* Whether two paths name one file that exists. */
static inline bool same_file(const char *a, const char *b) {
    struct stat s, t;
    return !stat(a, &s) && !stat(b, &t) && s.st_dev == t.st_dev && s.st_ino == t.st_ino;
}

/* Says that the n bytes at p, which lie in a mapped file, are not needed for now: their pages are given back to the system
 * and read again when they are used. */
static inline void file_forget(const void *p, size_t n) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = ((uintptr_t)p + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)p + n) / page * page;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static inline void file_unmap(MappedFile *f) {
    if (f->range) __atomic_store_n(&f->range->size, 0, __ATOMIC_RELEASE);
    if (f->data) munmap((void *)f->data, f->size);
    free(f->path);
    memset(f, 0, sizeof *f);
}

/* Maps a whole file for reading. Pages are loaded when they are first touched, so a model larger than the free memory
 * opens at once too. Refuses folders, devices and empty files. */
static inline int file_map(MappedFile *f, const char *path, Error *err) {
    memset(f, 0, sizeof *f);
    const char *problem;
    size_t size = 0;
    int fd = file_open(path, &size, &problem);
    if (!problem && size == 0) problem = "the file is empty";
    void *data = problem ? NULL : mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) problem = strerror(errno);
    if (fd >= 0) close(fd);
    if (problem) return error_set(err, "cannot read %s: %s", path, problem);
    char *copy = xstrdup(path);
    *f = (MappedFile){data, size, copy, mapped_register(data, size, copy)};
    return 0;
}

static inline bool file_exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0;
}

/* Syncs a folder, so that what was created, renamed and removed in it survives a crash. */
static inline void folder_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);  // some file systems cannot sync a folder
    close(fd);
}

/* The folder that a file or folder is in, allocated. */
static inline char *folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? format_string("%.*s", (int)(slash - path) + 1, path) : xstrdup(".");
}

/* ---- atomic replacement ---- */

/* A file that is being written. Its data go to PATH.partial (partial_name); atomic_commit renames it to PATH once it
 * is complete and on disk, so that a crash or a full disk leaves the previous PATH unchanged. */
typedef struct {
    FILE *f;
    char *path, *temporary;  // temporary is NULL for a device or pipe, which is written directly
} AtomicFile;

/* The partial files that this process is writing, for files_abandon. NULL: a free place. */
static char **files_open;
static size_t files_count;
/* Held while a partial file is created, renamed or removed. Recursive: MPI_Abort may run the exit handlers again. */
static pthread_mutex_t files_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

/* Enters a partial file into files_open, or removes it. The caller holds files_lock. */
static inline void files_register(char *temporary, bool open) {
    size_t i = 0;
    while (i < files_count && files_open[i] != (open ? NULL : temporary)) i++;
    if (i == files_count && !open) return;
    if (i == files_count) {
        files_open = (char **)xrealloc(files_open, (files_count + 1) * sizeof *files_open);
        files_count++;
    }
    files_open[i] = open ? temporary : NULL;
}

/* Removes all partial files; an exit handler, run by the thread that ends the process. It never releases files_lock,
 * so that other threads, which may still be writing, can neither create nor commit a file any more. */
static inline void files_abandon(void) {
    pthread_mutex_lock(&files_lock);
    for (size_t i = 0; i < files_count; i++)
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

/* Says why PATH, or PATH.partial, cannot be written. Returns -1. */
static inline int atomic_explain(const AtomicFile *a, const char *ending, const char *problem, Error *err) {
    const char *path = a->path ? a->path : "the file";
    if (a->path && a->temporary && file_exists(a->path))
        return error_set(err, "cannot write %s%s: %s; the previous %s is unchanged", path, ending, problem, path);
    return error_set(err, "cannot write %s%s: %s", path, ending, problem);
}

/* Reports a system error and discards the file. Returns -1. */
static inline int atomic_fail(AtomicFile *a, int error_number, Error *err) {
    atomic_explain(a, "", strerror(error_number), err);
    atomic_abandon(a);
    return -1;
}

/* Reports why PATH.partial cannot be opened, and leaves it alone, because it is not ours. Returns -1. */
static inline int atomic_refuse(AtomicFile *a, const char *ending, const char *problem, Error *err) {
    atomic_explain(a, ending, problem, err);
    free(a->temporary);
    a->temporary = NULL;
    return -1;
}

/* Opens and locks PATH.partial. Returns its descriptor, or -1. The lock keeps two processes from writing the same
 * partial file. Comparing inodes detects that another process renamed its file between our open and our lock; then we
 * try again. */
static inline int atomic_open_partial(AtomicFile *a, Error *err) {
    for (;;) {
        const char *problem;
        struct stat ours, named;
        int fd = file_create(a->temporary, O_WRONLY, &problem);
        if (fd < 0 && lstat(a->temporary, &named) == 0) return atomic_refuse(a, ".partial", problem, err);
        if (fd < 0) return atomic_refuse(a, "", problem, err);
        if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(fd);
            return atomic_refuse(a, "", "another process is writing it", err);
        }
        if (fstat(fd, &ours) == 0 && lstat(a->temporary, &named) == 0 && ours.st_ino == named.st_ino &&
            ours.st_dev == named.st_dev) {
            if (ftruncate(fd, 0) == 0) return fd;
            atomic_refuse(a, "", strerror(errno), err);
            close(fd);
            return -1;
        }
        close(fd);
    }
}

/* The name of the partial file of PATH: PATH.partial, or where that would be longer than the 255 bytes that file
 * systems allow, a shorter one that no other PATH has. The caller frees it. */
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
    if (exists && !S_ISREG(s.st_mode)) {
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0) return atomic_fail(a, errno, err);
        a->f = fdopen(fd, "wb");
    } else {
        a->temporary = partial_name(a->path);
        pthread_mutex_lock(&files_lock);
        int fd = atomic_open_partial(a, err);
        if (fd >= 0) files_register(a->temporary, true);
        pthread_mutex_unlock(&files_lock);
        if (fd < 0) {
            atomic_abandon(a);
            return -1;
        }
        a->f = fdopen(fd, "wb");
    }
    return a->f ? 0 : atomic_fail(a, errno, err);
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
    if (a->temporary) {
        pthread_mutex_lock(&files_lock);
        int error_number = rename(a->temporary, a->path) != 0 ? errno : 0;
        if (!error_number) files_register(a->temporary, false);
        pthread_mutex_unlock(&files_lock);
        if (error_number) return atomic_fail(a, error_number, err);
        free(a->temporary);
        a->temporary = NULL;
        char *folder = folder_of(a->path);
        folder_sync(folder);
        free(folder);
    }
    int status = fclose(a->f);
    a->f = NULL;
    if (status != 0) return atomic_fail(a, errno, err);
    atomic_abandon(a);
    return 0;
}

/* Writes one file, whole or not at all. */
static inline int file_write(const char *path, const void *data, size_t size, Error *err) {
    AtomicFile file;
    return atomic_open(&file, path, err) || atomic_write(&file, data, size, err) || atomic_commit(&file, err) ? -1
                                                                                                              : 0;
}

/* ---- folders ---- */

/* Creates a folder and its missing parents, as mkdir -p. */
static inline int make_folder(const char *path, Error *err) {
    char *copy = xstrdup(path);
    int status = 0;
    for (char *p = copy; status == 0 && *p; p++) {
        if (p[1] != '/' && p[1] != '\0') continue;
        char after = p[1];
        p[1] = '\0';
        struct stat s;
        int error_number = mkdir(copy, 0777) != 0 ? errno : 0;
        if (!error_number) {
            char *parent = folder_of(copy);
            folder_sync(parent);
            free(parent);
        } else if (stat(copy, &s) != 0 || !S_ISDIR(s.st_mode)) {
            bool in_the_way = error_number == EEXIST || error_number == ENOTDIR;
            status = error_set(err, "cannot make the folder %s: %s", copy,
                               in_the_way ? "a file of that name is in the way" : strerror(error_number));
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
    const char *problem;
    int fd = file_create(path, O_RDWR, &problem);
    if (fd < 0) error_set(err, "cannot write %s: %s", path, problem);
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
