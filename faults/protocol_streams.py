"""Streams that come late, pause, or break off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Json
from survive.transport import Broken
from survive.units import MS, Duration, UnitError

from .protocol_calls import OnCalls
from .protocol_looks import Seen
from .protocol_settings import After, Calls

SEEN_US = 400 * MS  # a look waits no longer for what a fault holds back
UNTIL_HEAL = Duration(0)
_BROKE_OFF = {Broken.CLOSED, Broken.RESET}


@dataclass(frozen=True, slots=True, kw_only=True)
class Delayed(Calls):
    """How much later the first byte of the stream comes."""

    delay: Duration

    def __post_init__(self) -> None:
        Calls.__post_init__(self)
        _whole_ms("delay", self.delay)


class ProtocolSlowFirstToken(OnCalls):
    """``protocol.slow_first_token``: the head at once, the stream later."""

    kind: ClassVar[str] = "protocol.slow_first_token"
    toxic: ClassVar[str] = "sse_slow_first"
    settings: ClassVar[type] = Delayed
    certifies: ClassVar[str] = (
        "callers cope with streams whose first token comes this much later than the head"
    )
    does_not_certify: ClassVar[str] = (
        "a model that is slow because it is busy: the service itself is idle meanwhile; answers "
        "that are not streamed; over 800ms a look sees only the first 400ms; TLS links; a real "
        "Toxiproxy"
    )

    def _attributes(self, given: Delayed) -> dict[str, Json]:
        return {"delay": given.delay // MS}

    def _bites(self, given: Delayed, through: Seen, around: Seen) -> bool:
        extra = through.wait_us(0) - around.wait_us(0)
        return through.status == 200 and extra >= min(given.delay // 2, SEEN_US)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled(After):
    """After how many data events, and how long; without ``lasts`` until the fault is healed."""

    lasts: Duration = UNTIL_HEAL

    def __post_init__(self) -> None:
        After.__post_init__(self)
        if self.lasts:
            _whole_ms("lasts", self.lasts)


class ProtocolStall(OnCalls):
    """``protocol.stall``: a stream that pauses."""

    kind: ClassVar[str] = "protocol.stall"
    toxic: ClassVar[str] = "sse_stall"
    settings: ClassVar[type] = Stalled
    certifies: ClassVar[str] = (
        "callers cope with a stream that falls silent in its middle, connection open: deadlines "
        "between tokens, users who wait"
    )
    does_not_certify: ClassVar[str] = (
        "a service that hangs: it has sent its answer and is free; over 800ms a look sees only the "
        "first 400ms; TLS links; a real Toxiproxy"
    )

    def _attributes(self, given: Stalled) -> dict[str, Json]:
        return {"after": given.after, "lasts": given.lasts // MS}

    def _bites(self, given: Stalled, through: Seen, around: Seen) -> bool:
        if len(through.events) < given.after or len(around.events) <= given.after:
            return False
        needed = min(given.lasts // 2 or SEEN_US, SEEN_US)
        return through.wait_us(given.after) - around.wait_us(given.after) >= needed


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOff(After):
    """After how many data events; ``clean``: the body ends as if it were whole."""

    clean: bool = False


class ProtocolCut(OnCalls):
    """``protocol.cut``: a stream without its end."""

    kind: ClassVar[str] = "protocol.cut"
    toxic: ClassVar[str] = "sse_cut"
    settings: ClassVar[type] = CutOff
    certifies: ClassVar[str] = (
        "callers notice a stream that breaks off, or (clean) one that ends as if whole but without "
        "finish reason and [DONE], and no user takes a torso for an answer"
    )
    does_not_certify: ClassVar[str] = (
        "a service that dies: it is up and answers the next call; TLS links; a real Toxiproxy"
    )

    def _attributes(self, given: CutOff) -> dict[str, Json]:
        return {"after": given.after, "clean": int(given.clean)}

    def _bites(self, given: CutOff, through: Seen, around: Seen) -> bool:
        ended = through.broken is None if given.clean else through.broken in _BROKE_OFF
        torso = len(through.events) == given.after < len(around.events)
        return through.status == 200 and ended and torso


def _whole_ms(name: str, value: Duration) -> None:
    if value < 100 * MS or value % MS:
        raise UnitError(f"{name} is whole milliseconds, 100ms or more")
