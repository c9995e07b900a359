/* floatX in registers: every kernel computes in fp32, on N neighbouring elements that one access of up to 16 bytes
 * brings from memory (Floats<N>). A kernel with N = 1 serves the shapes whose rows are not a multiple of 16 bytes. */
#ifndef KERNELS_CUDA_VECTOR_CUH
#define KERNELS_CUDA_VECTOR_CUH

#include <platform.cuh>

static constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

static __device__ __forceinline__ float to_float(float x) { return x; }
static __device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

template <typename T> static __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {  // to nearest even, as lib/dtype.h does
    bf16 r;
    r.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    return r;
}

/* N consecutive elements as floats. */
template <int N> struct Floats { float x[N]; };

/* Elements of T in a 16-byte access. */
template <typename T> struct Vector {
    enum { N = 16 / sizeof(T) };
};
enum { VECTOR = Vector<floatX>::N };
template <typename T> using Packed = Floats<Vector<T>::N>;

template <int WORDS> static __device__ __forceinline__ void load_words(unsigned *w, const void *p) {
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++) {
            uint4 v = ((const uint4 *)p)[i];
            w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
        }
    } else if constexpr (WORDS == 2) {
        uint2 v = *(const uint2 *)p;
        w[0] = v.x, w[1] = v.y;
    } else {
        static_assert(WORDS == 1, "4, 8 or a multiple of 16 bytes");
        w[0] = *(const unsigned *)p;
    }
}

template <int WORDS> static __device__ __forceinline__ void store_words(void *p, const unsigned *w) {
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WORDS / 4; i++)
            ((uint4 *)p)[i] = make_uint4(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]);
    } else if constexpr (WORDS == 2) {
        *(uint2 *)p = make_uint2(w[0], w[1]);
    } else {
        static_assert(WORDS == 1, "4, 8 or a multiple of 16 bytes");
        *(unsigned *)p = w[0];
    }
}

/* Loads N elements from p on, in accesses of up to 16 bytes, to whose size p must be aligned. */
template <int N> static __device__ __forceinline__ Floats<N> load(const float *p) {
    unsigned w[N];
    Floats<N> v;
    load_words<N>(w, p);
#pragma unroll
    for (int i = 0; i < N; i++) v.x[i] = __uint_as_float(w[i]);
    return v;
}

template <int N> static __device__ __forceinline__ Floats<N> load(const bf16 *p) {
    Floats<N> v;
    if constexpr (N == 1) {
        v.x[0] = to_float(*p);
    } else {
        unsigned w[N / 2];
        load_words<N / 2>(w, p);
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            v.x[2 * i] = __uint_as_float(w[i] << 16);
            v.x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
        }
    }
    return v;
}

template <int N> static __device__ __forceinline__ void store(float *p, Floats<N> v) {
    unsigned w[N];
#pragma unroll
    for (int i = 0; i < N; i++) w[i] = __float_as_uint(v.x[i]);
    store_words<N>(p, w);
}

template <int N> static __device__ __forceinline__ void store(bf16 *p, Floats<N> v) {
    if constexpr (N == 1) {
        *p = from_float<bf16>(v.x[0]);
    } else {
        unsigned w[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            w[i] = from_float<bf16>(v.x[2 * i]).bits | (unsigned)from_float<bf16>(v.x[2 * i + 1]).bits << 16;
        store_words<N / 2>(p, w);
    }
}

template <typename T> static __device__ __forceinline__ Packed<T> load128(const T *p) {
    return load<Vector<T>::N>(p);
}
template <typename T> static __device__ __forceinline__ void store128(T *p, Packed<T> v) {
    store<Vector<T>::N>(p, v);
}

/* v rounded to T, as it will be read back from memory. */
template <typename T> static __device__ __forceinline__ float rounded(float v) { return to_float(from_float<T>(v)); }

/* Rows of C elements that begin at these addresses can be read in vectors of N elements. A NULL address always
 * fits. */
template <typename... P> static inline bool vectors_fit(size_t C, int N, const P *...p) {
    bool fit = C % (size_t)N == 0;
    for (const void *q : {(const void *)p...}) fit = fit && (uintptr_t)q % 16 == 0;
    return fit;
}

#endif
