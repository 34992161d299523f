"""Real namespaces, real packets: each fault bites and heals there, and nothing is left anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from survive.catalog import Catalog
from survive.chaos import netns, processes
from survive.chaos.netns import Namespace
from survive.contracts import Active, FaultFailedError, Injection
from survive.errors import RefusedError
from survive.scenario.model import FaultPlan, Health, Link, Service, TargetSpec
from survive.transport import CallFailedError, Request, read_all

ROOT = Path(__file__).resolve().parents[2]
SECOND = 1_000_000


def missing() -> str:
    """What this host lacks; "" if it can."""
    if os.geteuid() != 0:
        return "not root"
    tools = ("ip", "tc", "iptables", "unshare", "nsenter", "setpriv")
    absent = [name for name in tools if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} (apt-get install iptables iproute2)"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else "may not make namespaces"


pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


def scene_tools():
    """tests/faults/faultscene.py, which is no package's."""
    spec = importlib.util.spec_from_file_location(
        "netns_faultscene", ROOT / "tests" / "faults" / "faultscene.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCENE = scene_tools()

APP = """
from survive.transport import Request, read_all

def make_app(context):
    async def app(scope, receive, send):
        status, body = 200, b"ok"
        if scope["path"] == "/leaf":
            try:
                leaf = context.env["LEAVES"].split(",")[0]
                body = await read_all(await context.call(leaf, Request("GET", "/"), timeout_s=0.8))
            except Exception as error:
                status, body = 502, repr(error).encode()
        if scope["path"] == "/leaves":
            body = context.env["LEAVES"].encode()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})
    return app
"""

LINKS = frozenset({"front -> leaf", "load -> front"})


def target(folder: Path) -> TargetSpec:
    (folder / "tiny.py").write_text(APP, encoding="utf-8")
    health = Health("/health", 8 * SECOND)
    app = "tiny.py:make_app"
    services = {
        "front": Service("front", app=app, health=health),
        "leaf": Service("leaf", app=app, health=health, replicas=2, restart_after_us=200_000),
    }
    links = {"front -> leaf": Link("front", "leaf", "LEAVES")}
    return TargetSpec("iso", "process", "front", services, links, folder=folder, isolation="netns")


def play(folder, body, **more):
    async def watched(scene):
        result = await body(scene)
        assert written_on_the_host() == []
        return result

    return SCENE.play("process", folder, watched, target=target(folder), links=LINKS, **more)


def written_on_the_host() -> list[str]:
    """Rules and named namespaces of ours on the host. (Others, as docker, change their own.)"""
    looks = (["iptables-save"], ["ip", "netns", "list"])
    told = [subprocess.run(argv, capture_output=True, text=True, check=False) for argv in looks]
    assert all(look.returncode == 0 for look in told)
    lines = [line for look in told for line in look.stdout.splitlines()]
    return [line for line in lines if "sv-" in line or "10.2" in line]


def on_link(kind: str, link: str = "front -> leaf", **settings) -> FaultPlan:
    return FaultPlan("one", kind, 0, 3 * SECOND, link=link, settings=settings)


def on_front(kind: str, **settings) -> FaultPlan:
    return FaultPlan("one", kind, 0, 3 * SECOND, "front", settings=settings)


async def ask(scene, address: str, path: str, timeout_s: float = 1.5) -> tuple[int, bytes]:
    answer = await scene.transport.call(address, Request("GET", path), timeout_s=timeout_s)
    return answer.status, await read_all(answer)


PLANS = [
    on_link("network.drop"),
    on_link("network.drop", "load -> front"),
    on_link("network.reject"),
    on_link("network.loss", share="10%"),
    on_front("network.dns_fail"),
]


def test_each_fault_bites_is_proven_and_is_gone(tmp_path):
    async def body(scene):
        for plan in PLANS:
            scene.events.clear()
            await scene.life(plan, 0.9)
            what = f"{plan.kind} {dict(plan.settings)} {plan.link}: {scene.events}"
            assert [f["error"] for f in scene.named("fault_injected")].count(None) >= 1, what
            assert set(scene.looks("before")) == {"no"}, what
            assert set(scene.looks("during")) == {"yes"}, what
            heals = scene.named("heal_proven")
            assert heals and all(h["proven"] and h["by_own_heal"] for h in heals), what
            for spec in [*scene.driver.listeners("front -> leaf"), *scene.driver.replicas("front")]:
                assert "sv-" not in await Namespace(spec.netns).run(["iptables", "-S"]), what

    assert play(tmp_path, body)[2] == []


def test_a_fault_is_where_it_should_be_and_nowhere_else(tmp_path):
    async def body(scene):
        entry = scene.driver.entry()
        leaf = scene.driver.replicas("leaf")[0].address
        assert await ask(scene, entry, "/leaf") == (200, b"ok")
        names = (await ask(scene, entry, "/leaves"))[1].decode().split(",")
        assert [name.partition(".")[0] for name in names] == ["leaf-0", "leaf-1"]
        plan = on_link("network.drop")
        await scene.agent.prepare(plan)
        await scene.agent.inject("one")
        rules = await Namespace(scene.driver.listeners(plan.link)[0].netns).run(["iptables", "-S"])
        assert '--comment "sv-one#1"' in rules or "--comment sv-one#1" in rules
        assert (await ask(scene, entry, "/leaf"))[0] == 502  # the caller is cut off
        assert (await ask(scene, entry, "/health"))[0] == 200  # itself it is well
        assert (await ask(scene, leaf, "/health"))[0] == 200  # others reach the callee
        assert written_on_the_host() == []
        await scene.agent.heal("one")
        assert await ask(scene, entry, "/leaf") == (200, b"ok")

    play(tmp_path, body)


def test_a_replica_that_was_killed_comes_back_where_it_was(tmp_path):
    async def body(scene):
        old = scene.driver.replicas("leaf")[0]
        os.kill(old.pid, signal.SIGKILL)
        for _ in range(100):
            await asyncio.sleep(0.05)
            now = scene.driver.replicas("leaf")[0]
            with contextlib.suppress(CallFailedError):
                if now.pid != old.pid and (await ask(scene, now.address, "/health"))[0] == 200:
                    break
        else:
            raise AssertionError("it never came back")
        assert replace(now, pid=old.pid, start_time=old.start_time) == old
        assert (await ask(scene, scene.driver.entry(), "/leaf"))[0] == 200

    play(tmp_path, body)


def test_names_fail_for_new_connections_of_the_replica_that_was_hit(tmp_path):
    async def body(scene):
        entry = scene.driver.entry()
        plan = on_front("network.dns_fail")
        await scene.agent.prepare(plan)
        await scene.agent.inject("one")
        status, said = await ask(scene, entry, "/leaf")
        assert status == 502 and b"timeout" in said.lower(), said  # the resolver waits 5 s
        await scene.agent.heal("one")
        for _ in range(8):  # one query was lost; the resolver asks again in its own time
            status, said = await ask(scene, entry, "/leaf")
            if status == 200:
                return
        raise AssertionError(said)

    play(tmp_path, body)


def named(**plans: FaultPlan) -> list[FaultPlan]:
    """Faults that are on side by side."""
    return [replace(plan, name=name) for name, plan in plans.items()]


def test_an_inject_that_does_nothing_is_seen_to_do_nothing(tmp_path):
    plans = named(
        drop=on_link("network.drop"),
        reject=on_link("network.reject"),
        loss=on_link("network.loss", share="10%"),
        dns=on_front("network.dns_fail"),
    )

    async def body(scene):
        await asyncio.gather(*(scene.life(plan, 1.0) for plan in plans))
        for plan in plans:
            seen = scene.named("fault_observed", stage="during", fault=plan.name)
            assert {look["active"] for look in seen} == {"no"}, plan.kind

    play(tmp_path, body, sabotage=["inject"])


def test_a_heal_that_does_nothing_is_not_believed_and_the_ladder_ends_it(tmp_path):
    plans = named(
        reject=on_link("network.reject"),
        loss=on_link("network.loss", "load -> front", share="30%"),
        dns=on_front("network.dns_fail"),
    )

    async def body(scene):
        await asyncio.gather(*(scene.life(plan, 0.3) for plan in plans))
        for plan in plans:
            looks = scene.named("fault_observed", stage="after", fault=plan.name)
            assert "yes" in {look["active"] for look in looks}, plan.kind
            heals = scene.named("heal_proven", fault=plan.name)
            assert all(heal["proven"] and not heal["by_own_heal"] for heal in heals), plan.kind
            rungs = scene.named("fault_healed", fault=plan.name)
            assert "disable" in {rung["rung"] for rung in rungs}

    left = play(tmp_path, body, sabotage=["heal"])[2]
    assert {entry["fault"] for entry in left} == {"reject", "loss", "dns"}


def test_a_callee_that_hangs_proves_no_lost_packet(tmp_path):
    async def body(scene):
        spec = scene.driver.listeners("front -> leaf")[0]
        handle = scene.driver.open(spec, Catalog().fault("network.drop").needs)
        for kind in ("network.drop", "network.reject"):
            fault = Catalog().fault(kind)
            injection = Injection("x#1", "x", kind, {}, spec, 0, SECOND)
            pid = scene.driver.replicas("leaf")[0].pid
            os.kill(pid, signal.SIGSTOP)
            try:
                assert (await fault.observe(injection, handle, None)).active is Active.UNKNOWN
                assert not await fault.round_trip(injection, handle)
            finally:
                os.kill(pid, signal.SIGCONT)
        loss = Catalog().fault("network.loss")
        injection = Injection("x#1", "x", loss.kind, {"share": "30%"}, spec, 0, SECOND)
        await loss.inject(
            Injection("x#1", "x", loss.kind, {"share": "5%"}, spec, 0, SECOND), handle
        )
        assert (await loss.observe(injection, handle, None)).active is not Active.YES

    play(tmp_path, body)


def test_the_last_rung_ends_all_that_is_inside_and_no_more(tmp_path):
    async def body(scene):
        first, second = scene.driver.listeners("front -> leaf")
        fault = Catalog().fault("network.drop")
        handle = scene.driver.open(first, fault.needs)
        injection = Injection("x#1", "x", fault.kind, {}, first, 0, SECOND)
        await fault.inject(injection, handle)
        handle.inside.end()
        for _ in range(100):
            if not handle.inside.alive():
                break
            await asyncio.sleep(0.01)
        assert not handle.inside.alive()
        await fault.heal(injection, handle)  # gone is healed
        with pytest.raises(FaultFailedError):
            await fault.inject(injection, handle)
        assert (await ask(scene, second.address, "/health"))[0] == 200
        assert (await ask(scene, scene.driver.entry(), "/health"))[0] == 200

    play(tmp_path, body)


def test_faults_of_a_proxy_are_refused_in_a_namespace(tmp_path):
    async def body(scene):
        with pytest.raises(RefusedError, match="needs a fault proxy"):
            await scene.agent.preflight(on_link("network.down"))

    play(tmp_path, body)


def test_netem_bites_where_the_kernel_has_it_and_is_refused_where_not(tmp_path):
    tried = subprocess.run(
        ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"],
        capture_output=True,
        check=False,
    )
    plan = on_link("network.netem_latency", latency="60ms")

    async def body(scene):
        if tried.returncode:
            with pytest.raises(RefusedError, match="sch_netem"):
                await scene.agent.preflight(plan)
            return
        await scene.life(plan, 1.0)
        assert set(scene.looks("before")) == {"no"}
        assert set(scene.looks("during")) == {"yes"}
        assert all(h["by_own_heal"] for h in scene.named("heal_proven"))

    play(tmp_path, body)


def test_the_hosts_own_namespace_is_never_written():
    here = Namespace(f"{os.getpid()}:{processes.start_time(os.getpid())}")
    with pytest.raises(FaultFailedError, match="host's own"):
        asyncio.run(here.put("sv-x#1", ["INPUT -s 10.249.255.1 -j DROP"]))
    with pytest.raises(FaultFailedError):
        asyncio.run(Namespace("").put("sv-x#1", ["INPUT -s 10.249.255.1 -j DROP"]))


# ------------------------------------------------------------------------- whole runs

SCENARIO = """
survive: 1
name: cut
target: isolated
seed: 7
requests: {search: {get: "/v1/search?q=gpu", timeout: 2s}}
load: {phases: [{name: flat, rate: 20/s, for: 8s}]}
faults: {one: {kind: network.drop, link: gateway -> retrieval, at: 1s, for: 5s}}
objectives: {answers: {metric: success, min: 50%, during: run}}
"""


def survive(*arguments: str, within_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "survive", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=within_s, check=False)  # fmt: skip


@pytest.mark.alone
def test_the_scenario_survives_real_loss(tmp_path):
    file = "scenarios/live/packet-loss.survive.yaml"
    refused = survive("run", file, "--out", str(tmp_path))
    assert refused.returncode == 6 and "--allow-privileged" in refused.stderr
    done = survive("run", file, "--out", str(tmp_path), "--allow-privileged")
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads(next(tmp_path.glob("*/2*/verdict.json")).read_text())
    assert [(f["proof"], f["grade"]) for f in verdict["faults"]] == [("proven", "real")] * 2
    assert survive("heal", "--check").returncode == 0


class Cut:
    """A run with a fault on, in a session of its own."""

    def __init__(self, folder: Path) -> None:
        file = folder / "cut.survive.yaml"
        file.write_text(SCENARIO, encoding="utf-8")
        self.out = folder / "runs"
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "survive", "run", str(file), "--out", str(self.out),
             "--allow-privileged"],
            cwd=ROOT, stdout=self.log, stderr=self.log, start_new_session=True)  # fmt: skip
        deadline = time.monotonic() + 30
        while not self.injected():
            assert self.process.poll() is None and time.monotonic() < deadline, self.told(folder)
            time.sleep(0.02)
        manifest = next(self.out.glob("cut/*/manifest.json"))
        self.run_id = json.loads(manifest.read_text())["run"]
        assert netns.link_exists(self.run_id)
        assert len(self.left()) >= 12  # a holder for each of six namespaces, and what is in them

    def injected(self) -> bool:
        logs = list(self.out.glob("cut/*/events.ndjson"))
        return bool(logs) and '"fault_injected"' in logs[0].read_text()

    @staticmethod
    def told(folder: Path) -> str:
        return (folder / "log").read_text(errors="replace")[-2000:]

    def left(self) -> list[tuple[int, int]]:
        return processes.marked(self.run_id)

    def gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.left() and not netns.link_exists(self.run_id):
                return True
            time.sleep(0.02)
        return False

    def close(self) -> None:
        for pid, began in self.left():
            processes.send(pid, began, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(5)
        self.log.close()


@pytest.fixture
def cut(tmp_path):
    started = Cut(tmp_path)
    yield started
    started.close()


def test_kill_9_of_survive_leaves_nothing(cut):
    cut.process.kill()
    assert cut.gone_within(2.0), cut.left()
    assert survive("heal", "--check").returncode == 0


def test_kill_9_of_everything_at_once_leaves_nothing_after_heal(cut):
    """Agent first, so that nobody of the run can clean up."""
    children = Path(f"/proc/{cut.process.pid}/task/{cut.process.pid}/children").read_text().split()
    agents = [p for p in children if b"agent_process" in Path(f"/proc/{p}/cmdline").read_bytes()]
    assert len(agents) == 1
    cut.process.send_signal(signal.SIGSTOP)  # it must not heal either
    os.kill(int(agents[0]), signal.SIGKILL)
    cut.process.kill()
    cut.process.wait(5)
    healed = survive("heal")
    assert healed.returncode == 0, healed.stdout
    assert cut.gone_within(0.1), healed.stdout
    assert survive("heal", "--check").returncode == 0
