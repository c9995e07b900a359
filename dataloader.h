/* The loader, which makes batches of a dataset (lib/dataset.h).
 *
 * A batch is a pure function of (seed, batch number), so training resumes by starting at a batch number; with width_step it
 * depends on micro_rows too. One thread, with others that help it, decodes and augments images and fills a ring of prefetched
 * batches. */
#ifndef DATALOADER_H
#define DATALOADER_H

#include "lib/dataset.h"
#include "lib/image.h"
#include "lib/image_augment.h"
#include "lib/image_columns.h"
#include "lib/image_prepare.h"
#include "lib/random.h"
#include "lib/workers.h"

#include <pthread.h>

enum { LOADER_RING = 4, LOADER_WINDOW = 32 };  // batches prefetched; batches of a window that is sorted
enum { LOADER_WIDER = 4 };  // with width_step, one micro-batch in this many gets a width by chance

typedef struct {
    int batch;
    ImageSize sizes[2];  // of images: the student's and, if different, the teacher's
    int size_count;      // 0 to 2
    int max_tokens;      // longer samples are skipped; 0: no limit
    uint64_t seed;
    bool shuffle;        // endless epochs in random order; else one pass in the order of the file
    bool drop_last;      // skip the last, smaller batch of an epoch
    size_t cache_bytes;  // capacity of the cache of images
    Augment augment;
    int threads;           // that decode and augment images; 0 means 1. The batches are the same
    uint64_t first_batch;  // number of the batch to start with
    int vocab;             // token ids must be below it; 0: below 2^31
    int hold;              // how many of the last batches stay valid for the caller: 1 or 2; 0 means 1
    /* Above 0, for inputs that begin at the left edge: images of like width share a batch, and a micro-batch is cut behind what
     * the widest of its images shows, at a multiple of this. Needs `shuffle`, `micro_rows` and one size. */
    int width_step;
    /* Data-parallel ranks share a batch. It is divided into micro-batches of micro_rows rows, which are numbered
     * consecutively over all batches; a rank loads those whose number modulo `ranks` is `rank`. ranks 0: all rows. */
    int micro_rows, rank, ranks;
} LoaderConfig;

/* The configuration of one unshuffled pass in batches of `rows` images, for a model with the given image size and
 * vocabulary, and for a second model ({0, 0}, 0: none), which gets images of its own if its size differs. */
static inline LoaderConfig loader_config_for(int rows, int max_tokens, ImageSize size, int vocab,
                                             ImageSize second_size, int second_vocab) {
    LoaderConfig c = {.batch = rows, .sizes = {size}, .size_count = 1, .max_tokens = max_tokens, .vocab = vocab};
    if (second_size.height && !image_size_same(second_size, size)) c.sizes[c.size_count++] = second_size;
    if (second_vocab && second_vocab < vocab) c.vocab = second_vocab;
    return c;
}

typedef struct {
    int B, T;        // B: rows of this rank. T: tokens of the longest sample of all ranks, rounded up to a multiple
                     // of 8, at most max_tokens
    int rows;        // rows of the whole batch, over all ranks
    int micro_rows;  // rows of a micro-batch
    int *ids;        // [B, T], padded with -1
    ImageSize sizes[2];
    int size_count;
    uint8_t *pixels[2];  // [B, height, width, 3] for each size; with width_step see `widths`
    uint32_t *samples;   // [B], indices into the dataset
    int *widths;         // [B], the width of the row's image: sizes[0].width, or with width_step that of its micro-batch, whose
                         // images are packed, beginning where its first row's would be without width_step
    int tokens;          // tokens of the whole batch, over all ranks, without padding
    uint64_t number, epoch;
    bool first_of_epoch;
} Batch;

typedef struct Loader {
    const Dataset *data;
    LoaderConfig config;
    uint32_t *kept;  // [kept_count], samples with at most max_tokens tokens
    size_t kept_count;
    uint64_t skipped, batches_per_epoch;

    /* The order of one epoch and the cache; used by the thread and its workers only. */
    uint64_t planned_epoch;
    uint32_t *order;  // [kept_count], samples
    size_t *starts;   // batch b of the epoch is order[starts[b] .. starts[b] + lengths[b])
    int *lengths;
    size_t sorted;      // begin of the window of `order` that is sorted, or SIZE_MAX
    uint16_t *widths;   // for each sample: columns that its image covers, measured when a window is sorted, or 0
    uint8_t **cache;    // for each sample: its preprocessed images, one size after the other, or NULL
    Image *decoded;     // for each sample, where the image itself is augmented: that image, or rgb NULL
    bool keep_decoded;  // cache these, and not what was made of them
    size_t cached_bytes;
    uint8_t *checked;  // for each sample: whether its record has been checked
    Workers workers;
    Batch *filling;  // batch whose images the workers load
    int failed_row;  // its first row that failed, for `row_error`; -1: none
    Error row_error;
    pthread_mutex_t row_mutex;

    pthread_t thread;
    bool running;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    Batch ring[LOADER_RING];
    uint64_t written, read;  // batches that the thread has produced and the caller has consumed since the last seek
    int held;                // of the consumed batches, how many the caller may still use
    bool stop, ended, failed;
    Error error;
} Loader;

/* Bytes of an image of size i. */
static inline size_t loader_pixels(const Loader *l, int i) { return image_size_bytes(l->config.sizes[i]); }

/* A sort key: the length of the text, or the width of the image, then the position in the shuffled order, so that the order of
 * equal lengths is defined. */
typedef struct {
    uint32_t length, position, sample;
} LoaderKey;

static inline int loader_compare(const void *a, const void *b) {
    const LoaderKey *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? -1 : 1;
    return x->position < y->position ? -1 : x->position > y->position;
}

/* Cuts one window, the samples order[begin .. begin + n), into batches in random order. */
static inline void loader_plan_window(Loader *l, Random *random, size_t begin, size_t n) {
    const size_t batch = l->config.batch, batches = (n + batch - 1) / batch, first_batch = begin / batch;
    uint32_t permutation[LOADER_WINDOW];
    for (size_t b = 0; b < batches; b++) permutation[b] = b;
    random_shuffle(random, permutation, batches);
    for (size_t b = 0; b < batches; b++) {
        size_t from = permutation[b] * batch;
        l->starts[first_batch + b] = begin + from;
        l->lengths[first_batch + b] = n - from < batch ? n - from : batch;
    }
}

/* The samples of an epoch. */
static inline size_t loader_used(const Loader *l) {
    return l->config.drop_last ? l->kept_count - l->kept_count % l->config.batch : l->kept_count;
}

/* Plans an epoch: which samples make which batch. To keep padding small, a batch has samples of similar length (or width), yet
 * the order is random: all samples are shuffled, each window of 32 batches is sorted (loader_sort_window, when its first batch is
 * made), and the batches of a window are shuffled again. */
static inline void loader_plan(Loader *l, uint64_t epoch) {
    const size_t batch = l->config.batch, n = l->kept_count, window = batch * LOADER_WINDOW;
    Random random;
    random_seed3(&random, l->config.seed, epoch, 0x6f72646572u);
    memcpy(l->order, l->kept, n * sizeof *l->order);
    if (l->config.shuffle) random_shuffle(&random, l->order, n);
    const size_t used = loader_used(l);
    for (size_t begin = 0; begin < used; begin += window) {
        size_t size = used - begin < window ? used - begin : window;
        if (l->config.shuffle) loader_plan_window(l, &random, begin, size);
        for (size_t at = 0; !l->config.shuffle && at < size; at += batch) {
            l->starts[(begin + at) / batch] = begin + at;
            l->lengths[(begin + at) / batch] = size - at < batch ? size - at : batch;
        }
    }
    l->planned_epoch = epoch;
    l->sorted = SIZE_MAX;
}

/* ---- making batches (in the thread) ---- */

/* Reserves a part of the cache; false: it is full. */
static inline bool loader_reserve(Loader *l, size_t bytes) {
    if (__atomic_add_fetch(&l->cached_bytes, bytes, __ATOMIC_RELAXED) <= l->config.cache_bytes) return true;
    __atomic_sub_fetch(&l->cached_bytes, bytes, __ATOMIC_RELAXED);
    return false;
}

/* Decodes the image of a sample, or copies it from the cache. */
static inline int loader_decode(Loader *l, Image *image, uint32_t sample, const Sample *s, Error *err) {
    if (l->keep_decoded && l->decoded[sample].rgb) {
        *image = image_copy(&l->decoded[sample]);
        return 0;
    }
    char *name = format_string("of record %llu in %s", (unsigned long long)s->number, s->path);
    int status = image_decode(image, s->image, s->image_bytes, name, err);
    free(name);
    if (status == 0 && l->keep_decoded && loader_reserve(l, 3 * (size_t)image->width * image->height))
        l->decoded[sample] = image_copy(image);
    return status;
}

/* Measures how wide the input is that a sample of the window becomes, in a thread of the pool. What cannot be read counts as
 * narrow, and is an error when its batch is loaded. */
static inline void loader_measure(void *context, int i) {
    Loader *l = context;
    Error err;
    Image image = {0};
    const uint32_t sample = l->order[l->sorted + i];
    const ImageSize size = l->config.sizes[0];
    if (l->widths[sample]) return;
    const Sample s = dataset_sample(l->data, sample);
    l->widths[sample] = 1;
    if (dataset_check_sample(&s, l->config.vocab, &err) || loader_decode(l, &image, sample, &s, &err)) return;
    uint8_t *pixels = xmalloc(image_size_bytes(size));
    image_prepare(pixels, &image, size);
    l->widths[sample] = (uint16_t)image_columns(pixels, size);
    if (!l->keep_decoded && !l->cache[sample] && loader_reserve(l, image_size_bytes(size)))
        l->cache[sample] = pixels;  // what loader_image would make of it
    else
        free(pixels);
    image_free(&image);
}

/* Sorts the window that begins at order[begin], by the length of the text or by the width of the images. Sorting it again
 * changes nothing. */
static inline void loader_sort_window(Loader *l, size_t begin) {
    const size_t window = (size_t)l->config.batch * LOADER_WINDOW, left = loader_used(l) - begin;
    const size_t n = left < window ? left : window;
    if (!l->config.shuffle || begin == l->sorted) return;
    l->sorted = begin;
    if (l->config.width_step) workers_run(&l->workers, (int)n, loader_measure, l);
    LoaderKey *keys = xmalloc(n * sizeof *keys);
    for (size_t i = 0; i < n; i++) {
        uint32_t sample = l->order[begin + i];
        const uint32_t length = l->widths ? l->widths[sample] : dataset_sample(l->data, sample).token_count;
        keys[i] = (LoaderKey){length, i, sample};
    }
    qsort(keys, n, sizeof *keys, loader_compare);
    for (size_t i = 0; i < n; i++) l->order[begin + i] = keys[i].sample;
    free(keys);
}

/* Fills row `at` of b->pixels with the images of its sample, from the cache or by decoding, augmenting and
 * preprocessing. Checks the record when the sample is first used. Rows may be filled at the same time: a batch has a
 * sample once. */
static inline int loader_image(Loader *l, Batch *b, int at, Error *err) {
    const LoaderConfig *c = &l->config;
    const uint32_t sample = b->samples[at];
    const Sample s = dataset_sample(l->data, sample);
    size_t bytes = 0, offset = 0;
    for (int i = 0; i < c->size_count; i++) bytes += loader_pixels(l, i);
    if (!l->checked[sample] && dataset_check_sample(&s, c->vocab, err) != 0) return -1;
    l->checked[sample] = 1;
    const bool cached = l->cache[sample] != NULL;
    Image image = {0};
    ImageBox box = {0};
    if (!cached) {
        if (loader_decode(l, &image, sample, &s, err) != 0) return -1;
        box = augment_image(&c->augment, &image, c->seed, b->epoch, sample);
        if (!l->keep_decoded && loader_reserve(l, bytes)) l->cache[sample] = xmalloc(bytes);
    }
    for (int i = 0; i < c->size_count; offset += loader_pixels(l, i), i++) {
        uint8_t *to = b->pixels[i] + at * loader_pixels(l, i), *kept = l->cache[sample];
        if (!cached) image_prepare_box(to, &image, box, c->sizes[i]);
        if (cached) memcpy(to, kept + offset, loader_pixels(l, i));
        if (kept && !cached) memcpy(kept + offset, to, loader_pixels(l, i));
        if (i == 0) b->widths[at] = c->width_step ? image_columns(to, c->sizes[0]) : c->sizes[0].width;
        augment_prepared(&c->augment, to, c->sizes[i], c->seed, b->epoch, sample);
    }
    image_free(&image);
    return 0;
}

/* One row of the batch that is being filled, in a thread of the pool. */
static inline void loader_fill_row(void *context, int row) {
    Loader *l = context;
    Error err;
    if (loader_image(l, l->filling, row, &err) == 0) return;
    pthread_mutex_lock(&l->row_mutex);
    if (l->failed_row < 0 || row < l->failed_row) {
        l->failed_row = row;
        l->row_error = err;
    }
    pthread_mutex_unlock(&l->row_mutex);
}

/* The number of micro-batches of a batch. */
static inline uint64_t loader_micro_batches(const LoaderConfig *c) {
    return (c->batch + c->micro_rows - 1) / c->micro_rows;
}

/* Whether a row of batch `number` belongs to this rank. */
static inline bool loader_owns_row(const LoaderConfig *c, uint64_t number, int row) {
    if (!c->ranks) return true;
    return (number * loader_micro_batches(c) + row / c->micro_rows) % c->ranks == (uint64_t)c->rank;
}

/* Makes the images of each micro-batch as wide as the widest of them, or, of some, as wide as chance says: a model that never
 * sees much white to the right of an image cannot read one in its full frame. */
static inline void loader_cut(const Loader *l, Batch *b) {
    const int step = l->config.width_step;
    Random random;
    for (int first = 0, n; first < b->B; first += n) {
        n = b->B - first < b->micro_rows ? b->B - first : b->micro_rows;
        int width = 1;
        for (int i = first; i < first + n; i++) width = b->widths[i] > width ? b->widths[i] : width;
        width = (width + step - 1) / step * step;  // at most the frame's width, which is a multiple of the step
        random_seed3(&random, l->config.seed, b->epoch << 32 | b->samples[first], 0x7769647468u);
        if (random_below(&random, LOADER_WIDER) == 0)
            width += step * (int)random_below(&random, (uint64_t)((b->sizes[0].width - width) / step + 1));
        for (int i = first; i < first + n; i++) b->widths[i] = width;
        image_cut_columns(b->pixels[0] + first * loader_pixels(l, 0), n, b->sizes[0], width);
    }
}

/* Makes batch `number`. */
static inline int loader_make_batch(Loader *l, Batch *b, uint64_t number, Error *err) {
    const uint64_t epoch = number / l->batches_per_epoch, within = number % l->batches_per_epoch;
    if (epoch != l->planned_epoch) loader_plan(l, epoch);
    loader_sort_window(l, within / LOADER_WINDOW * LOADER_WINDOW * (uint64_t)l->config.batch);
    b->number = number;
    b->epoch = epoch;
    b->first_of_epoch = within == 0;
    b->rows = l->lengths[within];
    b->micro_rows = l->config.micro_rows;
    b->size_count = l->config.size_count;
    memcpy(b->sizes, l->config.sizes, sizeof b->sizes);
    b->B = b->tokens = 0;
    uint32_t longest = 0;
    for (int i = 0; i < b->rows; i++) {
        uint32_t sample = l->order[l->starts[within] + i], n = dataset_sample(l->data, sample).token_count;
        if (loader_owns_row(&l->config, number, i)) b->samples[b->B++] = sample;
        b->tokens += (int)n;
        if (n > longest) longest = n;
    }
    b->T = (int)((longest + 7) / 8 * 8);
    if (b->T > l->config.max_tokens) b->T = l->config.max_tokens;
    l->filling = b;
    l->failed_row = -1;
    workers_run(&l->workers, b->B, loader_fill_row, l);
    if (l->failed_row >= 0) {
        *err = l->row_error;
        return -1;
    }
    if (l->config.width_step) loader_cut(l, b);
    for (int i = 0; i < b->B; i++) {
        const Sample s = dataset_sample(l->data, b->samples[i]);
        int *ids = b->ids + (size_t)i * b->T;
        for (int t = 0; t < b->T; t++) ids[t] = t < (int)s.token_count ? (int)s.tokens[t] : -1;
    }
    return 0;
}

static inline void *loader_thread(void *argument) {
    Loader *l = argument;
    pthread_mutex_lock(&l->mutex);
    for (uint64_t number = l->config.first_batch;; number++) {
        while (!l->stop && l->written - l->read + l->held >= LOADER_RING) pthread_cond_wait(&l->changed, &l->mutex);
        if (l->stop) break;
        if (!l->config.shuffle && number >= l->batches_per_epoch) {
            l->ended = true;
            break;
        }
        Batch *b = &l->ring[l->written % LOADER_RING];
        Error err;
        pthread_mutex_unlock(&l->mutex);
        int status = loader_make_batch(l, b, number, &err);
        pthread_mutex_lock(&l->mutex);
        if (status != 0) {
            l->error = err;
            l->failed = true;
            break;
        }
        l->written++;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

/* ---- the interface ---- */

/* Stops the thread. */
static inline void loader_halt(Loader *l) {
    if (!l->running) return;
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    pthread_join(l->thread, NULL);
    l->running = false;
}

/* Continues at batch batch_number, counted from the beginning of training: after seek(k), loader_next returns the
 * batch that it would return after k calls. Without shuffle, seek(0) starts the next pass. */
static inline int loader_seek(Loader *l, uint64_t batch_number, Error *err) {
    loader_halt(l);
    l->config.first_batch = batch_number;
    l->written = l->read = 0;
    l->held = 0;
    l->stop = l->ended = l->failed = false;
    int status = pthread_create(&l->thread, NULL, loader_thread, l);
    if (status != 0) return error_set(err, "cannot start the thread that loads data: %s", strerror(status));
    l->running = true;
    return 0;
}

/* Stops the thread and frees everything. */
static inline void loader_stop(Loader *l) {
    if (!l->data) return;
    loader_halt(l);
    for (int i = 0; i < LOADER_RING; i++) {
        free(l->ring[i].ids);
        free(l->ring[i].samples);
        free(l->ring[i].widths);
        for (int k = 0; k < 2; k++) free(l->ring[i].pixels[k]);
    }
    workers_stop(&l->workers);
    for (uint64_t i = 0; i < l->data->count; i++) free(l->cache[i]);
    for (uint64_t i = 0; l->decoded && i < l->data->count; i++) image_free(&l->decoded[i]);
    free(l->cache);
    free(l->decoded);
    free(l->checked);
    free(l->kept);
    free(l->order);
    free(l->starts);
    free(l->lengths);
    free(l->widths);
    pthread_mutex_destroy(&l->row_mutex);
    pthread_mutex_destroy(&l->mutex);
    pthread_cond_destroy(&l->changed);
    memset(l, 0, sizeof *l);
}

/* Allocates the ring, for at most as many rows as this rank has of a batch, and the arrays of the thread. */
static inline void loader_allocate(Loader *l) {
    const LoaderConfig *c = &l->config;
    size_t batch = c->batch;
    if (c->ranks) {
        size_t rows = (loader_micro_batches(c) + c->ranks - 1) / c->ranks * c->micro_rows;
        if (rows < batch) batch = rows;
    }
    for (int i = 0; i < LOADER_RING; i++) {
        l->ring[i].ids = xcalloc(batch * c->max_tokens, sizeof(int));
        l->ring[i].samples = xcalloc(batch, sizeof(uint32_t));
        l->ring[i].widths = xcalloc(batch, sizeof(int));
        for (int k = 0; k < c->size_count; k++) l->ring[i].pixels[k] = xcalloc(batch, loader_pixels(l, k));
    }
    l->cache = xcalloc(l->data->count, sizeof *l->cache);
    l->keep_decoded = augment_needs_image(&c->augment);
    if (l->keep_decoded) l->decoded = xcalloc(l->data->count, sizeof *l->decoded);
    l->checked = xcalloc(l->data->count, 1);
    l->order = xcalloc(l->kept_count, sizeof *l->order);
    l->starts = xcalloc(l->batches_per_epoch, sizeof *l->starts);
    l->lengths = xcalloc(l->batches_per_epoch, sizeof *l->lengths);
    if (c->width_step) l->widths = xcalloc(l->data->count, sizeof *l->widths);
}

/* Starts loading batches. l->skipped is the number of samples that are skipped because they have more than max_tokens
 * tokens. To be stopped with loader_stop; after a failure there is nothing to stop. */
static inline int loader_start(Loader *l, const Dataset *d, LoaderConfig config, Error *err) {
    memset(l, 0, sizeof *l);
    if (config.batch < 1 || config.batch > 1 << 20)
        return error_set(err, "the batch size is %d, 1 to 1048576 was expected", config.batch);
    if (!config.hold) config.hold = 1;
    if (config.hold < 0 || config.hold > 2 ||
        (config.ranks &&
         (config.ranks < 0 || config.rank < 0 || config.rank >= config.ranks || config.micro_rows < 1)))
        return error_set(err, "internal error: batches held %d, rank %d of %d in micro-batches of %d", config.hold,
                         config.rank, config.ranks, config.micro_rows);
    if (config.width_step && (config.size_count != 1 || config.micro_rows < 1 || !config.shuffle))
        return error_set(err, "internal error: images are cut in file order, without micro-batches, or for two models");
    if (config.size_count < 0 || config.size_count > 2) return error_set(err, "0 to 2 image sizes were expected");
    for (int i = 0; i < config.size_count; i++)
        if (config.sizes[i].height < 1 || config.sizes[i].height > 4096 || config.sizes[i].width < 1 ||
            config.sizes[i].width > 4096)
            return error_set(err, "the image size is %d x %d, 1 to 4096 was expected", config.sizes[i].height,
                             config.sizes[i].width);
    const int longest = (d->longest + 7) / 8 * 8;
    if (config.max_tokens <= 0 || config.max_tokens > longest) config.max_tokens = longest;
    l->config = config;
    l->kept = xcalloc(d->count, sizeof *l->kept);
    for (uint64_t i = 0; i < d->count; i++)
        if (dataset_sample(d, i).token_count <= (uint32_t)config.max_tokens) l->kept[l->kept_count++] = i;
    l->skipped = d->count - l->kept_count;
    const uint64_t batch = config.batch;
    l->batches_per_epoch = config.drop_last ? l->kept_count / batch : (l->kept_count + batch - 1) / batch;
    if (l->batches_per_epoch == 0) {
        size_t kept = l->kept_count;
        free(l->kept);
        return error_set(err,
                         "%s: of %llu samples %zu have at most %d tokens, not enough for one batch of %d; raise the "
                         "number of tokens or use a smaller batch",
                         d->shards[0].file.path, (unsigned long long)d->count, kept, config.max_tokens, config.batch);
    }
    l->data = d;
    l->planned_epoch = UINT64_MAX;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->changed, NULL);
    pthread_mutex_init(&l->row_mutex, NULL);
    loader_allocate(l);
    workers_start(&l->workers, config.threads);
    int status = loader_seek(l, config.first_batch, err);
    if (status != 0) loader_stop(l);
    return status;
}

/* The next batch, which is valid until the next call (or, with config.hold 2, the one after that). Returns NULL on an
 * error (a damaged record or image), with a sentence in err, and at the end of the pass (only without shuffle), with
 * err empty. */
static inline const Batch *loader_next(Loader *l, Error *err) {
    const Batch *b = NULL;
    err->text[0] = '\0';
    pthread_mutex_lock(&l->mutex);
    if (l->held == l->config.hold) l->held--;
    pthread_cond_broadcast(&l->changed);
    while (l->read == l->written && !l->ended && !l->failed) pthread_cond_wait(&l->changed, &l->mutex);
    if (l->read < l->written) {
        b = &l->ring[l->read++ % LOADER_RING];
        l->held++;
    } else if (l->failed) {
        *err = l->error;
    }
    pthread_mutex_unlock(&l->mutex);
    return b;
}

#endif
