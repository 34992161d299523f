"""Chaos Toolkit's activities as faults: judged by us, bounded, proven, gone with their asker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest

from survive.catalog import Catalog
from survive.chaos import processes
from survive.chaos.agent import Agent
from survive.chaos.executor import ChildExecutor, InLoopExecutor
from survive.chaos.handles import WholeTarget, by_hand
from survive.chaos.heal import clean_up
from survive.chaos.ledger import LEDGER, Ledger, folders
from survive.clock import LoopClock
from survive.contracts import Active, FaultFailedError, HandleSpec, Injection, Needs
from survive.errors import RefusedError
from survive.scenario.model import FaultPlan
from survive.scenario.settings import SettingError, parse_settings
from survive.units import SECOND

EXTENSION = """
import os, pathlib, subprocess, time

def switch(path, on, token=None, secrets=None):
    flag = pathlib.Path(path)
    if on:
        flag.write_text(token or (secrets or {}).get("word", "on"))
    else:
        flag.unlink(missing_ok=True)
    return True

def seen(path):
    return pathlib.Path(path).exists()

def says(value):
    return value

def raises():
    raise RuntimeError("no such pod")

def hangs(path):
    child = subprocess.Popen(["sleep", "60"])
    pathlib.Path(path).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)

def dies():
    os._exit(3)
"""


def python(func, **arguments):
    return {"provider": {"type": "python", "module": "box_ext", "func": func,
                         "arguments": arguments}}  # fmt: skip


def shell(line):
    return {"provider": {"type": "process", "path": "sh", "arguments": ["-c", line]}}


def held(flag, **other):
    return {
        "inject": python("switch", path=str(flag), on=True),
        "heal": shell(f"rm -f {flag}"),
        "verify": {**python("seen", path=str(flag)), "tolerance": True},
        **other,
    }


def injection(settings, kind="chaostoolkit"):
    whole = HandleSpec("target", "target", 0, "127.0.0.1:1")
    return Injection(f"x#{os.urandom(3).hex()}", "x", kind, settings, whole, 0, SECOND)


@pytest.fixture(autouse=True)
def extension(tmp_path, monkeypatch):
    (tmp_path / "box_ext.py").write_text(EXTENSION)
    monkeypatch.chdir(tmp_path)
    yield
    close_all()


@pytest.fixture
def flag(tmp_path):
    return tmp_path / "flag"


def close_all():
    module = sys.modules.get("survive_ext.faults.activities.runner")
    if module is not None:
        module.close_all()


def load(kind="chaostoolkit"):
    return Catalog(None).fault(kind)


def act(settings, kind="chaostoolkit"):
    """Inject alone."""
    asyncio.run(load(kind).inject(injection(settings, kind), None))


# ------------------------------------------------------------------------ judged by us


@pytest.mark.parametrize(
    ("activity", "why"),
    [
        (python("says", value=False), "its output is False"),
        (python("raises"), "no such pod"),
        (python("dies"), "without a word"),
        (shell("echo broken >&2; exit 3"), "exit 3: 3 broken"),
        (python("no_such_function"), "no_such_function"),
    ],
)
def test_what_chaos_toolkit_calls_a_success_is_judged_here(flag, activity, why):
    with pytest.raises(FaultFailedError, match=why):
        act(held(flag, inject=activity))


@pytest.mark.parametrize("value", [True, None, "done", 0, []])
def test_an_action_that_returns_anything_but_false_did_its_work(flag, value):
    act(held(flag, inject=python("says", value=value)))


@pytest.fixture
def http():
    """Answers with the status that the path names."""

    async def answer(reader, writer):
        line = (await reader.readuntil(b"\r\n\r\n")).decode().split()
        status = line[1].strip("/")
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhm"
                     .encode())  # fmt: skip
        writer.close()

    @contextlib.asynccontextmanager
    async def serving():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"

    return serving


@pytest.mark.parametrize(
    ("status", "fails"), [(200, False), (302, False), (404, True), (503, True)]
)
def test_http_statuses_from_400_on_are_failures(flag, http, status, fails):
    async def main():
        async with http() as url:
            call = {"provider": {"type": "http", "url": f"{url}/{status}"}}
            await load().inject(injection(held(flag, inject=call)), None)

    if fails:
        with pytest.raises(FaultFailedError, match=f"HTTP {status}"):
            asyncio.run(main())
    else:
        asyncio.run(main())


def test_a_verify_may_ask_for_a_bad_status(flag, http):
    async def main():
        async with http() as url:
            probe = {"provider": {"type": "http", "url": f"{url}/503"}, "tolerance": 503}
            return await load().observe(injection(held(flag, verify=probe)), None, None)

    seen = asyncio.run(main())
    assert (seen.active, seen.evidence) == (Active.YES, "verify: 503 hm")


@pytest.mark.parametrize(
    ("value", "tolerance", "active"),
    [
        (True, True, Active.YES),
        (3, 3, Active.YES),
        (3, 4, Active.NO),
        (3, [1, 5], Active.YES),
        (7, [1, 5], Active.NO),
        (7, {"type": "range", "range": [6, 8]}, Active.YES),
        ("pod vllm-0 gone", {"type": "regex", "pattern": "gone$"}, Active.YES),
        ({"pods": [{"up": 1}]}, {"type": "jsonpath", "path": "$.pods[*].up", "expect": [1]},
         Active.YES),
        ({"pods": []}, {"type": "jsonpath", "path": "$.pods[*]", "count": 1}, Active.NO),
        (2, {"type": "probe", "name": "p", "provider": {
            "type": "python", "module": "box_ext", "func": "says", "arguments": {}}}, Active.YES),
    ],
)  # fmt: skip
def test_the_tolerance_mini_language(flag, value, tolerance, active):
    probe = {**python("says", value=value), "tolerance": tolerance}
    seen = asyncio.run(load().observe(injection(held(flag, verify=probe)), None, None))
    assert seen.active is active


@pytest.mark.parametrize("func", ["raises", "dies"])
def test_a_probe_that_fails_knows_nothing(flag, func):
    probe = {**python(func), "tolerance": False}
    seen = asyncio.run(load().observe(injection(held(flag, verify=probe)), None, None))
    assert seen.active is Active.UNKNOWN


def test_configuration_and_secrets_reach_the_action_and_stay_out_of_the_ledger(flag, monkeypatch):
    monkeypatch.setenv("BOX_WORD", "sesame")
    inject = python("switch", path="${where}", on=True)
    inject["provider"]["secrets"] = ["box"]
    settings = held(
        flag,
        inject=inject,
        configuration={"where": str(flag)},
        secrets={"box": {"word": {"type": "env", "key": "BOX_WORD"}}},
    )
    parse_settings(load().settings, settings)
    planned = injection(settings)
    asyncio.run(load().inject(planned, None))
    assert flag.read_text() == "sesame"
    assert "sesame" not in str(planned.to_json())
    monkeypatch.delenv("BOX_WORD")
    close_all()
    with pytest.raises(FaultFailedError, match="BOX_WORD"):
        act(settings)


# -------------------------------------------------------------------- checked before a run


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"verify": python("seen")}, "verify needs `tolerance:`"),
        ({"verify": {**python("switch"), "tolerance": True}}, "use another channel"),
        ({"inject": {}}, "is not an activity"),
        ({"inject": {"provider": {"type": "ssh"}}}, "provider type 'ssh'"),
        ({"inject": {"provider": {"type": "python", "module": "a b", "func": "f"}}}, "'a b'"),
        ({"inject": {"provider": {"type": "http"}}}, "needs `url:`"),
        ({"inject": {**shell("true"), "pauses": {"after": 3}}}, "'pauses' cannot stand here"),
        ({"inject": {"provider": {"type": "process", "path": "sh", "timeout": 9}}}, "'timeout'"),
        ({"heal": shell("rm ${where}")}, r"\${where} is declared in neither"),
        ({"secrets": {"box": {"word": "sesame"}}}, "'box.word' is written out"),
    ],
)
def test_a_setting_that_cannot_be_used_says_why(flag, change, wrong):
    with pytest.raises(SettingError, match=wrong):
        parse_settings(load().settings, held(flag, **change))


def test_once_wants_its_irreversibility_written_out(flag):
    settings = held(flag)
    del settings["heal"]
    with pytest.raises(SettingError, match="irreversible"):
        parse_settings(load("chaostoolkit.once").settings, settings)
    with pytest.raises(SettingError, match="is kind `chaostoolkit`"):
        parse_settings(load("chaostoolkit.once").settings, {**settings, "irreversible": False})
    parse_settings(load("chaostoolkit.once").settings, {**settings, "irreversible": True})


@pytest.mark.parametrize(
    ("activity", "said"),
    [
        ({"provider": {"type": "python", "module": "chaosnowhere.x", "func": "f"}}, "chaosnowhere"),
        ({"provider": {"type": "process", "path": "no-such-program"}}, "no-such-program"),
    ],
)
def test_what_is_not_installed_is_refused(flag, activity, said):
    settings = parse_settings(load().settings, held(flag, inject=activity))
    with pytest.raises(RefusedError, match=said):
        load().preflight(settings, [HandleSpec("external", "target", 0, "127.0.0.1:1")])


# ------------------------------------------------------------- by the real agent, no target


class Outside:
    """A driver of a target that runs elsewhere."""

    async def start(self):
        pass

    async def stop(self):
        pass

    def entry(self):
        return "127.0.0.1:1"

    def open(self, spec, needs):
        assert needs is Needs.TARGET
        return WholeTarget(spec, None, None)

    def cpu_s(self):
        return 0.0


class Sabotaged(Catalog):
    """One verb of every fault replaced by a report of success."""

    def fault(self, kind):
        fault = super().fault(kind)
        for verb in SABOTAGE:
            setattr(fault, verb, _pretend)
        return fault


SABOTAGE: list[str] = []


async def _pretend(injection, handle):
    """Does nothing, and says nothing of it."""


def play(settings, *, kind="chaostoolkit", sabotage=(), wait_s=1.2, stopped=False):
    """One fault from prepare to stop: (events, what stop found unproven)."""

    async def main():
        events, run_id = [], f"ctk-{os.urandom(4).hex()}"
        ledger, clock = Ledger.create(run_id, run_id), LoopClock(0.0)
        driver = Outside()
        executor = InLoopExecutor(Sabotaged(None), driver, clock, None)
        agent = Agent(
            run_id,
            Sabotaged(None),
            ledger,
            driver,
            executor,
            clock,
            lambda name, fields: events.append((name, dict(fields))),
            privileged=True,
        )
        once = kind.endswith(".once")
        plan = FaultPlan("one", kind, 0, None if once else 2 * SECOND, settings=settings)
        await agent.preflight(plan)
        await agent.prepare(plan)
        await agent.inject("one")
        await asyncio.sleep(wait_s)
        if not once and not stopped:  # a run that is stopped climbs the ladder faster
            await agent.heal("one")
        return events, await agent.stop()

    SABOTAGE[:] = sabotage
    try:
        return asyncio.run(main())
    finally:
        SABOTAGE.clear()


def looks(events, stage):
    return [f["active"] for name, f in events if name == "fault_observed" and f["stage"] == stage]


def proven(events):
    return [(f["proven"], f["by_own_heal"]) for name, f in events if name == "heal_proven"]


def test_a_held_fault_is_proven_on_and_proven_gone(flag):
    events, left = play(held(flag))
    assert looks(events, "before") == ["no"] * 3
    assert len(looks(events, "during")) >= 3 and set(looks(events, "during")) == {"yes"}
    assert proven(events) == [(True, True)] and left == [] and not flag.exists()


def test_an_inject_that_does_nothing_is_seen(flag):
    events, _ = play(held(flag), sabotage=["inject"])
    assert set(looks(events, "during")) == {"no"}


def test_a_heal_that_does_nothing_is_seen(flag):
    events, left = play(held(flag), sabotage=["heal"], wait_s=0.3, stopped=True)
    assert proven(events) == [(False, False)]
    assert [entry["by_hand"] for entry in left] == [f"sh -c 'rm -f {flag}'"]
    assert set(looks(events, "after")) == {"yes"} and flag.exists()


def test_a_probe_that_never_changes_proves_nothing(flag):
    """The negative control: a verify that looks at another thing."""
    elsewhere = {**python("seen", path=str(flag) + "-other"), "tolerance": True}
    events, _ = play(held(flag, verify=elsewhere), wait_s=0.6)
    assert flag.exists() is False and set(looks(events, "during")) == {"no"}
    always = {**python("says", value=1), "tolerance": 1}
    events, _ = play(held(flag, verify=always), wait_s=0.2, stopped=True)
    assert set(looks(events, "before")) == {"yes"} and proven(events) == [(False, False)]


def test_a_one_shot_is_proven_by_one_yes(flag):
    settings = {k: v for k, v in held(flag, irreversible=True).items() if k != "heal"}
    events, left = play(settings, kind="chaostoolkit.once", wait_s=0.6)
    assert looks(events, "during")[-1] == "yes" and left == []
    events, _ = play(settings, kind="chaostoolkit.once", wait_s=0.6, sabotage=["inject"])
    assert set(looks(events, "during")) == {"yes"}  # the flag of the first is still there
    flag.unlink()
    events, _ = play(settings, kind="chaostoolkit.once", wait_s=0.6, sabotage=["inject"])
    assert set(looks(events, "during")) == {"no"}


def test_an_extension_that_cannot_be_called_is_known_before_the_inject(flag):
    events, _ = play(held(flag, heal=python("switch", nonsense=1)), wait_s=0.1, stopped=True)
    before = [f for name, f in events if name == "fault_observed" and f["stage"] == "before"]
    assert [f["active"] for f in before] == ["unknown"] and "'path' is missing" in before[0][
        "evidence"
    ]


# ------------------------------------------------------------------- bounded, and no orphans


def gone(pids, within_s=3.0):
    async def wait():
        for _ in range(round(within_s / 0.02)):
            if not any(processes.exists(pid, processes.start_time(pid)) for pid in pids):
                return True
            await asyncio.sleep(0.02)
        return False

    return asyncio.run(wait())


def hanging(flag, tmp_path):
    note = tmp_path / "pids"
    return held(flag, inject=python("hangs", path=str(note))), note


async def noted(note):
    for _ in range(200):
        if note.exists() and len(note.read_text().split()) == 2:
            return [int(pid) for pid in note.read_text().split()]
        await asyncio.sleep(0.02)
    raise AssertionError("the activity never began")


@pytest.mark.parametrize("real", [False, True])
def test_an_action_that_hangs_is_ended_in_time_with_its_children(flag, tmp_path, real):
    settings, note = hanging(flag, tmp_path)
    planned = injection(settings)

    async def main():
        if real:
            executor = ChildExecutor(Catalog(None), "ctk-run", os.environ, tmp_path)
        else:
            executor = InLoopExecutor(Catalog(None), Outside(), LoopClock(0.0), None)
        await executor.prepare(planned)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(FaultFailedError, match="not done within 2 s"):
            await executor.inject(planned)
        took = loop.time() - began
        await executor.heal(planned)  # another server takes over
        seen = await executor.observe(planned, None)
        await executor.close()
        return took, seen, await noted(note)

    took, seen, pids = asyncio.run(main())
    assert took < 2.6 and seen.active is Active.NO
    assert gone(pids)


def test_activities_go_with_the_process_that_asked(flag, tmp_path):
    """kill -9 of a fault's child while an activity runs: its server ends it and all it started."""
    settings, note = hanging(flag, tmp_path)
    planned = injection(settings)

    async def main():
        executor = ChildExecutor(Catalog(None), "ctk-run", os.environ, tmp_path)
        await executor.prepare(planned)
        asking = asyncio.create_task(executor.inject(planned))
        pids = await noted(note)
        child = (await executor._child(planned)).process.pid
        os.kill(child, signal.SIGKILL)
        with pytest.raises(FaultFailedError, match="gone"):
            await asking
        await executor.close()
        return pids

    assert gone(asyncio.run(main()))


def test_healed_from_the_ledger_alone(flag, tmp_path, state_home):
    """The harness is gone with the fault on; another process holds the ledger."""
    planned = json.dumps(injection(held(flag)).to_json())
    program = """
import asyncio, json, os, sys
from survive.catalog import Catalog
from survive.chaos.ledger import Ledger
from survive.contracts import Injection
async def main():
    planned = Injection.from_json(json.loads(sys.argv[1]))
    Ledger.create("left", "left").inject([planned])
    await Catalog(None).fault("chaostoolkit").inject(planned, None)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program, planned], timeout=20, check=False)
    assert done.returncode == -signal.SIGKILL and flag.exists()
    (folder,) = folders()
    (left,) = asyncio.run(clean_up(folder / LEDGER, check=True))
    assert not left.gone and left.by_hand == f"sh -c 'rm -f {flag}'" and flag.exists()
    (found,) = asyncio.run(clean_up(folder / LEDGER))
    assert found.gone and "healed: verify: False" in found.done and not flag.exists()


def test_the_line_for_the_hand_speaks_the_provider():
    def line(provider):
        heal = {"provider": provider}
        return by_hand(injection({"inject": {}, "heal": heal, "verify": {}}))

    assert line({"type": "process", "path": "tc", "arguments": "qdisc del"}) == "tc qdisc del"
    assert line({"type": "process", "path": "tc", "arguments": {"-d": 1}}) == "tc -d 1"
    called = line({"type": "http", "url": "http://127.0.0.1:1/a?b", "method": "DELETE"})
    assert called == "curl -sS -X DELETE 'http://127.0.0.1:1/a?b'"
    code = line({"type": "python", "module": "a.b", "func": "c", "arguments": {"n": 1}})
    assert shlex.split(code)[2] == "from a.b import c as f; f(**{'n': 1})"


def test_the_core_never_imports_chaos_toolkit(flag):
    code = "import sys; from survive.catalog import Catalog; import survive.cli; " \
        "Catalog(None).fault('chaostoolkit'); " \
        "sys.exit(any(m.startswith('chaoslib') for m in sys.modules))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
