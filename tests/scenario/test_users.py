"""`users:` instead of a rate: what the file may say, and who is there when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from survive.errors import ScenarioError
from survive.judge.explain import explain, too_few
from survive.plan.model import Plan
from survive.plan.plan import make_plan
from survive.plan.users import mean_users, spells, users_at
from survive.scenario.loader import dump_scenario, load_scenario, load_stored
from survive.scenario.model import Scenario, Users

S = 1_000_000

SCENARIO = """\
survive: 1
name: people
target: {{driver: process, entry: web, services: {{web: {{run: [x]}}}}}}
requests: {{get: {{get: /}}}}
load:
{more}  phases: [{phases}]
objectives:
  good: {{metric: success, min: 90%, during: {during}}}
"""
RAMP = "{name: ramp, users: {from: 2, to: 6}, think: 1s, for: 8s}"
FULL = "{name: full, users: 6, think: {exponential: 500ms}, for: 10s}"
LESS = "{name: less, users: {from: 6, to: 3}, for: 6s}"


def load(folder: Path, *phases: str, more: str = "", during: str = "run") -> Scenario:
    file = folder / "people.survive.yaml"
    file.write_text(SCENARIO.format(phases=", ".join(phases), more=more, during=during))
    return load_scenario(file)


def problems(folder: Path, *phases: str, more: str = "", during: str = "run") -> str:
    with pytest.raises(ScenarioError) as caught:
        load(folder, *phases, more=more, during=during)
    return "\n".join(caught.value.lines())


def test_users_and_how_they_think(tmp_path: Path) -> None:
    scenario = load(tmp_path, RAMP, FULL, LESS)
    assert [p.users for p in scenario.load.phases] == [
        Users(2, 6, S), Users(6, 6, S // 2, exponential=True), Users(6, 3),
    ]  # fmt: skip
    assert [p.constant for p in scenario.load.phases] == [False, True, False]
    assert scenario.load.closed and scenario.load.lanes == 6
    plan = make_plan(scenario)
    assert plan.closed and plan.most_users == 6 and plan.planned == ((0,),) * 3
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    dump_scenario(scenario, tmp_path)
    assert load_stored(tmp_path).load == scenario.load


def test_who_is_there_when(tmp_path: Path) -> None:
    phases = load(tmp_path, RAMP, FULL, LESS).load.phases
    assert spells(phases, 0) == [(0, 24 * S)]
    assert spells(phases, 2) == [(1 * S, 24 * S)]
    assert spells(phases, 5) == [(7 * S, 19 * S)]
    assert spells(phases, 6) == []
    for t_us in range(100_000, 24 * S, 333_333):
        there = sum(a <= t_us < b for n in range(6) for a, b in spells(phases, n))
        assert users_at(phases, t_us) == there
    assert mean_users(phases, 0, 8 * S) == 4
    assert mean_users(phases, 4 * S, 12 * S) == (5 + 6) / 2
    assert users_at(phases, 24 * S) == 0 == users_at(phases, -1)


def test_what_users_do_is_explained_and_not_counted_beforehand(tmp_path: Path) -> None:
    scenario = load(tmp_path, RAMP, FULL, LESS, during="steady")
    assert too_few(scenario) == []
    said = explain(scenario, make_plan(scenario), pytest.fail)
    assert "up to 6 users, who ask when they are ready in 24s" in said
    assert "phase full: 6 users who think 500ms on average for 10s" in said
    assert "phase less: 6 to 3 users who do not think for 6s" in said
    assert "on as many requests as the users make" in said


@pytest.mark.parametrize(
    ("phases", "more", "told"),
    [
        ([FULL, "{name: open, rate: 5/s, for: 9s}"], "", "phase 'open' has a rate, and others hav"),
        ([FULL], "  scale: 1/10\n", "users have no scale"),
        ([FULL], "  arrivals: uniform\n", "users have no arrivals"),
        ([FULL], "  lanes: 9\n", "users have no lanes"),
        (["{name: a, users: 5, ramp_to: 9/s, for: 9s}"], "", "users have no ramp_to"),
        (["{name: a, users: 5, curve: linear, for: 9s}"], "", "users have no curve"),
        (["{name: a, users: 0, for: 9s}"], "", "0 is less than 1"),
        (["{name: a, users: 5, think: 1, for: 9s}"], "", "1 has no unit"),
        (["{name: a, users: {from: 5}, for: 9s}"], "", "has no 'to'"),
        (["{name: a, rate: 5/s, think: 1s, for: 9s}"], "", "only users think"),
    ],
)
def test_what_users_cannot_be(tmp_path: Path, phases: list[str], more: str, told: str) -> None:
    assert told in problems(tmp_path, *phases, more=more)


def test_a_ramp_of_users_is_no_steady_state(tmp_path: Path) -> None:
    assert "makes up `steady`" in problems(tmp_path, RAMP, during="steady")
