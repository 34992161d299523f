"""An event loop whose clock is a counter: when nothing is ready it jumps to the next timer.

Nothing ever waits for real, so a 75-second scenario takes as long as its code takes to run, and the
same coroutine runs in the same order every time. What would hang a real loop is an error here: no
timer and nothing ready (``DeadlockError``), time or turns without end (``RunawayError``).
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

LIMIT_S = 25 * 3600.0  # a run is at most 24 h; the rest is for its drain
MAX_IDLE_TURNS = 1_000_000  # loop turns without time passing: somebody spins
_POLL_EVERY = 256  # turns between looks at real file descriptors (signals wake by one)
_MAX_NAMED = 20  # pending tasks that an error names


class DeadlockError(Exception):
    """Nothing is ready and no timer is set, so nothing can ever happen. Names who waits."""


class RunawayError(Exception):
    """Virtual time passed its limit, or stood still for a million turns."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module's docstring. Time is kept in integer nanoseconds, so it never drifts."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._now_ns = 0
        self._limit_ns = round(limit_s * 1e9)
        super().__init__(_Jumper(self))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_ns / 1e9

    def jump(self, by_s: float) -> None:
        """Let time pass. Raises RunawayError at the limit."""
        self._now_ns += round(by_s * 1e9)
        if self._now_ns > self._limit_ns:
            raise RunawayError(
                f"virtual time passed {self._limit_ns / 1e9:.6g} s; pending: {pending(self)}"
            )


class _Jumper(selectors.DefaultSelector):
    """Instead of waiting for ``timeout`` seconds, lets the loop's clock pass them."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._idle_turns = 0
        self._until_poll = _POLL_EVERY

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready without waiting; asyncio passes None when it has no timer at all."""
        if timeout is None:
            return self._only_real()
        if timeout > 0:
            self._idle_turns = 0
            self._loop.jump(timeout)
        else:
            self._idle_turns += 1
            if self._idle_turns > MAX_IDLE_TURNS:
                raise RunawayError(
                    f"{MAX_IDLE_TURNS} turns at {self._loop.time():.6f} s without time passing; "
                    f"pending: {pending(self._loop)}"
                )
        self._until_poll -= 1
        if self._until_poll > 0:
            return []
        self._until_poll = _POLL_EVERY
        return super().select(0)

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
    try:
        return loop.run_until_complete(main)
    finally:
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
