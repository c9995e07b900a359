/* NCCL between the GPUs of several processes (dist/nccl.h).
 *
 * The library is loaded when it is first asked for, so that programs start without it. A group has a stream of its
 * own: what it does waits, by an event, for what op's stream has been given, and op's stream waits by another event
 * for what the group has done. The host waits for neither. */
#include "nccl.h"

#include <nccl.h>
#include <platform.cuh>

#define NCCL_FUNCTIONS(USE) \
    USE(AllGather)          \
    USE(AllReduce)          \
    USE(CommAbort)          \
    USE(CommDestroy)        \
    USE(CommInitRank)       \
    USE(GetErrorString)     \
    USE(GetUniqueId)        \
    USE(ReduceScatter)

typedef struct {
#define MEMBER(name) decltype(&nccl##name) name;
    NCCL_FUNCTIONS(MEMBER)
#undef MEMBER
    bool there;
} NcclLibrary;

static NcclLibrary nccl_load(void) {
    NcclLibrary n = {};
    void *library = platform_open_library("libnccl.so.2");
    n.there = library != NULL;
#define FIND(name)                                                \
    if (library) n.name = PLATFORM_FUNCTION(library, nccl##name); \
    n.there = n.there && n.name;
    NCCL_FUNCTIONS(FIND)
#undef FIND
    return n;
}

static const NcclLibrary *nccl(void) {
    static const NcclLibrary loaded = nccl_load();
    return &loaded;
}

static void nccl_check(ncclResult_t result, const char *what) {
    if (result != ncclSuccess)
        die("NCCL cannot %s: %s; NCCL_DEBUG=WARN in the environment makes it say more", what,
            nccl()->GetErrorString(result));
}

static void cuda_check(cudaError_t e) {
    if (e != cudaSuccess) die("the GPU stopped in communication: %s", cudaGetErrorString(e));
}

struct NcclGroup {
    int device, rank, ranks;
    ncclComm_t comm;
    cudaStream_t stream, op_stream;
    cudaEvent_t given, done;  // what op's stream has been given; what the group has done
};

/* Selects the group's GPU for the calls of a function, and the GPU before it at the end. */
struct DeviceScope {
    int before = 0;
    explicit DeviceScope(int device) {
        cuda_check(cudaGetDevice(&before));
        cuda_check(cudaSetDevice(device));
    }
    ~DeviceScope() { cuda_check(cudaSetDevice(before)); }
};

/* ---- joining ---- */

bool nccl_place(const Ops *op, char place[GPU_PLACE_BYTES]) {
    if (!nccl()->there) return false;
    cuda_check(cudaDeviceGetPCIBusId(place, GPU_PLACE_BYTES, op->device));
    return true;
}

int nccl_unique_id(char id[NCCL_ID_BYTES], Error *err) {
    static_assert(sizeof(ncclUniqueId) <= NCCL_ID_BYTES, "NCCL's id is 128 bytes");
    ncclUniqueId unique;
    ncclResult_t result = nccl()->GetUniqueId(&unique);
    if (result != ncclSuccess)
        return error_set(err, "NCCL does not start: %s; NCCL_SOCKET_IFNAME=NAME names the network to use",
                         nccl()->GetErrorString(result));
    memcpy(id, &unique, sizeof unique);
    return 0;
}

NcclGroup *nccl_join(const Ops *op, const char id[NCCL_ID_BYTES], int rank, int ranks, Error *err) {
    DeviceScope scope(op->device);
    NcclGroup *g = (NcclGroup *)xcalloc(1, sizeof *g);
    ncclUniqueId unique;
    memcpy(&unique, id, sizeof unique);
    g->device = op->device;
    g->rank = rank;
    g->ranks = ranks;
    g->op_stream = (cudaStream_t)op->native_stream;
    ncclResult_t result = nccl()->CommInitRank(&g->comm, ranks, unique, rank);
    if (result != ncclSuccess) {
        error_set(err, "NCCL cannot connect the GPUs of %d ranks: %s; NCCL_DEBUG=WARN makes it say more", ranks,
                  nccl()->GetErrorString(result));
        free(g);
        return NULL;
    }
    cuda_check(cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking));
    for (cudaEvent_t *event : {&g->given, &g->done})
        cuda_check(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    return g;
}

void nccl_leave(NcclGroup *g) {
    DeviceScope scope(g->device);
    cuda_check(cudaStreamSynchronize(g->stream));
    nccl()->CommDestroy(g->comm);
    for (cudaEvent_t event : {g->given, g->done}) cuda_check(cudaEventDestroy(event));
    cuda_check(cudaStreamDestroy(g->stream));
    free(g);
}

void nccl_abort(NcclGroup *g) { nccl()->CommAbort(g->comm); }

/* ---- collectives ---- */

static void nccl_begin(NcclGroup *g) {
    cuda_check(cudaEventRecord(g->given, g->op_stream));
    cuda_check(cudaStreamWaitEvent(g->stream, g->given, 0));
}

void nccl_reduce_scatter(NcclGroup *g, float *buffer, size_t piece) {
    DeviceScope scope(g->device);
    nccl_begin(g);
    nccl_check(
        nccl()->ReduceScatter(buffer, buffer + piece * g->rank, piece, ncclFloat32, ncclSum, g->comm, g->stream),
        "add up arrays");
}

void nccl_all_gather(NcclGroup *g, void *buffer, size_t piece_bytes) {
    DeviceScope scope(g->device);
    nccl_begin(g);
    nccl_check(
        nccl()->AllGather((char *)buffer + piece_bytes * g->rank, buffer, piece_bytes, ncclInt8, g->comm, g->stream),
        "gather an array");
}

/* In the two steps of a sharded sum, so that the additions are the same; the few elements that are left over go by
 * themselves. */
void nccl_all_reduce(NcclGroup *g, float *buffer, size_t n) {
    size_t piece = n / g->ranks, rest = piece * g->ranks;
    if (piece) nccl_reduce_scatter(g, buffer, piece);
    if (piece) nccl_all_gather(g, buffer, piece * sizeof *buffer);
    if (n == rest) return;
    DeviceScope scope(g->device);
    nccl_begin(g);
    nccl_check(nccl()->AllReduce(buffer + rest, buffer + rest, n - rest, ncclFloat32, ncclSum, g->comm, g->stream),
               "add up arrays");
}

void nccl_finish(NcclGroup *g) {
    DeviceScope scope(g->device);
    cuda_check(cudaEventRecord(g->done, g->stream));
    cuda_check(cudaStreamWaitEvent(g->op_stream, g->done, 0));
}
