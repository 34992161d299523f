"""HTTP/1.1 on the wire: finds the requests and answers of one connection, rewrites those hit.

It stands before the other toxics and only while an HTTP toxic is on the link; all that it does not
hit passes byte for byte. What is not HTTP/1.1, or no longer, passes untouched to the end of its
connection. A connection that was there before is joined at its next request, an answer that has
begun is left alone, and one that was hit keeps its framing to its end after the toxic has gone.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import NamedTuple

from .effects import LOOK, Faults, Hit, Item, Mark, Standing
from .toxics import CLOSE

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


class Way:
    """One direction as the stream sees it: what ``Stream.front`` must be."""

    def __init__(self, take: Callable[[bytes, float], None]) -> None:
        self.take = take
        self.full = False
        self.out: Callable[[bytes, float], None] = _nowhere


def _nowhere(chunk: bytes, at: float) -> None:
    raise AssertionError("a way that is not wired")


class _Exchange:
    """One request and its answer."""

    __slots__ = ("asked", "expects", "framing", "hit", "is_head", "standing")

    def __init__(self, is_head: bool, expects: bool, standing: Standing | None) -> None:
        self.is_head = is_head
        self.expects = expects  # 100-continue: its body may never come
        self.standing = standing  # who hits it, unless its answer is none to act upon
        self.asked = expects  # all of the request is there that an answer waits for
        self.hit: Hit | None = None
        self.framing: int | Body = 0  # of the answer as the client gets it

    @property
    def answered_here(self) -> bool:
        """The service never sees it."""
        return self.standing is not None and self.standing.toxic.answer() is not None


class Layer:
    """Both directions of one connection.

    ``fresh``: it begins with the connection, so the first bytes are a request's. ``steer`` is
    called when ``down.full`` changed, ``leave`` when there is no more to do here.
    """

    def __init__(
        self, faults: Faults, *, fresh: bool, steer: Callable[[], None], leave: Callable[[], None]
    ) -> None:
        self.up, self.down = Way(self._upward), Way(self._downward)
        self._faults = faults
        self._steer, self._leave = steer, leave
        self._joined = fresh
        self._answering = fresh  # an answer was met, so what follows it is one too
        self._requests = Splitter(_opens_request, self._on_request)
        self._answers = Splitter(_opens_answer, self._on_answer)
        self._asking: _Exchange | None = None  # whose request is being read
        self._pending: deque[_Exchange] = deque()  # in the order of their answers
        self._last: Hit | None = None  # read to its end; what follows waits until it is done
        self._interim = False  # a 1xx answer, which has no end of its own
        self._ended = False  # the service sends no more
        self._closed = False  # nor does the client get more
        self._running = False
        self._loop = asyncio.get_running_loop()

    def heal(self, standing: Standing) -> None:
        """A toxic is gone."""
        for exchange in self._pending:
            if exchange.standing is standing and not exchange.answered_here:
                exchange.standing = None
        for hit in self._hits():
            if hit.standing is standing:
                hit.heal()
        self._go_on()

    def stop(self) -> None:
        """The connection is gone."""
        for hit in self._hits():
            hit.drop()

    def _hits(self) -> list[Hit]:
        begun = [exchange.hit for exchange in self._pending if exchange.hit is not None]
        return [*([self._last] if self._last is not None else []), *begun]

    # ------------------------------------------------------------------------- the way up

    def _upward(self, chunk: bytes, at: float) -> None:
        if not chunk:
            if rest := self._requests.flush():
                self.up.out(rest, at)
            self.up.out(chunk, at)
            return
        if not self._joined and not _REQUEST.match(chunk):
            self.up.out(chunk, at)
            return
        self._joined = True
        self._requests.feed(chunk)
        passed = []
        while (part := self._requests.step()) is not None:
            if self._asking is None or not self._asking.answered_here:
                passed.append(part.raw)
            if self._asking is not None and part.kind is Kind.END:
                self._asking.asked = True
                self._asking = None
        if sent := b"".join(passed):
            self.up.out(sent, at)
        self._go_on()

    def _on_request(self, head: bytes) -> int | Body:
        line, headers = _parsed(head)
        method, path, _ = line.split(" ", 2)
        framing = _framing(headers, 0)
        if framing is not Body.TUNNEL:
            standing = self._faults.draw(method, path, headers.get(LOOK, ""))
            self._asking = _Exchange(method == "HEAD", "expect" in headers, standing)
            self._pending.append(self._asking)
        return framing

    # ----------------------------------------------------------------------- the way down

    def _downward(self, chunk: bytes, at: float) -> None:
        if not chunk:
            self._ended = True
        elif not self._pending or not (self._answering or _opens_answer(chunk)):
            self.down.out(chunk, at)  # of a request that came before
            return
        else:
            self._answering = True
            self._answers.feed(chunk)
        self._go_on()

    def _go_on(self) -> None:
        """Do everything that can be done now."""
        if self._running:
            return
        self._running = True
        while not self._waits():
            front = self._pending[0] if self._pending else None
            if front is not None and front.answered_here:
                if not front.asked:
                    break
                self._answer_here(self._pending.popleft())
            elif (part := self._answers.step()) is not None:
                self._pass(front, part)
            else:
                break
        if self._ended and not self._waits():
            self._finish()
        self._running = False
        self._mark()

    def _waits(self) -> bool:
        return self._last is not None and not self._last.done

    def _mark(self) -> None:
        full = self._waits() or any(hit.full for hit in self._hits())
        if full != self.down.full:
            self.down.full = full
            self._steer()
        splitters = (self._requests, self._answers)
        idle = all(splitter.between or splitter.tunnel for splitter in splitters)
        if idle and not (self._faults.standing or self._pending or full):
            self._leave()

    def _on_answer(self, head: bytes) -> int | Body:
        if not self._pending:
            return Body.TUNNEL
        line, headers = _parsed(head)
        status, exchange = int(line.split(" ", 2)[1]), self._pending[0]
        self._interim = status < 200 and status != 101
        if status == 101:  # another protocol from here on, both ways
            self._requests.tunnel = True
            self._pending.popleft()
            return Body.TUNNEL
        bare = self._interim or exchange.is_head or status in {204, 304}
        exchange.framing = 0 if bare else _framing(headers, Body.TO_END)
        if exchange.framing is Body.TUNNEL:
            self._pending.popleft()
        elif exchange.standing is not None and not self._interim:
            if bare or not exchange.standing.toxic.applies(status, headers):
                exchange.standing.tally.missed += 1
            else:
                exchange.hit = Hit(exchange.standing, lambda item: self._leaves(exchange, item))
        return exchange.framing

    def _pass(self, front: _Exchange | None, part: Part) -> None:
        """One part of the answer that is due."""
        hit = front.hit if front is not None and part.kind is not Kind.RAW else None
        if hit is None or front is None:
            self._send(part.raw)
        elif part.kind is Kind.HEAD:
            self._send(_resized(front, part.raw))
        elif part.kind is Kind.BODY and part.payload:
            hit.body(part.payload)
        if part.kind is not Kind.END:
            return
        if not self._interim:
            self._last = hit
            self._pending.popleft()
            if hit is not None:
                hit.end()
        self._interim = False

    def _leaves(self, exchange: _Exchange, item: Item) -> None:
        """The effect lets something go."""
        chunked = exchange.framing is Body.CHUNKED
        if not isinstance(item, Mark):
            self._send(b"%x\r\n%b\r\n" % (len(item), item) if chunked else item)
        elif item is Mark.CUT or exchange.framing is Body.TO_END:
            self._close()
        elif chunked:
            self._send(b"0\r\n\r\n")
        self._go_on()

    def _answer_here(self, exchange: _Exchange) -> None:
        assert exchange.standing is not None
        answer = exchange.standing.toxic.answer()
        assert answer is not None
        status, headers, body = answer
        lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["connection: close"] if exchange.expects else []
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        self._send(head + (b"" if exchange.is_head else body))
        if exchange.expects:
            self._close()

    def _send(self, raw: bytes) -> None:
        if raw and not self._closed:
            self.down.out(raw, self._loop.time())

    def _close(self) -> None:
        """Neither side goes on, once what was sent before is out."""
        if not self._closed:
            self._closed = True
            self.down.out(CLOSE, self._loop.time())

    def _finish(self) -> None:
        """The service is gone, perhaps in the middle of an answer."""
        self._ended = False
        hit = self._pending[0].hit if self._pending else None
        if hit is not None and not hit.done:
            (hit.end if self._answers.to_end else hit.broken)()
        elif not self._closed:
            self._send(self._answers.flush())
            self._closed = True
            self.down.out(b"", self._loop.time())


def _opens_request(begin: bytes) -> bool:
    """These bytes may be, or become, an HTTP/1.1 request."""
    line, newline, _ = begin.partition(b"\n")
    if newline:
        return _REQUEST.match(begin) is not None
    word, space, _ = line.partition(b" ")
    return any(m.encode() == word if space else m.encode().startswith(word) for m in _METHODS)


def _opens_answer(begin: bytes) -> bool:
    """These bytes may be, or become, an HTTP/1.1 answer."""
    return begin[:9] == b"HTTP/1.1 "[: len(begin)]


def _parsed(head: bytes) -> tuple[str, dict[str, str]]:
    """The first line; headers by lower-case name."""
    line, *rest = head[:-4].decode("latin-1").split("\r\n")
    pairs = (item.partition(":") for item in rest)
    return line, {name.strip().lower(): value.strip() for name, _, value in pairs}


def _framing(headers: dict[str, str], default: int | Body) -> int | Body:
    """How the body ends, RFC 9112 §6.3."""
    coding = headers.get("transfer-encoding")
    if coding is not None:
        return Body.CHUNKED if coding.lower() == "chunked" else Body.TUNNEL
    length = headers.get("content-length")
    if length is None:
        return default
    return int(length) if length.isascii() and length.isdigit() else Body.TUNNEL


def _resized(exchange: _Exchange, head: bytes) -> bytes:
    """The head of an answer whose body may change its length: chunked instead of counted."""
    assert exchange.standing is not None
    if not exchange.standing.toxic.resizes or not isinstance(exchange.framing, int):
        return head
    exchange.framing = Body.CHUNKED
    lines = head[:-4].split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"content-length:")]
    return b"\r\n".join([*kept, b"transfer-encoding: chunked", b"", b""])


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # 529 and the like are in use, yet in no registry
        return "Overloaded" if status == 529 else "Unknown"
