"""``run --repeat`` and ``--inconclusive extend``, on the virtual host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from survive.cli import cli
from survive.errors import ExitCode

CALM = """\
survive: 1
name: calm
target: reference
seed: 3
requests:
  search: {get: "/v1/search?q=hello", timeout: 2s}
load:
  arrivals: uniform
  max_extend: 20s
  phases: [{name: only, rate: 20/s, for: 2s}]
objectives:
  answers: {metric: success, min: 95%, during: steady}
"""


def run(folder: Path, *options: str) -> ExitCode:
    file = folder / "calm.survive.yaml"
    if not file.exists():
        file.write_text(CALM, encoding="utf-8")
    argv = ["run", str(file), "--virtual", "--out", str(folder / "runs"), *options]
    code: ExitCode = cli.main(argv, standalone_mode=False)
    return code


def verdicts(folder: Path) -> list[dict[str, object]]:
    found = sorted((folder / "runs" / "calm").glob("2*/verdict.json"))
    return [json.loads(path.read_text()) for path in found]


def test_each_repeat_is_a_run_of_its_own_with_the_next_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_enough = ("--set", "load.phases.only.for=5s")
    code = run(tmp_path, *long_enough, "--repeat", "3", "--format", "json")
    assert code is ExitCode.SURVIVED
    told = json.loads(capsys.readouterr().out)
    assert told == verdicts(tmp_path) and [v["verdict"] for v in told] == ["survived"] * 3
    seeds = [p.name.rpartition("-")[2] for p in sorted((tmp_path / "runs/calm").glob("2*"))]
    assert seeds == ["3", "4", "5"]
    written = (tmp_path / "runs" / "calm" / "latest" / "scenario.yaml").read_text()
    assert "seed: 5\n" in written


def test_one_red_of_several_makes_all_red_and_the_table_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = ("--set", "requests.search.expect={status: 404}")
    assert run(tmp_path, *hard, "--repeat", "2") is ExitCode.FAILED
    said = capsys.readouterr().out
    assert said.count("FAILED") == 2
    [broken] = [line for line in said.splitlines() if line.split()[:2] == ["search", "steady"]]
    assert broken.split()[2:5] == ["0", "2", "0"]


def test_too_few_requests_are_run_again_for_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) is ExitCode.INCONCLUSIVE
    assert run(tmp_path, "--inconclusive", "extend") is ExitCode.SURVIVED
    assert "phase only 2 s longer" in capsys.readouterr().err
    assert [v["verdict"] for v in verdicts(tmp_path)].count("inconclusive") == 2
    latest = tmp_path / "runs" / "calm" / "latest"
    started = json.loads((latest / "events.ndjson").read_text().splitlines()[0])
    first = latest.parent / started["extends"]
    assert started["inconclusive"] == "extend" and first != latest.resolve()
    assert json.loads((first / "verdict.json").read_text())["verdict"] == "inconclusive"


def test_no_longer_than_the_scenario_allows(tmp_path: Path) -> None:
    tight = ("--set", "load.max_extend=1s")
    assert run(tmp_path, *tight, "--inconclusive", "extend") is ExitCode.INCONCLUSIVE
    assert len(verdicts(tmp_path)) == 1
