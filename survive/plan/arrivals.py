"""The schedule: every intended start of a run, fixed by the seed to the microsecond.

A Poisson process of any rate curve is a unit-rate process on the axis of *expected arrivals*
Λ(t) = ∫ rate. That axis is cut into blocks of 256. The number of arrivals in a block is drawn from
Poisson(256) by inverse CDF, their places are sorted uniforms (conditional uniformity, Kingman
1993, §2.4), and Λ⁻¹ brings them back to time. So a block needs nothing but (seed, block): any
worker can make any part of the schedule, and the union over workers is the whole.

Random bits are counter-based (splitmix64 finaliser over seed, stream, block, position); the
Poisson table is exact integer arithmetic and ln is our own series over exactly rounded
operations, so the same seed gives the same bytes on any IEEE-754 machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from survive.plan.model import BLOCK
from survive.scenario.model import Phase
from survive.units import SECOND

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

# The Weyl sequence of splitmix64: position i of a block's words.
_STEPS: U64 = np.arange(1, 4 * BLOCK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

_COUNT, _PLACE, _KIND, _ROW = range(4)  # independent streams of bits
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of the schedule in order of time.

    ``first`` is the number of arrivals before it. Arrays of equal length: ``intended_us`` int64
    ascending, ``kind`` index into the kinds int64, ``row`` 32 random bits as int64 (take modulo
    the number of rows).
    """

    first: int
    intended_us: I64
    kind: I64
    row: I64


def _mix(x: U64) -> U64:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014), element-wise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: int) -> int:
    """Fold integers to a 64-bit key; each part passes the mixer, so near seeds are unrelated."""
    key = 0x9E3779B97F4A7C15
    for part in parts:
        x = key ^ (part & _MASK)  # _mix for one number, without the cost of an array
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
        key = ((x ^ (x >> 31)) + 0x9E3779B97F4A7C15) & _MASK
    return key


def bits(seed: int, stream: int, block: int, count: int) -> U64:
    """``count`` raw 64-bit words of one stream of one block."""
    if count > len(_STEPS):
        raise ValueError(f"a block has at most {len(_STEPS)} arrivals")
    return _mix(_STEPS[:count] + np.uint64(_key(seed, stream, block)))


def uniforms(words: U64) -> F64:
    """53 bits each, in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


@cache
def _poisson_table() -> npt.NDArray[np.uint64]:
    """⌊2^53 · P(X ≤ k)⌋ for X ~ Poisson(256), k = 0, 1, …, in 1024-bit fixed point."""
    precision = 1024
    # e^-256 = (e^-1)^256; e^-1 by its alternating series in fixed point.
    e_inverse, term = 0, 1 << precision
    for k in range(1, 180):
        e_inverse += term
        term = -term // k
    weight = 1 << precision
    for _ in range(BLOCK):
        weight = weight * e_inverse >> precision
    table, total = [], 0
    for k in range(1, BLOCK + 400):
        total += weight
        table.append(min(total >> (precision - 53), (1 << 53) - 1))
        weight = weight * BLOCK // k
    return np.array(table, dtype=np.uint64)


def poisson_count(seed: int, block: int) -> int:
    """Arrivals of one block: Poisson with mean 256, by inverse CDF."""
    word = bits(seed, _COUNT, block, 1) >> np.uint64(11)
    return int(np.searchsorted(_poisson_table(), word, side="right")[0])


_LN2 = 0.6931471805599453


def ln(x: F64) -> F64:
    """Natural logarithm by 2·artanh((m−1)/(m+1)) with exactly rounded operations only.

    Error below 4 units in the last place for normal positive x; the same bits everywhere, which
    no libm promises.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponent = np.where(low, exponent - 1, exponent).astype(np.float64)
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square = z * z
    series = np.zeros_like(z)
    for k in range(25, 0, -2):
        series = series * square + 1.0 / k
    return exponent * _LN2 + 2.0 * z * series


def _ln1(x: float) -> float:
    return float(ln(np.array([x], dtype=np.float64))[0])


@dataclass(frozen=True, slots=True)
class _Segment:
    """One phase on the Λ axis: [lambda_start, lambda_end) ↔ [start_us, end_us)."""

    phase: Phase
    lambda_start: float
    lambda_end: float

    def times_us(self, at: F64) -> F64:
        """Λ⁻¹ inside this phase; float µs."""
        start = float(self.phase.start_rps)
        end = float(self.phase.end_rps)
        span_s = (self.phase.end_us - self.phase.start_us) / SECOND
        due = at - self.lambda_start
        if start == end:
            seconds = due / start
        elif self.phase.curve == "exponential":
            growth = _ln1(end / start)
            seconds = ln(1.0 + due * (growth / (start * span_s))) * (span_s / growth)
        else:
            slope = (end - start) / span_s
            # t = (√(r₀² + 2·slope·Λ) − r₀) / slope, in the form that does not cancel.
            seconds = 2.0 * due / (start + np.sqrt(start * start + 2.0 * slope * due))
        return self.phase.start_us + seconds * SECOND


def expected(phase: Phase) -> float:
    """∫ rate over one phase: its expected number of arrivals."""
    span = Fraction(phase.end_us - phase.start_us, SECOND)
    if phase.constant:
        return float(phase.start_rps * span)
    if phase.curve == "exponential":
        growth = _ln1(float(phase.end_rps / phase.start_rps))
        return float(phase.end_rps - phase.start_rps) * float(span) / growth
    return float((phase.start_rps + phase.end_rps) / 2 * span)


class Schedule:
    """All arrivals of a run, made block by block.

    ``kinds`` orders the request kinds; ``phases[i].shares`` must name each.
    """

    def __init__(
        self, seed: int, arrivals: str, phases: Sequence[Phase], kinds: Sequence[str]
    ) -> None:
        self._seed = seed
        self._poisson = arrivals == "poisson"
        self._segments: list[_Segment] = []
        total = 0.0
        for phase in phases:
            after = total + expected(phase)
            self._segments.append(_Segment(phase, total, after))
            total = after
        self.expected = total
        edges = [s.lambda_end for s in self._segments]
        self._edges = np.array(edges, dtype=np.float64)
        self._cumulative = np.array(
            [np.cumsum([phase.shares[kind] for kind in kinds]) for phase in phases]
        )

    @classmethod
    def of(cls, plan: Any) -> Schedule:
        """The schedule of a Plan."""
        return cls(plan.seed, plan.arrivals, plan.phases, plan.kinds)

    def blocks(self) -> Iterator[Block]:
        """Every arrival, in order. Empty blocks are left out."""
        first = 0
        for number in range(math.ceil(self.expected / BLOCK)):
            block = self._block(number, first)
            if len(block.intended_us):
                first += len(block.intended_us)
                yield block

    def _block(self, number: int, first: int) -> Block:
        at = self._places(number)
        at = at[: int(np.searchsorted(at, self.expected))]
        draw = uniforms(bits(self._seed, _KIND, number, len(at)))
        intended = np.empty(len(at), dtype=np.int64)
        kind = np.empty(len(at), dtype=np.int64)
        for index, (start, end) in self._stretches(at):
            segment = self._segments[index]
            times = np.rint(segment.times_us(at[start:end])).astype(np.int64)
            # Rounding must not push one into the next phase.
            intended[start:end] = np.clip(times, segment.phase.start_us, segment.phase.end_us - 1)
            kind[start:end] = np.searchsorted(
                self._cumulative[index, :-1], draw[start:end], side="right"
            )
        row = (bits(self._seed, _ROW, number, len(at)) >> np.uint64(32)).astype(np.int64)
        return Block(first, intended, kind, row)

    def _stretches(self, at: F64) -> Iterator[tuple[int, tuple[int, int]]]:
        """(phase, [start, end)) of ascending places: a block rarely spans more than one phase."""
        if not len(at):
            return
        last = len(self._segments) - 1
        first = min(int(np.searchsorted(self._edges, at[0], side="right")), last)
        start = 0
        for index in range(first, last + 1):
            after = self._segments[index].lambda_end
            end = len(at) if index == last else int(np.searchsorted(at, after))
            if end > start:
                yield index, (start, end)
            start = end
            if start == len(at):
                return

    def _places(self, number: int) -> F64:
        if not self._poisson:
            return number * float(BLOCK) + np.arange(BLOCK, dtype=np.float64) + 0.5
        count = poisson_count(self._seed, number)
        places: F64 = np.sort(uniforms(bits(self._seed, _PLACE, number, count)))
        return number * float(BLOCK) + places * float(BLOCK)
