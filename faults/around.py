"""What the faults around a process of this host share: pressure, limits, disk, clocks, cards.

None has a virtual twin: a virtual node has no CPU, memory, files or disk of its own, and a slowed
clock would only look like it. Containers have their own kinds (``container.*``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from survive.contracts import HandleSpec, Injection
from survive.errors import RefusedError
from survive.units import SECOND

from .replicas import OnReplica


class AroundProcess(OnReplica):
    """What they share: whom they may hit."""

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Processes of this host; anything else is refused by name."""
        for victim in victims:
            if victim.driver != "process":
                raise RefusedError(
                    f"{victim.replica_id} is no process of this host ({victim.driver})",
                    hint="run without --virtual; containers have container.* faults",
                )
        return list(victims)


def lifetime_s(injection: Injection) -> float:
    """A helper outlives its planned heal by little, whatever happens to everybody else."""
    until_us = injection.until_us if injection.until_us is not None else injection.at_us
    return (until_us - injection.at_us) / SECOND + 10
