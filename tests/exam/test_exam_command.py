"""``survive exam`` on a small scenario: real runs on the virtual host, resumed, and said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from examtools import SMALL, write_team

from survive.catalog import Catalog
from survive.errors import ExitCode, UsageError
from survive.exam.cells import Cell, Outcome, Weather
from survive.exam.command import Asked, claims_asked, sit_exam
from survive.exam.sitting import Sitting, scenario_of, sit
from survive.exam.store import Store
from survive.host.command import exam_context


def test_a_planted_weakness_is_found_and_what_is_known_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(
        folder=write_team(tmp_path / "team"),
        seeds=1,
        weaknesses=("no_health_checks", "no_timeout"),
        results=tmp_path / "results",
        output=tmp_path / "exam.md",
        form="json",
    )
    assert sit_exam(asked) is ExitCode.FAILED
    told = json.loads(capsys.readouterr().out)
    assert told["missed"] == ["no_timeout"] and told["condemned"] == []
    assert [claim["holds"] for claim in told["claims"]] == [True]
    assert {mark["weakness"]: mark["mark"] for mark in told["matrix"]} == {
        "no_health_checks": "killed",
        "no_timeout": "survived",
    }
    assert "| `no_health_checks` | small | gpu.lost | degrade | 1/1 | 1/1 | 1/1 |" in (
        (tmp_path / "exam.md").read_text()
    )
    lines = (tmp_path / "results" / "results.ndjson").read_text().splitlines()
    assert len(lines) == told["runs"] == 4
    with (tmp_path / "results" / "results.ndjson").open("a") as file:
        file.write('{"key": "torn')
    assert sit_exam(asked) is ExitCode.FAILED
    assert "exam: 4 of 4 runs, 0 s" in capsys.readouterr().err


def test_a_run_without_a_verdict_is_an_outcome_of_its_own(tmp_path: Path) -> None:
    team = write_team(tmp_path, SMALL.replace("  answers: {metric: success, min: 95%, during: st"
                                              "eady}\n  degrade: {metric: success, min: 94%, during"
                                              ": each fault}\n  back:    {metric: recovery, max: 2"
                                              "s, stable_for: 2s}\n",
                                              "  degrade: {metric: success, min: 94%, during: each"
                                              " fault}\n"))  # fmt: skip
    file = team / "small.survive.yaml"
    calm = sit(Sitting(Cell("small", "", Weather.CALM, 1), file, None))
    assert (calm.verdict, calm.exit_code) == ("inconclusive", 3)
    assert "no objective is left in calm weather" in calm.reasons[0]
    missing = sit(Sitting(Cell("small", "", Weather.FAULT, 1), file.with_name("no"), None))
    assert (missing.verdict, missing.exit_code) == ("error", 2)


def test_a_weakness_is_asked_of_the_smallest_scenario_only(tmp_path: Path) -> None:
    team = write_team(tmp_path)
    longer = SMALL.replace("name: small", "name: longer").replace("for: 14s", "for: 15s")
    more = "kills: {no_health_checks: degrade, no_timeout: back}"
    write_team(team, longer.replace("kills: {no_health_checks: degrade}", more), "longer")
    asked = Asked(folder=team, once=True)
    assert [(c.weakness, c.scenario) for c in claims_asked(asked)] == [
        ("no_health_checks", "small"),
        ("no_timeout", "longer"),
    ]
    assert len(claims_asked(replace(asked, once=False))) == 3


def test_the_keys_of_identities_reach_the_stack_of_an_exam(tmp_path: Path) -> None:
    text = SMALL.replace("target: reference", "target: production")
    file = write_team(tmp_path, text) / "small.survive.yaml"
    sitting = Sitting(Cell("small", "", Weather.FAULT, 1), file, None)
    context = exam_context(scenario_of(sitting), Catalog(file), tmp_path, virtual=True)
    assert context.identities["globex"] == f"{context.key}.globex"


def test_interrupted_runs_and_bugs_are_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.ndjson")
    file = tmp_path / "small.survive.yaml"
    outcome = sit(Sitting(Cell("small", "", Weather.FAULT, 1), file, None))
    store.add("a", outcome)
    assert Store(tmp_path / "results.ndjson").get("a") == outcome
    store.add("b", replace(outcome, exit_code=int(ExitCode.BUG)))
    assert Store(tmp_path / "results.ndjson").get("b") is None


def test_in_real_time_what_decided_nothing_is_run_again(tmp_path: Path) -> None:
    cell = Cell("small", "", Weather.FAULT, 1)
    open_ = Outcome(
        cell, "real", "inconclusive", 3, (), ("the harness was the bottleneck",), 90, 1, "now"
    )
    store = Store(tmp_path / "results.ndjson")
    for key, outcome in {
        "open": open_,
        "counted": replace(open_, host="virtual"),
        "red": replace(open_, verdict="failed", exit_code=1),
    }.items():
        store.add(key, outcome)
    again = Store(tmp_path / "results.ndjson")
    assert [bool(again.get(key)) for key in ("open", "counted", "red")] == [False, True, True]


def test_a_scenario_that_does_not_fit_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    team = write_team(tmp_path / "team", SMALL.replace("kills:", "kils:"), "broken")
    with pytest.raises(UsageError, match="no scenario in") as caught:
        sit_exam(Asked(folder=team, results=tmp_path))
    assert "kils" in caught.value.hint
    with pytest.raises(UsageError, match="unknown weakness 'no_timeot'"):
        sit_exam(Asked(weaknesses=("no_timeot",)))


def test_two_scenarios_of_one_name_cannot_stand_for_each_other(tmp_path: Path) -> None:
    team = write_team(tmp_path / "team")
    write_team(team, SMALL, "twin")
    with pytest.raises(UsageError, match=r"small.survive.yaml and twin.survive.yaml are both"):
        sit_exam(Asked(folder=team, results=tmp_path))
