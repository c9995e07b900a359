"""Folders as the Hub has them, as sources of convert_dataset.py: which layout a folder has is told by what is in it.

    parquet files anywhere below it          DaTikZ v1 to v4 and most data sets of the Hub    parquet.Parquet
    im2latex_formulas.lst and its like       im2latex-100K                                    sources.Im2latex
    images/ and train.txt                    UniMER-1M                                        Numbered
    NAME/ and NAME.txt                       UniMER-Test; NAME is spe, cpe, sce or hwe        Numbered
Numbered images have the line of their formula for a name, from 0, in seven digits. The folder may also hold one of the last two
as UniMER-1M or UniMER-Test.
"""
import os

from dataset import parquet, sources, text
from dataset.sources import Block, Place, Row
import tikzc

UNIMER = ("UniMER-1M", "UniMER-Test")
TESTS = ("spe", "cpe", "sce", "hwe")
MOST_NAMES = 20  # entries of a folder that a message lists


class Numbered:
    """UniMER: a list of formulas, one a line, and a folder of images that are named by the line's number, from 0."""

    def __init__(self, listing, images):
        self.lines, self.images = sources.Lines(listing), images
        self.names, weight, listed = {}, 0, []  # names: {line: file name}
        for entry in os.scandir(images):
            stem, suffix = os.path.splitext(entry.name)
            if stem.isascii() and stem.isdigit() and len(stem) <= 18 and suffix.lower() in sources.SUFFIXES:
                first = self.names.setdefault(int(stem), entry.name)
                self.names[int(stem)] = min(first, entry.name)
                status = entry.stat()
                weight += status.st_size
                listed.append((entry.name, status.st_size, status.st_mtime_ns))
        if not self.names:
            raise tikzc.FormatError(f"{images}: there are no images with numbers for names, such as 0000000.png.")
        beyond = max(self.names)
        if beyond >= len(self.lines):
            raise tikzc.FormatError(f"{images}: {self.names[beyond]} belongs to line {beyond + 1} of {listing}, which has only "
                                    f"{len(self.lines)} lines.")
        self.rows = len(self.lines)
        self.weight = weight // len(self.names) + 100
        self.identity = [sources.file_identity(listing), [os.path.basename(images), weight, sources.listing_identity(listed)]]
        self.name = f"{os.path.basename(os.path.dirname(os.path.abspath(listing)))}, {os.path.basename(listing)}"

    def blocks(self):
        return [Block(0, 0, self.rows, self.rows * self.weight, self.rows)] if self.rows else []

    def read(self, span):
        _, first, last = span
        for i in range(first, last):
            yield self.row(i)

    def row(self, i):
        place = Place(self.lines.path, "line", i + 1)
        if i not in self.names:
            return Row(place, problem=("there is no image of this number", f"{i:07d}.png"))
        file = os.path.join(self.images, self.names[i])
        image, problem = sources.read_image(file)
        if problem:
            return Row(place, problem=problem)
        code = self.lines[i]
        row = sources.decode(place, image, code.removesuffix(b"\r"), file)
        if code.endswith(b"\r") and text.LINE_ENDS not in row.notes:
            row = row._replace(notes=(*row.notes, text.LINE_ENDS))
        return row

    def holds(self, path):
        return (os.path.realpath(path) == os.path.realpath(self.lines.path)
                or os.path.exists(path) and sources.same_folder(os.path.dirname(path), self.images))


def numbered_parts(folder):
    """{split: (list, folder of images)} of a folder in one of UniMER's layouts."""
    parts = {name: (os.path.join(folder, f"{name}.txt"), os.path.join(folder, name)) for name in TESTS}
    parts["train"] = (os.path.join(folder, "train.txt"), os.path.join(folder, "images"))
    return {name: part for name, part in parts.items() if os.path.isfile(part[0]) and os.path.isdir(part[1])}


def open_numbered(folder, split):
    """The part of a UniMER folder that --split names, or the only one; None if it is not such a folder."""
    parts = numbered_parts(folder)
    for name in UNIMER:
        parts.update(numbered_parts(os.path.join(folder, name)))
    if not parts:
        return None
    if split and split not in parts or not split and len(parts) > 1:
        wanted = f"there is no split '{split}'" if split else "there are several splits"
        raise tikzc.FormatError(f"{folder}: {wanted}; choose one of {', '.join(sorted(parts))} with --split.")
    return Numbered(*parts[split or next(iter(parts))])


def has_parquet(folder):
    return any(path.lower().endswith(".parquet") for path, _, _ in sources.walk(folder))


def open_folder(folder, split, image_column, code_column):
    """The source that reads a folder. A layout that is none of these is an error that says what is there."""
    if not os.path.isdir(folder):
        raise tikzc.FormatError(f"{folder}: not a folder; --hub needs one with a data set of the Hub.")
    source = open_numbered(folder, split)
    if not source and any(os.path.exists(os.path.join(folder, name)) for name in sources.FORMULAS):
        source = sources.Im2latex(folder, split)
    if source and (image_column or code_column):
        raise tikzc.FormatError(f"{folder}: --image-column and --code-column are for parquet files; this folder has none.")
    if source:
        return source
    if has_parquet(folder):
        return parquet.Parquet([folder], image_column, code_column, split)
    names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    raise tikzc.FormatError(f"{folder}: the layout is not known. Expected parquet files, {sources.FORMULAS[0]}, or UniMER's "
                            f"train.txt with images; found {', '.join(names[:MOST_NAMES]) or 'nothing'}{more}.")
