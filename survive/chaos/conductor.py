"""The one place with control flow: what happens when, while load runs beside it on its own.

Faults are prepared ahead, so that at its planned time an inject only has to be let go. A heal is
due at *planned* inject + ``for``, however late or stuck the inject was. Overlapping faults run side
by side. Nothing here knows how a fault works, nor what the load does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from survive.chaos.ports import AgentPort, Emit
from survive.clock import Clock
from survive.contracts import Json
from survive.plan.model import FaultWindow, Plan
from survive.scenario.model import FaultPlan, Phase
from survive.units import SECOND

PREPARE_AHEAD_US = 5 * SECOND


async def conduct(
    plan: Plan,
    faults: Mapping[str, FaultPlan],
    agent: AgentPort,
    clock: Clock,
    emit: Emit,
    stop: asyncio.Event,
) -> None:
    """Conduct the plan. Returns when all is healed and ``plan.end_us`` is reached.

    If ``stop`` is set it returns at once, and ``agent.stop`` heals what is on. Raises what the
    agent raises (LedgerError, AgentDiedError), then too leaving the heals to ``agent.stop``.
    """
    parts = [
        clock.sleep_until(plan.end_us),
        _phases(plan.phases, clock, emit),
        *(_fault(window, faults[window.fault], agent, clock) for window in plan.faults),
    ]
    whole = asyncio.create_task(together(parts))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({whole, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if whole.done():
            whole.result()
    finally:
        await _end(whole, stopped)


async def _phases(phases: tuple[Phase, ...], clock: Clock, emit: Emit) -> None:
    for phase in phases:
        await clock.sleep_until(phase.start_us)
        emit(
            "phase_started",
            {
                "phase": phase.name,
                "start_us": phase.start_us,
                "end_us": phase.end_us,
                "start_rps": float(phase.start_rps),
                "end_rps": float(phase.end_rps),
                **_users(phase),
            },
        )


def _users(phase: Phase) -> dict[str, Json]:
    if phase.users is None:
        return {}
    return {"users": [phase.users.start, phase.users.end]}


async def _fault(window: FaultWindow, fault: FaultPlan, agent: AgentPort, clock: Clock) -> None:
    """The life of one fault."""
    await clock.sleep_until(window.inject_us - PREPARE_AHEAD_US)
    await agent.prepare(fault)
    await clock.sleep_until(window.inject_us)
    if not window.held:
        await agent.inject(fault.name)
        return
    await together(
        [
            agent.inject(fault.name),
            _heal(window, fault.name, agent, clock),
        ]
    )


async def _heal(window: FaultWindow, name: str, agent: AgentPort, clock: Clock) -> None:
    await clock.sleep_until(window.heal_us)
    await agent.heal(name)


async def together(parts: list[Coroutine[Any, Any, None]]) -> None:
    """All of them; the first error ends the others and is raised as it is."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await _end(*tasks)


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs; errors were raised where they belong."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
