"""Several runs on the terminal: whole names, whole folders, nothing wider than its console."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import reporter_fakes as fakes
from rich.cells import cell_len
from rich.console import Console

from reporters.episodes import Told, print_episodes
from survive.judge.verdict import Word


def shown(episodes: list[Told], width: int = 80) -> str:
    page = io.StringIO()
    print_episodes(Console(file=page, width=width), episodes)
    return page.getvalue()


def three() -> list[Told]:
    return [(seed, f"runs/q/{seed}", 0, fakes.verdict()) for seed in (42, 43, 44)]


def test_runs_and_cells_stand_in_lines_of_their_own() -> None:
    text = shown([*three(), (45, "runs/q/45", 1, fakes.failed())])
    lines = text.splitlines()
    assert "    42     0  survived      runs/q/42" in lines
    assert "    45     1  FAILED        runs/q/45" in lines
    assert "OBJECTIVES over 4 episodes" in lines
    [broken] = [line for line in lines if line.split()[:2] == ["chat", "fault:gpu-loss"]]
    assert broken.split()[2:5] == ["3", "1", "0"]  # good, bad, open


def test_a_recovery_that_was_not_seen_never_was() -> None:
    text = shown([(seed, "r", 1, fakes.failed()) for seed in (1, 2, 3)])
    [line] = [line for line in text.splitlines() if "recovery:gpu-loss" in line]
    assert "never" in line


def test_a_run_without_a_verdict_is_told() -> None:
    text = shown([(1, "r", 6, None)])
    assert "none" in text and "OBJECTIVES" not in text


@pytest.mark.parametrize("width", [60, 80, 140])
def test_nothing_is_wider_than_its_console_and_no_name_is_broken(width: int) -> None:
    cells = fakes.verdict().objectives
    long = replace(cells[0], window="fault:a-name-of-more-than-thirty-letters#12")
    verdict = fakes.verdict(objectives=(*cells, long))
    assert verdict.verdict is Word.SURVIVED
    lines = shown([(seed, "runs/q", 0, verdict) for seed in (1, 2, 3)], width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert any("degrade-not-die" in line for line in lines)
