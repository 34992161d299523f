"""What an objective counts as bad, and what percentile it shows (DESIGN laws 4 and 6).

Every limit is a share of settled requests (ok, failed, timed out, abandoned, expired):

=============  =====================================================================
success        bad = not ok
complete       bad = not ok: a stream that failed is not complete, whatever the reason
latency        bad = not ok, or over the limit; also service_time
ttft           the same; an ok stream in which no content ever came is bad, too
tpot           ok requests with ≥ 2 output tokens and all not ok; bad as for latency
itl            a request weighs as one: bad = not ok + ok × the share of gaps over the limit,
               rounded up. Gaps of one stream share its fate and are no independent evidence,
               and ok requests beyond the number of gaps heard are none at all.
=============  =====================================================================

A value is over the limit if its HDR bucket lies above the limit's own bucket: with three digits a
value up to 0.1 % over still counts as within.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from survive.judge.dispersion import design_effect
from survive.judge.statistics import rank_interval
from survive.judge.verdict import Number
from survive.judge.windows import Mask, Windows
from survive.record.hdr import highest_of, index_of
from survive.record.samples import BAD, UNDECIDED, Outcome, Series
from survive.record.table import COLUMN, I64, Table
from survive.scenario.model import GAUGES, Metric, Objective

SERIES = {
    Metric.LATENCY: Series.LATENCY,
    Metric.SERVICE_TIME: Series.SERVICE_TIME,
    Metric.TTFT: Series.TTFT,
    Metric.ITL: Series.ITL,
    Metric.TPOT: Series.TPOT,
}
_BAD_COLUMNS = [COLUMN[outcome] for outcome in BAD]
_UNDECIDED_COLUMNS = [COLUMN[outcome] for outcome in UNDECIDED]


def allowed_share(objective: Objective) -> float:
    """The share of bad requests (findings, scrapes) that an objective allows."""
    if objective.metric is Metric.LEAKED:
        return objective.limit
    if objective.metric in GAUGES and objective.percentile is None:
        return 0.0  # in every scrape
    good = objective.limit if objective.percentile is None else objective.percentile
    return round(1 - good, 12)  # 1 − 0.99 is not 0.01 in binary


@dataclass(frozen=True, slots=True)
class Judged:
    """One cell's numbers."""

    n: int
    bad: int
    undecided: int  # unsent, in flight, lost: fates that nobody knows
    observed: Number
    observed_ok: Number
    low: Number
    high: Number


class Shares(Protocol):
    """How many requests count, and how many of them are bad."""

    def per_slice(self, window: str) -> tuple[I64, I64]:
        """See Tally."""

    def total(self, window: str) -> tuple[int, int]:
        """See Tally."""


@dataclass(frozen=True, slots=True)
class Place:
    """What went bad of one kind in one segment, of requests that crossed the same first mark.

    ``over``: (µs over the limit, how many) of what was ok; of gaps between tokens, requests that
    weigh as much.
    """

    segment: int
    crossed: int
    first_slice: int
    start_us: int
    end_us: int
    limit_us: int
    n: int  # all of them, good or bad
    not_ok: list[tuple[Outcome, int]]
    over: list[tuple[int, int]]


class Tally:
    """One objective on one kind: what every place of the run adds to it."""

    def __init__(self, table: Table, windows: Windows, objective: Objective, kind: int) -> None:
        self._table = table
        self._windows = windows
        self.kind = kind
        self.metric = objective.metric
        self._limit_us = round(objective.limit)
        mine = table.rows[:, 0] == kind
        counts = table.row_counts[mine]
        self._slice, self._crossed = table.rows[mine, 1], table.rows[mine, 2]
        self._ok = counts[:, COLUMN[Outcome.OK]]
        self._bad = counts[:, _BAD_COLUMNS]
        self._not_ok = counts[:, _BAD_COLUMNS].sum(axis=1)
        self._undecided = counts[:, _UNDECIDED_COLUMNS].sum(axis=1)
        series = SERIES.get(objective.metric)
        timed = series is not None and series is not Series.LATENCY
        self._measured = counts[:, COLUMN[series]] if series and timed else self._ok
        self._sets = table.block(series, "ok", kind) if series else slice(0, 0)
        places = table.sets[self._sets]
        self._set_slice = windows.first_slice[places[:, 3]]
        self._set_crossed = places[:, 4]
        self._over = self._over_limit()

    def _over_limit(self) -> I64:
        """Of each set, the values over the limit."""
        entries = self._table.entries(self._sets)
        return self._table.sums(self._sets, self._table.index[entries] > index_of(self._limit_us))

    def per_slice(self, window: str) -> tuple[I64, I64]:
        """(n, bad) of every slice, of requests in a window made of single slices."""
        rows, sets = self._masks(window)
        length = len(self._windows.starts)

        def by_slice(values: I64) -> I64:
            return np.bincount(self._slice[rows], weights=values[rows], minlength=length).astype(
                np.int64
            )

        over = np.bincount(
            self._set_slice[sets], weights=self._over[sets], minlength=length
        ).astype(np.int64)
        return self._share(
            by_slice(self._ok), by_slice(self._not_ok), by_slice(self._measured), over
        )

    def bad_places(self, window: str) -> Iterator[Place]:
        """What went bad in a window, place by place."""
        rows, sets = self._masks(window)
        fates: dict[tuple[int, int], I64] = {}
        segments = self._windows.segment_of(self._slice[rows]).tolist()
        settled = np.column_stack((self._ok, self._bad))[rows]
        for segment, crossed, one in zip(
            segments, self._crossed[rows].tolist(), settled, strict=True
        ):
            place = (segment, crossed)
            fates[place] = fates[place] + one if place in fates else one
        over = self._over_by_place(sets)
        starts, ends = self._windows.starts, self._windows.ends
        first_slices = self._windows.first_slice
        for (segment, crossed), found in sorted(fates.items(), key=lambda item: item[0]):
            first = int(first_slices[segment])
            last = int(first_slices[segment + 1]) if segment + 1 < len(first_slices) else len(ends)
            ok, *counts = found.tolist()
            yield Place(
                segment,
                crossed,
                first,
                int(starts[first]),
                int(ends[last - 1]),
                self._limit_us,
                ok + sum(counts),
                [(outcome, n) for outcome, n in zip(BAD, counts, strict=True) if n],
                over.get((segment, crossed), []),
            )

    def _over_by_place(self, sets: Mask) -> dict[tuple[int, int], list[tuple[int, int]]]:
        entries, owners = self._table.entries(self._sets), self._table.owners(self._sets)
        chosen = np.flatnonzero(
            (self._table.index[entries] > index_of(self._limit_us)) & sets[owners]
        )
        places = self._table.sets[self._sets][owners[chosen]][:, 3:5].tolist()
        weight = 1.0
        if self.metric is Metric.ITL:  # gaps: a request weighs as one
            gaps = int(self._measured.sum())
            weight = int(np.minimum(self._measured, self._ok).sum()) / max(1, gaps)
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        indices = self._table.index[entries][chosen].tolist()
        for place, index, n in zip(
            places, indices, self._table.count[entries][chosen].tolist(), strict=True
        ):
            by_us = highest_of(index) - self._limit_us
            found.setdefault((place[0], place[1]), []).append((by_us, math.ceil(n * weight)))
        return found

    def effect(self, window: str) -> float:
        """The design effect of the window's bad requests, by the table's segments."""
        n, bad = self.per_slice(window)  # of a segment that is no single slice: at its first
        at = self._windows.first_slice
        return design_effect(np.add.reduceat(n, at), np.add.reduceat(bad, at))

    def total(self, window: str) -> tuple[int, int]:
        """(n, bad) of a window."""
        rows, sets = self._masks(window)
        n, bad = self._share(
            self._ok[rows].sum(keepdims=True),
            self._not_ok[rows].sum(keepdims=True),
            self._measured[rows].sum(keepdims=True),
            self._over[sets].sum(keepdims=True),
        )
        return int(n[0]), int(bad[0])

    def judged(
        self, window: str, objective: Objective, interval: tuple[float, float], effect: float = 1.0
    ) -> Judged:
        """A cell's numbers; ``interval`` is that of the bad share, ``effect`` as in `decide`."""
        rows, _ = self._masks(window)
        n, bad = self.total(window)
        undecided = int(self._undecided[rows].sum())
        if n == 0:
            return Judged(0, 0, undecided, None, None, None, None)
        if objective.percentile is None:
            low, high = 1 - interval[1], 1 - interval[0]
            return Judged(n, bad, undecided, 1 - bad / n, None, low, high)
        ranks = _ranks(n, objective.percentile, effect)
        return self._percentile(window, n, bad, undecided, objective.percentile, ranks)

    def _percentile(
        self,
        window: str,
        n: int,
        bad: int,
        undecided: int,
        share: float,
        ranks: tuple[int, int],
    ) -> Judged:
        rows, sets = self._masks(window)
        values = self._table.dense(self._sets, sets)
        cumulative = np.cumsum(values)
        gone = int(self._not_ok[rows].sum()) + self._missing(rows)
        finite = n - gone
        low, high = ranks
        due = max(1, -int(-round(share * n, 9) // 1))

        def at_rank(rank: int) -> Number:
            """The rank-th best request; those that failed come last, at infinity."""
            if rank < 1 or rank > finite or not cumulative[-1]:
                return None if rank < 1 else "inf"
            return self._value_ms(cumulative, -(-rank * int(cumulative[-1]) // finite))

        of_ok = max(1, -int(-round(share * finite, 9) // 1))
        return Judged(
            n,
            bad,
            undecided,
            at_rank(due),
            at_rank(of_ok) if finite else None,
            at_rank(low),
            at_rank(high),
        )

    def _missing(self, rows: Mask) -> int:
        """Ok streams in which nothing ever came."""
        if self.metric is not Metric.TTFT:
            return 0
        return int((self._ok[rows] - self._measured[rows]).sum().clip(0))

    def _value_ms(self, cumulative: I64, rank: int) -> float:
        """The upper end of the bucket, as HDR tools print it; the limit's own bucket is no more
        than the limit, since it counts as within."""
        index = int(np.searchsorted(cumulative, rank, side="left"))
        top = highest_of(index)
        return (min(top, self._limit_us) if index == index_of(self._limit_us) else top) / 1000

    def _masks(self, window: str) -> tuple[Mask, Mask]:
        return (
            self._windows.mask(window, self._slice, self._crossed),
            self._windows.mask(window, self._set_slice, self._set_crossed),
        )

    def _share(self, ok: I64, not_ok: I64, measured: I64, over: I64) -> tuple[I64, I64]:
        """(n, bad) from sums over any places; see the module's table."""
        if self.metric in {Metric.SUCCESS, Metric.COMPLETE}:
            return ok + not_ok, not_ok
        if self.metric is Metric.TPOT:
            return measured + not_ok, not_ok + over
        if self.metric is Metric.ITL:
            gaps = np.maximum(measured, 1)
            heard = np.minimum(measured, ok)
            return heard + not_ok, not_ok - (-(over * heard) // gaps)
        missing = np.maximum(ok - measured, 0)
        return ok + not_ok, not_ok + over + missing


def _ranks(n: int, share: float, effect: float) -> tuple[int, int]:
    """The ranks that hold a percentile; clusters make them wider by what they take from n."""
    fewer = max(1, round(n / effect))
    low, high = rank_interval(fewer, share)
    if effect == 1.0:
        return low, high
    top = n + 1 if high > fewer else min(n, -(-high * n // fewer))
    return low * n // fewer, top
