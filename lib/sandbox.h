/* The box: runs a program that does what a stranger's document says, TeX or Poppler, within limits.
 *
 * The program is one process in a session and group of its own, works in a fresh folder that is also its HOME, inherits
 * no descriptor and only the environment it is given, and has limits of processor time, wall time, memory, file size,
 * folder size and open files. It can start no other process. The kernel keeps it from other files, from the network and
 * from other processes (lib/sandbox_kernel.h). When it ends, or exceeds a limit, its whole group is killed.
 *
 * Safe in programs with threads, and quick in those with much memory: the child shares the parent's memory until
 * execve, as with posix_spawn, and makes system calls only; all else is prepared before. Several threads may call
 * sandbox_run at the same time, each with a folder of its own. */
#ifndef LIB_SANDBOX_H
#define LIB_SANDBOX_H

#include "error.h"

#include "clock.h"
#include "sandbox_folder.h"
#include "sandbox_kernel.h"

#include <math.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

typedef struct {
    double cpu_seconds;   // of processor time, rounded up to whole seconds
    double wall_seconds;  // that may pass
    size_t memory_bytes;  // of address space
    size_t file_bytes;    // of one file, and of what the program prints
    size_t folder_bytes;  // of all files in the folder
    size_t files;         // in the folder
    int open_files;
} SandboxLimits;

/* What the worst honest figure needs, on a machine that does other things too. */
static const SandboxLimits sandbox_default_limits = {30, 60, (size_t)1 << 30, 64 << 20, 128 << 20, 500, 64};

typedef struct {
    const char *program;             // a path, as from sandbox_find
    const char *const *arguments;    // ended by NULL; the first is the program's own name
    const char *const *environment;  // "NAME=VALUE", ended by NULL or NULL: added to PATH, HOME, TMPDIR and LC_ALL
    const char *const *readable;     // files and folders that it may read beside the system's, ended by NULL; or NULL
    const char *folder;              // the only place that it may write into
    SandboxLimits limits;
    bool (*cancelled)(void);  // asked ten times a second whether to give up; or NULL
    bool unsafe;              // no walls: limits only, for programs and documents that the user wrote
    int without;              // SandboxWall bits to leave out: for tests of what happens where the kernel lacks them
} SandboxJob;

typedef struct {
    bool stopped;         // by a limit, by `cancelled` or by a signal
    int status;           // of the program, 0 to 255; -1 when it was stopped
    char reason[160];     // why it was stopped, after the program's name: "took more than 5 s of processor time"
    char *output;         // what it printed (stdout and stderr together), ended by a 0 that is not counted
    size_t output_bytes;  // at most SANDBOX_OUTPUT are kept
    double cpu_seconds, wall_seconds;
} SandboxResult;

enum { SANDBOX_OUTPUT = 1 << 20, SANDBOX_STACK = 256 << 10, SANDBOX_WATCH_MS = 100 };

static inline void sandbox_result_free(SandboxResult *r) {
    free(r->output);
    memset(r, 0, sizeof *r);
}

/* The path of a program, looked up in PATH, allocated; or NULL. */
static inline char *sandbox_find(const char *name) {
    const char *set = getenv("PATH"), *at = set && *set ? set : "/usr/local/bin:/usr/bin:/bin";
    if (strchr(name, '/')) return access(name, X_OK) == 0 ? xstrdup(name) : NULL;
    for (const char *end; *at; at = *end ? end + 1 : end) {
        end = strchrnul(at, ':');
        char *path = format_string("%.*s/%s", (int)(end - at), at, name);
        struct stat s;
        if (*path == '/' && stat(path, &s) == 0 && S_ISREG(s.st_mode) && access(path, X_OK) == 0) return path;
        free(path);
    }
    return NULL;
}

/* ---- the child ---- */

/* All that the child needs; it shares this with its parent. */
typedef struct {
    const SandboxJob *job;
    char **environment;
    int input, output;  // descriptors above 2
    int ruleset;        // of Landlock, or -1
    const struct sock_fprog *calls;
    const char *failed;  // the step that failed, or NULL
    int reason;          // its errno
} SandboxChild;

static inline int sandbox_limit(int what, rlim_t limit) {
    struct rlimit now;
    if (getrlimit((__rlimit_resource_t)what, &now) != 0) return -1;
    now.rlim_cur = now.rlim_max = limit < now.rlim_max ? limit : now.rlim_max;
    return setrlimit((__rlimit_resource_t)what, &now);
}

/* Sets all limits. The soft and the hard limit are equal, because the first process of a namespace is deaf to the
 * signals of soft limits. */
static inline int sandbox_set_limits(const SandboxJob *job) {
    const SandboxLimits *l = &job->limits;
    if (sandbox_limit(RLIMIT_CPU, (rlim_t)ceil(l->cpu_seconds)) || sandbox_limit(RLIMIT_AS, l->memory_bytes) ||
        sandbox_limit(RLIMIT_FSIZE, l->file_bytes) || sandbox_limit(RLIMIT_NOFILE, (rlim_t)l->open_files) ||
        sandbox_limit(RLIMIT_CORE, 0) || sandbox_limit(RLIMIT_MSGQUEUE, 0))
        return -1;
    return job->unsafe ? 0 : sandbox_limit(RLIMIT_NPROC, 1);  // for ordinary users; seccomp says it to root too
}

/* Gives the child the descriptors 0 to 2 and no others. */
static inline int sandbox_set_descriptors(const SandboxChild *c) {
    if (dup2(c->input, 0) < 0 || dup2(c->output, 1) < 0 || dup2(c->output, 2) < 0) return -1;
    const int keep = c->ruleset >= 0 && dup2(c->ruleset, 3) == 3 ? 4 : 3;
    if (syscall(SYS_close_range, keep, ~0u, 0) == 0) return 0;
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return -1;
    for (rlim_t fd = (rlim_t)keep; fd < files.rlim_cur && fd < 1 << 20; fd++) close((int)fd);
    return 0;
}

/* Root's powers end with execve, because the bounding set is then empty; an ordinary user has none. */
static inline int sandbox_drop_capabilities(void) {
    for (unsigned long i = 0; i < 64; i++)
        if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0) != 0 && errno != EPERM) break;  // EINVAL: there are no more
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static inline int sandbox_default_signals(const sigset_t *mask) {
    struct sigaction normal = {.sa_handler = SIG_DFL};
    for (int number = 1; number < NSIG; number++) sigaction(number, &normal, NULL);  // not all can be set
    return sigprocmask(SIG_SETMASK, mask, NULL);
}

/* Runs in the child, with the parent's memory: system calls only. */
static inline int sandbox_child(void *argument) {
    SandboxChild *c = (SandboxChild *)argument;
    const SandboxJob *job = c->job;
    sigset_t none;
    sigemptyset(&none);
    c->failed = NULL;
    if (setsid() < 0)
        c->failed = "setsid";
    else if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0)
        c->failed = "prctl(PR_SET_PDEATHSIG)";
    else if (chdir(job->folder) != 0)
        c->failed = "chdir";
    else if (sandbox_set_descriptors(c) != 0)
        c->failed = "dup2";
    else if (sandbox_set_limits(job) != 0)
        c->failed = "setrlimit";
    else if (!job->unsafe && sandbox_drop_capabilities() != 0)
        c->failed = "prctl(PR_SET_NO_NEW_PRIVS)";
    else if (c->ruleset >= 0 && syscall(SYS_landlock_restrict_self, 3, 0) != 0)
        c->failed = "landlock_restrict_self";
    else if (c->ruleset >= 0 && close(3) != 0)
        c->failed = "close";
    else if (sandbox_default_signals(&none) != 0)
        c->failed = "sigprocmask";
    else if (c->calls && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, c->calls) != 0)
        c->failed = "seccomp";
    else if (execve(job->program, (char *const *)job->arguments, c->environment) != 0)
        c->failed = "execve";
    c->reason = errno;
    return (int)syscall(SYS_exit_group, 127);  // not _exit, in which a sanitizer would look for leaks
}

/* ---- starting ---- */

/* The environment of the child: PATH, HOME, TMPDIR, LC_ALL and the job's own. */
static inline char **sandbox_environment(const SandboxJob *job) {
    size_t n = 0;
    while (job->environment && job->environment[n]) n++;
    char **all = (char **)xcalloc(n + 5, sizeof *all);
    const char *path = getenv("PATH");
    all[0] = format_string("PATH=%s", path ? path : "/usr/local/bin:/usr/bin:/bin");
    all[1] = format_string("HOME=%s", job->folder);
    all[2] = format_string("TMPDIR=%s", job->folder);
    all[3] = xstrdup("LC_ALL=C");
    for (size_t i = 0; i < n; i++) all[4 + i] = xstrdup(job->environment[i]);
    return all;
}

static inline int sandbox_high(int fd) {  // the same file under a number above 3, which the child needs
    if (fd < 0 || fd > 3) return fd;
    const int high = fcntl(fd, F_DUPFD_CLOEXEC, 4);
    close(fd);
    return high;
}

/* Starts the program. Returns its process, or -1. The signals are blocked meanwhile: a handler that ran in the child
 * would run in the parent's memory. */
static inline pid_t sandbox_start(const SandboxJob *job, int output, Error *err) {
    SandboxChild c = {.job = job, .output = output, .ruleset = -1};
    const bool files = !(job->without & SANDBOX_FILES) && landlock_version() > 0;
    if (!job->unsafe && files && (c.ruleset = sandbox_high(landlock_rules(job->folder, job->readable, err))) < 0)
        return -1;
    if (!job->unsafe && !(job->without & SANDBOX_CALLS)) c.calls = sandbox_calls();
    int choice = __atomic_load_n(&sandbox_namespace_choice, __ATOMIC_RELAXED);
    if (job->unsafe || job->without & SANDBOX_NAMESPACES)
        choice = sizeof sandbox_namespace_choices / sizeof *sandbox_namespace_choices - 1;
    c.environment = sandbox_environment(job);
    c.input = sandbox_high(open("/dev/null", O_RDWR | O_CLOEXEC));
    sigset_t all, before;
    sigfillset(&all);
    // (From the heap: of memory from mmap the address sanitizer would not forget what the child's functions had marked.)
    void *stack = xmalloc(SANDBOX_STACK);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t process =
        c.input < 0 ? -1 : sandbox_clone(sandbox_child, (char *)stack + SANDBOX_STACK, &c, &choice);
    const int reason = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    free(stack);
    if (c.input >= 0) close(c.input);
    if (c.ruleset >= 0) close(c.ruleset);
    for (char **e = c.environment; *e; e++) free(*e);
    free(c.environment);
    if (process < 0) return error_set(err, "cannot start %s: %s", job->program, strerror(reason));
    if (c.failed) {
        waitpid(process, NULL, 0);
        return error_set(err, "cannot start %s: %s: %s", job->program, c.failed, strerror(c.reason));
    }
    if (!job->unsafe && !job->without) sandbox_say_missing(job->arguments[0], files, c.calls != NULL, choice);
    return process;
}

/* ---- watching ---- */

/* Whether the program has ended, after at most `milliseconds`. It stays a zombie, so that its number remains its own.
 * `handle` is its pidfd, or -1 where the kernel has none. */
static inline bool sandbox_ended(pid_t process, int handle, int milliseconds) {
    struct pollfd p = {handle, POLLIN, 0};
    siginfo_t info = {.si_pid = 0};
    if (handle >= 0) return poll(&p, 1, milliseconds) > 0;
    for (const double end = seconds_now() + 1e-3 * milliseconds;; poll(NULL, 0, 2)) {
        if (waitid(P_PID, (id_t)process, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid) return true;
        if (seconds_now() > end) return false;
    }
}

/* Says which limit of the folder or of the output is exceeded, if one is. */
static inline bool sandbox_wrote_too_much(const SandboxJob *job, int output, SandboxResult *r) {
    const SandboxLimits *l = &job->limits;
    const FolderSize size = sandbox_folder_size(job->folder);
    struct stat printed;
    const size_t bytes = fstat(output, &printed) == 0 ? (size_t)printed.st_size : 0;
    if (size.largest >= l->file_bytes)
        snprintf(r->reason, sizeof r->reason, "wrote a file of more than %zu MB", l->file_bytes >> 20);
    else if (size.bytes > l->folder_bytes)
        snprintf(r->reason, sizeof r->reason, "wrote more than %zu MB in all", l->folder_bytes >> 20);
    else if (size.files > l->files)
        snprintf(r->reason, sizeof r->reason, "made more than %zu files", l->files);
    else if (bytes >= l->file_bytes)
        snprintf(r->reason, sizeof r->reason, "printed more than %zu MB", l->file_bytes >> 20);
    return r->reason[0] != '\0';
}

/* Waits until the program ends or must be stopped; then r->reason says why. */
static inline void sandbox_watch(const SandboxJob *job, pid_t process, int output, double begin, SandboxResult *r) {
    const int handle = (int)syscall(SYS_pidfd_open, process, 0);
    while (!r->reason[0]) {
        const double left = begin + job->limits.wall_seconds - seconds_now();
        int wait = SANDBOX_WATCH_MS;
        if (1e3 * left < wait) wait = left > 0 ? (int)(1e3 * left) + 1 : 0;
        if (sandbox_ended(process, handle, wait)) break;
        if (left <= 0)
            snprintf(r->reason, sizeof r->reason, "took more than %g s", job->limits.wall_seconds);
        else if (job->cancelled && job->cancelled())
            snprintf(r->reason, sizeof r->reason, "was interrupted");
        else
            sandbox_wrote_too_much(job, output, r);
    }
    if (handle >= 0) close(handle);
}

/* Kills the group, while the number of the zombie cannot be another's, takes the status, and waits for the rest of
 * the group, which is none in a whole box. */
static inline int sandbox_reap(pid_t process, struct rusage *usage) {
    int status = 0;
    kill(-process, SIGKILL);
    while (wait4(process, &status, 0, usage) < 0 && errno == EINTR) continue;
    for (int i = 0; i < 500 && kill(-process, SIGKILL) == 0; i++) poll(NULL, 0, 2);
    return status;
}

/* Whether the program said that it had too little memory: in Lua's words, Poppler's, cairo's, kpathsea's and C++'s. */
static inline bool sandbox_lacked_memory(const char *output) {
    static const char *const words[] = {"not enough memory", "ut of memory", "emory exhausted", "bad_alloc",
                                        "annot allocate memory"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(output, words[i])) return true;
    return false;
}

/* Says which limit ended the program, where it was not the watcher. */
static inline void sandbox_judge(const SandboxJob *job, int status, int output, SandboxResult *r) {
    const SandboxLimits *l = &job->limits;
    const bool signalled = WIFSIGNALED(status), failed = status != 0;
    r->status = signalled ? -1 : WEXITSTATUS(status);
    if (r->reason[0] || (failed && sandbox_wrote_too_much(job, output, r))) return;
    /* The kernel counts ticks for the limit, but run time in rusage: with other work beside, that is less. */
    if (signalled && WTERMSIG(status) == SIGKILL && r->cpu_seconds > 0.5 * ceil(l->cpu_seconds))
        snprintf(r->reason, sizeof r->reason, "took more than %g s of processor time", ceil(l->cpu_seconds));
    else if (failed && sandbox_lacked_memory(r->output))
        snprintf(r->reason, sizeof r->reason, "needed more than %zu MB of memory", l->memory_bytes >> 20);
    else if (signalled)
        snprintf(r->reason, sizeof r->reason, "was ended by signal %d", WTERMSIG(status));
}

/* Keeps the beginning of what the program printed. */
static inline void sandbox_take_output(int output, SandboxResult *r) {
    struct stat s;
    size_t size = fstat(output, &s) == 0 && s.st_size > 0 ? (size_t)s.st_size : 0;
    if (size > SANDBOX_OUTPUT) size = SANDBOX_OUTPUT;
    r->output = (char *)xmalloc(size + 1);
    const ssize_t n = pread(output, r->output, size, 0);
    r->output_bytes = n > 0 ? (size_t)n : 0;
    r->output[r->output_bytes] = '\0';
}

/* Runs a program to its end, or to the first limit that it exceeds. Returns 0 when it has run, whatever became of it;
 * free the result. Returns -1 when it could not be started. */
static inline int sandbox_run(const SandboxJob *job, SandboxResult *r, Error *err) {
    struct rusage usage;
    memset(r, 0, sizeof *r);
    memset(&usage, 0, sizeof usage);
    const int output = sandbox_high(memfd_create("output", MFD_CLOEXEC));
    if (output < 0) return error_set(err, "cannot start %s: memfd_create: %s", job->program, strerror(errno));
    const double begin = seconds_now();
    const pid_t process = sandbox_start(job, output, err);
    if (process < 0) {
        close(output);
        return -1;
    }
    sandbox_watch(job, process, output, begin, r);
    const int status = sandbox_reap(process, &usage);
    r->wall_seconds = seconds_now() - begin;
    r->cpu_seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                     1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    sandbox_take_output(output, r);
    sandbox_judge(job, status, output, r);
    r->stopped = r->reason[0] != '\0';
    if (r->stopped) r->status = -1;
    close(output);
    return 0;
}

#endif
