/* Shared by the tests of lib/ and of the data loader: counting checks, a temporary folder, and makers of small valid
 * files (images, tokenizers, datasets). */
#ifndef TEST_SAMPLES_H
#define TEST_SAMPLES_H

#include "../lib/error.h"

#include "../dataloader.h"
#include "../lib/crc32.h"
#include "../lib/program.h"
#include "../lib/random.h"
#include "../lib/safetensors.h"
#include "../lib/tokenizer.h"
#include "image_samples.h"

#include <ftw.h>

#include <png.h>

static int checks_passed, checks_failed;

static inline void check(bool ok, const char *file, int line, const char *what, const char *more) {
    if (ok) {
        __atomic_add_fetch(&checks_passed, 1, __ATOMIC_RELAXED);  // also from threads
        return;
    }
    __atomic_add_fetch(&checks_failed, 1, __ATOMIC_RELAXED);
    printf("%s:%d: failed: %s%s%s\n", file, line, what, *more ? "; message: " : "", more);
}

/* Replaces each `word` in an allocated text, which it frees; returns the new one. */
static inline char *replace_all(char *text, const char *word, const char *by) {
    for (char *at; (at = strstr(text, word));) {
        char *next = format_string("%.*s%s%s", (int)(at - text), text, by, at + strlen(word));
        free(text);
        text = next;
    }
    return text;
}

#define CHECK(condition) check(condition, __FILE__, __LINE__, #condition, "")
#define CHECK_OK(call, err) ((err).text[0] = '\0', check((call) == 0, __FILE__, __LINE__, #call, (err).text))
/* The call fails and its sentence contains `part`. */
#define CHECK_ERROR(call, err, part)                                                          \
    ((err).text[0] = '\0', check((call) != 0 && strstr((err).text, part), __FILE__, __LINE__, \
                                 #call " refused with '" part "'", (err).text))

static inline int checks_report(void) {
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed ? 1 : 0;
}

/* ---- a temporary folder ---- */

static char samples_folder[256];

static inline void samples_begin(void) {
    const char *base = getenv("TMPDIR");
    snprintf(samples_folder, sizeof samples_folder, "%s/tikz-test-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(samples_folder)) die("cannot make a temporary folder %s: %s", samples_folder, strerror(errno));
}

static inline int samples_remove(const char *path, const struct stat *s, int kind, struct FTW *w) {
    (void)s;
    (void)kind;
    (void)w;
    return remove(path);
}

static inline void samples_end(void) { nftw(samples_folder, samples_remove, 16, FTW_DEPTH | FTW_PHYS); }

/* A path in the temporary folder; up to eight are valid at a time. */
static inline const char *sample_path(const char *name) {
    static char paths[8][320];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", samples_folder, name);
    return path;
}

static inline void write_bytes(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) die("cannot write %s", path);
}

static inline uint8_t *read_bytes(const char *path, size_t *size) {
    MappedFile f;
    Error err;
    if (file_map(&f, path, &err) != 0) die("%s", err.text);
    uint8_t *copy = (uint8_t *)xmalloc(f.size);
    memcpy(copy, f.data, f.size);
    *size = f.size;
    file_unmap(&f);
    return copy;
}

/* ---- images ---- */

/* A growing string of bytes. */
typedef struct {
    uint8_t *data;
    size_t size;
} Bytes;

static inline void bytes_add(Bytes *b, const void *data, size_t size) {
    b->data = (uint8_t *)xrealloc(b->data, b->size + size + 1);
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
}

/* White ground with a rectangle and a line whose place and colour depend on seed; channels 1 to 4. */
static inline uint8_t *draw_image(int width, int height, int channels, uint64_t seed) {
    Random random;
    random_seed(&random, seed);
    uint8_t *p = (uint8_t *)xmalloc((size_t)width * (size_t)height * (size_t)channels);
    memset(p, 255, (size_t)width * (size_t)height * (size_t)channels);
    int left = (int)random_below(&random, (uint64_t)(width + 1) / 2),
        top = (int)random_below(&random, (uint64_t)(height + 1) / 2);
    uint8_t colour[4];
    for (int c = 0; c < 4; c++) colour[c] = (uint8_t)random_below(&random, 256);
    for (int y = top; y < height - top / 2; y++)
        for (int x = left; x < width - left / 2; x++)
            for (int c = 0; c < channels; c++)
                p[((size_t)y * (size_t)width + (size_t)x) * (size_t)channels + (size_t)c] =
                    (uint8_t)(colour[c] + (x == y ? 128 : x));
    return p;
}

static inline Bytes make_png(int width, int height, int channels, uint64_t seed) {
    static const png_uint_32 formats[] = {PNG_FORMAT_GRAY, PNG_FORMAT_GA, PNG_FORMAT_RGB, PNG_FORMAT_RGBA};
    png_image image = {.version = PNG_IMAGE_VERSION, .format = formats[channels - 1]};
    image.width = (png_uint_32)width;
    image.height = (png_uint_32)height;
    uint8_t *p = draw_image(width, height, channels, seed);
    png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
    Bytes b = {(uint8_t *)xmalloc(size), 0};
    if (!png_image_write_to_memory(&image, b.data, &size, 0, p, 0, NULL)) die("cannot make a PNG: %s", image.message);
    b.size = size;
    free(p);
    return b;
}

/* The bytes that are written in hexadecimal. */
static inline Bytes from_hex(const char *hex) {
    Bytes b = {NULL, 0};
    for (; *hex; hex += 2) {
        char digits[3] = {hex[0], hex[1], '\0'};
        uint8_t byte = (uint8_t)strtol(digits, NULL, 16);
        bytes_add(&b, &byte, 1);
    }
    return b;
}

/* ---- models with a tokenizer ---- */

/* Writes a tokenizer and a small tensor as a file. */
static inline int write_tokenizer(const char *path, const Tokenizer *t, Error *err) {
    SafeTensorSpec specs[6];
    memset(specs, 0, sizeof specs);
    snprintf(specs[0].name, sizeof specs[0].name, "weight");
    specs[0].dtype = DT_BF16;
    specs[0].ndim = 2;
    specs[0].shape[0] = 3;
    specs[0].shape[1] = 5;
    int n = 1 + tokenizer_specs(t, specs + 1);
    const char *keys[1 + TOKENIZER_METADATA] = {"format"}, *values[1 + TOKENIZER_METADATA] = {"tikz.c/1"};
    int pairs = 1 + tokenizer_metadata(t, keys + 1, values + 1);
    SafeTensorsWriter w;
    uint8_t weight[30] = {0};
    int status = safetensors_write_begin(&w, path, specs, n, keys, values, pairs, err);
    if (status == 0) status = safetensors_write_data(&w, weight, sizeof weight, err);
    if (status == 0) status = tokenizer_write(t, &w, err);
    if (status == 0) status = safetensors_write_end(&w, err);
    return status;
}

/* A file with a few tensors and a byte tokenizer of count tokens: token i is the letter 'a' + i % 26, i % 3 + 1
 * times; the last one is special and the end token. `flavour` changes the bytes of the last but one token. */
static inline int write_tokenizer_file(const char *path, int count, int flavour, Error *err) {
    Tokenizer t;
    memset(&t, 0, sizeof t);
    int32_t *offsets = (int32_t *)xcalloc((size_t)count + 1, sizeof *offsets);
    uint8_t *bytes = (uint8_t *)xcalloc((size_t)count, 3), *flags = (uint8_t *)xcalloc((size_t)count, 1);
    for (int i = 0; i < count; i++) {
        int length = i % 3 + 1;
        memset(bytes + offsets[i], 'a' + (i + (i == count - 2 ? flavour : 0)) % 26, (size_t)length);
        offsets[i + 1] = offsets[i] + length;
    }
    flags[count - 1] = TOKEN_SPECIAL;
    t.count = count;
    t.bytes = bytes;
    t.offsets = offsets;
    t.flags = flags;
    t.json = (const uint8_t *)"{}";
    t.json_bytes = 2;
    t.end = count - 1;
    snprintf(t.kind, sizeof t.kind, "byte_level_bpe");
    snprintf(t.end_text, sizeof t.end_text, "%d", t.end);
    int status = write_tokenizer(path, &t, err);
    free(offsets);
    free(bytes);
    free(flags);
    return status;
}

/* tokenizer.json of a small BPE with everything that lib/tokenizer_encode.h reads, and its tokens. */
static const char fallback_json[] =
    "{\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"special\":true,\"normalized\":true},"
    "{\"id\":10,\"content\":\"<p>\",\"special\":false,\"lstrip\":true,\"rstrip\":true,\"single_word\":true,"
    "\"normalized\":false}],\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
    "\"\\u2581\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]},"
    "\"pre_tokenizer\":null,\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,"
    "\"byte_fallback\":true,\"vocab\":{\"<s>\":0,\"<unk>\":1,\"<0x0A>\":2,\"<0xC3>\":3,\"<0xA9>\":4,\"\\u2581\":5,"
    "\"a\":6,\"b\":7,\"\\u2581a\":8,\"ab\":9},\"merges\":[\"\\u2581 a\",[\"a\",\"b\"]]}}";
static const char *const fallback_tokens[] = {"<s>", "<unk>", "\n", "\xc3", "\xa9", " ", "a", "b", " a", "ab", "<p>"};
static const char byte_level_json[] =
    "{\"added_tokens\":[{\"id\":0,\"content\":\"</s>\",\"special\":true,\"normalized\":false}],"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
    "\"(?i:'s|'t)|[^\\\\s\\\\p{L}]?\\\\p{L}+(?!\\\\S)|\\\\s{1,3}$|[^a-c]\"},\"behavior\":\"Isolated\","
    "\"invert\":false},{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":false,\"use_regex\":true}]},\"model\":{\"type\":\"BPE\",\"ignore_merges\":true,"
    "\"vocab\":{\"a\":1,\"b\":2,\"\\u0120\":3,\"\\u0120a\":4,\"ab\":5,\"\\u00c3\":6,\"\\u00a9\":7,\"aba\":8},"
    "\"merges\":[\"\\u0120 a\",\"a b\"]}}";
static const char *const byte_level_tokens[] = {"</s>", "a", "b", " ", " a", "ab", "\xc3", "\xa9", "aba"};

static inline int write_bpe_file(const char *path, bool fallback, Error *err) {
    Tokenizer t;
    uint8_t bytes[256], flags[16] = {TOKEN_SPECIAL};
    int32_t offsets[17] = {0};
    const char *const *tokens = fallback ? fallback_tokens : byte_level_tokens;
    memset(&t, 0, sizeof t);
    t.count = fallback ? 11 : 9;
    for (int i = 0; i < t.count; i++) {
        size_t n = strlen(tokens[i]);
        memcpy(bytes + offsets[i], tokens[i], n);
        offsets[i + 1] = offsets[i] + (int32_t)n;
        if (fallback && i >= 2 && i <= 4) flags[i] = TOKEN_BYTE;
    }
    t.bytes = bytes;
    t.offsets = offsets;
    t.flags = flags;
    t.json = (const uint8_t *)(fallback ? fallback_json : byte_level_json);
    t.json_bytes = strlen((const char *)t.json);
    snprintf(t.kind, sizeof t.kind, fallback ? "byte_fallback_bpe" : "byte_level_bpe");
    snprintf(t.end_text, sizeof t.end_text, "0");
    if (fallback) snprintf(t.begin_text, sizeof t.begin_text, "1");
    if (fallback) snprintf(t.strip_text, sizeof t.strip_text, "1");
    return write_tokenizer(path, &t, err);
}

/* ---- datasets ---- */

static inline void put_u32(uint8_t *p, uint32_t x) { memcpy(p, &x, 4); }
static inline void put_u64(uint8_t *p, uint64_t x) { memcpy(p, &x, 8); }

/* Builds a dataset file of `count` samples. images[i] are the bytes of its images, lengths[i] its tokens; the ids
 * are (seed + i + position) % vocab. */
static inline Bytes make_dataset(int count, const Bytes *images, const int *lengths, int vocab, uint64_t fingerprint,
                                 int seed) {
    const char *source = "made by the tests";
    Bytes b = {NULL, 0}, index = {NULL, 0};
    uint8_t header[72] = {0}, zeros[8] = {0};
    bytes_add(&b, header, sizeof header);
    for (int i = 0; i < count; i++) {
        uint8_t entry[32] = {0};
        size_t begin = b.size;
        bytes_add(&b, images[i].data, images[i].size);
        bytes_add(&b, zeros, (4 - images[i].size % 4) % 4);
        for (int t = 0; t < lengths[i]; t++) {
            uint32_t id = (uint32_t)((seed + i + t) % vocab);
            bytes_add(&b, &id, 4);
        }
        put_u64(entry, begin);
        put_u32(entry + 8, (uint32_t)images[i].size);
        put_u32(entry + 12, (uint32_t)lengths[i]);
        put_u32(entry + 16, crc32_bytes(0, b.data + begin, b.size - begin));
        bytes_add(&index, entry, sizeof entry);
    }
    bytes_add(&b, zeros, (8 - b.size % 8) % 8);
    memcpy(header, "TIKZBIN1", 8);
    put_u32(header + 8, 2);
    put_u32(header + 12, sizeof header);
    put_u64(header + 16, (uint64_t)count);
    put_u64(header + 24, fingerprint);
    put_u64(header + 32, b.size);
    bytes_add(&b, index.data, index.size);
    put_u64(header + 40, b.size);
    put_u64(header + 48, strlen(source));
    bytes_add(&b, source, strlen(source));
    put_u64(header + 56, b.size);
    memcpy(b.data, header, sizeof header);
    put_u32(b.data + 64, dataset_crc(b.data));
    free(index.data);
    return b;
}

#endif
