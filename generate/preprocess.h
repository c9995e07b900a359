/* From a decoded image to what the models see. */
#ifndef GENERATE_PREPROCESS_H
#define GENERATE_PREPROCESS_H

#include "../lib/image_clean.h"
#include "../model.h"

typedef struct {
    const char *preprocess;  // auto: images are cleaned; detikzify: enlarged; plain
    bool trim_near_white, invert, verbose, show;
    ImageSize size, draft_size;  // of the model's images and of the draft's
} PreprocessOptions;

static inline bool preprocess_known(const char *preprocess) {
    return !strcmp(preprocess, "auto") || !strcmp(preprocess, "plain") || !strcmp(preprocess, "detikzify");
}

/* What is done to images where the user does not say: what the model's metadata says, else auto. scripts/convert_hf.py writes
 * plain for models trained elsewhere. NULL and an error if the metadata says something unknown. */
static inline const char *preprocess_of_model(const Model *m, Error *err) {
    const char *said = safetensors_metadata(&m->file, "hub.preprocess");
    if (!said) return "auto";
    if (preprocess_known(said)) return said;
    error_set(err, "%s: the metadata hub.preprocess is '%.40s', auto, plain or detikzify was expected",
              m->file.file.path, said);
    return NULL;
}

/* Changes an image as o->preprocess says, finds the part of it that the model sees, and notes what was done in `cleaned`. `name`
 * identifies the image in error messages. */
static inline int preprocess_image(Image *image, const PreprocessOptions *o, const char *name, ImageBox *box,
                                   ImageCleaned *cleaned, Error *err) {
    *cleaned = (ImageCleaned){.text = ""};
    if (o->invert) image_invert(image);
    if (!strcmp(o->preprocess, "auto")) image_clean(image, cleaned);
    if (strcmp(o->preprocess, "detikzify")) {
        *box = image_trim(image, o->trim_near_white ? IMAGE_NEAR_WHITE : IMAGE_WHITE);
        return 0;
    }
    if (image_enlarge(image, name, err)) return -1;
    *box = (ImageBox){0, 0, image->width, image->height};
    return 0;
}

#endif
