/* What infer does with a finished program when asked: compile it in the box, report errors, write it as PDF, PNG or SVG. */
#ifndef DRAW_H
#define DRAW_H

#include "lib/png_write.h"
#include "lib/render.h"

enum { DRAW_DPI = 300 };  // of PNG files

/* Files or, for several images, folders; NULL: not wanted. */
typedef struct {
    const char *pdf, *png, *svg;
    bool check;   // a program that does not compile without errors is a failure
    bool unsafe;  // no box
} DrawOptions;

typedef struct {
    DrawOptions o;
    bool to_folder;
    Renderer renderer;
} Drawing;

static inline bool draw_wanted(const DrawOptions *o) { return o->pdf || o->png || o->svg || o->check; }

/* FOLDER/NAME.EXTENSION for an image any/path/NAME.png. */
static inline char *draw_path(const char *folder, const char *image, const char *extension) {
    const char *slash = strrchr(image, '/'), *name = slash ? slash + 1 : image, *dot = strrchr(name, '.');
    const int length = dot && dot != name ? (int)(dot - name) : (int)strlen(name);
    return format_string("%s/%.*s.%s", folder, length, name, extension);
}

/* Finds TeX and makes the folders, before the models do their work. */
static inline int drawing_open(Drawing *d, DrawOptions o, bool to_folder, Error *err) {
    const char *const folders[] = {o.pdf, o.png, o.svg};
    const RenderOptions options = {.unsafe = o.unsafe};
    *d = (Drawing){.o = o, .to_folder = to_folder};
    if (!draw_wanted(&o)) return 0;
    for (int i = 0; i < 3 && to_folder; i++)
        if (folders[i] && make_folder(folders[i], err)) return -1;
    return renderer_open(&d->renderer, &options, err);
}

static inline void drawing_close(Drawing *d) {
    if (draw_wanted(&d->o)) renderer_close(&d->renderer);
}

/* Writes the drawing as one kind of file. */
static inline int draw_save(const Drawing *d, const Compiled *c, const char *to, const char *image,
                            const char *extension, Error *err) {
    if (!to) return 0;
    struct stat s;
    const bool folder = d->to_folder || (!stat(to, &s) && S_ISDIR(s.st_mode));
    char *path = folder ? draw_path(to, image, extension) : xstrdup(to), *svg = NULL;
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

/* Compiles the program of n bytes that was written for an image, and writes what is wanted. A program with errors that TeX
 * drew all the same is drawn, with a warning. -1 with *err filled: nothing could be drawn or written, or, with --check, the
 * program does not compile. */
static inline int draw_program(Drawing *d, const char *image, const char *program, size_t n, Error *err) {
    Compiled c;
    if (!draw_wanted(&d->o)) return 0;
    if (render_compile(&d->renderer, RENDER_TIKZ, program, n, &c, err)) return -1;
    int bad = 0;
    if (!c.clean && (d->o.check || !c.pdf))
        bad = error_set(err, "the program of %s does not compile: %s", image, c.problem);
    else if (!c.clean)
        warn("the program of %s compiles with an error: %s", image, c.problem);
    Error why;
    if (c.pdf &&
        (draw_save(d, &c, d->o.pdf, image, "pdf", &why) || draw_save(d, &c, d->o.png, image, "png", &why) ||
         draw_save(d, &c, d->o.svg, image, "svg", &why)) &&
        !bad)
        bad = error_set(err, "%s", why.text);
    compiled_free(&c);
    return bad ? -1 : 0;
}

#endif
