"""``survive heal``: from the ledger alone, and never a process that it cannot name."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from chaostools import new_run_id

from survive.chaos import heal, processes
from survive.chaos.heal import heal_leftovers
from survive.chaos.ledger import LEDGER, Ledger, Named, Owner, Story, state_dir
from survive.contracts import HandleSpec, Injection
from survive.errors import RefusedError, UsageError

DEAD = Named(2**22 - 1, 1)  # no process has the highest pid with that start time


def owner(agent=DEAD, survive=DEAD, boot=None):
    return Owner(boot or processes.boot_id(), survive, agent)


@pytest.fixture
def sleepers():
    """Processes of ours, one group each, killed at the end."""
    made = []

    def start(run_id="", argv=("sleep", "300"), **more):
        env = {**os.environ, **({processes.RUN_MARK: run_id} if run_id else {})}
        made.append(subprocess.Popen(argv, env=env, process_group=0, **more))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait(5)
        if process.stdout:
            process.stdout.close()


def write(run_id, *, who=None, started=(), injections=(), ended=None):
    ledger = Ledger.create(run_id, run_id, who or owner())
    for process in started:
        ledger.process("web-0", process.pid, processes.start_time(process.pid))
    if injections:
        ledger.inject(list(injections))
    if ended is not None:
        ledger.ended(clean=ended)
    ledger.close()
    return ledger.path


def pausing(process, until_us=9):
    spec = HandleSpec(
        "process",
        "web",
        0,
        "127.0.0.1:1",
        pid=process.pid,
        start_time=processes.start_time(process.pid),
    )
    return Injection("one#1", "one", "node.pause", {}, spec, 5, until_us)


def wait_state(process, state):
    deadline = time.monotonic() + 3
    while processes.state(process.pid, processes.start_time(process.pid)) != state:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_host_without_ledgers_is_clean():
    result = heal_leftovers(check=True)
    assert result.clean and result.lines() == ["clean: nothing is left"]


def test_a_paused_process_of_a_dead_run_is_listed_then_ended(sleepers):
    run_id = new_run_id()
    process = sleepers(run_id)
    write(run_id, started=[process], injections=[pausing(process)])
    os.kill(process.pid, signal.SIGSTOP)
    wait_state(process, "T")

    found = heal_leftovers(check=True)
    assert not found.clean
    assert f"web-0 (pid {process.pid}, paused): left" in "\n".join(found.lines())
    assert any(
        f.injection == "one#1" and f"kill -CONT -- -{process.pid}" in f.line()
        for f in found.findings
    )
    assert processes.state(process.pid, processes.start_time(process.pid)) == "T"  # untouched

    done = heal_leftovers()
    assert done.clean, done.lines()
    assert process.wait(3) == -signal.SIGKILL
    assert heal_leftovers(check=True).clean
    story = Ledger.read(state_dir() / run_id / LEDGER)
    assert story.ended is True and story.healed["one#1"].proven


def test_a_run_whose_owner_lives_is_not_touched(sleepers):
    run_id = new_run_id()
    process = sleepers(run_id)
    write(run_id, who=Owner.here(), started=[process])
    result = heal_leftovers()
    assert result.running == (run_id,) and result.clean
    assert process.poll() is None
    with pytest.raises(RefusedError, match="still running"):
        heal_leftovers(run=run_id)
    assert process.poll() is None


def test_force_ends_the_agent_of_the_named_run_only(sleepers):
    run_id, other_id = new_run_id(), new_run_id()
    agent, process, other = sleepers(), sleepers(run_id), sleepers(other_id)
    write(run_id, who=owner(agent=Named.of(agent.pid)), started=[process])
    write(other_id, who=Owner.here(), started=[other])
    with pytest.raises(UsageError, match="--force needs --run"):
        heal_leftovers(force=True)
    assert heal_leftovers(run=run_id, force=True).clean
    assert agent.wait(3) == process.wait(3) == -signal.SIGKILL
    assert other.poll() is None


def test_a_recycled_pid_is_never_touched(sleepers):
    """The ledger names a pid that another process has by now."""
    run_id = new_run_id()
    stranger = sleepers()
    ledger = Ledger.create(run_id, run_id, owner())
    ledger.process("web-0", stranger.pid, processes.start_time(stranger.pid) - 1)
    spec = HandleSpec(
        "process",
        "web",
        0,
        "127.0.0.1:1",
        pid=stranger.pid,
        start_time=processes.start_time(stranger.pid) - 1,
    )
    ledger.inject([Injection("one#1", "one", "node.pause", {}, spec, 5, 9)])
    ledger.close()
    assert heal_leftovers(check=True).clean
    assert heal_leftovers().clean
    time.sleep(0.05)
    assert stranger.poll() is None


def test_a_recycled_group_is_never_touched(sleepers):
    """A dead leader's number may lead strangers by now; they are not of the agent's session."""
    run_id = new_run_id()
    stranger = sleepers(
        "",
        (
            sys.executable,
            "-c",
            "import subprocess, sys, os\n"
            "p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)",
        ),
        stdout=subprocess.PIPE,
    )
    orphan = int(stranger.stdout.readline())
    stranger.wait(5)
    began = processes.start_time(orphan)
    try:
        ledger = Ledger.create(run_id, run_id, owner())
        ledger.process("web-0", stranger.pid, began - 1)
        ledger.close()
        assert heal_leftovers().clean
        time.sleep(0.05)
        assert processes.exists(orphan, began)
    finally:
        processes.send(orphan, began, signal.SIGKILL)


def test_what_left_its_group_is_found_by_its_mark(sleepers):
    run_id = new_run_id()
    sleepers(run_id, ("setsid", "sleep", "300")).wait(5)  # it forks, and the child goes on
    assert len(processes.marked(run_id)) == 1
    write(run_id)
    assert not heal_leftovers(check=True).clean
    assert heal_leftovers().clean
    assert processes.marked(run_id) == []


def test_another_boot_is_another_world(sleepers):
    """Pids and ports of before a restart mean nothing now."""
    run_id = new_run_id()
    process = sleepers()
    write(run_id, who=owner(boot="another-boot"), started=[process], injections=[pausing(process)])
    assert heal_leftovers(check=True).clean
    assert heal_leftovers().clean
    assert process.poll() is None
    assert Ledger.read(state_dir() / run_id / LEDGER).ended is True


def test_a_run_that_ended_clean_is_not_looked_at_again(sleepers):
    process = sleepers()
    write("done", started=[process], ended=True)
    assert heal_leftovers() == heal_leftovers(check=True)
    assert process.poll() is None


def test_a_torn_ledger_still_heals_what_it_tells(sleepers):
    run_id = new_run_id()
    process = sleepers(run_id)
    path = write(run_id, started=[process], injections=[pausing(process)])
    with path.open("ab") as file:
        file.write(b'{"entry":"healed","id":"one#1","prov')
    assert heal_leftovers().clean
    assert process.wait(3) == -signal.SIGKILL


def test_a_ledger_torn_before_its_owner_was_told_is_nothing_yet():
    folder = state_dir() / "torn"
    folder.mkdir(parents=True)
    (folder / LEDGER).write_bytes(b'{"entry":"run","ru')
    assert heal_leftovers(check=True).clean
    assert heal_leftovers().clean


def test_an_unknown_run_is_a_usage_error():
    write("abc")
    with pytest.raises(UsageError, match="no run 'abd'") as caught:
        heal_leftovers(run="abd")
    assert "'abc'" in caught.value.hint


TEAM_FAULT = '''
from pathlib import Path
from survive.contracts import Active, Needs, Observation

class Foreign:
    """Acts on something that is no process of the run: a file."""
    kind = "foreign.file"
    needs = Needs.REPLICA

    async def observe(self, injection, handle, before):
        there = Path(injection.settings["file"]).exists()
        return Observation(Active.YES if there else Active.NO, "the file")

    async def heal(self, injection, handle):
        if injection.settings["works"]:
            Path(injection.settings["file"]).unlink(missing_ok=True)
'''


@pytest.mark.parametrize("works", [True, False])
def test_a_fault_whose_carrier_is_not_ours_is_undone_by_its_own_heal(tmp_path, works):
    """A team's own kind, found again by the ledger's `start`; and its heal is checked."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "foreign.py").write_text(TEAM_FAULT)
    (tmp_path / ".git").mkdir()
    hurt = tmp_path / "hurt"
    hurt.write_text("")
    run_id = new_run_id()
    ledger = Ledger.create(run_id, run_id, owner(), tmp_path)
    spec = HandleSpec("external", "web", 0, "127.0.0.1:1")
    ledger.inject(
        [Injection("one#1", "one", "foreign.file", {"file": str(hurt), "works": works}, spec, 5, 9)]
    )
    ledger.close()
    assert not heal_leftovers(check=True).clean
    result = heal_leftovers()
    assert result.clean is works and hurt.exists() is not works
    assert heal_leftovers(check=True).clean is works


# --------------------------------------------------------------------------- damaged ledgers


def garble(path, number):
    """Make a line of a ledger unreadable."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b'"entry"', b'"\xffntry"')
    path.write_bytes(b"".join(lines))


def test_a_line_that_cannot_be_read_is_told_until_somebody_has_looked(sleepers):
    run_id = new_run_id()
    process = sleepers(run_id)
    path = write(run_id, started=[process], injections=[pausing(process)])
    garble(path, 3)

    found = heal_leftovers(check=True)
    told = "\n".join(found.lines())
    assert not found.clean and f"its ledger {path}: line 3 cannot be read" in told
    assert f"survive heal --run {run_id} --acknowledge" in told

    done = heal_leftovers()
    assert process.wait(3) == -signal.SIGKILL  # all that can be read is mended
    assert [f.what for f in done.findings if not f.gone] == [f"its ledger {path}"]
    assert not heal_leftovers(run=run_id, force=True).clean  # a machine's word is no look
    assert not heal_leftovers(check=True).clean

    assert heal_leftovers(run=run_id, acknowledge=True).clean
    assert heal_leftovers(check=True).clean
    assert Ledger.read(path).ended is True


@pytest.mark.parametrize("more", [{}, {"run": "abc", "check": True}])
def test_only_a_named_run_is_acknowledged(more):
    write("abc")
    with pytest.raises(UsageError, match="--acknowledge needs --run"):
        heal_leftovers(acknowledge=True, **more)


def test_without_its_first_line_only_the_mark_names_a_process(sleepers):
    """Nobody can say of which boot the ledger's pids are."""
    run_id = new_run_id()
    ours, stranger = sleepers(run_id), sleepers()
    path = write(run_id, started=[ours, stranger])
    garble(path, 1)
    assert not heal_leftovers(check=True).clean
    done = heal_leftovers()
    assert ours.wait(3) == -signal.SIGKILL and stranger.poll() is None
    assert not done.clean and "line 1 cannot be read" in "\n".join(done.lines())
    assert heal_leftovers(run=run_id, acknowledge=True).clean
    assert stranger.poll() is None


def test_a_run_that_cannot_name_its_owner_but_has_one_is_not_touched(sleepers):
    run_id = new_run_id()
    process = sleepers(run_id)
    ledger = Ledger.create(run_id, run_id, owner())
    ledger.process("web-0", process.pid, processes.start_time(process.pid))
    garble(ledger.path, 1)
    for more in ({}, {"check": True}, {"run": run_id, "force": True}):
        result = heal_leftovers(**more)
        assert not result.clean and "its agent lives: untouched" in result.lines()[0]
    assert process.poll() is None
    ledger.close()


def test_a_ledger_that_the_disk_does_not_give_back_is_told(monkeypatch):
    path = write("abc")

    def broken(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(path), "read_bytes", broken)
    result = heal_leftovers(check=True)
    assert not result.clean and "cannot be read: Input/output error" in result.lines()[0]


def test_what_a_run_could_not_read_but_knew_is_not_told_again(sleepers):
    """Its own last word is from memory."""
    path = write("done", started=[sleepers()], ended=True)
    garble(path, 2)
    assert heal_leftovers(check=True).clean
    with path.open("ab") as file:
        file.write(b"and then something\n")
    assert not heal_leftovers(check=True).clean


def test_whatever_happens_to_a_ledger_nothing_breaks_and_nothing_is_called_clean(
    sleepers, tmp_path
):
    """A held fault is on (a file is there), a stranger has the pid that a line may name: for
    changes all over the ledger, heal ends, spares the stranger, and is clean only without the
    fault."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "foreign.py").write_text(TEAM_FAULT)
    (tmp_path / ".git").mkdir()
    hurt, stranger = tmp_path / "hurt", sleepers()
    began = processes.start_time(stranger.pid)
    ledger = Ledger.create("abc", "abc", owner(), tmp_path)
    ledger.process("web-0", stranger.pid, began - 1)
    spec = HandleSpec("external", "web", 0, "127.0.0.1:1", pid=stranger.pid, start_time=began - 1)
    settings = {"file": str(hurt), "works": True}
    bare = HandleSpec("external", "web", 0, "127.0.0.1:1")
    ledger.inject([Injection("one#1", "one", "foreign.file", settings, bare, 5, 9)])
    ledger.inject([Injection("two#1", "two", "node.pause", {}, spec, 5, 9)])
    ledger.close()
    whole = ledger.path.read_bytes()
    chance = random.Random(3)
    clean = 0
    for _ in range(120):
        at, length = chance.randrange(len(whole)), chance.choice([0, 1, 1, 5, 60, 400])
        new = chance.choice([b"", b"\n", b"9", b'"}\n', bytes([chance.randrange(256)])])
        data = whole[:at] + new + whole[at + length :]
        ledger.path.write_bytes(data)
        hurt.write_text("")
        assert not heal_leftovers(check=True).clean or whole.startswith(data)
        if heal_leftovers().clean and not whole.startswith(data):
            clean += 1
            assert not hurt.exists(), data
        assert processes.exists(stranger.pid, began)
        assert stranger.poll() is None
    assert clean  # of changes that hid nothing


def test_it_can_be_called_where_a_loop_runs():
    from survive.chaos.heal import heal_all

    assert asyncio.run(heal_all()).clean


def test_a_process_that_is_dying_and_shows_no_mark_any_more_is_waited_for(monkeypatch):
    sleeper = subprocess.Popen(["sleep", "30"])
    process = Named(sleeper.pid, processes.start_time(sleeper.pid))
    seen = iter([[("process of the run", process)]])
    monkeypatch.setattr(heal, "leftovers", lambda run, story: next(seen, []))
    sent = []

    def send(pid, start_time, number):
        """As on a busy host: the signal is there, and death takes its time."""
        sent.append(pid)
        if len(sent) == 4:
            processes_send(pid, start_time, number)

    processes_send = processes.send
    monkeypatch.setattr(processes, "send", send)
    try:
        ended = asyncio.run(heal.end_processes("a-run", Story()))
    finally:
        sleeper.kill()
        sleeper.wait(5)
    assert ended == [("process of the run", process, True)]
