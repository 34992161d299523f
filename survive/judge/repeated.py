"""Several runs of one scenario: the worst decides, and from three up the spread is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from survive.errors import ExitCode
from survive.judge.episodes import episodes
from survive.judge.verdict import Cell, Episodes, Verdict, Word

# The worst first: the precedence of one run (see survive.judge.exits), read across several.
_WORST = (
    ExitCode.BUG,
    ExitCode.HEAL_UNPROVEN,
    ExitCode.INTERRUPTED,
    ExitCode.TERMINATED,
    ExitCode.REFUSED,
    ExitCode.INVALID,
    ExitCode.STOPPED,
    ExitCode.FAILED,
    ExitCode.INCONCLUSIVE,
    ExitCode.SURVIVED,
)
ENDS_ALL = frozenset(_WORST[:6])  # after such a run no other is begun


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """Of several episodes; a red of one stays red whatever the others say."""
    return min(codes, key=_WORST.index)


@dataclass(frozen=True, slots=True)
class CellOfAll:
    """One cell over all episodes that have a verdict."""

    name: str
    metric: str
    request: str
    window: str
    unit: str
    survived: int
    failed: int
    inconclusive: int
    spread: Episodes | None


def cells_of_all(verdicts: Sequence[Verdict]) -> list[CellOfAll]:
    """Cell by cell, in the order of the first."""
    found: dict[tuple[str, str, str], list[Cell]] = {}
    for verdict in verdicts:
        for cell in verdict.objectives:
            found.setdefault((cell.name, cell.request, cell.window), []).append(cell)
    return [_of_all(cells) for cells in found.values()]


def _of_all(cells: Sequence[Cell]) -> CellOfAll:
    words = [cell.verdict for cell in cells]
    values = [cell.observed for cell in cells]
    first = cells[0]
    return CellOfAll(
        first.name,
        first.metric,
        first.request,
        first.window,
        first.unit,
        words.count(Word.SURVIVED),
        words.count(Word.FAILED),
        words.count(Word.INCONCLUSIVE),
        # What some runs could not measure is no sample of all of them.
        episodes(first.window, first.metric, values, more_is_better=first.unit == "share")
        if None not in values
        else None,
    )
