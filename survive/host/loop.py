"""An event loop whose clock is a counter: when nothing is ready it jumps to the next timer.

Nothing ever waits for real, so a 75-second scenario takes as long as its code takes to run, and the
same coroutine runs in the same order every time. What would hang a real loop is an error here: no
timer and nothing ready (``DeadlockError``), time or turns without end (``RunawayError``).
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, TypeVar

from survive.clock import LoopClock

T = TypeVar("T")

LIMIT_S = 25 * 3600.0  # a run is at most 24 h; the rest is for its drain
MAX_IDLE_TURNS = 1_000_000  # loop turns in which hardly any time passes: somebody spins
_HARDLY_NS = 1_000
_POLL_EVERY = 256  # turns between looks at real file descriptors (signals wake by one)
_MAX_NAMED = 20  # pending tasks that an error names
# As asyncio has them: the heap is cleared of cancelled timers once there are many.
_MIN_TIMERS_TO_CLEAR = 100
_CANCELLED_SHARE_TO_CLEAR = 0.5
_GC_AFTER = 20_000  # new objects: a run makes many of them and few cycles
_AT_ONCE_S = 1e-9  # timers this close are one moment


class DeadlockError(Exception):
    """Nothing is ready and no timer is set, so nothing can ever happen. Names who waits."""


class RunawayError(Exception):
    """Virtual time passed its limit, or stood still for a million turns."""


class _Call(list[Any]):
    """What asyncio's Handle is: [context, callback, args], without a callback once cancelled.

    A list, for it is made in C: a run of a minute makes hundreds of thousands.
    """

    __slots__ = ()
    _source_traceback = None  # asyncio's own call_soon_threadsafe looks for it

    def cancel(self) -> None:
        """See asyncio.Handle."""
        self[1] = None
        self[2] = ()

    def cancelled(self) -> bool:
        """See asyncio.Handle."""
        return self[1] is None


class _Timer(float):
    """What asyncio's TimerHandle is: the loop's time when it is due, and the call that is.

    A float, so that the heap compares in C.
    """

    __slots__ = ("call", "loop")

    call: _Call
    loop: VirtualLoop | None  # None = it has left the heap

    def when(self) -> float:
        """See asyncio.TimerHandle."""
        return float(self)

    def cancel(self) -> None:
        """See asyncio.Handle."""
        if self.call[1] is not None and self.loop is not None:
            self.loop.timers_cancelled += 1
        self.call.cancel()

    def cancelled(self) -> bool:
        """See asyncio.Handle."""
        return self.call[1] is None


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module's docstring. Time is kept in integer nanoseconds, so it never drifts.

    Calls are kept as asyncio's own loop keeps them and taken in its very order, but leaner: most
    of the time of a virtual run is spent right here.
    """

    _closed: bool
    _stopping: bool
    _process_events: Callable[[list[tuple[selectors.SelectorKey, int]]], None]

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._now_ns = 0
        self._limit_ns = round(limit_s * 1e9)
        self.now_s = 0.0
        """Virtual seconds since the loop was made."""
        self.timers_cancelled = 0  # that are still in the heap
        self._jumper = _Jumper(self)
        super().__init__(self._jumper)
        self._ready: deque[_Call] = deque()
        self._scheduled: list[_Timer] = []

    def time(self) -> float:
        """See now_s."""
        return self.now_s

    def jump(self, by_s: float) -> None:
        """Let time pass: a nanosecond at least, or who waits for less would wait for ever.

        Raises RunawayError at the limit.
        """
        self._now_ns += max(1, round(by_s * 1e9))
        self.now_s = self._now_ns / 1e9
        if self._now_ns > self._limit_ns:
            raise RunawayError(
                f"virtual time passed {self._limit_ns / 1e9:.6g} s; pending: {pending(self)}"
            )

    # ------------------------------------------------------------ what asyncio calls

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Call:
        """See asyncio."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        call = _Call((copy_context() if context is None else context, callback, args))
        self._ready.append(call)
        return call

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> _Timer:
        """See asyncio."""
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> _Timer:
        """See asyncio."""
        if self._closed:
            raise RuntimeError("Event loop is closed")
        timer = _Timer(when)
        timer.call = _Call((copy_context() if context is None else context, callback, args))
        timer.loop = self
        heapq.heappush(self._scheduled, timer)
        return timer

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> _Call:
        """Of ``call_soon_threadsafe``."""
        return self.call_soon(callback, *args, context=context)

    def _add_callback(self, handle: asyncio.Handle) -> None:
        """A real file descriptor is ready: signals wake by one."""
        self.call_soon(_run_handle, handle)

    def _run_once(self) -> None:
        """One turn: what is ready now, not what becomes ready by it."""
        self._clear_cancelled()
        timeout: float | None = None
        if self._ready or self._stopping:
            timeout = 0
        elif self._scheduled:
            timeout = max(0.0, self._scheduled[0] - self.now_s)
        events = self._jumper.select(timeout)
        if events:
            self._process_events(events)
        self._take_due()
        ready = self._ready
        for _ in range(len(ready)):
            call = ready.popleft()
            context, callback, args = call
            if callback is None:
                continue
            try:
                context.run(callback, *args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                message = f"Exception in callback {callback!r}"
                self.call_exception_handler({"message": message, "exception": error})

    def _clear_cancelled(self) -> None:
        timers = self._scheduled
        count = len(timers)
        if (
            count > _MIN_TIMERS_TO_CLEAR
            and self.timers_cancelled / count > _CANCELLED_SHARE_TO_CLEAR
        ):
            for timer in timers:
                if timer.call[1] is None:
                    timer.loop = None
            self._scheduled = [timer for timer in timers if timer.loop is not None]
            heapq.heapify(self._scheduled)
            self.timers_cancelled = 0
            return
        while timers and timers[0].call[1] is None:
            self.timers_cancelled -= 1
            heapq.heappop(timers).loop = None

    def _take_due(self) -> None:
        """Timers whose time has come are ready."""
        until_s = self.now_s + _AT_ONCE_S
        timers = self._scheduled
        while timers and timers[0] < until_s:
            timer = heapq.heappop(timers)
            timer.loop = None
            self._ready.append(timer.call)


def _run_handle(handle: asyncio.Handle) -> None:
    if not handle.cancelled():
        handle._run()


class VirtualClock(LoopClock):
    """The clock of a VirtualLoop."""

    __slots__ = ("_loop",)

    def __init__(self, loop: VirtualLoop, origin_s: float) -> None:
        super().__init__(origin_s)
        self._loop = loop

    def now_us(self) -> int:
        """See Clock."""
        return round((self._loop.now_s - self.origin_s) * 1e6)


class _Jumper(selectors.DefaultSelector):
    """Instead of waiting for ``timeout`` seconds, lets the loop's clock pass them."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns, self._since_ns = 0, 0
        self._until_poll = _POLL_EVERY

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready without waiting; asyncio passes None when it has no timer at all."""
        if timeout is None:
            return self._only_real()
        if timeout > 0:
            self._loop.jump(timeout)
        self._turns += 1
        if self._turns > MAX_IDLE_TURNS:
            self._check_time_passes()
        self._until_poll -= 1
        if self._until_poll > 0:
            return []
        self._until_poll = _POLL_EVERY
        return super().select(0)

    def _check_time_passes(self) -> None:
        """Also of who waits again and again for next to nothing."""
        now_ns = round(self._loop.now_s * 1e9)
        if now_ns - self._since_ns < _HARDLY_NS:
            raise RunawayError(
                f"{MAX_IDLE_TURNS} turns at {self._loop.time():.6f} s without time passing; "
                f"pending: {pending(self._loop)}"
            )
        self._turns, self._since_ns = 0, now_ns

    def _only_real(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            raise DeadlockError(
                f"nothing is ready and no timer is set at {self._loop.time():.6f} s; "
                f"pending: {pending(self._loop)}"
            )
        return ready


def pending(loop: asyncio.AbstractEventLoop) -> str:
    """Names and places of the tasks that have not ended, for people."""
    named = [_describe(task) for task in _tasks(loop)]
    shown = ", ".join(named[:_MAX_NAMED])
    return f"{shown} and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else shown


def _describe(task: asyncio.Task[Any]) -> str:
    name = getattr(task.get_coro(), "__qualname__", "?")
    frames = task.get_stack(limit=1)
    place = f" at {frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else ""
    return f"{task.get_name()} ({name}{place})"


def _tasks(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """In a stable order: asyncio keeps a set, whose order differs from run to run."""
    return sorted(asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name()))


def virtual_run(main: Coroutine[Any, Any, T], *, limit_s: float = LIMIT_S) -> T:
    """Run a coroutine to its end under virtual time; cancels what it left behind.

    Raises what the coroutine raises, DeadlockError, RunawayError.
    """
    loop = VirtualLoop(limit_s)
    thresholds = gc.get_threshold()
    gc.set_threshold(max(_GC_AFTER, thresholds[0]), *thresholds[1:])
    try:
        return loop.run_until_complete(main)
    finally:
        gc.set_threshold(*thresholds)
        try:
            _cancel_leftovers(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


def _cancel_leftovers(loop: VirtualLoop) -> None:
    tasks = _tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            loop.call_exception_handler(
                {"message": "error in a cancelled task", "exception": error, "task": task}
            )
