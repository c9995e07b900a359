/* From an image file to what the models see. */
#ifndef GENERATE_PREPARE_H
#define GENERATE_PREPARE_H

#include "../lib/image_clean.h"
#include "../model.h"
#include "writer.h"

typedef struct {
    const char *preprocess;  // auto: images are cleaned; detikzify: enlarged; plain
    bool trim_near_white, invert, verbose, show;
    ImageSize size, draft_size;  // of the model's images and of the draft's
} PrepareOptions;

static inline bool prepare_knows(const char *preprocess) {
    return !strcmp(preprocess, "auto") || !strcmp(preprocess, "plain") || !strcmp(preprocess, "detikzify");
}

/* What is done to images where the user does not say: what the model's metadata says, else auto. scripts/convert_hf.py writes
 * plain for models trained elsewhere. NULL and an error if the metadata says something unknown. */
static inline const char *prepare_default(const Model *m, Error *err) {
    const char *said = safetensors_metadata(&m->file, "hub.preprocess");
    if (!said) return "auto";
    if (prepare_knows(said)) return said;
    error_set(err, "%s: the metadata hub.preprocess is '%.40s', auto, plain or detikzify was expected",
              m->file.file.path, said);
    return NULL;
}

/* Changes an image as o->preprocess says, and finds the part of it that the model sees. */
static inline int program_preprocess(Program *p, const PrepareOptions *o, Image *image, ImageBox *box, Error *err) {
    ImageCleaned cleaned = {.text = ""};
    if (o->invert) image_invert(image);
    if (!strcmp(o->preprocess, "auto")) image_clean(image, &cleaned);
    if (!strcmp(o->preprocess, "detikzify")) {
        if (image_enlarge(image, p->input->path, err)) return -1;
        *box = (ImageBox){0, 0, image->width, image->height};
    } else {
        *box = image_trim(image, o->trim_near_white ? IMAGE_NEAR_WHITE : IMAGE_WHITE);
    }
    if (*cleaned.text) p->preprocessing = xstrdup(cleaned.text);
    if (*cleaned.text && o->verbose) fprintf(stderr, "%s: %s\n", p->input->path, cleaned.text);
    return 0;
}

/* Reads a program's image, and prepares it as the input of the model, u8 [height, width, 3], and of the draft, where draft_pixels
 * is not NULL. Fails the program where it cannot; warns of an image that a model cannot make much of. */
static inline void program_prepare(Program *p, const PrepareOptions *o, uint8_t *pixels, uint8_t *draft_pixels) {
    Error err;
    Image image;
    ImageBox box;
    char remark[256];
    if (input_load(p->input, &image, &err)) {
        program_fail(p, &err);
        return;
    }
    if (program_preprocess(p, o, &image, &box, &err)) {
        program_fail(p, &err);
    } else {
        image_prepare_box(pixels, &image, box, o->size);
        if (draft_pixels) image_prepare_box(draft_pixels, &image, box, o->draft_size);
        if (image_remark(remark, sizeof remark, &image, box, pixels, o->size)) warn("%s: %s", p->input->path, remark);
        p->longest = box.width > box.height ? box.width : box.height;
    }
    image_free(&image);
    if (o->show && !p->failed)
        terminal_show(stderr, TERMINAL_BLOCKS, &(Image){o->size.width, o->size.height, pixels}, NULL);
}

#endif
