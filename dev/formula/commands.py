"""What is known of the commands of LaTeX, amsmath and amssymb that a formula may use. A command that is not here is not
drawn and never reaches the training data.

The symbols are those that fontmath.ltx, amsfonts.sty, amssymb.sty and amsmath.sty declare, with the class that TeX gives
each, which decides on the spaces beside it.
"""


def words(text):
    return tuple("\\" + word for word in text.split())


SYMBOLS = {  # class -> symbols without arguments
    "ord": words("""
        alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega
        varepsilon vartheta varpi varrho varsigma varphi varkappa digamma Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi
        Psi Omega varGamma varDelta varTheta varLambda varXi varPi varSigma varUpsilon varPhi varPsi varOmega aleph beth
        gimel daleth imath jmath ell hbar hslash wp Re Im partial infty prime backprime emptyset varnothing nabla surd top
        bot angle measuredangle sphericalangle triangle triangledown blacktriangle blacktriangledown forall exists nexists
        neg flat natural sharp clubsuit diamondsuit heartsuit spadesuit square blacksquare lozenge blacklozenge bigstar
        circledS circledR complement Finv Game eth mho Bbbk diagup diagdown maltese checkmark yen backslash S P copyright
        pounds vdots"""),
    "op": words("""
        sum prod coprod int oint iint iiint iiiint idotsint smallint bigcap bigcup bigvee bigwedge biguplus bigotimes
        bigoplus bigodot bigsqcup
        arccos arcsin arctan arg cos cosh cot coth csc deg det dim exp gcd hom inf ker lg lim liminf limsup ln log max min
        Pr sec sin sinh sup tan tanh injlim projlim varinjlim varprojlim varliminf varlimsup"""),
    "bin": words("""
        pm mp times div cdot star circ bullet cap cup uplus sqcap sqcup vee wedge setminus wr diamond bigtriangleup
        bigtriangledown triangleleft triangleright lhd rhd unlhd unrhd oplus ominus otimes oslash odot bigcirc dagger
        ddagger amalg boxdot boxplus boxminus boxtimes centerdot veebar barwedge doublebarwedge Cup Cap curlywedge
        curlyvee leftthreetimes rightthreetimes dotplus intercal circledcirc circledast circleddash divideontimes lessdot
        gtrdot ltimes rtimes smallsetminus And"""),
    "rel": words("""
        leq geq neq equiv sim simeq approx cong propto prec succ preceq succeq ll gg subset supset subseteq supseteq in ni
        notin sqsubset sqsupset sqsubseteq sqsupseteq vdash dashv models mid parallel perp asymp bowtie Join doteq smile
        frown leftarrow rightarrow leftrightarrow Leftarrow Rightarrow Leftrightarrow longleftarrow longrightarrow
        longleftrightarrow Longleftarrow Longrightarrow Longleftrightarrow mapsto longmapsto hookleftarrow hookrightarrow
        leftharpoonup leftharpoondown rightharpoonup rightharpoondown rightleftharpoons leftrightharpoons uparrow
        downarrow updownarrow Uparrow Downarrow Updownarrow nearrow searrow nwarrow swarrow iff implies impliedby
        circlearrowright circlearrowleft Vdash Vvdash vDash twoheadrightarrow twoheadleftarrow leftleftarrows
        rightrightarrows upuparrows downdownarrows upharpoonright downharpoonright upharpoonleft downharpoonleft
        rightarrowtail leftarrowtail leftrightarrows rightleftarrows Lsh Rsh rightsquigarrow leftrightsquigarrow
        looparrowleft looparrowright circeq succsim gtrsim gtrapprox multimap therefore because doteqdot triangleq precsim
        lesssim lessapprox eqslantless eqslantgtr curlyeqprec curlyeqsucc preccurlyeq leqq leqslant lessgtr risingdotseq
        fallingdotseq succcurlyeq geqq geqslant gtrless vartriangleright vartriangleleft trianglerighteq trianglelefteq
        between blacktriangleright blacktriangleleft vartriangle eqcirc lesseqgtr gtreqless lesseqqgtr gtreqqless
        Rrightarrow Lleftarrow varpropto smallsmile smallfrown Subset Supset subseteqq supseteqq bumpeq Bumpeq lll ggg
        pitchfork backsim backsimeq lvertneqq gvertneqq nleq ngeq nless ngtr nprec nsucc lneqq gneqq nleqslant ngeqslant
        lneq gneq npreceq nsucceq precnsim succnsim lnsim gnsim nleqq ngeqq precneqq succneqq precnapprox succnapprox
        lnapprox gnapprox nsim ncong varsubsetneq varsupsetneq nsubseteqq nsupseteqq subsetneqq supsetneqq varsubsetneqq
        varsupsetneqq subsetneq supsetneq nsubseteq nsupseteq nparallel nmid nshortmid nshortparallel nvdash nVdash nvDash
        nVDash ntrianglerighteq ntrianglelefteq ntriangleleft ntriangleright nleftarrow nrightarrow nLeftarrow nRightarrow
        nLeftrightarrow nleftrightarrow eqsim shortmid shortparallel thicksim thickapprox approxeq succapprox precapprox
        curvearrowleft curvearrowright backepsilon dashrightarrow dashleftarrow"""),
    "inner": words("ldots cdots ddots dots dotsb dotsc dotsi dotsm dotso"),
    "punct": words("colon ldotp cdotp"),
    "open": words("langle lfloor lceil lvert lVert lgroup lmoustache ulcorner llcorner"),
    "close": words("rangle rfloor rceil rvert rVert rgroup rmoustache urcorner lrcorner"),
}
CLASS = {name: kind for kind, names in SYMBOLS.items() for name in names}
CLASS |= {"\\{": "open", "\\}": "close", "\\|": "ord", "\\%": "ord", "\\$": "ord", "\\&": "ord", "\\_": "ord",
          "\\#": "ord"}
CHARACTERS = {  # class of a character in a formula
    **{c: "ord" for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/.|@\""},
    **{c: "bin" for c in "+-*"}, **{c: "rel" for c in "=<>:"}, **{c: "open" for c in "(["},
    **{c: "close" for c in ")]!?"}, **{c: "punct" for c in ",;"}}

# Operators whose scripts stand above and below in displays, and those whose scripts stand beside.
LIMITS = set(words("""sum prod coprod bigcap bigcup bigvee bigwedge biguplus bigotimes bigoplus bigodot bigsqcup det gcd inf
                      injlim lim liminf limsup max min Pr projlim sup varinjlim varprojlim varliminf varlimsup"""))
SIDES = set(SYMBOLS["op"]) - LIMITS
NAMED = {name[1:]: name for name in words("""arccos arcsin arctan arg cos cosh cot coth csc deg det dim exp gcd hom inf ker
                                             lg lim ln log max min Pr sec sin sinh sup tan tanh""")}

SYNONYMS = {  # other spellings of the same picture
    "\\ge": "\\geq", "\\le": "\\leq", "\\ne": "\\neq", "\\to": "\\rightarrow", "\\gets": "\\leftarrow", "\\owns": "\\ni",
    "\\land": "\\wedge", "\\lor": "\\vee", "\\lnot": "\\neg", "\\lbrace": "\\{", "\\rbrace": "\\}", "\\vert": "|",
    "\\Vert": "\\|", "\\ast": "*", "\\lbrack": "[", "\\rbrack": "]", "\\dag": "\\dagger", "\\ddag": "\\ddagger",
    "\\restriction": "\\upharpoonright", "\\Doteq": "\\doteqdot", "\\doublecup": "\\Cup", "\\doublecap": "\\Cap",
    "\\llless": "\\lll", "\\gggtr": "\\ggg", "\\dotsb": "\\cdots", "\\dotsm": "\\cdots",
    "\\Box": "\\square", "\\leadsto": "\\rightsquigarrow",
    "\\Diamond": "\\lozenge", "\\slash": "/", "\\mathellipsis": "\\ldots",
    "\\hdots": "\\ldots", "\\thinspace": "\\,", "\\medspace": "\\:", "\\>": "\\:", "\\thickspace": "\\;",
    "\\negthinspace": "\\!", "\\nobreakspace": "~", "\\enskip": "\\enspace",
    "\\cr": "\\\\", "\\sp": "^", "\\sb": "_", "\\bm": "\\boldsymbol", "\\Bbb": "\\mathbb", "\\frak": "\\mathfrak",
    "\\hbox": "\\mbox", "\\textnormal": "\\text", "\\textrm": "\\text", "\\textup": "\\text",
    "\\mathsection": "\\S", "\\mathparagraph": "\\P", "\\lq": "`", "\\rq": "'"}

SPACES = (*words("quad qquad enspace"), "\\,", "\\:", "\\;", "\\!", "\\ ")
STYLES = {"\\displaystyle": "D", "\\textstyle": "T", "\\scriptstyle": "S", "\\scriptscriptstyle": "SS"}
# Fonts that hold to the end of their group, and the command with an argument that each becomes.
DECLARATIONS = {"\\rm": "\\mathrm", "\\bf": "\\mathbf", "\\it": "\\mathit", "\\sf": "\\mathsf", "\\tt": "\\mathtt",
                "\\cal": "\\mathcal", "\\mit": "\\mathnormal"}
INVISIBLE = words("nonumber notag allowbreak nobreak protect relax nolinebreak noindent space")

ALPHABETS = words("mathrm mathbf mathit mathsf mathtt mathcal mathbb mathfrak mathscr mathnormal")
ACCENTS = words("hat check tilde acute grave dot ddot dddot breve bar vec mathring widehat widetilde")
LINES = words("overline underline overbrace underbrace overrightarrow overleftarrow overleftrightarrow underrightarrow "
              "underleftarrow underleftrightarrow")
CLASSES = {"\\mathop": "op", "\\mathbin": "bin", "\\mathrel": "rel", "\\mathord": "ord", "\\mathopen": "open",
           "\\mathclose": "close", "\\mathpunct": "punct", "\\mathinner": "inner"}
ONE = (*ALPHABETS, *ACCENTS, *LINES, *CLASSES, *words("boldsymbol pmb phantom hphantom vphantom boxed smash pod pmod mod "
       "operatorname"), "\\operatorname*")
TWO = words("frac dfrac tfrac cfrac binom dbinom tbinom overset underset stackrel")
FRACTIONS = words("frac dfrac tfrac cfrac binom dbinom tbinom")
OPTIONAL = words("sqrt xrightarrow xleftarrow")  # one argument, with an option in brackets before it
TEXTS = words("text mbox textbf textit textsf texttt emph")
INFIX = {"\\over": "\\frac", "\\choose": "\\binom", "\\atop": "\\genfrac{}{}{0pt}{}", "\\brace":
         "\\genfrac\\{\\}{0pt}{}", "\\brack": "\\genfrac[]{0pt}{}"}
DELIMITERS = {*"()[]|/.<>", *words("langle rangle lfloor rfloor lceil rceil lvert rvert lVert rVert lgroup rgroup "
              "lmoustache rmoustache uparrow downarrow updownarrow Uparrow Downarrow Updownarrow backslash ulcorner "
              "urcorner llcorner lrcorner"), "\\{", "\\}", "\\|"}
SIZES = {name: kind for size in ("big", "Big", "bigg", "Bigg")
         for name, kind in ((f"\\{size}", "ord"), (f"\\{size}l", "open"), (f"\\{size}r", "close"), (f"\\{size}m", "rel"))}
# Environments: the columns of an alignment are right and left in turn; those of a matrix are centred.
ENVIRONMENTS = ("aligned", "gathered", "split", "cases", "matrix", "pmatrix", "bmatrix", "vmatrix", "Vmatrix", "Bmatrix",
                "smallmatrix", "array", "alignedat")
WRAPPERS = {"equation": None, "displaymath": None, "math": None, "align": "aligned", "gather": "gathered"}

# What KaTeX has not, of the commands above (by its table of supported functions, version 0.16).
NOT_IN_KATEX = {"\\iiiint", "\\idotsint", "\\dddot", "\\And", "\\emph"}
