/* What all attention kernels share: the rows of a head (queries, keys or values of one head, one row for each
 * position) and the rotary position embedding (RoPE) that is applied to them on the way in. */
#ifndef KERNELS_CUDA_ATTENTION_ROWS_CUH
#define KERNELS_CUDA_ATTENTION_ROWS_CUH

#include "common.cuh"

/* The rows at these addresses can be read and written 16 bytes at a time, and with RoPE so can their two halves,
 * which it combines. */
template <typename... P> static bool attention_vectors(const AttentionShape &s, const P *...p) {
    return vectors_fit(s.rope ? s.D / 2 : s.D, VECTOR, s.rope, p...);
}

static void attention_check(const AttentionShape *s) {
    if (s->D > 512)
        die("attention on a GPU needs heads of at most 512 channels, these have %d; choose more heads, or --device "
            "cpu",
            s->D);
}

/* Elements c .. c+WIDTH of row [D], rotated by the angles of the row's position (a row of AttentionShape's rope;
 * NULL: not rotated). direction is 1, or -1 to undo the rotation. The element that is rotated together with element c
 * is half a row away. */
template <int WIDTH, typename T>
static __device__ __forceinline__ Floats<WIDTH> load_rotated(const T *row, const float *rope, int c, int D,
                                                             float direction) {
    const int half = D / 2;
    Floats<WIDTH> v = load<WIDTH>(row + c);
    if (!rope) return v;
    const bool second = c >= half;
    const Floats<WIDTH> partner = load<WIDTH>(row + (second ? c - half : c + half));
    const Floats<WIDTH> cosine = load<WIDTH>(rope + (second ? c - half : c));
    const Floats<WIDTH> sine = load<WIDTH>(rope + (second ? c : c + half));
    const float sign = second ? direction : -direction;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) v.x[i] = v.x[i] * cosine.x[i] + sign * sine.x[i] * partner.x[i];
    return v;
}

static __device__ __forceinline__ const float *rope_at(const AttentionShape &s, int position) {
    return s.rope ? s.rope + (size_t)position * s.D : NULL;
}

#endif
