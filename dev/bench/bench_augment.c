/* How many images a second one thread augments: each operation of lib/image_augment.h alone, in every image, and
 * mixtures.
 *
 *     bench_augment [--data FILE --images N --seconds S]
 *
 * The figures are enlarged or reduced to a longer side of 96, 192 and 384 pixels before the clock starts. Every line
 * includes image_prepare to the same number of pixels, which is all that "none" does. */
#include "../../dataloader.h"
#include "../../lib/clock.h"
#include "../../lib/options.h"
#include "../../lib/program.h"

static struct {
    const char *data;
    double seconds;
    int64_t images;
} opt = {.data = "dev/starter/val.bin", .seconds = 0.3, .images = 40};

static const Option table[] = {
    {"data", 0, OPT_STRING, &opt.data, "FILE", "dataset with the figures", 0, 0},
    {"images", 'n', OPT_INT, &opt.images, "N", "first figures of it that are used", 1, 1e6},
    {"seconds", 0, OPT_FLOAT, &opt.seconds, "S", "time of each measurement", 0.01, 100},
};

/* Processor seconds of this thread. */
static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The first figures, decoded, with a longer side of `side` pixels. */
static Image *load_figures(const Dataset *d, int count, int side) {
    Error err;
    Image *images = xcalloc(count, sizeof *images);
    for (int i = 0; i < count; i++) {
        const Sample s = dataset_sample(d, (uint64_t)i);
        die_if(image_decode(&images[i], s.image, s.image_bytes, opt.data, &err), &err);
        const int longer = images[i].width > images[i].height ? images[i].width : images[i].height;
        augment_scale(&images[i], (double)side / longer, image_filter_bicubic);
    }
    return images;
}

static double images_a_second(const char *text, const Image *images, int count, int side) {
    Augment a;
    Error err;
    die_if(augment_parse(&a, text, &err), &err);
    uint8_t *pixels = xmalloc(3 * (size_t)side * (size_t)side);
    const double begin = thread_seconds();
    double now = begin;
    uint32_t n = 0;
    while (now - begin < opt.seconds || n < (uint32_t)count) {
        Image p = image_copy(&images[n % (uint32_t)count]);
        const ImageBox box = augment_image(&a, &p, 1, 0, n);
        image_prepare_box(pixels, &p, box, image_square(side));
        augment_prepared(&a, pixels, image_square(side), 1, 0, n);
        image_free(&p);
        n++;
        now = thread_seconds();
    }
    free(pixels);
    return n / (now - begin);
}

/* Images a second of the whole loader, which decodes, augments and prepares for a model of 96 pixels; of wall time. */
static double loader_a_second(const char *text, const Dataset *d, int threads) {
    Loader l;
    Error err;
    LoaderConfig c = {.batch = 32,
                      .sizes = {{96, 96, 0}},
                      .size_count = 1,
                      .shuffle = true,
                      .threads = threads,
                      .cache_bytes = (size_t)512 << 20};
    die_if(augment_parse(&c.augment, text, &err), &err);
    die_if(loader_start(&l, d, c, &err), &err);
    const double begin = seconds_now();
    double now = begin;
    int64_t n = 0;
    while (now - begin < opt.seconds || n < 4 * LOADER_RING * 32) {
        const Batch *b = loader_next(&l, &err);
        if (!b) die("%s", err.text);
        n += b->B;
        now = seconds_now();
    }
    loader_stop(&l);
    return (double)(n - LOADER_RING * 32) / (now - begin);  // a ring of batches may have been there before
}

int main(int argc, char **argv) {
    static const int sides[] = {96, 192, 384};
    static const char *const mixtures[] = {"all=0.2", "all=0.3", "all=0.3,clean", "all"};
    Dataset d;
    Error err;
    Image *images[3];
    program_begin(argv);
    options_parse(table, sizeof table / sizeof *table, argc, argv, "[options]", NULL);
    die_if(dataset_open(&d, opt.data, &err), &err);
    const int count = opt.images < (int64_t)d.count ? (int)opt.images : (int)d.count;
    for (int k = 0; k < 3; k++) images[k] = load_figures(&d, count, sides[k]);
    printf("images a second of one thread, by the longer side\n%-14s", "");
    for (int k = 0; k < 3; k++) printf("%10d", sides[k]);
    for (int i = -1; i < AUGMENT_OPERATIONS + 4; i++) {
        const char *text = i < 0                    ? "none"
                           : i < AUGMENT_OPERATIONS ? augment_kinds[i].name
                                                    : mixtures[i - AUGMENT_OPERATIONS];
        printf("\n%-14s", text);
        for (int k = 0; k < 3; k++) printf("%10.0f", images_a_second(text, images[k], count, sides[k]));
        fflush(stdout);
    }
    printf("\n");
    printf("\nimages a second of the loader, 96 pixels, by its threads\n%-14s%10d%10d%10d", "", 1, 2, 4);
    for (int i = -1; i < 4; i++) {
        printf("\n%-14s", i < 0 ? "none" : mixtures[i]);
        for (int threads = 1; threads <= 4; threads *= 2)
            printf("%10.0f", loader_a_second(i < 0 ? "none" : mixtures[i], &d, threads));
        fflush(stdout);
    }
    printf("\n");
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < count; i++) image_free(&images[k][i]);
        free(images[k]);
    }
    dataset_close(&d);
    return 0;
}
