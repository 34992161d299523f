"""Writes a run down while it happens: plan, events, interval log, and at the end the table.

``plan.json``, ``events.ndjson`` and ``latency.hlog`` are on their way to disk at every moment, so
that what a killed run saw can still be read. The same calls give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from survive.contracts import Json
from survive.errors import RecordError
from survive.plan.model import Plan
from survive.record import events
from survive.record.hlog import HlogWriter
from survive.record.rates import mean_rps
from survive.record.samples import HARNESS, SETTLED, Counts, Frame, Key, Outcome, Series
from survive.record.table import TableBuilder, percentile
from survive.units import SECOND

T = TypeVar("T")

PLAN, EVENTS, HLOG, TABLE = "plan.json", "events.ndjson", "latency.hlog", "table.npz"

_LIVE_US = 5 * SECOND
_SETTLED_KEPT_US = 900 * SECOND  # the longest span of a `stop_if` that can be watched
_NAMES = 256  # distinct replica ids or failure classes of a run; a hostile server can invent more
_NAME_LENGTH = 64
_MORE = "_more_"
_UNFIT = {
    "who": re.compile(r"[^\w./@+-]", re.ASCII),
    "why": re.compile(r"[^\w./@+:;()-]", re.ASCII),
}


@dataclass(frozen=True, slots=True)
class LiveKind:
    """One request kind over the last seconds; times in ms, None if nothing was measured."""

    n: int  # settled
    bad: int
    sent: int
    latency_p95_ms: float | None
    ttft_p95_ms: float | None


@dataclass(frozen=True, slots=True)
class LiveView:
    """What was learned up to now, by the time of settling, not of intended start: a target that
    hangs shows as soon as its requests time out.

    Rates and ``kinds`` speak of the last ``over_us``; ``settled`` of any span up to 15 minutes.
    """

    now_us: int
    over_us: int
    covered_us: int  # of it, what the frames that have come speak of
    offered_rps: float  # planned
    kinds: Mapping[str, LiveKind]
    ticks: tuple[tuple[int, Mapping[str, tuple[int, int]]], ...]  # at, kind → (settled, bad)

    @property
    def n(self) -> int:
        """Requests settled."""
        return sum(kind.n for kind in self.kinds.values())

    @property
    def bad(self) -> int:
        """Settled and not ok."""
        return sum(kind.bad for kind in self.kinds.values())

    @property
    def ok(self) -> int:
        """Settled well."""
        return self.n - self.bad

    @property
    def sent(self) -> int:
        """Requests sent."""
        return sum(kind.sent for kind in self.kinds.values())

    @property
    def achieved_rps(self) -> float:
        """Good answers per second."""
        return self.ok / (self.covered_us / 1e6) if self.covered_us else 0.0

    def settled(self, over_us: int, of: tuple[str, ...] = ()) -> tuple[int, int]:
        """(settled, bad) of these kinds (none: all) in the last ``over_us``."""
        recent = [kinds for at_us, kinds in self.ticks if at_us > self.now_us - over_us]
        pairs = [pair for kinds in recent for name, pair in kinds.items() if not of or name in of]
        return sum(n for n, _ in pairs), sum(bad for _, bad in pairs)


@dataclass(slots=True)
class _Tick:
    """What one frame told of one kind."""

    n: int = 0
    ok: int = 0
    sent: int = 0
    latency: dict[int, int] = field(default_factory=dict)
    ttft: dict[int, int] = field(default_factory=dict)


class RecordWriter:
    """The only writer of a run directory's measurements; a context manager."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        """Start a record. RecordError if the folder holds one, OSError if it is unwritable."""
        folder.mkdir(parents=True, exist_ok=True)
        if taken := [name for name in (PLAN, EVENTS, HLOG, TABLE) if (folder / name).exists()]:
            raise RecordError(f"{folder} already holds a run: {', '.join(taken)}")
        self.folder = folder
        self._plan = plan
        text = json.dumps(plan.to_json(), indent=1, ensure_ascii=True).encode() + b"\n"
        (folder / PLAN).write_bytes(text)
        self._events = (folder / EVENTS).open("xb")
        self._hlog = HlogWriter(folder / HLOG)
        self._table = TableBuilder(plan)
        self._kinds = [*plan.kinds]
        self._clean: dict[tuple[str, str], str] = {}
        self._distinct = {"who": 0, "why": 0}
        self._recent: deque[tuple[int, dict[str, _Tick]]] = deque()
        self._settled: deque[tuple[int, dict[str, tuple[int, int]]]] = deque()
        self._closed = False

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def event(self, name: str, fields: Mapping[str, Json], t_us: int) -> None:
        """Append one event. ValueError for a name that is not an EventName."""
        self._events.write(events.encode(name, fields, t_us))
        self._events.flush()

    def frame(self, frame: Frame) -> None:
        """Append one frame's deltas. ValueError if one is not of this plan."""
        kinds: dict[str, _Tick] = {}
        self._learn(frame)
        for key, counts in frame.sets:
            clean = self._cleaned(key)
            self._table.add(clean, counts)
            start_us, end_us = self._plan.slices[clean.slice]
            self._hlog.write(start_us, end_us, clean.tag(), counts)
            if clean.kind != HARNESS:
                _tell(kinds.setdefault(clean.kind, _Tick()), clean, counts)
        self._hlog.flush()
        self._remember(frame.at_us, kinds)

    def _learn(self, frame: Frame) -> None:
        """What a locustfile's users ask is known when they ask it."""
        if not self._plan.locustfile:
            return
        for kind in dict.fromkeys(key.kind for key, _ in frame.sets):
            if kind not in {*self._kinds, HARNESS}:
                self._kinds.append(kind)
                self.event(events.EventName.KIND_SEEN, {"kind": kind}, frame.at_us)

    def _cleaned(self, key: Key) -> Key:
        """Replica ids and failure classes come from the target: no commas, no flood of names."""
        if not key.who and not key.why:
            return key
        return key._replace(who=self._name("who", key.who), why=self._name("why", key.why))

    def _name(self, which: str, name: str) -> str:
        known = self._clean.get((which, name))
        if known is not None or not name:
            return known or ""
        if self._distinct[which] >= _NAMES:
            return _MORE
        self._distinct[which] += 1
        fit = _UNFIT[which].sub("_", name)[:_NAME_LENGTH]
        self._clean[which, name] = fit
        return fit

    def _remember(self, at_us: int, kinds: dict[str, _Tick]) -> None:
        self._recent.append((at_us, kinds))
        self._settled.append((at_us, {name: (t.n, t.n - t.ok) for name, t in kinds.items()}))
        _forget(self._recent, at_us - _LIVE_US)
        _forget(self._settled, at_us - _SETTLED_KEPT_US)

    def live(self, now_us: int) -> LiveView:
        """How it goes, for displays and `stop_if`. Cheap: the last seconds only."""
        ticks = [(at, kinds) for at, kinds in self._recent if at > now_us - _LIVE_US]
        recent = [kinds for _, kinds in ticks]
        return LiveView(
            now_us,
            _LIVE_US,
            # A frame speaks of the second before it.
            min(ticks[-1][0], ticks[-1][0] - ticks[0][0] + SECOND) if ticks else 0,
            mean_rps(self._plan, max(0, now_us - SECOND), max(1, now_us)),
            {name: _live_kind([t[name] for t in recent if name in t]) for name in self._kinds},
            tuple(self._settled),
        )

    def close(self) -> None:
        """Seal the record: the log is complete, the table written. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._events.close()
        self._hlog.close()
        self._table.finish().save(self.folder / TABLE, seals(self.folder))


def seals(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a table belongs to: parts of two runs are never judged as one."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (PLAN, EVENTS)
    }


def _forget(ticks: deque[tuple[int, T]], before_us: int) -> None:
    while ticks and ticks[0][0] < before_us:
        ticks.popleft()


def _tell(tick: _Tick, key: Key, counts: Counts) -> None:
    if key.series is Series.SEND_LAG:
        tick.sent += sum(counts.counts)
    elif key.series is Series.LATENCY and key.outcome in SETTLED:
        tick.n += sum(counts.counts)
        if key.outcome == Outcome.OK:
            tick.ok += sum(counts.counts)
            _pour(tick.latency, counts)
    elif key.series is Series.TTFT:
        _pour(tick.ttft, counts)


def _pour(into: dict[int, int], counts: Counts) -> None:
    for index, count in zip(counts.indices, counts.counts, strict=True):
        into[index] = into.get(index, 0) + count


def _live_kind(ticks: list[_Tick]) -> LiveKind:
    n, ok = sum(tick.n for tick in ticks), sum(tick.ok for tick in ticks)
    latency: dict[int, int] = {}
    ttft: dict[int, int] = {}
    for tick in ticks:
        _pour(latency, Counts(list(tick.latency), list(tick.latency.values())))
        _pour(ttft, Counts(list(tick.ttft), list(tick.ttft.values())))
    p95 = [percentile(counts, 0.95) / 1000 if counts else None for counts in (latency, ttft)]
    return LiveKind(n, n - ok, sum(tick.sent for tick in ticks), p95[0], p95[1])
