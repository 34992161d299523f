"""Users who wait, from the file to the verdict, in virtual time: with faults, and repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from survive.cli import cli
from survive.errors import ExitCode, UsageError

PEOPLE = """\
survive: 1
name: people
target: reference
seed: 3
requests:
  search: {get: "/v1/search?q=hello", timeout: 2s}
load:
  phases:
    - {name: come, users: {from: 1, to: 20}, think: 300ms, for: 2s, warm_up: true}
    - {name: stay, users: 20, think: {exponential: 300ms}, for: 14s}
faults:
  slow: {kind: network.latency, link: gateway -> retrieval, with: {latency: 1s}, at: stay + 4s, for: 3s}
objectives:
  answers: {metric: success, min: 95%, during: steady}
  quick: {metric: latency.p95, max: 500ms, during: steady}
  degraded: {metric: latency.p95, max: 500ms, during: each fault}
  back: {metric: recovery, max: 3s, stable_for: 2s}
"""  # noqa: E501
REPEATED = ("events.ndjson", "latency.hlog", "plan.json", "table.npz", "verdict.json")


def run(folder: Path, *options: str) -> ExitCode:
    file = folder / "people.survive.yaml"
    file.write_text(PEOPLE, encoding="utf-8")
    argv = ["run", str(file), "--virtual", "--out", str(folder / "runs"), *options]
    code: ExitCode = cli.main(argv, standalone_mode=False)
    return code


def test_users_under_a_fault_and_the_same_seed_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [run(tmp_path), run(tmp_path)] == [ExitCode.FAILED] * 2
    said = capsys.readouterr().out
    assert said.count("closed loop: latency excludes the time users could not ask; see") == 2
    assert "FAILED people (closed loop): degraded broke for search during fault:slow" in said
    first, second = sorted((tmp_path / "runs" / "people").glob("2*"))
    page = (first / "report.html").read_text(encoding="utf-8")
    assert "users (planned)" in page and "closed loop: latency excludes" in page
    assert "planned</tspan>" not in page  # nobody planned a number of requests
    for name in REPEATED:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    verdict = json.loads((first / "verdict.json").read_text())
    words = {(c["name"], c["window"]): c["verdict"] for c in verdict["objectives"]}
    assert words == {
        ("answers", "steady"): "survived",
        ("quick", "steady"): "survived",
        ("degraded", "fault:slow"): "failed",
        ("back", "recovery:slow"): "survived",
    }
    load = verdict["load"]
    assert load["model"] == "closed" and load["users"] == {"most": 20, "present": 1.0}
    assert load["sent"] == load["ok"] + load["failed"] + load["timed_out"]


def test_workers_share_no_locustfile(tmp_path: Path) -> None:
    file = tmp_path / "people.survive.yaml"
    head, _, _ = PEOPLE.partition("requests:")
    phases = "load:\n  locustfile: locustfile.py\n  phases: [{name: stay, users: 4, for: 9s}]\n"
    answers = "objectives:\n  answers: {metric: success, min: 95%, during: steady}\n"
    file.write_text(head + phases + answers, encoding="utf-8")
    (tmp_path / "locustfile.py").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="a locustfile's users are in one load process"):
        cli.main(["run", str(file), "--workers", "2"], standalone_mode=False)
