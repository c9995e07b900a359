/* Rendering: program -> PDF -> pixels or SVG.
 *
 *   Renderer r;  Compiled c;  Image image;
 *   if (renderer_open(&r, &(RenderOptions){0}, &err)) ...
 *   if (render_compile(&r, RENDER_TIKZ, program, strlen(program), &c, &err)) ...   // the machine fails
 *   if (c.pdf && render_image(&r, &c, 420, 0, &image, &err) == 0) ...              // drawn; c.clean: without errors
 *
 * Engines are tried in the order pdflatex, lualatex, xelatex. The first without errors wins. Otherwise the result of
 * the engine whose first error is furthest down is kept, with its PDF if it wrote one: TeX recovers from many errors
 * (the rule of DeTikZify). Only the last page counts.
 *
 * One Renderer serves several threads at a time; each call works in a folder of its own. */
#ifndef LIB_RENDER_H
#define LIB_RENDER_H

#include "image.h"
#include "image_prepare.h"
#include "tex_compile.h"

typedef struct {
    int engines;              // 1 << TEX_PDFLATEX | ...: only these; 0: all that are installed
    SandboxLimits limits;     // of each program that runs; all 0: sandbox_default_limits
    const char *cache;        // folder of the preloaded formats; NULL: the user's cache folder
    int format_after;         // make a format when a preamble comes for the n-th time; 0: the second, -1: never
    bool unsafe;              // --unsafe-tex: no box, shell escape as TeX is configured; limits remain
    bool (*cancelled)(void);  // asked ten times a second whether to give up; or NULL
} RenderOptions;

typedef struct {
    TexSystem tex;
    TexFormats formats;
} Renderer;

static inline void renderer_close(Renderer *r) {
    tex_formats_close(&r->formats);
    tex_system_close(&r->tex);
}

/* Finds the TeX system. Fails where no engine or no pdftocairo is installed. */
static inline int renderer_open(Renderer *r, const RenderOptions *o, Error *err) {
    const SandboxLimits *limits = o->limits.cpu_seconds > 0 ? &o->limits : &sandbox_default_limits;
    tex_system_open(&r->tex, o->engines, limits, o->unsafe, o->cancelled);
    tex_formats_open(&r->formats, &r->tex, o->cache, o->format_after ? o->format_after : 2);
    const bool none = tex_none_installed(&r->tex, err);
    if (!none && r->tex.pdftocairo) return 0;
    if (!none)
        error_set(err,
                  "pdftocairo is not installed; scripts/deps.sh tex installs it (Debian and Ubuntu: poppler-utils)");
    renderer_close(r);
    return -1;
}

/* ---- compiling ---- */

/* Whether the other engines need not be tried: this one has compiled, a limit ended it (an endless loop is one in
 * every engine), or the document asks for a package that is not installed. */
static inline bool render_is_final(const Compiled *c) {
    if (c->clean || c->stopped) return true;
    char *file = c->log.count > 0 ? tex_missing_file(c->log.errors[0].message) : NULL;
    const bool final = file && tex_is_package(file) && !c->pdf;
    free(file);
    return final;
}

/* Compiles a program of n bytes with the engines of the set (1 << TEX_PDFLATEX | ...) that the renderer has. Returns 0 with a
 * verdict in c (free it with compiled_free): c->pdf is NULL where nothing can be drawn, c->problem says why. Returns -1
 * where no verdict is possible: the disk is full, a folder or process cannot be made, or the user has interrupted. */
static inline int render_compile_with(Renderer *r, int engines, RenderTask task, const char *program, size_t n,
                                      Compiled *c, Error *err) {
    Error why;
    memset(c, 0, sizeof *c);
    char *document = tex_document(task, program, n, &why);
    if (!document) {
        tex_log_add(&c->log, 0, why.text, strlen(why.text));
        c->problem = xstrdup(why.text);
        return 0;
    }
    int status = 0;
    for (int e = 0; status == 0 && e < TEX_ENGINES; e++) {
        Compiled next;
        if (!r->tex.engines[e] || !(engines >> e & 1)) continue;
        status = tex_compile(&r->tex, &r->formats, (TexEngine)e, document, &next, err);
        if (status != 0) break;
        const bool first = !c->problem, final = render_is_final(&next), stopped = c->stopped || next.stopped;
        const bool better = first || next.clean || tex_log_first_line(&next.log) > tex_log_first_line(&c->log);
        compiled_free(better ? c : &next);
        if (better) *c = next;
        c->stopped = stopped;
        if (final) break;
    }
    free(document);
    if (status == 0 && r->tex.cancelled && r->tex.cancelled()) status = error_set(err, "rendering was interrupted");
    if (status != 0) compiled_free(c);
    return status;
}

/* The engines with which a program is worth to be tried where many are compiled: all for one that asks for LuaTeX or XeTeX.
 * For the others one is enough: what pdfTeX cannot compile is wrong, and the other engines need seconds to find the same. */
static inline int render_engines(const Renderer *r, const char *program, size_t n) {
    static const char *const words[] = {"fontspec", "unicode-math", "luacode", "luatex", "directlua", "xeCJK"};
    const int all = (1 << TEX_ENGINES) - 1;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (memmem(program, n, words[i], strlen(words[i]))) return all;
    return r->tex.engines[TEX_PDFLATEX] ? 1 << TEX_PDFLATEX : all;
}

/* The same with all engines. */
static inline int render_compile(Renderer *r, RenderTask task, const char *program, size_t n, Compiled *c,
                                 Error *err) {
    return render_compile_with(r, (1 << TEX_ENGINES) - 1, task, program, n, c, err);
}

/* ---- drawing ---- */

/* Which part of the page, in pixels, at which resolution. */
typedef struct {
    int scale_to;  // pixels of the page's longest side; 0: use dpi
    double dpi;
    ImageBox part;  // width 0: the whole page
    bool hard;      // pixels are inside or outside of a shape: no antialiasing, no mixed colours
} RenderView;

/* Runs pdftocairo on the last page. Returns the file that it writes, allocated, or NULL. */
static inline char *render_page_file(const Renderer *r, const Compiled *c, const char *kind, const RenderView *v,
                                     size_t *size, Error *err) {
    char text[8][32], *bytes = NULL;
    const char *arguments[24] = {r->tex.pdftocairo, kind};
    const bool png = !strcmp(kind, "-png");
    int n = 2;
    snprintf(text[0], sizeof text[0], "%d", c->log.pages);
    snprintf(text[1], sizeof text[1], "%d", v->scale_to);
    snprintf(text[2], sizeof text[2], "%.6g", v->dpi);
    const char *const page[] = {"-f", text[0], "-l", text[0]};
    for (int i = 0; i < 4; i++) arguments[n++] = page[i];
    if (png) arguments[n++] = "-singlefile";
    if (png) arguments[n++] = v->scale_to ? "-scale-to" : "-r";
    if (png) arguments[n++] = v->scale_to ? text[1] : text[2];
    if (png && v->hard) arguments[n++] = "-antialias", arguments[n++] = "none";
    const int numbers[] = {v->part.x, v->part.y, v->part.width, v->part.height};
    for (int i = 0; v->part.width > 0 && i < 4; i++) {
        static const char *const names[] = {"-x", "-y", "-W", "-H"};
        snprintf(text[4 + i], sizeof text[0], "%d", numbers[i]);
        arguments[n++] = names[i];
        arguments[n++] = text[4 + i];
    }
    arguments[n++] = "a.pdf";
    arguments[n++] = png ? "a" : "a.svg";
    SandboxResult result = {0};
    char *folder = sandbox_folder_make(NULL, err);
    int status = folder ? sandbox_write(folder, "a.pdf", c->pdf, c->pdf_bytes, err) : -1;
    if (status == 0) status = tex_run(&r->tex, arguments, folder, NULL, &result, err);
    if (status == 0 && result.stopped)
        error_set(err, "pdftocairo %s", result.reason);
    else if (status == 0 && !(bytes = sandbox_read(folder, png ? "a.png" : "a.svg", TEX_PDF_BYTES, size, err))) {
        result.output[strcspn(result.output, "\n")] = '\0';
        error_set(err, "pdftocairo cannot draw the page: %s", printable(result.output));
    }
    if (status == 0) sandbox_result_free(&result);
    sandbox_folder_remove(folder);
    return bytes;
}

static inline int render_view(const Renderer *r, const Compiled *c, const RenderView *v, Image *image, Error *err) {
    size_t size = 0;
    memset(image, 0, sizeof *image);
    char *bytes = render_page_file(r, c, "-png", v, &size, err);
    int status = bytes ? image_decode(image, (const uint8_t *)bytes, size, "of pdftocairo", err) : -1;
    free(bytes);
    return status;
}

/* Keeps only a box of the image. */
static inline void render_crop(Image *p, ImageBox box) {
    for (int y = 0; y < box.height; y++)
        memmove(p->rgb + 3 * (size_t)box.width * y, p->rgb + 3 * ((size_t)p->width * (box.y + y) + box.x),
                3 * (size_t)box.width);
    p->width = box.width;
    p->height = box.height;
}

/* The view that shows `box` of the present view with `longest` pixels on its longest side. */
static inline RenderView render_closer(const RenderView *v, ImageBox box, int longest) {
    const int side = box.width > box.height ? box.width : box.height;
    const double most = 200000.0, wanted = (double)v->scale_to * longest / side,
                 scale = wanted < most ? wanted : most, ratio = scale / v->scale_to;
    const int x = (int)((v->part.x + box.x - 1) * ratio) - 2, y = (int)((v->part.y + box.y - 1) * ratio) - 2;
    const ImageBox part = {x > 0 ? x : 0, y > 0 ? y : 0, (int)((box.width + 2) * ratio) + 5,
                           (int)((box.height + 2) * ratio) + 5};
    return (RenderView){(int)scale, 0, part, v->hard};
}

/* Draws the last page, cropped to what is not white, on white. `longest` > 0: the longest side has this many pixels,
 * or up to two less; otherwise `dpi` pixels per inch. A page that shows nothing is drawn whole. Free with image_free.
 *
 * A page that is no larger than the figure is drawn once. Another is drawn again, closer, until the size is right, five
 * times at most; the last is then taken as it is. */
static inline int render_image(const Renderer *r, const Compiled *c, int longest, double dpi, Image *image,
                               Error *err) {
    RenderView view = {longest, dpi, {0, 0, 0, 0}, false};
    if (!c->pdf)
        return error_set(err, "there is nothing to draw: %s", c->problem ? c->problem : "nothing was compiled");
    if (longest > IMAGE_MAX_SIDE || longest < 0 || (longest == 0 && !(dpi >= 1 && dpi <= 10000)))
        return error_set(err, "cannot draw with %d pixels or %g dpi; expected 1 to %d pixels or 1 to 10000 dpi",
                         longest, dpi, IMAGE_MAX_SIDE);
    for (int pass = 0;; pass++) {
        if (render_view(r, c, &view, image, err) != 0) return -1;
        const ImageBox box = image_trim(image, IMAGE_WHITE);
        const int side = box.width > box.height ? box.width : box.height;
        if (longest == 0 || (side <= longest && side >= longest - 2) || pass == 4) {
            render_crop(image, box);
            return 0;
        }
        image_free(image);
        view = render_closer(&view, box, longest);
    }
}

/* Draws the last page with `dpi` pixels per inch in the colours of the program only, without antialiasing, cropped. */
static inline int render_hard(const Renderer *r, const Compiled *c, double dpi, Image *image, Error *err) {
    const RenderView view = {0, dpi, {0, 0, 0, 0}, true};
    if (render_view(r, c, &view, image, err) != 0) return -1;
    render_crop(image, image_trim(image, IMAGE_WHITE));
    return 0;
}

/* ---- SVG ---- */

/* Replaces the first tag of an SVG file of cairo by one that shows only a part of the page: `box` of an image of the
 * page of width x height pixels. Returns the new file, allocated, or NULL. */
static inline char *render_svg_crop(const char *svg, ImageBox box, int width, int height) {
    const char *tag = strstr(svg, "<svg "), *end = tag ? strchr(tag, '>') : NULL,
               *view = tag ? strstr(tag, "viewBox=\"") : NULL;
    double x, y, w, h;
    if (!end || !view || view > end || sscanf(view + 9, "%lf %lf %lf %lf", &x, &y, &w, &h) != 4) return NULL;
    const double sx = w / width, sy = h / height;
    return format_string("%.*s<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" "
                         "width=\"%.3fpt\" height=\"%.3fpt\" viewBox=\"%.3f %.3f %.3f %.3f\" version=\"1.1\"%s",
                         (int)(tag - svg), svg, box.width * sx, box.height * sy, x + box.x * sx, y + box.y * sy,
                         box.width * sx, box.height * sy, end);
}

/* The last page as SVG, cropped to what is not white, to 1/1000 of the page. Returns the text, allocated, or NULL. */
static inline char *render_svg(const Renderer *r, const Compiled *c, Error *err) {
    const RenderView view = {1000, 0, {0, 0, 0, 0}, false};
    Image page;
    size_t size = 0;
    if (!c->pdf) {
        error_set(err, "there is nothing to draw: %s", c->problem ? c->problem : "nothing was compiled");
        return NULL;
    }
    if (render_view(r, c, &view, &page, err) != 0) return NULL;
    char *whole = render_page_file(r, c, "-svg", &view, &size, err), *cropped = NULL;
    if (whole && !(cropped = render_svg_crop(whole, image_trim(&page, IMAGE_WHITE), page.width, page.height)))
        error_set(err, "pdftocairo wrote an SVG file without its size");
    image_free(&page);
    free(whole);
    return cropped;
}

#endif
