"""The envelope on the terminal: laid out for every width, and nothing hidden."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import pytest
from rich.console import Console

from survive.catalog import builtin_root, load_module
from survive.errors import ExitCode
from survive.judge.capacity import Envelope, Finding, Finished, LevelRun
from survive.judge.verdict import Cell, Word

REPORT = load_module(builtin_root() / "reporters" / "envelope.py")
S, F, U, H = Finding.SURVIVED, Finding.FAILED, Finding.UNDECIDED, Finding.HARNESS
_WORDS = {S: Word.SURVIVED, F: Word.FAILED}
NAMES = ("answers", "a-rather-long-objective", "comes-back", "x", "another-one", "\x1b[31mred")


def run(finding: Finding, seed: int) -> LevelRun:
    word = _WORDS.get(finding, Word.INCONCLUSIVE)
    cells = tuple(
        Cell(name, "success", "chat", "steady", word, 0.99, "share", 0.5, 0.4, 0.6, 100, 50,
             bound="min")
        for name in NAMES
    )  # fmt: skip
    return LevelRun(seed, f"run-{seed}", 0, finding, f"why {finding}", cells, "simulated")


def finished(*levels: tuple[str, Sequence[Finding]], ended: str = "complete") -> Finished:
    envelope = Envelope()
    for factor, findings in levels:
        for seed, finding in enumerate(findings):
            envelope = envelope.with_run(Fraction(factor), run(finding, seed))
    return Finished(
        "stack", "target", "virtual", Fraction(100), 0.1, None, (envelope,), ExitCode.SURVIVED,
        ended, "runs/stack/envelope/here", 84_000_000,
    )  # fmt: skip


def told(found: Finished, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    REPORT.print_envelope(Console(file=raw, width=width, highlight=False), found)
    raw.flush()
    buffer = raw.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(encoding)


ALL = finished(("1", [S]), ("2", [S, F]), ("3", [S]), ("4", [F, F]), ("5", [U, U]), ("6", [S]))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_it_keeps_to_its_width_and_characters(width: int, encoding: str) -> None:
    text = told(ALL, width, encoding)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert ("≥" in text) == (encoding == "utf-8")


def test_every_objective_has_a_column_at_every_width() -> None:
    for width in (60, 80, 140):
        text = told(ALL, width)
        assert all(text.count(f"  {factor}x") >= 1 for factor in range(1, 7))
        assert all(name[:8] in text for name in ("answers", "a-rather", "comes-ba", "another"))


def test_what_does_not_fit_together_is_told() -> None:
    text = " ".join(told(ALL).split())
    assert "survives at ≥ 100/s (1x), fails at ≤ 400/s (4x); answers breaks first" in text
    assert "at 200/s (2x) the seeds disagree: 1 of 2 runs survived (why failed)" in text
    assert "not monotone: failed at 400/s (4x), survived at 600/s (6x)" in text
    assert "undecided at 500/s (5x): why undecided" in text


def test_the_harness_is_not_the_target() -> None:
    text = " ".join(told(finished(("1", [S]), ("2", [H, H]))).split())
    assert "at 200/s (2x) the harness is the limit, and where the target fails is not known" in text
    assert "says nothing of the target: why harness" in text and "fails at" not in text


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([("1", [S]), ("2", [S])], "survives at ≥ 200/s (2x), the highest load played"),
        ([("1", [S]), ("2", [U])], "survives at ≥ 100/s (1x); where it fails is not known"),
        ([("1", [F, F])], "survived at no load, fails at ≤ 100/s (1x)"),
        ([], "survived at no load; where it fails is not known"),
    ],
)
def test_what_is_not_known_is_not_said(
    levels: list[tuple[str, Sequence[Finding]]], said: str
) -> None:
    assert said in " ".join(told(finished(*levels)).split())
