"""TLS links and certificates that expire, on both hosts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import faultscene
import pytest

from survive.catalog import Catalog
from survive.contracts import Injection, Needs
from survive.scenario.model import FaultPlan, Health, Link, Service, TargetSpec
from survive.transport import Broken, CallFailedError, Request, read_all
from survive.units import SECOND

LINK = "gateway -> retrieval"
KIND = "dependency.expired_certificate"


def stack(*weaknesses: str) -> TargetSpec:
    """A gateway over two stores that speak TLS."""
    gateway = Service("gateway", app="gateway.py:make_app", health=Health("/metrics", 10 * SECOND))
    retrieval = Service(
        "retrieval",
        app="retrieval.py:make_app",
        replicas=2,
        simulates=("store",),
        health=Health("/health", 10 * SECOND),
        restart_after_us=300_000,
    )
    return TargetSpec(
        "stack",
        "process",
        "gateway",
        {"gateway": gateway, "retrieval": retrieval},
        {LINK: Link("gateway", "retrieval", "RETRIEVAL", tls=True)},
        folder=faultscene.ROOT / "targets" / "reference",
        weaknesses=weaknesses,
    )


def expired(count: int = 1) -> FaultPlan:
    return FaultPlan("one", KIND, 0, 2 * SECOND, "retrieval", count=count)


async def searched(scene) -> int | Broken:
    """A search at the gateway: its status."""
    try:
        answer = await scene.transport.call(
            scene.driver.entry(), Request("GET", "/v1/search?q=gpu"), timeout_s=2
        )
        await read_all(answer)
    except CallFailedError as error:
        return error.how
    return answer.status


@pytest.mark.parametrize("host", ["virtual", "process"])
def test_a_stack_over_tls_outlives_an_expired_certificate_and_stays_encrypted(host, tmp_path):
    async def body(scene):
        await asyncio.sleep(0.6)
        [one, two] = scene.driver.replicas("retrieval")
        with pytest.raises(CallFailedError) as plain:
            await scene.transport.call(one.address, Request("GET", "/health"), timeout_s=1)
        assert plain.value.how in {Broken.CLOSED, Broken.RESET}
        assert [await searched(scene) for _ in range(4)] == [200] * 4
        await scene.agent.preflight(expired())
        await scene.agent.prepare(expired())
        await scene.agent.inject("one")
        await asyncio.sleep(0.8)  # at most two failed calls or checks until it is ejected
        under = [await searched(scene) for _ in range(8)]
        await scene.agent.heal("one")
        listeners = scene.driver.listeners(LINK)
        handles = [scene.driver.open(spec, Needs.LINK) for spec in listeners]
        return under, [await handle.seen() for handle in handles], two

    scene, (under, seen, _), left = faultscene.play(
        host, tmp_path, body, target=stack(), links=frozenset({LINK})
    )
    assert under == [200] * 8
    assert all(one["plain"] == 0 and one["tls"] > 0 for one in seen), seen
    assert "yes" in scene.looks("during") and "no" not in scene.looks("during")
    assert scene.named("heal_proven")
    assert not left


@pytest.mark.parametrize("host", ["virtual", "process"])
def test_plaintext_link_shows_nothing_in_calm_and_plain_text_once_certificates_expire(
    host, tmp_path
):
    async def body(scene):
        await asyncio.sleep(0.6)
        handles = [scene.driver.open(spec, Needs.LINK) for spec in scene.driver.listeners(LINK)]
        assert await searched(scene) == 200
        calm = [await handle.seen() for handle in handles]
        await scene.agent.preflight(expired(2))
        await scene.agent.prepare(expired(2))
        await scene.agent.inject("one")
        await asyncio.sleep(1)
        under = [await searched(scene) for _ in range(4)]
        seen = [await handle.seen() for handle in handles]
        await scene.agent.heal("one")
        return calm, under, seen

    _, (calm, under, seen), left = faultscene.play(
        host, tmp_path, body, target=stack("plaintext_link"), links=frozenset({LINK})
    )
    assert all(one["plain"] == 0 and one["tls"] > 0 for one in calm), calm
    assert under == [200] * 4
    assert all(one["plain"] > 0 for one in seen), seen
    assert not left


@pytest.mark.parametrize("host", ["virtual", "process"])
def test_latency_on_a_tls_link_is_proven_by_verified_calls(host, tmp_path):
    plan = FaultPlan("one", "network.latency", 0, SECOND, link=LINK, settings={"latency": "200ms"})

    async def body(scene):
        await scene.life(plan, for_s=1.2)

    scene, _, left = faultscene.play(host, tmp_path, body, target=stack(), links=frozenset({LINK}))
    assert "yes" in scene.looks("during")
    assert scene.named("heal_proven")
    assert not left


@pytest.mark.parametrize("host", ["virtual", "process"])
@pytest.mark.parametrize("verb", ["inject", "heal"])
def test_a_verb_that_does_nothing_is_found_out(host, verb, tmp_path):
    async def body(scene):
        await scene.life(expired(), for_s=0.6)

    scene, _, left = faultscene.play(host, tmp_path, body, target=stack(), sabotage=[verb])
    if verb == "inject":
        assert "yes" not in scene.looks("during")
    else:
        assert left


def test_a_service_without_tls_has_no_certificate_to_expire(tmp_path):
    from survive.errors import RefusedError

    plain = replace(stack(), links={LINK: Link("gateway", "retrieval", "RETRIEVAL")})

    async def body(scene):
        with pytest.raises(RefusedError):
            await scene.agent.preflight(expired())

    faultscene.play("virtual", tmp_path, body, target=plain)


# ------------------------------------------------------------------- bytes that nobody reads

ON_BYTES = {
    "network.latency": {"latency": "120ms"},
    "network.down": {},
    "network.bandwidth": {"kb_per_s": 20},
    "network.timeout": {},
    "network.reset_peer": {},
    "network.slicer": {"average_bytes": 100, "delay": "10ms"},
    "network.limit_data": {"bytes": 900},
    "network.flapping": {"every": "400ms", "down": "200ms"},
    "network.partition": {},
    "dependency.slow": {"delay": "120ms"},
    "dependency.frozen": {},
}


async def told(scene, kind, settings, spec) -> list[str]:
    """What looks say before a fault of this kind is on a listener, twice while it is, and after."""
    fault = Catalog().fault(kind)
    hold = Injection(f"{kind}#1", kind, kind, settings, spec, 0, 2 * SECOND)
    handle = scene.driver.open(spec, fault.needs)

    async def look() -> str:
        return str((await fault.observe(hold, handle, None)).active)

    looks = [await look()]
    await fault.inject(hold, handle)
    looks += [await look(), await look()]
    await fault.heal(hold, handle)
    return [*looks, await look(), str(await fault.round_trip(hold, handle))]


@pytest.mark.parametrize("host", ["virtual", "process"])
def test_whatever_acts_on_bytes_is_proven_on_a_tls_link(host, tmp_path):
    """All but network.slow_close, which `validate` refuses there."""

    async def body(scene):
        listeners = scene.driver.listeners(LINK)

        async def some(spec, kinds):
            return {kind: await told(scene, kind, ON_BYTES[kind], spec) for kind in kinds}

        parts = [some(spec, list(ON_BYTES)[n::2]) for n, spec in enumerate(listeners)]
        one, two = await asyncio.gather(*parts)
        return one | two

    _, seen, _ = faultscene.play(host, tmp_path, body, target=stack(), links=frozenset({LINK}))
    assert seen == {kind: ["no", "yes", "yes", "no", "True"] for kind in ON_BYTES}
