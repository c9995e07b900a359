/* Turns an image as people have it (off-white paper, JPEG, dark mode, a scan, a photo) into one like the models were
 * trained on: dark or coloured lines on exactly white paper.
 *
 * The steps, each of which does nothing where there is nothing to do: take off a frame and invert dark mode
 * (lib/image_frame.h), make the paper white even where the light is uneven (lib/image_paper.h), remove noise and what JPEG
 * leaves beside lines, and specks in the margin (lib/image_noise.h), and undo a small rotation (lib/image_rotate.h).
 * A clean image keeps every pixel. */
#ifndef LIB_IMAGE_CLEAN_H
#define LIB_IMAGE_CLEAN_H

#include "image_frame.h"
#include "image_noise.h"
#include "image_paper.h"
#include "image_pixels.h"
#include "image_rotate.h"

#include <stdarg.h>

/* What image_clean did. */
enum {
    IMAGE_DID_FRAME = 1,     // took off a frame, or a margin of another colour than the paper
    IMAGE_DID_INVERT = 2,    // light lines on a dark ground became dark on light
    IMAGE_DID_LIGHT = 4,     // evened out the light of a photo
    IMAGE_DID_PAPER = 8,     // made paper of one colour white
    IMAGE_DID_NOISE = 16,    // made noise on the paper white
    IMAGE_DID_SPECKS = 32,   // removed specks outside the drawing
    IMAGE_DID_ROTATE = 64,   // undid a small rotation
    IMAGE_FOUND_EMPTY = 128  // one colour, or transparent: there is nothing to draw
};

typedef struct {
    unsigned did;    // IMAGE_DID_...
    int paper[3];    // RGB colour that became white
    int frame;       // pixels taken off the widest side
    int noise;       // levels below white that counted as noise
    int specks;      // pixels of the specks
    double degrees;  // rotation that was undone, counterclockwise
    char text[256];  // what was done: "paper 254 made white; inverted"; empty: nothing
} ImageCleaned;

__attribute__((format(printf, 2, 3))) static inline void image_cleaned_say(ImageCleaned *c, const char *format, ...) {
    size_t length = strlen(c->text);
    if (length) length += (size_t)snprintf(c->text + length, sizeof c->text - length, "; ");
    if (length >= sizeof c->text) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->text + length, sizeof c->text - length, format, arguments);
    va_end(arguments);
}

/* Writes what was done into c->text. */
static inline void image_cleaned_describe(ImageCleaned *c) {
    const int *paper = c->paper;
    const bool grey = paper[0] == paper[1] && paper[1] == paper[2];
    c->text[0] = '\0';
    if (c->did & IMAGE_FOUND_EMPTY) image_cleaned_say(c, "the image is empty: all of it has one colour");
    if (c->did & IMAGE_DID_FRAME)
        image_cleaned_say(c, "frame of %d pixel%s removed", c->frame, c->frame == 1 ? "" : "s");
    if (c->did & IMAGE_DID_INVERT) image_cleaned_say(c, "inverted");
    if (c->did & IMAGE_DID_LIGHT) image_cleaned_say(c, "uneven light evened out");
    if (c->did & IMAGE_DID_PAPER && grey) image_cleaned_say(c, "paper %d made white", paper[0]);
    if (c->did & IMAGE_DID_PAPER && !grey)
        image_cleaned_say(c, "paper (%d, %d, %d) made white", paper[0], paper[1], paper[2]);
    if (c->did & IMAGE_DID_NOISE) image_cleaned_say(c, "noise of up to %d levels removed", c->noise);
    if (c->did & IMAGE_DID_SPECKS)
        image_cleaned_say(c, "specks of %d pixel%s removed", c->specks, c->specks == 1 ? "" : "s");
    if (c->did & IMAGE_DID_ROTATE) image_cleaned_say(c, "rotated by %.1f degrees", -c->degrees);
}

/* Cleans an image in place; its size may change. p->rgb must be allocated, as image_decode leaves it. done may be NULL.
 * It takes at most 7 more bytes for each pixel. */
static inline void image_clean(Image *p, ImageCleaned *done) {
    ImageCleaned c = {0};
    if (image_one_colour(p)) {
        c.did = IMAGE_FOUND_EMPTY;
    } else {
        if ((c.frame = image_frame_remove(p))) c.did |= IMAGE_DID_FRAME;
        if (image_is_dark(p)) {
            image_invert(p);
            c.did |= IMAGE_DID_INVERT;
        }
        const ImagePaper paper = image_paper_whiten(p, c.did & IMAGE_DID_INVERT);
        if (paper.uneven) c.did |= IMAGE_DID_LIGHT;
        if (paper.changed && !paper.uneven) c.did |= IMAGE_DID_PAPER;
        memcpy(c.paper, paper.colour, sizeof c.paper);
        const ImageNoise noise = paper.found ? image_noise_remove(p) : (ImageNoise){0, 0};
        if ((c.noise = noise.level)) c.did |= IMAGE_DID_NOISE;
        if (paper.found && (c.did & (IMAGE_DID_NOISE | IMAGE_DID_LIGHT))) c.degrees = image_rotation(p);
        if (c.degrees != 0) {
            image_rotate(p, c.degrees);
            if (noise.level) image_bound(p, noise.bound);  // the corners of the box were noise, and are margin now
            c.did |= IMAGE_DID_ROTATE;
        }
        if (paper.found && (c.specks = image_specks_remove(p, c.noise != 0))) c.did |= IMAGE_DID_SPECKS;
    }
    image_cleaned_describe(&c);
    if (done) *done = c;
}

#endif
