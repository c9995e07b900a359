/* Exact optimal transport between two discrete distributions: the earth mover's distance.
 *
 *   minimise sum over i, j of flow[i, j] cost[i, j],  flow >= 0,  row sums = a,  column sums = b
 *
 * The network simplex method (Dantzig 1951; Ahuja, Magnanti and Orlin 1993, chapter 11): the nodes are the n sources, the m
 * sinks and a root. A spanning tree carries the flow. The arc that enters the tree is the one with the most negative
 * reduced cost of a block of arcs, and the leaving arc is chosen so that the tree stays strongly feasible, which excludes
 * cycles. Weights are made whole numbers of 2^52 in all (uniform ones exactly), so that flows have no rounding errors. */
#ifndef LIB_TRANSPORT_H
#define LIB_TRANSPORT_H

#include "error.h"

#include <math.h>

typedef struct {
    int n, m, root;                       // sources are 0 .. n-1, sinks n .. n+m-1
    const double *cost;                   // [n, m]
    double detour;                        // the cost of an arc to or from the root: dearer than any real one
    int *parent, *child, *next, *before;  // the tree: first child, siblings (-1: none)
    int *depth;
    bool *up;       // the arc between a node and its parent points to the parent
    int64_t *flow;  // on it
    double *price;  // potential: cost + price[from] - price[to] is 0 on tree arcs
    int *stack;
    size_t scanned;  // the arc where the search for the next one begins
} Transport;

/* The cost of the arc between a node and its parent. */
static inline double transport_tree_cost(const Transport *t, int v) {
    const int p = t->parent[v];
    if (p == t->root) return t->detour;
    return v < t->n ? t->cost[(size_t)v * t->m + (p - t->n)] : t->cost[(size_t)p * t->m + (v - t->n)];
}

static inline void transport_link(Transport *t, int v, int parent) {
    t->parent[v] = parent;
    t->before[v] = -1;
    t->next[v] = t->child[parent];
    if (t->child[parent] >= 0) t->before[t->child[parent]] = v;
    t->child[parent] = v;
}

static inline void transport_unlink(Transport *t, int v) {
    if (t->before[v] >= 0)
        t->next[t->before[v]] = t->next[v];
    else
        t->child[t->parent[v]] = t->next[v];
    if (t->next[v] >= 0) t->before[t->next[v]] = t->before[v];
}

/* Computes depth and price of a node and of all below it from its parent's. */
static inline void transport_update(Transport *t, int top) {
    int count = 0;
    t->stack[count++] = top;
    while (count > 0) {
        const int v = t->stack[--count], p = t->parent[v];
        const double c = transport_tree_cost(t, v);
        t->depth[v] = t->depth[p] + 1;
        t->price[v] = t->up[v] ? t->price[p] - c : t->price[p] + c;
        for (int w = t->child[v]; w >= 0; w = t->next[w]) t->stack[count++] = w;
    }
}

/* The first tree: every source sends all to the root, which sends to every sink. A sink without demand points up. */
static inline void transport_begin(Transport *t, const int64_t *a, const int64_t *b) {
    for (int v = 0; v <= t->root; v++) t->child[v] = -1;
    t->parent[t->root] = -1;
    t->depth[t->root] = 0;
    t->price[t->root] = 0;
    for (int v = 0; v < t->root; v++) {
        t->flow[v] = v < t->n ? a[v] : b[v - t->n];
        t->up[v] = v < t->n || t->flow[v] == 0;
        transport_link(t, v, t->root);
    }
    for (int v = 0; v < t->root; v++) transport_update(t, v);
}

/* Looks for an arc that lowers the cost, block after block of about sqrt(n m) arcs; takes the best of the first block that
 * has any. Returns false at the optimum. */
static inline bool transport_price(Transport *t, int *source, int *sink) {
    const size_t arcs = (size_t)t->n * t->m, block = (size_t)sqrt((double)arcs) + 10;
    double best = -1e-13 * t->detour;
    size_t at = t->scanned, in_block = 0;
    bool found = false;
    for (size_t done = 0; done < arcs;) {
        const size_t i = at / t->m, j = at % t->m;
        size_t count = t->m - j;
        if (count > block - in_block) count = block - in_block;
        if (count > arcs - done) count = arcs - done;
        const double *cost = t->cost + at, *price = t->price + t->n + j, own = t->price[i];
        for (size_t k = 0; k < count; k++) {
            const double reduced = cost[k] + own - price[k];
            if (reduced < best) best = reduced, *source = (int)i, *sink = t->n + (int)(j + k), found = true;
        }
        done += count;
        in_block += count;
        at = at + count == arcs ? 0 : at + count;
        if (in_block < block && done < arcs) continue;
        if (found) break;
        in_block = 0;
    }
    t->scanned = at;
    return found;
}

/* The lowest node that is above both. */
static inline int transport_join(const Transport *t, int u, int v) {
    while (u != v) {
        if (t->depth[u] >= t->depth[v])
            u = t->parent[u];
        else
            v = t->parent[v];
    }
    return u;
}

/* Sends as much as possible around the circle that the arc u -> v closes, and exchanges the arc that becomes empty for it.
 * Of several, the last one on the circle, which begins at the join in the direction of the arc (strong feasibility). */
static inline void transport_pivot(Transport *t, int u, int v) {
    const int join = transport_join(t, u, v);
    int64_t most = INT64_MAX;
    int out = -1;
    bool at_source = true;
    for (int k = u; k != join; k = t->parent[k])
        if (t->up[k] && t->flow[k] < most) most = t->flow[k], out = k;
    for (int k = v; k != join; k = t->parent[k])
        if (!t->up[k] && t->flow[k] <= most) most = t->flow[k], out = k, at_source = false;
    if (most > 0) {
        for (int k = u; k != join; k = t->parent[k]) t->flow[k] += t->up[k] ? -most : most;
        for (int k = v; k != join; k = t->parent[k]) t->flow[k] += t->up[k] ? most : -most;
    }
    /* what hung on the leaving arc now hangs on the entering one: its arcs from there down turn round */
    int node = at_source ? u : v, above = at_source ? v : u;
    bool up = at_source;
    int64_t flow = most;
    const int top = node;
    for (bool last = false; !last;) {
        const int next = t->parent[node];
        const bool old_up = t->up[node];
        const int64_t old_flow = t->flow[node];
        last = node == out;
        transport_unlink(t, node);
        transport_link(t, node, above);
        t->up[node] = up;
        t->flow[node] = flow;
        up = !old_up;
        flow = old_flow;
        above = node;
        node = next;
    }
    transport_update(t, top);
}

/* Whole numbers in proportion to the weights, 2^52 in all; without weights, `each` everywhere. */
static inline int transport_weights(int64_t *to, const double *weights, int n, int64_t each, const char *what,
                                    Error *err) {
    const double all = 0x1p52;
    double sum = 0, before = 0;
    for (int i = 0; i < n; i++) {
        if (weights && !(weights[i] >= 0 && weights[i] <= 1e300))
            return error_set(err, "weight %d of the %s of a transport is %g; expected a number from 0 up", i, what,
                             weights[i]);
        sum += weights ? weights[i] : 1;
    }
    if (!(sum > 0 && sum <= 1e300)) return error_set(err, "the weights of the %s of a transport are all 0", what);
    int64_t given = 0;
    for (int i = 0; i < n; i++) {
        if (weights) before += weights[i];
        const int64_t upto = i + 1 == n ? (int64_t)all : (int64_t)llround(before / sum * all);
        to[i] = weights ? upto - given : each;
        given = upto;
    }
    return 0;
}

static inline int transport_run(Transport *t, const double *a, const double *b, double *result, Error *err) {
    const int n = t->n, m = t->m;
    int64_t *supply = (int64_t *)xcalloc((size_t)n + m, sizeof *supply), *demand = supply + n;
    const bool uniform = !a && !b;
    double *even = (double *)xmalloc(((size_t)n > (size_t)m ? n : m) * sizeof *even), sum = 0;
    for (int i = 0; i < n || i < m; i++) even[i] = 1;
    int bad = transport_weights(supply,
                                uniform ? NULL
                                : a     ? a
                                        : even,
                                n, m, "sources", err) ||
              transport_weights(demand,
                                uniform ? NULL
                                : b     ? b
                                        : even,
                                m, n, "sinks", err);
    if (!bad) {
        int u = 0, v = 0;
        transport_begin(t, supply, demand);
        while (transport_price(t, &u, &v)) transport_pivot(t, u, v);
        for (int k = 0; k < t->root; k++) sum += (double)t->flow[k] * transport_tree_cost(t, k);
        *result = sum / (uniform ? (double)n * m : 0x1p52);
    }
    free(even);
    free(supply);
    return bad ? -1 : 0;
}

/* The least cost of moving the distribution a [n] to b [m], each divided by its sum; NULL: all weights are equal. cost [n,
 * m] holds finite numbers. Returns 0, or -1 with *err filled. */
static inline int transport_cost(const double *cost, int n, int m, const double *a, const double *b, double *result,
                                 Error *err) {
    const size_t nodes = (size_t)n + (size_t)m + 1, arcs = (size_t)n * (size_t)m;
    double most = 0;
    if (n < 1 || m < 1 || n > 1 << 15 || m > 1 << 15)
        return error_set(err, "a transport of %d sources to %d sinks; expected 1 to %d of each", n, m, 1 << 15);
    for (size_t i = 0; i < arcs; i++) {
        if (!isfinite(cost[i])) return error_set(err, "a cost of the transport is not a finite number");
        most = fabs(cost[i]) > most ? fabs(cost[i]) : most;
    }
    int *whole = (int *)xcalloc(6 * nodes, sizeof *whole);
    Transport t = {.n = n,
                   .m = m,
                   .root = n + m,
                   .cost = cost,
                   .detour = most > 0 ? 2 * most : 1,
                   .parent = whole,
                   .child = whole + nodes,
                   .next = whole + 2 * nodes,
                   .before = whole + 3 * nodes,
                   .depth = whole + 4 * nodes,
                   .stack = whole + 5 * nodes,
                   .up = (bool *)xcalloc(nodes, sizeof(bool)),
                   .flow = (int64_t *)xcalloc(nodes, sizeof(int64_t)),
                   .price = (double *)xcalloc(nodes, sizeof(double))};
    const int bad = transport_run(&t, a, b, result, err);
    free(t.price);
    free(t.flow);
    free(t.up);
    free(whole);
    return bad;
}

#endif
