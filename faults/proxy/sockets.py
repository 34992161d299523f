"""Sockets of the proxy: connected ones (wires), listening ones, and how to dial."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from select import EPOLLIN, EPOLLOUT
from typing import Protocol

from .poller import Poller

CHUNK = 32 * 1024  # bytes read at once, as Toxiproxy's io.Copy does: what a toxic acts upon
BACKLOG = 1024
RETRY_S = 0.5  # until accepting goes on where no file descriptor was free

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Owner(Protocol):
    """Who is told what happens on a wire."""

    def received(self, chunk: bytes) -> None:
        """A chunk came; an empty one is the peer's end of what it sends."""

    def full(self, on: bool) -> None:
        """The peer reads too slowly, or has caught up."""

    def lost(self, *, broken: bool) -> None:
        """The socket is closed, by an error or by us. Called in a later round of the loop."""


class Wire:
    """A connected socket. Not read before ``read(True)``; what cannot be sent at once is kept."""

    __slots__ = ("_closing", "_ending", "_events", "_heard", "_kept", "_loop", "_owner", "_poller",
                 "_socket", "_wanted", "is_closed")  # fmt: skip

    def __init__(self, end: socket.socket, owner: Owner, poller: Poller) -> None:
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = end
        self._owner = owner
        self._poller = poller
        self._loop = asyncio.get_running_loop()
        self._wanted = 0  # EPOLLIN, or 0 while nothing is to be read
        self._events = 0  # what the poller waits for
        self._kept = bytearray()
        self._heard = False  # the peer's end
        self._ending = False  # no more will be written
        self._closing = False  # as soon as all is sent
        self.is_closed = False

    def read(self, on: bool) -> None:
        """Read from the socket or leave what comes in the kernel, whose window then closes."""
        self._wanted = EPOLLIN if on and not (self._heard or self._closing) else 0
        self._watch()

    def write(self, chunk: bytes) -> None:
        """Send; nothing if the socket is going away."""
        if self._closing or self._ending:
            return
        if not self._kept:
            sent = self._send(chunk)
            if sent == len(chunk) or self.is_closed:
                return
            chunk = chunk[sent:]
            self._owner.full(True)
        self._kept += chunk
        self._watch()

    def end(self) -> None:
        """Say that no more will come, after what is still to be sent."""
        self._ending = True
        self._settle()

    def close(self) -> None:
        """Read no more, and close once all is sent."""
        self._closing = True
        self.read(False)
        self._settle()

    def reset(self) -> None:
        """Close at once; the peer sees a reset."""
        if not self.is_closed:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._close(broken=False)

    def ready(self, events: int) -> None:
        """The poller found these. Nothing that goes wrong here may end the loop."""
        try:
            if self._kept and events & ~EPOLLIN:
                self._flush()
            if self._wanted and events & ~EPOLLOUT:
                self._receive()
        except Exception as error:
            self._loop.call_exception_handler({"message": "on a connection", "exception": error})
            self.reset()

    def _receive(self) -> None:
        try:
            chunk = self._socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._close(broken=True)
            return
        if not chunk:
            self._heard = True
            self.read(False)
        self._owner.received(chunk)

    def _send(self, chunk: bytes | bytearray) -> int:
        try:
            return self._socket.send(chunk)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._close(broken=True)
            return 0

    def _flush(self) -> None:
        del self._kept[: self._send(self._kept)]
        if not self._kept and not self.is_closed:
            self._watch()
            self._owner.full(False)
            self._settle()

    def _settle(self) -> None:
        """Do what waits until all is sent."""
        if self._kept or self.is_closed:
            return
        if self._closing:
            self._close(broken=False)
        elif self._ending:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:  # the peer has reset it and that was not read yet
                self.reset()

    def _watch(self) -> None:
        events = 0 if self.is_closed else self._wanted | (EPOLLOUT if self._kept else 0)
        if events == self._events:
            return
        self._poller.watch(self._socket.fileno(), events, self.ready)
        self._events = events

    def _close(self, *, broken: bool) -> None:
        if self.is_closed:
            return
        self.is_closed = self._closing = True
        self._kept.clear()
        self._wanted = 0
        self._watch()
        self._socket.close()
        self._loop.call_soon(lambda: self._owner.lost(broken=broken))


class Listener:
    """Accepts until it is closed."""

    def __init__(self, end: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        self._socket = end
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        end.listen(BACKLOG)
        self._watch()

    def close(self) -> None:
        """Refuse from now on."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _watch(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                client, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor is free: who waits stays in the queue
                self._loop.remove_reader(self._socket.fileno())
                self._again = self._loop.call_later(RETRY_S, self._watch)
                return
            self._accepted(client)


async def dialled(host: str, port: int) -> socket.socket:
    """A connected socket. Raises OSError: that of the last of the host's addresses."""
    loop = asyncio.get_running_loop()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name: asking for it may take its time
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failed: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in found:
        end = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            await loop.sock_connect(end, address)
        except OSError as error:
            end.close()
            failed = error
        except BaseException:
            end.close()
            raise
        else:
            return end
    raise failed
