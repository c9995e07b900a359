/* How this process came to be one of several. In this order:
 *
 *   --rendezvous HOST:PORT --rank R --ranks N     started by hand, or by anything that can count
 *   mpirun ...                                    Open MPI's environment; needs a build with MPI
 *   srun ...                                      a step of Slurm with several tasks
 *   --ranks N                                     this process starts the others itself, on this machine
 *
 * Otherwise it is alone. */
#ifndef LIB_LAUNCH_H
#define LIB_LAUNCH_H

#include "clock.h"
#include "socket.h"

#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

enum { LAUNCH_MOST = 4096 };  // ranks

typedef enum { LAUNCH_ALONE, LAUNCH_RENDEZVOUS, LAUNCH_MPI, LAUNCH_SLURM, LAUNCH_COPIES } LaunchKind;

typedef struct {
    LaunchKind kind;
    int rank, ranks;
    char host[256];  // of rank 0, and the port it listens on; kinds RENDEZVOUS and SLURM
    int port;
} Launch;

/* A number of the environment; -1: not there. */
static inline long launch_number(const char *name) {
    const char *text = getenv(name);
    char *end = NULL;
    long n = text && *text ? strtol(text, &end, 10) : -1;
    return end && !*end && n <= INT_MAX ? n : -1;
}

/* The first host of Slurm's short form: "node[07-09,12],login" gives node07. */
static inline void slurm_first_host(const char *list, char *host, size_t size) {
    size_t n = 0;
    bool in_range = false, skip = false;  // skip: all of a range but its first
    for (; *list && (in_range || *list != ',') && n + 1 < size; list++) {
        if (*list == '[' || *list == ']')
            in_range = *list == '[', skip = false;
        else if (in_range && (*list == ',' || *list == '-'))
            skip = true;
        else if (!skip)
            host[n++] = *list;
    }
    host[n] = '\0';
}

static inline int launch_from_slurm(Launch *l, Error *err) {
    const char *nodes = getenv("SLURM_STEP_NODELIST");
    long job = launch_number("SLURM_JOB_ID"), step = launch_number("SLURM_STEP_ID");
    l->kind = LAUNCH_SLURM;
    l->rank = (int)launch_number("SLURM_PROCID");
    l->ranks = (int)launch_number("SLURM_STEP_NUM_TASKS");
    if (!nodes || job < 0 || l->rank < 0 || l->rank >= l->ranks)
        return error_set(err, "Slurm's environment is not whole (SLURM_PROCID, SLURM_STEP_NODELIST, SLURM_JOB_ID); "
                              "use --rendezvous HOST:PORT --rank R --ranks N instead");
    slurm_first_host(nodes, l->host, sizeof l->host);
    l->port = (int)(20000 + (job + 7919 * (step > 0 ? step : 0)) % 12000);  // below the ports that systems give out
    return 0;
}

static inline int launch_from_mpirun(Launch *l, Error *err) {
    l->kind = LAUNCH_MPI;
    l->rank = (int)launch_number("OMPI_COMM_WORLD_RANK");
    l->ranks = (int)launch_number("OMPI_COMM_WORLD_SIZE");
    if (l->rank < 0 || l->rank >= l->ranks)
        return error_set(err, "mpirun's environment is not whole (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE); use "
                              "--rendezvous HOST:PORT --rank R --ranks N instead");
#ifdef WITH_MPI
    return 0;
#else
    return error_set(err,
                     "started by mpirun, but this program was built without MPI; build it again where Open MPI's "
                     "libopenmpi-dev is, or give --rendezvous HOST:PORT --rank R --ranks N");
#endif
}

/* rendezvous NULL, rank -1, ranks 0: not given. */
static inline int launch_find(Launch *l, const char *rendezvous, int rank, int ranks, Error *err) {
    memset(l, 0, sizeof *l);
    if (rendezvous) {
        l->kind = LAUNCH_RENDEZVOUS;
        l->rank = rank;
        l->ranks = ranks;
        if (rank < 0 || ranks < 1) return error_set(err, "--rendezvous needs --rank R and --ranks N");
        if (rank >= ranks)
            return error_set(err, "--rank is %d with --ranks %d; expected 0 to %d", rank, ranks, ranks - 1);
        int status = socket_split(rendezvous, l->host, sizeof l->host, &l->port, err);
        if (status == 0 && (!strncmp(l->host, "127.", 4) || !strcmp(l->host, "localhost")))
            snprintf(l->host, sizeof l->host, "127.0.0.1");  // one name for all of them: that of this machine
        return status;
    }
    if (rank >= 0) return error_set(err, "--rank needs --rendezvous HOST:PORT and --ranks N");
    int status = 0;
    if (launch_number("OMPI_COMM_WORLD_SIZE") > 1)
        status = launch_from_mpirun(l, err);
    else if (launch_number("SLURM_STEP_NUM_TASKS") > 1)
        status = launch_from_slurm(l, err);
    else
        l->kind = ranks > 1 ? LAUNCH_COPIES : LAUNCH_ALONE, l->ranks = ranks > 1 ? ranks : 1;
    if (status == 0 && ranks > 0 && ranks != l->ranks)
        return error_set(err, "--ranks is %d but %s started %d processes; leave out --ranks", ranks,
                         l->kind == LAUNCH_MPI ? "mpirun" : "Slurm", l->ranks);
    if (status == 0 && l->ranks > LAUNCH_MOST)
        return error_set(err, "%d processes were started; at most %d are supported", l->ranks, LAUNCH_MOST);
    return status;
}

/* ---- copies of this program ---- */

typedef struct {
    int count;
    pid_t *pid;  // of rank i + 1; 0: it has ended
} Copies;

/* Starts ranks 1 .. ranks-1 on this machine, with those arguments that say who they are and then this process's,
 * which may end in "--". */
static inline int copies_start(Copies *copies, char **argv, int argc, int port, int ranks, Error *err) {
    extern char **environ;
    char **arguments = (char **)xcalloc((size_t)argc + 7, sizeof *arguments);
    arguments[0] = argv[0];
    memcpy(arguments + 7, argv + 1, (size_t)(argc - 1) * sizeof *arguments);
    signal(SIGCHLD, SIG_DFL);  // where it is ignored nobody can wait for them
    copies->pid = (pid_t *)xcalloc((size_t)ranks, sizeof *copies->pid);
    int status = 0;
    for (int rank = 1; rank < ranks && status == 0; rank++) {
        char point[32], own[16], all[16];
        snprintf(point, sizeof point, "127.0.0.1:%d", port);
        snprintf(own, sizeof own, "%d", rank);
        snprintf(all, sizeof all, "%d", ranks);
        const char *more[] = {"--rendezvous", point, "--rank", own, "--ranks", all};
        for (int i = 0; i < 6; i++) arguments[1 + i] = (char *)more[i];
        int failed = posix_spawn(&copies->pid[copies->count], "/proc/self/exe", NULL, NULL, arguments, environ);
        if (failed) status = error_set(err, "cannot start the process of rank %d: %s", rank, strerror(failed));
        if (!failed) copies->count++;
    }
    free(arguments);
    return status;
}

/* The rank of a copy that has ended, with what waitpid says of it; 0: none has. */
static inline int copies_ended(Copies *copies, int *status) {
    for (int i = 0; i < copies->count; i++)
        if (copies->pid[i] && waitpid(copies->pid[i], status, WNOHANG) != 0) {
            copies->pid[i] = 0;
            return i + 1;
        }
    return 0;
}

/* Waits until all have ended, and ends those that have not after `seconds`, so that none is left behind. The rank of
 * one that ended badly, with *status; 0: none did. */
static inline int copies_end(Copies *copies, double seconds, int *status) {
    double until = seconds_now() + seconds;
    int bad = 0, rank, last;
    for (int running = copies->count; running;) {
        while ((rank = copies_ended(copies, &last)))
            if (last && !bad) bad = rank, *status = last;
        running = 0;
        for (int i = 0; i < copies->count; i++) running += copies->pid[i] != 0;
        bool late = seconds_now() > until;
        for (int i = 0; late && i < copies->count; i++)
            if (copies->pid[i]) kill(copies->pid[i], SIGKILL);
        if (running) usleep(2000);
    }
    return bad;
}

/* "signal 9" or "status 1". */
static inline const char *copies_status(int status, char out[24]) {
    bool killed = WIFSIGNALED(status);
    snprintf(out, 24, "%s %d", killed ? "signal" : "status", killed ? WTERMSIG(status) : WEXITSTATUS(status));
    return out;
}

#endif
