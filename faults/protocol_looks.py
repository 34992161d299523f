"""How protocol faults look at a link: calls of the shape that they hit, through it and around it.

A fault that hits a share of the calls hits as many of these: several are made, in waves, until one
is bitten. A look says *no* only after so many tries without a bite that a fault that is on would
have been missed with a probability of at most ``MISSED`` (100 %: one try; 50 %: 14; 10 %: 88).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from survive.contracts import Active, LinkHandle, Observation
from survive.transport import Broken, CallFailedError, Request

from .calls import posted

MISSED = 1e-4
LOOK_S = 0.75  # of all waves; observe as a whole has 1 s
WAVE = 8  # tries at once after the first two
CHAT = "POST /v1/chat/completions"
STATE_HEADER = "x-replica-state"
LOOK_HEADER = "x-survive-look"  # the embedded proxy's word, too (proxy/draws.py)


class SleepsError(Exception):
    """Nothing can be bitten there: the replica sleeps, and refuses what would be."""


@dataclass(slots=True)
class Seen:
    """What came of one call. Times in µs from its beginning."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    first_us: int = 0  # of the body, with how many bytes
    first_size: int = 0
    events: list[tuple[int, bytes]] = field(default_factory=list)  # data of each, and when it came
    broken: Broken | None = None  # None = whole
    took_us: int = 0

    @property
    def pace(self) -> float:
        """Bytes a second from the first to the end of the call; inf if all came at once."""
        span_us = self.took_us - self.first_us
        more = len(self.body) - self.first_size
        return more * 1e6 / span_us if self.body and span_us > 0 and more else math.inf

    def wait_us(self, after: int) -> int:
        """How long the event after ``after`` others was waited for, in vain perhaps."""
        begin = self.events[after - 1][0] if after else 0
        return (self.events[after][0] if len(self.events) > after else self.took_us) - begin

    @property
    def asleep(self) -> bool:
        """A replica refused it that is not in service: a spare sleeps, or its model loads."""
        return self.status == 503 and STATE_HEADER in self.headers

    def __str__(self) -> str:
        how = "whole" if self.broken is None else str(self.broken)
        events = f", {len(self.events)} events" if self.events else ""
        return f"{self.status or 'no'} {how}{events} in {self.took_us / 1000:.0f} ms"


def request(call: str, body: dict[str, object]) -> Request:
    """A call as the setting names it; ``body`` goes with a POST."""
    method, _, path = call.partition(" ")
    if method == "GET":
        return Request(method, path)
    return posted(path, body)


async def ask(handle: LinkHandle, address: str, wanted: Request, within_s: float) -> Seen:
    """One call, with all that came of it in time."""
    seen, began = Seen(), handle.clock.now_us()
    kept = b""
    try:
        async with asyncio.timeout(within_s):
            answer = await handle.transport.call(address, wanted, timeout_s=within_s)
            seen.status, seen.headers = answer.status, answer.headers
            try:
                async for chunk in answer.chunks():
                    now = handle.clock.now_us() - began
                    if not seen.body:
                        seen.first_us, seen.first_size = now, len(chunk)
                    seen.body += chunk
                    *events, kept = (kept + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
                    seen.events += [(now, data) for event in events if (data := _data(event))]
            finally:
                await answer.close()
    except CallFailedError as error:
        seen.broken = error.how
    except TimeoutError:
        seen.broken = Broken.TIMEOUT
    seen.took_us = handle.clock.now_us() - began
    return seen


def _data(event: bytes) -> bytes:
    lines = (line for line in event.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:].strip() for line in lines)


def tries(share: float) -> int:
    """How many calls must pass unbitten before a fault of that share is said not to be on."""
    return 1 if share >= 1 else math.ceil(math.log(MISSED) / math.log(1 - share))


async def look(
    handle: LinkHandle,
    wanted: Request,
    share: float,
    fine: Callable[[Seen], bool],
    bites: Callable[[Seen, Seen], bool],
) -> Observation:
    """Yes: a call through the link is bitten, beside a fine one around it. See the module for no.

    ``fine``: nothing is wrong with it; ``bites``: (through, around). Raises SleepsError.
    """
    spec, most = handle.spec, tries(share)
    until_us = handle.clock.now_us() + round(LOOK_S * 1e6)

    async def wave(count: int) -> list[Seen]:
        left_s = (until_us - handle.clock.now_us()) / 1e6
        return await asyncio.gather(*(ask(handle, spec.via, wanted, left_s) for _ in range(count)))

    first = asyncio.ensure_future(wave(min(2, most)))
    try:
        around = await ask(handle, spec.address, wanted, LOOK_S)
        through = await first
    finally:
        first.cancel()
    if not fine(around):
        if around.asleep and all(seen.asleep for seen in through):
            raise SleepsError
        return Observation(Active.UNKNOWN, f"around the link: {around}")
    while not any(bites(seen, around) for seen in through) and len(through) < most:
        if handle.clock.now_us() >= until_us:
            break
        through += await wave(min(WAVE, most - len(through)))
    bitten = [seen for seen in through if bites(seen, around)]
    passed = sum(fine(seen) and not bites(seen, around) for seen in through)
    shown = bitten[0] if bitten else through[-1]
    text = f"{len(bitten)} of {len(through)} calls through the link are bitten (e.g. {shown})"
    text = f"{text}; around it: {around}"
    if bitten:
        return Observation(Active.YES, text, len(bitten) / len(through))
    return Observation(Active.NO if passed >= most else Active.UNKNOWN, text, 0.0)
