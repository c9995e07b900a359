/* The part of the CUDA runtime that kernels/ uses, on the emulated GPU (machine.h; streams.h for what is done later).
 * Device pointers are host pointers. */
#ifndef EMULATION_CUDA_RUNTIME_H
#define EMULATION_CUDA_RUNTIME_H

#include "streams.h"

#include <algorithm>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CUDART_VERSION 12000

/* ---- language ---- */

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

/* AddressSanitizer guards ordinary static variables only; without it every thread of the processor has its own. */
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __shared__ static
#endif
#endif
#ifndef __shared__
#define __shared__ static thread_local
#endif

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->size)
#define gridDim (emulation::block->grid)
#define warpSize 32

/* ---- vector types ---- */

#define EMULATION_VECTORS(T, name, align2, align4)                            \
    struct __attribute__((aligned(align2))) name##2 {                         \
        T x, y;                                                               \
    };                                                                        \
    struct name##3 {                                                          \
        T x, y, z;                                                            \
    };                                                                        \
    struct __attribute__((aligned(align4))) name##4 {                         \
        T x, y, z, w;                                                         \
    };                                                                        \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATION_VECTORS(float, float, 8, 16)
EMULATION_VECTORS(double, double, 16, 16)
EMULATION_VECTORS(int, int, 8, 16)
EMULATION_VECTORS(unsigned char, uchar, 2, 4)
EMULATION_VECTORS(unsigned short, ushort, 4, 8)
struct __attribute__((aligned(8))) uint2 {
    unsigned x, y;
};
struct __attribute__((aligned(16))) uint4 {
    unsigned x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

/* ---- arithmetic ---- */

using std::max;
using std::min;
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcs(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T> static inline void __stcs(T *p, T v) { *p = v; }
template <typename T> static inline void __stcg(T *p, T v) { *p = v; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
static inline float __uint_as_float(unsigned u) { return __builtin_bit_cast(float, u); }
static inline unsigned __float_as_uint(float f) { return __builtin_bit_cast(unsigned, f); }
static inline float __int_as_float(int u) { return __builtin_bit_cast(float, u); }
static inline int __float_as_int(float f) { return __builtin_bit_cast(int, f); }
/* Byte i of the result is the byte of y:x (x the lower four) that the i-th hexadecimal digit of selector names. */
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned from = selector >> 4 * i & 7;
        result |= ((from < 4 ? x >> 8 * from : y >> 8 * (from - 4)) & 0xff) << 8 * i;
    }
    return result;
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

/* ---- barriers, warps, atomics ---- */

#define __syncthreads() emulation::barrier({"__syncthreads", __FILE__, __LINE__})
#define __threadfence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __threadfence_block() __threadfence()
#define __activemask() emulation::live_lanes()

namespace emulation {

/* A shuffle: each lane brings a value and the lane that it wants to hear. */
template <typename T> struct Shuffle {
    T value, heard;
    int from;
};

template <typename T> static void shuffle_together(void *const lane[WARP]) {
    for (int i = 0; i < WARP; i++) {
        if (!lane[i]) continue;
        Shuffle<T> *s = (Shuffle<T> *)lane[i];
        bool there = s->from >= 0 && s->from < WARP && lane[s->from];
        if (there)
            s->heard = ((Shuffle<T> *)lane[s->from])->value;
        else
            memset((void *)&s->heard, 0xff, sizeof(T));  // not defined on a GPU: NaN shows
    }
}

template <typename T> static inline T shuffle(unsigned mask, T value, int from, Place place) {
    Shuffle<T> s = {value, value, from};
    meet(mask, &s, shuffle_together<T>, place);
    return s.heard;
}

static inline int lane() { return (int)(current->number % WARP); }

/* Lanes work in groups of `width`; a source outside of the group is the lane itself. */
static inline int lane_from(int target, int width) {
    int group = lane() / width * width;
    return target < group || target >= group + width ? lane() : target;
}

static inline void ballot_together(void *const lane[WARP]) {
    unsigned votes = 0;
    for (int i = 0; i < WARP; i++)
        if (lane[i] && *(unsigned *)lane[i]) votes |= 1u << i;
    for (int i = 0; i < WARP; i++)
        if (lane[i]) *(unsigned *)lane[i] = votes;
}

static inline unsigned ballot(unsigned mask, bool vote, Place place) {
    unsigned v = vote;
    meet(mask, &v, ballot_together, place);
    return v;
}

static inline void only_meet(void *const *) {}

template <typename T> static inline T add_atomically(T *p, T v) {
    T old, sum;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do sum = old + v;
    while (!__atomic_compare_exchange(p, &old, &sum, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return old;
}

}  // namespace emulation

#define EMULATION_PLACE(what) \
    { what, __FILE__, __LINE__ }
#define __shfl_sync(mask, value, from, ...) \
    emulation::shuffle(mask, value, emulation::shfl_source(from, ##__VA_ARGS__), EMULATION_PLACE("__shfl_sync"))
#define __shfl_xor_sync(mask, value, bits, ...)                                      \
    emulation::shuffle(mask, value, emulation::shfl_xor_source(bits, ##__VA_ARGS__), \
                       EMULATION_PLACE("__shfl_xor_sync"))
#define __shfl_down_sync(mask, value, delta, ...)                                      \
    emulation::shuffle(mask, value, emulation::shfl_down_source(delta, ##__VA_ARGS__), \
                       EMULATION_PLACE("__shfl_down_sync"))
#define __shfl_up_sync(mask, value, delta, ...)                                      \
    emulation::shuffle(mask, value, emulation::shfl_up_source(delta, ##__VA_ARGS__), \
                       EMULATION_PLACE("__shfl_up_sync"))
#define __ballot_sync(mask, vote) emulation::ballot(mask, (vote), EMULATION_PLACE("__ballot_sync"))
#define __any_sync(mask, vote) (emulation::ballot(mask, (vote), EMULATION_PLACE("__any_sync")) != 0)
#define __all_sync(mask, vote) (emulation::ballot(mask, !(vote), EMULATION_PLACE("__all_sync")) == 0)
#define __syncwarp(...)                                                                  \
    emulation::meet(emulation::warp_mask(__VA_ARGS__), (void *)"", emulation::only_meet, \
                    EMULATION_PLACE("__syncwarp"))

namespace emulation {
static inline unsigned warp_mask(unsigned mask = 0xffffffffu) { return mask; }
static inline int shfl_source(int from, int width = WARP) { return lane() / width * width + (from & (width - 1)); }
static inline int shfl_xor_source(int bits, int width = WARP) { return lane_from(lane() ^ bits, width); }
static inline int shfl_down_source(unsigned delta, int width = WARP) { return lane_from(lane() + (int)delta, width); }
static inline int shfl_up_source(unsigned delta, int width = WARP) { return lane_from(lane() - (int)delta, width); }
}  // namespace emulation

static inline int atomicAdd(int *p, int v) { return emulation::add_atomically(p, v); }
static inline unsigned atomicAdd(unsigned *p, unsigned v) { return emulation::add_atomically(p, v); }
static inline float atomicAdd(float *p, float v) { return emulation::add_atomically(p, v); }
static inline double atomicAdd(double *p, double v) { return emulation::add_atomically(p, v); }
static inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long v) {
    return emulation::add_atomically(p, v);
}
template <typename T> static inline T atomicCAS(T *p, T expected, T desired) {
    __atomic_compare_exchange(p, &expected, &desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}
template <typename T> static inline T atomicExch(T *p, T v) {
    T old;
    __atomic_exchange(p, &v, &old, __ATOMIC_SEQ_CST);
    return old;
}
template <typename T> static inline T atomicMax(T *p, T v) {
    T old;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    while (old < v && !__atomic_compare_exchange(p, &old, &v, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <typename T> static inline T atomicMin(T *p, T v) {
    T old;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    while (v < old && !__atomic_compare_exchange(p, &old, &v, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    }
    return old;
}

/* ---- launches ---- */

/* kernel<<<grid, block, shared, stream>>>(...) */
#define EMULATION_LAUNCH(kernel, grid, block, shared, stream, ...) \
    EMULATION_LAUNCH_CLUSTER(kernel, 1, grid, block, shared, stream, __VA_ARGS__)

/* The same with cudaLaunchAttributeClusterDimension {cluster, 1, 1}. */
#define EMULATION_LAUNCH_CLUSTER(kernel, cluster, grid, block, shared, stream, ...) \
    emulation::launcher(#kernel, kernel, cluster, grid, block, shared, stream)(__VA_ARGS__)

/* The same with cudaLaunchAttributeProgrammaticStreamSerialization. */
#define EMULATION_LAUNCH_EARLY(kernel, grid, block, shared, stream, ...) \
    emulation::launcher(#kernel, kernel, 1, grid, block, shared, stream, true)(__VA_ARGS__)

/* ---- the runtime's functions ---- */

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorECCUncorrectable = 214,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorPeerAccessAlreadyEnabled = 704,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0 };
typedef emulation::Stream *cudaStream_t;
typedef emulation::Event *cudaEvent_t;
typedef emulation::Graph *cudaGraph_t, *cudaGraphExec_t;
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
struct cudaFuncAttributes {
    int ptxVersion, maxDynamicSharedSizeBytes;
};
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount, l2CacheSize;
    size_t sharedMemPerBlockOptin;
};

static inline const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess                 ? "no error"
           : e == cudaErrorECCUncorrectable ? "uncorrectable ECC error encountered"
                                            : "emulated error";
}
static inline const char *cudaGetErrorName(cudaError_t e) {
    return e == cudaSuccess                 ? "cudaSuccess"
           : e == cudaErrorECCUncorrectable ? "cudaErrorECCUncorrectable"
                                            : "cudaError";
}
/* What a GPU that is lost (EMULATION_LOST=N: after N launches, copies and other work) answers to everything. */
static inline cudaError_t emulation_state() {
    return emulation::device_lost() ? cudaErrorECCUncorrectable : cudaSuccess;
}
static inline cudaError_t cudaGetLastError() { return emulation_state(); }
static inline cudaError_t cudaPeekAtLastError() { return emulation_state(); }

/* As many devices as EMULATION_DEVICES says (one without it), all with the same memory. */
static inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = emulation::device_count();
    if (emulation::driver_version(CUDART_VERSION) < CUDART_VERSION) return *count = 0, cudaErrorInsufficientDriver;
    return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
static inline cudaError_t cudaSetDevice(int device) {
    return emulation::device_select(device) ? cudaSuccess : cudaErrorInvalidDevice;
}
static inline cudaError_t cudaGetDevice(int *device) { return *device = emulation::device_selected(), cudaSuccess; }
static inline cudaError_t cudaDriverGetVersion(int *version) {
    return *version = emulation::driver_version(CUDART_VERSION), cudaSuccess;
}
static inline cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "emulated GPU");
    p->totalGlobalMem = emulation::device_memory_total();
    p->major = emulation::device_capability() / 10;
    p->minor = emulation::device_capability() % 10;
    p->multiProcessorCount = 4;
    p->l2CacheSize = 1 << 20;
    p->sharedMemPerBlockOptin = (size_t)emulation::device_shared();
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int) {
    *value = what == cudaDevAttrMultiProcessorCount            ? 4
             : what == cudaDevAttrComputeCapabilityMajor       ? emulation::device_capability() / 10
             : what == cudaDevAttrComputeCapabilityMinor       ? emulation::device_capability() % 10
             : what == cudaDevAttrMaxSharedMemoryPerBlockOptin ? emulation::device_shared()
                                                               : 0;
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = emulation::device_memory_total();
    *available = *total - emulation::device_memory_in_use();
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceSynchronize() { return emulation::device_wait(), cudaSuccess; }
static inline cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    return snprintf(text, (size_t)size, "emulated:%d", device), cudaSuccess;
}
static inline cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) { return *can = 1, cudaSuccess; }
static inline cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

template <typename T> static inline cudaError_t cudaMalloc(T **p, size_t bytes) {
    *p = (T *)emulation::device_memory(bytes);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaFree(void *p) {  // waits for the GPU, as the real one does
    if (emulation::any_captures()) return cudaErrorStreamCaptureUnsupported;
    if (p) emulation::device_wait();
    return emulation::device_memory_free(p), cudaSuccess;
}
template <typename T> static inline cudaError_t cudaMallocHost(T **p, size_t bytes) {
    *p = (T *)emulation::pinned_memory(bytes);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaFreeHost(void *p) { return emulation::pinned_memory_free(p), cudaSuccess; }
static inline cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned) {
    return emulation::pinned_register(p, bytes), cudaSuccess;
}
static inline cudaError_t cudaHostUnregister(void *p) { return emulation::pinned_unregister(p), cudaSuccess; }

static inline cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, cudaMemcpyKind k,
                                          cudaStream_t s = NULL) {
    bool done = emulation::stream_copy(s, dst, src, n, k == cudaMemcpyHostToDevice, k == cudaMemcpyDeviceToHost);
    return done ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}
static inline cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, cudaMemcpyKind k) {
    cudaMemcpyAsync(dst, src, n, k);
    return emulation::stream_wait(NULL), cudaSuccess;
}
static inline cudaError_t cudaMemcpyPeerAsync(void *dst, int, const void *src, int, size_t n, cudaStream_t s = NULL) {
    return cudaMemcpyAsync(dst, src, n, cudaMemcpyDeviceToDevice, s);
}
/* Within the device. */
static inline cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                                            size_t width, size_t height, cudaMemcpyKind k, cudaStream_t s = NULL) {
    if (width > dst_pitch || width > src_pitch || k != cudaMemcpyDeviceToDevice) return cudaErrorInvalidValue;
    emulation::stream_do(s, [=]() {
        for (size_t i = 0; i < height; i++)
            memcpy((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width);
    });
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s = NULL) {
    if (n) emulation::stream_do(s, [=]() { memset(p, value, n); });
    return cudaSuccess;
}
static inline cudaError_t cudaMemset(void *p, int value, size_t n) {
    cudaMemsetAsync(p, value, n);
    return emulation::stream_wait(NULL), cudaSuccess;
}

static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    return *s = emulation::stream_create(), cudaSuccess;
}
static inline cudaError_t cudaStreamDestroy(cudaStream_t s) { return emulation::stream_destroy(s), cudaSuccess; }
static inline cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    if (emulation::captures(s)) return cudaErrorStreamCaptureUnsupported;
    return emulation::stream_wait(s), emulation_state();
}
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned = 0) {
    if (emulation::captures(s)) return cudaErrorStreamCaptureUnsupported;
    return emulation::stream_wait_for(s, e), cudaSuccess;
}
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    return *e = emulation::event_create(), cudaSuccess;
}
static inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
static inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return emulation::event_destroy(e), cudaSuccess; }
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = NULL) {
    if (emulation::captures(s)) return cudaErrorStreamCaptureUnsupported;
    return emulation::event_record(e, s) ? cudaSuccess : cudaErrorInvalidResourceHandle;
}
static inline cudaError_t cudaEventQuery(cudaEvent_t e) {
    return emulation::event_done(e) ? cudaSuccess : cudaErrorNotReady;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e) { return emulation::event_wait(e), emulation_state(); }
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) { return *ms = 0, cudaSuccess; }

static inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    return emulation::capture_begin(s) ? cudaSuccess : cudaErrorInvalidValue;
}
static inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    *graph = emulation::capture_end(s);
    return *graph ? cudaSuccess : cudaErrorInvalidValue;
}
static inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long = 0) {
    return *exec = emulation::graph_copy(graph), cudaSuccess;
}
static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    if (emulation::captures(s)) return cudaErrorStreamCaptureUnsupported;
    return emulation::graph_launch(exec, s), cudaSuccess;
}
static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    return emulation::graph_destroy(exec), cudaSuccess;
}
static inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return emulation::graph_destroy(graph), cudaSuccess; }

template <typename F> static inline cudaError_t cudaFuncSetAttribute(F *function, cudaFuncAttribute what, int value) {
    if (what != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > emulation::device_shared()) return cudaErrorInvalidValue;
    emulation::allow_shared((const void *)function, (size_t)value);
    return cudaSuccess;
}
template <typename F> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, F *function) {
    a->ptxVersion = emulation::device_capability();  // compiled for the GPU that there is
    a->maxDynamicSharedSizeBytes = (int)emulation::shared_limit((const void *)function);
    return cudaSuccess;
}
template <typename F>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, F *, int, size_t) {
    *blocks = 2;
    return cudaSuccess;
}

#endif
