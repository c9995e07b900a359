/* Memory of the CPU as a device: allocation and copies. An operation has been done when its call returns, so nothing
 * here has to wait for the CPU itself. */
#ifndef KERNELS_CPU_MEMORY_H
#define KERNELS_CPU_MEMORY_H

#include "vector.h"
#include "../ops.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

static void cpu_zero(void *p, size_t bytes) {
    const size_t block = 1 << 18;
#pragma omp parallel for schedule(static) if (bytes > 4 * block)
    for (size_t i = 0; i < div_up(bytes, block); i++)
        memset((char *)p + i * block, 0, min_size(block, bytes - i * block));
}

static void *cpu_alloc(size_t bytes) {
    if (bytes > PTRDIFF_MAX) return NULL;  // no array can be larger, and below it nothing overflows
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

static void cpu_copy_from(void *dst, const Ops *from, const void *src, size_t bytes) {
    from->download(dst, src, bytes);
}

static void cpu_copy_rows(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t width,
                          size_t rows) {
#pragma omp parallel for schedule(static) if (width * rows > 65536)
    for (size_t r = 0; r < rows; r++) memcpy((char *)dst + r * dst_stride, (const char *)src + r * src_stride, width);
}

static void cpu_sync(void) {}
static size_t cpu_memory_free(void) { return 0; }  // cannot be told

static void cpu_wait_for(const Ops *other) {
    if (!other->host_memory) other->sync();
}

/* A download is done at once; the bytes wait here. */
static char cpu_downloads[OPS_DOWNLOADS][OPS_DOWNLOAD_BYTES];

static void cpu_download_async(int number, const void *src, size_t bytes) {
    memcpy(cpu_downloads[number], src, bytes);
}
static const void *cpu_download_wait(int number) { return cpu_downloads[number]; }

#endif
