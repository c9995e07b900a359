/* Finds the part of an image inside its white margin. */
#ifndef LIB_IMAGE_TRIM_H
#define LIB_IMAGE_TRIM_H

#include "image_pixels.h"

typedef struct {
    int x, y, width, height;
} ImageBox;

static inline int image_longest(ImageBox b) { return b.width > b.height ? b.width : b.height; }

/* What counts as white: the encoders are trained on images without an exactly white margin. JPEG leaves pixels near
 * white in a white margin. */
enum { IMAGE_WHITE = 255, IMAGE_NEAR_WHITE = 240 };

static inline bool image_row_white(const uint8_t *row, size_t bytes, uint8_t white) {
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64) {  // blocks of a fixed size, so that the compiler vectorizes
        uint8_t least = 255;
        for (int k = 0; k < 64; k++) least = row[i + k] < least ? row[i + k] : least;
        if (least < white) return false;
    }
    for (; i < bytes; i++)
        if (row[i] < white) return false;
    return true;
}

/* The bounding box of all pixels with a colour value below `white`; the whole image when there is none. */
static inline ImageBox image_trim(const Image *p, uint8_t white) {
    const size_t stride = 3 * (size_t)p->width;
    ImageBox whole = {0, 0, p->width, p->height}, box;
    int top = 0, bottom = p->height;
    while (top < bottom && image_row_white(p->rgb + top * stride, stride, white)) top++;
    if (top == bottom) return whole;
    while (image_row_white(p->rgb + (bottom - 1) * stride, stride, white)) bottom--;
    size_t left = stride, right = 0;  // in bytes; each row searches only outside the box of the rows before it
    for (int y = top; y < bottom; y++) {
        const uint8_t *row = p->rgb + y * stride;
        for (size_t i = 0; i < left; i++)
            if (row[i] < white) left = i;
        for (size_t i = stride; i > right; i--)
            if (row[i - 1] < white) right = i;
    }
    box.x = (int)(left / 3);
    box.y = top;
    box.width = (int)((right + 2) / 3) - box.x;
    box.height = bottom - top;
    return box;
}

#endif
