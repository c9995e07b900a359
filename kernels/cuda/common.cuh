/* What all CUDA kernels share: the device in use and its scratch, launches and errors, loads and stores of floatX as
 * floats, reductions over a warp and a block.
 *
 * The same sources compile with nvcc and, with -DCUDA_EMULATION and dev/emulator first on the include path, with a
 * C++ compiler for the processor. Kernels are written for blocks of one dimension, a multiple of 32 threads, unless
 * they say otherwise. */
#ifndef KERNELS_CUDA_COMMON_CUH
#define KERNELS_CUDA_COMMON_CUH

#include "../../lib/error.h"
#include "../ops.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* ---- errors ---- */

/* Ends the program when a call of the CUDA runtime failed. Launches report late: the sentence can come from a later
 * call than the one that is to blame; CUDA_LAUNCH_BLOCKING=1 makes them report at once. */
static inline void cuda_check(cudaError_t e, const char *file, int line) {
    if (e == cudaSuccess) return;
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (e == cudaErrorInsufficientDriver)
        die("the GPU's driver knows CUDA %d.%d but this program was built with CUDA %d.%d; update the driver, or use "
            "--device cpu",
            driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (e == cudaErrorNoDevice) die("no NVIDIA GPU answers; use --device cpu");
    if (e == cudaErrorNoKernelImageForDevice)
        die("this program was built for other GPUs than this one; build it here with make CUDA_ARCHITECTURES=native, "
            "or "
            "use --device cpu");
    if (e == cudaErrorMemoryAllocation)
        die("the GPU's memory is full (seen at %s:%d); a smaller --batch or model needs less, and in training also a "
            "smaller --chunk, or --recompute",
            file, line);
    die("the GPU stopped: %s (%s, seen at %s:%d); start again, with --resume when training; if it happens again, run "
        "with CUDA_LAUNCH_BLOCKING=1 to see where",
        cudaGetErrorString(e), cudaGetErrorName(e), file, line);
}

#define CUDA_CHECK(call) cuda_check(call, __FILE__, __LINE__)

/* ---- the device in use ---- */

/* A lane is a stream of a GPU with what belongs to it; a CudaDevice is one lane of one GPU. */
enum { CUDA_GPUS = 8, CUDA_STREAMS = 2, CUDA_MAX_DEVICES = CUDA_GPUS * CUDA_STREAMS };
enum { CUDA_SLOTS = 4, CUDA_RECORDINGS = 64 };
#ifdef CUDA_EMULATION
enum { CUDA_SLOT_BYTES = 256 << 10 };
#else
enum { CUDA_SLOT_BYTES = 8 << 20 };
#endif

/* A station for large uploads on their way to the GPU (cuda_upload in kernels/cuda/cuda.cu). */
typedef struct {
    char *host, *device;  // pinned and device memory, CUDA_SLOT_BYTES each
    cudaEvent_t filled;   // host has been copied to device
    cudaEvent_t emptied;  // and device to where it belongs
} CudaSlot;

/* Calls that were made under one name (replay in kernels/ops.h); made by the second of them. */
typedef struct {
    const void *owner;  // NULL: not in use
    uint64_t variant;
    cudaGraphExec_t graph;
    unsigned times, scratch_version;  // the scratch memory whose address the graph holds
    uint64_t last_used;
} CudaRecording;

typedef struct {
    bool open;
    int number;                   // the GPU's
    bool early;                   // LAUNCH_EARLY is possible
    cudaStream_t stream, copies;  // everything runs on `stream`; large uploads travel on `copies` meanwhile
    CudaSlot slot[CUDA_SLOTS];    // made at the first large upload
    int next_slot;
    cudaEvent_t ready;  // for another device or lane that waits for this one
    unsigned peers;     // the GPUs to which a straight way has been sought
    char *sent;         // pinned memory [OPS_DOWNLOADS, OPS_DOWNLOAD_BYTES]
    cudaEvent_t sends[OPS_DOWNLOADS];
    CudaRecording recordings[CUDA_RECORDINGS];
    CudaRecording *recording;  // the one whose calls are being made; NULL: none
    bool capturing;            // and they go into a graph
    uint64_t replays;
    void *scratch;
    size_t scratch_bytes;
    unsigned scratch_version;  // counts how often it has moved
} CudaDevice;

static CudaDevice cuda_devices[CUDA_MAX_DEVICES];
static thread_local CudaDevice *cuda_device;  // the one that the running operation belongs to

static inline cudaStream_t cuda_stream() { return cuda_device->stream; }

/* Memory for what lives inside one operation, 256-byte aligned, on the device in use. The next operation that asks
 * gets the same bytes: its kernels run after this one's. Grows at first use and then waits for the device; graphs
 * that hold the old address are made again when they are next asked for. */
static inline void *cuda_scratch(size_t bytes) {
    CudaDevice *d = cuda_device;
    if (bytes > d->scratch_bytes) {
        if (d->capturing)
            die("internal error: recorded calls need more scratch memory than when they were first made");
        d->scratch_version++;
        CUDA_CHECK(cudaStreamSynchronize(d->stream));
        CUDA_CHECK(cudaFree(d->scratch));
        d->scratch_bytes = (bytes + bytes / 4 + 255) / 256 * 256;
        if (cudaMalloc(&d->scratch, d->scratch_bytes) != cudaSuccess)
            die("cannot allocate %.1f MB of scratch memory on device cuda:%d; a smaller --batch or model needs less, "
                "and in training also a smaller --chunk, or --recompute",
                (double)d->scratch_bytes / 1e6, d->number);
    }
    return d->scratch;
}

/* ---- launches ---- */

/* kernel<<<grid, block, shared_bytes, the device's stream>>>(arguments); template kernels with commas in their names
 * go in parentheses: LAUNCH((k<float, 4>), ...). */
#ifdef CUDA_EMULATION
#define LAUNCH(kernel, grid, block, shared_bytes, ...)                                   \
    do {                                                                                 \
        EMULATION_LAUNCH(kernel, grid, block, shared_bytes, cuda_stream(), __VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError());                                                  \
    } while (0)
#define LAUNCH_EARLY(kernel, grid, block, shared_bytes, ...)                                   \
    do {                                                                                       \
        EMULATION_LAUNCH_EARLY(kernel, grid, block, shared_bytes, cuda_stream(), __VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError());                                                        \
    } while (0)
#define DYNAMIC_SHARED(T, name) T *name = (T *)(void *)emulation::block->shared
#else
#define LAUNCH(kernel, grid, block, shared_bytes, ...)                             \
    do {                                                                           \
        (kernel)<<<(grid), (block), (shared_bytes), cuda_stream()>>>(__VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError());                                            \
    } while (0)

/* LAUNCH for a kernel that calls wait_for_previous, after what does not depend on the kernels before it: reading
 * weights. On GPUs that can (9.0 on, "programmatic dependent launch") its blocks start when all blocks of the one
 * before it have called let_next_begin or ended. A chain of such kernels is in order because every thread of each of
 * them waits: none ends before all before it have ended, also not a kernel that is launched plainly after them.
 * Before the wait it may only read what was there when the last plainly launched kernel began: the first kernels of a
 * step, which look up tokens and images, are launched plainly, so that weights that AdamW or an upload has changed
 * are there for all others. */
#define LAUNCH_EARLY(kernel, grid, block, shared_bytes, ...) \
    early_launch(kernel, grid, block, shared_bytes, __VA_ARGS__)

template <typename... Parameters, typename... Arguments>
static void early_launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                         const Arguments &...arguments) {
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config;
    memset(&attribute, 0, sizeof attribute);
    memset((void *)&config, 0, sizeof config);
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = cuda_stream();
    config.attrs = &attribute;
    config.numAttrs = cuda_device->early ? 1 : 0;
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, (Parameters)arguments...));
}

/* Declares a pointer to the block's dynamic shared memory. */
#define DYNAMIC_SHARED(T, name)                                     \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    T *name = (T *)(void *)dynamic_shared
#endif

/* Called as soon as a kernel's blocks have begun: the next one waits for their end by itself. */
static __device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Before anything is read or written that the kernels before this one write or read, and in any case by every thread:
 * when it returns they have ended. */
static __device__ __forceinline__ void wait_for_previous() {
#ifdef CUDA_EMULATION
    emulation::wait_for_previous();
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static inline size_t cuda_div_up(size_t a, size_t b) { return (a + b - 1) / b; }

/* Blocks for `items` at `per_block` each, as a grid's x. */
static inline unsigned cuda_blocks(size_t items, size_t per_block) { return (unsigned)cuda_div_up(items, per_block); }

/* Lets `kernel` be launched with so many bytes of dynamic shared memory on the device in use; more than 48 KB must be
 * asked for, less what its static variables take, at most 8 KB in these files. Cheap enough for every launch. */
template <typename Kernel> static inline void cuda_allow_shared(Kernel kernel, size_t bytes) {
    if (bytes <= 40 * 1024) return;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    int most = 0;
    if (e == cudaErrorInvalidValue) {
        CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda_device->number));
        die("the rows of this model need %zu bytes of a GPU's shared memory at once, device cuda:%d has %d; use a "
            "GPU with more, or --device cpu",
            bytes, cuda_device->number, most);
    }
    CUDA_CHECK(e);
}

/* ---- floatX in registers ---- */

static __device__ __forceinline__ float to_float(float x) { return x; }
static __device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

template <typename T> static __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {  // to nearest even, as lib/dtype.h does
    bf16 r;
    r.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    return r;
}

/* N consecutive elements as floats. */
template <int N> struct Floats { float x[N]; };

/* Elements of T in a 16-byte access. */
template <typename T> struct Vector {
    enum { N = 16 / sizeof(T) };
};
enum { VECTOR = Vector<floatX>::N };
template <typename T> using Packed = Floats<Vector<T>::N>;

template <int WORDS> static __device__ __forceinline__ void load_words(unsigned *w, const void *p) {
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++) {
            uint4 v = ((const uint4 *)p)[i];
            w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
        }
    } else if constexpr (WORDS == 2) {
        uint2 v = *(const uint2 *)p;
        w[0] = v.x, w[1] = v.y;
    } else {
        static_assert(WORDS == 1, "4, 8 or a multiple of 16 bytes");
        w[0] = *(const unsigned *)p;
    }
}

template <int WORDS> static __device__ __forceinline__ void store_words(void *p, const unsigned *w) {
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++)
            ((uint4 *)p)[i] = make_uint4(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]);
    } else if constexpr (WORDS == 2) {
        *(uint2 *)p = make_uint2(w[0], w[1]);
    } else {
        static_assert(WORDS == 1, "4, 8 or a multiple of 16 bytes");
        *(unsigned *)p = w[0];
    }
}

/* N elements from p on, in accesses of up to 16 bytes, to whose size p is aligned. N = 1 is always possible: the same
 * kernel with N = 1 serves shapes whose rows are not a multiple of 16 bytes. */
template <int N> static __device__ __forceinline__ Floats<N> load(const float *p) {
    unsigned w[N];
    Floats<N> v;
    load_words<N>(w, p);
#pragma unroll
    for (int i = 0; i < N; i++) v.x[i] = __uint_as_float(w[i]);
    return v;
}

template <int N> static __device__ __forceinline__ Floats<N> load(const bf16 *p) {
    Floats<N> v;
    if constexpr (N == 1) {
        v.x[0] = to_float(*p);
    } else {
        unsigned w[N / 2];
        load_words<N / 2>(w, p);
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            v.x[2 * i] = __uint_as_float(w[i] << 16);
            v.x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
        }
    }
    return v;
}

template <int N> static __device__ __forceinline__ void store(float *p, Floats<N> v) {
    unsigned w[N];
#pragma unroll
    for (int i = 0; i < N; i++) w[i] = __float_as_uint(v.x[i]);
    store_words<N>(p, w);
}

template <int N> static __device__ __forceinline__ void store(bf16 *p, Floats<N> v) {
    if constexpr (N == 1) {
        *p = from_float<bf16>(v.x[0]);
    } else {
        unsigned w[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            w[i] = from_float<bf16>(v.x[2 * i]).bits | (unsigned)from_float<bf16>(v.x[2 * i + 1]).bits << 16;
        store_words<N / 2>(p, w);
    }
}

template <typename T> static __device__ __forceinline__ Packed<T> load128(const T *p) {
    return load<Vector<T>::N>(p);
}
template <typename T> static __device__ __forceinline__ void store128(T *p, Packed<T> v) {
    store<Vector<T>::N>(p, v);
}

/* v as it will be read back from memory. */
template <typename T> static __device__ __forceinline__ float rounded(float v) { return to_float(from_float<T>(v)); }

/* A block for rows of `items` that are handed out one to a thread: whole warps, at most 256 threads. */
static inline unsigned cuda_row_threads(size_t items) {
    return items >= 256 ? 256 : (unsigned)(items ? (items + 31) / 32 * 32 : 32);
}

/* Rows of C elements that begin at these addresses can be read in vectors of N elements; NULL is not read at all. */
template <typename... P> static inline bool vectors_fit(size_t C, int N, const P *...p) {
    bool fit = C % (size_t)N == 0;
    for (const void *q : {(const void *)p...}) fit = fit && (uintptr_t)q % 16 == 0;
    return fit;
}

/* ---- reductions ---- all lanes or threads get the result; the order of the additions is fixed */

enum : unsigned { ALL_LANES = 0xffffffffu };

template <typename T> static __device__ __forceinline__ T warp_sum(T v) {  // float or double
#pragma unroll
    for (int bits = 16; bits > 0; bits >>= 1) v += __shfl_xor_sync(ALL_LANES, v, bits);
    return v;
}

static __device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int bits = 16; bits > 0; bits >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, bits));
    return v;
}

/* Called by all threads of a block. The barriers also order what the threads wrote to shared memory before. */
template <typename T> static __device__ inline T block_sum(T v) {
    __shared__ T part[32];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    v = warp_sum(v);
    __syncthreads();  // everyone has read the last call's
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_sum(lane < warps ? part[lane] : T(0));
}

/* a and b together, with the barriers of one. */
static __device__ inline void block_sum_pair(float &a, float &b) {
    __shared__ float part[2][32];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    a = warp_sum(a);
    b = warp_sum(b);
    __syncthreads();
    if (lane == 0) part[0][warp] = a, part[1][warp] = b;
    __syncthreads();
    a = warp_sum(lane < warps ? part[0][lane] : 0.0f);
    b = warp_sum(lane < warps ? part[1][lane] : 0.0f);
}

static __device__ inline float block_max(float v) {
    __shared__ float part[32];
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_max(lane < warps ? part[lane] : -INFINITY);
}

#endif
