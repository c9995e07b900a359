/* Tests of memory, copies and what a model reads: embedding, patches, positions, rows. */
#ifndef DEV_TEST_KERNELS_INPUT_H
#define DEV_TEST_KERNELS_INPUT_H

#include "test_kernels.h"

static void test_memory(void) {
    size_t n = 1 + below(100000), width = 1 + below(300), rows = 1 + below(300), a = width + below(50);
    size_t b = width + below(50);
    unsigned char *p = (unsigned char *)op->alloc(n), *h = (unsigned char *)host(n), *g = (unsigned char *)host(n);
    op->download(h, p, n);
    bool zero = true;
    for (size_t i = 0; i < n; i++) zero = zero && h[i] == 0;
    report(zero && ((uintptr_t)p & 63) == 0, "alloc gives zeroed memory on a 64-byte boundary");
    op->release(p);
    for (size_t i = 0; i < n; i++) h[i] = (unsigned char)below(256);
    void *x = device(n), *y = device(n);
    op->upload(x, h, n);
    op->copy(y, x, n);
    op->sync();
    op->download(g, y, n);
    report(memcmp(g, h, n) == 0, "upload, copy, download of %zu bytes", n);
    op->zero(y, n);
    op->copy_from(y, op, x, n);
    op->download(g, y, n);
    report(memcmp(g, h, n) == 0, "copy_from the device itself of %zu bytes", n);
    op->zero(y, n);
    op->copy_from(y, cpu_ops(), h, n);
    op->download(g, y, n);
    report(memcmp(g, h, n) == 0, "copy_from the host of %zu bytes", n);
    op->zero((char *)y + n / 3, n - n / 3);
    op->download(g, y, n);
    for (size_t i = n / 3; i < n; i++) zero = zero && g[i] == 0;
    report(zero && memcmp(g, h, n / 3) == 0, "zero of %zu bytes", n - n / 3);
    unsigned char *src = (unsigned char *)host(rows * a), *dst = (unsigned char *)host(rows * b);
    for (size_t i = 0; i < rows * a; i++) src[i] = (unsigned char)below(256);
    void *ds = device(rows * a), *dd = device(rows * b);
    op->upload(ds, src, rows * a);
    op->copy_rows(dd, b, ds, a, width, rows);
    op->download(dst, dd, rows * b);
    bool same = true;
    for (size_t r = 0; r < rows; r++) {
        same = same && memcmp(dst + r * b, src + r * a, width) == 0;
        for (size_t i = width; i < b; i++) same = same && dst[r * b + i] == 0xff;
    }
    report(same, "copy_rows %zu x %zu", rows, width);
}

/* More than goes to a GPU in one piece. */
static void test_large_copies(void) {
    size_t n = (is_watched() ? (size_t)5 << 18 : (size_t)5 << 23) + 12345;
    unsigned char *h = (unsigned char *)host(n), *g = (unsigned char *)host(n);
    void *x = device(n), *y = device(n);
    for (size_t i = 0; i < n; i++) h[i] = (unsigned char)(i * 2654435761u >> 24);
    op->upload(x, h, n);
    op->upload(y, h + 1, n - 1);  // the next ones do not disturb the first
    h[n / 2] ^= 1;                // what is uploaded has been read
    op->copy(y, x, n);
    op->download(g, y, n);
    g[n / 2] ^= 1;
    report(memcmp(g, h, n) == 0, "upload, copy, download of %zu bytes", n);
}

/* Two devices take turns: what one copies from the other is what was there when it asked, however fast either is. The
 * other one is a second GPU or, where there is none, the CPU. */
static void test_devices(void) {
    Error err;
    const Ops *here = op, *there = op->host_memory ? NULL : ops_open("cuda:1", &err);
    if (!there) there = cpu_ops();
    enum { STEPS = 6 };
    size_t n = 40000 + below(40000), bytes = n * sizeof(floatX);
    double *want = zeros(n), *begin = zeros(n), *step = zeros(n);
    for (size_t i = 0; i < n; i++) begin[i] = below(5), step[i] = 1, want[i] = STEPS * begin[i] + 21;
    floatX *x = put_x(begin, n), *one = put_x(step, n);
    floatX *y = (floatX *)there->alloc(bytes), *sum = (floatX *)there->alloc(bytes);
    for (int i = 0; i < STEPS; i++) {
        here->residual_forward(x, x, one, n);
        there->copy_from(y, here, x, bytes);
        there->residual_forward(sum, sum, y, n);
    }
    floatX *back = out_x(n);
    here->copy_from(back, there, sum, bytes);
    there->zero(sum, bytes);
    check_x("sums on another device", back, want, n, 0);
    there->release(y);
    there->release(sum);
}

static void test_embedding(void) {
    int C = ragged(), vocab = 1 + below(70);
    size_t rows = 1 + below(400);
    int *ids = (int *)host(rows * sizeof(int));
    for (size_t r = 0; r < rows; r++) ids[r] = below(4) ? below(vocab) : -1;
    double *table = draw((size_t)vocab * C, 1), *out = draw(rows * C, 1), *dout = draw(rows * C, 1);
    double *dtable = draw((size_t)vocab * C, 1);
    floatX *dev_table = put_x(table, (size_t)vocab * C), *dev_out = put_x(out, rows * C);
    floatX *dev_dout = put_x(dout, rows * C);
    float *dev_dtable = put_f(dtable, (size_t)vocab * C);
    int *dev_ids = put_i(ids, rows);
    op->embedding_forward(dev_out, dev_ids, (Weight){dev_table, DT_FLOATX, vocab, C, NULL}, rows);
    op->embedding_backward(dev_dtable, dev_dout, dev_ids, rows, C, vocab);
    for (size_t r = 0; r < rows; r++)
        for (int c = 0; c < C && ids[r] >= 0; c++) {
            out[r * C + c] = table[(size_t)ids[r] * C + c];
            dtable[(size_t)ids[r] * C + c] += dout[r * C + c];
        }
    check_x("embedding_forward", dev_out, out, rows * C, 0);
    check_f("embedding_backward", dev_dtable, dtable, (size_t)vocab * C, FP32);
}

static void test_patchify(void) {
    int B = 1 + below(3), patch = ONE_OF(int, 1, 2, 3, 7, 8, 14, 16), rows = 1 + below(7), columns = 1 + below(9);
    int height = patch * rows + (below(2) ? below(patch) : 0);  // some pixels left over, in half of the cases
    int width = patch * columns + (below(2) ? below(patch) : 0);
    size_t bytes = (size_t)B * height * width * 3, n = (size_t)B * rows * columns * 3 * patch * patch;
    uint8_t *pixels = (uint8_t *)host(bytes), *dev = (uint8_t *)device(bytes);
    double *want = zeros(n), *w = want;
    for (size_t i = 0; i < bytes; i++) pixels[i] = (uint8_t)below(256);
    for (int b = 0; b < B; b++)
        for (int p = 0; p < rows * columns; p++)
            for (int c = 0; c < 3; c++)
                for (int y = 0; y < patch; y++)
                    for (int x = 0; x < patch; x++) {
                        size_t row = p / columns * patch + y, col = p % columns * patch + x;
                        *w++ = (pixels[(((size_t)b * height + row) * width + col) * 3 + c] / 255.0 - 0.5) / 0.5;
                    }
    op->upload(dev, pixels, bytes);
    floatX *out = out_x(n);
    op->patchify(out, dev, B, height, width, patch);
    check_x("patchify", out, want, n, FORWARD / 2);
}

static void test_position(void) {
    int B = 1 + below(9), T = ragged(), C = ragged();
    size_t n = (size_t)B * T * C, m = (size_t)T * C;
    double *x = draw(n, 1), *position = draw(m, 1), *dout = draw(n, 1), *dposition = draw(m, 1);
    floatX *dev_x = put_x(x, n), *dev_position = put_x(position, m), *dev_dout = put_x(dout, n);
    float *dev_dposition = put_f(dposition, m);
    op->position_forward(dev_x, dev_position, B, T, C);
    op->position_backward(dev_dposition, dev_dout, B, T, C);
    for (size_t i = 0; i < n; i++) x[i] += position[i % m], dposition[i % m] += dout[i];
    check_x("position_forward", dev_x, x, n, FORWARD / 2);
    check_f("position_backward", dev_dposition, dposition, m, FP32);
}

static void test_position_2d(void) {
    int B = 1 + below(9), R = 1 + below(12), Q = 1 + below(50), C = ragged();
    size_t n = (size_t)B * R * Q * C;
    double *x = draw(n, 1), *rows = draw((size_t)R * C, 1), *columns = draw((size_t)Q * C, 1), *dout = draw(n, 1);
    double *drows = draw((size_t)R * C, 1), *dcolumns = draw((size_t)Q * C, 1);
    floatX *dev_x = put_x(x, n), *dev_rows = put_x(rows, (size_t)R * C), *dev_columns = put_x(columns, (size_t)Q * C);
    floatX *dev_dout = put_x(dout, n);
    float *dev_drows = put_f(drows, (size_t)R * C), *dev_dcolumns = put_f(dcolumns, (size_t)Q * C);
    op->position_2d_forward(dev_x, dev_rows, dev_columns, B, R, Q, C);
    op->position_2d_backward(dev_drows, dev_dcolumns, dev_dout, B, R, Q, C);
    for (size_t i = 0; i < n; i++) {
        size_t c = i % C, column = i / C % Q, row = i / C / Q % R;
        x[i] += rows[row * C + c] + columns[column * C + c];
        drows[row * C + c] += dout[i];
        dcolumns[column * C + c] += dout[i];
    }
    check_x("position_2d_forward", dev_x, x, n, FORWARD / 2);
    check_f("position_2d_backward, rows", dev_drows, drows, (size_t)R * C, FP32);
    check_f("position_2d_backward, columns", dev_dcolumns, dcolumns, (size_t)Q * C, FP32);
}

static void test_rows(void) {
    int C = ragged(), *index;
    size_t total = 1 + below(300), rows = 1 + below((int)total);
    index = (int *)host(total * sizeof(int));
    for (size_t i = 0; i < total; i++) index[i] = (int)i;
    for (size_t i = 0; i < total; i++) {
        size_t j = i + random_bits() % (total - i);
        int swap = index[i];
        index[i] = index[j], index[j] = swap;
    }
    double *x = draw(total * C, 1), *small = zeros(rows * C), *large = zeros(total * C);
    floatX *dev_x = put_x(x, total * C), *dev_small = out_x(rows * C), *dev_large = out_x(total * C);
    int *dev_index = put_i(index, rows);
    op->gather_rows(dev_small, dev_x, dev_index, rows, C);
    op->scatter_rows(dev_large, dev_small, dev_index, rows, total, C);
    for (size_t i = 0; i < rows * C; i++) {
        small[i] = x[(size_t)index[i / C] * C + i % C];
        large[(size_t)index[i / C] * C + i % C] = small[i];
    }
    check_x("gather_rows", dev_small, small, rows * C, 0);
    check_x("scatter_rows", dev_large, large, total * C, 0);
}

#endif
