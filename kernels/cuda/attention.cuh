/* Attention, out = softmax(scale Q K^T) V, and its gradient: the table's entries for whole sequences.
 *
 *   attention_flash.cuh, attention_flash_backward.cuh   on tensor cores: bf16, heads of up to 128 channels
 *   attention_general.cuh                               everything else: fp32 storage, other head sizes
 *   attention_decode.cuh                                new tokens, and the caches of keys and values
 *   attention_rows.cuh                                  what these share: rows of a head, RoPE */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "attention_decode.cuh"
#include "attention_general.cuh"
#ifndef PRECISION_FP32
#include "attention_flash.cuh"
#include "attention_flash_backward.cuh"
#endif

static void cuda_attention_forward(floatX *out, float *lse, const floatX *qkv, AttentionShape s) {
    if (s.B == 0 || s.T == 0) return;
#ifndef PRECISION_FP32
    if (flash_fits(s, out, qkv)) return flash_forward(out, lse, qkv, s);
#endif
    attention_forward_general(out, lse, qkv, s);
}

static void cuda_attention_backward(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                                    const floatX *qkv, AttentionShape s) {
    if (s.B == 0 || s.T == 0) return;
#ifndef PRECISION_FP32
    if (flash_fits(s, dqkv, dout, out, qkv)) return flash_backward(dqkv, dout, out, lse, qkv, s);
#endif
    attention_backward_general(dqkv, dout, out, lse, qkv, s);
}

#endif
