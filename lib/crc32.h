/* CRC-32 with the polynomial of PNG, zip and zlib (reflected 0xedb88320), by "slicing by 8": eight bytes per step,
 * where table t gives the effect of a byte that t more bytes follow (Kounavis and Berry, "Novel Table Lookup-Based
 * Algorithms for High-Performance CRC Generation", 2008). */
#ifndef LIB_CRC32_H
#define LIB_CRC32_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

static uint32_t crc32_table[8][256];
static pthread_once_t crc32_once = PTHREAD_ONCE_INIT;

static inline void crc32_build(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        crc32_table[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++) {
            uint32_t c = crc32_table[t - 1][i];
            crc32_table[t][i] = crc32_table[0][c & 0xff] ^ (c >> 8);
        }
}

/* Extends `crc`, the CRC-32 of the bytes before (0 for none), by `size` bytes. Thread-safe. */
static inline uint32_t crc32_bytes(uint32_t crc, const void *data, size_t size) {
    pthread_once(&crc32_once, crc32_build);
    const uint8_t *p = data;
    uint32_t c = ~crc;
    for (; size >= 8; p += 8, size -= 8) {
        c ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        c = crc32_table[7][c & 0xff] ^ crc32_table[6][c >> 8 & 0xff] ^ crc32_table[5][c >> 16 & 0xff] ^
            crc32_table[4][c >> 24] ^ crc32_table[3][p[4]] ^ crc32_table[2][p[5]] ^ crc32_table[1][p[6]] ^
            crc32_table[0][p[7]];
    }
    for (; size > 0; p++, size--) c = crc32_table[0][(c ^ *p) & 0xff] ^ (c >> 8);
    return ~c;
}

#endif
