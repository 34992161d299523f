"""A held Chaos Toolkit fault in a real run: gone after every ending, and what is refused before."""

from __future__ import annotations

import ast
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from survive.catalog import Catalog
from survive.chaos.ledger import LEDGER, Ledger, folders
from survive.errors import ScenarioError
from survive.scenario.loader import load_scenario

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def url():
    """A service that answers 200 to everything."""

    class Ok(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ok)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def shell(line):
    return {"provider": {"type": "process", "path": "sh", "arguments": ["-c", line]}}


def scenario(url, flag, **fault):
    return {
        "survive": 1,
        "name": "ctk",
        "target": {
            "driver": "external",
            "entry": "web",
            "services": {"web": {"url": url, "health": {"get": "/"}}},
            "allow": {"hosts": ["127.0.0.1"], "faults": ["chaostoolkit"]},
        },
        "requests": {"page": {"get": "/", "timeout": "1s"}},
        "load": {"phases": [{"name": "flat", "rate": "10/s", "for": "60s"}]},
        "faults": {
            "held": {
                "kind": "chaostoolkit",
                "at": "1s",
                "for": "40s",
                "with": {
                    "inject": shell(f"echo on > {flag}"),
                    "heal": shell(f"rm -f {flag}"),
                    "verify": {**shell(f"test -e {flag}"), "tolerance": 0},
                },
                **fault,
            }
        },
        "objectives": {"answers": {"metric": "success", "min": "50%", "during": "run"}},
    }


@pytest.fixture
def start(url, tmp_path):
    """Run it until the fault is on: (process, flag)."""
    flag = tmp_path / "flag"
    file = tmp_path / "ctk.survive.yaml"
    file.write_text(yaml.safe_dump(scenario(url, flag)))
    run = subprocess.Popen(
        [sys.executable, "-m", "survive", "run", file, "--format", "json"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if not until(flag.exists, 15):
        run.kill()
        raise AssertionError(run.communicate(timeout=5))
    time.sleep(0.6)  # looks have begun
    yield run, flag
    if run.poll() is None:
        run.kill()
    run.communicate(timeout=10)


def until(wanted, within_s):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if wanted():
            return True
        time.sleep(0.02)
    return False


def story():
    (folder,) = folders()
    return Ledger.read(folder / LEDGER)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_interrupted_heals(start, number, code):
    run, flag = start
    run.send_signal(number)
    out, err = run.communicate(timeout=15)
    assert run.returncode == code, err
    assert not flag.exists() and story().open_injections() == []
    assert json.loads(out)["faults"][0]["heal_proof"] == "proven"


def test_a_run_that_is_killed_is_healed_by_its_agent(start):
    run, flag = start
    run.kill()
    assert until(lambda: not flag.exists(), 5)
    assert until(lambda: story().ended is True, 5)


def test_an_agent_that_is_killed_is_healed_by_the_run(start):
    run, flag = start
    owner = story().owner
    os.kill(owner.agent.pid, signal.SIGKILL)
    out, err = run.communicate(timeout=20)
    assert run.returncode == 3, (out[:1500], err)
    assert not flag.exists() and story().open_injections() == []


def test_both_killed_leave_it_to_survive_heal(start):
    run, flag = start
    owner = story().owner
    for pid in (owner.agent.pid, run.pid):
        os.kill(pid, signal.SIGSTOP)  # neither sees the other go
    for pid in (owner.agent.pid, run.pid):
        os.kill(pid, signal.SIGKILL)
    run.communicate(timeout=10)

    def heal(*flags):
        return subprocess.run([sys.executable, "-m", "survive", "heal", *flags],
                              capture_output=True, text=True, timeout=30, check=False)  # fmt: skip

    checked = heal("--check")
    assert checked.returncode == 5 and f"by hand: sh -c 'rm -f {flag}'" in checked.stdout
    assert flag.exists()
    healed = heal()
    assert healed.returncode == 0 and not flag.exists(), healed.stdout
    assert heal("--check").returncode == 0


# ---------------------------------------------------------------------- refused before


def problems(content, tmp_path):
    file = tmp_path / "x.survive.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ScenarioError) as caught:
        load_scenario(file, catalog=Catalog(file, plugins=False))
    return "\n".join(caught.value.lines())


@pytest.mark.parametrize("key", [{"service": "web"}, {"link": "load -> web"}, {"count": 1}])
def test_it_takes_neither_service_nor_link(tmp_path, key):
    said = problems(scenario("http://127.0.0.1:1", "f", **key), tmp_path)
    assert "chaostoolkit acts on the target as a whole" in said


def test_default_is_deny(tmp_path):
    content = scenario("http://127.0.0.1:1", "f")
    content["target"]["allow"]["faults"] = ["network"]
    assert "does not allow 'chaostoolkit' faults" in problems(content, tmp_path)


def test_a_variable_that_nobody_declares_is_an_error_at_its_place(tmp_path):
    content = scenario("http://127.0.0.1:1", "${where}")
    said = problems(content, tmp_path)
    assert "${where} is declared in neither" in said
    content["faults"]["held"]["with"]["configuration"] = {"where": "f"}
    file = tmp_path / "good.survive.yaml"
    file.write_text(yaml.safe_dump(content))
    assert load_scenario(file).faults["held"].settings["configuration"] == {"where": "f"}


def test_the_virtual_host_refuses_it(tmp_path):
    content = scenario("http://127.0.0.1:1", "f")
    content["target"] = {
        "driver": "process",
        "entry": "web",
        "services": {"web": {"app": "web.py:make_app", "health": {"get": "/"}}},
        "allow": {"faults": ["chaostoolkit"]},
    }
    (tmp_path / "web.py").write_text(
        "def make_app(context):\n"
        "    async def app(scope, receive, send):\n"
        "        await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "        await send({'type': 'http.response.body', 'body': b''})\n"
        "    return app\n"
    )
    file = tmp_path / "v.survive.yaml"
    file.write_text(yaml.safe_dump(content))
    done = subprocess.run([sys.executable, "-m", "survive", "run", file, "--virtual"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=30,
                          check=False)  # fmt: skip
    assert done.returncode == 6 and "run it without --virtual" in done.stderr, done.stderr


def test_chaos_toolkit_is_imported_where_its_code_runs_only():
    allowed = {"faults/activities/in_fork.py"} | {
        f"survive/chaostoolkit/{name}.py" for name in ("__init__", "actions", "probes")
    }
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("survive", "faults", "targets", "reporters")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom) and "chaoslib" in ast.unparse(node)
    }
    assert found == allowed
