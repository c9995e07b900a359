/* What train_distill can be told: its options with their defaults, which also serve --help, --config, options.txt and
 * what ranks compare, and the options that are more than a number or a name. */
#ifndef TRAIN_OPTIONS_H
#define TRAIN_OPTIONS_H

#include "../lib/options.h"
#include "../loss.cuh"
#include "../model.h"

static struct {
    const char *teacher = "dev/starter/teacher.safetensors", *student = "base,lm.layers=2", *tokenizer = NULL;
    const char *init = "teacher", *train = "vision,connector,lm";
    const char *data = "dev/starter/train.bin", *val_data = "dev/starter/val.bin", *out = "out";
    const char *device = "auto", *teacher_device = NULL, *student_device = NULL;
    int64_t steps = 0, epochs = 8, batch = 32, accum = 1, seed = 1, warmup = -1, max_tokens = 0;
    int64_t eval_every = 0, eval_batches = 0, patience = 0, chunk = 0, cache = 512, threads = 0;
    const char *recompute = "none", *schedule = "cosine", *loss = "kl", *kd_schedule = "anneal";
    double lr = 1e-3, lr_final = 0.05, lr_gamma = 0.1, decay = 0.05, beta1 = 0.9, beta2 = 0.98, clip = 1;
    double temperature = 4, alpha = NAN, w_ce = 0.2, w_soft = 0.8, w_hard = 0, w_embed = 0, beta = 0.5;
    double entropy_low = 0, entropy_high = 1e9, sure = 2, gate_factor = 0.3;
    bool resume = false, overwrite = false, augment = false, shard = true;
    const char *rendezvous = NULL;
    int64_t gpus = 0, ranks = 0, rank = -1, teachers = -1, students = 0;
} opt;

#define HEADING(text) \
    { NULL, 0, OPT_FLAG, NULL, NULL, text, 0, 0 }
static const Option table[] = {
    HEADING("models"),
    {"teacher", 0, OPT_STRING, &opt.teacher, "FILE", "model to learn from, or none", 0, 0},
    {"student", 0, OPT_STRING, &opt.student, "FILE|SHAPE",
     "model to train: a file, or a shape (tiny, small, base, tl-1.1b; small,lm.layers=4 changes a key) drawn at "
     "random",
     0, 0},
    {"tokenizer", 0, OPT_STRING, &opt.tokenizer, "FILE",
     "file with the tokenizer of a new student (default: the teacher, else dev/starter/tokenizer.safetensors)", 0, 0},
    {"init", 0, OPT_STRING, &opt.init, "FILE|teacher",
     "start a new student from this model wherever names and shapes agree, its layers taken evenly; none: at random",
     0, 0},
    {"train", 0, OPT_STRING, &opt.train, "PARTS", "parts to train; the others stay frozen", 0, 0},
    HEADING("data"),
    {"data", 0, OPT_STRING, &opt.data, "FILE|GLOB", "training data", 0, 0},
    {"val-data", 0, OPT_STRING, &opt.val_data, "FILE", "validation data, or none", 0, 0},
    {"max-tokens", 0, OPT_INT, &opt.max_tokens, "N",
     "leave out samples with more text tokens than this; 0: as many as the models take", 0, 1e9},
    {"augment", 0, OPT_FLAG, &opt.augment, NULL, "vary brightness, contrast, noise and sharpness of the images", 0,
     0},
    {"cache", 0, OPT_INT, &opt.cache, "MB", "memory for decoded images", 0, 1e9},
    HEADING("training"),
    {"out", 'o', OPT_STRING, &opt.out, "DIR", "folder for the student, checkpoints and the log", 0, 0},
    {"resume", 0, OPT_FLAG, &opt.resume, NULL, "go on from the checkpoint in --out, with the options of that run", 0,
     0},
    {"overwrite", 0, OPT_FLAG, &opt.overwrite, NULL, "start anew although --out holds a trained student", 0, 0},
    {"steps", 0, OPT_INT, &opt.steps, "N", "optimizer steps; 0: as --epochs says", 0, 2e9},
    {"epochs", 0, OPT_INT, &opt.epochs, "N", "passes over the data", 1, 1e9},
    {"batch", 'b', OPT_INT, &opt.batch, "N", "images in a micro-batch", 1, 65536},
    {"accum", 0, OPT_INT, &opt.accum, "N", "micro-batches in an optimizer step, of each student rank", 1, 1 << 20},
    {"lr", 0, OPT_FLOAT, &opt.lr, "X", "peak learning rate", 0, 10},
    {"lr-schedule", 0, OPT_STRING, &opt.schedule, "NAME", "cosine, linear, constant or multistep", 0, 0},
    {"lr-final", 0, OPT_FLOAT, &opt.lr_final, "X", "share of --lr at the end (cosine, linear)", 0, 1},
    {"lr-gamma", 0, OPT_FLOAT, &opt.lr_gamma, "X", "factor at 50, 75 and 90 % of the steps (multistep)", 0, 1},
    {"warmup", 0, OPT_INT, &opt.warmup, "N", "steps of linear warm-up; -1: 5 % of the steps, at most 1000", -1, 1e12},
    {"decay", 0, OPT_FLOAT, &opt.decay, "X", "AdamW's weight decay, on matrices only", 0, 10},
    {"beta1", 0, OPT_FLOAT, &opt.beta1, "X", "AdamW's first moment", 0, 0.9999999},
    {"beta2", 0, OPT_FLOAT, &opt.beta2, "X", "AdamW's second moment", 0, 0.9999999},
    {"clip", 0, OPT_FLOAT, &opt.clip, "X", "largest gradient norm; 0: not clipped", 0, 1e9},
    {"eval-every", 0, OPT_INT, &opt.eval_every, "N", "steps between evaluations; 0: ten in the run", 0, 1e12},
    {"eval-batches", 0, OPT_INT, &opt.eval_batches, "N", "validation batches; 0: all", 0, 1e9},
    {"patience", 0, OPT_INT, &opt.patience, "N", "stop after N evaluations without a better one; 0: never", 0, 1e9},
    {"seed", 0, OPT_INT, &opt.seed, "N", "of random weights and of the order of the data", 0, 1e15},
    HEADING("objective"),
    {"alpha", 'a', OPT_FLOAT, &opt.alpha, "A", "short for --w-soft A --w-ce 1-A", 0, 1},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "softens both distributions in the soft term", 0.01, 1000},
    {"soft-loss", 0, OPT_STRING, &opt.loss, "NAME", "kl, reverse-kl or jsd", 0, 0},
    {"jsd-beta", 0, OPT_FLOAT, &opt.beta, "X", "the teacher's share in JSD's mixture", 0.001, 0.999},
    {"w-ce", 0, OPT_FLOAT, &opt.w_ce, "X", "weight of the cross entropy with the text", 0, 1e6},
    {"w-soft", 0, OPT_FLOAT, &opt.w_soft, "X", "weight of the divergence from the teacher", 0, 1e6},
    {"w-hard", 0, OPT_FLOAT, &opt.w_hard, "X", "weight of the cross entropy with the teacher's best token", 0, 1e6},
    {"w-embed", 0, OPT_FLOAT, &opt.w_embed, "X", "weight of 1 - cosine of the image tokens", 0, 1e6},
    {"kd-schedule", 0, OPT_STRING, &opt.kd_schedule, "NAME",
     "none; anneal: the temperature falls to 1 in 80 % of the steps; image2tikz: temperature, weights and band move",
     0, 0},
    {"entropy-low", 0, OPT_FLOAT, &opt.entropy_low, "X", "distil only above this teacher entropy, nats", 0, 1e9},
    {"entropy-high", 0, OPT_FLOAT, &opt.entropy_high, "X", "distil only below this teacher entropy, nats", 0, 1e9},
    {"sure", 0, OPT_FLOAT, &opt.sure, "P",
     "scale the distillation where the teacher is right with at least this probability; above 1: never", 0, 2},
    {"sure-factor", 0, OPT_FLOAT, &opt.gate_factor, "X", "the factor for --sure", 0, 1},
    {"chunk", 0, OPT_INT, &opt.chunk, "N", "positions whose logits exist at a time; 0: 4096, on a GPU by its memory",
     0, 1e9},
    HEADING("machine"),
    {"device", 0, OPT_STRING, &opt.device, "NAME",
     "where both models run: cpu, cuda (the first GPU), cuda:N, or auto: a GPU if one answers", 0, 0},
    {"teacher-device", 0, OPT_STRING, &opt.teacher_device, "NAME", "where the teacher runs, if elsewhere", 0, 0},
    {"student-device", 0, OPT_STRING, &opt.student_device, "NAME", "where the student runs, if elsewhere", 0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "processor threads; 0: all, divided among the ranks that share them",
     0, 4096},
    {"recompute", 0, OPT_STRING, &opt.recompute, "WHAT",
     "computed twice instead of kept for the backward pass, with the same results: none; activations: what takes no "
     "product; blocks: all but each block's input",
     0, 0},
    HEADING("several processes, for several GPUs or machines"),
    {"gpus", 0, OPT_INT, &opt.gpus, "N",
     "GPUs of this machine to use, a process for each; 0: two if there are two and a teacher, else one", 0, 8},
    {"ranks", 0, OPT_INT, &opt.ranks, "N",
     "processes in all; alone: all on this machine, started from here (mpirun and srun say it themselves)", 0, 4096},
    {"rank", 0, OPT_INT, &opt.rank, "R", "which of them this one is, with --rendezvous", -1, 4095},
    {"rendezvous", 0, OPT_STRING, &opt.rendezvous, "HOST:PORT", "where rank 0 waits for the others", 0, 0},
    {"teachers", 0, OPT_INT, &opt.teachers, "N",
     "of the ranks, those that run the teacher; 0: each student runs it too; -1: half of them", -1, 4095},
    {"students", 0, OPT_INT, &opt.students, "N",
     "those that train the student, each on a part of the batch; 0: the rest", 0, 4096},
    {"shard", 0, OPT_FLAG, &opt.shard, NULL, "the students divide the optimizer's state among them (ZeRO 1)", 0, 0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

/* The place of an option's value among names; a wrong one is a usage mistake. */
static int choice(const char *option, const char *text, const char *const *names, int count) {
    int i = name_index(text, names, count);
    if (i >= 0) return i;
    char list[200] = "";
    for (int k = 0; k < count; k++) {
        strcat(list, k ? ", " : "");
        strcat(list, names[k]);
    }
    options_die("--%s is '%s'; expected one of %s", option, text, list);
}

static int parse_parts(const char *text) {
    static const char *const names[] = {"vision", "connector", "lm"};
    int parts = 0;
    char copy[64], *rest = NULL;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *name = strtok_r(copy, ",", &rest); name; name = strtok_r(NULL, ",", &rest))
        parts |= 1 << choice("train", name, names, 3);
    if (!parts) options_die("--train names no part; expected vision, connector, lm or several with commas");
    return parts;
}

static ObjectiveConfig parse_objective(void) {
    static const char *const losses[] = {"kl", "reverse-kl", "jsd"};
    ObjectiveConfig c;
    memset(&c, 0, sizeof c);
    if (!isnan(opt.alpha)) {
        opt.w_soft = opt.alpha;
        opt.w_ce = 1 - opt.alpha;
        opt.alpha = NAN;  // what is recorded for --resume are the two weights
    }
    bool alone = !strcmp(opt.teacher, "none");
    if (alone && !options_given(&opt.w_ce)) opt.w_ce = 1;
    if (alone) opt.w_soft = opt.w_hard = opt.w_embed = 0;
    if (opt.w_ce <= 0 && (alone || (opt.w_soft <= 0 && opt.w_hard <= 0 && opt.w_embed <= 0)))
        options_die("every term of the objective has weight 0%s; there is nothing to learn",
                    alone ? " without a teacher" : "");
    c.w_ce = (float)opt.w_ce;
    c.w_soft = (float)opt.w_soft;
    c.w_hard = (float)opt.w_hard;
    c.w_embed = (float)opt.w_embed;
    c.temperature = (float)opt.temperature;
    c.soft = (SoftLoss)choice("soft-loss", opt.loss, losses, 3);
    c.jsd_beta = (float)opt.beta;
    c.band_low = (float)opt.entropy_low;
    c.band_high = opt.entropy_high >= 1e9 ? INFINITY : (float)opt.entropy_high;
    c.gate_confidence = (float)opt.sure;
    c.gate_factor = (float)opt.gate_factor;
    return c;
}

/* Options that may differ from rank to rank, or are compared by what their files hold. */
static bool is_local_option(const char *line) {
    static const char *const names[] = {"device",   "teacher-device", "student-device", "threads",  "cache",
                                        "rank",     "rendezvous",     "ranks",          "gpus",     "out",
                                        "teacher",  "student",        "tokenizer",      "init",     "data",
                                        "val-data", "overwrite",      "teachers",       "students", "#"};
    size_t length = strcspn(line, " ");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strlen(names[i]) == length && !strncmp(line, names[i], length)) return true;
    return false;
}

#endif
