/* Clean programs: completed where they were cut (tex_close), without packages that they do not use
 * (tex_tidy_preamble), laid out as a person would write them (tex_tidy_layout). The text of a model may hold any bytes. */
#ifndef LIB_TEX_TIDY_H
#define LIB_TEX_TIDY_H

#include "tex_layout.h"
#include "tex_packages.h"

typedef enum { TEX_LOAD_PACKAGE, TEX_LOAD_LIBRARY, TEX_LOAD_PLOT_LIBRARY, TEX_LOAD_SETTING } TexLoadKind;

/* A command of the preamble that loads something: \usepackage[options]{list}, or sets up pgfplots. */
typedef struct {
    TexLoadKind kind;
    size_t begin, end;            // of the command
    size_t list_begin, list_end;  // of what is in its braces
    bool options;                 // in brackets
} TexLoad;

typedef struct {
    const char *text;  // the program, ended by a 0
    size_t n, preamble;
    TexLoad *loads;
    int count;
    char *uses;  // the program with its comments and loads blanked: what may use a package
    bool unknown_command;
} TexPreamble;

/* ---- reading the preamble ---- */

/* Reads the rest of a loading command of kind k, whose name ends at `at`. */
static inline bool tex_load_read(const TexPreamble *p, TexLoad *load, size_t at) {
    const char *text = p->text;
    at += strspn(text + at, " \t");
    if (text[at] == '[') {
        const size_t options = strcspn(text + at, "]{}%\\");
        if (text[at + options] != ']') return false;
        load->options = true;
        at += options + 1;
        at += strspn(text + at, " \t");
    }
    if (text[at] != '{') return false;
    load->list_begin = at + 1;
    int depth = 0;
    for (;; at++) {
        if (text[at] == '\0' || text[at] == '%') return false;
        if (load->kind != TEX_LOAD_SETTING && (text[at] == '\\' || (text[at] == '{' && depth))) return false;
        if (text[at] == '\\' && text[at + 1])
            at++;
        else if (text[at] == '{')
            depth++;
        else if (text[at] == '}' && --depth == 0)
            break;
    }
    load->list_end = at;
    load->end = at + 1;
    return load->end <= p->preamble;
}

static inline void tex_preamble_read(TexPreamble *p) {
    static const char *const names[] = {"usepackage", "usetikzlibrary", "usepgfplotslibrary", "pgfplotsset"};
    TexWalk w;
    TexToken t;
    tex_walk_begin(&w, p->text, p->preamble);
    while ((t = tex_walk_next(&w)).kind != TEX_END_OF_TEXT) {
        if (t.kind != TEX_COMMAND || w.depth > 0) continue;
        for (int k = 0; k < 4; k++) {
            TexLoad load = {(TexLoadKind)k, t.begin, 0, 0, 0, false};
            if (!tex_is(p->text, t, names[k]) || !tex_load_read(p, &load, t.end)) continue;
            p->loads = (TexLoad *)xrealloc(p->loads, (size_t)(p->count + 1) * sizeof *p->loads);
            p->loads[p->count++] = load;
        }
    }
    tex_walk_end(&w);
}

/* ---- what is used ---- */

/* Whether one of the words (lib/tex_packages.h) stands in a text. */
static inline bool tex_has_word(const char *text, const char *words) {
    char word[64];
    for (const char *at = words; at && *at;) {
        size_t n = strcspn(at + 1, "|") + 1;  // a word may be "|" itself
        snprintf(word, sizeof word, "%.*s", (int)n, at);
        at += n;
        if (*at == '|') at++;
        for (size_t i = 0; i < n && i < sizeof word; i++)
            if (word[i] == '~') word[i] = '|';
        const bool open = n > 1 && word[n - 1] == '*' && tex_is_letter(word[0]) && tex_is_letter(word[n - 2]);
        if (open) word[--n] = '\0';
        for (const char *found = text; (found = strstr(found, word)); found++)
            if (!(tex_is_letter(word[0]) && found > text && tex_is_letter(found[-1])) &&
                (open || !(tex_is_letter(word[n - 1]) && tex_is_letter(found[n]))))
                return true;
    }
    return false;
}

/* Whether the program defines a command itself: behind \def, \let, \newcommand, \foreach and their like. */
static inline bool tex_defines(const TexPreamble *p, TexToken t) {
    char *name = format_string("%.*s", (int)(t.end - t.begin), p->text + t.begin);
    bool defined = false;
    for (const char *at = p->uses; !defined && (at = strstr(at, name)); at++) {
        if (tex_is_letter(at[strlen(name)])) continue;
        const char *before = at;
        while (before > p->uses && strchr(" \t\n{*", before[-1])) before--;
        const char *end = before;
        while (before > p->uses && tex_is_letter(before[-1])) before--;
        TexToken d = {.name = (size_t)(before - p->uses), .name_size = (size_t)(end - before)};
        defined =
            tex_is_any(p->uses, d,
                       " def edef gdef xdef let newcommand renewcommand providecommand foreach as count remember "
                       "pgfmathsetmacro pgfmathtruncatemacro pgfmathsetlengthmacro newlength newif ") ||
            (end == before && before > p->uses && (before[-1] == '/' || before[-1] == '='));
    }
    free(name);
    return defined;
}

/* Whether the program has a command or environment that neither LaTeX, TikZ nor itself defines, so that some package
 * must. */
static inline bool tex_has_unknown_command(const TexPreamble *p) {
    const size_t n = strlen(p->uses);
    for (size_t at = 0; at < n;) {
        const TexToken t = tex_read(p->uses, n, at);
        at = t.end;
        if (t.kind == TEX_BEGIN && !tex_is_any(p->uses, t, TEX_KNOWN_ENVIRONMENTS)) return true;
        if (t.kind != TEX_COMMAND || t.name_size == 0 || !tex_is_letter(p->uses[t.name])) continue;
        if (!tex_is_any(p->uses, t, TEX_KNOWN_COMMANDS) && !tex_defines(p, t)) return true;
    }
    return false;
}

/* The next name of a comma-separated list, without blanks around it. */
static inline bool tex_list_next(const char *text, size_t *at, size_t end, size_t *begin, size_t *stop) {
    if (*at >= end) return false;
    const char *comma = (const char *)memchr(text + *at, ',', end - *at);
    *begin = *at;
    *stop = comma ? (size_t)(comma - text) : end;
    *at = *stop + 1;
    while (*begin < *stop && strchr(" \t\r\n", text[*begin])) ++*begin;
    while (*stop > *begin && strchr(" \t\r\n", text[*stop - 1])) --*stop;
    return true;
}

static inline bool tex_loads(const TexPreamble *p, TexLoadKind kind, const char *name, size_t before) {
    size_t begin, stop;
    for (int i = 0; i < p->count; i++)
        for (size_t at = p->loads[i].list_begin; p->loads[i].kind == kind && p->loads[i].begin < before &&
                                                 tex_list_next(p->text, &at, p->loads[i].list_end, &begin, &stop);)
            if (stop - begin == strlen(name) && !memcmp(p->text + begin, name, stop - begin)) return true;
    return false;
}

static inline const TexProvider *tex_provider(TexLoadKind kind, const char *name, size_t n) {
    const TexProvider *tables[] = {tex_packages, tex_libraries, tex_plot_libraries, NULL};
    const size_t sizes[] = {sizeof tex_packages / sizeof *tex_packages, sizeof tex_libraries / sizeof *tex_libraries,
                            sizeof tex_plot_libraries / sizeof *tex_plot_libraries, 0};
    for (size_t i = 0; i < sizes[kind]; i++)
        if (strlen(tables[kind][i].name) == n && !memcmp(tables[kind][i].name, name, n)) return &tables[kind][i];
    return NULL;
}

/* Whether TikZ is loaded before byte `before`, by \usepackage or as an option of the class standalone. */
static inline bool tex_has_tikz(const TexPreamble *p, size_t before) {
    const char *class = tex_find(p->text, "\\documentclass");
    if (tex_loads(p, TEX_LOAD_PACKAGE, "tikz", before)) return true;
    if (!class || class[14] != '[') return false;
    char *options = format_string("%.*s", (int)strcspn(class + 14, "]"), class + 14);
    const bool is = tex_has_word(options, "tikz") && strstr(class, "]{standalone}");
    free(options);
    return is;
}

/* Whether what is loaded at bytes begin to stop might be used. */
static inline bool tex_is_used(const TexPreamble *p, const TexLoad *load, size_t begin, size_t stop) {
    const TexProvider *f = tex_provider(load->kind, p->text + begin, stop - begin);
    if (!f || (f->commands && p->unknown_command) || tex_has_word(p->uses, f->words)) return true;
    if (load->options) return true;  // they may do more
    if (f->loads_tikz && !tex_has_tikz(p, load->begin)) return true;
    for (size_t i = 0; f->implies && i < sizeof tex_libraries / sizeof *tex_libraries; i++) {
        char *word = format_string(" %s ", tex_libraries[i].name);
        const bool implied = strstr(f->implies, word) && !tex_loads(p, TEX_LOAD_LIBRARY, tex_libraries[i].name, p->n);
        free(word);
        if (implied && tex_has_word(p->uses, tex_libraries[i].words)) return true;
    }
    return false;
}

/* ---- writing ---- */

/* Blanks a part of p->uses, but not its line ends. */
static inline void tex_blank(TexPreamble *p, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++)
        if (p->uses[i] != '\n') p->uses[i] = ' ';
}

/* Blanks comments and loading commands. The settings of pgfplots are of no use without it. */
static inline void tex_uses(TexPreamble *p) {
    TexWalk w;
    TexToken t;
    p->uses = xstrdup(p->text);
    tex_walk_begin(&w, p->text, p->n);
    while ((t = tex_walk_next(&w)).kind != TEX_END_OF_TEXT)
        if (t.kind == TEX_COMMENT) tex_blank(p, t.begin, t.end);
    tex_walk_end(&w);
    for (int i = 0; i < p->count; i++) tex_blank(p, p->loads[i].begin, p->loads[i].end);
    p->unknown_command = tex_has_unknown_command(p);
}

/* Writes a loading command with the names that are used. Returns whether any is. */
static inline bool tex_load_write(const TexPreamble *p, const TexLoad *load, bool plots, TexText *out) {
    size_t begin, stop;
    int kept = 0, dropped = 0;
    TexText list = {0};
    if (load->kind == TEX_LOAD_SETTING) kept = plots;
    for (size_t at = load->list_begin;
         load->kind != TEX_LOAD_SETTING && tex_list_next(p->text, &at, load->list_end, &begin, &stop);) {
        const bool used = tex_is_used(p, load, begin, stop) && (plots || load->kind != TEX_LOAD_PLOT_LIBRARY);
        if (used && kept) tex_text_add(&list, ", ", 2);
        if (used) tex_text_add(&list, p->text + begin, stop - begin);
        kept += used;
        dropped += !used;
    }
    if (kept && !dropped) {
        tex_text_add(out, p->text + load->begin, load->end - load->begin);
    } else if (kept) {
        tex_text_add(out, p->text + load->begin, load->list_begin - load->begin);
        tex_text_add(out, list.bytes, list.size);
        tex_text_add(out, "}", 1);
    }
    free(list.bytes);
    return kept > 0;
}

/* The end of the line at `at` if nothing but blanks and a comment is left on it, else `at`. */
static inline size_t tex_line_rest(const char *text, size_t at) {
    const size_t blanks = at + strspn(text + at, " \t\r");
    if (text[blanks] == '%') return blanks + strcspn(text + blanks, "\n") + (strchr(text + blanks, '\n') != NULL);
    return text[blanks] == '\n' ? blanks + 1 : at;
}

static inline void tex_preamble_write(const TexPreamble *p, bool plots, TexText *out) {
    size_t at = 0;
    for (int i = 0; i < p->count; i++) {
        const TexLoad *load = &p->loads[i];
        tex_text_add(out, p->text + at, load->begin - at);
        at = load->end;
        if (tex_load_write(p, load, plots, out)) continue;
        size_t line = out->size;  // the line goes where nothing else stands on it
        while (line > 0 && strchr(" \t", out->bytes[line - 1])) line--;
        if (line > 0 && out->bytes[line - 1] != '\n') continue;
        const size_t rest = tex_line_rest(p->text, at);
        if (rest != at) out->size = line;
        at = rest;
    }
    tex_text_add(out, p->text + at, p->n - at);
}

/* Removes from the preamble the packages, libraries and settings of pgfplots that the program of n bytes does not use,
 * by the tables of lib/tex_packages.h. What the tables do not know stays, and so does a package with options, or all that
 * give commands where a command of unknown origin is used. Returns the text, allocated and ended by a 0, and its size. */
static inline char *tex_tidy_preamble(const char *program, size_t n, size_t *size) {
    TexText out = {0};
    char *text = (char *)xmalloc(n + 1);
    memcpy(text, program, n);
    text[n] = '\0';
    TexPreamble p = {.text = text, .n = n, .preamble = tex_preamble(text)};
    if (p.preamble && !memchr(text, '\0', n) && !strstr(text, "\\catcode")) {
        tex_preamble_read(&p);
        tex_uses(&p);
        bool plots = false;
        size_t begin, stop;
        for (int i = 0; i < p.count; i++)
            for (size_t at = p.loads[i].list_begin; p.loads[i].kind == TEX_LOAD_PACKAGE &&
                                                    tex_list_next(text, &at, p.loads[i].list_end, &begin, &stop);) {
                const bool known = tex_provider(TEX_LOAD_PACKAGE, text + begin, stop - begin) != NULL;
                const bool is = stop - begin == 8 && !memcmp(text + begin, "pgfplots", 8);
                plots |= is ? tex_is_used(&p, &p.loads[i], begin, stop)  // or a package that may load it
                            : !known && !(stop - begin == 4 && !memcmp(text + begin, "tikz", 4));
            }
        for (int i = 0; plots && i < p.count; i++)
            if (p.loads[i].kind == TEX_LOAD_SETTING)
                memcpy(p.uses + p.loads[i].begin, text + p.loads[i].begin, p.loads[i].end - p.loads[i].begin);
        tex_preamble_write(&p, plots, &out);
    } else {
        tex_text_add(&out, text, n);
    }
    free(p.loads);
    free(p.uses);
    free(text);
    *size = out.size;
    return out.bytes;
}

#endif
