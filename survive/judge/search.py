"""Which load to play next, given what was seen: upward by doubling, then between the bounds. Pure.

A search goes up from where it begins until a level fails (or the harness does), down if it fails at
once, and then halves, on the logarithm, the gap above the highest level that survives and the one
below the lowest that fails. Each bound is seen twice: where only one run stands for it, it is
played once more, and a level whose seeds disagree is none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from survive.judge.capacity import Envelope, Finding, Level

STEP = 2
LOWEST = Fraction(1, 64)  # of the beginning: a target that fails there fails at any load
HIGHEST = 64  # times the beginning, if nobody says
UNDECIDED_MOST = 2  # levels in a row, going up or down: more load decides no missing proof
TWICE = 2  # runs that stand for a bound
_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Grid:
    """These factors and no others, each so many times."""

    factors: tuple[Fraction, ...]
    repeat: int = 1

    def next(self, envelope: Envelope) -> Fraction | None:
        """The next factor to play; None = done."""
        return _begun(envelope.levels, self.repeat) or _first_new(self.factors, envelope.levels)


@dataclass(frozen=True, slots=True)
class Search:
    """Where to look for the two bounds, and how near they have to come."""

    start: Fraction
    most: Fraction
    resolution: float = 0.1  # fails ÷ survives ≤ 1 + resolution
    least: Fraction | None = None  # a factor that somebody asks for
    repeat: int = 1

    def next(self, envelope: Envelope) -> Fraction | None:
        """The next factor to play; None = done."""
        levels = envelope.levels
        if not levels:
            return min(self.start, self.most)
        begun = _begun(levels, self.repeat)
        return begun or self._sought(envelope) or self._asked(envelope) or _doubtful(envelope)

    def _sought(self, envelope: Envelope) -> Fraction | None:
        levels = envelope.levels
        low = envelope.survives
        ends = (Finding.FAILED, Finding.HARNESS)
        ended = any(level.finding in ends for level in levels)
        if not ended and (higher := self._up(levels)):
            return higher
        if low is None:
            return self._down(levels) if ended else None
        return next((f for gap in self._gaps(envelope, low) if (f := self._inside(*gap))), None)

    def _up(self, levels: Sequence[Level]) -> Fraction | None:
        highest = levels[-1].factor
        stuck = _all_undecided(levels[-UNDECIDED_MOST:])
        return None if stuck or highest >= self.most else min(highest * STEP, self.most)

    def _down(self, levels: Sequence[Level]) -> Fraction | None:
        lowest = levels[0].factor
        stuck = _all_undecided(levels[:UNDECIDED_MOST])
        return None if stuck or lowest <= self.start * LOWEST else lowest / STEP

    def _gaps(self, envelope: Envelope, low: Level) -> list[tuple[Fraction, Fraction]]:
        """Above the highest level that survives, and below the lowest that fails."""
        factors = [level.factor for level in envelope.levels]
        above = factors.index(low.factor) + 1
        gaps = [(low.factor, factors[above])] if above < len(factors) else []
        if envelope.fails is not None and envelope.fails.factor > low.factor:
            at = factors.index(envelope.fails.factor)
            gaps.append((factors[at - 1], factors[at]))
        return gaps

    def _inside(self, low: Fraction, high: Fraction) -> Fraction | None:
        """Half way on the logarithm, in few digits; None if they are near enough."""
        return None if high <= low * Fraction(1 + self.resolution) else halfway(low, high)

    def _asked(self, envelope: Envelope) -> Fraction | None:
        """What somebody asks for, if it lies between the bounds."""
        low, high = envelope.survives, envelope.fails
        if self.least is None or any(x.factor == self.least for x in envelope.levels):
            return None
        above = low is None or low.factor < self.least
        below = high is None or self.least < high.factor
        return self.least if above and below and self.least <= self.most else None


def halfway(low: Fraction, high: Fraction) -> Fraction:
    """The geometric mean, in the fewest digits (three at least) that lie between the two."""
    mean = math.sqrt(low * high)
    for digits in range(_DIGITS, 17):
        rounded = Fraction(f"{mean:.{digits}g}")
        if low < rounded < high:
            return rounded
    return (low + high) / 2


def _begun(levels: Iterable[Level], repeat: int) -> Fraction | None:
    """A level with too few decided runs; one that stays undecided is played twice as often."""
    return next(
        (x.factor for x in levels if x.decided < repeat and len(x.runs) < TWICE * repeat), None
    )


def _first_new(factors: Iterable[Fraction], levels: Iterable[Level]) -> Fraction | None:
    known = {level.factor for level in levels}
    return next((factor for factor in factors if factor not in known), None)


def _all_undecided(levels: Sequence[Level]) -> bool:
    undecided = all(level.finding is Finding.UNDECIDED for level in levels)
    return undecided and len(levels) == UNDECIDED_MOST


def _doubtful(envelope: Envelope) -> Fraction | None:
    """A bound that one run alone stands for: no run beyond it says the same."""
    low, high = envelope.survives, envelope.fails
    sides = itertools.chain(
        [(low, [x for x in envelope.levels if x.factor <= low.factor])] if low else [],
        [(high, [x for x in envelope.levels if x.factor >= high.factor])] if high else [],
    )
    for bound, side in sides:
        agreeing = sum(run.finding is bound.finding for level in side for run in level.runs)
        if agreeing < TWICE and len(bound.runs) < TWICE:
            return bound.factor
    return None
