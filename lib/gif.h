/* Decodes the first frame of GIF files with giflib, row by row: beside the image it keeps one row. The pixels equal
 * Pillow's: what the frame does not cover is transparent where it has a transparent colour, else its colour 0, and
 * entries that a palette lacks are grey. */
#ifndef LIB_GIF_H
#define LIB_GIF_H

#include "image_pixels.h"

#ifndef WITH_GIF
static inline int image_decode_gif(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                                   Error *err) {
    (void)p, (void)bytes, (void)n, (void)max_pixels;
    return error_set(
        err,
        "cannot read the image %s: it is GIF, and this program was built without giflib; scripts/deps.sh "
        "build installs it (Debian and Ubuntu: libgif-dev), then run make again",
        name);
}
#else
#include <gif_lib.h>

typedef struct {
    const uint8_t *bytes;
    size_t size, at;
    uint8_t palette[1024];  // [256, 4] RGBA of the frame
    int transparent;        // index, or -1
} GifReader;

static inline int gif_bytes(GifFileType *gif, GifByteType *out, int n) {
    GifReader *r = gif->UserData;
    if ((size_t)n > r->size - r->at) n = (int)(r->size - r->at);
    memcpy(out, r->bytes + r->at, (size_t)n);
    r->at += (size_t)n;
    return n;
}

/* Reads everything before the first frame and its description. */
static inline int gif_frame(GifFileType *gif, GifReader *r) {
    GifRecordType kind;
    for (;;) {
        if (DGifGetRecordType(gif, &kind) == GIF_ERROR) return -1;
        if (kind == IMAGE_DESC_RECORD_TYPE) return DGifGetImageDesc(gif) == GIF_ERROR ? -1 : 0;
        if (kind != EXTENSION_RECORD_TYPE) return -1;
        int code;
        GifByteType *block;
        GraphicsControlBlock control;
        if (DGifGetExtension(gif, &code, &block) == GIF_ERROR) return -1;
        if (code == GRAPHICS_EXT_FUNC_CODE && block && DGifExtensionToGCB(block[0], block + 1, &control) == GIF_OK &&
            control.TransparentColor != NO_TRANSPARENT_COLOR)
            r->transparent = control.TransparentColor;
        while (block)
            if (DGifGetExtensionNext(gif, &block) == GIF_ERROR) return -1;
    }
}

static inline void gif_palette(const GifFileType *gif, GifReader *r) {
    const ColorMapObject *map = gif->Image.ColorMap ? gif->Image.ColorMap : gif->SColorMap;
    image_grey_palette(r->palette);
    for (int i = 0; map && i < map->ColorCount && i < 256; i++)
        memcpy(r->palette + 4 * i, (uint8_t[]){map->Colors[i].Red, map->Colors[i].Green, map->Colors[i].Blue}, 3);
    if (r->transparent >= 0) r->palette[4 * r->transparent + 3] = 0;
}

/* Reads the rows of the frame. Those of an interlaced one come in four passes (GIF89a, appendix E). */
static inline int gif_rows(GifFileType *gif, const GifReader *r, const ImageCanvas *canvas) {
    static const int start[] = {0, 4, 2, 1}, step[] = {8, 8, 4, 2};
    const GifImageDesc *frame = &gif->Image;
    uint8_t *row = xcalloc(frame->Width + 1, 1);
    int status = 0;
    for (int pass = 0; pass < (frame->Interlace ? 4 : 1); pass++) {
        const int from = frame->Interlace ? start[pass] : 0, by = frame->Interlace ? step[pass] : 1;
        for (int y = from; status == 0 && y < frame->Height; y += by) {
            if (DGifGetLine(gif, row, frame->Width) == GIF_ERROR)
                status = -1;
            else
                image_put_indexed(canvas, frame->Left, frame->Top + y, row, frame->Width, r->palette);
        }
    }
    free(row);
    return status;
}

/* Decodes a GIF file of n bytes. A frame that reaches beyond the screen enlarges it. */
static inline int image_decode_gif(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                                   Error *err) {
    GifReader r = {.bytes = bytes, .size = n, .transparent = -1};
    int why = 0, status = 0, refused = 0;
    GifFileType *gif = DGifOpen(&r, gif_bytes, &why);
    if (gif) {
        status = gif_frame(gif, &r);
        const int right = gif->Image.Left + gif->Image.Width, bottom = gif->Image.Top + gif->Image.Height;
        const int width = right > gif->SWidth ? right : gif->SWidth;
        const int height = bottom > gif->SHeight ? bottom : gif->SHeight;
        if (status == 0) refused = image_check_size((uint64_t)width, (uint64_t)height, max_pixels, name, err);
        if (status == 0 && !refused) {
            gif_palette(gif, &r);
            ImageCanvas canvas = image_canvas(p, width, height, 1);
            const uint8_t *ground = r.palette + 4 * (r.transparent >= 0 ? r.transparent : 0);
            const bool covered = gif->Image.Width == width && gif->Image.Height == height;
            for (int y = 0; !covered && y < height; y++)
                for (int x = 0; x < width; x++) image_put(&canvas, x, y, 1, ground, 1, 4);
            status = gif_rows(gif, &r, &canvas);
        }
        why = gif->Error;
        DGifCloseFile(gif, NULL);
    }
    if (refused) return refused;
    if (gif && status == 0) return 0;
    image_free(p);
    const char *reason = GifErrorString(why);
    return error_set(err, "cannot read the image %s: its GIF data are damaged or cut off (%s)", name,
                     reason ? reason : "there is no frame");
}
#endif

#endif
