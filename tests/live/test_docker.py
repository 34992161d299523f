"""Containers for real: a docker daemon, an image made from this machine, every kind on both sides.

A daemon of our own is started if none answers, and ended by its pid. What a fault did is read from
the kernel or over the wire; docker is asked only what is left of a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import docker
import dockertools
import pytest

from survive.catalog import Catalog
from survive.chaos import agent as agent_module
from survive.chaos.agent import Agent
from survive.chaos.containers import RUN, ContainerReplica, clean, left
from survive.chaos.executor import InLoopExecutor
from survive.chaos.ledger import LEDGER, Ledger
from survive.clock import LoopClock
from survive.errors import RefusedError
from survive.host.driver import DriverContext
from survive.host.sockets import SocketTransport
from survive.scenario.model import FaultPlan, Health, Link, Service, TargetSpec
from survive.transport import Request, read_all
from survive.units import SECOND

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        not dockertools.usable(), reason="no docker daemon (apt-get install docker.io; root)"
    ),
]


@pytest.fixture(scope="module", name="daemon")
def image_daemon():
    """The URL of a daemon that has the image of the reference stack."""
    with dockertools.daemon() as url:
        yield url


@pytest.fixture(autouse=True)
def on_daemon(daemon):
    """Every test has the daemon, and leaves nothing at it."""
    yield
    client = docker.APIClient(base_url=daemon, timeout=5, version="auto")
    ours = {"label": RUN}
    names = [c["Names"] for c in client.containers(all=True, filters=ours)]
    names += [n["Name"] for n in client.networks(filters=ours)]
    client.close()
    assert names == []


# ------------------------------------------------------------------------------- one scene

# Answers its name; /leaf asks the first of LEAVES.
PROGRAM = """
import http.server, os, signal, urllib.request

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["SURVIVE_REPLICA"].encode()
        if self.path == "/leaf":
            leaf = os.environ["LEAVES"].split(",")[0]
            body = urllib.request.urlopen(f"http://{leaf}/", timeout=3).read()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words): pass

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""

HELD = {
    "node.pause": {},
    "container.network_disconnect": {},
    "container.cpu": {"cpus": 0.1},
    "container.memory": {"mib": 64},
}
DOWN = {"node.down": {}, "container.stop": {}}  # healed by the supervisor's release
ONCE = {"node.kill": {}}
WORK = {"container.cpu": "burn", "container.memory": "read"}


def named(kind):
    return kind.replace(".", "-").replace("_", "-")


def stack(folder, kinds, **front):
    """One service with one replica a kind, and a front that calls the first."""
    service = {
        "image": "survive-reference",
        "command": ["python3", "-c", dockertools.WORKING + PROGRAM],
        "ports": ["127.0.0.1::8000"],
    }
    described = {
        named(kind): {**service, "environment": {"WORK": WORK.get(kind, "")}} for kind in kinds
    }
    described["front"] = {**service, **front}
    file = folder / "stack.yaml"
    file.write_text(json.dumps({"services": described}))  # JSON is YAML
    health = Health("/", 15 * SECOND)
    services = {name: Service(name, health=health, restart_after_us=300_000) for name in described}
    links = {}
    if kinds:
        first = Link("front", named(kinds[0]), "LEAVES")
        links = {first.name: first}
    return TargetSpec("stack", "compose", "front", services, links, compose=str(file))


def sabotaged(verb):
    """The real catalog, with one verb of every fault replaced by a report of success."""

    class Sabotaged(Catalog):
        def fault(self, kind):
            fault = Catalog.fault(self, kind)
            if verb:
                setattr(fault, verb, _pretend)
            return fault

    return Sabotaged(None)


async def _pretend(injection, handle):
    """Does nothing, and says nothing of it."""


class Scene:
    def __init__(self, agent, driver, transport, events, ledger):
        self.agent, self.driver, self.transport = agent, driver, transport
        self.events, self.ledger = events, ledger

    def looks(self, name, stage):
        return [
            (f["active"], f["evidence"])
            for n, f in self.events
            if n == "fault_observed" and f["fault"] == name and f["stage"] == stage
        ]

    def last(self, event, name):
        return [f for n, f in self.events if n == event and f["fault"] == name][-1]

    async def get(self, address, path="/"):
        answer = await self.transport.call(address, Request("GET", path), timeout_s=3)
        return (await read_all(answer)).decode()

    async def life(self, plan, for_s):
        await self.agent.preflight(plan)
        await self.agent.prepare(plan)
        await self.agent.inject(plan.name)
        await asyncio.sleep(for_s)
        if plan.for_us is not None:
            await self.agent.heal(plan.name)


def play(folder, spec, body, *, sabotage="", links=()):
    """Run ``body(scene)`` on a started stack; its result and what ``stop`` found unproven."""

    async def main():
        clock = LoopClock(asyncio.get_running_loop().time())
        transport = SocketTransport()
        run_id = f"docker-{os.getpid()}-{os.urandom(3).hex()}"
        ledger = Ledger.create(run_id, run_id)
        catalog = sabotaged(sabotage)
        driver = catalog.driver("compose")(
            DriverContext(
                run_id,
                1,
                spec,
                frozenset(links),
                "",
                "token",
                folder,
                clock,
                transport,
                os.environ,
                ledger.process,
                making=ledger.resource,
            )
        )
        events = []
        agent = Agent(
            run_id,
            catalog,
            ledger,
            driver,
            InLoopExecutor(catalog, driver, clock, transport),
            clock,
            lambda name, fields: events.append((name, dict(fields))),
            seed=1,
        )
        scene = Scene(agent, driver, transport, events, ledger)
        unproven = []
        try:
            await agent.start_target()
            result = await body(scene)
        finally:
            unproven = await agent.stop()
            await transport.close()
        assert await left(run_id, os.environ["DOCKER_HOST"]) == []
        return scene, result, unproven

    return asyncio.run(main())


def plan(kind, settings, *, held=True):
    for_us = 2 * SECOND if held else None
    return FaultPlan(named(kind), kind, 0, for_us, named(kind), settings=settings)


def plans(*groups):
    return [
        plan(kind, settings, held=kind not in ONCE)
        for group in groups
        for kind, settings in group.items()
    ]


async def together(scene, wanted, for_s):
    await asyncio.gather(*(scene.life(one, for_s) for one in wanted))


def test_every_kind_bites_and_is_proven_to_be_gone(tmp_path):
    wanted = plans(HELD, DOWN, ONCE)
    spec = stack(tmp_path, [one.kind for one in wanted])

    async def body(scene):
        await together(scene, wanted, 2.5)
        await asyncio.sleep(1.0)  # the killed one is restarted
        return [await scene.get(scene.driver.replicas(w.service)[0].address) for w in wanted]

    scene, answers_after, unproven = play(tmp_path, spec, body)
    assert unproven == []
    assert answers_after == [f"{one.service}-0" for one in wanted]
    for one in wanted:
        before = [active for active, _ in scene.looks(one.name, "before")]
        during = scene.looks(one.name, "during")
        # Twenty probes at once on two cores: one may be late and then knows nothing.
        assert before[-1] == "no" and "yes" not in before, (one.kind, before)
        # A limit bites when its victim next wants more; before that it is not known to.
        settled = [active for active, _ in (during[3:] if one.kind in WORK else during)]
        assert settled or one.kind in ONCE
        assert "no" not in settled, (one.kind, during)
        assert settled.count("unknown") <= 0.2 * len(settled), (one.kind, during)
        assert during[-1][0] == "yes", (one.kind, during)
        assert scene.last("fault_injected", one.name)["error"] is None
        if one.for_us is not None:
            told = scene.last("heal_proven", one.name)
            assert told["proven"] and told["by_own_heal"], (one.kind, told)


def test_an_inject_that_does_nothing_is_never_seen_active(tmp_path):
    wanted = plans(HELD, DOWN, ONCE)
    spec = stack(tmp_path, [one.kind for one in wanted])

    async def body(scene):
        await together(scene, wanted, 1.0)

    scene, _, _ = play(tmp_path, spec, body, sabotage="inject")
    for one in wanted:
        during = scene.looks(one.name, "during")
        assert during and {active for active, _ in during} == {"no"}, (one.kind, during)


def test_a_heal_that_does_nothing_is_not_proven_and_the_ladder_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(agent_module, "HEAL_CONTAINER_WITHIN_US", 2 * SECOND)  # of 10 s
    wanted = plans(HELD)
    spec = stack(tmp_path, [one.kind for one in wanted])

    async def body(scene):
        await together(scene, wanted, 1.5)

    scene, _, unproven = play(tmp_path, spec, body, sabotage="heal")
    assert sorted(entry["fault"] for entry in unproven) == sorted(one.name for one in wanted)
    for one in wanted:
        told = scene.last("heal_proven", one.name)
        assert (told["proven"], told["by_own_heal"]) == (True, False), (one.kind, told)
        assert scene.last("fault_healed", one.name)["rung"] == "disable"


def test_a_limit_that_holds_nothing_back_is_not_called_active(tmp_path):
    """Negative control: the limit is in force, by docker and kernel, and has no effect."""
    spec = stack(tmp_path, ["node.kill"])  # a service without any work
    idle = FaultPlan("idle", "container.cpu", 0, 2 * SECOND, "node-kill", settings={"cpus": 0.9})

    async def body(scene):
        await scene.life(idle, 1.2)

    scene, _, unproven = play(tmp_path, spec, body)
    assert {active for active, _ in scene.looks("idle", "during")} == {"unknown"}
    assert unproven == []


def test_a_fault_proxy_stands_between_two_containers(tmp_path):
    spec = stack(tmp_path, ["node.kill"])
    link = "front -> node-kill"
    slow = FaultPlan("slow", "network.latency", 0, SECOND, link=link, settings={"latency": "400ms"})

    async def body(scene):
        async def took():
            began = time.monotonic()
            assert await scene.get(scene.driver.entry(), "/leaf") == "node-kill-0"
            return time.monotonic() - began

        quick = await took()
        await scene.agent.prepare(slow)
        await scene.agent.inject("slow")
        slowed = await took()
        await scene.agent.heal("slow")
        return quick, slowed

    scene, (quick, slowed), unproven = play(tmp_path, spec, body, links=[link])
    assert unproven == []
    assert slowed > quick + 0.3
    [listener] = scene.driver.listeners(link)
    assert not listener.via.startswith("127."), "containers cannot reach the host's loopback"


def test_an_old_handle_never_hits_the_next_boot(tmp_path):
    spec = stack(tmp_path, ["node.kill"])

    async def body(scene):
        [old] = scene.driver.replicas("node-kill")
        handle = ContainerReplica(old, scene.agent._clock, scene.transport)
        await handle.kill()
        await handle.kill()  # gone is no error
        for _ in range(100):
            [now] = scene.driver.replicas("node-kill")
            if now.pid != old.pid and now.start_time:
                break
            await asyncio.sleep(0.05)
        for verb in (handle.kill, handle.stop, handle.pause, handle.disconnect):
            await verb()
        fresh = ContainerReplica(now, scene.agent._clock, scene.transport)
        return old, now, await fresh.exists(), await fresh.os_state(), await fresh.interfaces()

    _, (old, now, there, state, cards), _ = play(tmp_path, spec, body)
    assert old.pid != now.pid and old.container == now.container and old.address == now.address
    assert there and state != "T" and cards


def test_a_target_that_dies_at_once_says_why(tmp_path):
    spec = stack(tmp_path, [], command=["python3", "-c", "raise SystemExit('no such model')"])
    with pytest.raises(Exception, match="front-0 never became healthy: it exited") as raised:
        play(tmp_path, spec, lambda scene: None)
    assert "no such model" in str(raised.value.last_lines)


def test_an_image_that_is_not_there_is_refused_not_pulled(tmp_path):
    spec = stack(tmp_path, [], image="nobody/built-this:ever")
    with pytest.raises(RefusedError, match="survive pulls none"):
        play(tmp_path, spec, lambda scene: None)


# ------------------------------------------------------------------------------- whole runs

KILL = """
survive: 1
name: kill
target: compose
seed: 7
requests: {{search: {{get: "/v1/search?q=gpu", timeout: 2s}}}}
load: {{phases: [{{name: flat, rate: 20/s, for: 8s}}]}}
faults:
  one: {{kind: {kind}, service: inference, at: 1s, for: 6s}}
objectives: {{answers: {{metric: success, min: 50%, during: run}}}}
"""


class Run:
    """``survive run`` in a session of its own."""

    def __init__(self, folder, kind="node.pause"):
        self.folder = folder
        file = folder / "kill.survive.yaml"
        file.write_text(KILL.format(kind=kind))
        self.log = (folder / "out.txt").open("wb")
        argv = [sys.executable, "-m", "survive", "run", str(file), "--out", str(folder / "runs")]
        self.process = subprocess.Popen(
            argv, cwd=ROOT, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def until_injected(self):
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and self.process.poll() is None:
            for file in (self.folder / "runs").glob("kill/2*/events.ndjson"):
                if '"fault_injected"' in file.read_text():
                    time.sleep(0.3)
                    [ledger] = (self.folder / "state" / "survive").glob(f"*/{LEDGER}")
                    self.ledger = ledger
                    self.id = ledger.parent.name
                    return Ledger.read(ledger)
            time.sleep(0.05)
        raise AssertionError((self.folder / "out.txt").read_text()[-3000:])

    def close(self):
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(5)
        self.log.close()
        if hasattr(self, "id"):
            asyncio.run(clean(self.id, os.environ["DOCKER_HOST"]))


@pytest.fixture
def run(tmp_path):
    runs = []

    def start(kind="node.pause"):
        runs.append(Run(tmp_path, kind))
        return runs[-1]

    yield start
    for one in runs:
        one.close()


def of_run(run):
    return asyncio.run(left(run.id, os.environ["DOCKER_HOST"]))


def healed(*arguments):
    argv = [sys.executable, "-m", "survive", "heal", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_kill_9_of_survive_leaves_no_container(run):
    one = run()
    story = one.until_injected()
    assert story.resources == [("containers", os.environ["DOCKER_HOST"])]
    assert any("(paused)" in line for line in of_run(one))
    began = time.monotonic()
    os.kill(one.process.pid, signal.SIGKILL)
    while of_run(one):
        assert time.monotonic() - began < 10, of_run(one)
        time.sleep(0.1)
    assert healed("--check").returncode == 0


def test_kill_9_of_survive_and_agent_is_healed_from_the_ledger(run):
    one = run("container.network_disconnect")
    story = one.until_injected()
    agent = story.owner.agent.pid
    for pid in (agent, one.process.pid):
        os.kill(pid, signal.SIGKILL)
    one.process.wait(5)
    assert len(of_run(one)) == 6  # five containers and their network go on without us
    looked = healed("--check")
    assert looked.returncode != 0
    assert "docker -H" in looked.stdout and one.id in looked.stdout
    assert len(of_run(one)) == 6, "a check changes nothing"
    began = time.monotonic()
    mended = healed()
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert time.monotonic() - began < 12
    assert of_run(one) == []
    assert healed("--check").returncode == 0


@pytest.mark.alone
def test_container_loss_survives(tmp_path):
    file = ROOT / "scenarios" / "live" / "container-loss.survive.yaml"
    argv = [sys.executable, "-m", "survive", "run", str(file), "--out", str(tmp_path / "runs")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [document] = (tmp_path / "runs").glob("*/2*/verdict.json")
    verdict = json.loads(document.read_text())
    assert [(f["kind"], f["grade"], f["proof"]) for f in verdict["faults"]] == [
        ("node.kill", "real", "proven"),
        ("node.pause", "real", "proven"),
        ("container.network_disconnect", "real", "proven"),
    ]
