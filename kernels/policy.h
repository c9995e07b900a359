/* The clipped policy gradient of one position, in place of its cross entropy.
 *
 *   r = pi(y) / pi_old(y) = exp (old_ce - ce)      ce = -log pi(y), old_ce the same when the token y was drawn
 *   term = -min (r A, clip (r, 1 - e, 1 + e) A)    A the advantage, e the clip ratio
 *   d term / d ce = r A, or 0 where the second is the smaller
 *
 * (Schulman et al. 2017, "Proximal Policy Optimization", eq. 7; Shao et al. 2024, "DeepSeekMath", for the advantages of
 * groups.) With r = 1, before the first update, the gradient is that of the cross entropy times A. */
#ifndef KERNELS_POLICY_H
#define KERNELS_POLICY_H

#include <math.h>

#ifdef __CUDACC__
#define POLICY_INLINE static __device__ __forceinline__
#else
#define POLICY_INLINE static inline
#endif

/* A position of a program that the student has written. */
typedef struct {
    float advantage;  // how much better than expected the program was, or what follows of it
    float old_ce;     // -log of the probability that the student gave the token when it drew it; NAN: the same as now
} PolicyRow;

typedef struct {
    float value, slope;  // the term; its derivative in ce
    float clipped;       // 1 where the slope is 0 for being clipped
} PolicyTerm;

/* NULL: the cross entropy itself. */
POLICY_INLINE PolicyTerm policy_term(const PolicyRow *row, float clip_ratio, float ce) {
    PolicyTerm t = {ce, 1.0f, 0.0f};
    if (!row) return t;
    const float A = row->advantage, old = row->old_ce, r = old == old ? expf(old - ce) : 1.0f;
    const float bound = A > 0.0f ? 1.0f + clip_ratio : 1.0f - clip_ratio;
    const bool clipped = A > 0.0f ? r > bound : A < 0.0f && r < bound;
    t.value = clipped ? -bound * A : -r * A;
    t.slope = clipped ? 0.0f : r * A;
    t.clipped = clipped ? 1.0f : 0.0f;
    return t;
}

#endif
