/* Tells by its looks whether an image shows a figure or a formula, where there are models for both (infer --task auto). */
#ifndef GENERATE_TELL_TASK_H
#define GENERATE_TELL_TASK_H

#include "../lib/image_clean.h"
#include "../lib/image_kind.h"
#include "options.h"

/* The task of an image. One that cannot be read has none, which is said later: a figure. */
static RenderTask tell_task(Input *input) {
    Error err;
    Image image;
    if (input_load(input, &image, &err)) return RENDER_TIKZ;
    if (opt.invert) image_invert(&image);
    if (!opt.preprocess || !strcmp(opt.preprocess, "auto")) image_clean(&image, NULL);
    const double score = image_formula_score(&image);
    image_free(&image);
    return score > 0 ? RENDER_FORMULA : RENDER_TIKZ;
}

/* Tells the tasks of all images, and how many images there are of each; says on stderr what was told. */
static void tell_tasks(Inputs *inputs, RenderTask *tasks, int *images) {
    static const char *const kinds[] = {[RENDER_TIKZ] = "a figure", [RENDER_FORMULA] = "a formula"},
                             *const others[] = {[RENDER_TIKZ] = "formula", [RENDER_FORMULA] = "tikz"};
    images[RENDER_TIKZ] = images[RENDER_FORMULA] = 0;
    for (int i = 0; i < inputs->count; i++) {
        tasks[i] = tell_task(&inputs->items[i]);
        images[tasks[i]]++;
        if (opt.verbose || (inputs->count == 1 && !opt.quiet))
            fprintf(stderr, "%s: taken for %s; --task %s takes it for %s\n", inputs->items[i].path, kinds[tasks[i]],
                    others[tasks[i]], kinds[!tasks[i]]);
    }
    if (inputs->count > 1 && !opt.verbose && !opt.quiet)
        fprintf(stderr, "%d of %d images taken for formulas, the others for figures; --verbose says which\n",
                images[RENDER_FORMULA], inputs->count);
}

#endif
