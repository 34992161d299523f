"""Do two groups of episodes differ? Exact, by relabelling. Pure.

Episodes are what is exchangeable if nothing was changed (DESIGN law 6), so the question is asked of
them, never of requests: had the labels "base" and "new" been dealt at random, how often would the
new side look as bad as it does? A cell's statistic is the rank sum (Wilcoxon 1945): no law of the
spread is assumed, and "never recovered" is simply the worst rank.

A comparison looks at many cells, and one of twenty is worse by luck. So each p-value is adjusted by
the step-down minP procedure (Westfall & Young 1993, algorithm 2.8; Ge, Dudoit & Speed 2003): the
labels are dealt once for all cells, which keeps what they have in common, and the chance that *any*
sound cell is called worse stays within ALPHA. Cells that never vary cost the others nothing.

All relabellings are looked at, or 20,000 seeded ones with the real one among them (Phipson & Smyth
2010: a p-value is never 0). The shift is that of Hodges & Lehmann (1963), its interval the one that
belongs to the same rank test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from survive.judge.episodes import LEAST
from survive.judge.statistics import ALPHA
from survive.plan.chance import F64, MOST_WORDS, bits

MOST_LABELS = 20_000
_SEED = 6  # of the relabellings that are drawn; any number would do
_EXACT = 50  # episodes a side up to which the rank sum's law is counted out
_Z = 1.6448536269514722  # of ALPHA, for more
_ROUNDING = 1e-9
_AT_ONCE = 1000  # relabellings, so that many episodes fit into memory
_MOST_SIDE = 1000  # as many as `run --repeat` can make

Labels = npt.NDArray[np.bool_]  # relabelling × episode: is it "new"? The first is the real one


@dataclass(frozen=True, slots=True)
class Chance:
    """How likely luck alone is: for this cell by itself, and among all that were looked at."""

    alone: float
    among_all: float

    @property
    def significant(self) -> bool:
        """Not luck, at ALPHA for all cells together."""
        return self.among_all <= ALPHA * (1 + _ROUNDING)


@dataclass(frozen=True, slots=True)
class Tested:
    """What the episodes say of one cell."""

    worse: Chance
    better: Chance
    decidable: bool  # had every new episode been worse than every old one, it would be judged


@dataclass(frozen=True, slots=True)
class Shift:
    """Typical difference, new minus base, and the interval that holds it."""

    by: float
    low: float
    high: float
    confidence: float


def labels(base: int, new: int) -> Labels:
    """Every way to deal the labels, or seeded ones; the real one (base first) comes first."""
    total = base + new
    if math.comb(total, new) <= MOST_LABELS:
        chosen = [*combinations(range(total), new)]
        dealt: Labels = np.zeros((len(chosen), total), dtype=np.bool_)
        dealt[np.arange(len(chosen))[:, None], chosen] = True
        return dealt[::-1]  # the last combination is the last episodes
    at_once = MOST_WORDS // total
    blocks = [
        np.argsort(bits(_SEED, total, block, at_once * total).reshape(at_once, total), axis=1) < new
        for block in range(-(-MOST_LABELS // at_once))
    ]
    drawn = np.concatenate(blocks)[:MOST_LABELS]
    drawn[0] = np.arange(total) >= base
    return drawn


def examined(base: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> list[Tested]:
    """Of each cell its episodes' values, more being worse; NaN = not measured.

    Every cell has the same episodes. ValueError without episodes on a side.
    """
    old, fresh = len(base[0]) if base else 0, len(new[0]) if new else 0
    if not old or not fresh or max(old, fresh) > _MOST_SIDE:
        raise ValueError(f"{old} episodes against {fresh}")
    values = np.array([[*b, *n] for b, n in zip(base, new, strict=True)], dtype=np.float64)
    scores = np.array([_centred_ranks(row) for row in values])
    dealt = labels(old, fresh)
    sums = np.concatenate([dealt[at : at + _AT_ONCE] @ scores.T for at in _steps(len(dealt))])
    worse, better = _chances(sums), _chances(-sums)
    known = ~np.isnan(values)
    counts = zip(known[:, :old].sum(axis=1), known[:, old:].sum(axis=1), strict=True)
    least = [_least_p(int(b), int(n), len(dealt)) for b, n in counts]
    decidable = _decidable(_each_p(sums), least)
    return [Tested(*found) for found in zip(worse, better, decidable, strict=True)]


def _steps(length: int) -> range:
    return range(0, length, _AT_ONCE)


def _centred_ranks(values: F64) -> F64:
    """Ranks, ties shared, minus their mean; 0 where nothing was measured. Multiples of 1/2."""
    known = ~np.isnan(values)
    seen = np.sort(values[known])
    low = np.searchsorted(seen, values[known], side="left")
    high = np.searchsorted(seen, values[known], side="right")
    found = np.zeros(len(values))
    found[known] = (low + high + 1) / 2 - (len(seen) + 1) / 2
    return found


def _each_p(sums: F64) -> F64:
    """Of every relabelling and cell: the share of relabellings that are as bad or worse."""
    total = len(sums)
    found = np.empty_like(sums)
    for cell in range(sums.shape[1]):
        ordered = np.sort(sums[:, cell])
        found[:, cell] = (total - np.searchsorted(ordered, sums[:, cell], side="left")) / total
    return found


def _chances(sums: F64) -> list[Chance]:
    """Step-down minP: from the least likely cell down, each against itself and all after it."""
    each = _each_p(sums)
    order = np.argsort(each[0], kind="stable")
    least = np.full(len(each), np.inf)
    adjusted = np.empty(len(order))
    for cell in order[::-1]:
        least = np.minimum(least, each[:, cell])
        adjusted[cell] = np.mean(least <= each[0, cell] + _ROUNDING)
    adjusted[order] = np.maximum.accumulate(adjusted[order])
    return [
        Chance(float(alone), float(among))
        for alone, among in zip(each[0], adjusted, strict=True)
    ]  # fmt: skip


def _least_p(base: int, new: int, looked_at: int) -> float:
    """Of two sides that lie wholly apart."""
    return max(1 / math.comb(base + new, new), 1 / looked_at)


def _decidable(each: F64, least: Sequence[float]) -> list[bool]:
    """Whether a cell whose sides lay wholly apart would be judged beside the others as they are."""
    padded = np.concatenate([each, np.full((len(each), 1), np.inf)], axis=1)
    ordered = np.sort(padded, axis=1)
    first, second = ordered[:, 0], ordered[:, 1]
    found = []
    for cell, p in enumerate(least):
        others = np.where(each[:, cell] <= first, second, first)
        share = float(np.mean(others <= p + _ROUNDING)) + p
        found.append(share <= ALPHA * (1 + _ROUNDING))
    return found


def episodes_to_decide(cells: int) -> int:
    """Episodes a side that decide whatever the other cells do (Bonferroni over all of them)."""
    side = LEAST
    while max(1, cells) / math.comb(2 * side, side) > ALPHA:
        side += 1
    return side


def shift(base: Sequence[float], new: Sequence[float]) -> Shift | None:
    """The median of all differences, and its interval; None with fewer than LEAST a side.

    Infinite values are legal; two of them differ by 0.
    """
    if min(len(base), len(new)) < LEAST:
        return None
    differences = sorted(minus(n, b) for n in new for b in base)
    rank, confidence = _rank(len(base), len(new))
    return Shift(
        middle(differences), differences[rank - 1], differences[-rank], confidence
    )  # fmt: skip


def middle(ordered: Sequence[float]) -> float:
    """The median of sorted numbers; of two infinite ones on either side, 0."""
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return minus(low, -high) / 2 if low != high else low


def minus(a: float, b: float) -> float:
    """a − b; two equal infinities differ by 0."""
    return 0.0 if math.isinf(a) and a == b else a - b


def _rank(base: int, new: int) -> tuple[int, float]:
    """Which difference from either end bounds the shift at 90 %, and what that really holds."""
    if max(base, new) > _EXACT:
        mean, spread = base * new / 2, math.sqrt(base * new * (base + new + 1) / 12)
        return max(1, math.floor(mean - _Z * spread)), 1 - 2 * ALPHA
    below = np.cumsum(_ways(base, new)) / math.comb(base + new, new)
    rank = max(1, int(np.searchsorted(below, ALPHA * (1 + _ROUNDING), side="right")))
    return rank, float(1 - 2 * below[rank - 1])


def _ways(base: int, new: int) -> F64:
    """In how many ways the rank-sum statistic takes each of its values (Mann & Whitney 1947)."""
    ways = np.zeros(base * new + 1)
    ways[0] = 1
    for i in range(1, new + 1):  # the Gaussian binomial, factor by factor
        ways[base + i :] -= ways[: -(base + i)].copy() if base + i <= base * new else 0
        for at in range(i, len(ways)):
            ways[at] += ways[at - i]
    return ways
