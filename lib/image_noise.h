/* Removes noise and what JPEG leaves beside lines, where an image should be white paper, and specks outside the drawing.
 * Used by lib/image_clean.h; the paper is white already. */
#ifndef LIB_IMAGE_NOISE_H
#define LIB_IMAGE_NOISE_H

#include "image_colour.h"
#include "image_frame.h"

enum {
    IMAGE_INK = 80,          // depth (image_depth) from which a pixel is ink, not noise
    IMAGE_NOISE_MOST = 40,   // largest depth that can count as noise
    IMAGE_NEAR_INK = 2,      // pixels around ink that may be its antialiased edge
    IMAGE_FAR_FROM_INK = 5,  // no edge reaches this far; the blocks of JPEG do
    IMAGE_AROUND_INK = 8
};

/* ---- where ink is ---- */

/* Depths of all pixels. */
static inline uint8_t *image_depths(const Image *p) {
    const size_t n = (size_t)p->width * p->height;
    uint8_t *depth = xmalloc(n);
    for (size_t i = 0; i < n; i++) depth[i] = (uint8_t)image_depth(p->rgb + 3 * i);
    return depth;
}

/* near[i]: the distance to the nearest ink in pixels, the larger of both axes, at most `most`. Two passes: along rows,
 * then along columns. */
static inline uint8_t *image_ink_distance(const uint8_t *depth, int width, int height, int most) {
    uint8_t *near = xmalloc((size_t)width * height), *column = xmalloc((size_t)width * (2 * most + 1));
    for (int y = 0; y < height; y++) {
        const uint8_t *from = depth + (size_t)y * width;
        uint8_t *to = near + (size_t)y * width;
        int last = most;
        for (int x = 0; x < width; x++)
            to[x] = (uint8_t)(last = from[x] > IMAGE_INK ? 0 : last < most ? last + 1 : most);
        last = most;
        for (int x = width - 1; x >= 0; x--) {
            last = from[x] > IMAGE_INK ? 0 : last < most ? last + 1 : most;
            if (last < to[x]) to[x] = (uint8_t)last;
        }
    }
    // `column` keeps the rows y - most .. y as they were; row y + d is not changed yet
    for (int y = 0; y < height; y++) {
        uint8_t *row = near + (size_t)y * width;
        memcpy(column + (size_t)(y % (most + 1)) * width, row, (size_t)width);
        for (int d = 1; d < most; d++)
            for (int sign = -1; sign <= 1; sign += 2) {
                const int other = y + sign * d;
                if (other < 0 || other >= height) continue;
                const uint8_t *from =
                    sign < 0 ? column + (size_t)(other % (most + 1)) * width : row + (ptrdiff_t)d * width;
                for (int x = 0; x < width; x++) {
                    const uint8_t distance = from[x] > d ? from[x] : (uint8_t)d;
                    if (distance < row[x]) row[x] = distance;
                }
            }
    }
    free(column);
    return near;
}

/* ---- noise ---- */

/* The depth up to which pixels are noise, from the pixels that are no edge of ink. 0, unless one in 250 pixels that are
 * a few pixels from ink is not quite white: antialiasing does not reach so far, noise and the blocks of JPEG do. Clean
 * validation figures have at most one in 500, even when they are made three times as large; as JPEG of quality 50 to
 * 95, at least one in 170. */
static inline int image_noise_level(const uint8_t *depth, const uint8_t *near, size_t n) {
    size_t counts[256] = {0}, around = 0, faint = 0, all = 0, above = 0;
    for (size_t i = 0; i < n; i++) {
        if (near[i] > IMAGE_NEAR_INK) counts[depth[i]]++;
        if (near[i] <= IMAGE_FAR_FROM_INK || near[i] > IMAGE_AROUND_INK) continue;
        around++;
        faint += depth[i] > 0 && depth[i] <= 8;
    }
    if (around < 32 || faint * 250 < around) return 0;
    int level = IMAGE_INK;
    for (int v = 0; v <= level; v++) all += counts[v];
    while (level > 1 && (above += counts[level]) * 2000 < all) level--;
    level += 1 + level / 4;
    return level < IMAGE_NOISE_MOST ? level : IMAGE_NOISE_MOST;
}

/* The darkness (255 - brightness) that one in 2000 pixels reaches, of those whose distance from ink is from `least` to
 * `most`. */
static inline int image_noise_quantile(const Image *p, const uint8_t *near, int least, int most) {
    size_t counts[256] = {0}, all = 0, above = 0;
    for (size_t i = 0, n = (size_t)p->width * p->height; i < n; i++)
        if (near[i] >= least && near[i] <= most) counts[255 - image_brightness(p->rgb + 3 * i)]++;
    int level = IMAGE_INK;
    for (int v = 0; v <= level; v++) all += counts[v];
    while (level > 1 && (above += counts[level]) * 2000 < all) level--;
    return level;
}

/* Whether most pixels around (x, y) have nearly its depth, clearly more than none: a light tint, not noise. */
static inline bool image_tinted(const uint8_t *depth, int width, int height, int x, int y) {
    enum { REACH = 2, LEAST = 8, ALIKE = 8 };
    const int middle = depth[(size_t)y * width + x];
    int alike = 0, count = 0;
    if (middle < LEAST) return false;
    for (int v = y - REACH < 0 ? 0 : y - REACH; v <= y + REACH && v < height; v++)
        for (int u = x - REACH < 0 ? 0 : x - REACH; u <= x + REACH && u < width; u++, count++) {
            const int d = depth[(size_t)v * width + u];
            alike += d >= LEAST && abs(d - middle) <= ALIKE;
        }
    return 3 * alike >= 2 * count;
}

/* Whether a pixel is darker than `level` and not alone: with those around it, it has twice that in all. */
static inline bool image_bounds(const Image *p, int x, int y, int level) {
    if (255 - image_brightness(image_at(p, x, y)) <= level) return false;
    int sum = 0;
    for (int v = y > 0 ? y - 1 : y; v <= y + 1 && v < p->height; v++)
        for (int u = x > 0 ? x - 1 : x; u <= x + 1 && u < p->width; u++)
            sum += 255 - image_brightness(image_at(p, u, v));
    return sum > 3 * level;
}

/* The bounding box of pixels that are darker than `level`; empty: there are none. */
static inline ImageBox image_ink_box(const Image *p, int level) {
    int left = p->width, right = -1, top = p->height, bottom = -1;
    for (int y = 0; y < p->height; y++)
        for (int x = 0; x < p->width; x++) {
            if (!image_bounds(p, x, y, level)) continue;
            if (x < left) left = x;
            if (x > right) right = x;
            if (y < top) top = y;
            bottom = y;
        }
    return right < 0 ? (ImageBox){0, 0, 0, 0} : (ImageBox){left, top, right - left + 1, bottom - top + 1};
}

/* Makes noise of at most `level` white that is neither an antialiased edge of ink nor a tint. */
static inline void image_noise_whiten(Image *p, int level, const uint8_t *near) {
    uint8_t *depth = image_depths(p);
    for (int y = 0; y < p->height; y++)
        for (int x = 0; x < p->width; x++) {
            const size_t i = (size_t)y * p->width + x;
            if (depth[i] > 0 && depth[i] <= level && near[i] > IMAGE_NEAR_INK &&
                !image_tinted(depth, p->width, p->height, x, y))
                memset(p->rgb + 3 * i, 255, 3);
        }
    free(depth);
}

/* Makes white what is outside the box of pixels darker than `level`. */
static inline void image_bound(Image *p, int level) {
    const ImageBox b = image_ink_box(p, level);
    const size_t stride = 3 * (size_t)p->width, left = 3 * (size_t)b.x, right = 3 * (size_t)(b.x + b.width);
    for (int y = 0; y < p->height; y++) {
        uint8_t *row = p->rgb + y * stride;
        if (y < b.y || y >= b.y + b.height) {
            memset(row, 255, stride);
        } else {
            memset(row, 255, left);
            memset(row + right, 255, stride - right);
        }
    }
}

/* Noise of an image: the depth up to which pixels are noise, 0: there is none; and the darkness up to which pixels do
 * not bound the drawing. */
typedef struct {
    int level, bound;
} ImageNoise;

/* Removes noise from white paper, and restores the colour that JPEG took. JPEG leaves noise beside ink alone, and the
 * more the closer: on validation figures, 1.5 times the quantile of 1 in 2000 pixels, and at least 18, gives the box
 * that the figure had before best. */
static inline ImageNoise image_noise_remove(Image *p) {
    uint8_t *depth = image_depths(p), *near = image_ink_distance(depth, p->width, p->height, IMAGE_AROUND_INK + 1);
    ImageNoise noise = {image_noise_level(depth, near, (size_t)p->width * p->height), 0};
    free(depth);
    if (noise.level) {
        const int beside = image_noise_quantile(p, near, IMAGE_NEAR_INK + 1, IMAGE_AROUND_INK);
        const int away = image_noise_quantile(p, near, IMAGE_AROUND_INK + 1, IMAGE_AROUND_INK + 1);
        const bool everywhere = 10 * away >= 7 * beside;
        noise.bound = beside * 3 / 2 + 3 < 64 ? beside * 3 / 2 + 3 : 64;
        if (!everywhere && noise.bound < 18) noise.bound = 18;
        image_bound(p, noise.bound);
        if (!everywhere) image_colour_restore(p);
        image_noise_whiten(p, noise.level, near);
    }
    free(near);
    return noise;
}

/* ---- specks ---- */

/* Cuts one end of a profile (pixels that are not white of each row or column): a speck of at most `most` pixels that
 * is at least `gap` from the rest. Returns its number of pixels, and moves *begin (or *end) behind it; 0: none. */
static inline int image_speck_cut(const uint32_t *profile, int *begin, int *end, bool front, int most, int gap) {
    const int step = front ? 1 : -1;
    int at = front ? *begin : *end - 1, count = 0, empty = 0;
    for (; at >= *begin && at < *end && empty < gap; at += step) {
        if (count + (int64_t)profile[at] > most) return 0;
        count += (int)profile[at];
        empty = count && profile[at] == 0 ? empty + 1 : 0;
    }
    while (at >= *begin && at < *end && profile[at] == 0) at += step;
    if (count == 0 || empty < gap || at < *begin || at >= *end) return 0;
    *(front ? begin : end) = front ? at : at + 1;
    return count;
}

/* The pixels that are not white of each row and each column within a box. */
static inline void image_profiles(const Image *p, ImageBox b, uint32_t *rows, uint32_t *columns) {
    memset(rows, 0, (size_t)p->height * sizeof *rows);
    memset(columns, 0, (size_t)p->width * sizeof *columns);
    for (int y = b.y; y < b.y + b.height; y++) {
        const uint8_t *rgb = image_at(p, b.x, y);
        for (int x = 0; x < b.width; x++, rgb += 3) {
            const bool ink = (rgb[0] & rgb[1] & rgb[2]) != 255;
            rows[y] += ink;
            columns[b.x + x] += ink;
        }
    }
}

/* Removes specks of a few pixels outside the drawing, which would be its corner otherwise. At most 3 pixels in all,
 * and with noise one in 5000; each at least 3 % of the longer side from the rest. Returns their number of pixels. */
static inline int image_specks_remove(Image *p, bool noise) {
    const size_t n = (size_t)p->width * p->height;
    const int most = noise && n / 5000 > 3 ? (int)(n / 5000) : 3;
    const int side = p->width > p->height ? p->width : p->height, gap = side / 33 > 3 ? side / 33 : 3;
    uint32_t *rows = xcalloc(p->height, sizeof *rows), *columns = xcalloc(p->width, sizeof *columns);
    int top = 0, bottom = p->height, left = 0, right = p->width, total = 0, cut = 1;
    while (cut) {
        image_profiles(p, (ImageBox){left, top, right - left, bottom - top}, rows, columns);
        cut = image_speck_cut(rows, &top, &bottom, true, most - total, gap);
        if (!cut) cut = image_speck_cut(rows, &top, &bottom, false, most - total, gap);
        if (!cut) cut = image_speck_cut(columns, &left, &right, true, most - total, gap);
        if (!cut) cut = image_speck_cut(columns, &left, &right, false, most - total, gap);
        total += cut;
    }
    for (int y = 0; total && y < p->height; y++)
        for (int x = 0; x < p->width; x++)
            if (y < top || y >= bottom || x < left || x >= right)
                memset(p->rgb + 3 * ((size_t)y * p->width + x), 255, 3);
    free(rows);
    free(columns);
    return total;
}

#endif
