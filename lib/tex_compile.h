/* Compiles one document with one engine, in the box and in a folder of its own. */
#ifndef LIB_TEX_COMPILE_H
#define LIB_TEX_COMPILE_H

#include "tex_format.h"
#include "tex_log.h"

enum { TEX_RUNS = 3, TEX_LOG_BYTES = 16 << 20, TEX_PDF_BYTES = 64 << 20 };

/* What became of a document. */
typedef struct {
    bool clean;        // compiled without any error
    bool stopped;      // by a limit
    TexEngine engine;  // whose result this is
    TexLog log;        // its errors, none if clean, and the number of pages
    char *problem;     // one sentence on the first error, without a full stop; NULL if clean
    char *pdf;         // the PDF file, also one that was written in spite of errors; NULL: none
    size_t pdf_bytes;
} Compiled;

static inline void compiled_free(Compiled *c) {
    tex_log_free(&c->log);
    free(c->problem);
    free(c->pdf);
    memset(c, 0, sizeof *c);
}

/* Runs an engine once in `folder`; XeTeX's output is made a PDF by a second program, because a program in the box
 * starts no other. `formats` is the folder of a preloaded format, or NULL. */
static inline int tex_run_engine(const TexSystem *t, TexEngine engine, const char *folder, const char *formats,
                                 SandboxResult *r, Error *err) {
    const char *arguments[12] = {t->engines[engine], "-interaction=nonstopmode", "-file-line-error"};
    int n = 3;
    if (!t->unsafe) arguments[n++] = "-no-shell-escape";
    if (engine == TEX_LUALATEX && !t->unsafe) arguments[n++] = "--nosocket";
    if (engine == TEX_XELATEX) arguments[n++] = "-no-pdf";
    if (formats) arguments[n++] = "-fmt=a";
    arguments[n++] = "a.tex";
    int status = tex_run(t, arguments, folder, formats, r, err);
    char *xdv = format_string("%s/a.xdv", folder);
    if (status == 0 && engine == TEX_XELATEX && !r->stopped && file_exists(xdv)) {
        const char *convert[] = {t->xdvipdfmx, "-q", "-E", "-o", "a.pdf", "a.xdv", NULL};
        SandboxResult converted;
        status = tex_run(t, convert, folder, NULL, &converted, err);
        if (status == 0 && (converted.stopped || r->status == 0)) {
            sandbox_result_free(r);
            *r = converted;
        } else if (status == 0) {
            sandbox_result_free(&converted);
        } else {
            sandbox_result_free(r);
        }
    }
    free(xdv);
    return status;
}

/* Whether the auxiliary file holds anything that a second run would read: more than LaTeX's two standard lines. */
static inline bool tex_aux_matters(const char *aux) {
    for (const char *line = aux; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strncmp(line, "\\relax", 6) && strncmp(line, "\\gdef \\@abspage@last", 20) && *line != '\n') return true;
    return false;
}

/* Runs an engine until references have settled: a second run where the first has left any, a third where the second
 * has changed them. */
static inline int tex_run_all(const TexSystem *t, TexEngine engine, const char *folder, const char *formats,
                              SandboxResult *r, Error *err) {
    Error ignored;
    char *before = NULL;
    int status = 0;
    for (int run = 0; status == 0; run++) {
        size_t size;
        if (run > 0) sandbox_result_free(r);
        status = tex_run_engine(t, engine, folder, formats, r, err);
        if (status != 0 || r->stopped || r->status != 0 || run + 1 == TEX_RUNS) break;
        char *aux = sandbox_read(folder, "a.aux", TEX_LOG_BYTES, &size, &ignored);
        const bool settled = !aux || (before ? !strcmp(before, aux) : !tex_aux_matters(aux));
        free(before);
        before = aux;
        if (settled) break;
    }
    free(before);
    return status;
}

/* Takes over what the engine has left in its folder, and says in one sentence what went wrong. */
static inline void tex_take_result(Compiled *c, TexEngine engine, const char *folder, const SandboxResult *r) {
    Error ignored;
    size_t size = 0;
    char *log = sandbox_read(folder, "a.log", TEX_LOG_BYTES, &size, &ignored);
    *c = (Compiled){.engine = engine, .stopped = r->stopped};
    if (log) tex_log_read(&c->log, "a.tex", log, size);
    c->pdf = sandbox_read(folder, "a.pdf", TEX_PDF_BYTES, &c->pdf_bytes, &ignored);
    if (c->pdf && (r->stopped || c->log.pages == 0 || c->pdf_bytes == 0)) {  // not complete
        free(c->pdf);
        c->pdf = NULL;
    }
    c->clean = !r->stopped && r->status == 0 && c->pdf;
    if (c->clean) {
        const int pages = c->log.pages;
        tex_log_free(&c->log);
        c->log.pages = pages;
    } else {
        static const char fatal[] = "Fatal error occurred, no output PDF file produced!",
                          no_page[] = "the document has no page";
        const char *text = !c->pdf && r->status == 0 ? no_page : fatal;
        if (c->log.count == 0) tex_log_add(&c->log, 0, text, strlen(text));
        char *why = tex_explain(&c->log.errors[0]);
        c->problem = r->stopped ? format_string("%s %s", tex_engine_names[engine], r->reason)
                                : format_string("%s: %s", tex_engine_names[engine], why);
        free(why);
    }
    free(log);
}

/* Whether it was the format that failed, and not the document: TeX says so, it crashed, or there is an error that
 * belongs to no line of the document (a font that the preamble loaded, for example). */
static inline bool tex_format_failed(const Compiled *c, const SandboxResult *r, bool *damaged) {
    const bool crashed = r->stopped && strstr(r->reason, "signal");
    *damaged = crashed || (!r->stopped && r->status != 0 &&
                           (strstr(r->output, "ormat file") || strstr(r->output, "ould not undump")));
    return *damaged || (!r->stopped && !c->clean && tex_log_first_line(&c->log) == 0);
}

/* LuaTeX loads no font without a folder for its caches, and in the box it makes no folders. */
static inline int tex_make_lua_folders(const char *folder, Error *err) {
    char *fonts = format_string("%s/luatex-cache/generic/fonts/otl", folder),
         *names = format_string("%s/luatex-cache/generic/names", folder);
    const int status = make_folder(fonts, err) == 0 ? make_folder(names, err) : -1;
    free(fonts);
    free(names);
    return status;
}

/* Compiles with or without a format. Returns 0 with a verdict in c, -1 where the machine fails. */
static inline int tex_compile_with(const TexSystem *t, TexEngine engine, const char *source, const char *formats,
                                   Compiled *c, SandboxResult *r, Error *err) {
    char *folder = sandbox_folder_make(NULL, err);
    int status = folder ? sandbox_write(folder, "a.tex", source, strlen(source), err) : -1;
    if (status == 0 && engine == TEX_LUALATEX) status = tex_make_lua_folders(folder, err);
    if (status == 0) status = tex_run_all(t, engine, folder, formats, r, err);
    if (status == 0) tex_take_result(c, engine, folder, r);
    sandbox_folder_remove(folder);
    return status;
}

/* Compiles a document with one engine; pdfTeX begins with a preloaded format where there is one. Returns 0 with a
 * verdict in c, to be freed with compiled_free, or -1 where the machine fails: c is then empty. */
static inline int tex_compile(const TexSystem *t, TexFormats *f, TexEngine engine, const char *document, Compiled *c,
                              Error *err) {
    SandboxResult r = {0};
    const size_t preamble = tex_preamble(document);
    char *formats = engine == TEX_PDFLATEX ? tex_format_get(f, t, document, preamble) : NULL;
    memset(c, 0, sizeof *c);
    if (formats) {
        bool damaged;
        char *body = tex_format_body(document, preamble);
        int status = tex_compile_with(t, engine, body, formats, c, &r, err);
        const bool again = status == 0 && tex_format_failed(c, &r, &damaged);
        if (again && damaged) tex_format_discard(f, t, document, preamble);
        if (again) compiled_free(c);
        if (status == 0) sandbox_result_free(&r);
        free(body);
        free(formats);
        if (!again) return status;
    }
    int status = tex_compile_with(t, engine, document, NULL, c, &r, err);
    if (status == 0) sandbox_result_free(&r);
    return status;
}

#endif
