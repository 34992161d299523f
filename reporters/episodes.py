"""Several runs of one scenario on the terminal: a line each, then what they have in common.

Laid out by hand like the report of one run, so that no name is broken to fit a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from survive.judge.repeated import CellOfAll, cells_of_all
from survive.judge.verdict import Number, Verdict

from . import words
from .glyphs import Glyphs, fill
from .printed import print_lines

_STYLE = {"survived": "green", "failed": "bold red", "inconclusive": "bold yellow"}
_FAINT = "bright_black"
_ROOMY = 76  # from here on there is room for the interval

Told = tuple[int, str, int, Verdict | None]  # seed, folder, exit code, verdict


def print_episodes(console: Console, episodes: Sequence[Told]) -> None:
    """The runs, and their cells over all of them."""
    print_lines(console, lambda width, glyphs: _lines(episodes, width, glyphs))


def _lines(episodes: Sequence[Told], width: int, glyphs: Glyphs) -> Iterator[Text]:
    verdicts = [verdict for *_, verdict in episodes if verdict is not None]
    yield from _runs(episodes, glyphs)
    if any(verdict.load.model == "closed" for verdict in verdicts):
        yield from (Text(piece, "bold") for piece in glyphs.wrapped(words.CLOSED, width))
    if verdicts:
        yield from _cells(cells_of_all(verdicts), len(verdicts), width, glyphs)


def _runs(episodes: Sequence[Told], glyphs: Glyphs) -> Iterator[Text]:
    seeds = max(4, *(len(str(seed)) for seed, *_ in episodes))
    yield from (Text(), Text("EPISODES", "bold"))
    yield Text(f"  {'seed':>{seeds}}  exit  {'verdict':12}  run", _FAINT)
    for seed, folder, code, verdict in episodes:
        word = str(verdict.verdict) if verdict is not None else "none"
        shown = fill(word.upper() if word == "failed" else word, 12)
        yield Text.assemble(
            f"  {seed:>{seeds}}  {code:>4}  ",
            (shown, _STYLE.get(word, "bold")),
            f"  {glyphs.clean(folder)}",  # never cut: it is to be copied
        )


def _cells(cells: Sequence[CellOfAll], runs: int, width: int, glyphs: Glyphs) -> Iterator[Text]:
    """How often each cell was what, the median of its values and the interval of that."""
    request = max(3, min(16, max(cell_len(cell.request) for cell in cells)))
    roomy = width >= _ROOMY
    window = max(8, min(24, width - 4 - request - (51 if roomy else 34)))
    sure = {cell.spread.confidence for cell in cells if cell.spread}
    title = f"{words.share(min(sure), significant=2)} CI" if len(sure) == 1 else "interval"
    yield from (Text(), Text(f"OBJECTIVES over {words.plural(runs, 'episode')}", "bold"))
    yield Text(
        f"{'':{4 + request + 2 + window}}  good  bad  open  {'median':>8}"
        + (f"  {title}" if roomy and sure else ""),
        _FAINT,
    )
    for name, group in groupby(cells, key=lambda cell: cell.name):
        same = list(group)
        metrics = ", ".join(dict.fromkeys(cell.metric for cell in same))
        yield Text.assemble("  ", (glyphs.short(name, width // 2), "bold"), f"  {metrics}")
        for cell in same:
            counts = f"  {cell.survived:>4}  {cell.failed:>3}  {cell.inconclusive:>4}"
            yield Text.assemble(
                f"    {fill(glyphs.short(cell.request or 'all', request), request)}  ",
                fill(glyphs.short(cell.window, window), window),
                (counts, "bold red" if cell.failed else ""),
                f"  {_median(cell):>8}",
                (f"  {_interval(cell, several=len(sure) > 1)}" if roomy else "", _FAINT),
            )


def _median(cell: CellOfAll) -> str:
    return "" if cell.spread is None else _value(cell, cell.spread.median)


def _interval(cell: CellOfAll, *, several: bool) -> str:
    if cell.spread is None:
        return ""
    said = words.interval(cell.spread.low, cell.spread.high, cell.unit)
    return f"{said} ({cell.spread.confidence:.0%})" if said and several else said


def _value(cell: CellOfAll, value: Number) -> str:
    """As in the report of one run; a recovery that was not seen is one that never was."""
    said = words.quantity(value, cell.unit)
    return "never" if said in {"inf", words.NOTHING} and cell.unit == "s" else said
