/* Decodes PNG files with libpng, row by row: beside the image it keeps a few rows. libpng's progressive reader is
 * used, because the other one inflates what follows the last row, however much that is. The checksum of every chunk
 * is verified first, because libpng leaves out a damaged tRNS chunk, which would silently change the image. */
#ifndef LIB_PNG_H
#define LIB_PNG_H

#include "crc32.h"
#include "image_orientation.h"

#include <setjmp.h>

#if !__has_include(<png.h>)
#error "the header of libpng is missing; scripts/deps.sh build installs it (Debian and Ubuntu: libpng-dev)"
#endif
#include <png.h>
#include <zlib.h>

enum { PNG_MAX_TEXT = 1 << 20 };  // bytes of a text that may hold the orientation, when inflated

/* ---- orientation ---- */

/* What the first chunk of each kind says of the orientation; 0: nothing, -1: there is no such chunk. */
typedef struct {
    int exif, raw_profile, xmp;
} PngOrientation;

/* The orientation in an EXIF block that is written as text: a line break, "exif", its length, and hexadecimal digits
 * (ImageMagick's "Raw profile type exif"). */
static inline int png_raw_profile(const uint8_t *text, size_t n) {
    size_t at = 0, size = 0;
    for (int lines = 0; lines < 3 && at < n; at++) lines += text[at] == '\n';
    uint8_t *exif = xmalloc(n);
    int digits = 0;
    for (; at < n; at++) {
        static const char hex[] = "0123456789abcdef";
        const char *digit = text[at] ? strchr(hex, text[at] | 0x20) : NULL;
        if (text[at] == '\n' || text[at] == ' ' || text[at] == '\r') continue;
        if (!digit) break;
        exif[size] = (uint8_t)(exif[size] << 4 | (digit - hex));
        size += digits++ & 1;
    }
    int value = at == n ? image_exif_orientation(exif, size) : 0;
    free(exif);
    return value;
}

/* Notes what a text chunk says: its keyword is `key`, its text n bytes, deflated or not. */
static inline void png_note_text(PngOrientation *o, const char *key, const uint8_t *text, size_t n, bool deflated) {
    const bool raw = !strcmp(key, "Raw profile type exif");
    if (!raw && strcmp(key, "XML:com.adobe.xmp")) return;
    if ((raw ? o->raw_profile : o->xmp) >= 0) return;
    uint8_t *inflated = NULL;
    if (deflated) {
        uLongf size = PNG_MAX_TEXT;
        inflated = xmalloc(size);
        if (n > UINT32_MAX || uncompress(inflated, &size, text, (uLong)n) != Z_OK) size = 0;
        text = inflated;
        n = size;
    }
    if (raw)
        o->raw_profile = png_raw_profile(text, n);
    else
        o->xmp = image_xmp_orientation(text, n);
    free(inflated);
}

/* Notes what a chunk of n bytes says of the orientation: eXIf, tEXt, zTXt or iTXt (ISO/IEC 15948, 11.3.4). */
static inline void png_note_chunk(PngOrientation *o, const uint8_t *type, const uint8_t *data, size_t n) {
    char key[80];
    if (!memcmp(type, "eXIf", 4) && o->exif < 0) o->exif = image_exif_orientation(data, n);
    const bool plain = !memcmp(type, "tEXt", 4), packed = !memcmp(type, "zTXt", 4);
    if (!plain && !packed && memcmp(type, "iTXt", 4)) return;
    const size_t length = strnlen((const char *)data, n);
    if (length == n || length >= sizeof key) return;
    memcpy(key, data, length + 1);
    const uint8_t *text = data + length + 1;
    size_t left = n - length - 1;
    if (plain) png_note_text(o, key, text, left, false);
    if (packed && left > 1 && text[0] == 0) png_note_text(o, key, text + 1, left - 1, true);
    if (plain || packed || left < 2 || text[0] > 1 || text[1] != 0) return;
    const bool deflated = text[0] == 1;
    text += 2;
    left -= 2;
    for (int skipped = 0; skipped < 2; skipped++) {  // the language, and the keyword in that language
        const size_t part = strnlen((const char *)text, left);
        if (part == left) return;
        text += part + 1;
        left -= part + 1;
    }
    png_note_text(o, key, text, left, deflated);
}

/* Verifies the checksum of every chunk up to the last one, IEND, and finds the orientation: less than 1 when no chunk
 * says it. */
static inline int png_check_chunks(const uint8_t *bytes, size_t n, int *orientation, const char *name, Error *err) {
    PngOrientation o = {-1, -1, -1};
    for (size_t at = 8; at + 12 <= n;) {
        size_t length = image_u32(bytes + at);
        if (length > n - at - 12) break;
        if (crc32_bytes(0, bytes + at + 4, length + 4) != image_u32(bytes + at + 8 + length))
            return error_set(err, "cannot read the image %s: the PNG chunk at byte %zu is damaged (wrong CRC)", name,
                             at);
        png_note_chunk(&o, bytes + at + 4, bytes + at + 8, length);
        *orientation = o.exif > 0 ? o.exif : o.raw_profile > 0 ? o.raw_profile : o.xmp;
        if (!memcmp(bytes + at + 4, "IEND", 4)) return 0;
        at += 12 + length;
    }
    return error_set(err, "cannot read the image %s: the PNG data end before its last chunk; the file is cut off",
                     name);
}

/* ---- pixels ---- */

typedef struct {
    jmp_buf back;  // libpng reports an error through a callback that must not return
    const uint8_t *bytes;
    size_t size;
    png_structp png;
    png_infop info;
    Image *image;
    ImageCanvas canvas;
    int orientation, channels;
    bool interlaced;
    int64_t rows;  // still to come
    char why[128];
} PngReader;

__attribute__((noreturn)) static inline void png_reader_error(png_structp png, png_const_charp why) {
    PngReader *r = png_get_error_ptr(png);
    snprintf(r->why, sizeof r->why, "%s", why);
    longjmp(r->back, 1);
}

/* libpng goes on after a warning; if rows are missing in the end, it says why. */
static inline void png_reader_warning(png_structp png, png_const_charp why) {
    PngReader *r = png_get_error_ptr(png);
    snprintf(r->why, sizeof r->why, "%s", why);
}

/* Called before the pixels: sets them to become 8-bit RGB, or RGBA where the file has transparency. Of 16 bits the
 * upper 8 are kept. An interlaced file has seven passes, each of which is a small image (ISO/IEC 15948, 8.2). */
static inline void png_reader_header(png_structp png, png_infop info) {
    PngReader *r = png_get_progressive_ptr(png);
    const int width = (int)png_get_image_width(png, info), height = (int)png_get_image_height(png, info);
    png_set_expand(png);
    png_set_strip_16(png);
    png_set_gray_to_rgb(png);
    r->interlaced = png_get_interlace_type(png, info) != PNG_INTERLACE_NONE;
    png_read_update_info(png, info);
    r->channels = png_get_channels(png, info);
    r->rows = r->interlaced ? 0 : height;
    for (int pass = 0; r->interlaced && pass < 7; pass++)
        if (PNG_PASS_COLS(width, pass) > 0) r->rows += PNG_PASS_ROWS(height, pass);
    r->canvas = image_canvas(r->image, width, height, r->orientation);
}

static inline void png_reader_row(png_structp png, png_bytep row, png_uint_32 y, int pass) {
    PngReader *r = png_get_progressive_ptr(png);
    const int width = r->canvas.width, columns = r->interlaced ? (int)PNG_PASS_COLS(width, pass) : width;
    if (!row || r->rows == 0) return;
    r->rows--;
    if (r->interlaced)
        image_put(&r->canvas, PNG_PASS_START_COL(pass), (int)PNG_ROW_FROM_PASS_ROW(y, pass),
                  1 << PNG_PASS_COL_SHIFT(pass), row, columns, r->channels);
    else
        image_put(&r->canvas, 0, (int)y, 1, row, columns, r->channels);
}

static inline void png_reader_run(PngReader *r) {
    png_set_crc_action(r->png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);       // png_check_chunks has done it
    png_set_keep_unknown_chunks(r->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);  // colour profiles, texts, ...
    png_set_user_limits(r->png, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE);
    png_set_progressive_read_fn(r->png, r, png_reader_header, png_reader_row, NULL);
    png_process_data(r->png, r->info, (png_bytep)r->bytes, r->size);
    if (r->rows == 0 && r->image->rgb) return;
    snprintf(r->why + strlen(r->why), sizeof r->why - strlen(r->why), "%srows are missing", r->why[0] ? "; " : "");
    longjmp(r->back, 1);
}

/* Runs the reader; returns -1 when it gave up, with the reason in r->why. This is the only setjmp: no local variable
 * changes after it, and what is allocated meanwhile is in the reader. */
static inline int png_reader_try(PngReader *r) {
    if (setjmp(r->back)) return -1;
    png_reader_run(r);
    return 0;
}

/* Decodes a PNG file of n bytes. */
static inline int image_decode_png(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                                   Error *err) {
    int orientation = 1;
    if (n < 33 || memcmp(bytes + 12, "IHDR", 4))
        return error_set(err, "cannot read the image %s: its PNG header is damaged", name);
    const uint32_t width = image_u32(bytes + 16), height = image_u32(bytes + 20);
    const int refused = image_check_size(width, height, max_pixels, name, err);
    if (refused) return refused;
    if (png_check_chunks(bytes, n, &orientation, name, err) != 0) return -1;
    PngReader r = {.bytes = bytes, .size = n, .image = p, .orientation = orientation};
    r.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &r, png_reader_error, png_reader_warning);
    if (r.png) r.info = png_create_info_struct(r.png);
    if (!r.info) die("out of memory, or the installed libpng differs from the one this program was built with");
    const int status = png_reader_try(&r);
    if (status != 0) {
        error_set(err, "cannot read the image %s: its PNG data are damaged (%s)", name, r.why);
        image_free(p);
    }
    png_destroy_read_struct(&r.png, &r.info, NULL);
    return status;
}

#endif
