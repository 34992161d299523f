"""What a run writes beside its record: whole, or told in a line and without effect."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from survive.catalog import Catalog
from survive.cli import cli
from survive.host.reports import WRITTEN, in_repository, write_report

CALM = """\
survive: 1
name: calm
target: reference
seed: 3
requests:
  search: {get: "/v1/search?q=hello", timeout: 2s}
load:
  arrivals: uniform
  phases: [{name: only, rate: 20/s, for: 5s}]
objectives:
  answers: {metric: success, min: 95%, during: steady}
"""
BROKEN = "class R:\n    def render(self, record, verdict):\n        raise OSError('a\\nb')\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "calm.survive.yaml").write_text(CALM, encoding="utf-8")
    return tmp_path


def run(project: Path, *options: str):
    file = str(project / "load" / "calm.survive.yaml")
    argv = ["run", file, "--virtual", "--out", str(project / "runs"), *options]
    return CliRunner().invoke(cli, argv, standalone_mode=False)


def test_every_run_directory_has_the_reports_and_names_the_file_as_its_repository_does(project):
    done = run(project)
    assert done.exception is None and done.return_value == 0
    folder = project / "runs" / "calm" / "latest"
    assert {path.name for path in folder.iterdir()} >= set(WRITTEN)
    text = (folder / "junit.xml").read_text()
    assert 'file="load/calm.survive.yaml" line="11"' in text
    assert not list(folder.glob(".*"))


def test_a_reporter_that_breaks_is_a_line_and_changes_nothing(project):
    (project / "reporters").mkdir()
    (project / "reporters" / "junit.py").write_text(BROKEN + "reporter = R()\n")
    done = run(project)
    assert done.return_value == 0
    folder = project / "runs" / "calm" / "latest"
    warned = [line for line in done.stderr.splitlines() if "junit" in line]
    assert len(warned) == 1 and warned[0].startswith("warning: ") and "OSError: a b" in warned[0]
    assert (folder / "verdict.json").exists() and not (folder / "junit.xml").exists()
    assert not list(folder.glob(".*"))


def test_a_report_that_cannot_be_written_leaves_what_was_there(tmp_path, capsys):
    class Fine:
        def render(self, record, verdict):
            return b"new"

    class One(Catalog):
        def reporter(self, name):
            return Fine()

    there = tmp_path / "there"
    there.mkdir()
    write_report(One(), "x", there, None, None)  # a folder stands in its place
    assert "there is not written" in capsys.readouterr().err
    write_report(One(), "x", tmp_path / "no" / "where", None, None)
    assert "where is not written" in capsys.readouterr().err
    write_report(One(), "x", there / "x", None, None)
    assert (there / "x").read_bytes() == b"new" and capsys.readouterr().err == ""


def test_a_file_is_named_as_its_repository_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert in_repository(tmp_path / "a" / "b.yaml") == "a/b.yaml"
    (tmp_path / "a" / ".git").mkdir(parents=True)
    assert in_repository(Path("a/b.yaml")) == "b.yaml"
    assert in_repository(Path("/nowhere/b.yaml")) == "b.yaml"
    assert in_repository(None) == ""
