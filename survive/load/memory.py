"""The load of the virtual host: lanes as tasks on the run's clock, requests through a Transport.

The same core as the real load decides what everything means; here is only who waits for what.
Deterministic: lanes are numbered, no set is iterated, nothing but the clock tells time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from survive.clock import Clock
from survive.load.core import Cursor, Exchange, Filing, Job, LanePool, rules
from survive.load.template import CompiledKind
from survive.load.users import User, users_of
from survive.plan.arrivals import Schedule
from survive.plan.model import Plan
from survive.record.samples import Frame
from survive.transport import Broken, CallFailedError, Request, Response, Transport
from survive.units import SECOND

# Our own deadline must fire before the transport's: it alone knows what the request becomes.
_TRANSPORT_GRACE_S = 1.0


class MemoryLoad:
    """One worker over a Transport. ``address`` is the entry, ``host:port``."""

    def __init__(
        self, plan: Plan, kinds: list[CompiledKind], transport: Transport, clock: Clock,
        address: str,
    ) -> None:  # fmt: skip
        self._requests = [kind.requests for kind in kinds]
        self._transport = transport
        self._clock = clock
        self._address = address
        self._rules = rules(plan, kinds)
        self._filing = Filing(plan)
        self._cursor = Cursor(plan, Schedule.of(plan).blocks(), self._filing)
        self._users = users_of(plan, self._filing)
        self._end_us = plan.end_us
        self._pool: LanePool[int] = LanePool(plan.lanes)
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by lane
        self._open: dict[int, Exchange] = {}  # by lane
        self._lanes = 0
        self._freed = asyncio.Event()
        self._error: BaseException | None = None

    async def run(self, report: Callable[[Frame], None], stop: asyncio.Event) -> None:
        """Send the whole schedule and drain; a frame each second, the last one ``done``.

        ``stop`` set: what was not sent is unsent, what is unanswered in flight, and it returns.
        """
        reporting = asyncio.create_task(self._report_each_second(report))
        pacing = asyncio.create_task(self._pace())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({pacing, stopping, reporting}, return_when=asyncio.FIRST_COMPLETED)
            for task in (pacing, reporting):
                if task.done():
                    task.result()
        finally:
            await _cancel([reporting, pacing, stopping])
            stopped_us = self._clock.now_us()
            for lane in sorted(self._open):
                self._open[lane].on_stopped(stopped_us)
            await _cancel([self._tasks[lane] for lane in sorted(self._tasks)])
        self._cursor.stop(stopped_us)
        report(self._filing.cut(stopped_us, done=True))

    async def _report_each_second(self, report: Callable[[Frame], None]) -> None:
        second = 0
        while True:
            await self._clock.sleep_until((second + 1) * SECOND)
            now = self._clock.now_us()
            self._cursor.expire(now)
            # Work takes no time on a virtual clock: the whole second was idle, by definition.
            self._filing.harness(second * SECOND, now - second * SECOND, None)
            present = sum(user.here(now - 1) for user in self._users)
            self._filing.users(second * SECOND, present)
            report(self._filing.cut(now))
            second += 1

    async def _pace(self) -> None:
        """Hand out the schedule (users ask by themselves); returns when all is answered."""
        for user in self._users:
            self._tasks[user.number] = asyncio.create_task(self._live(user))
        while (due := self._cursor.next_due_us()) is not None:
            self._raise_if_broken()
            now = self._clock.now_us()
            since = self._pool.free_since()
            if since is None:
                self._freed.clear()
                await self._freed.wait()
            elif due > now:
                await self._clock.sleep_until(due)
            elif (job := self._cursor.take(now, since)) is not None:
                self._start(job)
        while self._tasks:
            self._raise_if_broken()
            self._freed.clear()
            await self._freed.wait()
        self._raise_if_broken()
        if self._users:  # who has asked the last question is there to the end all the same
            await self._clock.sleep_until(self._end_us + 1)

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise self._error

    def _start(self, job: Job) -> None:
        lane = self._pool.take()
        if lane is None:
            lane = self._lanes
            self._lanes += 1
        self._tasks[lane] = asyncio.create_task(self._work(lane, job))

    async def _work(self, lane: int, first: Job) -> None:
        """One lane: a request, then what has become due meanwhile, until nothing has."""
        job: Job | None = first
        try:
            while job is not None:
                await self._serve(lane, job)
                now = self._clock.now_us()
                self._pool.park(lane, now)
                since = self._pool.free_since()
                assert since is not None, "this very lane is free"
                job = self._cursor.take(now, since)
                if job is not None:
                    self._pool.take()  # last in, first out: this lane
        except Exception as error:  # a bug of ours; _pace raises it in run()
            self._error = error
        finally:
            del self._tasks[lane]
            self._freed.set()

    async def _live(self, user: User) -> None:
        """One user: asks, waits for the answer, thinks, asks again."""
        try:
            job = user.next_turn(0)
            while job is not None:
                await self._clock.sleep_until(job.intended_us)
                await self._serve(user.number, job)
                job = user.next_turn(self._clock.now_us())
        except Exception as error:  # a bug of ours; _pace raises it in run()
            self._error = error
        finally:
            del self._tasks[user.number]
            self._freed.set()

    async def _serve(self, lane: int, job: Job) -> None:
        exchange = Exchange(self._filing, self._rules[job.kind], job)
        exchange.on_sent(self._clock.now_us())
        self._open[lane] = exchange
        requests = self._requests[job.kind]
        request = requests[job.row % len(requests)]
        try:
            await self._attempt(exchange, request)
            while exchange.again_us is not None:
                await self._clock.sleep_until(exchange.again_us)
                if exchange.on_again(self._clock.now_us()):
                    await self._attempt(exchange, request)
        finally:
            del self._open[lane]

    async def _attempt(self, exchange: Exchange, request: Request) -> None:
        """Once over the wire, until it ends or its user's deadline passes."""
        exchange.on_attempt(self._clock.now_us())
        call = asyncio.create_task(self._call(exchange, request))
        try:
            while exchange.outcome is None and not call.done():
                left_s = (exchange.deadline_us - self._clock.now_us()) / 1e6
                await asyncio.wait({call}, timeout=max(0.0, left_s))
                if not call.done():
                    exchange.on_deadline(self._clock.now_us())
            if call.done():
                call.result()
        finally:
            await _cancel([call])

    async def _call(self, exchange: Exchange, request: Request) -> None:
        """One call; what happens goes to the exchange, nothing is raised for a failed request."""
        left_s = (exchange.deadline_us - self._clock.now_us()) / 1e6
        response: Response | None = None
        try:
            response = await self._transport.call(
                self._address, request, timeout_s=left_s + _TRANSPORT_GRACE_S
            )
            exchange.on_head(response.status, response.headers, self._clock.now_us())
            async for chunk in response.chunks():
                exchange.on_body(chunk, self._clock.now_us())
                if exchange.outcome is not None:
                    return
            exchange.on_end(self._clock.now_us())
        except CallFailedError as error:
            exchange.on_broken(Broken(error.how), self._clock.now_us())
        finally:
            if response is not None:
                await response.close()


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """End tasks and wait for them; a task's own error was or will be raised elsewhere."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
