/* Finds the small angle by which a scan or photo of a drawing is rotated, and undoes it. Used by lib/image_clean.h; the
 * paper is white already.
 *
 * When a drawing with horizontal lines is upright, the ink of a line falls into one row. So the sum of the squared
 * differences between neighbouring rows of ink is largest at the right angle, and the same holds for columns (the method
 * is the projection profile of document scanning: Postl, US patent 4723297, 1988). */
#ifndef LIB_IMAGE_ROTATE_H
#define LIB_IMAGE_ROTATE_H

#include "image_frame.h"

enum { IMAGE_ROTATE_SIDE = 400 };  // pixels of the longer side of the copy on which the angle is measured
#define IMAGE_ROTATE_MOST 6.0      // degrees

/* Ink of a smaller copy: position from the middle, in pixels of the copy, and depth. */
typedef struct {
    float x, y, depth;
} ImageInk;

/* The ink of the image, averaged over squares of `step` pixels. Returns how many there are. */
static inline size_t image_ink(const Image *p, int step, ImageInk *ink) {
    const int w = (p->width + step - 1) / step, h = (p->height + step - 1) / step;
    size_t n = 0;
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            uint64_t sum = 0;
            for (int v = y * step; v < (y + 1) * step && v < p->height; v++)
                for (int u = x * step; u < (x + 1) * step && u < p->width; u++) sum += image_depth(image_at(p, u, v));
            if (sum) ink[n++] = (ImageInk){x - 0.5f * w, y - 0.5f * h, (float)sum / (float)(step * step)};
        }
    return n;
}

/* How well the ink falls into rows, or into columns, when it is turned by `degrees`. */
static inline double image_alignment(const ImageInk *ink, size_t n, double degrees, bool columns, float *bins,
                                     int bin_count) {
    const float c = (float)cos(degrees * M_PI / 180), s = (float)sin(degrees * M_PI / 180);
    double sum = 0;
    memset(bins, 0, (size_t)bin_count * sizeof *bins);
    for (size_t i = 0; i < n; i++) {
        const float at = (columns ? c * ink[i].x - s * ink[i].y : s * ink[i].x + c * ink[i].y) + 0.5f * bin_count;
        const int bin = (int)at;
        bins[bin] += ink[i].depth * ((float)bin + 1 - at);
        bins[bin + 1] += ink[i].depth * (at - (float)bin);
    }
    for (int i = 1; i < bin_count; i++) sum += (bins[i] - bins[i - 1]) * (double)(bins[i] - bins[i - 1]);
    return sum;
}

/* The angle in degrees, counterclockwise, by which a drawing is rotated; 0 if it is upright or if nothing in it tells.
 * The angle must be far better than none: of figures without horizontal or vertical lines, no angle is. */
static inline double image_rotation(const Image *p) {
    enum { ANGLES = 2 * (int)(IMAGE_ROTATE_MOST * 10) + 1 };
    const int side = p->width > p->height ? p->width : p->height;
    const int step = (side + IMAGE_ROTATE_SIDE - 1) / IMAGE_ROTATE_SIDE;
    const int w = (p->width + step - 1) / step, h = (p->height + step - 1) / step, bin_count = w + h + 8;
    ImageInk *ink = xcalloc((size_t)w * h, sizeof *ink);
    float *bins = xcalloc(bin_count, sizeof *bins);
    const size_t n = image_ink(p, step, ink);
    double score[ANGLES], upright = 0, best = 0, angle = 0, typical = 0;
    for (int i = 0; i < ANGLES; i++) {
        const double degrees = i / 10.0 - IMAGE_ROTATE_MOST;
        score[i] = image_alignment(ink, n, degrees, false, bins, bin_count) +
                   image_alignment(ink, n, degrees, true, bins, bin_count);
        if (score[i] > best) best = score[i], angle = degrees;
        if (fabs(degrees) < 0.15) upright = fmax(upright, score[i]);
        typical += score[i] / ANGLES;
    }
    for (double width = 0.05; n && width > 0.01; width /= 2)  // refine
        for (int sign = -1; sign <= 1; sign += 2) {
            const double degrees = angle + sign * width;
            const double s = image_alignment(ink, n, degrees, false, bins, bin_count) +
                             image_alignment(ink, n, degrees, true, bins, bin_count);
            if (s > best) best = s, angle = degrees;
        }
    free(ink);
    free(bins);
    if (n == 0 || fabs(angle) < 0.25 || fabs(angle) > IMAGE_ROTATE_MOST - 0.5) return 0;
    return best > 1.3 * upright && best > 1.5 * typical ? angle : 0;
}

/* A value of the image between pixels, for all three channels; white outside (bicubic, as image_bicubic). */
static inline void image_sample(uint8_t *out, const Image *p, double x, double y) {
    const int left = (int)floor(x - 0.5), top = (int)floor(y - 0.5);
    float wx[4], wy[4], sum[3] = {0};
    for (int i = 0; i < 4; i++) {
        wx[i] = (float)image_bicubic(left + i - 1 + 0.5 - x);
        wy[i] = (float)image_bicubic(top + i - 1 + 0.5 - y);
    }
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 4; i++) {
            const int u = left + i - 1, v = top + j - 1;
            if (u < 0 || v < 0 || u >= p->width || v >= p->height) continue;
            for (int k = 0; k < 3; k++) sum[k] += wx[i] * wy[j] * (float)(255 - image_at(p, u, v)[k]);
        }
    for (int k = 0; k < 3; k++) out[k] = (uint8_t)(sum[k] < 2 ? 255 : sum[k] > 255 ? 0 : 255.5f - sum[k]);
}

/* Turns the image by `degrees` clockwise around its middle, on white. The image grows so that nothing is cut off. */
static inline void image_rotate(Image *p, double degrees) {
    const double c = cos(degrees * M_PI / 180), s = sin(degrees * M_PI / 180);
    const int w = (int)ceil(p->width * fabs(c) + p->height * fabs(s));
    const int h = (int)ceil(p->width * fabs(s) + p->height * fabs(c));
    uint8_t *rgb = xmalloc(3 * (size_t)w * h);
    memset(rgb, 255, 3 * (size_t)w * h);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            const double u = x + 0.5 - 0.5 * w, v = y + 0.5 - 0.5 * h;
            const double from_x = c * u + s * v + 0.5 * p->width, from_y = c * v - s * u + 0.5 * p->height;
            const int a = (int)floor(from_x), b = (int)floor(from_y);
            if (a < -2 || b < -2 || a > p->width + 1 || b > p->height + 1) continue;
            image_sample(rgb + 3 * ((size_t)y * w + x), p, from_x, from_y);
        }
    free(p->rgb);
    *p = (Image){w, h, rgb};
}

#endif
