"""HTML and SVG from small functions: whatever is not markup already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

from .glyphs import UNICODE

_VOID = frozenset({"meta", "br"})


class Markup(str):
    """Text that is markup, and is not escaped again."""

    __slots__ = ()


NEWLINE = Markup("\n")


def escaped(value: object) -> Markup:
    """Text of any origin, harmless: no tags, no entities, no control characters."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(UNICODE.clean(str(value)), quote=True))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """``tag("td", "text", class_="n", stroke_width=2)``; an attribute that is None is left out.

    Underscores in names of attributes become hyphens, one at the end is dropped.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Markup:
    """Children one after the other."""
    return Markup("".join(escaped(child) for child in children))


def lines(children: Iterable[object]) -> Markup:
    """Children, each on a line of its own."""
    return Markup("\n".join(escaped(child) for child in children))


def table(head: Iterable[object], body: Iterable[Markup], caption: str) -> Markup:
    """A table with a title and a head for each column: text, or a cell made by `right`."""
    titles = (cell if _is_cell(cell) else tag("th", cell, scope="col") for cell in head)
    above = (tag("caption", caption), tag("thead", tag("tr", *titles)))
    return _framed(caption, *above, tag("tbody", lines(body)))


def facts(body: Iterable[Markup], name: str) -> Markup:
    """A table of lines that each have a name of their own."""
    return _framed(name, tag("tbody", lines(body)))


def _framed(name: str, *parts: Markup) -> Markup:
    """A table in a frame that scrolls where the page is narrow, and says so to who cannot see.

    ``border`` and ``cellpadding`` are for browsers that may not read our style sheet.
    """
    grid = tag("table", lines(parts), border=1, cellpadding=4, cellspacing=0)
    return tag("div", grid, class_="wide", tabindex=0, role="region", aria_label=name)


def row(head: object, *cells: object) -> Markup:
    """A line of a table; the first cell names it."""
    rest = (cell if _is_cell(cell) else tag("td", cell) for cell in cells)
    return tag("tr", tag("th", head, scope="row"), *rest)


def number(text: object) -> Markup:
    """A cell that is aligned to the right."""
    return tag("td", text, class_="n", align="right")


def right(title: str) -> Markup:
    """The head of a column of numbers."""
    return tag("th", title, scope="col", class_="n", align="right")


def _is_cell(cell: object) -> bool:
    return isinstance(cell, Markup) and cell.startswith(("<td", "<th"))
