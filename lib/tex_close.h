/* Completes a program that was cut off, for example at the limit of tokens, so that TeX can draw what there is. */
#ifndef LIB_TEX_CLOSE_H
#define LIB_TEX_CLOSE_H

#include "tex_document.h"
#include "tex_walk.h"

/* Whether the program may be cut behind token t of a figure: after a statement, an environment, or a line that ends
 * outside all of them. */
static inline bool tex_complete_figure(const TexWalk *w, TexToken t) {
    const bool code = tex_walk_in_code(w), text = tex_walk_in_text(w);
    if ((!code && !text) || w->statement != TEX_NO_STATEMENT) return false;
    if (t.kind == TEX_SEMICOLON || t.kind == TEX_END || t.kind == TEX_CLOSE) return code || t.kind != TEX_CLOSE;
    const bool document = w->last.kind == TEX_BEGIN && tex_is(w->text, w->last, "document");
    if (t.kind == TEX_BEGIN) return document;
    return t.kind == TEX_NEWLINE &&
           (code || document || (w->last.kind != TEX_CLOSE_SQUARE && w->last.kind != TEX_BEGIN));
}

/* The same for a formula: after a plain character that is no argument, outside all braces. */
static inline bool tex_complete_formula(const TexWalk *w, TexToken t) {
    const TexPlace top = tex_walk_top(w);
    const TexToken b = w->before;
    if (top == TEX_IN_BRACES || top == TEX_IN_CODE || top == TEX_IN_SQUARE) return false;
    if (t.kind == TEX_END || t.kind == TEX_DOLLAR) return true;
    if (t.kind != TEX_WORD && t.kind != TEX_OTHER) return false;
    if (t.kind == TEX_OTHER && strchr("^_&~#", w->text[t.begin])) return false;
    if (b.kind == TEX_COMMAND) return tex_is(w->text, b, "\\");
    return b.kind != TEX_BEGIN && !(b.kind == TEX_OTHER && strchr("^_", w->text[b.begin]));
}

typedef struct {
    char *bytes;
    size_t size, capacity;
} TexText;

static inline void tex_text_add(TexText *t, const char *bytes, size_t n) {
    if (t->capacity - t->size <= n) {
        t->capacity = 2 * (t->size + n) + 256;
        t->bytes = (char *)xrealloc(t->bytes, t->capacity);
    }
    if (n) memcpy(t->bytes + t->size, bytes, n);
    t->size += n;
    t->bytes[t->size] = '\0';
}

/* Writes what closes the open scopes, the innermost first. */
static inline void tex_close_scopes(TexText *out, const TexWalk *w, RenderTask task) {
    static const char *const closing[] = {
        [TEX_IN_CODE] = "}",     [TEX_IN_BRACES] = "}",          [TEX_IN_SQUARE] = "]",
        [TEX_IN_DOLLARS] = "$",  [TEX_IN_DOUBLE_DOLLARS] = "$$", [TEX_IN_DISPLAY] = "\\]",
        [TEX_IN_INLINE] = "\\)", [TEX_IN_LEFT] = "\\right."};
    for (size_t d = w->depth; d > 0; d--) {
        const TexScope *s = &w->scopes[d - 1];
        const bool environment = s->place == TEX_IN_FIGURE || s->place == TEX_IN_ENVIRONMENT;
        if (environment) {
            tex_text_add(out, "\\end{", 5);
            tex_text_add(out, w->text + s->begin.name, s->begin.name_size);
            tex_text_add(out, "}", 1);
        } else {
            tex_text_add(out, closing[s->place], strlen(closing[s->place]));
        }
        if (task == RENDER_TIKZ) tex_text_add(out, "\n", 1);
    }
}

/* Completes a program of n bytes that was cut anywhere: drops what is incomplete at its end, back to the last complete
 * statement (;), environment or line, in a formula to the last complete symbol, and closes the braces, environments
 * and math that are open there. A program that is complete comes back unchanged. Returns the text, allocated and ended
 * by a 0, and its size. What a model wrote wrongly before the end stays wrong; a program cut before its first statement
 * gives an empty page, and one without \begin{document} no page. */
static inline char *tex_close(RenderTask task, const char *program, size_t n, size_t *size) {
    TexWalk w;
    TexToken t;
    size_t keep = 0;
    tex_walk_begin(&w, program, n);
    w.formula = task == RENDER_FORMULA;
    while ((t = tex_walk_next(&w)).kind != TEX_END_OF_TEXT) {
        if (t.cut) continue;
        if (task == RENDER_TIKZ ? tex_complete_figure(&w, t) : tex_complete_formula(&w, t)) keep = t.end;
    }
    const bool whole = w.depth == 0 && w.statement == TEX_NO_STATEMENT &&
                       !(w.last.kind == TEX_VERBATIM && w.last.cut) &&
                       (task == RENDER_FORMULA || w.last.kind == TEX_END || keep == n);
    tex_walk_end(&w);
    TexText out = {0};
    tex_text_add(&out, program, whole ? n : keep);
    if (!whole) {
        tex_walk_begin(&w, program, keep);
        w.formula = task == RENDER_FORMULA;
        while (tex_walk_next(&w).kind != TEX_END_OF_TEXT) continue;
        if (task == RENDER_TIKZ && keep && program[keep - 1] != '\n') tex_text_add(&out, "\n", 1);
        tex_close_scopes(&out, &w, task);
        tex_walk_end(&w);
    }
    *size = out.size;
    return out.bytes;
}

#endif
