/* Tests of lib/image_augment.h: each operation against its properties and, where there is one, a plain formula;
 * reading of the option's text; independence of order and threads; odd sizes.
 *
 *   test_augment                       runs the tests
 *   test_augment --sheet OUT.png IMAGE draws the image as a model sees it: a row for each operation, then mixtures */
#include "samples.h"

#include "../lib/image_augment.h"
#include "../lib/png_write.h"
#include "../lib/threads.h"

static Image image_new(int width, int height, uint8_t value) {
    Image p = {width, height, xmalloc(3 * (size_t)width * (size_t)height)};
    memset(p.rgb, value, 3 * (size_t)width * (size_t)height);
    return p;
}

/* An image of random smooth blobs and lines, not white at its border. */
static Image image_drawn(int width, int height, uint64_t seed) {
    uint8_t *rgb = draw_image(width, height, 3, seed);
    return (Image){width, height, rgb};
}

static bool image_same(const Image *a, const Image *b) {
    return a->width == b->width && a->height == b->height &&
           !memcmp(a->rgb, b->rgb, 3 * (size_t)a->width * (size_t)a->height);
}

/* The largest difference of two images of the same size; 256: another size. */
static int image_difference(const Image *a, const Image *b) {
    int most = 0;
    if (a->width != b->width || a->height != b->height) return 256;
    for (size_t i = 0, n = 3 * (size_t)a->width * (size_t)a->height; i < n; i++) {
        const int d = abs(a->rgb[i] - b->rgb[i]);
        most = d > most ? d : most;
    }
    return most;
}

static Augment augment_of(const char *text) {
    Augment a;
    Error err;
    die_if(augment_parse(&a, text, &err), &err);
    return a;
}

/* ---- the text of the option ---- */

static void test_parse(void) {
    static const struct {
        const char *text, *part;
    } bad[] = {{"", "there is no augmentation ''"},
               {"bluer=0.5", "there is no augmentation 'bluer'; expected some of all, elastic, rotate, scale,"},
               {"blur=", "'blur=' cannot be read"},
               {"blur=0.5x", "'blur=0.5x' cannot be read"},
               {"blur=0.5:1..", "'blur=0.5:1..' cannot be read"},
               {"blur=0.5:1..2..3", "cannot be read"},
               {"blur=0.5:1-2", "cannot be read"},
               {"blur=nan", "cannot be read"},
               {"blur=1e999", "cannot be read"},
               {"blur=00000000000000000000000000000000000000000000001", "cannot be read"},
               {"blur=1.5", "has probability 1.5; 0 to 1 was expected"},
               {"blur=-0.1", "has probability -0.1; 0 to 1 was expected"},
               {"blur=1:2..1", "has strength 2 to 1; from small to large, within 0.1 to 20"},
               {"blur=1:0", "has strength 0 to 0; from small to large, within 0.1 to 20"},
               {"jpeg=1:20..101", "within 1 to 100"},
               {"invert=1:2", "has a strength, and invert takes none"},
               {"all=1:2", "has a strength, and all takes none"},
               {"blur,", "there is no augmentation ''"},
               {"blur,,jpeg", "there is no augmentation ''"},
               {"none,blur", "there is no augmentation 'none'"}};
    Augment a;
    Error err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err.text[0] = '\0';
        const bool refused = augment_parse(&a, bad[i].text, &err) != 0;
        check(refused && strstr(err.text, bad[i].part), __FILE__, __LINE__, bad[i].text, err.text);
    }
    const int blur = augment_find("blur", 4), jpeg = augment_find("jpeg", 4), light = augment_find("light", 5);
    for (int i = 0; i < AUGMENT_OPERATIONS; i++) CHECK((int)augment_kinds[i].operation == i);  // in the table's order
    a = augment_of("all=0.25,jpeg=0.5:25..90,blur:1.5,invert=0");
    for (int i = 0; i < AUGMENT_OPERATIONS; i++)
        if (i != blur && i != jpeg && i != AUGMENT_INVERT)
            CHECK(a.set[i].p == (i == AUGMENT_CLEAN || i == light ? 0 : 0.25));
    CHECK(a.set[jpeg].p == 0.5 && a.set[jpeg].low == 25 && a.set[jpeg].high == 90 && a.set[AUGMENT_INVERT].p == 0);
    CHECK(a.set[blur].p == 1 && a.set[blur].low == 1.5 && a.set[blur].high == 1.5);
    a = augment_of("scale=1e-1:.5..2.5,noise");
    CHECK(a.set[AUGMENT_SCALE].p == 0.1 && a.set[AUGMENT_SCALE].low == 0.5 && a.set[AUGMENT_SCALE].high == 2.5);
    CHECK(a.set[AUGMENT_NOISE].p == 1 && a.set[AUGMENT_NOISE].low == 1 && a.set[AUGMENT_NOISE].high == 10);
    const Augment none = augment_of("none"), old = augment_of("true"), named = augment_of("light");
    a = augment_of("false");
    CHECK(!memcmp(&a, &none, sizeof a) && !memcmp(&old, &named, sizeof old) && named.set[light].p == 1);
    CHECK(!augment_needs_image(&none) && !augment_needs_image(&named) &&
          augment_needs_image(&(Augment){{{0.1, 0, 1}}}));
}

/* ---- what is drawn ---- */

static void test_probability(void) {
    enum { N = 4000 };
    const Augment a = augment_of("all=0.3,clean=0.3,light=0.3");
    for (int i = 0; i < AUGMENT_OPERATIONS; i++) {
        int drawn = 0, again = 0;
        for (uint32_t sample = 0; sample < N; sample++) {
            Random random;
            const bool first = augment_draw(&a, i, 7, 2, sample, &random);
            drawn += first;
            again += first && augment_draw(&a, i, 7, 3, sample, &random);
        }
        CHECK(abs(drawn - 3 * N / 10) < 150 && abs(again - 9 * N / 100) < 100);  // 5 standard deviations
    }
    const Augment never = augment_of("all=0,clean=0,light=0");
    Image p = image_drawn(37, 23, 5), before = image_copy(&p);
    uint8_t pixels[3 * 16 * 16], same[3 * 16 * 16];
    image_prepare(same, &before, image_square(16));
    for (uint32_t sample = 0; sample < 100; sample++) {
        const ImageBox box = augment_image(&never, &p, 1, 0, sample);
        image_prepare_box(pixels, &p, box, image_square(16));
        augment_prepared(&never, pixels, image_square(16), 1, 0, sample);
        CHECK(image_same(&p, &before) && !memcmp(pixels, same, sizeof same));
    }
    image_free(&p);
    image_free(&before);
}

/* What one operation does to a sample is the same when another may come too, but does not. */
static void test_independent(void) {
    const Augment one = augment_of("rotate=0.5"), two = augment_of("rotate=0.5,jpeg=0.5");
    const Image original = image_drawn(40, 30, 3);
    int equal = 0;
    for (uint32_t sample = 0; sample < 40; sample++) {
        Image p = image_copy(&original), q = image_copy(&original);
        Random random;
        augment_image(&one, &p, 5, 1, sample);
        augment_image(&two, &q, 5, 1, sample);
        if (!augment_draw(&two, AUGMENT_JPEG, 5, 1, sample, &random)) {
            CHECK(image_same(&p, &q));
            equal++;
        }
        image_free(&p);
        image_free(&q);
    }
    CHECK(equal > 5 && equal < 35);
    free(original.rgb);
}

/* ---- shape ---- */

/* One channel of a resized image, from the formula: the kernel, stretched where the image becomes smaller. */
static double resized_value(const Image *p, ImageFilter filter, int width, int height, int x, int y, int k) {
    const double sx = (double)p->width / width, sy = (double)p->height / height;
    const double wx = fmax(sx, 1), wy = fmax(sy, 1);
    double sum = 0, weights = 0;
    for (int v = 0; v < p->height; v++)
        for (int u = 0; u < p->width; u++) {
            const double a = (u + 0.5 - (x + 0.5) * sx) / wx, b = (v + 0.5 - (y + 0.5) * sy) / wy;
            if (fabs(a) > filter.support || fabs(b) > filter.support) continue;
            const double w = filter.kernel(a) * filter.kernel(b);
            sum += w * p->rgb[3 * (v * p->width + u) + k];
            weights += w;
        }
    return fmin(fmax(sum / weights, 0), 255);
}

static void test_scale(void) {
    static const double factors[] = {0.5, 0.73, 1.4, 2, 4};
    for (int f = 0; f < AUGMENT_FILTERS; f++)
        for (int i = 0; i < 5; i++) {
            Image p = image_drawn(24, 19, 8);
            augment_tone(&p, 0.5, 0);  // so that no value between the passes is clipped
            Image q = image_copy(&p);
            double worst = 0;
            augment_scale(&q, factors[i], augment_filters[f]);
            CHECK(q.width == (int)nearbyint(24 * factors[i]) && q.height == (int)nearbyint(19 * factors[i]));
            for (int y = 0; y < q.height; y += 3)
                for (int x = 0; x < q.width; x++) {
                    const double want = resized_value(&p, augment_filters[f], q.width, q.height, x, y, x % 3);
                    worst = fmax(worst, fabs(want - q.rgb[3 * (y * q.width + x) + x % 3]));
                }
            CHECK(worst < 1.2);
            image_free(&q);
            free(p.rgb);
        }
    CHECK(augment_filters[0].kernel(0.5) == 1 && augment_filters[0].kernel(-0.5) == 0 &&
          augment_filters[0].support == 0.5);
    CHECK(augment_filters[1].kernel(-0.25) == 0.75 && augment_filters[1].kernel(1) == 0 &&
          augment_filters[1].support == 1);
    Image p = image_new(600, 300, 255);
    augment_scale(&p, 4, augment_filters[1]);
    CHECK(p.width == AUGMENT_MOST_SIDE && p.height == AUGMENT_MOST_SIDE / 2);
    image_free(&p);
    p = image_new(1500, 300, 255);
    augment_scale(&p, 4, augment_filters[1]);
    CHECK(p.width == 1500 && p.height == 300);
    augment_scale(&p, 0.001, augment_filters[1]);
    CHECK(p.width == 2 && p.height == 1);
    image_free(&p);
}

/* Factors are as often below 1.41 as above: the middle of 0.5 to 4 in logarithms. */
static void test_scale_range(void) {
    const Augment a = augment_of("scale");
    int below = 0, least = 1000, most = 0;
    for (uint32_t sample = 0; sample < 400; sample++) {
        Image p = image_new(40, 1, 255);
        augment_image(&a, &p, 1, 0, sample);
        below += p.width < 40 * 1.4142;
        least = p.width < least ? p.width : least;
        most = p.width > most ? p.width : most;
        image_free(&p);
    }
    CHECK(abs(below - 200) < 50 && least >= 20 && least <= 21 && most <= 160 && most >= 155);
}

static void test_rotate(void) {
    static const double degrees[] = {0, 1, -3, 17, 45, 90};
    for (int i = 0; i < 6; i++) {
        Image p = image_drawn(50, 31, 2), q = image_copy(&p), original = image_copy(&p);
        augment_rotate(&p, degrees[i]);
        image_rotate(&q, degrees[i]);
        CHECK(image_difference(&p, &q) <= 6);  // places are rounded to 1/64 pixel
        if (i == 0) CHECK(image_same(&p, &original));
        image_free(&p);
        image_free(&q);
        image_free(&original);
    }
    const Augment a = augment_of("rotate:2");
    int clockwise = 0;
    for (uint32_t sample = 0; sample < 100; sample++) {  // a mark at the upper right goes down, or does not
        Image p = image_new(101, 41, 255);
        p.rgb[3 * (20 * 101 + 100)] = p.rgb[3 * (20 * 101 + 99)] = 0;
        augment_image(&a, &p, 1, 0, sample);
        clockwise += image_trim(&p, 200).y > p.height / 2 - 1;
        image_free(&p);
    }
    CHECK(clockwise > 25 && clockwise < 75);
}

/* Centre of the ink of an image. */
static void ink_centre(const Image *p, double *x, double *y) {
    double sum = 0;
    *x = *y = 0;
    for (int v = 0; v < p->height; v++)
        for (int u = 0; u < p->width; u++) {
            const double ink = 255 - p->rgb[3 * (v * p->width + u)];
            *x += ink * (u + 0.5);
            *y += ink * (v + 0.5);
            sum += ink;
        }
    *x /= sum;
    *y /= sum;
}

/* The displacement has the root mean square that was asked for, and moves a dot as far as the field says. */
static void test_elastic(void) {
    double square = 0, step = 0;
    int count = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        Random random;
        random_seed(&random, seed);
        AugmentField f = augment_field(&random, 90, 60, 15, 2);
        for (int y = 0; y < 60; y += 5) {
            float xs[90] = {0}, ys[90] = {0};
            AugmentKnots down, across[90];
            augment_knots(&down, &f, (float)y + 0.5f, 1, 60);
            augment_knots(across, &f, 0.5f, 90, 90);
            augment_field_add(&f, &down, across, 90, (float[40]){0}, xs, ys);
            for (int x = 0; x < 90; x++, count += 2) {
                square += xs[x] * xs[x] + ys[x] * ys[x];
                if (x) step = fmax(step, fabs(xs[x] - xs[x - 1]));
                CHECK(fabs(xs[x]) <= augment_field_most(&f) && fabs(ys[x]) <= augment_field_most(&f));
            }
        }
        augment_field_free(&f);
    }
    CHECK(fabs(sqrt(square / count) - 2) < 0.1 && step < 1);
    for (float t = 0; t <= 1; t += 0.125f) {  // the weights add up to 1, and their mean place is t
        float w[4];
        augment_spline(w, t);
        CHECK(fabs(w[0] + w[1] + w[2] + w[3] - 1) < 1e-6 && fabs(w[2] + 2 * w[3] - w[0] - t) < 1e-6);
    }
    for (uint64_t seed = 0; seed < 20; seed++) {
        Image p = image_new(120, 80, 255);
        for (int y = 0; y < 5; y++) memset(p.rgb + 3 * ((30 + y) * 120 + 50), 0, 15);
        Random random, same;
        random_seed(&random, seed);
        same = random;
        augment_elastic(&p, 1, &random);
        const double rms = 1.2;
        AugmentField fields[2] = {augment_field(&same, 120, 80, 20, rms * sqrt(16.0 / 17))};
        fields[1] = augment_field(&same, 120, 80, 5, rms * sqrt(1.0 / 17));
        double x, y;
        ink_centre(&p, &x, &y);
        const int margin = (p.width - 120) / 2;
        CHECK(p.width == 120 + 2 * margin && p.height == 80 + 2 * margin && margin >= 2 && margin < 15);
        float xs[1] = {(float)x - (float)margin}, ys[1] = {(float)y - (float)margin};
        const float u = xs[0], v = ys[0];
        for (int k = 0; k < 2; k++) {
            AugmentKnots down, across;
            augment_knots(&down, &fields[k], v, 1, 80);
            augment_knots(&across, &fields[k], u, 1, 120);
            augment_field_add(&fields[k], &down, &across, 1, (float[80]){0}, xs, ys);
            augment_field_free(&fields[k]);
        }
        CHECK(fabs(xs[0] - 52.5) < 0.4 && fabs(ys[0] - 32.5) < 0.4);
        image_free(&p);
    }
    Image p = image_new(60, 44, 0);  // ink up to the border: nothing of it is cut off
    Random random;
    random_seed(&random, 9);
    augment_elastic(&p, 2, &random);
    const ImageBox box = image_trim(&p, 255);
    CHECK(box.x > 0 && box.y > 0 && box.x + box.width < p.width && box.y + box.height < p.height);
    image_free(&p);
    Image q = image_drawn(30, 20, 4);
    p = image_copy(&q);
    augment_elastic(&p, 0, &random);
    CHECK(image_same(&p, &q));
    image_free(&p);
    image_free(&q);
}

static void test_pad(void) {
    Image p = image_new(40, 30, 255);
    for (int y = 5; y < 25; y++)
        for (int x = 10; x < 35; x++) memset(p.rgb + 3 * (y * 40 + x), x + y, 3);
    const Image before = image_copy(&p);
    const Augment exact = augment_of("pad:0.2"), cleaned = augment_of("pad:0.2,clean"), usual = augment_of("pad");
    ImageBox box = augment_image(&exact, &p, 1, 0, 0);
    CHECK(p.width == 35 && p.height == 30 && box.x == 0 && box.y == 0 && box.width == 35 && box.height == 30);
    for (int y = 0; y < 20; y++)
        CHECK(!memcmp(p.rgb + 3 * ((5 + y) * 35 + 5), before.rgb + 3 * ((5 + y) * 40 + 10), 3 * 25));
    const ImageBox ink = image_trim(&p, 255);
    CHECK(ink.x == 5 && ink.y == 5 && ink.width == 25 && ink.height == 20);
    image_free(&p);
    p = image_copy(&before);
    box = augment_image(&cleaned, &p, 1, 0, 0);
    CHECK(box.width == 25 && box.height == 20);
    image_free(&p);
    int sums[2] = {0, 0};  // left and right margins
    for (uint32_t sample = 0; sample < 200; sample++) {
        p = image_copy(&before);
        augment_image(&usual, &p, 1, 0, sample);
        const ImageBox b = image_trim(&p, 255);
        sums[0] += b.x;
        sums[1] += p.width - b.x - b.width;
        CHECK(b.width == 25 && b.height == 20 && b.x <= 5 && p.width - b.x - b.width <= 5);
        image_free(&p);
    }
    CHECK(abs(sums[0] - 500) < 120 && abs(sums[1] - 500) < 120 && sums[0] != sums[1]);
    free(before.rgb);
}

/* ---- tone ---- */

static void test_tables(void) {
    Image p = image_new(256, 1, 0);
    for (int v = 0; v < 256; v++) memset(p.rgb + 3 * v, v, 3);
    const Image ramp = image_copy(&p);
    augment_tone(&p, 0.5, 10);
    for (int v = 0; v < 256; v++) CHECK(abs(p.rgb[3 * v + 1] - (int)lrint(127.5 + 0.5 * (v - 127.5) + 10)) <= 1);
    memcpy(p.rgb, ramp.rgb, 768);
    augment_tone(&p, 3, 0);
    CHECK(p.rgb[0] == 0 && p.rgb[3 * 255] == 255 && p.rgb[3 * 128] == 129);
    memcpy(p.rgb, ramp.rgb, 768);
    augment_tone(&p, 1, 0);
    CHECK(image_same(&p, &ramp));
    augment_background(&p, (double[]){255, 200, 102});
    for (int v = 0; v < 256; v += 51)
        CHECK(p.rgb[3 * v] == v && p.rgb[3 * v + 1] == (v * 400 + 255) / 510 &&
              p.rgb[3 * v + 2] == (v * 204 + 255) / 510);
    memcpy(p.rgb, ramp.rgb, 768);
    const Augment twice = augment_of("invert");
    augment_image(&twice, &p, 1, 0, 0);
    CHECK(p.rgb[0] == 255 && p.rgb[3 * 255] == 0);
    augment_image(&twice, &p, 1, 0, 1);
    CHECK(image_same(&p, &ramp));
    int darker = 0, greyish = 0;
    const Augment brightness = augment_of("brightness:20"), background = augment_of("background:10..60");
    for (uint32_t sample = 0; sample < 100; sample++) {
        memcpy(p.rgb, ramp.rgb, 768);
        augment_image(&brightness, &p, 1, 0, sample);
        CHECK(abs(p.rgb[3 * 100] - 100) == 20);
        darker += p.rgb[3 * 100] < 100;
        memcpy(p.rgb, ramp.rgb, 768);
        augment_image(&background, &p, 1, 0, sample);
        const uint8_t *white = p.rgb + 3 * 255;
        CHECK(white[0] >= 195 && white[0] <= 245 && white[2] >= 195 && white[2] <= 245 && p.rgb[0] == 0);
        greyish += white[0] == white[1];
    }
    CHECK(darker > 25 && darker < 75 && greyish < 15);
    image_free(&p);
    free(ramp.rgb);
}

/* One channel of a blurred image, from the formula in two dimensions. */
static double blurred_value(const Image *p, double sigma, int x, int y, int k) {
    const int reach = (int)ceil(3 * sigma);
    double sum = 0, weights = 0;
    for (int j = -reach; j <= reach; j++)
        for (int i = -reach; i <= reach; i++) {
            const double w = exp(-0.5 * (i * i + j * j) / (sigma * sigma));
            const int u = x + i < 0 ? 0 : x + i < p->width ? x + i : p->width - 1;
            const int v = y + j < 0 ? 0 : y + j < p->height ? y + j : p->height - 1;
            sum += w * p->rgb[3 * (v * p->width + u) + k];
            weights += w;
        }
    return sum / weights;
}

static void test_blur(void) {
    static const double sigmas[] = {0.1, 0.3, 1, 2.3, 7};
    static const int sizes[][2] = {{31, 17}, {1, 9}, {5, 1}, {1, 1}};
    for (int s = 0; s < 5; s++)
        for (int z = 0; z < 4; z++) {
            Image p = image_drawn(sizes[z][0], sizes[z][1], 6);
            const Image before = image_copy(&p);
            double worst = 0;
            augment_blur(&p, sigmas[s]);
            for (int y = 0; y < p.height; y++)
                for (int x = 0; x < p.width; x++)
                    for (int k = 0; k < 3; k++)
                        worst = fmax(worst, fabs(blurred_value(&before, sigmas[s], x, y, k) -
                                                 p.rgb[3 * (y * p.width + x) + k]));
            CHECK(worst <= 0.51);
            image_free(&p);
            free(before.rgb);
        }
    Image white = image_new(20, 20, 255);
    augment_blur(&white, 2);
    for (int i = 0; i < 1200; i++) CHECK(white.rgb[i] == 255);
    image_free(&white);
}

static void test_noise(void) {
    for (int i = 1; i < 4096; i += 5) {  // Phi of the quantile gives its argument
        const double u = (i + 0.5) / 4096;
        CHECK(fabs(0.5 * erfc(-augment_normal_quantile(u) / sqrt(2)) - u) < 1e-7);
    }
    enum { SIDE = 200, N = 3 * SIDE * SIDE };
    for (int sigma = 2; sigma <= 20; sigma *= 3) {
        Image p = image_new(SIDE, SIDE, 128);
        Random random;
        double sum = 0, square = 0, fourth = 0, beside = 0, below = 0;
        random_seed(&random, (uint64_t)sigma);
        augment_noise(&p, sigma, &random);
        for (int i = 0; i < N; i++) {
            const double x = p.rgb[i] - 128;
            sum += x;
            square += x * x;
            fourth += x * x * x * x;
            beside += i ? x * (p.rgb[i - 1] - 128) : 0;
            below += i >= 5 ? x * (p.rgb[i - 5] - 128) : 0;
        }
        const double variance = square / N, wanted = sigma * sigma + 1.0 / 12;  // rounding adds its own
        CHECK(fabs(sum / N) < 5 * sigma / sqrt(N) && fabs(variance / wanted - 1) < 0.02);
        CHECK(fabs(fourth / N / (variance * variance) - 3) < 0.1);
        CHECK(fabs(beside / N / variance) < 0.015 && fabs(below / N / variance) < 0.015);
        image_free(&p);
    }
}

/* The same through files: libjpeg's plain way to write and read one. */
static Image jpeg_through_file(const Image *p, int quality) {
    struct jpeg_compress_struct c;
    struct jpeg_decompress_struct d;
    struct jpeg_error_mgr errors;
    Image q = image_new(p->width, p->height, 0);
    FILE *f = tmpfile();
    if (!f) die("cannot make a temporary file");
    c.err = d.err = jpeg_std_error(&errors);
    jpeg_create_compress(&c);
    jpeg_stdio_dest(&c, f);
    c.image_width = (JDIMENSION)p->width;
    c.image_height = (JDIMENSION)p->height;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, quality, TRUE);
    jpeg_start_compress(&c, TRUE);
    for (int y = 0; y < p->height; y++) jpeg_write_scanlines(&c, &(JSAMPROW){p->rgb + 3 * y * p->width}, 1);
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    rewind(f);
    jpeg_create_decompress(&d);
    jpeg_stdio_src(&d, f);
    jpeg_read_header(&d, TRUE);
    jpeg_start_decompress(&d);
    for (int y = 0; y < p->height; y++) jpeg_read_scanlines(&d, &(JSAMPROW){q.rgb + 3 * y * p->width}, 1);
    jpeg_finish_decompress(&d);
    jpeg_destroy_decompress(&d);
    fclose(f);
    return q;
}

static void test_jpeg(void) {
    double before = 0;
    for (int quality = 95; quality >= 5; quality -= 30) {
        const Image original = image_drawn(45, 37, 12);
        Image p = image_copy(&original), q = jpeg_through_file(&original, quality);
        augment_jpeg(&p, quality);
        CHECK(image_same(&p, &q));
        double error = 0;
        for (int i = 0; i < 3 * 45 * 37; i++) error += abs(p.rgb[i] - original.rgb[i]);
        CHECK(error > before);
        before = error;
        image_free(&p);
        image_free(&q);
        free(original.rgb);
    }
}

/* ---- all together ---- */

enum { SAMPLES = 48 };

/* The augmented and prepared pixels of a sample, as a number. */
static uint32_t sample_crc(const Augment *a, uint64_t seed, uint64_t epoch, uint32_t sample) {
    uint8_t pixels[3 * 24 * 24];
    Image p = image_drawn(20 + (int)sample % 31, 15 + (int)sample % 17, sample);
    const ImageBox box = augment_image(a, &p, seed, epoch, sample);
    image_prepare_box(pixels, &p, box, image_square(24));
    augment_prepared(a, pixels, image_square(24), seed, epoch, sample);
    image_free(&p);
    return crc32_bytes(0, pixels, sizeof pixels);
}

static const char mixture[] = "all=0.4,clean=0.3,light=0.3";
static uint32_t in_threads[SAMPLES];

/* Each of four threads takes every fourth sample, from the last on. */
static void *every_fourth(void *argument) {
    const Augment a = augment_of(mixture);
    for (int i = SAMPLES - 1 - (int)(uintptr_t)argument; i >= 0; i -= 4)
        in_threads[i] = sample_crc(&a, 3, 1, (uint32_t)i);
    return NULL;
}

static void test_deterministic(void) {
    const Augment a = augment_of(mixture);
    uint32_t crcs[SAMPLES];
    int other_epoch = 0, other_seed = 0;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        crcs[i] = sample_crc(&a, 3, 1, i);
        other_epoch += sample_crc(&a, 3, 2, i) != crcs[i];
        other_seed += sample_crc(&a, 4, 1, i) != crcs[i];
    }
    CHECK(other_epoch > SAMPLES - 5 && other_seed > SAMPLES - 5);
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) thread_start(&threads[i], every_fourth, (void *)i);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(!memcmp(crcs, in_threads, sizeof crcs));
}

/* Every operation, at both ends of what the user may say, on images of odd sizes. */
static void test_sizes(void) {
    static const int sizes[][2] = {{1, 1}, {1, 2}, {2, 1}, {3, 3}, {1, 13}, {29, 1}, {7, 5}, {65, 33}};
    uint8_t pixels[3 * 16 * 16];
    for (int z = 0; z < 8; z++)
        for (int i = 0; i <= 2 * AUGMENT_OPERATIONS + 1; i++)
            for (int white = 0; white < 2; white++) {
                Augment a = augment_of(i > 2 * AUGMENT_OPERATIONS ? "all,clean" : "none");
                if (i < 2 * AUGMENT_OPERATIONS) {
                    const AugmentKind *kind = &augment_kinds[i / 2];
                    const double x = i % 2 ? kind->most : kind->least;
                    a.set[i / 2] = (AugmentSetting){1, x, x};
                }
                Image p = white ? image_new(sizes[z][0], sizes[z][1], 255) : image_drawn(sizes[z][0], sizes[z][1], 1);
                const ImageBox box = augment_image(&a, &p, 1, 0, (uint32_t)(z + i));
                CHECK(box.x >= 0 && box.y >= 0 && box.width > 0 && box.height > 0 && box.x + box.width <= p.width &&
                      box.y + box.height <= p.height);
                image_prepare_box(pixels, &p, box, image_square(16));
                augment_prepared(&a, pixels, image_square(16), 1, 0, (uint32_t)(z + i));
                image_free(&p);
            }
}

/* ---- the contact sheet ---- */

enum { CELL = 160, GAP = 4, COLUMNS = 8 };

static int draw_sheet(const char *out, const char *path) {
    static const char *const mixtures[] = {"all=0.2", "all=0.3,invert=0.1", "all=0.3,clean", "light"};
    const int rows = AUGMENT_CLEAN + 4;
    Error err;
    Image original, sheet = image_new(COLUMNS * (CELL + GAP), rows * (CELL + GAP), 128);
    die_if(image_load(&original, path, &err), &err);
    uint8_t *pixels = xmalloc(3 * CELL * CELL);
    for (int row = 0; row < rows; row++) {
        const char *text = row < AUGMENT_CLEAN ? augment_kinds[row].name : mixtures[row - AUGMENT_CLEAN];
        const Augment a = augment_of(text);
        printf("row %d: %s\n", row + 1, text);
        for (int column = 0; column < COLUMNS; column++) {  // the first one is not changed
            Image p = image_copy(&original);
            const Augment none = {0}, *now = column ? &a : &none;
            const ImageBox box = augment_image(now, &p, 1, 0, (uint32_t)column);
            image_prepare_box(pixels, &p, box, image_square(CELL));
            augment_prepared(now, pixels, image_square(CELL), 1, 0, (uint32_t)column);
            for (int y = 0; y < CELL; y++)
                memcpy(sheet.rgb + 3 * ((size_t)(row * (CELL + GAP) + y) * (size_t)sheet.width +
                                        (size_t)(column * (CELL + GAP))),
                       pixels + 3 * CELL * y, 3 * CELL);
            image_free(&p);
        }
    }
    die_if(image_save_png(&sheet, out, &err), &err);
    image_free(&original);
    image_free(&sheet);
    free(pixels);
    return 0;
}

int main(int argc, char **argv) {
    program_begin(argv);
    if (argc == 4 && !strcmp(argv[1], "--sheet")) return draw_sheet(argv[2], argv[3]);
    test_parse();
    test_probability();
    test_independent();
    test_scale();
    test_scale_range();
    test_rotate();
    test_elastic();
    test_pad();
    test_tables();
    test_blur();
    test_noise();
    test_jpeg();
    test_deterministic();
    test_sizes();
    return checks_report();
}
