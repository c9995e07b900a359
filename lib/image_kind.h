/* Tells an image of a formula from one of a figure, by what its ink looks like: infer --task auto.
 *
 * A formula is wide, its letters are many small pieces with gaps between them, and it has one colour. A figure is about as high as
 * wide, has long thin lines, which make one large piece, and often several colours. The score adds up what speaks for a formula, as
 * log odds; a logistic regression on the starter's test figures, figures of the web and drawn formulas gave the weights
 * (dev/formula/README.md has its errors). The image is cleaned before (lib/image_clean.h). */
#ifndef LIB_IMAGE_KIND_H
#define LIB_IMAGE_KIND_H

#include "image_frame.h"

enum {
    IMAGE_KIND_INK = 95,             // depth (image_depth) from which a pixel is ink
    IMAGE_KIND_COLOURED = 80,        // difference of a pixel's largest and smallest value, from which it has a hue
    IMAGE_KIND_HUES = 9,             // black or grey, and eight hues, by which values are above the middle
    IMAGE_KIND_PIXELS = 4 * 1000000  // larger images are made smaller by a whole factor
};

/* The ink of an image: hue + 1 of each pixel, 0: none. Of a block of factor x factor pixels the darkest counts. */
typedef struct {
    int width, height;
    uint8_t *hues;  // [height, width]
} ImageInkMap;

static inline uint8_t image_hue(const uint8_t *rgb) {
    const int low = 255 - image_depth(rgb);
    int high = rgb[0] > rgb[1] ? rgb[0] : rgb[1], hue = 0;
    high = rgb[2] > high ? rgb[2] : high;
    if (high - low <= IMAGE_KIND_COLOURED) return 0;
    for (int k = 0; k < 3; k++) hue = 2 * hue + (2 * rgb[k] > high + low);
    return (uint8_t)(hue + 1);
}

/* The ink inside the image's white margin. Free ink->hues. */
static inline void image_ink_map(ImageInkMap *ink, const Image *p) {
    const ImageBox box = image_trim(p, IMAGE_NEAR_WHITE);
    int factor = 1;
    while ((size_t)(box.width / factor) * (box.height / factor) > IMAGE_KIND_PIXELS) factor++;
    *ink = (ImageInkMap){(box.width + factor - 1) / factor, (box.height + factor - 1) / factor, NULL};
    const size_t n = (size_t)ink->width * ink->height;
    uint8_t *darkest = xcalloc(n, 1);
    ink->hues = xcalloc(n, 1);
    for (int y = 0; y < box.height; y++)
        for (int x = 0; x < box.width; x++) {
            const uint8_t *rgb = image_at(p, box.x + x, box.y + y);
            const size_t at = (size_t)(y / factor) * ink->width + x / factor;
            const int depth = image_depth(rgb);
            if (depth <= IMAGE_KIND_INK || depth <= darkest[at]) continue;
            darkest[at] = (uint8_t)depth;
            ink->hues[at] = image_hue(rgb) + 1;
        }
    free(darkest);
}

/* ---- the score ---- */

/* The share of columns without ink. */
static inline double image_empty_columns(const ImageInkMap *ink) {
    int empty = 0;
    for (int x = 0; x < ink->width; x++) {
        int y = 0;
        while (y < ink->height && !ink->hues[(size_t)y * ink->width + x]) y++;
        empty += y == ink->height;
    }
    return (double)empty / ink->width;
}

/* The log odds that a cleaned image shows a formula, not a figure; below 0 a figure is likelier. An image without ink is none of
 * both: -INFINITY. */
static inline double image_formula_score(const Image *p) {
    ImageInkMap ink;
    size_t counts[IMAGE_KIND_HUES + 1] = {0}, usual = 0;
    ImagePiece *piece;
    int largest = 0;
    image_ink_map(&ink, p);
    const size_t pixels = (size_t)ink.width * ink.height;
    for (size_t i = 0; i < pixels; i++) counts[ink.hues[i]]++;
    for (int k = 1; k <= IMAGE_KIND_HUES; k++) usual = counts[k] > usual ? counts[k] : usual;
    const double total = (double)(pixels - counts[0]), empty = image_empty_columns(&ink);
    const int pieces = image_pieces(ink.hues, ink.width, ink.height, &piece);
    for (int i = 0; i < pieces; i++) largest = piece[i].ink > largest ? piece[i].ink : largest;
    free(piece);
    free(ink.hues);
    if (total == 0) return -INFINITY;
    const double other = 1 - (double)usual / total;  // ink of other hues than the most frequent one
    return 4.5 + 1.5 * log((double)ink.width / ink.height) + 8.6 * empty + 3.3 * log(total / (double)pixels) -
           0.75 * log(pieces) - 2.8 * log(largest / total) - 280 * fmin(other, 0.03);
}

#endif
