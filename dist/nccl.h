/* NCCL as dist/comm.h sees it: what GPUs of several processes do together. Made by dist/nccl.cu, where the
 * build has NCCL's header (WITH_NCCL); the library itself is loaded when it is first asked for. */
#ifndef KERNELS_NCCL_GROUP_H
#define KERNELS_NCCL_GROUP_H

#include "../kernels/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { NCCL_KEY_BYTES = 128, NCCL_PLACE_BYTES = 32 };

typedef struct NcclGroup NcclGroup;  // the members' common channel, and a stream of its own for what they do

typedef struct {
    /* false: the library cannot be loaded here. place: the GPU's, as text that is its own on this machine */
    bool (*place)(const Ops *op, char place[NCCL_PLACE_BYTES]);
    /* Made by one member, given to all: they join with it, together. to_wait: the group is for send and receive,
     * whose waiting can be ended. NULL with a sentence in *err */
    int (*key_make)(char key[NCCL_KEY_BYTES], Error *err);
    NcclGroup *(*join)(const Ops *op, const char key[NCCL_KEY_BYTES], int rank, int ranks, bool to_wait, Error *err);
    void (*leave)(NcclGroup *g);

    /* As comm_reduce_scatter, ... in dist/comm.h. Each waits, on the group's stream, for what op has been given so
     * far. */
    void (*reduce_scatter)(NcclGroup *g, float *buffer, size_t piece);
    void (*all_reduce)(NcclGroup *g, float *buffer, size_t n);
    void (*all_gather)(NcclGroup *g, void *buffer, size_t piece_bytes);
    void (*broadcast)(NcclGroup *g, void *buffer, size_t bytes, int root);
    /* What op is given from now on waits for all of these. Adds to *busy the seconds that those took which are
     * through by now, to *waited those of them in which op's stream had nothing else to do */
    void (*finish)(NcclGroup *g, double *busy, double *waited);

    /* One member to another; return when the array has gone out, or is there. false: over(context) was true first,
     * and the group is of no use any more. A receive waits for what op was given before the last `after`. */
    bool (*send)(NcclGroup *g, const void *buffer, size_t bytes, int to, bool (*over)(void *), void *context);
    bool (*receive)(NcclGroup *g, void *buffer, size_t bytes, int from, bool (*over)(void *), void *context);
    void (*after)(NcclGroup *g);
} Nccl;

#ifdef WITH_NCCL
const Nccl *cuda_nccl(void);
#else
static inline const Nccl *cuda_nccl(void) { return NULL; }
#endif

#ifdef __cplusplus
}
#endif
#endif
