"""HTTP/1.1 in one direction of a connection: which bytes are whose head, body and end."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

HEAD_MAX = 64 * 1024  # a longer head is passed on unread

_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
_REQUEST = re.compile(rb"(?:" + "|".join(_METHODS).encode() + rb") [!-~]+ HTTP/1\.1\r\n")


class Kind(Enum):
    """What a part of the bytes is."""

    HEAD = "head"
    BODY = "body"
    END = "end"  # the last of a message
    RAW = "raw"  # of no message


class Body(Enum):
    """How a body that has no length in its head is framed."""

    CHUNKED = "chunked"
    TO_END = "to the end of the connection"
    TUNNEL = "no HTTP from here on"


class Part(NamedTuple):
    """The very bytes, and what of them is payload."""

    kind: Kind
    raw: bytes
    payload: bytes = b""


class Splitter:
    """The messages of one direction. ``framing`` is asked for each head how its body is framed."""

    def __init__(self, opens: Callable[[bytes], bool], framing: Callable[[bytes], int | Body]):
        self.tunnel = False
        self._opens = opens  # may this be the beginning of a message?
        self._framing = framing
        self._buffer = b""
        self._left: int | Body | None = None  # None = a head is due
        self._chunk = -1  # bytes left of a chunk and its CRLF; -1 = its size line is due
        self._trailer = False

    def feed(self, data: bytes) -> None:
        """More bytes."""
        self._buffer += data

    @property
    def between(self) -> bool:
        """At the end of one message and before the first byte of the next."""
        return self._left is None and not self._buffer

    @property
    def to_end(self) -> bool:
        """In a body that ends with its connection."""
        return self._left is Body.TO_END

    def flush(self) -> bytes:
        """What is kept for want of its other half."""
        rest, self._buffer = self._buffer, b""
        return rest

    def step(self) -> Part | None:
        """The next part; None = more bytes are needed."""
        if self.tunnel or self._left is Body.TUNNEL:
            self.tunnel = True
            return Part(Kind.RAW, self.flush()) if self._buffer else None
        if self._left is None:
            return self._head()
        if self._left is Body.CHUNKED:
            return self._chunked()
        if self._left is Body.TO_END:
            raw = self.flush()
            return Part(Kind.BODY, raw, raw) if raw else None
        return self._counted(self._left)

    def _head(self) -> Part | None:
        if not self._buffer:
            return None
        size = self._buffer.find(b"\r\n\r\n") + 4
        if not self._opens(self._buffer) or (size < 4 and len(self._buffer) > HEAD_MAX):
            return self._give_up()
        if size < 4:
            return None
        raw = self._take(size)
        self._left = self._framing(raw)
        return Part(Kind.HEAD, raw)

    def _counted(self, left: int | Body) -> Part | None:
        assert isinstance(left, int)
        if left == 0:
            return self._end(b"")
        raw = self._take(left)
        self._left = left - len(raw)
        return Part(Kind.BODY, raw, raw) if raw else None

    def _chunked(self) -> Part | None:
        if self._chunk > 2:
            raw = self._take(self._chunk - 2)
            self._chunk -= len(raw)
            return Part(Kind.BODY, raw, raw) if raw else None
        if self._chunk > 0:
            if len(self._buffer) < 2:
                return None
            self._chunk = -1
            return Part(Kind.BODY, self._take(2))
        size = self._buffer.find(b"\r\n") + 2
        if size < 2:
            return None if len(self._buffer) <= HEAD_MAX else self._give_up()
        line = self._take(size)
        if self._trailer:
            return self._end(line) if size == 2 else Part(Kind.BODY, line)
        digits = line.partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", digits):
            self._buffer = line + self._buffer
            return self._give_up()
        self._chunk = int(digits, 16) + 2
        self._trailer = self._chunk == 2
        if self._trailer:
            self._chunk = -1
        return Part(Kind.BODY, line)

    def _end(self, raw: bytes) -> Part:
        self._left, self._chunk, self._trailer = None, -1, False
        return Part(Kind.END, raw)

    def _give_up(self) -> Part:
        self.tunnel = True
        return Part(Kind.RAW, self.flush())

    def _take(self, size: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


def is_request(begin: bytes) -> bool:
    """A whole first line, and a request's."""
    return _REQUEST.match(begin) is not None


def opens_request(begin: bytes) -> bool:
    """These bytes may be, or become, an HTTP/1.1 request."""
    line, newline, _ = begin.partition(b"\n")
    if newline:
        return is_request(begin)
    word, space, _ = line.partition(b" ")
    return any(m.encode() == word if space else m.encode().startswith(word) for m in _METHODS)


def opens_answer(begin: bytes) -> bool:
    """These bytes may be, or become, an HTTP/1.1 answer."""
    return begin[:9] == b"HTTP/1.1 "[: len(begin)]


def parsed(head: bytes) -> tuple[str, dict[str, str]]:
    """The first line; headers by lower-case name."""
    line, *rest = head[:-4].decode("latin-1").split("\r\n")
    pairs = (item.partition(":") for item in rest)
    return line, {name.strip().lower(): value.strip() for name, _, value in pairs}


def body_framing(headers: dict[str, str], default: int | Body) -> int | Body:
    """How the body ends, RFC 9112 §6.3."""
    coding = headers.get("transfer-encoding")
    if coding is not None:
        return Body.CHUNKED if coding.lower() == "chunked" else Body.TUNNEL
    length = headers.get("content-length")
    if length is None:
        return default
    return int(length) if length.isascii() and length.isdigit() else Body.TUNNEL
