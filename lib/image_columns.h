/* Inputs of a model that begin at the left edge and are white to the right of what they show. */
#ifndef LIB_IMAGE_COLUMNS_H
#define LIB_IMAGE_COLUMNS_H

#include "image_prepare.h"

/* The columns up to the last that is not all white, at least 1. pixels: u8 [height, width, 3]. */
static inline int image_columns(const uint8_t *pixels, ImageSize size) {
    const size_t row = 3 * (size_t)size.width;
    for (int x = size.width - 1; x > 0; x--)
        for (int y = 0; y < size.height; y++)
            if (image_darkest(pixels + y * row + 3 * x, 3) < 255) return x + 1;
    return 1;
}

/* Keeps the first `width` columns of n images, in place: [n, height, size.width, 3] -> [n, height, width, 3]. */
static inline void image_cut_columns(uint8_t *pixels, int n, ImageSize size, int width) {
    const size_t from = 3 * (size_t)size.width, to = 3 * (size_t)width, rows = (size_t)n * size.height;
    for (size_t y = 1; y < rows; y++) memmove(pixels + y * to, pixels + y * from, to);
}

#endif
