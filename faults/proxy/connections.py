"""One connection through the proxy: a client, its upstream, and the two streams between them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic

from .draws import Faults
from .http1 import Layer
from .poller import Poller
from .sockets import Wire, dialled
from .streams import Applied, Stage, Stream

DIAL_S = 10.0  # an upstream that does not answer must not hold the client for ever


class End:
    """The client's or the upstream's side: source of one stream, sink of the other."""

    __slots__ = ("_connection", "_wire", "first", "incoming", "outgoing")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._wire: Wire | None = None
        self.first: Callable[[bytes], None] | None = None  # is told the first bytes, once
        self.outgoing: Stream  # what is read here
        self.incoming: Stream  # what is written here

    @property
    def gone(self) -> bool:
        """There is no socket, or it is closed."""
        return self._wire is None or self._wire.is_closed

    def begin(self, end: socket.socket, poller: Poller) -> None:
        """The socket is there."""
        self._wire = Wire(end, self, poller)

    def received(self, chunk: bytes) -> None:
        """A chunk came, or the end; the peer may still listen, so the other way stays open."""
        if self.first is not None and chunk:
            self.first(chunk)
            self.first = None
        self.outgoing.enter(chunk, monotonic())  # the loop's own clock

    def full(self, on: bool) -> None:
        """The peer reads too slowly, or has caught up."""
        self.incoming.sink_full = on
        self.incoming.steer()

    def lost(self, *, broken: bool) -> None:
        """The socket is closed."""
        self._connection.lost(broken=broken)

    def read(self, on: bool) -> None:
        """See Source."""
        if self._wire is not None:
            self._wire.read(on)

    def write(self, chunk: bytes) -> None:
        """See Sink."""
        if self._wire is not None:
            self._wire.write(chunk)

    def end(self) -> None:
        """See Sink."""
        if self._wire is not None:
            self._wire.end()
        self._connection.ended()

    def close_both(self) -> None:
        """See Sink."""
        self._connection.close()

    def reset_both(self) -> None:
        """See Sink."""
        self._connection.reset()

    def close(self) -> None:
        """Close once all is sent."""
        if self._wire is not None:
            self._wire.close()

    def reset(self) -> None:
        """Close at once; the peer sees a reset."""
        if self._wire is not None:
            self._wire.reset()


class Connection:
    """A client, its upstream, and the two streams between them."""

    __slots__ = ("_connections", "_dialling", "_poller", "_stage", "client", "down", "http",
                 "number", "server", "up")  # fmt: skip

    def __init__(
        self,
        number: int,
        stage: Callable[[Applied, int, Callable[[], None]], Stage],
        connections: set[Connection],
        poller: Poller,
    ) -> None:
        self.number = number
        self._stage = stage
        self._connections = connections
        self._poller = poller
        self._dialling: asyncio.Task[None] | None = None
        self.client, self.server = End(self), End(self)
        self.up = Stream(self.client, self.server)
        self.down = Stream(self.server, self.client)
        self.client.outgoing = self.server.incoming = self.up
        self.client.incoming = self.server.outgoing = self.down
        self.up.sink_full = True  # there is no upstream yet
        self.http: Layer | None = None

    def begin(
        self,
        client: socket.socket,
        upstream: tuple[str, int],
        toxics: list[Applied],
        faults: Faults,
    ) -> None:
        """A client is there. It waits for its upstream; accepting others goes on."""
        self._connections.add(self)
        self.client.begin(client, self._poller)
        for toxic in toxics:
            self.add(toxic)
        if faults.standing:
            self.read_http(faults, fresh=True)
        self._dialling = asyncio.get_running_loop().create_task(self._dial(upstream))

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
        if self.client.gone and self.server.gone:
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

    async def _dial(self, upstream: tuple[str, int]) -> None:
        try:
            async with asyncio.timeout(DIAL_S):
                end = await dialled(*upstream)
        except (OSError, TimeoutError):
            # The client's handshake is done, so it cannot be refused; a reset is the nearest.
            self.client.reset()
        else:
            self.server.begin(end, self._poller)
            self.down.steer()
            self.server.full(False)
