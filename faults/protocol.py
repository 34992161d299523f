"""Answers gone wrong as a whole: refused, trickling, or half a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Json
from survive.transport import Request
from survive.units import SECOND, Duration, UnitError

from .chat_looks import chat_body
from .protocol_calls import OnCalls, is_json
from .protocol_looks import Seen, request
from .protocol_settings import Calls

NOT_SAID = Duration(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Calls):
    """An HTTP status from 400 to 599, with Retry-After or without."""

    least: ClassVar[float] = 0.1  # its calls cost a service nothing
    status: int
    retry_after: Duration = NOT_SAID

    def __post_init__(self) -> None:
        Calls.__post_init__(self)
        if not 400 <= self.status <= 599:
            raise UnitError("status is from 400 to 599")
        if self.retry_after % SECOND:
            raise UnitError("retry_after is whole seconds, as HTTP has it")


class ProtocolStatus(OnCalls):
    """``protocol.status``: refused or failed calls."""

    kind: ClassVar[str] = "protocol.status"
    toxic: ClassVar[str] = "http_status"
    settings: ClassVar[type] = Status
    certifies: ClassVar[str] = (
        "callers cope with rate limits, overload and errors of a service that is up: retries "
        "elsewhere or later, Retry-After, circuit breakers"
    )
    does_not_certify: ClassVar[str] = (
        "a limit that depends on the caller's rate or tokens: calls are hit by chance; the service "
        "never sees a call that is hit, so it costs it nothing; TLS links; a real Toxiproxy"
    )

    def _attributes(self, given: Status) -> dict[str, Json]:
        return {"status": given.status, "retry_after_s": given.retry_after // SECOND}

    def _request(self, given: Status) -> Request:
        return request(given.call, {})  # no chat: a service refuses it at once, at no cost

    def _fine(self, given: Status, seen: Seen) -> bool:
        return seen.broken is None and seen.status != given.status

    def _bites(self, given: Status, through: Seen, around: Seen) -> bool:
        later = through.headers.get("retry-after", "")
        wanted = str(given.retry_after // SECOND) if given.retry_after else ""
        return (through.status, through.broken, later) == (given.status, None, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced(Calls):
    """How many bytes of a body come in a second."""

    bytes_per_s: int

    def __post_init__(self) -> None:
        Calls.__post_init__(self)
        if not 10 <= self.bytes_per_s <= 1000:
            raise UnitError("bytes_per_s is from 10 to 1000: a look must tell it from a model")


class ProtocolSlowLoris(OnCalls):
    """``protocol.slow_loris``: a body that trickles."""

    kind: ClassVar[str] = "protocol.slow_loris"
    toxic: ClassVar[str] = "http_slow_loris"
    settings: ClassVar[type] = Paced
    certifies: ClassVar[str] = (
        "callers cope with a body that trickles in: a deadline for the whole, not only for silence"
    )
    does_not_certify: ClassVar[str] = (
        "clients that trickle their requests (the name's first meaning); TLS links; a real "
        "Toxiproxy"
    )

    def _attributes(self, given: Paced) -> dict[str, Json]:
        return {"bytes_per_s": given.bytes_per_s}

    def _bites(self, given: Paced, through: Seen, around: Seen) -> bool:
        slow = through.pace <= 2 * given.bytes_per_s
        return through.status == 200 and slow and around.pace >= 4 * given.bytes_per_s


class ProtocolCorruptJson(OnCalls):
    """``protocol.corrupt_json``: half a document that says it is whole."""

    kind: ClassVar[str] = "protocol.corrupt_json"
    toxic: ClassVar[str] = "http_half_json"
    certifies: ClassVar[str] = (
        "callers notice a 200 whose JSON document ends in its middle (a tool's or a model's answer "
        "that is not streamed)"
    )
    does_not_certify: ClassVar[str] = (
        "valid JSON that says something wrong; compressed answers; TLS links; a real Toxiproxy"
    )

    def _request(self, given: Calls) -> Request:
        return request(given.call, chat_body(2, stream=False))

    def _fine(self, given: Calls, seen: Seen) -> bool:
        return (seen.status, seen.broken) == (200, None) and is_json(seen.body)

    def _bites(self, given: Calls, through: Seen, around: Seen) -> bool:
        return (through.status, through.broken) == (200, None) and not is_json(through.body)
