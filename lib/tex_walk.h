/* Walks over the tokens of a program and knows what is open at each: environments, braces, brackets, math, and whether a
 * statement of TikZ has begun. For lib/tex_close.h and lib/tex_layout.h; not a TeX interpreter: macros are not expanded.
 *
 *   TexWalk w;  TexToken t;
 *   tex_walk_begin(&w, text, n);
 *   while ((t = tex_walk_next(&w)).kind != TEX_END_OF_TEXT) ... w.depth, tex_walk_top(&w), w.statement ...
 *   tex_walk_end(&w);
 *
 * The text may hold any bytes, zeros among them. */
#ifndef LIB_TEX_WALK_H
#define LIB_TEX_WALK_H

#include "error.h"

typedef enum {
    TEX_END_OF_TEXT,
    TEX_BLANK,     // spaces, tabs and carriage returns
    TEX_NEWLINE,   // one
    TEX_COMMENT,   // from % to before the end of the line
    TEX_VERBATIM,  // \verb|...|, or a whole verbatim environment
    TEX_COMMAND,   // \name or \c; \left and \right with their delimiter
    TEX_BEGIN,     // \begin{name}
    TEX_END,       // \end{name}
    TEX_OPEN,
    TEX_CLOSE,
    TEX_OPEN_SQUARE,
    TEX_CLOSE_SQUARE,
    TEX_DOLLAR,  // $ or $$
    TEX_SEMICOLON,
    TEX_WORD,  // letters
    TEX_OTHER  // another byte
} TexKind;

typedef struct {
    TexKind kind;
    size_t begin, end;       // in the text
    size_t name, name_size;  // of a command without its backslash, or of an environment
    bool cut;                // a verbatim token that does not end
} TexToken;

/* ---- tokens ---- */

static inline bool tex_is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

static inline bool tex_is(const char *text, TexToken t, const char *name) {
    return t.name_size == strlen(name) && !memcmp(text + t.name, name, t.name_size);
}

/* Whether the name of a token is in a list with a space on both sides of each word. */
static inline bool tex_is_any(const char *text, TexToken t, const char *list) {
    char word[48];
    if (t.name_size == 0 || t.name_size + 3 > sizeof word) return false;
    snprintf(word, sizeof word, " %.*s ", (int)t.name_size, text + t.name);
    return strlen(word) == t.name_size + 2 && strstr(list, word) != NULL;
}

#define TEX_VERBATIM_ENVIRONMENTS                                                                                \
    " verbatim verbatim* Verbatim BVerbatim lstlisting minted comment alltt filecontents filecontents* luacode " \
    "luacode* "

/* The end of the first `word` from `at` on; n: there is none. */
static inline size_t tex_after(const char *text, size_t n, size_t at, const char *word, bool *cut) {
    const char *found = at < n ? (const char *)memmem(text + at, n - at, word, strlen(word)) : NULL;
    *cut = !found;
    return found ? (size_t)(found - text) + strlen(word) : n;
}

/* \begin{name} or \end{name}, of which the command has been read; other forms stay commands. */
static inline void tex_read_environment(const char *text, size_t n, TexToken *t) {
    const bool begin = tex_is(text, *t, "begin");
    size_t at = t->end;
    while (at < n && (text[at] == ' ' || text[at] == '\t')) at++;
    if (at == n || text[at] != '{') return;
    const size_t name = ++at;
    while (at < n && (tex_is_letter(text[at]) || text[at] == '*' || text[at] == '@')) at++;
    if (at == n || text[at] != '}' || at == name) return;
    *t = (TexToken){begin ? TEX_BEGIN : TEX_END, t->begin, at + 1, name, at - name, false};
    if (!begin || !tex_is_any(text, *t, TEX_VERBATIM_ENVIRONMENTS)) return;
    char *end = format_string("\\end{%.*s}", (int)t->name_size, text + t->name);
    t->kind = TEX_VERBATIM;
    t->end = tex_after(text, n, t->end, end, &t->cut);
    free(end);
}

/* \verb and its relatives: to the second of the character that follows, which must be in the same line. */
static inline void tex_read_verb(const char *text, size_t n, TexToken *t) {
    size_t at = t->end;
    if (at < n && text[at] == '*') at++;
    const char *first = at < n && !tex_is_letter(text[at]) && text[at] != '{' ? text + at : NULL;
    t->kind = TEX_VERBATIM;
    t->cut = at == n;
    if (!first) {
        if (at < n) t->kind = TEX_COMMAND;
        return;
    }
    const char *line = (const char *)memchr(first, '\n', n - at);
    const size_t left = line ? (size_t)(line - first) : n - at;
    const char *second = left > 1 ? (const char *)memchr(first + 1, *first, left - 1) : NULL;
    t->cut = !second;
    t->end = second ? (size_t)(second - text) + 1 : at + left;
}

static inline TexToken tex_read_command(const char *text, size_t n, size_t at) {
    TexToken t = {TEX_COMMAND, at, at + 1, at + 1, 0, false};
    while (t.end < n && (tex_is_letter(text[t.end]) || text[t.end] == '@')) t.end++;
    if (t.end == at + 1 && t.end < n) t.end++;
    t.name_size = t.end - t.name;
    if (tex_is(text, t, "begin") || tex_is(text, t, "end")) tex_read_environment(text, n, &t);
    if (tex_is_any(text, t, " verb lstinline mintinline ") && t.kind == TEX_COMMAND) tex_read_verb(text, n, &t);
    if (!tex_is_any(text, t, " left right ") || t.kind != TEX_COMMAND) return t;
    while (t.end < n && (text[t.end] == ' ' || text[t.end] == '\n')) t.end++;
    if (t.end < n && text[t.end] == '\\') {  // \{ or \langle
        for (t.end++; t.end < n && tex_is_letter(text[t.end]);) t.end++;
        if (!tex_is_letter(text[t.end - 1]) && t.end < n) t.end++;
    } else if (t.end < n) {
        t.end++;
    }
    return t;
}

/* The token at `at`. */
static inline TexToken tex_read(const char *text, size_t n, size_t at) {
    if (at >= n) return (TexToken){TEX_END_OF_TEXT, n, n, n, 0, false};
    TexToken t = {TEX_OTHER, at, at + 1, at, 0, false};
    switch (text[at]) {
    case '\\': return tex_read_command(text, n, at);
    case '\n': t.kind = TEX_NEWLINE; break;
    case '{': t.kind = TEX_OPEN; break;
    case '}': t.kind = TEX_CLOSE; break;
    case '[': t.kind = TEX_OPEN_SQUARE; break;
    case ']': t.kind = TEX_CLOSE_SQUARE; break;
    case ';': t.kind = TEX_SEMICOLON; break;
    case '%':
        t.kind = TEX_COMMENT;
        while (t.end < n && text[t.end] != '\n') t.end++;
        break;
    case '$':
        t.kind = TEX_DOLLAR;
        if (t.end < n && text[t.end] == '$') t.end++;
        break;
    case ' ':
    case '\t':
    case '\r':
        t.kind = TEX_BLANK;
        while (t.end < n && (text[t.end] == ' ' || text[t.end] == '\t' || text[t.end] == '\r')) t.end++;
        break;
    default:
        if (!tex_is_letter(text[at])) break;
        t.kind = TEX_WORD;
        while (t.end < n && tex_is_letter(text[t.end])) t.end++;
        t.name_size = t.end - at;
    }
    return t;
}

/* ---- what is open ---- */

typedef enum {
    TEX_IN_NOTHING,
    TEX_IN_FIGURE,       // an environment whose content is statements of TikZ
    TEX_IN_ENVIRONMENT,  // another
    TEX_IN_CODE,         // braces around statements: the body of \foreach, or a group
    TEX_IN_BRACES,       // others
    TEX_IN_SQUARE,
    TEX_IN_DOLLARS,
    TEX_IN_DOUBLE_DOLLARS,
    TEX_IN_DISPLAY,  // \[ \]
    TEX_IN_INLINE,   // \( \)
    TEX_IN_LEFT      // \left \right
} TexPlace;

/* Where in a statement: not in one; in \foreach before "in", before the list, before the body; in a command that no
 * semicolon ends; in a path. */
typedef enum {
    TEX_NO_STATEMENT,
    TEX_FOREACH_HEAD,
    TEX_FOREACH_LIST,
    TEX_FOREACH_BODY,
    TEX_SETTING,
    TEX_PATH
} TexStatement;

typedef struct {
    TexPlace place;
    TexToken begin;          // the token that opened it
    TexStatement statement;  // what it is part of, once it is closed
    bool options;            // the brackets behind a \begin
} TexScope;

typedef struct {
    const char *text;
    size_t n, at;
    TexScope *scopes;
    size_t depth, capacity;
    size_t texts;            // how many scopes of `scopes` are TEX_IN_BRACES
    bool formula;            // the text is one: a bracket belongs to a command only after \sqrt and the like
    TexStatement statement;  // of the innermost scope
    TexToken last, before;   // the last two tokens that are neither white space nor comments
} TexWalk;

#define TEX_FIGURES                                                                                           \
    " tikzpicture scope axis semilogxaxis semilogyaxis loglogaxis polaraxis groupplot circuitikz pgfonlayer " \
    "pgfinterruptboundingbox "
#define TEX_DRAWING                                                                                            \
    " draw fill filldraw path node coordinate shade shadedraw clip useasboundingbox matrix graph pic foreach " \
    "pattern "                                                                                                 \
    "addplot addlegendentry nextgroupplot "
#define TEX_SETTINGS                                                                                                \
    " tikzset pgfplotsset tikzstyle def edef gdef xdef let newcommand renewcommand providecommand pgfmathsetmacro " \
    "pgfmathtruncatemacro pgfmathsetlengthmacro pgfmathparse pgfmathsetseed setlength newlength definecolor "       \
    "colorlet "                                                                                                     \
    "pgfdeclarelayer pgfsetlayers usetikzlibrary usepgfplotslibrary usepackage ctikzset tdplotsetmaincoords "       \
    "pgfplotstableread newcounter setcounter "

static inline void tex_walk_begin(TexWalk *w, const char *text, size_t n) {
    memset(w, 0, sizeof *w);
    w->text = text;
    w->n = n;
}

static inline void tex_walk_end(TexWalk *w) {
    free(w->scopes);
    memset(w, 0, sizeof *w);
}

static inline TexPlace tex_walk_top(const TexWalk *w) {
    return w->depth ? w->scopes[w->depth - 1].place : TEX_IN_NOTHING;
}

/* Whether what comes next is a statement, or part of one outside all braces and brackets. */
static inline bool tex_walk_in_code(const TexWalk *w) {
    const TexPlace top = tex_walk_top(w);
    return top == TEX_IN_FIGURE || top == TEX_IN_CODE;
}

static inline bool tex_walk_in_text(const TexWalk *w) {
    const TexPlace top = tex_walk_top(w);
    return top == TEX_IN_NOTHING || top == TEX_IN_ENVIRONMENT;
}

static inline void tex_walk_push(TexWalk *w, TexPlace place, TexToken t, TexStatement inside, TexStatement after) {
    if (w->depth == w->capacity) {
        w->capacity = w->capacity ? 2 * w->capacity : 32;
        w->scopes = (TexScope *)xrealloc(w->scopes, w->capacity * sizeof *w->scopes);
    }
    w->scopes[w->depth++] = (TexScope){place, t, after, place == TEX_IN_SQUARE && w->last.kind == TEX_BEGIN};
    w->texts += place == TEX_IN_BRACES;
    w->statement = inside;
}

static inline void tex_walk_pop(TexWalk *w) {
    const TexScope *s = &w->scopes[--w->depth];
    w->texts -= s->place == TEX_IN_BRACES;
    w->statement = s->statement;
}

/* Closes the innermost scope of a place, and what is still open inside it; nothing where another barrier is nearer:
 * braces keep their content together, environments too. */
static inline void tex_walk_close(TexWalk *w, TexPlace place) {
    size_t d = w->depth;
    while (d > 0 && w->scopes[d - 1].place != place) {
        const TexPlace other = w->scopes[d - 1].place;
        if (other == TEX_IN_BRACES || other == TEX_IN_CODE || other == TEX_IN_FIGURE || other == TEX_IN_ENVIRONMENT)
            return;
        d--;
    }
    while (d > 0 && w->depth >= d) tex_walk_pop(w);
}

static inline void tex_walk_close_brace(TexWalk *w) {
    size_t d = w->depth;
    while (d > 0 && w->scopes[d - 1].place != TEX_IN_BRACES && w->scopes[d - 1].place != TEX_IN_CODE) {
        if (w->scopes[d - 1].place == TEX_IN_FIGURE || w->scopes[d - 1].place == TEX_IN_ENVIRONMENT) return;
        d--;
    }
    while (d > 0 && w->depth >= d) tex_walk_pop(w);
}

/* Closes the innermost environment if it has the name of the \end, and everything in it. */
static inline void tex_walk_close_environment(TexWalk *w, TexToken t) {
    size_t d = w->depth;
    while (d > 0 && w->scopes[d - 1].place != TEX_IN_FIGURE && w->scopes[d - 1].place != TEX_IN_ENVIRONMENT) d--;
    if (d == 0) return;
    const TexToken begin = w->scopes[d - 1].begin;
    if (begin.name_size != t.name_size || memcmp(w->text + begin.name, w->text + t.name, t.name_size)) return;
    while (w->depth >= d) tex_walk_pop(w);
}

/* ---- the rules ---- */

static inline void tex_walk_dollar(TexWalk *w, TexToken t) {
    const TexPlace place = t.end - t.begin == 2 ? TEX_IN_DOUBLE_DOLLARS : TEX_IN_DOLLARS;
    for (size_t d = w->depth; d > 0; d--) {
        if (w->scopes[d - 1].place == place) {
            tex_walk_close(w, place);
            return;
        }
        if (w->scopes[d - 1].place != TEX_IN_LEFT && w->scopes[d - 1].place != TEX_IN_SQUARE) break;
    }
    tex_walk_push(w, place, t, w->statement, w->statement);
}

static inline void tex_walk_brace(TexWalk *w, TexToken t) {
    const TexStatement s = w->statement;
    if (tex_walk_in_code(w) && w->last.kind != TEX_BEGIN && (s == TEX_NO_STATEMENT || s == TEX_FOREACH_BODY))
        tex_walk_push(w, TEX_IN_CODE, t, TEX_NO_STATEMENT, TEX_NO_STATEMENT);
    else if (tex_walk_in_text(w) && s == TEX_PATH &&
             (w->last.kind == TEX_CLOSE_SQUARE || (w->last.kind == TEX_COMMAND && tex_is(w->text, w->last, "tikz"))))
        tex_walk_push(w, TEX_IN_BRACES, t, s, TEX_NO_STATEMENT);  // \tikz[...]{...}
    else
        tex_walk_push(w, TEX_IN_BRACES, t, s, s == TEX_FOREACH_LIST ? TEX_FOREACH_BODY : s);
}

static inline void tex_walk_command(TexWalk *w, TexToken t) {
    const bool code = tex_walk_in_code(w);
    if (tex_is(w->text, t, "[")) tex_walk_push(w, TEX_IN_DISPLAY, t, w->statement, w->statement);
    if (tex_is(w->text, t, "]")) tex_walk_close(w, TEX_IN_DISPLAY);
    if (tex_is(w->text, t, "(")) tex_walk_push(w, TEX_IN_INLINE, t, w->statement, w->statement);
    if (tex_is(w->text, t, ")")) tex_walk_close(w, TEX_IN_INLINE);
    if (tex_is(w->text, t, "left") && !code) tex_walk_push(w, TEX_IN_LEFT, t, w->statement, w->statement);
    if (tex_is(w->text, t, "right") && tex_walk_top(w) == TEX_IN_LEFT) tex_walk_pop(w);
    if (tex_walk_in_text(w) && tex_is(w->text, t, "tikz")) w->statement = TEX_PATH;
    if (!code || w->statement == TEX_PATH || w->statement == TEX_FOREACH_HEAD) return;
    const bool new_one =
        w->statement != TEX_SETTING || w->last.kind == TEX_CLOSE || tex_is_any(w->text, t, TEX_DRAWING);
    if (w->statement == TEX_FOREACH_LIST)
        w->statement = TEX_FOREACH_BODY;
    else if (tex_is(w->text, t, "foreach") && new_one)
        w->statement = TEX_FOREACH_HEAD;
    else if (new_one)
        w->statement = tex_is_any(w->text, t, TEX_SETTINGS) ? TEX_SETTING : TEX_PATH;
}

static inline void tex_walk_environment(TexWalk *w, TexToken t) {
    const bool figure = w->texts == 0 && tex_is_any(w->text, t, TEX_FIGURES);
    const TexStatement after = w->statement == TEX_SETTING ? TEX_NO_STATEMENT : w->statement;
    tex_walk_push(w, figure ? TEX_IN_FIGURE : TEX_IN_ENVIRONMENT, t, TEX_NO_STATEMENT, after);
}

static inline void tex_walk_apply(TexWalk *w, TexToken t) {
    const bool code = tex_walk_in_code(w);
    const TexKind last = w->last.kind;
    switch (t.kind) {
    case TEX_COMMAND: tex_walk_command(w, t); break;
    case TEX_BEGIN: tex_walk_environment(w, t); break;
    case TEX_END: tex_walk_close_environment(w, t); break;
    case TEX_OPEN: tex_walk_brace(w, t); break;
    case TEX_CLOSE: tex_walk_close_brace(w); break;
    case TEX_DOLLAR: tex_walk_dollar(w, t); break;
    case TEX_CLOSE_SQUARE:
        if (tex_walk_top(w) == TEX_IN_SQUARE) tex_walk_pop(w);
        break;
    case TEX_OPEN_SQUARE:
        if (code || tex_walk_top(w) == TEX_IN_SQUARE ||
            (tex_walk_in_text(w) && w->formula && tex_is_any(w->text, w->last, " sqrt xrightarrow xleftarrow ")) ||
            (tex_walk_in_text(w) && !w->formula &&
             (last == TEX_COMMAND || last == TEX_BEGIN || last == TEX_CLOSE || last == TEX_CLOSE_SQUARE)))
            tex_walk_push(w, TEX_IN_SQUARE, t, w->statement, w->statement);
        break;
    case TEX_SEMICOLON:
        if (code || tex_walk_in_text(w)) w->statement = TEX_NO_STATEMENT;
        break;
    case TEX_NEWLINE:
        if (code && w->statement == TEX_SETTING && (last == TEX_CLOSE || last == TEX_CLOSE_SQUARE))
            w->statement = TEX_NO_STATEMENT;
        break;
    case TEX_WORD:
        if (w->statement == TEX_FOREACH_HEAD && code && tex_is(w->text, t, "in")) {
            w->statement = TEX_FOREACH_LIST;
            break;
        }
        /* falls through */
    case TEX_OTHER:
    case TEX_VERBATIM:
        if (code && (w->statement == TEX_NO_STATEMENT || w->statement == TEX_FOREACH_BODY)) w->statement = TEX_PATH;
        break;
    default: break;
    }
}

/* Reads the next token and applies it: afterwards the walk knows what is open behind it. */
static inline TexToken tex_walk_next(TexWalk *w) {
    const TexToken t = tex_read(w->text, w->n, w->at);
    tex_walk_apply(w, t);
    w->at = t.end;
    if (t.kind != TEX_BLANK && t.kind != TEX_NEWLINE && t.kind != TEX_COMMENT) {
        w->before = w->last;
        w->last = t;
    }
    return t;
}

#endif
