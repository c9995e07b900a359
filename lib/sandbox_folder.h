/* Folders for programs that nobody has read: made fresh, measured, read and removed without trusting what is in them.
 * A name may have become a link, a pipe or a device where the machine lacks the walls of lib/sandbox_kernel.h. */
#ifndef LIB_SANDBOX_FOLDER_H
#define LIB_SANDBOX_FOLDER_H

#include "file.h"

#include <dirent.h>
#include <ftw.h>
#include <sys/statvfs.h>
#include <time.h>

static inline int sandbox_folder_remove_one(const char *path, const struct stat *s, int kind, struct FTW *at) {
    (void)s, (void)kind, (void)at;
    remove(path);  // what cannot be removed is left
    return 0;
}

/* Removes a folder with all that is in it, and frees its path. Links are removed, not followed. */
static inline void sandbox_folder_remove(char *path) {
    if (path) nftw(path, sandbox_folder_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(path);
}

/* Removes what killed processes of this user have left in `parent`: the folders of sandbox_folder_make in which nothing has been
 * made or removed for an hour, which is longer than any program may take. */
static inline void sandbox_folders_sweep(const char *parent) {
    DIR *folder = opendir(parent);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        struct stat s;
        if (strncmp(entry->d_name, "tikz.c-", 7) || strlen(entry->d_name) != strlen("tikz.c-XXXXXX")) continue;
        char *path = format_string("%s/%s", parent, entry->d_name);
        if (lstat(path, &s) == 0 && S_ISDIR(s.st_mode) && s.st_uid == geteuid() && time(NULL) - s.st_mtime > 3600)
            sandbox_folder_remove(path);
        else
            free(path);
    }
    if (folder) closedir(folder);
}

/* Makes a folder that only this user can enter, in `base`, or where that is NULL in $TMPDIR or /tmp. Returns its
 * path, allocated, or NULL. */
static inline char *sandbox_folder_make(const char *base, Error *err) {
    static bool swept;
    const char *set = getenv("TMPDIR");
    const bool sweep = !base && !__atomic_exchange_n(&swept, true, __ATOMIC_RELAXED);
    if (!base) base = set && *set ? set : "/tmp";
    char *parent = realpath(base, NULL);
    if (sweep) sandbox_folders_sweep(parent ? parent : base);
    char *path = format_string("%s/tikz.c-XXXXXX", parent ? parent : base);
    const bool made = mkdtemp(path) != NULL;
    free(parent);
    if (made) return path;
    error_set(err, "cannot make a folder in %s: %s%s", base, strerror(errno), base == set ? "; TMPDIR names it" : "");
    free(path);
    return NULL;
}

typedef struct {
    size_t bytes, largest, files;
} FolderSize;

/* Adds the sizes of all files of the folder `fd`, which it closes. Nine levels at most: a program in a whole box makes
 * no folders, and one in an incomplete box is counted for each folder that it makes. */
static inline void sandbox_folder_add(int fd, FolderSize *size, int level) {
    DIR *folder = fd >= 0 ? fdopendir(fd) : NULL;
    if (!folder && fd >= 0) close(fd);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        struct stat s;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (fstatat(dirfd(folder), entry->d_name, &s, AT_SYMLINK_NOFOLLOW) != 0) continue;
        size->files++;
        if (S_ISREG(s.st_mode)) size->bytes += (size_t)s.st_size;
        if (S_ISREG(s.st_mode) && (size_t)s.st_size > size->largest) size->largest = (size_t)s.st_size;
        if (S_ISDIR(s.st_mode) && level < 9)
            sandbox_folder_add(openat(dirfd(folder), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC),
                               size, level + 1);
    }
    if (folder) closedir(folder);
}

static inline FolderSize sandbox_folder_size(const char *path) {
    FolderSize size = {0, 0, 0};
    sandbox_folder_add(open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), &size, 0);
    return size;
}

/* Whether the file system of a folder has no room for a few more pages. */
static inline bool sandbox_disk_full(const char *path) {
    struct statvfs s;
    return statvfs(path, &s) == 0 && s.f_blocks > 0 && (uint64_t)s.f_bavail * s.f_frsize < 65536;
}

/* Reads a regular file of a folder, at most `most` bytes. Returns them, ended by a 0 that is not counted, or NULL and
 * why. */
static inline char *sandbox_read(const char *folder, const char *name, size_t most, size_t *size, Error *err) {
    struct stat s;
    char *path = format_string("%s/%s", folder, name), *bytes = NULL;
    const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    const char *problem = fd < 0 || fstat(fd, &s) != 0 ? strerror(errno) : file_problem(&s);
    if (!problem && (size_t)s.st_size > most) problem = "it is too large";
    if (!problem) {
        bytes = (char *)xmalloc((size_t)s.st_size + 1);
        *size = 0;
        for (ssize_t n; *size < (size_t)s.st_size; *size += (size_t)n)
            if ((n = read(fd, bytes + *size, (size_t)s.st_size - *size)) <= 0) break;
        bytes[*size] = '\0';
    } else {
        error_set(err, "cannot read %s: %s", path, problem);
    }
    if (fd >= 0) close(fd);
    free(path);
    return bytes;
}

/* Writes a new file into a folder. */
static inline int sandbox_write(const char *folder, const char *name, const void *bytes, size_t size, Error *err) {
    char *path = format_string("%s/%s", folder, name);
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    int status = fd < 0 ? error_set(err, "cannot write %s: %s", path, strerror(errno)) : 0;
    for (size_t done = 0; status == 0 && done < size;) {
        const ssize_t n = write(fd, (const char *)bytes + done, size - done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || errno != EINTR)
            status = error_set(err, "cannot write %s: %s", path, strerror(n == 0 ? ENOSPC : errno));
    }
    if (fd >= 0 && close(fd) != 0 && status == 0)
        status = error_set(err, "cannot write %s: %s", path, strerror(errno));
    free(path);
    return status;
}

#endif
