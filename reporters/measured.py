"""What a page draws, taken from a record's table: columns of time, spreads, heat, classes.

Windows are the judge's own (`survive.judge.windows`), so a curve and a cell speak of the same
requests. A failed request is over every latency: it stands at infinity, never left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from survive.judge.faults import lives
from survive.judge.verdict import Number
from survive.judge.windows import Windows
from survive.plan.model import Plan
from survive.record.hdr import BUCKETS, highest_of, lowest_of
from survive.record.rates import mean_rps
from survive.record.reader import Record
from survive.record.samples import BAD, Outcome, Series
from survive.record.table import COLUMN, I64, OUTCOME_CODE, segments_of
from survive.units import SECOND

MOST_COLUMNS = 240
_BAD = [COLUMN[outcome] for outcome in BAD]
# Not of good requests alone, or no time that a failure could be over: nobody is missing from them.
_APART = frozenset({Series.LANE_WAIT, Series.SEND_LAG, Series.ATTEMPT, Series.TOKENS})
_SENT_AND_BAD = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.ABANDONED, Outcome.EXPIRED)


@dataclass(frozen=True, slots=True)
class Columns:
    """Time in columns of at least a second, none shorter than the table's own grain.

    ``edges_us`` has one more entry than there are columns.
    """

    edges_us: tuple[int, ...]
    of_segment: I64
    of_slice: I64

    @property
    def count(self) -> int:
        """How many."""
        return len(self.edges_us) - 1

    def span_s(self, column: int) -> float:
        """How long one is."""
        return (self.edges_us[column + 1] - self.edges_us[column]) / SECOND


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution with what never came: ``finite`` requests have values, ``gone`` have none.

    ``values`` are the bucket indices that were hit, ascending; ``cumulative`` their counts added
    up. Gaps between tokens are more than requests: a rank among requests is scaled to them.
    """

    finite: int
    gone: int
    values: I64
    cumulative: I64

    @property
    def n(self) -> int:
        """Requests."""
        return self.finite + self.gone

    def at(self, share: float) -> Number:
        """The percentile in ms, "inf" if failures reach it, None if there are no requests."""
        if not self.n:
            return None
        rank = max(1, math.ceil(round(share * self.n, 9)))
        if rank > self.finite or not len(self.cumulative):
            return "inf"
        due = -(-rank * int(self.cumulative[-1]) // self.finite)
        return highest_of(int(self.values[np.searchsorted(self.cumulative, due)])) / 1000

    def most(self) -> Number:
        """The greatest value that was measured, in ms; failures apart."""
        return highest_of(int(self.values[-1])) / 1000 if len(self.values) else None


@dataclass(frozen=True, slots=True, eq=False)
class Heat:
    """Requests per second by column and row; row 0 holds the least values.

    ``low_ms`` and ``high_ms`` are the ends of the rows, which are equal on a logarithmic scale;
    ``gone`` is the share of requests of each column that never came (NaN: no request at all).
    """

    low_ms: float
    high_ms: float
    density: npt.NDArray[np.float64]  # [column][row]
    gone: npt.NDArray[np.float64]
    p50: tuple[Number, ...]
    p99: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Class:
    """Bad requests of one kind and one class in one window; ``n`` = settled there, good or bad."""

    window: str
    kind: str
    why: str
    bad: int
    n: int


class Measured:
    """One record, seen through columns and windows."""

    def __init__(self, record: Record) -> None:
        self.plan, self.table = record.plan, record.table
        self.lives = lives(record.plan, record.events)
        late = [span for life in self.lives for span in life.late(record.plan.end_us)]
        self.windows = Windows(record.plan, late)
        self.columns = self._columns()

    def _columns(self) -> Columns:
        least_us = max(SECOND, self.plan.end_us / MOST_COLUMNS)
        starts = self.windows.starts[self.windows.first_slice].tolist()
        edges: list[int] = []
        column = []
        for start_us in starts:
            if not edges or start_us >= edges[-1] + least_us:
                edges.append(start_us)
            column.append(len(edges) - 1)
        of_segment = np.array(column, dtype=np.int64)
        return Columns((*edges, self.plan.end_us), of_segment, of_segment[segments_of(self.plan)])

    # ------------------------------------------------------------------ by time

    def planned(self) -> list[float]:
        """Planned arrivals a second, by column."""
        pairs = itertools.pairwise(self.columns.edges_us)
        return [mean_rps(self.plan, start, end) for start, end in pairs]

    def counted(self, names: Sequence[Outcome | Series], kind: int | None = None) -> I64:
        """Samples of these outcomes or series by column of the intended start."""
        rows = self.table.rows
        last = len(self.plan.kinds)
        mine = rows[:, 0] < last if kind is None else rows[:, 0] == kind
        counts = self.table.row_counts[mine][:, [COLUMN[name] for name in names]].sum(axis=1)
        at = self.columns.of_slice[rows[mine, 1]]
        return np.bincount(at, weights=counts, minlength=self.columns.count).astype(np.int64)

    def per_second(self, names: Sequence[Outcome | Series]) -> list[float]:
        """The same as a rate."""
        counts = self.counted(names).tolist()
        return [count / self.columns.span_s(at) for at, count in enumerate(counts)]

    def good_share(self) -> list[float | None]:
        """ok ÷ settled by column; None where nothing was settled."""
        ok, bad = self.counted([Outcome.OK]).tolist(), self.counted(BAD).tolist()
        return [
            good / (good + other) if good + other else None
            for good, other in zip(ok, bad, strict=True)
        ]

    def heat(self, series: Series, kinds: Sequence[int], rows: int, least: Sequence[float]) -> Heat:
        """One time of some kinds over the run. ``least``: values (ms) that must be in sight."""
        column, index, count = self._entries(series, kinds, str(Outcome.OK))
        in_sight = [*least]
        if len(index):
            ends = (lowest_of(int(index.min())), highest_of(int(index.max())))
            in_sight += [max(1, end) / 1000 for end in ends]
        low, high = (min(in_sight), max(in_sight)) if in_sight else (1.0, 10.0)
        low, high = low / 1.1, max(high * 1.1, low * 4)
        row = _rows(low, high, rows)[index]
        spans = np.diff(np.array(self.columns.edges_us)) / SECOND
        cells = np.bincount(
            column * rows + row, weights=count, minlength=self.columns.count * rows
        ).reshape(-1, rows)
        finite, gone = self._fates(series, kinds)
        with np.errstate(invalid="ignore"):
            lost = gone / (finite + gone)
        p50, p99 = zip(*self._percentiles(column, index, count, finite, gone), strict=True)
        return Heat(low, high, cells / spans[:, None], lost, p50, p99)

    def lag(self) -> list[Number]:
        """The 99th percentile of send lag by column."""
        entries = self._entries(Series.SEND_LAG, range(len(self.plan.kinds)), "")
        sent = self.counted([Series.SEND_LAG])
        return [p99 for _, p99 in self._percentiles(*entries, sent, np.zeros_like(sent))]

    def _entries(self, series: Series, kinds: Sequence[int], outcome: str) -> tuple[I64, I64, I64]:
        """(column, bucket, count) of every entry, sorted by column and bucket."""
        parts = []
        for kind in kinds:
            sets = self.table.block(series, outcome, kind)
            entries = self.table.entries(sets)
            column = self.columns.of_segment[self.table.sets[sets, 3]][self.table.owners(sets)]
            parts.append((column, self.table.index[entries], self.table.count[entries]))
        if not parts:
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing
        joined = [np.concatenate(part).astype(np.int64) for part in zip(*parts, strict=True)]
        order = np.lexsort((joined[1], joined[0]))
        return joined[0][order], joined[1][order], joined[2][order]

    def _fates(self, series: Series, kinds: Sequence[int]) -> tuple[I64, I64]:
        """(requests with a value, requests without) by column."""
        nothing = np.zeros(self.columns.count, dtype=np.int64)
        ok = sum((self.counted([Outcome.OK], kind) for kind in kinds), nothing)
        bad = sum((self.counted(BAD, kind) for kind in kinds), nothing)
        measured = ok
        if series is not Series.LATENCY:
            measured = sum((self.counted([series], kind) for kind in kinds), nothing)
        return _finite(series, ok, measured, bad)

    def _percentiles(
        self, column: I64, index: I64, count: I64, finite: I64, gone: I64
    ) -> Iterator[tuple[Number, Number]]:
        ends = np.searchsorted(column, np.arange(self.columns.count + 1))
        for at in range(self.columns.count):
            mine = slice(int(ends[at]), int(ends[at + 1]))
            spread = Spread(int(finite[at]), int(gone[at]), index[mine], np.cumsum(count[mine]))
            yield spread.at(0.5), spread.at(0.99)

    # ---------------------------------------------------------------- by window

    def spread(self, series: Series, kind: int, window: str) -> Spread:
        """One time of one kind in one window."""
        table, first = self.table, self.windows.first_slice
        of_all = series in _APART and series is not Series.TOKENS
        sets = table.block(series, "" if of_all else str(Outcome.OK), kind)
        places = table.sets[sets]
        inside = self.windows.mask(window, first[places[:, 3]], places[:, 4])
        dense = table.dense(sets, inside) if len(places) else np.zeros(BUCKETS, dtype=np.int64)
        values = np.flatnonzero(dense).astype(np.int64)
        rows = table.rows[:, 0] == kind
        rows[rows] = self.windows.mask(window, table.rows[rows, 1], table.rows[rows, 2])
        counts = table.row_counts[rows].sum(axis=0)
        ok, bad = counts[COLUMN[Outcome.OK]], counts[_BAD].sum()
        measured = ok if series is Series.LATENCY else counts[COLUMN[series]]
        finite, gone = _finite(series, ok, measured, bad)
        return Spread(int(finite), int(gone), values, np.cumsum(dense[values]))

    def classes(self, window: str) -> Iterator[Class]:
        """Why requests of a window went bad, by kind, most first."""
        for kind, name in enumerate(self.plan.kinds):
            rows = self.table.rows[:, 0] == kind
            rows[rows] = self.windows.mask(
                window, self.table.rows[rows, 1], self.table.rows[rows, 2]
            )
            counts = self.table.row_counts[rows].sum(axis=0)
            found = self._whys(window, kind)
            for outcome in _SENT_AND_BAD[1:]:
                found[str(outcome)] = int(counts[COLUMN[outcome]])
            # What failed and was filed under no class.
            named = sum(found[why] for why in found if why not in _SENT_AND_BAD)
            found["failed"] = int(counts[COLUMN[Outcome.FAILED]]) - named
            settled = int(counts[COLUMN[Outcome.OK]] + counts[_BAD].sum())
            for why, bad in sorted(found.items(), key=lambda item: (-item[1], item[0])):
                if bad > 0:
                    yield Class(window, name, why, bad, settled)

    def _whys(self, window: str, kind: int) -> dict[str, int]:
        why = self.table.why
        mine = why[(why[:, 0] == kind) & (why[:, 3] == OUTCOME_CODE[Outcome.FAILED])]
        inside = self.windows.mask(window, self.windows.first_slice[mine[:, 1]], mine[:, 2])
        found: dict[str, int] = {}
        for *_, name, n in mine[inside].tolist():
            found[self.table.why_names[name]] = found.get(self.table.why_names[name], 0) + n
        return found

    def spans(self, window: str) -> list[tuple[int, int]]:
        """Where a window lies in time, as [start, end) in µs."""
        chosen = np.flatnonzero(self.windows.slices_of(window))
        if not len(chosen):
            return []
        breaks = np.flatnonzero(np.diff(chosen) > 1)
        first = chosen[np.concatenate(([0], breaks + 1))]
        last = chosen[np.concatenate((breaks, [len(chosen) - 1]))]
        starts, ends = self.windows.starts[first].tolist(), self.windows.ends[last].tolist()
        return list(zip(starts, ends, strict=True))


def pools(plan: Plan) -> dict[str, list[str]]:
    """The faults of a plan by the name that they are shown under: repeats of one share theirs."""
    found: dict[str, list[str]] = {}
    for window in plan.faults:
        found.setdefault(window.pool or window.fault, []).append(window.fault)
    return found


def held(plan: Plan, name: str) -> bool:
    """Whether a fault, or the repeats that share a name, have a recovery of their own."""
    return any(window.held for window in plan.faults if name in (window.fault, window.pool))


def _finite(series: Series, ok: I64, measured: I64, bad: I64) -> tuple[I64, I64]:
    """(requests with a value, without), as the judge counts them (`survive.judge.metrics`)."""
    if series in _APART:
        return measured, bad * 0
    if series is Series.TPOT:
        return measured, bad
    heard = np.minimum(measured, ok)
    if series is Series.ITL:
        return heard, bad
    return heard, bad + ok - heard


def _rows(low_ms: float, high_ms: float, rows: int) -> I64:
    """The row of every bucket."""
    part = np.log(np.maximum(_tops_ms(), low_ms) / low_ms) / math.log(high_ms / low_ms)
    return np.clip(part * rows, 0, rows - 1).astype(np.int64)


@cache
def _tops_ms() -> npt.NDArray[np.float64]:
    return np.fromiter((highest_of(index) for index in range(BUCKETS)), np.float64) / 1000
