/* Encodes an image as JPEG, with libjpeg. */
#ifndef LIB_JPEG_WRITE_H
#define LIB_JPEG_WRITE_H

#include "jpeg.h"

/* libjpeg fails here only when memory runs out. */
__attribute__((noreturn)) static inline void jpeg_writer_error(j_common_ptr common) {
    char text[JMSG_LENGTH_MAX];
    (*common->err->format_message)(common, text);
    die("cannot make a JPEG file of an image: %s", text);
}

/* Encodes an image of at most 65500 pixels a side, with libjpeg's defaults (4:2:0). quality: 1 to 100. Returns the
 * bytes of the file, allocated. */
static inline uint8_t *jpeg_encode(const Image *p, int quality, size_t *size) {
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr errors;
    unsigned char *bytes = NULL;
    unsigned long length = 0;
    c.err = jpeg_std_error(&errors);
    errors.error_exit = jpeg_writer_error;
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &bytes, &length);
    c.image_width = (JDIMENSION)p->width;
    c.image_height = (JDIMENSION)p->height;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, quality, TRUE);
    jpeg_start_compress(&c, TRUE);
    while (c.next_scanline < c.image_height) {
        JSAMPROW row = p->rgb + 3 * (size_t)c.next_scanline * p->width;
        jpeg_write_scanlines(&c, &row, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    *size = length;
    return bytes;
}

#endif
