/* Random numbers: xoshiro256** (Blackman and Vigna, "Scrambled Linear Pseudorandom Number Generators", 2018), seeded
 * with splitmix64 (Steele et al. 2014). No generator's state is ever saved: every draw is a function of a seed and of
 * counters (batch, epoch, sample), so training that resumes with the same counters draws the same numbers. */
#ifndef LIB_RANDOM_H
#define LIB_RANDOM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t s[4];
} Random;

/* A function for the host and, under nvcc, for kernels too (kernels/sample.h). */
#ifdef __CUDACC__
#define RANDOM_INLINE static __host__ __device__ __forceinline__
#else
#define RANDOM_INLINE static inline
#endif

/* One step of splitmix64. It also mixes several numbers well into one seed. */
RANDOM_INLINE uint64_t random_splitmix(uint64_t *x) {
    uint64_t z = (*x += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline void random_seed(Random *r, uint64_t seed) {
    for (int i = 0; i < 4; i++) r->s[i] = random_splitmix(&seed);
}

/* Seeds the generator of (seed, a, b), for example (seed, epoch, sample), which is independent of all others. */
static inline void random_seed3(Random *r, uint64_t seed, uint64_t a, uint64_t b) {
    uint64_t x = seed;
    x = random_splitmix(&x) ^ a;
    x = random_splitmix(&x) ^ b;
    random_seed(r, random_splitmix(&x));
}

static inline uint64_t random_u64(Random *r) {
    uint64_t *s = r->s, x = s[1] * 5, t = s[1] << 17;
    uint64_t result = ((x << 7) | (x >> 57)) * 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return result;
}

/* Uniform in [0, 1), 53 bits. */
static inline double random_uniform(Random *r) { return (double)(random_u64(r) >> 11) * 0x1p-53; }

/* Standard normal (Box and Muller 1958). The second value is discarded, so that the state is s alone. */
static inline float random_normal(Random *r) {
    double u = 1.0 - random_uniform(r), v = random_uniform(r);  // u in (0, 1]: its logarithm is finite
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

/* Uniform in 0 .. n-1, without bias: values in the last, incomplete block of n are drawn again. 0 when n is 0. */
static inline uint64_t random_below(Random *r, uint64_t n) {
    if (n == 0) return 0;
    uint64_t limit = UINT64_MAX - (UINT64_MAX % n + 1) % n, x;
    do x = random_u64(r);
    while (x > limit);
    return x % n;
}

/* A uniformly random order of a [n] (Fisher and Yates). */
static inline void random_shuffle(Random *r, uint32_t *a, size_t n) {
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)random_below(r, i);
        uint32_t t = a[i - 1];
        a[i - 1] = a[j];
        a[j] = t;
    }
}

#endif
