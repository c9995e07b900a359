/* The file of a cached teacher: its outputs for every position of the training data, written once by
 * train_distill --write-teacher-cache and mapped by --teacher-cache.
 *
 * File (little-endian): a CacheHeader; then, for each sample of the data in its order that has at most max_tokens tokens, a
 * block: a row for each of its tokens (the program and the end token), zeros up to a multiple of 4 bytes, and the CRC-32 of
 * the number of the sample (u32) and the rows. So where a block lies follows from the data.
 *
 * A row of row_bytes bytes holds the teacher's distribution of one token, over its vocabulary:
 *
 *   dense    bf16 [vocab]                    logits
 *   topk     SparseRow, id [K], u16 [K]      the K likeliest tokens in ascending order, and -log p of each in steps of
 *                                            1/2048 nat
 *   sample   SparseRow, id [K]               K draws in ascending order; a token may be there several times
 *
 * with ids of u16 where the vocabulary has at most 65536 tokens, else u32, and a SparseRow as in kernels/sparse.h. Of topk
 * and sample p = softmax(t/tau), with the temperature tau of the header; dense rows serve any temperature.
 *
 * The draws are those of random-sampling KD (Anshumann et al. 2025, "Sparse Logit Sampling"), but stratified: with one random
 * number u in [0, 1), the tokens in which the cumulated p passes (u + k) / K, k = 0 .. K-1. A token's expected share of the
 * draws is p, as with independent draws, and its variance is smaller. */
#ifndef TRAIN_CACHE_FORMAT_H
#define TRAIN_CACHE_FORMAT_H

#include "../kernels/sparse.h"
#include "../lib/dataset.h"

typedef enum { CACHE_DENSE, CACHE_TOPK, CACHE_SAMPLE, CACHE_KINDS } CacheKind;
static const char *const cache_kind_names[] = {"dense", "topk", "sample"};

enum { CACHE_VERSION = 1, CACHE_NAME = 128 };
static const double CACHE_STEPS = 2048;  // of -log p in a nat

typedef struct {
    char magic[8];  // "TIKZTCH1"
    uint32_t version, header_bytes;
    uint64_t file_bytes, rows, samples;  // samples: of the data; rows: of those with at most max_tokens tokens
    uint64_t data, tokenizer, teacher;   // fingerprints: dataset_content, of the data's tokenizer, file_checksum
    uint64_t seed;                       // of the draws
    uint32_t kind, K, vocab, max_tokens, row_bytes;
    uint32_t height, width;  // of the images that the teacher saw
    float temperature;       // 0: any
    char name[CACHE_NAME];   // of the teacher's file, with a 0 at the end
    uint32_t zero, crc;      // of the header up to here
} CacheHeader;
_Static_assert(sizeof(CacheHeader) == 240, "the header has no padding");

static inline uint32_t cache_header_crc(const CacheHeader *h) {
    return crc32_bytes(0, h, offsetof(CacheHeader, crc));
}

static inline size_t cache_id_bytes(uint32_t vocab) { return vocab <= 65536 ? 2 : 4; }

static inline size_t cache_row_bytes(CacheKind kind, uint32_t K, uint32_t vocab) {
    if (kind == CACHE_DENSE) return 2 * (size_t)vocab;
    return sizeof(SparseRow) + K * (cache_id_bytes(vocab) + (kind == CACHE_TOPK ? 2 : 0));
}

/* Bytes of a sample's block: nothing where it has too many tokens. */
static inline uint64_t cache_block_bytes(const CacheHeader *h, uint32_t tokens) {
    if (tokens > h->max_tokens) return 0;
    return (((uint64_t)tokens * h->row_bytes + 3) & ~(uint64_t)3) + 4;
}

static inline uint32_t cache_block_crc(uint32_t sample, const void *rows, size_t bytes) {
    return crc32_bytes(crc32_bytes(0, &sample, sizeof sample), rows, bytes);
}

/* Where the block of each sample begins, and, last, where the file ends: [samples + 1], allocated. */
static inline uint64_t *cache_offsets(const CacheHeader *h, const Dataset *d) {
    uint64_t *offsets = xcalloc((size_t)d->count + 1, sizeof *offsets);
    offsets[0] = sizeof(CacheHeader);
    for (uint64_t i = 0; i < d->count; i++)
        offsets[i + 1] = offsets[i] + cache_block_bytes(h, dataset_sample(d, i).token_count);
    return offsets;
}

/* Reads KIND of --teacher-cache-kind: dense, topk=K or sample=K. */
static inline int cache_kind_parse(const char *text, CacheKind *kind, uint32_t *K) {
    int most = 0, end = 0;
    *K = 0;
    *kind = CACHE_DENSE;
    if (!strcmp(text, "dense")) return 0;
    *kind = !strncmp(text, "topk=", 5) ? CACHE_TOPK : CACHE_SAMPLE;
    if (sscanf(text, *kind == CACHE_TOPK ? "topk=%5d%n" : "sample=%5d%n", &most, &end) != 1 || text[end]) return -1;
    *K = (uint32_t)most;
    return most >= 1 && most <= SPARSE_MOST ? 0 : -1;
}

/* What a cache holds of a position: "all 512 logits", "the 16 likeliest of 512 tokens at temperature 2". */
static inline char *cache_describe(const CacheHeader *h) {
    if (h->kind == CACHE_DENSE) return format_string("all %u logits", h->vocab);
    return format_string(h->kind == CACHE_TOPK ? "the %u likeliest of %u tokens at temperature %g"
                                               : "%u draws among %u tokens at temperature %g",
                         h->K, h->vocab, (double)h->temperature);
}

#endif
