/* Tests of lib/world.h, dist/comm.h and what is under them, as one of several ranks:
 *
 *   test_comm [--ranks N | --rendezvous HOST:PORT --rank R --ranks N] [--device cpu|cuda|cuda:rank] [CASE [WHO]]
 *
 * Without a CASE: every check that can succeed; rank 0 prints the engine and the sum over all ranks. With one, the
 * run shall end with a sentence, which test/test_comm.sh looks at; WHO is the rank that does something special. */
#include "samples.h"

#include "../dist/comm.h"

static World world;
static const Ops *op;

/* ---- numbers that differ in size, so that the order of their addition shows ---- */

static float number_of(int rank, size_t i, uint64_t salt) {
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u + (uint64_t)(rank + 1) * 0xbf58476d1ce4e5b9u + salt;
    x = (x ^ (x >> 31)) * 0x94d049bb133111ebu;
    x ^= x >> 29;
    return ((float)(x >> 40) / 8388608.0f - 1.0f) * (float)(1 << (x % 20));
}

/* The sum over ranks first .. first+count-1, added in their order. */
static float sum_of(int first, int count, size_t i, uint64_t salt) {
    float sum = number_of(first, i, salt);
    for (int r = first + 1; r < first + count; r++) sum += number_of(r, i, salt);
    return sum;
}

/* ---- arrays on the device, between two guards ---- */

enum { GUARD = 64 };

typedef struct {
    uint8_t *device, *host;
    size_t bytes;
} Array;

static Array array_make(size_t bytes) {
    Array a;
    a.bytes = bytes;
    a.host = xmalloc(bytes + 2 * GUARD);
    a.device = op->alloc(bytes + 2 * GUARD);
    memset(a.host, 0xA5, bytes + 2 * GUARD);
    return a;
}

static void array_upload(const Array *a) { op->upload(a->device, a->host, a->bytes + 2 * GUARD); }

/* Fetches the array. The guards are as they were. */
static bool array_download(Array *a) {
    op->download(a->host, a->device, a->bytes + 2 * GUARD);
    bool whole = true;
    for (size_t i = 0; i < GUARD; i++) whole = whole && a->host[i] == 0xA5 && a->host[GUARD + a->bytes + i] == 0xA5;
    return whole;
}

static void *array_values(Array *a) { return a->host + GUARD; }
static void *array_buffer(const Array *a) { return a->device + GUARD; }

static void array_free(Array *a) {
    free(a->host);
    op->release(a->device);
}

/* ---- collectives ---- */

static void test_all_reduce(Comm *c, int first, size_t n) {
    Array a = array_make(n * sizeof(float));
    float *x = array_values(&a);
    for (size_t i = 0; i < n; i++) x[i] = number_of(world.rank, i, n);
    array_upload(&a);
    comm_all_reduce(c, array_buffer(&a), n);
    comm_finish(c);
    bool same = array_download(&a);
    for (size_t i = 0; i < n; i++) same = same && x[i] == sum_of(first, c->ranks, i, n);
    CHECK(same);
    array_free(&a);
}

static void test_reduce_scatter(Comm *c, int first, size_t piece) {
    size_t n = piece * (size_t)c->ranks, own = piece * (size_t)c->rank;
    Array a = array_make(n * sizeof(float));
    float *x = array_values(&a);
    for (size_t i = 0; i < n; i++) x[i] = number_of(world.rank, i, piece);
    array_upload(&a);
    comm_reduce_scatter(c, array_buffer(&a), piece);
    comm_finish(c);
    bool same = array_download(&a);
    for (size_t i = own; i < own + piece; i++) same = same && x[i] == sum_of(first, c->ranks, i, piece);
    CHECK(same);
    array_free(&a);
}

static void test_all_gather(Comm *c, int first, size_t piece) {
    size_t own = piece * (size_t)c->rank;
    Array a = array_make(piece * (size_t)c->ranks);
    uint8_t *x = array_values(&a);
    for (size_t i = 0; i < piece; i++) x[own + i] = (uint8_t)(world.rank * 31 + (int)(i * 7 % 251));
    array_upload(&a);
    comm_all_gather(c, array_buffer(&a), piece);
    comm_finish(c);
    bool same = array_download(&a);
    for (int r = 0; r < c->ranks; r++)
        for (size_t i = 0; i < piece; i++)
            same = same && x[piece * (size_t)r + i] == (uint8_t)((first + r) * 31 + (int)(i * 7 % 251));
    CHECK(same);
    array_free(&a);
}

static void test_broadcast(Comm *c, size_t bytes, int root) {
    Array a = array_make(bytes);
    uint8_t *x = array_values(&a);
    for (size_t i = 0; i < bytes && c->rank == root; i++) x[i] = (uint8_t)(root * 17 + (int)(i * 13 % 241));
    array_upload(&a);
    comm_broadcast(c, array_buffer(&a), bytes, root);
    comm_finish(c);
    bool same = array_download(&a);
    for (size_t i = 0; i < bytes; i++) same = same && x[i] == (uint8_t)(root * 17 + (int)(i * 13 % 241));
    CHECK(same);
    array_free(&a);
}

static void test_host_values(Comm *c, int first) {
    double mine = world.rank * 1.5, all[64];
    for (int i = 0; i < c->ranks; i++) all[i] = -1;
    comm_gather_host(c, &mine, sizeof mine, all);
    bool same = true;
    for (int r = 0; r < c->ranks; r++) same = same && all[r] == (first + r) * 1.5;
    CHECK(same);
    comm_barrier(c);
}

/* More calls are under way than the queue holds, on one array: they happen in their order, and a reduce-scatter with
 * an all-gather gives the bits of an all-reduce. */
static void test_order(Comm *c) {
    enum { PIECE = 37, TIMES = 400 };
    size_t n = PIECE * (size_t)c->ranks;
    Array a = array_make(n * sizeof(float)), b = array_make(n * sizeof(float));
    float *x = array_values(&a), *y = array_values(&b);
    for (size_t i = 0; i < n; i++) x[i] = y[i] = number_of(world.rank, i, 5) * 1e-30f;
    array_upload(&a);
    array_upload(&b);
    for (int k = 0; k < TIMES; k++) {
        if (k < 40) comm_all_reduce(c, array_buffer(&b), n);
        if (k < 40) comm_reduce_scatter(c, array_buffer(&a), PIECE);
        comm_all_gather(c, array_buffer(&a), PIECE * sizeof(float));
        if (k == TIMES / 2) comm_broadcast(c, array_buffer(&a), 1, 0);
    }
    comm_finish(c);
    CHECK(array_download(&a) && array_download(&b) && !memcmp(x, y, n * sizeof *x));
    CHECK((c->seconds_busy > 0) == (c->ranks > 1) && (c->seconds_waited > 0) == (c->ranks > 1));
    array_free(&a);
    array_free(&b);
}

static void test_group(int first, int count) {
    static const size_t sizes[] = {0, 1, 2, 3, 7, 64, 1001, 70001};
    Error err;
    Comm c;
    if (world.rank < first || world.rank >= first + count) {
        CHECK_ERROR(comm_open(&c, &world, first, count, op, &err), err, "is not in the group of ranks");
        return;
    }
    CHECK_OK(comm_open(&c, &world, first, count, op, &err), err);
    CHECK(c.rank == world.rank - first && c.ranks == count);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        test_all_reduce(&c, first, sizes[i]);
        test_reduce_scatter(&c, first, sizes[i]);
        test_all_gather(&c, first, sizes[i]);
        for (int root = 0; root < count; root++) test_broadcast(&c, sizes[i], root);
    }
    test_all_reduce(&c, first, COMM_CHUNK_BYTES / sizeof(float) + 5);  // more than one chunk
    test_reduce_scatter(&c, first, COMM_CHUNK_BYTES / sizeof(float) / 2 + 1);
    test_host_values(&c, first);
    test_order(&c);
    comm_close(&c);
}

/* Two groups of the same ranks at work at a time, and one opened again and again. */
static void test_several(void) {
    Error err;
    Comm a, b;
    enum { N = 50000 };
    Array x = array_make(N * sizeof(float)), y = array_make(N * sizeof(float));
    float *p = array_values(&x), *q = array_values(&y);
    for (size_t i = 0; i < N; i++) p[i] = number_of(world.rank, i, 1), q[i] = number_of(world.rank, i, 2);
    array_upload(&x);
    array_upload(&y);
    CHECK_OK(comm_open(&a, &world, 0, world.ranks, op, &err), err);
    CHECK_OK(comm_open(&b, &world, 0, world.ranks, op, &err), err);
    bool first = world.rank % 2 || !op->host_memory;  // GPUs take all groups in one order
    if (first) comm_all_reduce(&a, array_buffer(&x), N);
    comm_all_reduce(&b, array_buffer(&y), N);
    if (!first) comm_all_reduce(&a, array_buffer(&x), N);
    comm_finish(&b);
    comm_finish(&a);
    bool same = array_download(&x) && array_download(&y);
    for (size_t i = 0; i < N; i++)
        same = same && p[i] == sum_of(0, world.ranks, i, 1) && q[i] == sum_of(0, world.ranks, i, 2);
    CHECK(same);
    comm_close(&a);
    for (int k = 0; k < 40; k++) {
        CHECK_OK(comm_open(&a, &world, 0, world.ranks, op, &err), err);
        if (k % 3 == 0) comm_barrier(&a);
        if (k % 10 == 0) test_all_reduce(&a, 0, 10);
        comm_close(&a);
    }
    comm_barrier(&b);
    comm_close(&b);
    array_free(&x);
    array_free(&y);
}

/* ---- links ---- */

static const size_t link_sizes[] = {1, 0, 5, 4096, 300001, 8, 1 << 21};
enum { LINK_SIZES = sizeof link_sizes / sizeof link_sizes[0] };

static uint8_t link_byte(int from, int to, int k, size_t i) {
    return (uint8_t)(from * 41 + to * 11 + k * 5 + (int)(i % 253));
}

static void *link_receive_all(void *argument) {
    Link *l = argument;
    for (int k = 0; k < LINK_SIZES; k++)
        for (int from = 0; from < world.ranks; from++) {
            if (from == world.rank) continue;
            int number = -1;
            uint8_t *x = xmalloc(link_sizes[k] + 1);
            memset(x, 0xA5, link_sizes[k] + 1);
            bool same = link_receive_host(l, &number, sizeof number, from) == COMM_OK && number == k * 100 + from;
            same = same && link_receive_host(l, x, link_sizes[k], from) == COMM_OK && x[link_sizes[k]] == 0xA5;
            for (size_t i = 0; i < link_sizes[k]; i++) same = same && x[i] == link_byte(from, world.rank, k, i);
            CHECK(same);
            free(x);
        }
    return NULL;
}

/* Everyone sends to everyone, while a thread receives. */
static void test_link_crossing(Link *l) {
    pthread_t thread;
    thread_start(&thread, link_receive_all, l);
    for (int k = 0; k < LINK_SIZES; k++)
        for (int to = 0; to < world.ranks; to++) {
            int number = k * 100 + world.rank;
            if (to == world.rank) continue;
            uint8_t *x = xmalloc(link_sizes[k]);
            for (size_t i = 0; i < link_sizes[k]; i++) x[i] = link_byte(world.rank, to, k, i);
            bool sent = link_send_host(l, &number, sizeof number, to) == COMM_OK &&
                        link_send_host(l, x, link_sizes[k], to) == COMM_OK;
            memset(x, 0, link_sizes[k]);  // it may be changed as soon as link_send returns
            free(x);
            if (!sent) die("link_send says that the run is over");
        }
    pthread_join(thread, NULL);
}

/* Where link_send and link_receive take an array: on the device, or in the host's memory. */
static void *link_buffer(const Link *l, Array *a) { return l->device_buffers ? array_buffer(a) : array_values(a); }

/* Arrays go round the ranks, an odd rank receives first. */
static void test_link_round(Link *l) {
    int right = (world.rank + 1) % world.ranks, left = (world.rank + world.ranks - 1) % world.ranks;
    for (int k = 0; k < LINK_SIZES; k++) {
        Array a = array_make(link_sizes[k]), b = array_make(link_sizes[k]);
        uint8_t *x = array_values(&a), *y = array_values(&b);
        for (size_t i = 0; i < link_sizes[k]; i++) x[i] = link_byte(world.rank, right, k, i);
        array_upload(&a);
        array_upload(&b);
        bool same = true;
        link_after(l);
        if (world.rank % 2) same = link_receive(l, link_buffer(l, &b), link_sizes[k], left) == COMM_OK;
        same = same && link_send(l, link_buffer(l, &a), link_sizes[k], right) == COMM_OK;
        if (world.rank % 2 == 0) same = same && link_receive(l, link_buffer(l, &b), link_sizes[k], left) == COMM_OK;
        if (l->device_buffers) same = same && array_download(&b);
        for (size_t i = 0; i < link_sizes[k]; i++) same = same && y[i] == link_byte(left, world.rank, k, i);
        CHECK(same);
        array_free(&a);
        array_free(&b);
    }
}

/* The last rank says that the run is over while the others wait: rank 0 for something that never comes, the others
 * for someone to take what they send. */
static void test_over(Link *l) {
    const size_t much = 64 << 20;  // more than waits in any system's buffers
    Array a = array_make(much);
    CHECK(!world_over(&world));
    world_agree(&world, "over = not yet\n");
    if (world.rank == world.ranks - 1) {
        usleep(200000);
        world_finish(&world);
        CHECK(world_over(&world));
    } else if (world.rank == 0) {
        CHECK(link_receive(l, link_buffer(l, &a), 100, world.ranks - 1) == COMM_OVER && world_over(&world));
    } else {
        CHECK(link_send(l, link_buffer(l, &a), much, 0) == COMM_OVER && world_over(&world));
    }
    array_free(&a);
}

/* ---- NCCL with one rank ---- for a machine with one GPU; through the table, for a Comm of one rank needs none */

static void test_nccl_alone(void) {
    enum { N = 1001 };
    Error err;
    char place[NCCL_PLACE_BYTES], key[NCCL_KEY_BYTES];
    double busy = -1, waited = -1;
    const Nccl *nccl = cuda_nccl();
    if (op->host_memory || !nccl || !nccl->place(op, place)) return;
    CHECK_OK(nccl->key_make(key, &err), err);
    NcclGroup *g = nccl->join(op, key, 0, 1, false, &err);
    CHECK(g != NULL);
    if (!g) return;
    Array a = array_make(N * sizeof(float));
    float *x = array_values(&a);
    for (int i = 0; i < N; i++) x[i] = (float)i;
    array_upload(&a);
    for (int k = 0; k < 3; k++) {
        nccl->reduce_scatter(g, array_buffer(&a), N);
        nccl->all_reduce(g, array_buffer(&a), N);
        nccl->all_gather(g, array_buffer(&a), N * sizeof(float));
        nccl->broadcast(g, array_buffer(&a), N * sizeof(float), 0);
        nccl->finish(g, &busy, &waited);
        op->sync();
    }
    bool same = array_download(&a) && busy >= 0 && waited >= 0 && waited <= busy;
    for (int i = 0; i < N; i++) same = same && x[i] == (float)i;
    CHECK(same);
    nccl->leave(g);
    array_free(&a);
}

/* ---- how a process comes to be one of several ---- */

static void launch_environment(const char *const *pairs) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID",
                                        "SLURM_JOB_ID",         "SLURM_STEP_ID",        "SLURM_STEP_NUM_TASKS",
                                        "SLURM_STEP_NODELIST"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) unsetenv(names[i]);
    for (; pairs && pairs[0]; pairs += 2) setenv(pairs[0], pairs[1], 1);
}

static void test_launch(void) {
    static const char *const slurm[] = {"SLURM_PROCID",
                                        "3",
                                        "SLURM_STEP_NUM_TASKS",
                                        "8",
                                        "SLURM_JOB_ID",
                                        "1234567",
                                        "SLURM_STEP_ID",
                                        "0",
                                        "SLURM_STEP_NODELIST",
                                        "gpu-a[07-09,12],z",
                                        NULL};
    static const char *const batch[] = {"SLURM_PROCID", "0", "SLURM_NTASKS", "8", "SLURM_JOB_ID", "1", NULL};
    static const char *const broken[] = {"SLURM_PROCID", "9", "SLURM_STEP_NUM_TASKS", "8", "SLURM_JOB_ID", "1", NULL};
    static const char *const mpi[] = {"OMPI_COMM_WORLD_RANK", "1", "OMPI_COMM_WORLD_SIZE", "4", NULL};
    Error err;
    Launch l;
    char host[64];
    launch_environment(NULL);
    CHECK(launch_find(&l, NULL, -1, 0, &err) == 0 && l.kind == LAUNCH_ALONE && l.ranks == 1 && l.rank == 0);
    CHECK(launch_find(&l, NULL, -1, 1, &err) == 0 && l.kind == LAUNCH_ALONE);
    CHECK(launch_find(&l, NULL, -1, 3, &err) == 0 && l.kind == LAUNCH_COPIES && l.ranks == 3 && l.rank == 0);
    CHECK(launch_find(&l, "[::1]:29500", 2, 3, &err) == 0 && l.kind == LAUNCH_RENDEZVOUS && l.rank == 2);
    CHECK(!strcmp(l.host, "::1") && l.port == 29500);
    CHECK_ERROR(launch_find(&l, "host:1", -1, 3, &err), err, "needs --rank R and --ranks N");
    CHECK_ERROR(launch_find(&l, "host:1", 3, 3, &err), err, "--rank is 3 with --ranks 3; expected 0 to 2");
    CHECK_ERROR(launch_find(&l, "host", 0, 3, &err), err, "expected HOST:PORT");
    CHECK_ERROR(launch_find(&l, "host:0", 0, 3, &err), err, "expected HOST:PORT");
    CHECK_ERROR(launch_find(&l, "host:70000", 0, 3, &err), err, "expected HOST:PORT");
    CHECK_ERROR(launch_find(&l, "host:12x", 0, 3, &err), err, "expected HOST:PORT");
    CHECK_ERROR(launch_find(&l, NULL, 0, 3, &err), err, "--rank needs --rendezvous");
    launch_environment(slurm);
    CHECK(launch_find(&l, NULL, -1, 0, &err) == 0 && l.kind == LAUNCH_SLURM && l.rank == 3 && l.ranks == 8);
    CHECK(!strcmp(l.host, "gpu-a07") && l.port >= 20000 && l.port < 32768);
    CHECK_ERROR(launch_find(&l, NULL, -1, 4, &err), err, "--ranks is 4 but Slurm started 8 processes");
    CHECK(launch_find(&l, "h:1", 0, 2, &err) == 0 && l.kind == LAUNCH_RENDEZVOUS);
    launch_environment(batch);  // a script under sbatch is one process, whatever the number of tasks
    CHECK(launch_find(&l, NULL, -1, 0, &err) == 0 && l.kind == LAUNCH_ALONE);
    launch_environment(broken);
    CHECK_ERROR(launch_find(&l, NULL, -1, 0, &err), err, "Slurm's environment is not whole");
    launch_environment(mpi);
#ifdef WITH_MPI
    CHECK(launch_find(&l, NULL, -1, 0, &err) == 0 && l.kind == LAUNCH_MPI && l.rank == 1 && l.ranks == 4);
    CHECK_ERROR(launch_find(&l, NULL, -1, 2, &err), err, "--ranks is 2 but mpirun started 4 processes");
#else
    CHECK_ERROR(launch_find(&l, NULL, -1, 0, &err), err, "built without MPI");
#endif
    launch_environment(NULL);
    slurm_first_host("one,two", host, sizeof host);
    CHECK(!strcmp(host, "one"));
    slurm_first_host("rack[1-2]node[05,07]", host, sizeof host);
    CHECK(!strcmp(host, "rack1node05"));
    slurm_first_host("n-1", host, sizeof host);
    CHECK(!strcmp(host, "n-1"));
}

/* Rank 0 prints what all ranks have counted; what failed, each has said itself. */
static int report_together(void) {
    Error err;
    Comm c;
    int mine[2] = {checks_passed, checks_failed}, all[64][2];
    if (comm_open(&c, &world, 0, world.ranks, op, &err)) die("%s", err.text);
    comm_gather_host(&c, mine, sizeof mine, all);
    for (int r = 1; r < world.ranks; r++) checks_passed += all[r][0], checks_failed += all[r][1];
    if (world.rank == 0) printf("engine %s\n", c.engine);
    comm_close(&c);
    return world.rank == 0 ? checks_report() : 0;
}

static void test_all(void) {
    Error err;
    Link l;
    int n = world.ranks;
    world_agree(&world, "seed = 1\ndata = some file.bin\n");
    world_agree(&world, "");
    test_group(0, n);
    for (int first = 0; first < n; first++) test_group(first, 1);
    if (n > 2) test_group(0, n - 1), test_group(1, n - 1);
    test_several();
    CHECK_OK(link_open(&l, &world, op, &err), err);
    if (n > 1) {
        test_link_crossing(&l);
        test_link_round(&l);
        test_over(&l);
    } else {
        world_finish(&world);
        CHECK(world_over(&world));
    }
    link_close(&l);
    world_agree(&world, "end = yes\n");  // what is over are the links, not the run's last steps
}

/* ---- what ends a run ---- */

/* All ranks sum again and again until one is killed. Says so when they have begun. */
static void loop_forever(void) {
    enum { N = 100000 };
    Error err;
    Comm c;
    float *x = xcalloc(N, sizeof *x);
    if (comm_open(&c, &world, 0, world.ranks, &cpu_ops, &err)) die("%s", err.text);
    for (int i = 0;; i++) {
        comm_all_reduce(&c, x, N);
        comm_finish(&c);
        if (i == 3 && printf("rank %d is process %d\n", world.rank, (int)getpid()) > 0) fflush(stdout);
        usleep(1000);
    }
}

/* All but `who` wait for it in a collective. */
static void wait_forever(int who) {
    Error err;
    Comm c;
    if (comm_open(&c, &world, 0, world.ranks, &cpu_ops, &err)) die("%s", err.text);
    comm_barrier(&c);
    printf("rank %d is process %d\n", world.rank, (int)getpid());
    fflush(stdout);
    while (world.rank == who) pause();
    comm_barrier(&c);
}

static void fail_as(const char *what, int who) {
    Error err;
    Link l;
    char text[100];
    AtomicFile file;
    bool me = world.rank == who;
    if (!strcmp(what, "loop")) loop_forever();
    if (!strcmp(what, "wait")) wait_forever(who);
    if (!strcmp(what, "differ")) {
        snprintf(text, sizeof text, "seed = 1\ndata = %s.bin\nlast = 1\n", me ? "that" : "this");
        world_agree(&world, text);
    }
    if (!strcmp(what, "less")) world_agree(&world, me ? "seed = 1\n" : "seed = 1\nprecision = FP32\n");
    if (!strcmp(what, "sizes")) {
        int to = who ? 0 : 1, x[2] = {0, 0};
        if (link_open(&l, &world, &cpu_ops, &err)) die("%s", err.text);
        if (me) link_send(&l, x, 8, to);
        if (world.rank == to) link_receive(&l, x, 4, who);
    }
    /* a file is under construction everywhere when one rank finds its disk full */
    if (!strcmp(what, "die")) {
        char *path = format_string("%s/file%d", getenv("TEST_FOLDER"), world.rank);
        if (atomic_open(&file, path, &err) || atomic_write(&file, "half", 4, &err)) die("%s", err.text);
        if (me) usleep(300000);
        if (me) die("cannot write out/state.safetensors: %s", strerror(ENOSPC));
    }
    if (!strcmp(what, "exit") && me) exit(0);
    if (!strcmp(what, "early")) return;  // one rank leaves properly, the others wait for it elsewhere
    for (;;) pause();
}

int main(int argc, char **argv) {
    const char *rendezvous = NULL, *device = "cpu", *what = NULL;
    int rank = -1, ranks = 0, who = 0, more = 0;
    char own[32];
    Error err;
    program_name_set(argv[0]);
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--ranks"))
            ranks = atoi(value), i++;
        else if (!strcmp(argv[i], "--rank"))
            rank = atoi(value), i++;
        else if (!strcmp(argv[i], "--rendezvous"))
            rendezvous = value, i++;
        else if (!strcmp(argv[i], "--device"))
            device = value, i++;
        else if (more++ == 0)
            what = argv[i];
        else
            who = atoi(argv[i]);
    }
    if (world_open(&world, argc, argv, rendezvous, rank, ranks, &err)) die("%s", err.text);
    if (!strcmp(device, "cuda:rank")) snprintf(own, sizeof own, "cuda:%d", world.local_rank), device = own;
    if (!(op = ops_open(device, &err))) die("%s", err.text);
    if (what) fail_as(what, who);
    test_all();
    if (world.ranks == 1) test_launch(), test_nccl_alone();
    int status = report_together();
    world_close(&world);
    return status;
}
