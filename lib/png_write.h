/* Writes an image as a PNG file, with libpng. */
#ifndef LIB_PNG_WRITE_H
#define LIB_PNG_WRITE_H

#include "file.h"
#include "image_pixels.h"

#include <png.h>

/* Encodes an image. Returns the bytes of the file, allocated. */
static inline uint8_t *png_encode(const Image *p, size_t *size) {
    png_image image = {.version = PNG_IMAGE_VERSION, .format = PNG_FORMAT_RGB};
    image.width = (png_uint_32)p->width;
    image.height = (png_uint_32)p->height;
    png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(image);
    uint8_t *out = (uint8_t *)xmalloc(bytes);
    if (!png_image_write_to_memory(&image, out, &bytes, 0, p->rgb, 0, NULL))
        die("cannot make a PNG file of an image: %s", image.message);
    *size = bytes;
    return out;
}

/* Writes an image to PATH; a previous PATH stays until the new one is complete. */
static inline int image_save_png(const Image *p, const char *path, Error *err) {
    size_t size;
    uint8_t *bytes = png_encode(p, &size);
    int status = file_write(path, bytes, size, err);
    free(bytes);
    return status;
}

#endif
