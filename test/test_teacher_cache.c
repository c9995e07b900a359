/* Tests of the files of cached teachers (train/cache_format.h): what is packed against plain formulas, what is read back on
 * a device, and files that are refused.
 *
 *   test_teacher_cache [DEVICE]      cpu, or cuda */
#include "samples.h"

#include "../kernels/device.h"
#include "../train/cache_pack.h"
#include "../train/teacher_cache.h"

enum { SAMPLES = 7, MOST_TOKENS = 9, LIMIT = 8 };  // one sample has more tokens than the cache takes
static const int lengths[SAMPLES] = {3, 8, 1, 9, 5, 8, 2};
static const Ops *op;
static Dataset data;

static void make_data(Dataset *d, const char *name, int seed) {
    Error err;
    Bytes images[SAMPLES];
    uint8_t *rgb = draw_image(8, 8, 3, 1);
    for (int i = 0; i < SAMPLES; i++) images[i] = (Bytes){rgb, 50};  // never decoded
    Bytes b = make_dataset(SAMPLES, images, lengths, 40, 99, seed);
    write_bytes(sample_path(name), b.data, b.size);
    die_if(dataset_open(d, sample_path(name), &err), &err);
    free(b.data);
    free(rgb);
}

/* The teacher's logits of one token: a function of the sample and of the token. */
static void draw_logits(floatX *x, uint32_t V, uint32_t sample, uint32_t token) {
    Random random;
    random_seed3(&random, 5, sample, token);
    for (uint32_t i = 0; i < V; i++) x[i] = to_x(3 * random_normal(&random));
    if (V > 3) x[2] = x[1];  // a tie
}

/* p [V] of these logits at a temperature, in double. */
static void softmax(double *p, const floatX *x, uint32_t V, double tau) {
    double largest = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < V; i++) largest = fmax(largest, from_x(x[i]));
    for (uint32_t i = 0; i < V; i++) sum += p[i] = exp((from_x(x[i]) - largest) / tau);
    for (uint32_t i = 0; i < V; i++) p[i] /= sum;
}

static CacheHeader header_of(const char *kind, uint32_t V, float tau) {
    CacheKind k;
    CacheHeader h = {.magic = "TIKZTCH", .version = CACHE_VERSION, .header_bytes = sizeof h, .samples = SAMPLES};
    h.magic[7] = '1';
    CHECK(cache_kind_parse(kind, &k, &h.K) == 0);
    h.kind = k;
    h.vocab = V;
    h.data = dataset_content(&data);
    h.tokenizer = data.fingerprint;
    h.max_tokens = LIMIT;
    h.row_bytes = (uint32_t)cache_row_bytes(k, h.K, V);
    h.height = h.width = 32;
    h.temperature = k == CACHE_DENSE ? 0 : tau;
    h.seed = 11;
    uint64_t *offsets = cache_offsets(&h, &data);
    h.file_bytes = offsets[SAMPLES];
    free(offsets);
    h.crc = cache_header_crc(&h);
    return h;
}

static Bytes make_cache(const CacheHeader *h) {
    Bytes b = {NULL, 0};
    floatX *x = xcalloc(h->vocab, sizeof *x);
    uint8_t *row = xcalloc(h->row_bytes, 1), zeros[4] = {0};
    bytes_add(&b, h, sizeof *h);
    for (uint32_t i = 0; i < SAMPLES; i++) {
        const size_t begin = b.size;
        if (lengths[i] > LIMIT) continue;
        for (int t = 0; t < lengths[i]; t++) {
            draw_logits(x, h->vocab, i, (uint32_t)t);
            CHECK(cache_pack(row, x, h, i, (uint32_t)t));
            bytes_add(&b, row, h->row_bytes);
        }
        const uint32_t crc = cache_block_crc(i, b.data + begin, b.size - begin);
        bytes_add(&b, zeros, (4 - (b.size - begin) % 4) % 4);
        bytes_add(&b, &crc, 4);
    }
    free(x);
    free(row);
    return b;
}

/* ---- what is read back ---- */

/* The rows of a device, brought here. */
static CacheRows fetch(const TeacherCache *c, size_t n) {
    const size_t K = c->h.K;
    CacheRows r = {0};
    if (c->h.kind == CACHE_DENSE) {
        r.logits = xcalloc(n * c->h.vocab, sizeof(floatX));
        op->download(r.logits, c->device.logits, n * c->h.vocab * sizeof(floatX));
        return r;
    }
    r = (CacheRows){NULL, xcalloc(n * K, sizeof(int)), xcalloc(n * K, sizeof(float)), xcalloc(n, sizeof(SparseRow))};
    op->download(r.ids, c->device.ids, n * K * sizeof(int));
    op->download(r.p, c->device.p, n * K * sizeof(float));
    op->download(r.rows, c->device.rows, n * sizeof(SparseRow));
    return r;
}

static void free_rows(CacheRows *r) {
    free(r->logits);
    free(r->ids);
    free(r->p);
    free(r->rows);
}

/* Whether id is among the K likeliest, by counting. */
static bool is_likeliest(const floatX *x, uint32_t V, uint32_t K, int id) {
    uint32_t before = 0;
    for (uint32_t i = 0; i < V; i++)
        before += from_x(x[i]) > from_x(x[id]) || (from_x(x[i]) == from_x(x[id]) && (int)i < id);
    return before < K;
}

static void check_known(const SparseRow *known, const floatX *x, uint32_t V, double tau) {
    double p[512], p1[512], entropy = 0;
    uint32_t top = 0;
    softmax(p, x, V, tau);
    softmax(p1, x, V, 1);
    for (uint32_t i = 0; i < V; i++) {
        entropy -= p[i] > 0 ? p[i] * log(p[i]) : 0;
        if (from_x(x[i]) > from_x(x[top])) top = i;
    }
    CHECK(fabs(known->entropy - entropy) < 1e-5 * (1 + entropy));
    CHECK(fabs(known->confidence - p1[top]) < 1e-5);
    CHECK(known->top == (int)top);
}

static void check_row(const TeacherCache *c, const CacheRows *r, size_t at, uint32_t sample, uint32_t token) {
    const uint32_t V = c->h.vocab, K = c->h.K;
    floatX x[512];
    double p[512], sum = 0;
    bool good = true;
    draw_logits(x, V, sample, token);
    if (c->h.kind == CACHE_DENSE) {
        for (uint32_t i = 0; i < V; i++)
            good = good && from_x(r->logits[at * V + i]) == bf16_to_f32(f32_to_bf16(from_x(x[i])));
        CHECK(good);
        return;
    }
    const int *ids = r->ids + at * K;
    const float *q = r->p + at * K;
    softmax(p, x, V, c->h.temperature);
    check_known(&r->rows[at], x, V, c->h.temperature);
    for (uint32_t k = 0; k < K; k++) {
        if (ids[k] < 0) continue;
        sum += q[k];
        if (c->h.kind == CACHE_TOPK)
            good =
                good && is_likeliest(x, V, K, ids[k]) && fabs(q[k] - p[ids[k]]) < 5e-4 * p[ids[k]] + 2e-14;  // e^-32
        else  // stratified: within one draw of its expectation
            good = good && fabs(q[k] - p[ids[k]]) < 1.0 / K + 1e-6;
    }
    CHECK(good);
    CHECK(fabs(sum + r->rows[at].rest - 1) < 1e-5);
    if (c->h.kind == CACHE_SAMPLE) CHECK(r->rows[at].rest == 0);
}

static void test_read(const char *kind, uint32_t V, float tau) {
    Error err;
    TeacherCache c;
    TeacherOutput q = {0};
    const CacheHeader h = header_of(kind, V, tau);
    Bytes b = make_cache(&h);
    CHECK(b.size == h.file_bytes);
    write_bytes(sample_path("a.cache"), b.data, b.size);
    free(b.data);
    CHECK_OK(cache_open(&c, sample_path("a.cache"), &data, "data.bin", &err), err);
    cache_plan(&c, op, 3 * MOST_TOKENS);
    const uint32_t batches[2][3] = {{1, 4, 0}, {6, 2, 5}};
    for (int i = 0; i < 2; i++) {
        size_t at = 0, n = 0;
        for (int k = 0; k < 3; k++) n += (size_t)lengths[batches[i][k]];
        CHECK_OK(cache_get(&c, &q, batches[i], 3, &err), err);
        CHECK((q.sparse != NULL) == (h.kind != CACHE_DENSE) && (q.logits != NULL) == (h.kind == CACHE_DENSE));
        CacheRows r = fetch(&c, n);
        for (int k = 0; k < 3; k++)
            for (int t = 0; t < lengths[batches[i][k]]; t++) check_row(&c, &r, at++, batches[i][k], (uint32_t)t);
        free_rows(&r);
    }
    cache_close(&c);
}

/* The mean share of a token in many rows of draws is its probability, and of K draws it is off by less than one. */
static void test_unbiased(void) {
    enum { V = 60, ROWS = 4000 };
    CacheHeader h = header_of("sample=5", V, 2);
    floatX x[V];
    double p[V], mean[V] = {0}, squares = 0, expected = 0;
    uint8_t *row = xcalloc(h.row_bytes, 1);
    int ids[5];
    float q[5];
    draw_logits(x, V, 3, 1);
    softmax(p, x, V, 2);
    for (uint32_t t = 0; t < ROWS; t++) {
        cache_pack(row, x, &h, 0, t);
        cache_unpack_draws(&h, row, ids, q);
        for (int k = 0; k < 5 && ids[k] >= 0; k++) mean[ids[k]] += q[k] / ROWS;
    }
    for (int i = 0; i < V; i++) {
        const double part = 5 * p[i] - floor(5 * p[i]), variance = part * (1 - part) / 25 / ROWS;
        squares += (mean[i] - p[i]) * (mean[i] - p[i]);
        expected += variance;
        CHECK(fabs(mean[i] - p[i]) < 5 * sqrt(variance) + 1e-9);
    }
    CHECK(squares < 2 * expected);
    free(row);
}

static void test_not_finite(void) {
    floatX x[40];
    uint8_t row[512];
    static const char *const kinds[] = {"dense", "topk=4", "sample=4"};
    for (int i = 0; i < 3; i++) {
        const CacheHeader h = header_of(kinds[i], 40, 1);
        draw_logits(x, 40, 1, 1);
        CHECK(cache_pack(row, x, &h, 0, 0));
        x[7] = to_x(i == 1 ? INFINITY : NAN);
        CHECK(!cache_pack(row, x, &h, 0, 0));
    }
}

/* ---- what is refused ---- */

/* A call has failed, and its sentence contains `part`. */
static void check_refused(int result, const Error *err, int line, const char *part) {
    check(result != 0 && strstr(err->text, part), __FILE__, line, part, result ? err->text : "it was taken");
}

static void refuse(const Bytes *b, int line, const char *part) {
    Error err;
    TeacherCache c;
    write_bytes(sample_path("bad.cache"), b->data, b->size);
    check_refused(cache_open(&c, sample_path("bad.cache"), &data, "data.bin", &err), &err, line, part);
}

/* A header with one number changed, and its CRC made right again. */
#define REFUSE_FIELD(kind_name, field, value, part)                 \
    do {                                                            \
        CacheHeader good = header_of(kind_name, 40, 2), bad = good; \
        Bytes file = make_cache(&good);                             \
        bad.field = (value);                                        \
        bad.crc = cache_header_crc(&bad);                           \
        memcpy(file.data, &bad, sizeof bad);                        \
        refuse(&file, __LINE__, part);                              \
        free(file.data);                                            \
    } while (0)

static void test_refused_headers(void) {
    static const char numbers[] = "the numbers in its header are not those of a teacher cache";
    REFUSE_FIELD("topk=4", magic[0], 'X', "it is not a teacher cache");
    REFUSE_FIELD("topk=4", version, 2, "version 2 with a header of 240 bytes");
    REFUSE_FIELD("topk=4", header_bytes, 100, "with a header of 100 bytes");
    REFUSE_FIELD("topk=4", file_bytes, 100, "its header says 100 bytes, the file has");
    REFUSE_FIELD("topk=4", samples, 6, "for other data (6 samples)");
    REFUSE_FIELD("topk=4", data, 1, "for other data (7 samples)");
    REFUSE_FIELD("topk=4", tokenizer, 98, "another tokenizer (fingerprint 0000000000000062)");
    REFUSE_FIELD("topk=4", kind, 3, numbers);
    REFUSE_FIELD("topk=4", K, 0, numbers);
    REFUSE_FIELD("topk=4", K, 41, numbers);
    REFUSE_FIELD("topk=4", K, 5, "says 32 bytes for a row of topk, 36 were expected");
    REFUSE_FIELD("dense", K, 4, numbers);
    REFUSE_FIELD("topk=4", vocab, 0, numbers);
    REFUSE_FIELD("topk=4", vocab, 1u << 30, numbers);
    REFUSE_FIELD("topk=4", vocab, 70000, "bytes for a row of topk");
    REFUSE_FIELD("topk=4", max_tokens, 0, numbers);
    REFUSE_FIELD("topk=4", max_tokens, 7, "these data make");
    REFUSE_FIELD("topk=4", row_bytes, 4, "says 4 bytes for a row");
    REFUSE_FIELD("topk=4", height, 0, numbers);
    REFUSE_FIELD("topk=4", width, 1u << 20, numbers);
    REFUSE_FIELD("topk=4", temperature, NAN, numbers);
    REFUSE_FIELD("sample=4", temperature, 0, numbers);
    REFUSE_FIELD("dense", temperature, 2, numbers);
    REFUSE_FIELD("dense", name[CACHE_NAME - 1], 'x', numbers);
    REFUSE_FIELD("dense", zero, 1, "its header is damaged");
}

static void test_refused_files(void) {
    Error err;
    TeacherCache c;
    Dataset other;
    const CacheHeader h = header_of("dense", 40, 1);
    Bytes b = make_cache(&h);
    b.data[40] ^= 1;  // without its CRC
    refuse(&b, __LINE__, "its header is damaged");
    b.data[40] ^= 1;
    const size_t size = b.size;
    const size_t cuts[] = {1, 239, 240, size / 2, size - 1};
    for (int i = 0; i < 5; i++) {
        b.size = cuts[i];
        refuse(&b, __LINE__, "cut off");
    }
    b.size = size;
    bytes_add(&b, "x", 1);
    refuse(&b, __LINE__, "cut off or was added to");
    b.size = size;
    make_data(&other, "other.bin", 3);
    write_bytes(sample_path("b.cache"), b.data, b.size);
    CHECK_ERROR(cache_open(&c, sample_path("b.cache"), &other, "other.bin", &err), err, "for other data");
    CHECK_ERROR(cache_open(&c, sample_path("none.cache"), &data, "data.bin", &err), err, "No such file");
    dataset_close(&other);
    free(b.data);
}

/* Opens a cache whose bytes at the first row of sample 0 were changed, and asks for it. `crc`: make the CRC right. */
static void refuse_row(const char *kind, size_t at, const void *bytes, size_t n, bool crc, const char *part) {
    Error err;
    TeacherCache c;
    TeacherOutput q;
    const uint32_t samples[2] = {1, 0};
    const CacheHeader h = header_of(kind, 40, 2);
    Bytes b = make_cache(&h);
    uint8_t *rows = b.data + sizeof h;
    memcpy(rows + at, bytes, n);
    const size_t all = (size_t)lengths[0] * h.row_bytes, end = (all + 3) / 4 * 4;
    if (crc) put_u32(rows + end, cache_block_crc(0, rows, all));
    write_bytes(sample_path("row.cache"), b.data, b.size);
    CHECK_OK(cache_open(&c, sample_path("row.cache"), &data, "data.bin", &err), err);
    cache_plan(&c, op, 2 * MOST_TOKENS);
    check_refused(cache_get(&c, &q, samples, 2, &err), &err, __LINE__, part);
    cache_close(&c);
    free(b.data);
}

static void test_refused_rows(void) {
    static const char not [] = "the outputs for token 0 of sample 0 are not a distribution";
    const uint16_t nan = 0x7fc0, infinite = 0x7f80, large = 40, twice[2] = {3, 3}, back[2] = {5, 3};
    const float values[] = {NAN, -1, 2};
    const int tops[] = {40, -1};
    const uint8_t bit = 0xa5;
    refuse_row("dense", 17, &bit, 1, false, "the outputs for sample 0 are damaged");
    refuse_row("topk=4", 17, &bit, 1, false, "the outputs for sample 0 are damaged");
    refuse_row("dense", 6, &nan, 2, true, not );
    refuse_row("dense", 6, &infinite, 2, true, not );
    for (int i = 0; i < 3; i++) {
        refuse_row("topk=4", 0, &values[i], 4, true, not );               // rest
        refuse_row("topk=4", 8, &values[i], 4, true, not );               // confidence
        if (i < 2) refuse_row("sample=4", 4, &values[i], 4, true, not );  // entropy
        if (i < 2) refuse_row("sample=4", 12, &tops[i], 4, true, not );
    }
    refuse_row("topk=4", 16 + 6, &large, 2, true, not );
    refuse_row("sample=4", 16 + 6, &large, 2, true, not );
    refuse_row("topk=4", 16, twice, 4, true, not );
    refuse_row("sample=4", 16, back, 4, true, not );
}

static void test_kinds(void) {
    CacheKind kind;
    uint32_t K;
    static const char *const bad[] = {"",        "dense ",  "topk",      "topk=", "topk=0",          "topk=1025",
                                      "topk=4x", "sample=", "sample=-1", "top=4", "sample=99999999", "dense=4",
                                      "topk=4,5"};
    CHECK(!cache_kind_parse("dense", &kind, &K) && kind == CACHE_DENSE && K == 0);
    CHECK(!cache_kind_parse("topk=1024", &kind, &K) && kind == CACHE_TOPK && K == 1024);
    CHECK(!cache_kind_parse("sample=1", &kind, &K) && kind == CACHE_SAMPLE && K == 1);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(cache_kind_parse(bad[i], &kind, &K));
}

int main(int argc, char **argv) {
    Error err;
    program_begin(argv);
    op = ops_open(argc > 1 ? argv[1] : "cpu", &err);
    if (!op) die("%s", err.text);
    samples_begin();
    make_data(&data, "data.bin", 0);
    test_kinds();
    test_read("dense", 40, 1);
    test_read("dense", 41, 1);  // blocks that are padded
    test_read("topk=1", 40, 1);
    test_read("topk=16", 41, 2);
    test_read("topk=40", 40, 0.5f);
    test_read("sample=7", 40, 1);
    test_read("sample=64", 500, 3);
    test_unbiased();
    test_not_finite();
    test_refused_headers();
    test_refused_files();
    test_refused_rows();
    dataset_close(&data);
    samples_end();
    return checks_report();
}
