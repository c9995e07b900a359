/* A teacher's distributions in few numbers, as distill_rows_sparse reads them (kernels/ops.h).
 *
 * Of the distribution p = softmax(t/tau) of a row, K entries of the vocabulary are listed, each with its probability; all
 * others are known by their sum alone. The divergence D is taken over K + 1 events: each listed entry, and "any of the
 * others". For KL this is a lower bound of the whole D (merging events never makes it larger), and it is D itself where
 * everything is listed. With b(j) the event of entry j and D_b the partial derivative of D in q_b, the gradient is that of
 * loss.cuh with D_b(j) in the place of D_j: for KL, tau (q_j - p_j) for a listed entry and tau q_j (1 - rest / q_rest) for
 * another.
 *
 * Where the entries are K draws from p (Anshumann et al. 2025, "Sparse Logit Sampling"), each with its share of the draws,
 * rest is 0: then the gradient of KL is tau (q - p^), whose expectation is that of the whole distribution. */
#ifndef KERNELS_SPARSE_H
#define KERNELS_SPARSE_H

enum { SPARSE_MOST = 1024 };  // entries of a row

/* What is known of a row beside its entries. */
typedef struct {
    float rest;        // the probability of what is not listed; 0 or more, with the p's it adds up to 1
    float entropy;     // of p, nats
    float confidence;  // max softmax(t), tau = 1
    int top;           // argmax t, below V
} SparseRow;

/* Device pointers. */
typedef struct {
    const int *ids;         // [rows, K], different within a row, below V; -1: not used
    const float *p;         // [rows, K], above 0 where used
    const SparseRow *rows;  // [rows]
    int K, V;               // V: the teacher's vocabulary, at most the student's
} SparseTeacher;

#endif
