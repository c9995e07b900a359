/* NCCL between the GPUs of several processes: the table of dist/nccl.h. Included at the end of
 * kernels/cuda/cuda.cu, whose devices and selection it uses.
 *
 * The library is loaded when it is first asked for, as cuBLASLt is (cuda/cublaslt.cuh); where it is not there, arrays
 * go through the host's memory instead. Its functions are called as nccl()->Send(...) for ncclSend(...).
 *
 * Every group has a stream of its own. What it does waits by an event for what the table's stream has been given, and
 * the table's stream waits by another for what the group has done: the host waits for neither. */
#ifndef KERNELS_CUDA_NCCL_CUH
#define KERNELS_CUDA_NCCL_CUH

#include "../kernels/cuda/common.cuh"
#include "nccl.h"
#include <nccl.h>
#include <unistd.h>
#ifndef CUDA_EMULATION
#include <dlfcn.h>
#endif

#define NCCL_FUNCTIONS(USE) \
    USE(AllGather)          \
    USE(AllReduce)          \
    USE(Broadcast)          \
    USE(CommAbort)          \
    USE(CommDestroy)        \
    USE(CommGetAsyncError)  \
    USE(CommInitRankConfig) \
    USE(GetErrorString)     \
    USE(GetUniqueId)        \
    USE(Recv)               \
    USE(ReduceScatter)      \
    USE(Send)

typedef struct {
#define MEMBER(name) decltype(&nccl##name) name;
    NCCL_FUNCTIONS(MEMBER)
#undef MEMBER
    bool there;
} NcclLibrary;

#ifdef CUDA_EMULATION
#define FIND(name) nccl##name,
static inline NcclLibrary nccl_load(void) {
    NcclLibrary n = {NCCL_FUNCTIONS(FIND) getenv("EMULATION_WITHOUT_NCCL") == NULL};
    return n;
}
#undef FIND
#else
static inline NcclLibrary nccl_load(void) {
    NcclLibrary n;
    memset((void *)&n, 0, sizeof n);
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    n.there = library != NULL;
#define FIND(name)                                                        \
    if (library) n.name = (decltype(n.name))dlsym(library, "nccl" #name); \
    n.there = n.there && n.name;
    NCCL_FUNCTIONS(FIND)
#undef FIND
    return n;
}
#endif

static inline const NcclLibrary *nccl(void) {
    static const NcclLibrary loaded = nccl_load();
    return &loaded;
}

/* When another rank dies, NCCL may hear of it before the thread that watches over the ranks (lib/world_monitor.h),
 * which knows the cause and ends this process: it gets the time for it. */
static void nccl_check(ncclResult_t result, const char *what) {
    if (result == ncclSuccess || result == ncclInProgress) return;
    sleep(3);
    die("NCCL cannot %s: %s; NCCL_DEBUG=WARN in the environment makes it say more", what,
        nccl()->GetErrorString(result));
}

/* The calls between two finishes, and when op's stream came to where their end was wanted. */
typedef struct {
    cudaEvent_t begin, end, wanted;
    bool finished;  // and not measured yet
} NcclTiming;

enum { NCCL_TIMINGS = 8 };  // finishes that the device may be behind the host, or they are not measured

struct NcclGroup {
    int index;  // of the device
    CudaDevice *device;
    ncclComm_t comm;
    int rank, ranks;
    cudaStream_t stream;
    cudaEvent_t asked, after, through;  // what op had been given, at the last call and at the last nccl_after; a send
    NcclTiming timings[NCCL_TIMINGS];
    int finishes;
    bool under_way;
};

static bool nccl_place(const Ops *op, char place[NCCL_PLACE_BYTES]) {
    if (!nccl()->there) return false;
    CUDA_CHECK(cudaDeviceGetPCIBusId(place, NCCL_PLACE_BYTES, op->device));
    return true;
}

static int nccl_key_make(char key[NCCL_KEY_BYTES], Error *err) {
    ncclUniqueId id;
    static_assert(sizeof id <= NCCL_KEY_BYTES, "NCCL's id is 128 bytes");
    ncclResult_t result = nccl()->GetUniqueId(&id);
    if (result != ncclSuccess)
        return error_set(err, "NCCL does not start: %s; NCCL_SOCKET_IFNAME=NAME names the network to use",
                         nccl()->GetErrorString(result));
    memcpy(key, &id, sizeof id);
    return 0;
}

/* Waits until NCCL has taken a call of a group that does not block. false: over first, and the group is ended. */
static bool nccl_taken(NcclGroup *g, ncclResult_t result, const char *what, bool (*over)(void *), void *context) {
    for (; result == ncclInProgress; usleep(50)) {
        if (over && over(context)) {
            nccl()->CommAbort(g->comm);
            g->comm = NULL;
            return false;
        }
        ncclResult_t asked = nccl()->CommGetAsyncError(g->comm, &result);
        nccl_check(asked, what);
    }
    nccl_check(result, what);
    return true;
}

static NcclGroup *nccl_join(const Ops *op, const char key[NCCL_KEY_BYTES], int rank, int ranks, bool to_wait,
                            Error *err) {
    NcclGroup *g = (NcclGroup *)xcalloc(1, sizeof *g);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    memcpy(&id, key, sizeof id);
    g->device = stream_of(op);
    g->index = (int)(g->device - cuda_devices);
    g->rank = rank;
    g->ranks = ranks;
    config.blocking = to_wait ? 0 : 1;
    device_select(g->index);
    ncclResult_t result = nccl()->CommInitRankConfig(&g->comm, ranks, id, rank, &config);
    if (result != ncclSuccess && result != ncclInProgress) {
        error_set(err,
                  "NCCL cannot connect the GPUs of %d ranks: %s; NCCL_DEBUG=WARN in the environment makes it say "
                  "more",
                  ranks, nccl()->GetErrorString(result));
        free(g);
        return NULL;
    }
    nccl_taken(g, result, "connect the GPUs", NULL, NULL);
    CUDA_CHECK(cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking));
    for (cudaEvent_t *event : {&g->asked, &g->after, &g->through}) CUDA_CHECK(cudaEventCreate(event));
    for (NcclTiming &t : g->timings)
        for (cudaEvent_t *event : {&t.begin, &t.end, &t.wanted}) CUDA_CHECK(cudaEventCreate(event));
    return g;
}

static void nccl_leave(NcclGroup *g) {
    device_select(g->index);
    if (g->comm) CUDA_CHECK(cudaStreamSynchronize(g->stream));
    if (g->comm) nccl()->CommDestroy(g->comm);
    for (cudaEvent_t event : {g->asked, g->after, g->through}) CUDA_CHECK(cudaEventDestroy(event));
    for (NcclTiming &t : g->timings)
        for (cudaEvent_t event : {t.begin, t.end, t.wanted}) CUDA_CHECK(cudaEventDestroy(event));
    CUDA_CHECK(cudaStreamDestroy(g->stream));
    free(g);
}

/* ---- collectives ---- */

static void nccl_begin(NcclGroup *g) {
    device_select(g->index);
    not_recorded("communication");
    CUDA_CHECK(cudaEventRecord(g->asked, g->device->stream));
    CUDA_CHECK(cudaStreamWaitEvent(g->stream, g->asked, 0));
    if (g->under_way) return;
    NcclTiming *t = &g->timings[g->finishes % NCCL_TIMINGS];
    CUDA_CHECK(cudaEventRecord(t->begin, g->stream));
    t->finished = false;
    g->under_way = true;
}

static void nccl_reduce_scatter(NcclGroup *g, float *buffer, size_t piece) {
    nccl_begin(g);
    nccl_check(nccl()->ReduceScatter(buffer, buffer + piece * (size_t)g->rank, piece, ncclFloat32, ncclSum, g->comm,
                                     g->stream),
               "add up arrays");
}

static void nccl_all_gather(NcclGroup *g, void *buffer, size_t piece_bytes) {
    nccl_begin(g);
    nccl_check(nccl()->AllGather((char *)buffer + piece_bytes * (size_t)g->rank, buffer, piece_bytes, ncclInt8,
                                 g->comm, g->stream),
               "gather an array");
}

/* In the two steps of a sharded sum, so that the additions are the same; the few elements that do not fill a piece
 * each go by themselves. */
static void nccl_all_reduce(NcclGroup *g, float *buffer, size_t n) {
    size_t piece = n / (size_t)g->ranks, rest = piece * (size_t)g->ranks;
    if (piece) nccl_reduce_scatter(g, buffer, piece);
    if (piece) nccl_all_gather(g, buffer, piece * sizeof *buffer);
    nccl_begin(g);
    if (n > rest)
        nccl_check(
            nccl()->AllReduce(buffer + rest, buffer + rest, n - rest, ncclFloat32, ncclSum, g->comm, g->stream),
            "add up arrays");
}

static void nccl_broadcast(NcclGroup *g, void *buffer, size_t bytes, int root) {
    nccl_begin(g);
    nccl_check(nccl()->Broadcast(buffer, buffer, bytes, ncclInt8, root, g->comm, g->stream), "broadcast an array");
}

/* What is through by now. */
static void nccl_measure(NcclGroup *g, double *busy, double *waited) {
    float took = 0, late = 0;
    for (NcclTiming &t : g->timings) {
        if (!t.finished || cudaEventQuery(t.end) != cudaSuccess || cudaEventQuery(t.wanted) != cudaSuccess) continue;
        CUDA_CHECK(cudaEventElapsedTime(&took, t.begin, t.end));
        CUDA_CHECK(cudaEventElapsedTime(&late, t.wanted, t.end));
        *busy += took / 1000;
        if (late > 0) *waited += late / 1000;
        t.finished = false;
    }
}

static void nccl_finish(NcclGroup *g, double *busy, double *waited) {
    device_select(g->index);
    if (g->under_way) {
        NcclTiming *t = &g->timings[g->finishes++ % NCCL_TIMINGS];
        CUDA_CHECK(cudaEventRecord(t->end, g->stream));
        CUDA_CHECK(cudaEventRecord(t->wanted, g->device->stream));
        CUDA_CHECK(cudaStreamWaitEvent(g->device->stream, t->end, 0));
        t->finished = true;
        g->under_way = false;
    }
    nccl_measure(g, busy, waited);
}

/* ---- from one to another ---- */

static bool nccl_through(NcclGroup *g, ncclResult_t result, const char *what, bool (*over)(void *), void *context) {
    if (!nccl_taken(g, result, what, over, context)) return false;
    CUDA_CHECK(cudaEventRecord(g->through, g->stream));
    for (cudaError_t e; (e = cudaEventQuery(g->through)) != cudaSuccess; usleep(50)) {
        if (e != cudaErrorNotReady) CUDA_CHECK(e);
        if (over(context) && !nccl_taken(g, ncclInProgress, what, over, context)) return false;
    }
    return true;
}

static bool nccl_send(NcclGroup *g, const void *buffer, size_t bytes, int to, bool (*over)(void *), void *context) {
    if (!g->comm) return false;
    device_select(g->index);
    CUDA_CHECK(cudaEventRecord(g->asked, g->device->stream));
    CUDA_CHECK(cudaStreamWaitEvent(g->stream, g->asked, 0));
    return nccl_through(g, nccl()->Send(buffer, bytes, ncclInt8, to, g->comm, g->stream), "send an array", over,
                        context);
}

static bool nccl_receive(NcclGroup *g, void *buffer, size_t bytes, int from, bool (*over)(void *), void *context) {
    if (!g->comm) return false;
    device_select(g->index);
    CUDA_CHECK(cudaStreamWaitEvent(g->stream, g->after, 0));
    return nccl_through(g, nccl()->Recv(buffer, bytes, ncclInt8, from, g->comm, g->stream), "receive an array", over,
                        context);
}

static void nccl_after(NcclGroup *g) {
    device_select(g->index);
    CUDA_CHECK(cudaEventRecord(g->after, g->device->stream));
}

extern "C" const Nccl *cuda_nccl(void) {
    static const Nccl table = {nccl_place,          nccl_key_make,   nccl_join,       nccl_leave,
                               nccl_reduce_scatter, nccl_all_reduce, nccl_all_gather, nccl_broadcast,
                               nccl_finish,         nccl_send,       nccl_receive,    nccl_after};
    return &table;
}

#endif
