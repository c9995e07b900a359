/* How the operands of the tensor cores' matmul lie in a warp's registers: mma.m16n8k16 with bf16 operands and fp32
 * sums (PTX ISA, "Matrix fragments for mma.m16n8k16"). The instructions themselves are in platform.cuh.
 *
 * Fragments of lane L with g = L / 4 and t = L % 4. A register holds two bf16, the lower column (A) or row (B) in its
 * low half.
 *
 *   A [16, 16], 4 registers   (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each and its right neighbour
 *   B [16, 8], 2 registers    (2t, g), (2t + 8, g), each and the one below it
 *   C, D [16, 8], 4 floats    (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) */
#ifndef KERNELS_CUDA_MMA_CUH
#define KERNELS_CUDA_MMA_CUH

#include "common.cuh"

/* Row and column of a lane's i-th sum. */
static __device__ __forceinline__ int mma_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
static __device__ __forceinline__ int mma_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

#endif
