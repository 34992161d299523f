"""``survive envelope`` on real processes: an interrupt heals, and tells what is known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
from killtools import ROOT, heal

SCENARIO = """\
survive: 1
name: twice
target: reference
seed: 7
requests:
  search: {get: "/v1/search?q=gpu", timeout: 2s}
load:
  phases: [{name: flat, rate: 40/s, for: 1500ms}]
faults:
  slow: {kind: network.latency, at: 400ms, for: 800ms, link: gateway -> retrieval,
         with: {latency: 50ms}}
objectives:
  answers: {metric: success, min: 50%, during: run}
"""
INJECTED = "slow: injected"


def test_an_interrupt_in_the_second_run_heals_and_tells_the_first(tmp_path: Path) -> None:
    file = tmp_path / "twice.survive.yaml"
    file.write_text(SCENARIO, encoding="utf-8")
    said = tmp_path / "stderr.txt"
    with said.open("wb") as log:
        options = ["--at", "0.5x,1x", "--format", "json", "--out", str(tmp_path / "runs")]
        process = subprocess.Popen(
            [sys.executable, "-m", "survive", "envelope", str(file), *options],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while said.read_text(errors="replace").count(INJECTED) < 2:
            assert process.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 130, said.read_text()
    document = json.loads(out)
    schema = json.loads((ROOT / "schema" / "envelope.v1.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema)
    assert document["ended"] == "interrupted" and document["host"] == "real"
    first = document["envelopes"][0]["levels"][0]
    assert first["rps"] == 20 and len(first["runs"]) >= 1
    assert heal("--check").returncode == 0, heal("--check").stdout
