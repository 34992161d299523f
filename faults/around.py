"""What the faults around a process of this host share: pressure, limits, disk, clocks.

None has a virtual twin: a virtual node has no CPU, memory, files or disk of its own, and a slowed
clock would only look like it. Containers have their own kinds (``container.*``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from survive.contracts import (
    HandleSpec,
    Injection,
    Needs,
    ProcessHandle,
)
from survive.errors import RefusedError
from survive.transport import Broken, CallFailedError, Request, read_all
from survive.units import SECOND

ANSWER_S = 0.25  # a health probe that takes longer is no answer


class AroundProcess:
    """What all faults of this file share."""

    held: ClassVar[bool] = True
    layer: ClassVar[str] = "node"
    needs: ClassVar[Needs] = Needs.REPLICA
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Processes of this host; anything else is refused by name."""
        for victim in victims:
            if victim.driver != "process":
                raise RefusedError(
                    f"{victim.replica_id} is no process of this host ({victim.driver})",
                    hint="run without --virtual; containers have container.* faults",
                )
        return list(victims)

    async def round_trip(self, injection: Injection, handle: ProcessHandle) -> bool:
        """The replica answers its health probe."""
        return await probe(handle, 2 * ANSWER_S) == 200


async def probe(handle: ProcessHandle, within_s: float = ANSWER_S) -> int | Broken:
    """A health probe straight to the replica: its status once whole, or how it failed."""
    spec = handle.spec
    try:
        answer = await handle.transport.call(
            spec.address, Request("GET", spec.probe_path), timeout_s=within_s
        )
        await read_all(answer)
    except CallFailedError as error:
        return error.how
    return answer.status


def lifetime_s(injection: Injection) -> float:
    """A helper outlives its planned heal by little, whatever happens to everybody else."""
    until_us = injection.until_us if injection.until_us is not None else injection.at_us
    return (until_us - injection.at_us) / SECOND + 10
