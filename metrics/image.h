/* How alike two images are, in many numbers: for eval's tables and report.
 *
 *   ImageScores s;
 *   if (image_scores(&s, &reference, &hypothesis, 420, &err)) ...       // without a model
 *   image_scores_of_features(&s, a, b, patches, channels);              // where there is one: self-similarity
 *   s.cdm_f1 = score.f1, s.cdm_perfect = score.perfect;                 // of formulas, from metrics/cdm.h
 *   for (int i = 0; i < IMAGE_METRICS; i++) ... image_metric_value(&image_metrics[i], &s)
 *
 * One struct per pair; a mean over the pairs is the metric of a model (paired resampling needs the values). In the report, a
 * hypothesis that could not be drawn counts as a white image (suite_load), and its CDM is 0; where it is the reference, the pair
 * has no scores (image_scores_none: NaN, null in JSON). Everything but `exact` is measured in the common frame of
 * metrics/frame.h. Each call uses one thread and memory of its own; several may run at a time. */
#ifndef METRICS_IMAGE_H
#define METRICS_IMAGE_H

#include "colour.h"
#include "metric_text.h"
#include "phash.h"
#include "similarity.h"
#include "ssim.h"

typedef struct {
    double exact;                // 1: the images as given have the same size and the same pixels
    double mse;                  // mean squared difference of the colour values 0 .. 255
    double psnr;                 // dB: 10 log10(255² / mse), at most IMAGE_PSNR_MOST
    double ssim;                 // structural similarity, mean of the channels
    double histogram;            // Bhattacharyya's coefficient of the joint histograms, 8 levels a channel
    double phash;                // share of equal bits of the perceptual hashes
    double sharpness;            // ratio of the variances of the Laplacian
    double colour;               // similarity of the first three moments of each channel of Lab
    double ink;                  // similarity.h: cosine of the ink at several resolutions
    double self_mean, self_emd;  // similarity.h: self-similarity; NaN without features
    double cdm_f1, cdm_perfect;  // cdm.h: symbols that match; NaN where the caller does not set them
} ImageScores;

/* The peak signal-to-noise ratio of equal images is infinite, of which no mean can be taken: it counts as this. A single
 * value of a 128 x 128 image that differs by 1 gives 95 dB. */
#define IMAGE_PSNR_MOST 100.0

enum { IMAGE_SCORES_LEAST_SIZE = SSIM_WINDOW, IMAGE_SCORES_MOST_SIZE = 4096 };

/* What a metric is measured on. */
typedef enum { IMAGE_PIXELS, IMAGE_FEATURES, IMAGE_FORMULAS } ImageMetricKind;

typedef struct {
    MetricText text;
    size_t offset;  // of the double in ImageScores
    ImageMetricKind kind;
} ImageMetric;

static const ImageMetric image_metrics[] = {
    {{"exact_pixels", "Exact pixels", "Share of the programs that draw every pixel of the reference's drawing.", 1,
      "exact"},
     offsetof(ImageScores, exact),
     IMAGE_PIXELS},
    {{"mse", "MSE", "Mean squared difference of the colours (0 to 255), in a common frame.", -1, NULL},
     offsetof(ImageScores, mse),
     IMAGE_PIXELS},
    {{"psnr", "PSNR", "Peak signal-to-noise ratio in dB; at most 100, which equal drawings have.", 1, NULL},
     offsetof(ImageScores, psnr),
     IMAGE_PIXELS},
    {{"ssim", "SSIM", "Structural similarity (11 x 11 Gaussian).", 1, "SSIM"},
     offsetof(ImageScores, ssim),
     IMAGE_PIXELS},
    {{"histogram_similarity", "Histogram", "Bhattacharyya coefficient of the colours' histograms.", 1, NULL},
     offsetof(ImageScores, histogram),
     IMAGE_PIXELS},
    {{"perceptual_hash", "Perceptual hash", "Share of equal bits of 64, from a cosine transform.", 1, "hash"},
     offsetof(ImageScores, phash),
     IMAGE_PIXELS},
    {{"sharpness_ratio", "Sharpness ratio", "Variances of the Laplacian, the smaller divided by the larger.", 1,
      NULL},
     offsetof(ImageScores, sharpness),
     IMAGE_PIXELS},
    {{"colour_similarity", "Colour", "Similarity of the moments of the colours in Lab.", 1, "colour"},
     offsetof(ImageScores, colour),
     IMAGE_PIXELS},
    {{"ink_similarity", "Ink", "Cosine of the ink at several resolutions, which search and candidates go by.", 1,
      "ink"},
     offsetof(ImageScores, ink),
     IMAGE_PIXELS},
    {{"selfsim_mean", "Self-similarity, mean", "Cosine of the mean features of a vision encoder.", 1, NULL},
     offsetof(ImageScores, self_mean),
     IMAGE_FEATURES},
    {{"selfsim_emd", "Self-similarity, EMD", "Earth mover's distance of the features, as a similarity.", 1, NULL},
     offsetof(ImageScores, self_emd),
     IMAGE_FEATURES},
    {{"cdm_f1", "CDM F1", "Character detection matching: symbols of the formula that are drawn at the right place.",
      1, "CDM"},
     offsetof(ImageScores, cdm_f1),
     IMAGE_FORMULAS},
    {{"cdm_perfect", "CDM perfect", "Share of the formulas whose symbols all match.", 1, NULL},
     offsetof(ImageScores, cdm_perfect),
     IMAGE_FORMULAS},
};
enum { IMAGE_METRICS = sizeof image_metrics / sizeof image_metrics[0] };

static inline double image_metric_value(const ImageMetric *m, const ImageScores *s) {
    return *(const double *)(const void *)((const char *)s + m->offset);
}

/* Whether two images have the same size and the same pixels. */
static inline bool image_same(const Image *a, const Image *b) {
    return a->width == b->width && a->height == b->height &&
           !memcmp(a->rgb, b->rgb, 3 * (size_t)a->width * a->height);
}

/* The mean squared difference of n values. */
static inline double image_mse(const uint8_t *a, const uint8_t *b, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n;) {  // blocks whose sums fit in 32 bits, so that the compiler vectorizes
        const size_t end = n - i < 32768 ? n : i + 32768;
        uint32_t part = 0;
        for (; i < end; i++) part += (uint32_t)((a[i] - b[i]) * (a[i] - b[i]));
        sum += part;
    }
    return (double)sum / (double)n;
}

static inline double image_psnr(double mse) {
    const double psnr = mse > 0 ? 10 * log10(255.0 * 255.0 / mse) : INFINITY;
    return psnr < IMAGE_PSNR_MOST ? psnr : IMAGE_PSNR_MOST;
}

/* The variance of the Laplacian (the four neighbours less four times the pixel) of a grey image [S, S] on white paper:
 * large where edges are sharp and many. */
static inline double image_sharpness(const uint8_t *grey, int S) {
    const double n = (double)S * S;
    double sum = 0, squares = 0;  // of whole numbers below 2^53: exact
    uint8_t *white = (uint8_t *)xmalloc((size_t)S);
    memset(white, 255, (size_t)S);
    for (int y = 0; y < S; y++) {
        const uint8_t *row = grey + (size_t)y * S, *up = y ? row - S : white, *down = y + 1 < S ? row + S : white;
        int64_t row_sum = 0, row_squares = 0;
        for (int x = 0; x < S; x++) {
            const int left = x ? row[x - 1] : 255, right = x + 1 < S ? row[x + 1] : 255;
            const int laplacian = up[x] + down[x] + left + right - 4 * row[x];
            row_sum += laplacian;
            row_squares += laplacian * laplacian;
        }
        sum += (double)row_sum;
        squares += (double)row_squares;
    }
    free(white);
    return squares / n - sum / n * (sum / n);
}

/* The smaller one through the larger one; 1 where both are 0. */
static inline double image_ratio(double a, double b) {
    const double larger = a > b ? a : b;
    return larger > 0 ? (a < b ? a : b) / larger : 1;
}

/* The scores of a pair without any: NaN. */
static inline void image_scores_none(ImageScores *s) {
    for (int i = 0; i < IMAGE_METRICS; i++) *(double *)(void *)((char *)s + image_metrics[i].offset) = NAN;
}

/* The scores of two images in a common frame of size x size pixels; those of features and formulas are NaN. Returns 0, or -1 with *err
 * filled where the size is too small for the window of the structural similarity, or too large. */
static inline int image_scores(ImageScores *s, const Image *reference, const Image *hypothesis, int size,
                               Error *err) {
    image_scores_none(s);
    if (size < IMAGE_SCORES_LEAST_SIZE || size > IMAGE_SCORES_MOST_SIZE)
        return error_set(err, "images cannot be compared in %d x %d pixels; expected %d to %d a side", size, size,
                         IMAGE_SCORES_LEAST_SIZE, IMAGE_SCORES_MOST_SIZE);
    CommonFrame a = frame_make(reference, size), b = frame_make(hypothesis, size);
    const size_t n = (size_t)size * size;
    s->exact = image_same(reference, hypothesis);
    s->mse = image_mse(a.rgb, b.rgb, 3 * n);
    s->psnr = image_psnr(s->mse);
    s->ssim = ssim(a.rgb, b.rgb, size);
    s->histogram = histogram_similarity(a.rgb, b.rgb, n);
    s->phash = phash_similarity(phash(&a), phash(&b));
    s->sharpness = image_ratio(image_sharpness(a.grey, size), image_sharpness(b.grey, size));
    s->colour = colour_similarity(a.rgb, b.rgb, n);
    s->ink = similarity_of_pixels(a.rgb, b.rgb, image_square(size));
    frame_free(&a);
    frame_free(&b);
    return 0;
}

/* Adds self-similarity, from the features [P, C] that a vision encoder makes of the two images. */
static inline void image_scores_of_features(ImageScores *s, const double *a, const double *b, int P, int C) {
    s->self_mean = similarity_features(SIMILARITY_MEAN, a, b, P, C);
    s->self_emd = similarity_features(SIMILARITY_EMD, a, b, P, C);
}

#endif
