/* The layout of a program as a person would write it: one statement on a line, indented by what it stands in.
 *
 * Only white space changes, and only where TeX ignores it: at the beginning and end of lines, between statements of a
 * figure, and between commands of a preamble. Texts in braces, verbatim and comments stay as they are. */
#ifndef LIB_TEX_LAYOUT_H
#define LIB_TEX_LAYOUT_H

#include "tex_close.h"

enum { TEX_INDENT = 2, TEX_INDENT_MOST = 20 };  // spaces a level, levels

#define TEX_PREAMBLE                                                                                                \
    " documentclass usepackage RequirePackage usetikzlibrary usepgfplotslibrary usepgflibrary pgfplotsset tikzset " \
    "newcommand renewcommand definecolor colorlet DeclareMathOperator pagestyle "

typedef struct {
    TexWalk walk;
    TexText out;
    TexToken blank;  // before the next token; size 0: none
    int newlines;    // before it
    bool preamble;   // no environment has begun
} TexLayout;

/* Whether the white space of the program has a meaning that is not known here. */
static inline bool tex_layout_refuses(const char *program, size_t n) {
    static const char *const words[] = {"\\catcode", "\\obey", "^^", "\\endlinechar", "\\ExplSyntax"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (memmem(program, n, words[i], strlen(words[i]))) return true;
    if (n > 0 && program[n - 1] == '\\') return true;  // it would take the line end that is added
    for (const char *r = program, *end = program + n; (r = (const char *)memchr(r, '\r', (size_t)(end - r))); r++)
        if (r + 1 == end || r[1] != '\n') return true;
    return false;
}

static inline bool tex_scope_is_document(const TexWalk *w, const TexScope *s) {
    return s->place == TEX_IN_ENVIRONMENT && tex_is(w->text, s->begin, "document");
}

/* The level of a line that begins with token t, before t is applied. */
static inline int tex_layout_level(const TexWalk *w, TexToken t) {
    int level = 0;
    size_t depth = w->depth;
    const TexPlace top = tex_walk_top(w);
    const bool ends = (t.kind == TEX_END && (top == TEX_IN_FIGURE || top == TEX_IN_ENVIRONMENT)) ||
                      (t.kind == TEX_CLOSE && top == TEX_IN_CODE) ||
                      (t.kind == TEX_CLOSE_SQUARE && top == TEX_IN_SQUARE);
    const bool drawing = t.kind == TEX_COMMAND && tex_is_any(w->text, t, TEX_DRAWING) && tex_walk_in_code(w) &&
                         w->statement != TEX_FOREACH_BODY;
    const bool open = w->statement != TEX_NO_STATEMENT && !drawing;
    if (ends && top == TEX_IN_SQUARE && !open) level--;
    if (ends && top != TEX_IN_SQUARE) depth--;
    for (size_t d = 0; d < depth; d++) {
        const TexScope *s = &w->scopes[d];
        level += (s->place == TEX_IN_ENVIRONMENT && !tex_scope_is_document(w, s)) || s->place == TEX_IN_FIGURE ||
                 s->place == TEX_IN_CODE || (s->place == TEX_IN_SQUARE && !s->options && !open);
    }
    if (open && !(ends && top == TEX_IN_SQUARE)) level++;
    return level < 0 ? 0 : level > TEX_INDENT_MOST ? TEX_INDENT_MOST : level;
}

/* Whether token t begins a line although it does not in the program. */
static inline bool tex_layout_breaks(const TexLayout *l, TexToken t) {
    const TexWalk *w = &l->walk;
    const TexPlace top = tex_walk_top(w);
    const TexKind last = w->last.kind;
    if (t.kind == TEX_COMMENT || l->out.size == 0) return false;
    if (top == TEX_IN_FIGURE || top == TEX_IN_CODE) {
        const bool argument =
            (last == TEX_BEGIN || last == TEX_OPEN) && (t.kind == TEX_OPEN_SQUARE || t.kind == TEX_OPEN);
        if ((t.kind == TEX_CLOSE && top == TEX_IN_CODE) || (t.kind == TEX_END && top == TEX_IN_FIGURE)) return true;
        return w->statement == TEX_NO_STATEMENT && !argument && t.kind != TEX_SEMICOLON;
    }
    if (l->preamble && w->depth == 0 && last == TEX_CLOSE)
        return (t.kind == TEX_BEGIN && tex_is(w->text, t, "document")) ||
               (t.kind == TEX_COMMAND && tex_is_any(w->text, t, TEX_PREAMBLE));
    if (w->depth != 1 || !tex_scope_is_document(w, &w->scopes[0])) return false;
    if (last == TEX_BEGIN) return true;
    return t.kind == TEX_END && last == TEX_END;
}

/* Writes the white space before token t. */
static inline void tex_layout_space(TexLayout *l, TexToken t) {
    static const char spaces[TEX_INDENT * TEX_INDENT_MOST + 1] = "                                        ";
    const bool first = l->out.size == 0;
    if (l->newlines == 0 && tex_layout_breaks(l, t)) l->newlines = 1;
    if (l->newlines == 0 && !first) {
        tex_text_add(&l->out, l->walk.text + l->blank.begin, l->blank.end - l->blank.begin);
    } else {
        if (!first) tex_text_add(&l->out, "\n\n", l->newlines > 1 ? 2 : 1);
        tex_text_add(&l->out, spaces, (size_t)(TEX_INDENT * tex_layout_level(&l->walk, t)));
    }
    l->newlines = 0;
    l->blank = (TexToken){0};
}

static inline void tex_layout_run(TexLayout *l) {
    for (;;) {
        const TexToken t = tex_read(l->walk.text, l->walk.n, l->walk.at);
        const bool raw = l->walk.texts > 0;  // inside braces
        if (t.kind == TEX_END_OF_TEXT) return;
        if (!raw && t.kind == TEX_BLANK) {
            l->blank = t;
        } else if (!raw && t.kind == TEX_NEWLINE) {
            l->newlines++;
            l->blank = (TexToken){0};
        } else {
            if (!raw) tex_layout_space(l, t);
            tex_text_add(&l->out, l->walk.text + t.begin, t.end - t.begin);
        }
        tex_walk_next(&l->walk);
        if (t.kind == TEX_BEGIN) l->preamble = false;
    }
}

/* Lays out a program of n bytes. What TeX draws does not change; a second time changes nothing. A program whose braces and
 * environments do not match, or that changes what white space means, comes back as it is, and so does every text where
 * this gains nothing. Returns the text, allocated and ended by a 0, and its size. */
static inline char *tex_tidy_layout(const char *program, size_t n, size_t *size) {
    TexLayout l = {.preamble = true};
    tex_walk_begin(&l.walk, program, n);
    const bool refuses = tex_layout_refuses(program, n);
    if (!refuses) tex_layout_run(&l);
    if (l.out.size) tex_text_add(&l.out, "\n", 1);
    if (refuses || l.walk.depth > 0 || l.walk.last.cut) {
        l.out.size = 0;
        tex_text_add(&l.out, program, n);
    }
    tex_walk_end(&l.walk);
    tex_text_add(&l.out, "", 0);
    *size = l.out.size;
    return l.out.bytes;
}

#endif
