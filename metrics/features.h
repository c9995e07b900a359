/* Features of images from a model's vision encoder, for self-similarity and the kernel inception distance. */
#ifndef METRICS_FEATURES_H
#define METRICS_FEATURES_H

#include "../lib/file_checksum.h"
#include "../model.h"

typedef struct {
    Model model;
    uint8_t *pixels;  // [height, width, 3]
    floatX *host;     // [P, C]
    int P, C;         // patches of an image, features of a patch
    uint64_t hash;    // of the model's file: its path, size and time
} FeatureEncoder;

/* The features of one image, u8 [height, width, 3] as the model sees it, in double [P, C]. host: memory for [P, C]. The
 * model must be planned. */
static inline void features_of_pixels(Model *m, const uint8_t *pixels, floatX *host, double *features) {
    const size_t n = (size_t)vision_patches(&m->c.vision) * (size_t)m->c.vision.hidden_size;
    model_use_full_width(m);
    model_upload_pixels(m, pixels, 1);
    vision_encode(&m->vision, m->op, m->pixels, 1);
    m->op->download(host, m->vision.features, n * sizeof(floatX));
    for (size_t i = 0; i < n; i++) features[i] = (double)from_x(host[i]);
}

/* Opens the model in a file for encoding one image at a time. */
static inline int feature_encoder_open(FeatureEncoder *e, const Ops *op, const char *path, Error *err) {
    memset(e, 0, sizeof *e);
    e->hash = HASH_BEGIN;
    if (file_identity(&e->hash, path, err)) return -1;
    if (model_open(&e->model, op, path, "the encoder's ", err)) return -1;
    model_plan(&e->model, 1, 1);
    const VisionConfig *c = &e->model.c.vision;
    e->P = vision_patches(c);
    e->C = c->hidden_size;
    e->pixels = (uint8_t *)xmalloc(model_pixels(&e->model));
    e->host = (floatX *)xmalloc((size_t)e->P * (size_t)e->C * sizeof(floatX));
    return 0;
}

static inline void feature_encoder_close(FeatureEncoder *e) {
    free(e->pixels);
    free(e->host);
    model_close(&e->model);
}

/* The features [P, C] of an image, which is trimmed, padded and resized as the model's input. */
static inline void feature_encode(FeatureEncoder *e, const Image *image, double *features) {
    image_prepare(e->pixels, image, vision_size(&e->model.c.vision));
    features_of_pixels(&e->model, e->pixels, e->host, features);
}

#endif
