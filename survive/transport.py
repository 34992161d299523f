"""The way to the wire for services, probes and observations: one call, whole or streamed.

Two implementations: sockets (``survive.host.sockets``) and memory (``survive.host.memory``).
Load does not use it: its lanes speak to the wire themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

Headers = tuple[tuple[str, str], ...]

REPLICA_HEADER = "x-replica-id"  # who answered: set by the replica, passed on by gateways


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. ``path`` holds the query; names of headers are lower case."""

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""


class Broken(StrEnum):
    """How a call can fail without an HTTP answer."""

    REFUSED = "refused"  # nobody listens
    RESET = "reset"  # the connection died under the call
    CLOSED = "closed"  # the peer ended before the answer was whole
    TIMEOUT = "timeout"  # nothing came in time
    PROTOCOL = "protocol"  # what came was not HTTP
    TLS = "tls"  # no trust: a certificate that does not hold, or no TLS at all


class CallFailedError(Exception):
    """A call without an HTTP answer; for callers it is data, never a crash."""

    def __init__(self, how: Broken, detail: str = "") -> None:
        super().__init__(f"{how}: {detail}" if detail else str(how))
        self.how = how


class Response(Protocol):
    """Head of an answer; the body comes by ``chunks`` as it arrives."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> dict[str, str]:
        """Lower-case names; of repeated headers the last."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises CallFailedError if it ends early."""

    async def close(self) -> None:
        """Leave; the peer sees a disconnect if the body was not read to its end. Idempotent."""


class Transport(Protocol):
    """One call to ``address``: ``host:port``, or ``https://host:port`` for a verified TLS one."""

    async def call(self, address: str, request: Request, *, timeout_s: float) -> Response:
        """The answer's head within ``timeout_s`` or CallFailedError. Never retries by itself."""

    async def linger(self, address: str, request: Request, *, timeout_s: float) -> float:
        """Seconds from the last byte of an answer to the end of its connection, a fresh one.

        The server is asked to end it (``connection: close``). CallFailedError if not one byte
        came, or no end within ``timeout_s``.
        """


async def read_all(response: Response) -> bytes:
    """The whole body; closes the response."""
    try:
        return b"".join([chunk async for chunk in response.chunks()])
    finally:
        await response.close()
