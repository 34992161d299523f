"""The schedule: every intended start of a run, fixed by the seed to the microsecond.

A Poisson process of any rate curve is a unit-rate process on the axis of *expected arrivals*
Λ(t) = ∫ rate. That axis is cut into blocks of 256. The number of arrivals in a block is drawn from
Poisson(256) by inverse CDF, their places are sorted uniforms (conditional uniformity, Kingman
1993, §2.4), and Λ⁻¹ brings them back to time. So a block needs nothing but (seed, block): any
worker can make any part of the schedule, and the union over workers is the whole.

Bursty arrivals are a gamma renewal process on the same axis (gamma.py). There a block is 256
arrivals, however long they take. Gaps need nothing but the seed and their number, and where a
chunk of them begins is the sum of all before it: one float, added in one order. So a worker
that sends a part of the schedule makes every gap and keeps its own arrivals by their number (a
number needs the counts of all earlier blocks with Poisson too): no messages, and the union is
still the whole.

A trace (scenario/traces.py) is laid on that axis as it is, and its rows go with its arrivals.

Random bits are counter-based and ln and exp our own (chance.py); the Poisson table is exact integer
arithmetic: the same seed gives the same bytes on any IEEE-754 machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from survive.plan.chance import F64, I64, bits, ln, ln1, uniforms
from survive.plan.gamma import CHUNK, gaps
from survive.plan.model import BLOCK
from survive.plan.sine import sine_time
from survive.scenario.arrivals import burstiness
from survive.scenario.model import Phase
from survive.units import SECOND

_COUNT, _PLACE, _KIND, _ROW = range(4)  # independent streams of bits; gamma.py has those from 4


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of the schedule in order of time.

    ``first`` is the number of arrivals before it. Arrays of equal length: ``intended_us`` int64
    ascending, ``kind`` index into the kinds int64, ``row`` 32 random bits as int64 (take modulo
    the number of rows). ``numbers``: of each arrival, where some of a block were left out; None =
    they count on from ``first``.
    """

    first: int
    intended_us: I64
    kind: I64
    row: I64
    numbers: I64 | None = None


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
        if self.phase.curve == "sine":
            period_s = self.phase.period_us / SECOND
            seconds = period_s * sine_time(due / (start * period_s), self.phase.swing)
        elif self.phase.curve == "steps":
            seconds = _stepped(self.phase, due)
        elif start == end:
            seconds = due / start
        elif self.phase.curve == "exponential":
            growth = ln1(end / start)
            seconds = ln(1.0 + due * (growth / (start * span_s))) * (span_s / growth)
        else:
            slope = (end - start) / span_s
            # t = (√(r₀² + 2·slope·Λ) − r₀) / slope, in the form that does not cancel.
            seconds = 2.0 * due / (start + np.sqrt(start * start + 2.0 * slope * due))
        return self.phase.start_us + seconds * SECOND


def _stepped(phase: Phase, due: F64) -> F64:
    """Seconds into a ramp in steps at which so many arrivals are due."""
    step_s = (phase.end_us - phase.start_us) / SECOND / phase.steps
    rates = np.array([float(phase.step_rps(n)) for n in range(1, phase.steps + 1)])
    begins = np.concatenate([[0.0], np.cumsum(rates[:-1] * step_s)])
    step = np.searchsorted(begins, due, side="right") - 1
    seconds: F64 = step * step_s + (due - begins[step]) / rates[step]
    return seconds


def expected(phase: Phase) -> float:
    """∫ rate over one phase: its expected number of arrivals."""
    span = Fraction(phase.end_us - phase.start_us, SECOND)
    if phase.constant or phase.curve == "sine":  # a sine is whole periods long
        return float(phase.start_rps * span)
    if phase.curve == "steps":
        return float((phase.step_rps(1) + phase.end_rps) / 2 * span)
    if phase.curve == "exponential":
        growth = ln1(float(phase.end_rps / phase.start_rps))
        return float(phase.end_rps - phase.start_rps) * float(span) / growth
    return float((phase.start_rps + phase.end_rps) / 2 * span)


class Schedule:
    """All arrivals of a run, made block by block.

    ``kinds`` orders the request kinds; ``phases[i].shares`` must name each.
    """

    def __init__(
        self, seed: int, arrivals: str, phases: Sequence[Phase], kinds: Sequence[str],
        trace_us: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self._trace = np.array(trace_us, dtype=np.float64)
        self._seed = seed
        self._cv = burstiness(arrivals)
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
        return cls(plan.seed, plan.arrivals, plan.phases, plan.kinds, plan.trace_us)

    def blocks(self) -> Iterator[Block]:
        """Every arrival, in order. Empty blocks are left out."""
        first = 0
        for number, at in self._covering():
            at = at[: int(np.searchsorted(at, self.expected))]
            if len(at):
                yield self._block(number, first, at)
                first += len(at)

    def _covering(self) -> Iterator[tuple[int, F64]]:
        """(block, its places on the Λ axis), ascending, until the axis is covered."""
        if len(self._trace):
            yield from enumerate(self._replayed())
            return
        if self._cv is None:
            for number in range(math.ceil(self.expected / BLOCK)):
                yield number, self._places(number)
            return
        begin = 0.0
        for chunk in itertools.count():
            at = begin + np.cumsum(gaps(self._seed, chunk, self._cv))
            for part in range(CHUNK // BLOCK):
                yield chunk * (CHUNK // BLOCK) + part, at[part * BLOCK : (part + 1) * BLOCK]
            begin = float(at[-1])
            if begin >= self.expected:
                return

    def _block(self, number: int, first: int, at: F64) -> Block:
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
        if len(self._trace):
            row = (first + np.arange(len(at), dtype=np.int64)) % len(self._trace)
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

    def _replayed(self) -> Iterator[F64]:
        """The trace at a mean of one arrival a unit, over and over, in pieces of a block.

        From the last arrival of a round to the first of the next lies the mean gap.
        """
        count = len(self._trace)
        at = self._trace * ((count - 1) / self._trace[-1])
        for turn in itertools.count():
            for begin in range(0, count, BLOCK):
                yield at[begin : begin + BLOCK] + float(turn * count)
            if (turn + 1) * count >= self.expected:
                return

    def _places(self, number: int) -> F64:
        if not self._poisson:
            return number * float(BLOCK) + np.arange(BLOCK, dtype=np.float64) + 0.5
        count = poisson_count(self._seed, number)
        places: F64 = np.sort(uniforms(bits(self._seed, _PLACE, number, count)))
        return number * float(BLOCK) + places * float(BLOCK)
