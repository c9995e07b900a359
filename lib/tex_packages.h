/* What packages and libraries give to figures: how a program that needs one can be told from one that does not.
 *
 * A package is listed only where all that it changes is known; others are never thought useless. Words are divided by
 * "|": a word that begins or ends with a letter stands alone there, or goes on behind a final "*". They err to the side
 * of use: "fit" in a label keeps the library fit. "~" stands for "|". The tables are checked against TikZ 3.1 and pgfplots 1.18 by
 * test/test_tidy.c: a figure of plain TikZ must look the same with and without each of them. */
#ifndef LIB_TEX_PACKAGES_H
#define LIB_TEX_PACKAGES_H

#include "error.h"

typedef struct {
    const char *name;
    const char *words;    // that show a use; NULL: only commands of unknown origin
    const char *implies;  // libraries that it loads, with a space on both sides of each
    bool commands;        // it gives commands that are not in `words`
    bool loads_tikz;
} TexProvider;

#define TEX_SHAPES_GEOMETRIC "diamond|ellipse|trapezium|semicircle|polygon|star|isosceles|kite|dart|sector|cylinder"
#define TEX_SHAPES_MISC "cross out|strike out|rounded rectangle|chamfered"
#define TEX_SHAPES_SYMBOLS "forbidden|cloud|starburst|signal|tape|magnifying|correct"
#define TEX_SHAPES_ARROWS "arrow|arrows|single arrow|double arrow|arrow box"
#define TEX_SHAPES_CALLOUTS "callout"
#define TEX_SHAPES_MULTIPART "split|splits|solidus|lower|nodepart|part|parts"

static const TexProvider tex_libraries[] = {
    {"3d", "canvas|plane|xyz|current plane|zx|xy|yz", NULL, false, false},
    {"angles", "angle|angles", NULL, false, false},
    {"arrows",
     "angle|diamond|square|triangle|latex'|stealth'|left to|right to|to "
     "reversed|hook|hooks|serif|cap|implies|reversed|-o|o-|-*|*-|-[|]-|[(-|[)-"
     "|-)]|-(]|-),|-(,|,(-|,)-|arrow|arrows|{)}|{(}|{[}|{]}|)}|={(|bracket|markings|tip|tips",
     NULL, false, false},
    {"arrows.meta",
     "Arc|Bar|Bracket|Butt|Circle|Classical|Computer|Diamond|Ellipse|Fast|Hooks|Implies|Kite|Latex|Parenthesis|Rays|"
     "Rectangle|Round|Square|Stealth|Straight|Tee|To|Triangle|Turned|>[|latex[|stealth[|->|<-|~-|-~|arrow|arrows|"
     "tip|tips|harpoon|open|length|inset",
     NULL, false, false},
    {"automata", "state|initial|accepting|accept", " shapes.multipart ", false, false},
    {"backgrounds", "background|framed|gridded|pgfonlayer|layer|show", NULL, false, false},
    {"calc", "let|$(|($|]$|$)!|!*|)$", NULL, false, false},
    {"chains", "chain|chained|join|chaining", " positioning ", false, false},
    {"decorations", "decorat*|snake*", NULL, false, false},
    {"decorations.footprints", "footprints|footprint|foot*|decorat*|snake*", " decorations ", false, false},
    {"decorations.fractals", "Koch|Cantor", " decorations ", false, false},
    {"decorations.markings", "mark|markings|marking", " decorations ", false, false},
    {"decorations.pathmorphing",
     "bent|bumps|coil|random|saw|snake*|zigzag|lineto|curveto|squiggly|rightsquigarrow|"
     "leftrightsquigarrow|morphing|straight",
     " decorations ", false, false},
    {"decorations.pathreplacing", "border|brace|waves|ticks|show path|moveto|replacing|tick", " decorations ", false,
     false},
    {"decorations.shapes", "crosses|triangles|shape|shapes|dots", " decorations ", false, false},
    {"decorations.text", "text along|text effects|along path", " decorations ", false, false},
    {"er", "entity|relationship|attribute|multi|key", " shapes.geometric ", false, false},
    {"fadings", "fading|fit fading|scope fading|fade", NULL, false, false},
    {"fit", "fit", NULL, false, false},
    {"intersections", "intersection|intersections|intersect|name path|named path|name", NULL, false, false},
    {"matrix", "matrix|delimiter|nodes in empty cells|empty", NULL, false, false},
    {"patterns", "pattern|patterns", NULL, false, false},
    {"positioning",
     "of|above=|below=|left=|right=|above =|below =|left =|right =|base left|base right|mid left|"
     "mid right|grid|distance",
     NULL, false, false},
    {"quotes", "\"", NULL, false, false},
    {"shadings", "shading|shade|shadedraw|wheel|Mandelbrot|bilinear", NULL, false, false},
    {"shadows", "shadow|shadows", " fadings ", false, false},
    {"shapes",
     TEX_SHAPES_GEOMETRIC "|" TEX_SHAPES_MISC "|" TEX_SHAPES_SYMBOLS "|" TEX_SHAPES_ARROWS "|" TEX_SHAPES_CALLOUTS
                          "|" TEX_SHAPES_MULTIPART "|shape",
     NULL, false, false},
    {"shapes.arrows", TEX_SHAPES_ARROWS, NULL, false, false},
    {"shapes.callouts", TEX_SHAPES_CALLOUTS, NULL, false, false},
    {"shapes.geometric", TEX_SHAPES_GEOMETRIC, NULL, false, false},
    {"shapes.misc", TEX_SHAPES_MISC, NULL, false, false},
    {"shapes.multipart", TEX_SHAPES_MULTIPART, NULL, false, false},
    {"shapes.symbols", TEX_SHAPES_SYMBOLS, NULL, false, false},
    {"spy", "spy|spying", NULL, false, false},
    {"through", "through", NULL, false, false},
    {"trees", "grow*|child|clockwise|counterclockwise|edge from parent|fork|sibling*|level*|grow'|tree", NULL, false,
     false},
};

/* Libraries of pgfplots. */
static const TexProvider tex_plot_libraries[] = {
    {"fillbetween", "fill between|name path|intersection*|intersect*|between|soft clip", NULL, false, false},
    {"groupplots", "groupplot|nextgroupplot|group style|group*", NULL, false, false},
    {"polar", "polaraxis|polar", NULL, false, false},
    {"statistics", "boxplot*|hist*|violin|quantile", NULL, false, false},
};

static const TexProvider tex_packages[] = {
    {"amsfonts", NULL, NULL, true, false},
    {"amsmath",
     "pmatrix|bmatrix|dots|ldots|cdots|big|Big|bigg|Bigg|bigl|bigr|bigm|Bigl|Bigr|Bigm|biggl|biggr|Biggl|Biggr|hat|"
     "check|tilde|acute|"
     "grave|dot|ddot|breve|bar|vec|sqrt|bmod|pmod|mod|colon|int|oint|matrix|cases|align*|gather*|multline*|equation*|"
     "eqnarray*|split|aligned|gathered|array|math*|displaymath|overrightarrow|overleftarrow|text|textup|textrm|iff|"
     "implies|ensuremath|over|choose|atop|$$|\\[|sum|prod|lim|limsup|liminf|frac|left",
     NULL, true, false},
    {"amssymb", NULL, NULL, true, false},
    {"array", "tabular|array|tabularx", NULL, true, false},
    {"bm", "bm", NULL, true, false},
    {"booktabs", "tabular|tabularx|array", NULL, true, false},
    {"circuitikz",
     "to|circuit*|ctikz*|bipole*|port|amp|ground|transformer|american|european|node|ohm|->|<-|arrow|arrows|"
     "Stealth|Latex|stealth|latex|>|<",
     " calc arrows.meta fpu ", true, true},
    {"gensymb", NULL, NULL, true, false},
    {"graphicx", "includegraphics|scalebox|resizebox|rotatebox|reflectbox|graphicspath", NULL, false, false},
    {"ifthen", "ifthenelse|whiledo|boolean|equal|isodd|newboolean|setboolean", NULL, true, false},
    {"mathtools",
     "dots|ldots|cdots|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|hat|tilde|dot|ddot|bar|vec|sqrt|bmod|pmod|mod|colon|int|"
     "oint|matrix|cases|align*|gather*|multline*|equation*|split|aligned|gathered|array|math*|text|$$|\\[|ensuremath|"
     "over|sum|prod|lim|limsup|liminf|frac|left|:=|=:|lfloor|lceil",
     NULL, true, false},
    {"multirow", "tabular|tabularx|array", NULL, true, false},
    {"pgfplots",
     "axis*|semilog*|loglog*|addplot*|pgfplots*|groupplot*|nextgroupplot|plot*|mark|marks|colormap|ybar|xbar",
     " decorations decorations.pathmorphing decorations.pathreplacing plotmarks ", true, true},
    {"siunitx", "SI|si|num|qty|unit|ang|tabular|tabularx|array|per|sisetup", NULL, true, false},
    {"tikz-3dplot", "tdplot*", " calc 3d arrows ", true, false},
    {"tikz-cd", "tikzcd*|arrow|ar|cd", " matrix quotes arrows.meta ", true, true},
};

/* Commands of LaTeX and plain TikZ, so of none of the packages above. */
#define TEX_KNOWN_COMMANDS                                                                                           \
    " documentclass begin end usepackage usetikzlibrary usepgfplotslibrary pgfplotsset tikzset tikzstyle tikz draw " \
    "fill filldraw path node coordinate shade shadedraw clip useasboundingbox matrix graph pic foreach pattern def " \
    "edef let newcommand renewcommand providecommand pgfmathsetmacro pgfmathtruncatemacro pgfmathparse "             \
    "pgfmathresult pgflinewidth pgfdeclarelayer pgfsetlayers pgfresetboundingbox setlength newlength definecolor "   \
    "colorlet color textcolor centering par item hline x y z i j k n p width height textwidth linewidth "            \
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi varpi rho "     \
    "varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi "   \
    "Psi Omega cdot times div pm mp ast star circ bullet cap cup vee wedge oplus ominus otimes odot le leq ge geq "  \
    "ne neq equiv sim simeq approx cong propto subset supset subseteq supseteq in ni notin to rightarrow leftarrow " \
    "Rightarrow Leftarrow leftrightarrow Leftrightarrow longrightarrow longleftarrow mapsto uparrow downarrow "      \
    "infty partial nabla forall exists neg emptyset ell prime Re Im angle triangle perp parallel mid langle rangle " \
    "lbrace rbrace mathbf mathrm mathit mathsf mathtt mathcal textbf textit textsf texttt textsc textrm emph bf it " \
    "rm sf tt sc bfseries itshape sffamily ttfamily rmfamily scshape normalfont tiny scriptsize footnotesize small " \
    "normalsize large Large LARGE huge Huge quad qquad hspace vspace hskip vskip kern sin cos tan cot sec csc log "  \
    "ln exp max min arg det dim gcd sup inf underline overline overbrace underbrace displaystyle textstyle "         \
    "scriptstyle newline linebreak noindent relax addplot addlegendentry legend closedcycle nextgroupplot arrow "    \
    "ctikzset tdplotsetmaincoords pagestyle thispagestyle makeatletter makeatother "

/* Environments of LaTeX and TikZ, and those that the words above name. */
#define TEX_KNOWN_ENVIRONMENTS                                                                               \
    " document tikzpicture scope pgfonlayer center figure minipage preview itemize enumerate verbatim axis " \
    "semilogxaxis "                                                                                          \
    "semilogyaxis loglogaxis polaraxis groupplot tikzcd circuitikz tabular array "

#endif
