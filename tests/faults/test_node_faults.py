"""node.*: seen by the data path and the operating system, whatever inject and heal report."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from faultscene import HOSTS, assert_followed, life_with_a_death, plan, play, spec, twins

from survive.catalog import Catalog
from survive.chaos import processes
from survive.contracts import Active, Injection, Needs
from survive.errors import RefusedError
from survive.transport import CallFailedError, Request, read_all

HELD = ["node.pause", "node.down"]
ONE_SHOTS = ["node.kill", "node.restart", "node.rolling_restart"]


def assert_proven(scene, left):
    assert scene.looks("before") == ["no"] * 3
    assert set(scene.looks("during")[1:]) == {"yes"}  # the first lies within the guard
    [proven] = scene.named("heal_proven")
    assert proven["proven"] is True and proven["by_own_heal"] is True, proven
    assert left == []


@pytest.mark.parametrize("kind", HELD)
def test_a_held_fault_bites_is_healed_and_both_hosts_prove_it_alike(kind, tmp_path):
    twins(tmp_path, lambda s: s.life(plan(kind)), assert_proven)


@pytest.mark.parametrize("host", HOSTS)
def test_a_restart_drains_what_runs_refuses_what_is_new_and_comes_back(host, tmp_path):
    async def body(scene):
        [victim, _] = old = scene.driver.replicas("inference")
        body = {"model": "demo", "max_tokens": 40, "messages": [{"role": "user", "content": "x"}]}
        ask = Request("POST", "/v1/chat/completions", (), json.dumps(body).encode())
        running = asyncio.create_task(scene.transport.call(victim.address, ask, timeout_s=5))
        await asyncio.sleep(0.1)
        await scene.driver.open(victim, Needs.REPLICA).stop()
        for _ in range(20):  # a busy process hears a signal late
            if (refused := await how(scene, victim.address)) == "refused":
                break
            await asyncio.sleep(0.02)
        status = (await read_whole(await running)).status
        back = await until(lambda: scene.driver.replicas("inference") != old)
        return refused, status, back

    _, seen, _ = play(host, tmp_path, body)
    assert seen == ("refused", 200, True)


async def how(scene, address):
    try:
        return str((await scene.transport.call(address, Request("GET", "/"), timeout_s=1)).status)
    except CallFailedError as error:
        return str(error.how)


async def read_whole(answer):
    await read_all(answer)
    return answer


async def until(holds, within_s=6.0):
    for _ in range(round(within_s / 0.05)):
        if holds():
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize("kind", ["node.kill", "node.restart"])
def test_a_one_shot_ends_the_old_process_which_comes_back_alike_on_both_hosts(kind, tmp_path):
    async def body(scene):
        old = scene.driver.replicas("inference")
        await scene.life(plan(kind, None), for_s=1)
        assert await until(lambda: scene.driver.replicas("inference") != old)

    def check(scene, left):
        assert scene.looks("before") == ["no"] * 3 and scene.looks("during")[-1] == "yes"
        assert left == []

    twins(tmp_path, body, check)


@pytest.mark.parametrize("host", HOSTS)
def test_a_roll_hits_every_replica_once_the_last_has_come_back(host, tmp_path):
    async def body(scene):
        old = scene.driver.replicas("inference")
        await scene.life(plan("node.rolling_restart", None, pause="200ms"), for_s=0)
        done = await until(lambda: len(scene.named("fault_injected")) == 3)
        await until(lambda: all(a != b for a, b in zip(old, now(scene), strict=True)))
        return done, old, now(scene)

    def now(scene):
        return scene.driver.replicas("inference")

    scene, (done, old, new), left = play(host, tmp_path, body, target=spec(3))
    assert done and all(a.pid != b.pid for a, b in zip(old, new, strict=True)) and left == []
    injected = scene.named("fault_injected")
    assert [e["target"] for e in injected] == ["inference-0", "inference-1", "inference-2"]
    assert all(e["error"] is None for e in injected)
    for former, event in itertools.pairwise(injected):  # restart.after 300 ms, pause 200 ms
        assert event["began_us"] - former["ended_us"] >= 500_000


def test_a_roll_ends_where_a_replica_does_not_come_back(tmp_path):
    async def body(scene):
        scene.agent._start_within_us = {"inference": 0}
        await scene.life(plan("node.rolling_restart", None), for_s=8)
        return scene.driver.replicas("inference")

    scene, replicas, _ = play("virtual", tmp_path, body, target=spec(3, None))
    errors = [e["error"] for e in scene.named("fault_injected")]
    assert errors == [None, *["inference-0 did not come back"] * 2]
    assert [r.pid for r in replicas] == [1, 2, 3]


def test_one_replica_is_no_roll(tmp_path):
    async def body(scene):
        with pytest.raises(RefusedError, match="matches nothing"):
            await scene.agent.preflight(plan("node.rolling_restart", None))

    play("virtual", tmp_path, body, target=spec(1))


@pytest.mark.parametrize("kind", [*ONE_SHOTS, *HELD])
def test_an_inject_that_does_nothing_is_never_seen_active(kind, tmp_path):
    for_s = None if kind in ONE_SHOTS else 2
    scene, _, _ = play(
        "virtual", tmp_path, lambda s: s.life(plan(kind, for_s)), sabotage=["inject"]
    )
    assert scene.named("fault_injected")[0]["error"] is None
    assert set(scene.looks("during")) == {"no"}


@pytest.mark.parametrize("host", HOSTS)
def test_a_pause_whose_heal_does_nothing_is_ended_by_the_next_rung_and_unproven(host, tmp_path):
    scene, _, left = play(host, tmp_path, lambda s: s.life(plan("node.pause")), sabotage=["heal"])
    assert [e["rung"] for e in scene.named("fault_healed")] == ["undo", "disable"]
    assert scene.named("heal_proven")[0]["by_own_heal"] is False
    assert len(left) == 1


def test_down_is_healed_by_the_release_so_that_is_what_can_be_sabotaged(tmp_path):
    async def body(scene):
        scene.driver.release = lambda spec: None
        await scene.life(plan("node.down"))

    scene, _, left = play("virtual", tmp_path, body)
    assert scene.named("heal_proven")[0]["proven"] is False
    assert len(left) == 1


def test_down_stays_down_though_the_supervisor_would_restart_it(tmp_path):
    scene, _, _ = play("virtual", tmp_path, lambda s: s.life(plan("node.down"), for_s=20))
    assert scene.looks("during").count("yes") >= 79


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("sabotage", [[], ["inject"]])
def test_a_pause_follows_its_victim_through_a_restart(sabotage, host, tmp_path):
    """Somebody else kills the paused process: its successor is paused too, and it is told."""
    scene, _, left = play(
        host, tmp_path, lambda s: life_with_a_death(s, plan("node.pause", 3)), sabotage=sabotage
    )
    if not sabotage:
        return assert_followed(scene, left)
    # Reported as done, twice: nobody believes it.
    assert [e["count"] for e in scene.named("fault_reinjected")] == [1]
    assert "yes" not in scene.looks("during") and scene.looks("during")[-1] == "no"
    return None


def look(scene, kind, victim, before=None):
    fault = Catalog().fault(kind)
    injection = Injection("x#1", "x", kind, {}, victim, 0, 1)
    return fault.observe(injection, scene.driver.open(victim, Needs.REPLICA), before)


@pytest.mark.parametrize("kind", ["node.kill", "node.restart", *HELD])
def test_a_neighbour_of_the_victim_looks_innocent(kind, tmp_path):
    """The negative control: the fault is on, elsewhere."""

    async def body(scene):
        await scene.agent.prepare(plan(kind, None if kind in ONE_SHOTS else 2))
        await scene.agent.inject("one")
        hit = scene.named("fault_injected")[0]["target"]
        [other] = [v for v in scene.driver.replicas("inference") if v.replica_id != hit]
        return (await look(scene, kind, other)).active

    assert play("virtual", tmp_path, body)[1] is Active.NO


def test_a_replica_that_is_slow_but_runs_is_not_taken_for_paused(tmp_path):
    """Silence alone proves no pause where the operating system says that the process runs."""

    class Silent:
        def __init__(self, real, state):
            self.real, self.state, self.spec = real, state, real.spec
            self.transport, self.clock = self, real.clock

        async def call(self, address, request, *, timeout_s):
            from survive.transport import Broken, CallFailedError

            raise CallFailedError(Broken.TIMEOUT)

        async def os_state(self):
            return self.state

    async def body(scene):
        fault = Catalog().fault("node.pause")
        victim = scene.driver.replicas("inference")[0]
        injection = Injection("x#1", "x", "node.pause", {}, victim, 0, 1)
        real = scene.driver.open(victim, Needs.REPLICA)
        return [
            (await fault.observe(injection, Silent(real, state), None)).active
            for state in ("S", "R", "T", "")
        ]

    assert play("virtual", tmp_path, body)[1] == ["unknown", "unknown", "yes", "yes"]


def test_heal_is_idempotent_and_legal_without_inject_and_on_the_gone(tmp_path):
    async def body(scene):
        fault = Catalog().fault("node.pause")
        victim = scene.driver.replicas("inference")[0]
        injection = Injection("x#1", "x", "node.pause", {}, victim, 0, 1)
        handle = scene.driver.open(victim, Needs.REPLICA)
        await fault.heal(injection, handle)
        await fault.heal(injection, handle)
        alive = processes.exists(victim.pid, victim.start_time)
        await handle.kill()
        await fault.heal(injection, handle)
        return alive

    assert play("process", tmp_path, body, target=spec(1, None))[1] is True


def test_an_external_target_offers_no_replica_to_hit(tmp_path):
    assert Catalog().fault("node.kill").preflight(None, []) == []
