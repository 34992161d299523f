"""Faults on the bytes of a link: how fast they pass, in what pieces, how many, and their end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, Injection, LinkHandle, Observation
from survive.transport import Broken, CallFailedError, Request
from survive.units import MS, SECOND, Duration, UnitError

from .links import PACE_US, PAD_MAX, SEEN_US, WAIT_US, OnLink, both, cut, paced, put

NO_PROXY_LOSS = "loss, reordering, TCP's own reaction to a thin path: a proxy paces whole bytes"


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Settings: each connection carries ``kb_per_s`` × 1000 bytes a second each way."""

    kb_per_s: int

    def __post_init__(self) -> None:
        if not 2 <= self.kb_per_s <= PAD_MAX * MS // SEEN_US:
            most = PAD_MAX * MS // SEEN_US
            raise UnitError(f"kb_per_s is 2 to {most}; more, and the proof cannot see it")


@dataclass(frozen=True, slots=True)
class Slicer:
    """Settings: bytes come in pieces of about ``average_bytes``, ``delay`` after each."""

    average_bytes: int
    delay: Duration

    def __post_init__(self) -> None:
        if not 1 <= self.average_bytes <= PAD_MAX // 2:
            raise UnitError(f"average_bytes is 1 to {PAD_MAX // 2}")
        if not MS <= self.delay <= PACE_US:
            raise UnitError("delay is 1ms to 150ms")
        if self.pieces * self.delay < SEEN_US:
            raise UnitError("so few pieces so close together cannot be told from none")

    @property
    def pieces(self) -> int:
        """How many of them the padding of a probe makes."""
        return max(1, min(PAD_MAX // self.average_bytes, PACE_US // self.delay))


@dataclass(frozen=True, slots=True)
class LimitData:
    """Settings: a connection is closed after so many bytes either way."""

    bytes: int

    def __post_init__(self) -> None:
        if not 1 <= self.bytes < PAD_MAX:
            raise UnitError(f"bytes is 1 to {PAD_MAX - 1}: the proof's request must be longer")


@dataclass(frozen=True, slots=True)
class SlowClose:
    """Settings: the end of a connection comes ``delay`` after its last byte."""

    delay: Duration

    def __post_init__(self) -> None:
        if self.delay % MS or not SEEN_US <= self.delay <= SECOND:
            raise UnitError("delay is 20ms to 1s in whole milliseconds, or a look cannot see it")


class NetworkBandwidth(OnLink):
    """``network.bandwidth``: a thin link."""

    kind: ClassVar[str] = "network.bandwidth"
    settings: ClassVar[type] = Bandwidth
    certifies: ClassVar[str] = "callers cope with answers and uploads that trickle"
    does_not_certify: ClassVar[str] = (
        f"{NO_PROXY_LOSS}; each connection has the rate for itself, they do not share it"
    )

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """A bandwidth toxic each way."""
        rate = int(injection.settings["kb_per_s"])  # type: ignore[arg-type]
        await put(injection, handle, "bandwidth", ways=2, rate=rate)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """A padded call is late by at least half of what its padding takes at that rate."""
        rate = int(injection.settings["kb_per_s"])  # type: ignore[arg-type]
        pad = min(PAD_MAX, rate * PACE_US // MS)
        return await paced(handle, pad, pad * MS / rate)


class NetworkSlicer(OnLink):
    """``network.slicer``: bytes in small pieces."""

    kind: ClassVar[str] = "network.slicer"
    settings: ClassVar[type] = Slicer
    certifies: ClassVar[str] = (
        "callers and services parse what comes in small late pieces: events cut in the middle"
    )
    does_not_certify: ClassVar[str] = f"{NO_PROXY_LOSS}; TCP may join pieces again on its way"

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """A slicer toxic each way; its sizes vary by a tenth, at least by one."""
        wanted = _slicer(injection)
        await put(
            injection,
            handle,
            "slicer",
            ways=2,
            average_size=wanted.average_bytes,
            size_variation=max(1, wanted.average_bytes // 10),
            delay=int(wanted.delay),
        )

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """A padded call is late by at least half of the delays between its pieces."""
        wanted = _slicer(injection)
        return await paced(
            handle, wanted.pieces * wanted.average_bytes, wanted.pieces * wanted.delay
        )


class NetworkLimitData(OnLink):
    """``network.limit_data``: connections that end in the middle."""

    kind: ClassVar[str] = "network.limit_data"
    settings: ClassVar[type] = LimitData
    certifies: ClassVar[str] = (
        "callers notice answers that end early, and do not take a part for the whole"
    )
    does_not_certify: ClassVar[str] = (
        "connections kept alive count all that they carried; which answer is cut depends on that"
    )

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """A limit_data toxic each way."""
        most = int(injection.settings["bytes"])  # type: ignore[arg-type]
        await put(injection, handle, "limit_data", ways=2, bytes=most)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """A request longer than the limit ends unanswered, while around the link it is answered."""
        most = int(injection.settings["bytes"])  # type: ignore[arg-type]
        return cut(*await both(handle, most), Broken.CLOSED, Broken.RESET)


class NetworkSlowClose(OnLink):
    """``network.slow_close``: connections that end late."""

    kind: ClassVar[str] = "network.slow_close"
    settings: ClassVar[type] = SlowClose
    certifies: ClassVar[str] = (
        "callers cope with connections that the service has closed and that stay open for a while: "
        "pools, descriptors, answers that end with their connection"
    )
    does_not_certify: ClassVar[str] = (
        "connections kept alive do not end, so nothing happens to them; TLS links (refused)"
    )
    not_on_tls: ClassVar[str] = "its peers tell each other of their end before the connection's own"

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """A slow_close toxic towards the caller."""
        await put(injection, handle, "slow_close", delay=_delay(injection) // MS)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """From an answer's last byte to its connection's end, through the link and around it."""
        request = Request("GET", handle.spec.probe_path)
        limit_s = WAIT_US / SECOND
        try:
            around = await handle.transport.linger(handle.spec.address, request, timeout_s=0.2)
            try:
                through = await handle.transport.linger(handle.spec.via, request, timeout_s=limit_s)
            except CallFailedError as error:
                if error.how is not Broken.TIMEOUT:
                    raise
                through = limit_s
        except CallFailedError as error:
            return Observation(Active.UNKNOWN, f"no connection's end was seen: {error}")
        value = (through - around) * SECOND
        return Observation(
            Active.YES if 2 * value >= _delay(injection) else Active.NO,
            f"a connection ends {value / MS:.1f} ms later through the link than around it",
            value,
        )


def _slicer(injection: Injection) -> Slicer:
    settings = injection.settings
    return Slicer(int(settings["average_bytes"]), Duration.parse(settings["delay"]))  # type: ignore[arg-type]


def _delay(injection: Injection) -> int:
    return Duration.parse(injection.settings["delay"])
