"""Every fault on a link, by the real agent, on both hosts: it bites, is seen, is gone."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest
from faultscene import ROOT, play, twins

from survive.catalog import Catalog
from survive.scenario.model import FaultPlan, Health, Service, TargetSpec
from survive.units import SECOND

LINK = "load -> inference"
KINDS = {
    "network.latency": {"latency": "120ms"},
    "network.down": {},
    "network.bandwidth": {"kb_per_s": 20},
    "network.slow_close": {"delay": "200ms"},
    "network.timeout": {},
    "network.reset_peer": {},
    "network.slicer": {"average_bytes": 100, "delay": "10ms"},
    "network.limit_data": {"bytes": 900},
    "network.flapping": {"every": "400ms", "down": "200ms"},
    "network.partition": {},
}


def target():
    inference = Service(
        "inference", app="replica.py:make_app", gpu="simulated",
        health=Health("/health", 10 * SECOND))  # fmt: skip
    return TargetSpec("scene", "process", "inference", {"inference": inference}, {},
                      folder=ROOT / "targets" / "reference")  # fmt: skip


def planned(kind, for_s=2.0):
    return FaultPlan("one", kind, 0, round(for_s * SECOND), link=LINK, settings=KINDS[kind])


async def lives(scene, kind, for_s=1.2):
    await scene.life(planned(kind), for_s)


def run(host, tmp_path, kind, sabotage=()):
    return play(host, tmp_path, lambda scene: lives(scene, kind), sabotage=sabotage,
                target=target(), links=frozenset({LINK}))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_bites_is_seen_and_is_gone_and_both_hosts_tell_the_same(kind, tmp_path):
    def check(scene, left):
        assert scene.looks("before") == ["no"] * 3
        during = scene.looks("during")
        assert during and set(during) == {"yes"}, scene.named("fault_observed", stage="during")
        assert scene.named("heal_proven", proven=True, by_own_heal=True), scene.events[-5:]
        assert left == []

    twins(tmp_path, lambda scene: lives(scene, kind), check, target=target(),
          links=frozenset({LINK}))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_inject_that_does_nothing_is_seen_as_no(kind, tmp_path):
    scene, _, left = run("virtual", tmp_path, kind, sabotage=["inject"])
    assert set(scene.looks("during")) == {"no"}
    assert left == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_heal_that_does_nothing_is_not_proven(kind, tmp_path):
    scene, _, left = run("virtual", tmp_path, kind, sabotage=["heal"])
    assert scene.looks("after")[0] == "yes"
    assert not scene.named("heal_proven", by_own_heal=True)
    assert [entry["fault"] for entry in left] == ["one"]


@pytest.mark.parametrize("kind", ["network.bandwidth", "network.timeout", "network.flapping"])
def test_the_same_for_real(kind, tmp_path):
    scene, _, left = run("process", tmp_path, kind, sabotage=["inject"])
    assert set(scene.looks("during")) == {"no"} and left == []
    scene, _, left = run("process", tmp_path, kind, sabotage=["heal"])
    assert scene.looks("after")[0] == "yes"
    assert [entry["fault"] for entry in left] == ["one"]


def test_the_schedule_of_a_flapping_link_never_outlives_its_heal(tmp_path):
    async def body(scene):
        await lives(scene, "network.flapping")
        [spec] = scene.driver.listeners(LINK)
        states = []
        for _ in range(60):
            states.append(scene.transport.network.listener(spec.via).enabled)
            await asyncio.sleep(0.05)
        return states

    _, states, _ = play("virtual", tmp_path, body, target=target(), links=frozenset({LINK}))
    assert set(states) == {True}


def test_a_flapping_link_is_down_and_up_for_as_long_as_was_said(tmp_path):
    async def body(scene):
        [spec] = scene.driver.listeners(LINK)
        listener = scene.transport.network.listener(spec.via)
        await scene.agent.preflight(planned("network.flapping", 9))
        await scene.agent.prepare(planned("network.flapping", 9))
        await scene.agent.inject("one")
        states = []
        for _ in range(100):  # 5 s, 12.5 cycles of 400 ms, 200 ms of each down
            await asyncio.sleep(0.025)
            states.append(listener.enabled)
            await asyncio.sleep(0.025)
        return states

    _, states, _ = play("virtual", tmp_path, body, target=target(), links=frozenset({LINK}))
    assert states == [cycle % 8 >= 4 for cycle in range(100)]


class Watched:
    """A link that always answers, seen by a watcher whose calls take what ``spans_ms`` say."""

    def __init__(self, spans_ms):
        self.spans_ms, self.t_us, self.clock, self.spec = spans_ms, 0, self, SimpleNamespace(via="")

    def now_us(self):
        return self.t_us

    async def sleep_until(self, t_us):
        self.t_us = max(self.t_us, t_us)

    async def call(self, handle, address, timeout_us):
        self.t_us += next(self.spans_ms) * 1000
        return SimpleNamespace(broken=None)


@pytest.mark.parametrize(
    ("spans_ms", "active", "most_ms"),
    [
        (itertools.repeat(5), "no", 480),
        (itertools.repeat(190), "unknown", 1000),  # it could have been down between any two
        (itertools.chain([230], itertools.repeat(5)), "no", 780),  # since then all was seen
        (itertools.chain([5] * 20, [300], itertools.repeat(5)), "unknown", 1000),
    ],
)  # fmt: skip
def test_who_was_too_busy_to_see_a_link_go_down_does_not_say_that_it_did_not(
    spans_ms, active, most_ms, monkeypatch
):
    flapping, watched = Catalog().fault("network.flapping"), Watched(spans_ms)
    monkeypatch.setitem(type(flapping).observe.__globals__, "call", watched.call)
    one = SimpleNamespace(settings={"every": "500ms", "down": "200ms"})
    seen = asyncio.run(flapping.observe(one, watched, None))
    assert (seen.active, watched.t_us <= most_ms * 1000) == (active, True), watched.t_us


# ------------------------------------------------------------------------- slow looks

SLOW = {
    "network.latency": {"latency": "3s", "jitter": "300ms"},
    "dependency.slow": {"delay": "3s"},
}


def slow(kind, for_s=4.5):
    return FaultPlan("one", kind, 0, round(for_s * SECOND), link=LINK, settings=SLOW[kind])


@pytest.mark.parametrize(
    ("host", "kind"), [*(("virtual", kind) for kind in SLOW), ("process", "network.latency")]
)
def test_a_link_that_is_slower_than_a_look_is_proven_by_longer_looks(host, kind, tmp_path):
    """Half the setting (1.5 s) is more than the second that a look usually has."""
    scene, _, left = play(host, tmp_path, lambda scene: scene.life(slow(kind), 3.5),
                          target=target(), links=frozenset({LINK}))  # fmt: skip
    assert scene.looks("before") == ["no"] * 3
    during = scene.named("fault_observed", stage="during")
    assert len(during) >= 5 and {look["active"] for look in during} == {"yes"}, during
    assert all("at least" in look["evidence"] for look in during)
    began = [look["began_us"] for look in during]
    assert max(b - a for a, b in itertools.pairwise(began)) < SECOND  # they overlap
    assert scene.named("heal_proven", proven=True, by_own_heal=True), scene.events[-5:]
    assert left == []


@pytest.mark.parametrize("verb", ["inject", "heal"])
def test_of_a_very_slow_link_a_verb_that_does_nothing_is_found_out_as_well(verb, tmp_path):
    scene, _, left = play("virtual", tmp_path, lambda scene: scene.life(slow("network.latency"), 4),
                          sabotage=[verb], target=target(), links=frozenset({LINK}))  # fmt: skip
    if verb == "inject":
        assert set(scene.looks("during")) == {"no"} and left == []
    else:
        assert "no" not in scene.looks("after")[:1]
        assert not scene.named("heal_proven", by_own_heal=True)
        assert [entry["fault"] for entry in left] == ["one"]
