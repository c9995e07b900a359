/* How large the letters in an image are, so that a reader of formulas may see all letters in about the same size, however the
 * image was scaled and however long the formula is.
 *
 * A letter is a connected piece of ink that is neither a bar, such as a fraction's line, nor a dot. The height of letters is the
 * lower third over them. Each counts by its height, and a narrow one by the square of width over height less, so that neither
 * delimiters, roots and integrals count much, nor what is left of broken letters. In 10-point text the height is between 4 and 7
 * points. */
#ifndef LIB_IMAGE_LETTERS_H
#define LIB_IMAGE_LETTERS_H

#include "image_pieces.h"

enum { IMAGE_LETTERS_PIXELS = 1000000 };  // larger images are looked at in blocks of pixels

/* Whether a piece is a bar that lies, or a dot: it fills its box. */
static inline bool image_piece_is_plain(const ImagePiece *p) {
    const int w = p->box.width, h = p->box.height;
    return 3 * w >= 2 * h && 4 * p->ink >= 3 * w * h;
}

/* How much a piece counts, in 64ths of a pixel of height. */
static inline int64_t image_letter_weight(const ImagePiece *p) {
    const int64_t narrow = p->box.width < p->box.height ? p->box.width : p->box.height;
    return 64 * narrow * narrow / p->box.height + 1;
}

/* Bars and dots first, then by height. */
static inline int image_letters_compare(const void *a, const void *b) {
    const ImagePiece *x = (const ImagePiece *)a, *y = (const ImagePiece *)b;
    const int plain = image_piece_is_plain(y) - image_piece_is_plain(x);
    return plain ? plain : x->box.height - y->box.height;
}

/* The depth that a tenth of n pixels does not reach: the paper's, unless nearly all is ink. */
static inline int image_letter_paper(const int64_t counts[256], int64_t n) {
    int depth = 0;
    for (int64_t below = counts[0]; 10 * below < n; below += counts[depth]) depth++;
    return depth;
}

/* The ink of a box: pixels, or blocks of factor x factor pixels, that are darker than the paper by at least a fifth of what the
 * darkest is. u8 [ceil(height / factor), ceil(width / factor)], to be freed. */
static inline uint8_t *image_letter_ink(const Image *p, ImageBox box, int factor) {
    const int width = (box.width + factor - 1) / factor, height = (box.height + factor - 1) / factor;
    uint8_t *ink = (uint8_t *)xcalloc((size_t)width * height, 1);
    int64_t counts[256] = {0};
    int darkest = 255;
    for (int y = 0; y < box.height; y++)
        for (int x = 0; x < box.width; x++) {
            const int depth = image_depth(image_at(p, box.x + x, box.y + y));
            uint8_t *at = ink + (size_t)(y / factor) * width + x / factor;
            if (depth > *at) *at = (uint8_t)depth;
            counts[depth]++;
        }
    while (!counts[darkest]) darkest--;
    const int paper = image_letter_paper(counts, (int64_t)box.width * box.height);
    for (size_t i = 0; i < (size_t)width * height; i++) ink[i] = 5 * (ink[i] - paper) >= darkest - paper;
    return ink;
}

/* The height that a third of n > 0 pieces in order, weighted, does not exceed. */
static inline int image_letters_third(const ImagePiece *pieces, int n) {
    int64_t total = 0, to_here = 0;
    int k = -1;
    for (int i = 0; i < n; i++) total += image_letter_weight(&pieces[i]);
    while (3 * to_here < total) to_here += image_letter_weight(&pieces[++k]);
    return pieces[k].box.height;
}

/* The height of the letters in a box, in pixels, at least 1. Where there are only bars and dots, two thirds of the widest one's
 * width: a minus is that much wider than a small letter is high. */
static inline int image_letter_height(const Image *p, ImageBox box) {
    int factor = 1, plain = 0, widest = 0;
    while ((size_t)(box.width / factor) * (box.height / factor) > IMAGE_LETTERS_PIXELS) factor++;
    uint8_t *ink = image_letter_ink(p, box, factor);
    ImagePiece *pieces;
    const int n = image_pieces(ink, (box.width + factor - 1) / factor, (box.height + factor - 1) / factor, &pieces);
    qsort(pieces, (size_t)n, sizeof *pieces, image_letters_compare);
    for (; plain < n && image_piece_is_plain(&pieces[plain]); plain++)
        widest = pieces[plain].box.width > widest ? pieces[plain].box.width : widest;
    const int height = plain < n ? image_letters_third(pieces + plain, n - plain) : (2 * widest + 2) / 3;
    free(pieces);
    free(ink);
    return factor * height;
}

#endif
