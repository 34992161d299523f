"""What may happen to an HTTP answer, as the API names it: a type, and its attributes.

How to write the next one: a dataclass whose fields are the API's attributes, with ``applies``
(which answers it can act on) and ``effect``, and a line in ``HTTP_TOXICS``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, TypeAlias

from .effects import Effect, Half, Late, Mark, OnEvent, Outs, Paced

HELD = math.inf  # until the toxic is taken off

Headers: TypeAlias = Mapping[str, str]  # lower-case names


@dataclass(frozen=True, slots=True)
class HttpToxic:
    """What all share: which requests are meant, how many are never hit, and how many are at most.

    ``control_ppm`` in millionths of all requests; ``first`` 0 = any number; ``expires_ms`` after
    it was put on, 0 = never. ``resizes``: the body may change its length.
    """

    resizes: ClassVar[bool] = False

    method: str = "POST"
    path: str = "/v1/chat/completions"
    control_ppm: int = 0
    first: int = 0
    expires_ms: int = 0

    def applies(self, status: int, headers: Headers) -> bool:
        """It can act on this answer."""
        return True

    def answer(self) -> tuple[int, dict[str, str], bytes] | None:
        """Status, headers and body of an answer in the service's place; None = it is asked."""
        return None

    def effect(self) -> Effect:
        """A fresh one, for one answer."""
        return Effect()


@dataclass(frozen=True, slots=True)
class HttpStatus(HttpToxic):
    """Answer in the service's place, which never sees the request."""

    status: int = 503
    retry_after_s: int = 0  # 0 = no such header

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """See HttpToxic."""
        body = json.dumps({"error": {"message": "injected", "code": self.status}}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        if self.retry_after_s:
            headers["retry-after"] = str(self.retry_after_s)
        return self.status, headers, body


@dataclass(frozen=True, slots=True)
class HttpSlowLoris(HttpToxic):
    """The body leaves at ``bytes_per_s``."""

    bytes_per_s: int = 100

    def effect(self) -> Effect:
        """See HttpToxic."""
        return Paced(max(1, self.bytes_per_s))


@dataclass(frozen=True, slots=True)
class HttpHalfJson(HttpToxic):
    """A JSON document loses its second half."""

    resizes: ClassVar[bool] = True

    def applies(self, status: int, headers: Headers) -> bool:
        """See HttpToxic."""
        return status == 200 and _plain(headers, "application/json")

    def effect(self) -> Effect:
        """See HttpToxic."""
        return Half()


@dataclass(frozen=True, slots=True)
class _OnStream(HttpToxic):
    """Of event streams only, and of those that can be read. ``after`` counts data events."""

    after: int = 0

    def applies(self, status: int, headers: Headers) -> bool:
        """See HttpToxic."""
        return status == 200 and _plain(headers, "text/event-stream")

    def effect(self) -> Effect:
        """See HttpToxic."""
        return OnEvent(self.after, self.act)

    def act(self, event: bytes, at: float) -> Outs:
        """What becomes of the event after ``after`` others."""
        return [(at, event)]


@dataclass(frozen=True, slots=True)
class SseSlowFirst(_OnStream):
    """The head passes at once, the body ``delay`` ms later."""

    delay: int = 0

    def effect(self) -> Effect:
        """See HttpToxic."""
        return Late(self.delay / 1000)


@dataclass(frozen=True, slots=True)
class SseStall(_OnStream):
    """The stream pauses for ``lasts`` ms; 0 = until the toxic goes."""

    lasts: int = 0

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        return [(at + self.lasts / 1000 if self.lasts else HELD, event)]


@dataclass(frozen=True, slots=True)
class SseCut(_OnStream):
    """The stream breaks off: the connection closes, or (``clean`` 1) the body just ends."""

    resizes: ClassVar[bool] = True
    clean: int = 0

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        return [(at, Mark.END if self.clean else Mark.CUT)]


@dataclass(frozen=True, slots=True)
class SseMalformed(_OnStream):
    """One event loses the second half of its data."""

    resizes: ClassVar[bool] = True

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        text = event.rstrip(b"\r\n")
        return [(at, text[: (len(text) + 6) // 2] + event[len(text) :])]


@dataclass(frozen=True, slots=True)
class SseDuplicate(_OnStream):
    """One event comes twice."""

    resizes: ClassVar[bool] = True

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        return [(at, event), (at, event)]


@dataclass(frozen=True, slots=True)
class SseError(_OnStream):
    """An error object inside the 200, then the end."""

    resizes: ClassVar[bool] = True

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        error = {"error": {"message": "injected", "type": "server_error", "code": 500}}
        return [(at, b"data: " + json.dumps(error).encode() + b"\n\n"), (at, Mark.END)]


HTTP_TOXICS: dict[str, type[HttpToxic]] = {
    "http_status": HttpStatus,
    "http_slow_loris": HttpSlowLoris,
    "http_half_json": HttpHalfJson,
    "sse_slow_first": SseSlowFirst,
    "sse_stall": SseStall,
    "sse_cut": SseCut,
    "sse_malformed": SseMalformed,
    "sse_duplicate": SseDuplicate,
    "sse_error": SseError,
}


def _plain(headers: Headers, kind: str) -> bool:
    coding = headers.get("content-encoding", "identity").strip().lower()
    return headers.get("content-type", "").lower().startswith(kind) and coding == "identity"


def made(type_: str, wanted: Mapping[str, object], old: HttpToxic | None = None) -> HttpToxic:
    """A toxic from the API's attributes; unknown ones are passed over. Raises ValueError."""
    cls = HTTP_TOXICS[type_]
    values = asdict(old or cls())
    for one in fields(cls):
        value = wanted.get(one.name)
        if value is None:
            continue
        if type(value) is not type(values[one.name]) or (isinstance(value, int) and value < 0):
            raise ValueError(f"attribute {one.name} must be like {values[one.name]!r}")
        values[one.name] = value
    return cls(**values)
