"""What CI runs of the matrix: each ending with each way to act, kill -9 with each way to heal.

``make matrix`` runs the whole of it: each ending with each kind.
"""

from __future__ import annotations

import json

import pytest
from matrixtools import (
    ENDINGS,
    Cell,
    applies,
    families,
    heals,
    kinds,
    play,
    ways,
    write_scenario,
)

from survive.contracts import Needs
from survive.scenario.loader import load_scenario

FAMILIES = families()
WAYS = ways()
# A family whose usual kind is undone in the way of another's differs in what it measures, and that
# the ends below show: in order, with survive gone, and with what it acts on gone.
OFTEN = frozenset({"normal", "kill-run", "target-gone"})
EACH_ENDING = [
    (kind, ending)
    for kind in FAMILIES.values()
    for ending in ENDINGS
    if applies(kind, ending) and (kind in WAYS.values() or ending in OFTEN)
]
# After kill -9 of survive the agent heals: a kind that shares its heal with another adds nothing.
KILL_9 = [(kind, "kill-run") for kind in heals() if (kind, "kill-run") not in EACH_ENDING]


@pytest.mark.parametrize(("kind", "ending"), EACH_ENDING)
def test_each_ending_with_each_way_to_act(kind, ending, tmp_path):
    assert play(kind, ending, tmp_path).problem == ""


@pytest.mark.parametrize(("kind", "ending"), KILL_9)
def test_kill_9_with_each_way_to_heal(kind, ending, tmp_path):
    assert play(kind, ending, tmp_path).problem == ""


@pytest.mark.parametrize("kind", kinds())
def test_each_kind_has_a_valid_scenario(kind, tmp_path):
    """A new kind with settings that a plain value does not fit needs a line in PLACES."""
    faults = load_scenario(write_scenario(kind, tmp_path)).faults
    assert faults["one"].kind == kind


def test_the_matrix_is_of_every_family():
    assert {"network", "node", "gpu"} <= set(FAMILIES)
    assert all(kind.startswith(f"{family}.") for family, kind in FAMILIES.items())
    assert set(WAYS) == set(Needs) - {Needs.TARGET}  # which only other people's code needs
    assert set(WAYS.values()) <= set(FAMILIES.values())
    assert {ending for _, ending in EACH_ENDING} == set(ENDINGS)
    assert {"network.latency", "network.down", "node.kill", "node.cpu", "gpu.lost"} <= {*heals()}


@pytest.mark.alone
def test_an_inject_begins_within_50_ms_of_its_plan_and_both_are_recorded(tmp_path):
    """At 4 s: before that a loaded host may still be starting the child that injects."""
    cell = play("node.pause", "normal", tmp_path, at_s=4)
    assert cell.problem == ""
    assert cell.planned_s == 4.0
    assert cell.injected_s is not None
    assert 0 <= cell.injected_s - cell.planned_s < 0.050
    assert json.loads(cell.line())["injected_s"] == cell.injected_s


def test_a_run_that_leaves_something_has_a_problem(tmp_path, monkeypatch):
    """The matrix itself can say no: with a fault's process spared, it finds it."""
    import matrixtools

    monkeypatch.setattr(matrixtools.Started, "left", lambda self, within_s: ["4711 S stray"])
    assert "4711 S stray" in play("node.pause", "kill-run", tmp_path).problem


def test_a_wrong_exit_is_a_problem(tmp_path, monkeypatch):
    import matrixtools

    wrong = {**ENDINGS, "sigint": matrixtools.Ending(frozenset({0}), ENDINGS["sigint"].act)}
    monkeypatch.setattr(matrixtools, "ENDINGS", wrong)
    cell: Cell = matrixtools.play("node.pause", "sigint", tmp_path)
    assert cell.problem.startswith("exit 130, not 0")
