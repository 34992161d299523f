"""Proxies by name: where they listen, where they lead, which toxics stand on them.

Differences from Toxiproxy, all on purpose: a listener whose host is left out is on loopback, never
on every interface; a disabled proxy keeps its port reserved, so that enabling it cannot fail
because another program took it; its connections are reset, not closed politely; a seed decides
which connections a toxicity below 1 hits, and the jitter.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from random import Random

from .calls import Json
from .connections import Connection
from .draws import Faults
from .http_toxics import HttpToxic
from .poller import Poller
from .sockets import Listener
from .streams import Applied, Stage
from .toxics import attributes

TLS_RECORD = b"\x16\x03"  # a handshake record of any version of TLS


def host_port(text: str) -> tuple[str, int]:
    """``127.0.0.1:80``, ``[::1]:80``, ``:80``. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"address {text}: missing or invalid port in address")
    return host.strip("[]") or "127.0.0.1", int(port)


def _address(end: socket.socket) -> str:
    host, port = end.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bound(address: tuple[str, int]) -> socket.socket:
    """A socket that holds a port without listening: connecting to it is refused."""
    family, _, _, _, where = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    end = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: see TCP_NODELAY
    try:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.bind(where)
    except BaseException:
        end.close()
        raise
    return end


class Proxy:
    """One listener, its upstream, its toxics in order, its live connections."""

    def __init__(self, name: str, listen: str, upstream: str, seed: int, poller: Poller) -> None:
        self.name = name
        self.listen = listen or "127.0.0.1:0"
        self.upstream = upstream
        self.toxics: list[Applied] = []
        self.http = Faults(seed)
        self._seed = seed
        self._poller = poller
        self._accepted = 0
        self._counted = {"tls": 0, "plain": 0}
        self._connections: set[Connection] = set()
        self._reserved: socket.socket | None = None  # bound, not listening
        self._listener: Listener | None = None

    @property
    def enabled(self) -> bool:
        """It listens."""
        return self._listener is not None

    def to_json(self) -> dict[str, Json]:
        """As the API shows it."""
        return {"name": self.name, "listen": self.listen, "upstream": self.upstream,
                "enabled": self.enabled, "toxics": self.toxics_json()}  # fmt: skip

    def seen(self) -> dict[str, Json]:
        """Connections by their first bytes; one that said nothing is not counted."""
        return {**self._counted}

    def toxics_json(self) -> list[Json]:
        """Upstream toxics first, as Toxiproxy lists them."""
        ordered = sorted(self.toxics, key=lambda toxic: toxic.stream, reverse=True)
        return [*(toxic_json(toxic) for toxic in ordered), *self.http.to_json()]

    def toxic(self, name: str) -> Applied | None:
        """The toxic of that name."""
        return next((toxic for toxic in self.toxics if toxic.name == name), None)

    def reserve(self) -> socket.socket:
        """Hold the port while not listening. Raises OSError or ValueError."""
        if self._reserved is None:
            self._reserved = _bound(host_port(self.listen))
            self.listen = _address(self._reserved)
        return self._reserved

    async def enable(self) -> None:
        """Listen. Idempotent. Raises OSError or ValueError, and then it is as it was."""
        if self._listener is not None:
            return
        host_port(self.upstream)
        self._listener = Listener(self.reserve(), self._accept)
        self._reserved = None

    async def disable(self, *, reserve: bool = True) -> None:
        """Refuse new connections and reset all that exist. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if reserve:
            self.reserve()
        elif self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        for connection in list(self._connections):
            connection.reset()
        await asyncio.sleep(0)  # the loop closes the sockets in its next round

    def add(self, toxic: Applied) -> None:
        """One toxic more, on live connections too."""
        self.toxics.append(toxic)
        for connection in list(self._connections):
            connection.add(toxic)

    def update(self, toxic: Applied) -> None:
        """The toxic was changed in place; what it holds leaves at once."""
        for connection in list(self._connections):
            connection.stream(toxic).update(toxic)

    def remove(self, toxic: Applied) -> None:
        """The toxic is gone; what it held leaves at once, in order."""
        self.toxics.remove(toxic)
        for connection in list(self._connections):
            connection.stream(toxic).remove(toxic)

    def put_http(self, name: str, type_: str, share: float, toxic: HttpToxic) -> None:
        """Add or change an HTTP toxic: for requests that begin from now on, on any connection."""
        self.http.put(name, type_, share, toxic)
        for connection in self._connections:
            connection.read_http(self.http, fresh=False)

    def remove_http(self, name: str) -> None:
        """It is gone; what it held leaves at once."""
        standing = self.http.standing.pop(name)
        for connection in list(self._connections):
            if connection.http is not None:
                connection.http.heal(standing)

    def _accept(self, client: socket.socket) -> None:
        self._accepted += 1
        connection = Connection(self._accepted, self._stage, self._connections, self._poller)
        connection.client.first = self._saw
        connection.begin(client, host_port(self.upstream), self.toxics, self.http)

    def _saw(self, begin: bytes) -> None:
        """A connection began like this: with a TLS handshake record (RFC 8446 §5.1) or not."""
        kind = "tls" if TLS_RECORD.startswith(begin[:2]) else "plain"
        self._counted[kind] += 1

    def _stage(self, toxic: Applied, connection: int, changed: Callable[[], None]) -> Stage:
        chance = Random(f"{self._seed}:{self.name}:{toxic.name}:{toxic.stream}:{connection}")
        return Stage(toxic, chance, changed)


def toxic_json(toxic: Applied) -> dict[str, Json]:
    """A toxic as the API shows it."""
    return {"attributes": {**attributes(toxic.settings)}, "name": toxic.name, "type": toxic.type,
            "stream": toxic.stream, "toxicity": toxic.toxicity}  # fmt: skip
