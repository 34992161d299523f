"""What happens when: to the microsecond under a virtual clock."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import pytest
from chaostools import held, one_shot

from survive.chaos.conductor import conduct
from survive.clock import LoopClock
from survive.errors import HarnessError
from survive.host.loop import virtual_run
from survive.plan.model import FaultWindow, Plan
from survive.scenario.model import Phase
from survive.units import SECOND


def plan(*faults: FaultWindow, end_s: int = 30) -> Plan:
    half = end_s * SECOND // 2
    phases = (
        Phase("low", 0, half, Fraction(1), Fraction(1)),
        Phase("high", half, 2 * half, Fraction(1), Fraction(9)),
    )
    return Plan(
        1,
        "p",
        "t",
        1,
        "poisson",
        "1",
        ("chat",),
        (SECOND,),
        (False,),
        None,
        1,
        phases,
        faults,
        tuple(f.inject_us for f in faults),
        (),
        end_s * SECOND,
        ((0,), (0,)),
    )


def window(name: str, at_s: float, for_s: float | None, recovery_s: float = 4) -> FaultWindow:
    inject_us = round(at_s * SECOND)
    heal_us = inject_us + round((for_s if for_s is not None else recovery_s) * SECOND)
    return FaultWindow(
        name, for_s is not None, inject_us, heal_us, heal_us + round(recovery_s * SECOND)
    )


class FakeAgent:
    """Notes who was asked for what and when; each verb may take its time."""

    def __init__(self, clock, **takes_s) -> None:
        self.clock, self.takes_s = clock, takes_s
        self.calls: list[tuple[str, str, float]] = []
        self.ends: list[tuple[str, str, float]] = []
        self.errors: dict[str, Exception] = {}

    async def _do(self, verb, name):
        self.calls.append((verb, name, self.clock.now_us() / SECOND))
        if verb in self.errors:
            raise self.errors[verb]
        await asyncio.sleep(self.takes_s.get(verb, 0))
        self.ends.append((verb, name, self.clock.now_us() / SECOND))

    async def prepare(self, fault):
        await self._do("prepare", fault.name)

    async def inject(self, name):
        await self._do("inject", name)

    async def heal(self, name):
        await self._do("heal", name)


def run(the_plan, faults, errors=None, stop_at_s=None, **takes_s):
    async def main():
        clock = LoopClock(asyncio.get_running_loop().time() + 1.0)  # t = 0 is a second ahead
        agent, events, stop = FakeAgent(clock, **takes_s), [], asyncio.Event()
        agent.errors = errors or {}
        if stop_at_s is not None:
            asyncio.get_running_loop().call_later(1.0 + stop_at_s, stop.set)
        try:
            await conduct(
                the_plan,
                {f.name: f for f in faults},
                agent,
                clock,
                lambda name, fields: events.append((name, fields, clock.now_us())),
                stop,
            )
        finally:
            agent.done_s = clock.now_us() / SECOND
        return agent, events

    return virtual_run(main())


def test_a_held_fault_is_prepared_ahead_and_on_time():
    agent, _ = run(plan(window("a", 10, 8)), [held("x", "a")], prepare=2)
    assert agent.calls == [("prepare", "a", 5.0), ("inject", "a", 10.0), ("heal", "a", 18.0)]
    assert agent.done_s == 30.0


def test_a_one_shot_is_never_healed():
    agent, _ = run(plan(window("a", 10, None)), [one_shot("x", "a")])
    assert [verb for verb, _, _ in agent.calls] == ["prepare", "inject"]


def test_an_early_fault_is_prepared_at_once():
    agent, _ = run(plan(window("a", 1, 2)), [held("x", "a")], prepare=0.5)
    assert agent.calls == [("prepare", "a", -1.0), ("inject", "a", 1.0), ("heal", "a", 3.0)]


def test_a_heal_is_due_at_planned_inject_plus_for_however_late_the_inject():
    agent, _ = run(plan(window("a", 10, 2)), [held("x", "a")], inject=60)
    assert ("heal", "a", 12.0) in agent.calls


def test_overlapping_faults_run_side_by_side():
    faults = [held("x", "a"), held("x", "b")]
    agent, _ = run(plan(window("a", 10, 8), window("b", 12, 2)), faults, inject=1, heal=3)
    assert [c for c in agent.calls if c[0] != "prepare"] == [
        ("inject", "a", 10.0),
        ("inject", "b", 12.0),
        ("heal", "b", 14.0),
        ("heal", "a", 18.0),
    ]


def test_it_waits_for_the_last_heal_and_for_the_end_of_load():
    agent, _ = run(plan(window("a", 10, 19)), [held("x", "a")], heal=5)
    assert agent.done_s == 34.0
    agent, _ = run(plan(), [])
    assert agent.done_s == 30.0


def test_phases_are_told_at_their_starts():
    _, events = run(plan(), [])
    assert [(n, f["phase"], t) for n, f, t in events] == [
        ("phase_started", "low", 0),
        ("phase_started", "high", 15 * SECOND),
    ]


def test_a_stop_returns_at_once_and_leaves_heals_to_the_agent():
    agent, _ = run(plan(window("a", 10, 8)), [held("x", "a")], stop_at_s=12.5)
    assert agent.done_s == 12.5
    assert "heal" not in [verb for verb, _, _ in agent.calls]


@pytest.mark.parametrize("verb", ["prepare", "inject", "heal"])
def test_what_the_agent_raises_ends_the_run_as_it_is(verb):
    error = HarnessError("the ledger cannot be written")
    faults = [held("x", "a"), held("x", "b")]
    with pytest.raises(HarnessError) as caught:
        run(plan(window("a", 10, 8), window("b", 12, 8)), faults, errors={verb: error})
    assert caught.value is error
