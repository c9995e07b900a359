#!/usr/bin/env python3
"""One spelling for formulas that look the same: the spelling that the models of dev/formula learn.

    normalise.py [--katex] [--tidy] <formulas >normalised     one a line; a line that is refused comes out empty

README.md lists the rules. The picture of a formula, drawn as a display, stays the same to the pixel, apart from empty space
around it. The normal form of a normal form is itself. Everything is spelled so that a program that knows no TeX can put the
tokens one behind another: all arguments and scripts have braces, and a command without arguments is followed by a space.
tidy() takes the spaces out that TeX does not need.

metrics/formula_normalise.h also normalises, to compare: it drops what people hardly see, such as \\left, and takes any
text; results are compared in its form. This one keeps all that renders differently, and refuses what cannot be drawn.
"""
import argparse
import re
import sys

import commands as known
from tree import FormulaError, Node, read

SMALLER = {"D": "S", "T": "S", "S": "SS", "SS": "SS", None: None}
FRACTION = {"D": "T", "T": "S", "S": "SS", "SS": "SS", None: None}
WORD = re.compile("[A-Za-z]+")


# ---- questions ----

def is_symbol(node, *names):
    return node.kind == "symbol" and node.name in names and not node.has_scripts()


def is_ord(node):
    """Whether TeX sets the node as an ordinary symbol, with or without scripts."""
    if node.kind == "symbol":
        return known.CLASS.get(node.name) == "ord" or known.CHARACTERS.get(node.name) == "ord"
    if node.kind == "command":
        return node.name in known.ACCENTS + known.ALPHABETS + known.FRACTIONS + ("\\sqrt", "\\overline", "\\underline") \
            or node.name.startswith("\\genfrac")
    return node.kind == "group"


def is_one_atom(nodes):
    """Whether braces around these nodes change nothing, whatever scripts stand behind them: TeX takes them away itself."""
    if len(nodes) != 1 or nodes[0].has_scripts():
        return False
    node = nodes[0]
    if node.kind == "symbol":
        return is_ord(node) and len(node.name) != 1 or node.name.isalnum()
    return node.kind == "group" or node.kind == "command" and (
        node.name in known.ALPHABETS + known.FRACTIONS or node.name.startswith("\\genfrac")
        or node.name in known.ACCENTS and not any(n.kind == "command" for n in node.args[0]))


def opens_scope(nodes):
    """Whether something in the list holds up to its end, so that the braces around it matter."""
    return any(node.kind in ("style", "font", "infix", "middle", "line") for node in nodes)


def letters(nodes):
    """The letters of a list that has nothing else, or None."""
    text = "".join(node.name if node.kind == "symbol" and not node.has_scripts() else "?" for node in nodes)
    return text if WORD.fullmatch(text) else None


# ---- the rules, from the inside to the outside; style: that in which TeX sets the list, None: not known ----

def settle(nodes, style):
    """Brings a list to its normal form; returns it."""
    out = []
    nodes = fonts_and_fractions(nodes)
    for i, node in enumerate(nodes):
        if node.kind == "style":
            if known.STYLES[node.name] == style:
                continue  # it is in force already
            style = known.STYLES[node.name]
        out.append(settle_node(node, style))
    return join_symbols(open_groups(drop_empty(out)))


def fonts_and_fractions(nodes):
    """{\\bf a} -> \\mathbf{a}; a \\over b -> \\frac{a}{b}."""
    places = [i for i, node in enumerate(nodes) if node.kind == "infix"]
    if len(places) > 1:
        raise FormulaError("two of \\over in one group")
    if places:
        above, below = nodes[:places[0]], nodes[places[0] + 1:]
        held = [node for node in above if node.kind == "font"][-1:]
        return [Node("command", nodes[places[0]].name, [above, held + below])]
    at = next((i for i, node in enumerate(nodes) if node.kind == "font"), None)
    if at is None:
        return nodes
    end = next((i for i in range(at + 1, len(nodes)) if nodes[i].kind == "font"), len(nodes))
    inner = nodes[at + 1:end]
    if any(node.kind in ("style", "middle") for node in inner):
        raise FormulaError("a font before a style")
    changed = [Node("command", known.DECLARATIONS[nodes[at].name], [inner])] if inner else []
    return nodes[:at] + changed + fonts_and_fractions(nodes[end:])


def settle_node(node, style):
    small = SMALLER[style]
    if node.sub is not None:
        node.sub = argument(settle(node.sub, small))
    if node.sup is not None:
        node.sup = argument(settle(node.sup, small))
    if node.kind == "group":
        node.args = [settle(node.args[0], style)]
    elif node.kind == "left":
        node.args = [settle(node.args[0], style)]
    elif node.kind == "environment":
        if node.name in known.WRAPPERS:
            raise FormulaError("a display in a display")
        inner = {"aligned": "D", "gathered": "D", "alignedat": "D", "smallmatrix": "S", "\\substack": "S"}
        node.rows = [[settle(cell, inner.get(node.name, "T")) for cell in row] for row in node.rows]
    elif node.kind == "text":
        node = settle_text(node, style)
    elif node.kind == "command":
        node = settle_command(node, style)
    return settle_limits(node, style)


def argument(nodes):
    """{{a+b}} -> {a+b}, of an argument."""
    while len(nodes) == 1 and nodes[0].kind == "group" and not nodes[0].has_scripts():
        nodes = nodes[0].args[0]
    return nodes


def settle_command(node, style):
    name = node.name
    styles = {"\\frac": (FRACTION[style],), "\\binom": (FRACTION[style],), "\\dfrac": ("T",), "\\dbinom": ("T",),
              "\\tfrac": ("S",), "\\tbinom": ("S",), "\\cfrac": ("T",), "\\overset": (SMALLER[style], style),
              "\\underset": (SMALLER[style], style), "\\stackrel": (SMALLER[style], style), "\\underbrace": ("D",),
              "\\overbrace": ("D",), "\\boxed": ("D",), "\\xrightarrow": ("S",), "\\xleftarrow": ("S",)}
    if name.startswith("\\genfrac"):
        styles[name] = (FRACTION[style],)
    inner = styles.get(name, (style,))
    node.args = [argument(settle(arg, inner[min(i, len(inner) - 1)])) for i, arg in enumerate(node.args)]
    if node.option is not None:
        node.option = settle(node.option, "SS" if name == "\\sqrt" else "S") or None
    if style == "D" and name in ("\\dfrac", "\\dbinom") or style == "T" and name in ("\\tfrac", "\\tbinom"):
        node.name = "\\" + name[2:]
    if name in ("\\operatorname", "\\operatorname*"):
        return settle_operator(node, letters(node.args[0]), name.endswith("*"), style)
    if name == "\\mathop" and len(node.args[0]) == 1:
        inner = node.args[0][0]
        word = letters(inner.args[0]) if inner.kind == "command" and inner.name == "\\mathrm" else None
        if word and len(word) > 1 and not inner.has_scripts() and style:
            node.args = inner.args
            return settle_operator(node, word, True, style)
    return node


def settle_operator(node, word, star, style):
    """\\operatorname{sin} -> \\sin, where limits stay at their places."""
    node.name = "\\operatorname*" if star else "\\operatorname"
    name = known.NAMED.get(word)
    sides = not star or node.limits == "\\nolimits" or (style != "D" and style is not None)  # where scripts stand now
    above = node.limits == "\\limits" or not sides
    if not node.has_scripts():
        above, sides = False, True
    if name is None:
        if style is not None:
            limits = "\\limits" if above and style != "D" else ""
            node.name, node.limits = ("\\operatorname*" if above else "\\operatorname"), limits
        return node
    out = Node("symbol", name)
    out.sub, out.sup = node.sub, node.sup
    if node.has_scripts() and (name in known.LIMITS or above):
        out.limits = "\\limits" if above else "\\nolimits"
    return out


def settle_limits(node, style):
    """Drops \\limits and \\nolimits where the scripts stand so anyway."""
    if not node.limits:
        return node
    if not node.has_scripts():
        node.limits = ""
    sides = node.name in known.SIDES or node.name == "\\operatorname" or style in ("T", "S", "SS")
    above = style == "D" and (node.name in known.LIMITS or node.name in
                              ("\\mathop", "\\operatorname*", "\\overbrace", "\\underbrace"))
    if node.limits == "\\nolimits" and sides or node.limits == "\\limits" and above:
        node.limits = ""
    return node


def settle_text(node, style):
    """\\mbox{a} is \\text{a} except in scripts; formulas in it are normalised; \\mbox{$a$} in scripts stays."""
    parts = []
    for part in node.args:
        if isinstance(part, list):
            parts.append(settle(part, "T"))
        elif part:
            part = re.sub(" +", " ", part)
            if parts and isinstance(parts[-1], str):
                part = parts.pop() + part
            parts.append(part)
    node.args = parts
    if node.name == "\\mbox" and style in ("D", "T"):
        node.name = "\\text"
    return node


def is_empty(node):
    return node.kind == "group" and not node.args[0] and not node.has_scripts()


def drop_empty(nodes):
    """Takes {} away beside an ordinary symbol, where it does nothing; space between them does not count."""
    out, last = [], None
    for i, node in enumerate(nodes):
        if is_empty(node):
            behind = next((n for n in nodes[i + 1:] if n.kind != "space" and not is_empty(n)), None)
            if last is not None and is_ord(last) or behind is not None and is_ord(behind):
                continue
        if node.kind != "space":
            last = node
        out.append(node)
    return out


KERNED = "/.,;:<>"  # beside these TeX moves a letter, but not a letter at the end of a group


def may_touch(left, right):
    """Whether no brace is needed between two nodes for TeX to set them at the same distance."""
    return left is None or right is None or left.has_scripts() or not any(
        node.kind == "symbol" and node.name in KERNED for node in (left, right))


def open_groups(nodes):
    """Takes braces away that change nothing: {x}^2 -> x^2, a{bc} -> abc."""
    out = []
    for i, node in enumerate(nodes):
        inner = node.args[0] if node.kind == "group" else None
        behind = nodes[i + 1] if i + 1 < len(nodes) else None
        if inner and is_one_atom(inner):
            inner[0].sub, inner[0].sup = node.sub, node.sup
            out.append(inner[0])
        elif (inner and not node.has_scripts() and not opens_scope(inner) and is_ord(inner[0]) and is_ord(inner[-1])
              and may_touch(out[-1] if out else None, inner[0]) and may_touch(inner[-1], behind)):
            out += inner
        else:
            out.append(node)
    return out


def join_symbols(nodes):
    """\\not= -> \\neq; \\dots -> \\ldots or \\cdots, as amsmath chooses."""
    out = []
    for i, node in enumerate(nodes):
        behind = nodes[i + 1] if i + 1 < len(nodes) else Node("space", "")
        if out and is_symbol(out[-1], "\\not") and node.kind == "symbol" and node.name == "=":
            out.pop()
            node.name = "\\neq"
        if node.kind == "symbol" and node.name in ("\\dots", "\\dotsc", "\\dotso", "\\dotsi"):
            out += dots(node, behind)
            continue
        out.append(node)
    return out


def dots(node, behind):
    kind = known.CLASS.get(behind.name) or known.CHARACTERS.get(behind.name) if behind.kind == "symbol" else None
    low = node.has_scripts() or node.name in ("\\dotsc", "\\dotso")
    integral = node.name == "\\dotsi" or not low and behind.name in ("\\int", "\\oint", "\\iint", "\\iiint")
    central = not low and (kind in ("bin", "rel") or kind == "op" and behind.name in known.LIMITS
                           and behind.name[1:] not in known.NAMED or behind.name == "\\not")
    spaced = node.name == "\\dotsc" and behind.name in (";", ".")
    node.name = "\\cdots" if central or integral else "\\ldots"
    return ([Node("space", "\\!")] if integral else []) + [node] + ([Node("space", "\\,")] if spaced else [])


# ---- writing ----

def word(command):
    """A command that a letter may follow."""
    return command + " " if command[0] == "\\" and command[-1].isalpha() else command


def braces(nodes):
    return "{" + write(nodes) + "}"


def write_scripts(node):
    out = word(node.limits) if node.limits else ""
    if node.sub is not None:
        out += "_" + braces(node.sub)
    if node.sup is not None:
        primes = node.sup and all(is_symbol(n, "\\prime") for n in node.sup)
        out += "'" * len(node.sup) if primes else "^" + braces(node.sup)
    return out


def write_environment(node):
    rows = ["&".join(map(write, row)) for row in node.rows]
    out = rows[0]
    for end, row in zip(node.ends, rows[1:]):
        # a bracket or a star behind the end of a row would be read as belonging to it
        out += end + ("\\relax " if end == "\\\\" and row[:1] in ("[", "*") else "") + row
    out += "".join(node.ends[len(rows) - 1:])
    if node.name == "\\substack":
        return "\\substack{" + out + "}"
    columns = f"{{{node.columns}}}" if node.columns else ""
    return f"\\begin{{{node.name}}}{columns}{out}\\end{{{node.name}}}"


def write_text(node):
    parts = "".join("$" + write(part).strip() + "$" if isinstance(part, list) else part for part in node.args)
    return f"{node.name}{{{parts}}}"


def write_node(node):
    if node.kind == "group":
        return braces(node.args[0])
    if node.kind == "command":
        option = "[" + protected(write(node.option)) + "]" if node.option else ""
        return node.name + option + "".join(map(braces, node.args))
    if node.kind == "left":
        return word(node.name) + write(node.args[0]) + word(node.end)
    if node.kind == "environment":
        return write_environment(node)
    if node.kind == "text":
        return write_text(node)
    if node.kind == "size":
        return word(node.name + node.args[0])
    return word(node.name)


def protected(option):
    """A bracket in an option needs braces."""
    return "{" + option + "}" if "]" in option else option


def write(nodes):
    return "".join(write_node(node) + write_scripts(node) for node in nodes)


def tidy(text):
    """A normal form without the spaces that TeX does not need: \\alpha + x -> \\alpha+x."""
    return re.sub(r"(\\[A-Za-z]+) (?![A-Za-z])|(\\text[a-z]*\{[^{}]*\}|\\mbox\{[^{}]*\})",
                  lambda match: match[1] or match[2], text).strip()


# ---- a whole formula ----

def unwrap(text):
    """The formula without what makes it a display, and without a dangling \\\\ at its end."""
    while True:
        text = text.strip()
        match = re.fullmatch(r"\$\$([^$]*)\$\$|\$([^$]*)\$|\\\[((?:(?!\\\]).)*)\\\]|\\\(((?:(?!\\\)).)*)\\\)|(.*[^\\])\\\\",
                             text, re.DOTALL)
        inner = match and next((part for part in match.groups() if part is not None), None)
        if inner is None or inner.endswith("\\"):
            return text
        text = inner


def trim(nodes):
    """Drops space at both ends: an image is cut to the formula."""
    begin, end = 0, len(nodes)
    while end > begin and (nodes[end - 1].kind == "space" or is_empty(nodes[end - 1])):
        end -= 1
    while begin < end and nodes[begin].kind == "space":
        begin += 1
    return nodes[begin:end]


def commands_of(text):
    return re.findall(r"\\[A-Za-z]+\*?|\\.", text)


def normalise(text, katex=False):
    """The normal form of a formula. katex: refuses what KaTeX cannot draw. Raises FormulaError."""
    nodes = read(unwrap(text))
    if len(nodes) == 1 and nodes[0].name in known.WRAPPERS and len(nodes[0].rows) == 1 == len(nodes[0].rows[0]):
        nodes = nodes[0].rows[0][0]  # equation, displaymath, math
    out = write(trim(settle(nodes, "D")))
    if not out:
        raise FormulaError("empty")
    if katex:
        for command in commands_of(out):
            if command in known.NOT_IN_KATEX:
                raise FormulaError("not in KaTeX", command)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--katex", action="store_true", help="refuse formulas that KaTeX cannot draw")
    parser.add_argument("--tidy", action="store_true", help="without the spaces that TeX does not need")
    args = parser.parse_args()
    for line in sys.stdin:
        try:
            text = normalise(line, args.katex)
            print(tidy(text) if args.tidy else text)
        except FormulaError as e:
            print()
            print(f"normalise.py: {e}", file=sys.stderr)


if __name__ == "__main__":
    main()
