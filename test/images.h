/* Tests of images: what is refused, every format, sizes, remarks, letters, and what a model is given. Part of test_lib.c. */
#ifndef TEST_IMAGES_H
#define TEST_IMAGES_H

#include "samples.h"

#include "../lib/image.h"
#include "../lib/image_prepare.h"

#include <sys/resource.h>

static void test_image_refused(void) {
    Error err;
    Image p;
    Bytes png = make_png(20, 10, 3, 1), jpeg = from_hex(jpeg_turned), grey = from_hex(jpeg_progressive);
    CHECK_OK(image_decode(&p, png.data, png.size, "a.png", &err), err);
    CHECK(p.width == 20 && p.height == 10);
    image_free(&p);
    CHECK_OK(image_decode(&p, jpeg.data, jpeg.size, "a.jpg", &err), err);
    CHECK(p.width == 14 && p.height == 20);  // turned by its EXIF orientation
    image_free(&p);
    CHECK_OK(image_decode(&p, grey.data, grey.size, "b.jpg", &err), err);
    CHECK(p.width == 20 && p.height == 14 && p.rgb[0] == p.rgb[1] && p.rgb[0] < 60 && p.rgb[19 * 3] > 220);
    image_free(&p);
    CHECK_ERROR(image_decode(&p, (const uint8_t *)"a text..", 8, "a.txt", &err), err,
                "neither PNG, JPEG, WebP, GIF, BMP nor TIFF");
    CHECK_ERROR(image_decode(&p, png.data, 0, "a.png", &err), err, "neither PNG, JPEG, WebP, GIF, BMP nor TIFF");
    CHECK_ERROR(image_decode(&p, png.data, 20, "a.png", &err), err, "a.png");
    CHECK_ERROR(image_decode(&p, png.data, png.size - 5, "a.png", &err), err, "cut off");
    CHECK_ERROR(image_decode(&p, jpeg.data, jpeg.size - 2, "a.jpg", &err), err, "cut off");
    png.data[png.size - 20] ^= 1;
    CHECK_ERROR(image_decode(&p, png.data, png.size, "a.png", &err), err, "wrong CRC");
    CHECK_ERROR(image_load(&p, sample_path("none.png"), &err), err, "No such file");
    static const uint32_t huge[][2] = {{20001, 1}, {20000, 20000}, {1, 30000}, {10001, 10000}};
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 4; k++) {
            png.data[16 + k] = (uint8_t)(huge[i][0] >> (24 - 8 * k));
            png.data[20 + k] = (uint8_t)(huge[i][1] >> (24 - 8 * k));
        }
        CHECK_ERROR(image_decode(&p, png.data, png.size, "huge.png", &err), err, "make it smaller");
    }
    free(png.data);
    free(jpeg.data);
    free(grey.data);
}

/* The place of the last segment with this marker. */
static size_t jpeg_segment(const Bytes *jpeg, uint8_t marker) {
    size_t at = jpeg->size - 2;
    while (at > 0 && (jpeg->data[at] != 0xff || jpeg->data[at + 1] != marker)) at--;
    CHECK(at > 0);
    return at;
}

/* Kinds of files that no decoder reads are named, with what to do. */
static void test_image_unread(void) {
    static const struct {
        const char *bytes, *part;
    } cases[] = {{"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                  "a Git LFS pointer, not the image; run git lfs pull"},
                 {"%PDF-1.5\n", "pdftoppm -r 150 -png -singlefile"},
                 {"<svg xmlns='http://www.w3.org/2000/svg'/>", "rsvg-convert -w 800"},
                 {"<?xml version='1.0'?>\n<!-- -->\n<svg/>", "rsvg-convert -w 800"},
                 {"....ftypheic....", "heif-convert IN.heic OUT.png"},
                 {"....ftypmif1....", "heif-convert IN.heic OUT.png"},
                 {"....ftypavif....", "heif-convert IN.avif OUT.png"},
                 {"%!PS-Adobe-3.0 EPSF-3.0", "gs -q -dSAFER"},
                 {"RIFF....WAVEfmt ", "neither PNG, JPEG, WebP, GIF, BMP nor TIFF"}};
    Error err;
    Image p;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const uint8_t *bytes = (const uint8_t *)cases[i].bytes;
        const bool refused = image_decode(&p, bytes, strlen(cases[i].bytes), "a", &err) != 0;
        check(refused && strstr(err.text, cases[i].part), __FILE__, __LINE__, cases[i].part, err.text);
    }
    CHECK(mkfifo(sample_path("pipe.png"), 0600) == 0);
    CHECK_ERROR(image_load(&p, sample_path("pipe.png"), &err), err, "not a regular file");
    CHECK_ERROR(image_load(&p, "/dev/zero", &err), err, "not a regular file");
    CHECK_ERROR(image_load(&p, "-", &err), err, "No such file");
}

/* A PNG whose data inflate to far more than its pixels costs neither time nor memory. */
static void test_png_bomb(void) {
    Error err;
    Image p;
    Bytes png = make_png(10, 10, 3, 1), bomb = {NULL, 0};
    const size_t more = 200 << 20;
    uLongf packed = compressBound(more);
    uint8_t *zeros = (uint8_t *)xcalloc(more, 1), *data = (uint8_t *)xmalloc(packed), word[4];
    CHECK(compress2(data, &packed, zeros, more, 1) == Z_OK);
    const uint8_t *header_end = memmem(png.data, png.size, "IDAT", 4);
    bytes_add(&bomb, png.data, (size_t)(header_end - png.data) - 4);
    for (int i = 0; i < 4; i++) word[i] = (uint8_t)(packed >> (24 - 8 * i));
    bytes_add(&bomb, word, 4);
    bytes_add(&bomb, "IDAT", 4);
    bytes_add(&bomb, data, packed);
    const uint32_t crc = crc32_bytes(crc32_bytes(0, "IDAT", 4), data, packed);
    for (int i = 0; i < 4; i++) word[i] = (uint8_t)(crc >> (24 - 8 * i));
    bytes_add(&bomb, word, 4);
    bytes_add(&bomb, png.data + png.size - 12, 12);  // IEND
    free(zeros);
    free(data);
    struct rlimit before;
    getrlimit(RLIMIT_DATA, &before);
#ifndef __SANITIZE_ADDRESS__
    struct rlimit small = before;
    small.rlim_cur = 100 << 20;
    setrlimit(RLIMIT_DATA, &small);
#endif
    CHECK_OK(image_decode(&p, bomb.data, bomb.size, "bomb.png", &err), err);
    setrlimit(RLIMIT_DATA, &before);
    CHECK(p.width == 10 && p.height == 10 && p.rgb[0] == 0);
    image_free(&p);
    free(png.data);
    free(bomb.data);
}

/* Every other format: the samples are read, cut ones are refused, and a size beyond the limits is refused before
 * anything is allocated. Without its library a format is refused with the name of the package. */
static void test_formats(void) {
    static const struct {
        const char *hex, *package;
        bool turned;
    } samples[] = {{png_texts, NULL, true},       {bmp_rle4, NULL, false},   {bmp_fields, NULL, false},
#ifdef WITH_GIF
                   {gif_interlaced, NULL, false}, {gif_part, NULL, false},
#else
                   {gif_part, "libgif-dev", false},
#endif
#ifdef WITH_WEBP
                   {webp_lossless, NULL, false},  {webp_turned, NULL, true}, {webp_alpha, NULL, false},
#else
                   {webp_alpha, "libwebp-dev", false},
#endif
#ifdef WITH_TIFF
                   {tiff_turned, NULL, true},     {tiff_tiles, NULL, false}, {tiff_fax, NULL, false},
                   {tiff_jpeg, NULL, false}};
#else
                   {tiff_fax, "libtiff-dev", false}};
#endif
    Error err;
    Image p;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        Bytes b = from_hex(samples[i].hex);
        if (samples[i].package) {
            const bool refused = image_decode(&p, b.data, b.size, "a.x", &err) != 0;
            check(refused && strstr(err.text, samples[i].package), __FILE__, __LINE__, samples[i].package, err.text);
            free(b.data);
            continue;
        }
        CHECK_OK(image_decode(&p, b.data, b.size, "a.x", &err), err);
        CHECK(p.width == (samples[i].turned ? 14 : 20) && p.height == (samples[i].turned ? 20 : 14));
        CHECK(image_darkest(p.rgb, 3 * 20 * 14) < 255);
        image_free(&p);
        for (size_t n = 16; n < b.size; n += 1 + n / 8) {
            uint8_t *exact = (uint8_t *)xmalloc(n);  // no slack behind it: a read beyond the end is noticed
            memcpy(exact, b.data, n);
            err.text[0] = '\0';
            const bool read = image_decode(&p, exact, n, "a.x", &err) == 0;
            CHECK(read ? n > b.size * 2 / 3 : strstr(err.text, "cannot read the image a.x: ") != NULL);
            image_free(&p);
            free(exact);
        }
        free(b.data);
    }
}

/* Sizes beyond the limits are refused before anything of that size is allocated. */
static void test_formats_huge(void) {
    static const struct {
        const char *hex;
        int at, n;  // where the size is, and the bytes to put there
        const char *bytes;
    } sizes[] = {
        {bmp_rle4, 18, 4, "\x21\x4e\0\0"},
        {bmp_rle4, 22, 4, "\0\0\0\x80"},
#ifdef WITH_GIF
        {gif_part, 6, 4, "\x10\x27\x11\x27"},
#endif
#ifdef WITH_WEBP
        {webp_lossless, 21, 4, "\xff\xff\xff\x0f"},
#endif
    };
    Error err;
    Image p;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Bytes b = from_hex(sizes[i].hex);
        memcpy(b.data + sizes[i].at, sizes[i].bytes, (size_t)sizes[i].n);
        CHECK_ERROR(image_decode(&p, b.data, b.size, "huge.x", &err), err, "make it smaller");
        free(b.data);
    }
}

/* A limit of the caller's counts for the size that the decoder finds, not only for what a header says. */
static void test_image_limited(void) {
    static const char *const samples[] = {
        png_texts,     jpeg_turned, bmp_rle4,
#ifdef WITH_GIF
        gif_part,
#endif
#ifdef WITH_WEBP
        webp_lossless,
#endif
#ifdef WITH_TIFF
        tiff_tiles,
#endif
    };
    Error err;
    Image p;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        Bytes b = from_hex(samples[i]);
        CHECK(image_decode_limited(&p, b.data, b.size, 20 * 14 - 1, "a.x", &err) == IMAGE_TOO_LARGE && !p.rgb);
        CHECK(strstr(err.text, "at most 20000 a side and 0.000279 million in all"));
        CHECK_OK(image_decode_limited(&p, b.data, b.size, 20 * 14, "a.x", &err), err);
        image_free(&p);
        free(b.data);
    }
#ifdef WITH_GIF
    static const uint8_t grows[] = "GIF89a\1\0\1\0\0\0\0,\0\0\0\0\x10\x27\x10\x27\0\2";  // a frame beyond the screen
    CHECK(image_decode_limited(&p, grows, sizeof grows, 25000000, "a.gif", &err) == IMAGE_TOO_LARGE);
    CHECK(strstr(err.text, "it has 10000 x 10000 pixels; at most 20000 a side and 25 million in all"));
#endif
}

/* Many jumps to the right in one row: the column stays a number. */
static void test_bmp_jumps(void) {
    Error err;
    Image p;
    const size_t jumps = (size_t)INT32_MAX / 255 + 2;
    Bytes b = from_hex(bmp_rle4), many = {NULL, 0};
    const size_t begin = image_integer(b.data + 10, 4, false);
    many.size = begin + 4 * jumps;
    many.data = (uint8_t *)xmalloc(many.size);
    memcpy(many.data, b.data, begin);
    for (size_t i = 0; i < jumps; i++) memcpy(many.data + begin + 4 * i, "\0\2\xff\0", 4);
    CHECK_ERROR(image_decode(&p, many.data, many.size, "a.bmp", &err), err, "end before the image does");
    free(many.data);
    free(b.data);
}

static void test_jpeg_scans(void) {
    struct jpeg_decompress_struct d = {.image_width = 10000, .image_height = 10000};
    CHECK(jpeg_max_scans(&d) == 20);
    d.arith_code = TRUE;  // each scan may cost several times as much
    CHECK(jpeg_max_scans(&d) == 2);
    d.image_width = d.image_height = 1000;
    CHECK(jpeg_max_scans(&d) == 250);
    d.arith_code = FALSE;
    CHECK(jpeg_max_scans(&d) == 500);
}

/* What image_remark says of images that a model cannot make much of, and that the remedies it names help. */
static void test_image_remark(void) {
    enum { W = 1000, H = 600, SIZE = 32 };
    static const struct {
        int ground, margin, line, width;  // grey values; the line is a rectangle `width` pixels thick
        const char *part;
    } cases[] = {{255, 255, 0, 40, ""},
                 {255, 255, 255, 40, "is blank"},
                 {255, 255, 0, 1, "little is left of its lines"},
                 {20, 20, 255, 40, "try --invert"},
                 {255, 254, 0, 40, "try --trim-near-white"},
                 {255, 230, 0, 40, ""}};
    uint8_t *rgb = (uint8_t *)xmalloc(3 * W * H), out[3 * SIZE * SIZE];
    Image p = {W, H, rgb};
    char text[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++) {
                const int edge_x = x < W - 1 - x ? x : W - 1 - x, edge_y = y < H - 1 - y ? y : H - 1 - y;
                const int edge = edge_x < edge_y ? edge_x : edge_y;
                const int value = edge < 100                    ? cases[i].margin
                                  : edge < 100 + cases[i].width ? cases[i].line
                                                                : cases[i].ground;
                memset(rgb + 3 * (y * W + x), value, 3);
            }
        ImageBox box = image_trim(&p, IMAGE_WHITE);
        image_prepare_box(out, &p, box, image_square(SIZE));
        const bool remark = image_remark(text, sizeof text, &p, box, out, image_square(SIZE), 0);
        check(*cases[i].part ? remark && strstr(text, cases[i].part) : !remark, __FILE__, __LINE__, cases[i].part,
              text);
        if (!strstr(text, "try")) continue;
        if (strstr(text, "invert"))
            image_invert(&p);
        else
            box = image_trim(&p, IMAGE_NEAR_WHITE);
        image_prepare_box(out, &p, box, image_square(SIZE));
        check(!image_remark(text, sizeof text, &p, box, out, image_square(SIZE), 0), __FILE__, __LINE__,
              "the remedy helps", text);
    }
    free(rgb);
}

/* Strips of black and white, which a rectangular input holds as large as fits; below a certain height the image is too small. */
static void test_remark_of_strips(void) {
    const ImageSize frame = image_size(64, 384);
    static const struct {
        int width, height;
        ImageSize frame;
        const char *part;
    } cases[] = {{10000, 100, {64, 384, 0}, "its 10000 x 100 pixels become only 384 x 4 in the model's 384 x 64"},
                 {1500, 100, {64, 384, 0}, ""},
                 {300, 8, {64, 384, 0}, ""},  // enlarged
                 {8, 60, {64, 384, 0}, ""},
                 {100, 3000, {64, 384, 0}, "become only 3 x 64"},
                 {10000, 100, {384, 384, 0}, ""},
                 {1500, 10, {64, 384, 5}, "its letters become 2.6 pixels high in the model's 64 x 384, where 5 are right"},
                 {700, 10, {64, 384, 5}, ""}};
    uint8_t *out = (uint8_t *)xmalloc(3 * 384 * 384);
    char text[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const ImageSize s = image_size(cases[i].height, cases[i].width);
        Image p = {s.width, s.height, (uint8_t *)xcalloc(image_size_bytes(s), 1)};
        for (size_t k = 0; k < image_size_bytes(s); k++) p.rgb[k] = k / 3 % 8 < 4 ? 0 : 255;
        const ImageBox box = image_trim(&p, IMAGE_WHITE);
        const double scale = image_prepare_box(out, &p, box, cases[i].frame).scale;
        const bool remark =
            image_remark(text, sizeof text, &p, (ImageBox){0, 0, s.width, s.height}, out, cases[i].frame, scale);
        check(*cases[i].part ? remark && strstr(text, cases[i].part) : !remark, __FILE__, __LINE__, cases[i].part,
              text);
        image_free(&p);
    }
    free(out);
    const ImageSize high = image_padded((ImageBox){0, 0, 100, 50}, frame),
                    wide = image_padded((ImageBox){0, 0, 900, 50}, frame);
    CHECK(high.width == 300 && high.height == 50 && wide.width == 900 && wide.height == 150);
}

/* Draws a stroke: n blocks of 2 x 2 pixels, `zoom` times as large. */
static void draw_blocks(Image *p, const int (*at)[2], int n, int zoom) {
    for (int i = 0; i < n; i++)
        for (int y = 0; y < 2 * zoom; y++)
            for (int x = 0; x < 2 * zoom; x++)
                memset(p->rgb + 3 * ((size_t)(zoom * at[i][1] + y) * p->width + zoom * at[i][0] + x), 0, 3);
}

/* Two letters 8 high, a bar, a dot and two delimiters 14 high, in several sizes: the letters' height is found, on grey paper,
 * too, and becomes that of the input's letters. */
static void test_letters(void) {
    static const int blocks[][2] = {{4, 6}, {4, 8}, {4, 10}, {4, 12}, {10, 6}, {12, 8}, {10, 10}, {12, 12}, {16, 12},
                                    {2, 18}, {4, 18}, {6, 18}, {8, 18}, {10, 18}, {12, 18}, {14, 18},
                                    {22, 6}, {22, 8}, {22, 10}, {22, 12}, {22, 14}, {22, 16}, {22, 18},
                                    {26, 6}, {26, 8}, {26, 10}, {26, 12}, {26, 14}, {26, 16}, {26, 18}};
    const int n = sizeof blocks / sizeof *blocks;
    uint8_t out[3 * 32 * 64], first[3 * 32 * 64], like[3 * 32 * 64];
    ImageExtent input = {0, 0};
    for (int zoom = 1; zoom <= 5; zoom += 2) {
        Image p = {40 * zoom, 30 * zoom, (uint8_t *)xmalloc(3 * 1200 * (size_t)(zoom * zoom))};
        memset(p.rgb, 255, 3 * 1200 * (size_t)(zoom * zoom));
        draw_blocks(&p, blocks, n, zoom);
        const ImageBox box = image_trim(&p, IMAGE_WHITE);
        CHECK(image_letter_height(&p, box) == 8 * zoom);
        const ImageExtent extent = image_prepare_box(out, &p, box, (ImageSize){32, 64, 8});
        if (zoom == 1) input = extent;
        image_prepare_like(like, &p, (ImageSize){32, 64, 8}, input);  // the same drawing, larger
        CHECK(!memcmp(like, out, sizeof out));
        image_prepare_like(like, &p, (ImageSize){32, 64, 8}, (ImageExtent){input.longest, 2 * input.scale});
        CHECK(like[3 * (64 * 14 + 1)] < 128 && like[3 * (64 * 14 + 2)] > 191 && memcmp(like, out, sizeof out) != 0);  // half as large, whatever its letters are
        CHECK(out[3 * (64 * 9 + 2)] < 64 && out[3 * (64 * 9 + 1)] > 191);  // at the left edge, 14 of 32 rows
        if (zoom == 1) memcpy(first, out, sizeof out);
        int most = 0;
        for (size_t i = 0; i < sizeof out; i++) most = abs(out[i] - first[i]) > most ? abs(out[i] - first[i]) : most;
        CHECK(most < 64);  // the bicubic filter blurs the edges a little
        const ImageSize least = image_area(box, (ImageSize){8, 64, 8}, zoom);  // 14 rows do not fit into 8
        CHECK(least.height == 14 * zoom && least.width == 14 * zoom * 8);
        for (size_t i = 0; i < 3600 * (size_t)(zoom * zoom); i++) p.rgb[i] = p.rgb[i] ? 150 : 0;
        CHECK(image_letter_height(&p, (ImageBox){0, 0, p.width, p.height}) == 8 * zoom);
        image_free(&p);
    }
    uint8_t pixels[3 * 30 * 4];
    Image bar = {30, 4, pixels};
    memset(pixels, 0, sizeof pixels);
    CHECK(image_letter_height(&bar, (ImageBox){0, 0, 30, 4}) == 20);
    memset(pixels, 255, sizeof pixels);
    CHECK(image_letter_height(&bar, (ImageBox){0, 0, 30, 4}) == 20);  // all of one colour, whichever it is, is a bar
}

static void test_jpeg_refused(void) {
    Error err;
    Image p;
    Bytes colour = from_hex(jpeg_turned), grey = from_hex(jpeg_progressive), scans = {NULL, 0};
    uint8_t *frame = colour.data + jpeg_segment(&colour, 0xc0);
    const uint8_t size[] = {frame[5], frame[6], frame[7], frame[8]};
    static const uint8_t huge[][4] = {{0x4e, 0x21, 0, 1}, {0, 1, 0xff, 0x00}, {0x27, 0x11, 0x27, 0x10}};
    for (int i = 0; i < 3; i++) {  // 1 x 20001, 65280 x 1, 10000 x 10001
        memcpy(frame + 5, huge[i], 4);
        CHECK_ERROR(image_decode(&p, colour.data, colour.size, "huge.jpg", &err), err, "make it smaller");
    }
    memcpy(frame + 5, size, 4);
    frame[1] = 0xc3;
    CHECK_ERROR(image_decode(&p, colour.data, colour.size, "a.jpg", &err), err, "kind that libjpeg does not read");
    frame[1] = 0xc0;
    for (size_t n = 4; n + 2 < colour.size; n += 7)
        CHECK_ERROR(image_decode(&p, colour.data, n, "a.jpg", &err), err, "cut off");
    for (size_t n = 4; n + 2 < grey.size; n += 7)
        CHECK_ERROR(image_decode(&p, grey.data, n, "b.jpg", &err), err, "cut off");
    const size_t last = jpeg_segment(&grey, 0xda);
    bytes_add(&scans, grey.data, last);
    for (int i = 0; i <= JPEG_MAX_SCANS; i++) bytes_add(&scans, grey.data + last, grey.size - 2 - last);
    bytes_add(&scans, "\xff\xd9", 2);
    CHECK_ERROR(image_decode(&p, scans.data, scans.size, "b.jpg", &err), err,
                "more than 500 scans of 20 x 14 pixels");
    uint8_t *scan = colour.data + jpeg_segment(&colour, 0xda), *end = colour.data + colour.size;
    scan[3] = 10;  // two components: shorter headers of the scan and the frame
    scan[4] = 2;
    memmove(scan + 9, scan + 11, (size_t)(end - scan) - 11);
    frame[3] = 14;
    frame[9] = 2;
    memmove(frame + 16, frame + 19, (size_t)(end - frame) - 19);
    CHECK_ERROR(image_decode(&p, colour.data, colour.size - 5, "a.jpg", &err), err, "have 2 components");
    free(colour.data);
    free(grey.data);
    free(scans.data);
}

/* All-white and one-pixel images, and a box off the centre, checked by hand. */
static void test_image_prepare(void) {
    uint8_t white[5 * 3 * 3], out[16 * 16 * 3], one[3] = {10, 20, 30};
    memset(white, 255, sizeof white);
    Image p = {5, 3, white};
    memset(out, 0, sizeof out);
    image_prepare(out, &p, image_square(16));
    int same = 0;
    for (size_t i = 0; i < sizeof out; i++) same += out[i] == 255;
    CHECK(same == 16 * 16 * 3);
    Image dot = {1, 1, one};
    image_prepare(out, &dot, image_square(16));
    CHECK(out[0] == 10 && out[16 * 16 * 3 - 1] == 30);
    white[(1 * 5 + 2) * 3] = 0;  // one pixel, then a second one below: the box is 1 x 2, padded to 2 x 2 on the right
    white[(2 * 5 + 2) * 3] = 0;
    ImageBox box = image_trim(&p, IMAGE_WHITE);
    CHECK(box.x == 2 && box.y == 1 && box.width == 1 && box.height == 2);
    image_prepare(out, &p, image_square(2));
    CHECK(out[0] == 0 && out[1] == 255 && out[3] == 255 && out[6] == 0 && out[9] == 255);
}

static void test_image_turn(void) {
    for (int orientation = 0; orientation <= 9; orientation++) {
        Image p;
        ImageCanvas canvas = image_canvas(&p, 3, 2, orientation);
        uint8_t rows[18];
        for (int i = 0; i < 18; i++) rows[i] = (uint8_t)(i / 3);  // 0 1 2 / 3 4 5
        for (int y = 0; y < 2; y++) image_put(&canvas, 0, y, 1, rows + 9 * y, 3, 3);
        static const char *const expected[] = {"012345", "012345", "210543", "543210", "345012",
                                               "031425", "304152", "524130", "251403", "012345"};
        char got[7] = "";
        for (int i = 0; i < 6; i++) got[i] = (char)('0' + p.rgb[3 * i]);
        CHECK(!strcmp(got, expected[orientation]) && p.width == (orientation >= 5 && orientation <= 8 ? 2 : 3));
        image_free(&p);
    }
}

/* The enlargement for DeTikZify of a speck in a large image is refused, and the image stays as it was. */
static void test_enlarge_refused(void) {
    Image p = {.width = 15000, .height = 3};
    Error err;
    p.rgb = (uint8_t *)xmalloc(3 * (size_t)p.width * (size_t)p.height);
    memset(p.rgb, 255, 3 * (size_t)p.width * (size_t)p.height);
    memset(p.rgb + 3 * 20000, 0, 3);
    CHECK_ERROR(image_enlarge(&p, "speck.png", &err), err, "cannot prepare speck.png as DeTikZify does");
    CHECK(strstr(err.text, "15000 x 15000 pixels") && p.width == 15000 && p.height == 3);
    image_free(&p);
}

static void test_images(void) {
    test_image_refused();
    test_image_unread();
    test_png_bomb();
    test_formats();
    test_formats_huge();
    test_image_limited();
    test_bmp_jumps();
    test_jpeg_refused();
    test_jpeg_scans();
    test_image_remark();
    test_letters();
    test_remark_of_strips();
    test_image_prepare();
    test_image_turn();
    test_enlarge_refused();
}

#endif
