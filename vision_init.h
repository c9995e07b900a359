/* What an untrained encoder starts from, where random numbers would cost many epochs. Included by model.h. */
#ifndef VISION_INIT_H
#define VISION_INIT_H

#include "vision.h"

/* Makes white paper (pixels of 1 after normalisation) start as zero: the patch biases cancel the sums of the weights.
 * Otherwise the thin grey lines of a small figure are a ripple on a large constant, and most of the training goes into
 * learning to see them. */
static inline void vision_init_patch_bias(const Vision *v, const Ops *op) {
    int C = v->c.hidden_size, inputs = v->patch_w->cols;
    floatX *weights = xmalloc(v->patch_w->n * sizeof(floatX)), *bias = xmalloc(C * sizeof(floatX));
    op->download(weights, v->patch_w->value, v->patch_w->n * sizeof(floatX));
    for (int c = 0; c < C; c++) {
        float sum = 0;
        for (int i = 0; i < inputs; i++) sum += from_x(weights[(size_t)c * inputs + i]);
        bias[c] = to_x(-sum);
    }
    op->upload(v->patch_b->value, bias, C * sizeof(floatX));
    free(weights);
    free(bias);
}

/* The embeddings of the positions in a table of `rows` x `columns` patches; 0 in the half of the channels that says the row or
 * the column where there is only one of them. */
static inline void vision_init_position(Param *p, const Ops *op, int rows, int columns, bool says_row,
                                        bool says_column) {
    const int C = p->cols, quarter = C / 4;
    floatX *host = xcalloc(p->n, sizeof(floatX));
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < columns; x++)
            for (int i = 0; i < quarter; i++) {
                float omega = powf(10000.0f, -(float)i / (float)quarter);
                floatX *row = host + ((size_t)y * columns + x) * C;
                if (says_column) row[i] = to_x(0.5f * sinf(omega * (float)x));
                if (says_column) row[quarter + i] = to_x(0.5f * cosf(omega * (float)x));
                if (says_row) row[2 * quarter + i] = to_x(0.5f * sinf(omega * (float)y));
                if (says_row) row[3 * quarter + i] = to_x(0.5f * cosf(omega * (float)y));
            }
    op->upload(p->value, host, p->n * sizeof(floatX));
    free(host);
}

/* Position embeddings start as 2-D sines and cosines. From random ones a small encoder needs many epochs to learn
 * where a patch is (Beyer, Zhai & Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k"). */
static inline void vision_init_positions(const Vision *v, const Ops *op) {
    const int R = vision_rows(&v->c), Q = vision_columns(&v->c);
    if (v->position) vision_init_position(v->position, op, R, Q, true, true);
    if (v->rows) vision_init_position(v->rows, op, R, 1, true, false);
    if (v->columns) vision_init_position(v->columns, op, 1, Q, false, true);
}

#endif
