/* The platform below the CUDA kernels when the GPU is emulated: the same names as in kernels/cuda/platform.cuh, which
 * says what each of them does. The include path chooses between the two (-Idev/emulator).
 *
 * Instructions that the lanes of a warp execute together (mma, ldmatrix) are carried out by the last lane to arrive,
 * on the operands of all (meet in machine.h), by the fragment layout that the PTX ISA documents. */
#ifndef EMULATION_PLATFORM_CUH
#define EMULATION_PLATFORM_CUH

#include "../../lib/dtype.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* ---- sizes ---- small, so that small tests have several slots and sections */

enum { UPLOAD_SLOT_BYTES = 256 << 10, CUBLASLT_WORKSPACE = 4096, L2_KEPT_BYTES = 8 << 10, EVENTS_TELL_TIME = 0 };

/* ---- launches ---- */

#define PLATFORM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    EMULATION_LAUNCH(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define PLATFORM_LAUNCH_EARLY(early, kernel, grid, block, shared_bytes, stream, ...)                             \
    do {                                                                                                         \
        (void)(early); /* every such launch is checked for wait_for_previous, whether it could overlap or not */ \
        EMULATION_LAUNCH_EARLY(kernel, grid, block, shared_bytes, stream, __VA_ARGS__);                          \
    } while (0)
#define PLATFORM_LAUNCH_CLUSTER(cluster, kernel, grid, block, shared_bytes, stream, ...) \
    EMULATION_LAUNCH_CLUSTER(kernel, cluster, grid, block, shared_bytes, stream, __VA_ARGS__)
#define DYNAMIC_SHARED(T, name) T *name = (T *)(void *)emulation::block->shared

/* ---- kernels that overlap, clusters ---- */

static inline void let_next_begin() {}
static inline void wait_for_previous() { emulation::wait_for_previous(); }

#define cluster_arrive() emulation::cluster_arrive({"barrier.cluster.arrive", __FILE__, __LINE__})
#define cluster_wait() emulation::cluster_wait({"barrier.cluster.wait", __FILE__, __LINE__})

template <typename T> static inline T *cluster_address(T *mine, int rank) {
    return (T *)emulation::cluster_address(mine, (unsigned)rank);
}

/* ---- tensor cores ---- */

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
        for (int i = 0; i < 4; i++) d[g + i / 2 * 8][2 * t + i % 2] = m->c[i];
    }
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++)
            for (int k = 0; k < 16; k++) d[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < WARP; l++)
        for (int i = 0; i < 4; i++) ((const Mma *)lane[l])->d[i] = d[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
}

struct LoadMatrix {
    unsigned *to;
    const bf16 *row;
};

/* Matrix i has its eight rows of eight at the addresses of lanes 8i .. 8i + 7. Lane L gets elements 2t and 2t + 1 of
 * its row g, or of its column g when transposed, where g = L / 4 and t = L % 4. */
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
    meet(0xffffffffu, &m, load_matrix_together<COUNT, TRANSPOSED>, {"ldmatrix", __FILE__, __LINE__});
}

}  // namespace emulation

static inline void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4]) {
    emulation::Mma m = {d, a, b, c};
    emulation::meet(0xffffffffu, &m, emulation::mma_together, {"mma", __FILE__, __LINE__});
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

/* ---- arithmetic ---- */

static inline float exp2_approx(float x) { return exp2f(x); }
static inline float log2_approx(float x) { return log2f(x); }
static inline int opaque(int x) { return x; }

/* ---- libraries ----
 * They are emulated too and linked (cublaslt.cpp, emulated_nccl.cpp); EMULATION_WITHOUT_NCCL in the environment makes
 * NCCL one that cannot be loaded. */

static inline void *platform_open_library(const char *file) {
    return strstr(file, "nccl") && getenv("EMULATION_WITHOUT_NCCL") ? NULL : (void *)"linked";
}
static inline const char *platform_library_error(void) { return "the emulated GPU goes without this library"; }
#define PLATFORM_FUNCTION(library, name) ((void)(library), &name)

#endif
