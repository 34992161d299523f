"""Who of several load workers may send, and what is lost when one is gone. Knows no sockets.

A worker sends only under a lease. It asks twice a second, each answer is good for 1.5 s; a worker
that was not heard of for 2 s has had none for 0.5 s, so its part can be given to others and nothing
is ever sent twice. A process that is known to be dead needs no waiting. From then on whatever the
old owner says is not listened to: what it owned and had not reported is lost, to the request.

Users of a closed model go with their worker: nobody else could know what they had asked. One lost
request stands for each who was there, and from then on they are missing (survive.judge.load).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from survive.errors import HarnessError
from survive.load.core import Filing
from survive.load.stripes import Ownership, Table, planned_of, without
from survive.load.users import users_of
from survive.plan.arrivals import Block
from survive.plan.model import Plan
from survive.record.samples import Frame, Series

LEASE_US = 1_500_000  # of one grant
SAFE_US = 500_000  # after the end of a lease, before others take over: clocks differ a little
NOTICE_US = 120_000  # for the survivors to hear of it before it holds


@dataclass(frozen=True, slots=True)
class TakeOver:
    """``worker`` is out; the others own by ``table`` what is intended from ``at_us`` on.

    None: it had users, and nobody takes them over.
    """

    worker: int
    at_us: int
    table: Table | None
    why: str


@dataclass(slots=True)
class _Worker:
    until_us: int = LEASE_US
    out_from_us: int | None = None  # its part is others' from here on
    closed: bool = False  # its losses are counted
    done: bool = False
    reported: Counter[tuple[int, str]] = field(default_factory=Counter)  # (slice, kind) → fates


class Leases:
    """The books of one run. Times are µs on the run's clock; frames come in any order."""

    def __init__(self, plan: Plan, workers: int, schedule: Callable[[], Iterator[Block]]) -> None:
        self._plan = plan
        self._schedule = schedule
        self._workers = [_Worker() for _ in range(workers)]
        self._ownership = Ownership.of(workers)
        self._stopped = False

    @property
    def living(self) -> list[int]:
        """Workers that may still send."""
        return [n for n, worker in enumerate(self._workers) if worker.out_from_us is None]

    @property
    def done(self) -> bool:
        """Every worker has sent its last frame, or is out and counted."""
        return all(w.done if w.out_from_us is None else w.closed for w in self._workers)

    def asked(self, worker: int, now_us: int) -> int | None:
        """A worker wants to go on: until when it may. None: it is out and has to leave."""
        found = self._workers[worker]
        if found.out_from_us is not None:
            return None
        found.until_us = now_us + LEASE_US
        return found.until_us

    def frame(self, worker: int, frame: Frame) -> bool:
        """Whether a frame counts. One of a worker that is out and counted does not."""
        found = self._workers[worker]
        if found.closed:
            return False
        for key, counts in frame.sets:
            if key.series is Series.LATENCY:
                found.reported[key.slice, key.kind] += sum(counts.counts)
        found.done = found.done or frame.done
        return True

    def stop(self) -> None:
        """The run ends early: nobody takes over any more."""
        self._stopped = True

    def died(self, worker: int, now_us: int) -> TakeOver | None:
        """Its process is gone. None if it was done, or out before.

        HarnessError if it was the last.
        """
        found = self._workers[worker]
        if found.done or found.out_from_us is not None:
            return None
        return self._out(worker, now_us, "died")

    def tick(self, now_us: int) -> list[TakeOver]:
        """Workers whose lease has run out long enough. HarnessError if nobody is left."""
        return [
            self._out(n, now_us, "was not heard of")
            for n in self.living
            if not self._workers[n].done and now_us >= self._workers[n].until_us + SAFE_US
        ]

    def _out(self, worker: int, now_us: int, why: str) -> TakeOver:
        at_us = now_us + NOTICE_US
        self._workers[worker].out_from_us = at_us
        if not self.living:
            raise HarnessError(f"no load worker is left: worker {worker} {why}")
        if self._plan.closed:
            return TakeOver(worker, at_us, None, why)
        table = without(self._ownership.latest, worker)
        self._ownership = self._ownership.changed(at_us, table)
        return TakeOver(worker, at_us, table, why)

    def losses(self, now_us: int) -> Iterator[Frame]:
        """What workers that went out have taken with them, once others own their part."""
        for number, worker in enumerate(self._workers):
            at_us = worker.out_from_us
            if at_us is not None and now_us >= at_us and not worker.closed:
                worker.closed = True
                if self._plan.closed:
                    yield self._gone(number, now_us)
                else:
                    yield self._lost(number, (1 << 62) if self._stopped else at_us, now_us)

    def _gone(self, number: int, now_us: int) -> Frame:
        """One request of each kind's share for each of its users who was there."""
        plan, filing = self._plan, Filing(self._plan)
        at_us = min(now_us - NOTICE_US, plan.end_us - 1)
        users = users_of(plan, filing, number, len(self._workers))
        there = sum(user.here(at_us) for user in users)
        where = filing.slice_of(at_us)
        shares = next(p for p in plan.phases if at_us < p.end_us).shares
        for kind in plan.kinds:  # rounded up: a kind that was asked is not all known any more
            filing.lose(where, kind, math.ceil(there * shares[kind]))
        return filing.cut(now_us)

    def _lost(self, number: int, until_us: int, now_us: int) -> Frame:
        """Planned before its end, and no fate of it reported. HarnessError if it reported more."""
        filing = Filing(self._plan)
        owned: Counter[tuple[int, str]] = Counter()
        for block in planned_of(self._schedule(), self._ownership, number, until_us):
            slices = np.asarray(filing.slices_of(block.intended_us))
            places, counts = np.unique(np.stack([slices, block.kind]), axis=1, return_counts=True)
            for where, kind, count in zip(*places.tolist(), counts.tolist(), strict=True):
                owned[where, self._plan.kinds[kind]] += count
        told = self._workers[number].reported
        for (where, kind), count in sorted(owned.items()):
            missing = count - told.pop((where, kind), 0)
            if missing < 0:
                raise HarnessError(f"load worker {number} reported more {kind} than it owned")
            filing.lose(where, kind, missing)
        if any(told[place] for place in told if place[1] in self._plan.kinds):
            raise HarnessError(f"load worker {number} reported what it did not own")
        return filing.cut(now_us)
