/* Thread block clusters (compute capability 9.0): up to eight neighbouring blocks that run at the same time on
 * neighbouring multiprocessors, wait for each other and reach into each other's shared memory ("distributed shared
 * memory", CUDA C++ Programming Guide; PTX ISA: barrier.cluster, mapa).
 *
 * A kernel that is launched so keeps all its shared memory dynamic, because the emulated GPU has static shared
 * variables once for all blocks of a cluster. On older GPUs the device functions do nothing; do not launch clusters
 * there (cuda_has_clusters). */
#ifndef KERNELS_CUDA_CLUSTER_CUH
#define KERNELS_CUDA_CLUSTER_CUH

#include "common.cuh"

enum { MAX_CLUSTER = 8 };  // blocks that every GPU with clusters can run together

/* The device has clusters and this kernel's code was compiled for them (an older program's code runs on a newer GPU,
 * but without them). */
template <typename Kernel> static bool cuda_has_clusters(Kernel kernel) {
    int major;
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cuda_device->number));
    if (major < 9) return false;
#ifdef CUDA_EMULATION
    (void)kernel;
    return true;
#else
    cudaFuncAttributes code;
    CUDA_CHECK(cudaFuncGetAttributes(&code, kernel));
    return code.ptxVersion >= 90;
#endif
}

#ifdef CUDA_EMULATION

#define LAUNCH_CLUSTER(kernel, cluster, grid, block, shared_bytes, ...) \
    EMULATION_LAUNCH_CLUSTER(kernel, cluster, grid, block, shared_bytes, cuda_stream(), __VA_ARGS__)
#define cluster_arrive() emulation::cluster_arrive({"barrier.cluster.arrive", __FILE__, __LINE__})
#define cluster_wait() emulation::cluster_wait({"barrier.cluster.wait", __FILE__, __LINE__})

template <typename T> static inline T *cluster_address(T *mine, int rank) {
    return (T *)emulation::cluster_address(mine, (unsigned)rank);
}

#else

/* LAUNCH in clusters of `cluster` blocks, neighbours in x. */
#define LAUNCH_CLUSTER(kernel, cluster, grid, block, shared_bytes, ...) \
    cluster_launch(kernel, cluster, grid, block, shared_bytes, __VA_ARGS__)

template <typename Kernel, typename... Arguments>
static void cluster_launch(Kernel kernel, unsigned cluster, dim3 grid, dim3 block, size_t shared_bytes,
                           Arguments... arguments) {
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config;
    memset(&attribute, 0, sizeof attribute);
    memset((void *)&config, 0, sizeof config);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = cuda_stream();
    config.attrs = &attribute;
    config.numAttrs = 1;
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

/* A barrier of all threads of the cluster in two halves: what was written before the arrival, in whichever memory,
 * can be read by all after the wait. */
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

/* The same place in the shared memory of block `rank` of the cluster. That block must have begun (it arrived at a
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

#endif

#endif
