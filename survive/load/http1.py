"""HTTP/1.1 of one lane, without sockets: a request as bytes, and answers from bytes.

llhttp (httptools) does the framing. What it leaves open is decided here: an answer without a
length ends with the connection, 1xx answers are skipped, heads are bounded, and bytes that nobody
asked for spoil the connection.
"""

from __future__ import annotations

import httptools

from survive.load.core import Exchange
from survive.transport import REPLICA_HEADER, Request

MAX_HEAD_BYTES = 64 * 1024
_WANTED = {
    REPLICA_HEADER.encode(): REPLICA_HEADER,
    b"content-type": "content-type",
    b"content-length": "content-length",
    b"content-encoding": "content-encoding",
    b"transfer-encoding": "transfer-encoding",
    b"retry-after": "retry-after",
}


def encode(request: Request, host: str) -> bytes:
    """The bytes of a request. ``host`` as in the address: ``127.0.0.1:8080``."""
    lines = [f"{request.method} {request.path} HTTP/1.1", f"host: {host}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    if request.body or request.method in {"POST", "PUT", "PATCH"}:
        lines.append(f"content-length: {len(request.body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + request.body


class NotHttpError(Exception):
    """What came is not HTTP, or not in bounds."""


class AnswerReader:
    """The answers of one connection, one at a time, told to an Exchange as they come."""

    __slots__ = (
        "_asked", "_exchange", "_head", "_head_bytes", "_head_only", "_keep", "_now_us", "_parser",
        "_status", "_to_eof", "_unasked", "done", "heard",
    )  # fmt: skip

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._asked = False
        self._unasked = False  # bytes beyond the answer: the connection is spoilt
        self._head_only = False
        self._head: dict[str, str] = {}
        self._head_bytes = 0
        self._status = 0
        self._to_eof = False
        self._keep = False
        self._now_us = 0
        self.done = True
        self.heard = False  # any byte of the present answer

    def expect(self, exchange: Exchange, head_only: bool) -> None:
        """A request was sent: what comes next is its answer. ``head_only``: HEAD has no body."""
        self._exchange = exchange
        self._head_only = head_only
        self._head_bytes = 0
        self._status = 0
        self._to_eof = False
        self._asked = True
        self.done = False
        self.heard = False

    @property
    def reusable(self) -> bool:
        """The connection may carry another request."""
        return self.done and self._keep and not self._unasked

    def feed(self, data: bytes, now_us: int) -> None:
        """Take what one read gave. Raises NotHttpError."""
        self.heard = True
        self._now_us = now_us
        if not self._status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise  # a bug in what is below, not in what came
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.done:
                self._unasked = True
                return
            raise NotHttpError(str(error)) from error
        if not self._status and self._head_bytes > MAX_HEAD_BYTES:
            raise NotHttpError("the head of the answer has no end")

    def eof(self, now_us: int) -> bool:
        """The server closed. True if that is how this answer ends."""
        self._keep = False
        if self._to_eof and not self.done and self._exchange is not None:
            self.done = True
            self._exchange.on_end(now_us)
            return True
        return False

    # ------------------------------------------------------------- called by httptools

    def on_message_begin(self) -> None:
        """An answer begins; one that nobody asked for spoils the connection."""
        self._head = {}
        if not self._asked:
            self._unasked = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Only what decides something is kept."""
        wanted = _WANTED.get(name.lower())
        if wanted is not None:
            self._head[wanted] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        """Status and headers are known."""
        status = self._parser.get_status_code()
        if status < 200 or self._unasked or self._exchange is None:
            return
        head = self._head
        self._status = status
        self._keep = self._parser.should_keep_alive()
        bodiless = self._head_only or status in {204, 304}
        chunked = head.get("transfer-encoding", "").lower().endswith("chunked")
        self._to_eof = not bodiless and not chunked and "content-length" not in head
        self._exchange.on_head(status, head, self._now_us)
        if self._head_only:
            # llhttp cannot be told that no body follows: end here, on a fresh connection next.
            self._keep = False
            self._end()

    def on_body(self, data: bytes) -> None:
        """Some of the body."""
        if not self.done and not self._unasked and self._exchange is not None:
            self._exchange.on_body(data, self._now_us)

    def on_message_complete(self) -> None:
        """The whole answer, or an interim one."""
        if self._status and not self._unasked and not self.done:
            self._end()

    def _end(self) -> None:
        self.done = True
        self._asked = False
        if self._exchange is not None:
            self._exchange.on_end(self._now_us)
