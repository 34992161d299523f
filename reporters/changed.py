"""What a comparison says, in words: one place says a thing, each form lays it out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from survive.judge.comparison import (
    CellChange,
    Change,
    Comparison,
    Measure,
    Side,
    Values,
    Verdicts,
)
from survive.judge.spectra import Largest, Percentiles, Spectra
from survive.judge.verdict import Number

from . import words
from .glyphs import UNICODE, Glyphs

PERCENTILES = ("p50", "p90", "p99", "p99.9")
_TOLD = 3  # cells that the sentence names


def sentence(comparison: Comparison) -> str:
    """The answer in one sentence, as it stands at the end of every form."""
    head = f"{comparison.change.upper()} {comparison.scenario}: "
    mine = [cell for cell in comparison.cells if cell.change is comparison.change]
    cells = words.plural(len(comparison.cells), "cell")
    sides = " against ".join(words.count(len(s.runs)) for s in (comparison.new, comparison.base))
    runs = f"{sides} runs"
    if comparison.change is Change.UNDECIDED:
        why = mine[0].why if mine else "there is no cell that both sides have"
        return f"{head}{why} ({len(mine)} of {cells})"
    if comparison.change is Change.ALIKE:
        level = words.share(comparison.alpha)
        return f"{head}none of {cells} is worse or better at {level}, {runs}"
    named = "; ".join(f"{_place(cell)} {_from_to(cell)}" for cell in mine[:_TOLD])
    more = f"; and {len(mine) - _TOLD} more" if len(mine) > _TOLD else ""
    return f"{head}{named}{more} ({len(mine)} of {cells}, {runs})"


def shout(change: Change) -> str:
    """WORSE stands out without colour."""
    return change.upper() if change is Change.WORSE else str(change)


def _place(cell: CellChange) -> str:
    return f"{cell.name}{f' for {cell.request}' if cell.request else ''} during {cell.window}"


def _from_to(cell: CellChange) -> str:
    old, fresh = value_text(cell.base.median, cell), value_text(cell.new.median, cell)
    return f"{cell.metric} {fresh}, was {old}"


def value_text(value: Number, cell: CellChange) -> str:
    """As of a cell; a time without end is ``never``."""
    if cell.unit == "s" and value == "inf":
        return "never"
    return words.quantity(value, cell.unit)


def moved_text(value: Number, unit: str) -> str:
    """``+3.1 ms``; shares in percentage points."""
    if value is None:
        return words.NOTHING
    size = float(value)
    sign = "-" if size < 0 else "+" if size else ""
    if math.isinf(size):
        return f"{sign}inf"
    if unit == "share":
        return f"{sign}{words.digits(abs(size) * 100)} pp"
    return sign + words.quantity(abs(size), unit)


def interval_text(cell: CellChange) -> str:
    """``-0.4..0.9``, in the unit of the difference beside it."""
    moved = cell.moved
    if moved.low is None or moved.high is None:
        return ""
    ends = (float(moved.low), float(moved.high))
    factor = 100 if cell.unit == "share" else 1
    return "..".join(_signed(end * factor) for end in ends)


def _signed(value: float) -> str:
    sign = "-" if value < 0 else "+" if value else ""
    return f"{sign}inf" if math.isinf(value) else sign + words.digits(abs(value), 2)


def notes(cell: CellChange) -> Iterator[str]:
    """What stands under a cell: other verdicts, how likely luck is, why it is not plain."""
    old, fresh = _verdicts(cell.base_verdicts), _verdicts(cell.new_verdicts)
    if old != fresh:
        yield f"{old}; now {fresh}"
    chance = {Change.WORSE: cell.worse, Change.BETTER: cell.better}.get(cell.change)
    if chance is not None:
        yield f"by luck with p = {chance.among_all:.2g} (this cell alone: {chance.alone:.2g})"
    if cell.why:
        yield cell.why


def in_common(cells: Sequence[CellChange]) -> str:
    """The reason that all cells share, and the sentence tells; "" if they do not."""
    whys = {cell.why for cell in cells}
    return next(iter(whys)) if len(whys) == 1 else ""


def _verdicts(counted: Verdicts) -> str:
    named = ("failed", "inconclusive", "survived")
    parts = [(getattr(counted, name), name) for name in named]
    return ", ".join(f"{n} {name}" for n, name in parts if n) or "not measured"


def of_side(side: Side) -> str:
    """``5 runs, seeds 42..46, from 2026-11-22 09:56 UTC``."""
    seeds = sorted({run.seed for run in side.runs})
    in_row = len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1
    named = f"{seeds[0]}..{seeds[-1]}" if in_row else ", ".join(map(str, seeds))
    since = min(run.started_utc for run in side.runs)[:16].replace("T", " ")
    where = f", {side.runs[0].folder}" if len(side.runs) == 1 else ""
    when = f", from {since} UTC" if since else ""
    seed = "seed" if len(seeds) == 1 else "seeds"
    return f"{words.plural(len(side.runs), 'run')}, {seed} {named}{when}{where}"


def measure_name(one: Measure) -> str:
    """``recovered after``."""
    return one.name.replace("_", " ")


def of_measure(one: Measure) -> str:
    """``0.22 s, now 0.31 s (+0.09 s)``."""
    old, fresh = (measure_text(side, one.unit) for side in (one.base, one.new))
    if old == fresh:
        return old
    if one.moved.by is None:
        old, fresh = (said if said != words.NOTHING else "not measured" for said in (old, fresh))
        return f"{old}, now {fresh}"
    return f"{old}, now {fresh} ({moved_text(one.moved.by, one.unit)})"


def measure_text(values: Values, unit: str) -> str:
    """The median of one side."""
    if unit == "s" and values.median == "inf":
        return "never"
    return words.quantity(values.median, unit)


def pairs(row: Spectra, glyphs: Glyphs = UNICODE) -> list[str]:
    """``412→430`` of each of PERCENTILES."""
    sides = zip(_shown(row.base), _shown(row.new), strict=True)
    return [_pair(old, fresh, glyphs) for old, fresh in sides]


def _pair(old: Number, fresh: Number, glyphs: Glyphs) -> str:
    if old is None and fresh is None:
        return words.NOTHING
    return f"{_ms(old)}{glyphs.to}{_ms(fresh)}"


def _shown(side: Percentiles) -> tuple[Number, ...]:
    return side.p50_ms, side.p90_ms, side.p99_ms, side.p99_9_ms


def _ms(value: Number) -> str:
    if value is None:
        return words.NOTHING
    return value if isinstance(value, str) else words.digits(value)


def farthest(largest: Largest | None, glyphs: Glyphs = UNICODE) -> str:
    """``p97 412→640 (×1.55)``."""
    if largest is None:
        return ""
    at = f"p{words.digits(largest.quantile * 100)}"
    factor = "" if isinstance(largest.factor, str) else f" ({glyphs.times}{_ms(largest.factor)})"
    return f"{at} {_pair(largest.base_ms, largest.new_ms, glyphs)}{factor}"


def remarks(comparison: Comparison, glyphs: Glyphs = UNICODE) -> Iterator[str]:
    """What has to be known beside the numbers; the gaps first."""
    for name, side in (("base", comparison.base), ("new", comparison.new)):
        for out in side.left_out:
            yield f"{name}: {out.folder} is left out: {out.why}"
    for one in comparison.differences:
        said = "taken for the same, as asked" if one.accepted else "not the same"
        yield f"{one.what}: {one.base or 'none'} and {one.new or 'none'}, {said}"
    if comparison.tolerated:
        yield f"worse by up to {words.share(comparison.tolerated)} was tolerated, as asked"
    yield from comparison.notes
    if most := max(comparison.spectra, key=_size, default=None):
        place = f"{most.request} {most.series} during {most.window}"
        if said := farthest(most.largest, glyphs):
            yield f"histograms are farthest apart for {place}: {said} ms"


def _size(row: Spectra) -> float:
    """How far apart two histograms are, as a ratio."""
    factor = 1.0 if row.largest is None else float(row.largest.factor or 0)
    return max(factor, 1 / factor if factor else math.inf)
