/* What infer does with a compiled program when asked: report errors, write it as PDF, PNG or SVG. */
#ifndef GENERATE_DRAW_H
#define GENERATE_DRAW_H

#include "../lib/png_write.h"
#include "../lib/render.h"
#include "inputs.h"

#include <sys/stat.h>

enum { DRAW_DPI = 300 };  // of PNG files

/* Files or, for several images, folders; NULL: not wanted. */
typedef struct {
    const char *pdf, *png, *svg;
    bool check;   // a program that does not compile without errors is a failure
    bool unsafe;  // no box
} DrawOptions;

typedef struct {
    DrawOptions o;
    bool to_folder, open;
    Renderer renderer;
} Drawing;

static inline bool draw_wanted(const DrawOptions *o) { return o->pdf || o->png || o->svg || o->check; }

/* Finds TeX and makes the folders, before the models do their work. `json`: the programs are compiled where TeX is
 * installed, and without it only a warning says so. `needed`: TeX is needed for another reason than DrawOptions. */
static inline int drawing_open(Drawing *d, DrawOptions o, bool to_folder, bool needed, bool json, Error *err) {
    const char *const folders[] = {o.pdf, o.png, o.svg};
    const RenderOptions options = {.unsafe = o.unsafe};
    *d = (Drawing){.o = o, .to_folder = to_folder};
    needed = needed || draw_wanted(&o);
    if (!needed && !json) return 0;
    for (int i = 0; i < 3 && to_folder; i++)
        if (folders[i] && make_folder(folders[i], err)) return -1;
    d->open = renderer_open(&d->renderer, &options, err) == 0;
    if (d->open || needed) return d->open ? 0 : -1;
    warn("programs are not compiled: %s", err->text);
    return 0;
}

static inline void drawing_close(Drawing *d) {
    if (d->open) renderer_close(&d->renderer);
}

/* Writes the drawing as one kind of file. */
static inline int draw_save(const Drawing *d, const Compiled *c, const char *to, const Input *input,
                            const char *extension, Error *err) {
    if (!to) return 0;
    struct stat s;
    const bool folder = d->to_folder || (!stat(to, &s) && S_ISDIR(s.st_mode));
    char *path = folder ? input_output_path(to, input, extension) : xstrdup(to), *svg = NULL;
    Image pixels = {0};
    int bad = -1;
    if (!strcmp(extension, "pdf")) {
        bad = file_write(path, c->pdf, c->pdf_bytes, err);
    } else if (!strcmp(extension, "png")) {
        bad = render_image(&d->renderer, c, 0, DRAW_DPI, &pixels, err);
        if (!bad) bad = image_save_png(&pixels, path, err);
        image_free(&pixels);
    } else if ((svg = render_svg(&d->renderer, c, err))) {
        bad = file_write(path, svg, strlen(svg), err);
    }
    free(svg);
    free(path);
    return bad;
}

/* Reports what TeX says of the program that was written for an image, and writes the files that are wanted. A program with
 * errors that TeX drew all the same is drawn, with a warning. -1 with *err filled: nothing could be drawn or written, or, with
 * --check, the program does not compile. */
static inline int draw_files(const Drawing *d, const Input *input, const Compiled *c, Error *err) {
    Error why;
    int bad = 0;
    if (!draw_wanted(&d->o)) return 0;
    if (!c->clean && (d->o.check || !c->pdf))
        bad = error_set(err, "the program of %s does not compile: %s", input->path, c->problem);
    else if (!c->clean)
        warn("the program of %s compiles with an error: %s", input->path, c->problem);
    if (c->pdf &&
        (draw_save(d, c, d->o.pdf, input, "pdf", &why) || draw_save(d, c, d->o.png, input, "png", &why) ||
         draw_save(d, c, d->o.svg, input, "svg", &why)) &&
        !bad)
        bad = error_set(err, "%s", why.text);
    return bad ? -1 : 0;
}

#endif
