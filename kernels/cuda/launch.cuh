/* Launching kernels on the current stream. Kernels are written for blocks of one dimension, a multiple of 32 threads,
 * unless they say otherwise.
 *
 *   LAUNCH(kernel, grid, block, shared_bytes, arguments...)                    kernel<<<...>>>(arguments...)
 *   LAUNCH_EARLY(kernel, grid, block, shared_bytes, arguments...)              it may overlap the kernel before it
 *   LAUNCH_CLUSTER(cluster, kernel, grid, block, shared_bytes, arguments...)   in clusters of blocks
 *
 * A template kernel with commas in its name goes in parentheses: LAUNCH((k<float, 4>), ...).
 *
 * LAUNCH_EARLY is for a kernel that first reads weights and calls wait_for_previous before everything else. Where the
 * GPU can (9.0 on, "programmatic dependent launch"), its blocks start as soon as all blocks of the kernel before it
 * have called let_next_begin or ended. A chain of such kernels stays in order because every thread of each of them
 * waits: none ends before all before it have ended, and a kernel launched plainly after them starts later still.
 * Before its wait a kernel may read only what was there when the last plainly launched kernel began. The first
 * kernels of a step, which look up tokens and images, are launched plainly, so the weights that AdamW or an upload
 * has changed are there for all others.
 *
 * A cluster (GPUs from 9.0 on) is up to eight neighbouring blocks that run at the same time on neighbouring
 * multiprocessors, wait for each other and reach into each other's shared memory (CUDA C++ Programming Guide,
 * "distributed shared memory"). A kernel that is launched so keeps all its shared memory dynamic, because the
 * emulated GPU has static shared variables once for all blocks of a cluster. */
#ifndef KERNELS_CUDA_LAUNCH_CUH
#define KERNELS_CUDA_LAUNCH_CUH

#include "stream.cuh"

#define LAUNCH(kernel, grid, block, shared_bytes, ...)                                  \
    do {                                                                                \
        PLATFORM_LAUNCH(kernel, grid, block, shared_bytes, cuda_stream(), __VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError());                                                 \
    } while (0)
#define LAUNCH_EARLY(kernel, grid, block, shared_bytes, ...)                                                       \
    do {                                                                                                           \
        PLATFORM_LAUNCH_EARLY(cuda_current->early, kernel, grid, block, shared_bytes, cuda_stream(), __VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError());                                                                            \
    } while (0)
#define LAUNCH_CLUSTER(cluster, kernel, grid, block, shared_bytes, ...)                                  \
    do {                                                                                                 \
        PLATFORM_LAUNCH_CLUSTER(cluster, kernel, grid, block, shared_bytes, cuda_stream(), __VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError());                                                                  \
    } while (0)

enum { MAX_CLUSTER = 8 };  // blocks that every GPU with clusters can run together

/* This kernel can be launched in clusters: the GPU has them and the kernel's code was compiled for them. An older
 * program's code runs on a newer GPU, but without clusters. */
template <typename Kernel> static bool cuda_has_clusters(Kernel kernel) {
    int major;
    cudaFuncAttributes code;
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cuda_current->gpu));
    if (major < 9) return false;
    CUDA_CHECK(cudaFuncGetAttributes(&code, kernel));
    return code.ptxVersion >= 90;
}

static inline size_t cuda_div_up(size_t a, size_t b) { return (a + b - 1) / b; }

/* Blocks for `items` at `per_block` each, as a grid's x. */
static inline unsigned cuda_blocks(size_t items, size_t per_block) { return (unsigned)cuda_div_up(items, per_block); }

/* Threads of a block whose rows hand out `items` pieces, one to a thread: whole warps, at most 256 threads. */
static inline unsigned cuda_row_threads(size_t items) {
    return items >= 256 ? 256 : (unsigned)(items ? (items + 31) / 32 * 32 : 32);
}

/* Lets `kernel` be launched with so many bytes of dynamic shared memory on the current GPU. More than 48 KB must be
 * asked for, less what the kernel's static variables take, which is at most 8 KB in these files. What is allowed never
 * becomes less, since a graph may hold an earlier launch. The calls are cheap enough for every launch. */
template <typename Kernel> static inline void cuda_allow_shared(Kernel kernel, size_t bytes) {
    cudaFuncAttributes now;
    if (bytes <= 40 * 1024) return;
    CUDA_CHECK(cudaFuncGetAttributes(&now, kernel));
    if ((size_t)now.maxDynamicSharedSizeBytes >= bytes) return;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    int most = 0;
    if (e == cudaErrorInvalidValue) {
        CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, cuda_current->gpu));
        die("the rows of this model need %zu bytes of a GPU's shared memory at once, device cuda:%d has %d; use a "
            "GPU with more, or --device cpu",
            bytes, cuda_current->gpu, most);
    }
    CUDA_CHECK(e);
}

#endif
