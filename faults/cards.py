"""What faults on a real NVIDIA card share: its presence, neighbours, and limits of the card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from survive.contracts import Grade, HandleSpec, Injection, Json, ProcessHandle
from survive.errors import RefusedError

from .around import AroundProcess, ByHelper
from .nvml import need_card

SPUN = 4096  # bytes that the computing kernel needs, with room


class OnCard(AroundProcess):
    """A fault on a card that processes of this host use."""

    layer: ClassVar[str] = "gpu"

    def check_host(self, settings: Any, here: HandleSpec) -> None:
        """It has the card, and processes beside it. Raises RefusedError (6), and says why."""
        need_card(self.kind, getattr(settings, "device", 0), [here])

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """One victim, whose host has the card."""
        return super().preflight(settings, victims[:1])


class Neighbour(OnCard, ByHelper):
    """A helper that drives CUDA; the driver takes back all that it held."""

    grade: ClassVar[Grade] = Grade.INDUCED
    how: ClassVar[str]  # what the helper does there

    async def use(
        self, injection: Injection, handle: ProcessHandle, size: int, duty: float
    ) -> None:
        """Start it on so many bytes, for that share of the time."""
        device = injection.settings.get("device", 0)
        await self.help(injection, handle, *busy(self.how, device, size, duty))


def busy(how: str, device: Json, size: int, duty: float) -> list[str]:
    """What a helper is told that uses a card."""
    library = os.environ.get("SURVIVE_LIBCUDA", "libcuda.so.1")  # a helper inherits nothing
    return ["cuda", how, str(device), str(size), str(duty), library]


def number(injection: Injection, name: str) -> float:
    """What the ledger has of the card."""
    return float(str(injection.settings[name]))


class OnLimits(OnCard):
    """What root can set on a card, for all that use it. What was set before is in the ledger."""

    grade: ClassVar[Grade] = Grade.REAL
    privileges: ClassVar[str] = "root: it sets limits of the card, for all that use it"
    outlives_victim: ClassVar[bool] = True  # they are the card's

    def check_host(self, settings: Any, here: HandleSpec) -> None:
        """The card, and root."""
        super().check_host(settings, here)
        if os.geteuid() != 0:
            raise RefusedError(f"{self.kind} needs {self.privileges}")

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """The same, and the card can do what is asked of it."""
        found = super().preflight(settings, victims)
        for victim in found:
            self.remember(settings, victim)
        return found

    def remember(self, settings: Any, victim: HandleSpec) -> dict[str, Json]:
        """What is set now, and what will be. Raises RefusedError if the card cannot do it."""
        raise NotImplementedError
