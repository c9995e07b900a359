#!/usr/bin/env python3
"""What the documentation says of the tree: the diffs of doc/adding.md apply, and what README.md and doc/*.md name is there.

    test/test_adding.py

The diffs of a section are applied to a copy of the files that they name, by themselves and after those of the sections
before; `git apply`, where there is git, must come to the same files. Outside of the diffs, links must lead to a file and
to a heading; paths, file names and build targets must be those of a file; names of C and Python must occur in the sources,
and so must each line of C that a page quotes. This needs no git checkout.
"""
import glob
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from check import check, end

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCE = r"\.(?:h|c|cu|cuh|cpp|py|sh|conf)"
OPTIONAL = ("dev/formula/reader.safetensors",)  # what infer uses where it is there
FOREIGN = ("Hugging Face", "PyTorch", "timm", "DeTikZify")  # in the head of a table's column: names of other projects


def read(path):
    return path.read_text(encoding="utf-8", errors="replace")


def list_files():
    """The paths of the tree's files, without what is built, trained or hidden."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in ("build", "venv", "drawn") and not f.startswith((".", "__", "out"))]
        yield from ((pathlib.Path(folder) / name).relative_to(ROOT).as_posix() for name in names)


# ---- the diffs ----

def read_sections(page):
    """[(title, diff)] of the sections that have diffs."""
    parts = re.split(r"(?m)^## (.*)\n", page)
    diffs = ["".join(re.findall(r"(?ms)^```diff\n(.*?)^```", text)) for text in parts[2::2]]
    return [(title, diff) for title, diff in zip(parts[1::2], diffs) if diff]


def read_hunks(diff):
    """{path: [(first line, old lines, new lines)]}"""
    hunks = {}
    for line in diff.splitlines():
        if line.startswith("+++ b/"):
            current = hunks.setdefault(line[6:], [])
        elif match := re.match(r"@@ -(\d+)", line):
            current.append((int(match[1]), [], []))
        elif line[:1] in (" ", "-", "+") and not line.startswith("--- a/"):
            for sign, lines in zip("+-", current[-1][1:]):
                if line[0] != sign:
                    lines.append(line[1:])
    return hunks


def apply_hunks(lines, hunks):
    """The lines with old ones replaced by new ones, where they are nearest to the line that is given; None: nowhere."""
    lines, shift = list(lines), 0
    for first, old, new in hunks:
        places = [i for i in range(len(lines) - len(old) + 1) if lines[i:i + len(old)] == old]
        if not check(places, f"the hunk of line {first} applies; else make it again with git diff -U1", old):
            return None
        at = min(places, key=lambda i: abs(i - (first - 1 + shift)))
        lines[at:at + len(old)] = new
        shift = at - (first - 1) + len(new) - len(old)
    return lines


def apply_diff(tree, diff):
    """Replaces the files that the diff names in tree, {path: lines}. Returns whether all of it applies."""
    for path, hunks in read_hunks(diff).items():
        if not check(path in tree, "the diff is of a file that is there", path):
            return False
        if not check((lines := apply_hunks(tree[path], hunks)) is not None, "the diff applies", path):
            return False
        tree[path] = lines
    return True


def check_git(diff, before, after):
    """git apply makes `after` of `before`, in a folder that is no repository."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for path, lines in before.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": os.path.dirname(name)}
        run = subprocess.run(["git", "apply"], input=diff, cwd=name, env=environment, capture_output=True, encoding="utf-8")
        made = {path: read(folder / path).splitlines() for path in after}
        check(run.returncode == 0 and made == after, "git apply takes the diffs, to the same places", run.stderr)


def check_diffs():
    sections = read_sections(read(ROOT / "doc" / "adding.md"))
    check(len(sections) >= 4, "doc/adding.md has sections with diffs", len(sections))
    named = {path for _, diff in sections for path in read_hunks(diff)}
    tree = {path: read(ROOT / path).splitlines() for path in named if (ROOT / path).is_file()}
    together = dict(tree)
    for title, diff in sections:
        alone = dict(tree)
        if not check(apply_diff(alone, diff), "doc/adding.md: the diffs of the section apply", title):
            continue
        check(apply_diff(together, diff), "doc/adding.md: and after those of the sections before", title)
        if shutil.which("git"):
            check_git(diff, tree, alone)
    if not shutil.which("git"):
        print("not tested here: git apply, for there is no git")


# ---- what the pages name ----

def read_headings(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", read(path))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_foreign(page):
    """The page without the cells of tables that have the names of other projects."""
    lines, foreign = page.splitlines(), set()
    for i, line in enumerate(lines):
        cells = line.split("|")
        if re.match(r"\|[-| ]+$", line):
            foreign = {k for k, head in enumerate(lines[i - 1].split("|")) if any(name in head for name in FOREIGN)}
        elif line.startswith("|"):
            lines[i] = "|".join("" if k in foreign else cell for k, cell in enumerate(cells))
        else:
            foreign = set()
    return "\n".join(lines)


def squeeze(code):
    """Code without its comments and spaces."""
    return re.sub(r"\s", "", re.sub(r"//[^\n]*", "", code))


def check_links(name, page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page):
        if target.startswith("http"):
            continue
        to = (ROOT / name).parent / target if target else ROOT / name
        check(to.exists(), f"{name}: a link to a file that is not there", target)
        check(not anchor or to.exists() and anchor in read_headings(to), f"{name}: a link to no heading", anchor)


def check_files(name, page, files):
    """Paths that begin with a folder of the tree, files in backticks, and build targets."""
    folders = "|".join(sorted({re.escape(f.split("/")[0]) for f in files if "/" in f}))
    for found in re.findall(rf"(?<![\w./*-])(?:\./)?((?:{folders})/[\w.*/-]*)", page):
        check(found in OPTIONAL or glob.glob(str(ROOT / found.rstrip("."))), f"{name}: there is no such file or folder", found)
    names = {"tikz.c", *(os.path.basename(f) for f in files)}
    for found in re.findall(rf"`([\w./-]+{SOURCE})`", page):
        there = (ROOT / found).exists() or (ROOT / name).with_name(found).exists() if "/" in found else found in names
        check(there, f"{name}: there is no such file", found)
    stems = {os.path.splitext(n)[0] for n in names}
    for target in re.findall(r"build/(?:BF16|FP32)[\w-]*/(\w+)", page):
        check(target in stems, f"{name}: a build target without a source", target)


def check_code(name, page, words, code):
    """Names with an underscore or a capital inside, names that a file is said to have, and quoted lines of C."""
    in_backticks = " ".join(re.findall(r"`([^`\n]+)`", without_foreign(page)))
    for word in re.findall(r"\b(?=\w*[a-z](?:_\w|[A-Z]))[A-Za-z]\w*", in_backticks):
        check(word in words, f"{name}: a name that is nowhere in the sources", word)
    for found, to in re.findall(r"((?:`\w+`(?:,|\s+and|, then)?\s+)+)(?:of|in)\s+\[`[\w./]+`\]\(([\w./]+)\)", page):
        file = (ROOT / name).parent / to
        there = set(re.findall(r"\w+", read(file))) if file.is_file() else set()
        for word in re.findall(r"`(\w+)`", found):
            check(word in there, f"{name}: a name that is not in the file that is said to have it", f"{word} in {to}")
    for block in re.findall(r"(?ms)^```c\n(.*?)^```", page):
        for line in block.splitlines():
            for part in map(squeeze, re.sub(r"//.*", "", line).split("...")):
                check(part.strip(",;") in code, f"{name}: a quoted line that is not in the sources", line)


def main():
    check_diffs()
    files = list(list_files())
    sources = {f: read(ROOT / f) for f in files if re.search(SOURCE + "$", f) or f == "Makefile"}
    sources.pop("test/test_adding.py")
    words = {word for text in (*sources.values(), *files) for word in re.findall(r"\w+", text)}
    code = [f for f in sources if re.search(r"\.(h|c|cu|cuh)$", f) and not f.startswith("doc/")]
    code = "\n".join(squeeze(sources[f]) for f in code)
    pages = sorted(f for f in files if re.fullmatch(r"README\.md|doc/\w+\.md", f))
    check(len(pages) > 4, "the pages are found", pages)
    for name in pages:
        page = re.sub(r"(?ms)^```diff\n.*?^```", "", read(ROOT / name))
        check_links(name, page)
        check_files(name, page, files)
        check_code(name, page, words, code)
    end()


if __name__ == "__main__":
    main()
