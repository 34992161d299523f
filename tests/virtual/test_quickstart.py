"""The quickstart on the virtual host: some seeds, same record, and the weakness it must find.

Every scenario on more seeds is `survive exam`'s matter (two of them in tests/exam).
"""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import pytest

from survive.host.command import run_scenario

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "scenarios" / "quickstart.survive.yaml"
SEEDS = 12
AT_ONCE = 3  # a test of the size of others, so that no worker ends long after the rest


def run(out, *arguments):
    """(exit code, run folder, output) of ``survive run --virtual``."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "survive",
            "run",
            str(QUICKSTART),
            "--virtual",
            "--out",
            str(out),
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    runs = sorted((out / "quickstart").glob("2*"))
    return done.returncode, runs[-1] if runs else None, done.stdout + done.stderr


def verdict(folder):
    return json.loads((folder / "verdict.json").read_text())


@pytest.mark.parametrize("first", range(1, SEEDS + 1, AT_ONCE))
def test_a_healthy_stack_survives_every_seed(tmp_path, first):
    """In this process: an interpreter each would cost a fifth more."""
    for seed in range(first, first + AT_ONCE):
        out = tmp_path / str(seed)
        code = run_scenario(
            QUICKSTART,
            target=None,
            sets=[f"seed={seed}"],
            profile=None,
            out=out,
            form="json",
            virtual=True,
        )
        seen = verdict(next((out / "quickstart").glob("2*")))
        assert code == 0, f"seed {seed}: {seen['reasons']}"
        assert [f["proof"] for f in seen["faults"]] == ["proven", "proven"], f"seed {seed}"
        assert [f["heal_proof"] for f in seen["faults"]] == ["proven", "proven"], f"seed {seed}"
        assert seen["grade"] == "simulated"
        load = seen["load"]
        assert load["planned"] == (
            load["sent"] + load["expired"] + load["unsent"] + load["lost"]
        ), f"seed {seed}"
        assert load["sent"] == sum(
            load[fate] for fate in ("ok", "failed", "timed_out", "abandoned", "in_flight")
        ), f"seed {seed}"


def test_the_same_seed_gives_the_same_record_byte_for_byte_and_another_another(tmp_path):
    """In processes of their own, whose hashes of strings differ."""
    first = run(tmp_path / "a")[1]
    second = run(tmp_path / "b")[1]
    names = sorted(p.name for p in first.iterdir())
    assert names == sorted(p.name for p in second.iterdir())
    assert {"plan.json", "events.ndjson", "latency.hlog", "verdict.json"} <= set(names)
    # The page shows the manifest.
    compared = [name for name in names if name not in {"manifest.json", "report.html"}]
    same, different, broken = filecmp.cmpfiles(first, second, compared, shallow=False)
    assert (different, broken) == ([], [])
    assert sorted(same) == sorted(compared)
    third = run(tmp_path / "c", "--set", "seed=43")[1]
    assert not filecmp.cmp(first / "latency.hlog", third / "latency.hlog", shallow=False)


def test_a_stack_without_health_checks_fails_and_the_black_hole_is_named(tmp_path):
    code, folder, output = run(tmp_path, "--set", "target.weaknesses=[no_health_checks]")
    assert code == 1, output
    broken = [o for o in verdict(folder)["objectives"] if o["verdict"] == "failed"]
    assert ("degrade-not-die", "chat", "fault:gpu-loss") in {
        (o["name"], o["request"], o["window"]) for o in broken
    }
    loss = next(f for f in verdict(folder)["faults"] if f["name"] == "gpu-loss")
    worst = max(loss["replicas"], key=lambda r: r["share"])
    assert worst["share"] > 1.5 * worst["fair"]
    assert worst["replica"] in output


def test_a_weak_stack_in_calm_survives_the_same_load(tmp_path):
    """What plain load tests miss: without the fault the weakness does not show."""
    code, _, output = run(
        tmp_path,
        "--set",
        "target.weaknesses=[no_health_checks]",
        "--set",
        "faults={}",
        "--set",
        "kills={}",
        "--set",
        "claims={}",
        "--set",
        "objectives={answers: {metric: success, min: 99%, during: steady}}",
    )
    assert code == 0, output
