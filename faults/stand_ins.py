"""What faults share that a stand-in plays: switches of a service that ``simulates:`` something.

Turned by its admin route; observed by its data path alone, straight to the replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from survive.contracts import (
    FaultFailedError,
    GpuHandle,
    Grade,
    HandleSpec,
    Injection,
    Json,
    Needs,
    StandInHandle,
)
from survive.transport import Broken

from .calls import health
from .common import Common

ANSWER_S = 0.45  # two calls fit in a look (1 s)


class OnStandIn(Common):
    """A fault that is some switches of a service. What is real of it, its proof says."""

    grade: ClassVar[Grade] = Grade.SIMULATED
    needs: ClassVar[Needs] = Needs.STAND_IN
    part: ClassVar[str]  # which of the things that a service may simulate
    broken: ClassVar[dict[str, Json]]  # the switches that inject turns; see ``switches``
    healthy: ClassVar[dict[str, Json]]  # and as heal leaves them

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that simulate it."""
        return [victim for victim in victims if self.part in victim.simulates.split()]

    def switches(self, injection: Injection) -> dict[str, Json]:
        """How inject sets them."""
        return self.broken

    async def inject(self, injection: Injection, handle: GpuHandle | StandInHandle) -> None:
        """Turn the switches."""
        await handle.set_state(**self.switches(injection))

    async def heal(self, injection: Injection, handle: GpuHandle | StandInHandle) -> None:
        """Turn them back; of a replica that is gone they went with it."""
        try:
            await handle.set_state(**self.healthy)
        except FaultFailedError:
            if await health(handle, ANSWER_S) is not Broken.REFUSED:
                raise
