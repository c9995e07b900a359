/* Tests of lib/dataset.h and dataloader.h: the file format, batches, determinism, resuming, errors out of the loading thread. */
#include "samples.h"

#include "../dataloader.h"

enum { VOCAB = 50, SIZE = 16, TEACHER = 24, TEACHER_WIDTH = 40 };

/* Writes a dataset of `count` samples with images of different kinds and 1 to 23 tokens. */
static void write_dataset(const char *name, int count, uint64_t fingerprint, int seed) {
    Bytes *images = (Bytes *)xcalloc((size_t)count, sizeof *images);
    int *lengths = (int *)xcalloc((size_t)count, sizeof *lengths);
    for (int i = 0; i < count; i++) {
        images[i] = i % 7 == 3 ? from_hex(i % 2 ? jpeg_turned : jpeg_progressive)
                               : make_png(10 + i % 9, 8 + i % 5, 1 + i % 4, (uint64_t)(seed + i));
        lengths[i] = 1 + (i * 7 + seed) % 23;
    }
    Bytes b = make_dataset(count, images, lengths, VOCAB, fingerprint, seed);
    write_bytes(sample_path(name), b.data, b.size);
    for (int i = 0; i < count; i++) free(images[i].data);
    free(images);
    free(lengths);
    free(b.data);
}

static LoaderConfig config_make(int batch, bool shuffle) {
    LoaderConfig c;
    memset(&c, 0, sizeof c);
    c.batch = batch;
    c.sizes[0] = image_square(SIZE);
    c.sizes[1] = image_size(TEACHER, TEACHER_WIDTH);
    c.size_count = 2;
    c.seed = 11;
    c.shuffle = shuffle;
    c.vocab = VOCAB;
    return c;
}

enum { FRAME = 48, FRAME_HEIGHT = 12, STEP = 4 };

/* Batches of narrow images, for one model. */
static void narrow_config(LoaderConfig *c, int micro_rows) {
    c->sizes[0] = (ImageSize){FRAME_HEIGHT, FRAME, 5};
    c->size_count = 1;
    c->micro_rows = micro_rows;
    c->width_step = STEP;
}

static Augment augment_of(const char *text) {
    Augment a;
    Error err;
    die_if(augment_parse(&a, text, &err), &err);
    return a;
}

/* A number that depends on everything in a batch. */
static uint64_t batch_hash(const Batch *b) {
    uint32_t h[2] = {0, 1};
    int head[4] = {b->B, b->T, b->tokens, b->first_of_epoch};
    for (int k = 0; k < 2; k++) {
        h[k] = crc32_bytes(h[k], head, sizeof head);
        h[k] = crc32_bytes(h[k], b->ids, sizeof(int) * (size_t)b->B * (size_t)b->T);
        h[k] = crc32_bytes(h[k], b->samples, sizeof(uint32_t) * (size_t)b->B);
        h[k] = crc32_bytes(h[k], b->pixels[0], (size_t)b->B * (size_t)b->sizes[0].height * (size_t)b->widths[0] * 3);
        if (b->size_count == 2) h[k] = crc32_bytes(h[k], b->pixels[1], (size_t)b->B * TEACHER * TEACHER_WIDTH * 3);
    }
    return (uint64_t)h[0] << 32 | h[1];
}

/* The hashes of n batches of a loader that is started and stopped. */
static void run_loader(const Dataset *d, LoaderConfig c, int n, uint64_t *hashes) {
    Loader l;
    Error err;
    CHECK_OK(loader_start(&l, d, c, &err), err);
    for (int i = 0; i < n; i++) {
        const Batch *b = loader_next(&l, &err);
        check(b != NULL, __FILE__, __LINE__, "a batch comes", err.text);
        hashes[i] = b ? batch_hash(b) : 0;
    }
    loader_stop(&l);
}

/* ---- the file ---- */

static void test_open(void) {
    Error err;
    Dataset d;
    write_dataset("part-0.bin", 30, 99, 0);
    write_dataset("part-1.bin", 1, 99, 5);
    write_dataset("part-2.bin", 20, 99, 9);
    CHECK_OK(dataset_open(&d, sample_path("part-*.bin"), &err), err);
    CHECK(d.shard_count == 3 && d.count == 51 && d.fingerprint == 99 && d.longest == 23);
    CHECK(d.shards[1].source_bytes == 17 && !memcmp(d.shards[1].source, "made by the tests", 17));
    Sample s = dataset_sample(&d, 30);
    CHECK(s.number == 0 && !strcmp(s.path, sample_path("part-1.bin")) && s.token_count == 6 && s.tokens[0] == 5);
    s = dataset_sample(&d, 50);
    CHECK(s.number == 19 && s.tokens[0] == (9 + 19) % VOCAB && s.token_count == 1 + (19 * 7 + 9) % 23);
    CHECK_OK(dataset_check_tokens(&d, VOCAB, &err), err);
    CHECK_ERROR(dataset_check_tokens(&d, VOCAB - 3, &err), err, "record 26 has token 47 at position 21");
    dataset_close(&d);
    CHECK_OK(dataset_open(&d, sample_path("part-1.bin"), &err), err);
    CHECK(d.count == 1);
    dataset_close(&d);
    CHECK_ERROR(dataset_open(&d, sample_path("none-*.bin"), &err), err, "No such file");
    write_dataset("part-3.bin", 2, 98, 9);
    CHECK_ERROR(dataset_open(&d, sample_path("part-*.bin"), &err), err, "different tokenizers");
    remove(sample_path("part-3.bin"));
}

static void test_open_refused(void) {
    static const struct {
        int at;  // where `value` is added to the byte; from the index when negative
        int value;
        const char *part;
    } cases[] = {{0, 1, "does not begin with TIKZBIN1"},
                 {8, 1, "version 3"},
                 {8, -1, "version 1 with a header of 72 bytes"},
                 {12, 1, "header of 73 bytes"},
                 {64, 1, "header or index is damaged (CRC-32 "},
                 {68, 1, "header or index is damaged (CRC-32 "},
                 {16, 200, "does not fit into the file"},
                 {16, -30, "holds 0 samples"},
                 {20, 1, "holds 4294967326 samples"},
                 {32, 4, "does not fit into the file"},
                 {39, 100, "does not fit into the file"},
                 {40, 8, "source text"},
                 {55, 1, "source text"},
                 {56, 1, "is cut off or was added to"},
                 {-1, 2, "record 0 "},  // offset
                 {-8, 100, "record 0 "},
                 {-12, 100, "record 0 "},  // image bytes
                 {-16, 100, "record 0 "},  // tokens
                 {-21, 1, "is not zero"},
                 {-32, 1, "is not zero"}};
    Error err;
    Dataset d;
    size_t size;
    uint8_t *bytes = read_bytes(sample_path("part-0.bin"), &size);
    uint64_t index = dataset_u64(bytes + 32);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t at = cases[i].at >= 0 ? (size_t)cases[i].at : (size_t)index + (size_t)(-cases[i].at) - 1;
        bytes[at] = (uint8_t)(bytes[at] + cases[i].value);
        uint32_t crc = dataset_u32(bytes + 64);
        if (cases[i].at < 0) put_u32(bytes + 64, dataset_crc(bytes));  // written so
        write_bytes(sample_path("bad.bin"), bytes, size);
        bytes[at] = (uint8_t)(bytes[at] - cases[i].value);
        put_u32(bytes + 64, crc);
        err.text[0] = '\0';
        bool refused = dataset_open(&d, sample_path("bad.bin"), &err) != 0;
        check(refused && strstr(err.text, cases[i].part), __FILE__, __LINE__, cases[i].part, err.text);
    }
    for (size_t cut = 1; cut < size; cut += size / 50) {
        write_bytes(sample_path("bad.bin"), bytes, size - cut);
        CHECK_ERROR(dataset_open(&d, sample_path("bad.bin"), &err), err, "cannot read ");
    }
    bytes[size - 3] = 0xff;
    write_bytes(sample_path("bad.bin"), bytes, size);
    CHECK_ERROR(dataset_open(&d, sample_path("bad.bin"), &err), err, "not valid UTF-8");
    free(bytes);
}

/* Every bit of the header and of the index counts, and in version 1, which has no CRC, those that say how many
 * samples there are. */
static void test_bits(void) {
    Error err;
    Dataset d;
    size_t size, opened = 0;
    uint8_t *bytes = read_bytes(sample_path("part-2.bin"), &size);
    const size_t index = (size_t)dataset_u64(bytes + 32);
    for (size_t at = 0; at < size; at = at == DATASET_HEADER - 1 ? index : at + 1)
        for (int bit = 0; bit < 8; bit++) {
            bytes[at] ^= (uint8_t)(1 << bit);
            write_bytes(sample_path("bad.bin"), bytes, size);
            bytes[at] ^= (uint8_t)(1 << bit);
            opened += dataset_open(&d, sample_path("bad.bin"), &err) == 0;
        }
    CHECK(opened == 0);
    put_u32(bytes + 8, 1);
    put_u32(bytes + 12, DATASET_HEADER_1);
    write_bytes(sample_path("old.bin"), bytes, size);
    CHECK_OK(dataset_open(&d, sample_path("old.bin"), &err), err);
    CHECK(d.count == 20 && d.shards[0].source_bytes == 17);
    CHECK_OK(dataset_check_tokens(&d, VOCAB, &err), err);
    dataset_close(&d);
    for (int bit = 0; bit < 64; bit++) {
        bytes[16 + bit / 8] ^= (uint8_t)(1 << bit % 8);
        write_bytes(sample_path("bad.bin"), bytes, size);
        bytes[16 + bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK_ERROR(dataset_open(&d, sample_path("bad.bin"), &err), err, "cannot read ");
    }
    free(bytes);
}

/* ---- batches ---- */

static void check_batch(const Dataset *d, const Batch *b) {
    uint8_t pixels[TEACHER * TEACHER_WIDTH * 3];
    const ImageSize sizes[2] = {{SIZE, SIZE, 0}, {TEACHER, TEACHER_WIDTH, 0}};
    int longest = 0, tokens = 0, bad_ids = 0, bad_pixels = 0;
    Error err;
    for (int i = 0; i < b->B; i++) {
        Sample s = dataset_sample(d, b->samples[i]);
        tokens += (int)s.token_count;
        longest = (int)s.token_count > longest ? (int)s.token_count : longest;
        for (int t = 0; t < b->T; t++)
            bad_ids += b->ids[i * b->T + t] != (t < (int)s.token_count ? (int)s.tokens[t] : -1);
        Image p;
        CHECK_OK(image_decode(&p, s.image, s.image_bytes, "sample", &err), err);
        for (int k = 0; k < 2; k++) {
            size_t bytes = image_size_bytes(sizes[k]);
            image_prepare(pixels, &p, sizes[k]);
            bad_pixels += memcmp(pixels, b->pixels[k] + (size_t)i * bytes, bytes) != 0;
        }
        image_free(&p);
    }
    CHECK(bad_ids == 0 && bad_pixels == 0 && tokens == b->tokens);
    CHECK(b->T >= longest && b->T < longest + 8 && (b->T % 8 == 0 || b->T == 23));
}

static void test_in_order(const Dataset *d) {
    Loader l;
    Error err;
    LoaderConfig c = config_make(4, false);
    CHECK_OK(loader_start(&l, d, c, &err), err);
    CHECK(l.skipped == 0 && l.batches_per_epoch == 13);
    for (int pass = 0; pass < 2; pass++) {
        uint32_t next = 0;
        const Batch *b;
        while ((b = loader_next(&l, &err))) {
            for (int i = 0; i < b->B; i++) CHECK(b->samples[i] == next + (uint32_t)i);
            CHECK(b->first_of_epoch == (next == 0) && b->epoch == 0);
            next += (uint32_t)b->B;
            check_batch(d, b);
        }
        CHECK(next == 51 && err.text[0] == '\0');
        CHECK(loader_next(&l, &err) == NULL && err.text[0] == '\0');
        CHECK_OK(loader_seek(&l, 0, &err), err);
    }
    loader_stop(&l);
    c.max_tokens = 10;
    c.drop_last = true;
    CHECK_OK(loader_start(&l, d, c, &err), err);
    int kept = 0, seen = 0;
    for (uint64_t i = 0; i < d->count; i++) kept += dataset_sample(d, i).token_count <= 10;
    CHECK((int)l.skipped == 51 - kept && (int)l.batches_per_epoch == kept / 4);
    for (const Batch *b; (b = loader_next(&l, &err)); seen += b->B) CHECK(b->B == 4 && b->T <= 10);
    CHECK(seen == kept / 4 * 4);
    loader_stop(&l);
}

/* The arrays are as wide as max_tokens: a batch is never wider, also where the limit lies between the longest text
 * and the next multiple of 8. */
static void test_limit(const Dataset *d) {
    Loader l;
    Error err;
    CHECK(d->longest == 23);
    for (int most = 22; most <= 25; most++) {
        LoaderConfig c = config_make(4, true);
        c.max_tokens = most;
        CHECK_OK(loader_start(&l, d, c, &err), err);
        int widest = 0;
        CHECK(l.config.max_tokens <= most && (l.skipped == 0) == (most >= 23));
        for (uint64_t i = 0; i < l.batches_per_epoch; i++) {
            const Batch *b = loader_next(&l, &err);
            if (b && b->T > widest) widest = b->T;
        }
        CHECK(widest == (most < 24 ? most : 24));
        loader_stop(&l);
    }
    Dataset odd = *d;  // as if its longest text had 21 tokens: the limit is one more
    odd.longest = 21;
    LoaderConfig c = config_make(4, true);
    c.max_tokens = 22;
    CHECK_OK(loader_start(&l, &odd, c, &err), err);
    CHECK(l.config.max_tokens == 22);
    for (uint64_t i = 0; i < l.batches_per_epoch; i++) {
        const Batch *b = loader_next(&l, &err);
        CHECK(b && b->T <= 22);
    }
    loader_stop(&l);
}

static void test_shuffled(const Dataset *d) {
    Loader l;
    Error err;
    for (int drop = 0; drop < 2; drop++) {
        LoaderConfig c = config_make(2, true);
        c.drop_last = drop != 0;
        c.cache_bytes = 20000;  // room for some of the images
        CHECK_OK(loader_start(&l, d, c, &err), err);
        CHECK(l.batches_per_epoch == (drop ? 25u : 26u));
        uint32_t first[2][2];
        for (uint64_t epoch = 0; epoch < 3; epoch++) {
            int seen[51] = {0}, once = 0, lengths_differ = 0;
            for (uint64_t i = 0; i < l.batches_per_epoch; i++) {
                const Batch *b = loader_next(&l, &err);
                if (!b) break;
                CHECK(b->epoch == epoch && b->number == epoch * l.batches_per_epoch + i &&
                      b->first_of_epoch == (i == 0));
                for (int k = 0; k < b->B; k++) seen[b->samples[k]]++;
                if (b->B == 2)
                    lengths_differ += abs((int)dataset_sample(d, b->samples[0]).token_count -
                                          (int)dataset_sample(d, b->samples[1]).token_count);
                if (i == 0 && epoch < 2) memcpy(first[epoch], b->samples, sizeof first[epoch]);
                check_batch(d, b);
            }
            for (int i = 0; i < 51; i++) once += seen[i] == 1;
            CHECK(once == (drop ? 50 : 51));
            CHECK(lengths_differ < 26);  // sorted by length within the window; without it about 8 per batch
        }
        CHECK(memcmp(first[0], first[1], sizeof first[0]) != 0);
        loader_stop(&l);
    }
}

/* What `light` did to the samples of this test in the versions where --augment was a flag, as a number: such a run goes on
 * with the same pixels. */
#define LIGHT_BEFORE 0x6da3a95ad67eb85fu

/* Batches depend on the seed and the number only: not on the cache, nor on the threads, nor on where loading began. */
static void test_deterministic(const Dataset *d) {
    enum { N = 60 };
    static const char *const augmentations[] = {"none", "all=0,clean=0", "light", "all=0.3,light=0.5,clean=0.2",
                                                "all"};
    uint64_t a[N], b[N], none[N], sum = 0;
    for (int i = 0; i < 5; i++) {
        LoaderConfig c = config_make(3, true);
        c.augment = augment_of(augmentations[i]);
        run_loader(d, c, N, a);
        if (i == 0) memcpy(none, a, sizeof a);
        CHECK((memcmp(a, none, sizeof a) == 0) == (i < 2));
        for (int k = 0; i == 2 && k < N; k++) sum = sum * 31 + a[k];
        c.cache_bytes = 30000;
        c.threads = 3;
        run_loader(d, c, N, b);
        CHECK(!memcmp(a, b, sizeof a));
        c.cache_bytes = (size_t)1 << 30;
        c.threads = 2;
        c.first_batch = 23;
        run_loader(d, c, N - 23, b);
        CHECK(!memcmp(a + 23, b, sizeof(uint64_t) * (N - 23)));
        c.first_batch = 0;
        c.seed++;
        run_loader(d, c, N, b);
        CHECK(memcmp(a, b, sizeof a) != 0);
    }
    CHECK(sum == LIGHT_BEFORE);
}

/* Loading may go on at any batch, in any window: batches of one sample make two windows of an epoch. */
static void test_seek(const Dataset *d) {
    enum { N = 60 };
    uint64_t hashes[N];
    const int stops[] = {0, 40, 7, 59, 33, 0, 31, 32};
    Error err;
    for (int kind = 0; kind < 3; kind++) {
        Loader l;
        LoaderConfig c = config_make(kind ? 1 : 3, true);
        if (kind == 2) narrow_config(&c, 1);
        run_loader(d, c, N, hashes);
        CHECK_OK(loader_start(&l, d, c, &err), err);
        for (int i = 0; i < 8; i++) {
            CHECK_OK(loader_seek(&l, (uint64_t)stops[i], &err), err);
            const Batch *batch = loader_next(&l, &err);
            CHECK(batch && batch_hash(batch) == hashes[stops[i]]);
        }
        loader_stop(&l);
    }
}

/* Processes that share the batches get, together, what one gets alone: items of two rows in turn. The batch before is
 * still there when the next one has come. */
static void test_dealt_out(const Dataset *d) {
    enum { N = 12, RANKS = 3, MICRO = 2, BATCH = 8 };
    Loader whole, shared[RANKS];
    Error err;
    LoaderConfig c = config_make(BATCH, true);
    c.augment = augment_of("light,blur=0.5");
    c.threads = 2;
    c.drop_last = true;
    CHECK_OK(loader_start(&whole, d, c, &err), err);
    c.ranks = RANKS;
    c.micro_rows = MICRO;
    c.hold = 2;
    for (c.rank = 0; c.rank < RANKS; c.rank++) CHECK_OK(loader_start(&shared[c.rank], d, c, &err), err);
    for (int number = 0, item = 0; number < N; number++) {
        const Batch *w = loader_next(&whole, &err), *s[RANKS];
        int rows[RANKS] = {0};
        for (int p = 0; p < RANKS; p++) s[p] = loader_next(&shared[p], &err);
        for (int row = 0; row < w->B; row += MICRO, item++) {
            const Batch *b = s[item % RANKS];
            int at = rows[item % RANKS];
            rows[item % RANKS] += MICRO;
            CHECK(b->T == w->T && b->tokens == w->tokens && b->rows == w->B && at + MICRO <= b->B);
            CHECK(!memcmp(b->samples + at, w->samples + row, MICRO * sizeof(uint32_t)));
            CHECK(!memcmp(b->ids + at * b->T, w->ids + row * w->T, sizeof(int) * (size_t)(MICRO * w->T)));
            for (int k = 0; k < 2; k++) {
                size_t image = loader_pixels(&whole, k);
                CHECK(!memcmp(b->pixels[k] + (size_t)at * image, w->pixels[k] + (size_t)row * image, MICRO * image));
            }
        }
        for (int p = 0; p < RANKS; p++) CHECK(rows[p] == s[p]->B);
    }
    loader_stop(&whole);
    for (int p = 0; p < RANKS; p++) loader_stop(&shared[p]);
}

/* One micro-batch of narrow images: the left part of the inputs, as wide as the widest of them, or wider by chance, which is what
 * is returned. */
static bool check_narrow(const Dataset *d, const Batch *b, int first, int n) {
    const ImageSize frame = {FRAME_HEIGHT, FRAME, 5};
    const int width = b->widths[first];
    const uint8_t *got = b->pixels[0] + (size_t)first * image_size_bytes(frame);
    uint8_t whole[FRAME_HEIGHT * FRAME * 3];
    int widest = 0, bad = 0;
    Error err;
    for (int i = first; i < first + n; i++, got += (size_t)FRAME_HEIGHT * (size_t)width * 3) {
        const Sample s = dataset_sample(d, b->samples[i]);
        Image p;
        CHECK_OK(image_decode(&p, s.image, s.image_bytes, "sample", &err), err);
        image_prepare(whole, &p, frame);
        image_free(&p);
        const int columns = image_columns(whole, frame);
        bad += columns < widest;  // the rows of a batch are in ascending order
        widest = columns > widest ? columns : widest;
        for (int y = 0; y < FRAME_HEIGHT; y++)
            bad += memcmp(got + (size_t)(y * width) * 3, whole + (size_t)(y * FRAME) * 3, (size_t)width * 3) != 0;
        bad += b->widths[i] != width;
    }
    widest = (widest + STEP - 1) / STEP * STEP;
    CHECK(bad == 0 && width % STEP == 0 && width >= widest && width <= FRAME);
    return width > widest;
}

/* Images of like width share a batch, whose micro-batches are cut: in every epoch each sample once, the same batches wherever
 * loading begins, with any number of threads or of processes. */
static void test_narrow(const Dataset *d) {
    enum { BATCH = 6, MICRO = 3, EPOCHS = 8, RANKS = 2 };
    Loader l, shared[RANKS];
    Error err;
    LoaderConfig c = config_make(BATCH, true);
    narrow_config(&c, MICRO);
    c.drop_last = true;
    CHECK_ERROR(loader_start(&l, d, (c.size_count = 2, c), &err), err, "internal error");
    c.size_count = 1;
    CHECK_OK(loader_start(&l, d, c, &err), err);
    c.ranks = RANKS;
    c.threads = 3;
    c.first_batch = 3;
    for (c.rank = 0; c.rank < RANKS; c.rank++) CHECK_OK(loader_start(&shared[c.rank], d, c, &err), err);
    int wider = 0, sum = 0, mixed = 0, micro_batches = 0;
    for (uint64_t epoch = 0; epoch < EPOCHS; epoch++) {
        int seen[51] = {0}, once = 0;
        for (uint64_t i = 0; i < l.batches_per_epoch; i++) {
            const Batch *b = loader_next(&l, &err), *s[RANKS];
            CHECK(b && b->B == BATCH && b->epoch == epoch);
            if (!b) return;
            for (int k = 0; k < BATCH; k++) seen[b->samples[k]]++;
            for (int first = 0; first < BATCH; first += MICRO, micro_batches++) {
                wider += check_narrow(d, b, first, MICRO);
                sum += b->widths[first];
            }
            for (int p = 0; p < RANKS && b->number >= 3; p++) {
                s[p] = loader_next(&shared[p], &err);
                CHECK(s[p]->B == MICRO);
                const int row = (2 * b->number + 0) % RANKS == (uint64_t)p ? 0 : MICRO;
                const size_t bytes = (size_t)MICRO * FRAME_HEIGHT * (size_t)b->widths[row] * 3;
                CHECK(s[p]->widths[0] == b->widths[row] &&
                      !memcmp(s[p]->samples, b->samples + row, MICRO * sizeof(uint32_t)));
                CHECK(!memcmp(s[p]->pixels[0], b->pixels[0] + (size_t)row * loader_pixels(&l, 0), bytes));
            }
            mixed += abs((int)dataset_sample(d, b->samples[0]).token_count -
                         (int)dataset_sample(d, b->samples[5]).token_count) > 6;
        }
        for (int i = 0; i < 51; i++) once += seen[i] == 1;
        CHECK(once == 48);
    }
    CHECK(wider > micro_batches / 20 && wider < micro_batches / 2);  // one in four, where there is room
    CHECK(sum < micro_batches * FRAME * 9 / 10 && mixed > EPOCHS);
    loader_stop(&l);
    for (int p = 0; p < RANKS; p++) loader_stop(&shared[p]);
}

static void test_held(const Dataset *d) {
    Loader l;
    Error err;
    LoaderConfig c = config_make(3, true);
    c.hold = 2;
    CHECK_OK(loader_start(&l, d, c, &err), err);
    const Batch *before = loader_next(&l, &err);
    for (int i = 0; i < 20; i++) {
        uint64_t hash = batch_hash(before);
        const Batch *next = loader_next(&l, &err);
        usleep(2000);  // the thread fills what it may
        CHECK(next != before && batch_hash(before) == hash);
        before = next;
    }
    loader_stop(&l);
}

/* Augmentation changes the pixels a little, and differently in the next epoch. */
static void test_augment(const Dataset *d) {
    Loader plain, changed;
    Error err;
    LoaderConfig c = config_make(51, true);
    c.cache_bytes = (size_t)1 << 30;
    CHECK_OK(loader_start(&plain, d, c, &err), err);
    c.augment = augment_of("light");
    CHECK_OK(loader_start(&changed, d, c, &err), err);
    uint32_t before = 0;
    for (int epoch = 0; epoch < 2; epoch++) {
        const Batch *p = loader_next(&plain, &err), *q = loader_next(&changed, &err);
        const size_t n = (size_t)51 * SIZE * SIZE * 3;
        double difference = 0;
        CHECK(!memcmp(p->samples, q->samples, sizeof(uint32_t) * 51));
        for (size_t i = 0; i < n; i++) difference += abs((int)p->pixels[0][i] - (int)q->pixels[0][i]);
        CHECK(difference / (double)n > 2 && difference / (double)n < 30);
        uint32_t sum = 0;  // of one sample, wherever it is in the batch
        for (int i = 0; i < 51; i++)
            if (q->samples[i] == 8) sum = crc32_bytes(0, q->pixels[0] + (size_t)i * SIZE * SIZE * 3, SIZE * SIZE * 3);
        CHECK(sum != before);
        before = sum;
    }
    loader_stop(&plain);
    loader_stop(&changed);
}

/* ---- errors ---- */

/* Loads until the end or an error. */
static int load_all(const char *name, LoaderConfig c, Error *err) {
    Dataset d;
    Loader l;
    if (dataset_open(&d, sample_path(name), err) != 0) return -1;
    int status = loader_start(&l, &d, c, err);
    if (status == 0) {
        while (loader_next(&l, err)) continue;
        status = err->text[0] ? -1 : 0;
        loader_stop(&l);
    }
    dataset_close(&d);
    return status;
}

static void test_errors(void) {
    Error err;
    size_t size;
    LoaderConfig c = config_make(4, false);
    uint8_t *bytes = read_bytes(sample_path("part-0.bin"), &size);
    const uint64_t index = dataset_u64(bytes + 32), record = dataset_u64(bytes + index + 9 * 32);
    CHECK_OK(load_all("part-0.bin", c, &err), err);
    bytes[record + 40] ^= 4;
    write_bytes(sample_path("flipped.bin"), bytes, size);
    CHECK_ERROR(load_all("flipped.bin", c, &err), err, "flipped.bin: record 9 is damaged (CRC-32 ");
    uint32_t length =
        (dataset_u32(bytes + index + 9 * 32 + 8) + 3) / 4 * 4 + 4 * dataset_u32(bytes + index + 9 * 32 + 12);
    put_u32(bytes + index + 9 * 32 + 16, crc32_bytes(0, bytes + record, length));  // the image was bad from the start
    put_u32(bytes + 64, dataset_crc(bytes));
    write_bytes(sample_path("flipped.bin"), bytes, size);
    CHECK_ERROR(load_all("flipped.bin", c, &err), err, "cannot read the image of record 9 in ");
    c.threads = 4;  // the first bad record of a batch is named, whichever thread comes first
    c.augment = augment_of("all=0.2");
    CHECK_ERROR(load_all("flipped.bin", c, &err), err, "cannot read the image of record 9 in ");
    free(bytes);
    c.vocab = VOCAB - 3;
    CHECK_ERROR(load_all("part-0.bin", c, &err), err,
                "record 26 has token 47 at position 21, the model's vocabulary ends at 46");
    c = config_make(31, true);
    c.drop_last = true;
    CHECK_ERROR(load_all("part-0.bin", c, &err), err,
                "of 30 samples 30 have at most 24 tokens, not enough for one batch of 31");
    c = config_make(0, true);
    CHECK_ERROR(load_all("part-0.bin", c, &err), err, "the batch size is 0");
    c = config_make(1, true);
    c.sizes[1] = image_size(16, 5000);
    CHECK_ERROR(load_all("part-0.bin", c, &err), err, "the image size is 16 x 5000");
}

int main(int argc, char **argv) {
    (void)argc;
    program_begin(argv);
    samples_begin();
    test_open();
    test_open_refused();
    test_bits();
    Dataset d;
    Error err;
    CHECK_OK(dataset_open(&d, sample_path("part-*.bin"), &err), err);
    test_in_order(&d);
    test_limit(&d);
    test_shuffled(&d);
    test_deterministic(&d);
    test_seek(&d);
    test_dealt_out(&d);
    test_narrow(&d);
    test_held(&d);
    test_augment(&d);
    dataset_close(&d);
    test_errors();
    samples_end();
    return checks_report();
}
