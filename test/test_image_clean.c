/* Tests of lib/image_clean.h: clean figures stay as they are, what people do to images is undone, odd images do no harm. */
#include "samples.h"

#include "../lib/image_clean.h"

static Image image_new(int width, int height, uint8_t value) {
    Image p = {.width = width, .height = height, .rgb = (uint8_t *)xmalloc(3 * (size_t)width * (size_t)height)};
    memset(p.rgb, value, 3 * (size_t)width * (size_t)height);
    return p;
}

/* No figure of the starter pack changes by one pixel. */
static void test_clean_figures(const char *path) {
    Dataset d;
    Error err = {""};
    int changed = 0, unread = 0;
    CHECK(dataset_open(&d, (char *)path, &err) == 0);
    for (uint64_t i = 0; i < d.count; i++) {
        const Sample s = dataset_sample(&d, i);
        Image p;
        ImageCleaned c;
        if (image_decode(&p, s.image, s.image_bytes, path, &err)) {
            unread++;
            continue;
        }
        Image before = image_copy(&p);
        image_clean(&p, &c);
        changed += c.did != 0 || p.width != before.width || p.height != before.height ||
                   memcmp(p.rgb, before.rgb, 3 * (size_t)p.width * (size_t)p.height) != 0;
        image_free(&before);
        image_free(&p);
    }
    check(d.count >= 300 && !changed && !unread, __FILE__, __LINE__, path, changed ? "figures are changed" : "");
    dataset_close(&d);
}

/* The first figure of the starter pack, with a white margin of 20 pixels. */
static Image figure_with_margin(void) {
    Dataset d;
    Error err;
    Image p;
    die_if(dataset_open(&d, (char *)"dev/starter/val.bin", &err), &err);
    const Sample s = dataset_sample(&d, 0);
    die_if(image_decode(&p, s.image, s.image_bytes, "val.bin", &err), &err);
    Image wide = image_new(p.width + 40, p.height + 40, 255);
    for (int y = 0; y < p.height; y++)
        memcpy(wide.rgb + 3 * ((size_t)(y + 20) * (size_t)wide.width + 20), p.rgb + 3 * (size_t)y * (size_t)p.width,
               3 * (size_t)p.width);
    image_free(&p);
    dataset_close(&d);
    return wide;
}

/* Cleans a damaged figure, and compares the box of its ink with the undamaged one's. */
static void expect_box(Image *damaged, const Image *figure, unsigned did, const char *what) {
    ImageCleaned c;
    const ImageBox right = image_trim(figure, IMAGE_WHITE);
    image_clean(damaged, &c);
    const ImageBox box = image_trim(damaged, IMAGE_WHITE);
    check((c.did & did) == did && *c.text, __FILE__, __LINE__, what, c.text);
    check(abs(box.width - right.width) <= 2 && abs(box.height - right.height) <= 2, __FILE__, __LINE__, what,
          "the box is another");
    image_free(damaged);
}

static void test_damage(void) {
    Image figure = figure_with_margin(), p = image_copy(&figure);
    const size_t n = 3 * (size_t)figure.width * (size_t)figure.height;
    Random rng;
    for (size_t i = 0; i < n; i++) p.rgb[i] = p.rgb[i] > 254 ? 254 : p.rgb[i];
    expect_box(&p, &figure, IMAGE_DID_PAPER, "grey 254");
    p = image_copy(&figure);
    image_invert(&p);
    expect_box(&p, &figure, IMAGE_DID_INVERT, "dark mode");
    p = image_copy(&figure);
    memset(p.rgb + 3 * (5 * (size_t)p.width + 5), 0, 3);
    expect_box(&p, &figure, IMAGE_DID_SPECKS, "a stray pixel");
    p = image_copy(&figure);
    random_seed(&rng, 3);
    for (size_t i = 0; i < n; i++) {
        const int noisy = p.rgb[i] - (int)random_below(&rng, 6);
        p.rgb[i] = (uint8_t)(noisy < 0 ? 0 : noisy);
    }
    expect_box(&p, &figure, IMAGE_DID_NOISE, "noise");
    image_free(&figure);
}

/* Images that are no figures: nothing but a valid image must come out. Sanitizers watch. */
static void test_odd_images(void) {
    static const int sizes[][2] = {{1, 1}, {1, 300}, {300, 1}, {2, 2}, {3, 3000}, {3000, 3}, {17, 31}, {64, 64}};
    Random rng;
    random_seed(&rng, 9);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int kind = 0; kind < 6; kind++) {
            Image p = image_new(sizes[s][0], sizes[s][1], kind == 0 ? 255 : kind == 1 ? 0 : 128);
            const size_t n = 3 * (size_t)p.width * (size_t)p.height;
            for (size_t i = 0; i < n && kind > 2; i++)
                p.rgb[i] = (uint8_t)(kind == 3   ? random_below(&rng, 256)
                                     : kind == 4 ? 255 * random_below(&rng, 2)
                                                 : 200 + random_below(&rng, 56));
            ImageCleaned c;
            image_clean(&p, &c);
            check(p.width >= 1 && p.height >= 1 && p.rgb && strlen(c.text) < sizeof c.text, __FILE__, __LINE__,
                  "an odd image", c.text);
            if (kind < 3) CHECK(c.did == IMAGE_FOUND_EMPTY);
            image_free(&p);
        }
}

int main(int argc, char **argv) {
    (void)argc;
    program_begin(argv);
    test_clean_figures("dev/starter/val.bin");
    test_clean_figures("dev/starter/test.bin");
    test_damage();
    test_odd_images();
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed > 0;
}
