"""A repeated fault from the file to the verdict, on the virtual host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCENARIO = """
survive: 1
name: repeats
target: reference
seed: 7
requests:
  search: {get: "/v1/search?q=gpu", timeout: 2s}
load:
  phases: [{name: flat, rate: 60/s, for: 40s}]
faults:
  hang: {kind: node.pause, service: inference, at: 5s, for: 2s, every: 10s, times: 3}
objectives:
  answers: {metric: success, min: 90%, during: steady}
  each: {metric: success, min: 50%, during: each fault}
  second: {metric: success, min: 50%, during: "fault:hang#2"}
  back: {metric: recovery, max: 4s, stable_for: 2s}
"""


def test_each_repeat_is_proven_and_judged_and_all_are_pooled(tmp_path):
    file = tmp_path / "repeats.survive.yaml"
    file.write_text(SCENARIO)
    command = [sys.executable, "-m", "survive", "run", str(file), "--virtual", "--format", "json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "runs")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    verdict = json.loads(done.stdout)
    assert [(f["name"], f["proof"], f["heal_proof"]) for f in verdict["faults"]] == [
        (f"hang#{n}", "proven", "proven") for n in (1, 2, 3)
    ]
    n = {cell["window"]: cell["n"] for cell in verdict["objectives"] if cell["name"] == "each"}
    assert list(n) == ["fault:hang#1", "fault:hang#2", "fault:hang#3", "fault:hang"]
    assert n["fault:hang"] == n["fault:hang#1"] + n["fault:hang#2"] + n["fault:hang#3"]
    recoveries = [cell["window"] for cell in verdict["objectives"] if cell["name"] == "back"]
    assert recoveries == [f"recovery:hang#{n}" for n in (1, 2, 3)]
