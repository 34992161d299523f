"""The headline claims on real processes in real time, each in its profile `ci`.

Two run at a time, each with a state folder of its own (a target has one run at a time): together
they take less than half of two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_US = 20_000_000


def begin(name: str, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "survive", "run", f"scenarios/{name}.survive.yaml"),
            *("--profile", "ci", "--out", str(out)),
        ],
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(out / name / "state")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "events.ndjson").read_text().splitlines()[-1])
    return found


@pytest.mark.alone
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "names",
    [
        ("quickstart", "zero-trust"),
        ("tenant-isolation", "prompt-injection"),
        ("audit-trail", "observability-blackout"),
    ],
)
def test_headlines_survive_for_real_in_twenty_seconds(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    runs = {name: begin(name, tmp_path) for name in names}
    said = {name: run.communicate(timeout=100)[0] for name, run in runs.items()}
    for name, run in runs.items():
        assert run.returncode == 0, said[name]
        folder = next((tmp_path / name).glob("2*"))
        verdict = json.loads((folder / "verdict.json").read_text())
        assert verdict["verdict"] == "survived"
        assert {fault["proof"] for fault in verdict["faults"]} == {"proven"}
        assert ended(folder)["t_us"] <= LONGEST_US
