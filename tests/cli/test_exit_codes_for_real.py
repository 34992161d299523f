"""Every exit code, provoked by a real run of the command on real processes.

The precedence between them is a table in tests/judge; 130 and 143 are in tests/kill.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# On a busy host a run ends as "the harness was the bottleneck" (3): honest, and not the point here.
QUIET = pytest.mark.alone

SERVER = """
import asyncio, sys, time
delay = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0

async def serve(reader, writer):
    while line := await reader.readline():
        while (await reader.readline()) not in (b"\\r\\n", b""):
            pass
        if b"/health" not in line and delay:
            await asyncio.sleep(delay)
        status = b"500 no" if b"/broken" in line else b"200 OK"
        writer.write(b"HTTP/1.1 " + status + b"\\r\\ncontent-length: 2\\r\\n\\r\\nok")
        await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    print("listening", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

SABOTAGE = '''
from survive.catalog import Catalog
from survive.errors import RefusedError

Latency = type(Catalog().fault("network.latency"))


class NoopInject(Latency):
    kind = "sabotage.inject"

    async def inject(self, injection, handle):
        """Reports success, does nothing."""


class NoopHeal(Latency):
    kind = "sabotage.heal"

    async def heal(self, injection, handle):
        """Reports success, does nothing."""


class Fickle(Latency):
    kind = "sabotage.fickle"
    asked = 0

    def preflight(self, settings, victims):
        Fickle.asked += 1
        if Fickle.asked > 1:
            raise RefusedError("it is not allowed any more")
        return super().preflight(settings, victims)


class Buggy(Latency):
    kind = "sabotage.bug"

    def preflight(self, settings, victims):
        raise RuntimeError("a bug in a plug-in")
'''

SCENARIO = """
survive: 1
name: codes
seed: 3
target:
  driver: {driver}
  entry: web
  services:
    web: {service}
  links: {{}}
  allow: {{hosts: [127.0.0.1], faults: [network, node, sabotage]}}
requests:
  page: {{get: {path}, timeout: 1s}}
load:
  arrivals: uniform
  phases: [{{name: flat, rate: 80/s, for: {seconds}s}}]
faults: {faults}
objectives:
  answers: {{metric: success, min: 95%, during: {during}}}
stop_if: {stop_if}
"""


@pytest.fixture
def survive(tmp_path):
    (tmp_path / ".git").mkdir()  # the folder is a repository root of its own
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sabotage.py").write_text(SABOTAGE)
    (tmp_path / "server.py").write_text(SERVER)

    def run(
        *,
        path="/",
        faults="{}",
        stop_if="{}",
        seconds=4,
        arguments=(),
        delay="",
        during="run",
        service=None,
        driver="process",
        env=None,
        program=None,
    ):
        argv = program or [sys.executable, str(tmp_path / "server.py"), "{port}"]
        argv = argv + ([delay] if delay else [])
        service = service or f"{{run: {json.dumps(argv)}, health: {{get: /health, within: 4s}}}}"
        (tmp_path / "codes.survive.yaml").write_text(
            SCENARIO.format(
                service=service,
                path=path,
                faults=faults,
                stop_if=stop_if,
                seconds=seconds,
                driver=driver,
                during=during,
            )
        )
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "survive",
                "run",
                str(tmp_path / "codes.survive.yaml"),
                "--out",
                str(tmp_path / "runs"),
                *arguments,
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        runs = sorted((tmp_path / "runs" / "codes").glob("2*"))
        folder = runs[-1] if runs else None
        return done.returncode, done.stdout + done.stderr, folder

    return run


LATENCY = "{{slow: {{kind: {kind}, link: load -> web, at: 1s, for: 1s, with: {{latency: 80ms}}}}}}"


def verdict(folder):
    assert (folder / "report.html").read_bytes().endswith(b"</html>\n")  # however it ended
    return json.loads((folder / "verdict.json").read_text())


@QUIET
def test_0_survived_with_a_real_fault(survive):
    code, output, folder = survive(faults=LATENCY.format(kind="network.latency"))
    assert code == 0, output
    assert verdict(folder)["verdict"] == "survived"
    assert verdict(folder)["faults"][0]["proof"] == "proven"
    assert verdict(folder)["grade"] == "emulated"


@QUIET
def test_1_failed(survive):
    code, output, folder = survive(path="/broken")
    assert code == 1, output
    assert verdict(folder)["verdict"] == "failed"


def test_2_wrong_scenario_writes_no_run(survive):
    code, output, folder = survive(path="/", during="nowhere")
    assert code == 2, output
    assert "codes.survive.yaml:" in output
    assert folder is None


def test_2_wrong_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "survive", "run"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2


@QUIET
def test_3_a_sabotaged_inject_is_never_survived(survive):
    code, output, folder = survive(
        faults=LATENCY.format(kind="sabotage.inject"), during="each fault", seconds=4
    )
    assert code == 3, output
    assert verdict(folder)["verdict"] == "inconclusive"
    assert verdict(folder)["faults"][0]["proof"] != "proven"


def test_3_a_target_that_never_becomes_healthy_shows_its_last_lines(survive):
    program = [sys.executable, "-c", "print('no model found'); raise SystemExit(9)"]
    code, output, folder = survive(program=program)
    assert code == 3, output
    assert "no model found" in output
    assert verdict(folder)["verdict"] == "inconclusive"


@QUIET
def test_4_stopped_by_stop_if(survive):
    code, output, folder = survive(
        path="/broken", stop_if="{meltdown: {metric: success, below: 50%, over: 1s}}", seconds=30
    )
    assert code == 4, output
    assert verdict(folder)["verdict"] == "failed"
    assert verdict(folder)["load"]["unsent"] > 1000


@QUIET
def test_5_a_heal_that_does_nothing(survive):
    code, output, folder = survive(faults=LATENCY.format(kind="sabotage.heal"))
    assert code == 5, output
    assert verdict(folder)["verdict"] == "inconclusive"
    assert "heal" in " ".join(verdict(folder)["reasons"])


@QUIET
def test_5_beats_a_refusal_in_the_middle_of_a_run(survive):
    slow = LATENCY.format(kind="sabotage.heal")[1:-1]
    fickle = slow.replace("slow", "fickle").replace("sabotage.heal", "sabotage.fickle")
    fickle = fickle.replace("at: 1s", "at: 7s")
    code, output, folder = survive(faults=f"{{{slow}, {fickle}}}", seconds=9)
    assert code == 5, output
    assert "it is not allowed any more" in output
    assert verdict(folder)["exit_code"] == 5


def test_6_refused_without_its_secret(survive):
    code, output, _ = survive(
        service="{url: '${SURVIVE_TEST_URL}', health: {get: /health, within: 1s}}",
        driver="external",
    )
    assert code == 6, output
    assert "SURVIVE_TEST_URL" in output


def test_6_refused_host_not_allowed(survive):
    code, output, _ = survive(
        service="{url: '${SURVIVE_TEST_URL}', health: {get: /health, within: 1s}}",
        driver="external",
        env={"SURVIVE_TEST_URL": "http://198.51.100.7:80"},
    )
    assert code == 6, output
    assert "198.51.100.7" in output


def test_70_a_bug_leaves_its_traceback_in_the_run(survive):
    code, output, folder = survive(faults=LATENCY.format(kind="sabotage.bug"))
    assert code == 70, output
    assert "a bug in a plug-in" in (folder / "bug.txt").read_text()
    assert not (folder / "verdict.json").exists()
