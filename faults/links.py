"""What faults on a link share: their class data, and calls through the link beside calls around it.

No fault lives here. A proof compares the two ways: whatever slows the service, or this machine,
slows both; only the fault is on the link.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import (
    Active,
    FaultFailedError,
    Grade,
    Injection,
    Json,
    LinkHandle,
    Needs,
    Observation,
    Toxic,
)
from survive.transport import Broken, CallFailedError, Request, read_all
from survive.units import MS, SECOND

from .common import Common, mark

WAIT_US = 700 * MS  # the longest call of a look, which has 1 s
PAD_MAX = 6000  # bytes of a probe's padding: servers take 8 KB of headers
PACE_US = 150 * MS  # how much later a padded probe should be
SEEN_US = 20 * MS  # what is less late than this is lost in the noise of a busy machine
PAIRS = 3
UP = "-up"  # ends the name of a fault's toxic on the way to the service


@dataclass(frozen=True, slots=True)
class Call:
    """One GET of the probe path: how long until its end, and its status or how it broke."""

    took_us: int
    status: int = 0
    broken: Broken | None = None

    def __str__(self) -> str:
        return str(self.broken) if self.broken else f"status {self.status}"


async def call(handle: LinkHandle, address: str, timeout_us: int, pad: int = 0) -> Call:
    """GET the probe path at ``address``, its request ``pad`` bytes longer; never raises for it."""
    began = handle.clock.now_us()
    status, broken = 0, None
    headers = (("x-pad", "p" * pad),) if pad else ()
    try:
        async with asyncio.timeout(timeout_us / SECOND):
            response = await handle.transport.call(
                address,
                Request("GET", handle.spec.probe_path, headers),
                timeout_s=timeout_us / SECOND,
            )
            await read_all(response)
            status = response.status
    except CallFailedError as error:
        broken = error.how
    except TimeoutError:
        broken = Broken.TIMEOUT
    return Call(handle.clock.now_us() - began, status, broken)


async def both(handle: LinkHandle, pad: int = 0) -> tuple[Call, Call]:
    """The same call through the link and around it, side by side."""
    through, around = await asyncio.gather(
        call(handle, handle.spec.via, WAIT_US, pad), call(handle, handle.spec.address, WAIT_US, pad)
    )
    return through, around


def cut(through: Call, around: Call, *signs: Broken) -> Observation:
    """Yes if the call broke by one of the signs while the service answered around the link."""
    evidence = f"through the link: {through}; around it: {around}"
    if through.broken is None:
        return Observation(Active.NO, evidence)
    # A call that is given up tells something only if its twin took at most half that long.
    sound = around.broken is None and (
        through.broken is not Broken.TIMEOUT or 2 * around.took_us <= WAIT_US
    )
    return Observation(
        Active.YES if sound and through.broken in signs else Active.UNKNOWN, evidence
    )


async def paced(handle: LinkHandle, pad: int, wanted_us: float) -> Observation:
    """Yes if a padded call takes at least half of ``wanted_us`` longer through the link.

    Compares the fastest of up to three pairs: load only ever makes a call slower.
    """
    began = handle.clock.now_us()
    through: list[int] = []
    around: list[int] = []
    while len(through) < PAIRS:
        one, other = await both(handle, pad)
        if other.broken is not None or one.broken not in {None, Broken.TIMEOUT}:
            return Observation(Active.UNKNOWN, f"through the link: {one}; around it: {other}")
        through.append(one.took_us)
        around.append(other.took_us)
        if one.broken or 2 * (handle.clock.now_us() - began) > WAIT_US:
            break  # another pair would not fit in the look
    value = min(through) - min(around)
    return Observation(
        Active.YES if 2 * value >= wanted_us else Active.NO,
        f"{pad} bytes take {value / MS:.1f} ms longer through the link than around it",
        value,
    )


async def put(
    injection: Injection, handle: LinkHandle, type_: str, *, ways: int = 1, **attributes: Json
) -> None:
    """A toxic on bytes towards the caller; with two ``ways`` another on those to the service."""
    name = mark(injection)
    await handle.add(Toxic(name, type_, attributes=attributes))
    if ways == 2:
        await handle.add(Toxic(name + UP, type_, "upstream", attributes=attributes))


class OnLink(Common):
    """What all faults on a link share. Their toxics bear the fault, their proxies the run."""

    grade: ClassVar[Grade] = Grade.EMULATED
    layer: ClassVar[str] = "network"
    needs: ClassVar[Needs] = Needs.LINK

    async def heal(self, injection: Injection, handle: LinkHandle) -> None:
        """Take its toxics off; those that are not there are fine."""
        name = mark(injection)
        failed = [await _removed(handle, which) for which in (name, name + UP)]
        for error in filter(None, failed):
            raise error

    async def round_trip(self, injection: Injection, handle: LinkHandle) -> bool:
        """The service answers 200 through the link."""
        return (await call(handle, handle.spec.via, SECOND)).status == 200


async def _removed(handle: LinkHandle, name: str) -> FaultFailedError | None:
    try:
        await handle.remove(name)
    except FaultFailedError as error:  # the other toxic is tried all the same
        return error
    return None
