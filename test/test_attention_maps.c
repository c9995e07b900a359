/* Tests of the attention maps.
 *
 *   test_attention_maps [FIXTURES [DEVICE]]      default: test/fixtures cpu
 *
 * The probabilities are compared with those of a whole decoder in fp64 (dev/kernels/reference.h), from the weights and the
 * image tokens on, which test_model compares with PyTorch. Pictures, names and the page are compared with what they must be
 * for small inputs. */
#include "samples.h"

#include "../generate/attention_maps.h"
#include "../lib/image.h"

#pragma GCC diagnostic ignored "-Wunused-function"
#include "../dev/kernels/reference.h"

#ifdef PRECISION_FP32
static const double TOLERANCE = 1e-5;
#else
static const double TOLERANCE = 2e-2;
#endif

/* ---- the decoder in fp64 ---- */

static double *download_x(const Ops *op, const void *x, size_t n) {
    floatX *raw = xmalloc(n * sizeof(floatX));
    double *to = xmalloc(n * sizeof(double));
    op->download(raw, x, n * sizeof(floatX));
    for (size_t i = 0; i < n; i++) to[i] = (double)from_x(raw[i]);
    free(raw);
    return to;
}

static double *download_param(const Ops *op, const Param *p) { return download_x(op, p->value, p->n); }

/* [rows, w.rows] = x wᵀ */
static double *ref_linear(const Ops *op, const double *x, const Param *w, size_t rows) {
    double *weights = download_param(op, w), *out = xmalloc(rows * (size_t)w->rows * sizeof(double));
    ref_matmul(out, x, w->cols, 1, weights, 1, w->cols, rows, w->rows, w->cols);
    free(weights);
    return out;
}

static double *ref_rmsnorm(const Ops *op, const double *x, const Param *w, size_t rows, int W, float eps) {
    double *weights = download_param(op, w), *out = xmalloc(rows * W * sizeof(double));
    double *mean = xmalloc(rows * sizeof(double)), *rstd = xmalloc(rows * sizeof(double));
    ref_norm_forward(out, mean, rstd, x, weights, NULL, rows, W, (double)eps, false);
    free(weights);
    free(mean);
    free(rstd);
    return out;
}

/* Adds the mean over the heads of the probabilities of every text row to maps [n, S], and returns the attention [S, H D]. */
static double *ref_attention(double *maps, const double *qkv, const AttentionShape *s, int first, int layers) {
    double *x = ref_rotated(qkv, s, 1), *p = xmalloc(s->T * sizeof(double)),
           *out = xmalloc((size_t)s->T * s->H * s->D * sizeof(double));
    for (int t = 0; t < s->T; t++)
        for (int h = 0; h < s->H; h++) {
            ref_attention_row(out + ((size_t)t * s->H + h) * s->D, p, x, s, 0, t, h);
            for (int j = 0; t >= first && j <= t; j++) maps[(size_t)(t - first) * s->T + j] += p[j] / s->H / layers;
        }
    free(x);
    free(p);
    return out;
}

static void ref_add(double *x, double *y, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] += y[i];
    free(y);
}

/* One block; x [S, W] is the residual stream. */
static void ref_block(double *maps, double *x, const Model *m, int l, const AttentionShape *s) {
    const Ops *op = m->op;
    const LmConfig *c = &m->c.lm;
    const DecoderLayer *y = &m->layer[l];
    const size_t S = s->T, W = c->hidden_size, F = c->intermediate_size;
    double *h = ref_rmsnorm(op, x, y->input_layernorm, S, (int)W, c->eps), *qkv = ref_linear(op, h, y->qkv_proj, S);
    double *attention = ref_attention(maps, qkv, s, model_prompt(m) - 1, c->layers);
    ref_add(x, ref_linear(op, attention, y->o_proj, S), S * W);
    double *h2 = ref_rmsnorm(op, x, y->post_attention_layernorm, S, (int)W, c->eps),
           *gate_up = ref_linear(op, h2, y->gate_up_proj, S), *swiglu = xmalloc(S * F * sizeof(double));
    for (size_t t = 0; t < S; t++)
        for (size_t i = 0; i < F; i++)
            swiglu[t * F + i] = ref_silu(gate_up[2 * t * F + i]) * gate_up[(2 * t + 1) * F + i];
    ref_add(x, ref_linear(op, swiglu, y->down_proj, S), S * W);
    free(h);
    free(qkv);
    free(attention);
    free(h2);
    free(gate_up);
    free(swiglu);
}

/* The maps [n, S] from the image tokens that the model's last pass has left. */
static double *ref_maps(const Model *m, const int *ids, int n) {
    const size_t P = model_image_tokens(m), S = model_sequence(m, n), W = m->c.lm.hidden_size;
    float *rope = xmalloc(S * m->c.lm.head_dim * sizeof(float));
    m->op->download(rope, m->rope, S * m->c.lm.head_dim * sizeof(float));
    AttentionShape s = decoder_attention_shape(m, 1, (int)S);
    s.rope = rope;
    double *maps = xcalloc(n * S, sizeof(double)), *x = xmalloc(S * W * sizeof(double)),
           *image = download_x(m->op, m->vision.tokens, P * W), *table = download_param(m->op, m->embed_tokens);
    const Markers *before = &m->tokenizer.before_image, *after = &m->tokenizer.after_image;
    double *to = x;
    for (int i = 0; i < before->count; i++, to += W) memcpy(to, table + before->ids[i] * W, W * sizeof(double));
    memcpy(to, image, P * W * sizeof(double));
    to += P * W;
    for (int i = 0; i < after->count; i++, to += W) memcpy(to, table + after->ids[i] * W, W * sizeof(double));
    for (int t = 0; t + 1 < n; t++, to += W) memcpy(to, table + ids[t] * W, W * sizeof(double));
    for (int l = 0; l < m->c.lm.layers; l++) ref_block(maps, x, m, l, &s);
    free(rope);
    free(x);
    free(image);
    free(table);
    return maps;
}

/* ---- the maps ---- */

static void compare_maps(const float *maps, const double *expected, int n, int P, int S) {
    double difference = 0, norm = 0;
    bool sums = true, causal = true;
    for (int t = 0; t < n; t++) {
        double sum = 0;
        for (int j = 0; j < S; j++) {
            const double p = (double)maps[t * S + j], d = p - expected[t * S + j];
            sum += p;
            difference += d * d;
            norm += expected[t * S + j] * expected[t * S + j];
            causal = causal && (j < P + t ? p > 0 : p == 0);
        }
        sums = sums && fabs(sum - 1) < 1e-5;
    }
    char error[64];
    snprintf(error, sizeof error, "the maps differ by %.1e", sqrt(difference / norm));
    check(sqrt(difference / norm) <= TOLERANCE, __FILE__, __LINE__, "the maps are those of fp64", error);
    CHECK(sums);
    CHECK(causal);
}

/* A student of the fixtures, planned for one image, which is not the batch of its expected tokens. */
static void open_fixture(Model *m, SafeTensors *expected, const Ops *op, const char *folder, const char *name) {
    Error err;
    char *model = format_string("%s/%s.student.safetensors", folder, name),
         *data = format_string("%s/%s.expected.safetensors", folder, name);
    die_if(model_open(m, op, model, "", &err) || safetensors_open(expected, data, &err), &err);
    const SafeTensor *ids = safetensors_find(expected, "ids");
    if (!ids || !safetensors_find(expected, "pixels")) die("%s has no tensor ids or pixels", data);
    model_plan(m, 1, (int)ids->shape[1]);
    free(model);
    free(data);
}

static void test_maps(const Ops *op, const char *folder, const char *name) {
    Model m;
    SafeTensors data;
    Error err;
    open_fixture(&m, &data, op, folder, name);
    const SafeTensor *ids = safetensors_find(&data, "ids");
    for (int b = 0; b < (int)ids->shape[0]; b++) {
        const int T = (int)ids->shape[1], *row = (const int *)ids->data + b * T;
        int n = 0;
        while (n < T && row[n] >= 0) n++;
        for (int count = n; count > 0; count -= n > 1 ? n - 1 : 1) {  // also of the first token alone
            const uint8_t *pixels = safetensors_find(&data, "pixels")->data + b * model_pixels(&m);
            float *maps = attention_maps(&m, pixels, row, count, &err);
            if (!maps) die("%s", err.text);
            double *expected = ref_maps(&m, row, count);
            compare_maps(maps, expected, count, model_prompt(&m), model_sequence(&m, count));
            free(maps);
            free(expected);
        }
    }
    model_close(&m);
    safetensors_close(&data);
}

/* A weight that is not finite is named. */
static void test_damaged(const Ops *op, const char *folder) {
    Model m;
    SafeTensors data;
    Error err;
    open_fixture(&m, &data, op, folder, "gqa");
    floatX *nan = xmalloc(m.embed_tokens->n * sizeof(floatX));
    for (size_t i = 0; i < m.embed_tokens->n; i++) nan[i] = to_x(NAN);
    floatX *damaged = op->alloc(m.embed_tokens->n * sizeof(floatX));
    void *value = m.embed_tokens->value;
    op->upload(damaged, nan, m.embed_tokens->n * sizeof(floatX));
    m.embed_tokens->value = (void *)damaged;
    const int *ids = (const int *)safetensors_find(&data, "ids")->data;
    float *maps = attention_maps(&m, safetensors_find(&data, "pixels")->data, ids, 2, &err);
    check(!maps && strstr(err.text, "not finite"), __FILE__, __LINE__, "values that are not finite are refused", "");
    m.embed_tokens->value = value;
    op->release(damaged);
    free(nan);
    free(maps);
    model_close(&m);
    safetensors_close(&data);
}

/* ---- pictures and the page ---- */

/* 7 pixels a side, patches of 2: 3 x 3 patches, of which 3 make an image token, and a last row and column that no patch has. */
static void test_paint(void) {
    const VisionConfig c = {.image_size = 7, .patch_size = 2, .concat = 3};
    const float map[3] = {0, 0.2f, 0.1f};
    uint8_t pixels[7 * 7 * 3];
    memset(pixels, 255, sizeof pixels);
    memset(pixels + 3 * (2 * 7 + 4), 0, 3);  // a black pixel in the second row of patches
    Image p = attention_paint(&c, pixels, map);
    CHECK(p.width == 385 && p.height == 385);
    bool same = true;
    for (int y = 0; y < 385; y++)
        for (int x = 0; x < 385; x++) {
            const int py = y / 55, px = x / 55, dark = py == 2 && px == 4;
            const int token = px == 6 || py == 6 ? -1 : py / 2, red = dark ? 128 : 255;
            const int rest = token == 1 ? 0 : token == 2 ? 128 : 255;  // 127.5 goes to the even number
            const uint8_t *got = p.rgb + 3 * (y * 385 + x);
            same = same && got[0] == red && got[1] == rest && got[2] == rest;
        }
    CHECK(same);
    image_free(&p);
    const float none[3] = {0, 0, 0};
    p = attention_paint(&c, pixels, none);
    CHECK(p.rgb[0] == 255 && p.rgb[1] == 255);
    image_free(&p);
}

/* Two rows of four patches of 2 x 2 pixels, of which 2 make an image token. */
static void test_paint_rectangular(void) {
    const VisionConfig c = {.image_height = 4, .image_width = 8, .patch_size = 2, .concat = 2};
    const float map[4] = {0, 0.25f, 0.5f, 0.125f};
    uint8_t pixels[4 * 8 * 3];
    memset(pixels, 255, sizeof pixels);
    Image p = attention_paint(&c, pixels, map);
    CHECK(p.width == 384 && p.height == 192);
    bool same = true;
    for (int y = 0; y < 192; y++)
        for (int x = 0; x < 384; x++) {
            static const int rest[] = {255, 128, 0, 191};
            same = same && p.rgb[3 * (y * 384 + x) + 1] == rest[y / 96 * 2 + x / 192];
        }
    CHECK(same);
    image_free(&p);
}

/* Four rows of six patches of a pixel, of which blocks of 2 x 2 make an image token. */
static void test_paint_shuffled(void) {
    const VisionConfig c = {
        .image_height = 4, .image_width = 6, .patch_size = 1, .connector = CONNECTOR_SHUFFLE, .scale_factor = 2};
    const float map[6] = {0, 0.25f, 0.5f, 0.125f, 0, 0.5f};
    uint8_t pixels[4 * 6 * 3];
    memset(pixels, 255, sizeof pixels);
    Image p = attention_paint(&c, pixels, map);
    CHECK(p.width == 384 && p.height == 256);
    bool same = true;
    for (int y = 0; y < 256; y++)
        for (int x = 0; x < 384; x++) {
            static const int rest[] = {255, 128, 0, 191, 255, 0};
            same = same && p.rgb[3 * (y * 384 + x) + 1] == rest[y / 128 * 3 + x / 128];
        }
    CHECK(same);
    image_free(&p);
}

static void test_texts(void) {
    static const uint8_t bytes[] = "\\draw\na1 <&\"\xff../..ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijk";
    static const int32_t offsets[] = {0, 6, 8, 12, 13, 18, 65, 65};
    static const uint8_t flags[] = {0, 0, 0, 0, 0, 0, TOKEN_SPECIAL};
    static const char *const names[] = {"007-draw.png", "007-a1.png",
                                        "007-id2.png",  "007-id3.png",
                                        "007-id4.png",  "007-ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcd.png",
                                        "007-id6.png"};
    const Tokenizer t = {.count = 7, .bytes = bytes, .offsets = offsets, .flags = flags};
    for (int id = 0; id < 7; id++) {
        char *name = attention_file_name(&t, 7, id);
        check(!strcmp(name, names[id]), __FILE__, __LINE__, names[id], name);
        free(name);
    }
    static const char text[] = "\\draw\n <b>\"&'\xff\xe2\x82\xac\t\x01";
    for (int visible = 0; visible < 2; visible++) {
        char *html = NULL;
        size_t n = 0;
        FILE *f = open_memstream(&html, &n);
        html_bytes(f, (const uint8_t *)text, sizeof text - 1, visible);
        fclose(f);
        const char *expected =
            visible ? "\\draw&#x21b5;&#x2423;&#60;b&#62;&#34;&#38;&#39;&#xfffd;\xe2\x82\xac&#x21e5;&#xfffd;"
                    : "\\draw\n &#60;b&#62;&#34;&#38;&#39;&#xfffd;\xe2\x82\xac\t&#xfffd;";
        check(!strcmp(html, expected), __FILE__, __LINE__, expected, html);
        free(html);
    }
}

/* The page names every picture, and each picture is there and is the right one. */
static void test_write(const Ops *op, const char *folder, const char *model) {
    Model m;
    SafeTensors data;
    Error err;
    enum { N = 3 };
    open_fixture(&m, &data, op, folder, model);
    const int *ids = (const int *)safetensors_find(&data, "ids")->data;
    const uint8_t *pixels = safetensors_find(&data, "pixels")->data;
    samples_begin();
    char *to = format_string("%s/new/maps", samples_folder), *index = format_string("%s/index.html", to);
    CHECK_OK(attention_maps_write(&m, pixels, ids, N, to, "a<b.png", &err), err);
    MappedFile page;
    die_if(file_map(&page, index, &err), &err);
    char *text = format_string("%.*s", (int)page.size, (const char *)page.data);
    CHECK(strstr(text, "<h1>a&#60;b.png</h1>") != NULL);
    float *maps = attention_maps(&m, pixels, ids, N, &err);
    for (int t = 0; t < N; t++) {
        char *name = attention_file_name(&m.tokenizer, t, ids[t]), *path = format_string("%s/%s", to, name);
        char *link = format_string("src=\"%s\"", name);
        CHECK(strstr(text, link) != NULL);
        Image got, expected = attention_paint(&m.c.vision, pixels, maps + t * model_sequence(&m, N) + m.tokenizer.before_image.count);
        CHECK_OK(image_load(&got, path, &err), err);
        CHECK(got.rgb && got.width == expected.width && got.height == expected.height &&
              !memcmp(got.rgb, expected.rgb, 3 * (size_t)got.width * got.height));
        image_free(&got);
        image_free(&expected);
        free(name);
        free(path);
        free(link);
    }
    CHECK_ERROR(attention_maps_write(&m, pixels, ids, N, index, "x", &err), err, "in the way");
    file_unmap(&page);
    free(text);
    free(maps);
    free(to);
    free(index);
    samples_end();
    model_close(&m);
    safetensors_close(&data);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"gqa", "linear", "llama3", "mapped", "rect", "shuffle", "strips"};
    program_begin(argv);
    const char *folder = argc > 1 ? argv[1] : "test/fixtures", *device = argc > 2 ? argv[2] : "cpu";
    Error err;
    const Ops *op = ops_open(device, &err);
    if (!op) die("%s", err.text);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) test_maps(op, folder, names[i]);
    test_damaged(op, folder);
    test_paint();
    test_paint_rectangular();
    test_paint_shuffled();
    test_texts();
    test_write(op, folder, "gqa");
    test_write(op, folder, "shuffle");
    return checks_report();
}
