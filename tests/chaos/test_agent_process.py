"""The real agent: a process behind a socket that heals when survive is gone, and dies last."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaostools import (
    Events,
    Parent,
    config,
    held,
    new_run_id,
    one_shot,
    paused,
    soon,
    tiny_target,
    until,
)

from survive.chaos import processes
from survive.chaos.heal import heal_leftovers
from survive.chaos.ledger import LEDGER, Ledger, state_dir
from survive.chaos.remote import AgentDiedError, RemoteAgent
from survive.errors import RefusedError
from survive.host.driver import TargetUnhealthyError

ROOT = Path(__file__).resolve().parents[2]


def story_of(run_id):
    return Ledger.read(state_dir() / run_id / LEDGER)


@pytest.fixture
def start(tmp_path):
    parents = []

    def begin(kind):
        parents.append(Parent(tmp_path, new_run_id(), kind))
        return parents[-1]

    yield begin
    for parent in parents:
        parent.close()


def gone_within(parent, within_s):
    began = time.monotonic()
    while parent.left() and time.monotonic() - began < within_s:
        time.sleep(0.01)
    left = parent.left()
    assert left == [], f"{left} after {within_s} s"
    return time.monotonic() - began


def test_a_whole_run_of_a_real_fault(tmp_path):
    """Pause, seen from outside, healed and proven; then everything is gone, the agent last."""

    async def run():
        run_id, events = new_run_id(), Events()
        agent = await RemoteAgent.start(
            config(tmp_path, tiny_target(tmp_path, "tiny", 2), run_id), on_event=events.on_event
        )
        address = await agent.start_target()
        assert address.startswith("127.0.0.1:")
        fault = held("node.pause", count=1)
        assert await agent.preflight(fault) == 1
        await agent.set_origin(round(asyncio.get_running_loop().time() * 1e6))
        await agent.prepare(fault)
        await agent.inject("one")
        await until(lambda: events.looks("during").count("yes") >= 2)
        assert len(paused(run_id)) == 2  # the server and the child that it forked
        await agent.heal("one")
        assert paused(run_id) == []
        usage = await agent.usage()
        assert usage["target"] > 0 and usage["chaos"] > 0
        assert await agent.stop() == []
        assert await agent.stop() == []
        assert not agent.died.is_set()
        assert processes.marked(run_id) == []
        return run_id, events, agent._process.returncode

    run_id, events, code = asyncio.run(run())
    assert code == 0
    assert events.looks("before") == ["no"] * 3
    assert set(events.looks("during")) == {"yes"}
    assert events.looks("after")[-1] == "no"
    [proven] = events.named("heal_proven")
    assert proven["proven"] is True and proven["by_own_heal"] is True
    assert "state T" in events.named("fault_observed", stage="during")[0]["evidence"]
    story = story_of(run_id)
    assert story.ended is True and story.healed["one#1"].rung == "undo"
    assert {name for name, _ in story.processes} == {"web-0", "web-1"}


def test_down_keeps_the_replica_away_until_healed(tmp_path):
    async def run():
        events = Events()
        agent = await RemoteAgent.start(
            config(tmp_path, tiny_target(tmp_path, "tiny"), new_run_id()), on_event=events.on_event
        )
        await agent.start_target()
        await agent.prepare(held("node.down"))
        await agent.inject("one")
        await asyncio.sleep(1.0)  # ten times `restart.after`
        await agent.heal("one")
        assert await agent.stop() == []
        return events

    events = asyncio.run(run())
    # The first look may meet the connections of the dying process.
    assert set(events.looks("during")[1:]) == {"yes"}
    assert events.named("heal_proven")[0]["by_own_heal"] is True


def test_kill_is_proven_by_the_old_process_being_gone(tmp_path):
    async def run():
        events = Events()
        agent = await RemoteAgent.start(
            config(tmp_path, tiny_target(tmp_path, "tiny"), new_run_id()), on_event=events.on_event
        )
        await agent.start_target()
        await agent.prepare(one_shot("node.kill"))
        await agent.inject("one")
        await until(lambda: "yes" in events.looks("during"))
        assert await agent.stop() == []
        return events

    events = asyncio.run(run())
    assert events.looks("before") == ["no"] * 3
    assert events.named("fault_healed") == []


@pytest.mark.parametrize("kind", ["node.pause", "node.down", "network.latency"])
def test_kill_9_of_survive_leaves_nothing_within_a_second(start, kind):
    parent = start(kind)
    if kind == "node.pause":
        assert soon(lambda: paused(parent.run_id))
    os.killpg(parent.process.pid, signal.SIGKILL)
    gone_within(parent, 1.0)
    story = story_of(parent.run_id)
    assert story.ended is True
    assert story.healed["one#1"].proven
    assert heal_leftovers(check=True).clean


def test_the_agent_has_a_session_of_its_own_and_no_tracking_id(start):
    parent = start("node.down")
    assert processes.session(parent.agent) == parent.agent
    assert b"RUNNER_TRACKING_ID" not in Path(f"/proc/{parent.agent}/environ").read_bytes()


def test_sigint_is_not_for_the_agent_and_sigterm_heals(start):
    parent = start("node.pause")
    os.kill(parent.agent, signal.SIGINT)
    os.kill(parent.agent, signal.SIGHUP)
    time.sleep(0.2)
    assert parent.agent_alive()
    assert soon(lambda: paused(parent.run_id))
    os.kill(parent.agent, signal.SIGTERM)
    deadline = time.monotonic() + 1.0
    while parent.left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes.marked(parent.run_id) == []
    assert story_of(parent.run_id).ended is True


def test_kill_9_of_both_is_healed_from_the_ledger(start):
    parent = start("node.pause")
    os.kill(parent.agent, signal.SIGKILL)
    os.kill(parent.process.pid, signal.SIGKILL)
    parent.process.wait(5)
    assert soon(lambda: not parent.agent_alive())
    result = heal_leftovers()
    assert result.clean, result.lines()
    assert parent.left() == []
    assert heal_leftovers(check=True).clean
    assert story_of(parent.run_id).ended is True


def test_an_agent_that_dies_is_noticed_and_healed_from_its_ledger(tmp_path):
    async def run():
        run_id = new_run_id()
        agent = await RemoteAgent.start(
            config(tmp_path, tiny_target(tmp_path, "tiny"), run_id), on_event=Events().on_event
        )
        await agent.start_target()
        await agent.prepare(held("node.pause"))
        await agent.inject("one")
        os.kill(agent._process.pid, signal.SIGKILL)
        await asyncio.wait_for(agent.died.wait(), 1)
        with pytest.raises(AgentDiedError):
            await agent.heal("one")
        assert await agent.stop() == []
        assert processes.marked(run_id) == []
        return run_id

    assert story_of(asyncio.run(run())).ended is True


def test_a_second_run_on_the_same_target_is_refused(tmp_path):
    async def run():
        spec = tiny_target(tmp_path, "tiny")
        first = await RemoteAgent.start(
            config(tmp_path, spec, new_run_id()), on_event=Events().on_event
        )
        with pytest.raises(RefusedError, match="another run holds the target 'tiny'"):
            await RemoteAgent.start(
                config(tmp_path, spec, new_run_id()), on_event=Events().on_event
            )
        assert await first.stop() == []
        third = await RemoteAgent.start(
            config(tmp_path, spec, new_run_id()), on_event=Events().on_event
        )
        assert await third.stop() == []

    asyncio.run(run())


def test_an_unhealthy_target_crosses_the_pipe_with_its_last_lines(tmp_path):
    async def run():
        spec = tiny_target(tmp_path, "tiny")
        (tmp_path / "server.py").write_text("raise SystemExit('no such model')")
        agent = await RemoteAgent.start(
            config(tmp_path, spec, new_run_id()), on_event=Events().on_event
        )
        with pytest.raises(TargetUnhealthyError) as caught:
            await agent.start_target()
        assert await agent.stop() == []
        return caught.value

    error = asyncio.run(run())
    assert error.last_lines[-1] == "no such model"
    assert error.message.startswith("web-0 never became healthy: it exited with 1")


def test_a_fault_that_matches_nothing_is_refused(tmp_path):
    async def run():
        agent = await RemoteAgent.start(
            config(tmp_path, tiny_target(tmp_path, "tiny"), new_run_id()),
            on_event=Events().on_event,
        )
        await agent.start_target()
        with pytest.raises(RefusedError, match="matches nothing of 'web'"):
            await agent.preflight(held("gpu.lost"))  # it has no GPU
        assert await agent.stop() == []

    asyncio.run(run())


def test_helpers_get_their_descriptors_and_end_with_the_run(tmp_path):
    """A helper writes to a pipe of survive's; its end is told; a second one dies with the run."""

    async def run():
        read, write = os.pipe()
        exits = []
        agent = await RemoteAgent.start(
            config(tmp_path, tiny_target(tmp_path, "tiny"), new_run_id()),
            pass_fds=[write],
            on_event=Events().on_event,
            on_exit=lambda name, code: exits.append((name, code)),
        )
        code = f"import os; os.write({write}, b'hello'); raise SystemExit(7)"
        await agent.spawn("talker", [sys.executable, "-c", code], [write])
        os.close(write)
        with os.fdopen(read, "rb") as pipe:  # ends only if the agent closed its copy too
            assert await asyncio.to_thread(pipe.read) == b"hello"
        await until(lambda: exits == [("talker", 7)])
        pid = await agent.spawn("sleeper", ["sleep", "300"], [])
        began = processes.start_time(pid)
        assert await agent.stop() == []
        assert not processes.exists(pid, began)

    asyncio.run(run())


def test_a_callback_that_fails_is_raised_and_the_agent_heals(tmp_path):
    """A record that cannot be written ends the run; it is not swallowed with the fault on."""

    def broken(name, fields, t_us):
        raise OSError(28, "no space left")

    async def run():
        run_id = new_run_id()
        agent = await RemoteAgent.start(
            config(tmp_path, tiny_target(tmp_path, "tiny"), run_id), on_event=broken
        )
        await agent.start_target()
        with pytest.raises(OSError, match="no space left"):
            await agent.prepare(held("node.pause"))
        await until(lambda: not processes.marked(run_id), 2)
        with pytest.raises(OSError, match="no space left"):
            await agent.stop()

    asyncio.run(run())


SLOW_START = """
import sys, time
if "survive.chaos.agent_process" in sys.orig_argv:
    time.sleep(60)
"""
STARTS = """
import sys, time
from pathlib import Path
from survive.chaos.remote import _start_process
process, ours = _start_process(Path(sys.argv[1]), ())
print(process.pid, flush=True)
time.sleep(60)
"""


def test_an_agent_that_still_starts_dies_with_survive(tmp_path):
    """It has nothing to heal yet, and on a loaded host it would not hear of it for seconds."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    argv = [sys.executable, "-c", STARTS, str(tmp_path / "logs")]
    env = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env, cwd=ROOT) as parent:
        agent = int(parent.stdout.readline())
        began = processes.start_time(agent)
        assert processes.exists(agent, began)
        parent.kill()
    deadline = time.monotonic() + 1
    while processes.exists(agent, began) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not processes.exists(agent, began)
