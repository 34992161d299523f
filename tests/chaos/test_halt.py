"""``survive halt`` on runs that are stand-ins: real processes with real ledgers, no load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from survive.chaos import halt as lever
from survive.chaos import processes
from survive.chaos.heal import heal_leftovers
from survive.chaos.ledger import LEDGER, Ledger, Named, Owner, folders, halt_file, prune, state_dir
from survive.errors import RefusedError

# Says when its handlers stand, then waits to be told to go.
POLITE = "import signal,sys,time; signal.signal(15, lambda *a: sys.exit(143)); print(1, flush=True); time.sleep(60)"  # noqa: E501
DEAF = "import signal,time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"


@pytest.fixture
def actors():
    started = []

    def begin(code):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"1\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait(5)
        process.stdout.close()


def reaped(process):
    """A zombie's owner is gone, but only its parent can bury it."""
    return process.wait(10)


def run_of(run_id, survive, agent):
    owner = Owner(processes.boot_id(), Named.of(survive.pid), Named.of(agent.pid))
    Ledger.create(run_id, run_id, owner).close()


def test_a_run_that_answers_is_stopped_and_a_new_one_refused(actors):
    survive, agent = actors(POLITE), actors(POLITE)
    run_of("run-1", survive, agent)
    # The stand-in's agent does not follow its survive by itself: it is asked after 5 s.
    began = time.monotonic()
    result = lever.halt()
    assert result.clean, result.lines()
    assert time.monotonic() - began < 8
    assert reaped(survive) == reaped(agent) == 143
    assert result.stopped == ("run-1: did not answer; its agent healed",)
    with pytest.raises(RefusedError, match="halted"):
        Ledger.create("run-2", "t")
    assert lever.clear()
    Ledger.create("run-3", "t").close()
    assert not lever.clear()


def test_a_frozen_run_and_a_deaf_agent_are_killed(actors, monkeypatch):
    monkeypatch.setattr(lever, "STOP_WITHIN_S", 0.2)
    monkeypatch.setattr(lever, "AGENT_WITHIN_S", 0.5)
    survive, agent = actors(POLITE), actors(DEAF)
    os.kill(survive.pid, signal.SIGSTOP)
    run_of("run-1", survive, agent)
    result = lever.halt()
    assert result.clean, result.lines()
    assert result.stopped == ("run-1: did not answer; both were killed",)
    assert reaped(agent) == -signal.SIGKILL
    assert reaped(survive) == -signal.SIGKILL


def test_several_runs_are_stopped_side_by_side(actors, monkeypatch):
    monkeypatch.setattr(lever, "STOP_WITHIN_S", 0.5)
    runs = [(actors(POLITE), actors(POLITE)) for _ in range(3)]
    for number, (survive, agent) in enumerate(runs):
        run_of(f"run-{number}", survive, agent)
    result = lever.halt()
    assert len(result.stopped) == 3
    assert result.clean
    assert all(reaped(process) == 143 for pair in runs for process in pair)


def test_without_runs_it_halts_all_the_same():
    result = lever.halt()
    assert result.clean
    assert result.lines()[0] == "no run was alive"
    assert halt_file().exists()
    assert lever.halt().clean


def test_what_a_dead_run_left_is_mended_too(actors):
    survive, left = actors(POLITE), actors(DEAF)
    run_of("run-1", survive, survive)
    survive.kill()
    survive.wait()
    ledger = Ledger(state_dir() / "run-1" / LEDGER)
    ledger.process("left", left.pid, processes.start_time(left.pid))
    ledger.close()
    result = lever.halt()
    assert result.clean, result.lines()
    assert reaped(left) == -signal.SIGKILL


def test_a_halted_run_leaves_a_ledger_that_heal_calls_clean():
    lever.halt()
    with pytest.raises(RefusedError):
        Ledger.create("run-1", "t")
    assert heal_leftovers(check=True).clean
    lever.clear()
    Ledger.create("run-2", "t").close()  # the lock of the refused run is free again


def test_only_clean_ledgers_are_forgotten_and_the_newest_stay():
    for number in range(6):
        ledger = Ledger.create(f"run-{number}", f"t-{number}")
        if number != 1:
            ledger.ended(clean=number != 2)
        ledger.close()
        os.utime(ledger.path, (number, number))
    prune(keep=2)
    assert [folder.name for folder in folders()] == ["run-1", "run-2", "run-4", "run-5"]
