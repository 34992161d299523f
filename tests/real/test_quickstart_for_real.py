"""The quickstart as `make demo` runs it: real processes, real time, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.alone
@pytest.mark.timeout(200)
def test_the_quickstart_survives_and_leaves_the_machine_room(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "survive", "run", "scenarios/quickstart.survive.yaml"),
            *("--out", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = next((tmp_path / "quickstart").glob("2*"))
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["verdict"] == "survived"
    assert [fault["proof"] for fault in verdict["faults"]] == ["proven", "proven"]
    assert verdict["grade"] == "simulated"
    ended = json.loads((folder / "events.ndjson").read_text().splitlines()[-1])
    # DESIGN §10: on two cores the target has one, and the harness a third of one.
    assert 0 < ended["usage"]["target_cores"] <= 1.0
    assert 0 < ended["usage"]["harness_cores"] <= 0.3
