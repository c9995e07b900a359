/* Tests of dist/: what the ranks of a run do together.
 *
 *   [mpirun -n N] test_comm [--device cpu|cuda|cuda:rank] [--engine none|MPI|NCCL] [CASE [WHO]]
 *
 * Without a CASE, every check that can succeed; rank 0 prints the sum over all ranks. --engine is what the collectives
 * must go through. With a CASE the run must end with an error, which test/test_comm.sh looks at; WHO is the rank that
 * does something special. Ranks that must wait for each other outside of MPI do it by files in the folder TEST_FOLDER. */
#include "samples.h"

#include "../dist/comm.h"
#include "../kernels/device.h"

static Comm comm;
static const Ops *op;

/* ---- numbers that differ in size, so that the order of their addition shows ---- */

static float number_of(int rank, size_t i, uint64_t salt) {
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u + (uint64_t)(rank + 1) * 0xbf58476d1ce4e5b9u + salt;
    x = (x ^ (x >> 31)) * 0x94d049bb133111ebu;
    x ^= x >> 29;
    return ((float)(x >> 40) / 8388608.0f - 1.0f) * (float)(1 << (x % 20));
}

/* The sum over the ranks, added in their order. */
static float sum_of(size_t i, uint64_t salt) {
    float sum = number_of(0, i, salt);
    for (int r = 1; r < comm.ranks; r++) sum += number_of(r, i, salt);
    return sum;
}

/* NCCL is free to add in an order of its own: there, a sum is right when it is within the rounding errors of an order. */
static bool is_sum(float x, size_t i, uint64_t salt) {
    if (!comm.nccl) return x == sum_of(i, salt);
    double sum = 0, size = 0;
    for (int r = 0; r < comm.ranks; r++) sum += number_of(r, i, salt), size += fabs((double)number_of(r, i, salt));
    return fabs(x - sum) <= comm.ranks * size * 6e-8;
}

/* ---- arrays on the device, between two guards ---- */

enum { GUARD = 64 };

typedef struct {
    uint8_t *device, *host;
    size_t bytes;
} Array;

static Array array_make(size_t bytes) {
    Array a = {.bytes = bytes, .host = xmalloc(bytes + 2 * GUARD), .device = op->alloc(bytes + 2 * GUARD)};
    memset(a.host, 0xA5, bytes + 2 * GUARD);
    return a;
}

static void array_upload(const Array *a) { op->upload(a->device, a->host, a->bytes + 2 * GUARD); }

/* Downloads the array; returns whether the guards are as they were. */
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

/* ---- collectives on arrays of the device ---- */

static void test_all_reduce(size_t n) {
    Array a = array_make(n * sizeof(float));
    float *x = array_values(&a);
    for (size_t i = 0; i < n; i++) x[i] = number_of(comm.rank, i, n);
    array_upload(&a);
    comm_all_reduce(&comm, array_buffer(&a), n);
    comm_finish(&comm);
    bool same = array_download(&a);
    for (size_t i = 0; i < n; i++) same = same && is_sum(x[i], i, n);
    CHECK(same);
    array_free(&a);
}

static void test_reduce_scatter(size_t piece) {
    size_t n = piece * comm.ranks, own = piece * comm.rank;
    Array a = array_make(n * sizeof(float));
    float *x = array_values(&a);
    for (size_t i = 0; i < n; i++) x[i] = number_of(comm.rank, i, piece);
    array_upload(&a);
    comm_reduce_scatter(&comm, array_buffer(&a), piece);
    comm_finish(&comm);
    bool same = array_download(&a);
    for (size_t i = own; i < own + piece; i++) same = same && is_sum(x[i], i, piece);
    CHECK(same);
    array_free(&a);
}

static void test_all_gather(size_t piece) {
    size_t own = piece * comm.rank;
    Array a = array_make(piece * comm.ranks);
    uint8_t *x = array_values(&a);
    for (size_t i = 0; i < piece; i++) x[own + i] = (uint8_t)(comm.rank * 31 + (int)(i * 7 % 251));
    array_upload(&a);
    comm_all_gather(&comm, array_buffer(&a), piece);
    comm_finish(&comm);
    bool same = array_download(&a);
    for (int r = 0; r < comm.ranks; r++)
        for (size_t i = 0; i < piece; i++) same = same && x[piece * r + i] == (uint8_t)(r * 31 + (int)(i * 7 % 251));
    CHECK(same);
    array_free(&a);
}

/* More calls are under way than the queue holds, on the same arrays: they happen in their order. A reduce-scatter with an
 * all-gather gives the bits of an all-reduce. */
static void test_order(void) {
    enum { PIECE = 37, TIMES = 400 };
    size_t n = PIECE * (size_t)comm.ranks;
    Array a = array_make(n * sizeof(float)), b = array_make(n * sizeof(float));
    float *x = array_values(&a), *y = array_values(&b);
    double waited = comm.seconds_waited;
    for (size_t i = 0; i < n; i++) x[i] = y[i] = number_of(comm.rank, i, 5) * 1e-30f;
    array_upload(&a);
    array_upload(&b);
    for (int k = 0; k < TIMES; k++) {
        if (k < 40) comm_all_reduce(&comm, array_buffer(&b), n);
        if (k < 40) comm_reduce_scatter(&comm, array_buffer(&a), PIECE);
        comm_all_gather(&comm, array_buffer(&a), PIECE * sizeof(float));
    }
    comm_finish(&comm);
    CHECK(array_download(&a) && array_download(&b) && !memcmp(x, y, n * sizeof *x));
    CHECK((comm.seconds_waited > waited) == (comm.ranks > 1 && !comm.nccl));
    array_free(&a);
    array_free(&b);
}

/* What the device was given before a collective is in its sum, and what it is given after comm_finish sees the sum, with
 * no other wait between them. */
static void test_device_order(void) {
    enum { N = 30011 };
    Array a = array_make(N * sizeof(float)), b = array_make(N * sizeof(float)), c = array_make(N * sizeof(float));
    float *x = array_values(&a), *z = array_values(&c);
    array_upload(&c);
    bool same = true;
    for (int k = 0; k < 5; k++) {
        for (size_t i = 0; i < N; i++) x[i] = number_of(comm.rank, i, (uint64_t)k);
        array_upload(&a);
        op->copy(array_buffer(&b), array_buffer(&a), N * sizeof(float));
        comm_all_reduce(&comm, array_buffer(&b), N);
        comm_finish(&comm);
        op->copy(array_buffer(&c), array_buffer(&b), N * sizeof(float));
        same = array_download(&c) && same;
        for (size_t i = 0; i < N; i++) same = same && is_sum(z[i], i, (uint64_t)k);
    }
    CHECK(same);
    array_free(&a);
    array_free(&b);
    array_free(&c);
}

/* ---- a collective beside computation ---- */

static char *rank_file(const char *name, int rank) {
    const char *folder = getenv("TEST_FOLDER");
    return format_string("%s/%s.%d", folder ? folder : "/tmp", name, rank);
}

/* Whether all ranks but 0 have made their file, within so many seconds. */
static bool others_have_begun(double seconds) {
    double end = seconds_now() + seconds;
    for (int r = 1; r < comm.ranks;) {
        char *path = rank_file("begun", r);
        bool there = file_exists(path);
        free(path);
        if (!there && seconds_now() > end) return false;
        if (!there) usleep(1000);
        r += there;
    }
    return true;
}

/* The other ranks start a sum in which rank 0 does not take part before all of them are computing: starting must not
 * wait for it. On a GPU without NCCL it does, for arrays are moved by the caller. */
static void test_overlap(void) {
    enum { N = 50021 };
    if (comm.ranks == 1 || !(op->host_memory || comm.nccl)) return;
    Array a = array_make(N * sizeof(float)), b = array_make(N * sizeof(float)), c = array_make(N * sizeof(float));
    float *x = array_values(&a), *y = array_values(&b), *z = array_values(&c);
    char *path = rank_file("begun", comm.rank);
    for (size_t i = 0; i < N; i++) x[i] = number_of(comm.rank, i, 1), y[i] = (float)i;
    array_upload(&a);
    array_upload(&b);
    array_upload(&c);
    comm_barrier(&comm);
    if (comm.rank == 0) CHECK(others_have_begun(20));
    comm_all_reduce(&comm, array_buffer(&a), N);
    if (comm.rank) write_bytes(path, "", 0);
    for (int k = 0; k < 20; k++) op->copy(array_buffer(k % 2 ? &b : &c), array_buffer(k % 2 ? &c : &b), N * sizeof(float));
    comm_finish(&comm);
    bool same = array_download(&a) && array_download(&c);
    for (size_t i = 0; i < N; i++) same = same && is_sum(x[i], i, 1) && z[i] == (float)i;
    CHECK(same);
    comm_barrier(&comm);
    unlink(path);
    free(path);
    array_free(&a);
    array_free(&b);
    array_free(&c);
}

/* ---- values in the host's memory ---- */

static void test_host_values(void) {
    static const size_t sizes[] = {1, 8, 1000, 300001};
    double mine = comm.rank * 1.5, *all = xcalloc(comm.ranks, sizeof *all);
    comm_gather_host(&comm, &mine, sizeof mine, all);
    bool same = true;
    for (int r = 0; r < comm.ranks; r++) same = same && all[r] == r * 1.5;
    CHECK(same);
    free(all);
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        uint8_t *x = xmalloc(sizes[k] + 1);
        memset(x, comm.rank ? 0x5A : 0, sizes[k]);
        x[sizes[k]] = 0xA5;
        for (size_t i = 0; i < sizes[k] && comm.rank == 0; i++) x[i] = (uint8_t)(i * 13 % 241);
        comm_broadcast_host(&comm, x, sizes[k]);
        same = x[sizes[k]] == 0xA5;
        for (size_t i = 0; i < sizes[k]; i++) same = same && x[i] == (uint8_t)(i * 13 % 241);
        CHECK(same);
        free(x);
    }
}

/* No rank leaves a barrier before the last has come. */
static void test_barrier(void) {
    for (int late = 0; late < comm.ranks; late++) {
        double times[2], *all = xcalloc(2 * comm.ranks, sizeof *all);
        if (comm.rank == late) usleep(30000);
        times[0] = seconds_now();
        comm_barrier(&comm);
        times[1] = seconds_now();
        comm_gather_host(&comm, times, sizeof times, all);
        bool waited = true;
        for (int r = 0; r < comm.ranks; r++) waited = waited && all[2 * r + 1] >= all[2 * late];
        CHECK(waited);
        free(all);
    }
}

/* ---- NCCL with one rank ---- for a machine with one GPU; a Comm of one rank would not use it */

static void test_nccl_alone(void) {
    enum { N = 1001 };
    Error err;
    char place[GPU_PLACE_BYTES], id[NCCL_ID_BYTES];
    if (op->host_memory || !nccl_place(op, place)) return;
    CHECK_OK(nccl_unique_id(id, &err), err);
    NcclGroup *g = nccl_join(op, id, 0, 1, &err);
    CHECK(g != NULL);
    if (!g) return;
    Array a = array_make(N * sizeof(float));
    float *x = array_values(&a);
    for (int i = 0; i < N; i++) x[i] = (float)i;
    array_upload(&a);
    for (int k = 0; k < 3; k++) {
        nccl_reduce_scatter(g, array_buffer(&a), N);
        nccl_all_reduce(g, array_buffer(&a), N);
        nccl_all_gather(g, array_buffer(&a), N * sizeof(float));
        nccl_finish(g);
    }
    bool same = array_download(&a);
    for (int i = 0; i < N; i++) same = same && x[i] == (float)i;
    CHECK(same);
    nccl_leave(g);
    array_free(&a);
}

/* ---- how a process comes to be one of several ---- */

static int launched_with(const char *name, const char *value) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) unsetenv(names[i]);
    if (name) setenv(name, value, 1);
    int ranks = launched_ranks();
    if (name) unsetenv(name);
    return ranks;
}

static void test_launched(void) {
    CHECK(launched_with(NULL, NULL) == 1);
    CHECK(launched_with("OMPI_COMM_WORLD_SIZE", "4") == 4);
    CHECK(launched_with("OMPI_COMM_WORLD_SIZE", "1") == 1);
    CHECK(launched_with("PMI_SIZE", "2") == 2);
    CHECK(launched_with("SLURM_STEP_NUM_TASKS", "8") == 8);
    CHECK(launched_with("SLURM_STEP_NUM_TASKS", "") == 1 && launched_with("SLURM_STEP_NUM_TASKS", "-3") == 1);
    CHECK(launched_with("SLURM_NTASKS", "8") == 1);  // a script under sbatch is one process, whatever it asked for
#ifndef WITH_MPI
    Comm c;
    Error err;
    setenv("OMPI_COMM_WORLD_SIZE", "3", 1);
    CHECK_ERROR(comm_init(&c, &err), err, "this is one of 3 processes, but the program was built without MPI");
    CHECK(strstr(err.text, "scripts/deps.sh mpi") != NULL);
    unsetenv("OMPI_COMM_WORLD_SIZE");
#endif
}

static void check_difference(const char *mine, const char *theirs, const char *expected) {
    char out[700], a[200], b[200];
    snprintf(a, sizeof a, "%s", mine);
    snprintf(b, sizeof b, "%s", theirs);
    comm_difference(out, sizeof out, a, b);
    check(!strcmp(out, expected), __FILE__, __LINE__, "the difference is named", out);
}

static void test_difference(void) {
    check_difference("a = 1\n--lr = 0.002\nb = 2\n", "a = 1\n--lr = 0.001\nb = 3\n",
                     "another --lr than rank 0: 0.002 instead of 0.001");
    check_difference("init = x = y\n", "init = x\n", "another init than rank 0: x = y instead of x");
    check_difference("a = 1\nb = 2\n", "a = 1\nc = 2\n", "another build than rank 0");
    check_difference("a = 1\nab = 2\n", "a = 1\na = 2\n", "another build than rank 0");
    check_difference("a = 1\n", "a = 1\nb = 2\n", "another build than rank 0");
    check_difference("a = 1\nb = 2\n", "a = 1\n", "another build than rank 0");
}

/* ---- everything that succeeds ---- */

static void test_all(void) {
    static const size_t sizes[] = {0, 1, 2, 3, 7, 64, 1001, 70001};
    comm_check_same(&comm, "seed = 1\ndata = some file.bin\n");
    comm_check_same(&comm, "");
    CHECK(comm.rank >= 0 && comm.rank < comm.ranks && comm.local_ranks == comm.ranks && comm.local_rank == comm.rank);
    CHECK(comm.sharing >= 1 && comm.sharing <= comm.ranks);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        test_all_reduce(sizes[i]);
        test_reduce_scatter(sizes[i]);
        test_all_gather(sizes[i]);
    }
    test_all_reduce(2000003);
    test_reduce_scatter(700001);
    test_order();
    test_device_order();
    test_overlap();
    test_host_values();
    test_barrier();
    if (comm.ranks == 1) test_launched(), test_difference(), test_nccl_alone();
}

/* Rank 0 prints what all ranks have counted; what failed, each has said itself. */
static int report_together(void) {
    int mine[2] = {checks_passed, checks_failed}, (*all)[2] = xcalloc(comm.ranks, sizeof *all);
    comm_gather_host(&comm, mine, sizeof mine, all);
    for (int r = 1; r < comm.ranks; r++) {
        checks_passed += all[r][0];
        checks_failed += all[r][1];
    }
    free(all);
    return comm.rank == 0 ? checks_report() : 0;
}

/* ---- what ends a run ---- */

static void say_process(void) {
    printf("rank %d is process %d\n", comm.rank, (int)getpid());
    fflush(stdout);
}

/* All ranks sum again and again until one is killed. */
static void loop_forever(void) {
    enum { N = 100000 };
    float *x = xcalloc(N, sizeof *x);
    for (int i = 0;; i++) {
        comm_all_reduce(&comm, x, N);
        comm_finish(&comm);
        if (i == 3) say_process();
        usleep(1000);
    }
}

/* All but `who` wait for it in a collective. */
static void wait_forever(int who) {
    comm_barrier(&comm);
    say_process();
    while (comm.rank == who) pause();
    comm_barrier(&comm);
}

static void fail_as(const char *what, int who) {
    Error err;
    char text[100];
    AtomicFile file;
    bool me = comm.rank == who;
    if (!strcmp(what, "loop")) loop_forever();
    if (!strcmp(what, "wait")) wait_forever(who);
    if (!strcmp(what, "differ")) {
        snprintf(text, sizeof text, "seed = 1\ndata = %s.bin\nlast = 1\n", me ? "that" : "this");
        comm_check_same(&comm, text);
    }
    if (!strcmp(what, "less")) comm_check_same(&comm, me ? "seed = 1\n" : "seed = 1\nprecision = FP32\n");
    /* a rank finds its disk full while it has a file under construction and its worker is inside a collective */
    if (!strcmp(what, "die")) {
        float x[100] = {0};
        char *path = rank_file("file", comm.rank);
        if (atomic_open(&file, path, &err) || atomic_write(&file, "half", 4, &err)) die("%s", err.text);
        comm_barrier(&comm);
        comm_all_reduce(&comm, x, 100);
        if (me) comm_all_reduce(&comm, x, 100);  // the others never take part
        if (me) usleep(50000);
        if (me) die("cannot write out/state.safetensors: %s", strerror(ENOSPC));
    }
    if (!strcmp(what, "exit") && me) exit(0);
    for (;;) pause();
}

int main(int argc, char **argv) {
    const char *device = "cpu", *engine = NULL, *what = NULL;
    int who = 0, more = 0;
    char own[32];
    Error err;
    program_begin(argv);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--device") && i + 1 < argc)
            device = argv[++i];
        else if (!strcmp(argv[i], "--engine") && i + 1 < argc)
            engine = argv[++i];
        else if (more++ == 0)
            what = argv[i];
        else
            who = atoi(argv[i]);
    }
    die_if(comm_init(&comm, &err), &err);
    snprintf(own, sizeof own, "cuda:%d", comm.local_rank);
    if (!strcmp(device, "cuda:rank")) device = own;
    if (!(op = ops_open(device, &err))) die("%s", err.text);
    die_if(comm_use_device(&comm, op, &err), &err);
    if (engine) check(!strcmp(comm.engine, engine), __FILE__, __LINE__, "the engine", comm.engine);
    if (what) fail_as(what, who);
    test_all();
    int status = report_together();
    comm_close(&comm);
    CHECK(comm.ranks == 1);
    return status;
}
