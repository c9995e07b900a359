/* Memory of a GPU: allocation, copies to, from, between and within GPUs, and the waits between streams. The host does
 * not wait, except for allocating and freeing, a download, an upload so large that all staging memory is under way, and sync. */
#ifndef KERNELS_CUDA_MEMORY_CUH
#define KERNELS_CUDA_MEMORY_CUH

#include "common.cuh"

/* ---- memory ---- */

static void cuda_sync(void) {
    forbid_in_graph("a wait");
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream()));
}

static void *cuda_alloc(size_t bytes) {
    void *p = NULL;
    forbid_in_graph("an allocation");
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();  // or the next launch reports it
        return NULL;
    }
    CUDA_CHECK(e);
    CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cuda_stream()));
    cuda_sync();  // the GPU's other streams may use it at once
    return p;
}

static void cuda_release(void *p) {
    forbid_in_graph("a release");
    CUDA_CHECK(cudaFree(p));
}

static size_t cuda_memory_free(void) {
    size_t available, total;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    return available;
}

static void cuda_zero(void *p, size_t bytes) { CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cuda_stream())); }

/* ---- between the host and a GPU ---- */

static void pinned_alloc(char **p, size_t bytes) {
    if (cudaMallocHost(p, bytes) != cudaSuccess)
        die("cannot lock %.1f MB of the host's memory for copies to device cuda:%d; free some memory, or raise the "
            "limit on locked memory (ulimit -l)",
            (double)bytes / 1e6, cuda_current->gpu);
}

static void upload_slots_create(CudaStream *s) {
    for (int i = 0; i < UPLOAD_SLOTS; i++) {
        UploadSlot *slot = &s->slot[i];
        pinned_alloc(&slot->host, UPLOAD_SLOT_BYTES);
        CUDA_CHECK(cudaMalloc(&slot->device, UPLOAD_SLOT_BYTES));
        CUDA_CHECK(cudaEventCreateWithFlags(&slot->filled, cudaEventDisableTiming));
        CUDA_CHECK(cudaEventCreateWithFlags(&slot->emptied, cudaEventDisableTiming));
    }
}

/* Operations that are still queued may read dst, so the bytes may be written there only in their turn; but the way
 * over the bus is long. A large upload therefore travels at once, on a stream of its own and through pinned memory,
 * to a slot on the GPU, and only a copy within the GPU is left for dst's turn. The driver itself keeps small ones
 * until then. */
static void cuda_upload(void *dst, const void *host_src, size_t bytes) {
    CudaStream *s = cuda_current;
    const size_t small = 64 << 10, most = UPLOAD_SLOT_BYTES;
    forbid_in_graph("an upload");
    if (bytes <= small) {
        CUDA_CHECK(cudaMemcpyAsync(dst, host_src, bytes, cudaMemcpyHostToDevice, s->stream));
        return;
    }
    if (!s->slot[0].host) upload_slots_create(s);
    for (size_t at = 0; at < bytes; at += most) {
        UploadSlot *slot = &s->slot[s->next_slot];
        size_t piece = bytes - at < most ? bytes - at : most;
        s->next_slot = (s->next_slot + 1) % UPLOAD_SLOTS;
        CUDA_CHECK(cudaEventSynchronize(slot->filled));  // the slot's last bytes have left the pinned memory
        memcpy(slot->host, (const char *)host_src + at, piece);
        CUDA_CHECK(cudaStreamWaitEvent(s->copies, slot->emptied, 0));
        CUDA_CHECK(cudaMemcpyAsync(slot->device, slot->host, piece, cudaMemcpyHostToDevice, s->copies));
        CUDA_CHECK(cudaEventRecord(slot->filled, s->copies));
        CUDA_CHECK(cudaStreamWaitEvent(s->stream, slot->filled, 0));
        CUDA_CHECK(cudaMemcpyAsync((char *)dst + at, slot->device, piece, cudaMemcpyDeviceToDevice, s->stream));
        CUDA_CHECK(cudaEventRecord(slot->emptied, s->stream));
    }
}

static void cuda_download(void *host_dst, const void *src, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(host_dst, src, bytes, cudaMemcpyDeviceToHost, cuda_stream()));
    cuda_sync();
}

static void cuda_download_async(int number, const void *src, size_t bytes) {
    CudaStream *s = cuda_current;
    forbid_in_graph("a download");
    if (number < 0 || number >= OPS_DOWNLOADS || bytes > OPS_DOWNLOAD_BYTES)
        die("internal error: download %d of %zu bytes", number, bytes);
    if (!s->downloads) {
        pinned_alloc(&s->downloads, OPS_DOWNLOADS * OPS_DOWNLOAD_BYTES);
        for (int i = 0; i < OPS_DOWNLOADS; i++)
            CUDA_CHECK(cudaEventCreateWithFlags(&s->downloaded[i], cudaEventDisableTiming));
    }
    char *to = s->downloads + (size_t)number * OPS_DOWNLOAD_BYTES;
    CUDA_CHECK(cudaMemcpyAsync(to, src, bytes, cudaMemcpyDeviceToHost, s->stream));
    CUDA_CHECK(cudaEventRecord(s->downloaded[number], s->stream));
}

static const void *cuda_download_wait(int number) {
    CUDA_CHECK(cudaEventSynchronize(cuda_current->downloaded[number]));
    return cuda_current->downloads + (size_t)number * OPS_DOWNLOAD_BYTES;
}

/* ---- within a GPU ---- */

static void cuda_copy(void *dst, const void *src, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_stream()));
}

static void cuda_copy_rows(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width,
                           size_t rows) {
    CUDA_CHECK(
        cudaMemcpy2DAsync(dst, dst_stride, src, src_stride, width, rows, cudaMemcpyDeviceToDevice, cuda_stream()));
}

/* ---- between streams and GPUs ---- */

/* Lets the GPU of `here` read the memory of the other GPU directly. Without this the driver takes copies between two
 * GPUs through the host's memory; some pairs have no other way. */
static void peer_access_enable(const CudaStream *here, const CudaStream *there) {
    int can = 0;
    unsigned *peers = &cuda_streams[here->gpu].peers;  // of the GPU's stream 0, for all of its streams
    if (*peers >> there->gpu & 1) return;
    *peers |= 1u << there->gpu;
    CUDA_CHECK(cudaDeviceCanAccessPeer(&can, here->gpu, there->gpu));
    if (!can || cudaDeviceEnablePeerAccess(there->gpu, 0) == cudaSuccess) return;
    (void)
        cudaGetLastError();  // another library has done it already, or the GPU has too many peers: copies work anyway
}

/* What is queued on `then` from now on waits for what has been queued on `first` so far. */
static void stream_wait(CudaStream *then, CudaStream *first) {
    CUDA_CHECK(cudaSetDevice(first->gpu));
    CUDA_CHECK(cudaEventRecord(first->ready, first->stream));
    CUDA_CHECK(cudaSetDevice(then->gpu));
    CUDA_CHECK(cudaStreamWaitEvent(then->stream, first->ready, 0));
}

static void cuda_wait_for(const Ops *other) {
    forbid_in_graph("a wait");
    if (!other->host_memory && cuda_stream_of(other) != cuda_current)
        stream_wait(cuda_current, cuda_stream_of(other));
}

static void cuda_copy_from(void *dst, const Ops *from, const void *src, size_t bytes) {
    CudaStream *here = cuda_current;
    forbid_in_graph("a copy from another device");
    if (from->host_memory) return cuda_upload(dst, src, bytes);
    CudaStream *there = cuda_stream_of(from);
    if (here == there) return cuda_copy(dst, src, bytes);
    stream_wait(here, there);
    if (here->gpu != there->gpu) peer_access_enable(here, there);
    CUDA_CHECK(cudaMemcpyPeerAsync(dst, here->gpu, src, there->gpu, bytes, here->stream));
    stream_wait(there, here);
    CUDA_CHECK(cudaSetDevice(here->gpu));
}

#endif
