"""The transport over real sockets: pooled keep-alive connections, streamed bodies, no tasks.

It is the data path of the reference gateway and the wire of all probes and observations, so a call
costs no task and a chunk no more than one wake-up. A pooled connection that the server closed while
it idled is not the server's failure: such a call goes once more, on a fresh connection, and only if
not one byte of an answer had come (RFC 9112 §9.3.1 describes that race).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import httptools

from survive.address import Address
from survive.tls import client_context
from survive.transport import Broken, CallFailedError, Headers, Request

if TYPE_CHECKING:
    import ssl

MAX_IDLE = 64  # idle connections kept for each address; more are closed when they become free
IDLE_S = 60.0  # below the 75 s after which our servers close an idle connection
HIGH_WATER = 256 * 1024  # bytes of unread body at which reading from the socket pauses

_PATH = re.compile(r"[\x21-\x7e]+")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[^\r\n\0]*")
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
_NO_BODY_STATUS = frozenset({204, 304})


class _Answer:
    """One response in the making: the parser fills it, one reader empties it."""

    __slots__ = (
        "_buffered",
        "_chunks",
        "_connection",
        "_error",
        "_head_seen",
        "_is_head",
        "_waiter",
        "done",
        "headers",
        "parser",
        "reusable",
        "status",
        "surplus",
        "touched",
    )

    def __init__(self, connection: _Connection, is_head: bool) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done = False  # the whole answer has come
        self.reusable = False  # the connection may serve another call
        self.surplus = False  # bytes came after the end of the answer
        self.touched = False  # at least one byte has come
        self.parser = httptools.HttpResponseParser(self)
        self._connection = connection
        self._is_head = is_head
        self._head_seen = False
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._error: CallFailedError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ called by the parser

    def on_message_begin(self) -> None:
        """The parser meets a first byte, or one after the end."""
        self.surplus = self.done

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        if not self.done:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole; interim 1xx heads are dropped when their message ends."""
        if self.done:
            return
        status: int = self.parser.get_status_code()
        if status < 200:
            return
        self.status = status
        self.reusable = self.parser.should_keep_alive()
        self._head_seen = True
        if self._is_head:
            # The parser cannot know that no body follows, so this connection ends here.
            self.done, self.reusable = True, False
        self._wake()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self.done:
            return
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > HIGH_WATER:
            self._connection.pause()
        self._wake()

    def on_message_complete(self) -> None:
        """The end of an answer, or of an interim head."""
        if self._head_seen:
            self.done = True
            self._wake()
        else:
            self.headers.clear()

    # -------------------------------------------------------------- called by the connection

    def fail(self, how: Broken, detail: str) -> None:
        """It will never be whole."""
        if not self.done and self._error is None:
            self._error = CallFailedError(how, detail)
            self._wake()

    def ended(self, error: Exception | None) -> None:
        """The connection is gone: the regular end of some bodies, a break of all others."""
        if error is None and self._head_seen and self._ends_with_connection():
            self.done = True
            self._wake()
        elif error is not None:
            self.fail(Broken.RESET, str(error))
        else:
            self.fail(Broken.CLOSED, "closed before the answer was whole")

    def _ends_with_connection(self) -> bool:
        lengths = self.headers.keys() & {"content-length", "transfer-encoding"}
        return not lengths and self.status not in _NO_BODY_STATUS

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ------------------------------------------------------------------ called by the reader

    async def _more(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def head(self) -> None:
        """Return once status and headers are there. Raises CallFailedError."""
        while not self._head_seen:
            if self._error is not None:
                raise self._error
            await self._more()

    def chunks(self) -> AsyncIterator[bytes]:
        """See Response. Pieces that came together are given together."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.done:
                raise StopAsyncIteration
            await self._more()
        pieces = self._chunks
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._chunks = []
        if self._buffered > HIGH_WATER:
            self._connection.resume()
        self._buffered = 0
        return data

    async def close(self) -> None:
        """See Response. An answer left early costs its connection."""
        if not self.done:
            self.fail(Broken.CLOSED, "left by the caller")
            self._connection.abort()


class _Connection(asyncio.Protocol):
    """One socket: idle in the pool, or busy with one answer."""

    __slots__ = ("_answer", "_on_free", "_on_lost", "_paused", "_transport", "idle_since")

    def __init__(
        self, on_free: Callable[[_Connection], None], on_lost: Callable[[_Connection], None]
    ) -> None:
        self.idle_since = 0.0
        self._on_free = on_free
        self._on_lost = on_lost
        self._answer: _Answer | None = None
        self._paused = False
        self._transport: asyncio.Transport | None = None

    def ask(self, wire: bytes, is_head: bool) -> _Answer:
        """Send a request; its answer, still empty."""
        assert self._transport is not None
        answer = self._answer = _Answer(self, is_head)
        self._transport.write(wire)
        return answer

    def is_usable(self) -> bool:
        """Nobody closed it yet, as far as this side knows."""
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once; the peer sees the end of the connection."""
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading: the reader of the body is slower than its writer."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        answer = self._answer
        if answer is None:
            self.abort()  # bytes that nobody asked for: whatever follows cannot be trusted
            return
        answer.touched = True
        try:
            answer.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            answer.fail(Broken.PROTOCOL, str(error))
            self.abort()
            return
        if answer.done:
            self._answer = None
            self._finish(answer)

    def _finish(self, answer: _Answer) -> None:
        self.resume()
        if answer.reusable and not answer.surplus and self.is_usable():
            self._on_free(self)
        else:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.ended(exc)
        self._on_lost(self)


class _Watch(asyncio.Protocol):
    """Sends one request and times the end of its connection; what is answered does not matter."""

    def __init__(self, wire: bytes, ended: asyncio.Future[float]) -> None:
        self.ended = ended
        self._wire = wire
        self._last_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._wire)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._last_s = self._loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self.ended.done():
            return
        if exc is not None or self._last_s is None:
            how = Broken.RESET if exc is not None else Broken.CLOSED
            self.ended.set_exception(CallFailedError(how, str(exc or "no answer")))
        else:
            self.ended.set_result(self._loop.time() - self._last_s)

    def leave(self) -> None:
        """Close at once."""
        self.ended.cancel()
        if self._transport is not None:
            self._transport.abort()


class SocketTransport:
    """See survive.transport.Transport. Belongs to the loop that first uses it.

    ``stale_retries`` counts calls that went again because a pooled connection was found closed.
    """

    def __init__(self) -> None:
        self.stale_retries = 0
        self._idle: dict[str, list[_Connection]] = {}
        self._open: dict[_Connection, str] = {}
        self._closed = False
        self._trusted = ("", "")  # the system's authorities, no certificate of our own
        self._secure: ssl.SSLContext | None = None

    def trust(self, authority: str, client: str) -> None:
        """See survive.tls.Trusting. The files are read when they are first needed."""
        if self._trusted != (authority, client):
            self._trusted, self._secure = (authority, client), None

    async def call(self, address: str, request: Request, *, timeout_s: float) -> _Answer:
        """See Transport.call."""
        wire = encode(address, request)
        is_head = request.method == "HEAD"
        try:
            async with asyncio.timeout(timeout_s):
                return await self._call(address, wire, is_head)
        except TimeoutError:
            detail = f"no answer from {address} within {timeout_s:g} s"
            raise CallFailedError(Broken.TIMEOUT, detail) from None

    async def linger(self, address: str, request: Request, *, timeout_s: float) -> float:
        """See Transport.linger."""
        closing = replace(request, headers=(*request.headers, ("connection", "close")))
        loop = asyncio.get_running_loop()
        watch = _Watch(encode(address, closing), loop.create_future())
        try:
            async with asyncio.timeout(timeout_s):
                await self._dial(lambda: watch, address)
                return await watch.ended
        except TimeoutError:
            raise CallFailedError(Broken.TIMEOUT, f"{address} ended nothing") from None
        except OSError as error:
            raise _unconnected(address, error) from error
        finally:
            watch.leave()

    async def close(self) -> None:
        """Close every connection. Idempotent; calls after it fail."""
        self._closed = True
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # an aborted connection is closed in the loop's next turn

    async def _call(self, address: str, wire: bytes, is_head: bool) -> _Answer:
        if self._closed:
            raise CallFailedError(Broken.CLOSED, "this transport is closed")
        pooled = self._take(address)
        if pooled is not None:
            answer = pooled.ask(wire, is_head)
            try:
                await _head_of(answer, pooled)
                return answer
            except CallFailedError as error:
                if answer.touched or error.how not in {Broken.RESET, Broken.CLOSED}:
                    raise
            self.stale_retries += 1
        connection = await self._connect(address)
        answer = connection.ask(wire, is_head)
        await _head_of(answer, connection)
        return answer

    def _take(self, address: str) -> _Connection | None:
        """The pooled connection that was used last, if one is fresh enough."""
        idle = self._idle.get(address)
        oldest = asyncio.get_running_loop().time() - IDLE_S
        while idle:
            connection = idle.pop()
            if connection.is_usable() and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self, address: str) -> _Connection:
        connection = _Connection(self._freed, self._lost)
        try:
            await self._dial(lambda: connection, address)
        except TimeoutError:
            raise
        except OSError as error:
            raise _unconnected(address, error) from error
        self._open[connection] = address
        if not connection.is_usable():
            self._lost(connection)  # the peer hung up before we came to know of it
            raise CallFailedError(Broken.CLOSED, f"{address}: closed while connecting")
        return connection

    async def _dial(self, make: Callable[[], asyncio.Protocol], address: str) -> None:
        """Connect; of ``https://`` addresses the peer is verified. OSError, CallFailedError."""
        loop = asyncio.get_running_loop()
        place = _parse(address)
        if place.path:
            await loop.create_unix_connection(make, place.path)
        elif not place.server_name:
            await loop.create_connection(make, place.dial_host, place.dial_port)
        else:
            if self._secure is None:
                self._secure = client_context(*self._trusted)
            await loop.create_connection(
                make, place.dial_host, place.dial_port,
                ssl=self._secure, server_hostname=place.server_name,
            )  # fmt: skip

    def _freed(self, connection: _Connection) -> None:
        idle = self._idle.setdefault(self._open[connection], [])
        if self._closed or len(idle) >= MAX_IDLE:
            connection.abort()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        idle.append(connection)

    def _lost(self, connection: _Connection) -> None:
        address = self._open.pop(connection, None)
        idle = self._idle.get(address) if address is not None else None
        if idle and connection in idle:
            idle.remove(connection)


def _unconnected(address: str, error: OSError) -> CallFailedError:
    """How a connection failed that did not come to be."""
    how = Broken.REFUSED
    if isinstance(error, ConnectionResetError | ConnectionAbortedError):
        how = Broken.RESET
    elif getattr(error, "library", None) is not None or hasattr(error, "verify_code"):
        how = Broken.TLS  # an ssl.SSLError
    return CallFailedError(how, f"{address}: {error}")


async def _head_of(answer: _Answer, connection: _Connection) -> None:
    try:
        await answer.head()
    except BaseException:
        connection.abort()  # cancelled, timed out or broken: its bytes belong to nobody now
        raise


def split_address(address: str) -> tuple[str, int]:
    """Host and port that are dialled. Raises CallFailedError."""
    place = _parse(address)
    return place.dial_host, place.dial_port


def _parse(address: str) -> Address:
    try:
        return Address.parse(address)
    except ValueError as error:
        raise CallFailedError(Broken.REFUSED, str(error)) from None


def encode(address: str, request: Request) -> bytes:
    """The request as bytes. Raises CallFailedError (protocol) for what would break out of it."""
    if not _TOKEN.fullmatch(request.method) or not _PATH.fullmatch(request.path):
        raise CallFailedError(Broken.PROTOCOL, f"illegal request line: {request.path[:80]!r}")
    lines = [f"{request.method} {request.path} HTTP/1.1"]
    names = _append_headers(lines, request.headers)
    if "host" not in names:
        lines.append(f"host: {_parse(address).host_header}")
    if "content-length" not in names and (request.body or request.method in _BODY_METHODS):
        lines.append(f"content-length: {len(request.body)}")
    try:
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + request.body
    except UnicodeEncodeError as error:
        raise CallFailedError(Broken.PROTOCOL, f"illegal header: {error}") from error


def _append_headers(lines: list[str], headers: Headers) -> set[str]:
    names = set()
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise CallFailedError(Broken.PROTOCOL, f"illegal header {name[:80]!r}")
        lines.append(f"{name}: {value}")
        names.add(name.lower())
    return names
