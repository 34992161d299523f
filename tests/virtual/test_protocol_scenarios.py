"""The scenarios of the protocol faults hold, and a stack that cannot cope does not pass them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(name, out, *arguments):
    """(exit code, verdict, output) of one virtual run."""
    scenario = ROOT / "scenarios" / f"{name}.survive.yaml"
    argv = [sys.executable, "-m", "survive", "run", str(scenario), "--virtual", "--out", str(out)]
    done = subprocess.run(
        [*argv, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    [folder] = (out / name).glob("2*")
    verdict = json.loads((folder / "verdict.json").read_text())
    return done.returncode, verdict, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["provider-rate-limits", "token-stream"])
def test_the_reference_stack_survives(name, tmp_path):
    code, verdict, output = run(name, tmp_path)
    assert code == 0, output
    assert {(f["proof"], f["heal_proof"]) for f in verdict["faults"]} == {("proven", "proven")}


def test_a_limit_on_every_call_is_survived_by_nobody(tmp_path):
    code, verdict, output = run(
        "provider-rate-limits", tmp_path,
        "--set", "faults.rate-limit.with={status: 429}", "--set", "seed=42")  # fmt: skip
    assert code == 1, output
    [cell] = [
        o for o in verdict["objectives"]
        if (o["name"], o["window"]) == ("asks-elsewhere", "fault:rate-limit")
    ]  # fmt: skip
    assert cell["verdict"] == "failed"


def test_a_stream_that_breaks_off_for_all_is_a_failure_though_its_status_is_200(tmp_path):
    code, verdict, output = run(
        "token-stream", tmp_path,
        "--set", "faults.broken-off.with={after: 4, clean: true}")  # fmt: skip
    assert code == 1, output
    [cell] = [o for o in verdict["objectives"] if o["name"] == "breaks-are-mended"]
    # The gateway has others go on with some, as far as its budget for that goes.
    assert cell["verdict"] == "failed" and cell["bad"] >= 0.5 * cell["n"]
