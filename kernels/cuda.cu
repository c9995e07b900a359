/* The tables of operations for NVIDIA GPUs. One kernel family per header; here are memory, copies, and how a table
 * knows its GPU.
 *
 * Operations have no context argument. So every GPU has its own table, whose entries are made by a template from the
 * plain functions of the families: they select the GPU and go on (On<N, function>::call). Whoever holds a table can
 * call it in any order with the tables of other devices, and nothing has to be remembered between the calls.
 *
 * Work on a GPU goes to one stream, in the order of the calls; the host does not wait, except to download. */
#include "cuda_attention.cuh"
#include "cuda_common.cuh"
#include "cuda_input.cuh"
#include "cuda_norm.cuh"
#include "cuda_objective.cuh"
#include "cuda_optimizer.cuh"
#include "cuda_pointwise.cuh"
#include "cuda_product.cuh"
#include "ops.h"

/* ---- memory ---- */

static void *cuda_alloc(size_t bytes) {
    void *p = NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();  // or the next launch reports it
        return NULL;
    }
    CUDA_CHECK(e);
    CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cuda_stream()));
    return p;
}

static void cuda_release(void *p) { CUDA_CHECK(cudaFree(p)); }

static void cuda_zero(void *p, size_t bytes) { CUDA_CHECK(cudaMemsetAsync(p, 0, bytes, cuda_stream())); }

static void cuda_sync(void) { CUDA_CHECK(cudaStreamSynchronize(cuda_stream())); }

/* ---- copies ---- */

static void slots_make(CudaDevice *d) {
    for (int i = 0; i < CUDA_SLOTS; i++) {
        CudaSlot *s = &d->slot[i];
        CUDA_CHECK(cudaMallocHost(&s->host, CUDA_SLOT_BYTES));
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

static void cuda_copy(void *dst, const void *src, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_stream()));
}

static void cuda_copy_rows(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width,
                           size_t rows) {
    CUDA_CHECK(
        cudaMemcpy2DAsync(dst, dst_stride, src, src_stride, width, rows, cudaMemcpyDeviceToDevice, cuda_stream()));
}

/* Without this the driver takes a copy between two GPUs through the host's memory; some pairs have no other way. */
static void peer_open(CudaDevice *here, const CudaDevice *there) {
    int can = 0;
    if (here->peers >> there->number & 1) return;
    here->peers |= 1u << there->number;
    CUDA_CHECK(cudaDeviceCanAccessPeer(&can, here->number, there->number));
    if (can) CUDA_CHECK(cudaDeviceEnablePeerAccess(there->number, 0));
}

/* `then` goes on when `first` has done what it has been asked for so far. */
static void stream_after(CudaDevice *then, CudaDevice *first) {
    CUDA_CHECK(cudaSetDevice(first->number));
    CUDA_CHECK(cudaEventRecord(first->ready, first->stream));
    CUDA_CHECK(cudaSetDevice(then->number));
    CUDA_CHECK(cudaStreamWaitEvent(then->stream, first->ready, 0));
}

static void cuda_copy_from(void *dst, const Ops *from, const void *src, size_t bytes) {
    CudaDevice *here = cuda_device, *there = &cuda_devices[from->device];
    if (from->host_memory) {
        cuda_upload(dst, src, bytes);
    } else if (here == there) {
        cuda_copy(dst, src, bytes);
    } else {
        peer_open(here, there);
        stream_after(here, there);
        CUDA_CHECK(cudaMemcpyPeerAsync(dst, here->number, src, there->number, bytes, here->stream));
        stream_after(there, here);
        CUDA_CHECK(cudaSetDevice(here->number));
    }
}

/* ---- tables ---- */

static void device_select(int number) {
    if (cuda_device == &cuda_devices[number]) return;
    CUDA_CHECK(cudaSetDevice(number));
    cuda_device = &cuda_devices[number];
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
    ENTRY(zero), ENTRY(sync);
    ENTRY(embedding_forward), ENTRY(embedding_backward), ENTRY(patchify), ENTRY(position_forward);
    ENTRY(position_backward), ENTRY(gather_rows), ENTRY(scatter_rows);
    ENTRY(layernorm_forward), ENTRY(residual_layernorm_forward), ENTRY(layernorm_backward);
    ENTRY(rmsnorm_forward), ENTRY(residual_rmsnorm_forward), ENTRY(rmsnorm_backward), ENTRY(residual_forward);
    ENTRY(linear_forward), ENTRY(linear_logits), ENTRY(linear_backward_input), ENTRY(linear_backward_weight);
    ENTRY(gelu_backward), ENTRY(swiglu_forward), ENTRY(swiglu_backward);
    ENTRY(attention_forward), ENTRY(attention_backward), ENTRY(cache_store), ENTRY(attention_decode);
    ENTRY(distill_rows), ENTRY(entropy_band), ENTRY(cosine);
    ENTRY(squared_norm), ENTRY(adamw), ENTRY(cast_to_x), ENTRY(cast_from_x);
#undef ENTRY
}

template <int N> static void table_fill_for(Ops *t, int number) {
    if (number == N) return table_fill<N>(t);
    if constexpr (N + 1 < CUDA_MAX_DEVICES) table_fill_for<N + 1>(t, number);
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

static int device_open(CudaDevice *d, int number, Error *err) {
    cudaDeviceProp p;
    int count = device_count(err);
    if (count < 0) return -1;
    if (number < 0 || number >= count || number >= CUDA_MAX_DEVICES)
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
    d->multiprocessors = p.multiProcessorCount;
    return 0;
}

extern "C" const Ops *cuda_ops_open(int device, Error *err) {
    static Ops tables[CUDA_MAX_DEVICES];
    static char names[CUDA_MAX_DEVICES][16];
    CudaDevice *d = device >= 0 && device < CUDA_MAX_DEVICES ? &cuda_devices[device] : NULL;
    if (d && d->open) return &tables[device];
    program_name_set(program_invocation_name);  // for the sentences of this file and its headers
    cuda_device = NULL;                         // device_open changes the runtime's
    CudaDevice fresh;
    memset(&fresh, 0, sizeof fresh);
    if (device_open(&fresh, device, err)) return NULL;
    *d = fresh;
    d->open = true;
    snprintf(names[device], sizeof names[device], "cuda:%d", device);
    tables[device].name = names[device];
    tables[device].device = device;
    tables[device].host_memory = false;
    table_fill_for<0>(&tables[device], device);
    return &tables[device];
}
