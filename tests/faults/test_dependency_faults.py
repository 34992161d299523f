"""dependency.* and observability.*: proven by calls of users, whatever the switches say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from faultscene import ROOT, assert_followed, life_with_a_death, play, twins

from survive.catalog import Catalog
from survive.contracts import Active, Grade, HandleSpec, Injection, Needs
from survive.errors import RefusedError
from survive.scenario.model import FaultPlan, Health, Link, Service, TargetSpec
from survive.scenario.settings import parse_settings
from survive.transport import Request, read_all
from survive.units import SECOND, UnitError

LINK = "gateway -> retrieval"
SLOW = ("dependency.slow", {"delay": "200ms"})
FROZEN = ("dependency.frozen", {})
STALE = ("dependency.stale", {})
FEED = ("dependency.frozen_feed", {})
REVOKED = ("dependency.revoked_key", {})
METRICS = ("observability.metrics_down", {})
ON_LINK = [SLOW, FROZEN]
SWITCHES = [STALE, FEED, REVOKED, METRICS]
ALL = [*ON_LINK, *SWITCHES]


def target(simulates=("store", "metrics"), replicas=1):
    health = Health("/health", 10 * SECOND)
    services = {
        "gateway": Service(
            "gateway",
            app="gateway.py:make_app",
            simulates=simulates[1:],
            metrics="/metrics",
            replicas=replicas,
            health=Health("/metrics", 10 * SECOND),  # healthz needs inference, which is not here
        ),
        "retrieval": Service(
            "retrieval",
            app="retrieval.py:make_app",
            simulates=simulates[:1],
            replicas=replicas,
            health=health,
        ),
    }
    if simulates:  # one with both routes
        services["watched"] = Service(
            "watched",
            app="replica.py:make_app",
            simulates=("metrics",),
            metrics="/metrics",
            replicas=replicas,
            health=health,
        )
    links = {LINK: Link("gateway", "retrieval", "RETRIEVAL")}
    return TargetSpec(
        "scene", "process", "gateway", services, links, folder=ROOT / "targets" / "reference"
    )


def plan(kind, settings, for_s=2):
    on_link = kind in {SLOW[0], FROZEN[0]}
    service = "" if on_link else "watched" if kind == METRICS[0] else "retrieval"
    return FaultPlan(
        "one", kind, 0, for_s * SECOND, service, link=LINK if on_link else "", settings=settings
    )


def scene(host, tmp_path, body, **more):
    more.setdefault("target", target())
    return play(host, tmp_path, body, links=frozenset({LINK}), **more)


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_it_bites_is_healed_and_both_hosts_prove_it_alike(kind, settings, tmp_path):
    def check(seen, left):
        assert seen.looks("before") == ["no"] * 3
        assert set(seen.looks("during")) == {"yes"}
        [proven] = seen.named("heal_proven")
        assert proven["by_own_heal"] is True and left == []

    twins(tmp_path, lambda s: s.life(plan(kind, settings), for_s=2), check, target=target(),
          links=frozenset({LINK}))  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), SWITCHES)
def test_a_switch_follows_its_victim_through_a_restart(kind, settings, tmp_path):
    held = plan(kind, settings, 3)
    back = {
        name: replace(service, restart_after_us=300_000)
        for name, service in target().services.items()
    }
    seen, _, left = scene(
        "virtual", tmp_path, lambda s: life_with_a_death(s, held, held.service),
        target=replace(target(), services=back),
    )  # fmt: skip
    assert_followed(seen, left)


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_an_inject_that_does_nothing_is_never_seen_active(kind, settings, tmp_path):
    seen, _, _ = scene(
        "virtual", tmp_path, lambda s: s.life(plan(kind, settings)), sabotage=["inject"]
    )
    assert seen.named("fault_injected")[0]["error"] is None
    assert set(seen.looks("during")) == {"no"}


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_a_heal_that_does_nothing_is_seen_through(kind, settings, tmp_path):
    seen, _, left = scene(
        "virtual", tmp_path, lambda s: s.life(plan(kind, settings)), sabotage=["heal"]
    )
    assert [e["rung"] for e in seen.named("fault_healed")] == ["undo", "disable"]
    assert seen.named("heal_proven")[0]["by_own_heal"] is False and len(left) == 1


def look(seen, kind, settings, victim):
    fault = Catalog().fault(kind)
    injection = Injection("x#1", "x", kind, settings, victim, 0, 1)
    return fault.observe(injection, seen.driver.open(victim, fault.needs), None)


@pytest.mark.parametrize(("kind", "settings"), SWITCHES)
def test_a_neighbour_of_the_victim_looks_innocent(kind, settings, tmp_path):
    async def body(s):
        await s.agent.prepare(plan(kind, settings))
        await s.agent.inject("one")
        hit = s.named("fault_injected")[0]["target"]
        service = plan(kind, settings).service
        [other] = [v for v in s.driver.replicas(service) if v.replica_id != hit]
        return (await look(s, kind, settings, other)).active

    assert scene("virtual", tmp_path, body, target=target(replicas=2))[1] is Active.NO


async def ask(s, address, request):
    answer = await s.transport.call(address, request, timeout_s=1)
    return answer.status, await read_all(answer)


def write(name, text):
    body = json.dumps({"id": name, "text": text}).encode()
    return Request("POST", "/v1/documents", (("content-type", "application/json"),), body)


@pytest.mark.parametrize(("kind", "settings"), [STALE, FEED])
def test_what_was_written_meanwhile_is_found_after_the_heal(kind, settings, tmp_path):
    search = Request("GET", "/v1/search?q=zebrafish")

    async def body(s):
        [store] = s.driver.replicas("retrieval")
        await ask(s, store.address, write("a", "zebrafish old"))
        await s.agent.prepare(plan(kind, settings))
        await s.agent.inject("one")
        assert (await ask(s, store.address, write("a", "zebrafish new")))[0] == 201
        during = (await ask(s, store.address, search))[1]
        counted = json.loads((await ask(s, store.address, Request("GET", "/health")))[1])
        await s.agent.heal("one")
        return during, (await ask(s, store.address, search))[1], counted["documents"]

    _, (during, after, _), _ = scene("virtual", tmp_path, body)
    assert b"zebrafish old" in during and b"zebrafish new" not in during
    assert b"zebrafish new" in after and b"zebrafish old" not in after


def test_looks_do_not_fill_the_store(tmp_path):
    async def body(s):
        [store] = s.driver.replicas("retrieval")
        for _ in range(5):
            assert (await look(s, *STALE, store)).active is Active.NO
        return json.loads((await ask(s, store.address, Request("GET", "/health")))[1])["documents"]

    assert scene("virtual", tmp_path, body)[1] == 301


def test_the_answers_that_a_frozen_link_held_back_arrive_when_it_thaws(tmp_path):
    async def body(s):
        [link] = s.driver.listeners(LINK)
        await s.agent.prepare(plan(*FROZEN))
        await s.agent.inject("one")
        call = s.transport.call(link.via, Request("GET", "/health"), timeout_s=9)
        waiting = asyncio.create_task(call)
        await asyncio.sleep(1)
        before = waiting.done()
        await s.agent.heal("one")
        answer = await waiting
        await answer.close()
        return before, answer.status

    for host in ("virtual", "process"):
        assert scene(host, tmp_path / host, body)[1] == (False, 200)


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_a_dead_service_proves_nothing_and_needs_no_heal(kind, settings, tmp_path):
    async def body(s):
        wanted = plan(kind, settings)
        for victim in s.driver.replicas(wanted.service or "retrieval"):
            await s.driver.open(victim, Needs.REPLICA).kill()
        [victim] = s.driver.listeners(LINK) if wanted.link else s.driver.replicas(wanted.service)
        fault = Catalog().fault(kind)
        injection = Injection("x#1", "x", kind, settings, victim, 0, 1)
        await fault.heal(injection, s.driver.open(victim, fault.needs))
        assert not await fault.round_trip(injection, s.driver.open(victim, fault.needs))
        return (await look(s, kind, settings, victim)).active

    assert scene("virtual", tmp_path, body)[1] is Active.UNKNOWN


@pytest.mark.parametrize(("kind", "settings"), SWITCHES)
def test_a_service_that_simulates_nothing_is_refused(kind, settings, tmp_path):
    async def body(s):
        service = "gateway" if kind == METRICS[0] else "retrieval"
        wanted = FaultPlan("one", kind, 0, SECOND, service, settings=settings)
        with pytest.raises(RefusedError, match="matches nothing"):
            await s.agent.preflight(wanted)

    scene("virtual", tmp_path, body, target=target(simulates=()))


def test_what_is_simulated_says_so_and_what_works_on_any_stack_is_emulated():
    for kind, _ in ALL:
        fault = Catalog().fault(kind)
        on_link = fault.needs is Needs.LINK
        assert fault.grade is (Grade.EMULATED if on_link else Grade.SIMULATED)
        assert fault.layer == kind.partition(".")[0] and fault.held
        assert (
            fault.preflight(fault.settings, [HandleSpec("process", "s", 0, "x")] * on_link) != []
            or not on_link
        )


@pytest.mark.parametrize("delay", ["0ms", "500us"])
def test_a_delay_that_no_proxy_can_make_is_refused(delay):
    with pytest.raises(UnitError):
        parse_settings(Catalog().fault("dependency.slow").settings, {"delay": delay})
