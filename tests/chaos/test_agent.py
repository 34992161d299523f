"""The agent believes nobody: every report of success is checked from outside."""

from __future__ import annotations

import asyncio
import os

import pytest
from chaostools import Events, FakeCatalog, FakeDriver, FakeFault, World, failing, held, one_shot

from survive.chaos import processes
from survive.chaos.agent import Agent
from survive.chaos.executor import InLoopExecutor
from survive.chaos.ledger import Ledger, LedgerError
from survive.clock import LoopClock
from survive.contracts import Active, HandleSpec, Observation
from survive.errors import RefusedError
from survive.host.loop import virtual_run
from survive.units import SECOND


class Scene:
    """An agent over a fake world, in virtual time."""

    def __init__(self, fault=None, seed=1) -> None:
        self.world, self.events = World(), Events()
        self.fault = fault or FakeFault()
        self.clock = LoopClock(asyncio.get_running_loop().time())
        self.ledger = Ledger.create("run-1", "fake")
        driver = self.driver = FakeDriver(self.world)
        catalog = FakeCatalog(self.fault)
        executor = InLoopExecutor(catalog, driver, self.clock, None)
        self.agent = Agent(
            "run-1", catalog, self.ledger, driver, executor, self.clock, self.events.emit, seed=seed
        )

    async def on(self, plan, for_s=1.0):
        """Prepare, inject, and let it be for a while."""
        await self.agent.prepare(plan)
        await self.agent.inject(plan.name)
        await asyncio.sleep(for_s)

    def story(self):
        return Ledger.read(self.ledger.path)


def play(scene_of):
    """Run one scene to its end; the ledger is closed by ``stop``."""
    return virtual_run(scene_of())


def variant(**verbs):
    fault = FakeFault()
    for name, value in verbs.items():
        setattr(fault, name, value)
    return fault


async def pretend(*args):
    """Reports success and does nothing."""


async def hang(*args):
    await asyncio.sleep(3600)


def test_the_whole_life_of_a_held_fault():
    async def scene():
        s = Scene()
        await s.on(held("fake.hurt"))
        await s.agent.heal("one")
        left = await s.agent.stop()
        return s, left

    s, left = play(scene)
    assert left == []
    assert s.events.looks("before") == ["no"] * 3
    assert s.events.looks("during") == ["yes"] * 5  # at once, then each 250 ms for 1 s
    assert s.events.looks("after") == ["no"]
    [injected] = s.events.named("fault_injected")
    assert injected["error"] is None and injected["injection"] == "one#1"
    [healed] = s.events.named("fault_healed")
    assert (healed["rung"], healed["error"], healed["planned_us"]) == ("undo", None, 2 * SECOND)
    [proven] = s.events.named("heal_proven")
    assert (proven["proven"], proven["by_own_heal"], proven["by_hand"]) == (True, True, "")
    story = s.story()
    assert story.healed["one#1"].proven and story.ended is True


def test_the_ledger_is_written_before_the_deed():
    async def scene():
        s = Scene()
        seen = []

        async def inject(injection, handle):
            seen.append(injection.id in s.story().injections)

        s.fault.inject = inject
        await s.on(held("fake.hurt", count=3))
        await s.agent.stop()
        return seen

    assert play(scene) == [True] * 3


def test_without_a_ledger_nothing_is_injected(monkeypatch):
    async def scene():
        s = Scene()
        await s.agent.prepare(held("fake.hurt"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "full")))
            with pytest.raises(LedgerError):
                await s.agent.inject("one")
        assert s.world.hurt == set() and "inject one#1" not in s.world.log
        await s.agent.stop()

    play(scene)


def test_a_full_disk_does_not_stop_a_heal(monkeypatch):
    async def scene():
        s = Scene()
        await s.on(held("fake.hurt"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "full")))
            await s.agent.heal("one")
        assert s.world.hurt == set()
        assert s.events.named("heal_proven")[0]["proven"] is True
        await s.agent.stop()

    play(scene)


def test_an_inject_that_only_reports_success_is_seen_through():
    async def scene():
        s = Scene(variant(inject=pretend))
        await s.on(held("fake.hurt"))
        await s.agent.heal("one")
        await s.agent.stop()
        return s

    s = play(scene)
    assert s.events.named("fault_injected")[0]["error"] is None
    assert set(s.events.looks("during")) == {"no"}


def test_a_heal_that_only_reports_success_is_seen_through():
    async def scene():
        s = Scene(variant(heal=pretend))
        await s.on(held("fake.hurt"))
        await s.agent.heal("one")
        return s, await s.agent.stop()

    s, left = play(scene)
    assert [e["rung"] for e in s.events.named("fault_healed")] == ["undo", "disable"]
    [proven] = s.events.named("heal_proven")
    assert proven["proven"] is True and proven["by_own_heal"] is False
    assert [(e["fault"], e["injection"], e["by_hand"]) for e in left] == [("one", "one#1", "")]
    assert "'disable'" in left[0]["why"]
    assert s.world.hurt == set()


@pytest.mark.parametrize("gone", [True, False])
def test_what_went_with_our_own_proxy_needs_no_hand(gone):
    """It was a process of the run: there is nothing left to call `/reset` on."""

    async def stays(injection, handle, before):
        on = bool(handle.world.hurt) or handle.world.log.count("heal one#1") > 0
        return Observation(Active.YES if on else Active.NO, "seen")

    async def scene():
        s = Scene(variant(observe=stays))
        proxied = [HandleSpec("process", "web", 0, "web:0", link="a -> web", proxy="127.0.0.1:9")]
        s.driver.replicas = lambda service: proxied
        me = (os.getpid(), processes.start_time(os.getpid()))
        s.ledger.process("fault proxy", *((me[0], me[1] + 1) if gone else me))
        await s.on(held("fake.hurt"))
        await s.agent.heal("one")
        return s, await s.agent.stop()

    s, [left] = play(scene)
    assert left["why"].startswith("still there")
    assert bool(left["by_hand"]) is not gone and s.story().ended is gone
    assert left["why"].endswith("went with the target") is gone


@pytest.mark.parametrize("heal", [hang, failing("no route")])
def test_a_heal_that_hangs_or_fails_is_followed_by_the_next_rung(heal):
    async def scene():
        s = Scene(variant(heal=heal))
        await s.on(held("fake.hurt"))
        began_us = s.clock.now_us()
        await s.agent.heal("one")
        took_us = s.clock.now_us() - began_us
        await s.agent.stop()
        return s, took_us

    s, took_us = play(scene)
    healed = s.events.named("fault_healed")
    assert [e["rung"] for e in healed] == ["undo", "disable"]
    assert healed[0]["error"] in {"heal was not done within 3 s", "no route"}
    assert s.events.named("heal_proven")[0]["by_own_heal"] is False
    assert took_us < 4 * SECOND


def test_what_no_rung_ends_is_said_and_stays_open_in_the_ledger():
    async def active(injection, handle, before):
        return Observation(Active.YES, "still there")

    async def scene():
        s = Scene(variant(observe=active))
        await s.on(held("fake.hurt"))
        await s.agent.heal("one")
        return s, await s.agent.stop()

    s, left = play(scene)
    assert [e["rung"] for e in s.events.named("fault_healed")] == ["undo", "disable", "kill"]
    assert s.events.named("heal_proven")[0]["proven"] is False
    assert "every rung" in left[0]["why"] and "still there" in left[0]["why"]
    assert [i.id for i in s.story().open_injections()] == ["one#1"]


def test_no_without_a_round_trip_is_no_proof():
    async def no(*args):
        return False

    async def scene():
        s = Scene(variant(round_trip=no))
        await s.on(held("fake.hurt"))
        await s.agent.heal("one")
        return s, await s.agent.stop()

    s, left = play(scene)
    assert s.events.named("heal_proven")[0]["proven"] is False
    assert "no round trip" in left[0]["why"]


def test_a_slow_return_counts_as_its_own_heal_within_three_seconds_only():
    def scene_with(after_s):
        async def scene():
            s = Scene()

            async def heal(injection, handle):
                loop = asyncio.get_running_loop()
                loop.call_later(after_s, handle.world.hurt.discard, handle.spec.replica)

            s.fault.heal = heal
            await s.on(held("fake.hurt"))
            await s.agent.heal("one")
            left = await s.agent.stop()
            return s.events.named("heal_proven")[0], left

        return scene

    assert play(scene_with(2.8))[0]["by_own_heal"] is True
    os.environ["XDG_STATE_HOME"] += "-2"
    proven, left = play(scene_with(3.3))
    assert proven["by_own_heal"] is False and left


def test_an_inject_that_failed_is_healed_all_the_same():
    async def half(injection, handle):
        handle.world.hurt.add(handle.spec.replica)
        raise ValueError("half way")

    async def scene():
        s = Scene(variant(inject=half))
        await s.on(held("fake.hurt"))
        await s.agent.heal("one")
        await s.agent.stop()
        return s

    s = play(scene)
    error = s.events.named("fault_injected")[0]["error"]
    assert "a bug in fake.hurt: ValueError: half way (test_agent.py:" in error
    assert s.world.hurt == set() and s.events.named("heal_proven")[0]["proven"]


def test_a_heal_cuts_a_stuck_inject_short():
    async def scene():
        s = Scene(variant(inject=hang))
        await s.agent.prepare(held("fake.hurt"))
        inject = asyncio.create_task(s.agent.inject("one"))
        await asyncio.sleep(0.5)
        await s.agent.heal("one")
        await inject
        assert s.clock.now_us() == pytest.approx(0.5 * SECOND, abs=1000)
        await s.agent.stop()
        return s

    s = play(scene)
    assert s.events.named("fault_injected")[0]["error"] == "cut short by its heal"


def test_stop_heals_all_that_is_on_side_by_side():
    async def scene():
        s = Scene(variant(heal=pretend))
        for name in ("a", "b"):
            await s.on(held("fake.hurt", name), 0.1)
        began_us = s.clock.now_us()
        left = await asyncio.gather(s.agent.stop(), s.agent.stop())
        assert s.clock.now_us() - began_us < 4 * SECOND
        with pytest.raises(KeyError):
            await s.agent.inject("c")
        await s.agent.inject("a")  # over: does nothing
        return s, left

    s, left = play(scene)
    assert left[0] == left[1] and len(left[0]) == 2
    assert s.world.hurt == set() and s.world.log[-1] == "stop"


def test_what_keeps_down_is_held_before_and_released_after():
    async def scene():
        s = Scene(variant(keeps_down=True))
        await s.on(held("fake.hurt"))
        await s.agent.heal("one")
        await s.agent.stop()
        return s.world

    world = play(scene)
    kept = [line.split()[0] for line in world.log]
    assert kept == ["hold", "inject", "heal", "release", "stop"]
    assert world.held == set()


def test_a_victim_that_restarted_is_hit_as_it_is_now():
    async def scene():
        s = Scene()
        await s.agent.prepare(held("fake.hurt", count=3))
        s.world.pids[1] = 999
        await s.agent.inject("one")
        await s.agent.stop()
        return [i.handle.pid for i in s.story().injections.values()]

    assert play(scene) == [100, 999, 102]


def test_the_heal_of_a_victim_that_died_under_it_is_proven_on_its_successor():
    dead = set()

    async def observe(injection, handle, before):
        if handle.spec.pid in dead:
            return Observation(Active.UNKNOWN, "its process is gone")
        return await FakeFault.observe(None, injection, handle, before)

    async def scene():
        s = Scene(variant(observe=observe))

        async def heal(injection, handle):
            dead.add(handle.spec.pid)
            handle.world.hurt.clear()
            restart = asyncio.get_running_loop().call_later
            restart(0.5, handle.world.pids.update, {handle.spec.replica: 999})

        s.fault.heal = heal
        await s.on(held("fake.hurt"))
        await s.agent.heal("one")
        return s, await s.agent.stop()

    s, left = play(scene)
    assert s.events.looks("after")[0] == "unknown" and s.events.looks("after")[-1] == "no"
    assert s.events.named("heal_proven")[0]["by_own_heal"] is True and left == []


def test_victims_are_drawn_by_the_seed():
    def victims(seed):
        async def scene():
            s = Scene(seed=seed)
            await s.on(held("fake.hurt", count=1), 0.1)
            hurt = set(s.world.hurt)
            await s.agent.stop()
            return hurt.pop()

        os.environ["XDG_STATE_HOME"] += "x"
        return play(scene)

    drawn = [victims(seed) for seed in range(8)]
    assert drawn == [victims(seed) for seed in range(8)]
    assert len(set(drawn)) > 1


def test_spares_that_sleep_are_drawn_last():
    async def scene():
        s = Scene()
        s.agent._standby = {"web": 1}
        for number in range(8):
            await s.on(held("fake.hurt", name=f"two-{number}", count=2), 0.1)
            await s.agent.heal(f"two-{number}")
        awake = {fields["target"] for fields in s.events.named("fault_injected")}
        await s.on(held("fake.hurt", name="all", count=3), 0.1)
        everybody = {fields["target"] for fields in s.events.named("fault_injected", fault="all")}
        await s.agent.stop()
        return awake, everybody

    assert play(scene) == ({"web-0", "web-1"}, {"web-0", "web-1", "web-2"})


def test_each_repeat_draws_victims_of_its_own():
    async def scene():
        s = Scene()
        for number in range(1, 9):
            await s.on(held("fake.hurt", name=f"x#{number}", pool="x"), 0.1)
            await s.agent.heal(f"x#{number}")
        await s.agent.stop()
        return [fields["target"] for fields in s.events.named("fault_injected")]

    hit = play(scene)
    assert len(hit) == 8 and len(set(hit)) > 1


def test_when_it_was_planned_began_and_ended_are_told_as_they_are():
    async def scene():
        s = Scene()

        async def slowly(injection, handle):
            await asyncio.sleep(0.25)

        s.fault.inject = slowly
        plan = held("fake.hurt", at_us=7_000_000)
        await s.agent.prepare(plan)
        came_us = s.clock.now_us()
        await s.agent.inject("one")
        await s.agent.stop()
        [told] = s.events.named("fault_injected")
        return told, came_us

    told, came_us = play(scene)
    assert told["planned_us"] == 7_000_000 != came_us
    assert told["began_us"] == came_us  # not a moment is lost on the way
    assert told["ended_us"] == came_us + 250_000


def test_nothing_to_hit_is_refused_and_settings_are_checked():
    async def scene():
        s = Scene()
        assert await s.agent.preflight(held("fake.hurt", count=2)) == 2
        with pytest.raises(RefusedError, match="matches nothing of 'other'"):
            await s.agent.preflight(held("fake.hurt", service="other"))
        with pytest.raises(RefusedError, match="power: unknown setting"):
            await s.agent.preflight(held("fake.hurt", settings={"power": "9x"}))
        assert s.world.log == []
        await s.agent.stop()

    play(scene)


def test_a_one_shot_is_looked_at_until_seen_and_never_healed():
    async def scene():
        s = Scene(variant(held=False))
        await s.on(one_shot("fake.hurt"), 5)
        assert await s.agent.stop() == []
        return s

    s = play(scene)
    assert s.events.looks("during") == ["yes"]
    assert s.events.named("fault_healed") == [] and "heal one#1" not in s.world.log


def test_a_one_shot_that_never_bites_is_looked_at_for_three_seconds():
    async def scene():
        s = Scene(variant(held=False, inject=pretend))
        await s.on(one_shot("fake.hurt"), 10)
        await s.agent.stop()
        return s.events.looks("during")

    assert play(scene) == ["no"] * 12


def test_a_look_that_hangs_or_breaks_is_unknown():
    async def broken(*args):
        raise ZeroDivisionError("oops")

    for observe, evidence in ((hang, "observe was not done within 1 s"), (broken, "a bug in")):

        async def scene(observe=observe):
            s = Scene(variant(observe=observe))
            await s.agent.prepare(held("fake.hurt"))
            await s.agent.stop()
            return s.events.named("fault_observed")

        os.environ["XDG_STATE_HOME"] += "y"
        looks = play(scene)
        assert [e["active"] for e in looks] == ["unknown"] * 3
        assert evidence in looks[0]["evidence"]


def test_the_same_seed_gives_the_same_events():
    async def scene():
        s = Scene(variant(heal=pretend), seed=5)
        await s.on(held("fake.hurt", count=2))
        await s.agent.heal("one")
        await s.agent.stop()
        return s.events.all

    first = play(scene)
    os.environ["XDG_STATE_HOME"] += "z"
    assert play(scene) == first
