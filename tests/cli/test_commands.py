"""What the small commands print, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shortrun import SHORT

from survive.catalog import Catalog
from survive.errors import UsageError
from survive.host.listing import show_faults

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = "scenarios/quickstart.survive.yaml"


def survive(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "survive", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_command_is_told_in_a_line_of_80_columns():
    told = survive("--help").stdout
    assert max(map(len, told.splitlines())) <= 80
    assert "..." not in told.partition("Commands:")[2]


def test_validate_says_valid():
    done = survive("validate", QUICKSTART)
    assert done.returncode == 0, done.stderr
    assert "valid" in done.stdout


def test_explain_shows_the_timeline_and_what_each_cell_tolerates():
    done = survive("explain", QUICKSTART)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "production" in text
    assert "gpu-loss" in text and "slow-network" in text
    assert "simulated" in text
    chat = [
        line
        for line in text.splitlines()
        if "degrade-not-die" in line and "chat" in line and "fault:gpu-loss" in line
    ]
    assert len(chat) == 1
    assert "tolerates" in chat[0]


def test_explain_counts_recovery_from_the_heal_or_of_a_one_shot_from_its_inject():
    done = survive("explain", "scenarios/node-loss.survive.yaml")
    said = {
        line.split()[1]: line.partition(" of the ")[2].split(",")[0]
        for line in done.stdout.splitlines()
        if " of the " in line and "recovery:" in line
    }
    assert said == {
        "recovery:crash": "inject",
        "recovery:hang": "heal",
        "recovery:loss": "heal",
        "recovery:index": "inject",
    }


def test_explain_says_why_a_cell_cannot_be_decided():
    done = survive("explain", QUICKSTART, "--set", "objectives.answers.min=99.99%")
    assert done.returncode == 0, done.stderr
    line = next(row for row in done.stdout.splitlines() if "answers" in row and "chat" in row)
    assert "cannot be decided" in line


def test_too_few_planned_samples_is_a_warning_and_not_an_error():
    done = survive("validate", QUICKSTART, "--set", "objectives.answers.min=99.99%")
    assert done.returncode == 0
    assert "warning: answers for chat during steady cannot be decided" in done.stderr
    assert "29,956 needed" in done.stderr


def test_every_fault_describes_itself():
    done = survive("faults", "--format", "json")
    listed = {fault["kind"]: fault for fault in json.loads(done.stdout)}
    assert (
        set(listed)
        == set(Catalog().fault_kinds())
        >= {
            "network.latency",
            "network.down",
            "node.kill",
            "node.pause",
            "node.down",
            "gpu.lost",
            "gpu.throttle",
        }
    )
    for fault in listed.values():
        assert fault["certifies"] and fault["does_not_certify"]
        assert fault["grade"] in {"real", "induced", "reported", "emulated", "simulated"}
    assert listed["gpu.lost"]["grade"] == "simulated"
    keys = {"kind", "about", "held", "grade", "layer", "needs", "privileges", "active"}
    keys |= {"certifies", "does_not_certify", "settings"}
    assert {frozenset(fault) for fault in listed.values()} == {frozenset(keys)}
    assert all(fault["about"] and fault["active"] for fault in listed.values())
    assert listed["gpu.ecc_slow"]["settings"] == {
        "slow_down": {"type": "Factor", "required": True, "default": None},
        "retries": {"type": "Share", "required": False, "default": "10%"},
    }


def test_a_kind_that_nobody_knows_is_answered_with_families_and_not_with_all_kinds():
    done = survive("faults", "nope")
    assert done.returncode == 2
    assert "chaostoolkit.*, container.*, dependency.*, gpu.*" in done.stderr
    assert "gpu.lost" not in done.stderr


def test_one_fault_in_words():
    done = survive("faults", "network.latency")
    assert "does not certify" in done.stdout
    assert "latency" in done.stdout


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gpu.throttle", ["service: NAME", "for: DURATION", "with: {slow_down: FACTOR}"]),
        ("protocol.status", ["link: SOURCE -> DEST", "with: {status: INT}", "bitten through"]),
        ("network.loss", ["root (CAP_NET_ADMIN", "like 20%; required"]),
        ("chaostoolkit.once", ["one-shot", "an activity: {provider: {type: python"]),
        ("node.pause", ["SIGSTOP for a time", "settings          none"]),
    ],
)
def test_a_fault_says_what_it_does_how_it_is_seen_and_what_to_write(kind, words):
    page = show_faults(kind, "human")
    assert [word for word in words if word not in page] == []
    assert {line[2:18].strip() for line in page.splitlines()} >= {
        "what it does", "active", "grade", "privileges", "certifies", "does not certify", "write",
    }  # fmt: skip


def test_a_family_is_listed_and_a_kind_that_is_none_gets_a_hint():
    known = [kind for kind in Catalog().fault_kinds() if kind.startswith("gpu.")]
    assert [line.split()[0] for line in show_faults("gpu", "human").splitlines()] == known
    assert [fault["kind"] for fault in json.loads(show_faults("gpu", "json"))] == known
    assert len(json.loads(show_faults("chaostoolkit", "json"))) == 1
    with pytest.raises(UsageError, match=r"unknown fault kind 'gpu\.los'") as raised:
        show_faults("gpu.los", "human")
    assert "gpu.lost" in raised.value.hint


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_list_of_faults_fits_its_terminal_and_is_whole_elsewhere(width):
    whole = show_faults(None, "human")
    assert "…" not in whole and whole.count("\n") + 1 == len(Catalog().fault_kinds())
    column = max(map(len, Catalog().fault_kinds()))
    assert {line[column : column + 2] for line in whole.splitlines()} == {"  "}
    shown = show_faults(None, "human", width)
    assert max(map(len, shown.splitlines())) <= width
    page = show_faults("network.latency", "human", width).splitlines()
    assert max(map(len, page)) <= width and len(page) > 8


@pytest.mark.parametrize(
    ("code", "arguments"),
    [(0, ["faults"]), (0, ["schema"]), (5, ["heal", "--check"]), (2, ["report", "nowhere"])],
)
def test_a_reader_that_leaves_changes_no_exit_code(code, arguments, tmp_path):
    if code == 5:
        left = tmp_path / "survive" / "left"
        left.mkdir(parents=True)
        line = '{"entry": "process", "name": "web-0", "pid": 1, "start_time": 1}\n'
        (left / "ledger.ndjson").write_text(line)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "survive", *arguments],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    os.close(write)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_an_unknown_fault_gets_the_nearest_name():
    done = survive("faults", "network.latancy")
    assert done.returncode == 2
    assert "network.latency" in done.stderr


def test_the_committed_schema_is_current():
    for what in ("scenario", "target", "verdict", "envelope", "diff"):
        printed = survive("schema", what).stdout
        assert printed == (ROOT / "schema" / f"{what}.v1.json").read_text()


def test_targets_are_listed():
    assert "reference" in survive("targets").stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["judge"], ["run", "x", "--no"]])
def test_a_wrong_command_line_is_2(arguments):
    assert survive(*arguments).returncode == 2


def test_a_missing_file_is_2_and_says_which():
    done = survive("validate", "no-such.survive.yaml")
    assert done.returncode == 2
    assert "no-such.survive.yaml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.alone
def test_validate_loads_no_more_than_yaml_models_and_arrays():
    """Ratios, not seconds: a load engine or a terminal library would double the time.

    As installed: with byte code, which some machines forbid for all that runs on them.
    """
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def took(*argv):
        best = 99.0
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, *argv], cwd=ROOT, check=True, capture_output=True, env=env
            )
            best = min(best, time.perf_counter() - began)
        return best

    least = took("-c", "import click, numpy, pydantic, yaml")
    assert took("-m", "survive", "validate", QUICKSTART) < 4 * least


@pytest.mark.parametrize(
    "arguments", [["validate", QUICKSTART], ["run", QUICKSTART, "--virtual", *SHORT]]
)
def test_survive_itself_never_loads_locust_or_gevent(tmp_path, arguments):
    program = (
        "import sys; from survive.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "import survive.host.real\n"
        "assert not {'locust', 'gevent'} & set(sys.modules)"
    )
    if "run" in arguments:
        arguments = [*arguments, "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, check=True)
