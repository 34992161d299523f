"""Repeats, and the caps of a target on all faults together."""

from __future__ import annotations

import pytest

from survive.errors import ScenarioError
from survive.plan.plan import make_plan
from survive.scenario.loader import dump_scenario, load_scenario, load_stored

S = 1_000_000

SCENARIO = """
survive: 1
name: timing
target: {{driver: process, entry: web, services: {{web: {{run: [x]}}}}, allow: {{{allow}}}}}
requests: {{get: {{get: /}}}}
load: {{phases: [{{name: flat, rate: 10/s, for: 100s}}]}}
faults:
  {faults}
objectives:
  good: {{metric: success, min: 90%, during: {during}}}
"""


def load(folder, *faults, allow="", during="run"):
    file = folder / "timing.survive.yaml"
    allow = f"faults: [node], {allow}" if allow else "faults: [node]"
    text = SCENARIO.format(allow=allow, faults="\n  ".join(faults), during=during)
    file.write_text(text)
    return load_scenario(file)


def problems(folder, *faults, **more):
    with pytest.raises(ScenarioError) as caught:
        load(folder, *faults, **more)
    return "\n".join(caught.value.lines())


HANG = "hang: {kind: node.pause, service: web, at: 10s, for: 5s, every: 30s, times: 3}"


def test_a_repeated_fault_is_several_faults_of_one_pool(tmp_path):
    scenario = load(tmp_path, HANG)
    faults = list(scenario.faults.values())
    assert [(f.name, f.pool, f.at_us // S, f.until_us // S) for f in faults] == [
        ("hang#1", "hang", 10, 15),
        ("hang#2", "hang", 40, 45),
        ("hang#3", "hang", 70, 75),
    ]
    plan = make_plan(scenario)
    assert [(w.fault, w.pool) for w in plan.faults] == [(f.name, "hang") for f in faults]
    assert plan.marks == (10 * S, 40 * S, 70 * S)


def test_a_fault_that_happens_once_pools_nothing(tmp_path):
    scenario = load(tmp_path, "hang: {kind: node.pause, service: web, at: 10s, for: 5s}")
    assert [(f.name, f.pool) for f in scenario.faults.values()] == [("hang", "")]


def test_a_stored_run_repeats_as_it_did(tmp_path):
    scenario = load(tmp_path, HANG)
    stored = tmp_path / "run"
    stored.mkdir()
    dump_scenario(scenario, stored)
    assert dict(load_stored(stored).faults) == dict(scenario.faults)


@pytest.mark.parametrize("window", ["fault:hang", '"fault:hang#2"', "recovery:hang"])
def test_windows_of_repeats_can_be_named(tmp_path, window):
    assert load(tmp_path, HANG, during=window).objectives["good"].during == window.strip('"')


def test_a_repeat_that_does_not_happen_is_no_window(tmp_path):
    assert "unknown fault 'hang#4'" in problems(tmp_path, HANG, during='"fault:hang#4"')


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("for: 5s, every: 30s", "means nothing without times"),
        ("for: 5s, times: 3", "means nothing without every"),
        ("for: 5s, every: 3s, times: 3", "less than the 5s that it stays on"),
        ("for: 5s, every: 30s, times: 4", "hang#4 begins at 100s"),
        ("for: 31s, every: 32s, times: 3", "hang#3 ends at 105s"),
        ("for: 5s, every: 30s, times: 1", "1 is less than 2"),
    ],
)
def test_repeats_that_cannot_be(tmp_path, keys, said):
    assert said in problems(tmp_path, f"hang: {{kind: node.pause, service: web, at: 10s, {keys}}}")


def hang(name, at_s, for_s):
    return f"{name}: {{kind: node.pause, service: web, at: {at_s}s, for: {for_s}s}}"


FOUR = [hang("a", 10, 50), hang("b", 11, 50), hang("c", 12, 50), hang("d", 13, 5)]


def test_three_at_once_unless_the_target_allows_more(tmp_path):
    assert "4 faults at once at 13s (a, b, c, d)" in problems(tmp_path, *FOUR)
    assert len(load(tmp_path, *FOUR[:3]).faults) == 3
    assert len(load(tmp_path, *FOUR, allow="max_faults: 4").faults) == 4
    assert "target 'inline' allows 2" in problems(tmp_path, *FOUR[:3], allow="max_faults: 2")


def test_one_after_the_other_is_not_at_once(tmp_path):
    faults = [hang("a", 10, 5), hang("b", 15, 5)]
    assert len(load(tmp_path, *faults, allow="max_faults: 1").faults) == 2


def test_a_one_shot_counts_at_its_instant(tmp_path):
    kill = "k: {kind: node.kill, service: web, at: 12s}"
    assert "2 faults at once at 12s" in problems(
        tmp_path, hang("a", 10, 5), kill, allow="max_faults: 1"
    )


def test_no_fault_stays_on_longer_than_the_target_allows(tmp_path):
    long = hang("a", 10, 40)
    assert "longer than target 'inline' allows (30s)" in problems(
        tmp_path, long, allow="max_duration: 30s"
    )
    assert load(tmp_path, long, allow="max_duration: 40s").faults
