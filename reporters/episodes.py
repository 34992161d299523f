"""Several runs of one scenario on the terminal: one line each, then what they have in common."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from survive.judge.repeated import CellOfAll, cells_of_all
from survive.judge.verdict import Number, Verdict

from . import words

_COLOURS = {"survived": "green", "failed": "red", "inconclusive": "yellow"}

Told = tuple[int, str, int, Verdict | None]  # seed, folder, exit code, verdict


def print_episodes(console: Console, episodes: Sequence[Told]) -> None:
    """The table of episodes, and that of their cells."""
    runs = Table(title="episodes", title_justify="left")
    for column in ("seed", "exit", "verdict", "run directory"):
        runs.add_column(column, overflow="fold")
    for seed, folder, code, verdict in episodes:
        word = str(verdict.verdict) if verdict is not None else "none"
        coloured = f"[{_COLOURS.get(word, 'bold')}]{word}[/]"
        runs.add_row(str(seed), str(code), coloured, folder)
    console.print(runs)
    verdicts = [verdict for *_, verdict in episodes if verdict is not None]
    if any(verdict.load.model == "closed" for verdict in verdicts):
        console.print(words.CLOSED)
    if verdicts:
        console.print(_cells(verdicts))


def _cells(verdicts: Sequence[Verdict]) -> Table:
    found = Table(title="objectives over all episodes", title_justify="left")
    for column in ("objective", "window", "good", "bad", "open", "median", "interval"):
        found.add_column(column, overflow="fold")
    for cell in cells_of_all(verdicts):
        spread = cell.spread
        found.add_row(
            f"{cell.name} {cell.request}".rstrip(),
            cell.window,
            *(str(count) for count in (cell.survived, cell.failed, cell.inconclusive)),
            _value(cell, spread.median) if spread else "",
            f"{_value(cell, spread.low)}..{_value(cell, spread.high)} ({spread.confidence:.0%})"
            if spread
            else "",
        )
    return found


def _value(cell: CellOfAll, value: Number) -> str:
    if value is None or isinstance(value, str):
        return "never"
    if cell.unit == "share":
        return f"{value * 100:.4g} %"
    return f"{value:.4g} {cell.unit}"
