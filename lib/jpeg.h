/* Decodes JPEG files with libjpeg and its defaults (accurate integer DCT, smooth chroma upsampling). Pillow does the
 * same, so the pixels are equal.
 *
 *     jpeg_reader_open    reads the header: width, height
 *     jpeg_reader_decode  reads the pixels: rgb
 *     jpeg_reader_close   frees everything, also after errors, except an rgb that the caller has taken
 *
 * libjpeg reports an error through a callback that must not return; ours jumps back into jpeg_reader_try. All state
 * is in the reader, so several threads can decode at once, each with its own reader. */
#ifndef LIB_JPEG_H
#define LIB_JPEG_H

#include "error.h"

#include <setjmp.h>
#include <stdio.h>

#if !__has_include(<jpeglib.h>)
#error "the header of libjpeg is missing; scripts/deps.sh build installs it (Debian and Ubuntu: libjpeg-dev)"
#endif
#include <jpeglib.h>

#include <jerror.h>  // its message codes depend on what jpeglib.h defines

enum {
    JPEG_MAX_SCANS = 500,      // a progressive file has about 10; each scan costs a pass over all pixels
    JPEG_MAX_MEMORY = 1 << 30  // bytes of coefficients of a progressive file; enough for 100 million CMYK pixels
};

typedef struct {
    struct jpeg_decompress_struct decompress;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf back;
    const uint8_t *bytes;
    size_t size;
    int width, height;
    bool cut_off;                     // the data ended before the end-of-image marker
    uint8_t *rgb;                     // [height, width, 3]; a caller that takes ownership sets it to NULL
    char why[JMSG_LENGTH_MAX + 100];  // the reason of a failure, without the name of the file
} JpegReader;

/* Leaves the current step through longjmp, with the reason in r->why. */
__attribute__((format(printf, 2, 3), noreturn)) static inline void jpeg_reader_give_up(JpegReader *r,
                                                                                       const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(r->why, sizeof r->why, format, args);
    va_end(args);
    longjmp(r->back, 1);
}

static inline void jpeg_reader_error(j_common_ptr common) {
    char text[JMSG_LENGTH_MAX];
    (*common->err->format_message)(common, text);
    jpeg_reader_give_up(common->client_data,
                        "its JPEG data are damaged, or of a kind that libjpeg does not read (%s)", text);
}

/* Ignores damage that libjpeg can recover from, as Pillow does, but not missing data: the rest of the image would be
 * grey. */
static inline void jpeg_reader_warning(j_common_ptr common, int level) {
    JpegReader *r = common->client_data;
    if (level >= 0 || common->err->msg_code != JWRN_JPEG_EOF) return;
    r->cut_off = true;
    jpeg_reader_give_up(r, "the JPEG data end before the image does; the file is cut off");
}

/* Progress callback of libjpeg, used to limit the number of scans. */
static inline void jpeg_reader_progress(j_common_ptr common) {
    JpegReader *r = common->client_data;
    if (r->decompress.input_scan_number > JPEG_MAX_SCANS)
        jpeg_reader_give_up(r, "its JPEG data have more than %d scans; store it again", JPEG_MAX_SCANS);
}

/* Runs one step, and returns -1 when it gave up, with the reason in r->why. This is the only setjmp: no local
 * variable changes after it, and steps keep their allocations in the reader, so a jump loses neither values nor
 * memory. */
static inline int jpeg_reader_try(JpegReader *r, void (*step)(JpegReader *)) {
    if (setjmp(r->back)) return -1;
    step(r);
    return 0;
}

static inline void jpeg_reader_header(JpegReader *r) {
    struct jpeg_decompress_struct *d = &r->decompress;
    jpeg_create_decompress(d);
    d->progress = &r->progress;
    d->mem->max_memory_to_use = JPEG_MAX_MEMORY;
    jpeg_mem_src(d, r->bytes, (unsigned long)r->size);
    while (jpeg_read_header(d, FALSE) == JPEG_HEADER_TABLES_ONLY) {
        // a stream of tables only may precede the image
    }
    if (d->num_components != 1 && d->num_components != 3 && d->num_components != 4)
        jpeg_reader_give_up(r, "its JPEG data have %d components, expected 1 (grey), 3 (colour) or 4 (CMYK)",
                            d->num_components);
    r->width = (int)d->image_width;  // at most 65535
    r->height = (int)d->image_height;
}

/* Converts a row of inverted CMYK, as Adobe stores it (255: no ink), to RGB: each colour times black, rounded as in
 * Pillow. */
static inline void jpeg_row_from_cmyk(uint8_t *rgb, const uint8_t *cmyk, int width) {
    for (int x = 0; x < width; x++, rgb += 3, cmyk += 4)
        for (int c = 0; c < 3; c++) {
            int t = (255 - cmyk[c]) * cmyk[3] + 128;
            rgb[c] = (uint8_t)(cmyk[3] - (((t >> 8) + t) >> 8));
        }
}

static inline void jpeg_reader_pixels(JpegReader *r) {
    struct jpeg_decompress_struct *d = &r->decompress;
    const bool cmyk = d->num_components == 4;
    const size_t stride = 3 * (size_t)r->width;
    JSAMPROW row = NULL;
    d->out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(d);
    if (cmyk) row = *(*d->mem->alloc_sarray)((j_common_ptr)d, JPOOL_IMAGE, 4 * d->image_width, 1);
    r->rgb = xmalloc(stride * r->height);
    while (d->output_scanline < d->output_height) {
        uint8_t *to = r->rgb + stride * d->output_scanline;
        if (!cmyk) row = to;
        jpeg_read_scanlines(d, &row, 1);
        if (cmyk) jpeg_row_from_cmyk(to, row, r->width);
    }
}

/* Reads the data after the pixels, up to the end-of-image marker. */
static inline void jpeg_reader_rest(JpegReader *r) { jpeg_finish_decompress(&r->decompress); }

/* Reads the header of a JPEG file of `size` bytes, which must stay valid until the reader is closed. Sets width and
 * height. Returns 0, or -1 with the reason in r->why. */
static inline int jpeg_reader_open(JpegReader *r, const uint8_t *bytes, size_t size) {
    *r = (JpegReader){.bytes = bytes, .size = size};
    r->decompress.err = jpeg_std_error(&r->errors);
    r->decompress.client_data = r;
    r->errors.error_exit = jpeg_reader_error;
    r->errors.emit_message = jpeg_reader_warning;
    r->progress.progress_monitor = jpeg_reader_progress;
    return jpeg_reader_try(r, jpeg_reader_header);
}

/* Decodes the pixels into r->rgb. Returns 0, or -1 with the reason in r->why. As in Pillow, a missing end-of-image
 * marker is no error when all pixels are there. */
static inline int jpeg_reader_decode(JpegReader *r) {
    if (jpeg_reader_try(r, jpeg_reader_pixels) != 0) return -1;
    return jpeg_reader_try(r, jpeg_reader_rest) == 0 || r->cut_off ? 0 : -1;
}

static inline void jpeg_reader_close(JpegReader *r) {
    jpeg_destroy_decompress(&r->decompress);
    free(r->rgb);
    r->rgb = NULL;
}

#endif
