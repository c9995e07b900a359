/* What brings inputs in: embedding, image patches, position embedding, row gather and scatter. */
#ifndef KERNELS_CPU_INPUT_H
#define KERNELS_CPU_INPUT_H

#include "memory.h"
#include "quantised.h"

/* ---- embedding ---- */

static void embedding_widen(floatX *out, const Weight *table, size_t row) {
    float *wide = (float *)scratch(SCRATCH_A, table->cols * sizeof(float));
    widen_row(wide, table, row);
    FOR_LANES (c, m, 0, (size_t)table->cols) vx_store_n(out + c, vf_load_n(wide + c, m), m);
}

static void cpu_embedding_forward(floatX *out, const int *ids, Weight table, size_t rows) {
    const size_t C = table.cols;
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++) {
        if (ids[r] < 0) continue;
        if (dtype_is_quantised(table.dtype))
            embedding_widen(out + r * C, &table, ids[r]);
        else
            memcpy(out + r * C, (const floatX *)table.data + ids[r] * C, C * sizeof(floatX));
    }
}

/* A task owns the rows of the vocabulary whose ids have the same remainder, and adds to them in the order of the
 * positions. */
static void cpu_embedding_backward(float *dtable, const floatX *dout, const int *ids, size_t rows, int C, int vocab) {
    enum { TASKS = 32 };
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (int task = 0; task < TASKS; task++)
        for (size_t r = 0; r < rows; r++) {
            if (ids[r] < 0 || ids[r] >= vocab || ids[r] % TASKS != task) continue;
            float *d = dtable + (size_t)ids[r] * C;
            FOR_LANES (c, m, 0, (size_t)C) vf_store_n(d + c, vf_load_n(d + c, m) + vx_load_n(dout + r * C + c, m), m);
        }
}

/* ---- images ---- */

static void cpu_patchify(floatX *out, const uint8_t *pixels, int B, int height, int width, int patch) {
    const size_t rows = height / patch, columns = width / patch, patches = B * rows * columns;
    const size_t features = (size_t)3 * patch * patch;
    floatX value[256];
    for (int i = 0; i < 256; i++) value[i] = to_x((float)i * (2.0f / 255.0f) - 1.0f);
#pragma omp parallel for schedule(static) if (patches * features > 16384)
    for (size_t p = 0; p < patches; p++) {
        size_t b = p / (rows * columns), row = p / columns % rows, col = p % columns;
        const uint8_t *corner = pixels + ((b * height + row * patch) * width + col * patch) * 3;
        floatX *o = out + p * features;
        for (int c = 0; c < 3; c++)
            for (int y = 0; y < patch; y++)
                for (int x = 0; x < patch; x++) *o++ = value[corner[((size_t)y * width + x) * 3 + c]];
    }
}

static void cpu_position_forward(floatX *x, const floatX *position, int B, int T, int C) {
    size_t rows = (size_t)B * T;
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++) {
        floatX *row = x + r * C;
        const floatX *add = position + r % T * C;
        FOR_LANES (c, m, 0, (size_t)C) vx_store_n(row + c, vx_load_n(row + c, m) + vx_load_n(add + c, m), m);
    }
}

static void cpu_position_backward(float *dposition, const floatX *dout, int B, int T, int C) {
#pragma omp parallel for schedule(static) if ((size_t)B * T * C > 16384)
    for (int t = 0; t < T; t++)
        FOR_LANES (c, m, 0, (size_t)C) {
            vf sum = vf_load_n(dposition + (size_t)t * C + c, m);
            for (int b = 0; b < B; b++) sum += vx_load_n(dout + ((size_t)b * T + t) * C + c, m);
            vf_store_n(dposition + (size_t)t * C + c, sum, m);
        }
}

static void cpu_position_2d_forward(floatX *x, const floatX *rows, const floatX *columns, int B, int R, int Q,
                                    int C) {
    const size_t n = (size_t)B * R * Q;
#pragma omp parallel for schedule(static) if (n * C > 16384)
    for (size_t i = 0; i < n; i++) {
        floatX *to = x + i * C;
        const floatX *row = rows + i / Q % R * C, *column = columns + i % Q * C;
        FOR_LANES (c, m, 0, (size_t)C)
            vx_store_n(to + c, vx_load_n(to + c, m) + (vx_load_n(row + c, m) + vx_load_n(column + c, m)), m);
    }
}

/* A task owns a row or a column, and adds up the patches of every image in their order. */
static void cpu_position_2d_backward(float *drows, float *dcolumns, const floatX *dout, int B, int R, int Q, int C) {
#pragma omp parallel for schedule(static) if ((size_t)B * R * Q * C > 16384)
    for (int task = 0; task < R + Q; task++) {
        const bool is_row = task < R;
        const size_t first = is_row ? (size_t)task * Q : (size_t)(task - R), step = is_row ? 1 : Q;
        const size_t count = is_row ? Q : R, image = (size_t)R * Q;
        float *to = is_row ? drows + (size_t)task * C : dcolumns + (size_t)(task - R) * C;
        FOR_LANES (c, m, 0, (size_t)C) {
            vf sum = vf_load_n(to + c, m);
            for (int b = 0; b < B; b++)
                for (size_t i = 0; i < count; i++) sum += vx_load_n(dout + (b * image + first + i * step) * C + c, m);
            vf_store_n(to + c, sum, m);
        }
    }
}

static void cpu_gather_rows(floatX *out, const floatX *inp, const int *index, size_t rows, int C) {
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++) memcpy(out + r * C, inp + (size_t)index[r] * C, C * sizeof(floatX));
}

static void cpu_scatter_rows(floatX *out, const floatX *inp, const int *index, size_t rows, size_t total, int C) {
    cpu_zero(out, total * C * sizeof(floatX));
#pragma omp parallel for schedule(static) if (rows * C > 16384)
    for (size_t r = 0; r < rows; r++) memcpy(out + (size_t)index[r] * C, inp + r * C, C * sizeof(floatX));
}

#endif
