/* Augmentation: random changes of a training image under which its program stays the correct target.
 *
 * An Augment says for each operation how probable it is and how strong; augment_parse reads it from a text such as
 *
 *     all=0.2,jpeg=0.5:25..95,rotate=0
 *
 * that is a list of NAME, NAME=P, NAME=P:X or NAME=P:A..B. P: probability for an image, 1 if left out. A..B: range
 * that the strength is drawn from, X: this strength; the table below has the ranges that apply otherwise. A name
 * again replaces what was said before.
 *
 * The operations are applied in the order of the table. Each has a random stream of its own: what it does to an image
 * is a function of (seed, epoch, sample) and of its own P and range, whatever the other operations are. */
#ifndef LIB_IMAGE_AUGMENT_H
#define LIB_IMAGE_AUGMENT_H

#include "image_augment_light.h"
#include "image_augment_shape.h"
#include "image_augment_tone.h"
#include "image_clean.h"

/* The numbers choose random streams: a new operation goes to the end, in the table to where it is applied. */
typedef enum {
    AUGMENT_ELASTIC,
    AUGMENT_ROTATE,
    AUGMENT_SCALE,
    AUGMENT_PAD,
    AUGMENT_BACKGROUND,
    AUGMENT_INVERT,
    AUGMENT_CONTRAST,
    AUGMENT_BRIGHTNESS,
    AUGMENT_BLUR,
    AUGMENT_NOISE,
    AUGMENT_JPEG,
    AUGMENT_CLEAN,
    AUGMENT_LIGHT,
    AUGMENT_OPERATIONS
} AugmentOperation;

typedef struct {
    const char *name;
    AugmentOperation operation;
    double low, high;    // range of the strength unless the user says another
    double least, most;  // what the user may say; both 0: it has no strength
    bool in_all;         // meant by `all`
} AugmentKind;

static const AugmentKind augment_kinds[AUGMENT_OPERATIONS] = {
    {"elastic", AUGMENT_ELASTIC, 0.1, 1, 0, 10, true},        // displacement, % of the longer side, root mean square
    {"rotate", AUGMENT_ROTATE, 0, 3, 0, 45, true},            // degrees, in either direction
    {"scale", AUGMENT_SCALE, 0.5, 4, 0.05, 20, true},         // factor, its logarithm uniform
    {"pad", AUGMENT_PAD, 0, 0.2, 0, 1, true},                 // margin of each side, share of the longer side
    {"background", AUGMENT_BACKGROUND, 0, 64, 0, 255, true},  // levels below white, of each channel
    {"invert", AUGMENT_INVERT, 0, 0, 0, 0, true},             // light on dark
    {"contrast", AUGMENT_CONTRAST, 0.5, 1.2, 0, 10, true},    // factor
    {"brightness", AUGMENT_BRIGHTNESS, 0, 40, 0, 255, true},  // levels, up or down
    {"blur", AUGMENT_BLUR, 0.3, 2, 0.1, 20, true},            // standard deviation in pixels
    {"noise", AUGMENT_NOISE, 1, 10, 0, 100, true},            // standard deviation in levels
    {"jpeg", AUGMENT_JPEG, 25, 95, 1, 100, true},             // quality
    {"clean", AUGMENT_CLEAN, 0, 0, 0, 0, false},              // what infer does with an image first
    {"light", AUGMENT_LIGHT, 0, 0, 0, 0, false},              // lib/image_augment_light.h
};

typedef struct {
    double p, low, high;
} AugmentSetting;

typedef struct {
    AugmentSetting set[AUGMENT_OPERATIONS];  // in the order of augment_kinds; all 0: no augmentation
} Augment;

/* ---- reading ---- */

static inline int augment_find(const char *name, size_t length) {
    for (int i = 0; i < AUGMENT_OPERATIONS; i++)
        if (strlen(augment_kinds[i].name) == length && !strncmp(augment_kinds[i].name, name, length)) return i;
    return -1;
}

/* Reads a number at *text and moves *text behind it. */
static inline bool augment_number(const char **text, double *x) {
    const char *dots = strstr(*text, "..");
    char number[40], *end;
    size_t length = strspn(*text, "0123456789.+-eE");
    if (dots && (size_t)(dots - *text) < length) length = dots - *text;
    if (length == 0 || length >= sizeof number) return false;
    memcpy(number, *text, length);
    number[length] = '\0';
    *x = strtod(number, &end);
    *text += length;
    return *end == '\0' && isfinite(*x);
}

/* Reads =P, =P:X or =P:A..B, if it is there, up to the end or a comma. Returns whether that was all. */
static inline bool augment_read_setting(const char **at, AugmentSetting *s, bool *has_range) {
    if (**at == '=') {
        ++*at;
        if (!augment_number(at, &s->p)) return false;
    }
    *has_range = **at == ':';
    if (*has_range) {
        ++*at;
        if (!augment_number(at, &s->low)) return false;
        s->high = s->low;
        if (!strncmp(*at, "..", 2)) {
            *at += 2;
            if (!augment_number(at, &s->high)) return false;
        }
    }
    return **at == '\0' || **at == ',';
}

/* Reads one NAME=P:A..B, up to the end or the next comma, and moves *text there. */
static inline int augment_parse_one(Augment *a, const char **text, Error *err) {
    const int length = (int)strcspn(*text, ","), name_length = (int)strcspn(*text, "=:,");
    const char *whole = *text, *at = whole + name_length;
    const int i = augment_find(whole, name_length);
    const bool all = name_length == 3 && !strncmp(whole, "all", 3);
    AugmentSetting s = {1, 0, 0};
    bool has_range = false;
    *text += length;
    if (i < 0 && !all) {
        char names[200] = "all";
        for (int k = 0; k < AUGMENT_OPERATIONS; k++) strcat(strcat(names, ", "), augment_kinds[k].name);
        return error_set(err, "there is no augmentation '%.*s'; expected some of %s, or none", name_length, whole,
                         names);
    }
    if (!augment_read_setting(&at, &s, &has_range))
        return error_set(err,
                         "the augmentation '%.*s' cannot be read; expected NAME, NAME=P, NAME=P:X or NAME=P:A..B",
                         length, whole);
    if (s.p < 0 || s.p > 1)
        return error_set(err, "the augmentation '%.*s' has probability %g; 0 to 1 was expected", length, whole, s.p);
    const AugmentKind *kind = &augment_kinds[i < 0 ? 0 : i];
    if (has_range && (all || kind->most == 0))
        return error_set(err, "the augmentation '%.*s' has a strength, and %.*s takes none", length, whole,
                         name_length, whole);
    if (has_range && (s.low < kind->least || s.high > kind->most || s.low > s.high))
        return error_set(
            err, "the augmentation '%.*s' has strength %g to %g; from small to large, within %g to %g, was expected",
            length, whole, s.low, s.high, kind->least, kind->most);
    for (int k = 0; k < AUGMENT_OPERATIONS; k++) {
        if (all ? !augment_kinds[k].in_all : k != i) continue;
        a->set[k] = has_range ? s : (AugmentSetting){s.p, augment_kinds[k].low, augment_kinds[k].high};
    }
    return 0;
}

/* Reads the text of --augment. Older versions wrote true (now light) and false into options.txt. */
static inline int augment_parse(Augment *a, const char *text, Error *err) {
    memset(a, 0, sizeof *a);
    if (!strcmp(text, "none") || !strcmp(text, "false")) return 0;
    if (!strcmp(text, "true")) text = "light";
    for (;; text++) {
        if (augment_parse_one(a, &text, err) != 0) return -1;
        if (*text == '\0') return 0;
    }
}

/* Whether some operation needs the image as it was before it was prepared. */
static inline bool augment_needs_image(const Augment *a) {
    for (int i = 0; i < AUGMENT_OPERATIONS; i++)
        if (a->set[i].p > 0 && augment_kinds[i].operation != AUGMENT_LIGHT) return true;
    return false;
}

/* ---- applying ---- */

/* Whether a sample gets the operation at index i of the table in this epoch; then `random` is its stream. */
static inline bool augment_draw(const Augment *a, int i, uint64_t seed, uint64_t epoch, uint32_t sample,
                                Random *random) {
    if (a->set[i].p <= 0) return false;
    random_seed3(random, seed, epoch, (uint64_t)sample | (uint64_t)(augment_kinds[i].operation + 2) << 40);
    return random_uniform(random) < a->set[i].p;
}

/* A strength from the range. */
static inline double augment_strength(const AugmentSetting *s, Random *random) {
    return s->low + (s->high - s->low) * random_uniform(random);
}

static inline double augment_sign(Random *random) { return random_below(random, 2) ? 1 : -1; }

static inline void augment_pad_randomly(Image *p, const AugmentSetting *s, Random *random) {
    const ImageBox box = image_trim(p, IMAGE_WHITE);
    const int side = box.width > box.height ? box.width : box.height;
    int margin[4];
    for (int k = 0; k < 4; k++) margin[k] = (int)lrint(augment_strength(s, random) * side);
    augment_pad(p, margin);
}

/* Applies one operation that was drawn. */
static inline void augment_apply(Image *p, AugmentOperation operation, const AugmentSetting *s, Random *random) {
    const double x = operation == AUGMENT_SCALE || operation == AUGMENT_PAD || operation == AUGMENT_BACKGROUND
                         ? 0
                         : augment_strength(s, random);
    double paper[3];
    switch (operation) {
    case AUGMENT_ELASTIC: augment_elastic(p, x, random); break;
    case AUGMENT_ROTATE: augment_rotate(p, x * augment_sign(random)); break;
    case AUGMENT_SCALE: {
        const double factor = s->low * pow(s->high / s->low, random_uniform(random));
        augment_scale(p, factor, augment_filters[random_below(random, AUGMENT_FILTERS)]);
        break;
    }
    case AUGMENT_PAD: augment_pad_randomly(p, s, random); break;
    case AUGMENT_BACKGROUND:
        for (int k = 0; k < 3; k++) paper[k] = 255 - augment_strength(s, random);
        augment_background(p, paper);
        break;
    case AUGMENT_INVERT: image_invert(p); break;
    case AUGMENT_CONTRAST: augment_tone(p, x, 0); break;
    case AUGMENT_BRIGHTNESS: augment_tone(p, 1, x * augment_sign(random)); break;
    case AUGMENT_BLUR: augment_blur(p, x); break;
    case AUGMENT_NOISE: augment_noise(p, x, random); break;
    case AUGMENT_JPEG: augment_jpeg(p, (int)lrint(x)); break;
    case AUGMENT_CLEAN: image_clean(p, NULL); break;
    case AUGMENT_LIGHT:
    case AUGMENT_OPERATIONS: break;
    }
}

enum { AUGMENT_LARGEST_SIDE = 4096 };  // pixels of what an operation gets: even with margins within JPEG's limits

/* Augments a decoded image in place, all but `light`. Returns the part of it that image_prepare_box should take: without the
 * exactly white margin, as for any other image, but with it where `pad` has made one and `clean` has not looked at it
 * since. */
static inline ImageBox augment_image(const Augment *a, Image *p, uint64_t seed, uint64_t epoch, uint32_t sample) {
    Random random;
    bool padded = false;
    for (int i = 0; i < AUGMENT_OPERATIONS; i++) {
        const AugmentOperation operation = augment_kinds[i].operation;
        if (!augment_draw(a, i, seed, epoch, sample, &random)) continue;
        image_shrink(p, AUGMENT_LARGEST_SIDE);
        augment_apply(p, operation, &a->set[i], &random);
        if (operation == AUGMENT_PAD || operation == AUGMENT_CLEAN) padded = operation == AUGMENT_PAD;
    }
    return padded ? (ImageBox){0, 0, p->width, p->height} : image_trim(p, IMAGE_WHITE);
}

/* Augments an image that has been prepared, [height, width, 3], where that is what was drawn. */
static inline void augment_prepared(const Augment *a, uint8_t *pixels, ImageSize size, uint64_t seed, uint64_t epoch,
                                    uint32_t sample) {
    Random random;
    for (int i = 0; i < AUGMENT_OPERATIONS; i++)
        if (augment_kinds[i].operation == AUGMENT_LIGHT && augment_draw(a, i, seed, epoch, sample, &random))
            augment_light(pixels, size, augment_light_draw(seed, epoch, sample));
}

#endif
