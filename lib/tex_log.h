/* What a TeX engine says in its log, run with -file-line-error: errors as (line, message), and the number of pages. */
#ifndef LIB_TEX_LOG_H
#define LIB_TEX_LOG_H

#include "error.h"

typedef struct {
    int line;       // of the program, counted from 1; 0: the error is in another file, or of the run as a whole
    char *message;  // one line of printable text
} TexMessage;

typedef struct {
    TexMessage *errors;  // in the order of the log, so the first comes first
    int count;
    int pages;  // of the output; 0: none was written
} TexLog;

enum { TEX_LOG_ERRORS = 100, TEX_LOG_MESSAGE = 300 };  // more or longer ones are left out

static inline void tex_log_free(TexLog *l) {
    for (int i = 0; i < l->count; i++) free(l->errors[i].message);
    free(l->errors);
    memset(l, 0, sizeof *l);
}

static inline void tex_log_add(TexLog *l, int line, const char *text, size_t length) {
    if (l->count == TEX_LOG_ERRORS) return;
    if (length > TEX_LOG_MESSAGE) length = TEX_LOG_MESSAGE;
    l->errors = (TexMessage *)xrealloc(l->errors, (size_t)(l->count + 1) * sizeof *l->errors);
    l->errors[l->count++] = (TexMessage){line, printable(format_string("%.*s", (int)length, text))};
}

/* The digits from *at on, before `end`; -1 where there are none or too many. */
static inline int tex_log_number(const char **at, const char *end) {
    int value = 0, digits = 0;
    for (; *at < end && **at >= '0' && **at <= '9' && digits < 9; digits++) value = value * 10 + *(*at)++ - '0';
    return digits > 0 && digits < 9 ? value : -1;
}

/* "FILE:LINE: message", where FILE is `name`, also behind "./", or another file; or "! message" and "!pdfTeX error:
 * message", which have no place. */
static inline void tex_log_error_line(TexLog *l, const char *name, const char *line, const char *end) {
    if (*line == '!') {
        const char *text = line + 1;
        while (text < end && *text == ' ') text++;
        if (text < end && *text != '=') tex_log_add(l, 0, text, (size_t)(end - text));
        return;
    }
    const char *colon = (const char *)memchr(line, ':', (size_t)(end - line));
    if (!colon) return;
    const char *at = colon + 1;
    const int number = colon > line ? tex_log_number(&at, end) : -1;
    if (number < 0 || end - at < 3 || at[0] != ':' || at[1] != ' ') return;
    if (*line == '\t' || *line == ' ') return;  // of a trace of Lua's
    if (end - at >= 6 && !memcmp(at, ":  ==>", 6)) return;
    if (line[0] == '.' && line[1] == '/') line += 2;
    const bool ours = (size_t)(colon - line) == strlen(name) && !memcmp(line, name, strlen(name));
    if (!ours && memchr(line, ' ', (size_t)(colon - line))) return;  // no file: a sentence with a time of day
    tex_log_add(l, ours ? number : 0, at + 2, (size_t)(end - at - 2));
}

/* "Output written on NAME (3 pages, 11057 bytes)." */
static inline void tex_log_output_line(TexLog *l, const char *line, const char *end) {
    static const char begin[] = "Output written on ";
    if ((size_t)(end - line) < sizeof begin || memcmp(line, begin, sizeof begin - 1)) return;
    const char *at = (const char *)memrchr(line, '(', (size_t)(end - line));
    if (!at) return;
    at++;
    const int pages = tex_log_number(&at, end);
    if (pages > 0 && end - at >= 5 && !memcmp(at, " page", 5)) l->pages = pages;
}

/* Reads a log of `size` bytes, which a 0 follows. `name` is the file of the program. */
static inline void tex_log_read(TexLog *l, const char *name, const char *log, size_t size) {
    memset(l, 0, sizeof *l);
    for (const char *line = log, *all = log + size, *end; line < all; line = end + 1) {
        end = (const char *)memchr(line, '\n', (size_t)(all - line));
        if (!end) end = all;
        const char *last = end > line && end[-1] == '\r' ? end - 1 : end;
        tex_log_output_line(l, line, last);
        tex_log_error_line(l, name, line, last);
    }
}

/* The smallest line of the program with an error; 0: none has one. */
static inline int tex_log_first_line(const TexLog *l) {
    int first = 0;
    for (int i = 0; i < l->count; i++)
        if (l->errors[i].line > 0 && (first == 0 || l->errors[i].line < first)) first = l->errors[i].line;
    return first;
}

/* ---- files that are not there ---- */

/* The Debian package of what figures and formulas use most, where it is not in texlive-latex-base. */
static inline const char *tex_package_of(const char *file) {
    static const struct {
        const char *files, *package;
    } known[] = {
        {" circuitikz.sty pgfplots.sty pgfplotstable.sty tikz.sty tikz-cd.sty tikz-3dplot.sty tkz-euclide.sty "
         "tkz-graph.sty tkz-berge.sty forest.sty chemfig.sty tikz-qtree.sty tikz-timing.sty tikzsymbols.sty "
         "quantikz.sty schemabloc.sty xypic.sty xy.sty bodegraph.sty ",
         "texlive-pictures"},
        {" siunitx.sty physics.sty mhchem.sty algorithm2e.sty algorithm.sty algorithmic.sty algpseudocode.sty "
         "algorithmicx.sty ",
         "texlive-science"},
        {" standalone.cls adjustbox.sty tcolorbox.sty cancel.sty enumitem.sty relsize.sty xstring.sty import.sty "
         "mdframed.sty comment.sty contour.sty titlesec.sty ",
         "texlive-latex-extra"},
        {" xcolor.sty mathtools.sty booktabs.sty caption.sty subcaption.sty beamer.cls microtype.sty setspace.sty "
         "listings.sty fontspec.sty ragged2e.sty ",
         "texlive-latex-recommended"},
        {" dsfont.sty fontawesome.sty fontawesome5.sty libertine.sty newtxmath.sty newtxtext.sty bbm.sty bbding.sty ",
         "texlive-fonts-extra"},
        {" marvosym.sty wasysym.sty ", "texlive-fonts-recommended"},
        {" luatex85.sty luacode.sty ", "texlive-luatex"},
        {" pstricks.sty pst-plot.sty pst-node.sty pst-all.sty ", "texlive-pstricks"},
    };
    char word[80];
    if (snprintf(word, sizeof word, " %s ", file) >= (int)sizeof word) return NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strstr(known[i].files, word)) return known[i].package;
    return NULL;
}

/* Where a message says that a file was not found: its name, allocated. Otherwise NULL. */
static inline char *tex_missing_file(const char *message) {
    const char *begin = strstr(message, "File `"), *end = begin ? strstr(begin, "' not found") : NULL;
    return end ? format_string("%.*s", (int)(end - begin - 6), begin + 6) : NULL;
}

/* Whether a file is a package or class of LaTeX, whose absence every engine has to say. */
static inline bool tex_is_package(const char *file) {
    const size_t n = strlen(file);
    return n > 4 && (!strcmp(file + n - 4, ".sty") || !strcmp(file + n - 4, ".cls"));
}

/* An error as part of a sentence, allocated: "line 7: Undefined control sequence.", or where a package is missing,
 * "line 3: the package circuitikz is not installed (circuitikz.sty; Debian has it in texlive-pictures)". */
static inline char *tex_explain(const TexMessage *m) {
    char *file = tex_missing_file(m->message), *place = m->line ? format_string("line %d: ", m->line) : xstrdup("");
    const char *package = file ? tex_package_of(file) : NULL;
    char *text;
    if (file && tex_is_package(file))
        text = format_string("%sthe %s %.*s is not installed (%s%s%s)", place,
                             file[strlen(file) - 1] == 's' ? "class" : "package", (int)strlen(file) - 4, file, file,
                             package ? "; Debian has it in " : "", package ? package : "");
    else
        text = format_string("%s%s", place, m->message);
    free(file);
    free(place);
    return text;
}

#endif
