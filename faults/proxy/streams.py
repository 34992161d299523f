"""One connection through the proxy: two streams, each a chain of toxics from source to sink.

Everything runs in one event loop without a task or a lock per chunk: bytes that meet no toxic go
from the one socket to the other within the callback that read them.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Protocol, TypeAlias

from .effects import Faults
from .http1 import Layer, Way
from .toxics import CLOSE, RESET, Cut, Flow, Pieces, Toxic

CHUNK = 32 * 1024  # bytes read at once, as Toxiproxy's io.Copy does: what a toxic acts upon
DIAL_S = 10.0  # an upstream that does not answer must not hold the client for ever

Out: TypeAlias = Callable[[bytes, float], None]  # (chunk or b"" = end, when it arrived)

# The loop reads into it and hands it over in one callback, so one buffer serves all connections.
_BUFFER = memoryview(bytearray(CHUNK))
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


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


class End(asyncio.BufferedProtocol):
    """One socket of a connection: the client's or the upstream's."""

    __slots__ = ("_connection", "_eof", "_loop", "_transport", "first", "incoming", "lost",
                 "outgoing")  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._eof = False
        self.lost = False
        self.first: Callable[[bytes], None] | None = None  # is told the first bytes, once
        self.outgoing: Stream  # what is read here
        self.incoming: Stream  # what is written here

    @property
    def made(self) -> bool:
        """There is or was a socket."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connection.made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop reads to."""
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """A chunk came."""
        chunk = bytes(_BUFFER[:nbytes])
        if self.first is not None:
            self.first(chunk)
            self.first = None
        self.outgoing.enter(chunk, self._loop.time())

    def eof_received(self) -> bool:
        """The peer is done sending; it may still listen, so the other way stays open."""
        if not self._eof:  # reading that is paused and resumed after the end sees it again
            self._eof = True
            self.outgoing.enter(b"", self._loop.time())
        return True

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self.incoming.sink_full = True
        self.incoming.steer()

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self.incoming.sink_full = False
        self.incoming.steer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by us (None) or by an error."""
        self.lost = True
        self._connection.lost(broken=exc is not None)

    def read(self, on: bool) -> None:
        """Read from the socket or leave what comes in the kernel, whose window then closes."""
        if self._transport is None or self._transport.is_closing():
            return
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def write(self, chunk: bytes) -> None:
        """Send; nothing if the socket is going away."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(chunk)

    def end(self) -> None:
        """Say that no more will come, after what is still to be sent."""
        if self._transport is not None and not self._transport.is_closing():
            try:
                self._transport.write_eof()
            except OSError:  # the peer has reset it and the loop has not read that yet
                self.reset()
        self._connection.ended()

    def close_both(self) -> None:
        """See Sink."""
        self._connection.close()

    def reset_both(self) -> None:
        """See Sink."""
        self._connection.reset()

    def close(self) -> None:
        """Close once all is sent."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Close at once; the peer sees a reset."""
        if self._transport is None or self.lost:
            return
        end: socket.socket | None = self._transport.get_extra_info("socket")
        if end is not None and end.fileno() >= 0:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()


class Connection:
    """A client, its upstream, and the two streams between them."""

    __slots__ = ("_connections", "_dialling", "_faults", "_is_open", "_stage", "_toxics",
                 "_upstream", "client", "down", "http", "number", "server", "up")  # fmt: skip

    def __init__(
        self,
        number: int,
        upstream: tuple[str, int],
        stage: Callable[[Applied, int, Callable[[], None]], Stage],
        toxics: list[Applied],
        connections: set[Connection],
        is_open: Callable[[], bool],
        faults: Faults,
    ) -> None:
        self._faults = faults
        self.number = number
        self._upstream = upstream
        self._stage = stage
        self._toxics = toxics
        self._connections = connections
        self._is_open = is_open
        self._dialling: asyncio.Task[None] | None = None
        self.client, self.server = End(self), End(self)
        self.up = Stream(self.client, self.server)
        self.down = Stream(self.server, self.client)
        self.client.outgoing = self.server.incoming = self.up
        self.client.incoming = self.server.outgoing = self.down
        self.up.sink_full = True  # there is no upstream yet
        self.http: Layer | None = None

    def read_http(self, faults: Faults, *, fresh: bool) -> None:
        """Find the requests and answers among the bytes, for HTTP toxics to act on."""
        if self.http is None:
            layer = Layer(faults, fresh=fresh, steer=self.down.steer, leave=self._leave_http)
            self.http, self.up.front, self.down.front = layer, layer.up, layer.down
            self.up.wire()
            self.down.wire()

    def _leave_http(self) -> None:
        """Bytes are bytes again."""
        self.http = self.up.front = self.down.front = None
        self.up.wire()
        self.down.wire()

    def add(self, toxic: Applied) -> None:
        """One toxic more, after the others."""
        stream = self.stream(toxic)
        stage = self._stage(toxic, self.number, stream.steer)
        stream.stages.append(stage)
        stream.wire()
        stage.begin()

    def stream(self, toxic: Applied) -> Stream:
        """The direction that a toxic acts on."""
        return self.up if toxic.stream == "upstream" else self.down

    def made(self, end: End) -> None:
        """A socket is there. The client waits for its upstream; accepting others goes on."""
        if not self._is_open():  # accepted just before the listener was closed
            self.reset()
        elif end is self.client:
            self._connections.add(self)
            for toxic in self._toxics:
                self.add(toxic)
            if self._faults.standing:
                self.read_http(self._faults, fresh=True)
            end.read(False)
            self._dialling = asyncio.get_running_loop().create_task(self._dial())

    def ended(self) -> None:
        """One stream has delivered its end; after both, nothing can follow."""
        if self.up.ended and self.down.ended:
            self.close()

    def close(self) -> None:
        """Neither side hears or says more than is being sent."""
        if self._dialling is not None:
            self._dialling.cancel()
        self.client.close()
        self.server.close()

    def lost(self, *, broken: bool) -> None:
        """One socket is gone; an error on the one side is a reset on the other."""
        if broken:
            self.reset()
        if self.client.lost and (self.server.lost or not self.server.made):
            self._stop()

    def reset(self) -> None:
        """End both sides at once."""
        if self._dialling is not None:
            self._dialling.cancel()
        self.client.reset()
        self.server.reset()

    def _stop(self) -> None:
        self._connections.discard(self)
        for stage in (*self.up.stages, *self.down.stages):
            stage.stop()
        if self.http is not None:
            self.http.stop()

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DIAL_S):
                await loop.create_connection(lambda: self.server, *self._upstream)
        except (OSError, TimeoutError):
            # The client's handshake is done, so it cannot be refused; a reset is the nearest.
            self.client.reset()
        else:
            self.server.resume_writing()
