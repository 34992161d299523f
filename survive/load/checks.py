"""What a whole answer must hold to be ok: JSON, the places in it, the number of its tokens.

Silent wrongs are failures (DESIGN law 4): an answer that was cut short and says that it is whole
is found only by who knows how long it must be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from survive.load.sse import StreamReader, tokens_of

MAX_CHECKED_BYTES = 4 * 1024 * 1024  # of an answer that is kept to be looked into


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """What is asked of an answer beyond its status and its end.

    ``has`` names places like ``choices.0.message``: keys of objects and numbers of arrays.
    """

    tokens: int | None = None
    json: bool = False
    has: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> AnswerCheck | None:
        """The inverse of asdict, for the load's own process."""
        return None if data is None else cls(data["tokens"], data["json"], tuple(data["has"]))

    def wrong_of_stream(self, stream: StreamReader) -> str:
        """Why a streamed answer is not ok; "" = it is."""
        return self._wrong_count(stream.output_tokens)

    def wrong_of_body(self, body: bytes, *, whole: bool) -> str:
        """The same of an answer in one piece. ``whole``: all of it was kept."""
        if not whole:
            return "oversized"
        try:
            value = json.loads(body.decode())
        except (ValueError, RecursionError):
            return "not_json"
        if not all(holds(value, place) for place in self.has):
            return "missing"
        if self.tokens is None:
            return ""
        usage = value.get("usage") if isinstance(value, dict) else None
        counted = tokens_of(usage)
        # Nobody else has counted them: what was asked could not be seen, and that is no green.
        return "uncounted" if counted is None else self._wrong_count(counted)

    def _wrong_count(self, tokens: int) -> str:
        if self.tokens is None or tokens == self.tokens:
            return ""
        return "truncated" if tokens < self.tokens else "overlong"


def holds(value: object, place: str) -> bool:
    """Whether a JSON value has something (not null) at a dotted place."""
    for name in place.split("."):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return False
    return value is not None


def is_error(body: bytes) -> bool:
    """A JSON object with a truthy top-level ``error``. Status 200 does not make that an answer."""
    try:
        value = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value.get("error"))
