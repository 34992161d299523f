"""What of the container kinds needs no docker: refusals, the judgement of limits, the last line."""

from __future__ import annotations

import asyncio

import faultscene
import pytest

from survive.catalog import Catalog
from survive.chaos.cgroups import Limit
from survive.chaos.containers import engine_url
from survive.chaos.handles import by_hand
from survive.contracts import Active, HandleSpec, Injection
from survive.errors import RefusedError
from survive.scenario.settings import SettingError, parse_settings

KINDS = {
    "container.cpu": {"cpus": 0.2},
    "container.memory": {"mib": 64},
    "container.network_disconnect": {},
    "container.stop": {},
}
SPEC = HandleSpec(
    "compose", "web", 0, "127.0.0.1:1", container="sv-1-web-0", engine="unix:///run/d.sock"
)


def injection(kind):
    return Injection("one#1", "one", kind, KINDS[kind], SPEC, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_container_is_refused_on_the_virtual_host(kind, tmp_path):
    async def body(scene):
        plan = faultscene.plan(kind, 1, **KINDS[kind])
        with pytest.raises(RefusedError, match="needs containers"):
            await scene.agent.preflight(plan)

    faultscene.play("virtual", tmp_path, body)


@pytest.mark.parametrize("kind", KINDS)
def test_containers_are_taken_and_said_to_have_no_virtual_twin(kind):
    fault = Catalog(None).fault(kind)
    assert fault.preflight(parse_settings(fault.settings, KINDS[kind]), [SPEC]) == [SPEC]
    assert "virtual" in fault.does_not_certify


class Seen:
    """A handle whose kernel says this."""

    spec = SPEC

    def __init__(self, limit):
        self.limit = limit

    async def cpu_seen(self):
        return self.limit

    memory_seen = cpu_seen


@pytest.mark.parametrize(
    ("limit", "before", "active"),
    [
        (Limit(None, 9), 4.0, Active.NO),  # none in force, whatever it hit before
        (Limit(0.5, 9), 4.0, Active.NO),  # a looser one than asked
        (Limit(0.2, 4), 4.0, Active.UNKNOWN),  # in force, never felt
        (Limit(0.2, 5), 4.0, Active.YES),
        (Limit(0.2, 5), None, Active.UNKNOWN),  # nothing to compare with
        (None, 4.0, Active.UNKNOWN),
    ],
)
def test_a_limit_is_active_only_once_it_held_something_back(limit, before, active):
    fault = Catalog(None).fault("container.cpu")
    seen = asyncio.run(fault.observe(injection("container.cpu"), Seen(limit), before))
    assert seen.active is active
    assert seen.value == (limit.hits if limit else None)


@pytest.mark.parametrize(
    ("used", "active"), [(63 << 20, Active.YES), (50 << 20, Active.UNKNOWN), (0, Active.UNKNOWN)]
)
def test_memory_at_its_limit_is_active_where_the_kernel_counts_no_hits(used, active):
    fault = Catalog(None).fault("container.memory")
    handle = Seen(Limit(64 << 20, 0, used))
    seen = asyncio.run(fault.observe(injection("container.memory"), handle, 0.0))
    assert seen.active is active


@pytest.mark.parametrize(
    ("kind", "wrong"), [("container.cpu", {"cpus": 0.001}), ("container.memory", {"mib": 2})]
)
def test_limits_that_docker_refuses_are_errors_of_the_file(kind, wrong):
    with pytest.raises(SettingError):
        parse_settings(Catalog(None).fault(kind).settings, wrong)


def test_the_ledger_alone_says_what_remains_to_be_done_by_hand():
    again = Injection.from_json(injection("container.cpu").to_json())
    assert by_hand(again) == "docker -H unix:///run/d.sock rm -f sv-1-web-0"


def test_only_this_hosts_daemon_will_do():
    assert engine_url({}) == "unix:///var/run/docker.sock"
    with pytest.raises(RefusedError, match="on this host only"):
        engine_url({"DOCKER_HOST": "tcp://10.0.0.1:2375"})
