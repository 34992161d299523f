"""Several runs of one scenario: which code, which spread; and when a longer one would decide."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from survive.catalog import builtin_root
from survive.errors import ExitCode
from survive.judge.extend import extended, extension_us
from survive.judge.judge import BASELINE_UNDECIDED
from survive.judge.repeated import ENDS_ALL, cells_of_all, worst
from survive.judge.statistics import decide
from survive.judge.verdict import Cell, LoadReport, Spread, Verdict, Word
from survive.plan.arrivals import Schedule
from survive.plan.plan import make_plan
from survive.scenario.loader import dump_scenario, load_scenario, load_stored
from survive.scenario.model import Scenario
from survive.units import SECOND

QUICKSTART = builtin_root() / "scenarios" / "quickstart.survive.yaml"
NONE = Spread(None, None, None)
LOAD = LoadReport(1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1.0, 1.0, NONE, NONE, 0)


def cell(name: str, request: str, window: str, word: Word, **rest: object) -> Cell:
    plain = Cell(name, "success", request, window, word, 0.99, "share", 1.0, 0.9, 1.0, 100, 0)
    return replace(plain, **rest)  # type: ignore[arg-type]


def verdict(*cells: Cell, more_reasons: tuple[str, ...] = ()) -> Verdict:
    open_ = [c for c in cells if c.verdict is Word.INCONCLUSIVE]
    failed = any(c.verdict is Word.FAILED for c in cells)
    word = Word.FAILED if failed else Word.INCONCLUSIVE if open_ else Word.SURVIVED
    code = {Word.FAILED: 1, Word.INCONCLUSIVE: 3, Word.SURVIVED: 0}[word]
    reasons = (*(c.why or "undecided" for c in open_), *more_reasons)
    return Verdict(word, ExitCode(code), reasons, cells, (), LOAD, "simulated")


# ------------------------------------------------------------------------------- episodes


def test_the_worst_code_decides_and_a_red_stays_red() -> None:
    codes = [ExitCode.SURVIVED, ExitCode.INCONCLUSIVE, ExitCode.FAILED, ExitCode.STOPPED]
    for better, other in pairwise(codes):
        assert worst([better, other, better]) is other
    assert worst([ExitCode.FAILED, ExitCode.HEAL_UNPROVEN]) is ExitCode.HEAL_UNPROVEN
    assert worst(ExitCode) is ExitCode.BUG
    assert ExitCode.HEAL_UNPROVEN in ENDS_ALL and ExitCode.STOPPED not in ENDS_ALL


def test_cells_are_joined_and_what_was_not_measured_has_no_spread() -> None:
    one = verdict(cell("a", "chat", "run", Word.SURVIVED), cell("b", "", "run", Word.FAILED))
    two = verdict(
        cell("a", "chat", "run", Word.SURVIVED, observed=0.5),
        cell("b", "", "run", Word.INCONCLUSIVE, observed=None),
    )
    a, b = cells_of_all([one, two, two])
    assert (a.survived, a.failed, a.inconclusive) == (3, 0, 0)
    assert a.spread is not None and a.spread.median == 0.5
    assert a.spread.confidence == pytest.approx(0.75)
    assert (b.survived, b.failed, b.inconclusive, b.spread) == (0, 1, 2, None)


# ------------------------------------------------------------------------------ extension


@pytest.fixture
def scenario() -> Scenario:
    return load_scenario(QUICKSTART)  # the last phase: 69.44/s, 60 % chat


def short(n: int = 200, bad: int = 0, window: str = "steady", request: str = "chat") -> Cell:
    why = decide(bad, n, 0.01, 40.0).why
    word = Word.INCONCLUSIVE
    return cell("answers", request, window, word, n=n, bad=bad, why=why)


WAITS = cell("degrade-not-die", "chat", "fault:gpu-loss", Word.INCONCLUSIVE, why=BASELINE_UNDECIDED)


def test_too_few_in_steady_is_extended_by_what_would_decide(scenario: Scenario) -> None:
    # 299 with none bad decide; 99 more at 41.7/s are 2.4 s, and a quarter more for chance: 3 s.
    assert extension_us(verdict(short()), scenario) == 3 * SECOND
    assert extension_us(verdict(short(), WAITS), scenario) == 3 * SECOND
    tight = replace(scenario, load=replace(scenario.load, max_extend_us=2 * SECOND))
    assert extension_us(verdict(short()), tight) is None


def test_what_more_requests_would_not_decide_is_not_extended(scenario: Scenario) -> None:
    proven = cell("degrade-not-die", "chat", "fault:gpu-loss", Word.INCONCLUSIVE, why="no proof")
    lost = cell("answers", "chat", "steady", Word.INCONCLUSIVE, n=4000, why="the fate of 3 ...")
    assert extension_us(verdict(cell("answers", "chat", "run", Word.SURVIVED)), scenario) is None
    assert extension_us(verdict(WAITS), scenario) is None
    assert extension_us(verdict(short(), proven), scenario) is None
    assert extension_us(verdict(short(), lost), scenario) is None
    assert extension_us(verdict(short(window="phase:prototype")), scenario) is None
    assert extension_us(verdict(short(), more_reasons=("a fault was idle",)), scenario) is None
    assert extension_us(verdict(short(), cell("x", "", "run", Word.FAILED)), scenario) is None
    traced = replace(scenario, load=replace(scenario.load, trace_us=(0, 1)))
    assert extension_us(verdict(short()), traced) is None
    *others, last = scenario.load.phases
    ramp = replace(last, start_rps=Fraction(1))
    ramped = replace(scenario, load=replace(scenario.load, phases=(*others, ramp)))
    assert extension_us(verdict(short()), ramped) is None


@pytest.mark.parametrize("arrivals", ["poisson", "uniform", "bursty cv 3"])
def test_the_longer_run_begins_with_the_very_same_arrivals(
    scenario: Scenario, arrivals: str
) -> None:
    scenario = replace(scenario, load=replace(scenario.load, arrivals=arrivals))
    longer = extended(scenario, 5 * SECOND)

    def starts(of: Scenario) -> tuple[np.ndarray, np.ndarray]:
        blocks = list(Schedule.of(make_plan(of)).blocks())
        return (
            np.concatenate([block.intended_us for block in blocks]),
            np.concatenate([block.kind for block in blocks]),
        )

    (before, kinds), (after, kinds_after) = starts(scenario), starts(longer)
    assert longer.load.end_us == scenario.load.end_us + 5 * SECOND and len(after) > len(before)
    assert np.array_equal(before, after[: len(before)])
    assert np.array_equal(kinds, kinds_after[: len(before)])
    assert (after[len(before) :] >= scenario.load.end_us).all()


def test_what_is_written_of_the_longer_run_is_what_is_run(
    scenario: Scenario, tmp_path: Path
) -> None:
    longer = extended(scenario, 5 * SECOND)
    dump_scenario(longer, tmp_path)
    assert make_plan(load_stored(tmp_path)) == make_plan(longer)
