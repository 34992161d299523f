"""The few characters that text reports draw with, and their plain ASCII twins."""

from __future__ import annotations

import codecs
import re
import textwrap
import unicodedata
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

# Spaces that must not end a line: before a number, between a number and its unit.
_BOUND = re.compile(r"(?<=\w) (?=\d)|(?<=\d) (?=(?:%|ms|s|requests?)(?!\w))|(?<=requests,) ")


@dataclass(frozen=True, slots=True)
class Glyphs:
    """One set of characters; every single glyph is one cell wide in both sets.

    ``encoding`` is that of the stream: what it cannot carry is shown as ``?``.
    """

    encoding: str = "utf-8"
    bars: str = "▁▂▃▄▅▆▇█"  # least to most
    zero: str = "·"  # measured, and nothing
    infinite: str = "∞"
    opens: str = "┣"  # a held fault is injected ...
    on: str = "━"
    closes: str = "┫"  # ... and healed
    once: str = "╋"  # a one-shot
    after: str = "┄"  # recovery window
    back: str = "●"  # recovered
    done: str = "━"
    todo: str = "─"
    here: str = "╸"
    edge: str = "│"
    tick: str = "╵"
    ellipsis: str = "…"
    at_least: str = "≥"
    at_most: str = "≤"
    times: str = "×"
    unequal: str = "≠"
    yes: str = "✔"
    to: str = "→"

    def clean(self, text: str) -> str:
        """Text of unknown origin, made harmless: one line, no control or format characters.

        Evidence and names may come from the target; an escape sequence in them must not reach
        the terminal.
        """
        safe = "".join("?" if unicodedata.category(c)[0] in "CZ" and c != " " else c for c in text)
        if self.encoding == "utf-8":
            return safe
        return safe.encode(self.encoding, "replace").decode(self.encoding)

    def short(self, text: str, width: int) -> str:
        """Clean text in at most ``width`` cells; what is cut off leaves an ellipsis."""
        text = self.clean(text)
        if cell_len(text) <= width:
            return text
        return set_cell_size(text, max(0, width - 1)).rstrip() + self.ellipsis if width > 0 else ""

    def wrapped(self, text: str, room: int) -> list[str]:
        """Clean lines, broken between words only, never between a number and its unit or name."""
        clean = self.clean(text)
        if cell_len(clean) != len(clean):  # wide characters: count two cells for each
            room = max(10, room // 2)
        bound = _BOUND.sub("\N{NO-BREAK SPACE}", clean)
        pieces = textwrap.wrap(bound, room, break_on_hyphens=False) or [""]
        return [piece.replace("\N{NO-BREAK SPACE}", " ") for piece in pieces]


UNICODE = Glyphs()


def fill(text: str, width: int) -> str:
    """Padded to ``width`` cells; wide characters count as two."""
    return text + " " * max(0, width - cell_len(text))


def glyphs_for(encoding: str) -> Glyphs:
    """The set that a stream of that encoding can carry. Not UTF-8 (or unknown): plain ASCII."""
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        name = "ascii"
    if name == "utf-8":
        return UNICODE
    return Glyphs(
        encoding=name,
        bars="_.-=+*#@",
        zero=" ",
        infinite="!",
        opens="[",
        on="=",
        closes="]",
        once="X",
        after=".",
        back="o",
        done="=",
        todo="-",
        here=">",
        edge="|",
        tick="'",
        ellipsis="~",
        at_least=">=",
        at_most="<=",
        times="x",
        unequal="!=",
        yes="+",
        to=">",
    )
