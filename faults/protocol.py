"""Faults of HTTP and of event streams: what a model's provider does on a bad day, on any link.

The embedded proxy reads the answers (``proxy/http1.py``, ``proxy/effects.py``) and changes those of
a share of the calls. Proven by such calls themselves, through the link beside around it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar

from survive.contracts import (
    Active,
    Grade,
    HandleSpec,
    Injection,
    Json,
    LinkHandle,
    Needs,
    Observation,
    Toxic,
)
from survive.errors import RefusedError
from survive.transport import Broken, Request
from survive.units import MS, SECOND, Duration, Share, UnitError

from .protocol_looks import CHAT, LOOK_HEADER, Seen, SleepsError, ask, chat, look, request

ALL, NONE = Share(1), Share(0)
UNTIL_HEAL = NOT_SAID = Duration(0)
SEEN_US = 400 * MS  # a look waits no longer for what a fault holds back
MOST_AFTER = 20  # events of a stream that a look can wait for


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Which calls: ``share`` of those to ``call`` are hit, ``control`` of them never.

    A query in ``call`` is the proof's own; any query is hit. With ``first`` only the first so many
    of users' calls are hit, at each replica of the link; 0 = all.
    """

    share: Share = ALL
    control: Share = NONE
    call: str = CHAT
    first: int = 0

    def __post_init__(self) -> None:
        _check(self, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Calls):
    """An HTTP status from 400 to 599, with Retry-After or without."""

    status: int
    retry_after: Duration = NOT_SAID

    def __post_init__(self) -> None:
        _check(self, 0.1)
        if not 400 <= self.status <= 599:
            raise UnitError("status is from 400 to 599")
        if self.retry_after % SECOND:
            raise UnitError("retry_after is whole seconds, as HTTP has it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delayed(Calls):
    """How much later the first byte of the stream comes."""

    delay: Duration

    def __post_init__(self) -> None:
        _check(self, 0.5)
        _whole_ms("delay", self.delay)


@dataclass(frozen=True, slots=True, kw_only=True)
class After(Calls):
    """After how many data events of the stream; the opening one, with the role, counts."""

    after: int = 3

    def __post_init__(self) -> None:
        _check(self, 0.5)
        _check_after(self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled(Calls):
    """After how many data events, and how long; without ``lasts`` until the fault is healed."""

    after: int = 3
    lasts: Duration = UNTIL_HEAL

    def __post_init__(self) -> None:
        _check(self, 0.5)
        _check_after(self.after)
        if self.lasts:
            _whole_ms("lasts", self.lasts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOff(Calls):
    """After how many data events; ``clean``: the body ends as if it were whole."""

    after: int = 3
    clean: bool = False

    def __post_init__(self) -> None:
        _check(self, 0.5)
        _check_after(self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced(Calls):
    """How many bytes of a body come in a second."""

    bytes_per_s: int

    def __post_init__(self) -> None:
        _check(self, 0.5)
        if not 10 <= self.bytes_per_s <= 1000:
            raise UnitError("bytes_per_s is from 10 to 1000: a look must tell it from a model")


def _check(calls: Calls, least: float) -> None:
    if calls.share < least:
        raise UnitError(f"share must be {least:.0%} or more, or the proof would be half the load")
    if calls.share + calls.control > 1 + 1e-9:
        raise UnitError("share and control are together 100% at most")
    if not 0 <= calls.first <= 1_000_000:
        raise UnitError("first is 0 (all calls) to 1000000")
    method, _, path = calls.call.partition(" ")
    if method not in {"GET", "POST"} or not path.startswith("/"):
        raise UnitError(f"call is written like {CHAT!r}: GET or POST, and a path")


def _check_after(after: int) -> None:
    if not 0 <= after <= MOST_AFTER:
        raise UnitError(f"after is from 0 to {MOST_AFTER}: the proof waits for so many events")


def _whole_ms(name: str, value: Duration) -> None:
    if value < 100 * MS or value % MS:
        raise UnitError(f"{name} is whole milliseconds, 100ms or more")


class _OnCalls:
    """What all faults of this file share. ``toxic`` is the embedded proxy's own type."""

    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.EMULATED
    layer: ClassVar[str] = "protocol"
    needs: ClassVar[Needs] = Needs.LINK
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False
    settings: ClassVar[type] = Calls
    kind: ClassVar[str]
    toxic: ClassVar[str]

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Every listener of the link. Raises RefusedError where the proxy cannot read answers."""
        if any(victim.lent for victim in victims):
            raise RefusedError(
                f"{self.kind} needs survive's own fault proxy: a Toxiproxy server knows only bytes",
                hint="leave `proxy: {toxiproxy: …}` out of the target file",
            )
        return list(victims)

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """Put the toxic on the link."""
        given = _parsed(self, injection)
        method, _, path = given.call.partition(" ")
        attributes: dict[str, Json] = {
            "method": method,
            "path": path.partition("?")[0],
            "control_ppm": round(given.control * 1e6),
            "first": given.first,
            **self._attributes(given),
        }
        toxic = Toxic(_name(injection), self.toxic, toxicity=given.share, attributes=attributes)
        await handle.add(toxic)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """Calls of the kind that is hit; how many of the traffic were is told, and no proof.

        Of a fault for the ``first`` so many calls they are no part of the sum, and are bitten as
        long as it stands: that users are hit no more, once it is spent, is told.

        A replica that sleeps (a spare) answers no such call: there the proxy is asked instead
        whether it holds the fault, for the moment when the replica is woken.
        """
        given = _parsed(self, injection)
        counting = asyncio.ensure_future(handle.counts(_name(injection)))  # beside: a look has 1 s
        try:
            seen = await look(
                handle,
                self._asked(given, injection),
                given.share,
                lambda one: self._fine(given, one),
                lambda through, around: self._bites(given, through, around),
            )
            counts = counting.result() if counting.done() else None
        except SleepsError:
            return _of_sleeper(await counting)
        finally:
            counting.cancel()
        if not counts:
            return seen
        told = ", ".join(f"{count} {what}" for what, count in counts.items())
        if given.first:
            left = given.first - counts.get("hits", 0)
            told += f"; {left} calls will be hit" if left > 0 else "; spent: users are hit no more"
        return Observation(seen.active, f"{seen.evidence}; counted so far: {told}", seen.value)

    async def heal(self, injection: Injection, handle: LinkHandle) -> None:
        """Take the toxic off, which lets go what it holds; one that is not there is fine."""
        await handle.remove(_name(injection))

    async def round_trip(self, injection: Injection, handle: LinkHandle) -> bool:
        """Such a call is answered through the link, as it should be."""
        given = _parsed(self, injection)
        seen = await ask(handle, handle.spec.via, self._asked(given, injection), 0.9)
        return self._fine(given, seen) or seen.asleep

    def _attributes(self, given: Any) -> dict[str, Json]:
        return {}

    def _asked(self, given: Any, injection: Injection) -> Request:
        """Bears the fault, so that its own looks never use up what is meant for users."""
        wanted = self._request(given)
        return replace(wanted, headers=(*wanted.headers, (LOOK_HEADER, _name(injection))))

    def _request(self, given: Any) -> Request:
        return request(given.call, chat(getattr(given, "after", 0) + 3, stream=True))

    def _fine(self, given: Any, seen: Seen) -> bool:
        return seen.status == 200 and seen.broken is None and len(seen.events) > 1

    def _bites(self, given: Any, through: Seen, around: Seen) -> bool:
        raise NotImplementedError


class ProtocolStatus(_OnCalls):
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


class ProtocolSlowFirstToken(_OnCalls):
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


class ProtocolStall(_OnCalls):
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


class ProtocolCut(_OnCalls):
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


class ProtocolMalformed(_OnCalls):
    """``protocol.malformed``: an event that is no JSON."""

    kind: ClassVar[str] = "protocol.malformed"
    toxic: ClassVar[str] = "sse_malformed"
    settings: ClassVar[type] = After
    certifies: ClassVar[str] = "callers cope with one event of a stream whose data is cut in half"
    does_not_certify: ClassVar[str] = (
        "broken framing of HTTP or of the event stream itself; TLS links; a real Toxiproxy"
    )

    def _attributes(self, given: After) -> dict[str, Json]:
        return {"after": given.after}

    def _bites(self, given: After, through: Seen, around: Seen) -> bool:
        return not _all_json(through) and _all_json(around)


class ProtocolDuplicate(_OnCalls):
    """``protocol.duplicate``: an event that comes twice."""

    kind: ClassVar[str] = "protocol.duplicate"
    toxic: ClassVar[str] = "sse_duplicate"
    settings: ClassVar[type] = After
    certifies: ClassVar[str] = "callers cope with one event of a stream that comes twice"
    does_not_certify: ClassVar[str] = (
        "events out of order; whether the text is right: a caller that shows the token twice "
        "passes any check that only counts; TLS links; a real Toxiproxy"
    )

    def _attributes(self, given: After) -> dict[str, Json]:
        return {"after": given.after}

    def _bites(self, given: After, through: Seen, around: Seen) -> bool:
        return _stutters(through) and not _stutters(around)


class ProtocolErrorInStream(_OnCalls):
    """``protocol.error_in_stream``: a 200 that turns into an error."""

    kind: ClassVar[str] = "protocol.error_in_stream"
    toxic: ClassVar[str] = "sse_error"
    settings: ClassVar[type] = After
    certifies: ClassVar[str] = (
        "callers notice an error object inside a stream that began with status 200"
    )
    does_not_certify: ClassVar[str] = (
        "errors of another shape than OpenAI's `error` object; TLS links; a real Toxiproxy"
    )

    def _attributes(self, given: After) -> dict[str, Json]:
        return {"after": given.after}

    def _bites(self, given: After, through: Seen, around: Seen) -> bool:
        return _has_error(through) and not _has_error(around)


class ProtocolSlowLoris(_OnCalls):
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


class ProtocolCorruptJson(_OnCalls):
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
        return request(given.call, chat(2, stream=False))

    def _fine(self, given: Calls, seen: Seen) -> bool:
        return (seen.status, seen.broken) == (200, None) and _is_json(seen.body)

    def _bites(self, given: Calls, through: Seen, around: Seen) -> bool:
        return (through.status, through.broken) == (200, None) and not _is_json(through.body)


_BROKE_OFF = {Broken.CLOSED, Broken.RESET}


def _of_sleeper(counts: Mapping[str, int] | None) -> Observation:
    """What the proxy says of a replica that nothing can be asked of. None = it says nothing."""
    if counts is None:
        return Observation(Active.UNKNOWN, "the replica sleeps, and the proxy cannot be read")
    held = "holds the fault" if counts else "holds no fault"
    return Observation(Active.YES if counts else Active.NO, f"the replica sleeps; its proxy {held}")


def _parsed(fault: _OnCalls, injection: Injection) -> Any:
    given = injection.settings
    known = [one.name for one in fields(fault.settings) if one.name in given]
    return fault.settings(**{name: _READ.get(name, _as_it_is)(given[name]) for name in known})


_READ: dict[str, Callable[[Json], Any]] = {
    "share": Share.parse,
    "control": Share.parse,
    "delay": Duration.parse,
    "lasts": Duration.parse,
    "retry_after": Duration.parse,
}


def _as_it_is(value: Json) -> Json:
    return value


def _name(injection: Injection) -> str:
    return f"sv-{injection.id}"


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _payloads(seen: Seen) -> list[bytes]:
    return [data for _, data in seen.events if data != b"[DONE]"]


def _all_json(seen: Seen) -> bool:
    return all(map(_is_json, _payloads(seen)))


def _stutters(seen: Seen) -> bool:
    payloads = _payloads(seen)
    return any(one == two for one, two in pairwise(payloads))


def _has_error(seen: Seen) -> bool:
    return any(b'"error"' in data and "error" in json.loads(data) for data in _payloads(seen)
               if _is_json(data))  # fmt: skip
