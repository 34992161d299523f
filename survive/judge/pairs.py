"""The cells of two sides, put beside each other, and what gaps in the evidence may hide. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from survive.errors import ExitCode
from survive.judge.episodes import LEAST
from survive.judge.faults import ONE_SHOT, PROVEN
from survive.judge.verdict import Cell, Number, Verdict, Word

_BEST = -1.0  # better than any badness

CellKey = tuple[str, str, str, str]  # objective, metric, request, window


@dataclass(frozen=True, slots=True)
class Gaps:
    """What runs would have shown of which nothing is known: so many of each side are missing
    altogether. ``worst``: the new ones everything bad, the old ones everything good."""

    base: int = 0
    new: int = 0
    worst: bool = False

    def filled(
        self, base: Sequence[float], new: Sequence[float], tolerate: float
    ) -> tuple[list[float], list[float]]:
        """Badness without gaps if ``worst``; else as it was."""
        within = [value / (1 + tolerate) for value in new]
        if not self.worst:
            return [*base], within
        best, worst = (_BEST if math.isnan(v) else v for v in base), math.inf
        return (
            [*best, *[_BEST] * self.base],
            [*(worst if math.isnan(v) else v for v in within), *[worst] * self.new],
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """One cell on both sides: an entry an episode, None where it was not measured."""

    sample: Cell
    new_limit: float
    base: tuple[Cell | None, ...]
    new: tuple[Cell | None, ...]

    def values(self, gaps: Gaps, tolerate: float) -> tuple[list[float], list[float]]:
        """The badness of both sides, with what is not known filled in; that of the new one without
        what is tolerated."""
        old, fresh = ([_badness(c) for c in side] for side in (self.base, self.new))
        return gaps.filled(old, fresh, tolerate)

    @property
    def measured(self) -> tuple[int, int]:
        """Episodes with a value on both sides."""
        old, fresh = (sum(v is not None for v in observed(s)) for s in (self.base, self.new))
        return old, fresh

    @property
    def testable(self) -> bool:
        """Enough episodes have a value."""
        return min(self.measured) >= LEAST


def _badness(cell: Cell | None) -> float:
    """More is worse, 0 is best; NaN = not measured. What has to be low, the share that is missing,
    or the time that one takes where so many a second are wanted."""
    if cell is None or cell.observed is None:
        return math.nan
    value = float(cell.observed)
    if cell.bound == "max":
        return value
    if cell.unit == "share":
        return 1 - value
    return 1 / value if value > 0 else math.inf


def pairs_of(base: Sequence[Verdict], new: Sequence[Verdict]) -> tuple[list[Pair], list[str]]:
    """The cells that both sides have, in the order of the scenario; objectives that one has not."""
    old, fresh = ([_cells_of(verdict) for verdict in side] for side in (base, new))
    keys = dict.fromkeys(key for cells in (*old, *fresh) for key in cells)
    found: list[Pair] = []
    one_sided: dict[str, None] = {}
    for key in keys:
        of_base, of_new = (tuple(cells.get(key) for cells in side) for side in (old, fresh))
        first, last = (next(filter(None, side), None) for side in (of_base, of_new))
        sample, other = first or last, last or first
        if first is None and any(old):  # else every run of that side was stopped
            one_sided[f"{key[0]} ({key[1]}) is only in new"] = None
        elif last is None and any(fresh):
            one_sided[f"{key[0]} ({key[1]}) is only in base"] = None
        elif sample and other:
            judged = _proven(of_base, base), _proven(of_new, new)
            found.append(Pair(sample, other.limit, *judged))
    return found, [*one_sided]


def _cells_of(verdict: Verdict) -> dict[CellKey, Cell]:
    """None of a run that stop_if ended: its windows are not those of a whole one."""
    if was_stopped(verdict):
        return {}
    return {(c.name, c.metric, c.request, c.window): c for c in verdict.objectives}


def was_stopped(verdict: Verdict) -> bool:
    """stop_if ended it."""
    return verdict.exit_code is ExitCode.STOPPED


def stopped_pair(base: Sequence[Verdict], new: Sequence[Verdict]) -> list[Pair]:
    """A cell of its own, if stop_if ended any run: leaving such runs out would flatter."""
    sides = [tuple(_ran_to_its_end(verdict) for verdict in side) for side in (base, new)]
    if all(cell.bad == 0 for side in sides for cell in side):
        return []
    return [Pair(sides[0][0], 1.0, sides[0], sides[1])]


def _ran_to_its_end(verdict: Verdict) -> Cell:
    stopped = was_stopped(verdict)
    return Cell(
        name="stop_if",
        metric="finished",
        request="",
        window="run",
        verdict=Word.FAILED if stopped else Word.SURVIVED,
        limit=1.0,
        unit="share",
        observed=float(not stopped),
        low=None,
        high=None,
        n=1,
        bad=int(stopped),
        bound="min",
    )


def _proven(cells: Sequence[Cell | None], verdicts: Sequence[Verdict]) -> tuple[Cell | None, ...]:
    """Without those whose fault was not proven: they were not measured under it."""
    return tuple(
        None if cell is None or _unproven(cell, verdict) else cell
        for cell, verdict in zip(cells, verdicts, strict=True)
    )


def _unproven(cell: Cell, verdict: Verdict) -> bool:
    kind, _, name = cell.window.partition(":")
    of = [f for f in verdict.faults if f.name == name or f.name.startswith(f"{name}#")]
    bit = all(f.proof == PROVEN for f in of)
    gone = all(f.heal_proof in {PROVEN, ONE_SHOT} for f in of)
    return kind in {"fault", "recovery"} and not (bit and (gone or kind == "fault"))


def observed(cells: Sequence[Cell | None]) -> tuple[Number, ...]:
    """Values of one side; None = not measured."""
    return tuple(None if cell is None else cell.observed for cell in cells)
