"""The ledger: on disk before the deed, readable however its writer died."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from survive.chaos.ledger import LEDGER, Ledger, LedgerError, Named, Owner, state_dir
from survive.contracts import HandleSpec, Injection
from survive.errors import RefusedError


def injection(number: int = 1, until_us: int | None = 9) -> Injection:
    spec = HandleSpec("process", "web", number, f"127.0.0.1:{number}", pid=7, start_time=8)
    return Injection(f"one#{number}", "one", "node.pause", {}, spec, 5, until_us)


@pytest.fixture
def ledger():
    made = Ledger.create("run-1", "target")
    yield made
    made.close()


def test_it_is_private_and_says_who_answers_for_the_run(ledger):
    assert ledger.path == state_dir() / "run-1" / LEDGER
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ledger.path.parent.stat().st_mode) == 0o700
    story = Ledger.read(ledger.path)
    assert (story.run, story.target) == ("run-1", "target")
    assert story.owner == Owner.here()
    assert story.owner.alive() and story.owner.this_boot()


def test_it_tells_what_was_written(ledger):
    ledger.process("web-0", 4711, 99)
    ledger.inject([injection(1), injection(2), injection(3, None)])
    ledger.healed("one#1", proven=True, rung="undo")
    ledger.healed("one#2", proven=False, rung="kill")
    story = Ledger.read(ledger.path)
    assert story.processes == [("web-0", Named(4711, 99))]
    assert story.injections["one#2"] == injection(2)
    # Healed but unproven is still open; a one-shot has no heal.
    assert [i.id for i in story.open_injections()] == ["one#2"]
    assert story.ended is None
    ledger.ended(clean=True)
    assert Ledger.read(ledger.path).ended is True


def test_every_entry_is_synced_before_the_call_returns(ledger, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (real(fd), synced.append(ledger.path.read_text().splitlines()[-1]))
    )
    ledger.inject([injection(1), injection(2)])
    assert len(synced) == 1
    assert json.loads(synced[0])["injection"]["id"] == "one#2"


@pytest.mark.parametrize("keep", range(1, 40))
def test_a_torn_last_line_is_ignored(ledger, keep):
    ledger.inject([injection(1)])
    whole = ledger.path.read_bytes()
    ledger.inject([injection(2)])
    torn = ledger.path.read_bytes()[: len(whole) + keep * 6]
    ledger.path.write_bytes(torn)
    story = Ledger.read(ledger.path)
    assert "one#1" in story.injections
    assert story.damaged == 0


def test_a_writer_that_takes_over_does_not_continue_a_torn_line(ledger):
    ledger.inject([injection(1)])
    with ledger.path.open("ab") as file:
        file.write(b'{"entry":"inj')
    heir = Ledger(ledger.path)
    heir.ended(clean=False)
    heir.close()
    story = Ledger.read(ledger.path)
    assert story.ended is False and story.damaged == 1


def test_damage_inside_hides_nothing_else(ledger):
    ledger.process("web-0", 4711, 99)
    ledger.path.write_bytes(ledger.path.read_bytes() + b"\xff\x00garbage\n[]\n{}\n")
    ledger.inject([injection(1)])
    story = Ledger.read(ledger.path)
    assert story.damaged == 3
    assert "one#1" in story.injections and story.processes


def full_disk(fd, data):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_full_disk(fd, data, real=os.write):
    return real(fd, data[: len(data) // 2])


@pytest.mark.parametrize("write", [full_disk, half_full_disk])
def test_a_full_disk_raises_and_leaves_no_torn_line(ledger, monkeypatch, write):
    before = ledger.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        with pytest.raises(LedgerError, match="cannot be written"):
            ledger.inject([injection(1)])
    assert ledger.path.read_bytes() == before
    ledger.ended(clean=True)
    assert Ledger.read(ledger.path).damaged == 0


def test_a_disk_that_does_not_sync_is_an_error(ledger, monkeypatch):
    def broken(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(LedgerError, match="Input/output error"):
        ledger.inject([injection(1)])


def test_no_state_directory_no_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(LedgerError):
        Ledger.create("run-1", "target")


def test_one_run_a_target(ledger):
    with pytest.raises(RefusedError, match="another run holds the target 'target'"):
        Ledger.create("run-2", "target")
    assert not (state_dir() / "run-2").exists()
    other = Ledger.create("run-3", "another")
    other.close()
    ledger.close()
    again = Ledger.create("run-4", "target")
    again.close()


def test_the_lock_goes_with_its_holder_and_not_to_its_children(tmp_path):
    """kill -9 of the holder frees the target, though a child of it lives on."""
    code = (
        "import subprocess, sys; from survive.chaos.ledger import Ledger; "
        "Ledger.create('run-1', 'target'); "
        "p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    )
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(RefusedError):
            Ledger.create("run-2", "target")
        holder.kill()
        holder.wait(5)
        Ledger.create("run-2", "target").close()
    finally:
        os.kill(child, 9)
        holder.stdin.close()
        holder.stdout.close()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_a_run_is_named_plainly(name):
    with pytest.raises(RefusedError):
        Ledger.create(name, "target")


def test_targets_with_odd_names_do_not_share_a_lock():
    first = Ledger.create("run-1", "a/b")
    second = Ledger.create("run-2", "a_b")
    first.close()
    second.close()
