"""gpu.*: injected by the admin route, proven by the data path alone; simulated, and said so."""

from __future__ import annotations

import asyncio

import pytest
from faultscene import ROOT, assert_followed, life_with_a_death, plan, play, spec, twins

from survive.catalog import Catalog, load_module
from survive.contracts import Active, Grade, Injection, Needs
from survive.errors import RefusedError
from survive.scenario.settings import parse_settings
from survive.transport import Request
from survive.units import UnitError

chat = load_module(ROOT / "faults" / "chat_looks.py").chat
status_of = load_module(ROOT / "faults" / "calls.py").status_of

LOST = ("gpu.lost", {})
SLOW = ("gpu.throttle", {"slow_down": "3x"})
HANG = ("gpu.hang", {})
LYING = ("gpu.xid", {"death": "lying"})
DEADLY = [("gpu.xid", {"death": "red"}), ("gpu.xid", {"death": "exit"})]
FULL = ("gpu.vram_pressure", {"share": "98%"})
ECC = ("gpu.ecc_slow", {"slow_down": "2x", "retries": "20%"})
STAYING = [LOST, SLOW, HANG, LYING, FULL, ECC]
ALL = [*STAYING, *DEADLY]


@pytest.mark.parametrize(("kind", "settings"), STAYING)
def test_it_bites_is_healed_and_both_hosts_prove_it_alike(kind, settings, tmp_path):
    def check(scene, left):
        assert scene.looks("before") == ["no"] * 3
        assert set(scene.looks("during")) == {"yes"}
        [proven] = scene.named("heal_proven")
        assert proven["by_own_heal"] is True and left == []
        evidence = scene.named("fault_observed", stage="during")[0]["evidence"]
        assert "simulated GPU" in evidence

    twins(tmp_path, lambda s: s.life(plan(kind, **settings)), check)


@pytest.mark.parametrize(("kind", "settings"), [LOST, SLOW, HANG])
def test_it_follows_its_victim_through_a_restart(kind, settings, tmp_path):
    held = plan(kind, 3, **settings)
    scene, _, left = play("virtual", tmp_path, lambda s: life_with_a_death(s, held))
    assert_followed(scene, left)


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_an_inject_that_does_nothing_is_never_seen_active(kind, settings, tmp_path):
    scene, _, _ = play(
        "virtual", tmp_path, lambda s: s.life(plan(kind, **settings)), sabotage=["inject"]
    )
    assert scene.named("fault_injected")[0]["error"] is None
    assert set(scene.looks("during")) == {"no"}


@pytest.mark.parametrize(("kind", "settings"), STAYING)
def test_a_heal_that_does_nothing_is_seen_through(kind, settings, tmp_path):
    scene, _, left = play(
        "virtual", tmp_path, lambda s: s.life(plan(kind, **settings)), sabotage=["heal"]
    )
    assert [e["rung"] for e in scene.named("fault_healed")] == ["undo", "disable"]
    assert scene.named("heal_proven")[0]["by_own_heal"] is False and len(left) == 1


@pytest.mark.parametrize("host", ["virtual", "process"])
@pytest.mark.parametrize(("kind", "settings"), DEADLY)
def test_a_deadly_xid_ends_the_process_and_its_heal_brings_it_back(kind, settings, host, tmp_path):
    async def body(scene):
        replicas = scene.driver._replicas["inference"]
        before = [r.node if host == "virtual" else r.process for r in replicas]
        ended = []
        for node in before if host == "virtual" else []:
            node.on_end = lambda why, told=node.on_end: (ended.append(why), told(why))
        await scene.life(plan(kind, **settings), for_s=2.5)
        return list(ended) or [process.how for process in before if process.how]

    scene, how, left = play(host, tmp_path, body)
    assert how == [f"exited with {1 if settings['death'] == 'red' else 0}"]
    assert scene.looks("before") == ["no"] * 3
    during = scene.looks("during")
    assert "no" not in during and during.count("yes") / len(during) > 0.7
    [proven] = scene.named("heal_proven")
    assert proven["by_own_heal"] is True and left == []


def test_a_lying_xid_keeps_the_health_route_green_and_a_red_one_does_not(tmp_path):
    async def body(scene):
        victim, other = scene.driver.replicas("inference")
        seen = {}
        for spec_, death in ((victim, "lying"), (other, "red")):
            handle = scene.driver.open(spec_, Needs.GPU)
            await handle.set_state(xid=death)
            answer = await scene.transport.call(
                spec_.address, Request("GET", "/health"), timeout_s=1
            )
            seen[death] = answer.status
            await answer.close()
        return seen

    assert play("virtual", tmp_path, body)[1] == {"lying": 200, "red": 503}


BUSY_TOKENS = 40


async def load(scene, victim, lanes):
    """Lanes that chat with the victim for ever, beside the looks."""

    async def lane():
        while True:
            await status_of(scene.driver.open(victim, Needs.GPU), chat(BUSY_TOKENS, stream=True), 9)
            await asyncio.sleep(0.01)

    return [asyncio.create_task(lane()) for _ in range(lanes)]


@pytest.mark.parametrize(("kind", "settings"), [HANG, FULL, LYING])
def test_a_busy_replica_is_never_taken_for_a_broken_one(kind, settings, tmp_path):
    """More calls than a batch holds: one-token calls time out behind them, and prove nothing."""

    async def body(scene):
        victim = scene.driver.replicas("inference")[0]
        lanes = await load(scene, victim, 60)
        await asyncio.sleep(2)
        seen = [await look(scene, kind, settings, victim) for _ in range(12)]
        for lane in lanes:
            lane.cancel()
        return {s.active for s in seen}

    assert Active.YES not in play("virtual", tmp_path, body, target=spec(1, None))[1]


@pytest.mark.parametrize(("kind", "settings"), [HANG, FULL, LYING, LOST, ECC])
def test_it_is_proven_and_healed_under_load(kind, settings, tmp_path):
    async def body(scene):
        victims = scene.driver.replicas("inference")
        lanes = [lane for v in victims for lane in await load(scene, v, 6)]
        await asyncio.sleep(1)
        await scene.life(plan(kind, **settings), for_s=3)
        for lane in lanes:
            lane.cancel()

    scene, _, left = play("virtual", tmp_path, body)
    assert set(scene.looks("before")) == {"no"}
    during = scene.looks("during")
    assert "no" not in during and during.count("unknown") / len(during) <= 0.2, during
    assert left == []


def test_a_lost_gpu_is_no_pressure_and_no_hang(tmp_path):
    async def body(scene):
        victim = scene.driver.replicas("inference")[0]
        await scene.driver.open(victim, Needs.GPU).set_state(lost=True)
        return [(await look(scene, *other, victim)).active for other in (HANG, FULL, LYING)]

    assert play("virtual", tmp_path, body)[1] == [Active.UNKNOWN] * 3


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        ("gpu.xid", {"death": "loud"}, "red, lying, exit"),
        ("gpu.vram_pressure", {"share": "50%"}, "from 75%"),
        ("gpu.vram_pressure", {"share": "100%"}, "99.9%"),
        ("gpu.ecc_slow", {"slow_down": "1.2x", "retries": "50%"}, "1.2 or more"),
    ],
)
def test_settings_that_could_not_be_proven_are_refused(kind, settings, why):
    with pytest.raises(UnitError, match=why):
        parse_settings(Catalog().fault(kind).settings, settings)


def look(scene, kind, settings, victim, before=None):
    injection = Injection("x#1", "x", kind, settings, victim, 0, 1)
    return Catalog().fault(kind).observe(injection, scene.driver.open(victim, Needs.GPU), before)


@pytest.mark.parametrize(("kind", "settings"), ALL)
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
    for kind, _ in ALL:
        fault = Catalog().fault(kind)
        assert fault.grade is Grade.SIMULATED
        assert "simulated" in fault.certifies and "real GPU" in fault.does_not_certify
