/* --reinforce G: the student learns from rewards for its own programs (GRPO).
 *
 *     int n = reinforce_sample(&r, &t, batch);          G programs for each image, their rewards and advantages
 *     MicroBatch mb = reinforce_micro_batch(&r, m);     0 <= m < n: those that teach something, with PolicyRows
 *
 * A step draws programs, lets TeX draw them, and makes --updates optimizer steps on them. Its loss, the mean over the tokens of
 * all programs that teach something, is the clipped policy gradient (kernels/policy.h) and --kl times KL (student ||
 * reference), which is exact, over the vocabulary; the reference is the --teacher, by default the student as it was at the
 * start. Groups whose rewards are equal teach nothing and are left out, of the KL too: a step without others changes nothing.
 *
 * A program that has no end token after max_tokens tokens is rewarded like one that does not compile. */
#ifndef TRAIN_REINFORCE_H
#define TRAIN_REINFORCE_H

#include "../lib/clock.h"
#include "advantage.h"
#include "options.h"
#include "reward.h"
#include "rollout.h"
#include "trainer.h"

/* What a step's programs were like: sums over programs, groups and tokens. */
typedef struct {
    int programs, compiles, exact, cut, groups, equal_groups;
    int64_t length;                      // tokens
    int trained, tokens;                 // programs that teach something; their tokens
    double reward, sampling, rewarding;  // the latter two in seconds
} ReinforceStats;

typedef struct {
    const Settings *s;
    const Ops *op;
    const Dataset *data;
    const Batch *batch;
    Rollout rollout;
    Rewards rewards;
    int images, rows, max_tokens;
    RewardTarget *targets;            // [images]
    RewardedProgram *programs;        // [rows]
    double *advantages;               // [rows]
    double *returns;                  // [rows, max_tokens], of the commands
    int *taught, *first;              // [rows] the rows that teach something; the first position of each [rows + 1]
    PolicyRow *host_policy, *policy;  // host, device [positions of the taught rows]
    /* the micro-batch */
    int *ids;                          // [batch, max_tokens]
    uint8_t *pixels, *teacher_pixels;  // [batch, height, width, 3]
    uint32_t *samples;                 // [batch]
    bool said_equal, said_cut;
    ReinforceStats stats;  // of the last step
} Reinforce;

/* ---- opening ---- */

/* Nothing without --reinforce. Finds TeX and allocates the KV cache. The encoder that compares drawings is the reference's,
 * which does not change, else the student's. teacher->op is NULL where there is no reference. */
static void reinforce_open(Reinforce *r, Trainer *t, Teacher *teacher, const Settings *s, const Dataset *data,
                           int max_tokens) {
    Error err;
    const size_t pixels = model_pixels(&t->student), batch = (size_t)s->batch;
    const Sampling sampling = {.temperature = s->objective.temperature, .top_p = 1, .seed = (uint64_t)opt.seed};
    if (s->group == 1) return;
    teacher->overlaps = false;  // it is asked about programs that are not there yet
    *r = (Reinforce){.s = s, .op = t->op, .data = data, .max_tokens = max_tokens};
    r->images = (int)t->images;
    r->rows = r->images * s->group;
    die_if(rewards_open(&r->rewards, teacher->op ? &teacher->model : &t->student, s->reward, opt.command_reward > 0,
                        omp_get_max_threads(), NULL, &err),
           &err);
    rollout_open(&r->rollout, &t->student, r->images, s->group, max_tokens, sampling);
    if (teacher->op) rollout_limit_tokens(&r->rollout, teacher->model.tokenizer.count);
    r->targets = xcalloc(r->images, sizeof *r->targets);
    for (int i = 0; i < r->images; i++)
        r->targets[i].pixels = xmalloc(image_size_bytes(r->rewards.judge.o.image_size));
    const size_t rows = (size_t)r->rows, positions = rows * max_tokens;
    r->programs = xcalloc(rows, sizeof *r->programs);
    r->advantages = xcalloc(rows, sizeof(double));
    r->returns = xcalloc(positions, sizeof(double));
    r->taught = xcalloc(rows, sizeof(int));
    r->first = xcalloc(rows + 1, sizeof(int));
    r->host_policy = xcalloc(positions, sizeof(PolicyRow));
    r->policy = r->op->alloc(positions * sizeof(PolicyRow));
    if (!r->policy) die("cannot allocate the advantages of %zu tokens", positions);
    r->ids = xcalloc(batch * max_tokens, sizeof(int));
    r->pixels = xmalloc(batch * pixels);
    r->teacher_pixels = teacher->op ? xmalloc(batch * model_pixels(&teacher->model)) : NULL;
    r->samples = xcalloc(batch, sizeof(uint32_t));
}

static void reinforce_close(Reinforce *r) {
    if (!r->s) return;
    rollout_close(&r->rollout);
    rewards_close(&r->rewards);
    for (int i = 0; i < r->images; i++) free(r->targets[i].pixels), free(r->targets[i].text);
    for (int i = 0; i < r->rows; i++) rewarded_program_free(&r->programs[i]);
    void *const arrays[] = {r->targets,     r->programs, r->advantages, r->returns,        r->taught, r->first,
                            r->host_policy, r->ids,      r->pixels,     r->teacher_pixels, r->samples};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    r->op->release(r->policy);
}

/* ---- programs and rewards ---- */

static const int *reinforce_ids(const Reinforce *r, int row) {
    return r->rollout.ids + (size_t)row * r->rollout.max_new_tokens;
}

/* The image of a sample as the data has it, not as --augment changes it for the student, and its program. */
static void reinforce_target(const Reinforce *r, RewardTarget *target, uint32_t sample) {
    Error err;
    Image image;
    const Sample s = dataset_sample(r->data, sample);
    char *name = format_string("of record %llu in %s", (unsigned long long)s.number, s.path);
    die_if(image_decode(&image, s.image, s.image_bytes, name, &err), &err);
    const ImageBox box = image_trim(&image, IMAGE_WHITE);
    target->extent = image_prepare_box(target->pixels, &image, box, r->rewards.judge.o.image_size);
    image_free(&image);
    free(name);
    free(target->text);
    int *ids = xcalloc(s.token_count, sizeof(int));
    for (uint32_t i = 0; i < s.token_count; i++) ids[i] = (int)s.tokens[i];
    tokenizer_decode(&r->rollout.g.m->tokenizer, ids, (int)s.token_count, &target->text, &target->bytes);
    free(ids);
}

/* Decodes the programs, has them drawn and compared. */
static void reinforce_reward(Reinforce *r) {
    Error err;
    const Tokenizer *tokenizer = &r->rollout.g.m->tokenizer;
    for (int i = 0; i < r->batch->B; i++) reinforce_target(r, &r->targets[i], r->batch->samples[i]);
    for (int i = 0; i < r->rows; i++) {
        RewardedProgram *p = &r->programs[i];
        rewarded_program_free(p);
        p->target = i / r->s->group;
        p->ended = r->rollout.ended[i];
        tokenizer_decode(tokenizer, reinforce_ids(r, i), r->rollout.lengths[i], &p->text, &p->bytes);
    }
    die_if(rewards_compute(&r->rewards, r->targets, r->programs, r->rows, &err), &err);
}

/* The token of a row that holds byte `end` - 1 of its text. */
static int reinforce_token_at(const Reinforce *r, int row, size_t end) {
    int low = 0, high = r->rollout.lengths[row] - 1;  // the smallest token whose text reaches `end`
    while (low < high) {
        const int middle = (low + high) / 2;
        char *text;
        size_t n;
        tokenizer_decode(&r->rollout.g.m->tokenizer, reinforce_ids(r, row), middle + 1, &text, &n);
        free(text);
        if (n >= end)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The weighted returns of the commands at all tokens of a group, less their mean. Returns whether they differ. */
static bool reinforce_command_returns(Reinforce *r, int first_row) {
    const int G = r->s->group;
    double mean = 0, least = INFINITY, most = -INFINITY;
    int64_t tokens = 0;
    for (int i = first_row; i < first_row + G; i++) {
        const RewardedProgram *p = &r->programs[i];
        double *at = r->returns + (size_t)i * r->max_tokens;
        memset(at, 0, r->max_tokens * sizeof *at);
        for (int k = 0; k < p->count; k++) at[reinforce_token_at(r, i, p->commands[k].end)] += p->commands[k].gain;
        advantage_returns(at, r->rollout.lengths[i], opt.command_decay);
        for (int k = 0; k < r->rollout.lengths[i]; k++, tokens++)
            mean += at[k], least = fmin(least, at[k]), most = fmax(most, at[k]);
    }
    mean /= (double)tokens;
    for (size_t i = (size_t)first_row * r->max_tokens; i < (size_t)(first_row + G) * r->max_tokens; i++)
        r->returns[i] = opt.command_reward * (r->returns[i] - mean);
    return most - least > 1e-9;
}

/* The advantages of a group; its rows join those that teach something if they do. */
static void reinforce_group(Reinforce *r, int first_row) {
    const int G = r->s->group;
    double rewards[REINFORCE_MOST] = {0};
    for (int i = 0; i < G; i++) rewards[i] = r->programs[first_row + i].reward;
    advantage_of_group(r->advantages + first_row, rewards, G);
    bool equal = advantage_equal(rewards, G);
    if (opt.command_reward > 0 && reinforce_command_returns(r, first_row)) equal = false;
    r->stats.groups++;
    r->stats.equal_groups += equal;
    for (int i = first_row; !equal && i < first_row + G; i++) {
        for (int k = 0; k < r->rollout.lengths[i]; k++) {
            const double command = opt.command_reward > 0 ? r->returns[(size_t)i * r->max_tokens + k] : 0;
            r->host_policy[r->stats.tokens++] = (PolicyRow){(float)(r->advantages[i] + command), NAN};
        }
        r->taught[r->stats.trained++] = i;
        r->first[r->stats.trained] = r->stats.tokens;
    }
}

static void reinforce_count(Reinforce *r) {
    ReinforceStats *s = &r->stats;
    for (int i = 0; i < r->rows; i++) {
        const RewardedProgram *p = &r->programs[i];
        s->reward += p->reward;
        s->compiles += p->compiles;
        s->exact += p->exact;
        s->cut += !p->ended;
        s->length += r->rollout.lengths[i];
    }
    s->programs = r->rows;
    if (s->cut && !r->said_cut)
        warn("%d of %d programs have no end after %d tokens; such programs are rewarded like those that do not "
             "compile",
             s->cut, s->programs, r->max_tokens);
    if (!s->trained && !r->said_equal)
        warn("the programs of each image have all the same reward, from which there is nothing to learn: such steps "
             "change nothing; a larger --reinforce or --sample-temperature tells more programs apart");
    r->said_cut = r->said_cut || s->cut;
    r->said_equal = r->said_equal || !s->trained;
}

/* Draws the programs for a batch and rewards them. Returns the number of micro-batches that teach something; 0: none does.
 * Waits for the device and for TeX. */
static int reinforce_sample(Reinforce *r, const Trainer *t, const Batch *batch) {
    Error why;
    const double begin = seconds_now();
    r->batch = batch;
    r->stats = (ReinforceStats){0};
    rollout_sample(&r->rollout, batch->pixels[0], batch->samples, batch->B, r->s->group, t->step);
    if (!r->rollout.finite) {
        model_not_finite(&t->student, &why);
        die("no program can be drawn after step %lld: %s", (long long)t->step, why.text);
    }
    const double sampled = seconds_now();
    reinforce_reward(r);
    for (int i = 0; i < r->rows; i += r->s->group) reinforce_group(r, i);
    reinforce_count(r);
    r->op->upload(r->policy, r->host_policy, (size_t)r->stats.tokens * sizeof(PolicyRow));
    if (!r->stats.trained) r->op->zero(t->optimizer.norm_squared, sizeof(float));
    r->stats.sampling = sampled - begin;
    r->stats.rewarding = seconds_now() - sampled;
    return (r->stats.trained + r->s->batch - 1) / r->s->batch;
}

/* ---- micro-batches ---- */

/* Micro-batch m of the rows that teach something, up to --batch of them. */
static MicroBatch reinforce_micro_batch(Reinforce *r, int m) {
    const Batch *b = r->batch;
    const int begin = m * r->s->batch, left = r->stats.trained - begin, B = left < r->s->batch ? left : r->s->batch;
    const int last = b->size_count - 1, *rows = r->taught + begin;
    const size_t pixels = image_size_bytes(b->sizes[0]), teacher_pixels = image_size_bytes(b->sizes[last]);
    int T = 1;
    for (int i = 0; i < B; i++) T = r->rollout.lengths[rows[i]] > T ? r->rollout.lengths[rows[i]] : T;
    T = (T + 7) / 8 * 8 < r->max_tokens ? (T + 7) / 8 * 8 : r->max_tokens;
    for (int i = 0; i < B; i++) {
        const size_t image = (size_t)(rows[i] / r->s->group);
        memcpy(r->ids + (size_t)i * T, reinforce_ids(r, rows[i]), T * sizeof(int));  // padded with -1
        memcpy(r->pixels + i * pixels, b->pixels[0] + image * pixels, pixels);
        if (r->teacher_pixels)
            memcpy(r->teacher_pixels + i * teacher_pixels, b->pixels[last] + image * teacher_pixels, teacher_pixels);
        r->samples[i] = b->samples[image];
    }
    return (MicroBatch){.samples = r->samples,
                        .pixels = r->pixels,
                        .teacher_pixels = r->teacher_pixels,
                        .width = b->sizes[0].width,
                        .teacher_width = b->sizes[last].width,
                        .ids = r->ids,
                        .B = B,
                        .T = T,
                        .number = (int64_t)b->number << 20 | m,
                        .policy = r->policy + r->first[begin],
                        .scale = {1.0 / r->stats.tokens, 1.0 / r->stats.trained}};
}

/* After the objective's pass over micro-batch m in the first of several updates: keeps the probabilities of its tokens. */
static void reinforce_keep(const Reinforce *r, const Objective *o, const MicroBatch *mb, int n) {
    const RowStats *stats = o->stats + o->rows - n;
    PolicyRow *policy = r->policy + (mb->policy - r->policy);
    r->op->copy_rows(&policy->old_ce, sizeof *policy, &stats->ce, sizeof *stats, sizeof(float), (size_t)n);
}

#endif
