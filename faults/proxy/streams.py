"""One direction of a connection: a chain of toxics from source to sink, whatever these are.

Everything runs in one event loop without a task or a lock per chunk: bytes that meet no toxic
leave within the callback that read them.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Protocol, TypeAlias

from .http1 import Way
from .toxics import CLOSE, RESET, Cut, Flow, Pieces, Toxic

Out: TypeAlias = Callable[[bytes, float], None]  # (chunk or b"" = end, when it arrived)


class Applied:
    """A toxic as it stands on a proxy. Updates change it in place: live connections see it."""

    __slots__ = ("name", "settings", "stream", "toxicity", "type")

    def __init__(
        self, name: str, type_: str, stream: str, toxicity: float, settings: Toxic
    ) -> None:
        self.name = name
        self.type = type_
        self.stream = stream
        self.toxicity = toxicity
        self.settings = settings


class Stage:
    """One toxic on one stream: a queue in order of time.

    Whether it bites is drawn once per connection; the draw stays when toxicity is updated, so that
    more toxicity means the same connections and some more.
    """

    __slots__ = ("_changed", "_cut", "_draw", "_flow", "_held", "_last", "_loop", "_timer",
                 "full", "out", "toxic")  # fmt: skip

    def __init__(self, toxic: Applied, random: Random, changed: Callable[[], None]) -> None:
        self.toxic = toxic
        self.full = False
        self.out: Out = _nowhere
        self._draw = random.random()
        self._flow = Flow(random)
        self._changed = changed
        self._cut = False  # nothing follows a cut
        self._held: deque[tuple[float, bytes]] = deque()
        self._last = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """It stands on the connection from now on; call once ``out`` is wired."""
        now = self._loop.time()
        if self._draw < self.toxic.toxicity and (pieces := self.toxic.settings.begins(now)):
            self._hold(pieces, now)

    def take(self, chunk: bytes, at: float) -> None:
        """Hold a chunk as long as the toxic wants; never overtakes one that came before."""
        if self._draw >= self.toxic.toxicity:
            self.out(chunk, at)
        elif not self._cut:
            self._hold(self.toxic.settings.leaves(chunk, at, self._flow), at)

    def update(self) -> None:
        """The toxic has new settings: they hold for what comes after what is held now."""
        if self.toxic.settings.begins(0.0):  # it acts by time alone: it holds but its own end
            self._held.clear()
            self._reset()
            self.begin()
        else:
            self.flush()

    def flush(self) -> None:
        """Pass on all that is held, at once and in order: the toxic is changed or gone."""
        self._reset()
        now = self._loop.time()
        while self._held:
            self.out(self._held.popleft()[1], now)
        self._mark()

    def stop(self) -> None:
        """No timer is left behind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reset(self) -> None:
        self.stop()
        self._last = self._flow.free = 0.0

    def _hold(self, pieces: Pieces, at: float) -> None:
        for due, piece in pieces:
            self._last = max(due, self._last, at)
            self._held.append((self._last, piece))
            self._cut = self._cut or (not piece and isinstance(piece, Cut))
        self._release(self._loop.time())

    def _release(self, now: float) -> None:
        while self._held and self._held[0][0] <= now:
            due, piece = self._held.popleft()
            # The next toxic counts from when the piece was due, so that lateness does not add up.
            self.out(piece, due)
        if self._held and self._timer is None and self._held[0][0] < math.inf:
            self._timer = self._loop.call_at(self._held[0][0], self._on_time)
        self._mark()

    def _on_time(self) -> None:
        assert self._timer is not None
        # A loop may call a hair before the time: the resolution of its clock.
        due, self._timer = self._timer.when(), None
        self._release(max(due, self._loop.time()))

    def _mark(self) -> None:
        room = self.toxic.settings.room
        full = len(self._held) >= (room // 2 if self.full else room)
        if full != self.full:
            self.full = full
            self._changed()


def _nowhere(chunk: bytes, at: float) -> None:
    raise AssertionError("a stage that is not wired")


class Source(Protocol):
    """Where a stream's bytes come from."""

    def read(self, on: bool) -> None:
        """Go on reading, or wait."""


class Sink(Protocol):
    """Where a stream's bytes go to."""

    def write(self, chunk: bytes) -> None:
        """A piece of the stream."""

    def end(self) -> None:
        """No more will come; the other direction may go on."""

    def close_both(self) -> None:
        """Neither direction goes on."""

    def reset_both(self) -> None:
        """The same at once, as an error."""


class Stream:
    """One direction of a connection: source → toxics in order → sink."""

    __slots__ = ("_sink", "_source", "ended", "enter", "front", "sink_full", "stages")

    def __init__(self, source: Source, sink: Sink) -> None:
        self._source = source
        self._sink = sink
        self.stages: list[Stage] = []
        self.front: Way | None = None  # HTTP toxics: before all others, who see but bytes
        self.sink_full = False
        self.ended = False
        self.enter: Out = self._leave

    def wire(self) -> None:
        """Join the stages after their list has changed."""
        out: Out = self._leave
        for stage in reversed(self.stages):
            stage.out = out
            out = stage.take
        if self.front is not None:
            self.front.out = out
            out = self.front.take
        self.enter = out

    def remove(self, toxic: Applied) -> None:
        """Without the toxic; what it held leaves first, so order is kept."""
        for stage in [stage for stage in self.stages if stage.toxic is toxic]:
            self.stages.remove(stage)
            self.wire()
            stage.flush()
        self.steer()

    def update(self, toxic: Applied) -> None:
        """The toxic has new settings."""
        for stage in self.stages:
            if stage.toxic is toxic:
                stage.update()

    def steer(self) -> None:
        """Read the source only while there is room, in the toxics and in the sink."""
        full = self.sink_full or any(stage.full for stage in self.stages)
        self._source.read(not full and not (self.front is not None and self.front.full))

    def _leave(self, chunk: bytes, at: float) -> None:
        if chunk:
            self._sink.write(chunk)
        elif chunk is CLOSE:
            self._sink.close_both()
        elif chunk is RESET:
            self._sink.reset_both()
        elif not self.ended:
            self.ended = True
            self._sink.end()
