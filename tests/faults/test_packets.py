"""What needs no root of packet and name faults: refusals, settings, the ledger's view, the zone."""

from __future__ import annotations

import socket
import struct

import pytest
from faultscene import play

from survive.catalog import Catalog, builtin_root, load_module
from survive.chaos.handles import by_hand, open_handle
from survive.chaos.netns import Namespace, NetnsLink
from survive.clock import LoopClock
from survive.contracts import HandleSpec, Injection, Needs
from survive.errors import RefusedError
from survive.scenario.model import FaultPlan
from survive.units import Duration, Share, UnitError

KINDS = {
    "network.drop": {},
    "network.reject": {},
    "network.loss": {"share": "10%"},
    "network.netem_latency": {"latency": "50ms"},
    "network.dns_fail": {},
}
SPEC = HandleSpec(
    "process", "leaf", 0, "10.200.0.3:9000", link="front -> leaf",
    netns="999999999:1", peer_netns="999999998:1", peers="10.200.0.2")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_virtual_host_refuses_and_says_why(kind, tmp_path):
    plan = FaultPlan(
        "one", kind, 0, 1_000_000, "inference", "load -> inference", settings=KINDS[kind]
    )

    async def body(scene):
        with pytest.raises(RefusedError, match="network namespaces of its own") as error:
            await scene.agent.preflight(plan)
        assert "isolation: netns" in error.value.hint

    play("virtual", tmp_path, body, links=frozenset({"load -> inference"}))


@pytest.mark.parametrize("kind", KINDS)
def test_each_needs_root_and_says_that_the_virtual_host_has_no_twin(kind):
    fault = Catalog().fault(kind)
    assert "CAP_NET_ADMIN" in fault.privileges and fault.grade == "real"
    assert "virtual host" in fault.does_not_certify
    with pytest.raises(RefusedError):
        fault.preflight(None, [HandleSpec("process", "leaf", 0, "127.0.0.1:9000")])


@pytest.mark.parametrize("share", [0.0, 0.049, 0.91, 1.0])
def test_a_loss_that_one_look_cannot_tell_is_refused(share):
    with pytest.raises(UnitError):
        Catalog().fault("network.loss").settings(Share(share))


@pytest.mark.parametrize("latency_us", [0, 4_000, 50_500, 301_000])
def test_a_delay_that_cannot_be_proven_is_refused(latency_us):
    with pytest.raises(UnitError):
        Catalog().fault("network.netem_latency").settings(Duration(latency_us))


def test_the_ledger_alone_is_enough_to_reach_it():
    injection = Injection("one#1", "one", "network.drop", {}, SPEC, 0, 1)
    assert Injection.from_json(injection.to_json()) == injection
    handle = open_handle(SPEC, Needs.LINK, LoopClock(0.0), None)
    assert isinstance(handle, NetnsLink)
    assert "nsenter --net=/proc/999999999/ns/net" in by_hand(injection)


def test_what_went_with_its_namespace_is_healed():
    import asyncio

    assert not Namespace(SPEC.netns).alive()
    for kind in KINDS:
        injection = Injection("one#1", "one", kind, KINDS[kind], SPEC, 0, 1)
        handle = NetnsLink(SPEC, LoopClock(0.0), None)
        asyncio.run(Catalog().fault(kind).heal(injection, handle))
        asyncio.run(handle.inside.clear("sv-one#1"))


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(p)]) + p.encode() for p in name.split("."))
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def test_the_name_server_knows_its_names_and_no_others():
    answer = load_module(builtin_root() / "targets" / "nameserver.py").answer
    names = {"a.survive.internal": socket.inet_aton("10.200.0.3")}
    found = answer(query("A.survive.internal"), names)
    assert found[:2] == b"\0\7" and found[3] & 0xF == 0 and found[6:8] == b"\0\1"
    assert found.endswith(socket.inet_aton("10.200.0.3"))
    other_type = answer(query("a.survive.internal", 28), names)
    assert other_type[3] & 0xF == 0 and other_type[6:8] == b"\0\0"
    assert answer(query("b.survive.internal"), names)[3] & 0xF == 3  # no such name
    for torn in (b"", query("a.b")[:11], found):
        assert answer(torn, names) == b""
