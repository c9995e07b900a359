/* Element types of tensors in files and in memory, and conversions from and to fp32.
 *
 * floatX is the storage type of parameters and activations: bf16 by default, fp32 with
 * `make PRECISION=FP32`. Arithmetic always happens in fp32. */
#ifndef LIB_DTYPE_H
#define LIB_DTYPE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum { DT_F32, DT_BF16, DT_F16, DT_U8, DT_I8, DT_I32, DT_I64, DT_COUNT } Dtype;

static inline size_t dtype_size(Dtype t) {
    static const size_t sizes[DT_COUNT] = {4, 2, 2, 1, 1, 4, 8};
    return sizes[t];
}

static inline const char *dtype_name(Dtype t) {  // as in a safetensors header
    static const char *const names[DT_COUNT] = {"F32", "BF16", "F16", "U8", "I8", "I32", "I64"};
    return names[t];
}

/* bf16 is the upper half of an fp32. It is a struct, so that no arithmetic happens on it by accident. */
typedef struct {
    uint16_t bits;
} bf16;

static inline float bf16_to_f32(bf16 x) {
    uint32_t u = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Rounds to nearest, ties to even. A NaN stays a NaN: its quiet bit is set, so that it cannot round to infinity. */
static inline bf16 f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    bf16 r;
    if ((u & 0x7fffffffu) > 0x7f800000u)
        r.bits = (uint16_t)((u >> 16) | 0x0040u);
    else
        r.bits = (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    return r;
}

/* h: the bits of an IEEE 754 binary16. */
static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
    float magnitude;
    if (exponent == 0x1f) {
        uint32_t u = sign | 0x7f800000u | (mantissa << 13);
        memcpy(&magnitude, &u, sizeof u);
        return magnitude;
    }
    if (exponent == 0)
        magnitude = ldexpf((float)mantissa, -24);
    else
        magnitude = ldexpf((float)(mantissa | 0x400u), (int)exponent - 25);
    return sign ? -magnitude : magnitude;
}

#ifdef PRECISION_FP32
typedef float floatX;
#define DT_FLOATX DT_F32
static inline float from_x(floatX x) { return x; }
static inline floatX to_x(float x) { return x; }
#else
typedef bf16 floatX;
#define DT_FLOATX DT_BF16
static inline float from_x(floatX x) { return bf16_to_f32(x); }
static inline floatX to_x(float x) { return f32_to_bf16(x); }
#endif

#endif
