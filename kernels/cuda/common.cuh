/* What every kernel family of this folder includes: the platform, the current stream and its scratch memory,
 * launches, floatX in registers, reductions. */
#ifndef KERNELS_CUDA_COMMON_CUH
#define KERNELS_CUDA_COMMON_CUH

#include "launch.cuh"
#include "reduce.cuh"
#include "stream.cuh"
#include "vector.cuh"

#endif
