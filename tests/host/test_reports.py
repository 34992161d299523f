"""What a run writes beside its record: whole, or told in a line and without effect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from survive.catalog import Catalog
from survive.cli import cli
from survive.errors import UsageError
from survive.host.reports import WRITTEN, in_repository, write_report

ROOT = Path(__file__).resolve().parents[2]
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
    last = done.stdout.splitlines()[-1]
    assert last == f"page: {folder.resolve()}/report.html"


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
    write_report(One(), "x", there / "x", None, None)
    write_report(One(), "x", there / "x" / "y", None, None)
    assert "y is not written" in capsys.readouterr().err
    write_report(One(), "x", there / "new" / "z", None, None)
    assert (there / "x").read_bytes() == (there / "new" / "z").read_bytes() == b"new"
    assert capsys.readouterr().err == ""


def test_an_older_report_that_stays_is_told_before_anything_runs(project, monkeypatch):
    stale = project / "old" / "j.xml"
    stale.parent.mkdir()
    stale.write_text("all green")

    def refuse(path):
        raise PermissionError(1, "not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    done = run(project, "--report", f"junit={stale}")
    assert isinstance(done.exception, UsageError) and "cannot be removed" in str(done.exception)
    assert not (project / "runs").exists()


def test_who_reads_stderr_may_leave(project):
    read, write = os.pipe()
    os.close(read)
    argv = [
        "run",
        "load/calm.survive.yaml",
        "--virtual",
        "--report",
        "hgrm=x",
        "--report",
        "ours=y",
    ]
    (project / "reporters").mkdir()
    (project / "reporters" / "ours.py").write_text(BROKEN + "reporter = R()\n")
    done = subprocess.run(
        [sys.executable, "-m", "survive", *argv, "--set", "requests.search.expect={status: 404}"],
        cwd=project, stdout=subprocess.DEVNULL, stderr=write, timeout=60, check=False,
        env={**os.environ, "GITHUB_ACTIONS": "true", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 1 and (project / "x").exists()


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    class One(Catalog):
        def reporter(self, name):
            return type("Fine", (), {"render": lambda *_: b"new"})()

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_report(One(), "x", pipe, None, None)
    assert os.read(reader, 9) == b"new" and pipe.is_fifo()
    os.close(reader)


def test_reports_are_written_where_asked_whatever_the_verdict(project):
    markdown, junit = project / "out" / "s.md", project / "j.xml"
    junit.write_text("of another run")
    asked = ("--report", f"markdown={markdown}", "--report", f"junit={junit}")
    done = run(project, *asked, "--set", "requests.search.expect={status: 404}")
    assert done.return_value == 1
    assert markdown.read_text().startswith("## FAILED: calm on reference\n")
    assert "<failure" in junit.read_text()
    assert "OBJECTIVES" in done.stdout


def test_a_report_on_stdout_stands_in_place_of_the_result(project):
    done = run(project, "--report", "json=-")
    assert json.loads(done.stdout)["verdict"] == "survived"
    assert run(project, "--report", "markdown=-").stdout.startswith("## SURVIVED: ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--report", "junit"], "FORMAT=PATH"),
        (["--report", "junit="], "FORMAT=PATH"),
        (["--report", "junitt=x"], "did you mean 'junit'"),
        (["--report", "junit=a", "--report", "json=./a"], "holds something else"),
        (["--report", "junit=-", "--report", "json=-"], "holds something else"),
        (["--report", "json=-", "--format", "json"], "stdout holds the result already"),
        (["--report", "junit=-", "--repeat", "2"], "stdout holds the result already"),
    ],
)
def test_a_place_that_is_taken_is_told_before_anything_runs(project, options, said):
    done = run(project, *options)
    assert isinstance(done.exception, UsageError)
    assert said in "".join(done.exception.lines())
    assert not (project / "runs").exists()


def test_the_scenario_is_no_place_for_a_report(project):
    file = project / "load" / "calm.survive.yaml"
    done = run(project, "--report", f"junit={file}")
    assert isinstance(done.exception, UsageError) and file.read_text() == CALM


def test_what_another_run_left_is_gone_even_if_this_one_never_began(project):
    stale = [project / name for name in ("j.xml", "j-3.xml", "j-4.xml")]
    for path in stale:
        path.write_text("all green")
    done = run(project, "--report", f"junit={stale[0]}", "--set", "load.nothing=1")
    assert done.exception is not None and not stale[0].exists()
    done = run(project, "--report", f"junit={stale[0]}", "--repeat", "2")
    assert done.return_value == 0 and not stale[0].exists()
    for path, seed in zip(stale[1:], (3, 4), strict=True):
        assert f'name="seed" value="{seed}"' in path.read_text()


@pytest.mark.parametrize("breaks", ["raise OSError('a\\nb')", "raise SystemExit(0)", "return 1"])
def test_whatever_a_reporter_does_the_verdict_stays(project, breaks):
    (project / "reporters").mkdir()
    code = f"class R:\n    def render(self, record, verdict):\n        {breaks}\nreporter = R()\n"
    (project / "reporters" / "ours.py").write_text(code)
    places = ("--report", f"ours={project / 'o'}", "--report", "ours=-")
    done = run(project, *places, "--set", "requests.search.expect={status: 404}")
    assert done.return_value == 1 and not (project / "o").exists()
    assert sum("is not written" in line for line in done.stderr.splitlines()) == 2
    assert "OBJECTIVES" in done.stdout


def test_a_run_judged_again_has_no_report_of_the_verdict_before(project):
    run(project)
    folder = (project / "runs" / "calm" / "latest").resolve()
    there = {name: (folder / name).stat().st_mtime_ns for name in WRITTEN}

    def judged():
        return CliRunner().invoke(cli, ["judge", str(folder)], standalone_mode=False).return_value

    assert judged() == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in WRITTEN} == there
    stored = folder / "scenario.yaml"
    stored.write_text(stored.read_text().replace("min: 95%", "min: 99.99%"))
    (folder / "reporters").mkdir()
    (folder / "reporters" / "junit.py").write_text("raise SystemExit('code of the record')")
    (folder / "report.html").unlink()
    assert judged() == 3
    assert "<error" in (folder / "junit.xml").read_text()
    assert not (folder / "report.html").exists()


# -------------------------------------------------------------------- GitHub


@pytest.fixture
def github(project, monkeypatch):
    summary = project / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    return summary


def test_in_github_actions_the_step_has_a_summary_and_the_line_an_annotation(project, github):
    github.write_text("before\n")
    wrong = ("--set", "requests.search.expect={status: 404}", "--format", "json")
    done = run(project, *wrong)
    assert github.read_text().startswith("before\n## FAILED: calm on reference\n")
    told = [line for line in done.stderr.splitlines() if line.startswith("::")]
    assert len(told) == 1
    assert told[0].startswith("::error file=load/calm.survive.yaml,line=11,title=answers broke")
    assert json.loads(done.stdout)["exit_code"] == done.return_value == 1


def test_ci_is_told_nothing_unless_it_is_there_and_wanted(project, github, monkeypatch):
    done = run(project, "--no-ci", "--set", "requests.search.expect={status: 404}")
    assert done.return_value == 1 and "::error" not in done.stderr and not github.exists()
    monkeypatch.delenv("GITHUB_ACTIONS")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    done = run(project, "--set", "requests.search.expect={status: 404}")
    assert "::error" not in done.stderr


def test_a_summary_that_has_no_room_is_left_and_changes_nothing(project, github, monkeypatch):
    github.write_bytes(b"x" * (1 << 20))
    done = run(project)
    assert done.return_value == 0 and github.stat().st_size == 1 << 20
    assert "no room for another summary" in done.stderr
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project / "no" / "where"))
    done = run(project)
    assert done.return_value == 0 and "is not written" in done.stderr


def test_a_file_is_named_as_its_repository_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert in_repository(tmp_path / "a" / "b.yaml") == "a/b.yaml"
    (tmp_path / "a" / ".git").mkdir(parents=True)
    assert in_repository(Path("a/b.yaml")) == "b.yaml"
    assert in_repository(Path("/nowhere/b.yaml")) == "b.yaml"
    assert in_repository(None) == ""
