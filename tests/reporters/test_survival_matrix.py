"""Faults × objectives: each square is the worst of its cells."""

from __future__ import annotations

from dataclasses import replace

import reporter_fakes as fakes

from survive.judge.verdict import Word

matrix = fakes.module("matrix")


def test_each_square_is_the_worst_of_its_cells():
    found = matrix.matrix_of(fakes.failed())
    assert found.faults == ("gpu-loss", "slow-network")
    assert found.objectives == ("degrade-not-die", "comes-back")
    squares = {(s.fault, s.objective): s for _, row in matrix.rows(found) for s in row}
    assert len(squares) == 4
    broken = squares["gpu-loss", "degrade-not-die"]
    assert broken.verdict is Word.FAILED and broken.worst.observed < 0.9
    cells = [c for c in fakes.failed().objectives if c.window == "fault:gpu-loss"]
    assert broken.cells == len(cells)


def test_steady_and_pools_are_no_faults_and_an_empty_square_is_none():
    verdict = fakes.verdict()
    cells = tuple(c for c in verdict.objectives if c.window != "fault:slow-network")
    pooled = fakes.cell("pooled", "fault:x")
    found = matrix.matrix_of(replace(verdict, objectives=(*cells, pooled)))
    assert "pooled" not in found.objectives and "answers" not in found.objectives
    squares = {(s.fault, s.objective): s for _, row in matrix.rows(found) for s in row}
    assert squares["slow-network", "degrade-not-die"].verdict is None
