/* From an image file to what the models see. */
#ifndef GENERATE_PREPARE_H
#define GENERATE_PREPARE_H

#include "preprocess.h"
#include "writer.h"

/* Changes an image as o->preprocess says, and finds the part of it that the model sees. */
static inline int program_preprocess(Program *p, const PreprocessOptions *o, Image *image, ImageBox *box, Error *err) {
    ImageCleaned cleaned;
    if (preprocess_image(image, o, p->input->path, box, &cleaned, err)) return -1;
    if (*cleaned.text) p->preprocessing = xstrdup(cleaned.text);
    if (*cleaned.text && o->verbose) fprintf(stderr, "%s: %s\n", p->input->path, cleaned.text);
    return 0;
}

/* Reads a program's image, and prepares it as the input of the model, u8 [height, width, 3], and of the draft, where draft_pixels
 * is not NULL. Fails the program where it cannot; warns of an image that a model cannot make much of. */
static inline void program_prepare(Program *p, const PreprocessOptions *o, uint8_t *pixels, uint8_t *draft_pixels) {
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
        p->extent = image_prepare_box(pixels, &image, box, o->size);
        if (draft_pixels) image_prepare_box(draft_pixels, &image, box, o->draft_size);
        if (image_remark(remark, sizeof remark, &image, box, pixels, o->size, p->extent.scale))
            warn("%s: %s", p->input->path, remark);
    }
    image_free(&image);
    if (o->show && !p->failed)
        terminal_show(stderr, TERMINAL_BLOCKS, &(Image){o->size.width, o->size.height, pixels}, NULL);
}

#endif
