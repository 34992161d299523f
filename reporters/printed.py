"""How a report that is laid out by hand comes onto a console."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console
from rich.text import Text

from .glyphs import Glyphs, glyphs_for

NARROWEST, WIDEST = 60, 140


def print_lines(console: Console, lines: Callable[[int, Glyphs], Iterable[Text]]) -> None:
    """Print what ``lines`` makes of the width and the characters that the console can show."""
    width = min(WIDEST, max(NARROWEST, console.width))
    for line in lines(width, glyphs_for(console.encoding)):
        line.rstrip()
        console.print(line, soft_wrap=True)
