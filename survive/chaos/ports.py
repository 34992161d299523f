"""The agent as the conductor sees it: in the same loop (virtual) or behind a pipe (real)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from survive.contracts import HandleSpec, Json
from survive.scenario.model import FaultPlan

# An event of events.ndjson without its time: emit("fault_injected", {...}) stamps and writes it.
Emit: TypeAlias = Callable[[str, Mapping[str, Json]], None]


class AgentPort(Protocol):
    """What the conductor asks of the chaos agent. Every call ends within its stated time.

    Events that the agent emits (all with ``fault`` and ``injection`` id, times in run µs):

    - ``fault_observed`` {stage: before|during|after, active, evidence, value, began_us}
    - ``fault_injected`` {planned_us, began_us, ended_us, error: str|null}
    - ``fault_reinjected`` {count, began_us, ended_us, error, target}: its victim was restarted
    - ``fault_healed``   {planned_us|null, began_us, ended_us, rung: undo|disable|kill, error}
    - ``heal_proven``    {proven: bool, by_own_heal: bool, evidence, by_hand: str}
    """

    async def start_target(self) -> str:
        """Start the stack and wait for health; the address that load goes to (host:port).

        Raises TargetUnhealthyError, RefusedError.
        """

    async def preflight(self, fault: FaultPlan) -> int:
        """Resolve victims without changing anything; how many. Raises RefusedError if none."""

    async def prepare(self, fault: FaultPlan) -> None:
        """Get ready (child processes) and observe three times before inject. ≤ 4 s."""

    async def inject(self, name: str) -> None:
        """Ledger, inject all its injections, begin observing four times a second. ≤ 3 s."""

    async def heal(self, name: str) -> None:
        """Stop observing, heal all its injections by the ladder, prove each. ≤ 3 s per rung."""

    async def replicas(self, service: str) -> list[HandleSpec]:
        """The replicas of a service as they are now; their addresses stay for the run."""

    async def listeners(self, link: str) -> list[HandleSpec]:
        """The fault proxy's listeners of a link; [] if it has none."""

    async def spawn(self, name: str, argv: list[str], fds: list[int]) -> int:
        """Start a helper that must not outlive the run (load, probes); its pid."""

    async def usage(self) -> dict[str, float]:
        """CPU seconds so far: {"target": .., "chaos": ..} (chaos = agent, children, proxy)."""

    async def stop(self) -> list[dict[str, Any]]:
        """Heal what is still on, stop the target and all helpers; the heals that are not proven
        (fault, injection, why, by_hand). The agent is gone afterwards. Idempotent."""
