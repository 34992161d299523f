"""survive's faults under a real ``chaos run``: proven, and gone however the experiment ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from survive.chaos import processes
from survive.chaos.ledger import LEDGER, Ledger, folders
from survive.chaostoolkit import discover

CHAOS = Path(sys.executable).with_name("chaos")
SERVER = """
import http.server
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "2"); self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ok)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def service():
    """(pid, address) of a service that answers 200."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    yield process.pid, f"127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()


def provider(module, func, **arguments):
    module = f"survive.chaostoolkit.{module}"
    return {"type": "python", "module": module, "func": func, "arguments": arguments}


def pause(pid, address, name="hang"):
    arguments = {"kind": "node.pause", "name": name, "at": {"pid": pid, "address": address}}
    return {"type": "action", "name": "pause", "provider": provider("actions", "inject_fault",
            **arguments)}  # fmt: skip


def sleep(seconds):
    return {"type": "action", "name": "wait", "provider": {
        "type": "process", "path": "sleep", "arguments": str(seconds)}}  # fmt: skip


def active(tolerance=None):
    return {"type": "probe", "name": "active", "provider": provider("probes", "fault_active",
            name="hang")}  # fmt: skip


def experiment(folder, *method, control=True):
    content = {"title": "t", "description": "d", "method": list(method), "rollbacks": []}
    if control:
        module = "survive.chaostoolkit.control"
        content["controls"] = [{"name": "survive", "provider": {
            "type": "python", "module": module}}]  # fmt: skip
    (folder / "experiment.json").write_text(json.dumps(content))
    return subprocess.Popen(
        [CHAOS, "--no-version-check", "--no-log-file", "run", "experiment.json"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def journal(folder):
    return json.loads((folder / "journal.json").read_text())


def stopped(pid):
    return processes.state(pid, processes.start_time(pid)) == "T"


def until(wanted, within_s=8.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if wanted():
            return True
        time.sleep(0.02)
    return False


def answers(address):
    with urllib.request.urlopen(f"http://{address}/health", timeout=2) as answer:
        return answer.status == 200


def ended_clean():
    (folder,) = folders()
    story = Ledger.read(folder / LEDGER)
    return story.ended is True and not story.open_injections()


def test_a_fault_is_proven_on_and_the_control_heals_what_nobody_did(service, tmp_path):
    pid, address = service
    run = experiment(tmp_path, pause(pid, address), active())
    out, _ = run.communicate(timeout=40)
    told = journal(tmp_path)
    assert run.returncode == 0 and told["status"] == "completed", out
    inject, probe = told["run"]
    assert "silent for 250 ms" in inject["output"]["evidence"] and probe["output"] is True
    assert not stopped(pid) and answers(address) and ended_clean()


def test_heal_is_an_action_too(service, tmp_path):
    pid, address = service
    heal = {"type": "action", "name": "heal", "provider": provider("actions", "heal_fault",
            name="hang")}  # fmt: skip
    run = experiment(tmp_path, pause(pid, address), heal, active(), heal)
    out, _ = run.communicate(timeout=40)
    told = journal(tmp_path)["run"]
    assert run.returncode == 0, out
    assert [one["output"] for one in told[2:]] == [False, "nothing to heal"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_experiment_leaves_nothing(service, tmp_path, number):
    pid, address = service
    run = experiment(tmp_path, pause(pid, address), sleep(5))
    assert until(lambda: stopped(pid))
    time.sleep(0.5)  # into the wait, where an interrupt finds Chaos Toolkit
    run.send_signal(number)
    run.communicate(timeout=40)
    assert not stopped(pid) and answers(address) and ended_clean()


@pytest.mark.parametrize("control", [True, False])
def test_a_killed_experiment_leaves_nothing(service, tmp_path, control):
    pid, address = service
    run = experiment(tmp_path, pause(pid, address), sleep(30), control=control)
    assert until(lambda: stopped(pid))
    run.kill()
    run.communicate(timeout=10)
    assert until(lambda: not stopped(pid), 3.0) and answers(address)
    assert until(ended_clean, 3.0)


def test_a_fault_that_does_not_bite_is_no_green(service, tmp_path):
    """Chaos Toolkit itself calls an experiment whose actions raised completed, with exit 0."""
    _, address = service
    other = subprocess.Popen(["sleep", "60"], process_group=0)
    try:
        run = experiment(tmp_path, pause(other.pid, address))
        run.communicate(timeout=40)
    finally:
        other.kill()
        other.wait()
    told = journal(tmp_path)
    assert run.returncode == 1 and told["deviated"] is True
    assert "not proven on" in told["survive"][0]


@pytest.mark.parametrize(
    ("kind", "at", "why"),
    [
        ("node.down", {"pid": 1, "address": "127.0.0.1:1"}, "needs a target that survive started"),
        ("node.pause", {"pid": 1, "address": "10.0.0.1:80"}, "is not on this host"),
        ("node.pause", {"address": "127.0.0.1:1"}, "needs `at` with address, pid"),
        ("node.pause", {"pid": 2**22 + 1, "address": "127.0.0.1:1"}, "there is no process"),
        ("node.pause", {"pid": 1, "addres": "x"}, "knows no addres"),
        ("node.paus", {}, "unknown fault kind"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(kind, at, why):
    from chaoslib.exceptions import ActivityFailed

    from survive.chaostoolkit import actions

    with pytest.raises(ActivityFailed, match=why):
        actions.inject_fault(kind, at)
    assert folders() == []


def test_chaos_toolkit_discovers_what_we_offer():
    found = {activity["name"]: activity["type"] for activity in discover()["activities"]}
    assert found == {
        "heal_fault": "action",
        "inject_fault": "action",
        "fault_active": "probe",
        "fault_evidence": "probe",
    }
