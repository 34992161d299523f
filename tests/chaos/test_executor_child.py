"""Verbs in child processes: bounded, killed when late, and nothing lives in a child."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from chaostools import new_run_id, until

from survive.catalog import Catalog
from survive.chaos import executor, processes
from survive.chaos.executor import ChildExecutor
from survive.contracts import Active, FaultFailedError, HandleSpec, Injection

TEAM_FAULT = """
import asyncio, os, time
from pathlib import Path
from survive.contracts import Active, FaultFailedError, Needs, Observation

class Team:
    kind = "team.fault"
    needs = Needs.REPLICA

    async def inject(self, injection, handle):
        how = injection.settings["inject"]
        if how == "hang":
            await asyncio.sleep(60)
        if how == "block":
            time.sleep(60)
        if how == "die":
            os._exit(3)
        if how == "fail":
            raise FaultFailedError("no such device")
        if how == "bug":
            raise KeyError("oops")
        if how == "print":
            print("hello from a fault")
            os.write(1, b"not json")

    async def heal(self, injection, handle):
        Path(injection.settings["file"]).write_text(str(os.getpid()))

    async def observe(self, injection, handle, before):
        if injection.settings["inject"] == "blind":
            await asyncio.sleep(60)
        return Observation(Active.YES, f"pid {os.getpid()}", before)

    async def round_trip(self, injection, handle):
        return True
"""


@pytest.fixture
def scene(tmp_path):
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "team.py").write_text(TEAM_FAULT)
    (tmp_path / ".git").mkdir()

    def injection(how, number=1):
        spec = HandleSpec("process", "web", 0, "127.0.0.1:1")
        settings = {"inject": how, "file": str(tmp_path / "healed")}
        return Injection(f"one#{number}", "one", "team.fault", settings, spec, 0, 9)

    def run(body):
        async def main():
            run_id = new_run_id()
            children = ChildExecutor(Catalog(tmp_path), run_id, os.environ, tmp_path)
            try:
                return await body(children)
            finally:
                await children.close()
                assert processes.marked(run_id) == []

        return asyncio.run(main())

    return injection, run, tmp_path


LOADED = """
import asyncio, os, sys
from survive.catalog import Catalog
from survive.chaos.child import Worker
from survive.contracts import HandleSpec, Injection
from survive.host.sockets import SocketTransport

spec = HandleSpec("process", "web", 0, "127.0.0.1:1", link="a -> web", via="127.0.0.1:2",
                  proxy="127.0.0.1:3", proxy_name="x")
one = Injection("one#1", "one", "network.down", {}, spec, 0, 9)
asked = {"verb": "load", "injection": one.to_json(), "before": None}

async def main():
    transport = SocketTransport()
    worker = Worker(Catalog(), transport, 1)
    await worker._do(asked)
    before = set(sys.modules)
    seen = await worker._do({**asked, "verb": "observe"})
    await transport.close()
    print(seen["active"], *(m for m in set(sys.modules) - before if m in LIBRARIES))

LIBRARIES = {"toxiproxy", "requests", "survive.chaos.toxiproxy"}
asyncio.run(main())
"""


def test_what_a_look_needs_is_loaded_before_it():
    """A look has one second, and on a busy host the proxy's library takes half of it to import."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=False
    )
    assert done.stdout == "unknown\n", done


def test_all_verbs_go_to_one_child(scene):
    injection, run, folder = scene

    async def body(children):
        one = injection("")
        await children.prepare(one)
        await children.inject(one)
        first = await children.observe(one, 4.5)
        assert (first.active, first.value) == (Active.YES, 4.5)
        await children.heal(one)
        assert await children.round_trip(one) is True
        assert first.evidence == f"pid {(folder / 'healed').read_text()}"
        assert children.cpu_s() > 0
        other = await children.observe(injection("", 2), None)
        assert other.evidence != first.evidence

    run(body)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("fail", "no such device"),
        ("bug", r"a bug in team.fault: KeyError: 'oops' \(team.py:\d+\)"),
        ("die", "is gone"),
    ],
)
def test_what_goes_wrong_in_a_child_is_evidence(scene, how, why):
    injection, run, folder = scene

    async def body(children):
        with pytest.raises(FaultFailedError, match=why):
            await children.inject(injection(how))
        await children.heal(injection(how))  # by a fresh child if need be
        assert (folder / "healed").exists()

    run(body)


@pytest.mark.parametrize("how", ["hang", "block"])
def test_a_late_child_is_killed_and_another_heals(scene, how, monkeypatch):
    monkeypatch.setitem(executor._LIMITS_S, "inject", 0.4)
    injection, run, folder = scene

    async def body(children):
        one = injection(how)
        await children.prepare(one)
        first = (await children.observe(one, None)).evidence
        began = time.monotonic()
        with pytest.raises(FaultFailedError, match="inject was not done within"):
            await children.inject(one)
        assert time.monotonic() - began < 0.8
        pid = int(first.removeprefix("pid "))
        await until(lambda: not processes.start_time(pid))
        await children.heal(one)
        assert (folder / "healed").read_text() != str(pid)

    run(body)


def test_a_slow_look_does_not_delay_a_heal_and_becomes_unknown(scene):
    injection, run, _folder = scene

    async def body(children):
        one = injection("blind")
        await children.prepare(one)
        look = asyncio.create_task(children.observe(one, None))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await children.heal(one)
        assert time.monotonic() - began < 0.5
        seen = await look
        assert seen.active is Active.UNKNOWN and "not done within 1 s" in seen.evidence

    run(body)


def test_a_cancelled_inject_does_not_go_on_by_itself(scene):
    injection, run, _ = scene

    async def body(children):
        one = injection("hang")
        await children.prepare(one)
        pid = int((await children.observe(one, None)).evidence.removeprefix("pid "))
        inject = asyncio.create_task(children.inject(one))
        await asyncio.sleep(0.05)
        inject.cancel()
        await asyncio.gather(inject, return_exceptions=True)
        assert not processes.start_time(pid)

    run(body)


def test_a_fault_that_prints_does_not_garble_its_answers(scene):
    injection, run, folder = scene

    async def body(children):
        await children.inject(injection("print"))
        assert (await children.observe(injection("print"), None)).active is Active.YES

    run(body)
    assert "hello from a fault" in (folder / "fault-one-1.log").read_text()


def test_an_unknown_kind_and_a_broken_file_are_evidence(scene):
    injection, run, folder = scene
    (folder / "faults" / "bad.py").write_text("class Bad:\n    kind = 'bad.one'\nimport nowhere\n")

    async def body(children):
        for kind, why in (("no.such", "unknown fault kind"), ("bad.one", "cannot be loaded")):
            with pytest.raises(FaultFailedError, match=why):
                await children.prepare(replace(injection(""), kind=kind, id=kind))

    run(body)


def test_a_child_is_ready_soon_and_light(scene):
    """Little more than Python with asyncio needs, on however busy a machine; no heavy import."""
    injection, run, _ = scene

    async def body(children):
        best = bare = 9.0
        for number in range(3):
            began = time.monotonic()
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import asyncio")
            assert await child.wait() == 0
            bare = min(bare, time.monotonic() - began)
            began = time.monotonic()
            await children.prepare(injection("", number))
            best = min(best, time.monotonic() - began)
        return best / bare

    ratio = run(body)
    assert ratio < 6, ratio
    code = (
        "import sys, survive.chaos.child, survive.host.sockets; "
        "print([m for m in ('pydantic', 'rich', 'numpy', 'yaml', 'requests', 'httpx') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_child_that_was_started_ahead_is_the_one_that_works(scene):
    """A fault in the first seconds has no time of its own for a child to start in."""
    injection, run, _ = scene

    async def body(children):
        children.expect(2)
        spares = [await task for task in children._spares]
        await children.prepare(injection("ok"))
        seen = await children.observe(injection("ok"), None)
        left = [
            spare.process.pid for spare in spares if f"pid {spare.process.pid}" != seen.evidence
        ]
        return len(left), len(children._spares)

    assert run(body) == (1, 1)  # one works, the other is ended with the rest (see ``scene``)


def test_a_child_that_starts_slowly_is_waited_for_over_several_looks(scene, monkeypatch):
    """Killed for every late look, on a loaded host none would ever be ready."""
    injection, run, _ = scene
    monkeypatch.setattr(executor, "START_S", 60)

    async def body(children):
        children._argv = ["sh", "-c", 'sleep 0.5; exec "$0" "$@"', *children._argv]
        first = await children.observe(injection(""), None, 0.3)
        assert first.active is Active.UNKNOWN
        assert first.evidence == "observe was not done within 0.3 s"
        for _ in range(100):
            seen = await children.observe(injection(""), None, 0.3)
            if seen.active is Active.YES:
                return
        raise AssertionError(seen)

    run(body)


def test_a_child_that_never_starts_is_replaced(scene, monkeypatch):
    injection, run, _ = scene
    monkeypatch.setattr(executor, "START_S", 0.15)

    async def body(children):
        works, children._argv = children._argv, ["sleep", "60"]
        looks = [await children.observe(injection(""), None, 0.1) for _ in range(2)]
        assert {look.active for look in looks} == {Active.UNKNOWN}
        children._argv = works
        assert (await children.observe(injection(""), None, 5.0)).active is Active.YES

    run(body)
