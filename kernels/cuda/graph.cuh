/* CUDA graphs: a sequence of several hundred launches that comes again and again is submitted by one call of the
 * driver, and less time passes between its kernels.
 *
 * The first time, the caller's operations just run, so scratch memory gets its size and cuBLASLt its plans. The
 * second time the stream captures them, which makes a graph of them. From then on the graph is launched. */
#ifndef KERNELS_CUDA_GRAPH_CUH
#define KERNELS_CUDA_GRAPH_CUH

#include "common.cuh"

static void graph_drop(CudaGraph *g) {
    if (g->exec) CUDA_CHECK(cudaGraphExecDestroy(g->exec));
    memset(g, 0, sizeof *g);
}

/* The graph of this owner and variant, or a new one in place of the one that has not been used for longest. */
static CudaGraph *graph_find(CudaStream *s, const void *owner, uint64_t variant) {
    CudaGraph *oldest = &s->graphs[0];
    for (int i = 0; i < CUDA_GRAPHS; i++) {
        CudaGraph *g = &s->graphs[i];
        if (g->owner == owner && g->variant == variant) return g;
        if (g->last_used < oldest->last_used) oldest = g;
    }
    graph_drop(oldest);
    oldest->owner = owner;
    oldest->variant = variant;
    return oldest;
}

static bool cuda_graph_launch(const void *owner, uint64_t variant) {
    CudaStream *s = cuda_current;
    forbid_in_graph("another graph");
    CudaGraph *g = graph_find(s, owner, variant);
    g->last_used = ++s->graph_launches;
    if (g->exec && g->scratch_version == s->scratch_version) {
        CUDA_CHECK(cudaGraphLaunch(g->exec, s->stream));
        return true;
    }
    if (g->exec) CUDA_CHECK(cudaGraphExecDestroy(g->exec));
    g->exec = NULL;
    s->graph = g;
    s->capturing = g->times++ > 0;
    if (s->capturing) CUDA_CHECK(cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeRelaxed));
    return false;
}

static void cuda_graph_end(void) {
    CudaStream *s = cuda_current;
    CudaGraph *g = s->graph;
    if (!g) die("internal error: the end of a graph that has not begun");
    s->graph = NULL;
    if (!s->capturing) return;
    cudaGraph_t captured;
    s->capturing = false;
    CUDA_CHECK(cudaStreamEndCapture(s->stream, &captured));
    CUDA_CHECK(cudaGraphInstantiate(&g->exec, captured, 0));
    CUDA_CHECK(cudaGraphDestroy(captured));
    g->scratch_version = s->scratch_version;
    CUDA_CHECK(cudaGraphLaunch(g->exec, s->stream));
}

static void cuda_graph_free(const void *owner) {
    for (int i = 0; i < CUDA_GRAPHS; i++)
        if (cuda_current->graphs[i].owner == owner) graph_drop(&cuda_current->graphs[i]);
}

#endif
