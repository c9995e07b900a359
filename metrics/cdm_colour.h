/* Colours the tokens of a formula, for metrics/cdm.h: each token that may leave ink gets a colour of its own.
 *
 * A colour is set by \pdfliteral, a node without size between the atoms of the formula, which leaves their spacing as it is
 * (a group, as \color needs it, would not). It lasts until the next one in the order in which TeX ships the boxes out. So
 * what TeX draws by itself is coloured by setting its colour where it is drawn: the bar of a fraction at the end of the
 * numerator, a sum at the end of its upper limit, the right bracket before \right.
 *
 * Not a whole parser of TeX: macros that are defined in the formula are not expanded. A command that is not known counts as
 * a token, and one that leaves no ink is forgotten when the drawing is looked at. */
#ifndef METRICS_CDM_COLOUR_H
#define METRICS_CDM_COLOUR_H

#include "cdm_words.h"

/* What leaves no ink and takes no argument; nothing is put before it. */
static const char cdm_silent[] =
    "\\limits \\nolimits \\displaylimits \\displaystyle \\textstyle \\scriptstyle \\scriptscriptstyle "
    "\\quad \\qquad \\enspace \\thinspace \\medspace \\thickspace \\negthinspace \\hfill \\strut \\mathstrut "
    "\\nonumber \\notag \\allowbreak \\nobreak \\break \\newline \\cr \\null \\relax "
    "\\, \\; \\: \\! \\> \\/ \\- \\( \\) \\[ \\] & ~ $ \\";
static const char cdm_with_length[] = "\\kern \\mkern \\hskip \\mskip";
static const char cdm_with_text[] = "\\hspace \\vspace \\phantom \\hphantom \\vphantom \\label \\cline";
static const char cdm_fonts[] =
    "\\mathrm \\mathbf \\mathit \\mathsf \\mathtt \\mathcal \\mathbb \\mathfrak \\mathscr \\mathnormal "
    "\\boldsymbol \\bm \\pmb \\text \\textrm \\textbf \\textit \\textsf \\texttt \\textnormal \\mbox "
    "\\hbox \\operatorname";
static const char cdm_switches[] = "\\rm \\bf \\it \\sf \\tt \\cal \\bfseries \\itshape \\rmfamily";
/* No ink of their own; the number of arguments is 1, or 2. */
static const char cdm_wrappers[] =
    "\\mathop \\mathbin \\mathrel \\mathord \\mathopen \\mathclose \\mathpunct \\mathinner \\substack "
    "\\smash \\ensuremath \\mathrlap \\mathllap \\mathclap \\vcenter";
static const char cdm_stacks[] = "\\overset \\underset \\stackrel";
/* Ink over, under or around an argument. */
static const char cdm_accents[] =
    "\\hat \\bar \\tilde \\vec \\dot \\ddot \\dddot \\ddddot \\check \\acute \\grave \\breve \\mathring "
    "\\widehat \\widetilde \\overline \\underline \\overbrace \\underbrace \\overrightarrow "
    "\\overleftarrow \\overleftrightarrow \\underrightarrow \\underleftarrow \\boxed \\fbox "
    "\\xrightarrow \\xleftarrow \\' \\` \\^ \\\" \\~ \\= \\.";
static const char cdm_fractions[] = "\\frac \\dfrac \\tfrac \\cfrac";
static const char cdm_binomials[] = "\\binom \\dbinom \\tbinom";
static const char cdm_sizes[] =
    "\\big \\Big \\bigg \\Bigg \\bigl \\Bigl \\biggl \\Biggl \\bigr \\Bigr \\biggr \\Biggr \\bigm \\Bigm "
    "\\biggm \\Biggm \\middle";

static inline int cdm_atom(CdmColouring *c, CdmWord word, int base);

/* Counts one more level of nesting. Too many are a problem, and end the formula: the stack is finite. */
static inline void cdm_enter(CdmColouring *c) {
    if (++c->depth <= CDM_DEPTH) return;
    c->problem = "its groups are nested too deep";
    c->at = c->end;
}

/* Atoms up to what ends their list: }, ] where `bracket` is true, \right, \end, or the end. Then sets the colour `after`. */
static inline void cdm_list(CdmColouring *c, bool bracket, int after) {
    const CdmWord font = c->font;
    int base = 0;       // the colour of the last atom, which its upper limit must leave
    bool cell = false;  // there is something after the last \\ : then a cell is open
    cdm_enter(c);
    for (;;) {
        cdm_spaces(c);
        const CdmWord word = cdm_peek(c);
        if (word.n == 0 || cdm_in(word, "} \\right \\end") || (bracket && cdm_is(word, "]"))) break;
        c->at += word.n;
        base = cdm_atom(c, word, base);
        cell = !cdm_in(word, "\\\\ \\hline \\cline");
    }
    cdm_set(c, after == CDM_KEEP && cell && cdm_is(cdm_peek(c), "\\end") ? 0 : after);  // rules after the last cell
    c->depth--;
    c->font = font;
}

/* An argument: a group or one atom, always written as a group; one that is not closed stays so. Its end sets the colour
 * `after`. */
static inline void cdm_argument(CdmColouring *c, int after) {
    cdm_spaces(c);
    const bool group = c->at < c->end && *c->at == '{';
    c->at += group;
    cdm_put_text(c, "{");
    if (group) {
        cdm_list(c, false, after);
        cdm_take(c, '}');
        return;
    }
    cdm_enter(c);
    if (c->at < c->end && !cdm_in(cdm_peek(c), "} \\right \\end")) {
        cdm_atom(c, cdm_next(c), 0);
        cdm_set(c, after);
    }
    c->depth--;
    cdm_put_text(c, "}");
}

/* \left ( ... \right ), and \big ( with its relatives. The delimiter is the token. */
static inline int cdm_delimiter(CdmColouring *c, CdmWord command) {
    cdm_spaces(c);
    const CdmWord delimiter = cdm_next(c);
    const int colour = cdm_is(delimiter, ".") ? 0 : cdm_token(c, delimiter);
    cdm_put_word(c, command);
    cdm_put_word(c, delimiter);
    if (!cdm_is(command, "\\left")) return colour;
    cdm_list(c, false, CDM_KEEP);
    const CdmWord right = cdm_peek(c);
    if (!cdm_is(right, "\\right")) return colour;
    c->at += right.n;
    return cdm_delimiter(c, right);
}

/* \begin{name} with its arguments, the cells, \end{name}. Matrices with brackets are written with \left and \right, which
 * is how they are defined, so that their brackets are tokens. */
static inline int cdm_environment(CdmColouring *c) {
    static const char *const brackets[][4] = {{"{pmatrix}", "(", ")"},
                                              {"{bmatrix}", "[", "]"},
                                              {"{Bmatrix}", "\\{", "\\}"},
                                              {"{vmatrix}", "|", "|"},
                                              {"{Vmatrix}", "\\|", "\\|"}};
    int kind = -1, colour = 0;
    while (c->at < c->end && isspace((unsigned char)*c->at)) c->at++;
    CdmWord name = {c->at, 0};
    while (c->at < c->end && *c->at != '}') c->at++;
    c->at += c->at < c->end;
    name.n = (int)(c->at - name.at);
    for (int k = 0; k < 5; k++)
        if (cdm_is(name, brackets[k][0])) kind = k;
    if (kind >= 0) {
        cdm_token(c, (CdmWord){brackets[kind][1], (int)strlen(brackets[kind][1])});
        cdm_put_text(c, "\\left");
        cdm_put_text(c, brackets[kind][1]);
        name = (CdmWord){"{matrix}", 8};
    } else if (cdm_in(name, "{cases} {dcases}")) {
        colour = cdm_token(c, (CdmWord){"\\{", 2});
    }
    if (cdm_in(name, "{array} {tabular}")) cdm_set(c, 0);  // rules before the first cell
    cdm_put_text(c, "\\begin");
    cdm_put_word(c, name);
    if (cdm_in(name, "{array} {tabular} {subarray} {aligned} {alignedat} {alignat} {alignat*} {gathered}"))
        if (c->at < c->end && *c->at == '[') cdm_copy_group(c, '[', ']', true);
    if (cdm_in(name, "{array} {tabular} {subarray} {alignedat} {alignat} {alignat*}"))
        cdm_copy_group(c, '{', '}', true);
    cdm_list(c, false, CDM_KEEP);
    if (cdm_is(cdm_peek(c), "\\end")) {
        c->at += 4;
        cdm_copy_group(c, '{', '}', false);
        cdm_put_text(c, "\\end");
        cdm_put_word(c, name);
    }
    if (kind < 0) return colour;
    colour = cdm_token(c, (CdmWord){brackets[kind][2], (int)strlen(brackets[kind][2])});
    cdm_put_text(c, "\\right");
    cdm_put_text(c, brackets[kind][2]);
    return colour;
}

/* Primes, and an exponent after them: one superscript. */
static inline void cdm_primes(CdmColouring *c, CdmWord word, int base) {
    cdm_put_text(c, "^{");
    for (bool more = true; more;) {
        cdm_token(c, word);
        cdm_put_text(c, "\\prime ");
        cdm_spaces(c);
        more = c->at < c->end && *c->at == '\'';
        c->at += more;
    }
    if (c->at < c->end && *c->at == '^') {
        c->at++;
        cdm_argument(c, CDM_KEEP);
    }
    cdm_set(c, base);
    cdm_put_text(c, "}");
}

/* A command with arguments that are set in another font. */
static inline void cdm_in_font(CdmColouring *c, CdmWord command) {
    const CdmWord font = c->font;
    cdm_put_word(c, command);
    if (cdm_is(command, "\\operatorname")) cdm_take(c, '*');
    c->font = command;
    cdm_argument(c, 0);
    c->font = font;
}

/* A command that leaves ink of its own beside that of its arguments. */
static inline int cdm_construct(CdmColouring *c, CdmWord command) {
    const int colour = cdm_token(c, command);
    cdm_put_word(c, command);
    if (cdm_in(command, "\\sqrt \\xrightarrow \\xleftarrow") && c->at < c->end) {
        cdm_spaces(c);
        if (cdm_take(c, '[')) {
            cdm_list(c, true, colour);
            cdm_take(c, ']');
        }
    }
    if (cdm_in(command, cdm_fractions)) {
        cdm_argument(c, colour);
        cdm_argument(c, 0);
    } else if (cdm_in(command, cdm_binomials)) {
        cdm_argument(c, colour);
        cdm_argument(c, colour);
    } else {
        cdm_argument(c, cdm_is(command, "\\sqrt") ? 0 : colour);
    }
    return colour;
}

/* The rest of the commands. Returns as cdm_atom. */
static inline int cdm_command(CdmColouring *c, CdmWord word, int base) {
    if (cdm_is(word, "\\\\")) {
        cdm_set(c, 0);
        cdm_put_word(c, word);
        cdm_take(c, '*');
        if (c->at < c->end && *c->at == '[') cdm_copy_group(c, '[', ']', true);
    } else if (cdm_is(word, "\\hline")) {
        cdm_put_text(c, "\\noalign{");
        cdm_set(c, 0);
        cdm_put_text(c, "}\\hline ");
    } else if (cdm_in(word, "\\color \\textcolor")) {
        cdm_copy_group(c, '{', '}', false);
        if (cdm_is(word, "\\textcolor")) cdm_argument(c, 0);
    } else if (cdm_is(word, "\\multicolumn")) {
        cdm_put_word(c, word);
        cdm_copy_group(c, '{', '}', true);
        cdm_copy_group(c, '{', '}', true);
        cdm_argument(c, 0);
    } else if (cdm_is(word, "\\not")) {
        const CdmWord next = (cdm_spaces(c), cdm_next(c));
        base = cdm_token(c, (CdmWord){word.at, (int)(next.at + next.n - word.at)});
        cdm_put_word(c, word);
        cdm_put_word(c, next);
    } else if (cdm_in(word, cdm_with_text)) {
        cdm_put_word(c, word);
        cdm_take(c, '*');
        cdm_copy_group(c, '{', '}', true);
    } else if (cdm_in(word, cdm_wrappers) || cdm_in(word, cdm_stacks)) {
        cdm_put_word(c, word);
        cdm_argument(c, 0);
        if (cdm_in(word, cdm_stacks)) cdm_argument(c, 0);
        base = 0;
    } else {
        base = cdm_token(c, word);
        cdm_put_word(c, word);
        if (cdm_is(word, "\\rule")) {
            cdm_copy_group(c, '[', ']', true);
            cdm_copy_group(c, '{', '}', true);
            cdm_copy_group(c, '{', '}', true);
        }
    }
    return base;
}

/* One atom, whose first word has been taken; base: the colour of the atom before. Returns the colour of this one, which
 * its scripts must leave. */
static inline int cdm_atom(CdmColouring *c, CdmWord word, int base) {
    if (cdm_is(word, "{")) {
        c->at--;
        cdm_argument(c, 0);
        return 0;
    }
    if (cdm_in(word, "^ _")) {
        cdm_put_word(c, word);
        cdm_argument(c, base);
        return base;
    }
    if (cdm_is(word, "'")) return cdm_primes(c, word, base), base;
    if (cdm_is(word, "&")) cdm_set(c, 0);  // rules after a cell
    if (cdm_in(word, cdm_silent) || cdm_is(word, "\\ ")) return cdm_put_word(c, word), base;
    if (cdm_in(word, cdm_with_length)) return cdm_put_word(c, word), cdm_copy_length(c), base;
    if (cdm_in(word, cdm_switches)) return cdm_put_word(c, c->font = word), base;
    if (cdm_in(word, cdm_fonts)) return cdm_in_font(c, word), 0;
    if (cdm_is(word, "\\begin")) return cdm_environment(c);
    if (cdm_is(word, "\\left") || cdm_in(word, cdm_sizes)) return cdm_delimiter(c, word);
    if (cdm_is(word, "\\sqrt") || cdm_in(word, cdm_fractions) || cdm_in(word, cdm_binomials) ||
        cdm_in(word, cdm_accents))
        return cdm_construct(c, word);
    if (*word.at == '\\') return cdm_command(c, word, base);
    base = cdm_token(c, word);
    cdm_put_word(c, word);
    return base;
}

static inline void cdm_colouring_free(CdmColouring *c) {
    free(c->out);
    free(c->tokens);
    memset(c, 0, sizeof *c);
}

/* Colours a formula of n bytes, with or without its own math mode. c->problem says why a formula cannot be coloured. The
 * tokens point into the formula. Free with cdm_colouring_free. */
static inline void cdm_colour(CdmColouring *c, const char *formula, size_t n) {
    *c = (CdmColouring){.at = formula, .end = formula + n};
    cdm_put_text(c, "");
    for (;;) {
        cdm_list(c, false, CDM_KEEP);
        if (c->at == c->end) return;
        cdm_put_word(c, cdm_next(c));  // it closes what was not opened: TeX will say so
    }
}

#endif
