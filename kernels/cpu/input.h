/* Memory, and the kernels that bring inputs in: embedding, image patches, position embedding, row gather and scatter.
 */
#ifndef KERNELS_CPU_INPUT_H
#define KERNELS_CPU_INPUT_H

#include "vector.h"
#include "../ops.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

/* ---- memory ---- */

static void cpu_zero(void *p, size_t bytes) {
    const size_t block = 1 << 18;
#pragma omp parallel for schedule(static) if (bytes > 4 * block)
    for (size_t i = 0; i < div_up(bytes, block); i++)
        memset((char *)p + i * block, 0, min_size(block, bytes - i * block));
}

static void *cpu_alloc(size_t bytes) {
    if (bytes > PTRDIFF_MAX) return NULL;  // no array is larger, and below it nothing overflows
    size_t size = (bytes + 63) / 64 * 64;
    const size_t huge = 2 << 20;  // large arrays on large pages, where the system gives them
    void *p = aligned_alloc(size >= huge ? huge : 64, size >= huge ? div_up(size, huge) * huge : size ? size : 64);
#if defined(MADV_HUGEPAGE)
    if (p && size >= huge) madvise(p, size / huge * huge, MADV_HUGEPAGE);
#endif
    if (p) cpu_zero(p, size ? size : 64);
    return p;
}

static void cpu_release(void *p) { free(p); }

static void cpu_copy(void *dst, const void *src, size_t bytes) {
    const size_t block = 1 << 18;
#pragma omp parallel for schedule(static) if (bytes > 4 * block)
    for (size_t i = 0; i < div_up(bytes, block); i++)
        memcpy((char *)dst + i * block, (const char *)src + i * block, min_size(block, bytes - i * block));
}

static void cpu_copy_from(void *dst, const Ops *from, const void *src, size_t bytes) { from->download(dst, src, bytes); }

static void cpu_copy_rows(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width,
                          size_t rows) {
#pragma omp parallel for schedule(static) if (width * rows > 65536)
    for (size_t r = 0; r < rows; r++) memcpy((char *)dst + r * dst_stride, (const char *)src + r * src_stride, width);
}

static void cpu_sync(void) {}
static size_t cpu_memory_free(void) { return 0; }

static void cpu_wait_for(const Ops *other) {
    if (!other->host_memory) other->sync();
}

static char cpu_sent[OPS_DOWNLOADS][OPS_DOWNLOAD_BYTES];

static void cpu_download_async(int number, const void *src, size_t bytes) { memcpy(cpu_sent[number], src, bytes); }
static const void *cpu_download_wait(int number) { return cpu_sent[number]; }

static bool cpu_graph_launch(const void *owner, uint64_t variant) {
    (void)owner, (void)variant;
    return false;
}
static void cpu_graph_end(void) {}
static void cpu_graph_free(const void *owner) { (void)owner; }

/* ---- embedding ---- */

static void cpu_embedding_forward(floatX *out, const int *ids, const floatX *table, size_t rows, int C) {
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++)
        if (ids[r] >= 0) memcpy(out + r * C, table + (size_t)ids[r] * C, C * sizeof(floatX));
}

/* Every task owns the vocabulary rows with the same remainder, and adds to them in the order of the positions. */
static void cpu_embedding_backward(float *dtable, const floatX *dout, const int *ids, size_t rows, int C, int vocab) {
    enum { TASKS = 32 };
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (int task = 0; task < TASKS; task++)
        for (size_t r = 0; r < rows; r++) {
            if (ids[r] < 0 || ids[r] >= vocab || ids[r] % TASKS != task) continue;
            float *d = dtable + (size_t)ids[r] * C;
            FOR_LANES (c, m, 0, (size_t)C) vf_store_n(d + c, vf_load_n(d + c, m) + vx_load_n(dout + r * C + c, m), m);
        }
}

/* ---- images ---- */

static void cpu_patchify(floatX *out, const uint8_t *pixels, int B, int S, int patch) {
    int side = S / patch;
    size_t patches = (size_t)B * side * side, width = (size_t)3 * patch * patch;
    floatX value[256];
    for (int i = 0; i < 256; i++) value[i] = to_x((float)i * (2.0f / 255.0f) - 1.0f);
#pragma omp parallel for schedule(static) if (patches * width > 16384)
    for (size_t p = 0; p < patches; p++) {
        size_t b = p / (side * side), row = p / side % side, col = p % side;
        const uint8_t *corner = pixels + ((b * S + row * patch) * S + col * patch) * 3;
        floatX *o = out + p * width;
        for (int c = 0; c < 3; c++)
            for (int y = 0; y < patch; y++)
                for (int x = 0; x < patch; x++) *o++ = value[corner[((size_t)y * S + x) * 3 + c]];
    }
}

static void cpu_position_forward(floatX *x, const floatX *position, int B, int T, int C) {
    size_t rows = (size_t)B * T;
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++) {
        floatX *row = x + r * C;
        const floatX *add = position + r % T * C;
        FOR_LANES (c, m, 0, (size_t)C) vx_store_n(row + c, vx_load_n(row + c, m) + vx_load_n(add + c, m), m);
    }
}

static void cpu_position_backward(float *dposition, const floatX *dout, int B, int T, int C) {
#pragma omp parallel for schedule(static) if ((size_t)B * T * C > 16384)
    for (int t = 0; t < T; t++)
        FOR_LANES (c, m, 0, (size_t)C) {
            vf sum = vf_load_n(dposition + (size_t)t * C + c, m);
            for (int b = 0; b < B; b++) sum += vx_load_n(dout + ((size_t)b * T + t) * C + c, m);
            vf_store_n(dposition + (size_t)t * C + c, sum, m);
        }
}

static void cpu_gather_rows(floatX *out, const floatX *inp, const int *index, size_t rows, int C) {
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++) memcpy(out + r * C, inp + (size_t)index[r] * C, C * sizeof(floatX));
}

static void cpu_scatter_rows(floatX *out, const floatX *inp, const int *index, size_t rows, size_t total, int C) {
    cpu_zero(out, total * C * sizeof(floatX));
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++) memcpy(out + (size_t)index[r] * C, inp + r * C, C * sizeof(floatX));
}

#endif
