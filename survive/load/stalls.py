"""Stalls of a load worker's loop, and whose doing they were.

A stall is a turn of the loop of over 10 ms: nothing is sent or read in it. Where the kernel says
how long a thread was ready and had no core (run delay, the second number of
/proc/thread-self/schedstat), a stall that was mostly that wait is told apart: others had the core.
What is left is our own work, or a process that was frozen as a whole.
"""

from __future__ import annotations

import os

STALL_NS = 10_000_000
_TOLD_BYTES = 96
_SCHEDSTAT = "/proc/thread-self/schedstat"


class Stalls:
    """Of one loop. To be made and used in the loop's own thread."""

    def __init__(self) -> None:
        self._own: list[int] = []
        self._others: list[int] = []
        try:
            self._fd = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self._waited_ns = self._run_delay_ns()

    def look(self) -> None:
        """Often, and in no stall: what was waited for a core up to here belongs to none."""
        self._waited_ns = self._run_delay_ns()

    def seen(self, span_ns: int) -> None:
        """A stall of that length ended just now."""
        before = self._waited_ns
        self.look()
        mostly_waited = 2 * (self._waited_ns - before) >= span_ns
        (self._others if mostly_waited else self._own).append(span_ns // 1000)

    def take(self) -> tuple[list[int], list[int]]:
        """Lengths in µs since the last call: (our own or nobody's, while others had the core)."""
        taken = self._own, self._others
        self._own, self._others = [], []
        return taken

    def _run_delay_ns(self) -> int:
        """0 for ever where the kernel does not say."""
        if self._fd < 0:
            return 0
        try:
            return int(os.pread(self._fd, _TOLD_BYTES, 0).split()[1])
        except (OSError, ValueError, IndexError):
            return 0
