/* NCCL as dist/comm.h uses it: collectives between the GPUs of several processes. Implemented in dist/nccl.cu where the
 * build has NCCL's header (WITH_NCCL); the library itself is loaded when it is first asked for. */
#ifndef DIST_NCCL_H
#define DIST_NCCL_H

#include "../kernels/ops.h"
#include "../lib/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { NCCL_ID_BYTES = 128, GPU_PLACE_BYTES = 32 };

typedef struct NcclGroup NcclGroup;  // the ranks' communicator, and a stream of its own for what they do

#ifdef WITH_NCCL
/* The bus address of op's GPU, unique on its machine. false: the library cannot be loaded here. */
bool nccl_place(const Ops *op, char place[GPU_PLACE_BYTES]);
/* Made by one rank and given to all, who then join together. -1 or NULL with a sentence in *err. */
int nccl_unique_id(char id[NCCL_ID_BYTES], Error *err);
NcclGroup *nccl_join(const Ops *op, const char id[NCCL_ID_BYTES], int rank, int ranks, Error *err);
void nccl_leave(NcclGroup *g);
/* Ends what is under way, so that this process can end although others will not answer. */
void nccl_abort(NcclGroup *g);

/* As the functions of dist/comm.h. Each waits, on the group's stream, for what op has been given so far. */
void nccl_reduce_scatter(NcclGroup *g, float *buffer, size_t piece);
void nccl_all_reduce(NcclGroup *g, float *buffer, size_t n);
void nccl_all_gather(NcclGroup *g, void *buffer, size_t piece_bytes);
/* What op is given from now on waits for all of these. */
void nccl_finish(NcclGroup *g);
#else
static inline bool nccl_place(const Ops *op, char *place) { return (void)op, (void)place, false; }
static inline int nccl_unique_id(char *id, Error *err) { return (void)id, error_set(err, "built without NCCL"); }
static inline NcclGroup *nccl_join(const Ops *op, const char *id, int rank, int ranks, Error *err) {
    return (void)op, (void)id, (void)rank, (void)ranks, error_set(err, "built without NCCL"), NULL;
}
static inline void nccl_leave(NcclGroup *g) { (void)g; }
static inline void nccl_abort(NcclGroup *g) { (void)g; }
static inline void nccl_reduce_scatter(NcclGroup *g, float *buffer, size_t n) { (void)g, (void)buffer, (void)n; }
static inline void nccl_all_reduce(NcclGroup *g, float *buffer, size_t n) { (void)g, (void)buffer, (void)n; }
static inline void nccl_all_gather(NcclGroup *g, void *buffer, size_t n) { (void)g, (void)buffer, (void)n; }
static inline void nccl_finish(NcclGroup *g) { (void)g; }
#endif

#ifdef __cplusplus
}
#endif
#endif
