"""HTTP/1.1 on the wire: finds the requests and answers of one connection, rewrites those hit.

It stands before the other toxics and only while an HTTP toxic is on the link; all that it does not
hit passes byte for byte. What is not HTTP/1.1, or no longer, passes untouched to the end of its
connection. A connection that was there before is joined at its next request, an answer that has
begun is left alone, and one that was hit keeps its framing to its end after the toxic has gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .draws import LOOK, Faults, Standing
from .effects import Item, Mark
from .exchanges import Exchange
from .hits import Hit
from .messages import (
    Body,
    Kind,
    Part,
    Splitter,
    body_framing,
    is_request,
    opens_answer,
    opens_request,
    parsed,
)
from .toxics import CLOSE


class Way:
    """One direction as the stream sees it: what ``Stream.front`` must be."""

    def __init__(self, take: Callable[[bytes, float], None]) -> None:
        self.take = take
        self.full = False
        self.out: Callable[[bytes, float], None] = _nowhere


def _nowhere(chunk: bytes, at: float) -> None:
    raise AssertionError("a way that is not wired")


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
        self._requests = Splitter(opens_request, self._on_request)
        self._answers = Splitter(opens_answer, self._on_answer)
        self._asking: Exchange | None = None  # whose request is being read
        self._pending: deque[Exchange] = deque()  # in the order of their answers
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
        if not self._joined and not is_request(chunk):
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
        line, headers = parsed(head)
        method, path, _ = line.split(" ", 2)
        framing = body_framing(headers, 0)
        if framing is not Body.TUNNEL:
            standing = self._faults.draw(method, path, headers.get(LOOK, ""))
            self._asking = Exchange(method == "HEAD", "expect" in headers, standing)
            self._pending.append(self._asking)
        return framing

    # ----------------------------------------------------------------------- the way down

    def _downward(self, chunk: bytes, at: float) -> None:
        if not chunk:
            self._ended = True
        elif not self._pending or not (self._answering or opens_answer(chunk)):
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
        line, headers = parsed(head)
        status, exchange = int(line.split(" ", 2)[1]), self._pending[0]
        self._interim = status < 200 and status != 101
        if status == 101:  # another protocol from here on, both ways
            self._requests.tunnel = True
            self._pending.popleft()
            return Body.TUNNEL
        bare = self._interim or exchange.is_head or status in {204, 304}
        exchange.framing = 0 if bare else body_framing(headers, Body.TO_END)
        if exchange.framing is Body.TUNNEL:
            self._pending.popleft()
        elif exchange.standing is not None and not self._interim:
            if bare or not exchange.standing.toxic.applies(status, headers):
                exchange.standing.tally.missed += 1
            else:
                exchange.hit = Hit(exchange.standing, lambda item: self._leaves(exchange, item))
        return exchange.framing

    def _pass(self, front: Exchange | None, part: Part) -> None:
        """One part of the answer that is due."""
        hit = front.hit if front is not None and part.kind is not Kind.RAW else None
        if hit is None or front is None:
            self._send(part.raw)
        elif part.kind is Kind.HEAD:
            self._send(front.resized(part.raw))
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

    def _leaves(self, exchange: Exchange, item: Item) -> None:
        """The effect lets something go."""
        if not isinstance(item, Mark):
            self._send(exchange.framed(item))
        elif item is Mark.CUT or exchange.framing is Body.TO_END:
            self._close()
        elif exchange.framing is Body.CHUNKED:
            self._send(b"0\r\n\r\n")
        self._go_on()

    def _answer_here(self, exchange: Exchange) -> None:
        self._send(exchange.answer())
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
