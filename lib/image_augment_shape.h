/* Augmentations that move the pixels of an image: rotation, elastic distortion, another resolution, a margin. Used by
 * lib/image_augment.h. New paper is white. */
#ifndef LIB_IMAGE_AUGMENT_SHAPE_H
#define LIB_IMAGE_AUGMENT_SHAPE_H

#include "image_prepare.h"
#include "random.h"

/* ---- resampling at any place ---- */

enum {
    AUGMENT_PHASES = 64,  // positions between two pixels that are told apart
    AUGMENT_BORDER = 4    // white pixels around the source, so that the kernel never reads outside
};

/* Where the pixels of row y of the output come from: their centres in the source, in pixels from its upper left corner.
 * xs and ys: [width of the output]. */
typedef void (*AugmentMap)(const void *map, int y, float *xs, float *ys);

/* A copy of the image with a white border. */
static inline Image augment_bordered(const Image *p) {
    const int b = AUGMENT_BORDER, width = p->width + 2 * b, height = p->height + 2 * b;
    const size_t stride = 3 * (size_t)width;
    Image q = {width, height, xmalloc(stride * height)};
    memset(q.rgb, 255, stride * height);
    for (int y = 0; y < p->height; y++)
        memcpy(q.rgb + (y + b) * stride + 3 * b, p->rgb + 3 * (size_t)y * p->width, 3 * (size_t)p->width);
    return q;
}

/* The largest whole number that is not larger than x; floorf is a call where the processor need not have SSE 4. */
static inline int augment_floor(float x) {
    const int i = (int)x;
    return i - (x < (float)i);
}

/* Whether 4 x 4 pixels are all white, which most of a drawing is. */
static inline bool augment_all_white(const uint8_t *from, size_t stride) {
    uint64_t all = UINT64_MAX;
    for (int j = 0; j < 4; j++, from += stride) {
        uint64_t eight;
        uint32_t four;
        memcpy(&eight, from, 8);
        memcpy(&four, from + 8, 4);
        all &= eight & (UINT64_C(0xffffffff00000000) | four);
    }
    return all == UINT64_MAX;
}

/* One value between pixels, of all three channels: 4 x 4 taps from `from` on. */
static inline void augment_sample(uint8_t *out, const uint8_t *from, size_t stride, const float *wx,
                                  const float *wy) {
    float sum[3] = {0.5f, 0.5f, 0.5f};
    for (int j = 0; j < 4; j++, from += stride)
        for (int k = 0; k < 3; k++)
            sum[k] += wy[j] * (wx[0] * from[k] + wx[1] * from[3 + k] + wx[2] * from[6 + k] + wx[3] * from[9 + k]);
    for (int k = 0; k < 3; k++) out[k] = (uint8_t)(sum[k] < 0 ? 0 : sum[k] > 255 ? 255 : sum[k]);
}

/* Replaces the image by one of width x height whose pixels come from where `map` says (cubic convolution, with the
 * place rounded to 1/64 pixel). */
static inline void augment_warp(Image *p, int width, int height, AugmentMap place, const void *map) {
    float weights[AUGMENT_PHASES + 1][4], *xs = xmalloc(width * sizeof *xs), *ys = xmalloc(width * sizeof *ys);
    for (int i = 0; i <= AUGMENT_PHASES; i++)
        for (int k = 0; k < 4; k++) weights[i][k] = (float)image_bicubic((double)i / AUGMENT_PHASES - (k - 1));
    Image source = augment_bordered(p);
    const size_t stride = 3 * (size_t)source.width;
    uint8_t *rgb = xmalloc(3 * (size_t)width * height), *out = rgb;
    for (int y = 0; y < height; y++) {
        place(map, y, xs, ys);
        for (int x = 0; x < width; x++, out += 3) {
            const float u = xs[x] - 0.5f, v = ys[x] - 0.5f;
            const int left = augment_floor(u), top = augment_floor(v);
            const bool inside = left >= -2 && top >= -2 && left <= p->width && top <= p->height;
            const uint8_t *from = source.rgb;
            if (inside) from += (top - 1 + AUGMENT_BORDER) * stride + 3 * (size_t)(left - 1 + AUGMENT_BORDER);
            if (!inside || augment_all_white(from, stride)) {
                memset(out, 255, 3);
                continue;
            }
            augment_sample(out, from, stride, weights[(int)((u - (float)left) * AUGMENT_PHASES + 0.5f)],
                           weights[(int)((v - (float)top) * AUGMENT_PHASES + 0.5f)]);
        }
    }
    image_free(&source);
    free(xs);
    free(ys);
    free(p->rgb);
    *p = (Image){width, height, rgb};
}

/* ---- rotation ---- */

typedef struct {
    double c, s;            // cosine and sine of the angle
    int width, height;      // of the output
    double from_x, from_y;  // middle of the source
} AugmentRotation;

static inline void augment_rotation_row(const void *map, int y, float *xs, float *ys) {
    const AugmentRotation *r = map;
    const double v = y + 0.5 - 0.5 * r->height;
    for (int x = 0; x < r->width; x++) {
        const double u = x + 0.5 - 0.5 * r->width;
        xs[x] = (float)(r->c * u + r->s * v + r->from_x);
        ys[x] = (float)(r->c * v - r->s * u + r->from_y);
    }
}

/* Turns the image by `degrees` clockwise around its middle. It grows so that nothing is cut off. */
static inline void augment_rotate(Image *p, double degrees) {
    const double c = cos(degrees * M_PI / 180), s = sin(degrees * M_PI / 180);
    const AugmentRotation r = {c,
                               s,
                               (int)ceil(p->width * fabs(c) + p->height * fabs(s)),
                               (int)ceil(p->width * fabs(s) + p->height * fabs(c)),
                               0.5 * p->width,
                               0.5 * p->height};
    augment_warp(p, r.width, r.height, augment_rotation_row, &r);
}

/* ---- elastic distortion ---- */

/* A smooth random displacement in pixels: a cubic B-spline over a grid of normal random numbers. Simard et al. 2003,
 * "Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis", smooth white noise with a
 * Gaussian instead. */
typedef struct {
    int columns, rows;
    float cell;      // pixels between two points of the grid
    float *dx, *dy;  // [rows, columns]
} AugmentField;

/* The mean over a cell of the squared sum of the spline's weights in one direction is 151/315, so the displacement of a
 * grid of standard deviation 1 has the root mean square 151/315 in two directions. */
#define AUGMENT_SPLINE_RMS (151.0 / 315.0)

/* A displacement of root mean square `rms` along each axis, for an image of width x height pixels. */
static inline AugmentField augment_field(Random *random, int width, int height, double cell, double rms) {
    if (cell < 1) cell = 1;
    AugmentField f = {.columns = (int)(width / cell) + 5, .rows = (int)(height / cell) + 5, .cell = (float)cell};
    const size_t n = (size_t)f.columns * f.rows;
    f.dx = xmalloc(n * sizeof *f.dx);
    f.dy = xmalloc(n * sizeof *f.dy);
    for (size_t i = 0; i < n; i++) {
        f.dx[i] = (float)(rms / AUGMENT_SPLINE_RMS) * random_normal(random);
        f.dy[i] = (float)(rms / AUGMENT_SPLINE_RMS) * random_normal(random);
    }
    return f;
}

static inline void augment_field_free(AugmentField *f) {
    free(f->dx);
    free(f->dy);
}

/* The largest displacement that the field can have: a spline never leaves the range of its grid. */
static inline double augment_field_most(const AugmentField *f) {
    float most = 0;  // not double: gcc 12 for aarch64 fails on the maximum of floats that become doubles
    for (size_t i = 0, n = (size_t)f->columns * f->rows; i < n; i++)
        most = fmaxf(most, fmaxf(fabsf(f->dx[i]), fabsf(f->dy[i])));
    return most;
}

/* The weights of the uniform cubic B-spline at t in [0, 1]. */
static inline void augment_spline(float *w, float t) {
    const float s = 1 - t;
    w[0] = s * s * s / 6;
    w[1] = (3 * t * t * t - 6 * t * t + 4) / 6;
    w[2] = (3 * s * s * s - 6 * s * s + 4) / 6;
    w[3] = t * t * t / 6;
}

/* Where n points at first, first + 1, ... lie in one direction of a field, clamped to 0 .. length: the first of four
 * points of the grid, and their weights. */
typedef struct {
    int first;
    float w[4];
} AugmentKnots;

static inline void augment_knots(AugmentKnots *knots, const AugmentField *f, float first, int n, float length) {
    for (int i = 0; i < n; i++) {
        const float at = first + (float)i, t = (at < 0 ? 0 : at > length ? length : at) / f->cell;
        knots[i].first = (int)t;
        augment_spline(knots[i].w, t - (float)knots[i].first);
    }
}

/* Adds the displacement at n points of a row. row: 2 * f->columns values of scratch. */
static inline void augment_field_add(const AugmentField *f, const AugmentKnots *down, const AugmentKnots *across,
                                     int n, float *row, float *xs, float *ys) {
    memset(row, 0, 2 * (size_t)f->columns * sizeof *row);
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < f->columns; i++) {
            row[2 * i] += down->w[j] * f->dx[(size_t)(down->first + j) * f->columns + i];
            row[2 * i + 1] += down->w[j] * f->dy[(size_t)(down->first + j) * f->columns + i];
        }
    for (int x = 0; x < n; x++) {
        const float *w = across[x].w, *at = row + 2 * across[x].first;
        xs[x] += w[0] * at[0] + w[1] * at[2] + w[2] * at[4] + w[3] * at[6];
        ys[x] += w[0] * at[1] + w[1] * at[3] + w[2] * at[5] + w[3] * at[7];
    }
}

typedef struct {
    AugmentField field[2];          // long waves and tremor
    AugmentKnots *across[2];        // [out_width]
    float *row;                     // scratch
    int margin, out_width, height;  // height: of the source
} AugmentElastic;

static inline void augment_elastic_row(const void *map, int y, float *xs, float *ys) {
    const AugmentElastic *e = map;
    const float v = (float)(y - e->margin) + 0.5f, left = 0.5f - (float)e->margin;
    for (int x = 0; x < e->out_width; x++) {
        xs[x] = left + (float)x;
        ys[x] = v;
    }
    for (int k = 0; k < 2; k++) {
        AugmentKnots down;
        augment_knots(&down, &e->field[k], v, 1, (float)e->height);
        augment_field_add(&e->field[k], &down, e->across[k], e->out_width, e->row, xs, ys);
    }
}

/* Distorts the image as a sketch by hand is: long waves (a sixth of the longer side) and a tremor of a quarter of
 * their strength and size. `percent`: root mean square of the displacement along each axis, of the longer side. The
 * image grows so that nothing is cut off. */
static inline void augment_elastic(Image *p, double percent, Random *random) {
    const double side = p->width > p->height ? p->width : p->height, rms = percent / 100 * side;
    AugmentElastic e = {.height = p->height};
    e.field[0] = augment_field(random, p->width, p->height, side / 6, rms * sqrt(16.0 / 17.0));
    e.field[1] = augment_field(random, p->width, p->height, side / 24, rms * sqrt(1.0 / 17.0));
    e.margin = (int)ceil(augment_field_most(&e.field[0]) + augment_field_most(&e.field[1]));
    e.out_width = p->width + 2 * e.margin;
    e.row = xmalloc(2 * (size_t)e.field[1].columns * sizeof *e.row);  // the finer one has more
    for (int k = 0; k < 2; k++) {
        e.across[k] = xmalloc(e.out_width * sizeof *e.across[k]);
        augment_knots(e.across[k], &e.field[k], 0.5f - (float)e.margin, e.out_width, (float)p->width);
    }
    augment_warp(p, e.out_width, p->height + 2 * e.margin, augment_elastic_row, &e);
    for (int k = 0; k < 2; k++) {
        augment_field_free(&e.field[k]);
        free(e.across[k]);
    }
    free(e.row);
}

/* ---- resolution ---- */

enum { AUGMENT_MOST_SIDE = 768 };  // pixels of the longer side beyond which an image is not enlarged

static inline double augment_box_kernel(double x) { return x > -0.5 && x <= 0.5; }
static inline double augment_triangle_kernel(double x) { return fabs(x) < 1 ? 1 - fabs(x) : 0; }

/* What programs resize images with: nearest pixel (averaging, when it becomes smaller), linear, cubic, Lanczos. */
static const ImageFilter augment_filters[] = {
    {augment_box_kernel, 0.5}, {augment_triangle_kernel, 1}, {image_bicubic, 2}, {image_lanczos, 3}};
enum { AUGMENT_FILTERS = sizeof augment_filters / sizeof *augment_filters };

/* Resizes the image by `factor`, as if it had been drawn at another resolution. The longer side does not grow beyond
 * AUGMENT_MOST_SIDE: a model of a few hundred pixels sees no difference, and it costs time. */
static inline void augment_scale(Image *p, double factor, ImageFilter filter) {
    const int side = p->width > p->height ? p->width : p->height;
    if (factor > 1) factor = fmin(factor, fmax(1, (double)AUGMENT_MOST_SIDE / side));
    image_resize_by(p, factor, filter);
}

/* ---- margins ---- */

/* Cuts off the white margin, and adds one of these pixels to the left, right, top, bottom. */
static inline void augment_pad(Image *p, const int *margin) {
    const ImageBox box = image_trim(p, IMAGE_WHITE);
    const int width = margin[0] + box.width + margin[1], height = margin[2] + box.height + margin[3];
    const size_t stride = 3 * (size_t)width;
    uint8_t *rgb = xmalloc(stride * height);
    memset(rgb, 255, stride * height);
    for (int y = 0; y < box.height; y++)
        memcpy(rgb + (margin[2] + y) * stride + 3 * (size_t)margin[0],
               p->rgb + 3 * ((size_t)(box.y + y) * p->width + box.x), 3 * (size_t)box.width);
    free(p->rgb);
    *p = (Image){width, height, rgb};
}

#endif
