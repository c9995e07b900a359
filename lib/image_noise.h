/* Removes noise and what JPEG leaves beside lines, where an image should be white paper, and specks outside the drawing.
 * Used by lib/image_clean.h; the paper is white already. */
#ifndef LIB_IMAGE_NOISE_H
#define LIB_IMAGE_NOISE_H

#include "image_frame.h"

enum {
    IMAGE_INK = 80,         // depth (image_depth) from which a pixel is ink, not noise
    IMAGE_NOISE_MOST = 40,  // largest depth that can count as noise
    IMAGE_NEAR_INK = 2,     // pixels around ink that may be its antialiased edge
    IMAGE_FAR_FROM_INK = 5  // no edge reaches this far; the blocks of JPEG do
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

/* The depth up to which pixels are noise, from the pixels that are no edge of ink: 0, unless many that are far from ink
 * are not quite white, and fewer the darker they are. So noise and the blocks of JPEG look; antialiasing, tints and
 * thin grey lines do not. */
static inline int image_noise_level(const uint8_t *depth, const uint8_t *near, size_t n) {
    size_t far_counts[256] = {0}, counts[256] = {0}, far = 0, faint = 0, more = 0, all = 0, above = 0;
    for (size_t i = 0; i < n; i++) {
        if (near[i] > IMAGE_FAR_FROM_INK) far_counts[depth[i]]++;
        if (near[i] > IMAGE_NEAR_INK) counts[depth[i]]++;
    }
    for (int v = 0; v <= IMAGE_INK; v++) far += far_counts[v], all += counts[v];
    for (int v = 1; v <= 4; v++) faint += far_counts[v];
    for (int v = 5; v <= 8; v++) more += far_counts[v];
    if (far < 64 || (faint + more) * 250 < far) return 0;
    if (far_counts[1] + far_counts[2] == 0 && faint < more / 4) return 0;
    int level = IMAGE_INK;
    while (level > 1 && (above += counts[level]) * 2000 < all) level--;
    level += 1 + level / 4;
    return level < IMAGE_NOISE_MOST ? level : IMAGE_NOISE_MOST;
}

/* Makes noise on white paper white. Returns the depth up to which pixels counted as noise, 0: there was none. */
static inline int image_noise_remove(Image *p) {
    const int w = p->width, h = p->height;
    const size_t n = (size_t)w * h;
    uint8_t *depth = image_depths(p), *near = image_ink_distance(depth, w, h, IMAGE_FAR_FROM_INK + 1);
    const int level = image_noise_level(depth, near, n);
    for (int y = 0; level && y < h; y++)
        for (int x = 0; x < w; x++) {
            const size_t i = (size_t)y * w + x;
            bool noise = depth[i] <= level;
            if (!noise && depth[i] <= IMAGE_INK && near[i] > IMAGE_NEAR_INK) {  // an outlier: alone, or among noise
                int sum = 0, count = 0;
                for (int v = y > 0 ? y - 1 : y; v <= y + 1 && v < h; v++)
                    for (int u = x > 0 ? x - 1 : x; u <= x + 1 && u < w; u++)
                        sum += depth[(size_t)v * w + u], count++;
                noise = sum <= count * level;
            }
            if (noise) memset(p->rgb + 3 * i, 255, 3);
        }
    free(depth);
    free(near);
    return level;
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
