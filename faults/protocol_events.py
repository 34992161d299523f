"""Streams with one event that is wrong: no JSON, sent twice, or an error."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import ClassVar

from survive.contracts import Json

from .protocol_calls import OnCalls, is_json
from .protocol_looks import Seen
from .protocol_settings import After


class _OnEvent(OnCalls):
    """What all faults of this file share: which event is wrong."""

    settings: ClassVar[type] = After

    def _attributes(self, given: After) -> dict[str, Json]:
        return {"after": given.after}


class ProtocolMalformed(_OnEvent):
    """``protocol.malformed``: an event that is no JSON."""

    kind: ClassVar[str] = "protocol.malformed"
    toxic: ClassVar[str] = "sse_malformed"
    certifies: ClassVar[str] = "callers cope with one event of a stream whose data is cut in half"
    does_not_certify: ClassVar[str] = (
        "broken framing of HTTP or of the event stream itself; TLS links; a real Toxiproxy"
    )

    def _bites(self, given: After, through: Seen, around: Seen) -> bool:
        return not _all_json(through) and _all_json(around)


class ProtocolDuplicate(_OnEvent):
    """``protocol.duplicate``: an event that comes twice."""

    kind: ClassVar[str] = "protocol.duplicate"
    toxic: ClassVar[str] = "sse_duplicate"
    certifies: ClassVar[str] = "callers cope with one event of a stream that comes twice"
    does_not_certify: ClassVar[str] = (
        "events out of order; whether the text is right: a caller that shows the token twice "
        "passes any check that only counts; TLS links; a real Toxiproxy"
    )

    def _bites(self, given: After, through: Seen, around: Seen) -> bool:
        return _stutters(through) and not _stutters(around)


class ProtocolErrorInStream(_OnEvent):
    """``protocol.error_in_stream``: a 200 that turns into an error."""

    kind: ClassVar[str] = "protocol.error_in_stream"
    toxic: ClassVar[str] = "sse_error"
    certifies: ClassVar[str] = (
        "callers notice an error object inside a stream that began with status 200"
    )
    does_not_certify: ClassVar[str] = (
        "errors of another shape than OpenAI's `error` object; TLS links; a real Toxiproxy"
    )

    def _bites(self, given: After, through: Seen, around: Seen) -> bool:
        return _has_error(through) and not _has_error(around)


def _payloads(seen: Seen) -> list[bytes]:
    return [data for _, data in seen.events if data != b"[DONE]"]


def _all_json(seen: Seen) -> bool:
    return all(map(is_json, _payloads(seen)))


def _stutters(seen: Seen) -> bool:
    payloads = _payloads(seen)
    return any(one == two for one, two in pairwise(payloads))


def _has_error(seen: Seen) -> bool:
    return any(b'"error"' in data and "error" in json.loads(data) for data in _payloads(seen)
               if is_json(data))  # fmt: skip
