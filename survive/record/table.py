"""``table.npz``: what the judge reads, built from the same deltas as ``latency.hlog``.

Columns, not objects: a 24-hour run must be judged in seconds. It holds

- *rows*: slice × kind × crossed → the number of samples of every outcome and series;
- *sets*: segment × kind × crossed × series × outcome → a merged sparse histogram;
- *who* and *why*: segment × kind × crossed × outcome × name → requests;
- *chart*: second × kind → p50 and p99 of latency, failures as +infinity, for pictures only.

A segment is a run of slices that no window divides: between all cuts, phase ends and minutes, and
every slice by itself inside fault and recovery windows, where recovery is looked for slice by
slice. Phases of up to ten minutes are single slices, too: clusters of bad seconds and the way back
from a step of load are seen in them; a day's worth of such sets would not fit. So any limit can be
judged after the run, and none needs to be known while recording.

The order of deltas changes nothing, with one exception: chart percentiles of a second are fixed
once the run is past its largest timeout by half a minute; a delta later than that is counted
everywhere else.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from survive.errors import RecordError
from survive.plan.model import Plan
from survive.record.hdr import BUCKETS, highest_of
from survive.record.hlog import read_hlog
from survive.record.samples import BAD, HARNESS, Counts, Key, Outcome, Series
from survive.units import SECOND

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U16 = npt.NDArray[np.uint16]

VERSION = 2
OUTCOMES = tuple(Outcome)
COUNTED = tuple(series for series in Series if series is not Series.LATENCY)
COLUMN: dict[str, int] = {
    str(name): at for at, name in enumerate((*OUTCOMES, *COUNTED))
}  # of Table.row_counts
SERIES = tuple(Series)
OUTCOME_CODE = {"": 0, **{str(outcome): at for at, outcome in enumerate(OUTCOMES, 1)}}

FAILURE = BUCKETS  # the bucket of +infinity, in charts: failures are over every latency
INFINITE = -1  # how a chart percentile says so
_CHART_SLACK_S = 30
_AFTER_ALL = 1 << 30  # in place of the number of kinds, while they may become more
_OPEN_SEGMENTS = 8  # sets of older segments are packed; a late delta unpacks by merging
_MINUTE_US = 60 * SECOND
FINE_US = 10 * _MINUTE_US  # a phase no longer than this is kept slice by slice
_MOST_FINE = 20  # such phases; a day that is made of hundreds is kept by the minute
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    AttributeError,
    struct.error,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
)


def segments_of(plan: Plan) -> I64:
    """The segment of every slice, ascending from 0."""
    starts = np.array([start for start, _ in plan.slices], dtype=np.int64)
    phase = phases_of(plan, starts)
    minute = starts // _MINUTE_US
    single = starts >= plan.end_us - max(plan.timeouts_us, default=0)
    short = np.array([p.end_us - p.start_us <= FINE_US for p in plan.phases], dtype=np.bool_)
    if short.sum() <= _MOST_FINE:
        single |= short[phase]
    for fault in plan.faults:
        single |= (starts >= fault.inject_us) & (starts < fault.recovery_end_us)
    cut = single.copy()
    cut[1:] |= single[:-1] | (phase[1:] != phase[:-1]) | (minute[1:] != minute[:-1])
    cut[:1] = False
    return np.cumsum(cut, dtype=np.int64)


def phases_of(plan: Plan, times_us: I64) -> I64:
    """The phase (index) that is on at each time."""
    begins = np.array([phase.start_us for phase in plan.phases], dtype=np.int64)
    found: I64 = np.searchsorted(begins, times_us, side="right").astype(np.int64) - 1
    return found


def _ints(values: Iterable[tuple[int, ...]], width: int) -> I64:
    return np.array(sorted(values), dtype=np.int64).reshape(-1, width)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """See the module. Kinds are indices into ``plan.kinds``; ``len(plan.kinds)`` is the harness
    (in ``chart``: all kinds pooled). ``crossed`` is −1 or an index into ``plan.marks``.

    ``rows``: columns kind, slice, crossed, sorted; ``row_counts``: one column per COLUMN.
    ``sets``: columns series, outcome (OUTCOME_CODE), kind, segment, crossed, sorted; entries of
    set i are ``index/count[ends[i-1]:ends[i]]``. ``who``/``why``: columns kind, segment, crossed,
    outcome, name, requests. ``chart``: columns second, kind, p50 µs, p99 µs.
    """

    rows: I64
    row_counts: I64
    sets: I64
    ends: I64
    index: U16
    count: npt.NDArray[np.integer]  # as narrow as its largest value allows, on disk and here
    who: I64
    who_names: tuple[str, ...]
    why: I64
    why_names: tuple[str, ...]
    chart: I64

    def total(self, column: Outcome | Series, kind: int | None = None) -> int:
        """All samples of one outcome or series of the run, of one kind or of all."""
        values = self.row_counts[:, COLUMN[column]]
        return int(values.sum() if kind is None else values[self.rows[:, 0] == kind].sum())

    def block(self, series: Series, outcome: str, kind: int) -> slice:
        """The sets of one series, outcome and kind: they lie together."""
        wanted = (SERIES.index(series), OUTCOME_CODE[outcome], kind)
        low, high = 0, len(self.sets)
        for column, value in enumerate(wanted):
            part = self.sets[low:high, column]
            low, high = (
                low + int(np.searchsorted(part, value, side="left")),
                low + int(np.searchsorted(part, value, side="right")),
            )
        return slice(low, high)

    def entries(self, sets: slice) -> slice:
        """Where the entries of adjacent sets lie in ``index`` and ``count``."""
        return slice(
            int(self.ends[sets.start - 1]) if sets.start else 0,
            int(self.ends[sets.stop - 1]) if sets.stop else 0,
        )

    def owners(self, sets: slice) -> I64:
        """For each entry of adjacent sets, which of them it is of (0 = the first)."""
        sizes = self._sizes(sets)
        return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)

    def _sizes(self, sets: slice) -> I64:
        first = int(self.ends[sets.start - 1]) if sets.start else 0
        return np.diff(self.ends[sets], prepend=first)

    def sums(self, sets: slice, chosen: npt.NDArray[np.bool_] | None = None) -> I64:
        """Of each of adjacent sets, its total; ``chosen`` picks among their entries."""
        entries = self.entries(sets)
        if sets.start == sets.stop:
            return np.zeros(0, dtype=np.int64)
        counts = self.count[entries]
        picked = counts if chosen is None else np.where(chosen, counts, counts.dtype.type(0))
        begins = np.concatenate(([entries.start], self.ends[sets][:-1])) - entries.start
        total: I64 = np.add.reduceat(picked, begins, dtype=np.int64)  # no set is empty
        return total

    def dense(self, sets: slice, chosen: npt.NDArray[np.bool_]) -> I64:
        """The chosen of adjacent sets added up: a count for every bucket."""
        entries = self.entries(sets)
        mine = np.repeat(chosen, self._sizes(sets))
        added = np.bincount(
            self.index[entries][mine], weights=self.count[entries][mine], minlength=BUCKETS
        )
        return added.astype(np.int64)  # exact: counts stay far below 2^53

    def same(self, other: Table) -> bool:
        """Equal to the last count."""
        return all(
            np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def save(self, path: Path, seals: dict[str, str]) -> None:
        """Write, whole or not at all. ``seals`` name the files that belong to this table."""
        data = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        for name in ("who_names", "why_names"):
            data[name] = np.array(data[name], dtype=np.str_)
        data = {name: _narrow(values) for name, values in data.items()}
        data["version"] = np.array(VERSION)
        data["seals"] = np.array([f"{key}={seals[key]}" for key in sorted(seals)], dtype=np.str_)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez_compressed(file, **data)  # type: ignore[arg-type]
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> tuple[Table, dict[str, str]]:
        """The table and its seals. RecordError if missing, damaged or of another version."""
        try:
            stream = io.BytesIO(path.read_bytes())
            with zipfile.ZipFile(stream) as archive:  # numpy parses before it checks sums
                if broken := archive.testzip():
                    raise ValueError(f"{broken} does not match its checksum")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as stored:
                if int(stored["version"]) != VERSION:
                    raise RecordError(f"{path} has version {int(stored['version'])}, not {VERSION}")
                data = {f.name: stored[f.name] for f in fields(cls)}
                seals = dict(str(seal).split("=", 1) for seal in stored["seals"])
        except FileNotFoundError as error:
            raise RecordError(
                f"{path} is missing: the run did not end",
                hint="--from-hlog judges what latency.hlog holds",
            ) from error
        except _DAMAGE as error:
            raise RecordError(f"{path} is damaged: {error}") from error
        for name in ("who_names", "why_names"):
            data[name] = tuple(str(value) for value in data[name])
        wide = {
            name: values
            if isinstance(values, tuple) or name in {"index", "count"}
            else values.astype(np.int64)
            for name, values in data.items()
        }
        wide["row_counts"] = _as_wide_as_now(wide["row_counts"])
        return cls(**wide), seals

    @classmethod
    def from_hlog(cls, path: Path, plan: Plan, *, whole: bool = True) -> Table:
        """The same table from the interval log. RecordError if the log is not this plan's."""
        builder = TableBuilder(plan)
        slices = {start: at for at, (start, _) in enumerate(plan.slices)}
        for start_us, end_us, tag, counts in read_hlog(path, whole=whole):
            at = slices.get(start_us, -1)
            if at < 0 or plan.slices[at][1] != end_us:
                raise RecordError(f"{path}: the plan has no slice at {start_us} µs")
            try:
                builder.add(Key.from_tag(at, tag), counts)
            except ValueError as error:
                raise RecordError(f"{path}: tag {tag!r} is not of this plan: {error}") from error
        return builder.finish()


def _as_wide_as_now(row_counts: I64) -> I64:
    """Columns are only ever added at the end; an older table counted none of those."""
    missing = len(COLUMN) - row_counts.shape[1]
    return np.pad(row_counts, ((0, 0), (0, max(0, missing))))


def _narrow(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Counts as narrow as they fit, everything else in 32 bits where those hold it."""
    if values.dtype == np.int32 and values.size:
        return values.astype(np.min_scalar_type(int(values.max())))
    if values.dtype == np.int64 and (not values.size or np.abs(values).max() < 2**31):
        return values.astype(np.int32)
    return values


class TableBuilder:
    """Adds deltas up. Memory grows with slices and segments, never with requests."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._kinds = {**{name: at for at, name in enumerate(plan.kinds)}, HARNESS: _AFTER_ALL}
        self._segment = segments_of(plan).tolist()
        self._second = [start // SECOND for start, _ in plan.slices]
        self._row_at: dict[int, int] = {}
        self._rows: I64 = np.zeros((256, 3), dtype=np.int64)
        self._counts: I64 = np.zeros((256, len(COLUMN)), dtype=np.int64)
        self._open: dict[tuple[int, int, int, int, int], dict[int, int]] = {}
        self._packed: dict[tuple[int, int, int, int, int], tuple[U16, I32]] = {}
        self._newest = 0
        self._who: dict[tuple[int, int, int, int, str], int] = {}
        self._why: dict[tuple[int, int, int, int, str], int] = {}
        self._chart = _Chart(max(plan.timeouts_us, default=0))

    def add(self, key: Key, counts: Counts) -> None:
        """One delta. ValueError if the key is not of this plan."""
        if not 0 <= key.slice < len(self._segment):
            raise ValueError(f"no slice {key.slice}")
        if not -1 <= key.crossed < len(self._plan.marks):
            raise ValueError(f"no mark {key.crossed}")
        if self._plan.locustfile and key.kind not in self._kinds:
            self._kinds[key.kind] = len(self._kinds) - 1
        if key.kind not in self._kinds or key.outcome not in OUTCOME_CODE:
            raise ValueError(f"no request kind {key.kind!r} or outcome {key.outcome!r}")
        if (key.series is Series.LATENCY) != bool(key.outcome) and not (
            key.outcome == Outcome.OK and key.series is not Series.LATENCY
        ):
            raise ValueError(f"a sample of {key.series} with outcome {key.outcome!r}")
        kind, segment = self._kinds[key.kind], self._segment[key.slice]
        total = sum(counts.counts)
        column = COLUMN[key.outcome if key.series is Series.LATENCY else key.series]
        row = self._row(kind, key.slice, key.crossed)  # may grow the columns: first of all
        self._counts[row, column] += total
        self._add_set(key, kind, segment, counts)
        if key.series is Series.LATENCY:
            self._add_names(key, kind, segment, total)
            if key.outcome == Outcome.OK:
                self._chart.add(self._second[key.slice], kind, counts)
            elif key.outcome in BAD:
                self._chart.add(self._second[key.slice], kind, Counts([FAILURE], [total]))

    def _row(self, kind: int, at: int, crossed: int) -> int:
        packed = (kind * len(self._segment) + at) * (len(self._plan.marks) + 1) + crossed + 1
        row = self._row_at.get(packed)
        if row is None:
            row = self._row_at[packed] = len(self._row_at)
            if row == len(self._rows):
                self._rows = np.concatenate((self._rows, np.zeros_like(self._rows)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._rows[row] = (kind, at, crossed)
        return row

    def _add_set(self, key: Key, kind: int, segment: int, counts: Counts) -> None:
        place = (SERIES.index(key.series), OUTCOME_CODE[key.outcome], kind, segment, key.crossed)
        into = self._open.setdefault(place, {})
        for index, count in zip(counts.indices, counts.counts, strict=True):
            into[index] = into.get(index, 0) + count
        if segment > self._newest:
            self._newest = segment
            self._pack(segment - _OPEN_SEGMENTS)

    def _pack(self, before: int) -> None:
        for place in [place for place in self._open if place[3] < before]:
            merged = self._open.pop(place)
            if place in self._packed:
                packed = self._packed[place]
                for index, count in zip(packed[0].tolist(), packed[1].tolist(), strict=True):
                    merged[index] = merged.get(index, 0) + count
            indices = sorted(merged)
            self._packed[place] = (
                np.array(indices, dtype=np.uint16),
                np.array([merged[index] for index in indices], dtype=np.int32),
            )

    def _add_names(self, key: Key, kind: int, segment: int, total: int) -> None:
        outcome = OUTCOME_CODE[key.outcome]
        for names, name in ((self._who, key.who), (self._why, key.why)):
            if name:
                place = (kind, segment, key.crossed, outcome, name)
                names[place] = names.get(place, 0) + total

    def finish(self) -> Table:
        """The table of all deltas so far, in canonical order."""
        self._pack(len(self._segment) + 1)
        used = len(self._row_at)
        order = np.lexsort(self._rows[:used].T[::-1])
        places = sorted(self._packed)
        packed = [self._packed[place] for place in places]
        who, who_names = _named(self._who)
        why, why_names = _named(self._why)
        kinds = len(self._kinds) - 1
        return Table(
            rows=_numbered(self._rows[:used][order], 0, kinds),
            row_counts=self._counts[:used][order],
            sets=_numbered(np.array(places, dtype=np.int64).reshape(-1, 5), 2, kinds),
            ends=np.cumsum([len(indices) for indices, _ in packed], dtype=np.int64),
            index=np.concatenate([i for i, _ in packed] or [np.zeros(0, dtype=np.uint16)]),
            count=np.concatenate([c for _, c in packed] or [np.zeros(0, dtype=np.int32)]),
            who=who,
            who_names=who_names,
            why=why,
            why_names=why_names,
            chart=_numbered(self._chart.finish(), 1, kinds),
        )


def _numbered(lines: I64, column: int, kinds: int) -> I64:
    """The same lines now that the number of kinds is known; their order stays."""
    lines[lines[:, column] == _AFTER_ALL, column] = kinds
    return lines


def _named(counts: dict[tuple[int, int, int, int, str], int]) -> tuple[I64, tuple[str, ...]]:
    names = tuple(sorted({place[4] for place in counts}))
    code = {name: at for at, name in enumerate(names)}
    return _ints(((*place[:4], code[place[4]], n) for place, n in counts.items()), 6), names


class _Chart:
    """p50 and p99 of latency per second, kept exact while answers may still come."""

    def __init__(self, largest_timeout_us: int) -> None:
        self._wait_s = -(-largest_timeout_us // SECOND) + _CHART_SLACK_S
        self._open: dict[int, dict[int, dict[int, int]]] = {}  # second → kind → bucket → count
        self._done: dict[int, list[tuple[int, int, int, int]]] = {}
        self._newest = 0

    def add(self, second: int, kind: int, counts: Counts) -> None:
        if second in self._done:
            return
        for of in (kind, _AFTER_ALL):
            into = self._open.setdefault(second, {}).setdefault(of, {})
            for index, count in zip(counts.indices, counts.counts, strict=True):
                into[index] = into.get(index, 0) + count
        if second > self._newest:
            self._newest = second
            self._close(second - self._wait_s)

    def _close(self, before: int) -> None:
        for second in [second for second in self._open if second < before]:
            self._done[second] = [
                (second, kind, percentile(counts, 0.5), percentile(counts, 0.99))
                for kind, counts in self._open.pop(second).items()
            ]

    def finish(self) -> I64:
        self._close(self._newest + 1)
        return _ints((line for lines in self._done.values() for line in lines), 4)


def percentile(counts: dict[int, int], share: float) -> int:
    """The value (µs) at a share of a sparse histogram, as HdrHistogram reports it."""
    due = max(1, math.ceil(share * sum(counts.values())))
    for index in sorted(counts):
        due -= counts[index]
        if due <= 0:
            return INFINITE if index == FAILURE else highest_of(index)
    raise ValueError("a percentile of nothing")
