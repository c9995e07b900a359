/* FNV-1a (Fowler, Noll and Vo), for fingerprints of short texts and hash tables; not for security. */
#ifndef LIB_HASH_H
#define LIB_HASH_H

#include <stddef.h>
#include <stdint.h>

/* The hash of `bytes` bytes; `hash` continues an earlier one (HASH_BEGIN to begin). */
#define HASH_BEGIN 14695981039346656037u
static inline uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return hash;
}

#endif
