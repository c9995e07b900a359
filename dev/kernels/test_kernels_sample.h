/* Tests of choosing tokens: against the distribution in double, and against the CPU. */
#ifndef DEV_TEST_KERNELS_SAMPLE_H
#define DEV_TEST_KERNELS_SAMPLE_H

#include "test_kernels.h"

enum { SAMPLE_ROWS = 12 };

typedef struct {
    const float *logits;  // [V]
    const uint8_t *token_mask;
    int V;
    Sampling s;
} SampleCase;

typedef struct {
    double p;
    int id;
} SampleChoice;

static int compare_choices(const void *a, const void *b) {
    const SampleChoice *x = (const SampleChoice *)a, *y = (const SampleChoice *)b;
    return x->p != y->p ? (x->p > y->p ? -1 : 1) : x->id - y->id;
}

static uint64_t ref_mix(uint64_t x) {
    random_state = x;
    return random_bits();
}

/* The token that u in [0, 1) draws when top_p is moved by `shift`; -1 where there is none. */
static int ref_sample(const SampleCase *c, double u, double shift) {
    SampleChoice *choice = (SampleChoice *)calloc((size_t)c->V, sizeof *choice);
    double top = -INFINITY, total = 0, kept = 0;
    int n = 0, used = 0, id = -1;
    for (int i = 0; i < c->V; i++)
        if (!c->token_mask[i] && (double)c->logits[i] > top) top = (double)c->logits[i];
    for (int i = 0; i < c->V; i++)
        if (isnan(c->logits[i]) || c->logits[i] == INFINITY) top = -INFINITY;
    for (int i = 0; i < c->V && top > -INFINITY; i++) {
        if (c->token_mask[i] || !(c->logits[i] > -INFINITY)) continue;
        double size = (double)c->logits[i];
        choice[n].p = size == top ? 1 : c->s.temperature > 0 ? exp((size - top) / (double)c->s.temperature) : 0;
        choice[n].id = i;
        total += choice[n++].p;
    }
    qsort(choice, (size_t)n, sizeof *choice, compare_choices);
    int most = c->s.temperature <= 0 ? 1 : c->s.top_k > 0 && c->s.top_k < n ? c->s.top_k : n;
    while (used < most && (used == 0 || kept < ((double)c->s.top_p + shift) * total)) kept += choice[used++].p;
    u *= kept;
    for (int i = 0; i < c->V; i++)  // by id
        for (int k = 0; k < used; k++)
            if (choice[k].id == i && u >= 0 && choice[k].p > 0) {
                id = i;
                u -= choice[k].p;
            }
    free(choice);
    return id;
}

/* Whether `id` is what the row draws, if u and top_p are moved by no more than rounding could. */
static bool is_drawn(const SampleCase *c, int id, int stream, int position) {
    uint64_t bits = ref_mix(ref_mix(ref_mix(c->s.seed) ^ (uint32_t)stream) ^ (uint32_t)position);
    for (int i = -1; i <= 1; i++)
        for (int j = -1; j <= 1; j++) {
            double u = (double)bits * 0x1p-64 + 3e-6 * i;
            if (ref_sample(c, u < 0 ? 0 : u, 3e-6 * j) == id) return true;
        }
    return false;
}

/* Logits of several kinds: rough, with many equal ones, a single one, none, infinities and NaN among them. */
static void sample_logits(float *x, int V) {
    int kind = below(6);
    double size = ONE_OF(double, 0.5, 3, 20);
    for (int i = 0; i < V; i++) x[i] = kind == 1 ? (float)below(3) : (float)(size * normal());
    for (int i = 0; i < V && kind == 2; i++) x[i] = i == V / 2 ? 1.0f : -INFINITY;
    for (int i = 0; i < V && kind == 3; i += 3) x[i] = NAN;
    for (int i = 0; i < V && kind == 4; i++) x[i] = below(2) ? NAN : -INFINITY;
    if (kind == 5) x[below(V)] = INFINITY;
}

static void test_sample(void) {
    int V = ONE_OF(int, 1, 2, 7, 31, 33, 100, 1000, 1024, 2500), B = 1 + below(SAMPLE_ROWS);
    uint64_t state;
    size_t n = (size_t)B * (size_t)V;
    float *logits = (float *)host(n * sizeof(float));
    uint8_t *token_mask = (uint8_t *)host((size_t)V);
    int streams[SAMPLE_ROWS], positions[SAMPLE_ROWS], ids[SAMPLE_ROWS], other[SAMPLE_ROWS], at[SAMPLE_ROWS];
    Sampling s = {ONE_OF(float, 0, 0.01f, 0.8f, 1, 5), ONE_OF(float, 1, 1, 0.95f, 0.5f, 0),
                  ONE_OF(int, 0, 0, 1, 3, 40), random_bits()};
    for (int b = 0; b < B; b++) {
        sample_logits(logits + (size_t)b * (size_t)V, V);
        streams[b] = below(100);
        positions[b] = 5 + below(4);
    }
    for (int i = 0; i < V; i++) token_mask[i] = below(10) == 0;
    float *d_logits = (float *)device(n * sizeof(float));
    uint8_t *d_forbidden = (uint8_t *)device((size_t)V);
    int *d_ids = put_i(streams, (size_t)B), *d_positions = put_i(positions, (size_t)B),
        *d_streams = put_i(streams, (size_t)B);
    op->upload(d_logits, logits, n * sizeof(float));
    op->upload(d_forbidden, token_mask, (size_t)V);
    op->sample(d_ids, d_positions, d_logits, d_forbidden, d_streams, s, B, V);
    op->download(ids, d_ids, (size_t)B * sizeof(int));
    op->download(at, d_positions, (size_t)B * sizeof(int));
    add_hash(ids, (size_t)B * sizeof(int));
    if (!comparing) return;
    memcpy(other, positions, sizeof other);
    int reference[SAMPLE_ROWS];
    cpu_ops()->sample(reference, other, logits, token_mask, streams, s, B, V);
    state = random_state;
    for (int b = 0; b < B; b++) {
        SampleCase c = {logits + (size_t)b * (size_t)V, token_mask, V, s};
        report(at[b] == positions[b] + 1, "position %d after %d", at[b], positions[b]);
        report(ids[b] == reference[b], "row %d: %d, on the CPU %d", b, ids[b], reference[b]);
        report(is_drawn(&c, ids[b], streams[b], at[b]), "row %d: %d is not what the distribution says", b, ids[b]);
    }
    random_state = state;
}

/* How often each token is drawn by as many streams, against its probability: chi-square within five deviations of its
 * mean, for a distribution cut by top-k. Once on a GPU, which draws what a CPU draws (test_sample). */
static void test_sample_often(void) {
    enum { V = 40, ROWS = 200 };
    int rounds = op->host_memory ? 40 : 1, counts[V] = {0}, streams[ROWS], positions[ROWS], ids[ROWS];
    float row[V], *logits = (float *)host(ROWS * V * sizeof(float));
    uint8_t token_mask[V] = {0};
    double p[V], total = 0, chi = 0;
    Sampling s = {0.8f, 1, 20, random_bits()};
    for (int i = 0; i < V; i++) row[i] = (float)normal();
    for (int r = 0; r < ROWS; r++) memcpy(logits + r * V, row, sizeof row);
    float *d_logits = (float *)device(ROWS * V * sizeof(float));
    uint8_t *d_forbidden = (uint8_t *)device(V);
    op->upload(d_logits, logits, ROWS * V * sizeof(float));
    op->upload(d_forbidden, token_mask, V);
    for (int r = 0; r < ROWS; r++) streams[r] = r, positions[r] = 0;
    int *d_ids = put_i(streams, ROWS), *d_streams = put_i(streams, ROWS), *d_positions = put_i(positions, ROWS);
    for (int round = 0; round < rounds; round++) {
        op->sample(d_ids, d_positions, d_logits, d_forbidden, d_streams, s, ROWS, V);
        op->download(ids, d_ids, sizeof ids);
        for (int r = 0; r < ROWS; r++) counts[ids[r]]++;
    }
    for (int i = 0; i < V; i++) {
        int rank = 0;
        for (int j = 0; j < V; j++) rank += row[j] > row[i];
        p[i] = rank < s.top_k ? exp((double)row[i] / 0.8) : 0;
        total += p[i];
    }
    for (int i = 0; i < V; i++) {
        double want = p[i] / total * ROWS * rounds;
        if (want == 0) report(counts[i] == 0, "token %d was drawn but not kept", i);
        if (want > 0) chi += (counts[i] - want) * (counts[i] - want) / want;
    }
    report(chi < 19 + 5 * sqrt(2 * 19.0), "chi-square %g with 19 degrees of freedom", chi);
}

#endif
