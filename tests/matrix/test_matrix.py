"""What CI runs of the matrix: each ending with a kind of each family, kill -9 with each kind.

``make matrix`` runs the whole of it: each ending with each kind.
"""

from __future__ import annotations

import json
import os

import dockertools
import pytest
from killtools import ROOT
from matrix import merged
from matrixtools import (
    ENDINGS,
    Cell,
    applies,
    elsewhere,
    every_kind,
    families,
    play,
    stage_for,
    ways,
    write_scenario,
)
from stages import Containers, Netem, missing, stage_of

from survive.scenario.loader import load_scenario

FAMILIES = families()
WAYS = ways()
EACH_ENDING = [
    (kind, ending)
    for kind in dict.fromkeys([*FAMILIES.values(), *WAYS])
    for ending in ENDINGS
    if applies(kind, ending)
]
KILL_9 = [
    (kind, "kill-run")
    for kind in every_kind()
    if applies(kind, "kill-run") and (kind, "kill-run") not in EACH_ENDING
]


@pytest.fixture(scope="session")
def daemon():
    with dockertools.daemon():
        yield


@pytest.fixture
def stage(kind, request):
    """This host can be one, and has what the kind needs."""
    if why := missing(kind):
        pytest.skip(why)
    if issubclass(stage_of(kind), Containers):
        request.getfixturevalue("daemon")


@pytest.mark.parametrize(("kind", "ending"), EACH_ENDING)
def test_each_ending_with_each_family_and_each_way_to_act(kind, ending, stage, tmp_path):
    assert play(kind, ending, tmp_path).problem == ""


@pytest.mark.parametrize(("kind", "ending"), KILL_9)
def test_kill_9_with_each_kind(kind, ending, stage, tmp_path):
    assert play(kind, ending, tmp_path).problem == ""


@pytest.mark.parametrize("kind", every_kind())
def test_each_kind_has_a_valid_scenario(kind, tmp_path):
    """A new kind with settings that a plain value does not fit needs a line in SETTINGS."""
    faults = load_scenario(write_scenario(stage_for(kind, tmp_path))).faults
    assert faults["one"].kind == kind


def test_every_kind_is_in_the_last_matrix_with_every_ending_or_a_reason():
    """Or it says why not. In CI only the netem queue may be missing: not every kernel has it."""
    lines = map(json.loads, (ROOT / "docs" / "matrix.json").read_text().splitlines())
    told = {(line["kind"], line["ending"]): line for line in lines}
    for kind in every_kind():
        why = told.get((kind, ""), {}).get("not_here", "")
        played = {ending for of, ending in told if of == kind} - {""}
        wanted = set() if why else {e for e in ENDINGS if applies(kind, e)}
        hint = f"tests/matrix/matrix.py --kind {kind} -o docs/matrix.json, then make docs"
        assert played == wanted, hint
    if os.environ.get("SURVIVE_LIVE"):
        assert all(issubclass(stage_of(kind), Netem) for kind in elsewhere()), elsewhere()


def test_what_ci_plays_is_of_every_family_and_every_ending():
    assert {kind.partition(".")[0] for kind in every_kind()} == set(FAMILIES)
    assert all(kind.partition(".")[0] == family for family, kind in FAMILIES.items())
    assert set(WAYS) >= {"network.latency", "node.pause", "gpu.lost", "network.drop"}
    for kind in FAMILIES.values():
        left_out = set(ENDINGS) - {ending for of, ending in EACH_ENDING if of == kind}
        assert left_out <= {"backend-gone", "hung-heal"}, kind
    assert {kind for kind, _ in [*EACH_ENDING, *KILL_9]} == set(every_kind())


def test_a_run_of_a_part_replaces_its_own_lines_and_what_contradicts_them(tmp_path):
    file = tmp_path / "matrix.json"
    file.write_text(
        "".join(
            json.dumps({"kind": kind, "ending": ending, "date": "old"}) + "\n"
            for kind, ending in [
                ("node.pause", "normal"),
                ("node.pause", "sigint"),
                ("node.down", ""),
                ("node.gone_for_ever", "normal"),
            ]
        )
    )
    fresh = [
        {"kind": kind, "ending": "normal", "date": "new"} for kind in ("node.down", "node.pause")
    ]
    assert [(x["kind"], x["ending"], x["date"]) for x in merged(file, fresh)] == [
        ("node.down", "normal", "new"),
        ("node.pause", "normal", "new"),
        ("node.pause", "sigint", "old"),
    ]


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
