/* Tests of the squared norm and of AdamW. */
#ifndef DEV_TEST_KERNELS_OPTIMIZER_H
#define DEV_TEST_KERNELS_OPTIMIZER_H

#include "test_kernels.h"

static void test_squared_norm(void) {
    size_t n = 1 + below(below(2) ? 300 : 100000);
    double *x = draw(n, 3), before = uniform() * 100, want = 0;
    float *dev_x = put_f(x, n), *out = put_f(&before, 1);
    for (size_t i = 0; i < n; i++) want += x[i] * x[i];
    op->squared_norm(out, dev_x, n, true);
    before += want;
    check_f("squared_norm accumulated", out, &before, 1, 1e-6);
    op->squared_norm(out, dev_x, n, false);
    check_f("squared_norm", out, &want, 1, 1e-6);
}

static void test_adamw(void) {
    size_t n = 1 + below(below(2) ? 300 : 40000);
    double *w = draw(n, 1), *m = draw(n, 0.1), *v = draw(n, 0.1), *g = draw(n, 1), *rounded = zeros(n);
    for (size_t i = 0; i < n; i++) v[i] *= v[i];
    double norm = 0;
    for (size_t i = 0; i < n; i++) norm += g[i] * g[i];
    if (below(6) == 0) norm = ONE_OF(double, NAN, INFINITY);
    float lr = 0.01f, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, decay = 0.1f, limit = ONE_OF(float, 0, 1, 1e9f);
    int step = 1 + below(50);
    float *dev_w = put_f(w, n), *dev_m = put_f(m, n), *dev_v = put_f(v, n), *dev_g = put_f(g, n);
    for (size_t i = 0; i < n; i++) rounded[i] = w[i];
    floatX *param = put_x(rounded, n);
    float *dev_norm = put_f(&norm, 1);
    op->adamw(param, dev_w, dev_m, dev_v, dev_g, n, lr, beta1, beta2, eps, decay, dev_norm, limit, step);
    double clip = limit > 0 && sqrt(norm) > limit ? limit / sqrt(norm) : 1;
    for (size_t i = 0; i < n && isfinite(norm); i++) {
        m[i] = beta1 * m[i] + (1 - (double)beta1) * g[i] * clip;
        v[i] = beta2 * v[i] + (1 - (double)beta2) * g[i] * clip * g[i] * clip;
        double mhat = m[i] / (1 - pow(beta1, step)), vhat = v[i] / (1 - pow(beta2, step));
        w[i] -= lr * (mhat / (sqrt(vhat) + eps) + (double)decay * w[i]);
        rounded[i] = from_x(to_x((float)w[i]));
    }
    check_f("adamw m", dev_m, m, n, FP32);
    check_f("adamw v", dev_v, v, n, FP32);
    check_f("adamw master", dev_w, w, n, FP32);
    check_x("adamw param", param, rounded, n, FORWARD);
}

#endif
