/* The TeX system of this machine: its engines, where its files are, and how a program of it runs in the box. */
#ifndef LIB_TEX_ENGINE_H
#define LIB_TEX_ENGINE_H

#include "hash.h"
#include "sandbox.h"

/* In the order in which they are tried. */
typedef enum { TEX_PDFLATEX, TEX_LUALATEX, TEX_XELATEX, TEX_ENGINES } TexEngine;
static const char *const tex_engine_names[TEX_ENGINES] = {"pdflatex", "lualatex", "xelatex"};

enum { TEX_READABLE = 64, TEX_ENVIRONMENT = 64 };

extern char **environ;

typedef struct {
    char *engines[TEX_ENGINES];              // their paths; NULL: not installed
    char *pdftocairo, *xdvipdfmx;            // or NULL
    char *readable[TEX_READABLE + 1];        // TeX's trees outside the system's folders; ended by NULL
    char *environment[TEX_ENVIRONMENT + 1];  // ended by NULL
    uint64_t fingerprint;                    // changes when TeX or a package is installed, updated or removed
    SandboxLimits limits;
    bool unsafe;
    bool (*cancelled)(void);
} TexSystem;

static inline void tex_system_close(TexSystem *t) {
    for (int i = 0; i < TEX_ENGINES; i++) free(t->engines[i]);
    for (int i = 0; i < TEX_READABLE; i++) free(t->readable[i]);
    for (int i = 0; i < TEX_ENVIRONMENT; i++) free(t->environment[i]);
    free(t->pdftocairo);
    free(t->xdvipdfmx);
    memset(t, 0, sizeof *t);
}

/* The user's TeX settings, but not where TeX would also write; and in the box TeX's own rules: it reads and writes
 * nothing outside its folder and its trees, starts no program and makes no fonts. */
static inline void tex_environment(TexSystem *t) {
    static const char *const rules[] = {"max_print_line=1000", "openin_any=p", "openout_any=p", "shell_escape=f",
                                        "MKTEXPK=0",           "MKTEXTFM=0",   "MKTEXMF=0",     "MKTEXFMT=0"};
    size_t n = 0;
    for (char **e = environ; e && *e && n < TEX_ENVIRONMENT - 10; e++)
        if (!strncmp(*e, "TEX", 3) && strncmp(*e, "TEXMFOUTPUT=", 12) && strncmp(*e, "TEXMFVAR=", 9) &&
            strncmp(*e, "TEXMFCACHE=", 11))
            t->environment[n++] = xstrdup(*e);
    for (size_t i = 0; i < (t->unsafe ? 1 : sizeof rules / sizeof *rules); i++)
        t->environment[n++] = xstrdup(rules[i]);
}

/* Adds the absolute paths of a list "!!/a:/b//:..." to `readable`, and the time of each one's ls-R, which changes with
 * every installation, to the fingerprint. */
static inline void tex_add_paths(TexSystem *t, const char *list) {
    size_t n = 0;
    while (n < TEX_READABLE && t->readable[n]) n++;
    for (const char *at = list; at && *at && n < TEX_READABLE;) {
        const size_t length = strcspn(at, ":,{}\n"), skip = strspn(at, "!");
        struct stat s;
        char *path = format_string("%.*s", (int)(length > skip ? length - skip : 0), at + (length > skip ? skip : 0));
        for (size_t k = strlen(path); k > 1 && path[k - 1] == '/'; k--) path[k - 1] = '\0';
        at += length + (at[length] != '\0');
        if (*path != '/' || !path[1] || stat(path, &s) != 0) {
            free(path);
            continue;
        }
        char *database = format_string("%s/ls-R", path);
        if (stat(database, &s) == 0) t->fingerprint = hash_bytes(t->fingerprint, &s.st_mtim, sizeof s.st_mtim);
        free(database);
        t->readable[n++] = path;
    }
}

static inline void tex_add_fingerprint(TexSystem *t, const char *path) {
    struct stat s;
    if (!path || stat(path, &s) != 0) return;
    t->fingerprint = hash_bytes(t->fingerprint, path, strlen(path));
    t->fingerprint = hash_bytes(t->fingerprint, &s.st_mtim, sizeof s.st_mtim);
    t->fingerprint = hash_bytes(t->fingerprint, &s.st_size, sizeof s.st_size);
}

/* Asks kpsewhich, a program of TeX that runs no document, for a setting. Returns its answer, allocated, or NULL. */
static inline char *tex_ask(const TexSystem *t, const char *kpsewhich, const char *question, const char *more) {
    Error ignored;
    SandboxResult r;
    char *answer = NULL, *folder = kpsewhich ? sandbox_folder_make(NULL, &ignored) : NULL;
    const char *arguments[] = {kpsewhich, question, more, NULL};
    const SandboxJob job = {.program = kpsewhich,
                            .arguments = arguments,
                            .folder = folder,
                            .environment = (const char *const *)t->environment,
                            .limits = t->limits,
                            .unsafe = true};
    if (folder && sandbox_run(&job, &r, &ignored) == 0) {
        if (!r.stopped && r.status == 0) {
            r.output[strcspn(r.output, "\n")] = '\0';
            answer = xstrdup(r.output);
        }
        sandbox_result_free(&r);
    }
    sandbox_folder_remove(folder);
    return answer;
}

/* A program that lies outside the system's folders brings its libraries and data along. */
static inline void tex_add_program(TexSystem *t, const char *path) {
    char *real = path ? realpath(path, NULL) : NULL;
    tex_add_fingerprint(t, real);
    if (real && strncmp(real, "/usr/", 5)) {
        char *folder = folder_of(real);
        char *list = format_string("%s:%s../lib:%s../share", folder, folder, folder);
        tex_add_paths(t, list);
        free(list);
        free(folder);
    }
    free(real);
}

/* Finds out what is installed. Engines whose bit is not in `engines` (0: all) count as not installed. */
static inline void tex_system_open(TexSystem *t, int engines, const SandboxLimits *limits, bool unsafe,
                                   bool (*cancelled)(void)) {
    *t = (TexSystem){.fingerprint = HASH_BEGIN, .limits = *limits, .unsafe = unsafe, .cancelled = cancelled};
    tex_environment(t);
    for (int i = 0; i < TEX_ENGINES; i++) {
        if (!engines || engines >> i & 1) t->engines[i] = sandbox_find(tex_engine_names[i]);
        tex_add_program(t, t->engines[i]);
    }
    t->pdftocairo = sandbox_find("pdftocairo");
    t->xdvipdfmx = sandbox_find("xdvipdfmx");
    tex_add_program(t, t->pdftocairo);
    if (!t->xdvipdfmx) {
        free(t->engines[TEX_XELATEX]);
        t->engines[TEX_XELATEX] = NULL;
    }
    char *kpsewhich = sandbox_find("kpsewhich");
    char *trees = tex_ask(t, kpsewhich, "--expand-braces=$TEXMF", NULL);
    char *format = tex_ask(t, kpsewhich, "-engine=pdftex", "pdflatex.fmt");
    tex_add_paths(t, trees);
    tex_add_paths(t, getenv("TEXINPUTS"));
    tex_add_fingerprint(t, format);
    free(kpsewhich);
    free(trees);
    free(format);
}

/* Whether no engine is installed; the sentence is in err. */
static inline bool tex_none_installed(const TexSystem *t, Error *err) {
    for (int i = 0; i < TEX_ENGINES; i++)
        if (t->engines[i]) return false;
    error_set(err, "no TeX engine is installed (pdflatex, lualatex or xelatex); scripts/deps.sh tex installs them "
                   "(Debian and Ubuntu: texlive-latex-base and texlive-latex-extra)");
    return true;
}

/* Runs a program of TeX or Poppler in the box, in `folder`. `formats` is a further folder that it may read and finds
 * formats in, or NULL. Returns as sandbox_run; err names a full disk. */
static inline int tex_run(const TexSystem *t, const char *const *arguments, const char *folder, const char *formats,
                          SandboxResult *r, Error *err) {
    const char *readable[TEX_READABLE + 2], *environment[TEX_ENVIRONMENT + 4];
    size_t n = 0, m = 0;
    char *path = formats ? format_string("TEXFORMATS=%s:", formats) : NULL;
    char *var = format_string("TEXMFVAR=%s", folder), *cache = format_string("TEXMFCACHE=%s", folder);
    for (; t->readable[n]; n++) readable[n] = t->readable[n];
    if (formats) readable[n++] = formats;
    if (formats) environment[m++] = path;  // ours before the user's, because the first of a name counts
    environment[m++] = var;
    environment[m++] = cache;
    for (size_t i = 0; t->environment[i]; i++) environment[m++] = t->environment[i];
    readable[n] = environment[m] = NULL;
    const SandboxJob job = {.program = arguments[0],
                            .arguments = arguments,
                            .environment = environment,
                            .readable = readable,
                            .folder = folder,
                            .limits = t->limits,
                            .cancelled = t->cancelled,
                            .unsafe = t->unsafe};
    int status = sandbox_run(&job, r, err);
    if (status == 0 && (r->stopped || r->status != 0) && sandbox_disk_full(folder)) {
        sandbox_result_free(r);
        status =
            error_set(err, "the disk of %s is full; make room, or set TMPDIR to a folder on another disk", folder);
    }
    free(path);
    free(var);
    free(cache);
    return status;
}

#endif
