/* The size of a model's input image in pixels. */
#ifndef LIB_IMAGE_SIZE_H
#define LIB_IMAGE_SIZE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    int height, width;
    int letter;  // the height that letters shall have; 0: the drawing is as large as fits
} ImageSize;

static inline ImageSize image_size(int height, int width) { return (ImageSize){height, width, 0}; }
static inline ImageSize image_square(int side) { return image_size(side, side); }
static inline bool image_size_same(ImageSize a, ImageSize b) {
    return a.height == b.height && a.width == b.width && a.letter == b.letter;
}

/* Bytes of RGB pixels u8 [height, width, 3]. */
static inline size_t image_size_bytes(ImageSize s) { return 3 * (size_t)s.height * (size_t)s.width; }

#endif
