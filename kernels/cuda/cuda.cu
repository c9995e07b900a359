/* The tables of operations for NVIDIA GPUs. One kernel family per header; here are memory, copies, recordings, and how
 * a table knows its GPU.
 *
 * Operations have no context argument. So every lane of every GPU has its own table, whose entries are made by a
 * template from the plain functions of the families: they select the lane and go on (On<N, function>::call). Whoever
 * holds a table can call it in any order with other tables, and nothing has to be remembered between the calls.
 *
 * Work of a table goes to one stream, in the order of the calls; the host does not wait, except to download. */
#include "flash.cuh"
#include "common.cuh"
#include "input.cuh"
#include "norm.cuh"
#include "objective.cuh"
#include "optimizer.cuh"
#include "pointwise.cuh"
#include "linear.cuh"
#include "sample.cuh"
#include "../ops.h"

/* ---- memory ---- */

/* For what a graph cannot hold, or would hold with the host's memory of today. */
static void not_recorded(const char *what) {
    if (cuda_device->recording) die("internal error: %s among calls that are recorded", what);
}

static void cuda_sync(void) {
    not_recorded("a wait");
    CUDA_CHECK(cudaStreamSynchronize(cuda_stream()));
}

static void *cuda_alloc(size_t bytes) {
    void *p = NULL;
    not_recorded("an allocation");
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();  // or the next launch reports it
        return NULL;
    }
    CUDA_CHECK(e);
    CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cuda_stream()));
    cuda_sync();  // the device's other lane may use it at once
    return p;
}

static void cuda_release(void *p) {
    not_recorded("a release");
    CUDA_CHECK(cudaFree(p));
}

static size_t cuda_memory_free(void) {
    size_t available, total;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    return available;
}

static void cuda_zero(void *p, size_t bytes) { CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cuda_stream())); }

/* ---- copies ---- */

static void pinned_alloc(char **p, size_t bytes) {
    if (cudaMallocHost(p, bytes) != cudaSuccess)
        die("cannot lock %.1f MB of the host's memory for copies to device cuda:%d; free some memory, or raise the limit "
            "on locked memory (ulimit -l)",
            (double)bytes / 1e6, cuda_device->number);
}

static void slots_make(CudaDevice *d) {
    for (int i = 0; i < CUDA_SLOTS; i++) {
        CudaSlot *s = &d->slot[i];
        pinned_alloc(&s->host, CUDA_SLOT_BYTES);
        CUDA_CHECK(cudaMalloc(&s->device, CUDA_SLOT_BYTES));
        CUDA_CHECK(cudaEventCreateWithFlags(&s->filled, cudaEventDisableTiming));
        CUDA_CHECK(cudaEventCreateWithFlags(&s->emptied, cudaEventDisableTiming));
    }
}

/* What the GPU still has to do may read dst, so the bytes can only be put there in its turn; but the way through the
 * bus is long. Large uploads therefore travel at once, on a stream of their own and through pinned memory, to a slot
 * on the GPU, and what is left for dst's turn is a copy within the GPU. Little ones the driver keeps for their turn.
 */
static void cuda_upload(void *dst, const void *host_src, size_t bytes) {
    CudaDevice *d = cuda_device;
    const size_t little = 64 << 10, most = CUDA_SLOT_BYTES;
    not_recorded("an upload");
    if (bytes <= little) {
        CUDA_CHECK(cudaMemcpyAsync(dst, host_src, bytes, cudaMemcpyHostToDevice, d->stream));
        return;
    }
    if (!d->slot[0].host) slots_make(d);
    for (size_t at = 0; at < bytes; at += most) {
        CudaSlot *s = &d->slot[d->next_slot];
        size_t piece = bytes - at < most ? bytes - at : most;
        d->next_slot = (d->next_slot + 1) % CUDA_SLOTS;
        CUDA_CHECK(cudaEventSynchronize(s->filled));  // the last bytes have left the pinned memory
        memcpy(s->host, (const char *)host_src + at, piece);
        CUDA_CHECK(cudaStreamWaitEvent(d->copies, s->emptied, 0));
        CUDA_CHECK(cudaMemcpyAsync(s->device, s->host, piece, cudaMemcpyHostToDevice, d->copies));
        CUDA_CHECK(cudaEventRecord(s->filled, d->copies));
        CUDA_CHECK(cudaStreamWaitEvent(d->stream, s->filled, 0));
        CUDA_CHECK(cudaMemcpyAsync((char *)dst + at, s->device, piece, cudaMemcpyDeviceToDevice, d->stream));
        CUDA_CHECK(cudaEventRecord(s->emptied, d->stream));
    }
}

static void cuda_download(void *host_dst, const void *src, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(host_dst, src, bytes, cudaMemcpyDeviceToHost, cuda_stream()));
    cuda_sync();
}

static void cuda_download_async(int number, const void *src, size_t bytes) {
    CudaDevice *d = cuda_device;
    not_recorded("a download");
    if (number < 0 || number >= OPS_DOWNLOADS || bytes > OPS_DOWNLOAD_BYTES) die("internal error: %zu bytes sent", bytes);
    if (!d->sent) {
        pinned_alloc(&d->sent, OPS_DOWNLOADS * OPS_DOWNLOAD_BYTES);
        for (int i = 0; i < OPS_DOWNLOADS; i++)
            CUDA_CHECK(cudaEventCreateWithFlags(&d->sends[i], cudaEventDisableTiming));
    }
    CUDA_CHECK(cudaMemcpyAsync(d->sent + (size_t)number * OPS_DOWNLOAD_BYTES, src, bytes, cudaMemcpyDeviceToHost,
                               d->stream));
    CUDA_CHECK(cudaEventRecord(d->sends[number], d->stream));
}

static const void *cuda_download_wait(int number) {
    CUDA_CHECK(cudaEventSynchronize(cuda_device->sends[number]));
    return cuda_device->sent + (size_t)number * OPS_DOWNLOAD_BYTES;
}

static void cuda_copy(void *dst, const void *src, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_stream()));
}

static void cuda_copy_rows(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width,
                           size_t rows) {
    CUDA_CHECK(
        cudaMemcpy2DAsync(dst, dst_stride, src, src_stride, width, rows, cudaMemcpyDeviceToDevice, cuda_stream()));
}

/* Without this the driver takes a copy between two GPUs through the host's memory; some pairs have no other way. */
static void peer_open(const CudaDevice *here, const CudaDevice *there) {
    int can = 0;
    unsigned *peers = &cuda_devices[here->number].peers;  // the lanes of a GPU have it in common
    if (*peers >> there->number & 1) return;
    *peers |= 1u << there->number;
    CUDA_CHECK(cudaDeviceCanAccessPeer(&can, here->number, there->number));
    if (!can || cudaDeviceEnablePeerAccess(there->number, 0) == cudaSuccess) return;
    (void)cudaGetLastError();  // another library has done it already, or the GPU has too many peers: copies work anyway
}

/* `then` goes on when `first` has done what it has been asked for so far. */
static void stream_after(CudaDevice *then, CudaDevice *first) {
    CUDA_CHECK(cudaSetDevice(first->number));
    CUDA_CHECK(cudaEventRecord(first->ready, first->stream));
    CUDA_CHECK(cudaSetDevice(then->number));
    CUDA_CHECK(cudaStreamWaitEvent(then->stream, first->ready, 0));
}

static CudaDevice *stream_of(const Ops *op) { return &cuda_devices[op->stream * CUDA_GPUS + op->device]; }

static void cuda_wait_for(const Ops *other) {
    not_recorded("a wait");
    if (!other->host_memory && stream_of(other) != cuda_device) stream_after(cuda_device, stream_of(other));
}

static void cuda_copy_from(void *dst, const Ops *from, const void *src, size_t bytes) {
    CudaDevice *here = cuda_device, *there = stream_of(from);
    not_recorded("a copy from another device");
    if (from->host_memory) {
        cuda_upload(dst, src, bytes);
    } else if (here == there) {
        cuda_copy(dst, src, bytes);
    } else {
        stream_after(here, there);
        if (here->number != there->number) peer_open(here, there);
        CUDA_CHECK(cudaMemcpyPeerAsync(dst, here->number, src, there->number, bytes, here->stream));
        stream_after(there, here);
        CUDA_CHECK(cudaSetDevice(here->number));
    }
}

/* ---- recordings ----
 * The first time the calls are just made, so that scratch memory has its size and cuBLASLt its plans; the second time
 * the stream captures them, which makes a graph of them; from then on the graph is launched: one call of the driver
 * instead of several hundred, and less time between kernels. */

static void recording_drop(CudaRecording *r) {
    if (r->graph) CUDA_CHECK(cudaGraphExecDestroy(r->graph));
    memset(r, 0, sizeof *r);
}

/* The one of this name, else a new one, in the place of the one that has not been asked for longest. */
static CudaRecording *recording_of(CudaDevice *d, const void *owner, uint64_t variant) {
    CudaRecording *oldest = &d->recordings[0];
    for (int i = 0; i < CUDA_RECORDINGS; i++) {
        CudaRecording *r = &d->recordings[i];
        if (r->owner == owner && r->variant == variant) return r;
        if (r->last_used < oldest->last_used) oldest = r;
    }
    recording_drop(oldest);
    oldest->owner = owner;
    oldest->variant = variant;
    return oldest;
}

static bool cuda_graph_launch(const void *owner, uint64_t variant) {
    CudaDevice *d = cuda_device;
    not_recorded("another recording");
    CudaRecording *r = recording_of(d, owner, variant);
    r->last_used = ++d->replays;
    if (r->graph && r->scratch_version == d->scratch_version) {
        CUDA_CHECK(cudaGraphLaunch(r->graph, d->stream));
        return true;
    }
    if (r->graph) CUDA_CHECK(cudaGraphExecDestroy(r->graph));
    r->graph = NULL;
    d->recording = r;
    d->capturing = r->times++ > 0;
    if (d->capturing) CUDA_CHECK(cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeRelaxed));
    return false;
}

static void cuda_graph_end(void) {
    CudaDevice *d = cuda_device;
    CudaRecording *r = d->recording;
    if (!r) die("internal error: the end of a recording that has not begun");
    d->recording = NULL;
    if (!d->capturing) return;
    cudaGraph_t graph;
    d->capturing = false;
    CUDA_CHECK(cudaStreamEndCapture(d->stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&r->graph, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    r->scratch_version = d->scratch_version;
    CUDA_CHECK(cudaGraphLaunch(r->graph, d->stream));
}

static void cuda_graph_free(const void *owner) {
    for (int i = 0; i < CUDA_RECORDINGS; i++)
        if (cuda_device->recordings[i].owner == owner) recording_drop(&cuda_device->recordings[i]);
}

/* ---- tables ---- */

static void device_select(int index) {
    CudaDevice *d = &cuda_devices[index];
    if (cuda_device == d) return;
    CUDA_CHECK(cudaSetDevice(d->number));
    cuda_device = d;
}

template <int N, auto FUNCTION> struct On;
template <int N, typename Result, typename... Arguments, Result (*FUNCTION)(Arguments...)> struct On<N, FUNCTION> {
    static Result call(Arguments... arguments) {
        device_select(N);
        return FUNCTION(arguments...);
    }
};

template <int N> static void table_fill(Ops *t) {
#define ENTRY(name) t->name = On<N, cuda_##name>::call
    ENTRY(alloc), ENTRY(release), ENTRY(upload), ENTRY(download), ENTRY(copy), ENTRY(copy_from), ENTRY(copy_rows);
    ENTRY(memory_free), ENTRY(zero), ENTRY(sync), ENTRY(wait_for), ENTRY(download_async), ENTRY(download_wait);
    ENTRY(graph_launch), ENTRY(graph_end), ENTRY(graph_free);
    ENTRY(embedding_forward), ENTRY(embedding_backward), ENTRY(patchify), ENTRY(position_forward);
    ENTRY(position_backward), ENTRY(gather_rows), ENTRY(scatter_rows);
    ENTRY(layernorm_forward), ENTRY(residual_layernorm_forward), ENTRY(layernorm_backward);
    ENTRY(rmsnorm_forward), ENTRY(residual_rmsnorm_forward), ENTRY(rmsnorm_backward), ENTRY(residual_forward);
    ENTRY(linear_forward), ENTRY(linear_logits), ENTRY(linear_backward_input), ENTRY(linear_backward_weight);
    ENTRY(gelu_forward), ENTRY(gelu_backward), ENTRY(swiglu_forward), ENTRY(swiglu_backward);
    ENTRY(attention_forward), ENTRY(attention_backward), ENTRY(cache_store), ENTRY(attention_decode);
    ENTRY(sample);
    ENTRY(distill_rows), ENTRY(entropy_band), ENTRY(cosine);
    ENTRY(squared_norm), ENTRY(adamw), ENTRY(cast_to_x), ENTRY(cast_from_x);
#undef ENTRY
}

template <int N> static void table_fill_for(Ops *t, int index) {
    if (index == N) return table_fill<N>(t);
    if constexpr (N + 1 < CUDA_MAX_DEVICES) table_fill_for<N + 1>(t, index);
}

/* ---- opening ---- */

/* How many GPUs answer; -1 with a sentence when none does. */
static int device_count(Error *err) {
    int count = 0, driver = 0, runtime = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (e == cudaErrorInsufficientDriver && driver > 0)
        return error_set(err,
                         "the NVIDIA driver knows CUDA %d.%d but this program was built with CUDA %d.%d; update the "
                         "driver, build with an older CUDA, or use --device cpu",
                         driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice || (e == cudaSuccess && count == 0))
        return error_set(err, "no NVIDIA GPU with its driver was found on this machine; use --device cpu");
    if (e != cudaSuccess)
        return error_set(err, "the NVIDIA driver does not answer: %s; use --device cpu", cudaGetErrorString(e));
    return count;
}

/* Whether the kernels wait for each other themselves where they are launched early: compiled for a GPU that can, and
 * graphs know of it too. */
static bool can_launch_early(int major) {
#if defined(CUDA_EMULATION) || CUDART_VERSION < 12030
    (void)major;
    return false;
#else
    int driver = 0;
    cudaFuncAttributes code;
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaFuncGetAttributes(&code, gemv_kernel<floatX, 1, VECTOR>));
    return major >= 9 && driver >= 12030 && code.ptxVersion >= 90;
#endif
}

static int device_open(CudaDevice *d, int number, Error *err) {
    cudaDeviceProp p;
    int count = device_count(err);
    if (count < 0) return -1;
    if (number < 0 || number >= count || number >= CUDA_GPUS)
        return error_set(err, "there is no device cuda:%d; this machine has %d GPU%s, counted from cuda:0", number,
                         count, count == 1 ? "" : "s");
    cudaError_t e = cudaGetDeviceProperties(&p, number);
    if (e == cudaSuccess && p.major < 8)
        return error_set(err,
                         "device cuda:%d (%s) has compute capability %d.%d; 8.0 or newer is needed (A100 and later), "
                         "or --device cpu",
                         number, p.name, p.major, p.minor);
    if (e == cudaSuccess) e = cudaSetDevice(number);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&d->copies, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaEventCreateWithFlags(&d->ready, cudaEventDisableTiming);
    if (e != cudaSuccess)
        return error_set(err, "device cuda:%d does not start: %s; see what else uses it, or use --device cpu", number,
                         cudaGetErrorString(e));
    d->number = number;
    d->early = e == cudaSuccess && can_launch_early(p.major);
    return 0;
}

extern "C" int cuda_device_count(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count < CUDA_GPUS ? count : CUDA_GPUS;
    (void)cudaGetLastError();
    return 0;
}

extern "C" const Ops *cuda_ops_open(int device, int stream, Error *err) {
    static Ops tables[CUDA_MAX_DEVICES];
    static char names[CUDA_MAX_DEVICES][16];
    const int index = stream * CUDA_GPUS + device;
    CudaDevice *d = device >= 0 && device < CUDA_GPUS ? &cuda_devices[index] : NULL;
    if (d && d->open) return &tables[index];
    program_name_set(program_invocation_name);  // for the sentences of this file and its headers
    cuda_device = NULL;                         // device_open changes the runtime's
    CudaDevice fresh;
    memset(&fresh, 0, sizeof fresh);
    if (device_open(&fresh, device, err)) return NULL;
    *d = fresh;
    d->open = true;
    snprintf(names[index], sizeof names[index], "cuda:%d", device);
    tables[index].name = names[index];
    tables[index].device = device;
    tables[index].stream = stream;
    tables[index].host_memory = false;
    table_fill_for<0>(&tables[index], index);
    return &tables[index];
}

#ifdef WITH_NCCL
#include "../../dist/nccl.cu"  // here, for it selects devices and looks them up
#endif
