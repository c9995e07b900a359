/* The platform below the CUDA kernels: everything an emulator cannot take from the sources as it stands. That is how
 * a kernel is launched, where its dynamic shared memory is, the few instructions for which CUDA C++ has no function,
 * libraries that are loaded at run time, and sizes that depend on how large the GPU is.
 *
 * Two headers have this name, and the include path chooses one of them: this one is nvcc's (-Ikernels/cuda), the
 * other is the emulated GPU's (-Idev/emulator). Both define the same names, so the kernels have no #ifdef for the
 * emulator.
 *
 * PTX instructions are described in NVIDIA's PTX ISA under the names in the asm statements. */
#ifndef KERNELS_CUDA_PLATFORM_CUH
#define KERNELS_CUDA_PLATFORM_CUH

#include "../../lib/dtype.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

/* ---- sizes ---- */

enum {
    UPLOAD_SLOT_BYTES = 8 << 20,    // one piece of a large upload
    CUBLASLT_WORKSPACE = 32 << 20,  // what NVIDIA advises for Hopper
    L2_KEPT_BYTES = 24 << 20,       // stay in the second-level cache: it has 40 MB on an A100, 50 on an H100
    EVENTS_TELL_TIME = 1            // cudaEventElapsedTime measures something
};

/* ---- launches ---- */

#define PLATFORM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

/* The same through cudaLaunchKernelEx, with one attribute (NULL: none). */
template <typename... Parameters, typename... Arguments>
static void launch_with_attribute(cudaLaunchAttribute *attribute, void (*kernel)(Parameters...), dim3 grid,
                                  dim3 block, size_t shared_bytes, cudaStream_t stream,
                                  const Arguments &...arguments) {
    cudaLaunchConfig_t config;
    memset((void *)&config, 0, sizeof config);
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attribute;
    config.numAttrs = attribute ? 1 : 0;
    (void)cudaLaunchKernelEx(&config, kernel, (Parameters)arguments...);  // cudaGetLastError tells
}

/* early: the kernel may begin before the one before it has ended (programmatic dependent launch). */
template <typename... Parameters, typename... Arguments>
static void launch_early(bool early, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                         cudaStream_t stream, const Arguments &...arguments) {
    cudaLaunchAttribute attribute;
    memset(&attribute, 0, sizeof attribute);
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    launch_with_attribute(early ? &attribute : NULL, kernel, grid, block, shared_bytes, stream, arguments...);
}

/* Clusters of `cluster` blocks, neighbours in x. */
template <typename... Parameters, typename... Arguments>
static void launch_cluster(unsigned cluster, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                           size_t shared_bytes, cudaStream_t stream, const Arguments &...arguments) {
    cudaLaunchAttribute attribute;
    memset(&attribute, 0, sizeof attribute);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    launch_with_attribute(&attribute, kernel, grid, block, shared_bytes, stream, arguments...);
}

#define PLATFORM_LAUNCH_EARLY(early, ...) launch_early(early, __VA_ARGS__)
#define PLATFORM_LAUNCH_CLUSTER(cluster, ...) launch_cluster(cluster, __VA_ARGS__)

/* Declares `name`, a pointer to the block's dynamic shared memory. */
#define DYNAMIC_SHARED(T, name)                                     \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    T *name = (T *)(void *)dynamic_shared

/* ---- kernels that overlap ---- LAUNCH_EARLY in launch.cuh tells when they may */

/* Lets the next kernel begin. It is called as soon as a kernel's blocks have begun, because the next one waits for
 * their end by itself. */
static __device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Returns when the kernels before this one have ended. Every thread calls it, and does so before it reads or writes
 * anything that those kernels write or read. */
static __device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* ---- clusters ---- launch.cuh tells what they are; on a GPU without them these functions do nothing */

/* A barrier of all threads of the cluster, in two halves: after the wait every thread sees what any of them had
 * written before it arrived, in whichever memory. */
static __device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

static __device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* The same place in the shared memory of block `rank` of the cluster. That block must have begun (it has arrived at a
 * barrier) and must not have ended. */
template <typename T> static __device__ __forceinline__ T *cluster_address(T *mine, int rank) {
#if __CUDA_ARCH__ >= 900
    T *there;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(mine), "r"(rank));
    return there;
#else
    (void)rank;
    return mine;
#endif
}

/* ---- tensor cores ---- mma.cuh tells how the operands lie in the registers */

/* d = a b + c; d may be c. */
static __device__ __forceinline__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                                                   const float (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%10, %11, %12, %13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

static __device__ __forceinline__ unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

/* Loads four 8 x 8 matrices from shared memory: lanes 8i .. 8i + 7 give the addresses of matrix i's rows, 16 bytes
 * each. */
static __device__ __forceinline__ void load_matrix_x4(unsigned (&r)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void load_matrix_x2(unsigned (&r)[2], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void load_matrix_x4_transposed(unsigned (&r)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void load_matrix_x2_transposed(unsigned (&r)[2], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

/* Copies 16 bytes from global to shared memory, past the registers. A thread's copies are committed in groups, and
 * copy_async_wait<LEFT> returns when at most LEFT of its groups are still under way. */
static __device__ __forceinline__ void copy_async_16(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
static __device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> static __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* ---- arithmetic ---- */

/* 2^x with a relative error of 2^-22; 0 below 2^-126. */
static __device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* log2(x) with an absolute error of 2^-22. */
static __device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Returns x, hidden from the optimizer, so that addresses derived from it are computed again for each tile instead of
 * held in registers. It avoids spills where registers are short. */
static __device__ __forceinline__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

/* ---- libraries ----
 * cuBLASLt is half a gigabyte large: linked, it would cost every start of a program an eighth of a second, even where
 * there is no GPU. So it is loaded when it is first needed, and so is NCCL. */

static inline void *platform_open_library(const char *file) { return dlopen(file, RTLD_NOW | RTLD_LOCAL); }
static inline const char *platform_library_error(void) { return dlerror(); }

/* The library's function of this name, with the type that its header declares; NULL when the library does not have
 * it. */
#define PLATFORM_FUNCTION(library, name) ((decltype(&name))dlsym(library, #name))

#endif
