/* The table of operations for the CPU. One kernel family per header, under the same file names as the GPU's
 * (kernels/cuda). The Makefile compiles this file once for every set of processor instructions, with KERNEL_SET
 * defined as its name; choose.c takes the table that fits the processor. */
#include "attention.h"
#include "attention_decode.h"
#include "distill.h"
#include "distill_sparse.h"
#include "dropout.h"
#include "figures.h"
#include "graph.h"
#include "input.h"
#include "linear.h"
#include "memory.h"
#include "norm.h"
#include "objective.h"
#include "optimizer.h"
#include "peak.h"
#include "pointwise.h"
#include "sample.h"

#include "forward_only.h"  // the last one: it renames what the others define

#define TABLE_OF(set) cpu_ops_##set
#define TABLE(set) TABLE_OF(set)
#define NAME_OF(set) #set
#define NAME(set) NAME_OF(set)

const Ops TABLE(KERNEL_SET) = {
    .name = "cpu",
    .kernels = NAME(KERNEL_SET),
    .peak_flops = cpu_peak_flops,
    .host_memory = true,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .memory_free = cpu_memory_free,
    .zero = cpu_zero,
    .sync = cpu_sync,
    .upload = cpu_copy,
    .download = cpu_copy,
    .download_async = cpu_download_async,
    .download_wait = cpu_download_wait,
    .copy = cpu_copy,
    .copy_rows = cpu_copy_rows,
    .copy_from = cpu_copy_from,
    .wait_for = cpu_wait_for,
    .graph_launch = cpu_graph_launch,
    .graph_end = cpu_graph_end,
    .graph_free = cpu_graph_free,
    .embedding_forward = cpu_embedding_forward,
    .embedding_backward = cpu_embedding_backward,
    .patchify = cpu_patchify,
    .position_forward = cpu_position_forward,
    .position_backward = cpu_position_backward,
    .position_2d_forward = cpu_position_2d_forward,
    .position_2d_backward = cpu_position_2d_backward,
    .gather_rows = cpu_gather_rows,
    .scatter_rows = cpu_scatter_rows,
    .layernorm_forward = cpu_layernorm_forward,
    .residual_layernorm_forward = cpu_residual_layernorm_forward,
    .layernorm_backward = cpu_layernorm_backward,
    .rmsnorm_forward = cpu_rmsnorm_forward,
    .residual_rmsnorm_forward = cpu_residual_rmsnorm_forward,
    .rmsnorm_backward = cpu_rmsnorm_backward,
    .linear_forward = cpu_linear_forward,
    .linear_logits = cpu_linear_logits,
    .linear_backward_input = cpu_linear_backward_input,
    .linear_backward_weight = cpu_linear_backward_weight,
    .gelu_forward = cpu_gelu_forward,
    .gelu_backward = cpu_gelu_backward,
    .swiglu_forward = cpu_swiglu_forward,
    .swiglu_backward = cpu_swiglu_backward,
    .residual_forward = cpu_residual_forward,
    .dropout = cpu_dropout,
    .cast_to_x = cpu_cast_to_x,
    .cast_from_x = cpu_cast_from_x,
    .attention_forward = cpu_attention_forward,
    .attention_backward = cpu_attention_backward,
    .cache_store = cpu_cache_store,
    .attention_decode = cpu_attention_decode,
    .sample = cpu_sample,
    .distill_rows = cpu_distill_rows,
    .distill_rows_sparse = cpu_distill_rows_sparse,
    .logits_figures = cpu_logits_figures,
    .entropy_band = cpu_entropy_band,
    .cosine = cpu_cosine,
    .squared_norm = cpu_squared_norm,
    .adamw = cpu_adamw,
};
