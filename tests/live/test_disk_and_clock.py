"""node.disk_full on a tmpfs of our own, node.clock_skew under libfaketime: needs root and apt."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "faults"))

from faultscene import plan, play, spec

from survive.catalog import Catalog
from survive.chaos.heal import clean_up
from survive.chaos.ledger import LEDGER, state_dir
from survive.contracts import Active, Injection, Needs
from survive.errors import RefusedError
from survive.scenario.model import Health, Service


def _mounted(path):
    path.mkdir()
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "survive-test", str(path)],
        capture_output=True, check=False,
    ).returncode == 0  # fmt: skip


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"  # the replicas of a scene keep theirs in data/
    if not _mounted(path):
        pytest.skip("a tmpfs cannot be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def test_a_full_disk_is_seen_by_writing_and_is_emptied(disk, tmp_path):
    async def body(scene):
        await scene.life(plan("node.disk_full", count=2, path=str(disk)))

    (disk / "theirs").write_text("kept")
    scene, _, left = play("process", tmp_path, body)
    assert scene.looks("before") == ["no"] * 3 and set(scene.looks("during")) == {"yes"}
    assert scene.named("heal_proven")[0]["by_own_heal"] is True and left == []
    assert len(scene.named("fault_injected")) == 1  # one disk is filled once
    assert [p.name for p in disk.iterdir()] == ["theirs"]


def test_an_inject_that_fills_nothing_is_never_seen_active(disk, tmp_path):
    scene, _, _ = play(
        "process", tmp_path, lambda s: s.life(plan("node.disk_full", path=str(disk)), for_s=0.5),
        sabotage=["inject"],
    )  # fmt: skip
    assert set(scene.looks("during")) == {"no"}


def test_a_heal_that_empties_nothing_is_unproven_and_told(disk, tmp_path, monkeypatch):
    monkeypatch.setattr("survive.chaos.agent.HEAL_WITHIN_US", 500_000)
    scene, _, left = play(
        "process", tmp_path, lambda s: s.life(plan("node.disk_full", path=str(disk)), for_s=0.5),
        sabotage=["heal"],
    )  # fmt: skip
    assert scene.named("heal_proven")[0]["proven"] is False
    [entry] = left
    subprocess.run(["sh", "-c", entry["by_hand"]], check=True)
    assert list(disk.iterdir()) == []


def test_another_disk_looks_innocent(disk, tmp_path):
    async def body(scene):
        await scene.agent.prepare(plan("node.disk_full", path=str(disk)))
        await scene.agent.inject("one")
        victim = scene.driver.replicas("inference")[0]
        injection = Injection("x#1", "x", "node.disk_full", {"path": str(tmp_path)}, victim, 0, 1)
        handle = scene.driver.open(victim, Needs.REPLICA)
        return (await Catalog().fault("node.disk_full").observe(injection, handle, None)).active

    assert play("process", tmp_path, body)[1] is Active.NO


def test_the_ledger_alone_empties_what_a_dead_run_filled(disk, tmp_path):
    async def body(scene):
        async def abandoned():
            for life in scene.agent._lives.values():
                for hit in life.hits:
                    hit.looking.cancel()
            await scene.driver.stop()
            return []

        await scene.agent.prepare(plan("node.disk_full", path=str(disk)))
        await scene.agent.inject("one")
        run = scene.driver.replicas("inference")[0].run
        scene.agent.stop = abandoned
        return run

    _, run, _ = play("process", tmp_path, body)
    assert list(disk.iterdir()) != []
    found = asyncio.run(clean_up(state_dir() / run / LEDGER))
    assert all(finding.gone for finding in found) and list(disk.iterdir()) == []


def test_a_disk_that_is_too_large_is_never_filled(tmp_path):
    async def body(scene):
        with pytest.raises(RefusedError, match=r"at most 1024 are filled|no file system"):
            await scene.agent.preflight(plan("node.disk_full", path="/dev/shm"))

    play("process", tmp_path, body)


LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)  # with a Date, from the wall clock
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def skewable(folder, library=LIBRARY):
    """A target of one server whose wall clock stands in a file."""
    file = folder / "clock"
    file.write_text("+0\n")
    server = folder / "server.py"
    server.write_text(SERVER)
    env = {
        "LD_PRELOAD": str(library or ""),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    web = Service(
        "inference",
        run=(sys.executable, str(server), "{port}"),
        health=Health("/", 10_000_000),
        restart_after_us=300_000,
        env=env,
    )
    return file, replace(spec(), services={"inference": web})


needs_faketime = pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime")


@needs_faketime
@pytest.mark.parametrize("sabotage", [[], ["inject"], ["heal"]])
def test_a_skewed_clock_shows_in_the_dates_that_it_sends(sabotage, tmp_path, monkeypatch):
    monkeypatch.setattr("survive.chaos.agent.HEAL_WITHIN_US", 700_000)
    file, target = skewable(tmp_path)
    fault = plan("node.clock_skew", ahead="90s", file=str(file))
    scene, _, left = play(
        "process", tmp_path, lambda s: s.life(fault), sabotage=sabotage, target=target
    )
    assert scene.looks("before") == ["no"] * 3
    assert set(scene.looks("during")) == {"no" if "inject" in sabotage else "yes"}
    assert scene.named("heal_proven")[0]["by_own_heal"] is ("heal" not in sabotage)
    assert len(left) == ("heal" in sabotage)
    if left and left[0]["by_hand"]:
        subprocess.run(["sh", "-c", left[0]["by_hand"]], check=True)
    assert file.read_text() == "+0\n"


@needs_faketime
def test_the_ledger_alone_sets_the_clock_of_a_dead_run_right(tmp_path):
    """Nobody sends a Date any more: what could be left is the file."""
    file, target = skewable(tmp_path)

    async def body(scene):
        async def abandoned():
            for life in scene.agent._lives.values():
                for hit in life.hits:
                    hit.looking.cancel()
            await scene.driver.stop()
            return []

        await scene.agent.prepare(plan("node.clock_skew", ahead="90s", file=str(file)))
        await scene.agent.inject("one")
        scene.agent.stop = abandoned
        return scene.driver.replicas("inference")[0].run

    run = play("process", tmp_path, body, target=target)[1]
    assert file.read_text() == "+90\n"
    found = asyncio.run(clean_up(state_dir() / run / LEDGER))
    assert all(finding.gone for finding in found) and file.read_text() == "+0\n"


@needs_faketime
def test_a_skew_that_was_not_asked_for_is_never_taken_for_it(tmp_path):
    """The negative control: 20 s ahead is not half of 90 s."""
    file, target = skewable(tmp_path)

    async def body(scene):
        file.write_text("+20\n")
        victim = scene.driver.replicas("inference")[0]
        settings = {"ahead": "90s", "file": str(file)}
        injection = Injection("x#1", "x", "node.clock_skew", settings, victim, 0, 1)
        handle = scene.driver.open(victim, Needs.REPLICA)
        seen = await Catalog().fault("node.clock_skew").observe(injection, handle, None)
        return seen.active, seen.value

    active, ahead_s = play("process", tmp_path, body, target=target)[1]
    assert active is Active.NO and 18 <= ahead_s <= 21


def test_a_process_without_libfaketime_is_refused(tmp_path):
    async def body(scene):
        with pytest.raises(RefusedError, match="does not read its time"):
            await scene.agent.preflight(plan("node.clock_skew", ahead="90s", file="/tmp/none"))

    play("process", tmp_path, body)
