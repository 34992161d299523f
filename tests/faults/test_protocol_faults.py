"""Protocol faults bite, are proven by calls around the proxy, and go; the same on both hosts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from faultscene import play, said, spec

from survive.catalog import Catalog
from survive.contracts import Active, HandleSpec, Injection, Needs, Toxic
from survive.errors import RefusedError
from survive.scenario.model import FaultPlan, Health
from survive.scenario.settings import SettingError, parse_settings
from survive.transport import Broken, CallFailedError, Request, read_all

LINK = "load -> inference"
KINDS = [
    ("protocol.status", {"status": 429, "retry_after": "2s"}),
    ("protocol.slow_first_token", {"delay": "400ms"}),
    ("protocol.stall", {"after": 2, "lasts": "600ms"}),
    ("protocol.stall", {"after": 1}),
    ("protocol.cut", {"after": 2}),
    ("protocol.cut", {"after": 2, "clean": True}),
    ("protocol.malformed", {}),
    ("protocol.duplicate", {}),
    ("protocol.error_in_stream", {}),
    ("protocol.slow_loris", {"bytes_per_s": 200}),
    ("protocol.corrupt_json", {}),
    ("protocol.cut", {"after": 1, "first": 3}),
]
every_kind = pytest.mark.parametrize(
    ("kind", "settings"), KINDS, ids=[f"{k}-{'-'.join(map(str, s.values()))}" for k, s in KINDS]
)


def on_link(kind, settings, for_s=2.0):
    return FaultPlan("one", kind, 0, round(for_s * 1e6), link=LINK, settings=settings)


def play_on(host, folder, body, **more):
    return play(host, folder, body, links=frozenset({LINK}), target=spec(replicas=1), **more)


def life(host, folder, kind, settings, for_s=1.2, **more):
    async def body(scene):
        await scene.life(on_link(kind, settings), for_s)

    return play_on(host, folder, body, **more)


@every_kind
def test_it_bites_is_proven_and_goes(tmp_path, kind, settings):
    scene, _, left = life("virtual", tmp_path, kind, settings, 1.5)
    assert scene.looks("before") == ["no"] * 3
    assert scene.looks("during") and set(scene.looks("during")) == {"yes"}
    assert scene.looks("after")[-1] == "no"
    assert [e["rung"] for e in scene.named("fault_healed")] == ["undo"]
    assert [(e["proven"], e["by_own_heal"]) for e in scene.named("heal_proven")] == [(True, True)]
    assert left == []


def test_both_hosts_tell_the_same(tmp_path):
    """All kinds one after the other on one stack: a real start costs seconds."""

    async def body(scene):
        for number, (kind, settings) in enumerate(KINDS):
            one = on_link(kind, settings)
            one = FaultPlan(f"f{number}", kind, 0, one.for_us, link=LINK, settings=settings)
            await scene.life(one, 1.0)

    virtual = play_on("virtual", tmp_path / "virtual", body)[0]
    scene, _, left = play_on("process", tmp_path / "process", body)
    for number, (kind, settings) in enumerate(KINDS):
        name = f"f{number}"
        assert said(scene, name) == said(virtual, name)
        looks = {
            stage: [e["active"] for e in scene.named("fault_observed", fault=name, stage=stage)]
            for stage in ("before", "during", "after")
        }
        what = (kind, settings, [e["evidence"] for e in scene.named("fault_observed", fault=name)])
        assert looks["before"] == ["no"] * 3, what
        assert looks["during"] and set(looks["during"]) == {"yes"}, what
        assert looks["after"][-1] == "no", what
        assert [e["by_own_heal"] for e in scene.named("heal_proven", fault=name)] == [True], what
    assert left == []


@every_kind
def test_an_inject_that_does_nothing_is_seen_as_no(tmp_path, kind, settings):
    scene, _, _ = life("virtual", tmp_path, kind, settings, sabotage=["inject"])
    assert set(scene.looks("during")) == {"no"}


@every_kind
def test_a_heal_that_does_nothing_is_seen_as_still_active(tmp_path, kind, settings):
    scene, _, left = life("virtual", tmp_path, kind, settings, sabotage=["heal"])
    assert "yes" in scene.looks("after")
    assert [e["by_own_heal"] for e in scene.named("heal_proven")] == [False]
    assert [entry["fault"] for entry in left] == ["one"]
    assert "disable" in left[0]["why"]


@pytest.mark.parametrize(("kind", "settings"), [
    ("protocol.status", {"status": 503, "share": "20%", "control": "30%"}),
    ("protocol.cut", {"share": "50%"}),
])  # fmt: skip
def test_a_share_is_proven_too_and_counted(tmp_path, kind, settings):
    scene, _, left = life("virtual", tmp_path, kind, settings, 3.0)
    assert set(scene.looks("before")) == {"no"}
    assert set(scene.looks("during")) == {"yes"}
    told = scene.named("fault_observed", stage="during")[-1]["evidence"]
    assert "hits" in told and "controls" in told
    assert scene.looks("after")[-1] == "no"
    assert left == []


@pytest.mark.parametrize("host", ["virtual", "process"])
def test_the_first_calls_of_users_are_hit_and_looks_are_no_part_of_them(host, tmp_path):
    """Two faults on one link: nobody's looks use up what is meant for users."""
    both = {
        "one": on_link("protocol.status", {"status": 429, "first": 3}),
        "two": replace(on_link("protocol.slow_first_token", {"delay": "100ms"}), name="two"),
    }

    async def body(scene):
        for fault in both.values():
            await scene.agent.prepare(fault)
        for name in both:
            await scene.agent.inject(name)
        await asyncio.sleep(0.6)  # looks of both, and no user
        via = scene.driver.listeners(LINK)[0].via
        fault = Catalog().fault("protocol.cut")
        chat = fault._request(fault.settings())
        statuses = []
        for _ in range(6):
            answer = await scene.transport.call(via, chat, timeout_s=2)
            await read_all(answer)
            statuses.append(answer.status)
        await asyncio.sleep(0.6)
        for name in both:
            await scene.agent.heal(name)
        return statuses

    scene, statuses, left = play_on(host, tmp_path, body)
    assert statuses == [429, 429, 429, 200, 200, 200]
    assert set(scene.looks("during")) == {"yes"}
    looks = scene.named("fault_observed", fault="one", stage="during")
    assert "0 hits" in looks[0]["evidence"] and "; 3 calls will be hit" in looks[0]["evidence"]
    assert "3 hits" in looks[-1]["evidence"] and "; spent" in looks[-1]["evidence"]
    assert left == []


@every_kind
def test_a_service_that_does_not_answer_proves_nothing(tmp_path, kind, settings):
    async def body(scene):
        hit = on_link(kind, settings)
        await scene.agent.preflight(hit)
        await scene.agent.prepare(hit)
        await scene.agent.inject("one")
        scene.events.clear()
        [replica] = scene.driver.replicas("inference")
        await scene.driver.open(replica, Needs.REPLICA).pause()
        await asyncio.sleep(2.5)
        await scene.driver.open(replica, Needs.REPLICA).resume()
        await asyncio.sleep(1.2)
        await scene.agent.heal("one")

    scene, _, left = play_on("virtual", tmp_path, body)
    assert scene.looks("during").count("unknown") >= 2
    assert "no" not in scene.looks("during")
    assert left == []


@pytest.mark.parametrize("sabotage", [[], ["inject"], ["heal"]])
def test_of_a_replica_that_sleeps_the_proxy_says_whether_it_holds_the_fault(tmp_path, sabotage):
    target = spec(replicas=1)
    asleep = replace(
        target.services["inference"], env={"AWAKE": "0"}, health=Health("/live", 10_000_000)
    )
    target = replace(target, services={"inference": asleep})

    async def body(scene):
        await scene.life(on_link("protocol.cut", {"share": "50%"}), 1.5)

    links = frozenset({LINK})
    scene, _, left = play("virtual", tmp_path, body, links=links, target=target, sabotage=sabotage)
    assert scene.looks("before") == ["no"] * 3
    assert set(scene.looks("during")) == {"no" if sabotage == ["inject"] else "yes"}
    assert scene.looks("after")[-1] == "no"
    [healed] = scene.named("heal_proven")
    assert healed["by_own_heal"] is (sabotage != ["heal"])
    assert bool(left) is (sabotage == ["heal"])


def test_what_the_fault_is_not_meant_for_passes(tmp_path):
    async def body(scene):
        hit = on_link("protocol.status", {"status": 503})
        await scene.agent.prepare(hit)
        await scene.agent.inject("one")
        via = scene.driver.listeners(LINK)[0].via
        answers = [
            await scene.transport.call(via, Request(method, path), timeout_s=1)
            for method, path in (("GET", "/health"), ("POST", "/v1/chat/completions?x=1"))
        ]
        for answer in answers:
            await read_all(answer)
        return [answer.status for answer in answers]

    assert play_on("virtual", tmp_path, body)[1] == [200, 503]


def test_heal_from_the_ledger_alone_and_of_what_never_was(tmp_path):
    async def body(scene):
        fault = Catalog().fault("protocol.cut")
        spec = scene.driver.listeners(LINK)[0]
        handle = scene.driver.open(spec, Needs.LINK)
        injection = Injection("one#1", "one", fault.kind, {"after": 1}, spec, 0, 1)
        await fault.heal(injection, handle)
        await fault.inject(injection, handle)
        assert (await fault.observe(injection, handle, None)).active is Active.YES
        again = Injection.from_json(injection.to_json())
        await fault.heal(again, handle)
        await fault.heal(again, handle)
        return (await fault.observe(again, handle, None)).active, await fault.round_trip(
            again, handle
        )

    assert play_on("virtual", tmp_path, body)[1] == (Active.NO, True)


DRAWS = 80


def test_the_same_requests_are_hit_on_both_hosts(tmp_path):
    """The seed, the fault and the number of the request decide; not the host, not the socket."""

    async def body(scene):
        spec = scene.driver.listeners(LINK)[0]
        link = scene.driver.open(spec, Needs.LINK)
        attributes = {"status": 503, "control_ppm": 250_000, "path": "/no"}
        await link.add(Toxic("sv-one#1", "http_status", toxicity=0.4, attributes=attributes))
        got = []
        for _ in range(DRAWS):
            answer = await scene.transport.call(spec.via, Request("POST", "/no"), timeout_s=2)
            await read_all(answer)
            got.append(answer.status == 503)
        return got, dict(await link.counts("sv-one#1"))

    virtual, real = (play_on(host, tmp_path / host, body)[1] for host in ("virtual", "process"))
    assert virtual == real
    assert virtual[1]["hits"] == sum(virtual[0]) and 15 <= sum(virtual[0]) <= 50
    assert 8 <= virtual[1]["controls"] <= 35


def test_a_cut_stream_is_seen_as_broken_and_the_app_hears_of_it(tmp_path):
    async def body(scene):
        spec = scene.driver.listeners(LINK)[0]
        link = scene.driver.open(spec, Needs.LINK)
        await link.add(Toxic("sv-one#1", "sse_cut", attributes={"after": 1}))
        fault = Catalog().fault("protocol.cut")
        wanted = fault._request(fault.settings(after=9))
        answer = await scene.transport.call(spec.via, wanted, timeout_s=2)
        try:
            await read_all(answer)
        except CallFailedError as error:
            return error.how
        return None

    assert play_on("virtual", tmp_path, body)[1] is Broken.CLOSED


@pytest.mark.parametrize(("kind", "settings"), [
    ("protocol.status", {"status": 200}),
    ("protocol.status", {"status": 503, "share": "5%"}),
    ("protocol.status", {"status": 503, "retry_after": "500ms"}),
    ("protocol.status", {"status": 503, "call": "/v1/chat"}),
    ("protocol.cut", {"share": "20%"}),
    ("protocol.cut", {"share": "80%", "control": "30%"}),
    ("protocol.cut", {"after": 21}),
    ("protocol.stall", {"lasts": "50ms"}),
    ("protocol.slow_first_token", {"delay": "20ms"}),
    ("protocol.slow_loris", {"bytes_per_s": 5000}),
    ("protocol.cut", {"first": -1}),
    ("protocol.cut", {"first": 1_000_001}),
])  # fmt: skip
def test_what_could_not_be_proven_is_refused(kind, settings):
    with pytest.raises(SettingError):
        parse_settings(Catalog().fault(kind).settings, settings)


def test_all_listeners_are_hit_and_the_classes_say_what_they_show():
    victims = [HandleSpec("process", "s", n, "127.0.0.1:9") for n in range(3)]
    for kind in {kind for kind, _ in KINDS}:
        fault = Catalog().fault(kind)
        assert fault.preflight(None, victims) == victims and fault.preflight(None, []) == []
        with pytest.raises(RefusedError, match="own fault proxy"):
            fault.preflight(None, [replace(victims[0], lent=True)])
        assert fault.held and fault.certifies and "TLS" in fault.does_not_certify
