"""Handles on real processes: whole groups, and only the very process that was named."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from survive.chaos import processes
from survive.chaos.handles import ProcessReplica, SimulatedGpu, by_hand, open_handle, signal_group
from survive.contracts import FaultFailedError, HandleSpec, Injection, Needs
from survive.transport import Broken, CallFailedError

FAMILY = (
    "import subprocess, sys; p = subprocess.Popen(['sleep', '300']); "
    "print(p.pid, flush=True); sys.stdin.read()"
)


@pytest.fixture
def family():
    """(leader, pid of its child), in a group of their own."""
    leader = subprocess.Popen(
        [sys.executable, "-c", FAMILY],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        process_group=0,
    )
    child = int(leader.stdout.readline())
    began = processes.start_time(child)
    yield leader, child
    processes.send(child, began, signal.SIGKILL)
    leader.kill()
    leader.wait(5)
    leader.stdout.close()
    leader.stdin.close()


def replica(pid, start_time=None):
    began = processes.start_time(pid) if start_time is None else start_time
    return ProcessReplica(
        HandleSpec("process", "web", 0, "127.0.0.1:1", pid=pid, start_time=began), None, None
    )


def states(*pids):
    return [processes.state(pid, processes.start_time(pid)) for pid in pids]


def eventually(condition):
    deadline = time.monotonic() + 3
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_pause_and_resume_the_whole_group(family):
    leader, child = family
    handle = replica(leader.pid)
    asyncio.run(handle.pause())
    eventually(lambda: states(leader.pid, child) == ["T", "T"])
    assert asyncio.run(handle.os_state()) == "T" and asyncio.run(handle.exists())
    for _ in range(2):
        asyncio.run(handle.resume())
    eventually(lambda: "T" not in states(leader.pid, child))


def test_kill_ends_a_paused_group(family):
    leader, child = family
    handle = replica(leader.pid)
    asyncio.run(handle.pause())
    asyncio.run(handle.kill())
    assert leader.wait(3) == -signal.SIGKILL
    eventually(lambda: not processes.exists(child, processes.start_time(child)))
    assert not asyncio.run(handle.exists())
    asyncio.run(handle.kill())
    asyncio.run(handle.resume())


def test_a_group_whose_leader_died_is_still_its_group(family):
    leader, child = family
    handle = replica(leader.pid)
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait(3)
    asyncio.run(handle.pause())
    eventually(lambda: states(child) == ["T"])
    asyncio.run(handle.resume())
    eventually(lambda: states(child) != ["T"])
    asyncio.run(handle.kill())
    eventually(lambda: not processes.exists(child, processes.start_time(child)))


def test_a_recycled_pid_is_left_alone(family):
    leader, child = family
    stale = replica(leader.pid, processes.start_time(leader.pid) - 1)
    asyncio.run(stale.pause())
    asyncio.run(stale.kill())
    time.sleep(0.05)
    assert "T" not in states(leader.pid, child) and leader.poll() is None
    assert not asyncio.run(stale.exists())


@pytest.mark.parametrize("pid", [0, 1, -1])
def test_no_spec_ever_signals_everybody(pid):
    assert signal_group(pid, 0, signal.SIGCONT) is False


class Answers:
    """A transport with one answer."""

    def __init__(self, status=None, error=None):
        self.status, self.error, self.headers, self.seen = status, error, {}, None

    async def call(self, address, request, *, timeout_s):
        self.seen = (address, request)
        if self.error:
            raise self.error
        return self

    async def chunks(self):
        yield b"said so"

    async def close(self):
        pass


def gpu(transport):
    spec = HandleSpec("process", "inference", 1, "127.0.0.1:9", token="secret")
    return SimulatedGpu(spec, None, transport)


def test_the_gpu_is_driven_by_its_admin_route():
    wire = Answers(200)
    asyncio.run(gpu(wire).set_state(lost=True))
    address, request = wire.seen
    assert address == "127.0.0.1:9" and (request.method, request.path) == ("POST", "/admin/gpu")
    assert ("x-gpu-token", "secret") in request.headers and request.body == b'{"lost": true}'


@pytest.mark.parametrize(
    "wire", [Answers(403), Answers(500), Answers(error=CallFailedError(Broken.REFUSED))]
)
def test_an_admin_route_that_does_not_obey_is_a_failure(wire):
    with pytest.raises(FaultFailedError, match="admin route of inference-1"):
        asyncio.run(gpu(wire).set_state(lost=True))


def test_each_need_has_its_handle():
    spec = HandleSpec(
        "process", "web", 0, "127.0.0.1:1", via="127.0.0.1:2", proxy="127.0.0.1:3", proxy_name="p"
    )
    kinds = {n.name: type(open_handle(spec, n, None, None)).__name__ for n in Needs}
    assert kinds == {
        "REPLICA": "ProcessReplica",
        "STAND_IN": "StandIn",
        "GPU": "SimulatedGpu",
        "LINK": "ProxyLink",
        "TARGET": "WholeTarget",
    }


@pytest.mark.parametrize(
    ("spec", "kind", "line"),
    [
        ({"pid": 77, "start_time": 5}, "node.pause", "kill -CONT -- -77"),
        (
            {"link": "a -> b", "proxy": "127.0.0.1:8474"},
            "network.down",
            "curl -sS -X POST http://127.0.0.1:8474/reset",
        ),
        (
            {"pid": 77, "token": "t0"},
            "gpu.lost",
            "curl -sS -X POST -H 'x-gpu-token: t0' -d '{\"reset\": true}' "
            "http://127.0.0.1:1/admin/gpu",
        ),
        ({"driver": "virtual", "pid": 1}, "node.pause", ""),
    ],
)
def test_what_to_type_by_hand(spec, kind, line):
    whole = {"driver": "process", "service": "web", "replica": 0, "address": "127.0.0.1:1", **spec}
    assert by_hand(Injection("x#1", "x", kind, {}, HandleSpec(**whole), 0, 1)) == line
