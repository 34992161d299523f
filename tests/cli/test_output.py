"""How output fits who reads it: commands to type as they are, lines that fit a terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from survive import output


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `survive` in a virtual environment, called from the folder beside it."""
    program = tmp_path / "venv with blanks" / "bin" / "survive"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", os.defpath)
    return program


def test_a_next_command_can_be_typed_where_survive_is_on_no_path(called: Path) -> None:
    (called.parents[2] / "shop").mkdir()
    assert output.program() == "'venv with blanks/bin/survive'"
    assert output.program(Path("shop")) == "'../venv with blanks/bin/survive'"


def test_a_program_on_the_path_is_its_name(called: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(called.parent))
    assert output.program() == "survive"


def test_a_module_has_the_name_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/survive/__main__.py"])
    assert output.program() == "survive"


def test_lines_are_folded_between_words_and_under_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "title\n\n    certifies: " + "one-two " * 12
    assert output.folded(text) == text  # nobody looks: lines are whole
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "48")
    lines = output.folded(text).splitlines()
    assert max(map(len, lines)) <= 48
    assert lines[:3] == ["title", "", "    certifies: one-two one-two one-two one-two"]
    assert all(line.startswith("      one-two") for line in lines[3:])
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
