/* Images: PNG and JPEG in, the S x S RGB bytes a vision encoder looks at out.
 *
 * image_decode: alpha over white, EXIF orientation applied. image_prepare: trim the white border, pad to a square
 * with white, resize with Pillow's bicubic. The pixels equal those of Pillow (Image.open, Image.alpha_composite,
 * ImageChops.difference + crop, ImageOps.pad, Image.resize). */
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
#define stbi_set_unpremultiply_on_load_thread stbi__unpremultiply_on_load_thread  // version 2.27 defines it so
#define STBI_ASSERT(x) ((void)sizeof(x))
#define STBI_MALLOC(size) calloc(1, size)  // what a damaged file leaves unset is the same every time
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

/* Limits that keep a small file from asking for all memory: decoding 100 million pixels takes about 1 GB. */
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

/* The decoder does not look at the checksums of a PNG; a flipped bit would silently give another image. */
static inline int image_check_png(const uint8_t *bytes, size_t n, const char *name, Error *err) {
    for (size_t at = 8; at + 12 <= n;) {
        size_t length = image_u32(bytes + at);
        if (length > n - at - 12) break;
        if (crc32_bytes(0, bytes + at + 4, length + 4) != image_u32(bytes + at + 8 + length))
            return error_set(err, "cannot read the image %s: the PNG chunk at byte %zu is damaged (wrong CRC)",
                             name, at);
        if (!memcmp(bytes + at + 4, "IEND", 4)) return 0;
        at += 12 + length;
    }
    return error_set(err, "cannot read the image %s: the PNG data end before its last chunk; the file is cut off",
                     name);
}

static inline uint32_t image_tiff(const uint8_t *p, int size, bool big) {
    uint32_t value = 0;
    for (int i = 0; i < size; i++) value |= (uint32_t)p[i] << (8 * (big ? size - 1 - i : i));
    return value;
}

/* The tag Orientation (274) in the first directory of a TIFF block; 1 when absent or damaged. */
static inline int image_tiff_orientation(const uint8_t *t, size_t n) {
    if (n < 14 || (memcmp(t, "II*\0", 4) && memcmp(t, "MM\0*", 4))) return 1;
    bool big = t[0] == 'M';
    size_t at = image_tiff(t + 4, 4, big);
    if (at > n - 2) return 1;
    uint32_t entries = image_tiff(t + at, 2, big);
    for (at += 2; entries > 0 && at + 12 <= n; entries--, at += 12) {
        if (image_tiff(t + at, 2, big) != 274) continue;
        uint32_t value = image_tiff(t + at + 8, 2, big);
        bool is_short = image_tiff(t + at + 2, 2, big) == 3;
        return is_short && value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

/* How a camera says the image must be turned (EXIF 2.32, 4.6.4): 1 is upright. */
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

static inline void image_turn(Image *p, int orientation) {
    if (orientation <= 1 || orientation > 8) return;
    bool swap = orientation >= 5;
    bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    int width = swap ? p->height : p->width, height = swap ? p->width : p->height;
    uint8_t *out = (uint8_t *)xmalloc((size_t)width * (size_t)height * 3);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            int from_x = swap ? y : x, from_y = swap ? x : y;
            if (flip_x) from_x = p->width - 1 - from_x;
            if (flip_y) from_y = p->height - 1 - from_y;
            memcpy(out + ((size_t)y * (size_t)width + (size_t)x) * 3,
                   p->rgb + ((size_t)from_y * (size_t)p->width + (size_t)from_x) * 3, 3);
        }
    free(p->rgb);
    p->rgb = out;
    p->width = width;
    p->height = height;
}

/* RGBA to RGB over white, in place, with the integer arithmetic of Pillow's alpha_composite for an opaque ground:
 * seven more bits while blending, and a division by 255 made of shifts. */
static inline void image_over_white(uint8_t *p, size_t pixels) {
    for (size_t i = 0; i < pixels; i++) {
        uint32_t alpha = p[4 * i + 3];
        for (int c = 0; c < 3; c++) {
            uint32_t t = (p[4 * i + (size_t)c] * alpha + 255 * (255 - alpha) + 128) << 7;
            p[3 * i + (size_t)c] = (uint8_t)((((t >> 8) + t) >> 8) >> 7);
        }
    }
}

/* The limits hold for what the header says, before anything of that size is allocated. */
static inline int image_check_size(uint32_t width, uint32_t height, const char *name, Error *err) {
    if (width <= IMAGE_MAX_SIDE && height <= IMAGE_MAX_SIDE && (uint64_t)width * height <= IMAGE_MAX_PIXELS)
        return 0;
    return error_set(err,
                     "cannot read the image %s: it has %u x %u pixels; at most %d a side and %d million in all are "
                     "supported; make it smaller",
                     name, width, height, IMAGE_MAX_SIDE, IMAGE_MAX_PIXELS / 1000000);
}

/* The header is read here, because the decoder has a limit of its own and calls what is above it an unknown type. */
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
        return error_set(err, "cannot read the image %s: its PNG data are damaged (%s)", name,
                         stbi_failure_reason());
    image_over_white(p->rgb, (size_t)p->width * (size_t)p->height);
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
        p->width = r.width;
        p->height = r.height;
        p->rgb = r.rgb;
        r.rgb = NULL;
        image_turn(p, image_orientation(bytes, n));
    }
    jpeg_reader_close(&r);
    return status;
}

/* Decodes the n bytes of a PNG or JPEG file; `name` says in messages which image it is. */
static inline int image_decode(Image *p, const uint8_t *bytes, size_t n, const char *name, Error *err) {
    memset(p, 0, sizeof *p);
    if (n >= 8 && !memcmp(bytes, "\x89PNG\r\n\x1a\n", 8)) return image_decode_png(p, bytes, n, name, err);
    if (n >= 4 && !memcmp(bytes, "\xff\xd8\xff", 3)) return image_decode_jpeg(p, bytes, n, name, err);
    return error_set(err, "cannot read the image %s: it is neither PNG nor JPEG", name);
}

static inline int image_load(Image *p, const char *path, Error *err) {
    MappedFile f;
    memset(p, 0, sizeof *p);
    if (file_map(&f, path, err) != 0) return -1;
    int status = image_decode(p, f.data, f.size, path, err);
    file_unmap(&f);
    return status;
}

/* ---- preparing ---- */

typedef struct {
    int x, y, width, height;
} ImageBox;

static inline bool image_row_white(const uint8_t *row, size_t bytes) {
    size_t i = 0;
    for (; i + 64 <= bytes; i += 64) {  // blocks of fixed size become vector code
        uint8_t all = 0xff;
        for (int k = 0; k < 64; k++) all &= row[i + (size_t)k];
        if (all != 0xff) return false;
    }
    for (; i < bytes; i++)
        if (row[i] != 0xff) return false;
    return true;
}

/* The smallest box with every pixel that is not exactly white; the whole image when all are white. */
static inline ImageBox image_trim(const Image *p) {
    const size_t stride = (size_t)p->width * 3;
    ImageBox whole = {0, 0, p->width, p->height}, box;
    int top = 0, bottom = p->height;
    while (top < bottom && image_row_white(p->rgb + (size_t)top * stride, stride)) top++;
    if (top == bottom) return whole;
    while (image_row_white(p->rgb + (size_t)(bottom - 1) * stride, stride)) bottom--;
    size_t left = stride, right = 0;  // in bytes; each row only looks beyond what the rows before it found
    for (int y = top; y < bottom; y++) {
        const uint8_t *row = p->rgb + (size_t)y * stride;
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

/* A product that the compiler may not fuse with an addition: Pillow's coefficients are rounded after each step. */
static inline double image_product(double a, double b) {
    volatile double product = a * b;
    return product;
}

/* Keys' cubic convolution kernel with a = -0.5 ("Cubic Convolution Interpolation for Digital Image Processing", 1981)
 */
static inline double image_bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return image_product(image_product(image_product(a + 2, x) - (a + 3), x), x) + 1;
    if (x < 2) return image_product(image_product(image_product(x - 5, x) + 8, x) - 4, a);
    return 0;
}

enum { IMAGE_BITS = 32 - 8 - 2 };  // of the fixed-point weights: a sum of 8-bit values stays below 2^31

/* For every output position: the first input position, how many, and their weights ([out][width]). */
typedef struct {
    int *first, *count, width;
    int32_t *weight;
} ImageTaps;

static inline void image_taps_free(ImageTaps *t) {
    free(t->first);
    free(t->count);
    free(t->weight);
}

/* Weights of `in` samples for `out` samples, antialiased: when reducing, the kernel is as much wider. */
static inline ImageTaps image_taps(int in, int out) {
    const double scale = (double)in / out, stretch = scale < 1 ? 1 : scale, support = 2 * stretch;
    const double shrink = 1.0 / stretch;
    ImageTaps t;
    t.width = (int)ceil(support) * 2 + 1;
    t.first = (int *)xcalloc((size_t)out, sizeof *t.first);
    t.count = (int *)xcalloc((size_t)out, sizeof *t.count);
    t.weight = (int32_t *)xcalloc((size_t)out * (size_t)t.width, sizeof *t.weight);
    double *w = (double *)xcalloc((size_t)t.width, sizeof *w);
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
            double fixed = (sum != 0 ? w[i] / sum : w[i]) * (1 << IMAGE_BITS);
            t.weight[(size_t)o * (size_t)t.width + (size_t)i] = (int32_t)(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
        }
    }
    free(w);
    return t;
}

/* The part of the taps of output o that lies on samples begin..end-1; all others are white padding, whose share goes
 * into the start value of the sum, so the padded image never exists in memory. */
typedef struct {
    int first, count;  // first: counted from `begin`
    const int32_t *weight;
    int32_t start;
} ImageSum;

static inline ImageSum image_sum(const ImageTaps *t, int o, int begin, int end) {
    const int32_t *weight = t->weight + (size_t)o * (size_t)t->width;
    ImageSum s = {0, 0, weight, 1 << (IMAGE_BITS - 1)};
    int last = -1;
    for (int i = 0; i < t->count[o]; i++) {
        int at = t->first[o] + i;
        if (at < begin || at >= end) {
            s.start += 255 * weight[i];
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

enum { IMAGE_LANES = 96 };  // values summed side by side: 32 pixels

/* out[k] = clip(start + sum over i of weight[i] * in[i * stride + k]), k < IMAGE_LANES. */
static inline void image_weigh(uint8_t *__restrict__ out, const uint8_t *__restrict__ in, size_t stride,
                                 ImageSum s) {
    int32_t sum[IMAGE_LANES];
    for (int k = 0; k < IMAGE_LANES; k++) sum[k] = s.start;
    in += (size_t)s.first * stride;
    for (int i = 0; i < s.count; i++, in += stride) {
        const int32_t w = s.weight[i];
        for (int k = 0; k < IMAGE_LANES; k++) sum[k] += w * in[k];
    }
    for (int k = 0; k < IMAGE_LANES; k++) {
        int32_t x = sum[k] >> IMAGE_BITS;
        out[k] = (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x);
    }
}

/* Horizontal pass: rows of the box -> out [box.height, size, 3]. 32 rows at a time are turned so that the same column
 * of all of them lies side by side: then one weight serves 96 values in a row of memory. */
static inline void image_pass_x(uint8_t *out, const Image *p, ImageBox box, const ImageTaps *t, int left,
                                  int size) {
    const int rows = IMAGE_LANES / 3;
    uint8_t *turned = (uint8_t *)xcalloc((size_t)box.width, IMAGE_LANES), column[IMAGE_LANES];
    for (int y0 = 0; y0 < box.height; y0 += rows) {
        int n = box.height - y0 < rows ? box.height - y0 : rows;
        for (int y = 0; y < n; y++) {
            const uint8_t *from = p->rgb + ((size_t)(box.y + y0 + y) * (size_t)p->width + (size_t)box.x) * 3;
            uint8_t *to = turned + 3 * y;
            for (int x = 0; x < box.width; x++, from += 3, to += IMAGE_LANES) {
                to[0] = from[0];
                to[1] = from[1];
                to[2] = from[2];
            }
        }
        for (int o = 0; o < size; o++) {
            image_weigh(column, turned, IMAGE_LANES, image_sum(t, o, left, left + box.width));
            for (int y = 0; y < n; y++)
                memcpy(out + ((size_t)(y0 + y) * (size_t)size + (size_t)o) * 3, column + 3 * y, 3);
        }
    }
    free(turned);
}

/* out: [size, size, 3]. Pillow's order: columns are resized first and rounded to 8 bits, then rows. The image is
 * centred as ImageOps.pad does it, an odd rest rounded to even halves. */
static inline void image_prepare(uint8_t *out, const Image *p, int size) {
    const ImageBox box = image_trim(p);
    const int side = box.width > box.height ? box.width : box.height;
    const int left = (int)nearbyint((side - box.width) * 0.5), top = (int)nearbyint((side - box.height) * 0.5);
    const size_t stride = (size_t)size * 3;
    const size_t rest = IMAGE_LANES;  // the last group of lanes of a row may read and write beyond it
    ImageTaps taps = image_taps(side, size);
    uint8_t *rows = (uint8_t *)xcalloc((size_t)box.height * stride + rest, 1);
    uint8_t *line = (uint8_t *)xmalloc(stride + rest);
    image_pass_x(rows, p, box, &taps, left, size);
    for (int o = 0; o < size; o++) {
        ImageSum s = image_sum(&taps, o, top, top + box.height);
        for (size_t k = 0; k < stride; k += IMAGE_LANES) image_weigh(line + k, rows + k, stride, s);
        memcpy(out + (size_t)o * stride, line, stride);
    }
    free(line);
    free(rows);
    image_taps_free(&taps);
}

#endif
