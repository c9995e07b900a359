/* Tells whether an image shows a figure or a formula, where there are models for both. */
#ifndef GENERATE_TELL_TASK_H
#define GENERATE_TELL_TASK_H

#include "../lib/image_clean.h"
#include "../lib/image_kind.h"
#include "../lib/tex_document.h"

/* The task of an image, which stays as it is. cleans: whether the models get images cleaned. */
static inline RenderTask tell_task(const Image *image, bool cleans) {
    Image cleaned = image_copy(image);
    if (cleans) image_clean(&cleaned, NULL);
    const double score = image_formula_score(&cleaned);
    image_free(&cleaned);
    return score > 0 ? RENDER_FORMULA : RENDER_TIKZ;
}

#endif
