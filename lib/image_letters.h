/* How large the letters in an image are, so that a reader of formulas may see all letters in about the same size, however the
 * image was scaled and however long the formula is.
 *
 * A letter is a connected piece of ink that is not a bar, such as a fraction's line or a minus. The height of letters is the
 * median over them, each counted as often as it is high, so that dots, primes and what is left of broken letters count little.
 * In 10-point text it is between 4 and 7 points. */
#ifndef LIB_IMAGE_LETTERS_H
#define LIB_IMAGE_LETTERS_H

#include "image_pieces.h"

enum { IMAGE_LETTERS_PIXELS = 1000000 };  // larger images are looked at in blocks of pixels

static inline bool image_piece_is_bar(const ImagePiece *p) {
    return p->box.width >= 3 * p->box.height && 5 * p->ink >= 4 * p->box.width * p->box.height;
}

static inline int image_letters_compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

/* The ink of a box: pixels, or blocks of factor x factor pixels, that are at least a third as dark as the darkest. u8
 * [ceil(height / factor), ceil(width / factor)], to be freed. */
static inline uint8_t *image_letter_ink(const Image *p, ImageBox box, int factor) {
    const int width = (box.width + factor - 1) / factor, height = (box.height + factor - 1) / factor;
    uint8_t *ink = (uint8_t *)xcalloc((size_t)width * height, 1);
    int darkest = 1;
    for (int y = 0; y < box.height; y++)
        for (int x = 0; x < box.width; x++) {
            const int depth = image_depth(image_at(p, box.x + x, box.y + y));
            uint8_t *at = ink + (size_t)(y / factor) * width + x / factor;
            if (depth > *at) *at = (uint8_t)depth;
            if (depth > darkest) darkest = depth;
        }
    for (size_t i = 0; i < (size_t)width * height; i++) ink[i] = 3 * ink[i] >= darkest;
    return ink;
}

/* The median height of n pieces that may be letters, each counted as often as it is high; 0: none may. heights [n] is written
 * to. */
static inline int image_letters_median(const ImagePiece *pieces, int n, int *heights) {
    int64_t total = 0, below = 0;
    int count = 0, k = 0;
    for (int i = 0; i < n; i++)
        if (!image_piece_is_bar(&pieces[i])) total += heights[count++] = pieces[i].box.height;
    qsort(heights, (size_t)count, sizeof *heights, image_letters_compare);
    while (k < count && 2 * (below + heights[k]) < total) below += heights[k++];
    return k < count ? heights[k] : 0;
}

/* The height of the letters in a box, in pixels, at least 1. Where there are only bars, two thirds of the widest one's width: a
 * minus is that much wider than a small letter is high. */
static inline int image_letter_height(const Image *p, ImageBox box) {
    int factor = 1, widest = 0;
    while ((size_t)(box.width / factor) * (box.height / factor) > IMAGE_LETTERS_PIXELS) factor++;
    uint8_t *ink = image_letter_ink(p, box, factor);
    ImagePiece *pieces;
    const int n = image_pieces(ink, (box.width + factor - 1) / factor, (box.height + factor - 1) / factor, &pieces);
    int *heights = (int *)xcalloc((size_t)n + 1, sizeof *heights);
    int height = image_letters_median(pieces, n, heights);
    for (int i = 0; i < n; i++)
        if (pieces[i].box.width > widest) widest = pieces[i].box.width;
    if (!height) height = (2 * widest + 2) / 3;
    free(heights);
    free(pieces);
    free(ink);
    return factor * (height > 1 ? height : 1);
}

#endif
