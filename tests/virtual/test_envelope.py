"""``survive envelope`` on stacks whose capacity is known; see benchmarks/envelope.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks.envelope import capacity_rps, scenario
from survive.catalog import builtin_root
from survive.cli import cli
from survive.errors import ExitCode, SurviveError, UsageError
from survive.scenario.loader import dump_scenario, load_scenario, load_stored
from survive.scenario.variants import peak_rps, with_factor

ROOT = builtin_root()
QUICKSTART = ROOT / "scenarios" / "quickstart.survive.yaml"
SCHEMA = json.loads((ROOT / "schema" / "envelope.v1.json").read_text(encoding="utf-8"))


def envelope(folder: Path, *options: str, faults: bool = False, seconds: int = 3) -> ExitCode:
    file = folder / "known.survive.yaml"
    file.write_text(scenario(faults=faults, seconds=seconds), encoding="utf-8")
    argv = ["envelope", str(file), "--virtual", "--out", str(folder / "runs"), *options]
    code: ExitCode = cli.main(argv, standalone_mode=False)
    return code


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    return document


@pytest.mark.parametrize(("replicas", "near"), [(1, "1.5x"), (2, "3x")])
def test_the_bounds_hold_the_known_capacity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], replicas: int, near: str
) -> None:
    stack = ("--set", f"target.services.inference.replicas={replicas}")
    code = envelope(tmp_path, *stack, "--from", near, "--resolution", "20%", "--format", "json")
    assert code is ExitCode.SURVIVED
    document = told(capsys)
    found = document["envelopes"][0]
    assert found["survives"]["rps"] <= capacity_rps(replicas) * 1.01
    assert found["fails"]["rps"] >= capacity_rps(replicas) * 0.99
    assert found["fails"]["rps"] <= found["survives"]["rps"] * 1.2
    assert {cell["name"] for cell in found["limits"]} >= {"fast"}
    written = Path(document["folder"])
    assert json.loads((written / "envelope.json").read_text()) == document
    for level in found["levels"]:  # each run is one like any other, and says its load itself
        for run in level["runs"]:
            stored = load_stored(written / run["folder"])
            assert float(peak_rps(stored.load)) == pytest.approx(level["rps"], rel=1e-3)
            verdict = json.loads((written / run["folder"] / "verdict.json").read_text())
            assert verdict["exit_code"] == run["exit_code"]
    seeds = [run["seed"] for level in found["levels"] for run in level["runs"]]
    assert sorted(seeds) == [*range(1, len(seeds) + 1)]


def test_a_lost_gpu_costs_its_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three replicas bear 246/s, two of them 164/s."""
    at = ("--at", "180/s", "--format", "json")
    code = envelope(tmp_path, *at, "--headroom", faults=True)
    document = told(capsys)
    with_faults, without = document["envelopes"]
    assert with_faults["faults"] and with_faults["fails"]["rps"] == 180
    assert {cell["name"] for cell in with_faults["limits"]} == {"carried"}
    assert not without["faults"] and without["survives"]["rps"] == 180 and without["fails"] is None
    assert code is ExitCode.FAILED  # of the first: that with the scenario's faults


def test_a_planted_weakness_lowers_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quickstart = ["envelope", str(QUICKSTART), "--virtual", "--profile", "ci"]
    gate = [*quickstart, "--at", "1x", "--min", "1x", "--out", str(tmp_path)]
    assert cli.main(gate, standalone_mode=False) is ExitCode.SURVIVED
    assert "at least 69.4/s (1x): holds" in capsys.readouterr().out
    weak = [*gate, "--set", "target.weaknesses=[no_health_checks]"]
    assert cli.main(weak, standalone_mode=False) is ExitCode.FAILED
    text = capsys.readouterr().out
    assert "degrade-not-die breaks first" in " ".join(text.split())
    assert "at least 69.4/s (1x): does not hold" in text


def test_min_is_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = ("--at", "5x,7x", "--min")
    assert envelope(tmp_path, *gate, "6x") is ExitCode.INCONCLUSIVE
    text = capsys.readouterr().out
    assert "at least 240/s (6x): is undecided" in text
    wanted = "survives at ≥ 200/s (5x), fails at ≤ 280/s (7x); fast breaks first"
    assert wanted in " ".join(text.split())
    lines = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80


def test_an_interrupt_tells_what_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from survive.host import envelope as command

    played = command.run_once

    def once(*arguments: Any) -> Any:
        monkeypatch.setattr(command, "run_once", interrupted)
        return played(*arguments)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_once", once)
    assert envelope(tmp_path, "--format", "json") is ExitCode.INTERRUPTED
    document = told(capsys)
    assert document["ended"] == "interrupted" and document["exit_code"] == 130
    assert document["envelopes"][0]["survives"]["factor"] == 1


def test_a_signal_ends_a_virtual_run_as_it_ends_a_real_one(tmp_path: Path) -> None:
    said = tmp_path / "stderr.txt"
    argv = ["envelope", str(QUICKSTART), "--virtual", "--out", str(tmp_path / "runs")]
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "survive", *argv],
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        with process:
            while "phase warm-up" not in said.read_text(errors="replace"):
                assert process.poll() is None, said.read_text()
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGINT)
            out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, said.read_text()
    assert "interrupted: this is what is known so far" in out
    assert "survived at no load; where it fails is not known" in " ".join(out.split())
    assert "Traceback" not in said.read_text()
    verdict = next((tmp_path / "runs").glob("quickstart/envelope/*/*/verdict.json"))
    assert json.loads(verdict.read_text())["exit_code"] == 130


def test_no_more_runs_than_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert envelope(tmp_path, "--max-runs", "1") is ExitCode.INCONCLUSIVE
    assert "no more runs were allowed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--at", "fast"), "no load"),
        (("--at", "0x"), "no load at all"),
        (("--from", "5x", "--to", "2x"), "above"),
        (("--to", "20M/s"), "10M/s"),
        (("--at", "2x", "--from", "1x"), "leave"),
        (("--headroom", "--without-faults"), "one of them"),
        (("--headroom",), "has no faults"),
        (("--resolution", "0.1%"), "finer"),
        (("--resolution", "0.1"), "share"),
        (("--set", "load={phases: [{name: a, users: 5, for: 2s}]}"), "no rate"),
    ],
)
def test_a_wrong_command_line_is_told_before_any_run(
    tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    with pytest.raises(SurviveError) as raised:
        envelope(tmp_path, *options)
    assert raised.value.exit_code is ExitCode.INVALID
    assert why in raised.value.message
    assert not (tmp_path / "runs").exists()


def test_without_faults_there_must_be_something_to_judge(tmp_path: Path) -> None:
    only = "objectives={carried: {metric: success, min: 90%, during: each fault}}"
    with pytest.raises(UsageError, match="no objective is left"):
        envelope(tmp_path, "--headroom", "--set", only, faults=True)


@pytest.mark.parametrize("name", ["quickstart", "unpredictable-load", "prototype-to-production"])
@pytest.mark.parametrize("factor", [Fraction("0.4"), Fraction("2.83"), Fraction(25, 9)])
def test_a_factor_is_on_every_rate_and_on_nothing_else(
    tmp_path: Path, name: str, factor: Fraction
) -> None:
    plain = load_scenario(ROOT / "scenarios" / f"{name}.survive.yaml")
    scaled = with_factor(plain, factor)
    for before, after in zip(plain.load.phases, scaled.load.phases, strict=True):
        assert after.start_rps == before.start_rps * factor
        assert after.end_rps == before.end_rps * factor
        assert (after.start_us, after.end_us, after.curve) == (
            (before.start_us, before.end_us, before.curve)
        )
    assert scaled.faults == plain.faults and scaled.objectives == plain.objectives
    assert scaled.load.lanes >= scaled.load.lanes_needed
    dump_scenario(scaled, tmp_path)  # and what is stored says the same
    stored = load_stored(tmp_path)
    assert stored.load.phases == scaled.load.phases
    assert (stored.load.lanes, stored.load.scale) == (scaled.load.lanes, scaled.load.scale)
