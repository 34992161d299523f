"""Each pair of cells, judged: worse, better, alike or undecided, and by how much. Pure.

What is seen makes a cell worse. Gaps in the evidence take away what is good (`better`, `alike`) and
never what is `worse`: what is not known is taken for the worst.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from survive.judge.between import Tested, episodes_to_decide, examined
from survive.judge.comparison import CellChange, Change, Moved, Verdicts
from survive.judge.episodes import LEAST
from survive.judge.measures import moved, values_of
from survive.judge.pairs import Gaps, Pair, observed
from survive.judge.statistics import ALPHA
from survive.judge.verdict import Cell, Word

MOST_UNKNOWN = 1 / 3  # of the new runs, before nothing good is said of a cell
_NO_INTERVAL = frozenset({"recovery", "scale_up"})  # their low and high are resolution, not chance


@dataclass(frozen=True, slots=True)
class Asked:
    """Under what cells are judged."""

    blocked: str  # why nothing may be judged, or ""
    tolerate: float
    base_out: int  # runs that are left out
    new_out: int


def changes_of(pairs: Sequence[Pair], asked: Asked) -> Iterator[CellChange]:
    """All pairs are judged together: one of twenty is worse by luck."""
    testable = [pair for pair in pairs if pair.testable and not asked.blocked]
    outcomes = iter(_judged(testable, asked))
    for pair in pairs:
        if pair.testable and not asked.blocked:
            yield _change(pair, *next(outcomes))
        else:
            yield _change(pair, Change.UNDECIDED, asked.blocked or _too_few(pair, len(pairs)), None)


def _judged(pairs: Sequence[Pair], asked: Asked) -> Iterator[tuple[Change, str, Tested]]:
    """What is seen makes a cell worse; whatever is not known counts against what is good."""
    gaps = Gaps(asked.base_out, asked.new_out, worst=True)
    seen, feared = (_with_margin(pairs, one, asked.tolerate) for one in (Gaps(), gaps))
    for pair, one, fear in zip(pairs, seen, feared, strict=True):
        yield *_word(pair, one, fear, asked, len(pairs)), one


def _with_margin(pairs: Sequence[Pair], gaps: Gaps, tolerate: float) -> list[Tested]:
    """Worse by more than is tolerated, better by anything."""
    plain = _examined(pairs, gaps, 0.0)
    within = _examined(pairs, gaps, tolerate) if tolerate else plain
    return [replace(one, better=whole.better) for one, whole in zip(within, plain, strict=True)]


def _examined(pairs: Sequence[Pair], gaps: Gaps, tolerate: float) -> list[Tested]:
    if not pairs:
        return []
    sides = [pair.values(gaps, tolerate) for pair in pairs]
    return examined([old for old, _ in sides], [fresh for _, fresh in sides])


def _too_few(pair: Pair, cells: int) -> str:
    old, fresh = pair.measured
    return (
        f"{old} against {fresh} measured, and nothing is judged below {LEAST} a side; "
        f"{episodes_to_decide(cells)} a side decide"
    )


def _word(pair: Pair, one: Tested, fear: Tested, asked: Asked, cells: int) -> tuple[Change, str]:
    old, fresh = pair.measured
    runs = asked.new_out + len(pair.new)
    if one.worse.significant:
        return Change.WORSE, ""
    if fear.worse.significant or (runs - fresh) > MOST_UNKNOWN * runs:
        return Change.UNDECIDED, f"not known for {runs - fresh} of {runs} new runs"
    if not one.decidable:
        return Change.UNDECIDED, (
            f"{old} against {fresh} cannot decide this beside {cells - 1} other cells; "
            f"{episodes_to_decide(cells)} a side do"
        )
    if fear.better.significant:
        return Change.BETTER, ""
    if one.worse.alone <= ALPHA:
        return Change.ALIKE, (
            f"by itself it looks worse (p = {one.worse.alone:.2g}), but one of {cells} cells may "
            f"by luck (p = {one.worse.among_all:.2g}); more episodes would tell"
        )
    return Change.ALIKE, ""


def _change(pair: Pair, change: Change, why: str, one: Tested | None) -> CellChange:
    cell = pair.sample
    old, fresh = observed(pair.base), observed(pair.new)
    return CellChange(
        name=cell.name,
        metric=cell.metric,
        request=cell.request,
        window=cell.window,
        unit=cell.unit,
        bound=cell.bound,
        base_limit=cell.limit,
        new_limit=pair.new_limit,
        change=change,
        why=why,
        base=values_of(old),
        new=values_of(fresh),
        base_verdicts=_verdicts(pair.base),
        new_verdicts=_verdicts(pair.new),
        moved=_within(pair) or moved(old, fresh),
        worse=one.worse if one else None,
        better=one.better if one else None,
    )


def _verdicts(cells: Sequence[Cell | None]) -> Verdicts:
    words = [cell.verdict for cell in cells if cell is not None]
    return Verdicts(
        words.count(Word.SURVIVED), words.count(Word.FAILED), words.count(Word.INCONCLUSIVE)
    )


def _within(pair: Pair) -> Moved | None:
    """Of one run against one: the interval of a difference from the two cells' own (exact) ones, by
    squaring and adding (Newcombe 1998, method 10, for shares; Zou & Donner 2008 for any two)."""
    if len(pair.base) + len(pair.new) != 2 or pair.sample.metric in _NO_INTERVAL:
        return None
    old, fresh = _ends(pair.base[0]), _ends(pair.new[0])
    if old is None or fresh is None:
        return None
    by = fresh[1] - old[1]
    low = by - math.hypot(fresh[1] - fresh[0], old[2] - old[1])
    high = by + math.hypot(fresh[2] - fresh[1], old[1] - old[0])
    return Moved(by, low, high, 1 - 2 * ALPHA, "within")


def _ends(cell: Cell | None) -> tuple[float, float, float] | None:
    """low, observed, high; None unless all are finite."""
    if cell is None or None in (cell.low, cell.observed, cell.high):
        return None
    low, observed, high = (float(end or 0) for end in (cell.low, cell.observed, cell.high))
    return (low, observed, high) if math.isfinite(low + observed + high) else None
