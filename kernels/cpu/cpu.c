/* The table of operations for a CPU. One kernel family per header. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE  // syscall(), to ask for the AMX registers
#endif
#include "attention.h"
#include "input.h"
#include "norm.h"
#include "distill.h"
#include "optimizer.h"
#include "pointwise.h"
#include "linear.h"
#include "sample.h"
#include "../ops.h"

const Ops cpu_ops = {
    .name = "cpu",
    .host_memory = true,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .memory_free = cpu_memory_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .copy = cpu_copy,
    .copy_from = cpu_copy_from,
    .copy_rows = cpu_copy_rows,
    .zero = cpu_zero,
    .sync = cpu_sync,
    .wait_for = cpu_wait_for,
    .download_async = cpu_download_async,
    .download_wait = cpu_download_wait,
    .graph_launch = cpu_graph_launch,
    .graph_end = cpu_graph_end,
    .graph_free = cpu_graph_free,
    .embedding_forward = cpu_embedding_forward,
    .embedding_backward = cpu_embedding_backward,
    .patchify = cpu_patchify,
    .position_forward = cpu_position_forward,
    .position_backward = cpu_position_backward,
    .gather_rows = cpu_gather_rows,
    .scatter_rows = cpu_scatter_rows,
    .layernorm_forward = cpu_layernorm_forward,
    .residual_layernorm_forward = cpu_residual_layernorm_forward,
    .layernorm_backward = cpu_layernorm_backward,
    .rmsnorm_forward = cpu_rmsnorm_forward,
    .residual_rmsnorm_forward = cpu_residual_rmsnorm_forward,
    .rmsnorm_backward = cpu_rmsnorm_backward,
    .residual_forward = cpu_residual_forward,
    .linear_forward = cpu_linear_forward,
    .linear_logits = cpu_linear_logits,
    .linear_backward_input = cpu_linear_backward_input,
    .linear_backward_weight = cpu_linear_backward_weight,
    .gelu_forward = cpu_gelu_forward,
    .gelu_backward = cpu_gelu_backward,
    .swiglu_forward = cpu_swiglu_forward,
    .swiglu_backward = cpu_swiglu_backward,
    .attention_forward = cpu_attention_forward,
    .attention_backward = cpu_attention_backward,
    .cache_store = cpu_cache_store,
    .attention_decode = cpu_attention_decode,
    .sample = cpu_sample,
    .distill_rows = cpu_distill_rows,
    .entropy_band = cpu_entropy_band,
    .cosine = cpu_cosine,
    .squared_norm = cpu_squared_norm,
    .adamw = cpu_adamw,
    .cast_to_x = cpu_cast_to_x,
    .cast_from_x = cpu_cast_from_x,
};
