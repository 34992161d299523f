"""The histograms of a run by window, and those of two sides beside each other. Pure.

They come from the table's merged sets, which are the deltas of ``latency.hlog`` (`judge
--from-hlog` proves it). Percentiles are of all settled requests, failures at +infinity (DESIGN
law 4). Information only: requests of one episode share its luck, so nothing here is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from survive.judge.faults import lives
from survive.judge.verdict import Number
from survive.judge.windows import Windows
from survive.plan.model import Plan
from survive.record.hdr import BUCKETS, highest_of
from survive.record.reader import Record
from survive.record.samples import BAD, Outcome, Series
from survive.record.table import COLUMN, I64

_ROUNDING = 1e-9
_Z = 1.6448536269514722  # of 5 % on either side
_BEYOND = 10  # requests beyond a percentile that may be called the largest shift
_GRID = [*(percent / 100 for percent in range(1, 100)), 0.999]


@dataclass(frozen=True, slots=True)
class Place:
    """What a histogram is of."""

    window: str
    request: str
    series: str  # latency | ttft


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """A sparse histogram of what came, and how many requests never got that far."""

    index: I64
    count: I64
    infinite: int

    @classmethod
    def pooled(cls, parts: Sequence[Spectrum]) -> Spectrum:
        """Several added up; the order changes nothing."""
        index = np.concatenate([part.index for part in parts])
        count = np.concatenate([part.count for part in parts])
        dense = np.bincount(index, weights=count, minlength=1).astype(np.int64)
        return _sparse(dense, sum(part.infinite for part in parts))

    @property
    def n(self) -> int:
        """All settled requests."""
        return int(self.count.sum()) + self.infinite

    def quantile_ms(self, share: float) -> float | None:
        """By rank, as HDR tools say it; None if no request lies beyond it."""
        n = self.n
        if min(share, 1 - share) * n < 1 - _ROUNDING:
            return None
        rank = max(1, math.ceil(round(share * n, 9)))
        if rank > n - self.infinite:
            return math.inf
        at = int(np.searchsorted(np.cumsum(self.count), rank, side="left"))
        return highest_of(int(self.index[at])) / 1000


@dataclass(frozen=True, slots=True)
class Percentiles:
    """In ms, failures at "inf"; null where the requests are too few to tell it."""

    n: int
    bad: int
    p50_ms: Number
    p90_ms: Number
    p99_ms: Number
    p99_9_ms: Number


@dataclass(frozen=True, slots=True)
class Largest:
    """The percentile at which two histograms lie farthest apart, beyond what their ranks leave
    open, by the ratio."""

    quantile: float
    base_ms: Number
    new_ms: Number
    factor: Number  # new / base


@dataclass(frozen=True, slots=True)
class Spectra:
    """Both sides in one window, their episodes pooled."""

    window: str
    request: str
    series: str
    base: Percentiles
    new: Percentiles
    largest: Largest | None


def spectra_of(record: Record) -> dict[Place, Spectrum]:
    """Every histogram of a run that has requests in it."""
    plan = record.plan
    late = [span for life in lives(plan, record.events) for span in life.late(plan.end_us)]
    windows = Windows(plan, late)
    return {
        place: spectrum
        for window in _windows(plan)
        for kind in range(len(plan.kinds))
        for place, spectrum in _of_kind(record, windows, window, kind)
        if spectrum.n
    }


def beside(
    base: Sequence[Mapping[Place, Spectrum]], new: Sequence[Mapping[Place, Spectrum]]
) -> list[Spectra]:
    """Window by window, of what both sides have seen; in the plan's order."""
    places = dict.fromkeys(place for run in (*base, *new) for place in run)
    found = []
    for place in places:
        old = [run[place] for run in base if place in run]
        fresh = [run[place] for run in new if place in run]
        if old and fresh:
            found.append(_beside(place, Spectrum.pooled(old), Spectrum.pooled(fresh)))
    return found


def _windows(plan: Plan) -> Iterator[str]:
    yield "steady"
    for name in dict.fromkeys(fault.pool or fault.fault for fault in plan.faults):
        yield f"fault:{name}"
    for name in dict.fromkeys(fault.pool or fault.fault for fault in plan.faults if fault.held):
        yield f"recovery:{name}"
    yield "run"


def _of_kind(
    record: Record, windows: Windows, window: str, kind: int
) -> Iterator[tuple[Place, Spectrum]]:
    table, request = record.table, record.plan.kinds[kind]
    rows = table.rows[table.rows[:, 0] == kind]
    inside = windows.mask(window, rows[:, 1], rows[:, 2])
    counts = table.row_counts[table.rows[:, 0] == kind][inside]
    bad = int(counts[:, [COLUMN[outcome] for outcome in BAD]].sum())
    ok = int(counts[:, COLUMN[Outcome.OK]].sum())
    for series in (Series.LATENCY, Series.TTFT):
        if series is Series.TTFT and not record.plan.streamed[kind]:
            continue
        sets = table.block(series, Outcome.OK, kind)
        places = table.sets[sets]
        mine = windows.mask(window, windows.first_slice[places[:, 3]], places[:, 4])
        dense = table.dense(sets, mine)
        silent = max(0, ok - int(dense.sum()))  # ok streams in which nothing ever came
        yield Place(window, request, str(series)), _sparse(dense, bad + silent)


def _sparse(dense: I64, infinite: int) -> Spectrum:
    index = np.flatnonzero(dense[:BUCKETS]).astype(np.int64)
    return Spectrum(index, dense[index], infinite)


def _beside(place: Place, base: Spectrum, new: Spectrum) -> Spectra:
    return Spectra(
        place.window,
        place.request,
        place.series,
        _percentiles(base),
        _percentiles(new),
        _largest(base, new),
    )


def _percentiles(spectrum: Spectrum) -> Percentiles:
    shown = [number(spectrum.quantile_ms(share)) for share in (0.5, 0.9, 0.99, 0.999)]
    return Percentiles(spectrum.n, spectrum.infinite, *shown)


def _largest(base: Spectrum, new: Spectrum) -> Largest | None:
    """None where nothing differs by more than the ranks of either side are unsure of: between two
    modes a percentile jumps, and that is no shift."""
    found: list[tuple[float, Largest]] = []
    for share in _GRID:
        old, fresh = (_around(side, share) for side in (base, new))
        if old is None or fresh is None:
            continue
        factor = max(fresh[0] / old[2], old[0] / fresh[2])  # between the near ends of both
        if factor > 1:
            ratio = number(fresh[1] / old[1])
            found.append((factor, Largest(share, number(old[1]), number(fresh[1]), ratio)))
    return max(found, key=lambda one: one[0])[1] if found else None


def _around(spectrum: Spectrum, share: float) -> tuple[float, float, float] | None:
    """A percentile between those whose ranks bound it at 90 %; None with too few beyond it."""
    n = spectrum.n
    if min(share, 1 - share) * n < _BEYOND:
        return None
    unsure = _Z * math.sqrt(share * (1 - share) / n)
    ends = [spectrum.quantile_ms(share + by) for by in (-unsure, 0.0, unsure)]
    low, middle, high = (value for value in ends if value is not None)
    return low, middle, high


def number(value: float | None) -> Number:
    """As JSON has it: "inf" and "-inf" for what has no number."""
    if value is None or math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value
