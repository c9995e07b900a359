/* Makes the RGB input of a vision encoder, square or rectangular, from an image, and warns of images that a model cannot make
 * much of.
 *
 * image_prepare trims the white border, pads with white to the shape of the input, and resizes with a bicubic filter. So the
 * image keeps its aspect and is as large as fits: one that is wider than the input's shape, such as a long formula, becomes
 * smaller until its width fits. Where the size says how high letters are (size.letter), the image gets the scale that makes
 * them so, as far as it fits, and stands at the left edge: a reader of text then sees each letter in one size. The pixels equal those of Pillow (ImageChops.difference + crop, ImageOps.pad,
 * Image.resize). */
#ifndef LIB_IMAGE_PREPARE_H
#define LIB_IMAGE_PREPARE_H

#include "image_letters.h"
#include "image_size.h"

#include <math.h>

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

/* Lanczos's kernel of three lobes: sinc(x) sinc(x / 3), as Pillow computes it. */
static inline double image_sinc(double x) {
    return x == 0 ? 1 : sin(image_product(x, M_PI)) / image_product(x, M_PI);
}

static inline double image_lanczos(double x) {
    return x >= -3 && x < 3 ? image_product(image_sinc(x), image_sinc(x / 3)) : 0;
}

/* A resampling kernel, which is 0 beyond `support`. */
typedef struct {
    double (*kernel)(double x);
    double support;
} ImageFilter;

static const ImageFilter image_filter_bicubic = {image_bicubic, 2}, image_filter_lanczos = {image_lanczos, 3};

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
static inline ImageTaps image_taps(ImageFilter filter, int in, int out) {
    const double scale = (double)in / out, stretch = scale < 1 ? 1 : scale, support = filter.support * stretch;
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
            w[i] = filter.kernel(image_product(i + first - centre + 0.5, shrink));
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
__attribute__((always_inline)) static inline void
image_weighted_sum_body(uint8_t *__restrict__ out, const uint8_t *__restrict__ in, size_t stride, ImageOutput s) {
    int32_t sum[IMAGE_LANES];
    for (int k = 0; k < IMAGE_LANES; k++) sum[k] = s.bias;
    in += s.first * stride;
    for (int i = 0; i < s.count; i++, in += stride) {
        const int32_t w = s.weight[i];
        if (w == 0) continue;  // most of them, where the size hardly changes
        for (int k = 0; k < IMAGE_LANES; k++) sum[k] += w * in[k];
    }
    for (int k = 0; k < IMAGE_LANES; k++) {
        int32_t x = sum[k] >> IMAGE_WEIGHT_BITS;
        out[k] = (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x);
    }
}

/* The same code for the processor that is there: x86-64 alone has no instruction that multiplies several 32-bit integers,
 * AVX2 has. */
#ifdef __x86_64__
__attribute__((target("avx2"))) static void image_weighted_sum_avx2(uint8_t *out, const uint8_t *in, size_t stride,
                                                                    ImageOutput s) {
    image_weighted_sum_body(out, in, stride, s);
}
#endif

static inline void image_weighted_sum(uint8_t *out, const uint8_t *in, size_t stride, ImageOutput s) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) {
        image_weighted_sum_avx2(out, in, stride, s);
        return;
    }
#endif
    image_weighted_sum_body(out, in, stride, s);
}

/* The horizontal pass: resizes the rows of `box`, which begin at column `left` of the white area, to `size` pixels.
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

/* Resizes a part of an image that lies at (left, top) of a larger white area, whose taps are `across` and `down`, to
 * out [height, width, 3]. As in Pillow, the horizontal pass comes first and is rounded to 8 bits, then the vertical pass. */
static inline void image_resample(uint8_t *out, const Image *p, ImageBox box, int left, int top,
                                  const ImageTaps *across, const ImageTaps *down, int width, int height) {
    const size_t stride = 3 * (size_t)width;
    const size_t slack = IMAGE_LANES;  // the last group of lanes of a row may read and write beyond its end
    uint8_t *rows = xcalloc(box.height * stride + slack, 1);
    uint8_t *line = xmalloc(stride + slack);
    image_resize_horizontal(rows, p, box, across, left, width);
    for (int o = 0; o < height; o++) {
        ImageOutput s = image_output(down, o, top, top + box.height);
        for (size_t k = 0; k < stride; k += IMAGE_LANES) image_weighted_sum(line + k, rows + k, stride, s);
        memcpy(out + o * stride, line, stride);
    }
    free(line);
    free(rows);
}

/* The least area of the shape of `size` that a part of an image fits in: as wide as the part or as high, and the other side
 * rounded half to even. */
static inline ImageSize image_padded(ImageBox box, ImageSize size) {
    ImageSize area = image_size(box.height, box.width);
    if ((int64_t)box.width * size.height >= (int64_t)box.height * size.width)
        area.height = (int)nearbyint((double)box.width * size.height / size.width);
    else
        area.width = (int)nearbyint((double)box.height * size.width / size.height);
    if (area.height < box.height) area.height = box.height;
    if (area.width < box.width) area.width = box.width;
    return area;
}

/* What became of a part of an image: the pixels of its longest side (0: not known), and how many of its pixels are to be one of
 * the input, for letters to have their height (0: it is as large as fits). */
typedef struct {
    int longest;
    double scale;
} ImageExtent;

/* The area that becomes the input: the one that `scale` asks for, or the least one, if the part does not fit into that. */
static inline ImageSize image_area(ImageBox box, ImageSize size, double scale) {
    const ImageSize least = image_padded(box, size);
    const ImageSize area = image_size((int)nearbyint(scale * size.height), (int)nearbyint(scale * size.width));
    return area.height > least.height && area.width > least.width ? area : least;
}

/* Puts a part of an image into a white area of the input's shape and resizes that to `size`: in the middle, or, where letters
 * have a height, at its left edge. out: [height, width, 3]. As in ImageOps.pad, the offset of what is in the middle is rounded
 * half to even. */
static inline ImageExtent image_prepare_scaled(uint8_t *out, const Image *p, ImageBox box, ImageSize size, double scale) {
    const ImageSize area = image_area(box, size, scale);
    const int left = size.letter ? 0 : (int)nearbyint((area.width - box.width) * 0.5);
    const int top = (int)nearbyint((area.height - box.height) * 0.5);
    ImageTaps across = image_taps(image_filter_bicubic, area.width, size.width);
    ImageTaps down = image_taps(image_filter_bicubic, area.height, size.height);
    image_resample(out, p, box, left, top, &across, &down, size.width, size.height);
    image_taps_free(&across);
    image_taps_free(&down);
    return (ImageExtent){image_longest(box), scale};
}

static inline ImageExtent image_prepare_box(uint8_t *out, const Image *p, ImageBox box, ImageSize size) {
    const double scale = size.letter ? (double)image_letter_height(p, box) / size.letter : 0;
    return image_prepare_scaled(out, p, box, size, scale);
}

/* What DeTikZify's own pipeline does before the model's preprocessing (Belouadi et al. 2024): cuts off the exactly white
 * margin, and enlarges the rest with Lanczos's filter until its longest side is that of the whole image. The white area
 * around it is image_prepare_box's work. Refuses a drawing that would have more pixels than an image may have. */
static inline int image_enlarge(Image *p, const char *name, Error *err) {
    const ImageBox box = image_trim(p, IMAGE_WHITE);
    const int side = p->width > p->height ? p->width : p->height;
    int width = side, height = side;
    if (box.width > box.height) height = (int)nearbyint((double)box.height / box.width * side);
    if (box.width < box.height) width = (int)nearbyint((double)box.width / box.height * side);
    if (width < 1 || height < 1 || (int64_t)width * height > IMAGE_MAX_PIXELS)
        return error_set(
            err,
            "cannot prepare %s as DeTikZify does: without its margin it would become an image of %d x %d "
            "pixels, and at most %d million are read",
            name, width, height, IMAGE_MAX_PIXELS / 1000000);
    ImageTaps across = image_taps(image_filter_lanczos, box.width, width),
              down = image_taps(image_filter_lanczos, box.height, height);
    Image larger = {.width = width, .height = height, .rgb = (uint8_t *)xmalloc(3 * (size_t)width * height)};
    image_resample(larger.rgb, p, box, 0, 0, &across, &down, width, height);
    image_taps_free(&across);
    image_taps_free(&down);
    image_free(p);
    *p = larger;
    return 0;
}

/* Resizes an image by `factor`, to one pixel a side at least. */
static inline void image_resize_by(Image *p, double factor, ImageFilter filter) {
    Image out = {.width = (int)fmax(1, nearbyint(p->width * factor)),
                 .height = (int)fmax(1, nearbyint(p->height * factor))};
    if (out.width == p->width && out.height == p->height) return;
    ImageTaps across = image_taps(filter, p->width, out.width), down = image_taps(filter, p->height, out.height);
    out.rgb = (uint8_t *)xmalloc(3 * (size_t)out.width * out.height);
    image_resample(out.rgb, p, (ImageBox){0, 0, p->width, p->height}, 0, 0, &across, &down, out.width, out.height);
    image_taps_free(&across);
    image_taps_free(&down);
    image_free(p);
    *p = out;
}

/* Makes an image smaller whose longer side has more than `most` pixels, so that it has as many. */
static inline void image_shrink(Image *p, int most) {
    const int side = p->width > p->height ? p->width : p->height;
    if (side > most) image_resize_by(p, (double)most / side, image_filter_bicubic);
}

/* Makes the input of a vision encoder: trims the exactly white margin, and resizes the rest. out: [height, width,
 * 3]. */
static inline ImageExtent image_prepare(uint8_t *out, const Image *p, ImageSize size) {
    return image_prepare_box(out, p, image_trim(p, IMAGE_WHITE), size);
}

/* The same for a drawing that is compared with an input: in the scale that the input had, as if both were equally long, because
 * measuring the letters of two drawings that are nearly alike may give two heights. */
static inline void image_prepare_like(uint8_t *out, const Image *p, ImageSize size, ImageExtent input) {
    const ImageBox box = image_trim(p, IMAGE_WHITE);
    if (size.letter && input.longest)
        image_prepare_scaled(out, p, box, size, input.scale * image_longest(box) / input.longest);
    else
        image_prepare_box(out, p, box, size);
}

/* ---- images that a model cannot make much of ---- */

/* Light becomes dark, and dark light. */
static inline void image_invert(Image *p) {
    for (size_t i = 0, n = 3 * (size_t)p->width * p->height; i < n; i++) p->rgb[i] = 255 - p->rgb[i];
}

/* The least of n colour values. */
static inline uint8_t image_darkest(const uint8_t *values, size_t n) {
    uint8_t least = 255;
    for (size_t i = 0; i < n; i++) least = values[i] < least ? values[i] : least;
    return least;
}

/* The share of pixels inside the box that are not nearly white and differ from the pixel to their left: 0.6 at most in drawings,
 * even in small ones, and more than 0.9 in photos and noise. */
static inline double image_texture_share(const Image *p, ImageBox box) {
    size_t textured = 0;
    for (int y = box.y; y < box.y + box.height; y++)
        for (int x = box.x + 1; x < box.x + box.width; x++) {
            const uint8_t *at = p->rgb + 3 * ((size_t)y * p->width + x);
            textured += image_darkest(at, 3) < IMAGE_NEAR_WHITE && memcmp(at, at - 3, 3) != 0;
        }
    return (double)textured / ((double)box.width * box.height);
}

/* The share of pixels in the box whose three values are all below half. */
static inline double image_dark_share(const Image *p, ImageBox box) {
    size_t dark = 0;
    for (int y = 0; y < box.height; y++) {
        const uint8_t *row = p->rgb + 3 * ((size_t)(box.y + y) * p->width + box.x);
        for (int x = 0; x < box.width; x++) dark += (row[3 * x] | row[3 * x + 1] | row[3 * x + 2]) < 128;
    }
    return (double)dark / ((double)box.width * box.height);
}

/* A strip whose short side becomes less than this many pixels of a rectangular input may not be legible. A rule of thumb. */
enum { IMAGE_LEGIBLE = 12 };

/* The share of their height at which letters can still be read. A rule of thumb as well. */
#define IMAGE_LETTER_LEGIBLE 0.6

/* Whether a part of an image is made so small to fit into a rectangular input that text in it cannot be read. drawn: its size
 * there. Square inputs are for figures, in which a thin line is none of text. */
static inline bool image_illegible(ImageBox box, ImageSize size, ImageSize *drawn) {
    const ImageSize area = image_padded(box, size);
    drawn->height = (int)ceil((double)box.height * size.height / area.height);
    drawn->width = (int)ceil((double)box.width * size.width / area.width);
    return size.height != size.width && area.height > size.height && !size.letter &&
           (drawn->height < IMAGE_LEGIBLE || drawn->width < IMAGE_LEGIBLE);
}

/* Writes into text [capacity] why a model will not make much of the image, and what to do. prepared [height, width, 3]
 * and scale are what image_prepare_box made of the box. Returns false, with an empty text, when there is nothing to say. The
 * models are trained on dark lines on white without a margin. */
static inline bool image_remark(char *text, size_t capacity, const Image *p, ImageBox box, const uint8_t *prepared,
                                ImageSize size, double scale) {
    const double letter = size.letter * scale * size.width / image_area(box, size, scale).width;
    const int side = image_padded(box, size).width;
    const int near_side = image_padded(image_trim(p, IMAGE_NEAR_WHITE), size).width;
    const int ink = 255 - image_darkest(p->rgb, 3 * (size_t)p->width * p->height);
    const int left = 255 - image_darkest(prepared, image_size_bytes(size));
    ImageSize drawn;
    text[0] = '\0';
    if (ink == 0)
        snprintf(text, capacity, "the image is blank: all of it is white, or transparent, which counts as white");
    else if (left < ink / 6)
        snprintf(
            text, capacity,
            "little is left of its lines when its %d x %d pixels become the model's %d x %d; cut out a part of it, "
            "or draw thicker lines",
            box.width, box.height, size.width, size.height);
    else if (image_illegible(box, size, &drawn))
        snprintf(
            text, capacity,
            "its %d x %d pixels become only %d x %d in the model's %d x %d, too small to read text in them; break a "
            "long line into several images, or cut out a part",
            box.width, box.height, drawn.width, drawn.height, size.width, size.height);
    else if (size.letter && letter < IMAGE_LETTER_LEGIBLE * size.letter)
        snprintf(text, capacity,
                 "its letters become %.1f pixels high in the model's %d x %d, where %d are right; break a long line into "
                 "several images, or cut out a part",
                 letter, size.height, size.width, size.letter);
    else if (image_texture_share(p, box) > 0.75)
        snprintf(text, capacity,
                 "its colours change from pixel to pixel, as in a photo, and the models know drawings; their answer may "
                 "mean nothing");
    else if (image_dark_share(p, box) > 0.6)
        snprintf(text, capacity, "most of the image is dark, and the models know dark lines on white; try --invert");
    else if (side - near_side > 2 && side > near_side * 1.03)
        snprintf(text, capacity,
                 "its margin is nearly white, but not white, and stays in the image; try --trim-near-white");
    return text[0] != '\0';
}

#endif
