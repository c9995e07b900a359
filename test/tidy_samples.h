/* Documents for test/test_tidy.c, each with something in its layout or preamble that can go wrong. */
#ifndef TEST_TIDY_SAMPLES_H
#define TEST_TIDY_SAMPLES_H

#define DOCUMENT(preamble, body) \
    "\\documentclass[tikz]{standalone}\n" preamble "\\begin{document}\n" body "\n\\end{document}\n"
#define FIGURE(preamble, body) DOCUMENT(preamble, "\\begin{tikzpicture}\n" body "\n\\end{tikzpicture}")

/* Plain TikZ: what must look the same with any unused package. No tips that lib/tex_packages.h counts as a use. */
static const char tidy_plain[] = FIGURE(
    "",
    "\\draw (0,0) -- (1,1); \\draw[dashed] (0,0) to[out=30,in=120] (2,1); \\draw[red,fill=yellow,opacity=.5] (1,4) "
    "rectangle (2,5) circle (3pt) ellipse (3pt and 4pt);\n"
    "\\node[draw,circle,fill=blue!20] (a) at (5,2) {$x_1^2+\\alpha$}; \\node[draw,rounded corners] (b) at (6,1) "
    "{text};\n"
    "\\draw plot[domain=0:2,samples=20] (\\x,{sin(\\x r)}); \\draw plot[smooth] coordinates {(0,0) (1,2) (2,0)};\n"
    "\\node[above right] at (a) {q}; \\node[label=left:l,pin=30:p] at (7,3) {c};\n"
    "\\foreach \\i in {1,...,4} {\\fill (\\i,5.5) circle (\\i pt); \\node at (\\i,6) {$\\frac{\\i}{2}$};}\n"
    "\\draw[step=.5,help lines] (6,5) grid (7,6); \\draw (6,3) parabola (7,4) cos (8,5) sin (9,6);\n"
    "\\draw[double,line width=1pt] (8,3)--(9,3) -- cycle; \\shade[ball color=blue] (8,2) circle (.3);");

static const char *const tidy_documents[] = {
    FIGURE("\\usetikzlibrary{calc,positioning,fit,shapes.geometric}\n\\usepackage{amsmath}\\usepackage{pgfplots}\n",
           "\\node[draw] (a) {a}; \\node[draw,right=of a] (b) {b};\\draw ($(a)!.5!(b)$) circle (2pt);% the middle\n"
           "\\begin{scope}[shift={(0,2)}]\\fill[red] (0,0) circle (3pt);\\begin{scope}[rotate=20]\n\\draw (0,0)\n"
           " rectangle (1,1);\\end{scope}\\end{scope}"),
    DOCUMENT(
        "\\usepackage{pgfplots}\n\\pgfplotsset{compat=1.16}\\usetikzlibrary{patterns, 3d}\n",
        "\\begin{tikzpicture}\\begin{axis}[width=5cm,\n xlabel=$x$, % a label\n  ]\n\\addplot[red,domain=0:2] {x^2};"
        "\\addplot coordinates {(0,0)\n(1,2)\n   (2,1)};\n\\addplot table {\nx y\n0 1\n  1 "
        "0\n};\\end{axis}\\end{tikzpicture}"),
    DOCUMENT("\\usepackage{tikz-cd}\n\\usetikzlibrary{decorations.pathmorphing}\n",
             "\\begin{tikzcd}[row sep=small]\n   A \\arrow[r, \"f\"] \\arrow[d]   & B \\\\\n C \\arrow[r,squiggly] & "
             "D \\\\\nE \\arrow[r]   & F \\arrow[u,hook] \\\\\n G & H\n\\end{tikzcd}"),
    FIGURE(
        "\\usetikzlibrary{matrix}\n",
        "\\foreach \\x in {0,1,2}{\\foreach \\y/\\c in {0/red,1/blue} {\\fill[\\c] (\\x,\\y) circle (2pt);\\node at "
        "(\\x,\\y+.4) {a;b};}\n}\\foreach \\x in {1,2} \\draw (\\x,-1) -- (\\x,\n  -2);"),
    FIGURE("\\usepackage{amssymb}\n\\newcommand{\\thing}[1]{\\draw (#1,0) -- (#1,1); \\fill (#1,1) circle (2pt);}\n",
           "\\thing{1}\\thing{2}\n\\node at (0,2) {one   two  %\nthree; four};\\node {$\\mathbb{R}; "
           "\\{a\\}$};\n\n\n\\thing{3}"),
    FIGURE("\\usetikzlibrary{arrows.meta,bending}\n", "\\draw[-{Stealth[length=3mm]}] (0,0) -- (1,1); \\draw[->] "
                                                      "(0,0) to [bend left] (2,0);\\draw[|->] (0,1) -- (2,1);"),
    FIGURE("\\usetikzlibrary{arrows.meta,fit}\n",
           "\\draw[->] (0,0) -- (1,1);\\draw[|-|] (0,1) -- (2,1);\\draw[<->] (0,2)--(2,2);"),
    FIGURE("\\usetikzlibrary{patterns,decorations.pathreplacing,decorations.markings}\n",
           "\\fill[pattern=north east lines] (0,0) rectangle (2,1);\\draw[decorate,decoration={brace}] (0,1.2) -- "
           "(2,1.2);"),
    FIGURE("\\usetikzlibrary{trees}\n", "[level distance=1cm]\n\\node {a}\n    child {node {b}\n  child {node "
                                        "{c;d}}}\n child {node {e}};\\draw (3,0) -- (4,0);"),
    FIGURE(
        "\\usetikzlibrary{matrix,calc}\n",
        "\\matrix (m) [matrix of nodes, row sep=1mm] {\n  a & b; \\\\\n c   & d \\\\\n};\\draw (m-1-1)\n--(m-2-2);"),
    FIGURE("\\usetikzlibrary{backgrounds,shapes}\n",
           "\\node[draw,ellipse] (a) {x};\\begin{pgfonlayer}{background}\\fill[yellow] (-1,-1) rectangle "
           "(1,1);\\end{pgfonlayer}"),
    FIGURE("\\usepackage{tikz-3dplot}\n\\tdplotsetmaincoords{60}{120}\n",
           "[tdplot_main_coords]\\draw (0,0,0) -- (1,0,0);\\draw (0,0,0) -- (0,1,0); \\draw (0,0,0) -- (0,0,1);"),
    FIGURE("\\usetikzlibrary{intersections,through,shadows}\n",
           "\\path[name path=a] (0,0) -- (2,2);\\path[name path=b] (0,2) -- (2,0);\\fill[name intersections={of=a "
           "and b}] "
           "(intersection-1) circle (3pt);"),
    FIGURE("\\usetikzlibrary{automata,positioning}\n",
           "\\node[state,initial] (q) {$q_0$};\\node[state,accepting,right=of q] (r) {$q_1$};\\path (q) edge [loop "
           "above] node {0} ()\n"
           "  edge node {1} (r);"),
    FIGURE(
        "\\usetikzlibrary{angles,quotes}\n",
        "\\coordinate (a) at (1,0);\\coordinate (b) at (0,0);\\coordinate (c) at (1,1);\n\\draw (a) -- (b) -- (c)\n"
        "pic[\"$\\theta$\",draw,angle radius=5mm] {angle=a--b--c};"),
    DOCUMENT("\\usepackage{circuitikz}\n\\usepackage{siunitx}\n",
             "\\begin{circuitikz}\\draw (0,0) to[R=$R$] (2,0)\nto[C] (2,2) -- (0,2);\\draw (3,0) -- "
             "(3,1);\\end{circuitikz}"),
    FIGURE("\\usepackage{ifthen,graphicx}\n\\usetikzlibrary{spy,chains}\n",
           "\\def\\n{3}\\pgfmathsetmacro{\\r}{1.5}\n\\foreach \\i in {1,...,\\n} {\\ifthenelse{\\i=2}{\\fill (\\i,0) "
           "circle "
           "(\\r pt);}{\\draw (\\i,0) circle (3pt);}}"),
    FIGURE("", "{\\draw (0,0) -- (1,1);[red]\\draw (0,1) -- (1,0);}{[blue] \\draw (2,0) -- (3,1);}\\draw[thick,\n%\n] "
               "(0,2) -- (1,2);"),
    DOCUMENT("\\usepackage{amsmath}\n\\usetikzlibrary{shapes.misc}\n",
             "\\begin{tikzpicture}[baseline=0pt, scale=.5] \\node at (0,0) {$\\begin{aligned} a &= b \\\\ c &= "
             "d\\end{aligned}$};"
             "\\node[cross out,draw] at (2,0) {x};\\end{tikzpicture} \\tikz \\draw (0,0) -- (1,1); "
             "\\tikz[red]{\\draw (0,0)--(1,0);} \\verb|a;  b|"),
    "\\documentclass{standalone}\n\\usepackage{tikz}\\usepackage{pgfplots}\n\\begin{document}a  "
    "b\\begin{tikzpicture}\\draw "
    "(0,0) -- (1,1);\\end{tikzpicture} c\\end{document}\n",
    DOCUMENT("\\usetikzlibrary{calc}\n\\tikzset{box/.style={draw,\n   minimum size=5mm}, every "
             "node/.style={font=\\small}}\n",
             "\\begin{tikzpicture}\n\\tikzset{a/.style={red}}\n\\tikzstyle{b}=[blue]\n\\node[box,a] (x) "
             "{\\begin{tabular}{c}a\\\\b\\end{tabular}};"
             "\\draw let \\p1=(x.east) in (\\x1,0) -- ++(1,0);\\end{tikzpicture}"),
};

#endif
