/* Checksums by which files are told apart. */
#ifndef LIB_FILE_CHECKSUM_H
#define LIB_FILE_CHECKSUM_H

#include "crc32.h"
#include "file.h"
#include "hash.h"

#include <sys/stat.h>

/* Extends `crc` by a file: by its size, and by its bytes, or of a large file 64 pieces of 1 MB throughout. */
static inline uint32_t file_checksum_add(uint32_t crc, const MappedFile *file) {
    const size_t piece = 1 << 20, stride = file->size / 64 > piece ? file->size / 64 : piece;
    for (size_t at = 0; at < file->size; at += stride)
        crc = crc32_bytes(crc, file->data + at, file->size - at < piece ? file->size - at : piece);
    return crc32_bytes(crc, (const uint8_t *)&file->size, sizeof file->size);
}

/* The checksum of a file as one number with its size (modulo 2^32). */
static inline int file_checksum(const char *path, uint64_t *checksum, Error *err) {
    MappedFile file;
    if (file_map(&file, path, err) != 0) return -1;
    *checksum = (uint64_t)(uint32_t)file.size << 32 | file_checksum_add(0, &file);
    file_unmap(&file);
    return 0;
}

/* Extends `hash` by what tells a file from others and from what it was before, without reading it: path, size and time. */
static inline int file_identity(uint64_t *hash, const char *path, Error *err) {
    struct stat s;
    if (stat(path, &s)) return error_set(err, "cannot read %s: %s", path, strerror(errno));
    const uint64_t parts[] = {(uint64_t)s.st_size, (uint64_t)s.st_mtim.tv_sec, (uint64_t)s.st_mtim.tv_nsec};
    *hash = hash_bytes(hash_bytes(*hash, path, strlen(path)), parts, sizeof parts);
    return 0;
}

#endif
