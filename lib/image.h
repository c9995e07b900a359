/* Images: decodes PNG and JPEG files, and makes the S x S RGB input of a vision encoder from them.
 *
 * image_decode composites alpha over white and applies the EXIF orientation. image_prepare trims the white border,
 * pads to a square with white, and resizes with a bicubic filter. The pixels equal those of Pillow (Image.open,
 * Image.alpha_composite, ImageChops.difference + crop, ImageOps.pad, Image.resize). */
#ifndef LIB_IMAGE_H
#define LIB_IMAGE_H

#include "error.h"

#include "crc32.h"
#include "file.h"
#include "jpeg.h"

#include <math.h>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_GIF
#define stbi_set_unpremultiply_on_load_thread stbi__unpremultiply_on_load_thread  // stb_image 2.27 misnames it
#define STBI_ASSERT(x) ((void)sizeof(x))
#define STBI_MALLOC(size) calloc(1, size)  // pixels that a damaged file leaves unset are the same in every run
#define STBI_REALLOC(p, size) realloc(p, size)
#define STBI_FREE(p) free(p)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

/* Limits that keep a small file from taking all memory: decoding 100 million pixels takes about 1 GB. */
enum { IMAGE_MAX_SIDE = 20000, IMAGE_MAX_PIXELS = 100000000 };

typedef struct {
    int width, height;
    uint8_t *rgb;  // [height, width, 3]
} Image;

static inline void image_free(Image *p) {
    free(p->rgb);
    memset(p, 0, sizeof *p);
}

/* ---- decoding ---- */

static inline uint32_t image_u32(const uint8_t *p) {  // big-endian
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Verifies the CRC of every chunk of a PNG file. stb_image does not, so a flipped bit would silently change the
 * image. */
static inline int image_check_png(const uint8_t *bytes, size_t n, const char *name, Error *err) {
    for (size_t at = 8; at + 12 <= n;) {
        size_t length = image_u32(bytes + at);
        if (length > n - at - 12) break;
        if (crc32_bytes(0, bytes + at + 4, length + 4) != image_u32(bytes + at + 8 + length))
            return error_set(err, "cannot read the image %s: the PNG chunk at byte %zu is damaged (wrong CRC)", name,
                             at);
        if (!memcmp(bytes + at + 4, "IEND", 4)) return 0;
        at += 12 + length;
    }
    return error_set(err, "cannot read the image %s: the PNG data end before its last chunk; the file is cut off",
                     name);
}

/* An unsigned integer of `size` bytes in a TIFF block, big- or little-endian. */
static inline uint32_t image_tiff_integer(const uint8_t *p, int size, bool big) {
    uint32_t value = 0;
    for (int i = 0; i < size; i++) value |= (uint32_t)p[i] << (8 * (big ? size - 1 - i : i));
    return value;
}

/* The value of the tag Orientation (274) in the first directory of a TIFF block, 1 to 8; 1 when absent or damaged. */
static inline int image_tiff_orientation(const uint8_t *t, size_t n) {
    if (n < 14 || (memcmp(t, "II*\0", 4) && memcmp(t, "MM\0*", 4))) return 1;
    bool big = t[0] == 'M';
    size_t at = image_tiff_integer(t + 4, 4, big);
    if (at > n - 2) return 1;
    uint32_t entries = image_tiff_integer(t + at, 2, big);
    for (at += 2; entries > 0 && at + 12 <= n; entries--, at += 12) {
        if (image_tiff_integer(t + at, 2, big) != 274) continue;
        uint32_t value = image_tiff_integer(t + at + 8, 2, big);
        bool is_short = image_tiff_integer(t + at + 2, 2, big) == 3;
        return is_short && value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

/* The EXIF orientation of a JPEG file, 1 to 8 (EXIF 2.32, section 4.6.4); 1, upright, when the file has none. */
static inline int image_orientation(const uint8_t *bytes, size_t n) {
    for (size_t at = 2; at + 4 <= n && bytes[at] == 0xff && bytes[at + 1] != 0xda;) {
        size_t length = (size_t)bytes[at + 2] << 8 | bytes[at + 3];
        if (length < 2 || length > n - at - 2) break;
        if (bytes[at + 1] == 0xe1 && length >= 8 && !memcmp(bytes + at + 4, "Exif\0\0", 6))
            return image_tiff_orientation(bytes + at + 10, length - 8);
        at += 2 + length;
    }
    return 1;
}

/* Transforms an image with the given EXIF orientation into upright position: orientations 5 to 8 swap the axes, and
 * each axis may be flipped. */
static inline void image_orient(Image *p, int orientation) {
    if (orientation <= 1 || orientation > 8) return;
    bool swap = orientation >= 5;
    bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    int width = swap ? p->height : p->width, height = swap ? p->width : p->height;
    uint8_t *out = xmalloc(3 * (size_t)width * height);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            int from_x = swap ? y : x, from_y = swap ? x : y;
            if (flip_x) from_x = p->width - 1 - from_x;
            if (flip_y) from_y = p->height - 1 - from_y;
            memcpy(out + 3 * ((size_t)y * width + x), p->rgb + 3 * ((size_t)from_y * p->width + from_x), 3);
        }
    free(p->rgb);
    *p = (Image){width, height, out};
}

/* Composites RGBA pixels over white and packs them as RGB, in place. The integer arithmetic is that of Pillow's
 * alpha_composite on an opaque background: 7 extra bits while blending, and a division by 255 made of shifts. */
static inline void image_composite_white(uint8_t *p, size_t pixels) {
    for (size_t i = 0; i < pixels; i++) {
        uint32_t alpha = p[4 * i + 3];
        for (int c = 0; c < 3; c++) {
            uint32_t t = (p[4 * i + c] * alpha + 255 * (255 - alpha) + 128) << 7;
            p[3 * i + c] = (uint8_t)((((t >> 8) + t) >> 8) >> 7);
        }
    }
}

/* Checks the size in the header of an image file against the limits, before anything of that size is allocated. */
static inline int image_check_size(uint32_t width, uint32_t height, const char *name, Error *err) {
    if (width <= IMAGE_MAX_SIDE && height <= IMAGE_MAX_SIDE && (uint64_t)width * height <= IMAGE_MAX_PIXELS) return 0;
    return error_set(err,
                     "cannot read the image %s: it has %u x %u pixels; at most %d a side and %d million in all are "
                     "supported; make it smaller",
                     name, width, height, IMAGE_MAX_SIDE, IMAGE_MAX_PIXELS / 1000000);
}

/* Reads the size from the header itself, because stb_image calls an image above its own limit an unknown type. */
static inline int image_decode_png(Image *p, const uint8_t *bytes, size_t n, const char *name, Error *err) {
    int channels;
    const bool header = n >= 33 && n <= INT32_MAX && !memcmp(bytes + 12, "IHDR", 4);
    const uint32_t width = header ? image_u32(bytes + 16) : 0, height = header ? image_u32(bytes + 20) : 0;
    if (width < 1 || width > INT32_MAX || height < 1 || height > INT32_MAX)
        return error_set(err, "cannot read the image %s: its PNG header is damaged", name);
    if (image_check_size(width, height, name, err) != 0) return -1;
    if (image_check_png(bytes, n, name, err) != 0) return -1;
    p->rgb = stbi_load_from_memory(bytes, (int)n, &p->width, &p->height, &channels, 4);
    if (!p->rgb)
        return error_set(err, "cannot read the image %s: its PNG data are damaged (%s)", name, stbi_failure_reason());
    image_composite_white(p->rgb, (size_t)p->width * p->height);
    return 0;
}

static inline int image_decode_jpeg(Image *p, const uint8_t *bytes, size_t n, const char *name, Error *err) {
    JpegReader r;
    int status = 0;
    if (jpeg_reader_open(&r, bytes, n) != 0) status = error_set(err, "cannot read the image %s: %s", name, r.why);
    if (status == 0) status = image_check_size((uint32_t)r.width, (uint32_t)r.height, name, err);
    if (status == 0 && jpeg_reader_decode(&r) != 0)
        status = error_set(err, "cannot read the image %s: %s", name, r.why);
    if (status == 0) {
        *p = (Image){r.width, r.height, r.rgb};
        r.rgb = NULL;
        image_orient(p, image_orientation(bytes, n));
    }
    jpeg_reader_close(&r);
    return status;
}

/* Decodes the n bytes of a PNG or JPEG file; `name` identifies the image in error messages. Free with image_free. */
static inline int image_decode(Image *p, const uint8_t *bytes, size_t n, const char *name, Error *err) {
    memset(p, 0, sizeof *p);
    if (n >= 8 && !memcmp(bytes, "\x89PNG\r\n\x1a\n", 8)) return image_decode_png(p, bytes, n, name, err);
    if (n >= 4 && !memcmp(bytes, "\xff\xd8\xff", 3)) return image_decode_jpeg(p, bytes, n, name, err);
    return error_set(err, "cannot read the image %s: it is neither PNG nor JPEG", name);
}

/* Decodes a PNG or JPEG file. */
static inline int image_load(Image *p, const char *path, Error *err) {
    MappedFile f;
    memset(p, 0, sizeof *p);
    if (file_map(&f, path, err) != 0) return -1;
    int status = image_decode(p, f.data, f.size, path, err);
    file_unmap(&f);
    return status;
}

/* ---- trimming ---- */

typedef struct {
    int x, y, width, height;
} ImageBox;

static inline bool image_row_white(const uint8_t *row, size_t bytes) {
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64) {  // blocks of a fixed size, so that the compiler vectorizes
        uint8_t all = 0xff;
        for (int k = 0; k < 64; k++) all &= row[i + k];
        if (all != 0xff) return false;
    }
    for (; i < bytes; i++)
        if (row[i] != 0xff) return false;
    return true;
}

/* The bounding box of all pixels that are not exactly white; the whole image when all are white. */
static inline ImageBox image_trim(const Image *p) {
    const size_t stride = 3 * (size_t)p->width;
    ImageBox whole = {0, 0, p->width, p->height}, box;
    int top = 0, bottom = p->height;
    while (top < bottom && image_row_white(p->rgb + top * stride, stride)) top++;
    if (top == bottom) return whole;
    while (image_row_white(p->rgb + (bottom - 1) * stride, stride)) bottom--;
    size_t left = stride, right = 0;  // in bytes; each row searches only outside the box of the rows before it
    for (int y = top; y < bottom; y++) {
        const uint8_t *row = p->rgb + y * stride;
        for (size_t i = 0; i < left; i++)
            if (row[i] != 0xff) left = i;
        for (size_t i = stride; i > right; i--)
            if (row[i - 1] != 0xff) right = i;
    }
    box.x = (int)(left / 3);
    box.y = top;
    box.width = (int)((right + 2) / 3) - box.x;
    box.height = bottom - top;
    return box;
}

/* ---- resizing ---- */

/* A product that the compiler cannot contract with an addition to an FMA: Pillow rounds after each operation. */
static inline double image_product(double a, double b) {
    volatile double product = a * b;
    return product;
}

/* The cubic convolution kernel with a = -0.5 (Keys, "Cubic Convolution Interpolation for Digital Image Processing",
 * 1981). */
static inline double image_bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return image_product(image_product(image_product(a + 2, x) - (a + 3), x), x) + 1;
    if (x < 2) return image_product(image_product(image_product(x - 5, x) + 8, x) - 4, a);
    return 0;
}

enum { IMAGE_WEIGHT_BITS = 32 - 8 - 2 };  // fraction bits of the fixed-point weights: the sums stay below 2^31

/* The taps of a one-dimensional resampling filter: output o is the sum of weight[o, i] * input[first[o] + i] over
 * i < count[o]. */
typedef struct {
    int *first, *count, max_taps;
    int32_t *weight;  // [out, max_taps]
} ImageTaps;

static inline void image_taps_free(ImageTaps *t) {
    free(t->first);
    free(t->count);
    free(t->weight);
}

/* The taps that resize `in` samples to `out` samples. When the size is reduced, the kernel is stretched by the same
 * factor, which antialiases. */
static inline ImageTaps image_taps(int in, int out) {
    const double scale = (double)in / out, stretch = scale < 1 ? 1 : scale, support = 2 * stretch;
    const double shrink = 1.0 / stretch;
    const int max_taps = (int)ceil(support) * 2 + 1;
    ImageTaps t = {.first = xcalloc(out, sizeof *t.first),
                   .count = xcalloc(out, sizeof *t.count),
                   .max_taps = max_taps,
                   .weight = xcalloc((size_t)out * max_taps, sizeof *t.weight)};
    double *w = xcalloc(t.max_taps, sizeof *w);
    for (int o = 0; o < out; o++) {
        double centre = image_product(o + 0.5, scale), sum = 0;
        int first = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
        if (first < 0) first = 0;
        if (end > in) end = in;
        for (int i = 0; i < end - first; i++) {
            w[i] = image_bicubic(image_product(i + first - centre + 0.5, shrink));
            sum += w[i];
        }
        t.first[o] = first;
        t.count[o] = end - first;
        for (int i = 0; i < end - first; i++) {
            double fixed = (sum != 0 ? w[i] / sum : w[i]) * (1 << IMAGE_WEIGHT_BITS);
            t.weight[(size_t)o * max_taps + i] = (int32_t)(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
        }
    }
    free(w);
    return t;
}

/* One output of a pass over an image that is padded with white: the weighted sum of the taps on the image, starting
 * from `bias`, which holds the sum of the taps on the padding and the rounding term. So the padded image is never
 * built. */
typedef struct {
    int first, count;  // first: index of the first tap on the image, counted from the image's first sample
    const int32_t *weight;
    int32_t bias;
} ImageOutput;

/* The taps of output o where the image occupies samples begin..end-1 and the rest is white. */
static inline ImageOutput image_output(const ImageTaps *t, int o, int begin, int end) {
    const int32_t *weight = t->weight + (size_t)o * t->max_taps;
    ImageOutput s = {0, 0, weight, 1 << (IMAGE_WEIGHT_BITS - 1)};
    int last = -1;
    for (int i = 0; i < t->count[o]; i++) {
        int at = t->first[o] + i;
        if (at < begin || at >= end) {
            s.bias += 255 * weight[i];
            continue;
        }
        if (last < 0) {
            s.first = at - begin;
            s.weight = weight + i;
        }
        last = at - begin;
    }
    if (last >= 0) s.count = last - s.first + 1;
    return s;
}

enum { IMAGE_LANES = 96 };  // values that share a weight and are summed together: 32 RGB pixels

/* out[k] = clip(bias + sum over i of weight[i] * in[(first + i) * stride + k]) for k < IMAGE_LANES. */
static inline void image_weighted_sum(uint8_t *__restrict__ out, const uint8_t *__restrict__ in, size_t stride,
                                      ImageOutput s) {
    int32_t sum[IMAGE_LANES];
    for (int k = 0; k < IMAGE_LANES; k++) sum[k] = s.bias;
    in += s.first * stride;
    for (int i = 0; i < s.count; i++, in += stride) {
        const int32_t w = s.weight[i];
        for (int k = 0; k < IMAGE_LANES; k++) sum[k] += w * in[k];
    }
    for (int k = 0; k < IMAGE_LANES; k++) {
        int32_t x = sum[k] >> IMAGE_WEIGHT_BITS;
        out[k] = (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x);
    }
}

/* The horizontal pass: resizes the rows of `box`, which begin at column `left` of the white square, to `size` pixels.
 * out: [box.height, size, 3]. It transposes 32 rows at a time, so that the pixels of a column are contiguous and one
 * weight applies to 96 values in memory. */
static inline void image_resize_horizontal(uint8_t *out, const Image *p, ImageBox box, const ImageTaps *t, int left,
                                           int size) {
    const int rows = IMAGE_LANES / 3;
    uint8_t *transposed = xcalloc(box.width, IMAGE_LANES), column[IMAGE_LANES];
    for (int y0 = 0; y0 < box.height; y0 += rows) {
        int n = box.height - y0 < rows ? box.height - y0 : rows;
        for (int y = 0; y < n; y++) {
            const uint8_t *from = p->rgb + 3 * ((size_t)(box.y + y0 + y) * p->width + box.x);
            uint8_t *to = transposed + 3 * y;
            for (int x = 0; x < box.width; x++, from += 3, to += IMAGE_LANES) {
                to[0] = from[0];
                to[1] = from[1];
                to[2] = from[2];
            }
        }
        for (int o = 0; o < size; o++) {
            image_weighted_sum(column, transposed, IMAGE_LANES, image_output(t, o, left, left + box.width));
            for (int y = 0; y < n; y++) memcpy(out + 3 * ((size_t)(y0 + y) * size + o), column + 3 * y, 3);
        }
    }
    free(transposed);
}

/* Makes the input of a vision encoder: trims the image, centres it in a white square and resizes that to `size`
 * pixels. out: [size, size, 3]. As in Pillow, the horizontal pass comes first and is rounded to 8 bits, then the
 * vertical pass. As in ImageOps.pad, the offset of the centred image is rounded half to even. */
static inline void image_prepare(uint8_t *out, const Image *p, int size) {
    const ImageBox box = image_trim(p);
    const int side = box.width > box.height ? box.width : box.height;
    const int left = (int)nearbyint((side - box.width) * 0.5), top = (int)nearbyint((side - box.height) * 0.5);
    const size_t stride = 3 * (size_t)size;
    const size_t slack = IMAGE_LANES;  // the last group of lanes of a row may read and write beyond its end
    ImageTaps taps = image_taps(side, size);
    uint8_t *rows = xcalloc(box.height * stride + slack, 1);
    uint8_t *line = xmalloc(stride + slack);
    image_resize_horizontal(rows, p, box, &taps, left, size);
    for (int o = 0; o < size; o++) {
        ImageOutput s = image_output(&taps, o, top, top + box.height);
        for (size_t k = 0; k < stride; k += IMAGE_LANES) image_weighted_sum(line + k, rows + k, stride, s);
        memcpy(out + o * stride, line, stride);
    }
    free(line);
    free(rows);
    image_taps_free(&taps);
}

#endif
