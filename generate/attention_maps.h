/* Where in the image a model looks when it chooses each token of a program (infer --attention).
 *
 * The program's tokens run through the decoder once more, together, as in training. Row P - 1 + t of the attention predicts
 * text token t: p = softmax(rope(q) rope(k)ᵀ / √D) over the P positions before the text, which are image tokens and markers, and the text before t. The map of token t is the
 * mean of p over the heads of all blocks. The kernels do not store p (FlashAttention), so the host computes it again from
 * each block's queries and keys.
 *
 * Attention says which positions a block reads, not how much they matter for the token: some heads rest on one position, often
 * the first, whatever the token is (Xiao et al. 2024, "Efficient Streaming Language Models with Attention Sinks"). */
#ifndef GENERATE_ATTENTION_MAPS_H
#define GENERATE_ATTENTION_MAPS_H

#include "../lib/html.h"
#include "../model.h"

enum { ATTENTION_PICTURE = 384 };  // the least side of a picture in pixels

/* ---- probabilities ---- */

/* Host fp32 copies of what the maps need from one block: its queries and keys, rotated. S = P + n - 1 positions. */
typedef struct {
    AttentionShape s;  // rope: on the host
    int first;         // the position of the first query, P - 1
    floatX *qkv;       // [S, (H + 2K) D] as downloaded
    float *queries;    // [n, H, D]
    float *keys;       // [K, D, S]: a row holds one component of all keys
} BlockAttention;

/* One vector, rotated by the angles of its position as AttentionShape says; component d goes to to[d * stride]. */
static inline void attention_rotate(float *to, size_t stride, const floatX *x, const float *angles, int D) {
    for (int i = 0, half = D / 2; i < half; i++) {
        const float a = from_x(x[i]), b = from_x(x[i + half]), cosine = angles[i], sine = angles[i + half];
        to[i * stride] = a * cosine - b * sine;
        to[(i + half) * stride] = b * cosine + a * sine;
    }
}

/* Downloads and rotates the queries and keys of the block whose forward pass was the last one. */
static inline void attention_download(BlockAttention *a, const Ops *op, const floatX *qkv) {
    const int S = a->s.T, H = a->s.H, K = a->s.K, D = a->s.D;
    const size_t row = (size_t)(H + 2 * K) * D;
    op->download(a->qkv, qkv, S * row * sizeof(floatX));
    for (int t = 0; t < S; t++) {
        const floatX *from = a->qkv + t * row;
        const float *angles = a->s.rope + (size_t)t * D;
        for (int h = 0; h < H && t >= a->first; h++)
            attention_rotate(a->queries + ((size_t)(t - a->first) * H + h) * D, 1, from + (size_t)h * D, angles, D);
        for (int k = 0; k < K; k++)
            attention_rotate(a->keys + (size_t)k * D * S + t, S, from + (size_t)(H + k) * D, angles, D);
    }
}

/* Adds weight * the probabilities of every head to map [S], for the query of text token t. p: memory for S values. */
static inline void attention_add_row(float *map, float *p, const BlockAttention *a, int t, float weight) {
    const int S = a->s.T, D = a->s.D, count = a->first + t + 1;  // the positions that it sees
    for (int h = 0; h < a->s.H; h++) {
        const float *q = a->queries + ((size_t)t * a->s.H + h) * D;
        const float *keys = a->keys + (size_t)(h / (a->s.H / a->s.K)) * D * S;
        float top = -INFINITY;
        double sum = 0;
        memset(p, 0, count * sizeof(float));
        for (int d = 0; d < D; d++) {  // scores = q kᵀ / √D
            const float component = q[d] * a->s.scale, *key = keys + (size_t)d * S;
            for (int j = 0; j < count; j++) p[j] += component * key[j];
        }
        for (int j = 0; j < count; j++) top = p[j] > top ? p[j] : top;
        for (int j = 0; j < count; j++) sum += (double)(p[j] = expf(p[j] - top));
        const float scale = (float)((double)weight / sum);
        for (int j = 0; j < count; j++) map[j] += scale * p[j];
    }
}

/* Adds one block's share to the maps [n, S]. */
static inline void attention_add_block(float *maps, const BlockAttention *a, int n, float weight) {
    const int S = a->s.T;
#pragma omp parallel
    {
        float *p = xmalloc(S * sizeof(float));
#pragma omp for schedule(dynamic)
        for (int t = 0; t < n; t++) attention_add_row(maps + (size_t)t * S, p, a, t, weight);
        free(p);
    }
}

/* The maps of a program: n > 0 token ids (each one of the vocabulary, the prefix included), written for an image (host u8
 * [height, width, 3]). model_plan must have been called for at least 1 image and n tokens; what a generator keeps is not
 * touched.
 * Returns fp32 [n, S], S = model_sequence, which the caller frees: row t belongs to ids[t], sums to 1, and is 0 behind what
 * the token sees; the image tokens come after the markers before the image. NULL with *err filled: the model computes values
 * that are not finite. */
static inline float *attention_maps(Model *m, const uint8_t *pixels, const int *ids, int n, Error *err) {
    model_use_full_width(m);
    const int S = model_sequence(m, n), layers = m->c.lm.layers;
    BlockAttention a = {.s = decoder_attention_shape(m, 1, S), .first = model_prompt(m) - 1};
    const size_t D = a.s.D, H = a.s.H, K = a.s.K;
    float *maps = xcalloc((size_t)n * S, sizeof(float)), *rope = xmalloc(S * D * sizeof(float));
    bool finite = true;
    model_layout(m, ids, 1, n);
    model_upload_pixels(m, pixels, 1);
    vision_forward(&m->vision, m->op, m->pixels, 1);
    m->op->download(rope, m->rope, S * D * sizeof(float));
    a.s.rope = rope;
    a.qkv = xmalloc(S * (H + 2 * K) * D * sizeof(floatX));
    a.queries = xmalloc(n * H * D * sizeof(float));
    a.keys = xmalloc(K * D * S * sizeof(float));
    decoder_embed(m, 1, S);
    for (int l = 0; l < layers; l++) {  // without gradients all blocks share one qkv, so each is read before the next
        decoder_block_forward(m, l, 1, S, NULL, NULL, false);
        attention_download(&a, m->op, m->acts[l].qkv);
        attention_add_block(maps, &a, n, 1 / ((float)layers * (float)H));
    }
    for (size_t i = 0; i < (size_t)n * S; i++) finite = finite && isfinite(maps[i]);
    if (!finite) {
        model_not_finite(m, err);
        free(maps);
        maps = NULL;
    }
    free(rope);
    free(a.qkv);
    free(a.queries);
    free(a.keys);
    return maps;
}

/* ---- pictures ---- */

/* Paints the image as the model sees it (host u8 [height, width, 3]), paled, with red where map [P] is large: pure red at its
 * largest value. connector_token says which patches an image token covers. The picture is as many whole
 * times larger as make its longest side at least ATTENTION_PICTURE pixels. The caller frees it. */
static inline Image attention_paint(const VisionConfig *c, const uint8_t *pixels, const float *map) {
    const ImageSize s = vision_size(c);
    const int rows = vision_rows(c), columns = vision_columns(c), longest = s.width > s.height ? s.width : s.height;
    const int enlarge = (ATTENTION_PICTURE + longest - 1) / longest;
    Image picture = {s.width * enlarge, s.height * enlarge, xmalloc(image_size_bytes(s) * enlarge * enlarge)};
    float most = 0;
    for (int i = 0; i < vision_tokens(c); i++) most = map[i] > most ? map[i] : most;
    for (int y = 0; y < picture.height; y++)
        for (int x = 0; x < picture.width; x++) {
            const uint8_t *from = pixels + 3 * ((size_t)(y / enlarge) * s.width + x / enlarge);
            uint8_t *to = picture.rgb + 3 * ((size_t)y * picture.width + x);
            const int row = y / enlarge / c->patch_size, column = x / enlarge / c->patch_size;
            const bool seen = row < rows && column < columns && most > 0;  // not what is left after the last patch
            const float red = seen ? map[connector_token(c, row, column)] / most : 0;
            for (int k = 0; k < 3; k++) {
                const float pale = 255 - (float)(255 - from[k]) / 2;
                to[k] = (uint8_t)lrintf(k == 0 ? pale : pale * (1 - red));
            }
        }
    return picture;
}

/* The name of a token's picture: its number in the program, then the ASCII letters and digits of its text, at most 40, or
 * "id" and its id where there are none. The caller frees it. */
static inline char *attention_file_name(const Tokenizer *t, int number, int id) {
    const uint8_t *bytes;
    const size_t n = tokenizer_piece(t, id, &bytes);
    char text[41];
    size_t count = 0;
    for (size_t i = 0; i < n && count < sizeof text - 1; i++)
        if ((bytes[i] | 32) >= 'a' ? (bytes[i] | 32) <= 'z' : bytes[i] >= '0' && bytes[i] <= '9')
            text[count++] = (char)bytes[i];
    text[count] = '\0';
    return count ? format_string("%03d-%s.png", number, text) : format_string("%03d-id%d.png", number, id);
}

/* ---- the page ---- */

static inline void attention_page_begin(FILE *f, const char *name) {
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Attention: ", f);
    html_text(f, name);
    fputs("</title>\n<style>\nbody { font-family: sans-serif }\ntd, th { padding: 4px 12px; text-align: left }\n"
          "code { font-size: 150% }\nimg { border: 1px solid silver; max-width: 384px }\n</style>\n<h1>",
          f);
    html_text(f, name);
    fputs("</h1>\n<p>Where the model looked when it chose each token: the attention on each image token, averaged "
          "over all "
          "heads and blocks. In each picture the image token with the most attention is pure red; the table says how "
          "much "
          "that is, and how much all image tokens have together. The rest is on what else stands before the token.</p>\n"
          "<table>\n<tr><th>number<th>token<th>whole image<th>most on one<th>picture\n",
          f);
}

static inline void attention_page_row(FILE *f, const Tokenizer *t, int number, int id, const float *map, int P,
                                      const char *file) {
    const uint8_t *bytes;
    const size_t n = tokenizer_piece(t, id, &bytes);
    double sum = 0, most = 0;
    for (int i = 0; i < P; i++) {
        sum += (double)map[i];
        if ((double)map[i] > most) most = (double)map[i];
    }
    fprintf(f, "<tr><td>%d<td>", number);
    if (n) {
        fputs("<code>", f);
        html_bytes(f, bytes, n, true);
        fputs("</code>", f);
    } else {
        fprintf(f, "token %d", id);
    }
    fprintf(f, "<td>%.1f %%<td>%.1f %%<td><img loading=\"lazy\" src=\"%s\" alt=\"\">\n", 100 * sum, 100 * most, file);
}

/* Writes the picture of every token and adds it to the page. */
static inline int attention_write_pictures(FILE *page, const Model *m, const uint8_t *pixels, const int *ids, int n,
                                           const float *maps, const char *folder, Error *err) {
    const int P = model_image_tokens(m), first = m->tokenizer.before_image.count, S = model_sequence(m, n);
    int bad = 0;
    for (int t = 0; t < n && !bad; t++) {
        const float *map = maps + (size_t)t * S + first;
        char *file = attention_file_name(&m->tokenizer, t, ids[t]), *path = format_string("%s/%s", folder, file);
        Image picture = attention_paint(&m->c.vision, pixels, map);
        bad = image_save_png(&picture, path, err);
        attention_page_row(page, &m->tokenizer, t, ids[t], map, P, file);
        image_free(&picture);
        free(file);
        free(path);
    }
    return bad;
}

/* Writes the maps of a program (see attention_maps for m, pixels, ids and n) into a folder, which it makes: one picture for
 * each token and index.html, which shows them. name: what the page is called, the image's name. Files of the same names are
 * replaced; others stay. -1 with *err filled: a file cannot be written, or the model is damaged. */
static inline int attention_maps_write(Model *m, const uint8_t *pixels, const int *ids, int n, const char *folder,
                                       const char *name, Error *err) {
    if (make_folder(folder, err)) return -1;
    float *maps = attention_maps(m, pixels, ids, n, err);
    if (!maps) return -1;
    char *text = NULL, *path = format_string("%s/index.html", folder);
    size_t bytes = 0;
    FILE *page = open_memstream(&text, &bytes);
    if (!page) die("out of memory");
    attention_page_begin(page, name);
    int bad = attention_write_pictures(page, m, pixels, ids, n, maps, folder, err);
    fputs("</table>\n</html>\n", page);
    if (fclose(page)) die("out of memory");
    if (!bad) bad = file_write(path, text, bytes, err);
    free(text);
    free(path);
    free(maps);
    return bad ? -1 : 0;
}

#endif
