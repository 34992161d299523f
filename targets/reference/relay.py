"""One stream on its way through the gateway: whole events only, counted, and read by the guard.

A client never gets half an event, so that a stream which breaks can go on from another replica:
the same prompt is asked there with ``x-resume-after: <content events passed on>``. A replica that
honours it goes on without the event of the role; of one that begins anew, the relay drops what the
client has. Texts must be deterministic for that, as those of the simulated model are.
"""

from __future__ import annotations

from .guard import Filter

RESUME_HEADER = "x-resume-after"
MAX_RESUMES = 6
FORGED = (
    b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_TOKEN = b'"delta":{"content":'
_ROLE = b'"delta":{"role":'
_END = b"data: [DONE]\n\n"


class Relay:
    """The state of one stream."""

    __slots__ = ("_drop", "_fresh", "_part", "_reader", "done", "resumes", "tokens")

    def __init__(self, reader: Filter | None) -> None:
        self.tokens = 0  # content events taken from replicas, each once
        self.done = False  # the stream's own end has come, or the guard ended it
        self.resumes = 0
        self._reader = reader
        self._part = b""
        self._drop = 0
        self._fresh = False  # nothing of a resumed stream was seen yet

    @property
    def cut(self) -> bool:
        """The guard ended the stream: the rest is not even read."""
        return self._reader is not None and self._reader.tripped

    def feed(self, data: bytes) -> bytes:
        """What may be passed on after this piece."""
        if self.done:
            return b""
        if self._part or not data.endswith(b"\n\n"):
            data = self._part + data
            cut = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
            data, self._part = data[:cut], data[cut:]
        if self._fresh or self._drop:
            data = self._without_known(data)
        if not data:
            return b""
        self.tokens += data.count(_TOKEN)
        self.done = data.endswith(_END)
        if self._reader is None:
            return data
        passed = self._reader.feed(data)
        if self._reader.tripped:
            self.done = True
        elif self.done:
            passed += self._reader.rest()
        return passed

    def resumed(self) -> None:
        """Another replica goes on."""
        self.resumes += 1
        self._part = b""
        self._drop = 0
        self._fresh = True

    def _without_known(self, data: bytes) -> bytes:
        kept = []
        for event in data.split(b"\n\n")[:-1]:
            begins = _ROLE in event
            if self._fresh:
                self._fresh = False
                self._drop = self.tokens if begins else 0
            if begins and self.tokens:
                continue
            if self._drop and _TOKEN in event:
                self._drop -= 1
                continue
            kept.append(event + b"\n\n")
        return b"".join(kept)
