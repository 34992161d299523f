"""``survive diff`` on stored runs of the virtual host, as a user types it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import click
import pytest

from survive.catalog import builtin_root, load_module
from survive.cli import cli
from survive.errors import ExitCode, RecordError, UsageError
from survive.host.diff import given_in, runs_in
from survive.judge.compare import compare
from survive.judge.comparison import Comparison, Values
from survive.judge.conditions import ACCEPTABLE

# Short and with one judged cell, so that three runs a side decide.
SCENARIO = """\
survive: 1
name: chats
target: reference
seed: 3
requests:
  chat:
    post: /v1/chat/completions
    json: {model: m, stream: true, max_tokens: 16, messages: [{role: user, content: hello}]}
    expect: {status: 200, stream: complete}
    timeout: 1s
load:
  arrivals: uniform
  phases: [{name: only, rate: 40/s, for: 5s}]
faults:
  gpu-loss: {kind: gpu.lost, service: inference, count: 1, at: 2s, for: 2s}
objectives:
  degrade: {metric: success, min: 60%, of: chat, during: "fault:gpu-loss"}
"""
SIDES = {
    "base": (),
    "other": ("--set", "seed=30"),
    "weak": ("--set", "target.weaknesses=[no_health_checks]"),
    "faster": ("--set", "load.phases.only.rate=50/s", "--repeat", "1"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of each side."""
    folder = tmp_path_factory.mktemp("diff")
    file = folder / "chats.survive.yaml"
    file.write_text(SCENARIO, encoding="utf-8")
    for name, options in SIDES.items():
        argv = ["run", str(file), "--virtual", "--repeat", "3", "--out", str(folder / name)]
        cli.main([*argv, *options], standalone_mode=False)
    return folder


def diff(base: Path, new: Path, *options: str) -> ExitCode:
    code: ExitCode = cli.main(["diff", str(base), str(new), *options], standalone_mode=False)
    return code


def test_a_planted_weakness_is_found_and_the_gate_is_red(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert diff(runs / "base", runs / "weak") is ExitCode.SURVIVED
    assert diff(runs / "base", runs / "weak", "--fail-on-regression") is ExitCode.FAILED
    said = capsys.readouterr().out
    assert said.rstrip().splitlines()[-2].startswith("WORSE chats: degrade for chat during")
    assert "the target file differs in weaknesses" in said


def test_without_a_change_the_gate_is_green(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    code = diff(runs / "base", runs / "other", "--fail-on-regression", "--format", "json")
    told = json.loads(capsys.readouterr().out)
    assert code is ExitCode.SURVIVED
    assert [cell["change"] for cell in told["cells"]] == ["alike"]
    assert told["change"] == "alike" and len(told["base"]["runs"]) == 3


def test_one_run_against_one_is_undecided_and_says_so(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = runs_in(runs / "base")[0], runs_in(runs / "weak")[0]
    capsys.readouterr()
    assert diff(one, other) is ExitCode.SURVIVED
    assert diff(one, other, "--fail-on-regression") is ExitCode.INCONCLUSIVE
    assert "nothing is judged below 3 a side" in " ".join(capsys.readouterr().out.split())


def test_other_load_is_not_comparable(runs: Path) -> None:
    with pytest.raises(RecordError, match="did not do the same: other load") as raised:
        diff(runs / "base", runs / "faster")
    assert raised.value.exit_code == 2


def test_what_holds_no_run_or_several_scenarios_is_a_wrong_command_line(
    runs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is no run and holds none"):
        diff(tmp_path, runs / "base")
    for name in ("a", "b"):
        shutil.copytree(runs / "base" / "chats", tmp_path / name, symlinks=True)
    assert len(runs_in(tmp_path / "a")) == 3  # `latest` is one of them
    with pytest.raises(UsageError, match="several scenarios") as raised:
        runs_in(tmp_path)
    assert raised.value.exit_code == 2


def test_a_damaged_run_of_several_is_left_out_and_alone_an_error(
    runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "other" / "chats", tmp_path / "new", symlinks=True)
    first = runs_in(tmp_path / "new")[0]
    (first / "events.ndjson").write_text("")
    assert diff(runs / "base", tmp_path / "new", "--fail-on-regression") is ExitCode.INCONCLUSIVE
    with pytest.raises(RecordError, match="cut short"):
        diff(runs / "base", first)


@pytest.fixture(scope="module")
def found(runs: Path) -> Comparison:
    return compare(given_in("base", runs / "base"), given_in("new", runs / "weak"))


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_page_fits_its_console_whatever_it_can_show(
    found: Comparison, width: int, encoding: str
) -> None:
    reporters = builtin_root() / "reporters"
    glyphs = load_module(reporters / "glyphs.py").glyphs_for(encoding)
    for one in (found, _crowded(found)):
        page = load_module(reporters / "comparison.py").Page(one, width, glyphs)
        lines = [line.plain.rstrip() for line in page.lines()]
        assert max(map(len, lines)) <= width
        assert lines[0] == "survive diff chats" and any(line.startswith("WORSE") for line in lines)
        "\n".join(lines).encode(encoding)


def _crowded(found: Comparison) -> Comparison:
    """Long names and long numbers."""
    cells = [replace(c, name="n" * 90, request="r" * 40, window="w" * 70) for c in found.cells]
    measures = [
        replace(
            m, of="f" * 50, unit="share", base=Values((0.1234,), 0.1234567), new=Values((), 1e-5)
        )
        for m in found.measures
    ]
    spectra = [replace(s, request="r" * 40, window="w" * 200) for s in found.spectra]
    return replace(
        found, cells=(*cells, *found.cells), measures=tuple(measures), spectra=tuple(spectra)
    )


def test_what_can_be_accepted_is_what_the_command_line_takes() -> None:
    option = next(o for o in cli.commands["diff"].params if o.name == "accept")
    assert isinstance(option.type, click.Choice) and tuple(option.type.choices) == ACCEPTABLE


def test_markdown_is_made_of_whole_tables(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    diff(runs / "base", runs / "weak", "--format", "markdown")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "## survive diff: chats" and lines[2].startswith("**WORSE** chats")
    tables = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {4, 8, 9}
    worse = next(line for line in tables if "**WORSE**" in line)
    assert "degrade" in worse and "3 survived; now 3 failed" in worse
