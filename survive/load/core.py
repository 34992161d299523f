"""Lanes, deadlines, outcomes and filing: the part of load that knows neither sockets nor loops.

Both loads (sockets under gevent, memory under asyncio) are driven by it: they say what happened
and when, it says what that means. All times are microseconds on the run's clock.

``Cursor`` is the waiting queue. Lanes take arrivals strictly in intended order, so the queue *is*
a position in the schedule: nothing is stored for a request that waits.
``LanePool`` knows which lanes are free, and since when one was.
``Exchange`` is the life of one request from send to fate.
``Filing`` turns fates into sparse histograms, one Frame a second.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from survive.load.checks import MAX_CHECKED_BYTES, AnswerCheck, is_error
from survive.load.encoding import Inflate
from survive.load.retries import may_try_again, retry_after_us, wait_us
from survive.load.sse import StreamReader
from survive.load.stripes import Striped, Table
from survive.load.template import CompiledKind
from survive.plan.arrivals import Block
from survive.plan.chance import I64
from survive.plan.model import Plan
from survive.record.hdr import HIGHEST_US, LOWEST_US
from survive.record.samples import HARNESS, Counts, Frame, Key, Outcome, Series
from survive.scenario.model import Retries
from survive.transport import REPLICA_HEADER, Broken

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_NAMES = 256  # distinct replica ids kept; a hostile header must not fill memory
_ERROR_PEEK = 4096  # bytes of a JSON answer that are looked at for an error object, if no more
_FOLD_ROWS = 1_000  # raw rows of one group before they are folded (17 us, measured)
_ALWAYS = -(1 << 62)  # "free since ever": a lane that was never used
_NEVER_US = 1 << 62  # after every moment of a run

T = TypeVar("T")
_Buckets: TypeAlias = npt.NDArray[np.uint16]


class Job(NamedTuple):
    """One arrival that a lane took. ``free_us``: since when a lane was free for it."""

    number: int
    intended_us: int
    kind: int
    row: int
    slice: int
    free_us: int


# ---------------------------------------------------------------------------------- filing

# Series of one row of raw samples, by what became of the request.
_OK = (Series.LATENCY, Series.LANE_WAIT, Series.SEND_LAG, Series.ATTEMPT, Series.SERVICE_TIME)
_SENT = (Series.LATENCY, Series.LANE_WAIT, Series.SEND_LAG, Series.ATTEMPT)
_NOT_WIRED = (Series.LATENCY, Series.LANE_WAIT, Series.SEND_LAG)
_NEVER_SENT = (Series.LATENCY,)
_SENT_ONLY = (Series.LANE_WAIT, Series.SEND_LAG)

_Group: TypeAlias = "tuple[int, int, int, str, str, str, tuple[Series, ...]]"


class _Rows:
    """Raw samples of one group, folded to bucket numbers a thousand rows at a time."""

    __slots__ = ("chunks", "limit", "raw", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self.raw = array("q")
        self.limit = width * _FOLD_ROWS
        self.chunks: list[_Buckets] = []

    def fold(self) -> None:
        if self.raw:
            self.chunks.append(buckets(np.frombuffer(self.raw, np.int64)).reshape(-1, self.width))
            self.raw = array("q")


def buckets(values_us: I64) -> _Buckets:
    """Bucket of each value, clamped to the trackable range; hdr.index_of for whole arrays."""
    clamped = np.clip(values_us, LOWEST_US, HIGHEST_US)
    shift = np.frexp((clamped | 2047).astype(np.float64))[1].astype(np.int64) - 11
    return ((shift << 10) + (clamped >> shift)).astype(np.uint16)


class Filing:
    """Raw samples to keys and sparse counts.

    ``sent`` and ``settle`` are separate events and are matched by the number of the request: one
    that was sent and never settled, or settled and never sent, breaks the conservation sums in
    the record instead of being smoothed over here.
    """

    def __init__(self, plan: Plan) -> None:
        self._kinds = [*plan.kinds]
        self._marks = plan.marks
        self._starts = [start for start, _ in plan.slices]
        self._slice_starts = np.array(self._starts, dtype=np.int64)
        self._mark_times = np.array([*plan.marks, _NEVER_US], dtype=np.int64)
        self._groups: dict[_Group, _Rows] = {}
        self._extra: dict[Key, array[int]] = {}
        self._open: dict[int, tuple[Job, int, int]] = {}
        self.names: dict[str, str] = {"": ""}
        """Replicas heard of so far: as the header said it, and as it is shown."""

    def learn(self, kind: str) -> int:
        """The index of a kind that the plan did not know."""
        self._kinds.append(kind)
        return len(self._kinds) - 1

    def slice_of(self, t_us: int) -> int:
        """Index of the slice that holds a moment; the last one for the drain."""
        return max(0, bisect_right(self._starts, t_us) - 1)

    def slices_of(self, times_us: I64) -> I64:
        """The same for many."""
        return np.maximum(np.searchsorted(self._slice_starts, times_us, side="right") - 1, 0)

    def crossed(self, intended_us: int, end_us: int) -> int:
        """Index of the first mark in (intended, end], else −1."""
        marks = self._marks
        if not marks:
            return -1
        first = bisect_right(marks, intended_us)
        return first if first < len(marks) and marks[first] <= end_us else -1

    def who(self, replica: str) -> str:
        """A replica id fit for a tag: short, plain, and from a bounded set."""
        known = self.names.get(replica)
        if known is not None:
            return known
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "_" for c in replica)
        if len(self.names) > MAX_NAMES:
            return "other"
        self.names[replica] = plain[:64]
        return plain[:64]

    def sent(self, job: Job, sent_us: int) -> None:
        """A lane began with a request: lane_wait and send_lag are known (DESIGN law 2)."""
        due = job.intended_us if job.intended_us > job.free_us else job.free_us
        self._open[job.number] = (job, due - job.intended_us, sent_us - due)

    def settle(
        self, job: Job, end_us: int, outcome: str, who: str, why: str,
        attempt_us: int | None, service_us: int | None,
    ) -> int:  # fmt: skip
        """A request's fate is known; its ``crossed`` index. Spans, not times; None = has none."""
        crossed = self.crossed(job.intended_us, end_us)
        latency = end_us - job.intended_us
        opened = self._open.pop(job.number, None)
        layout: tuple[Series, ...]
        row: tuple[int, ...]
        if opened is None:
            layout, row = _NEVER_SENT, (latency,)
        elif attempt_us is None:
            layout, row = _NOT_WIRED, (latency, opened[1], opened[2])
        elif service_us is None:
            layout, row = _SENT, (latency, opened[1], opened[2], attempt_us)
        else:
            layout, row = _OK, (latency, opened[1], opened[2], attempt_us, service_us)
        self._file((job.slice, job.kind, crossed, outcome, who, why, layout), row)
        return crossed

    def add(self, key: Key, values_us: Iterable[int]) -> None:
        """Samples beside those of a fate: first token, gaps, retried attempts, the harness."""
        found = self._extra.get(key)
        if found is None:
            found = self._extra[key] = array("q")
        found.extend(values_us)

    def add_for(
        self, job: Job, crossed: int, series: Series, outcome: str, values_us: Iterable[int]
    ) -> None:
        """The same for one request."""
        self.add(Key(job.slice, self._kinds[job.kind], crossed, series, outcome), values_us)

    def harness(self, second_us: int, idle_us: int, waited: int | None) -> None:
        """A second of this worker that began at ``second_us``; ``waited`` requests if starved."""
        where = self.slice_of(second_us)
        self.add(Key(where, HARNESS, -1, Series.IDLE), (idle_us,))
        if waited is not None:
            self.add(Key(where, HARNESS, -1, Series.STARVED), (waited,))

    def stalled(self, second_us: int, own_us: Sequence[int], others_us: Sequence[int]) -> None:
        """Stalls of this worker's loop in that second; ``others_us``: while others had the core."""
        where = self.slice_of(second_us)
        for series, lengths in ((Series.STALL, own_us), (Series.PREEMPTED, others_us)):
            if lengths:
                self.add(Key(where, HARNESS, -1, series), lengths)

    def away(self, begin_us: int, end_us: int) -> None:
        """This worker's loop stood still so long, and neither sent nor read."""
        at, begin_us = self.slice_of(begin_us), max(0, begin_us)
        while begin_us < end_us:
            last = at + 1 == len(self._starts)
            until_us = end_us if last else min(end_us, self._starts[at + 1])
            self.add(Key(at, HARNESS, -1, Series.AWAY), (until_us - begin_us,))
            at, begin_us = at + 1, until_us

    def users(self, second_us: int, present: int) -> None:
        """So many users were there at the end of a second that began then."""
        if present:
            key = Key(self.slice_of(second_us), HARNESS, -1, Series.USERS)
            self.add(key, (present,))

    def unsent(self, block: _Waiting, now_us: int) -> None:
        """The run was stopped: what waits is unsent, or expired if its deadline has passed."""
        for number, intended in enumerate(block.intended):
            deadline = intended + block.deadlines[number]
            late = deadline < now_us
            end = deadline if late else max(now_us, intended)
            key = (
                block.slices[number], block.kinds[number], self.crossed(intended, end),
                str(Outcome.EXPIRED if late else Outcome.UNSENT), "", "", _NEVER_SENT,
            )  # fmt: skip
            self._file(key, (end - intended,))

    def unsent_future(self, block: Block) -> None:
        """The same for a block that was not due yet: its requests have waited for nothing."""
        places, counts = np.unique(
            np.stack([self.slices_of(block.intended_us), block.kind], axis=1),
            axis=0,
            return_counts=True,
        )
        for (where, kind), count in zip(places.tolist(), counts.tolist(), strict=True):
            key = Key(where, self._kinds[kind], -1, Series.LATENCY, str(Outcome.UNSENT))
            self.add(key, (0,) * count)

    def lost(self, intended_us: I64, kinds: I64) -> None:
        """Arrivals whose owner was gone: nobody knows their fate, or nobody sent them."""
        places, counts = np.unique(
            np.stack([self.slices_of(intended_us), kinds], axis=1),
            axis=0,
            return_counts=True,
        )
        for (where, kind), count in zip(places.tolist(), counts.tolist(), strict=True):
            self.lose(where, self._kinds[kind], count)

    def lose(self, where: int, kind: str, count: int) -> None:
        """So many requests of a slice are lost."""
        if count:
            self.add(Key(where, kind, -1, Series.LATENCY, str(Outcome.LOST)), (0,) * count)

    def expired(self, block: Block, part: slice, deadline_of: I64) -> None:
        """A stretch of a block that was never sent in time: each ends at its deadline."""
        intended, kinds = block.intended_us[part], block.kind[part]
        ends = intended + deadline_of[kinds]
        first = np.searchsorted(self._mark_times, intended, side="right")
        crossed = np.where(self._mark_times[first] <= ends, first, -1)
        places, counts = np.unique(
            np.stack([self.slices_of(intended), kinds, crossed], axis=1),
            axis=0,
            return_counts=True,
        )
        for (where, kind, mark), count in zip(places.tolist(), counts.tolist(), strict=True):
            self.expired_so_many(where, kind, mark, int(deadline_of[kind]), count)

    def expired_so_many(
        self, where: int, kind: int, crossed: int, deadline_us: int, count: int
    ) -> None:
        """So many of one group were never sent; ``deadline_us`` from their intended start."""
        key = Key(where, self._kinds[kind], crossed, Series.LATENCY, str(Outcome.EXPIRED))
        self.add(key, (deadline_us,) * count)

    def cut(self, at_us: int, done: bool = False) -> Frame:
        """Everything since the last cut. The last frame also shows what was never settled."""
        if done:
            for job, wait, lag in self._open.values():
                self._file((job.slice, job.kind, -1, "", "", "", _SENT_ONLY), (wait, lag))
            self._open.clear()
        parts: dict[Key, list[_Buckets]] = {}
        for group, rows in self._groups.items():
            rows.fold()
            for column, series in enumerate(group[6]):
                key = self._key(group, series)
                parts.setdefault(key, []).extend(chunk[:, column] for chunk in rows.chunks)
        for key, values in self._extra.items():
            parts.setdefault(key, []).append(buckets(np.frombuffer(values, np.int64)))
        sets = tuple((key, _counts(parts[key])) for key in sorted(parts))
        self._groups, self._extra = {}, {}
        return Frame(at_us, sets, done)

    def ordinary(self, where: int, kind: int, crossed: int, who: str, rows: bytes) -> None:
        """Requests that ended well in FastLanes: u16 bucket numbers, five a request."""
        group = (where, kind, crossed, Outcome.OK, who, "", _OK)
        held = self._groups.get(group)
        if held is None:
            held = self._groups[group] = _Rows(len(_OK))
        held.chunks.append(np.frombuffer(rows, np.uint16).reshape(-1, len(_OK)))

    def _file(self, group: _Group, row: tuple[int, ...]) -> None:
        rows = self._groups.get(group)
        if rows is None:
            rows = self._groups[group] = _Rows(len(group[6]))
        rows.raw.extend(row)
        if len(rows.raw) >= rows.limit:
            rows.fold()

    def _key(self, group: _Group, series: Series) -> Key:
        slice_index, kind, crossed, outcome, who, why, _ = group
        if series is Series.LATENCY:
            return Key(slice_index, self._kinds[kind], crossed, series, outcome, who, why)
        shown = outcome if series is Series.SERVICE_TIME else ""
        return Key(slice_index, self._kinds[kind], crossed, series, shown)


def _counts(parts: list[_Buckets]) -> Counts:
    found, counts = np.unique(np.concatenate(parts), return_counts=True)
    return Counts(found.tolist(), counts.tolist())


# ---------------------------------------------------------------------------------- cursor


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The rest of one block of the schedule, as lists."""

    intended: list[int]
    kinds: list[int]
    slices: list[int]
    deadlines: list[int]


class Cursor:
    """The position in the schedule, which is the waiting queue."""

    def __init__(self, plan: Plan, blocks: Iterator[Block], filing: Filing) -> None:
        self._blocks = blocks
        self._filing = filing
        self.deadlines = [plan.deadline_us(kind) for kind in range(len(plan.kinds))]
        self._deadline_of = np.array(self.deadlines, dtype=np.int64)
        self._block = Block(0, *(np.empty(0, dtype=np.int64) for _ in range(3)))
        self._at = self._count = 0
        self._last = -1  # number of the last arrival that was handed out or has expired
        self._numbers: Sequence[int] | I64 = ()
        self._due: int | None = None
        # Lists, since a lane takes from them one by one; arrays where FastLanes does.
        self._intended: list[int] | I64 = []
        self._kinds: list[int] | I64 = []
        self._rows: list[int] | I64 = []
        self._slices: list[int] | I64 = []
        self._load()

    def next_due_us(self) -> int | None:
        """Intended start of the first request that waits or will; None = no more."""
        return self._due

    def take(self, now_us: int, lane_free_us: int) -> Job | None:
        """The first due request whose deadline has not passed; those before it have expired.

        ``lane_free_us``: since when a lane was free for it without a break.
        """
        while True:
            due = self._due
            if due is None or due > now_us:
                return None
            at = self._at
            self._last = number = self._numbers[at]
            job = Job(number, due, self._kinds[at], self._rows[at], self._slices[at], lane_free_us)
            self._go(at + 1)
            deadline = due + self.deadlines[job.kind]
            if now_us <= deadline:
                return job
            self._filing.settle(job, deadline, Outcome.EXPIRED, "", "", None, None)
            self.expire(now_us)

    def expire(self, now_us: int) -> None:
        """File what has expired at the head of the queue, so that nobody learns it late.

        Whole stretches at once: far above what the target can take, nearly every arrival ends
        here, and a lane that became free must not wait while they are filed one by one.
        """
        while self._due is not None and self._due + self.deadlines[self._kinds[self._at]] < now_us:
            block, at = self._block, self._at
            alive = block.intended_us[at:] + self._deadline_of[block.kind[at:]] >= now_us
            end = at + int(np.argmax(alive)) if alive.any() else self._count
            self._filing.expired(block, slice(at, end), self._deadline_of)
            self._last = int(self._numbers[end - 1])
            self._go(end)

    def restripe(self, at_us: int, table: Table, now_us: int) -> None:
        """Others own what from ``at_us`` on; what came too late for us is filed as lost."""
        assert isinstance(self._blocks, Striped), "the whole schedule is its own"
        rows = self._blocks.restripe(at_us, table, self._last, now_us)
        self._filing.lost(rows[:, 0], rows[:, 1])
        self._load()

    def forget(self, now_us: int) -> None:
        """No change of owners can reach what lies before now and was handed out."""
        if isinstance(self._blocks, Striped):
            self._blocks.forget(now_us if self._due is None else min(now_us, self._due))

    def stop(self, now_us: int) -> None:
        """File all that was never sent: the run ends here.

        The whole rest of the schedule is made for it, 0.7 us an arrival.
        """
        while self._due is not None:
            at = self._at
            intended, kinds, slices = (
                np.asarray(column[at:]).tolist()
                for column in (self._intended, self._kinds, self._slices)
            )
            rest = _Waiting(intended, kinds, slices, [self.deadlines[k] for k in kinds])
            self._filing.unsent(rest, now_us)
            block = next(self._blocks, None)
            while block is not None and block.intended_us[0] > now_us:
                self._filing.unsent_future(block)
                block = next(self._blocks, None)
            self._enter(block)

    def _load(self) -> None:
        self._enter(next(self._blocks, None))

    def _go(self, at: int) -> None:
        self._at = at
        if at < self._count:
            self._due = self._intended[at]
        else:
            self._load()

    def _enter(self, block: Block | None) -> None:
        self._at = 0
        if block is None:
            self._due = None
            return
        self._block = block
        self._intended = block.intended_us.tolist()
        self._kinds = block.kind.tolist()
        self._rows = block.row.tolist()
        self._slices = self._filing.slices_of(block.intended_us).tolist()
        self._count = len(self._intended)
        self._numbers = (
            range(block.first, block.first + self._count)
            if block.numbers is None
            else block.numbers.tolist()
        )
        self._due = self._intended[0]


class LanePool(Generic[T]):
    """Which lanes are free. The one freed last is used first, so few connections are kept warm.

    Lanes are made when first needed; one that was never made counts as free since ever.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._parked: list[T] = []
        self._since: list[int] = []

    def free_since(self) -> int | None:
        """Since when at least one lane has been free; None = all are busy."""
        if self._left:
            return _ALWAYS
        return self._since[0] if self._since else None

    def park(self, lane: T, now_us: int) -> None:
        """A lane has finished its request."""
        self._parked.append(lane)
        self._since.append(now_us)

    def take(self) -> T | None:
        """A free lane; None = make a new one. Only legal while free_since() is not None."""
        if self._parked:
            self._since.pop()
            return self._parked.pop()
        if not self._left:
            raise RuntimeError("a lane was taken while all were busy")
        self._left -= 1
        return None


# -------------------------------------------------------------------------------- exchange


@dataclass(frozen=True, slots=True)
class Rule:
    """What decides the fate of requests of one kind."""

    timeout_us: int
    gives_up_us: int | None
    streamed: bool
    expect_status: frozenset[int]
    stream_complete: bool
    retries: Retries = field(default_factory=Retries)
    seed: int = 0
    check: AnswerCheck | None = None

    @property
    def kept_bytes(self) -> int:
        """How much of an answer in one piece is kept to be looked into."""
        return _ERROR_PEEK if self.check is None else MAX_CHECKED_BYTES


def rules(plan: Plan, kinds: list[CompiledKind]) -> list[Rule]:
    """One rule a kind, in the plan's order. ValueError if plan and kinds do not fit."""
    if tuple(kind.name for kind in kinds) != plan.kinds:
        raise ValueError(f"plan has kinds {plan.kinds}, requests are {[k.name for k in kinds]}")
    return [
        Rule(timeout, plan.gives_up_after_us, kind.streamed, kind.expect_status,
             kind.stream_complete, kind.retries, plan.seed, kind.check)
        for kind, timeout in zip(kinds, plan.timeouts_us, strict=True)
    ]  # fmt: skip


class Exchange:
    """One request from send to fate, tried again if users do. Events after its fate are ignored.

    ``deadline_us`` is the earlier of timeout and give-up, from intended start; the user's patience
    ends to matter with the first token (streamed) or the first byte of the answer. An event later
    than the deadline finds the request timed out or abandoned *at* the deadline, whenever the
    sweep comes by.

    ``again_us``: the attempt has failed and the next one is due then (``on_again``); its lane
    waits with it, for lanes are people. Service time and ``who`` are those of the last attempt,
    latency and first token count from the intended start. All attempts are filed where the
    request ends, so that a window's attempts and requests are of the same requests.
    """

    __slots__ = (
        "_attempt_us",
        "_body_bytes",
        "_earlier",
        "_filing",
        "_inflate",
        "_job",
        "_json",
        "_peek",
        "_retry_after_us",
        "_rule",
        "_sent_us",
        "_status",
        "_stream",
        "_timeout_us",
        "_tried",
        "again_us",
        "deadline_us",
        "outcome",
        "who",
        "why",
    )  # fmt: skip

    def __init__(self, filing: Filing, rule: Rule, job: Job) -> None:
        self._filing = filing
        self._rule = rule
        self._job = job
        self._timeout_us = job.intended_us + rule.timeout_us
        self.deadline_us = self._patience_us()
        self._sent_us = 0
        self._attempt_us: int | None = None
        self._earlier: tuple[int, ...] = ()  # spans of attempts before the present one
        self._tried = 0  # times that it was tried again
        self._retry_after_us = 0
        self.again_us: int | None = None
        self._status = 0
        self._json = False
        self._peek = b""
        self._body_bytes = 0
        self._stream: StreamReader | None = None
        self._inflate: Inflate | None = None
        self.outcome: Outcome | None = None
        self.who = ""
        self.why = ""

    def on_sent(self, now_us: int) -> None:
        """A lane begins with it: from here it counts as sent, connect included."""
        self._sent_us = now_us
        self._filing.sent(self._job, now_us)

    def on_attempt(self, now_us: int) -> None:
        """It goes on the wire."""
        self._attempt_us = now_us

    def on_stale(self, now_us: int) -> None:
        """The server had closed the idle connection; the request goes out once more."""
        self._end_attempt(now_us)

    def on_again(self, now_us: int) -> bool:
        """``again_us`` has come: True if the next attempt may begin."""
        self.again_us = None
        if self._over(now_us):
            return False
        self._sent_us = now_us
        self._status = 0
        self._json = False
        self._peek = b""
        self._body_bytes = 0
        self._stream = None
        self._inflate = None
        self._retry_after_us = 0
        self.who = ""
        return True

    def on_head(self, status: int, headers: Mapping[str, str], now_us: int) -> None:
        """Status and lower-case headers of the answer."""
        if self._over(now_us):
            return
        self._status = status
        if REPLICA_HEADER in headers:
            self.who = self._filing.who(headers[REPLICA_HEADER])
        if "content-encoding" in headers and headers["content-encoding"] != "identity":
            self._inflate = Inflate(headers["content-encoding"])
        if self._rule.streamed and status in self._rule.expect_status:
            self._stream = StreamReader()
            return
        self._json = self._rule.check is not None or headers.get("content-type", "").startswith(
            "application/json"
        )
        self.deadline_us = self._timeout_us
        if "retry-after" in headers:
            self._retry_after_us = retry_after_us(headers["retry-after"])

    def on_body(self, data: bytes, now_us: int) -> None:
        """Some of the body, as one read gave it."""
        if self._over(now_us):
            return
        if self._inflate is None:
            self._take(data, now_us)
            return
        for piece in self._inflate.pieces(data):
            self._take(piece, now_us)
            if self.outcome is not None:
                return
        if self._inflate.broken:
            self._settle(Outcome.FAILED, now_us, "encoding")

    def _take(self, data: bytes, now_us: int) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > MAX_BODY_BYTES:
            self._settle(Outcome.FAILED, now_us, "oversized")
        elif self._stream is not None:
            self._feed(self._stream, data, now_us)
        elif self._json and self._body_bytes <= self._rule.kept_bytes:
            self._peek += data

    def on_end(self, now_us: int) -> None:
        """The answer is whole, as HTTP sees it."""
        if self._over(now_us):
            return
        stream = self._stream
        if stream is not None:
            stream.close(now_us)
        why = self._fault(stream)
        if why:
            if not (why.startswith("status:") and self._tries_again(now_us)):
                self._settle(Outcome.FAILED, now_us, why)
            return
        crossed = self._settle(Outcome.OK, now_us, "")
        if stream is not None and stream.first_us is not None:
            self._file_stream(stream, stream.first_us, crossed, now_us)

    def on_broken(self, how: Broken, now_us: int) -> None:
        """No (whole) answer. A refused request was never on the wire."""
        if how is Broken.REFUSED:
            self._attempt_us = None
        if not self._over(now_us) and not self._tries_again(now_us, how):
            self._settle(Outcome.FAILED, now_us, str(how))

    def on_client_error(self, what: str, now_us: int) -> None:
        """Our own host could not send it (no ports, no descriptors): failed ``client:<what>``."""
        self._attempt_us = None
        if not self._over(now_us):
            self._settle(Outcome.FAILED, now_us, f"client:{what}")

    def on_deadline(self, now_us: int) -> Outcome | None:
        """The sweep: its outcome if its deadline has passed (or it was settled before)."""
        if self.outcome is None and now_us >= self.deadline_us:
            late = self.deadline_us == self._timeout_us
            self._settle(Outcome.TIMED_OUT if late else Outcome.ABANDONED, self.deadline_us, "")
        return self.outcome

    def on_stopped(self, now_us: int) -> None:
        """The run ends here: unanswered, unless its deadline has passed."""
        if not self._over(now_us):
            self._settle(Outcome.IN_FLIGHT, now_us, "")

    def _patience_us(self) -> int:
        """The deadline while nothing of an answer was seen."""
        gives_up = self._rule.gives_up_us
        if gives_up is None or gives_up >= self._rule.timeout_us:
            return self._timeout_us
        return self._job.intended_us + gives_up

    def _tries_again(self, now_us: int, how: Broken | None = None) -> bool:
        """The attempt has failed: whether the user waits and asks once more, in time."""
        retries = self._rule.retries
        if self._tried >= retries.most or not may_try_again(self._status, how, self._stream):
            return False
        wait = wait_us(retries, self._rule.seed, self._job.number, self._tried + 1)
        if retries.honour_retry_after:
            wait = max(wait, self._retry_after_us)
        deadline = self._patience_us()
        if now_us + wait >= deadline:
            return False  # the user would leave before: this failure is the last word
        self._end_attempt(now_us)
        self._tried += 1
        self.again_us = now_us + wait
        self.deadline_us = deadline
        return True

    def _end_attempt(self, now_us: int) -> None:
        if self._attempt_us is not None:
            self._earlier += (now_us - self._attempt_us,)
            self._attempt_us = None

    def _over(self, now_us: int) -> bool:
        """It has its fate, perhaps by this very event coming too late."""
        if self.outcome is None and now_us > self.deadline_us:
            self.on_deadline(now_us)
        return self.outcome is not None

    def _feed(self, stream: StreamReader, data: bytes, now_us: int) -> None:
        stream.feed(data, now_us)
        if stream.first_us is not None:
            self.deadline_us = self._timeout_us
        if stream.error:
            self._settle(Outcome.FAILED, now_us, "error_in_stream")
        elif stream.oversized:
            self._settle(Outcome.FAILED, now_us, "oversized")

    def _fault(self, stream: StreamReader | None) -> str:
        """Why a whole answer is not ok; "" = it is."""
        if self._status not in self._rule.expect_status:
            return f"status:{self._status}"
        if self._inflate is not None and not self._inflate.whole:
            return "encoding"
        if stream is not None and stream.error:
            return "error_in_stream"
        if self._rule.stream_complete and (stream is None or not stream.complete):
            return "incomplete"
        check, whole = self._rule.check, self._body_bytes == len(self._peek)
        if stream is not None:
            return check.wrong_of_stream(stream) if check is not None else ""
        if b'"error"' in self._peek and whole and is_error(self._peek):
            return "error_in_body"
        return check.wrong_of_body(self._peek, whole=whole) if check is not None else ""

    def _settle(self, outcome: Outcome, end_us: int, why: str) -> int:
        self.outcome = outcome
        self.why = why
        attempt = None if self._attempt_us is None else end_us - self._attempt_us
        service = end_us - self._sent_us if outcome is Outcome.OK else None
        filing, job = self._filing, self._job
        crossed = filing.settle(job, end_us, outcome, self.who, why, attempt, service)
        if self._earlier:
            filing.add_for(job, crossed, Series.ATTEMPT, "", self._earlier)
        return crossed

    def _file_stream(self, stream: StreamReader, first: int, crossed: int, end_us: int) -> None:
        filing, job = self._filing, self._job
        filing.add_for(job, crossed, Series.TTFT, Outcome.OK, (first - job.intended_us,))
        if stream.gaps_us:
            filing.add_for(job, crossed, Series.ITL, Outcome.OK, stream.gaps_us)
        tokens = stream.output_tokens
        if tokens:
            filing.add_for(job, crossed, Series.TOKENS, Outcome.OK, (tokens,))
        if tokens >= 2:
            span = ((end_us - first) // (tokens - 1),)
            filing.add_for(job, crossed, Series.TPOT, Outcome.OK, span)
