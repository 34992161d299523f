"""Two sides of runs beside each other: `survive diff` on the terminal.

Laid out by hand to the width of the console, as the survival report is. Human text, no contract:
machines read ``diff --format json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from survive.judge.comparison import CellChange, Change, Comparison

from . import changed, words
from .glyphs import Glyphs, fill
from .printed import print_lines

_FAINT = "bright_black"
_WINDOW = 16  # cells that the name of a window may claim before a column is given up
_NAME = 18  # of a fault, and of a request with its series
_MEASURE = 15
_PAIR = 13  # two percentiles and what is between them
_FARTHEST = 26  # least room in which the largest shift of a row is worth a column
_STYLE = {
    Change.WORSE: "bold red",
    Change.UNDECIDED: "bold yellow",
    Change.BETTER: "green",
    Change.ALIKE: "",
}


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print it in the width, colours and characters that the console can show."""
    print_lines(console, lambda width, glyphs: Page(comparison, width, glyphs).lines())


@dataclass(frozen=True, slots=True)
class Page:
    """One comparison, laid out for one width and one set of characters."""

    comparison: Comparison
    width: int
    glyphs: Glyphs

    def lines(self) -> Iterator[Text]:
        """The whole page; the answer stands last, where the eye ends."""
        yield from self._header()
        yield from self._cells()
        yield from self._section("measures, not judged", self._measures())
        yield from self._section("percentiles in ms, not judged", self._spectra())
        yield from self._section("also", self._also())
        yield Text()
        yield from self._sentence()

    def _header(self) -> Iterator[Text]:
        name = self.glyphs.short(self.comparison.scenario, self.width - 13)
        yield Text.assemble(("survive diff ", _FAINT), (name, "bold"))
        for label, side in (("base", self.comparison.base), ("new", self.comparison.new)):
            for index, piece in enumerate(self._wrapped(changed.of_side(side), 6)):
                yield Text.assemble((f"{'' if index else label:<6}", _FAINT), piece)

    def _wrapped(self, text: str, indent: int) -> list[str]:
        return self.glyphs.wrapped(text, self.width - indent)

    def _section(self, title: str, body: Iterable[Text]) -> Iterator[Text]:
        lines = list(body)
        if lines:
            yield from (Text(), Text(title.upper(), "bold"))
            yield from lines

    def _cells(self) -> Iterator[Text]:
        cells = self.comparison.cells
        if not cells:
            return
        columns = _Columns.fit(cells, self.width)
        heading = columns.heading()
        yield from (Text(), Text.assemble(("CELLS", "bold"), (heading[5:], _FAINT)))
        common = changed.in_common(cells)  # the sentence says it
        told: list[str] = []  # notes that several cells share in a row are told once
        for name, group in groupby(cells, key=lambda cell: cell.name):
            same = list(group)
            limits = "; ".join(dict.fromkeys(self._limit(cell) for cell in same))
            title = self.glyphs.short(name, self.width // 2)
            limit = self.glyphs.short(limits, self.width // 2 - 4)
            yield Text.assemble("  ", (title, "bold"), "  ", limit)
            for cell in same:
                yield columns.row(cell, self.glyphs)
                notes = [note for note in changed.notes(cell) if note != common]
                for note in () if notes == told else notes:
                    yield from (Text(f"      {piece}", _FAINT) for piece in self._wrapped(note, 6))
                told = notes

    def _limit(self, cell: CellChange) -> str:
        sign = self.glyphs.at_least if cell.bound == "min" else self.glyphs.at_most
        limits = dict.fromkeys((cell.base_limit, cell.new_limit))
        return f"{cell.metric} {sign} {', now '.join(words.quantity(v, cell.unit) for v in limits)}"

    def _measures(self) -> Iterator[Text]:
        for of, group in groupby(self.comparison.measures, key=lambda measure: measure.of):
            for index, one in enumerate(group):
                label = fill(self.glyphs.short("" if index else of, _NAME), _NAME)
                name = f"{changed.measure_name(one):<{_MEASURE}}"
                indent = 2 + _NAME + 2 + _MEASURE + 2
                for piece in self._wrapped(changed.of_measure(one), indent):
                    yield Text.assemble(f"  {label}  ", (name, _FAINT), f"  {piece}")
                    label, name = " " * _NAME, " " * _MEASURE

    def _spectra(self) -> Iterator[Text]:
        rows = self.comparison.spectra
        if not rows:
            return
        label = min(_NAME + 4, max(cell_len(f"{row.request} {row.series}") for row in rows))
        room = self.width - 2 - label
        shown = sorted((0, 2, 1, 3)[: max(1, room // (_PAIR + 2))])
        farthest = room - (_PAIR + 2) * len(shown) >= _FARTHEST
        heads = "".join(f"  {changed.PERCENTILES[at]:>{_PAIR}}" for at in shown)
        yield Text(f"  {'':<{label}}{heads}{'  farthest apart' * farthest}", _FAINT)
        for window, group in groupby(rows, key=lambda row: row.window):
            yield Text(f"  {self.glyphs.short(window, self.width - 2)}", "bold")
            for row in group:
                name = self.glyphs.short(f"{row.request} {row.series}", label)
                pairs = changed.pairs(row, self.glyphs)
                cells = "".join(f"  {pairs[at]:>{_PAIR}}" for at in shown)
                beside = changed.farthest(row.largest, self.glyphs) if farthest else ""
                yield Text(f"  {fill(name, label)}{cells}  {beside}")

    def _also(self) -> Iterator[Text]:
        for line in changed.remarks(self.comparison, self.glyphs):
            for index, piece in enumerate(self._wrapped(line, 4)):
                yield Text(f"  {' ' if index else '-'} {piece}")

    def _sentence(self) -> Iterator[Text]:
        style = _STYLE[self.comparison.change]
        for index, piece in enumerate(self._wrapped(changed.sentence(self.comparison), 2)):
            head, _, tail = ("", "", f"  {piece}") if index else piece.partition(" ")
            yield Text.assemble((head, style), (tail if index else f" {tail}", "bold"))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Widths of the table of cells; what a narrow console lacks room for has width 0."""

    request: int
    window: int
    value: int
    moved: int
    interval: int

    @classmethod
    def fit(cls, cells: Sequence[CellChange], width: int) -> _Columns:
        """As wide as the contents need; first the intervals go, then the differences."""
        request = max(3, min(16, width // 8, max(cell_len(cell.request) for cell in cells)))
        medians = [(side.median, cell) for cell in cells for side in (cell.base, cell.new)]
        value = max(6, *(len(changed.value_text(*median)) for median in medians))
        moved = max(5, *(len(changed.moved_text(c.moved.by, c.unit)) for c in cells))
        interval = max(8, *(len(changed.interval_text(c)) for c in cells))
        longest = max(cell_len(cell.window) for cell in cells)
        left = width - 4 - request - 2 - 2 * (2 + value) - 2 - len(Change.UNDECIDED)
        for moved_, interval_ in ((moved, interval), (moved, 0), (0, 0)):
            rest = left - sum(column + 2 for column in (moved_, interval_) if column)
            if rest >= min(longest, _WINDOW):
                break
        return cls(request, max(8, min(rest, max(longest, 22))), value, moved_, interval_)

    def heading(self) -> str:
        moved = f"  {'by':>{self.moved}}" if self.moved else ""
        interval = f"  {'interval':<{self.interval}}" if self.interval else ""
        left = 4 + self.request + 2 + self.window + 2
        return f"{'':<{left}}{'base':>{self.value}}  {'new':>{self.value}}{moved}{interval}  change"

    def row(self, cell: CellChange, glyphs: Glyphs) -> Text:
        worse = "bold" if cell.change is Change.WORSE else ""
        old, fresh = (changed.value_text(s.median, cell) for s in (cell.base, cell.new))
        moved = changed.moved_text(cell.moved.by, cell.unit)
        return Text.assemble(
            f"    {fill(glyphs.short(cell.request or 'all', self.request), self.request)}",
            f"  {fill(glyphs.short(cell.window, self.window), self.window)}",
            f"  {old:>{self.value}}",
            (f"  {fresh:>{self.value}}", worse),
            (f"  {moved:>{self.moved}}" if self.moved else "", worse),
            (self._interval(cell), _FAINT),
            (f"  {changed.shout(cell.change)}", _STYLE[cell.change]),
        )

    def _interval(self, cell: CellChange) -> str:
        return f"  {changed.interval_text(cell):<{self.interval}}" if self.interval else ""
