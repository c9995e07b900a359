/* The connected pieces of ink in an image: letters, bars, outlines. */
#ifndef LIB_IMAGE_PIECES_H
#define LIB_IMAGE_PIECES_H

#include "image_trim.h"

typedef struct {
    ImageBox box;
    int ink;  // pixels of the piece
} ImagePiece;

static inline int image_piece_root(int *parent, int i) {
    while (parent[i] != i) i = parent[i] = parent[parent[i]];
    return i;
}

static inline void image_piece_grow(ImagePiece *piece, int x, int y) {
    ImageBox *b = &piece->box;
    if (!piece->ink++) {
        *b = (ImageBox){x, y, 1, 1};
        return;
    }
    if (x < b->x) b->width += b->x - x, b->x = x;
    if (x >= b->x + b->width) b->width = x - b->x + 1;
    if (y >= b->y + b->height) b->height = y - b->y + 1;
}

/* Finds the pieces of ink, whose pixels touch at sides or corners, in the order of their first pixels. ink: u8 [height,
 * width], 0 where there is none. Returns their number; free *pieces. */
static inline int image_pieces(const uint8_t *ink, int width, int height, ImagePiece **pieces) {
    const int n = width * height;
    int *parent = (int *)xmalloc((size_t)n * sizeof *parent), count = 0;
    for (int i = 0; i < n; i++) {
        const int x = i % width;
        const int before[4] = {x > 0 ? i - 1 : -1, x > 0 ? i - width - 1 : -1, i - width,
                               x < width - 1 ? i - width + 1 : -1};
        parent[i] = i;
        for (int k = 0; k < 4 && ink[i]; k++)
            if (before[k] >= 0 && ink[before[k]])
                parent[image_piece_root(parent, i)] = image_piece_root(parent, before[k]);
    }
    int *number = (int *)xcalloc((size_t)n, sizeof *number);  // of the piece of a root, from 1
    for (int i = 0; i < n; i++)
        if (ink[i] && !number[image_piece_root(parent, i)]) number[image_piece_root(parent, i)] = ++count;
    *pieces = (ImagePiece *)xcalloc((size_t)count + 1, sizeof **pieces);
    for (int i = 0; i < n; i++)
        if (ink[i]) image_piece_grow(&(*pieces)[number[image_piece_root(parent, i)] - 1], i % width, i / width);
    free(parent);
    free(number);
    return count;
}

#endif
