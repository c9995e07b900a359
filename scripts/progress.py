"""A progress bar on stderr, drawn as by lib/progress.h: on a terminal one line that is redrawn, elsewhere a plain
line every few seconds.

    with Progress("convert", total, first=done_before) as p: p.update(done, "12 dropped")
"""
import os
import shutil
import sys
import time

BAR = 24  # characters


def duration(seconds):
    """Formats seconds as "42 s", "3:07", "1:02:33" or "2 d 03 h"."""
    s = int(min(seconds, 1e9) + 0.5)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60}:{s % 60:02d}"
    if s < 86400:
        return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"
    return f"{s // 86400} d {s // 3600 % 24:02d} h"


class Progress:
    """first: items done before this run, which do not count for the rate; every: least seconds between two plain
    lines."""

    def __init__(self, title, total, first=0, every=10):
        self.title, self.total, self.first, self.every = title, total, first, every
        self.done, self.drawn, self.text = first, None, ""
        self.start, self.last = time.monotonic(), float("-inf")
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        """Draws the final state and ends the line."""
        if self.terminal or self.drawn != self.done:
            self.draw()
        if self.terminal:
            print(file=sys.stderr)

    def update(self, done, text=""):
        self.done, self.text = done, text
        now = time.monotonic()
        if now - self.last >= (0.1 if self.terminal else self.every):
            self.draw()
            self.last = now

    def when(self):
        spent = time.monotonic() - self.start
        if self.done >= self.total:
            return f"in {duration(spent)}"
        if self.done > self.first:
            return f"ETA {duration(spent * (self.total - self.done) / (self.done - self.first))}"
        return "ETA ?"

    def draw(self):
        share = min(1.0, self.done / self.total) if self.total else 1.0
        self.drawn = self.done
        text = f", {self.text}" if self.text else ""
        if not self.terminal:
            print(f"{self.title} {self.done}/{self.total} ({100 * share:.0f} %), {self.when()}{text}",
                  file=sys.stderr, flush=True)
            return
        full = int(share * BAR)
        line = (f"{self.title} [{'#' * full}{'.' * (BAR - full)}] {100 * share:3.0f} % {self.done}/{self.total} "
                f"{self.when()}  {self.text}")
        columns = shutil.get_terminal_size().columns
        print(f"\r{line[:columns - 1]}\033[K", end="", file=sys.stderr, flush=True)
