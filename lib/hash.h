/* The FNV-1a hash, 64 bits (Fowler, Noll and Vo), for fingerprints and hash tables. It is not cryptographic. */
#ifndef LIB_HASH_H
#define LIB_HASH_H

#include <stddef.h>
#include <stdint.h>

#define HASH_BEGIN 14695981039346656037u

/* Extends `hash`, the hash of the bytes before (HASH_BEGIN for none), by `bytes` bytes. */
static inline uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
    return hash;
}

/* The slot of a hash in a table of `slots` entries, a power of two. The high bits, which FNV-1a mixes best, are
 * folded into the low ones. */
static inline size_t hash_slot(uint64_t hash, size_t slots) { return (size_t)(hash ^ hash >> 29) & (slots - 1); }

#endif
