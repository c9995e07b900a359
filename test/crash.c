/* crash: a library for LD_PRELOAD that shows, or cuts short, what a program does to the names in its folders.
 *
 *   CRASH_TRACE=FILE   appends a line for each call: create PATH, mkdir PATH, rename PATH, remove PATH, sync PATH
 *   CRASH_AT=N         kills the process with SIGKILL just before call number N of create, mkdir, rename and remove
 *
 * cc -shared -fPIC -o crash.so test/crash.c -ldl */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int calls;

static int real_open(const char *path, int flags, mode_t mode) {
    static int (*open_next)(const char *, int, ...);
    if (!open_next) *(void **)&open_next = dlsym(RTLD_NEXT, "open");
    return open_next(path, flags, mode);
}

/* Writes a line of the trace; a call that changes names is counted, and may be the last. */
static void note(const char *what, const char *path, int counted) {
    char line[4200];
    const char *trace = getenv("CRASH_TRACE"), *at = getenv("CRASH_AT");
    if (counted && at && ++calls == atoi(at)) raise(SIGKILL);
    int fd = trace ? real_open(trace, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
    if (fd < 0) return;
    int length = snprintf(line, sizeof line, "%s %s\n", what, path);
    if (write(fd, line, (size_t)length) != length) _exit(99);
    close(fd);
}

int open(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list args;
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
        note("create", path, 1);
    }
    return real_open(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    int (*next)(const char *, mode_t);
    *(void **)&next = dlsym(RTLD_NEXT, "mkdir");
    note("mkdir", path, 1);
    return next(path, mode);
}

int rename(const char *from, const char *to) {
    int (*next)(const char *, const char *);
    *(void **)&next = dlsym(RTLD_NEXT, "rename");
    note("rename", to, 1);
    return next(from, to);
}

int unlink(const char *path) {
    int (*next)(const char *);
    *(void **)&next = dlsym(RTLD_NEXT, "unlink");
    note("remove", path, 1);
    return next(path);
}

int fsync(int fd) {
    char name[64], path[4096];
    int (*next)(int);
    *(void **)&next = dlsym(RTLD_NEXT, "fsync");
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = '\0';
    note("sync", path, 0);
    return next(fd);
}
