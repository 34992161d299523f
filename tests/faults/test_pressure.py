"""node.cpu and its kin, for real: on processes of this host, seen by the kernel and the wire."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest
from faultscene import plan, play

from survive.catalog import Catalog
from survive.chaos import processes
from survive.chaos.heal import clean_up
from survive.chaos.ledger import LEDGER, state_dir
from survive.chaos.pressure import FAULT_MARK, ProcessPressure, cpu_group
from survive.contracts import Active, Grade, Injection, Needs
from survive.errors import RefusedError
from survive.scenario.settings import SettingError, parse_settings

CPU = ("node.cpu", {"workers": 3})
MEMORY = ("node.memory", {"share": "0.4%"})
FILES = ("node.fd_exhaustion", {})
LIMIT = ("node.cpu_limit", {"share": "5%"})
HAVE_LIMIT = bool(cpu_group(os.getpid()))
QUIET = pytest.mark.alone  # cores are taken away, and how much is measured
EVERYWHERE = [pytest.param(*CPU, marks=QUIET), MEMORY, FILES]
if HAVE_LIMIT:
    EVERYWHERE.append(pytest.param(*LIMIT, marks=QUIET))
ALL = {
    "node.cpu": {},
    "node.memory": {},
    "node.fd_exhaustion": {},
    "node.cpu_limit": {"share": "5%"},
    "node.disk_full": {"path": "/x"},
    "node.clock_skew": {"ahead": "90s", "file": "/x"},
}


def life(kind, settings, for_s=1.0):
    return lambda scene: scene.life(plan(kind, **settings), for_s=for_s)


def privileged(scene):
    """What `--allow-privileged` does; these tests know what they ask for."""
    scene.agent._privileged = True


def played(tmp_path, kind, settings, *, sabotage=(), for_s=1.0):
    async def body(scene):
        privileged(scene)
        await scene.life(plan(kind, **settings), for_s=for_s)
        victim = scene.driver.replicas("inference")[0]
        return [v for v in processes.marked(victim.run) if is_helper(v[0])]

    return play("process", tmp_path, body, sabotage=sabotage)


def is_helper(pid):
    return f"{FAULT_MARK}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()


def groups_of(run):
    return [g for root in ("", "cpu") for g in Path("/sys/fs/cgroup", root).glob(f"sv-{run}-*")]


def shell(line):
    subprocess.run(["sh", "-c", line], check=True)


def busy_loop():
    """One process, so that killing it is the end of it; ten seconds of a core at most."""
    return subprocess.Popen(["sh", "-c", "ulimit -t 10; while :; do :; done"])


@pytest.mark.parametrize(("kind", "settings"), EVERYWHERE)
def test_it_bites_is_healed_and_both_are_proven(kind, settings, tmp_path):
    scene, helpers, left = played(tmp_path, kind, settings)
    assert scene.named("fault_injected")[0]["error"] is None
    assert scene.looks("before") == ["no"] * 3
    looks = scene.looks("during")[1:]
    assert set(looks) <= {"yes", "unknown"} and looks.count("yes") >= 0.8 * len(looks), [
        e["evidence"] for e in scene.named("fault_observed")
    ]
    assert scene.named("heal_proven")[0]["by_own_heal"] is True and left == []
    assert helpers == []


@pytest.mark.parametrize(("kind", "settings"), EVERYWHERE)
def test_an_inject_that_does_nothing_is_never_seen_active(kind, settings, tmp_path):
    scene, _, _ = played(tmp_path, kind, settings, sabotage=["inject"], for_s=0.6)
    assert scene.named("fault_injected")[0]["error"] is None
    assert set(scene.looks("during")) == {"no"}


@pytest.mark.parametrize(("kind", "settings"), EVERYWHERE)
def test_a_heal_that_does_nothing_is_ended_by_the_next_rung_and_unproven(
    kind, settings, tmp_path, monkeypatch
):
    monkeypatch.setattr("survive.chaos.agent.HEAL_WITHIN_US", 700_000)
    scene, helpers, left = played(tmp_path, kind, settings, sabotage=["heal"], for_s=0.6)
    assert [e["rung"] for e in scene.named("fault_healed")] == ["undo", "disable"]
    assert scene.named("heal_proven")[0]["by_own_heal"] is False and len(left) == 1
    assert helpers == []


@pytest.mark.parametrize(("kind", "settings"), EVERYWHERE)
def test_a_neighbour_of_the_victim_looks_innocent(kind, settings, tmp_path):
    """The negative control; of what all processes of a host share, by the id of the injection."""

    async def body(scene):
        privileged(scene)
        await scene.agent.prepare(plan(kind, **settings))
        await scene.agent.inject("one")
        hit = scene.named("fault_injected")[0]["target"]
        [other] = [v for v in scene.driver.replicas("inference") if v.replica_id != hit]
        injection = Injection("other#1", "other", kind, settings, other, 0, 1)
        fault = Catalog().fault(kind)
        seen = await fault.observe(injection, scene.driver.open(other, Needs.REPLICA), None)
        await scene.agent.heal("one")
        return seen.active

    assert play("process", tmp_path, body)[1] is Active.NO


@pytest.mark.parametrize(("kind", "settings"), [FILES, pytest.param(*CPU, marks=QUIET)])
def test_a_hung_or_busy_victim_alone_proves_nothing(kind, settings, tmp_path):
    """Silence by SIGSTOP is no lack of files; a busy host is no helper of ours."""

    async def body(scene):
        victim = scene.driver.replicas("inference")[0]
        handle = scene.driver.open(victim, Needs.REPLICA)
        injection = Injection("x#1", "x", kind, settings, victim, 0, 1)
        await handle.pause()
        busy = busy_loop() if kind == "node.cpu" else None
        try:
            return (await Catalog().fault(kind).observe(injection, handle, None)).active
        finally:
            await handle.resume()
            if busy:
                busy.kill()
                busy.wait()

    assert play("process", tmp_path, body)[1] is not Active.YES


@pytest.mark.parametrize(("kind", "settings"), EVERYWHERE)
def test_heal_is_idempotent_and_legal_without_inject_and_on_the_gone(kind, settings, tmp_path):
    async def body(scene):
        fault = Catalog().fault(kind)
        victim = scene.driver.replicas("inference")[0]
        handle = scene.driver.open(victim, Needs.REPLICA)
        injection = Injection("x#1", "x", kind, settings, victim, 0, 1)
        await fault.heal(injection, handle)
        await fault.inject(injection, handle)
        await handle.kill()
        for _ in range(100):
            if not await handle.exists():
                break
            await asyncio.sleep(0.01)
        await fault.heal(injection, handle)
        await fault.heal(injection, handle)
        return (await fault.observe(injection, handle, None)).active

    assert play("process", tmp_path, body)[1] is not Active.YES


def test_what_is_open_goes_on_while_no_file_is_left(tmp_path):
    async def body(scene):
        victim = scene.driver.replicas("inference")[0]
        host, _, port = victim.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        ask = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
        pressure = ProcessPressure(victim)
        try:
            writer.write(ask)
            assert b"200" in await reader.readline()
            before = pressure.free_files()
            pressure.exhaust_files()
            starved = pressure.free_files()
            await reader.read(4096)
            writer.write(ask)
            answer = await asyncio.wait_for(reader.readline(), 2)
        finally:
            pressure.restore_files()
            writer.close()
        return before, starved, answer, pressure.free_files()

    before, starved, answer, after = play("process", tmp_path, body)[1]
    assert before > 100 and starved <= 0 and b"200" in answer and after >= before - 1


@pytest.mark.skipif(not HAVE_LIMIT, reason="no control group for cpu can be written")
def test_a_group_that_a_dead_run_left_is_removed_from_its_ledger(tmp_path):
    async def body(scene):
        privileged(scene)
        await scene.agent.prepare(plan(LIMIT[0], **LIMIT[1]))
        await scene.agent.inject("one")
        victim = scene.driver.replicas("inference")[0]
        return victim.run

    def abandon(agent):
        async def stop():
            for life in agent._lives.values():
                for hit in life.hits:
                    hit.looking.cancel()
            await agent._driver.stop()
            return []

        return stop

    async def wrapped(scene):
        run = await body(scene)
        scene.agent.stop = abandon(scene.agent)
        return run

    _, run, _ = play("process", tmp_path, wrapped)
    assert len(groups_of(run)) == 1
    ledger = state_dir() / run / LEDGER
    findings = asyncio.run(clean_up(ledger, check=True))
    assert [f.gone for f in findings if f.injection] == [False]
    assert "rmdir" in next(f.by_hand for f in findings if f.injection)
    findings = asyncio.run(clean_up(ledger))
    assert all(f.gone for f in findings)
    assert groups_of(run) == []


@pytest.mark.parametrize("kind", ALL)
def test_no_virtual_twin_is_faked(kind, tmp_path):
    async def body(scene):
        privileged(scene)
        with pytest.raises(RefusedError, match="no process of this host"):
            await scene.agent.preflight(plan(kind, **ALL[kind]))

    play("virtual", tmp_path, body)
    assert "no virtual twin" in Catalog().fault(kind).does_not_certify
    assert Catalog().fault(kind).grade is not Grade.SIMULATED


@pytest.mark.parametrize(("kind", "settings", "said"), [
    ("node.cpu", {"workers": 9}, "1 to 8"),
    ("node.memory", {"share": "11%"}, "at most 10%"),
    ("node.cpu_limit", {"share": "1%"}, "5%"),
    ("node.disk_full", {"path": "data"}, "absolute"),
    ("node.clock_skew", {"ahead": "1s", "file": "/x"}, "at least 5s"),
])  # fmt: skip
def test_settings_are_bounded(kind, settings, said):
    with pytest.raises(SettingError, match=said):
        parse_settings(Catalog().fault(kind).settings, settings)


def test_a_disk_that_is_not_a_small_one_of_its_own_is_never_filled(tmp_path):
    async def body(scene):
        for path in ("/", str(tmp_path), str(tmp_path / "none")):
            with pytest.raises(RefusedError, match="no file system of its own"):
                await scene.agent.preflight(plan("node.disk_full", path=path))

    play("process", tmp_path, body)


@pytest.mark.skipif(not HAVE_LIMIT, reason="no control group for cpu can be written")
def test_a_limit_needs_permission(tmp_path):
    async def body(scene):
        scene.agent._privileged = False
        with pytest.raises(RefusedError, match="privilege"):
            await scene.agent.preflight(plan(LIMIT[0], **LIMIT[1]))

    play("process", tmp_path, body)


@QUIET
def test_a_helper_ends_by_itself(tmp_path):
    async def body(scene):
        victim = scene.driver.replicas("inference")[0]
        pressure = ProcessPressure(victim)
        await pressure.start_helper("x#1", ["burn", "0", "1"], 1)
        assert len(pressure.helpers("x#1")) == 2  # it, and one that is busy
        for _ in range(150):
            if not pressure.helpers("x#1"):
                return True
            await asyncio.sleep(0.02)
        return False

    assert play("process", tmp_path, body)[1]


@QUIET
def test_the_line_for_hands_names_exactly_what_is_left(tmp_path):
    from survive.chaos.handles import by_hand

    async def body(scene):
        victim = scene.driver.replicas("inference")[0]
        pressure = ProcessPressure(victim)
        await pressure.start_helper("x#1", ["burn", "0", "1"], 20)
        await pressure.start_helper("y#1", ["burn", "0", "1"], 20)
        injection = Injection("x#1", "x", "node.cpu", {}, victim, 0, 1)
        shell(by_hand(injection))
        await asyncio.sleep(0.1)
        left = len(pressure.helpers("x#1")), len(pressure.helpers("y#1"))
        await pressure.end_helpers("y#1")
        pressure.exhaust_files()
        files = Injection("x#1", "x", "node.fd_exhaustion", {}, victim, 0, 1)
        assert re.match(r"prlimit --pid \d+ --nofile=\d+:", by_hand(files))
        shell(by_hand(files))
        return left, pressure.free_files()

    (mine, others), free = play("process", tmp_path, body)[1]
    assert (mine, others) == (0, 2) and free > 100
