/* Rewards of programs and advantages of their tokens (train/reward.h, train/advantage.h); with real TeX where it is installed.
 *
 *   test_reward      from the project's folder, because it reads dev/starter. Ends with "N passed, M failed". */
#include "checks.h"

#include "../kernels/device.h"
#include "../lib/program.h"
#include "../train/advantage.h"
#include "../train/reward.h"

#define FIGURE(body)                                                                    \
    "\\documentclass[tikz]{standalone}\n\\begin{document}\n\\begin{tikzpicture}\n" body \
    "\n\\end{tikzpicture}\n\\end{document}\n"

/* ---- advantages ---- */

static bool near(double a, double b) { return fabs(a - b) < 1e-12; }

static void test_advantages(void) {
    const double rewards[4] = {1, 0, -1, 0.5}, equal[4] = {0.3, 0.3, 0.3, 0.3};
    double A[4], sum = 0;
    /* mean 0.125, squares 0.765625 + 0.015625 + 1.265625 + 0.140625 = 2.1875, std sqrt(2.1875 / 3) */
    advantage_of_group(A, rewards, 4);
    check(near(A[0], 0.875 / (sqrt(2.1875 / 3) + 1e-4)) && near(A[2], -1.125 / (sqrt(2.1875 / 3) + 1e-4)),
          "advantages are %.9g and %.9g", A[0], A[2]);
    for (int i = 0; i < 4; i++) sum += A[i];
    check(fabs(sum) < 1e-12, "advantages add up to %g", sum);
    check(advantage_equal(equal, 4) && !advantage_equal(rewards, 4), "equal rewards are told apart");
    advantage_of_group(A, equal, 4);
    for (int i = 0; i < 4; i++) check(A[i] == 0, "advantage %d of equal rewards is %g", i, A[i]);
    const double two[2] = {1, -1};
    advantage_of_group(A, two, 2);
    check(near(A[0], 1 / (sqrt(2) + 1e-4)) && A[1] == -A[0], "advantages of two are %g and %g", A[0], A[1]);
    double gains[5] = {0, 0, 1, 0, -0.5};
    const double want[5] = {0.48195, 0.5355, 0.595, -0.45, -0.5};
    advantage_returns(gains, 5, 0.9);
    for (int i = 0; i < 5; i++)
        check(near(gains[i], want[i]), "return %d is %.12g, expected %g", i, gains[i], want[i]);
}

/* ---- commands ---- */

static void test_commands(void) {
    static const char text[] = FIGURE("\\draw (0,0) -- (1,1); % no; command\n\\node at (0,0) {a; b};\n"
                                      "\\foreach \\x in {1,2} { \\fill (\\x,0) circle (1); }\n\\draw (0,0)");
    static const char *const ends[] = {"(1,1);", "{a; b};", "circle (1);"};
    RewardedProgram p = {.text = xstrdup(text), .bytes = sizeof text - 1};
    reward_find_commands(&p);
    check(p.count == 3, "%d commands, expected 3", p.count);
    for (int k = 0; k < p.count && k < 3; k++) {
        const size_t end = (size_t)(strstr(text, ends[k]) - text) + strlen(ends[k]);
        check(p.commands[k].end == end, "command %d ends at byte %zu, expected %zu", k, p.commands[k].end, end);
    }
    rewarded_program_free(&p);
}

/* ---- rewards, with TeX ---- */

static const char line[] = FIGURE("\\draw (0,0) -- (2,1);"), spaced[] = FIGURE("\\draw   (0,0)--(2,1);"),
                  other[] = FIGURE("\\draw (0,0) -- (1,2);"), bad[] = FIGURE("\\draw (0,0) -- (2,1);\n\\nonsense"),
                  more[] = FIGURE("\\coordinate (a) at (0,0);\n\\draw (a) -- (2,1);\n\\draw (0,1) -- (2,0);"),
                  broken[] = FIGURE("\\draw (0,0) -- (2,1);\n\\draw (nowhere) -- (1,1);\n\\draw (0,0) -- (2,0);");

enum { PROGRAMS = 8 };

static void programs_make(RewardedProgram *p) {
    static const char *const texts[PROGRAMS] = {line, spaced, other, bad, more, broken, line, line};
    for (int i = 0; i < PROGRAMS; i++)
        p[i] = (RewardedProgram){
            .text = xstrdup(texts[i]), .bytes = strlen(texts[i]), .ended = i != 6, .target = i == PROGRAMS - 1};
}

/* Two images: the line, as the model sees it, and the line in twice the resolution. */
static void targets_make(Rewards *w, RewardTarget *targets) {
    Error err = {""};
    const size_t bytes = image_size_bytes(w->judge.o.image_size);
    for (int i = 0; i < 2; i++) {
        targets[i] = (RewardTarget){.pixels = xcalloc(bytes, 1), .extent = {i ? 160 : 80, 0}};
        judge_begin(&w->judge, targets[i].pixels, targets[i].extent);
        Judged *p = judge_submit(&w->judge, line, strlen(line));
        if (judge_wait(&w->judge, p, 0, &err) || !p->drawn) die("the line is not drawn: %s", err.text);
        memcpy(targets[i].pixels, p->pixels, bytes);
        targets[i].text = xstrdup(spaced);
        targets[i].bytes = strlen(spaced);
    }
}

static void check_program_rewards(const RewardedProgram *p, const char *what) {
    check(fabs(p[0].reward - 1) < 1e-6 && p[0].compiles && p[0].exact, "%s: the program itself gets %.9g", what,
          p[0].reward);
    check(p[1].reward == p[0].reward && p[1].exact, "%s: the same drawing gets %.9g", what, p[1].reward);
    check(p[2].reward < p[0].reward && p[2].reward > -1 && p[2].compiles && !p[2].exact, "%s: another line gets %.9g",
          what, p[2].reward);
    check(p[3].reward == -1 && !p[3].compiles && !p[3].exact, "%s: a program with an error gets %g", what,
          p[3].reward);
    check(p[4].reward < p[0].reward && p[4].compiles, "%s: a line too much gets %.9g", what, p[4].reward);
    check(p[6].reward == -1 && !p[6].compiles && p[6].count == 0, "%s: a program without end gets %g", what,
          p[6].reward);
    check(fabs(p[7].reward - 1) < 1e-6 && p[7].exact, "%s: of the other image the program gets %.9g", what,
          p[7].reward);
}

static void check_gains(const RewardedProgram *p, const char *what) {
    check(p[0].count == 1 && p[0].commands[0].gain == p[0].reward, "%s: the only command gains all", what);
    check(p[4].count == 3 && p[4].commands[0].gain == 0, "%s: a coordinate gains %g", what, p[4].commands[0].gain);
    check(fabs(p[4].commands[1].gain - 1) < 1e-6 && p[4].commands[2].gain < 0,
          "%s: the line gains %g, what is too much %g", what, p[4].commands[1].gain, p[4].commands[2].gain);
    check(fabs(p[4].commands[1].gain + p[4].commands[2].gain - p[4].reward) < 1e-12, "%s: gains add up to the reward",
          what);
    check(p[5].count == 3 && p[5].commands[1].gain == -1 - p[5].commands[0].gain && p[5].commands[2].gain == 0,
          "%s: the command that breaks the program gains %g, the next %g", what, p[5].commands[1].gain,
          p[5].commands[2].gain);
}

static void test_rewards(Model *m, const char *cache, Similarity similarity) {
    RewardedProgram p[2][PROGRAMS];
    for (int k = 0; k < 2; k++) {  // threads and what the judge has seen before change nothing
        Rewards w;
        Error err = {""};
        RewardTarget targets[2];
        programs_make(p[k]);
        die_if(rewards_open(&w, m, similarity, true, 1 + 2 * k, cache, &err), &err);
        targets_make(&w, targets);
        for (int again = 0; again <= k; again++) {
            for (int i = 0; again && i < PROGRAMS; i++) rewarded_program_free(&p[k][i]);
            if (again) programs_make(p[k]);
            check(rewards_compute(&w, targets, p[k], PROGRAMS, &err) == 0, "no rewards: %s", err.text);
        }
        check_program_rewards(p[k], similarity_names[similarity]);
        check_gains(p[k], similarity_names[similarity]);
        for (int i = 0; i < 2; i++) free(targets[i].pixels), free(targets[i].text);
        rewards_close(&w);
    }
    for (int i = 0; i < PROGRAMS; i++) {
        check(p[0][i].reward == p[1][i].reward && p[0][i].count == p[1][i].count, "program %d: %.17g and %.17g", i,
              p[0][i].reward, p[1][i].reward);
        for (int c = 0; c < p[0][i].count; c++)
            check(p[0][i].commands[c].gain == p[1][i].commands[c].gain, "program %d: gains of command %d differ", i,
                  c);
        for (int k = 0; k < 2; k++) rewarded_program_free(&p[k][i]);
    }
}

int main(int argc, char **argv) {
    (void)argc;
    program_begin(argv);
    test_advantages();
    test_commands();
    if (system("command -v pdflatex pdftocairo >/dev/null 2>&1")) {
        printf("not tested here: rewards (no pdflatex or pdftocairo; scripts/deps.sh tex)\n");
        return checks_end();
    }
    Model m;
    Error err;
    char *cache = xstrdup("/tmp/tikz-test-XXXXXX");
    if (!mkdtemp(cache)) die("cannot make a folder in /tmp");
    die_if(model_open(&m, cpu_ops(), "dev/starter/student.safetensors", "", &err), &err);
    model_plan(&m, 1, 1);
    test_rewards(&m, cache, SIMILARITY_PIXELS);
    test_rewards(&m, cache, SIMILARITY_EMD);
    model_close(&m);
    sandbox_folder_remove(cache);
    return checks_end();
}
