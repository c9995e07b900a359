/* Structural similarity (Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
 * Similarity", 2004): the mean, over all places where the window lies inside the image and over the three channels, of
 *
 *   (2 ux uy + C1) (2 vxy + C2) / ((ux² + uy² + C1) (vx + vy + C2)),   C1 = (0.01 * 255)², C2 = (0.03 * 255)²
 *
 * where u are the means, v the variances and the covariance under a Gaussian window of 11 x 11 pixels with sigma 1.5. Equals
 * scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
 * channel_axis=2). */
#ifndef METRICS_SSIM_H
#define METRICS_SSIM_H

#include "../lib/error.h"

#include <math.h>

enum {
    SSIM_RADIUS = 5,
    SSIM_WINDOW = 2 * SSIM_RADIUS + 1,  // also the least size of an image
    SSIM_MOMENTS = 4                    // x, y, x² + y², x y: what the window is applied to
};

/* The weight of a sample at distance 0 .. SSIM_RADIUS, of a window in one direction. */
static inline void ssim_weights(double w[SSIM_RADIUS + 1]) {
    double sum = 0;
    for (int k = 0; k <= SSIM_RADIUS; k++) {
        w[k] = exp(-0.5 * k * k / (1.5 * 1.5));
        sum += k ? 2 * w[k] : w[k];
    }
    for (int k = 0; k <= SSIM_RADIUS; k++) w[k] /= sum;
}

/* out[i] = the weighted sum of SSIM_WINDOW values of each of the rows in[0], in[1], ... at i. */
static inline void ssim_blur(double *__restrict__ out, const double *const in[SSIM_WINDOW], int n, const double *w) {
    const double *const *c = in + SSIM_RADIUS;
    const double w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], w4 = w[4], w5 = w[5];
    const double *a0 = c[0], *a1 = c[-1], *b1 = c[1], *a2 = c[-2], *b2 = c[2], *a3 = c[-3], *b3 = c[3], *a4 = c[-4],
                 *b4 = c[4], *a5 = c[-5], *b5 = c[5];
    for (int i = 0; i < n; i++)
        out[i] = w0 * a0[i] + w1 * (a1[i] + b1[i]) + w2 * (a2[i] + b2[i]) + w3 * (a3[i] + b3[i]) +
                 w4 * (a4[i] + b4[i]) + w5 * (a5[i] + b5[i]);
}

/* Applies the window across a part of a row of one channel. out [SSIM_MOMENTS, n], a and b [n + 10, 3], row:
 * memory for [SSIM_MOMENTS, n + 10] */
static inline void ssim_row(double *out, double *row, const uint8_t *a, const uint8_t *b, int n, const double *w) {
    const int wide = n + SSIM_WINDOW - 1;
    for (int i = 0; i < wide; i++) {
        const double x = a[3 * i], y = b[3 * i];
        row[i] = x;
        row[wide + i] = y;
        row[2 * wide + i] = x * x + y * y;
        row[3 * wide + i] = x * y;
    }
    for (int m = 0; m < SSIM_MOMENTS; m++) {
        const double *in[SSIM_WINDOW];
        for (int k = 0; k < SSIM_WINDOW; k++) in[k] = row + m * wide + k;
        ssim_blur(out + m * n, in, n, w);
    }
}

/* The sum of the similarities at n places. moments [SSIM_MOMENTS, n]; s: memory for n values */
static inline double ssim_sum(const double *moments, double *__restrict__ s, int n) {
    const double C1 = (0.01 * 255) * (0.01 * 255), C2 = (0.03 * 255) * (0.03 * 255);
    const double *ux = moments, *uy = ux + n, *squares = uy + n, *product = squares + n;
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const double u = ux[i] * uy[i], uu = ux[i] * ux[i] + uy[i] * uy[i];
        s[i] = (2 * u + C1) * (2 * (product[i] - u) + C2) / ((uu + C1) * (squares[i] - uu + C2));
    }
    for (int i = 0; i < n; i++) sum += s[i];
    return sum;
}

enum { SSIM_STRIP = 64 };  // places side by side that are done together: their blurred rows stay in the first cache

/* The sum over a strip of n <= SSIM_STRIP places side by side, from the top of one channel of a and b [S, S, 3] to its
 * bottom. Where both images are the same in all of the windows, as on paper, the similarity is 1 without computing. */
static inline double ssim_strip(const uint8_t *a, const uint8_t *b, int S, int n, const double *w) {
    double ring[SSIM_WINDOW][SSIM_MOMENTS * SSIM_STRIP], moments[SSIM_MOMENTS * SSIM_STRIP], sum = 0;
    double row[SSIM_MOMENTS * (SSIM_STRIP + SSIM_WINDOW - 1)];
    const size_t stride = 3 * (size_t)S, bytes = 3 * (size_t)(n + SSIM_WINDOW - 1) - 2;
    int same = 0,
        blurred = 0;  // rows that are the same up to this one; rows that the ring has had, or that were left out
    for (int y = 0; y < S; y++) {
        const double *in[SSIM_WINDOW];
        same = memcmp(a + y * stride, b + y * stride, bytes) ? 0 : same + 1;
        if (y + 1 < SSIM_WINDOW) continue;
        if (same >= SSIM_WINDOW) {
            sum += n;
            continue;
        }
        if (blurred <= y - SSIM_WINDOW) blurred = y - SSIM_WINDOW + 1;
        for (; blurred <= y; blurred++)
            ssim_row(ring[blurred % SSIM_WINDOW], row, a + blurred * stride, b + blurred * stride, n, w);
        for (int k = 0; k < SSIM_WINDOW; k++) in[k] = ring[(y + 1 + k) % SSIM_WINDOW];
        ssim_blur(moments, in, SSIM_MOMENTS * n, w);
        sum += ssim_sum(moments, row, n);
    }
    return sum;
}

/* The similarity of pixels u8 [S, S, 3], S at least SSIM_WINDOW; at most 1. */
static inline double ssim(const uint8_t *a, const uint8_t *b, int S) {
    const int W = S - SSIM_WINDOW + 1;
    double w[SSIM_RADIUS + 1], sum = 0;
    ssim_weights(w);
    for (int c = 0; c < 3; c++)
        for (int x = 0; x < W; x += SSIM_STRIP)
            sum += ssim_strip(a + 3 * x + c, b + 3 * x + c, S, W - x < SSIM_STRIP ? W - x : SSIM_STRIP, w);
    return sum / (3.0 * W * W);
}

#endif
