"""What faults on the calls of a link share: which calls are hit, and how that is put and proven.

The embedded proxy reads the answers (``proxy/http1.py``, ``proxy/effects.py``) and changes those of
a share of the calls. Proven by such calls themselves, through the link beside around it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from survive.transport import Request

from .chat_looks import chat_body
from .common import Common, asked, mark
from .protocol_looks import LOOK_HEADER, Seen, SleepsError, ask, look, request
from .protocol_settings import Calls

COUNTED_S = 0.1  # a look waits so long for the proxy's counts, which tell and prove nothing


class OnCalls(Common):
    """A toxic of the embedded proxy on some calls: its own type, ``toxic``, and its attributes."""

    grade: ClassVar[Grade] = Grade.EMULATED
    layer: ClassVar[str] = "protocol"
    needs: ClassVar[Needs] = Needs.LINK
    settings: ClassVar[type] = Calls
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
        given = asked(self.settings, injection)
        method, _, path = given.call.partition(" ")
        attributes: dict[str, Json] = {
            "method": method,
            "path": path.partition("?")[0],
            "control_ppm": round(given.control * 1e6),
            "first": given.first,
            **self._attributes(given),
        }
        toxic = Toxic(mark(injection), self.toxic, toxicity=given.share, attributes=attributes)
        await handle.add(toxic)

    async def observe(
        self, injection: Injection, handle: LinkHandle, before: float | None
    ) -> Observation:
        """Active if such a call is bitten through the link while one around it is fine.

        How many calls of the traffic were hit is told, and no proof.

        Of a fault for the ``first`` so many calls they are no part of the sum, and are bitten as
        long as it stands: that users are hit no more, once it is spent, is told.

        A replica that sleeps (a spare) answers no such call: there the proxy is asked instead
        whether it holds the fault, for the moment when the replica is woken.
        """
        given = asked(self.settings, injection)
        counting = asyncio.ensure_future(handle.counts(mark(injection)))  # beside: a look has 1 s
        try:
            seen = await look(
                handle,
                self._asked(given, injection),
                given.share,
                lambda one: self._fine(given, one),
                lambda through, around: self._bites(given, through, around),
            )
            await asyncio.wait({counting}, timeout=COUNTED_S)
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
        await handle.remove(mark(injection))

    async def round_trip(self, injection: Injection, handle: LinkHandle) -> bool:
        """Such a call is answered through the link, as it should be."""
        given = asked(self.settings, injection)
        seen = await ask(handle, handle.spec.via, self._asked(given, injection), 0.9)
        return self._fine(given, seen) or seen.asleep

    def _attributes(self, given: Any) -> dict[str, Json]:
        return {}

    def _asked(self, given: Any, injection: Injection) -> Request:
        """Bears the fault, so that its own looks never use up what is meant for users."""
        wanted = self._request(given)
        return replace(wanted, headers=(*wanted.headers, (LOOK_HEADER, mark(injection))))

    def _request(self, given: Any) -> Request:
        return request(given.call, chat_body(getattr(given, "after", 0) + 3, stream=True))

    def _fine(self, given: Any, seen: Seen) -> bool:
        return seen.status == 200 and seen.broken is None and len(seen.events) > 1

    def _bites(self, given: Any, through: Seen, around: Seen) -> bool:
        raise NotImplementedError


def _of_sleeper(counts: Mapping[str, int] | None) -> Observation:
    """What the proxy says of a replica that nothing can be asked of. None = it says nothing."""
    if counts is None:
        return Observation(Active.UNKNOWN, "the replica sleeps, and the proxy cannot be read")
    held = "holds the fault" if counts else "holds no fault"
    return Observation(Active.YES if counts else Active.NO, f"the replica sleeps; its proxy {held}")


def is_json(text: bytes) -> bool:
    """Whether it is one whole document."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
