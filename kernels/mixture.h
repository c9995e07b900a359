/* The divergences from a mixture m = beta p + (1 - beta) q of the teacher's p and the student's q, in one form:
 *
 *   D = p_weight KL(p||m) + q_weight KL(q||m),     dD/dq_i = factor back_i + const,
 *   back_i = log_weight log (q_i / m_i) + slope (p_i / m_i - 1)
 *
 *   JSD    beta KL(p||m) + (1 - beta) KL(q||m)                        Agarwal et al. 2024, "On-Policy Distillation"
 *   SKL    KL(p||m), beta = a: skew KL                                Ko et al. 2024, "DistiLLM"
 *   SRKL   KL(q||m), beta = 1 - a: skew reverse KL
 *
 * The derivative of KL(p||m) in q_i is -(1 - beta) p_i / m_i, that of KL(q||m) is log (q_i / m_i) + beta p_i / m_i + const;
 * in JSD the terms with p_i / m_i cancel. */
#ifndef KERNELS_MIXTURE_H
#define KERNELS_MIXTURE_H

#include "ops.h"

#include <math.h>

#ifdef __CUDACC__
#define MIXTURE_INLINE static __device__ __forceinline__
#else
#define MIXTURE_INLINE static inline
#endif

typedef struct {
    float beta, rest, log_beta, log_rest;  // rest: 1 - beta
    float p_weight, q_weight;
    float factor, log_weight, slope;
} Mixture;

/* x: beta of JSD, a of the skew divergences; between 0 and 1. Of the other divergences only `factor` means something. */
MIXTURE_INLINE Mixture mixture_of(SoftLoss soft, float x) {
    Mixture m;
    m.beta = soft == SOFT_SRKL ? 1.0f - x : x;
    m.rest = soft == SOFT_SRKL ? x : 1.0f - x;
    m.log_beta = logf(m.beta), m.log_rest = logf(m.rest);
    m.p_weight = soft == SOFT_SKL ? 1.0f : soft == SOFT_SRKL ? 0.0f : m.beta;
    m.q_weight = soft == SOFT_SRKL ? 1.0f : soft == SOFT_SKL ? 0.0f : m.rest;
    m.factor = soft == SOFT_JSD ? m.rest : 1.0f;
    m.log_weight = soft == SOFT_SKL ? 0.0f : 1.0f;
    m.slope = soft == SOFT_SKL ? -m.rest : soft == SOFT_SRKL ? m.beta : 0.0f;
    return m;
}

#endif
