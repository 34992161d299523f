"""``survive diff --format markdown``: for a comment on a pull request, or a step's summary."""

from __future__ import annotations

from collections.abc import Iterator

from survive.judge.comparison import CellChange, Change, Comparison, Measure
from survive.judge.spectra import Spectra

from . import changed
from .markdown import bounded, escaped, row, table


def markdown(comparison: Comparison) -> bytes:
    """The answer first, then the cells, what stands beside them, and what has to be known."""
    return bounded("".join(f"{line}\n" for line in _lines(comparison)))


def _lines(comparison: Comparison) -> Iterator[str]:
    head, _, rest = changed.sentence(comparison).partition(" ")
    yield from (f"## survive diff: {escaped(comparison.scenario)}", "")
    yield from (f"**{head}** {escaped(rest)}", "")
    for name, side in (("base", comparison.base), ("new", comparison.new)):
        yield f"- {name}: {escaped(changed.of_side(side))}"
    yield from (f"- {escaped(line)}" for line in changed.remarks(comparison))
    yield from _cells(comparison)
    yield from _measures(comparison.measures)
    yield from _spectra(comparison.spectra)


def _cells(comparison: Comparison) -> Iterator[str]:
    columns = ("change", "objective", "request", "window", "base", "new", "by", "interval")
    yield from ("", *table(*columns))
    told = changed.in_common(comparison.cells)
    for cell in sorted(comparison.cells, key=lambda cell: [*Change].index(cell.change)):
        yield _cell(cell, told)


def _cell(cell: CellChange, told: str) -> str:
    word = f"**{changed.shout(cell.change)}**" if cell.change is Change.WORSE else str(cell.change)
    said = "".join(f"<br>{escaped(note)}" for note in changed.notes(cell) if note != told)
    values = (cell.name, cell.request or "all", cell.window)
    return row(
        word,
        *(escaped(value) for value in values),
        *(escaped(changed.value_text(s.median, cell)) for s in (cell.base, cell.new)),
        escaped(changed.moved_text(cell.moved.by, cell.unit)) + said,
        escaped(changed.interval_text(cell)),
    )


def _measures(measures: tuple[Measure, ...]) -> Iterator[str]:
    if measures:
        yield from ("", "Not judged:", "", *table("of", "measure", "base, now new"))
    for one in measures:
        said = (one.of, changed.measure_name(one), changed.of_measure(one))
        yield row(*(escaped(value) for value in said))


def _spectra(spectra: tuple[Spectra, ...]) -> Iterator[str]:
    if spectra:
        heads = [f"{name} ms" for name in changed.PERCENTILES]
        yield from ("", *table("window", "request", *heads, "farthest apart"))
    for one in spectra:
        said = (one.window, f"{one.request} {one.series}", *changed.pairs(one))
        yield row(*(escaped(value) for value in (*said, changed.farthest(one.largest))))
