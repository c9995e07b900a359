"""Reads a formula into a tree. What is no formula of LaTeX, or uses a command that is not in commands.py, raises
FormulaError with a reason that counts can be made of."""
import re

import commands as known

MAX_DEPTH = 40
LENGTH = re.compile(r"\s*([+-]?)\s*(\d*\.?\d*)\s*(mu|em|ex|pt|cm|mm|in|pc|bp)"
                    r"(?:\s*(?:plus|minus)\s*-?[\d.]+\s*(?:fil+|mu|em|ex|pt|cm|mm|in|pc|bp))*\s?")


class FormulaError(Exception):
    """The formula is not drawn. reason: a few words, the same for all formulas of the kind; detail: which command."""

    def __init__(self, reason, detail=""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class Node:
    """A thing in a list. Scripts belong to it.

    kind        name                    args
    symbol      the character, command
    group       ""                      [list]
    command     the command             [list, ...]; option: list or None
    left        "\\left("               [list]; end: "\\right)"
    text        the command             [string or list (a formula), ...]
    environment its name                rows: [[cell, ...], ...], a cell being a list; columns: of an array
    space, style, font, infix, middle, size, row, cell, line: the command, with all that belongs to it
    """
    __slots__ = ("kind", "name", "args", "option", "end", "rows", "ends", "columns", "sub", "sup", "limits")

    def __init__(self, kind, name, args=()):
        self.kind, self.name, self.args = kind, name, list(args)
        self.option = self.sub = self.sup = None
        self.end = self.columns = self.limits = ""
        self.rows, self.ends = [], []

    def has_scripts(self):
        return self.sub is not None or self.sup is not None


def clean_length(match):
    """(number, unit) of a length, the number in one spelling: -0.5; 2."""
    number = match[2].strip(".") and float(match[2]) or 0.0
    return f"{'-' if match[1] == '-' and number else ''}{number:.3f}".rstrip("0").rstrip("."), match[3]


def space_node(number, unit):
    if unit == "mu":
        return Node("space", f"\\mkern{number}mu")
    equal = {("1", "em"): "\\quad", ("2", "em"): "\\qquad", ("0.5", "em"): "\\enspace"}
    return Node("space", equal.get((number, unit), f"\\hspace{{{number}{unit}}}"))


def environment_name(raw):
    """The name of an environment; numbered or not is the same, and align is drawn as aligned."""
    name = raw.replace(" ", "").strip()
    plain = name.removesuffix("*")
    return known.WRAPPERS[plain] or plain if plain in known.WRAPPERS else name


class Reader:
    def __init__(self, text):
        self.text, self.at, self.depth = text, 0, 0

    # ---- tokens ----

    def skip(self):
        while self.at < len(self.text):
            c = self.text[self.at]
            if c == "%":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif c in " \t\r\n\v\f":
                self.at += 1
            else:
                return

    def peek(self):
        """The next token in its one spelling; "" at the end. Ends at self.after."""
        self.skip()
        if self.at == len(self.text):
            self.after = self.at
            return ""
        match = re.compile(r"\\([A-Za-z]+|[\s\S]|$)|[\s\S]").match(self.text, self.at)
        self.after, token = match.end(), match[0]
        if token in ("\\", "\\\n", "\\\t"):
            token = "\\ "
        return known.SYNONYMS.get(token, token)

    def next(self):
        token = self.peek()
        self.at = self.after
        return token

    def take(self, token):
        found = self.peek() == token
        if found:
            self.at = self.after
        return found

    def raw_group(self, what):
        """The text between braces."""
        self.skip()
        if self.text[self.at:self.at + 1] != "{":
            raise FormulaError("argument missing", what)
        depth = 0
        for match in re.compile(r"\\[\s\S]|[{}]").finditer(self.text, self.at):
            depth += {"{": 1, "}": -1}.get(match[0], 0)
            if depth == 0:
                inner, self.at = self.text[self.at + 1:match.start()], match.end()
                return inner
        raise FormulaError("braces")

    def option_text(self):
        """The text of an option in brackets, or None."""
        if self.peek() != "[":
            return None
        end = self.text.find("]", self.after)
        if end < 0:
            raise FormulaError("bracket missing")
        inner, self.at = self.text[self.after:end], end + 1
        return inner

    # ---- lists ----

    def list(self, stops):
        """All up to one of the tokens `stops`, which is not read."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise FormulaError("nested too deeply")
        out = []
        while (token := self.peek()) not in stops:
            if token == "":
                raise FormulaError("braces" if "}" in stops else "cut off")
            if token in ("}", "\\end", "\\right", "&", "\\\\") or token == "]" and "]" in stops:
                raise FormulaError("braces" if token == "}" else f"{token} without its partner or place")
            self.item(out, token)
        self.depth -= 1
        return out

    def item(self, out, token):
        if token in ("^", "_", "'"):
            if not out or out[-1].kind in ("space", "style", "font", "infix", "middle", "line"):
                out.append(Node("group", "", [[]]))
            self.script(out[-1], token)
        elif token in ("\\limits", "\\nolimits", "\\displaylimits"):
            self.next()
            if not out or out[-1].kind not in ("symbol", "command"):
                raise FormulaError("\\limits without an operator")
            out[-1].limits = "" if token == "\\displaylimits" else token
        elif token in known.INVISIBLE:
            self.next()
        elif token == "~":  # as LaTeX defines it
            self.next()
            out += [Node("space", "\\ "), Node("group", "", [[]])]
        elif token == "\\label":
            self.next()
            self.raw_group(token)
        else:
            out.append(self.nucleus())

    def script(self, node, token):
        self.next()
        if token == "'":
            inner = [Node("symbol", "\\prime")]
            while self.take("'"):
                inner.append(Node("symbol", "\\prime"))
            if self.take("^"):
                inner += self.argument("^")
            token = "^"
        else:
            inner = self.argument(token)
        place = "sub" if token == "_" else "sup"
        if getattr(node, place) is not None:
            raise FormulaError("double script")
        setattr(node, place, inner)

    def argument(self, what):
        """The argument of a command: a list."""
        token = self.peek()
        if token == "{":
            self.next()
            inner = self.list(("}",))
            self.next()
            return inner
        if token in ("", "}", "&", "^", "_", "'", "\\\\", "\\end", "\\right", "\\left", "\\limits", "\\nolimits",
                     "\\begin") or token in known.INFIX or token in known.DECLARATIONS or token in known.STYLES:
            raise FormulaError("argument missing", what)
        if token in known.ONE or token in known.TWO or token in known.OPTIONAL or token in known.TEXTS:
            if what in ("^", "_"):  # TeX reads the command alone, and refuses most
                node = self.nucleus()
                return [node]
            raise FormulaError("argument missing", what)
        return [self.nucleus()]

    def nucleus(self):
        token = self.next()
        if token == "{":
            inner = self.list(("}",))
            self.next()
            return Node("group", "", [inner])
        if token in known.SPACES:
            return Node("space", token)
        if token in known.CLASS or token in known.CHARACTERS or token == "\\not" or token == "`":
            return Node("symbol", token)
        if token in known.STYLES:
            return Node("style", token)
        if token in known.DECLARATIONS:
            return Node("font", token)
        if token in known.INFIX:
            return Node("infix", known.INFIX[token])
        if token in known.SIZES:
            return Node("size", token, [self.delimiter()])
        special = {"\\left": self.left, "\\middle": self.middle, "\\begin": self.environment, "\\substack": self.substack,
                   "\\genfrac": self.genfrac, "\\hline": self.line, "\\root": self.root, "\\mathstrut": self.strut,
                   "\\ensuremath": self.ensure, "\\bmod": lambda: Node("symbol", "\\bmod")}
        if token in special:
            return special[token]()
        if token in known.TEXTS:
            return Node("text", token, self.text_argument(self.raw_group(token)))
        if token in ("\\hspace", "\\hskip", "\\kern", "\\mkern", "\\mskip"):
            return self.space(token)
        return self.command(token)

    def command(self, token):
        if token == "\\operatorname" and self.text[self.at:self.at + 1] == "*":
            self.at += 1
            token = "\\operatorname*"
        if token in known.ONE:
            return Node("command", token, [self.argument(token)])
        if token in known.TWO:
            if token == "\\cfrac" and self.option_text() not in (None, "c"):
                raise FormulaError("option of \\cfrac")
            return Node("command", token, [self.argument(token), self.argument(token)])
        if token in known.OPTIONAL:
            node = Node("command", token)
            if self.take("["):
                node.option = self.list(("]",))
                self.next()
            node.args = [self.argument(token)]
            return node
        if len(token) == 1:
            raise FormulaError("character" if ord(token) < 128 else "character beyond ASCII", token)
        raise FormulaError("unknown command", token)

    # ---- commands with a syntax of their own ----

    def delimiter(self):
        token = self.next()
        if token == "{":  # \big{(}
            token = self.next()
            if not self.take("}"):
                raise FormulaError("delimiter")
        token = {"<": "\\langle", ">": "\\rangle", "\\lvert": "|", "\\rvert": "|", "\\lVert": "\\|", "\\rVert":
                 "\\|"}.get(token, token)
        if token not in known.DELIMITERS:
            raise FormulaError("delimiter", token)
        return token

    def left(self):
        node = Node("left", "\\left" + self.delimiter())
        node.args = [self.list(("\\right",))]
        self.next()
        node.end = "\\right" + self.delimiter()
        return node

    def middle(self):
        return Node("middle", "\\middle" + self.delimiter())

    def space(self, token):
        if token == "\\hspace":
            self.take("*")
            match = LENGTH.fullmatch(re.sub(r"\s", "", self.raw_group(token)))
        else:
            match = LENGTH.match(self.text, self.at)
            self.at = match.end() if match else self.at
        if not match or not match[2].strip(".") or (match[3] == "mu") != token.startswith("\\m"):
            raise FormulaError("length")
        return space_node(*clean_length(match))

    def line(self):
        return Node("line", "\\hline")

    def strut(self):
        return Node("command", "\\vphantom", [[Node("symbol", "(")]])

    def root(self):
        node = Node("command", "\\sqrt")
        node.option = self.list(("\\of",))
        self.next()
        node.args = [self.argument("\\root")]
        return node

    def ensure(self):
        return Node("group", "", [self.argument("\\ensuremath")])

    def genfrac(self):
        parts = [self.raw_group("\\genfrac").strip() for _ in range(4)]
        name = "\\genfrac" + "".join(f"{{{part}}}" for part in parts)
        same = {"\\genfrac{}{}{}{}": "\\frac", "\\genfrac{(}{)}{0pt}{}": "\\binom", "\\genfrac{}{}{}{0}": "\\dfrac",
                "\\genfrac{}{}{}{1}": "\\tfrac", "\\genfrac{(}{)}{0pt}{0}": "\\dbinom",
                "\\genfrac{(}{)}{0pt}{1}": "\\tbinom"}
        if name not in same and name not in known.INFIX.values():
            raise FormulaError("form of \\genfrac")
        return Node("command", same.get(name, name), [self.argument(name), self.argument(name)])

    def substack(self):
        if self.next() != "{":
            raise FormulaError("argument missing", "\\substack")
        node = Node("environment", "\\substack")
        self.rows(node, "}")
        return node

    def environment(self):
        name = environment_name(self.raw_group("\\begin"))
        node = Node("environment", name)
        if name == "array":
            self.option_text()
            node.columns = re.sub(r"\s+|@\{\}|\\displaystyle", "", self.raw_group("array"))
            if not re.fullmatch("[lcr|]+", node.columns):
                raise FormulaError("columns of an array")
        elif name in ("aligned", "gathered"):
            self.option_text()
        elif name not in known.ENVIRONMENTS and name not in known.WRAPPERS:
            raise FormulaError("unknown environment", name)
        if name == "split":
            node.name = "aligned"
        self.rows(node, "\\end")
        if environment_name(self.raw_group("\\end")) != name:
            raise FormulaError("\\end without its partner or place")
        return node

    def rows(self, node, stop):
        """Rows of cells, up to the token `stop`, which is read."""
        row = []
        while True:
            row.append(self.list(("&", "\\\\", stop)))
            token = self.next()
            if token == "&":
                continue
            node.rows.append(row)
            row = []
            if token == stop:
                break
            self.take("*")
            match = re.compile(r"\s*\[" + LENGTH.pattern + r"\]").match(self.text, self.at)
            self.at = match.end() if match else self.at
            node.ends.append(f"\\\\[{''.join(clean_length(match))}]" if match else "\\\\")
        if len(node.rows) > 1 and node.rows[-1] == [[]]:
            node.rows.pop()
            node.ends.pop()

    def text_argument(self, raw):
        """The parts of a text: strings, and lists for the formulas in it."""
        parts, text = [], ""
        reader, depth = Reader(raw), 0
        while reader.at < len(raw):
            match = re.compile(r"\\([A-Za-z]+\s*|[\s\S])|\s+|[\s\S]").match(raw, reader.at)
            reader.at, token = match.end(), match[0].strip() or " "
            if match[0].startswith("\\") and match[0][1:].isspace() or token in ("~", "\\space"):
                text += "~"
            elif token == "$":
                parts += [text] if text else []
                text = ""
                parts.append(reader.list(("$",)))
                reader.next()
            elif token in ("{", "}"):
                depth += 1 if token == "{" else -1
            elif token in ("\\rm", "\\normalfont", "\\textrm", "\\/", "\\protect"):
                pass
            elif token in ("\\%", "\\&", "\\_", "\\#", "\\$", "\\,", "\\;", "\\:", "\\!"):
                text += token
            elif token in ("\\quad", "\\qquad"):
                text += token + " "
            elif token[0] == "\\" or token in "^_&#%" or not " " <= token <= "~":
                raise FormulaError("text with a command" if token[0] == "\\" else "text with a character", token)
            else:
                text += token
        if depth:
            raise FormulaError("braces")
        return parts + ([text] if text else [])


def read(text):
    """The tree of a formula: a list of nodes."""
    reader = Reader(text)
    out = reader.list(("",)) if text.strip() else []
    return out
