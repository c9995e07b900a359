/* From the rewards of a group of programs for one image to the advantages of their tokens.
 *
 *   GRPO       A_i = (r_i - mean) / (std + 1e-4) over the G programs of the group, for all tokens of program i; std with G - 1
 *              (Shao et al. 2024, "DeepSeekMath", with the constant of TRL)
 *   commands   A_it += w (R_it - mean of R over all tokens of the group),   R_t = g_t + decay R_(t+1)
 *              g_t the gain of the command that token t ends, else 0: what a token leads to, the less the further away
 *              (weight 10 and decay 0.9 are IR4RL's; the mean is ours)
 *
 * A group whose rewards are all equal, and whose gains are, teaches nothing. */
#ifndef TRAIN_ADVANTAGE_H
#define TRAIN_ADVANTAGE_H

#include <math.h>
#include <stdbool.h>

/* Whether n numbers are equal, but for rounding. */
static inline bool advantage_equal(const double *x, int n) {
    double least = x[0], most = x[0];
    for (int i = 1; i < n; i++) least = fmin(least, x[i]), most = fmax(most, x[i]);
    return most - least < 1e-9;
}

/* out [G] from rewards [G], G > 1; zeros where they are all equal. */
static inline void advantage_of_group(double *out, const double *rewards, int G) {
    double mean = 0, squares = 0;
    const bool equal = advantage_equal(rewards, G);
    for (int i = 0; i < G; i++) mean += rewards[i] / G;
    for (int i = 0; i < G; i++) squares += (rewards[i] - mean) * (rewards[i] - mean);
    const double std = sqrt(squares / (G - 1));
    for (int i = 0; i < G; i++) out[i] = equal ? 0 : (rewards[i] - mean) / (std + 1e-4);
}

/* Turns the gains at n tokens into their returns, in place. */
static inline void advantage_returns(double *gains, int n, double decay) {
    for (int t = n - 2; t >= 0; t--) gains[t] += decay * gains[t + 1];
}

#endif
