"""What counts as found, missed, condemned, undecided; and the exit code of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from survive.errors import ExitCode
from survive.exam.cells import Cell, Claim, Outcome, Weather
from survive.exam.defects import DEFECTS
from survive.exam.marks import Cost, Report, costs_of, matrix_of, rows_of, unsure_of
from survive.exam.page import page, show, to_json
from survive.scenario.target import WEAKNESSES

W = "no_timeout"
CLAIM = Claim("s", W, "fast")
SEEDS = {"s": range(5, 7)}


def outcome(
    weakness: str, weather: str, seed: int, word: str, failed: Sequence[str] = ()
) -> Outcome:
    codes = {"survived": 0, "failed": 1, "inconclusive": 3, "error": 70}
    cell = Cell("s", weakness, Weather(weather), seed)
    reasons = (f"{word} it is",)
    return Outcome(cell, "virtual", word, codes[word], tuple(failed), reasons, 2.0, 1.0, "now")


def sat(
    healthy: str = "survived", calm: str = "survived", weak: str = "failed", broke: str = "fast"
) -> list[Outcome]:
    """Seed 5 as it must be, seed 6 as said."""
    failed = (broke,) if weak == "failed" else ()
    return [
        outcome("", "fault", 5, "survived"),
        outcome(W, "calm", 5, "survived"),
        outcome(W, "fault", 5, "failed", ["fast"]),
        outcome("", "fault", 6, healthy, ["fast"] if healthy == "failed" else ()),
        outcome(W, "calm", 6, calm, ["fast"] if calm == "failed" else ()),
        outcome(W, "fault", 6, weak, failed),
    ]


def report(found: Sequence[Outcome], *, weaknesses: tuple[str, ...] = (W,)) -> Report:
    rows = rows_of([CLAIM], found, SEEDS, {"s": "network.down"})
    return Report(weaknesses, rows, {}, ("s",), runs=len(found), seeds=2)


def test_a_claim_that_holds_on_every_seed_passes() -> None:
    found = report(sat())
    assert found.rows[0].holds and found.exit_code is ExitCode.SURVIVED
    assert (found.missed, found.condemned, found.untrue, found.undecided) == ((), (), (), ())


@pytest.mark.parametrize(
    ("found", "what", "code"),
    [
        (sat(weak="survived"), "missed", ExitCode.FAILED),
        (sat(weak="inconclusive"), "missed", ExitCode.FAILED),
        (sat(weak="error"), "missed", ExitCode.FAILED),
        (sat(broke="another"), "missed", ExitCode.FAILED),
        (sat(healthy="failed"), "condemned", ExitCode.FAILED),
        (sat(calm="failed"), "condemned", ExitCode.FAILED),
        (sat(healthy="inconclusive"), "undecided", ExitCode.INCONCLUSIVE),
        (sat(calm="inconclusive"), "undecided", ExitCode.INCONCLUSIVE),
        (sat(calm="error"), "undecided", ExitCode.INCONCLUSIVE),
        (sat(healthy="inconclusive", weak="survived"), "undecided", ExitCode.FAILED),
    ],
)
def test_one_seed_that_is_not_as_it_must_be_decides(
    found: list[Outcome], what: str, code: ExitCode
) -> None:
    marked = report(found)
    assert not marked.rows[0].holds
    assert getattr(marked, what) and marked.exit_code is code


def test_a_red_for_another_reason_is_no_kill_and_says_so() -> None:
    weak = report(sat(broke="another")).rows[0].weak
    assert (weak.good, weak.bad) == (1, 1)
    assert weak.odd == "seed 6: only another broke: failed it is"


def test_a_claim_that_was_not_sat_proves_nothing() -> None:
    assert report([]).exit_code is ExitCode.FAILED


def test_a_weakness_that_nobody_claims_is_found_by_the_matrix_or_missed() -> None:
    wanted = (W, "memory_leak", "retry_storm")
    found = [
        *sat(),
        outcome("memory_leak", "fault", 5, "failed", ["back"]),
        outcome("retry_storm", "fault", 5, "survived"),
        outcome("retry_storm", "fault", 6, "failed", ["back"]),  # not the matrix's seed
    ]
    matrix = matrix_of(found, SEEDS)
    rows = rows_of([CLAIM], found, SEEDS, {"s": ""})
    marked = Report(wanted, rows, matrix, ("s",))
    assert marked.missed == ("retry_storm",) and marked.exit_code is ExitCode.FAILED
    assert matrix["memory_leak", "s"].objectives == ("back",)
    assert (W, "s") in matrix and ("", "s") not in matrix


def test_what_condemns_the_healthy_stack_kills_nothing() -> None:
    found = [
        outcome("", "fault", 5, "failed", ["back"]),
        outcome("memory_leak", "fault", 5, "failed", ["back"]),
    ]
    marked = Report(("memory_leak",), (), matrix_of(found, SEEDS), ("s",))
    assert marked.missed == ("memory_leak",) and marked.condemned == ("s",)


@pytest.mark.parametrize("word", ["inconclusive", "error"])
def test_a_gate_that_lets_nothing_pass_is_no_gate(word: str) -> None:
    """What is red for the weak stack was not green for the sound one."""
    found = [
        outcome("", "fault", 5, word),
        outcome("memory_leak", "fault", 5, "failed", ["back"]),
    ]
    matrix, unsure = matrix_of(found, SEEDS), unsure_of(found, SEEDS)
    marked = Report(("memory_leak",), (), matrix, ("s",), unsure=unsure)
    assert marked.missed == () and marked.exit_code is ExitCode.INCONCLUSIVE
    assert "- sound stacks undecided: s\n" in page(marked, "c", "d")
    assert unsure_of(sat(), SEEDS) == ()


def test_the_dearest_scenario_stands_first() -> None:
    dear = [replace(o, cell=replace(o.cell, scenario="dear"), cpu_s=3.0) for o in sat()[:2]]
    costs = costs_of([*sat(), *dear])
    assert costs == (Cost("dear", 2, 3.0, 3.0), Cost("s", 6, 1.0, 1.0))
    marked = Report((), (), {}, (), costs=costs)
    assert marked.cpu_s == 12.0 and "| dear | 2 | 3.0 | 3.0 |" in page(marked, "c", "d")


def test_the_page_and_the_document_say_the_same() -> None:
    found = sat(weak="survived")
    rows = rows_of([CLAIM], found, SEEDS, {"s": "network.down"})
    marked = Report((W,), rows, matrix_of(found, SEEDS), ("s",), runs=6, seeds=2)
    text = page(marked, "survive exam", "2026-01-01")
    assert "| `no_timeout` | s | network.down | fast | 2/2 | 2/2 | **1/2** |" in text
    assert "| `no_timeout` | fast |" in text and "generated" in text.lower()
    document = to_json(marked)
    assert document["exit_code"] == 1 and document["missed"] == []
    assert document["matrix"] == [
        {"weakness": W, "scenario": "s", "mark": "killed", "objectives": ["fast"]}
    ]


def test_every_weakness_has_its_sentence() -> None:
    assert tuple(sorted(DEFECTS)) == tuple(sorted(WEAKNESSES))


def test_a_miss_comes_with_what_it_is_and_who_finds_it(capsys: pytest.CaptureFixture[str]) -> None:
    marked = replace(report(sat(weak="survived")), rows=(), finders={W: ("slow-network",)})
    show(Console(width=80), replace(marked, moved=("s",)))
    told = capsys.readouterr().out
    assert f"  {W}: {DEFECTS[W]} (found by scenarios/slow-network.survive.yaml)" in told
    assert "on `production`, since they name no stack that can be weakened: s" in told
