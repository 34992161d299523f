"""One answer that is hit: what its effect lets go leaves in order, each piece at its time."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

from .draws import Standing
from .effects import Item, Mark, Outs

HELD_MAX = 1024  # pieces held back before the service has to wait
TICK_S = 1e-6  # a timer may fire so much before its time, a virtual clock being in whole ns


class Hit:
    """One answer that is hit: its effect, and what it holds back, in order.

    ``out`` gets what leaves; nothing follows a Mark.
    """

    __slots__ = ("_effect", "_healed", "_held", "_last", "_loop", "_out", "_over", "_timer",
                 "done", "standing")  # fmt: skip

    def __init__(self, standing: Standing, out: Callable[[Item], None]) -> None:
        self.standing = standing
        self.done = False  # its Mark has left
        self._effect = standing.toxic.effect()
        self._out = out
        self._held: deque[tuple[float, Item]] = deque()
        self._last = 0.0
        self._over = False  # its Mark is on the way
        self._healed = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """The service has to wait."""
        return len(self._held) >= HELD_MAX

    def body(self, data: bytes) -> None:
        """The service sent this much more."""
        at = self._loop.time()
        self._put([(at, data)] if self._healed else self._effect.body(data, at))

    def end(self) -> None:
        """The service's answer is whole."""
        at = self._loop.time()
        self._put([(at, Mark.END)] if self._healed else self._effect.end(at))

    def broken(self) -> None:
        """The service's answer broke off."""
        rest, at = self._effect.rest(), self._loop.time()
        self._put([*([(at, rest)] if rest else []), (at, Mark.CUT)])

    def heal(self) -> None:
        """The toxic is gone: what was held back leaves at once, what still comes passes."""
        if self._healed or self.done:
            return
        self._healed = True
        held = [item for _, item in self._held]
        if not self._over:
            held.append(self._effect.rest())
        self.drop()
        self._last, self._over = 0.0, False
        at = self._loop.time()
        self._put([(at, item) for item in held if item])

    def drop(self) -> None:
        """All that was held back is lost."""
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _put(self, outs: Outs) -> None:
        for due, item in outs:
            if self._over:
                break
            self._last = max(self._last, due)
            self._held.append((self._last, item))
            self._over = isinstance(item, Mark)
        self._release()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time() + TICK_S
        while self._held and self._held[0][0] <= now:
            item = self._held.popleft()[1]
            self.done = isinstance(item, Mark)
            self._out(item)
        if self._held and self._held[0][0] < math.inf:
            self._timer = self._loop.call_at(self._held[0][0], self._release)
