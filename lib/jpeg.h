/* Decodes JPEG files with libjpeg and its defaults (accurate integer DCT, smooth chroma upsampling). Pillow does the
 * same, so the pixels are equal. Beside the image it keeps a few rows; of a file with several scans (progressive)
 * also all coefficients: 3 to 6 bytes a pixel, of CMYK 8.
 *
 * libjpeg reports an error through a callback that must not return; ours jumps back into jpeg_reader_try. All state
 * is in the reader, so several threads can decode at once, each with its own reader. */
#ifndef LIB_JPEG_H
#define LIB_JPEG_H

#include "image_orientation.h"

#include <setjmp.h>
#include <stdio.h>

#if !__has_include(<jpeglib.h>)
#error "the header of libjpeg is missing; scripts/deps.sh build installs it (Debian and Ubuntu: libjpeg-dev)"
#endif
#include <jpeglib.h>

#include <jerror.h>  // its message codes depend on what jpeglib.h defines

/* Each scan costs a pass over all pixels, however short its data are: with these limits 3 seconds at most. A
 * progressive file has about 10 scans. A scan in arithmetic coding, which hardly anyone uses, costs several times as
 * much. */
enum {
    JPEG_MAX_SCANS = 500,
    JPEG_MAX_SCANNED = 2000000000,  // pixels in all scans together: 20 scans of 100 million pixels
    JPEG_MAX_MEMORY = 1 << 30       // bytes of coefficients; enough for 100 million CMYK pixels
};

typedef struct {
    struct jpeg_decompress_struct decompress;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf back;
    const uint8_t *bytes;
    size_t size;
    ImageCanvas canvas;
    bool cut_off;                     // the data ended before the end-of-image marker
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

/* The most scans that a file of this size may have. */
static inline int jpeg_max_scans(const struct jpeg_decompress_struct *d) {
    const int64_t most = d->arith_code ? JPEG_MAX_SCANNED / 8 : JPEG_MAX_SCANNED;
    const int64_t scans = most / ((int64_t)d->image_width * d->image_height);
    return scans < JPEG_MAX_SCANS ? (int)scans : JPEG_MAX_SCANS;
}

/* Progress callback of libjpeg, used to limit the number of scans. */
static inline void jpeg_reader_progress(j_common_ptr common) {
    JpegReader *r = common->client_data;
    const struct jpeg_decompress_struct *d = &r->decompress;
    if (d->input_scan_number > jpeg_max_scans(d))
        jpeg_reader_give_up(r, "its JPEG data have more than %d scans of %u x %u pixels; store it again",
                            jpeg_max_scans(d), d->image_width, d->image_height);
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
}

static inline void jpeg_reader_pixels(JpegReader *r) {
    struct jpeg_decompress_struct *d = &r->decompress;
    const bool cmyk = d->num_components == 4;
    d->out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(d);
    JSAMPROW row = *(*d->mem->alloc_sarray)((j_common_ptr)d, JPOOL_IMAGE, 4 * d->image_width, 1);
    while (d->output_scanline < d->output_height) {
        const int y = (int)d->output_scanline;
        jpeg_read_scanlines(d, &row, 1);
        for (JDIMENSION x = 0; cmyk && x < d->image_width; x++) image_from_cmyk(row + 3 * x, row + 4 * x);
        image_put(&r->canvas, 0, y, 1, row, (int)d->image_width, 3);
    }
}

/* Reads the data after the pixels, up to the end-of-image marker. */
static inline void jpeg_reader_rest(JpegReader *r) { jpeg_finish_decompress(&r->decompress); }

/* The orientation that the segments before the first scan say; less than 1 when they say nothing. */
static inline int jpeg_orientation(const uint8_t *bytes, size_t n) {
    static const char xmp_name[] = "http://ns.adobe.com/xap/1.0/";
    int exif = -1, xmp = -1;
    for (size_t at = 2; at + 4 <= n && bytes[at] == 0xff && bytes[at + 1] != 0xda;) {
        if (bytes[at + 1] == 0xff) {  // a byte that fills
            at++;
            continue;
        }
        const size_t length = (size_t)bytes[at + 2] << 8 | bytes[at + 3];
        if (length < 2 || length > n - at - 2) break;
        const uint8_t *content = bytes + at + 4;
        const size_t left = bytes[at + 1] == 0xe1 ? length - 2 : 0;  // APP1
        if (exif < 0 && left >= 6 && !memcmp(content, "Exif\0\0", 6)) exif = image_exif_orientation(content, left);
        if (xmp < 0 && left >= sizeof xmp_name && !memcmp(content, xmp_name, sizeof xmp_name))
            xmp = image_xmp_orientation(content, left);
        at += 2 + length;
    }
    return exif > 0 ? exif : xmp;
}

/* Decodes a JPEG file of n bytes. As in Pillow, a missing end-of-image marker is no error if all pixels are there. */
static inline int image_decode_jpeg(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                                    Error *err) {
    JpegReader r = {.bytes = bytes, .size = n};
    r.decompress.err = jpeg_std_error(&r.errors);
    r.decompress.client_data = &r;
    r.errors.error_exit = jpeg_reader_error;
    r.errors.emit_message = jpeg_reader_warning;
    r.progress.progress_monitor = jpeg_reader_progress;
    int failed = jpeg_reader_try(&r, jpeg_reader_header), refused = 0;
    const int width = (int)r.decompress.image_width, height = (int)r.decompress.image_height;  // at most 65535
    if (!failed) refused = image_check_size((uint64_t)width, (uint64_t)height, max_pixels, name, err);
    if (!failed && !refused) {
        r.canvas = image_canvas(p, width, height, jpeg_orientation(bytes, n));
        failed = jpeg_reader_try(&r, jpeg_reader_pixels) || (jpeg_reader_try(&r, jpeg_reader_rest) && !r.cut_off);
    }
    if (failed) error_set(err, "cannot read the image %s: %s", name, r.why);
    if (failed) image_free(p);
    jpeg_destroy_decompress(&r.decompress);
    return failed ? -1 : refused;
}

#endif
