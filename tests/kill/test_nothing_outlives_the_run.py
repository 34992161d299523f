"""No fault and no process outlives the run, whoever dies and however (DESIGN laws of safety).

Real processes, the reference stack; the moment is "while the fault is on", read from the run's own
event log. Here is what needs the commands beside it (heal, halt) and what dies in pairs; each
ending with each kind of fault is tests/matrix.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killtools import ROOT, Started, heal

FAULTS = {
    "network.latency": "link: gateway -> inference, with: {latency: 200ms}, for: 3s",
    "node.pause": "service: inference, for: 3s",
    "node.down": "service: inference, for: 3s",
    "gpu.lost": "service: inference, for: 3s",
}

SCENARIO = """
survive: 1
name: kill
target: reference
seed: 7
requests:
  search: {{get: "/v1/search?q=gpu", timeout: 2s}}
load:
  phases: [{{name: flat, rate: 20/s, for: 6s}}]
faults:
  one: {{kind: {kind}, at: 1s, {rest}}}
objectives:
  answers: {{metric: success, min: 50%, during: run}}
"""


@pytest.fixture
def start(tmp_path):
    runs = []

    def begin(kind):
        file = tmp_path / "kill.survive.yaml"
        file.write_text(SCENARIO.format(kind=kind, rest=FAULTS[kind]), encoding="utf-8")
        # Load, one child an injection, gateway, retrieval, three replicas (one may just have been
        # killed): all bear the mark.
        runs.append(Started(file, least=6))
        return runs[-1]

    yield begin
    for run in runs:
        run.close()


def assert_clean(run, within_s):
    """Nothing of the run is alive, within the time."""
    assert run.left(within_s) == [], run.output()


def assert_host_is_clean():
    done = heal("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_kill_9_of_survive(start):
    run = start("gpu.lost")
    run.until("fault_injected")
    run.process.kill()
    assert_clean(run, 1.0)
    assert_host_is_clean()


def test_kill_9_of_the_agent(start):
    run = start("network.latency")
    run.until("fault_injected")
    os.kill(run.agent(), signal.SIGKILL)
    assert_clean_but_survive(run, 1.0)
    assert run.process.wait(10) == 3, run.output()  # healed from the ledger, and proven
    assert_host_is_clean()


def assert_clean_but_survive(run, within_s):
    """The run's own process may still judge; all else must be gone. It bears no mark itself."""
    assert_clean(run, within_s)


@pytest.mark.parametrize("kind", ["network.latency", "node.pause", "gpu.lost"])
def test_kill_9_of_both_leaves_nothing_after_heal(start, kind):
    run = start(kind)
    run.until("fault_injected")
    agent = run.agent()
    os.kill(agent, signal.SIGKILL)
    run.process.kill()
    run.process.wait(5)
    began = time.monotonic()
    done = heal()
    assert done.returncode == 0, done.stdout + done.stderr
    assert_clean(run, 0.5)
    assert time.monotonic() - began < 5
    assert_host_is_clean()


def test_kill_9_of_the_whole_process_group(start):
    run = start("node.down")
    run.until("fault_injected")
    os.killpg(run.process.pid, signal.SIGKILL)
    assert_clean(run, 1.0)
    assert_host_is_clean()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_heals_and_says_so(start, number, code):
    """Within 7.5 s of SIGINT, when GitHub Actions sends SIGTERM, all is over."""
    run = start("node.pause")
    run.until("fault_injected")
    os.kill(run.process.pid, number)
    assert run.process.wait(5) == code, run.output()
    assert_clean(run, 0.5)
    assert "heal_proven" in run.events()
    assert run.only("report.html").is_file()
    assert_host_is_clean()


def test_ctrl_c_twice_leaves_at_once_and_the_agent_heals(start):
    run = start("node.pause")
    run.until("fault_injected")
    os.kill(run.process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.process.wait(3) == 130, run.output()
    assert_clean(run, 1.0)
    assert_host_is_clean()


def test_the_cancel_sequence_when_survive_itself_is_stuck(start):
    """SIGINT, SIGTERM, then GitHub Actions kills the tree and every orphan with the tracking id.

    A frozen harness cannot answer; the kill of the tree still leaves nothing behind.
    """
    run = start("node.pause")
    run.until("fault_injected")
    os.kill(run.process.pid, signal.SIGSTOP)
    os.kill(run.process.pid, signal.SIGINT)
    time.sleep(0.2)
    os.kill(run.process.pid, signal.SIGTERM)
    time.sleep(0.2)
    agent = run.agent()
    environ = Path(f"/proc/{agent}/environ").read_bytes()
    assert b"RUNNER_TRACKING_ID" not in environ
    run.process.kill()
    assert_clean(run, 1.0)
    assert_host_is_clean()


def survive(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "survive", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_halt_stops_a_run_and_no_other_begins_until_cleared(start):
    run = start("node.pause")
    run.until("fault_injected")
    halted = survive("halt")
    assert halted.returncode == 0, halted.stdout + halted.stderr
    assert f"{run.run_id}: stopped and healed" in halted.stdout
    assert run.process.wait(1) == 143, run.output()
    assert_clean(run, 0.1)
    assert "heal_proven" in run.events()
    again = ("run", str(run.folder / "kill.survive.yaml"), "--out", str(run.folder / "again"))
    refused = survive(*again)
    assert refused.returncode == 6, refused.stdout + refused.stderr
    assert "survive halt --clear" in refused.stderr
    assert survive("halt", "--clear").returncode == 0
    after = run.folder / "after"
    after.mkdir()
    shutil.copy(run.folder / "kill.survive.yaml", after)
    started = Started(after / "kill.survive.yaml", least=6)
    try:
        started.until("phase_started")
    finally:
        started.close()


def test_halt_of_a_run_whose_survive_is_frozen(start):
    """It cannot answer: its agent heals, and it is killed."""
    run = start("node.pause")
    run.until("fault_injected")
    os.kill(run.process.pid, signal.SIGSTOP)
    halted = survive("halt")
    assert halted.returncode == 0, halted.stdout + halted.stderr
    assert "did not answer; its agent healed" in halted.stdout
    assert run.process.wait(1) == -signal.SIGKILL
    assert_clean(run, 0.5)
