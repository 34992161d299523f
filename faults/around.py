"""What the faults around a process of this host share: pressure, limits, disk, clocks, cards.

None has a virtual twin: a virtual node has no CPU, memory, files or disk of its own, and a slowed
clock would only look like it. Containers have their own kinds (``container.*``).
"""

from __future__ import annotations

from typing import Any

from survive.contracts import HandleSpec, Injection, ProcessHandle
from survive.errors import WrongTargetError
from survive.units import SECOND

from .replicas import OnReplica

OUTLIVES_S = 10


class AroundProcess(OnReplica):
    """What they share: whom they may hit."""

    def check_host(self, settings: Any, here: HandleSpec) -> None:
        """Processes of this host; anything else is refused by name."""
        if here.driver != "process":
            raise WrongTargetError(
                f"{here.replica_id} is no process of this host ({here.driver})",
                hint="run without --virtual; containers have container.* faults",
            )


class ByHelper(AroundProcess):
    """A fault that is a helper process beside its victim: it bites as long as that lives."""

    async def help(self, injection: Injection, handle: ProcessHandle, *what: str) -> None:
        """Start the helper; what an earlier inject left is ended first.

        It outlives its planned heal by little, whatever happens to everybody else.
        """
        await handle.pressure.end_helpers(injection.id)
        until_us = injection.until_us if injection.until_us is not None else injection.at_us
        lifetime_s = (until_us - injection.at_us) / SECOND + OUTLIVES_S
        await handle.pressure.start_helper(injection.id, what, lifetime_s)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """End the helper, and with it all that it held."""
        await handle.pressure.end_helpers(injection.id)
