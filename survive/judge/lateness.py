"""What of a cell's bad requests may be the harness's own doing (DESIGN §7; laws 2 and 8).

Only the harness's own lateness may remove a red, and a slow target is never excused: waiting for a
lane is the target's doing. So a bad request counts as ours only where what was taken from it can
be the difference:

====================  ========================================================================
over a time limit     it was sent late by as much as it is over; or the load stood still for as
                      much within its life
timed out, abandoned  it was sent late by a tenth of its time; or its deadline passed while the
                      load stood still (its answer may have lain there unread)
expired               it was due, and its deadline passed, while the load stood still
failed                it was sent 100 ms late: what falls due in a stall goes out as a herd
====================  ========================================================================

The record has lateness and fates of each place (slice, kind, first mark crossed), not of each
request. Sent late and bad are joined as often as can be; of what a stall may have touched, as many
as its share of the time says. What is left is the target's, and a red that stands on it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from survive.judge.load import LATE_LEAST, LATE_US, LONG_STALL_US
from survive.judge.metrics import Place, Shares, Tally
from survive.judge.windows import Windows
from survive.plan.model import Plan
from survive.record.hdr import highest_of, index_of
from survive.record.samples import Outcome, Series
from survive.record.table import COLUMN, I64, Table
from survive.scenario.model import Metric

F64 = npt.NDArray[np.float64]

HOLLOW_SHARE = 0.05  # sent over 100 ms late: from here on it is not the planned load
TAKEN = 0.1  # of its time until the deadline: with less than that gone, the target had its chance
_FROM_INTENDED = {Metric.LATENCY, Metric.TTFT}  # the times that contain the send lag
_BY_DEADLINE = (Outcome.TIMED_OUT, Outcome.ABANDONED)

Where = tuple[int, int]  # segment, crossed


@dataclass(frozen=True, slots=True)
class _Need:
    """So many bad requests of a place, and how late each must have been sent to be ours."""

    late_us: float
    n: int
    what: Outcome | None  # None = ok, but over the limit
    over_us: int = 0


class Lateness:
    """The harness's own lateness in a run; asked only about cells that are red."""

    def __init__(self, plan: Plan, table: Table, windows: Windows) -> None:
        self._plan, self._table, self._windows = plan, table, windows
        self._away = _Away(len(plan.kinds), table, windows)
        self._lags: dict[int, dict[Where, list[tuple[int, int]]]] = {}

    def ever(self) -> bool:
        """Anything at all was late by our own doing."""
        return self._away.ever or any(self._lags_of(kind) for kind in range(len(self._plan.kinds)))

    def share(self, kinds: Iterable[int], window: str) -> float:
        """Of a window's requests, those that were sent over 100 ms late; 0 if they are a few."""
        sent = late = 0
        for kind in kinds:
            sets = self._table.block(Series.SEND_LAG, "", kind)
            places = self._table.sets[sets]
            inside = self._windows.mask(
                window, self._windows.first_slice[places[:, 3]], places[:, 4]
            )
            long = self._table.index[self._table.entries(sets)] > index_of(LONG_STALL_US)
            sent += int(self._table.sums(sets)[inside].sum())
            late += int(self._table.sums(sets, long)[inside].sum())
        return late / sent if late >= LATE_LEAST else 0.0

    def without(self, tally: Tally) -> Shares:
        """The same tally without the requests that may be bad by our own doing."""
        return _Without(self, tally)

    def ours(self, tally: Tally, window: str) -> I64:
        """Of each slice, bad requests of a window that may be our doing."""
        ours: I64 = np.zeros(len(self._windows.starts), dtype=np.int64)
        if not 0 <= tally.kind < len(self._plan.kinds):
            return ours
        lags = self._lags_of(tally.kind)
        if not lags and not self._away.ever:
            return ours
        for place in tally.bad_places(window):
            ours[place.first_slice] += self._of_place(tally, place, lags)
        return ours

    def _lags_of(self, kind: int) -> dict[Where, list[tuple[int, int]]]:
        """(how late, how many) of what was sent late, by place; the least late first."""
        if kind not in self._lags:
            table, found = self._table, dict[Where, list[tuple[int, int]]]()
            sets = table.block(Series.SEND_LAG, "", kind)
            entries = table.entries(sets)
            late = np.flatnonzero(table.index[entries] > index_of(LATE_US))
            owners = table.owners(sets)[late]
            counts = table.count[entries][late].tolist()
            places = table.sets[sets][owners][:, 3:5].tolist()
            for index, n, place in zip(
                table.index[entries][late].tolist(), counts, places, strict=True
            ):
                found.setdefault((place[0], place[1]), []).append((highest_of(index), n))
            self._lags[kind] = found
        return self._lags[kind]

    def _of_place(
        self, tally: Tally, place: Place, lags: dict[Where, list[tuple[int, int]]]
    ) -> int:
        needs = sorted(self._needs(tally, place), key=lambda need: need.late_us)
        joined = _joined(lags.get((place.segment, place.crossed), []), needs)
        rest = [need.n - taken for need, taken in zip(needs, joined, strict=True)]
        stood = sum(
            self._stood(tally.kind, place, need, n) for need, n in zip(needs, rest, strict=True)
        )
        return sum(joined) + int(stood)

    def _needs(self, tally: Tally, place: Place) -> Iterator[_Need]:
        counts_lag = tally.metric in _FROM_INTENDED
        for over_us, n in place.over:
            yield _Need(over_us if counts_lag else np.inf, n, None, over_us)
        for outcome, n in place.not_ok:
            if outcome in _BY_DEADLINE:
                yield _Need(TAKEN * self._time_us(tally.kind, outcome), n, outcome)
            else:  # what expired was never sent
                yield _Need(LONG_STALL_US if outcome is Outcome.FAILED else np.inf, n, outcome)

    def _time_us(self, kind: int, outcome: Outcome | None) -> int:
        """From intended start to the deadline that ended it."""
        if outcome is Outcome.ABANDONED:
            return self._plan.gives_up_after_us or 0
        return self._plan.timeouts_us[kind] if outcome else self._plan.deadline_us(kind)

    def _stood(self, kind: int, place: Place, need: _Need, n: int) -> float:
        """How many of ``n`` such requests a stall of the load itself may have made bad."""
        away, span = self._away, (place.start_us, place.end_us)
        if not away.ever or need.what is Outcome.FAILED:
            return 0.0
        if need.what is None:
            life = (place.start_us, place.end_us + place.limit_us + need.over_us)
            return n * away.most(*life) if away.us(*life) >= need.over_us else 0.0
        unsent = need.what is Outcome.EXPIRED
        time_us = self._time_us(kind, None if unsent else need.what)
        at_end = away.share(span[0] + time_us, span[1] + time_us)
        # All that fell due in a stall longer than its time expired: a share of all, not of those.
        return min(n, place.n * min(at_end, away.share(*span))) if unsent else n * at_end


def _joined(lags: Sequence[tuple[int, int]], needs: Sequence[_Need]) -> list[int]:
    """Of each need (ascending), how many can be joined with a lag (ascending) that is enough: the
    most that can be in all, as each lag takes the least of what is left."""
    taken, at = [0] * len(needs), 0
    for lag_us, n in lags:
        while n and at < len(needs) and needs[at].late_us <= lag_us:
            fit = min(n, needs[at].n - taken[at])
            taken[at] += fit
            n -= fit
            at += taken[at] == needs[at].n
    return taken


class _Without:
    """See Lateness.without."""

    def __init__(self, lateness: Lateness, tally: Tally) -> None:
        self._lateness, self._tally = lateness, tally
        self._known: dict[str, I64] = {}

    def ours(self, window: str) -> I64:
        if window not in self._known:
            self._known[window] = self._lateness.ours(self._tally, window)
        return self._known[window]

    def per_slice(self, window: str) -> tuple[I64, I64]:
        """See Tally."""
        n, bad = self._tally.per_slice(window)
        ours = np.minimum(self.ours(window), bad)
        return n - ours, bad - ours

    def total(self, window: str) -> tuple[int, int]:
        """See Tally."""
        n, bad = self._tally.total(window)
        ours = min(int(self.ours(window).sum()), bad)
        return n - ours, bad - ours


class _Away:
    """Which share of the load's workers stood still, when."""

    def __init__(self, harness: int, table: Table, windows: Windows) -> None:
        self._starts, ends = windows.starts, windows.ends
        self._edges = np.append(windows.starts, ends[-1:]).astype(np.float64)
        mine = table.rows[:, 0] == harness
        where = table.rows[mine, 1]
        workers = int(table.row_counts[mine, COLUMN[Series.IDLE]].max(initial=1))
        stalls = np.zeros(len(ends))
        np.add.at(stalls, where, table.row_counts[mine, COLUMN[Series.AWAY]])
        lengths = (ends - windows.starts).astype(np.float64)
        us = np.minimum(_spread(stalls, table, windows, harness) / workers, lengths)
        self._shares: F64 = us / np.maximum(lengths, 1.0)
        self._before = np.append(0.0, np.cumsum(us))
        self.ever = bool(us.any())

    def us(self, start_us: int, end_us: int) -> float:
        """Time that the load stood still in a span."""
        until = np.interp((start_us, end_us), self._edges, self._before)
        return float(until[1] - until[0])

    def share(self, start_us: int, end_us: int) -> float:
        """The same as a share of the span."""
        return self.us(start_us, end_us) / max(1, end_us - start_us)

    def most(self, start_us: int, end_us: int) -> float:
        """The same of the slice of a span in which it is highest."""
        first, after = np.searchsorted(self._starts, (start_us, end_us), side="right").tolist()
        return float(self._shares[max(0, first - 1) : max(first, after)].max())


def _spread(stalls: F64, table: Table, windows: Windows, harness: int) -> F64:
    """µs of every slice. Where the table holds them by the minute, as its slices had stalls."""
    sets = table.block(Series.AWAY, "", harness)
    us = np.zeros(len(windows.first_slice))
    entries = table.entries(sets)
    values = [highest_of(int(i)) for i in table.index[entries]]
    segments = table.sets[sets][:, 3][table.owners(sets)]
    np.add.at(us, segments, np.array(values, dtype=np.float64) * table.count[entries])
    of = windows.segment_of(np.arange(len(stalls), dtype=np.int64))
    in_segment = np.bincount(of, weights=stalls, minlength=len(us))
    spread: F64 = us[of] * stalls / np.maximum(in_segment[of], 1.0)
    return spread
