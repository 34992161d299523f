"""docs/faults/*.md: generated from class data and the matrix, and current."""

from __future__ import annotations

import json

import pytest
from killtools import ROOT

from survive.catalog import Catalog
from survive.host.docs import BEGIN, Matrix, page, pages

LINE = {
    "date": "2031-02-03T04:05:06+00:00", "kind": "node.pause", "on": "a server",
    "ending": "normal", "exit": 0, "left": [], "clean_ms": 1.0,
    "planned_s": 1.0, "injected_s": 1.0042,
    "proof_before": "no: answers", "proof_during": "yes: silent", "proof_after": "no: answers",
    "heal_ms": 9.7, "problem": "",
}  # fmt: skip


@pytest.mark.parametrize("path", pages(ROOT / "docs"), ids=lambda path: path.name)
def test_the_committed_page_is_current(path):
    assert path.exists(), "run: make docs"
    assert path.read_text() == pages(ROOT / "docs")[path], "run: make docs"


def one_page(tmp_path, *lines, written="# by hand\n\nWhat people know.\n"):
    (tmp_path / "matrix.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fault = Catalog(plugins=False).fault("node.pause")
    return page(written, [fault], Matrix.read(tmp_path / "matrix.json"))


def test_what_people_wrote_stays_and_writing_twice_changes_nothing(tmp_path):
    first = one_page(tmp_path, LINE)
    assert first.startswith("# by hand\n\nWhat people know.\n\n" + BEGIN)
    assert one_page(tmp_path, LINE, written=first.partition(BEGIN)[0]) == first


def test_it_shows_plan_and_proof_and_heal(tmp_path):
    text = one_page(tmp_path, LINE)
    assert "| a server | 1 s, +4.2 ms | no: answers | yes: silent | no: answers | 10 ms |" in text
    assert "1 of 1 left nothing" in text
    assert "2031-02-03" in text


def test_what_nobody_measured_is_not_claimed(tmp_path):
    assert "The matrix has not run any of these." in one_page(tmp_path)
    only_kill = {**LINE, "ending": "kill-run", "exit": -9}
    assert "not seen" in one_page(tmp_path, only_kill)


def test_an_ending_with_a_problem_is_named(tmp_path):
    bad = {"kind": "node.pause", "ending": "sigint", "problem": "left: 4711"}
    assert "1 of 2 left nothing, exit right; not: sigint" in one_page(tmp_path, LINE, bad)


def test_a_kind_that_could_not_be_played_says_why_and_claims_nothing(tmp_path):
    why = {"kind": "node.pause", "ending": "", "not_here": "no such | thing", "problem": ""}
    text = one_page(tmp_path, {**why, "date": "2031-02-03T04:05:06+00:00"})
    assert "| `node.pause` | not played: no such \\| thing | | | | | | |" in text
    assert "left nothing" not in text
