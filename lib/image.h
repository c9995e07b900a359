/* Reads image files: finds out what kind a file is, and calls its decoder. PNG, JPEG and BMP are always read; WebP,
 * GIF and TIFF where their libraries were there when the program was built.
 *
 * Alpha is laid over white, and the orientation that the file records is applied. The pixels equal those of Pillow
 * (Image.open, ImageOps.exif_transpose, Image.alpha_composite). lib/image_prepare.h makes a model's input. */
#ifndef LIB_IMAGE_H
#define LIB_IMAGE_H

#include "error.h"

#include "bmp.h"
#include "file.h"
#include "gif.h"
#include "jpeg.h"
#include "png.h"
#include "tiff.h"
#include "webp.h"

typedef int (*ImageDecoder)(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                            Error *err);

/* The decoder for the first bytes of a file; NULL: none. */
static inline ImageDecoder image_decoder(const uint8_t *bytes, size_t n) {
    static const struct {
        const char *begin;
        size_t length;
        ImageDecoder decode;
    } kinds[] = {{"\x89PNG\r\n\x1a\n", 8, image_decode_png},
                 {"\xff\xd8\xff", 3, image_decode_jpeg},
                 {"GIF87a", 6, image_decode_gif},
                 {"GIF89a", 6, image_decode_gif},
                 {"II*\0", 4, image_decode_tiff},
                 {"MM\0*", 4, image_decode_tiff},
                 {"II+\0", 4, image_decode_tiff},
                 {"MM\0+", 4, image_decode_tiff},
                 {"BM", 2, image_decode_bmp}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (n >= kinds[i].length && !memcmp(bytes, kinds[i].begin, kinds[i].length)) return kinds[i].decode;
    return n >= 16 && !memcmp(bytes, "RIFF", 4) && !memcmp(bytes + 8, "WEBP", 4) ? image_decode_webp : NULL;
}

/* Refuses a file that no decoder here reads, and says what it is and how to convert it if that is known. */
static inline int image_refuse(const uint8_t *bytes, size_t n, const char *name, Error *err) {
    static const struct {
        const char *begin;
        size_t at;  // of `begin` in the file; SIZE_MAX: anywhere in the first 1000 bytes
        const char *what;
    } kinds[] = {
        {"version https://git-lfs.", 0, "it is a Git LFS pointer, not the image; run git lfs pull"},
        {"%PDF-", 0, "it is PDF; make an image of its first page with pdftoppm -r 150 -png -singlefile IN.pdf OUT"},
        {"%!PS", 0,
         "it is PostScript; make an image of it with gs -q -dSAFER -r150 -sDEVICE=png16m -o OUT.png IN.ps"},
        {"ftypavif", 4, "it is AVIF; convert it with heif-convert IN.avif OUT.png"},
        {"ftypavis", 4, "it is AVIF; convert it with heif-convert IN.avif OUT.png"},
        {"ftyphe", 4, "it is HEIC; convert it with heif-convert IN.heic OUT.png"},
        {"ftypmif1", 4, "it is HEIF; convert it with heif-convert IN.heic OUT.png"},
        {"ftypmsf1", 4, "it is HEIF; convert it with heif-convert IN.heic OUT.png"},
        {"<svg", SIZE_MAX, "it is SVG; make an image of it with rsvg-convert -w 800 IN.svg -o OUT.png"},
        {"\x1f\x8b", 0, "it is compressed; if it is SVG, use rsvg-convert -w 800 IN.svgz -o OUT.png"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const size_t length = strlen(kinds[i].begin), at = kinds[i].at;
        const bool same = at == SIZE_MAX ? memmem(bytes, n < 1000 ? n : 1000, kinds[i].begin, length) != NULL
                                         : n >= at + length && !memcmp(bytes + at, kinds[i].begin, length);
        if (same) return error_set(err, "cannot read the image %s: %s", name, kinds[i].what);
    }
    return error_set(err, "cannot read the image %s: it is neither PNG, JPEG, WebP, GIF, BMP nor TIFF", name);
}

/* Decodes the n bytes of an image file of at most max_pixels pixels, which is no more than IMAGE_MAX_PIXELS; `name` identifies
 * the image in error messages. Returns 0 (free with image_free), or with *err filled -1, or IMAGE_TOO_LARGE. */
static inline int image_decode_limited(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels,
                                       const char *name, Error *err) {
    memset(p, 0, sizeof *p);
    ImageDecoder decode = image_decoder(bytes, n);
    return decode ? decode(p, bytes, n, max_pixels, name, err) : image_refuse(bytes, n, name, err);
}

/* The same with the largest image that there may be. */
static inline int image_decode(Image *p, const uint8_t *bytes, size_t n, const char *name, Error *err) {
    return image_decode_limited(p, bytes, n, IMAGE_MAX_PIXELS, name, err);
}

/* Decodes an image file. */
static inline int image_load(Image *p, const char *path, Error *err) {
    MappedFile f;
    memset(p, 0, sizeof *p);
    if (file_map(&f, path, err) != 0) return -1;
    int status = image_decode(p, f.data, f.size, path, err);
    file_unmap(&f);
    return status;
}

#endif
