/* Small changes of brightness, contrast, noise and sharpness, on what image_prepare made of an image: much cheaper
 * than the operations of lib/image_augment.h, since prepared images can be kept. Runs that began with the --augment
 * of older versions continue with these, bit for bit. */
#ifndef LIB_IMAGE_AUGMENT_LIGHT_H
#define LIB_IMAGE_AUGMENT_LIGHT_H

#include "error.h"
#include "image_size.h"
#include "random.h"

typedef struct {
    float contrast, brightness, noise;
    bool blur;
    Random random;  // of the noise
} AugmentLight;

/* The changes of a sample: contrast within 10 %, brightness within 5 %, noise with a standard deviation of up to 6
 * levels, and a blur with probability 1/3. The fields are drawn in this order. */
static inline AugmentLight augment_light_draw(uint64_t seed, uint64_t epoch, uint32_t sample) {
    AugmentLight a;
    random_seed3(&a.random, seed, epoch, (uint64_t)sample | (uint64_t)1 << 40);
    a.contrast = 0.9f + 0.2f * (float)random_uniform(&a.random);
    a.brightness = 255 * (0.1f * (float)random_uniform(&a.random) - 0.05f);
    a.noise = 6 * (float)random_uniform(&a.random);
    a.blur = random_below(&a.random, 3) == 0;
    return a;
}

/* Blurs an image [height, width, 3] in place with the kernel [1 2 1] / 4 in both directions, replicating the border. */
static inline void augment_light_blur(uint8_t *p, ImageSize size) {
    const int stride = size.width * 3;
    uint8_t *copy = xmalloc(image_size_bytes(size));
    memcpy(copy, p, image_size_bytes(size));
    for (int y = 0; y < size.height; y++) {
        const uint8_t *row = copy + (size_t)y * stride;
        const uint8_t *above = y > 0 ? row - stride : row, *below = y + 1 < size.height ? row + stride : row;
        for (int i = 0; i < stride; i++) {
            int left = i >= 3 ? i - 3 : i, right = i + 3 < stride ? i + 3 : i;
            int sum = above[left] + 2 * above[i] + above[right] + 2 * row[left] + 4 * row[i] + 2 * row[right] +
                      below[left] + 2 * below[i] + below[right];
            p[(size_t)y * stride + i] = (sum + 8) >> 4;
        }
    }
    free(copy);
}

/* Changes an image [height, width, 3] in place: blur, contrast, brightness and noise. The noise is a sum of four uniform
 * bytes (standard deviation 147.8), which is close to normal and cheap. */
static inline void augment_light(uint8_t *p, ImageSize size, AugmentLight a) {
    const size_t n = image_size_bytes(size);
    if (a.blur) augment_light_blur(p, size);
    for (size_t i = 0; i < n;) {
        uint64_t bits = random_u64(&a.random);
        for (int half = 0; half < 2 && i < n; half++, i++, bits >>= 32) {
            int sum = (int)(bits & 255) + (int)(bits >> 8 & 255) + (int)(bits >> 16 & 255) + (int)(bits >> 24 & 255);
            float x =
                ((float)p[i] - 127.5f) * a.contrast + 127.5f + a.brightness + a.noise * (float)(sum - 510) / 147.8f;
            p[i] = (uint8_t)(x < 0 ? 0 : x > 255 ? 255 : x + 0.5f);
        }
    }
}

#endif
