/* Makes a whole LaTeX document of what a model writes: a document, a bare figure, or a formula.
 *
 * Nothing is put on a line of its own, so that the line numbers of TeX's errors are those of the program. */
#ifndef LIB_TEX_DOCUMENT_H
#define LIB_TEX_DOCUMENT_H

#include "error.h"

typedef enum { RENDER_TIKZ, RENDER_FORMULA } RenderTask;
static const char *const render_task_names[] = {[RENDER_TIKZ] = "tikz", [RENDER_FORMULA] = "formula"};  // as in --task

/* Without page numbers; before the class, because the first line may end in a comment. */
#define TEX_EMPTY_PAGES "\\AtBeginDocument{\\thispagestyle{empty}\\pagestyle{empty}}"

/* What each task puts around a program that is no document. */
static const struct {
    const char *what;  // is wrong with a program that cannot be wrapped
    const char *head;  // class and packages of what is no document
    const char *tail;
} tex_tasks[] = {
    [RENDER_TIKZ] = {"it has neither \\documentclass nor a tikzpicture", "\\documentclass[tikz]{standalone}",
                     "\n\\end{document}\n"},
    [RENDER_FORMULA] = {"it is empty",
                        "\\documentclass[preview,border=1pt]{standalone}\\usepackage{amsmath,amssymb,amsfonts}",
                        "\n\\end{document}\n"}};

/* The first place of `word` in a text (ended by a 0) that is not in a comment; NULL: none. */
static inline const char *tex_find(const char *text, const char *word) {
    const size_t length = strlen(word);
    for (const char *at = text; *at; at++) {
        if (!strncmp(at, word, length)) return at;
        if (*at == '%')
            at += strcspn(at, "\n");
        else if (*at == '\\' && at[1])
            at++;  // also "\%"
        if (!*at) break;
    }
    return NULL;
}

/* The length of the preamble, which \begin{document} ends; 0: there is none. */
static inline size_t tex_preamble(const char *source) {
    const char *end = tex_find(source, "\\begin{document}");
    return end ? (size_t)(end - source) : 0;
}

/* What begins a figure, and the package that it needs beside tikz. */
static const struct {
    const char *begin, *package;
} tex_figures[] = {{"\\begin{tikzpicture}", ""},
                   {"\\begin{tikzcd}", "\\usepackage{tikz-cd}"},
                   {"\\begin{circuitikz}", "\\usepackage{circuitikz}"},
                   {"\\tikz", ""}};

/* A bare figure: what stands before it, \usetikzlibrary for example, belongs to the preamble. NULL: there is none. */
static inline char *tex_wrap_figure(const char *program) {
    const char *first = NULL, *package = "";
    for (size_t i = 0; i < sizeof tex_figures / sizeof *tex_figures; i++) {
        const char *at = tex_find(program, tex_figures[i].begin);
        while (at && tex_figures[i].begin[1] == 't' && at[5] >= 'a' && at[5] <= 'z')
            at = tex_find(at + 5, tex_figures[i].begin);  // \tikzset is no figure
        if (!at || (first && at > first)) continue;
        first = at;
        package = tex_figures[i].package;
    }
    if (!first) return NULL;
    return format_string("%s%s%s%.*s\\begin{document}%s%s", TEX_EMPTY_PAGES, tex_tasks[RENDER_TIKZ].head, package,
                         (int)(first - program), program, first, tex_tasks[RENDER_TIKZ].tail);
}

/* Whether a formula brings its own math mode. */
static inline bool tex_has_math_mode(const char *formula) {
    static const char *const names[] = {"align",   "equation", "gather",      "multline", "eqnarray",
                                        "flalign", "alignat",  "displaymath", "math",     "dmath"};
    if (*formula == '$' || !strncmp(formula, "\\[", 2) || !strncmp(formula, "\\(", 2)) return true;
    const char *at = tex_find(formula, "\\begin{");
    if (!at) return false;
    const char *name = at + 7;  // a star may follow it; aligned and gathered stand inside of formulas
    const size_t n = strcspn(name, "*}");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (n == strlen(names[i]) && !strncmp(name, names[i], n)) return true;
    return false;
}

/* A formula: white space around it stays outside the math mode, where an empty line is no error. */
static inline char *tex_wrap_formula(const char *formula) {
    const char *begin = formula + strspn(formula, " \t\r\n");
    size_t length = strlen(begin);
    while (length > 0 && strchr(" \t\r\n", begin[length - 1])) length--;
    if (length == 0) return NULL;
    const bool bare = !tex_has_math_mode(begin);
    return format_string("%s%s\\begin{document}%.*s%s%.*s\n%s%s", TEX_EMPTY_PAGES, tex_tasks[RENDER_FORMULA].head,
                         (int)(begin - formula), formula, bare ? "$\\displaystyle " : "", (int)length, begin,
                         bare ? "$" : "", tex_tasks[RENDER_FORMULA].tail);
}

/* Makes a document of a program of n bytes. Returns it, allocated, or NULL and why in err. */
static inline char *tex_document(RenderTask task, const char *program, size_t n, Error *err) {
    if (n >= 3 && !memcmp(program, "\xef\xbb\xbf", 3)) program += 3, n -= 3;
    if (memchr(program, '\0', n)) {
        error_set(err, "the program is not a document: it has a zero byte");
        return NULL;
    }
    char *text = format_string("%.*s", n > 1 << 24 ? 1 << 24 : (int)n, program), *document;
    if (n > 1 << 24)
        document = NULL;
    else if (tex_find(text, "\\documentclass") || tex_find(text, "\\documentstyle"))
        document = format_string("%s%s", TEX_EMPTY_PAGES, text);
    else if (tex_find(text, "\\begin{document}"))
        document = format_string("%s%s%s", TEX_EMPTY_PAGES, tex_tasks[task].head, text);
    else
        document = task == RENDER_FORMULA ? tex_wrap_formula(text) : tex_wrap_figure(text);
    free(text);
    if (!document)
        error_set(err, "the program is not a document: %s", n > 1 << 24 ? "it is too long" : tex_tasks[task].what);
    return document;
}

/* The same as a .tex file for a person, without what keeps the drawing's page empty. NULL: it is not a document. */
static inline char *tex_document_to_keep(RenderTask task, const char *program, size_t n) {
    Error ignored;
    char *document = tex_document(task, program, n, &ignored);
    if (document) memmove(document, document + sizeof TEX_EMPTY_PAGES - 1, strlen(document) - sizeof TEX_EMPTY_PAGES + 2);
    return document;
}

#endif
