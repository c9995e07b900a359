/* quantize: makes one model file of another: with weights of 8 or 4 bits (kernels/quantised.h), which infer and eval map
 * straight into memory; or, with --lora, with an adapter merged into its weights.
 *
 *   load the model, quantising its weights or merging; write it. */
#include "lora.h"
#include "lib/options.h"
#include "lib/program.h"
#include "lib/threads.h"

static struct {
    const char *weights, *lora;
    int64_t threads;
    bool quiet;
} opt = {.weights = "q8"};

static const Option table[] = {
    {"weights", 'w', OPT_STRING, &opt.weights, "q8|q4",
     "q8: 8 bits and a scale for each 32 weights; q4: 4 bits, a scale and a minimum (embedding, head and connector "
     "stay q8)",
     0, 0},
    {"lora", 0, OPT_STRING, &opt.lora, "FILE",
     "merge this adapter of MODEL into its weights, which keep their 16 bits; the merged model can then be quantised",
     0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "processor threads; 0: all", 0, 4096},
    {"quiet", 'q', OPT_FLAG, &opt.quiet, NULL, "nothing on stderr but errors", 0, 0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

static bool is_quantised(const Params *p) {
    for (int i = 0; i < p->count; i++)
        if (p->list[i].dtype != DT_FLOATX) return true;
    return false;
}

/* Ends the program for a damaged model. A weight that is not finite has left NaN in its group's scale. */
static void check_finite(const Model *m, const char *path) {
    for (int i = 0; i < m->params.count; i++) {
        const Param *x = &m->params.list[i];
        const bool quantised = x->dtype != DT_FLOATX;
        const size_t n = quantised ? param_scale_bytes(x) / sizeof(bf16) : x->n;
        for (size_t k = 0; k < n; k++)
            if (!isfinite(quantised ? bf16_to_f32(x->scales[k]) : from_x(x->value[k])))
                die("the model %s is damaged: tensor %s holds a value that is not finite", path, x->name);
    }
}

int main(int argc, char **argv) {
    static Model model;
    StringList files = {NULL, 0};
    WeightFormat format;
    Error err;

    program_begin(argv);
    threads_wait_politely(argv);
    options_parse(table, OPTIONS, argc, argv,
                  "[options] MODEL OUT\n\nWrites a model with weights of 8 or 4 bits, for infer and eval, or with an "
                  "adapter merged into it.",
                  &files);
    if (files.count != 2) options_die("two files are needed: the model, and the one to write; got %d", files.count);
    if (weight_format(opt.weights, &format)) options_die("--weights must be q8 or q4, not '%.40s'", opt.weights);
    if (opt.lora && options_given(&opt.weights))
        options_die("--lora and --weights exclude each other: merge the adapter, then quantise the merged model");
    threads_use((int)opt.threads);
    const char *from = files.items[0], *to = files.items[1];
    if (same_file(from, to)) options_die("the model would be written over itself; give OUT another name");

    die_if(model_open(&model, cpu_ops(), from, "", &err), &err);
    if (is_quantised(&model.params)) die("%s is quantised already; name the model that it was made of", from);
    model_close(&model);
    die_if(model_open_as(&model, cpu_ops(), from, "", opt.lora ? WEIGHTS_AS_STORED : format, &err), &err);
    if (opt.lora) {
        die_if(lora_open(&model, opt.lora, &err), &err);
        lora_merge(&model);
    }
    check_finite(&model, from);
    die_if(model_save(&model, to, &err), &err);
    const double millions = (double)params_total(&model.params, GROUP_ALL) / 1e6;
    const double megabytes = (double)params_bytes(&model.params, GROUP_ALL) / 1e6;
    if (!opt.quiet)
        fprintf(stderr, "%s: %.2f M parameters, %.1f MB, %.2f bits each\n", to, millions, megabytes,
                8 * megabytes / millions);
    model_close(&model);
    free((void *)files.items);
    return 0;
}
