/* Leaves out of the table in cpu.c what only training and measuring call, where KERNELS_FORWARD_ONLY is defined: for the module
 * that browsers download. */
#ifndef KERNELS_CPU_FORWARD_ONLY_H
#define KERNELS_CPU_FORWARD_ONLY_H

#ifdef KERNELS_FORWARD_ONLY
#define cpu_embedding_backward NULL
#define cpu_position_backward NULL
#define cpu_position_2d_backward NULL
#define cpu_scatter_rows NULL
#define cpu_layernorm_backward NULL
#define cpu_rmsnorm_backward NULL
#define cpu_linear_backward_input NULL
#define cpu_linear_backward_weight NULL
#define cpu_gelu_backward NULL
#define cpu_swiglu_backward NULL
#define cpu_dropout NULL
#define cpu_attention_backward NULL
#define cpu_distill_rows NULL
#define cpu_distill_rows_sparse NULL
#define cpu_logits_figures NULL
#define cpu_entropy_band NULL
#define cpu_cosine NULL
#define cpu_squared_norm NULL
#define cpu_adamw NULL
#endif

#endif
