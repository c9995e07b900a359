/* The streams of the GPUs in use. A table of operations (kernels/ops.h) belongs to one stream of one GPU, and a
 * CudaStream is what such a table needs: the stream, staging memory for copies, graphs and scratch memory. */
#ifndef KERNELS_CUDA_STREAM_CUH
#define KERNELS_CUDA_STREAM_CUH

#include "check.cuh"
#include "../device.h"

enum { CUDA_GPUS = 16, CUDA_STREAMS = OPS_STREAMS, CUDA_TABLES = CUDA_GPUS * CUDA_STREAMS };
enum { UPLOAD_SLOTS = 4, CUDA_GRAPHS = 64 };

/* Where a piece of a large upload waits on its way to the GPU (cuda_upload in memory.cuh). */
typedef struct {
    char *host, *device;  // pinned and device memory, UPLOAD_SLOT_BYTES each
    cudaEvent_t filled;   // recorded when host has been copied to device
    cudaEvent_t emptied;  // recorded when device has been copied to where the bytes belong
} UploadSlot;

/* The calls that were made under one name (graph_launch in kernels/ops.h) and, from the second time on, their
 * graph. */
typedef struct {
    const void *owner;  // NULL: this place is free
    uint64_t variant;
    cudaGraphExec_t exec;
    unsigned times, scratch_version;  // version of the scratch memory whose address the graph holds
    uint64_t last_used;
} CudaGraph;

typedef struct {
    bool open;
    int gpu;                        // N of cuda:N
    bool early;                     // this GPU and this build can launch kernels early (LAUNCH_EARLY)
    cudaStream_t stream;            // every operation runs here
    cudaStream_t copies;            // large uploads travel here meanwhile
    UploadSlot slot[UPLOAD_SLOTS];  // created at the first large upload
    int next_slot;
    cudaEvent_t ready;  // another stream waits for it, which waits for this one
    unsigned peers;     // bit N: direct access to GPU N has been asked for; only in a GPU's stream 0
    char *downloads;    // pinned memory [OPS_DOWNLOADS, OPS_DOWNLOAD_BYTES]
    cudaEvent_t downloaded[OPS_DOWNLOADS];
    CudaGraph graphs[CUDA_GRAPHS];
    CudaGraph *graph;  // the one whose calls are being made, or NULL
    bool capturing;    // and a capture of the stream makes a graph of them
    uint64_t graph_launches;
    void *scratch;
    size_t scratch_bytes;
    unsigned scratch_version;  // how often the scratch memory has moved
} CudaStream;

static CudaStream cuda_streams[CUDA_TABLES];
static thread_local CudaStream *cuda_current;  // the running operation's

static inline cudaStream_t cuda_stream() { return cuda_current->stream; }

static inline CudaStream *cuda_stream_of(const Ops *op) { return &cuda_streams[op->stream * CUDA_GPUS + op->device]; }

static inline void cuda_select(int table) {
    CudaStream *s = &cuda_streams[table];
    if (cuda_current == s) return;
    CUDA_CHECK(cudaSetDevice(s->gpu));
    cuda_current = s;
}

/* Ends the program when `what` happens between graph_launch and graph_end: a graph cannot hold it, or would hold it
 * with the host's memory of today. */
static inline void forbid_in_graph(const char *what) {
    if (cuda_current->graph) die("internal error: %s inside a graph", what);
}

/* Memory for what lives only during one operation, 256-byte aligned. The next operation that asks gets the same
 * bytes, because its kernels run after this one's. It grows when first needed, which waits for the GPU; graphs that
 * hold the old address are made again at their next launch. */
static inline void *cuda_scratch(size_t bytes) {
    CudaStream *s = cuda_current;
    if (bytes > s->scratch_bytes) {
        if (s->capturing) die("internal error: a graph needs more scratch memory than its first run");
        s->scratch_version++;
        CUDA_CHECK(cudaStreamSynchronize(s->stream));
        CUDA_CHECK(cudaFree(s->scratch));
        s->scratch_bytes = (bytes + bytes / 4 + 255) / 256 * 256;
        if (cudaMalloc(&s->scratch, s->scratch_bytes) != cudaSuccess)
            die("cannot allocate %.1f MB of scratch memory on device cuda:%d; a smaller --batch or model needs less, "
                "and in training also a smaller --chunk, or --recompute",
                (double)s->scratch_bytes / 1e6, s->gpu);
    }
    return s->scratch;
}

#endif
