"""Server-sent events, read as they come in any split, and what they say of a model's answer.

Framing follows the HTML standard (section 9.2.6): LF, CRLF or CR, comments, multi-line data, an
optional byte order mark. On top of it the shape of OpenAI-compatible streams: ``choices`` with
``delta.content`` or ``text``, a finish reason, ``usage``, ``[DONE]``, an ``error`` object.
A stream of another shape counts each of its data events as content.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_EVENT_BYTES = 1 << 20
MAX_TOKENS = 100_000_000  # a usage above it is nonsense, not a count

# Once content has begun an event is decoded only if it may say more than content. In JSON text a
# quote inside a string is escaped, so these patterns cannot match inside a value.
_SAYS_MORE = re.compile(rb'"(?:finish_reason|usage|error)"\s*:\s*(?!null|\s)')
_CONTENT = re.compile(rb'"(?:content|text)"\s*:\s*"[^"]')


class StreamReader:
    """One streamed answer. Feed bytes with the time of their read; ask afterwards.

    ``first_us``/``last_us`` times of the first and last content event, ``gaps_us`` between
    consecutive ones: 0 within one read (``coalesced`` counts those), since they came together.
    """

    __slots__ = (
        "_after_cr", "_begun", "_buffer", "_openai", "coalesced", "contents", "done", "error",
        "finished", "first_us", "gaps_us", "last_us", "oversized", "tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._after_cr = False
        self._begun = False
        self._openai = False
        self.first_us: int | None = None
        self.last_us = 0
        self.gaps_us: list[int] = []
        self.contents = 0
        self.coalesced = 0
        self.done = False  # [DONE]
        self.finished = False  # a finish reason
        self.error = False  # an `error` object inside the stream
        self.oversized = False
        self.tokens: int | None = None

    @property
    def complete(self) -> bool:
        """The answer has its end: [DONE], and in OpenAI's shape a finish reason too."""
        return self.done and (self.finished or not self._openai)

    @property
    def output_tokens(self) -> int:
        """What the server says in ``usage``, else the number of content events."""
        return self.tokens if self.tokens is not None else self.contents

    def feed(self, data: bytes, now_us: int) -> None:
        """Take what one read gave."""
        if self.oversized:
            return
        if self._whole_event(data):
            self._event(data[:-2], now_us, self.contents)
            return
        data = self._plain_lines(data)
        searched = max(0, len(self._buffer) - 1)
        self._buffer += data
        reads_before = self.contents
        begin = 0
        while (end := self._buffer.find(b"\n\n", max(begin, searched))) >= 0:
            if end - begin > MAX_EVENT_BYTES:
                break
            self._event(bytes(self._buffer[begin:end]), now_us, reads_before)
            begin = end + 2
        if begin:
            del self._buffer[:begin]
        if len(self._buffer) > MAX_EVENT_BYTES:
            self.oversized = True
            self._buffer.clear()

    def close(self, now_us: int) -> None:
        """The answer ended. A last event without its blank line still counts, as line-based
        clients (OpenAI's own among them) see it."""
        rest = bytes(self._buffer).rstrip(b"\n")
        self._buffer.clear()
        if rest and not self.oversized:
            self._event(rest, now_us, self.contents)

    def _plain_lines(self, data: bytes) -> bytes:
        """All line ends as LF, a CRLF that was split over two reads included."""
        if not self._begun:
            self._buffer += data[:3]
            data = data[3:]
            if len(self._buffer) < 3 and b"\xef\xbb\xbf".startswith(self._buffer):
                return b""
            self._begun = True
            data = bytes(self._buffer).removeprefix(b"\xef\xbb\xbf") + data
            self._buffer.clear()
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _whole_event(self, data: bytes) -> bool:
        """The usual read: nothing is left of the last one, and this is one plain event."""
        return (
            self._begun
            and not self._buffer
            and not self._after_cr
            and data.find(b"\n\n") == len(data) - 2
            and 2 < len(data) <= MAX_EVENT_BYTES
            and b"\r" not in data
        )

    def _event(self, block: bytes, now_us: int, before_read: int) -> None:
        if block.startswith(b"data: ") and b"\n" not in block:
            payload = block[6:]
        else:
            payload = _data_of(block)
        if not payload:
            return
        if payload == b"[DONE]":
            self.done = True
        elif self.first_us is None or _SAYS_MORE.search(payload):
            self._decode(payload, now_us, before_read)
        elif not self._openai or _CONTENT.search(payload):
            self._content(now_us, before_read)

    def _decode(self, payload: bytes, now_us: int, before_read: int) -> None:
        try:
            value = json.loads(payload.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._content(now_us, before_read)
            return
        if value.get("error"):
            self.error = True
            return
        self._usage(value.get("usage"))
        choices = value.get("choices")
        if not isinstance(choices, list):
            if not self._openai:
                self._content(now_us, before_read)
            return
        self._openai = True
        if any(_finished(choice) for choice in choices):
            self.finished = True
        if any(_content_of(choice) for choice in choices):
            self._content(now_us, before_read)

    def _usage(self, usage: object) -> None:
        tokens = tokens_of(usage)
        if tokens is not None:
            self.tokens = tokens

    def _content(self, now_us: int, before_read: int) -> None:
        if self.first_us is None:
            self.first_us = now_us
        elif self.contents > before_read:
            self.gaps_us.append(0)
            self.coalesced += 1
        else:
            self.gaps_us.append(now_us - self.last_us)
        self.last_us = now_us
        self.contents += 1


def tokens_of(usage: object) -> int | None:
    """The output tokens that a ``usage`` object tells of; None if it tells nothing sensible."""
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int and 0 < tokens <= MAX_TOKENS else None


def _data_of(block: bytes) -> bytes:
    """The data lines of an event, joined; comments and other fields left out."""
    lines = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)


def _finished(choice: Any) -> bool:
    return isinstance(choice, dict) and bool(choice.get("finish_reason"))


def _content_of(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    return bool(delta.get("content") if isinstance(delta, dict) else choice.get("text"))
