/* The models that programs take where none is named. */
#ifndef GENERATE_DEFAULT_MODEL_H
#define GENERATE_DEFAULT_MODEL_H

#include "../lib/safetensors.h"
#include "../lib/shipped.h"
#include "../lib/tex_document.h"

/* Whether a model file says that it writes programs of a task; one that says nothing writes TikZ. */
static inline bool model_writes(const char *path, RenderTask task) {
    SafeTensors file;
    Error err;
    if (safetensors_open(&file, path, &err)) return task == RENDER_TIKZ;  // opening it as a model will say why
    const char *said = safetensors_metadata(&file, "tokenizer.task");
    const bool formulas = said && !strcmp(said, "formula");
    safetensors_close(&file);
    return formulas == (task == RENDER_FORMULA);
}

static const char *const shipped_models[] = {[RENDER_TIKZ] = "dev/starter/student.safetensors",
                                             [RENDER_FORMULA] = "dev/formula/reader.safetensors"};

/* The default model of a task: the last training run's best checkpoint or else its student, if it writes that, else the
 * shipped model. NULL: there is none. */
static inline const char *default_model(RenderTask task) {
    const char *const models[] = {"out/best.safetensors", "out/student.safetensors", shipped_file(shipped_models[task])};
    for (int i = 0; i < 3; i++)
        if (file_exists(models[i]) && model_writes(models[i], task)) return models[i];
    return NULL;
}

#endif
