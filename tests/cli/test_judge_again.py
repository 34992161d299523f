"""A stored run can be judged for ever: moved, offline, with another limit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shortrun import SHORT

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "scenarios" / "quickstart.survive.yaml"

OFFLINE = """
import socket, sys

def refuse(*args, **kwargs):
    raise RuntimeError("the judge touched the network")

for way in ("connect", "connect_ex", "bind", "sendto"):
    setattr(socket.socket, way, refuse)
socket.create_connection = socket.getaddrinfo = refuse
from survive.cli import main
main(sys.argv[1:])
"""


def survive(*arguments, cwd=ROOT, offline=False):
    program = ["-c", OFFLINE] if offline else ["-m", "survive"]
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    out = tmp_path_factory.mktemp("stored")
    whole = "objectives.whole-run={metric: ttft.p95, max: 900ms, of: chat, during: run}"
    done = survive("run", QUICKSTART, "--virtual", "--out", out, "--set", whole)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((out / "quickstart").glob("2*"))


@pytest.fixture
def moved(stored, tmp_path):
    folder = tmp_path / "elsewhere" / "kept"
    shutil.copytree(stored, folder)
    (folder / "verdict.json").unlink()
    return folder


def cells(folder):
    document = json.loads((folder / "verdict.json").read_text())
    return {(c["name"], c["request"], c["window"]): c for c in document["objectives"]}


def judged_with(moved, old, new):
    """The cells after one limit was changed in the stored scenario."""
    file = moved / "scenario.yaml"
    changed, times = re.subn(rf"(max: ?)['\"]?{old}['\"]?", rf"\g<1>{new}", file.read_text())
    assert times == 1
    file.write_text(changed)
    done = survive("judge", moved, cwd=moved, offline=True)
    assert done.returncode == 1, done.stdout + done.stderr
    return cells(moved)


def test_only_the_cell_whose_limit_changed_changes(stored, moved):
    before, after = cells(stored), judged_with(moved, "900ms", "1ms")
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {("whole-run", "chat", "run")}
    assert after["whole-run", "chat", "run"]["verdict"] == "failed"


def test_a_steady_limit_is_also_what_recovery_is_measured_by(stored, moved):
    """DESIGN law 7: a target has recovered when its steady objectives hold again."""
    before, after = cells(stored), judged_with(moved, "800ms", "1ms")
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {
        ("fast-first-token", "chat", "steady"),
        ("comes-back", "", "recovery:gpu-loss"),
        ("comes-back", "", "recovery:slow-network"),
    }


def test_judged_again_unchanged_is_the_same_verdict(stored, moved):
    done = survive("judge", moved, cwd=moved, offline=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (moved / "verdict.json").read_bytes() == (stored / "verdict.json").read_bytes()


def test_the_log_that_other_tools_read_gives_the_same_verdict(stored, moved):
    done = survive("judge", moved, "--from-hlog", cwd=moved)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (moved / "verdict.json").read_bytes() == (stored / "verdict.json").read_bytes()


def test_reports_are_rendered_from_the_record_alone(moved, tmp_path):
    shown = survive("report", moved, cwd=tmp_path, offline=True)
    assert shown.returncode == 0, shown.stderr
    assert "SURVIVED quickstart" in shown.stdout
    file = tmp_path / "verdict.json"
    assert survive("report", moved, "--format", "json", "-o", file).returncode == 0
    assert json.loads(file.read_text())["verdict"] == "survived"


def test_run_as_json_prints_the_verdict_and_nothing_else(tmp_path):
    done = survive("run", QUICKSTART, "--virtual", "--out", tmp_path, "--format", "json", *SHORT)
    folder = next((tmp_path / "quickstart").glob("2*"))
    assert json.loads(done.stdout) == json.loads((folder / "verdict.json").read_text())
    assert (tmp_path / "quickstart" / "latest").resolve() == folder.resolve()


@pytest.mark.parametrize("damage", ["events.ndjson", "plan.json", "latency.hlog", "scenario.yaml"])
def test_a_record_that_lost_a_file_is_an_error_and_never_a_verdict(moved, damage):
    (moved / damage).unlink()
    arguments = ["--from-hlog"] if damage == "latency.hlog" else []
    done = survive("judge", moved, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert not (moved / "verdict.json").exists()
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_no_run(tmp_path):
    done = survive("judge", tmp_path)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize("form", ["human", "json"])
@pytest.mark.parametrize("limit, code", [("900ms", 0), ("1ms", 1)])
def test_a_reader_that_leaves_does_not_change_the_exit_code(moved, form, limit, code):
    file = moved / "scenario.yaml"
    file.write_text(file.read_text().replace("900ms", limit))
    with subprocess.Popen(
        [sys.executable, "-m", "survive", "judge", str(moved), "--format", form],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as judging:  # fmt: skip
        judging.stdout.close()
        assert (judging.stderr.read(), judging.wait(60)) == (b"", code)


def test_a_full_stdout_is_told_and_does_not_change_the_exit_code(moved):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "survive", "judge", str(moved), "--format", "json"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.startswith("warning: stdout cannot be written")


def test_an_archive_that_cannot_be_written_is_judged_all_the_same(moved):
    (moved / "verdict.tmp").mkdir()  # also root meets this one
    done = survive("judge", moved)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: verdict.json is as it was")


def test_a_report_that_cannot_be_written_is_a_wrong_command_line(moved):
    done = survive("report", moved, "--format", "json", "-o", moved / "no" / "such" / "folder")
    assert done.returncode == 2
    assert done.stderr.startswith("the report cannot be written")


def test_who_watches_a_run_does_not_end_it(tmp_path):
    """The reader of stderr leaves after the first line: `survive run ... 2>&1 | head -1`."""
    with subprocess.Popen(
        [*(sys.executable, "-m", "survive", "run", str(QUICKSTART)),
         *("--virtual", "--out", tmp_path, *SHORT)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        running.stderr.readline()
        running.stderr.close()
        assert b"SURVIVED" in running.stdout.read()
        assert running.wait(60) == 0


def test_what_the_command_line_asked_of_the_judge_is_asked_again(tmp_path):
    asked = ["--require-grade", "induced", "--inconclusive", "fail"]
    flags = ["--virtual", "--out", tmp_path, "--format", "json", *SHORT]
    done = survive("run", QUICKSTART, *flags, *asked)
    folder = next((tmp_path / "quickstart").glob("2*"))
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["verdict"] == "inconclusive"
    again = survive("judge", folder, "--format", "json")
    assert (again.returncode, again.stdout) == (1, done.stdout)
