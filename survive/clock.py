"""Time and chance: the only ways to either, so that a ten-minute scenario can be a fast test.

One clock per run: monotonic microseconds since the start of load, the same origin in every
process of the run (CLOCK_MONOTONIC is one clock for a whole Linux host). Under the virtual host
the event loop's own time is a counter, and the very same class serves.
"""

from __future__ import annotations

import asyncio
import random
from typing import Protocol


class Clock(Protocol):
    """Time of the run."""

    def now_us(self) -> int:
        """Microseconds since the run's origin; negative before it."""

    async def sleep_until(self, t_us: int) -> None:
        """Return once ``now_us() >= t_us``; at once (yet yielding once) if that has passed."""


class LoopClock:
    """The clock of the running event loop, real or virtual.

    ``origin_s`` is the loop time (``time.monotonic()`` on a real loop) of t = 0.
    """

    __slots__ = ("origin_s",)

    def __init__(self, origin_s: float) -> None:
        self.origin_s = origin_s

    def now_us(self) -> int:
        """See Clock."""
        return round((asyncio.get_running_loop().time() - self.origin_s) * 1e6)

    async def sleep_until(self, t_us: int) -> None:
        """See Clock."""
        await asyncio.sleep(max(0.0, (t_us - self.now_us()) / 1e6))


async def sleep_us(clock: Clock, us: int) -> None:
    """Sleep for a span on a clock."""
    await clock.sleep_until(clock.now_us() + us)


def seeded(seed: int, *names: str | int) -> random.Random:
    """A generator for each named part: the draws of one never shift those of another."""
    return random.Random(":".join(str(part) for part in (seed, *names)))
