/* How many programs fit into memory at a time. */
#ifndef GENERATE_FIT_H
#define GENERATE_FIT_H

#include "../generate.h"
#include "../lib/memory.h"

/* How many images are generated for together: the largest number <= `images` whose sequences, each_image for an image, fit
 * into a quarter of the RAM, or 95 % of the free GPU memory; `images` itself unless or_less. -1 when they exceed all available
 * memory, because an allocation on the CPU may not fail. T as for model_plan, which comes afterwards. */
static inline int generator_try_fit(Model *m, int images, int each_image, bool or_less, int T, int max_tokens,
                                    Error *err) {
    const bool host = m->op->host_memory;
    const size_t available = host ? memory_available() : m->op->memory_free();
    const size_t limit = host ? available / 4 : available / 20 * 19;
    const size_t sequences =
        each_image * (kv_cache_bytes(&m->c.lm, model_prompt(m) + max_tokens) + m->c.lm.vocab * sizeof(float));
    while (or_less && images > 1 && model_activation_bytes(m, images, T) + images * sequences > limit) images /= 2;
    const size_t bytes = model_activation_bytes(m, images, T) + images * sequences;
    const int programs = images * each_image;
    if (bytes <= available) return images;
    return error_set(err,
                     "%d program%s of up to %d tokens and %s %.1f MB of memory beside the model, and %s %.1f MB; "
                     "%sfewer tokens or a smaller model need less",
                     programs, programs == 1 ? "" : "s together", max_tokens,
                     programs == 1 ? "its image need" : "their images need", (double)bytes / 1e6,
                     host ? "this process may use" : "the GPU has free", (double)available / 1e6,
                     programs == 1 ? "" : "a smaller --batch, ");
}

/* The same for programs that end where they do not fit. */
static inline int generator_fit(Model *m, int images, int each_image, bool or_less, int T, int max_tokens) {
    Error err;
    const int fit = generator_try_fit(m, images, each_image, or_less, T, max_tokens, &err);
    die_if(fit < 0, &err);
    return fit;
}

#endif
