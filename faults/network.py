"""Faults on a link: what a fault proxy in front of a service can honestly do to its network.

The model for the next fault: class data that says what a survived fault shows, inject and heal by
the handle, and a proof by another channel: calls through the link beside calls around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, Injection, Json, LinkHandle, Observation
from survive.transport import Broken
from survive.units import MS, SECOND, Duration, UnitError

from .common import Nothing
from .links import OnLink, call, put

LOOK_US = 400 * MS  # a second pair of calls fits in a look (1 s) if the first took no longer
AROUND_US = 450 * MS  # a service that needs longer to answer its probe path tells nothing
SLACK_US = 50 * MS  # a call that is given up ends a little before or after its time
WHOLE_US = 800 * MS  # so long a late answer is waited for; then only until it is late enough
NO_JITTER = Duration(0)
DOWN_US = 450 * MS  # two calls fit in a look


@dataclass(frozen=True, slots=True)
class Latency:
    """Settings: every chunk towards the caller comes ``latency`` ± ``jitter`` later."""

    latency: Duration
    jitter: Duration = NO_JITTER

    def __post_init__(self) -> None:
        if self.latency < MS or self.latency % MS or self.jitter % MS:
            raise UnitError("latency and jitter are whole milliseconds, latency at least 1ms")
        if 2 * self.jitter >= self.latency:
            raise UnitError("jitter must be under half the latency, or the proof cannot see it")


class NetworkLatency(OnLink):
    """``network.latency``: a slow link."""

    kind: ClassVar[str] = "network.latency"
    settings: ClassVar[type] = Latency
    certifies: ClassVar[str] = (
        "callers cope with answers that come later by this much: deadlines, pools, queues"
    )
    does_not_certify: ClassVar[str] = (
        "loss, reordering, slow connection set-up, TCP's own reaction to a long path: the delay is "
        "put on bytes towards the caller by a proxy, which accepts connections for a dead service"
    )

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """Put a latency toxic on the link."""
        wanted = _latency(injection)
        await put(
            injection,
            handle,
            "latency",
            latency=wanted.latency // MS,
            jitter=wanted.jitter // MS,
        )

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """A timed call through the link minus one around it: yes from half the setting on.

        A call that is given up then took at least that long. Of two pairs the fastest of either way
        count: load only ever makes a call slower.
        """
        latency = _latency(injection).latency
        late: list[int] = []
        straight: list[int] = []
        least = ""
        began = handle.clock.now_us()
        while not late or (len(late) < 2 and handle.clock.now_us() - began <= LOOK_US):
            around = await call(handle, handle.spec.address, AROUND_US)
            if around.broken is not None:
                return Observation(Active.UNKNOWN, f"around the link: {around.broken}")
            patience = max(WHOLE_US, latency // 2 + around.took_us + SLACK_US)
            through = await call(handle, handle.spec.via, patience)
            if through.broken not in {None, Broken.TIMEOUT}:
                return Observation(Active.UNKNOWN, f"through the link: {through.broken}")
            late.append(through.took_us)
            straight.append(around.took_us)
            least = "at least " if through.broken else least
        value = float(min(late) - min(straight))
        return Observation(
            Active.YES if 2 * value >= latency else Active.NO,
            f"a call takes {least}{value / MS:.1f} ms longer through the link than around it",
            value,
        )

    def look_s(self, settings: Mapping[str, Json]) -> float:
        """Long enough for a call through the link to be late by half the setting."""
        return (Duration.parse(settings["latency"]) // 2 + AROUND_US + SLACK_US) / SECOND


class NetworkDown(OnLink):
    """``network.down``: a cut link."""

    kind: ClassVar[str] = "network.down"
    settings: ClassVar[type] = Nothing
    certifies: ClassVar[str] = (
        "callers cope with a service that they cannot reach: open connections are reset, new ones "
        "refused at once"
    )
    does_not_certify: ClassVar[str] = (
        "a silent partition, where packets vanish and only deadlines notice; the service itself "
        "stays up and idle"
    )

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """Close the link's listener and its connections."""
        await handle.enable(False)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """Nobody answers through the link while the service does around it."""
        through = await call(handle, handle.spec.via, DOWN_US)
        if through.broken is None:
            return Observation(Active.NO, f"through the link: status {through.status}")
        around = await call(handle, handle.spec.address, DOWN_US)
        cut = through.broken in {Broken.REFUSED, Broken.RESET} and around.broken is None
        seen = around.broken or f"status {around.status}"
        evidence = f"through the link: {through.broken}; around it: {seen}"
        return Observation(Active.YES if cut else Active.UNKNOWN, evidence)

    async def heal(self, injection: Injection, handle: LinkHandle) -> None:
        """Open the link's listener."""
        await handle.enable(True)


def _latency(injection: Injection) -> Latency:
    settings = injection.settings
    return Latency(
        Duration.parse(settings["latency"]), Duration.parse(settings.get("jitter", "0ms"))
    )
