/* The size of a model's input image in pixels. */
#ifndef LIB_IMAGE_SIZE_H
#define LIB_IMAGE_SIZE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    int height, width;
} ImageSize;

static inline ImageSize image_square(int side) { return (ImageSize){side, side}; }
static inline bool image_size_same(ImageSize a, ImageSize b) { return a.height == b.height && a.width == b.width; }

/* Bytes of RGB pixels u8 [height, width, 3]. */
static inline size_t image_size_bytes(ImageSize s) { return 3 * (size_t)s.height * (size_t)s.width; }

#endif
