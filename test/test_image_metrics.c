/* Tests of metrics/image.h and metrics/kid.h: values known by hand, invariances, odd images, refusals.
 *
 *   test_image_metrics                                  the tests
 *   test_image_metrics --compare SIZE [REF HYP]...      one JSON object per pair of files, for test/compare_pictures.py
 *   test_image_metrics --time SIZE REF HYP              milliseconds per pair
 *   test_image_metrics --kid N M D SEED FILE            of float64 features [N, D] and then [M, D]; with the subsets */
#include "samples.h"

#include "../lib/clock.h"
#include "../lib/image.h"
#include "../metrics/image.h"
#include "../metrics/kid.h"

#include <omp.h>

static Image image_of(int width, int height, uint8_t value) {
    Image p = {width, height, (uint8_t *)xmalloc(3 * (size_t)width * (size_t)height)};
    memset(p.rgb, value, 3 * (size_t)width * (size_t)height);
    return p;
}

/* Coloured boxes on white, each enlarged `scale` times. */
static Image drawing(int width, int height, int scale, uint64_t seed) {
    Image p = image_of(width * scale, height * scale, 255);
    Random rng;
    random_seed(&rng, seed);
    for (int k = 0; k < 8; k++) {
        const int x = (int)random_below(&rng, (uint64_t)width),
                  w = 1 + (int)random_below(&rng, (uint64_t)(width - x));
        const int y = (int)random_below(&rng, (uint64_t)height),
                  h = 1 + (int)random_below(&rng, (uint64_t)(height - y));
        const uint32_t colour = (uint32_t)random_u64(&rng);
        for (int i = y * scale; i < (y + h) * scale; i++)
            for (int j = x * scale; j < (x + w) * scale; j++)
                memcpy(p.rgb + 3 * ((size_t)i * (size_t)p.width + (size_t)j), &colour, 3);
    }
    return p;
}

static Image noisy(const Image *p, int levels, uint64_t seed) {
    Image q = image_of(p->width, p->height, 0);
    Random rng;
    random_seed(&rng, seed);
    for (size_t i = 0; i < 3 * (size_t)p->width * (size_t)p->height; i++) {
        const int v = p->rgb[i] + (int)random_below(&rng, (uint64_t)(2 * levels + 1)) - levels;
        q.rgb[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
    return q;
}

static ImageScores scores_of(const Image *a, const Image *b, int size) {
    ImageScores s;
    Error err;
    die_if(image_scores(&s, a, b, size, &err), &err);
    return s;
}

/* ---- the metrics without a model ---- */

static void test_table(void) {
    CHECK(IMAGE_METRICS * sizeof(double) == sizeof(ImageScores));
    for (int i = 0; i < IMAGE_METRICS; i++)
        for (int j = 0; j < i; j++)
            CHECK(image_metrics[i].offset != image_metrics[j].offset &&
                  strcmp(image_metrics[i].text.key, image_metrics[j].text.key) != 0 &&
                  strcmp(image_metrics[i].text.title, image_metrics[j].text.title) != 0);
    ImageScores s;
    image_scores_none(&s);
    for (int i = 0; i < IMAGE_METRICS; i++) CHECK(isnan(image_metric_value(&image_metrics[i], &s)));
}

/* An image and its copy are alike in everything. */
static void expect_equal(const Image *p, int size) {
    const ImageScores s = scores_of(p, p, size);
    CHECK(s.exact == 1 && s.mse == 0 && s.psnr == IMAGE_PSNR_MOST && s.histogram == 1 && s.phash == 1);
    CHECK(s.sharpness == 1 && s.colour == 1 && fabs(s.ink - 1) < 1e-12 && fabs(s.ssim - 1) < 1e-12);
    CHECK(isnan(s.self_mean) && isnan(s.self_emd) && isnan(s.cdm_f1) && isnan(s.cdm_perfect));
}

static void test_equal(void) {
    static const int sizes[][2] = {{1, 1}, {1, 40}, {40, 1}, {2, 3}, {64, 64}, {120, 45}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = 0; kind < 4; kind++) {
            Image p = kind < 3 ? image_of(sizes[i][0], sizes[i][1],
                                          (uint8_t)(kind == 0   ? 255
                                                    : kind == 1 ? 0
                                                                : 128))
                               : drawing(sizes[i][0], sizes[i][1], 1, i);
            expect_equal(&p, i % 2 ? 11 : 60);
            image_free(&p);
        }
}

/* Black against white, in every size: by hand. */
static void test_black_and_white(void) {
    Image black = image_of(30, 30, 0), white = image_of(7, 3, 255);
    const ImageScores s = scores_of(&black, &white, 200);
    const double C1 = 2.55 * 2.55;
    CHECK(s.exact == 0 && s.mse == 65025 && s.psnr == 0 && s.histogram == 0);
    CHECK(fabs(s.ssim - C1 / (65025 + C1)) < 1e-12);
    CHECK(s.sharpness == 0 && s.ink == 0);
    CHECK(fabs(s.colour - 1 / (1 + 100 / 9.0)) < 1e-4);  // white is (100, 0, 0) but for the digits of the constants
    CHECK(s.phash > 0.9);                                // neither has more than its mean
    image_free(&black);
    image_free(&white);
}

static void test_symmetric(void) {
    for (uint64_t seed = 0; seed < 4; seed++) {
        Image a = drawing(50, 70, 1, seed), b = drawing(80, 33, 1, 100 + seed);
        const ImageScores ab = scores_of(&a, &b, 64), ba = scores_of(&b, &a, 64);
        for (int i = 0; i < IMAGE_METRICS; i++) {
            const double x = image_metric_value(&image_metrics[i], &ab),
                         y = image_metric_value(&image_metrics[i], &ba);
            if (image_metrics[i].kind == IMAGE_PIXELS) CHECK(fabs(x - y) < 1e-12);
        }
        CHECK(ab.exact == 0 && ab.mse > 0 && ab.ssim < 1 && ab.colour < 1 && ab.ink < 1 && ab.histogram < 1);
        image_free(&a);
        image_free(&b);
    }
}

/* The page around a drawing and the resolution do not count, except for the exact pixels. */
static void test_frame(void) {
    Image small = drawing(60, 40, 1, 5), large = drawing(60, 40, 3, 5), page = image_of(100, 90, 255);
    for (int y = 0; y < small.height; y++)
        memcpy(page.rgb + 3 * ((size_t)(y + 20) * 100 + 10), small.rgb + 3 * (size_t)y * 60, 3 * 60);
    const ImageScores on_page = scores_of(&small, &page, 120), enlarged = scores_of(&small, &large, 30);
    CHECK(on_page.exact == 0 && on_page.mse == 0 && on_page.psnr == IMAGE_PSNR_MOST && on_page.colour == 1);
    CHECK(enlarged.exact == 0 && enlarged.ssim > 0.9 && enlarged.phash > 0.9 && enlarged.ink > 0.99);
    CHECK(!image_same(&small, &page) && image_same(&small, &small));
    page.rgb[0] = 254;
    Image same_size = image_of(100, 90, 255);
    CHECK(!image_same(&page, &same_size));
    Image wider = image_of(120, 90, 255), taller = image_of(100, 95, 255);
    CHECK(!image_same(&same_size, &wider) && !image_same(&same_size, &taller));
    image_free(&same_size);
    image_free(&wider);
    image_free(&taller);
    image_free(&small);
    image_free(&large);
    image_free(&page);
}

/* More noise is worse in every metric that looks at pixels. */
static void test_order(void) {
    Image p = drawing(90, 90, 1, 11);
    memset(p.rgb, 0, 3 * 90);  // ink in the first and last row and column: the frame is the same for all
    memset(p.rgb + 3 * 90 * 89, 0, 3 * 90);
    for (size_t y = 0; y < 90; y++) memset(p.rgb + 3 * 90 * y, 0, 3), memset(p.rgb + 3 * 90 * y + 3 * 89, 0, 3);
    ImageScores before = scores_of(&p, &p, 90);
    for (int levels = 4; levels <= 64; levels *= 4) {
        Image q = noisy(&p, levels, 3);
        const ImageScores s = scores_of(&p, &q, 90);
        CHECK(s.mse > before.mse && s.psnr < before.psnr && s.ssim < before.ssim && s.sharpness < before.sharpness &&
              s.colour < before.colour && s.ink < before.ink && s.histogram < before.histogram);
        before = s;
        image_free(&q);
    }
    image_free(&p);
}

/* The variance of the Laplacian of one black pixel on white: 4 · 255 there and -255 at each of four neighbours. */
static void test_sharpness(void) {
    uint8_t grey[5 * 5];
    memset(grey, 255, sizeof grey);
    CHECK(image_sharpness(grey, 5) == 0);
    grey[12] = 0;
    CHECK(fabs(image_sharpness(grey, 5) - 255.0 * 255 * 20 / 25) < 1e-6);
    memset(grey, 255, sizeof grey);
    grey[0] = 0;  // in the corner two of the neighbours are outside
    CHECK(fabs(image_sharpness(grey, 5) - (255.0 * 255 * 18 / 25 - 255.0 * 2 / 25 * 255 * 2 / 25)) < 1e-6);
    CHECK(image_ratio(0, 0) == 1 && image_ratio(2, 4) == 0.5 && image_ratio(4, 2) == 0.5 && image_ratio(0, 1) == 0);
}

/* Bits of an image of one colour and of a symmetric image do not hang on rounding. */
static void test_phash_ties(void) {
    for (int value = 0; value < 256; value += 15) {
        Image p = image_of(50, 50, (uint8_t)value);
        CommonFrame f = frame_make(&p, 50);
        CHECK(phash(&f) == (value ? UINT64_C(1) << 63 : 0));
        frame_free(&f);
        image_free(&p);
    }
    CHECK(phash_similarity(0, UINT64_MAX) == 0 && phash_similarity(5, 4) == 1 - 1 / 64.0);
}

static void test_sizes_refused(void) {
    Image p = drawing(20, 20, 1, 2);
    ImageScores s;
    Error err;
    CHECK_ERROR(image_scores(&s, &p, &p, 10, &err), err, "expected 11 to 4096 a side");
    CHECK(isnan(s.mse));
    CHECK_ERROR(image_scores(&s, &p, &p, 4097, &err), err, "cannot be compared in 4097 x 4097 pixels");
    CHECK_OK(image_scores(&s, &p, &p, 11, &err), err);
    image_free(&p);
}

/* Pairs measured by several threads at a time have the scores of one thread. */
static void test_threads(void) {
    enum { PAIRS = 12 };
    ImageScores alone[PAIRS], together[PAIRS];
    for (int t = 1; t <= 4; t += 3) {
#pragma omp parallel for num_threads(t) schedule(dynamic)
        for (int i = 0; i < PAIRS; i++) {
            Image a = drawing(40, 50, 1, (uint64_t)i), b = drawing(45, 50, 1, (uint64_t)i + 50);
            (t == 1 ? alone : together)[i] = scores_of(&a, &b, 48);
            image_free(&a);
            image_free(&b);
        }
    }
    CHECK(!memcmp(alone, together, sizeof alone));
}

/* ---- features ---- */

static double *features(int n, int d, double shift, uint64_t seed) {
    double *x = (double *)xmalloc((size_t)n * (size_t)d * sizeof *x);
    Random rng;
    random_seed(&rng, seed);
    for (int i = 0; i < n * d; i++) x[i] = (double)random_normal(&rng) + shift;
    return x;
}

static void test_self_similarity(void) {
    Image p = drawing(20, 20, 1, 2);
    ImageScores s = scores_of(&p, &p, 30);
    double *a = features(9, 5, 0, 1), *b = features(9, 5, 0, 2);
    image_scores_of_features(&s, a, a, 9, 5);
    CHECK(fabs(s.self_mean - 1) < 1e-12 && fabs(s.self_emd - 1) < 1e-12 && s.mse == 0);
    image_scores_of_features(&s, a, b, 9, 5);
    CHECK(s.self_mean == similarity_features(SIMILARITY_MEAN, a, b, 9, 5) && s.self_mean < 1);
    CHECK(s.self_emd == similarity_features(SIMILARITY_EMD, a, b, 9, 5) && s.self_emd < 1);
    free(a);
    free(b);
    image_free(&p);
}

static void test_kid_values(void) {
    const double a[] = {0, 1}, b[] = {0, 2}, broken[] = {0, NAN};
    Kid k;
    Error err;
    CHECK_OK(kid(&k, a, 2, b, 2, 1, 1, &err), err);
    CHECK(fabs(k.mean + 13) < 1e-12 && k.deviation == 0 && k.subset_size == 2);  // 1 + 1 - 2 / 4 (1 + 1 + 1 + 27)
    CHECK_ERROR(kid(&k, a, 1, b, 2, 1, 1, &err), err, "needs two images of each set; there are 1 and 2");
    CHECK_ERROR(kid(&k, a, 2, b, 0, 1, 1, &err), err, "there are 2 and 0");
    CHECK_ERROR(kid(&k, a, 2, broken, 2, 1, 1, &err), err, "not all finite");
}

/* Sets from one distribution are near 0, others are not; the seed decides, the threads do not. */
static void test_kid_sets(void) {
    double *a = features(120, 13, 0, 1), *b = features(90, 13, 0, 2), *c = features(90, 13, 0.7, 3);
    Kid near, far, again, other, back;
    Error err;
    omp_set_num_threads(1);
    CHECK_OK(kid(&near, a, 120, b, 90, 13, 7, &err), err);
    CHECK_OK(kid(&far, a, 120, c, 90, 13, 7, &err), err);
    CHECK(fabs(near.mean) < 0.1 && far.mean > 1 && near.deviation > 0 && near.subset_size == KID_SUBSET_SIZE);
    omp_set_num_threads(3);
    CHECK_OK(kid(&again, a, 120, c, 90, 13, 7, &err), err);
    CHECK(again.mean == far.mean && again.deviation == far.deviation);
    CHECK_OK(kid(&other, a, 120, c, 90, 13, 8, &err), err);
    CHECK(other.mean != far.mean && fabs(other.mean - far.mean) < 0.3);
    CHECK_OK(kid(&back, c, 90, a, 120, 13, 7, &err), err);
    CHECK(fabs(back.mean - far.mean) < 0.3);  // other subsets of the same sets
    free(a);
    free(b);
    free(c);
}

/* Subsets have no image twice, and every image has its turn. */
static void test_kid_draw(void) {
    enum { N = 70 };
    int drawn[N] = {0}, twice = 0, never = 0;
    uint32_t chosen[N];
    for (int subset = 0; subset < KID_SUBSETS; subset++) {
        bool seen[N] = {false};
        kid_draw(chosen, N, KID_SUBSET_SIZE, 3, subset, 0);
        for (int i = 0; i < KID_SUBSET_SIZE; i++) {
            twice += seen[chosen[i]];
            seen[chosen[i]] = true;
            drawn[chosen[i]]++;
        }
    }
    for (int i = 0; i < N; i++) never += drawn[i] < 40 || drawn[i] > 95;  // 71 are expected, with a deviation of 4.5
    CHECK(twice == 0 && never == 0);
}

/* ---- for test/compare_pictures.py ---- */

static void load(Image *p, const char *path) {
    Error err;
    die_if(image_load(p, path, &err), &err);
}

static void compare_pair(const char *reference, const char *hypothesis, int size) {
    Image a, b;
    JsonWriter w = {0};
    load(&a, reference);
    load(&b, hypothesis);
    const ImageScores s = scores_of(&a, &b, size);
    CommonFrame f = frame_make(&a, size);
    char hash[17];
    double moments[COLOUR_MOMENTS];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)phash(&f));
    colour_moments(moments, f.rgb, (size_t)size * (size_t)size);
    json_begin_object(&w);
    for (int i = 0; i < IMAGE_METRICS; i++)
        json_key(&w, image_metrics[i].text.key), json_number(&w, image_metric_value(&image_metrics[i], &s));
    json_key(&w, "hash"), json_string(&w, hash);
    json_key(&w, "sharpness"), json_number(&w, image_sharpness(f.grey, size));
    json_key(&w, "moments"), json_begin_array(&w);
    for (int i = 0; i < COLOUR_MOMENTS; i++) json_number(&w, moments[i]);
    json_end_array(&w);
    json_end_object(&w);
    if (json_write_line(&w, stdout)) die("cannot write to the standard output");
    json_writer_free(&w);
    frame_free(&f);
    image_free(&a);
    image_free(&b);
}

static int compare_pairs(int count, char **arguments) {
    for (int i = 1; i + 1 < count; i += 2) compare_pair(arguments[i], arguments[i + 1], atoi(arguments[0]));
    return fflush(stdout) != 0;
}

static int time_pair(int count, char **arguments) {
    enum { TIMES = 20 };
    if (count != 3) die("usage: --time SIZE REF HYP");
    Image a, b;
    load(&a, arguments[1]);
    load(&b, arguments[2]);
    double best = INFINITY;
    for (int i = 0; i < TIMES; i++) {
        const double start = seconds_now();
        scores_of(&a, &b, atoi(arguments[0]));
        best = fmin(best, seconds_now() - start);
    }
    printf("%.2f ms per pair\n", 1e3 * best);
    return 0;
}

static int compare_kid(int count, char **arguments) {
    if (count != 5) die("usage: --kid N M D SEED FILE");
    const int n = atoi(arguments[0]), m = atoi(arguments[1]), d = atoi(arguments[2]);
    const uint64_t seed = strtoull(arguments[3], NULL, 10);
    MappedFile f;
    JsonWriter w = {0};
    Kid k;
    Error err;
    die_if(file_map(&f, arguments[4], &err), &err);
    if (f.size != ((size_t)n + (size_t)m) * (size_t)d * sizeof(double)) die("%s has another size", arguments[4]);
    const double *a = (const double *)(const void *)f.data;
    die_if(kid(&k, a, n, a + (size_t)n * (size_t)d, m, d, seed, &err), &err);
    uint32_t *chosen = (uint32_t *)xmalloc((size_t)(n > m ? n : m) * sizeof *chosen);
    json_begin_object(&w);
    json_key(&w, "mean"), json_number(&w, k.mean);
    json_key(&w, "deviation"), json_number(&w, k.deviation);
    json_key(&w, "subsets"), json_begin_array(&w);
    for (int i = 0; i < 2 * KID_SUBSETS; i++) {
        kid_draw(chosen, i % 2 ? m : n, k.subset_size, seed, i / 2, i % 2);
        json_begin_array(&w);
        for (int j = 0; j < k.subset_size; j++) json_integer(&w, chosen[j]);
        json_end_array(&w);
    }
    json_end_array(&w);
    json_end_object(&w);
    if (json_write_line(&w, stdout)) die("cannot write to the standard output");
    json_writer_free(&w);
    free(chosen);
    file_unmap(&f);
    return fflush(stdout) != 0;
}

int main(int argc, char **argv) {
    program_begin(argv);
    if (argc > 2 && !strcmp(argv[1], "--compare")) return compare_pairs(argc - 2, argv + 2);
    if (argc > 2 && !strcmp(argv[1], "--time")) return time_pair(argc - 2, argv + 2);
    if (argc > 2 && !strcmp(argv[1], "--kid")) return compare_kid(argc - 2, argv + 2);
    test_table();
    test_equal();
    test_black_and_white();
    test_symmetric();
    test_frame();
    test_order();
    test_sharpness();
    test_phash_ties();
    test_sizes_refused();
    test_threads();
    test_self_similarity();
    test_kid_values();
    test_kid_sets();
    test_kid_draw();
    return checks_report();
}
