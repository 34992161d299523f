"""A tiny target of real processes, a fake one in memory, and what tests of the agent share."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from survive.catalog import Catalog
from survive.chaos import processes
from survive.chaos.remote import AgentConfig, agent_environment
from survive.contracts import Active, FaultFailedError, Grade, HandleSpec, Needs, Observation
from survive.scenario.model import FaultPlan, Health, Service, TargetSpec

SECOND = 1_000_000

# A program of nobody's: answers GET anything with 200, and forks a child that would outlive it.
SERVER = """
import http.server, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args):
        pass
child = subprocess.Popen(["sleep", "300"])
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def tiny_target(folder: Path, name: str, replicas: int = 1, restart_us: int = 100_000):
    """A target of one service ``web`` that is a program of its own."""
    script = folder / "server.py"
    script.write_text(SERVER, encoding="utf-8")
    service = Service(
        "web",
        run=(sys.executable, "-I", "-S", str(script), "{port}"),
        replicas=replicas,
        health=Health("/health", 8 * SECOND),
        restart_after_us=restart_us,
    )
    return TargetSpec(name, "process", "web", {"web": service}, {}, folder=folder)


def config(folder: Path, spec: TargetSpec, run_id: str, links: frozenset[str] = frozenset()):
    """What the agent of a real run is told."""
    (folder / "scratch").mkdir(exist_ok=True)
    return AgentConfig(run_id, 1, spec, links, "", "", folder / "scratch", None, 0.0)


def held(kind: str, name: str = "one", **more) -> FaultPlan:
    """A fault that is on for 2 s."""
    at_us = more.pop("at_us", 0)
    return FaultPlan(name, kind, at_us, 2 * SECOND, **{"service": "web", **more})


def one_shot(kind: str, name: str = "one", **more) -> FaultPlan:
    """A fault without an end."""
    return FaultPlan(name, kind, 0, None, **{"service": "web", **more})


async def until(condition, within_s: float = 5.0) -> None:
    """Wait for something real to become true."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.01)


class Events:
    """What the agent emitted."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict]] = []

    def emit(self, name, fields) -> None:
        self.all.append((name, dict(fields)))

    def on_event(self, name, fields, t_us) -> None:
        self.all.append((name, {**fields, "t_us": t_us}))

    def named(self, name, **match) -> list[dict]:
        return [f for n, f in self.all if n == name and match.items() <= f.items()]

    def looks(self, stage) -> list[str]:
        return [f["active"] for f in self.named("fault_observed", stage=stage)]


# ----------------------------------------------------------------------------- in memory


@dataclass
class World:
    """The truth about a fake target, for tests only; faults see it by their handle."""

    hurt: set[int] = field(default_factory=set)
    held: set[int] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    pids: dict[int, int] = field(default_factory=lambda: {0: 100, 1: 101, 2: 102})


class FakeHandle:
    def __init__(self, world: World, spec: HandleSpec) -> None:
        self.world, self.spec = world, spec

    async def exists(self) -> bool:
        return True

    async def restore(self, injection_id: str) -> None:
        await self.resume()

    async def resume(self) -> None:
        self.world.log.append("resume")
        self.world.hurt.discard(self.spec.replica)

    async def kill(self) -> None:
        self.world.log.append("kill")
        self.world.hurt.discard(self.spec.replica)


class FakeDriver:
    """A driver of three replicas that are nothing but a set."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def start(self) -> None:
        self.world.log.append("start")

    async def stop(self) -> None:
        self.world.log.append("stop")

    def entry(self) -> str:
        return "127.0.0.1:1"

    def replicas(self, service: str) -> list[HandleSpec]:
        if service != "web":
            return []
        return [
            HandleSpec("virtual", "web", n, f"web:{n}", pid=pid)
            for n, pid in self.world.pids.items()
        ]

    def listeners(self, link: str) -> list[HandleSpec]:
        return []

    def open(self, spec: HandleSpec, needs: Needs) -> FakeHandle:
        return FakeHandle(self.world, spec)

    def hold(self, spec: HandleSpec) -> None:
        self.world.log.append(f"hold {spec.replica}")
        self.world.held.add(spec.replica)

    def release(self, spec: HandleSpec) -> None:
        self.world.log.append(f"release {spec.replica}")
        self.world.held.discard(spec.replica)

    def cpu_s(self) -> float:
        return 1.5


@dataclass(frozen=True)
class NoSettings:
    pass


class FakeFault:
    """Hurts a replica of the fake world. Tests replace single verbs."""

    kind, held, grade, layer = "fake.hurt", True, Grade.SIMULATED, "fake"
    needs, privileges, keeps_down = Needs.REPLICA, "", False
    certifies = does_not_certify = ""
    settings = NoSettings

    def preflight(self, settings, victims):
        return list(victims)

    async def inject(self, injection, handle):
        handle.world.log.append(f"inject {injection.id}")
        handle.world.hurt.add(handle.spec.replica)

    async def observe(self, injection, handle, before):
        on = handle.spec.replica in handle.world.hurt
        return Observation(Active.YES if on else Active.NO, "seen", 3.0)

    async def heal(self, injection, handle):
        handle.world.log.append(f"heal {injection.id}")
        handle.world.hurt.discard(handle.spec.replica)

    async def round_trip(self, injection, handle):
        return True


class FakeCatalog(Catalog):
    """Knows one fault, whatever it is asked for."""

    def __new__(cls, fault):
        made = object.__new__(cls)
        object.__setattr__(made, "_fault", fault)
        return made

    def __init__(self, fault) -> None:
        pass

    def fault(self, kind):
        return object.__getattribute__(self, "_fault")


async def never() -> None:
    await asyncio.Event().wait()


def failing(text: str):
    async def verb(*args):
        raise FaultFailedError(text)

    return verb


# ----------------------------------------------------------------------------- parents that die

PARENT = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import chaostools
from survive.chaos.remote import RemoteAgent

async def main(folder, run_id, kind):
    folder = Path(folder)
    spec = chaostools.tiny_target(folder, "tiny-" + run_id)
    events = chaostools.Events()
    link = "load -> web" if kind.startswith("network") else ""
    links = frozenset([link] if link else [])
    agent = await RemoteAgent.start(chaostools.config(folder, spec, run_id, links),
                                    on_event=events.on_event)
    await agent.start_target()
    settings = {{"latency": "200ms"}} if kind == "network.latency" else {{}}
    fault = chaostools.held(kind, link=link, service="" if link else "web", settings=settings)
    await agent.preflight(fault)
    await agent.prepare(fault)
    await agent.inject(fault.name)
    print(json.dumps({{"agent": agent._process.pid}}), flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


class Parent:
    """A process that started a run, has one fault on, and waits to be killed."""

    def __init__(self, folder: Path, run_id: str, kind: str) -> None:
        self.run_id = run_id
        code = PARENT.format(tests=str(Path(__file__).parent))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), run_id, kind],
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**agent_environment(), "RUNNER_TRACKING_ID": "github_x"},
        )
        line = self.process.stdout.readline()
        assert line, "the parent ended before its fault was on"
        self.agent = json.loads(line)["agent"]
        self.agent_start = processes.start_time(self.agent)

    def left(self) -> list[tuple[int, int]]:
        """What bears the run's mark, and the agent."""
        agent = [(self.agent, self.agent_start)] if self.agent_alive() else []
        return agent + processes.marked(self.run_id)

    def agent_alive(self) -> bool:
        return processes.exists(self.agent, self.agent_start)

    def close(self) -> None:
        for pid, began in self.left():
            processes.send(pid, began, signal.SIGKILL)
        self.process.kill()
        self.process.wait(5)
        self.process.stdout.close()


def paused(run_id: str) -> list[int]:
    """Stopped processes of a run."""
    return [pid for pid, began in processes.marked(run_id) if processes.state(pid, began) == "T"]


def soon(holds: Callable[[], object], within_s: float = 1.0) -> bool:
    """It holds now or within a moment: a signal is sent at once, yet acted on at the next turn."""
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(holds())


def new_run_id() -> str:
    return f"test-{os.getpid()}-{os.urandom(4).hex()}"
