"""One fault, by the real agent, on reference replicas: in memory, or as processes of this host."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import replace
from pathlib import Path

from survive.catalog import Catalog
from survive.chaos.agent import Agent
from survive.chaos.executor import InLoopExecutor
from survive.chaos.ledger import Ledger
from survive.clock import LoopClock
from survive.contracts import Needs
from survive.host.driver import DriverContext
from survive.host.loop import virtual_run
from survive.host.memory import MemoryNetwork, MemoryTransport
from survive.host.sockets import SocketTransport
from survive.scenario.model import FaultPlan, Health, Service, TargetSpec
from survive.units import SECOND

ROOT = Path(__file__).resolve().parents[2]


class Sabotaged(Catalog):
    """The real catalog, with one verb of every fault replaced by a report of success."""

    def fault(self, kind):
        fault = super().fault(kind)
        for verb in SABOTAGE:
            setattr(fault, verb, _pretend)
        return fault


SABOTAGE: list[str] = []


async def _pretend(injection, handle) -> None:
    """Does nothing, and says nothing of it."""


class Scene:
    """What a test sees of one fault."""

    def __init__(self, agent, driver, clock, transport, events) -> None:
        self.agent, self.driver, self.clock = agent, driver, clock
        self.transport, self.events = transport, events

    def named(self, name, **match):
        return [f for n, f in self.events if n == name and match.items() <= f.items()]

    def looks(self, stage):
        return [f["active"] for f in self.named("fault_observed", stage=stage)]

    async def life(self, plan, for_s=1.5):
        """Prepare, inject, wait, heal (if held)."""
        await self.agent.preflight(plan)
        await self.agent.prepare(plan)
        await self.agent.inject(plan.name)
        await asyncio.sleep(for_s)
        if plan.for_us is not None:
            await self.agent.heal(plan.name)


HOSTS = ("virtual", "process")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_OWN = re.compile(r", state \w|; counted so far.*")  # what one host alone knows, or may not yet


def said(scene, fault: str = "one") -> dict[str, set[str]]:
    """What looks gave as evidence of what was to be seen at each stage, numbers aside."""
    wanted = {"before": "no", "during": "yes", "after": "no"}
    return {
        stage: {
            _NUMBER.sub("N", _OWN.sub("", look["evidence"]))
            for look in scene.named("fault_observed", fault=fault, stage=stage, active=active)
        }
        for stage, active in wanted.items()
    }


async def life_with_a_death(scene, plan, service="inference") -> None:
    """A life in which somebody else kills every replica of the service, and they come back."""
    await scene.life(replace(plan, for_us=None), for_s=1.0)  # not healed yet
    for victim in scene.driver.replicas(service):
        await scene.driver.open(victim, Needs.REPLICA).kill()
    for _ in range(100):  # a busy machine starts a process late
        if scene.named("fault_reinjected", error=None):
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.2)
    await scene.agent.heal(plan.name)


def assert_followed(scene, left) -> None:
    """Hit again once it was back, told once, seen to bite before and after, and healed."""
    looks = scene.looks("during")
    assert [e["count"] for e in scene.named("fault_reinjected", error=None)] == [1]
    assert "no" not in looks and looks[0] == looks[-1] == "yes" and "unknown" in looks, looks
    assert scene.named("heal_proven")[0]["by_own_heal"] is True and left == []


def twins(folder: Path, body, check, **more) -> None:
    """``body`` on both hosts: ``check(scene, left)`` of each, and looks tell the same of both."""
    told = []
    for host in HOSTS:
        scene, _, left = play(host, folder / host, body, **more)
        check(scene, left)
        told.append(said(scene))
    assert told[0] == told[1]


def spec(replicas: int = 2, restart_us: int | None = 300_000) -> TargetSpec:
    inference = Service(
        "inference",
        app="replica.py:make_app",
        replicas=replicas,
        gpu="simulated",
        simulates=("metrics",),
        metrics="/metrics",
        health=Health("/health", 10 * SECOND),
        restart_after_us=restart_us,
    )
    return TargetSpec(
        "scene",
        "process",
        "inference",
        {"inference": inference},
        {},
        folder=ROOT / "targets" / "reference",
    )


def plan(kind: str, for_s: float | None = 2, count: int = 1, **settings) -> FaultPlan:
    for_us = None if for_s is None else round(for_s * SECOND)
    return FaultPlan("one", kind, 0, for_us, "inference", count=count, settings=settings)


def play(
    host: str,
    folder: Path,
    body,
    *,
    sabotage=(),
    target: TargetSpec | None = None,
    links=frozenset(),
):
    """Run ``body(scene)`` on a started target; its result and what ``stop`` found unproven."""

    async def main():
        clock = LoopClock(asyncio.get_running_loop().time())
        transport = (
            MemoryTransport(MemoryNetwork(clock)) if host == "virtual" else SocketTransport()
        )
        run_id = f"scene-{os.getpid()}-{os.urandom(3).hex()}"
        ledger = Ledger.create(run_id, run_id)
        catalog = Sabotaged(None)
        driver = catalog.driver(host)(
            DriverContext(
                run_id,
                1,
                target or spec(),
                links,
                "",
                "token",
                folder,
                clock,
                transport,
                {},
                ledger.process,
            )
        )
        events: list = []
        agent = Agent(
            run_id,
            catalog,
            ledger,
            driver,
            InLoopExecutor(catalog, driver, clock, transport),
            clock,
            lambda name, fields: events.append((name, dict(fields))),
            seed=1,
            privileged=True,
        )
        scene = Scene(agent, driver, clock, transport, events)
        try:
            await agent.start_target()
            result = await body(scene)
        finally:
            left = await agent.stop()
            if host != "virtual":
                await transport.close()
        return scene, result, left

    SABOTAGE[:] = sabotage
    try:
        return virtual_run(main()) if host == "virtual" else asyncio.run(main())
    finally:
        SABOTAGE.clear()
