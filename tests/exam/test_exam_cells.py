"""What is run in each cell: the same load, with and without weakness and fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from examtools import SMALL, write_team

from survive.exam.cells import Cell, Claim, Outcome, Weather, cells_of, variant
from survive.exam.sitting import Sitting, key_of, read, scenario_of
from survive.plan.plan import make_plan
from survive.scenario.loader import dump_scenario, load_scenario, load_stored

CLAIM = Claim("small", "no_health_checks", "degrade")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_team(tmp_path) / "small.survive.yaml"


def cell(weakness: str = "no_health_checks", weather: Weather = Weather.FAULT) -> Cell:
    return Cell("small", weakness, weather, 8)


def test_a_claim_is_three_cells_a_seed() -> None:
    found = [(c.weakness, c.weather, c.seed) for c in cells_of(CLAIM, range(7, 9))]
    assert found == [
        ("", "fault", 7),
        ("no_health_checks", "calm", 7),
        ("no_health_checks", "fault", 7),
        ("", "fault", 8),
        ("no_health_checks", "calm", 8),
        ("no_health_checks", "fault", 8),
    ]


def test_calm_weather_has_the_same_load_and_nothing_that_speaks_of_faults(file: Path) -> None:
    scenario = load_scenario(file)
    calm = variant(scenario, cell(weather=Weather.CALM))
    stormy = variant(scenario, cell())
    assert (calm.seed, calm.target.weaknesses) == (8, ("no_health_checks",))
    assert not calm.faults and list(calm.objectives) == ["answers"]
    assert list(stormy.faults) == ["gpu-loss"] and len(stormy.objectives) == 3
    assert make_plan(calm).planned == make_plan(stormy).planned


@pytest.mark.parametrize("weather", Weather)
def test_what_is_written_of_a_cell_is_what_is_run(
    file: Path, tmp_path: Path, weather: Weather
) -> None:
    found = variant(load_scenario(file), cell(weather=weather))
    dump_scenario(found, tmp_path)
    stored = load_stored(tmp_path)
    assert (stored.seed, stored.faults, stored.objectives) == (8, found.faults, found.objectives)
    assert stored.target.weaknesses == found.target.weaknesses
    assert make_plan(stored) == make_plan(found)


def test_calm_weather_without_an_objective_is_refused(tmp_path: Path) -> None:
    text = SMALL.replace("during: steady", "during: fault:gpu-loss").replace(
        "  back:    {metric: recovery, max: 2s, stable_for: 2s}\n", ""
    )
    scenario = load_scenario(write_team(tmp_path, text) / "small.survive.yaml")
    with pytest.raises(ValueError, match="no objective is left"):
        variant(scenario, cell(weather=Weather.CALM))


def test_the_profiles_of_the_exam_are_laid_on(tmp_path: Path) -> None:
    profiles = (
        "profiles: {exam: {load.phases.steady.for: 20s}, calm: {load.phases.steady.rate: 5/s}}\n"
    )
    file = write_team(tmp_path, SMALL + profiles) / "small.survive.yaml"
    stormy = scenario_of(Sitting(cell(), file, None))
    calm = scenario_of(Sitting(cell(weather=Weather.CALM), file, None))
    assert [s.load.end_us for s in (stormy, calm)] == [22_000_000] * 2
    assert [s.load.phases[1].start_rps for s in (stormy, calm)] == [60, 5]


def test_a_result_is_known_again_only_if_nothing_has_changed(file: Path) -> None:
    sitting = Sitting(cell(), file, None)
    key = key_of(sitting)
    assert key == key_of(Sitting(cell(), file, None))
    others = [
        replace(sitting, cell=cell("")),
        replace(sitting, cell=cell(weather=Weather.CALM)),
        replace(sitting, cell=replace(cell(), seed=9)),
        replace(sitting, real=True),
    ]
    file.write_text(SMALL.replace("94%", "93%"), encoding="utf-8")
    changed = file.with_name("changed.survive.yaml")
    file.rename(changed)
    assert len({key, *map(key_of, [replace(o, file=changed) for o in others])}) == 5
    assert key_of(replace(sitting, file=changed)) != key


def test_an_outcome_is_read_back(file: Path) -> None:
    outcome = Outcome(cell(), "virtual", "failed", 1, ("degrade",), ("why",), 1.5, 1.25, "now")
    assert Outcome.of_json(outcome.to_json()) == outcome
    assert read(file, None).name == "small"
