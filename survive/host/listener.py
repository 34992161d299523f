"""A fault proxy in memory: the very streams and toxics of the embedded one, between virtual ends.

``faults/proxy`` is loaded as any built-in is, so a toxic has one meaning on both hosts. What goes
through is not bytes but whole things (a request, a head, a piece of a body); each counts for as
many bytes as it would have on a wire, and arrives when the last of them does. Pieces of a body are
cut as a toxic cuts them.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from survive.catalog import builtin_root, load_module
from survive.contracts import Toxic
from survive.host.protocol import HttpFaults


class Way(Protocol):
    """One connection through a listener, as its listener sees it."""

    number: int  # of the connection, at its listener

    def pipes(self) -> tuple[Pipe, Pipe]:
        """Upstream and downstream."""

    def proxy_closed(self) -> None:
        """The proxy ended the connection on both sides."""

    def proxy_reset(self) -> None:
        """The proxy cut the connection on both sides."""


@cache
def _proxy() -> Any:
    """The modules of the embedded proxy: (streams, toxics)."""
    folder = builtin_root() / "faults" / "proxy"
    return load_module(folder / "streams.py"), load_module(folder / "toxics.py")


class Listener:
    """One listener of a fault proxy: Toxiproxy's semantics, in memory.

    Disabling resets every connection and refuses new ones. A dead upstream is accepted, then
    closed.
    """

    def __init__(self, address: str, upstream: str, chance: random.Random) -> None:
        self.address = address
        self.upstream = upstream
        self.enabled = True
        self.toxics: dict[str, Toxic] = {}
        self.http = HttpFaults()
        self.seen = {"tls": 0, "plain": 0}
        self._applied: dict[str, Any] = {}
        self._seed = chance.getrandbits(64)
        self._accepted = 0
        self._ways: dict[Way, None] = {}  # a dict: sets have no stable order

    def add(self, toxic: Toxic) -> None:
        """Create or replace a toxic; live connections feel it. Raises ValueError if unknown."""
        if self.http.add(toxic):
            return
        applied = _applied(toxic)
        if toxic.name in self.toxics:
            self.remove(toxic.name)
        self.toxics[toxic.name] = toxic
        self._applied[toxic.name] = applied
        for way in list(self._ways):
            self._put(way, applied)

    def remove(self, name: str) -> None:
        """Remove a toxic; absent is fine. What it held leaves at once, in order."""
        self.http.remove(name)
        applied = self._applied.pop(name, None)
        self.toxics.pop(name, None)
        if applied is not None:
            for way in list(self._ways):
                for pipe in way.pipes():
                    pipe.stream.remove(applied)

    def enable(self, on: bool) -> None:
        """Open or close the listener and its connections."""
        self.enabled = on
        if not on:
            for way in list(self._ways):
                way.proxy_reset()

    def number(self) -> int:
        """Of the next connection."""
        self._accepted += 1
        return self._accepted

    def opened(self, way: Way) -> None:
        """A connection runs through this listener."""
        self._ways[way] = None
        for applied in self._applied.values():
            self._put(way, applied)

    def closed(self, way: Way) -> None:
        """It does no longer. Idempotent."""
        self._ways.pop(way, None)

    def _put(self, way: Way, applied: Any) -> None:
        up, down = way.pipes()
        pipe = up if applied.stream == "upstream" else down
        chance = random.Random(f"{self._seed}:{applied.name}:{applied.stream}:{way.number}")
        stage = _proxy()[0].Stage(applied, chance, pipe.stream.steer)
        pipe.stream.stages.append(stage)
        pipe.stream.wire()
        stage.begin()


def _applied(toxic: Toxic) -> Any:
    """The toxic as it stands on a proxy. Raises ValueError."""
    streams, toxics = _proxy()
    if toxic.type not in toxics.TOXICS or toxic.stream not in {"upstream", "downstream"}:
        raise ValueError(f"invalid toxic: {toxic.type} on {toxic.stream}")
    for name, value in toxic.attributes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"invalid {name}: {value!r}")
    settings = toxics.changed(toxics.TOXICS[toxic.type](), toxic.attributes)
    return streams.Applied(toxic.name, toxic.type, toxic.stream, toxic.toxicity, settings)


class Pipe:
    """One direction of a connection through a listener: a stream whose bytes stand for things.

    ``size`` says how many bytes a thing has on the wire; ``deliver`` gets each when it is through.
    """

    __slots__ = ("_deliver", "_last", "_size", "_things", "_way", "stream")

    def __init__(
        self, way: Way, size: Callable[[Any], int], deliver: Callable[[Any], None]
    ) -> None:
        self.stream = _proxy()[0].Stream(self, self)
        self._way = way
        self._size = size
        self._deliver = deliver
        self._things: deque[tuple[Any, int]] = deque()  # what is under way, bytes still to come
        self._last: Any = None

    def push(self, thing: Any) -> None:
        """Send on; a thing of no size arrives with what was sent before it."""
        if not self.stream.stages and not self._things:
            self._deliver(thing)
            return
        size = self._size(thing)
        self._things.append((thing, size))
        if size:
            wire = thing if isinstance(thing, bytes) else bytes(size)
            self.stream.enter(wire, asyncio.get_running_loop().time())
        self._arrive(0)

    def finish(self, last: Any) -> None:
        """The end of the stream; ``last`` is what its receiver is told."""
        self._last = last
        self.stream.enter(b"", asyncio.get_running_loop().time())

    def drop(self) -> None:
        """Everything under way is lost."""
        self._things.clear()
        for stage in self.stream.stages:
            stage.stop()
        self.stream.stages = []
        self.stream.wire()

    # ------------------------------------------------------------- called by the stream

    def read(self, on: bool) -> None:
        """An app waits by the bytes that its caller has not read, those under way included."""

    def write(self, chunk: bytes) -> None:
        """Bytes are through."""
        self._arrive(len(chunk))

    def end(self) -> None:
        """The end is through."""
        self._deliver(self._last)

    def close_both(self) -> None:
        """A toxic ended the connection."""
        self._way.proxy_closed()

    def reset_both(self) -> None:
        """A toxic cut the connection."""
        self._way.proxy_reset()

    def _arrive(self, count: int) -> None:
        while self._things:
            thing, left = self._things[0]
            taken = min(count, left)
            count -= taken
            if isinstance(thing, bytes):
                at = len(thing) - left
                thing = thing[at : at + taken]
            if taken < left:
                self._things[0] = (self._things[0][0], left - taken)
                if isinstance(thing, bytes) and thing:
                    self._deliver(thing)
                return
            self._things.popleft()
            self._deliver(thing)
