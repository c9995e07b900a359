/* What train_distill can be told, and what follows from it.
 *
 *   opt        the options as given, with their defaults; the table below serves --help, --config, options.txt and the
 *              comparison of ranks. Nothing changes opt after read_options in train_distill.cu.
 *   Settings   what the rest of the program uses: derived from opt and the number of ranks. */
#ifndef TRAIN_OPTIONS_H
#define TRAIN_OPTIONS_H

#include "../dataloader.h"
#include "../lib/options.h"
#include "../lib/threads.h"
#include "../lora.h"
#include "../metrics/similarity.h"
#include "../loss.cuh"
#include "../model.h"
#include "cache_format.h"
#include "init.h"
#include "layer_loss.h"
#include "schedule.h"

enum { REINFORCE_MOST = 4096 };  // programs of an image

static struct {
    const char *teacher, *student, *tokenizer, *init, *init_layers, *init_width, *train;
    const char *teacher_cache, *write_teacher_cache, *teacher_cache_kind;
    const char *data, *val_data, *out, *device, *teacher_device, *student_device;
    int64_t steps, epochs, batch, accum, seed, warmup, max_tokens;
    int64_t eval_every, eval_batches, patience, chunk, cache, threads, load_threads;
    const char *recompute, *lr_schedule, *soft_loss, *kd_schedule;
    double lr, lr_final, lr_gamma, decay, beta1, beta2, clip;
    double temperature, alpha, w_ce, w_soft, w_hard, w_embed, w_layer, jsd_beta, skew;
    const char *layer_loss, *layer_pairs;
    double entropy_low, entropy_high, gate_confidence, gate_factor;
    const char *augment;
    bool group_by_width;
    int64_t lora;  // rank; 0: the whole student is trained
    double lora_alpha, lora_dropout;
    const char *lora_targets;
    const char *method;
    double on_policy, on_policy_temperature, own_weight;
    bool on_policy_ahead;
    int64_t on_policy_tokens, replay;
    int64_t reinforce, updates;  // programs of an image, 0: off; optimizer steps on the same programs
    double kl, clip_ratio, sample_temperature, command_reward, command_decay;
    const char *reward;
    bool resume, overwrite, shard;
} opt = {.teacher = "dev/starter/teacher.safetensors",
         .student = "base,lm.layers=2",
         .init = "teacher",
         .init_layers = "even",
         .init_width = "none",
         .teacher_cache_kind = "dense",
         .train = "vision,connector,lm",
         .data = "dev/starter/train.bin",
         .val_data = "dev/starter/val.bin",
         .out = "out",
         .device = "auto",
         .epochs = 8,
         .batch = 32,
         .accum = 1,
         .seed = 1,
         .warmup = -1,
         .cache = 512,
         .augment = "none",
         .lora_alpha = NAN,
         .lora_targets = "qkv,out,gate_up,down",
         .method = "none",
         .on_policy_temperature = 1,
         .own_weight = 1,
         .recompute = "none",
         .lr_schedule = "cosine",
         .soft_loss = "kl",
         .kd_schedule = "anneal",
         .lr = 1e-3,
         .lr_final = 0.05,
         .lr_gamma = 0.1,
         .decay = 0.05,
         .beta1 = 0.9,
         .beta2 = 0.98,
         .clip = 1,
         .temperature = 4,
         .alpha = NAN,
         .w_ce = 0.2,
         .w_soft = 0.8,
         .jsd_beta = 0.5,
         .skew = 0.1,
         .layer_loss = "cosine",
         .layer_pairs = "even",
         .entropy_high = 1e9,
         .gate_confidence = 2,
         .gate_factor = 0.3,
         .updates = 1,
         .kl = 0.02,
         .clip_ratio = 0.2,
         .sample_temperature = 1,
         .command_decay = 0.9,
         .reward = "pixels",
         .shard = true};

#define HEADING(text) \
    { NULL, 0, OPT_FLAG, NULL, NULL, text, 0, 0 }
#define RETIRED(name)                                                                                        \
    {                                                                                                        \
        name, 0, OPT_RETIRED, NULL, NULL,                                                                    \
            "several processes are started by mpirun or srun, for example mpirun -n 4 ./train_distill", 0, 0 \
    }
static const Option table[] = {
    HEADING("models"),
    {"teacher", 0, OPT_STRING, &opt.teacher, "FILE", "model to learn from, or none", 0, 0},
    {"student", 0, OPT_STRING, &opt.student, "FILE|SHAPE",
     "model to train: a file, or a shape (tiny, small, base, tl-1.1b; small,lm.layers=4 changes a key) with random "
     "weights",
     0, 0},
    {"tokenizer", 0, OPT_STRING, &opt.tokenizer, "FILE",
     "file with the tokenizer of a new student (default: the teacher, else dev/starter/tokenizer.safetensors)", 0, 0},
    {"init", 0, OPT_STRING, &opt.init, "FILE|teacher",
     "start a new student from this model wherever names and shapes agree; none: random weights", 0, 0},
    {"init-layers", 0, OPT_STRING, &opt.init_layers, "WHICH",
     "layers of that model that the student's start from: even: at even spacing; importance: those that change the "
     "hidden "
     "states most, on training data; or one for each of the student's language model, counted from 1, such as 1,2,4 "
     "(the "
     "encoder's are then taken evenly)",
     0, 0},
    {"init-width", 0, OPT_STRING, &opt.init_width, "WHICH",
     "importance: where the student is narrower than that model, keep its most active heads, neurons and channels, "
     "measured on training data; what is wider is refused. none: what has another shape starts at random",
     0, 0},
    {"write-teacher-cache", 0, OPT_STRING, &opt.write_teacher_cache, "FILE",
     "train nothing: write the teacher's outputs for the training data there, for --teacher-cache; goes on where it "
     "was stopped",
     0, 0},
    {"teacher-cache-kind", 0, OPT_STRING, &opt.teacher_cache_kind, "KIND",
     "what --write-teacher-cache keeps of a distribution: dense (all logits), or, at --temperature, topk=K (the K "
     "likeliest tokens and the probability of all others) or sample=K (K random draws, for --soft-loss kl)",
     0, 0},
    {"teacher-cache", 0, OPT_STRING, &opt.teacher_cache, "FILE",
     "learn from these outputs, without the teacher in memory. With --augment the student sees changed images, and "
     "the outputs are still those for the images as they are",
     0, 0},
    {"train", 0, OPT_STRING, &opt.train, "GROUPS", "parameter groups to train; the others stay frozen", 0, 0},
    HEADING("adapters (LoRA)"),
    {"lora", 0, OPT_INT, &opt.lora, "RANK",
     "train low-rank adapters of this rank, and freeze the student, which must be a file; --out then gets "
     "adapter.safetensors and best_adapter.safetensors, for infer --lora",
     1, 65536},
    {"lora-alpha", 0, OPT_FLOAT, &opt.lora_alpha, "A", "adapters count A / RANK (default: twice the rank)", 1e-6,
     1e6},
    {"lora-dropout", 0, OPT_FLOAT, &opt.lora_dropout, "P", "dropout of what the adapters read", 0, 0.99},
    {"lora-targets", 0, OPT_STRING, &opt.lora_targets, "NAMES",
     "layers with adapters: qkv, out, gate_up, down of the decoder (or lm), vision.qkv, vision.proj, vision.fc1, "
     "vision.fc2 (or vision), connector; all",
     0, 0},
    HEADING("data"),
    {"data", 0, OPT_STRING, &opt.data, "FILE|GLOB", "training data", 0, 0},
    {"val-data", 0, OPT_STRING, &opt.val_data, "FILE", "validation data, or none", 0, 0},
    {"max-tokens", 0, OPT_INT, &opt.max_tokens, "N",
     "leave out samples with more text tokens than this; 0: as many as the models take", 0, 1e9},
    {"augment", 0, OPT_STRING, &opt.augment, "NAME=P,...",
     "change training images at random: elastic (% of the longer side), rotate (degrees), scale (factor), pad (share "
     "of the longer side), background (levels below white), invert, contrast (factor), brightness (levels), blur "
     "(sigma in pixels), noise (sigma in levels), jpeg (quality); P is the probability for an image, 1 if left out; "
     "NAME=P:A..B draws the strength between A and B; all=P: each of these; clean: then clean the image as infer "
     "does; light: small changes of tone, noise and sharpness, cheaper than the others; for example "
     "all=0.2,jpeg=0.5:25..95,invert=0",
     0, 0},
    {"group-by-width", 0, OPT_FLAG, &opt.group_by_width, NULL,
     "make batches of images of like width, mostly only as wide as the widest of them: for models whose images begin at the left edge "
     "(vision.letter) and mostly leave the rest of their frame white",
     0, 0},
    {"cache", 0, OPT_INT, &opt.cache, "MB", "memory for decoded images", 0, 1e9},
    {"load-threads", 0, OPT_INT, &opt.load_threads, "N",
     "threads that decode and augment images; 0: one, or with --augment the processor's, at most 8", 0, 64},
    HEADING("training"),
    {"out", 'o', OPT_STRING, &opt.out, "DIR", "folder for the student, checkpoints and the log", 0, 0},
    {"resume", 0, OPT_FLAG, &opt.resume, NULL, "continue from the checkpoint in --out, with the options of that run",
     0, 0},
    {"overwrite", 0, OPT_FLAG, &opt.overwrite, NULL, "start anew although --out holds a trained student", 0, 0},
    {"steps", 0, OPT_INT, &opt.steps, "N", "optimizer steps; 0: as --epochs says", 0, 2e9},
    {"epochs", 0, OPT_INT, &opt.epochs, "N", "passes over the data", 1, 1e9},
    {"batch", 'b', OPT_INT, &opt.batch, "N", "images in a micro-batch", 1, 65535},
    {"accum", 0, OPT_INT, &opt.accum, "N", "micro-batches in an optimizer step, on each rank", 1, 1 << 20},
    {"lr", 0, OPT_FLOAT, &opt.lr, "X", "peak learning rate", 0, 10},
    {"lr-schedule", 0, OPT_STRING, &opt.lr_schedule, "NAME", "cosine, linear, constant or multistep", 0, 0},
    {"lr-final", 0, OPT_FLOAT, &opt.lr_final, "X", "share of --lr at the end (cosine, linear)", 0, 1},
    {"lr-gamma", 0, OPT_FLOAT, &opt.lr_gamma, "X", "factor at 50, 75 and 90 % of the steps after the warm-up (multistep)", 0, 1},
    {"warmup", 0, OPT_INT, &opt.warmup, "N", "steps of linear warm-up; -1: 5 % of the steps, at most 1000", -1, 1e12},
    {"decay", 0, OPT_FLOAT, &opt.decay, "X", "AdamW's weight decay, on matrices only", 0, 10},
    {"beta1", 0, OPT_FLOAT, &opt.beta1, "X", "AdamW's first moment", 0, 0.9999999},
    {"beta2", 0, OPT_FLOAT, &opt.beta2, "X", "AdamW's second moment", 0, 0.9999999},
    {"clip", 0, OPT_FLOAT, &opt.clip, "X", "largest gradient norm; 0: not clipped", 0, 1e9},
    {"eval-every", 0, OPT_INT, &opt.eval_every, "N", "steps between evaluations; 0: ten in the run", 0, 1e12},
    {"eval-batches", 0, OPT_INT, &opt.eval_batches, "N", "validation batches; 0: all", 0, 1e9},
    {"patience", 0, OPT_INT, &opt.patience, "N", "stop after N evaluations without a better one; 0: never", 0, 1e9},
    {"seed", 0, OPT_INT, &opt.seed, "N", "random seed of the weights and of the order of the data", 0, 1e15},
    HEADING("objective"),
    {"alpha", 'a', OPT_FLOAT, &opt.alpha, "A", "short for --w-soft A --w-ce 1-A", 0, 1},
    {"temperature", 't', OPT_FLOAT, &opt.temperature, "T", "softens both distributions in the soft term", 0.01, 1000},
    {"soft-loss", 0, OPT_STRING, &opt.soft_loss, "NAME",
     "kl, reverse-kl, jsd, skl (skew KL) or srkl (skew reverse KL)", 0, 0},
    {"jsd-beta", 0, OPT_FLOAT, &opt.jsd_beta, "X", "the teacher's share in JSD's mixture", 0.001, 0.999},
    {"skew", 0, OPT_FLOAT, &opt.skew, "X", "share of the one distribution that skl and srkl mix into the other",
     0.001, 0.999},
    {"w-ce", 0, OPT_FLOAT, &opt.w_ce, "X", "weight of the cross entropy with the text", 0, 1e6},
    {"w-soft", 0, OPT_FLOAT, &opt.w_soft, "X", "weight of the divergence from the teacher", 0, 1e6},
    {"w-hard", 0, OPT_FLOAT, &opt.w_hard, "X", "weight of the cross entropy with the teacher's best token", 0, 1e6},
    {"w-embed", 0, OPT_FLOAT, &opt.w_embed, "X", "weight of 1 - cosine of the image tokens", 0, 1e6},
    {"w-layer", 0, OPT_FLOAT, &opt.w_layer, "X",
     "weight of the layer loss: hidden states (the residual stream) after layers of student and teacher are "
     "compared, "
     "through a learned linear map where the widths differ",
     0, 1e6},
    {"layer-loss", 0, OPT_STRING, &opt.layer_loss, "NAME", "cosine (1 - cosine) or mse (mean squared error)", 0, 0},
    {"layer-pairs", 0, OPT_STRING, &opt.layer_pairs, "S:T,...",
     "layers of student and teacher that it compares, counted from 1, such as 2:5,4:11; even: all of the student's "
     "with as many of the teacher's at even spacing, the last with the last",
     0, 0},
    {"kd-schedule", 0, OPT_STRING, &opt.kd_schedule, "NAME",
     "none; anneal: the temperature falls to 1 in 80 % of the steps; image2tikz: temperature, weights and band move",
     0, 0},
    {"entropy-low", 0, OPT_FLOAT, &opt.entropy_low, "X", "distil only above this teacher entropy, nats", 0, 1e9},
    {"entropy-high", 0, OPT_FLOAT, &opt.entropy_high, "X", "distil only below this teacher entropy, nats", 0, 1e9},
    {"sure", 0, OPT_FLOAT, &opt.gate_confidence, "P",
     "confidence gate: scale the distillation where the teacher is correct with at least this probability; above 1: "
     "off",
     0, 2},
    {"sure-factor", 0, OPT_FLOAT, &opt.gate_factor, "X", "the factor of the confidence gate", 0, 1},
    {"chunk", 0, OPT_INT, &opt.chunk, "N",
     "positions whose logits are in memory at a time; 0: 4096, on a GPU by its memory", 0, 1e9},
    HEADING("the student's own samples"),
    {"on-policy", 0, OPT_FLOAT, &opt.on_policy, "P",
     "share of the batches whose programs the student writes itself; the teacher says what it thinks of them, and "
     "the text itself is not learned (no cross entropy)",
     0, 1},
    {"on-policy-temperature", 0, OPT_FLOAT, &opt.on_policy_temperature, "T",
     "of sampling; 0: always the likeliest token", 0, 100},
    {"on-policy-tokens", 0, OPT_INT, &opt.on_policy_tokens, "N",
     "cut samples after N tokens; 0: after as many as the longest program of the data has", 0, 1e9},
    {"on-policy-ahead", 0, OPT_FLAG, &opt.on_policy_ahead, NULL,
     "draw the samples of a batch with the weights of one step before; where the teacher has a GPU of its own, that GPU draws "
     "them while the student trains",
     0, 0},
    {"replay", 0, OPT_INT, &opt.replay, "N",
     "keep the last N batches of own samples; half of the batches of own samples are then one of these again, which "
     "costs no sampling",
     0, 1e6},
    {"method", 0, OPT_STRING, &opt.method, "NAME",
     "none; distillm2: skew KL on the data's programs and skew reverse KL on the student's own, with a skew of at "
     "most --skew for each program; unless said otherwise with --on-policy 0.5 --w-ce 0 --w-soft 1 --temperature 1 "
     "--kd-schedule none",
     0, 0},
    {"own-weight", 0, OPT_FLOAT, &opt.own_weight, "B",
     "distillm2: weight of the divergence on own samples; that on the data's programs has 2 - B", 0, 2},
    HEADING("rewards (reinforcement learning)"),
    {"reinforce", 0, OPT_INT, &opt.reinforce, "G",
     "learn from rewards for programs of one's own, G for each image, which TeX draws (GRPO): -1 for a program that "
     "does not "
     "end or does not compile, else the similarity of its drawing to the image. --student must be a file; a "
     "micro-batch "
     "has --batch programs. Other defaults: --lr 1e-5 --train connector,lm",
     0, REINFORCE_MOST},
    {"reward", 0, OPT_STRING, &opt.reward, "NAME",
     "similarity: pixels, or of the vision encoder's features places, mean or emd (DeTikZify's)", 0, 0},
    {"kl", 0, OPT_FLOAT, &opt.kl, "X",
     "weight of KL (student || reference); the reference is --teacher, or else --student as it is at the start; with "
     "--teacher none there is none, and the weight is 0",
     0, 1e6},
    {"clip-ratio", 0, OPT_FLOAT, &opt.clip_ratio, "X",
     "a token's probability gains nothing more once it has changed by this share since the program was drawn", 0.001,
     0.999},
    {"updates", 0, OPT_INT, &opt.updates, "N", "optimizer steps on the same programs", 1, 1000},
    {"sample-temperature", 0, OPT_FLOAT, &opt.sample_temperature, "T", "temperature at which programs are drawn", 0.1,
     10},
    {"command-reward", 0, OPT_FLOAT, &opt.command_reward, "X",
     "also reward each command for what it adds: the program up to each ; is drawn, and tokens up to there gain X "
     "times the "
     "change of similarity (IR4RL: 10); 0: off",
     0, 1e6},
    {"command-decay", 0, OPT_FLOAT, &opt.command_decay, "X",
     "share of a command's reward that reaches one token further back", 0, 1},
    HEADING("machine"),
    {"device", 0, OPT_STRING, &opt.device, "NAME",
     "cpu, cuda (the first GPU), cuda:N, or auto: a GPU if one answers; of two GPUs, the teacher takes one and the "
     "student the other",
     0, 0},
    {"teacher-device", 0, OPT_STRING, &opt.teacher_device, "NAME", "where the teacher runs, if elsewhere", 0, 0},
    {"student-device", 0, OPT_STRING, &opt.student_device, "NAME", "where the student runs, if elsewhere", 0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N",
     "processor threads; 0: all, divided among the processes that share them", 0, 4096},
    {"recompute", 0, OPT_STRING, &opt.recompute, "WHAT",
     "gradient checkpointing, with the same results: none; activations: recompute what needs no matmul; blocks: "
     "everything but each block's input",
     0, 0},
    {"shard", 0, OPT_FLAG, &opt.shard, NULL, "several processes divide the optimizer state among them (ZeRO 1)", 0,
     0},
    RETIRED("gpus"),
    RETIRED("ranks"),
    RETIRED("rank"),
    RETIRED("rendezvous"),
    RETIRED("teachers"),
    RETIRED("students"),
};
enum { OPTIONS = sizeof table / sizeof table[0] };

/* ---- reading ---- */

static const char *const train_usage =
    "[options]\n\nTrains an image-to-TikZ model, by default from the starter teacher on the starter data.";

/* The first and the last line of options.txt, so that a file that was cut is known from one of an older version,
 * which has neither. */
static const char options_begin[] = "# options of train_distill\n";
static const char options_end[] = "# end of the options\n";

/* Ends the program when the options that were just read from options.txt are not all that were written. Every version
 * of this program has written those that are listed. */
static void options_check_recalled(const char *path) {
    Error err;
    MappedFile file;
    static const void *const recorded[] = {&opt.student, &opt.data, &opt.seed, &opt.batch, &opt.accum, &opt.lr};
    bool whole = true;
    die_if(file_map(&file, path, &err), &err);
    for (size_t i = 0; i < sizeof recorded / sizeof recorded[0]; i++) whole = whole && options_given(recorded[i]);
    if (memmem(file.data, file.size, options_begin, strlen(options_begin) - 1))
        whole = whole && memmem(file.data, file.size, options_end, strlen(options_end) - 1) != NULL;
    file_unmap(&file);
    if (!whole)
        die("%s is not whole: it does not say all options of the run; put it back from a copy, or start anew in "
            "another --out folder",
            path);
}

/* What --resume must know of the run so far, which the command line may have changed. */
typedef struct {
    int64_t images;   // of a step; 0: this is a new run
    bool new_warmup;  // the command line says another --warmup
} Recalled;

/* Ends the program: --resume cannot change what the adapters are. */
static void options_lora_changed(const char *out, int64_t rank, double alpha, const char *targets) {
    if (!rank) die("--resume: the run in %s trains the whole student and has no adapters; leave out --lora", out);
    die("--resume: the run in %s has --lora %lld --lora-alpha %g --lora-targets %s, and its adapters cannot change; "
        "leave these out",
        out, (long long)rank, alpha, targets);
}

/* --resume: reads the options of the first run, then again what the command line says. --epochs there replaces the
 * first run's --steps. */
static Recalled options_recall(int argc, char **argv, const char *state_path, const char *options_path) {
    Error err;
    const char *out = opt.out;
    bool epochs = options_given(&opt.epochs) && !options_given(&opt.steps);
    if (opt.overwrite) options_die("--resume and --overwrite exclude each other");
    if (!file_exists(state_path))
        die("--resume: there is no checkpoint %s; name its folder with --out, or start without --resume", state_path);
    options_forget_given();
    opt.lora = 0, opt.lora_alpha = NAN;  // a run without adapters records neither
    die_if(options_config(table, OPTIONS, options_path, &err), &err);
    options_check_recalled(options_path);
    const char *student = opt.student, *targets = opt.lora_targets;
    const int64_t rank = opt.lora;
    const double alpha = opt.lora_alpha;
    int64_t images = opt.batch * opt.accum, seed = opt.seed, warmup = opt.warmup;
    options_parse(table, OPTIONS, argc, argv, train_usage, NULL);
    if (strcmp(opt.student, student) && !rank)  // of a base, which may have moved, the fingerprint is compared
        die("--resume continues with the student in %s, which began as %s; --student %s is another: leave it out, or "
            "start anew in another --out folder",
            out, student, opt.student);
    if (opt.seed != seed)
        die("--resume: the run in %s has --seed %lld, which orders its data; --seed %lld is another: leave it out",
            out, (long long)seed, (long long)opt.seed);
    if (opt.lora != rank || (rank && (opt.lora_alpha != alpha || strcmp(opt.lora_targets, targets))))
        options_lora_changed(out, rank, alpha, targets);
    opt.out = out;  // the folder may have been moved
    opt.resume = true;
    if (epochs) opt.steps = 0;
    return (Recalled){images, opt.warmup != warmup};
}

/* What ships, such as the defaults, is found from any folder. */
static void options_find_shipped(void) {
    opt.teacher = shipped_file(opt.teacher);
    opt.data = shipped_file(opt.data);
    opt.val_data = shipped_file(opt.val_data);
}

/* ---- what follows from the options ---- */

typedef enum { METHOD_NONE, METHOD_DISTILLM2, METHODS } Method;
static const char *const method_names[] = {"none", "distillm2"};

typedef struct {
    bool has_teacher;  // a model, in memory
    bool distils;      // from it, or from a cache of its outputs
    bool has_val;
    bool explicit_accum;  // --resume with an explicit --accum: the batch split stays as given
    int groups;           // parameter groups to train; with adapters, those that have some
    LoraConfig lora;      // rank 0: the whole student is trained
    Recompute recompute;
    InitConfig init;            // what a new student starts from; its path NULL: random weights
    ObjectiveConfig objective;  // the schedule moves a copy of it
    LayerLossKind layer_loss;
    LayerPairs layer_pairs;  // as --layer-pairs names them
    Augment augment;
    KdSchedule kd_schedule;
    LrSchedule lr_schedule;
    Method method;
    double on_policy;      // share of the batches
    bool own_programs;     // the student writes some of those that it learns from
    int group, updates;    // --reinforce: programs of an image; 1: off
    Similarity reward;
    Recalled recalled;     // --resume: the run so far
    int batch, accum;      // images of a micro-batch; micro-batches of a step on this rank
    int64_t eval_batches;  // validation batches; 0: all
} Settings;

/* The index of an option's value among names; a wrong one is a usage mistake. */
static int option_choice(const char *option, const char *text, const char *const *names, int count) {
    int i = name_index(text, names, count);
    if (i >= 0) return i;
    char list[200] = "";
    for (int k = 0; k < count; k++) {
        strcat(list, k ? ", " : "");
        strcat(list, names[k]);
    }
    options_die("--%s is '%s'; expected one of %s", option, text, list);
}

static int settings_groups(void) {
    static const char *const names[] = {"vision", "connector", "lm"};
    int groups = 0;
    char copy[64], *rest = NULL;
    snprintf(copy, sizeof copy, "%s", opt.train);
    for (char *name = strtok_r(copy, ",", &rest); name; name = strtok_r(NULL, ",", &rest))
        groups |= 1 << option_choice("train", name, names, 3);
    if (!groups) options_die("--train names no group; expected vision, connector, lm or several of them with commas");
    return groups;
}

/* What --lora and the options after it say. */
static LoraConfig settings_lora(void) {
    Error err;
    LoraConfig c = {.rank = (int)opt.lora, .dropout = opt.lora_dropout};
    if (!c.rank) {
        if (!isnan(opt.lora_alpha) || options_given(&opt.lora_dropout) || options_given(&opt.lora_targets))
            options_die("--lora-alpha, --lora-dropout and --lora-targets are options of --lora RANK");
        return c;
    }
    c.alpha = isnan(opt.lora_alpha) ? 2.0 * c.rank : opt.lora_alpha;
    if (lora_targets_parse(&c.targets, opt.lora_targets, &err)) options_die("--lora-targets: %s", err.text);
    if (strcmp(opt.train, "vision,connector,lm"))
        options_die("--lora freezes the student and trains adapters alone; leave out --train");
    if (!file_exists(opt.student) && opt.resume)
        die("--resume: cannot read %s, the model that the adapters belong to; name it with --student", opt.student);
    if (!file_exists(opt.student))
        options_die("--lora trains adapters of a model that is there: --student must be its file, not '%.60s'",
                    opt.student);
    return c;
}

/* --reinforce: the defaults that differ. The reference is the student as it is at the start. */
static void options_for_reinforce(void) {
    if (!options_given(&opt.lr)) opt.lr = 1e-5;
    if (!options_given(&opt.train) && !opt.lora) opt.train = "connector,lm";
    if (!options_given(&opt.teacher)) opt.teacher = opt.kl > 0 ? opt.student : "none";
    if (strcmp(opt.teacher, "none")) return;
    if (options_given(&opt.kl) && opt.kl > 0)
        options_die("--kl %g: with --teacher none there is no reference for the student to stay near; give a --teacher, or "
                    "--kl 0",
                    opt.kl);
    opt.kl = 0;
}

typedef struct {
    const char *name;
    const void *value;
} OptionName;

/* What only --reinforce has, and what it has no use for; options.txt leaves them out where they do not apply. */
static const OptionName of_reinforce[] = {{"kl", &opt.kl},
                                          {"clip-ratio", &opt.clip_ratio},
                                          {"updates", &opt.updates},
                                          {"sample-temperature", &opt.sample_temperature},
                                          {"command-reward", &opt.command_reward},
                                          {"command-decay", &opt.command_decay},
                                          {"reward", &opt.reward}};
static const OptionName not_of_reinforce[] = {{"alpha", &opt.alpha},
                                              {"temperature", &opt.temperature},
                                              {"soft-loss", &opt.soft_loss},
                                              {"jsd-beta", &opt.jsd_beta},
                                              {"skew", &opt.skew},
                                              {"w-ce", &opt.w_ce},
                                              {"w-soft", &opt.w_soft},
                                              {"w-hard", &opt.w_hard},
                                              {"w-embed", &opt.w_embed},
                                              {"w-layer", &opt.w_layer},
                                              {"kd-schedule", &opt.kd_schedule},
                                              {"entropy-low", &opt.entropy_low},
                                              {"entropy-high", &opt.entropy_high},
                                              {"sure", &opt.gate_confidence},
                                              {"sure-factor", &opt.gate_factor},
                                              {"method", &opt.method},
                                              {"own-weight", &opt.own_weight},
                                              {"on-policy", &opt.on_policy},
                                              {"on-policy-temperature", &opt.on_policy_temperature},
                                              {"on-policy-tokens", &opt.on_policy_tokens},
                                              {"replay", &opt.replay},
                                              {"val-data", &opt.val_data}};
enum {
    OF_REINFORCE = sizeof of_reinforce / sizeof of_reinforce[0],
    NOT_OF_REINFORCE = sizeof not_of_reinforce / sizeof not_of_reinforce[0]
};

/* Ends the program where an option has been given that goes only with, or only without, --reinforce. */
static void check_reinforce_given(void) {
    for (int i = 0; i < OF_REINFORCE && !opt.reinforce; i++)
        if (options_given(of_reinforce[i].value))
            options_die("--%s is an option of --reinforce G", of_reinforce[i].name);
    for (int i = 0; i < NOT_OF_REINFORCE && opt.reinforce; i++) {
        const OptionName *o = &not_of_reinforce[i];
        if (!options_given(o->value)) continue;
        if (o->value != &opt.val_data)
            options_die("--reinforce learns from rewards and --kl alone; leave out --%s", o->name);
        if (strcmp(opt.val_data, "none"))
            options_die("--reinforce makes no evaluations; leave out --val-data, and measure the student with eval");
    }
}

/* Refuses options of --reinforce that do not go together. */
static void check_reinforce_options(const Settings *s) {
    check_reinforce_given();
    if (!opt.reinforce) return;
    if (opt.reinforce == 1)
        options_die(
            "--reinforce 1: a program is rewarded for being better than the others of its image; a group needs at "
            "least 2");
    if (opt.batch % opt.reinforce)
        options_die("--batch %lld programs cannot be divided into groups of --reinforce %lld", (long long)opt.batch,
                    (long long)opt.reinforce);
    if (opt.teacher_cache || opt.write_teacher_cache)
        options_die("--reinforce draws programs of its own, of which no teacher cache has outputs; leave out --%s",
                    opt.teacher_cache ? "teacher-cache" : "write-teacher-cache");
    if (!file_exists(opt.student) && !opt.resume)
        options_die("--reinforce improves a model that is there: --student must be its file, not '%.60s'",
                    opt.student);
    if (s->reward != SIMILARITY_PIXELS && s->groups & GROUP_VISION && !s->has_teacher)
        options_die("--reward %s compares with the vision encoder, which must not learn to please itself: give a "
                    "--teacher, or leave vision out of --train",
                    opt.reward);
}

/* The policy gradient takes the place of the cross entropy; at the temperature of the samples, tau² D is KL. */
static ObjectiveConfig settings_policy(bool has_reference) {
    const float tau = (float)opt.sample_temperature;
    return (ObjectiveConfig){.w_ce = 1,
                             .w_soft = has_reference ? (float)opt.kl / (tau * tau) : 0,
                             .temperature = tau,
                             .soft = SOFT_REVERSE_KL,
                             .band_high = INFINITY,
                             .gate_confidence = 2,
                             .clip_ratio = (float)opt.clip_ratio};
}

/* --alpha in terms of the options that it is short for; one of these that was given after it counts. */
static void options_for_alpha(void) {
    if (isnan(opt.alpha)) return;
    if (!options_given_after(&opt.w_ce, &opt.alpha)) opt.w_ce = 1 - opt.alpha;
    if (!options_given_after(&opt.w_soft, &opt.alpha)) opt.w_soft = opt.alpha;
}

static ObjectiveConfig settings_objective(bool distils) {
    const double w_ce = distils || options_given(&opt.w_ce) ? opt.w_ce : 1;
    const SoftLoss soft = (SoftLoss)option_choice("soft-loss", opt.soft_loss, soft_loss_names, SOFT_LOSSES);
    ObjectiveConfig c = {
        .w_ce = (float)w_ce,
        .w_soft = distils ? (float)opt.w_soft : 0,
        .w_hard = distils ? (float)opt.w_hard : 0,
        .w_embed = distils ? (float)opt.w_embed : 0,
        .w_layer = (float)opt.w_layer,
        .temperature = (float)opt.temperature,
        .soft = soft,
        .mix = (float)(soft == SOFT_JSD ? opt.jsd_beta : opt.skew),
        .band_low = (float)opt.entropy_low,
        .band_high = opt.entropy_high >= 1e9 ? INFINITY : (float)opt.entropy_high,
        .gate_confidence = (float)opt.gate_confidence,
        .gate_factor = (float)opt.gate_factor,
    };
    if (c.w_ce <= 0 && c.w_soft <= 0 && c.w_hard <= 0 && c.w_embed <= 0 && c.w_layer <= 0)
        options_die("every term of the objective has weight 0%s; there is nothing to learn",
                    distils ? "" : " without a teacher");
    return c;
}

/* What --w-layer and the options after it say. */
static void settings_layers(Settings *s) {
    Error err;
    s->layer_loss = (LayerLossKind)option_choice("layer-loss", opt.layer_loss, layer_loss_names, 2);
    if (layer_pairs_parse(&s->layer_pairs, opt.layer_pairs, &err)) options_die("--layer-pairs: %s", err.text);
    if (opt.w_layer <= 0 && (options_given(&opt.layer_loss) || options_given(&opt.layer_pairs)))
        options_die("--layer-loss and --layer-pairs are options of --w-layer");
    if (opt.w_layer > 0 && opt.teacher_cache)
        options_die("--w-layer compares hidden states with the teacher's, which a --teacher-cache does not hold");
    if (opt.w_layer > 0 && !s->has_teacher) options_die("--w-layer needs a --teacher");
}

static Recompute settings_recompute(void) {
    static const char *const names[] = {"none", "activations", "blocks"};
    if (!strcmp(opt.recompute, "true")) return RECOMPUTE_BLOCKS;  // as options.txt of older versions has it
    if (!strcmp(opt.recompute, "false")) return RECOMPUTE_NONE;
    return (Recompute)option_choice("recompute", opt.recompute, names, 3);
}

/* Refuses a student that is neither a file nor a shape, before anything is loaded. */
static void check_student(const char *student) {
    Error err;
    ModelConfig c;
    size_t length = strlen(student);
    if (file_exists(student)) return;
    if (strchr(student, '/') || (length > 12 && !strcmp(student + length - 12, ".safetensors")))
        die("cannot read the student %s: %s", student, strerror(errno));
    if (config_from_shape(&c, student, 1024, &err)) options_die("--student: %s", err.text);
}

/* What --init and the options after it say. */
static void settings_init(Settings *s, bool teacher) {
    Error err;
    static const char *const widths[] = {"none", "importance"};
    const bool as_teacher = !strcmp(opt.init, "teacher"), none = !strcmp(opt.init, "none");
    InitConfig *c = &s->init;
    *c = (InitConfig){.path = none ? NULL : as_teacher ? opt.teacher : opt.init,
                      .must_match = options_given(&opt.init),
                      .width = option_choice("init-width", opt.init_width, widths, 2) == 1,
                      .data = opt.data,
                      .max_tokens = (int)opt.max_tokens,
                      .images = INIT_IMAGES,
                      .seed = (uint64_t)opt.seed};
    if (init_layers_parse(c, opt.init_layers, &err)) options_die("--init-layers: %s", err.text);
    if (as_teacher && !teacher) c->path = NULL;
    if (opt.resume) return;  // the student that is there starts from nothing
    if (as_teacher && !teacher && options_given(&opt.init)) options_die("--init teacher needs a --teacher");
    if (file_exists(opt.student) && options_given(&opt.init) && !as_teacher && !none)
        options_die("--init %s is for a new student, but --student %s is a file", opt.init, opt.student);
    if (c->layers == INIT_EVEN && !c->width) return;
    if (!c->path) options_die("--init-layers and --init-width are options of --init, which names no model");
    if (file_exists(opt.student))
        options_die("--init-layers and --init-width are for a new student, but --student %s is a file", opt.student);
}

/* Refuses options of a teacher cache that do not go together. */
static void check_cache_options(void) {
    CacheKind kind;
    uint32_t K;
    if (cache_kind_parse(opt.teacher_cache_kind, &kind, &K))
        options_die("--teacher-cache-kind is '%.40s'; expected dense, topk=K or sample=K with a K of 1 to %d",
                    opt.teacher_cache_kind, SPARSE_MOST);
    if (!opt.write_teacher_cache && kind != CACHE_DENSE)
        options_die(
            "--teacher-cache-kind is an option of --write-teacher-cache; a --teacher-cache says itself what it is");
    if (!opt.write_teacher_cache) return;
    if (opt.resume) options_die("--write-teacher-cache trains nothing; leave out --resume: it goes on by itself");
    if (opt.teacher_cache) options_die("--write-teacher-cache and --teacher-cache exclude each other");
    if (!strcmp(opt.teacher, "none")) options_die("--write-teacher-cache needs a --teacher");
}

/* --method: what else it says, in the options that are not given themselves. */
static Method settings_method(void) {
    const Method method = (Method)option_choice("method", opt.method, method_names, METHODS);
    if (method == METHOD_NONE) return method;
    if (options_given(&opt.soft_loss) && strcmp(opt.soft_loss, "skl"))
        options_die("--method distillm2 has skew KL and skew reverse KL, not --soft-loss %.20s; %s", opt.soft_loss,
                    opt.resume ? "resume with --soft-loss skl" : "leave that out");
    opt.soft_loss = "skl";
    if (!options_given(&opt.on_policy)) opt.on_policy = 0.5;
    if (!options_given(&opt.temperature)) opt.temperature = 1;
    if (!options_given(&opt.kd_schedule)) opt.kd_schedule = "none";
    if (isnan(opt.alpha) && !options_given(&opt.w_ce)) opt.w_ce = 0;
    if (isnan(opt.alpha) && !options_given(&opt.w_soft)) opt.w_soft = 1;
    if (opt.on_policy <= 0)
        options_die("--method distillm2 learns from the student's own samples too; leave out --on-policy 0");
    return method;
}

/* Refuses what does not go with the student's own samples. */
static void check_on_policy(const Settings *s) {
    if (s->on_policy <= 0 && opt.on_policy_ahead) options_die("--on-policy-ahead is an option of --on-policy P");
    if (s->on_policy <= 0 && (opt.replay || opt.on_policy_tokens || opt.on_policy_temperature != 1))
        options_die("--on-policy-temperature, --on-policy-tokens and --replay are options of --on-policy P");
    if (s->method != METHOD_DISTILLM2 && opt.own_weight != 1)
        options_die("--own-weight is an option of --method distillm2");
    if (s->on_policy <= 0) return;
    if (opt.teacher_cache)
        options_die(
            "--on-policy asks the teacher about new programs, which a --teacher-cache does not hold; leave that out");
    if (!s->has_teacher)
        options_die("--on-policy needs a --teacher: nothing else says what to learn from the student's own samples");
    if (s->objective.w_soft <= 0 && s->objective.w_hard <= 0)
        options_die("--on-policy has nothing to learn from own samples where --w-soft and --w-hard are 0");
}

/* Threads that decode and augment images. Unless the user says how many: where images are augmented, as many as compute
 * in this process, at most 8. */
static int settings_load_threads(const Settings *s) {
    const int computing = omp_get_max_threads();
    if (opt.load_threads) return (int)opt.load_threads;
    return !augment_needs_image(&s->augment) ? 1 : computing < 8 ? computing : 8;
}

static Settings settings_from_options(void) {
    if (opt.reinforce) options_for_reinforce();
    options_for_alpha();
    const bool teacher = strcmp(opt.teacher, "none") != 0;
    Settings s = {.has_teacher = teacher && !opt.teacher_cache,
                  .distils = teacher || opt.teacher_cache,
                  .has_val = opt.val_data && strcmp(opt.val_data, "none") && !opt.reinforce,
                  .groups = settings_groups(),
                  .lora = settings_lora(),
                  .recompute = settings_recompute(),
                  .batch = (int)opt.batch,
                  .accum = (int)opt.accum,
                  .group = opt.reinforce ? (int)opt.reinforce : 1,
                  .updates = (int)opt.updates,
                  .reward = (Similarity)option_choice("reward", opt.reward, similarity_names, SIMILARITIES),
                  .eval_batches = opt.eval_batches};
    check_cache_options();
    check_reinforce_options(&s);
    if (!opt.resume) check_student(opt.student);
    if (s.lora.rank) s.groups = lora_groups(s.lora.targets);
    s.method = settings_method();
    s.on_policy = opt.on_policy;
    s.objective = opt.reinforce ? settings_policy(s.has_teacher) : settings_objective(s.distils);
    check_on_policy(&s);
    s.own_programs = s.on_policy > 0 || s.group > 1;
    settings_layers(&s);
    s.kd_schedule = (KdSchedule)option_choice("kd-schedule", opt.kd_schedule, kd_schedule_names, KD_SCHEDULES);
    if (opt.reinforce) s.kd_schedule = KD_CONSTANT;
    s.lr_schedule = (LrSchedule)option_choice("lr-schedule", opt.lr_schedule, lr_schedule_names, LR_SCHEDULES);
    settings_init(&s, teacher);
    if (s.objective.w_embed > 0 && s.groups == GROUP_LM)
        options_die("--w-embed has nothing to train: %s the vision encoder and the connector",
                    s.lora.rank ? "--lora-targets names no layer of" : "--train leaves out");
    if (s.objective.w_embed > 0 && opt.teacher_cache)
        options_die("--w-embed compares image tokens with the teacher's, which a --teacher-cache does not hold");
    Error err;
    if (augment_parse(&s.augment, opt.augment, &err) != 0) options_die("--augment: %s", err.text);
    if (opt.patience && !s.has_val) options_die("--patience needs --val-data");
    if (opt.group_by_width && s.own_programs)
        options_die("--group-by-width is not for %s, whose samples are of images of full width",
                    s.group > 1 ? "--reinforce" : s.method == METHOD_DISTILLM2 ? "--method distillm2" : "--on-policy");
    return s;
}

/* A resumed run keeps the images of a step, which options.txt has as one process's --batch and --accum, and
 * redistributes them over the ranks there are now: in micro-batches of --batch, or of fewer where that does not divide
 * them. */
static void redistribute_batch(Settings *s, int ranks) {
    int64_t images = (int64_t)s->batch * s->accum;
    if (s->group > 1 && ranks > 1)
        die("--reinforce runs as one process, whose threads share the machine with TeX; start it without mpirun");
    if (opt.resume && ranks > 1 && !s->explicit_accum) {
        int64_t batch = s->batch;
        if (images % ranks)
            die("--resume: the %lld images of a step cannot be divided among %d processes; start a number that "
                "divides %lld",
                (long long)images, ranks, (long long)images);
        while (images / ranks % batch) batch--;
        s->eval_batches = (s->eval_batches * s->batch + batch - 1) / batch;  // as many images, or a few more
        s->batch = (int)batch;
        s->accum = (int)(images / ranks / batch);
    }
    images = (int64_t)s->batch * s->accum * ranks;
    if (images <= 1 << 20) return;
    Error err;
    error_set(&err, "--batch times --accum, on all ranks, makes a step of %lld images; at most 1048576 are supported",
              (long long)images);
    if (ranks > 1) die("%s", err.text);  // which ends the other ranks too
    options_die("%s", err.text);
}

/* ---- recording ---- */

/* Writes the options for --resume, which is also the --config of a run like this one: as one process that takes the same
 * steps, with what was derived in place of what it was derived from. */
static void options_record(const Settings *s, int ranks, FILE *f) {
    char batch[24], accum[24], evals[24], w[4][32], rank[24], alpha[32], dropout[32];
    const LoraConfig *lora = &s->lora;
    const float weights[4] = {s->objective.w_ce, s->objective.w_soft, s->objective.w_hard, s->objective.w_embed};
    const double given[4] = {opt.w_ce, opt.w_soft, opt.w_hard, opt.w_embed};
    for (int i = 0; i < 4; i++)  // as given, in double, unless a missing teacher changed it
        options_double(weights[i] == (float)given[i] ? given[i] : weights[i], w[i], sizeof w[i]);
    snprintf(batch, sizeof batch, "%d", s->batch);
    snprintf(accum, sizeof accum, "%d", s->accum * ranks);
    snprintf(evals, sizeof evals, "%lld", (long long)s->eval_batches);
    snprintf(rank, sizeof rank, "%d", lora->rank);
    options_double(lora->alpha, alpha, sizeof alpha);
    options_double(lora->dropout, dropout, sizeof dropout);
    const OptionOverride targets = {"lora-targets", lora->rank ? opt.lora_targets : NULL};
    const OptionOverride always[] = {targets,
                                     {"layer-loss", opt.w_layer > 0 ? opt.layer_loss : NULL},
                                     {"layer-pairs", opt.w_layer > 0 ? opt.layer_pairs : NULL},
                                     {"lora", lora->rank ? rank : NULL},
                                     {"lora-alpha", lora->rank ? alpha : NULL},
                                     {"lora-dropout", lora->rank ? dropout : NULL},
                                     {"resume", "false"},
                                     {"overwrite", "false"},
                                     {"alpha", NULL},
                                     {"w-ce", w[0]},
                                     {"w-soft", w[1]},
                                     {"w-hard", w[2]},
                                     {"w-embed", w[3]},
                                     {"batch", batch},
                                     {"accum", accum},
                                     {"init", s->init.path ? opt.init : "none"},
                                     {"eval-batches", evals}};
    enum { ALWAYS = sizeof always / sizeof always[0] };
    OptionOverride overrides[ALWAYS + OF_REINFORCE + NOT_OF_REINFORCE];  // the first of a name counts
    int n = 0;
    for (int i = 0; i < OF_REINFORCE && s->group == 1; i++)
        overrides[n++] = (OptionOverride){of_reinforce[i].name, NULL};
    for (int i = 0; i < NOT_OF_REINFORCE && s->group > 1; i++)
        overrides[n++] = (OptionOverride){not_of_reinforce[i].name, NULL};
    for (int i = 0; i < ALWAYS; i++) overrides[n++] = always[i];
    fputs(options_begin, f);
    options_write(table, OPTIONS, f, overrides, n);
    fputs(options_end, f);
}

/* Options that may differ from rank to rank, or whose files are compared by content instead. */
static bool option_may_differ(const char *line) {
    static const char *const names[] = {
        "device",   "teacher-device", "student-device", "threads",   "cache", "load-threads",
        "out",      "teacher",        "student",        "tokenizer", "init",  "data",
        "val-data", "overwrite",      "teacher-cache",  "#"};
    size_t length = strcspn(line, " ");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strlen(names[i]) == length && !strncmp(line, names[i], length)) return true;
    return false;
}

#endif
