/* Sixel graphics (DEC STD 070, chapter 9): an image as printable characters, each a column of six pixels. */
#ifndef LIB_SIXEL_H
#define LIB_SIXEL_H

#include "image_pixels.h"

enum { SIXEL_COLOURS = 256 };  // registers that every terminal with sixel graphics has

typedef struct {
    uint32_t keys[SIXEL_COLOURS];     // colours, of which the low bits are zero
    uint32_t sums[SIXEL_COLOURS][3];  // of the pixels with each key; of at most SIXEL_SUM pixels
    uint32_t counts[SIXEL_COLOURS];
    int count;
    uint32_t mask;        // which bits of a channel are kept
    int16_t slots[1024];  // hash table of indices into keys; -1: empty
} SixelPalette;

enum { SIXEL_SUM = 1 << 24 };

/* The index of a pixel's colour; -1: it is not there, and *slot is where it belongs. */
static inline int sixel_find(const SixelPalette *p, const uint8_t *rgb, uint32_t *key, uint32_t *slot) {
    *key = (rgb[0] & p->mask) << 16 | (rgb[1] & p->mask) << 8 | (rgb[2] & p->mask);
    *slot = (*key * 2654435761u) >> 22;
    while (p->slots[*slot] >= 0 && p->keys[p->slots[*slot]] != *key) *slot = (*slot + 1) & 1023;
    return p->slots[*slot];
}

/* Collects the colours with `bits` bits a channel. Returns false where they are too many. */
static inline bool sixel_collect(SixelPalette *p, const Image *image, int bits) {
    memset(p, 0, sizeof *p);
    memset(p->slots, 0xff, sizeof p->slots);
    p->mask = 255u & ~(255u >> bits);
    for (size_t i = 0, n = (size_t)image->width * image->height; i < n; i++) {
        const uint8_t *rgb = image->rgb + 3 * i;
        uint32_t key, slot;
        int c = sixel_find(p, rgb, &key, &slot);
        if (c < 0 && p->count == SIXEL_COLOURS) return false;
        if (c < 0) {
            c = p->slots[slot] = (int16_t)p->count++;
            p->keys[c] = key;
        }
        if (p->counts[c] == SIXEL_SUM) continue;
        p->counts[c]++;
        for (int k = 0; k < 3; k++) p->sums[c][k] += rgb[k];
    }
    return true;
}

/* Writes `count` times the same column of six pixels. */
static inline void sixel_run(FILE *out, int bits, int count) {
    if (count > 3)
        fprintf(out, "!%d%c", count, 63 + bits);
    else
        for (int i = 0; i < count; i++) putc(63 + bits, out);
}

/* Writes the pixels of rows y to y + 5, one colour after another. indices: of all pixels of these rows. */
static inline void sixel_band(FILE *out, const uint8_t *indices, int width, int rows, int colours) {
    bool used[SIXEL_COLOURS] = {false}, first = true;
    for (int i = 0; i < width * rows; i++) used[indices[i]] = true;
    for (int c = 0; c < colours; c++) {
        int run = 0, bits = 0;
        if (!used[c]) continue;
        if (!first) putc('$', out);  // back to the left edge
        first = false;
        fprintf(out, "#%d", c);
        for (int x = 0; x < width; x++) {
            int column = 0;
            for (int y = 0; y < rows; y++) column |= (indices[y * width + x] == c) << y;
            if (column != bits) sixel_run(out, bits, run), run = 0, bits = column;
            run++;
        }
        if (bits) sixel_run(out, bits, run);
    }
    putc('-', out);
}

/* Writes an image. Up to 256 colours are kept, to the 1/100 that sixel has; more are brought together by leaving out low
 * bits, each group in its mean colour. Errors are those of `out`. */
static inline void sixel_write(FILE *out, const Image *image) {
    SixelPalette p;
    for (int bits = 8; bits > 1 && !sixel_collect(&p, image, bits);) bits--;  // 2 bits: at most 64 colours
    fprintf(out, "\033P0;1;0q\"1;1;%d;%d", image->width, image->height);
    for (int c = 0; c < p.count; c++) {
        fprintf(out, "#%d;2", c);
        for (int k = 0; k < 3; k++) {
            const uint64_t most = (uint64_t)255 * p.counts[c];
            fprintf(out, ";%d", (int)(((uint64_t)p.sums[c][k] * 100 + most / 2) / most));
        }
    }
    uint8_t *indices = (uint8_t *)xmalloc((size_t)image->width * 6);
    for (int y = 0; y < image->height; y += 6) {
        const int rows = image->height - y < 6 ? image->height - y : 6;
        uint32_t key, slot;
        for (int i = 0; i < image->width * rows; i++)
            indices[i] = (uint8_t)sixel_find(&p, image->rgb + 3 * ((size_t)y * image->width + i), &key, &slot);
        sixel_band(out, indices, image->width, rows, p.count);
    }
    free(indices);
    fputs("\033\\", out);
}

#endif
