"""Who hands arrivals to free lanes: in Python, or the extension that serves the ordinary ones.

``PlainDesk`` only says which lane takes which arrival. ``FastDesk`` is the same over FastLanes
(_fastlanes.c), which also sends, reads and files every request of which nothing unusual can be
said, and hands over the others as they are. Which of the two works shows in speed alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from survive.load.core import Cursor, Filing, Job, LanePool, Rule
from survive.load.stripes import Table
from survive.load.users import Turns
from survive.plan.arrivals import Block
from survive.plan.model import Plan
from survive.transport import REPLICA_HEADER

try:
    from survive.load._fastlanes import FastLanes
except ImportError:  # not compiled where it was installed
    COMPILED = False
else:
    COMPILED = True

PLAIN = "SURVIVE_PLAIN_LANES"  # set: do without FastLanes, to see what it changes
SPIN_US = 60  # idle spin before an arrival: p50 of the lag falls from 17 to 5 us
TURN_US, SHARED_TURN_US = 1_000, 100  # longest turn of FastLanes; if other lanes wait beside it


class Handed(NamedTuple):
    """A request that FastLanes has begun, and what came of it so far.

    ``done``: bytes sent, −1 = the send failed by ``error``. ``data``: what was read, None =
    nothing; b"" = the end of the connection. ``error``: errno of the send or the read, else 0.
    """

    job: Job
    sent_us: int
    at_us: int
    done: int
    data: bytes | None
    error: int

    def sent(self) -> int:
        """As ``socket.send`` would have said it. Raises OSError."""
        if self.done < 0:
            raise OSError(self.error, os.strerror(self.error))
        return self.done

    @property
    def has_read(self) -> bool:
        """Whether it read, with whatever result, after it had sent all."""
        return self.data is not None or (self.error != 0 and self.done >= 0)

    def read(self) -> bytes:
        """As ``socket.recv`` would have said it. Raises OSError."""
        if self.data is None:
            raise OSError(self.error, os.strerror(self.error))
        return self.data


IDLE_ENDED = object()  # something came on an idle connection of a parked lane


class DeskLane(Protocol):
    """What a desk knows of a lane."""

    index: int

    def switch(self, signal: object) -> object:
        """Wake it up with a Job, a Handed or IDLE_ENDED."""

    def lend(self) -> int:
        """The descriptor of its connection while it is parked; −1 = it has none to lend."""


class Desk:
    """What all desks share, and what most of them have not: requests in hands of their own."""

    def __init__(
        self, cursor: Cursor | Turns, new_lane: Callable[[], DeskLane], now_us: Callable[[], int]
    ) -> None:
        self.cursor = cursor
        self.lease_us = 1 << 62
        """Nothing is taken after it."""
        self._new_lane = new_lane
        self._now_us = now_us
        self._waited = 0

    def begin(self, origin_ns: int) -> None:
        """t = 0 of the run is that moment of CLOCK_MONOTONIC."""

    def hand_out(self) -> None:
        """Give what is due to lanes that are free. In the hub."""
        raise NotImplementedError

    def freed(self, lane: DeskLane, now_us: int, *, takes: bool) -> Job | None:
        """A lane is free: an overdue arrival for it (if it ``takes``), or None and it is parked."""
        raise NotImplementedError

    def next_due_us(self) -> int | None:
        """When there is something to hand out, if a lane is free for it then; else None."""
        return self.cursor.next_due_us()

    def second(self) -> tuple[int, int]:
        """Since the last call: arrivals that waited for a lane, and ns idle that only it knows."""
        waited, self._waited = self._waited, 0
        return waited, 0

    fd = -1
    """Becomes readable when it is to hand_out; −1 = never."""

    def wake_late(self, now_us: int, signal: object) -> None:
        """Hand over who has waited for too long, and signal it."""

    def wake_busy(self, signal: object) -> None:
        """Hand over every request that is out, and signal it."""

    @property
    def busy(self) -> int:
        """Requests that are out and in no lane's hands."""
        return 0

    def file(self) -> None:
        """File what has ended since the last call."""


class PlainDesk(Desk):
    """Hands arrivals to lanes, in Python."""

    def __init__(
        self, cursor: Cursor, lanes: int, new_lane: Callable[[], DeskLane],
        now_us: Callable[[], int],
    ) -> None:  # fmt: skip
        super().__init__(cursor, new_lane, now_us)
        self._pool: LanePool[DeskLane] = LanePool(lanes)

    def hand_out(self) -> None:
        """See Desk."""
        while True:
            now = self._now_us()
            due, since = self.cursor.next_due_us(), self._pool.free_since()
            if due is None or since is None or due > now or now > self.lease_us:
                return
            job = self.cursor.take(now, since)
            if job is not None:
                lane = self._pool.take() or self._new_lane()
                lane.switch(job)

    def freed(self, lane: DeskLane, now_us: int, *, takes: bool) -> Job | None:
        """See Desk."""
        self._pool.park(lane, now_us)
        if not takes or now_us > self.lease_us:
            return None
        since = self._pool.free_since()
        assert since is not None, "this very lane is free"
        job = self.cursor.take(now_us, since)
        if job is None:
            return None
        self._pool.take()  # last in, first out: this lane
        if job.free_us > job.intended_us:
            self._waited += 1
        return job

    def next_due_us(self) -> int | None:
        """See Desk."""
        return None if self._pool.free_since() is None else self.cursor.next_due_us()


class UsersDesk(Desk):
    """Gives what a user asks to the user's own lane: everybody keeps one connection."""

    def __init__(
        self, turns: Turns, new_lane: Callable[[], DeskLane], now_us: Callable[[], int]
    ) -> None:
        super().__init__(turns, new_lane, now_us)
        self._turns = turns
        self._own: dict[int, DeskLane] = {}  # by user
        self._asked: dict[int, Job] = {}  # by lane

    def hand_out(self) -> None:
        """See Desk."""
        while (now := self._now_us()) <= self.lease_us:
            job = self._turns.take(now, 0)
            if job is None:
                return
            user = self._turns.user_of(job)
            if user not in self._own:
                self._own[user] = self._new_lane()
            lane = self._own[user]
            self._asked[lane.index] = job
            lane.switch(job)

    def freed(self, lane: DeskLane, now_us: int, *, takes: bool) -> Job | None:
        """See Desk. Its user begins to think."""
        if takes:
            self._turns.answered(self._asked[lane.index], now_us)
            self._waited += 1  # told where the loop never idles: there users wait for it
        return None


class FastCursor(Cursor):
    """A Cursor whose position FastLanes moves."""

    def __init__(
        self, fast: FastLanes, plan: Plan, blocks: Iterator[Block], filing: Filing
    ) -> None:
        self._fast = fast
        super().__init__(plan, blocks, filing)

    def next_due_us(self) -> int | None:
        """See Cursor."""
        self._see()
        return super().next_due_us()

    def expire(self, now_us: int) -> None:
        """See Cursor."""
        self._see()
        super().expire(now_us)

    def restripe(self, at_us: int, table: Table, now_us: int) -> None:
        """See Cursor."""
        self._see()
        super().restripe(at_us, table, now_us)

    def forget(self, now_us: int) -> None:
        """See Cursor."""
        self._see()
        super().forget(now_us)

    def stop(self, now_us: int) -> None:
        """See Cursor."""
        self._see()
        super().stop(now_us)

    def _see(self) -> None:
        """Take over where FastLanes is; load what comes next if it has come to an end."""
        at = self._fast.at
        if at != self._at:
            self._last = int(self._numbers[at - 1])
            super()._go(at)

    def _go(self, at: int) -> None:
        if at < self._count:
            self._fast.seek(at)
        super()._go(at)

    def _enter(self, block: Block | None) -> None:
        self._at = 0
        if block is None:
            self._due = None
            self._fast.load(0, *(np.empty(0, np.int64),) * 4, None)
            return
        self._block = block
        self._intended, self._kinds, self._rows = block.intended_us, block.kind, block.row
        self._slices = self._filing.slices_of(block.intended_us)
        self._count = len(block.intended_us)
        self._numbers = (
            range(block.first, block.first + self._count)
            if block.numbers is None
            else block.numbers
        )
        self._due = int(self._intended[0])
        columns = (block.intended_us, block.kind, block.row, self._slices)
        intended, kinds, rows, slices = (np.ascontiguousarray(one, np.int64) for one in columns)
        numbers = None if block.numbers is None else np.ascontiguousarray(block.numbers, np.int64)
        self._fast.load(block.first, intended, kinds, rows, slices, numbers)


class FastDesk(Desk):
    """Hands arrivals to lanes, and serves the ordinary ones by itself."""

    cursor: FastCursor

    def __init__(
        self, fast: FastLanes, cursor: FastCursor, filing: Filing, lanes: Sequence[DeskLane],
        new_lane: Callable[[], DeskLane], now_us: Callable[[], int], *, alone: bool,
    ) -> None:  # fmt: skip
        self._fast = fast
        super().__init__(cursor, new_lane, now_us)
        self._filing = filing
        self._lanes = lanes
        self._turn_us, self._spin_us = (TURN_US, SPIN_US) if alone else (SHARED_TURN_US, 0)
        self._who = [""]
        self.fd = fast.fd

    @property
    def lease_us(self) -> int:
        """See Desk."""
        return self._fast.lease_us

    @lease_us.setter
    def lease_us(self, until_us: int) -> None:
        self._fast.lease_us = until_us

    def begin(self, origin_ns: int) -> None:
        """See Desk."""
        self._fast.origin_ns = origin_ns

    def hand_out(self) -> None:
        """See Desk."""
        fast = self._fast
        until = self._now_us() + self._turn_us
        while True:
            self._wake(fast.turn(self._turn_us, self._spin_us))
            due = self.cursor.next_due_us()
            now = self._now_us()
            if due is None or due > now or not fast.has_free or now > self.lease_us or now > until:
                return

    def freed(self, lane: DeskLane, now_us: int, *, takes: bool) -> Job | None:
        """See Desk."""
        self._learn()
        fd = lane.lend()
        # With a connection it is served here, and far faster; without one its own code is needed.
        while takes and fd < 0 and (due := self.cursor.next_due_us()) is not None:
            if not due <= now_us <= self.lease_us:
                break
            overdue = self._fast.take(now_us)  # None: all of this block have expired
            if overdue is not None:
                return Job(*overdue)
        self._fast.park(lane.index, fd, now_us)
        return None

    def next_due_us(self) -> int | None:
        """See Desk."""
        return self.cursor.next_due_us() if self._fast.has_free else None

    def second(self) -> tuple[int, int]:
        """See Desk."""
        return self._fast.second()

    def wake_late(self, now_us: int, signal: object) -> None:
        """See Desk."""
        self._wake(self._fast.late(now_us), signal)

    def wake_busy(self, signal: object) -> None:
        """See Desk."""
        self._wake(self._fast.all_busy(), signal)

    @property
    def busy(self) -> int:
        """See Desk."""
        return self._fast.busy

    def file(self) -> None:
        """See Desk."""
        filing, deadlines = self._filing, self.cursor.deadlines
        for where, kind, crossed, who, count, rows in self._fast.cut():
            if who < 0:
                filing.expired_so_many(where, kind, crossed, deadlines[kind], count)
            else:
                filing.ordinary(where, kind, crossed, self._who[who], rows)

    def _wake(self, handed: list[Any], signal: object = None) -> None:
        for index, job, sent_us, at_us, done, data, error in handed:
            lane = self._new_lane() if index < 0 else self._lanes[index]
            if job is None:
                lane.switch(IDLE_ENDED)
            elif done < 0 and not error:
                lane.switch(Job(*job))
            else:
                lane.switch(Handed(Job(*job), sent_us, at_us, done, data, error))
            if signal is not None:
                lane.switch(signal)

    def _learn(self) -> None:
        """Replicas that lanes have heard of are ordinary from now on."""
        names = self._filing.names
        if len(names) == len(self._who):
            return
        for said, shown in islice(names.items(), len(self._who), None):
            if not self._fast.know(said.encode("latin-1")):
                break
            self._who.append(shown)


def make_desk(
    plan: Plan, blocks: Iterator[Block], filing: Filing, rules: list[Rule],
    payloads: list[list[bytes]], head_only: list[list[bool]], size: int, lanes: Sequence[DeskLane],
    new_lane: Callable[[], DeskLane], now_us: Callable[[], int], *, secure: bool,
    part: tuple[int, int] = (0, 1),
) -> Desk:  # fmt: skip
    """The fast one if it was compiled and the plan has requests for it; users have their own.

    ``part``: (worker, workers), of which ``blocks`` are cut down already.
    """
    if plan.closed:
        return UsersDesk(Turns(plan, filing, *part), new_lane, now_us)
    ordinary = [
        not (rule.streamed or rule.stream_complete or any(heads))
        for rule, heads in zip(rules, head_only, strict=True)
    ]
    if not COMPILED or os.environ.get(PLAIN) or secure or not any(ordinary):
        return PlainDesk(Cursor(plan, blocks, filing), size, new_lane, now_us)
    kinds = [
        (plain, plan.deadline_us(number), sorted(rule.expect_status), _fine(rule), payloads[number])
        for number, (plain, rule) in enumerate(zip(ordinary, rules, strict=True))
    ]
    fast = FastLanes(size, kinds, list(plan.marks), REPLICA_HEADER.encode())
    cursor = FastCursor(fast, plan, blocks, filing)
    return FastDesk(fast, cursor, filing, lanes, new_lane, now_us, alone=all(ordinary))


def _fine(rule: Rule) -> Callable[[bytes], bool] | None:
    check = rule.check
    if check is None:
        return None
    return lambda body: not check.wrong_of_body(body, whole=True)
