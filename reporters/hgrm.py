"""``hgrm``: a percentile distribution as HdrHistogram prints it, for the tools that plot those.

One file holds one distribution: a series (``latency`` if nothing is asked for) of one kind of
request or of all, in one window (``run``). In milliseconds; ``tokens`` as they are.

Where requests failed the percentiles are those of all requests and the rows end where the good
ones do: 3 % failed, and the last row stands at 0.97. So a percentile read here is the one that the
judge saw, and refusing flatters nobody; what is missing above is infinite. Mean, StdDeviation, Max
and Total count are of the good ones, as they were the only ones to end.

The levels of the rows and the layout are those of HdrHistogram's ``outputPercentileDistribution``
with five ticks for each half of the way to 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from survive.catalog import nearest
from survive.errors import UsageError
from survive.judge.verdict import Verdict
from survive.record.hdr import BUCKETS, DIGITS, highest_of, lowest_of
from survive.record.reader import Record
from survive.record.samples import UNDECIDED, Series
from survive.record.table import COLUMN

from . import words
from .glyphs import UNICODE
from .measured import Measured

_STREAMED = (Series.TTFT, Series.ITL, Series.TPOT, Series.TOKENS)
_CHOICES = (
    *(Series.LATENCY, Series.SERVICE_TIME, *_STREAMED),
    *(Series.LANE_WAIT, Series.SEND_LAG, Series.ATTEMPT),
)
_TICKS = 5
_SUB_BUCKETS = 2048
_BUCKETS = BUCKETS // (_SUB_BUCKETS // 2) - 1


@dataclass(frozen=True, slots=True)
class HgrmReporter:
    """``survive report RUN --format hgrm [--request R] [--series S] [--window W]``."""

    request: str = ""  # "" = all together
    series: Series = Series.LATENCY
    window: str = "run"

    def choose(self, request: str = "", series: str = "", window: str = "") -> HgrmReporter:
        """The same for another distribution; "" leaves what was. UsageError: no such series."""
        if series and series not in _CHOICES:
            raise UsageError(
                f"there is no series {series!r}",
                hint=nearest(series, [str(one) for one in _CHOICES]),
            )
        return HgrmReporter(
            request or self.request,
            Series(series) if series else self.series,
            window or self.window,
        )

    def render(self, record: Record, verdict: Verdict) -> bytes:
        """The distribution. UsageError, RecordError: the run has no such request or window."""
        found = _gather(record, self)
        scale = 1 if self.series is Series.TOKENS else 1000
        lines = [
            f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}\n",
            *_rows(found, scale),
            *_footer(found, scale),
            *_told(record, self, found),
        ]
        return "".join(f"{line}\n" for line in lines).encode()


reporter = HgrmReporter()


@dataclass(frozen=True, slots=True)
class _Found:
    """A distribution; of gaps between tokens there are more values than requests that have some."""

    counts: Sequence[tuple[int, int]]  # (bucket, count), ascending, none of them 0
    finite: int  # requests that have values
    gone: int  # requests that have none, since they failed
    unknown: int = 0  # nobody knows their fate

    @property
    def total(self) -> int:
        """Values."""
        return sum(count for _, count in self.counts)


def _gather(record: Record, choice: HgrmReporter) -> _Found:
    measured = Measured(record)
    kinds = _kinds(record, choice)
    dense = np.zeros(BUCKETS, dtype=np.int64)
    finite = gone = 0
    for kind in kinds:
        spread = measured.spread(choice.series, kind, choice.window)
        dense[spread.values] += np.diff(spread.cumulative, prepend=0)
        finite, gone = finite + spread.finite, gone + spread.gone
    buckets = np.flatnonzero(dense)
    counts = list(zip(buckets.tolist(), dense[buckets].tolist(), strict=True))
    return _Found(counts, finite, gone, _unknown(measured, kinds, choice.window))


def _unknown(measured: Measured, kinds: Sequence[int], window: str) -> int:
    rows = measured.table.rows
    inside = measured.windows.mask(window, rows[:, 1], rows[:, 2]) & np.isin(rows[:, 0], kinds)
    columns = [COLUMN[outcome] for outcome in UNDECIDED]
    return int(measured.table.row_counts[inside][:, columns].sum())


def _kinds(record: Record, choice: HgrmReporter) -> list[int]:
    names = record.plan.kinds
    if choice.request and choice.request not in names:
        raise UsageError(
            f"this run has no request {choice.request!r}", hint=nearest(choice.request, names)
        )
    kinds = [
        at
        for at, (name, streamed) in enumerate(zip(names, record.plan.streamed, strict=True))
        if choice.request in {"", name} and (streamed or choice.series not in _STREAMED)
    ]
    if not kinds:
        whose = choice.request or "no request"
        raise UsageError(f"{choice.series} is of streams, and {whose} is none of those")
    return kinds


def _rows(found: _Found, scale: int) -> Iterator[str]:
    """A row for each level, and one for where the values end: 1, if no request failed."""
    level, seen, last = 0.0, 0, found.total
    whole = last * (found.finite + found.gone)  # a percentile is one among all requests
    for bucket, count in found.counts:
        seen += count
        while 100.0 * (seen * found.finite) / whole >= level:
            row = _row(bucket, level, seen, scale)
            yield f"{row} {1 / (1 - level / 100):14.2f}"
            level += 100.0 / _ticks(level)
            if seen == last:  # the row of the end says the rest
                break
    if found.counts:
        yield _row(found.counts[-1][0], 100.0 * (last * found.finite) / whole, last, scale)


def _row(bucket: int, level: float, seen: int, scale: int) -> str:
    return f"{highest_of(bucket) / scale:12.{DIGITS}f} {level / 100:2.12f} {seen:10d}"


def _ticks(level: float) -> int:
    """Into how many steps 0..100 is divided at a level: twice as many at each half of the way."""
    halves = int(math.log(100.0 / (100.0 - level)) / math.log(2))
    return _TICKS << (halves + 1)


def _footer(found: _Found, scale: int) -> Iterator[str]:
    """HdrHistogram's own: each value counts as the middle of its bucket."""
    total = found.total
    middles = [(_middle(bucket), count) for bucket, count in found.counts]
    mean = sum(value * count for value, count in middles) / total if total else 0.0
    squares = sum((value - mean) ** 2 * count for value, count in middles)
    deviation = math.sqrt(squares / total) if total else 0.0
    most = highest_of(found.counts[-1][0]) if found.counts else 0
    yield (
        f"#[Mean    = {mean / scale:12.{DIGITS}f}, "
        f"StdDeviation   = {deviation / scale:12.{DIGITS}f}]"
    )
    yield f"#[Max     = {most / scale:12.{DIGITS}f}, Total count    = {total:12d}]"
    yield f"#[Buckets = {_BUCKETS:12d}, SubBuckets     = {_SUB_BUCKETS:12d}]"


def _middle(bucket: int) -> int:
    low = lowest_of(bucket)
    return low + ((highest_of(bucket) - low + 1) >> 1)


def _told(record: Record, choice: HgrmReporter, found: _Found) -> Iterator[str]:
    """Comments, which every reader passes over: what this is, and what it is not."""
    plan = record.plan
    whose = choice.request or "all requests"
    unit = "" if choice.series is Series.TOKENS else " in ms"
    said = f"{choice.series}{unit} of {whose} during {choice.window}"
    yield _comment(f"survive: {said}; {plan.name}, seed {plan.seed}")
    if found.gone:
        yield _comment(
            f"{words.count(found.gone)} of {words.count(found.finite + found.gone)} failed, their "
            f"{choice.series} is infinite: the percentiles are of all, the rest is of the others"
        )
    if found.unknown:
        yield _comment(f"the fate of {words.count(found.unknown)} is not known")
    if plan.closed:
        yield _comment(words.CLOSED)


def _comment(text: str) -> str:
    return f"# {UNICODE.clean(text)}"
