/* A run of several processes ("ranks"), on one machine or many: how they meet, agree and part. How a process becomes
 * one of several is in lib/launch.h, how all end when one does in lib/world_monitor.h, and what they do together in
 * dist/comm.h.
 *
 *     World w;
 *     if (world_open(&w, argc, argv, rendezvous, rank, ranks, &err)) die("%s", err.text);
 *     world_agree(&w, "seed = 1\ndata = train.bin\n");
 *     ...
 *     world_close(&w);
 *
 * From world_open to world_close die() ends all ranks, each with the sentence of the one that died.
 *
 * For tests, the environment can shorten what is waited for: TIKZ_ARRIVAL_SECONDS (for ranks to arrive, 20) and
 * TIKZ_SILENCE_SECONDS (for a sign of life, 12). */
#ifndef LIB_WORLD_H
#define LIB_WORLD_H

#include "mpi_engine.h"
#include "world_monitor.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <sched.h>
#include <sys/random.h>
#include <sys/resource.h>

/* ---- meeting ---- */

static inline uint64_t hash_of(const void *data, size_t bytes) {
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return hash;
}

/* A number that is the same for all processes of one machine, whatever its name and those of its containers. */
static inline uint64_t machine_number(const char *host) {
    char text[128];
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!f || !fgets(text, sizeof text, f)) snprintf(text, sizeof text, "%s", host);
    if (f) fclose(f);
    return hash_of(text, strlen(text));
}

static inline void world_know_oneself(World *w) {
    Peer *me = &w->peers[w->rank];
    gethostname(me->host, sizeof me->host - 1);
    me->process = (int32_t)getpid();
    me->machine = machine_number(me->host);
    cpu_set_t processors;  // those that a launcher has bound this process to
    CPU_ZERO(&processors);
    sched_getaffinity(0, sizeof processors, &processors);
    me->processors = hash_of(&processors, sizeof processors);
}

static inline double environment_seconds(const char *name, double otherwise) {
    const char *text = getenv(name);
    double seconds = text ? strtod(text, NULL) : 0;
    return seconds > 0 ? seconds : otherwise;
}

/* Opens this rank's listener: for control and data connections on rank 0, for data connections elsewhere. Where rank
 * 0 is named by a loopback address, all ranks are on this machine, and nobody else can connect. */
static inline int world_listen(World *w, Error *err) {
    const Launch *l = &w->launch;
    bool local = l->kind == LAUNCH_COPIES || (l->kind == LAUNCH_RENDEZVOUS && address_is_loopback(l->host));
    bool given = w->rank == 0 && (l->kind == LAUNCH_RENDEZVOUS || l->kind == LAUNCH_SLURM);
    char address[ADDRESS_BYTES];
    w->listener = socket_listen(!local ? NULL : *l->host ? l->host : "127.0.0.1", given ? l->port : 0, err);
    if (w->listener < 0) return -1;
    fcntl(w->listener, F_SETFL, fcntl(w->listener, F_GETFL) | O_NONBLOCK);
    w->peers[w->rank].port = socket_name(w->listener, false, address);
    return 0;
}

/* Where rank 0 may be found, for ranks that mpirun started and that know nothing of each other. */
enum { MEETING_ADDRESSES = 8 };
typedef struct {
    uint64_t machine;
    int32_t port;
    char address[MEETING_ADDRESSES][ADDRESS_BYTES];  // the first "" ends the list
} Meeting;

static inline void meeting_describe(Meeting *m, const World *w) {
    struct ifaddrs *list = NULL;
    int count = 0;
    m->machine = w->peers[0].machine;
    m->port = w->peers[0].port;
    if (getifaddrs(&list)) return;
    for (struct ifaddrs *i = list; i && count < MEETING_ADDRESSES - 1; i = i->ifa_next) {
        if (!i->ifa_addr || !(i->ifa_flags & IFF_UP) || i->ifa_flags & IFF_LOOPBACK) continue;
        if (i->ifa_addr->sa_family != AF_INET) continue;
        const struct sockaddr_in *a = (const struct sockaddr_in *)(const void *)i->ifa_addr;
        if (inet_ntop(AF_INET, &a->sin_addr, m->address[count], ADDRESS_BYTES)) count++;
    }
    freeifaddrs(list);
}

/* Connects to rank 0, which may start later than this one. Ranks that mpirun started try its addresses in turn. */
static inline int world_connect(World *w, const Meeting *m, Error *err) {
    Launch *l = &w->launch;
    Error why;
    double until = seconds_now() + w->arrival_seconds;
    const bool searching = l->kind == LAUNCH_MPI;
    const int first = m->machine == w->peers[w->rank].machine ? -1 : 0;  // -1: this machine
    if (searching) l->port = m->port;
    for (int i = first;; i = m->address[i + 1][0] ? i + 1 : first) {
        if (searching) snprintf(l->host, sizeof l->host, "%s", i < 0 ? "127.0.0.1" : m->address[i]);
        double patience = searching && until > seconds_now() + 2 ? seconds_now() + 2 : until;
        int fd = socket_connect(l->host, l->port, patience, &why);
        if (fd >= 0) {
            control_begin(w, 0, fd);
            return 0;
        }
        if (seconds_now() >= until)
            return error_set(err, "rank 0 does not answer at %s:%d within %.0f s (%s); start it, with --ranks %d",
                             l->host, l->port, w->arrival_seconds, why.text, w->ranks);
        usleep(100000);
    }
}

static inline void world_introduce(World *w) {
    Hello hello;
    memset(&hello, 0, sizeof hello);
    hello.ranks = w->ranks;
    hello.peer = w->peers[w->rank];
    world_send(w, 0, MESSAGE_HELLO, &hello, sizeof hello);
}

/* Every rank listens; all but rank 0 connect to it. */
static inline int world_meet(World *w, int argc, char **argv, Error *err) {
    Meeting meeting;
    memset(&meeting, 0, sizeof meeting);
    w->mpi = w->launch.kind == LAUNCH_MPI;
    if (w->mpi && mpi_begin(err)) return -1;
    if (world_listen(w, err)) return -1;
    if (w->rank == 0) meeting_describe(&meeting, w);
    if (w->mpi) mpi_share(&meeting, sizeof meeting);
    if (w->rank) return world_connect(w, &meeting, err);
    w->launched_here = w->launch.kind == LAUNCH_COPIES;
    if (getrandom(&w->id, sizeof w->id, 0) != sizeof w->id) return error_set(err, "cannot draw a random number");
    return w->launched_here ? copies_start(&w->copies, argv, argc, w->peers[0].port, w->ranks, err) : 0;
}

/* Waits until all are there; the monitor takes them in. Names who is missing when they are not. */
static inline void world_assemble(World *w) {
    double until = seconds_now() + w->arrival_seconds;
    struct timespec at = {(time_t)until, (long)((until - (double)(time_t)until) * 1e9)};
    Error sentence, missing;
    int timed_out = 0, length = 0, absent = 0;
    pthread_mutex_lock(&w->lock);
    while (!w->ready && !timed_out)
        timed_out = w->rank == 0 ? pthread_cond_timedwait(&w->changed, &w->lock, &at)
                                 : pthread_cond_wait(&w->changed, &w->lock);
    bool ready = w->ready;
    missing.text[0] = '\0';
    for (int r = 0; r < w->ranks; r++)
        if (!w->peers[r].process && ++absent && length < 64)
            length += snprintf(missing.text + length, 16, "%s%d", length ? ", " : "", r);
    pthread_mutex_unlock(&w->lock);
    if (ready) return;
    error_set(
        &sentence,
        "rank%s %s%s of %d did not arrive within %.0f s; start all ranks with the same --rendezvous and --ranks",
        absent > 1 ? "s" : "", missing.text, length < 64 ? "" : ", ...", w->ranks, w->arrival_seconds);
    world_fail(w, -1, sentence.text);
}

static inline void world_prepare(World *w) {
    size_t n = (size_t)w->ranks;
    struct rlimit files;
    w->peers = (Peer *)xcalloc(n, sizeof *w->peers);
    w->control = (Connection *)xcalloc(n, sizeof *w->control);
    w->goodbye = (bool *)xcalloc(n, sizeof *w->goodbye);
    w->agreement = (char **)xcalloc(n, sizeof *w->agreement);
    w->polled = (struct pollfd *)xcalloc(2 + NEWCOMERS + n, sizeof *w->polled);
    for (size_t r = 0; r < n; r++) w->control[r].fd = -1;
    for (int i = 0; i < NEWCOMERS; i++) w->newcomers[i].fd = -1;
    w->listener = -1;
    w->arrival_seconds = environment_seconds("TIKZ_ARRIVAL_SECONDS", 20);
    w->silence_seconds = environment_seconds("TIKZ_SILENCE_SECONDS", 12);
    w->wake = eventfd(0, EFD_CLOEXEC);
    w->over_event = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&w->sending, NULL);
    pthread_mutex_init(&w->lock, NULL);
    condition_make(&w->changed);
    world_know_oneself(w);
    if (!getrlimit(RLIMIT_NOFILE, &files)) {  // a connection to each rank, twice for each Comm
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
}

/* Makes this process one of the ranks: see lib/launch.h for how it knows which; rendezvous NULL, rank -1 and ranks 0
 * where they are not given. Returns when all are there. -1: wrong usage, or this rank finds no other (only it knows);
 * what fails later ends all ranks. Alone (w->ranks 1) there are no connections and no thread. */
static inline int world_open(World *w, int argc, char **argv, const char *rendezvous, int rank, int ranks,
                             Error *err) {
    memset(w, 0, sizeof *w);
    if (launch_find(&w->launch, rendezvous, rank, ranks, err)) return -1;
    w->rank = w->launch.rank;
    w->ranks = w->launch.ranks;
    w->local_ranks = w->sharing = 1;
    if (w->ranks == 1) return 0;
    world_prepare(w);
    if (world_meet(w, argc, argv, err)) {
        int status;
        copies_end(&w->copies, 0, &status);
        return -1;
    }
    world_current = w;
    die_hook = world_die;
    w->arrived = 1;
    if (w->rank) world_introduce(w);
    thread_start(&w->monitor, monitor_run, w);
    world_assemble(w);
    const Peer *me = &w->peers[w->rank];
    w->local_ranks = w->sharing = 0;
    for (int r = 0; r < w->ranks; r++) {
        bool here = w->peers[r].machine == me->machine;
        w->local_ranks += here;
        w->local_rank += here && r < w->rank;
        w->sharing += here && w->peers[r].processors == me->processors;
    }
    return 0;
}

/* ---- agreement ---- */

/* The value of `key` in a text of `key = value` lines, its length in *length; NULL: not there. */
static inline const char *agreement_find(const char *text, const char *key, size_t key_length, size_t *length) {
    for (const char *line = text; line && *line; line = strchr(line, '\n'), line += line != NULL) {
        const char *equal = strstr(line, " = ");
        if (!equal || (size_t)(equal - line) != key_length || memcmp(line, key, key_length)) continue;
        *length = strcspn(equal + 3, "\n");
        return equal + 3;
    }
    return NULL;
}

/* The first line of `text` that `other` does not have: a sentence about the two values. */
static inline bool agreement_differs(const World *w, int rank, const char *text, const char *other, bool mine,
                                     Error *sentence) {
    char name[160];
    for (const char *line = text; line && *line; line = strchr(line, '\n'), line += line != NULL) {
        const char *equal = strstr(line, " = ");
        if (!equal) continue;
        size_t key = (size_t)(equal - line), length = strcspn(equal + 3, "\n"), theirs = 0;
        const char *value = agreement_find(other, line, key, &theirs);
        if (value && theirs == length && !memcmp(value, equal + 3, length)) continue;
        if (!value) value = "nothing", theirs = 7;
        const char *zero = mine ? equal + 3 : value, *that = mine ? value : equal + 3;
        error_set(sentence, "%s has another %.*s than rank 0: %.*s instead of %.*s; start all ranks alike",
                  world_name(w, rank, name, sizeof name), (int)key, line, (int)(mine ? theirs : length), that,
                  (int)(mine ? length : theirs), zero);
        return true;
    }
    return false;
}

/* Every rank gives a text of `key = value` lines. Returns when all have given the same; otherwise all ranks end with
 * a sentence that names the rank, the key and both values. */
static inline void world_agree(World *w, const char *text) {
    Error sentence;
    if (w->ranks == 1) return;
    pthread_mutex_lock(&w->lock);
    int before = w->agreed;
    pthread_mutex_unlock(&w->lock);
    if (w->rank) world_send(w, 0, MESSAGE_AGREE, text, strlen(text));
    pthread_mutex_lock(&w->lock);
    while (w->rank && w->agreed == before) pthread_cond_wait(&w->changed, &w->lock);
    for (int r = 1; r < w->ranks && w->rank == 0; r++) {
        while (!w->agreement[r]) pthread_cond_wait(&w->changed, &w->lock);
        bool differ = agreement_differs(w, r, text, w->agreement[r], true, &sentence) ||
                      agreement_differs(w, r, w->agreement[r], text, false, &sentence);
        free(w->agreement[r]);
        w->agreement[r] = NULL;
        if (!differ) continue;
        pthread_mutex_unlock(&w->lock);
        world_fail(w, -1, sentence.text);
    }
    pthread_mutex_unlock(&w->lock);
    if (w->rank == 0) world_send_all(w, -1, MESSAGE_AGREED, NULL, 0);
}

/* ---- the end ---- */

/* Any rank, once: the run is over. Sends and receives on a Link that wait, everywhere, return COMM_OVER. */
static inline void world_finish(World *w) {
    if (w->ranks == 1)
        w->over = true;
    else
        world_set_over(w, -1);
}

static inline bool world_over(const World *w) { return __atomic_load_n(&w->over, __ATOMIC_ACQUIRE); }

static inline void world_free(World *w) {
    for (int r = 0; r < w->ranks; r++) connection_close(&w->control[r]), free(w->agreement[r]);
    for (int i = 0; i < NEWCOMERS; i++) connection_close(&w->newcomers[i]);
    for (int i = 0; i < w->incoming_count; i++) close(w->incoming[i].fd);
    close(w->listener), close(w->wake), close(w->over_event);
    pthread_mutex_destroy(&w->sending);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->changed);
    free(w->peers), free(w->control), free(w->goodbye), free(w->agreement), free(w->polled), free(w->incoming);
    free(w->groups), free(w->copies.pid);
}

/* Waits until all ranks are here; then they part, and the end of one is no failure any more. Rank 0 waits for the
 * processes it started. */
static inline void world_close(World *w) {
    uint64_t one = 1;
    char text[24];
    int bad, status = 0;
    if (w->ranks == 1) return;
    if (w->rank) world_send(w, 0, MESSAGE_GOODBYE, NULL, 0);
    pthread_mutex_lock(&w->lock);
    for (int r = 0; r < w->ranks; r++)
        while (r != w->rank && (w->rank == 0 || r == 0) && !w->goodbye[r]) pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
    if (w->rank == 0) world_send_all(w, -1, MESSAGE_GOODBYE, NULL, 0);
    die_hook = NULL;
    world_current = NULL;
    pthread_mutex_lock(&w->lock);
    w->closing = true;
    pthread_mutex_unlock(&w->lock);
    if (write(w->wake, &one, sizeof one) < 0) die("cannot end the monitor: %s", strerror(errno));
    pthread_join(w->monitor, NULL);
    if (w->mpi) mpi_end();
    bad = copies_end(&w->copies, 30, &status);
    world_free(w);
    w->ranks = 1;
    w->rank = 0;
    if (bad) die("rank %d ended with %s after the run", bad, copies_status(status, text));
}

#endif
