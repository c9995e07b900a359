/* What is recomputed in the backward pass. */
#ifndef RECOMPUTE_H
#define RECOMPUTE_H

/* Gradient checkpointing: what a block does not store for its backward pass but computes again there, with the same
 * bits. Nothing; what needs no matmul (outputs of norms and activation functions); everything but the block's input
 * (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). Bytes per position and block in bf16, with the
 * letters of config.h (Q = (H + 2K) D, A = H D), and for the shape tl-1.1b:
 *
 *                encoder                           decoder
 *   none         2 (8 C + 2 M) + 4 H + 16   35728     2 (4 W + Q + A + 3 F) + 4 H + 8   59528
 *   activations  2 (6 C + M) + 4 H + 16     22512     2 (2 W + Q + A + 2 F) + 4 H + 8   40072
 *   blocks       2 C                         2304     2 W                                4096
 *
 * Norms of q and k (qk_norm.h) add 2 (H + K) D + 4 (H + K) to the decoder's first two.
 *
 * In addition, all blocks share one set of the buffers that are not stored. A frozen decoder never stores more than
 * with `activations`: only the gradients of weights would read the rest. */
typedef enum { RECOMPUTE_NONE, RECOMPUTE_ACTIVATIONS, RECOMPUTE_BLOCKS } Recompute;

#endif
