/* The tensor cores' product of a warp, and what feeds it: mma.m16n8k16 with bf16 in and fp32 sums, ldmatrix,
 * cp.async. PTX under nvcc, the same by its documented fragment layout (PTX ISA, "Matrix fragments for mma.m16n8k16")
 * under emulation.
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

/* Where element i of a lane's sums lies. */
static __device__ __forceinline__ int mma_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
static __device__ __forceinline__ int mma_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

#ifdef CUDA_EMULATION

namespace emulation {

struct Mma {
    float *d;
    const unsigned *a, *b;
    const float *c;
};

static inline float half_of(unsigned pair, int which) {
    return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}

static inline void mma_together(void *const lane[WARP]) {
    float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < WARP; l++) {
        const Mma *m = (const Mma *)lane[l];
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++)
            for (int h = 0; h < 2; h++) a[g + r % 2 * 8][2 * t + r / 2 * 8 + h] = half_of(m->a[r], h);
        for (int r = 0; r < 2; r++)
            for (int h = 0; h < 2; h++) b[2 * t + r * 8 + h][g] = half_of(m->b[r], h);
        for (int i = 0; i < 4; i++) d[mma_row(l, i)][mma_column(l, i)] = m->c[i];
    }
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++)
            for (int k = 0; k < 16; k++) d[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < 4; i++) ((const Mma *)lane[l])->d[i] = d[mma_row(l, i)][mma_column(l, i)];
}

struct LoadMatrix {
    unsigned *to;
    const bf16 *row;
};

/* Matrix i has its eight rows of eight at the addresses of lanes 8i .. 8i + 7; lane L gets elements 2t and 2t + 1 of
 * its row g, or of its column g when transposed. */
template <int COUNT, bool TRANSPOSED> static inline void load_matrix_together(void *const lane[WARP]) {
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < COUNT; i++) {
            unsigned pair = 0;
            for (int h = 0; h < 2; h++) {
                int row = TRANSPOSED ? l % 4 * 2 + h : l / 4, column = TRANSPOSED ? l / 4 : l % 4 * 2 + h;
                pair |= (unsigned)((const LoadMatrix *)lane[8 * i + row])->row[column].bits << (16 * h);
            }
            ((const LoadMatrix *)lane[l])->to[i] = pair;
        }
}

template <int COUNT, bool TRANSPOSED> static inline void load_matrix(unsigned *to, const bf16 *row) {
    LoadMatrix m = {to, row};
    if ((uintptr_t)row % 16) memset(to, 0xff, COUNT * sizeof *to);  // not defined on a GPU
    meet(ALL_LANES, &m, load_matrix_together<COUNT, TRANSPOSED>, {"ldmatrix", __FILE__, __LINE__});
}

}  // namespace emulation

static inline void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4]) {
    emulation::Mma m = {d, a, b, c};
    emulation::meet(ALL_LANES, &m, emulation::mma_together, {"mma", __FILE__, __LINE__});
}
static inline void load_matrix_x4(unsigned (&r)[4], const bf16 *row) { emulation::load_matrix<4, false>(r, row); }
static inline void load_matrix_x2(unsigned (&r)[2], const bf16 *row) { emulation::load_matrix<2, false>(r, row); }
static inline void load_matrix_x4_transposed(unsigned (&r)[4], const bf16 *row) {
    emulation::load_matrix<4, true>(r, row);
}
static inline void load_matrix_x2_transposed(unsigned (&r)[2], const bf16 *row) {
    emulation::load_matrix<2, true>(r, row);
}
static inline void copy_async_16(void *shared, const void *global) { emulation::copy_later(shared, global); }
static inline void copy_async_commit() { emulation::copies_commit(); }
template <int LEFT> static inline void copy_async_wait() { emulation::copies_wait(LEFT); }

#else

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

/* Matrices of 8 x 8 from shared memory: lanes 8i .. 8i + 7 give the addresses (of 16 bytes) of matrix i's rows. */
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

/* 16 bytes from global to shared memory, past the registers; copies are committed in groups, and
 * copy_async_wait<LEFT> returns when at most LEFT of this thread's groups are under way. */
static __device__ __forceinline__ void copy_async_16(void *shared, const void *global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
static __device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> static __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

#endif

#endif
