"""gpu.*: injected by the admin route, proven by the data path alone; simulated, and said so."""

from __future__ import annotations

import pytest
from faultscene import plan, play, spec

from survive.catalog import Catalog
from survive.contracts import Active, Grade, Injection, Needs
from survive.errors import RefusedError
from survive.scenario.settings import parse_settings

LOST = ("gpu.lost", {})
SLOW = ("gpu.throttle", {"slow_down": "3x"})


@pytest.mark.parametrize("host", ["virtual", "process"])
@pytest.mark.parametrize(("kind", "settings"), [LOST, SLOW])
def test_it_bites_is_healed_and_both_are_proven(kind, settings, host, tmp_path):
    scene, _, left = play(host, tmp_path, lambda s: s.life(plan(kind, **settings)))
    assert scene.looks("before") == ["no"] * 3
    assert set(scene.looks("during")) == {"yes"}
    [proven] = scene.named("heal_proven")
    assert proven["by_own_heal"] is True and left == []
    evidence = scene.named("fault_observed", stage="during")[0]["evidence"]
    assert "simulated GPU" in evidence


@pytest.mark.parametrize(("kind", "settings"), [LOST, SLOW])
def test_an_inject_that_does_nothing_is_never_seen_active(kind, settings, tmp_path):
    scene, _, _ = play(
        "virtual", tmp_path, lambda s: s.life(plan(kind, **settings)), sabotage=["inject"]
    )
    assert scene.named("fault_injected")[0]["error"] is None
    assert set(scene.looks("during")) == {"no"}


@pytest.mark.parametrize(("kind", "settings"), [LOST, SLOW])
def test_a_heal_that_does_nothing_is_seen_through(kind, settings, tmp_path):
    scene, _, left = play(
        "virtual", tmp_path, lambda s: s.life(plan(kind, **settings)), sabotage=["heal"]
    )
    assert [e["rung"] for e in scene.named("fault_healed")] == ["undo", "disable"]
    assert scene.named("heal_proven")[0]["by_own_heal"] is False and len(left) == 1


def look(scene, kind, settings, victim, before=None):
    injection = Injection("x#1", "x", kind, settings, victim, 0, 1)
    return Catalog().fault(kind).observe(injection, scene.driver.open(victim, Needs.GPU), before)


@pytest.mark.parametrize(("kind", "settings"), [LOST, SLOW])
def test_a_neighbour_of_the_victim_looks_innocent(kind, settings, tmp_path):
    async def body(scene):
        await scene.agent.prepare(plan(kind, **settings))
        await scene.agent.inject("one")
        hit = scene.named("fault_injected")[0]["target"]
        [other] = [v for v in scene.driver.replicas("inference") if v.replica_id != hit]
        before = (await look(scene, kind, settings, other)).value
        return (await look(scene, kind, settings, other, before)).active

    assert play("virtual", tmp_path, body)[1] is Active.NO


def test_the_other_fault_is_not_taken_for_it(tmp_path):
    """A throttled GPU is not lost."""

    async def body(scene):
        await scene.agent.prepare(plan(*SLOW[:1], **SLOW[1]))
        await scene.agent.inject("one")
        return [(await look(scene, *LOST, v)).active for v in scene.driver.replicas("inference")]

    assert set(play("virtual", tmp_path, body)[1]) == {Active.NO}


def test_half_of_the_asked_slow_down_is_the_least_that_proves_it(tmp_path):
    async def body(scene):
        victim = scene.driver.replicas("inference")[0]
        gap = (await look(scene, *SLOW, victim)).value
        return [
            (await look(scene, *SLOW, victim, before)).active
            for before in (gap, gap / 1.9, gap / 2.1)
        ]

    # 3x asked: at least 2 x before.
    assert play("virtual", tmp_path, body)[1] == [Active.NO, Active.NO, Active.YES]


@pytest.mark.parametrize("slow_down", ["10x", "30x"])
def test_a_very_slow_gpu_shows_within_the_time_of_a_look(slow_down, tmp_path):
    scene, _, _left = play(
        "virtual", tmp_path, lambda s: s.life(plan("gpu.throttle", slow_down=slow_down), for_s=4)
    )
    looks = scene.looks("during")
    assert "no" not in looks
    assert looks.count("yes") / len(looks) > (0.8 if slow_down == "10x" else 0)


def test_a_gone_replica_is_no_lost_gpu_and_needs_no_heal(tmp_path):
    async def body(scene):
        victim = scene.driver.replicas("inference")[0]
        handle = scene.driver.open(victim, Needs.GPU)
        injection = Injection("x#1", "x", "gpu.lost", {}, victim, 0, 1)
        await scene.driver.open(victim, Needs.REPLICA).kill()
        fault = Catalog().fault("gpu.lost")
        seen = await fault.observe(injection, handle, None)
        await fault.heal(injection, handle)
        return seen.active

    assert play("virtual", tmp_path, body, target=spec(1, None))[1] is Active.UNKNOWN


def test_a_service_without_a_gpu_is_refused(tmp_path):
    target = spec()
    bare = {
        name: type(s)(s.name, app=s.app, health=s.health) for name, s in target.services.items()
    }
    target = type(target)(target.name, "process", target.entry, bare, {}, folder=target.folder)

    async def body(scene):
        with pytest.raises(RefusedError, match="matches nothing"):
            await scene.agent.preflight(plan("gpu.lost"))

    play("virtual", tmp_path, body, target=target)


def test_a_factor_of_one_slows_nothing_and_is_refused():
    fault = Catalog().fault("gpu.throttle")
    settings = parse_settings(fault.settings, {"slow_down": "1x"})
    assert fault.preflight(settings, ["anything"]) == []


def test_all_of_the_family_is_called_simulated():
    for kind in ("gpu.lost", "gpu.throttle"):
        fault = Catalog().fault(kind)
        assert fault.grade is Grade.SIMULATED
        assert "simulated" in fault.certifies and "real GPU" in fault.does_not_certify
