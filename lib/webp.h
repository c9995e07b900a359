/* Decodes WebP files with libwebp: lossy and lossless, with alpha, of an animation the first frame. The pixels equal
 * Pillow's. Lossy files without alpha are decoded straight into the image when they are upright; others take 4 bytes
 * a pixel more, and libwebp 4 bytes a pixel for lossless data. */
#ifndef LIB_WEBP_H
#define LIB_WEBP_H

#include "image_orientation.h"

#ifndef WITH_WEBP
static inline int image_decode_webp(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                                    Error *err) {
    (void)p, (void)bytes, (void)n, (void)max_pixels;
    return error_set(err,
                     "cannot read the image %s: it is WebP, and this program was built without libwebp; "
                     "scripts/deps.sh build installs it (Debian and Ubuntu: libwebp-dev), then run make again",
                     name);
}
#else
#include <webp/decode.h>
#include <webp/demux.h>

/* The orientation in the first chunk of this kind, as image_exif_orientation gives it. */
static inline int webp_chunk_orientation(const WebPDemuxer *file, const char *kind,
                                         int (*orientation)(const uint8_t *, size_t)) {
    WebPChunkIterator chunk;
    int value = 0;
    if (WebPDemuxGetChunk(file, kind, 1, &chunk)) value = orientation(chunk.chunk.bytes, chunk.chunk.size);
    WebPDemuxReleaseChunkIterator(&chunk);
    return value;
}

/* Decodes the frame into pixels [height, width, channels]. Returns libwebp's status. */
static inline VP8StatusCode webp_pixels(const WebPIterator *frame, uint8_t *pixels, int channels) {
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config))
        die("the installed libwebp differs from the one this program was built with");
    config.output.colorspace = channels == 4 ? MODE_RGBA : MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = pixels;
    config.output.u.RGBA.stride = channels * frame->width;
    config.output.u.RGBA.size = (size_t)channels * frame->width * frame->height;
    return WebPDecode(frame->fragment.bytes, frame->fragment.size, &config);
}

/* Decodes the first frame onto the screen. What it does not cover is white where the file has transparency, else
 * black. */
static inline VP8StatusCode webp_frame(Image *p, const WebPDemuxer *file, const WebPIterator *frame) {
    const int width = (int)WebPDemuxGetI(file, WEBP_FF_CANVAS_WIDTH);
    const int height = (int)WebPDemuxGetI(file, WEBP_FF_CANVAS_HEIGHT);
    const bool animated = WebPDemuxGetI(file, WEBP_FF_FRAME_COUNT) > 1;
    const bool flagged = WebPDemuxGetI(file, WEBP_FF_FORMAT_FLAGS) & ALPHA_FLAG,
               alpha = animated ? flagged : frame->has_alpha;
    const int exif = webp_chunk_orientation(file, "EXIF", image_exif_orientation);
    const int orientation = exif ? exif : webp_chunk_orientation(file, "XMP ", image_xmp_orientation);
    const bool direct = !alpha && orientation <= 1 && frame->width == width && frame->height == height;
    ImageCanvas canvas = image_canvas(p, width, height, orientation);
    if (direct) return webp_pixels(frame, p->rgb, 3);
    const int channels = alpha ? 4 : 3;
    const size_t stride = (size_t)channels * frame->width;
    uint8_t *pixels = xmalloc(stride * frame->height);
    const VP8StatusCode status = webp_pixels(frame, pixels, channels);
    if (alpha) memset(p->rgb, 255, 3 * (size_t)width * height);
    for (int y = 0; status == VP8_STATUS_OK && y < frame->height; y++)
        image_put(&canvas, frame->x_offset, frame->y_offset + y, 1, pixels + stride * y, frame->width, channels);
    free(pixels);
    return status;
}

/* Decodes a WebP file of n bytes. */
static inline int image_decode_webp(Image *p, const uint8_t *bytes, size_t n, uint64_t max_pixels, const char *name,
                                    Error *err) {
    const WebPData data = {bytes, n};
    WebPDemuxState state;
    WebPDemuxer *file = WebPDemuxPartial(&data, &state);
    WebPIterator frame;
    int status = -1;
    if (!file || state == WEBP_DEMUX_PARSE_ERROR || state == WEBP_DEMUX_PARSING_HEADER ||
        !WebPDemuxGetFrame(file, 1, &frame)) {
        error_set(err, "cannot read the image %s: its WebP data are damaged or cut off", name);
    } else {
        status = image_check_size(WebPDemuxGetI(file, WEBP_FF_CANVAS_WIDTH),
                                  WebPDemuxGetI(file, WEBP_FF_CANVAS_HEIGHT), max_pixels, name, err);
        if (status == 0) {
            const VP8StatusCode code = frame.complete ? webp_frame(p, file, &frame) : VP8_STATUS_NOT_ENOUGH_DATA;
            if (code == VP8_STATUS_NOT_ENOUGH_DATA || code == VP8_STATUS_SUSPENDED)
                status = error_set(err,
                                   "cannot read the image %s: the WebP data end before the image does; the file "
                                   "is cut off",
                                   name);
            else if (code != VP8_STATUS_OK)
                status = error_set(err, "cannot read the image %s: its WebP data are damaged", name);
        }
        WebPDemuxReleaseIterator(&frame);
    }
    if (status != 0) image_free(p);
    WebPDemuxDelete(file);
    return status;
}
#endif

#endif
