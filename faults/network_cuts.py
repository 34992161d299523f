"""Faults that cut a link: silently, by a reset, of several links at once, and again and again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, Injection, LinkHandle, Observation
from survive.transport import Broken
from survive.units import MS, SECOND, Duration, UnitError

from .common import Nothing
from .links import OnLink, both, call, cut, put

AT_ONCE = Duration(0)
LONGEST_US = 800 * MS  # a look has 1 s, and a call that began within this may still end
CALL_US = 150 * MS
PAUSE_US = 15 * MS
LATE_US = 150 * MS  # so much later than planned a busy proxy may go down
OUTLIVES_US = 10 * SECOND  # a heal that does nothing is seen, since the flapping goes on that long


@dataclass(frozen=True, slots=True)
class Timeout:
    """Settings: connections are closed ``after`` so long; 0ms = only when the fault is healed."""

    after: Duration = AT_ONCE

    def __post_init__(self) -> None:
        if self.after % MS or 0 < self.after < SECOND:
            raise UnitError("after is 0ms, or at least 1s in whole milliseconds")


@dataclass(frozen=True, slots=True)
class ResetPeer:
    """Settings: a connection is reset ``after`` so long from the first byte of its answer."""

    after: Duration = AT_ONCE

    def __post_init__(self) -> None:
        if self.after % MS or self.after > 400 * MS:
            raise UnitError("after is at most 400ms in whole milliseconds, or a look cannot see it")


@dataclass(frozen=True, slots=True)
class Flapping:
    """Settings: the link is ``down`` so long at the begin of ``every`` so long."""

    every: Duration
    down: Duration

    def __post_init__(self) -> None:
        if not 200 * MS <= self.every <= 600 * MS:
            raise UnitError(
                "every is 200ms to 600ms, so that one look sees both states; for slower ones "
                "repeat network.down with the fault's own `every` and `times`"
            )
        if not 100 * MS <= self.down <= self.every - 100 * MS:
            raise UnitError("down is at least 100ms, and leaves as much of `every`")


class NetworkTimeout(OnLink):
    """``network.timeout``: a black hole."""

    kind: ClassVar[str] = "network.timeout"
    settings: ClassVar[type] = Timeout
    certifies: ClassVar[str] = "callers have deadlines: answers vanish, and nothing says so"
    does_not_certify: ClassVar[str] = (
        "requests still arrive and are worked on; connections are accepted; healing closes those "
        "that were open, since their bytes are lost"
    )

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """A timeout toxic on bytes towards the caller."""
        await put(injection, handle, "timeout", timeout=_after(injection) // MS)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """A call through the link is never answered, one around it in half the time is."""
        return cut(*await both(handle), Broken.TIMEOUT)


class NetworkPartition(OnLink):
    """``network.partition``: nothing passes, either way; of several links at once."""

    kind: ClassVar[str] = "network.partition"
    settings: ClassVar[type] = Nothing
    certifies: ClassVar[str] = (
        "a stack whose parts are cut off from each other, silently and both ways, goes on as far "
        "as it can and joins up again"
    )
    does_not_certify: ClassVar[str] = (
        "connections are still accepted, by the proxy; packets of open ones are acknowledged; "
        "healing closes those that were open, since their bytes are lost"
    )

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """A timeout toxic each way."""
        await put(injection, handle, "timeout", ways=2, timeout=0)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """As of network.timeout."""
        return cut(*await both(handle), Broken.TIMEOUT)


class NetworkResetPeer(OnLink):
    """``network.reset_peer``: connections that are reset under their answers."""

    kind: ClassVar[str] = "network.reset_peer"
    settings: ClassVar[type] = ResetPeer
    certifies: ClassVar[str] = (
        "callers cope with resets after their request was sent, and do not repeat what may not be"
    )
    does_not_certify: ClassVar[str] = (
        "requests arrive and are worked on; connections are still accepted"
    )

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """A reset_peer toxic on bytes towards the caller."""
        await put(injection, handle, "reset_peer", timeout=_after(injection) // MS)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """A call through the link is reset, one around it is answered."""
        return cut(*await both(handle), Broken.RESET)


class NetworkFlapping(OnLink):
    """``network.flapping``: a link that goes down and up, again and again.

    The schedule runs where inject ran, and so ends with that process; ``heal`` in another one
    needs only to open the link. It is bounded by the planned time besides.
    """

    kind: ClassVar[str] = "network.flapping"
    settings: ClassVar[type] = Flapping
    certifies: ClassVar[str] = (
        "callers cope with a link that comes back for moments: no storm of new connections, no "
        "backend taken in and out with each of them"
    )
    does_not_certify: ClassVar[str] = (
        "a silent loss of packets; slow flapping, for which network.down repeats"
    )

    def __init__(self) -> None:
        self._running: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    async def inject(self, injection: Injection, handle: LinkHandle) -> None:
        """Down at once, then by the schedule."""
        await handle.enable(False)
        stop = asyncio.Event()
        task = asyncio.create_task(self._flap(injection, handle, stop))
        task.add_done_callback(_looked_at)
        self._running[injection.id] = (stop, task)

    async def _flap(self, injection: Injection, handle: LinkHandle, stop: asyncio.Event) -> None:
        every, down = (Duration.parse(injection.settings[key]) for key in ("every", "down"))
        hold = (injection.until_us or injection.at_us) - injection.at_us
        began_us = handle.clock.now_us()
        for cycle in range((hold + OUTLIVES_US) // every):
            at_us = began_us + cycle * every
            if cycle:
                await handle.enable(False)
            if await _stopped(stop, handle, at_us + down):
                return
            await handle.enable(True)
            if await _stopped(stop, handle, at_us + every):
                return

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """Yes as soon as the link was seen both ways; no if it was up for longer than it may be.

        Calls begin so close to each other that none of its times of being down fits between two.
        Where this machine was too busy for that, what was seen before it counts no more.
        """
        every, down = (Duration.parse(injection.settings[key]) for key in ("every", "down"))
        began_us = up_since_us = last_us = handle.clock.now_us()
        worked = refused = 0
        while (now_us := handle.clock.now_us()) < began_us + LONGEST_US:
            if now_us - last_us >= down:
                up_since_us = now_us  # nobody looked for as long as it may be down
            last_us = now_us
            seen = await call(handle, handle.spec.via, CALL_US)
            worked += seen.broken is None
            refused += seen.broken in {Broken.REFUSED, Broken.RESET, Broken.CLOSED}
            if worked and refused:
                break
            if worked and now_us - up_since_us >= every - down + LATE_US:
                return Observation(Active.NO, _counted(worked, refused))
            await handle.clock.sleep_until(handle.clock.now_us() + PAUSE_US)
        both_ways = worked and refused
        return Observation(Active.YES if both_ways else Active.UNKNOWN, _counted(worked, refused))

    async def heal(self, injection: Injection, handle: LinkHandle) -> None:
        """End the schedule, if it runs here, then open the link."""
        stop, task = self._running.pop(injection.id, (None, None))
        if stop is not None and task is not None:
            stop.set()
            # Never cancelled: half an order to close might be carried out after the one to open.
            # What it failed at does not matter now: the link is opened, and seen to be open.
            await asyncio.gather(task, return_exceptions=True)
        await handle.enable(True)


def _counted(worked: int, refused: int) -> str:
    return f"{worked} calls answered and {refused} refused through the link"


def _looked_at(task: asyncio.Task[None]) -> None:
    """A schedule whose proxy died under it has nothing to tell that the looks do not show."""
    if not task.cancelled():
        task.exception()


async def _stopped(stop: asyncio.Event, handle: LinkHandle, until_us: int) -> bool:
    """Whether it was asked to stop before then."""
    try:
        async with asyncio.timeout(max(0, until_us - handle.clock.now_us()) / SECOND):
            await stop.wait()
    except TimeoutError:
        return False
    return True


def _after(injection: Injection) -> int:
    return Duration.parse(injection.settings.get("after", "0ms"))
