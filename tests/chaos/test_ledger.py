"""The ledger: on disk before the deed, readable however its writer died."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import re
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from survive.chaos.ledger import (
    LEDGER,
    Ledger,
    LedgerError,
    Named,
    Owner,
    is_written,
    state_dir,
)
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
    assert story.damage == []


def test_a_writer_that_takes_over_does_not_continue_a_torn_line(ledger):
    ledger.inject([injection(1)])
    with ledger.path.open("ab") as file:
        file.write(b'{"entry":"inj')
    heir = Ledger(ledger.path)
    heir.ended(clean=False)
    heir.close()
    story = Ledger.read(ledger.path)
    assert story.ended is False and story.damage == []  # nothing was done for it


def test_damage_inside_hides_nothing_else(ledger):
    ledger.process("web-0", 4711, 99)
    ledger.inject([injection(1)])
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(lines[0] + b"\xff\x00garbage\n[]\n" + lines[2])
    ledger.inject([injection(2)])
    story = Ledger.read(ledger.path)
    assert story.damage == ["lines 2, 3 cannot be read"]
    assert set(story.injections) == {"one#1", "one#2"} and not story.processes


def test_what_stands_between_lines_that_are_all_there_hides_nothing(ledger):
    """Each line bears its number: with none missing, nothing that was acted on is."""
    ledger.process("web-0", 4711, 99)
    with ledger.path.open("ab") as file:
        file.write(b"\xff\x00garbage\n[]\n{}\n")
    ledger.inject([injection(1)])
    assert Ledger.read(ledger.path).damage == []


def test_a_line_that_was_taken_out_is_missed(ledger):
    ledger.process("web-0", 4711, 99)
    ledger.inject([injection(1)])
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(lines[0] + lines[2])
    assert Ledger.read(ledger.path).damage == ["what stood before line 2 is gone"]
    ledger.path.write_bytes(lines[1] + lines[2])
    assert Ledger.read(ledger.path).damage == ["what stood before line 1 is gone"]


def test_who_writes_after_damage_does_not_cover_it_up(ledger):
    ledger.inject([injection(1)])
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b"one#1", b"two#1"))
    heir = Ledger(ledger.path)
    heir.ended(clean=False)
    assert Ledger.read(ledger.path).damage == ["line 2 cannot be read"]
    heir.looked(["line 2 cannot be read"])
    heir.ended(clean=True)
    heir.close()
    story = Ledger.read(ledger.path)
    assert story.damage == [] and story.ended is True


def as_of_old(data: bytes) -> bytes:
    return re.sub(rb'"n":\d+,|,"sum":"[0-9a-f]+"', b"", data)


def test_entries_without_an_owner_are_damage_until_somebody_has_looked(ledger):
    rest = as_of_old(story_of(ledger))
    orphans = rest[rest.index(b"\n") + 1 :]
    assert Ledger.told(orphans).damage == ["nothing says whose it is"]
    assert Ledger.told(orphans + b'{"entry":"looked","damage":[]}\n').damage == []


def test_a_ledger_of_before_lines_had_numbers_is_read(ledger):
    ledger.inject([injection(1)])
    ledger.path.write_bytes(as_of_old(ledger.path.read_bytes()) + b"torn\n")
    heir = Ledger(ledger.path)
    heir.healed("one#1", proven=True, rung="undo")
    heir.close()
    story = Ledger.read(ledger.path)
    assert story.owner == Owner.here() and story.open_injections() == []
    assert story.damage == ["line 3 cannot be read"]  # nothing shows that it was never acted on
    assert b'"n":' not in ledger.path.read_bytes()


def test_an_entry_that_nobody_knows_is_told(ledger):
    ledger._append([{"entry": "of the future"}])
    ledger._append([{"entry": "process", "name": "x", "pid": "7", "start_time": 8}])
    assert Ledger.read(ledger.path).damage == ["line 2 cannot be read", "line 3 cannot be read"]


def test_somebody_who_writes_is_seen_without_being_named(ledger):
    assert is_written(ledger.path)
    ledger.close()
    assert not is_written(ledger.path)


def story_of(ledger):
    ledger.process("web-0", 4711, 99)
    ledger.resource("containers", "unix:///x")
    ledger.inject([injection(1), injection(2, None)])
    ledger.healed("one#1", proven=False, rung="undo")
    ledger.process("web-0", 4712, 100)
    return ledger.path.read_bytes()


def told(data: bytes) -> tuple[set[str], list[str]]:
    story = Ledger.told(data)
    said = [story.owner, *story.processes, *story.resources]
    said += [*story.injections.items(), *story.healed.items()]
    return {repr(one) for one in said}, story.damage


def changes(whole: bytes):
    """Every byte turned, lost or joined by a new one, and stretches cut out."""
    chance = random.Random(7)
    for at in range(len(whole)):
        for bit in chance.sample(range(8), 2):
            yield whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        for new in (b"\n", b"0", b"}"):
            yield whole[:at] + new + whole[at:]
        yield whole[:at] + whole[at + 1 :]
        yield whole[:at] + whole[at + chance.randrange(2, 400) :]


def test_no_damage_is_taken_for_what_was_written(ledger):
    """What is told was written, and what was written is told or missed aloud: for every change of
    every byte. The one exception is a loss of the end alone, which is what a torn write is."""
    whole = story_of(ledger)
    truth, damage = told(whole)
    assert damage == [] and len(truth) == 7
    tried = 0
    for data in changes(whole):
        said, damage = told(data)
        tried += 1
        assert said - {"None"} <= truth, data
        assert damage or said == truth or whole.startswith(data), data
    assert tried > 10_000
    for data in itertools.islice(changes(as_of_old(whole)), 0, None, 4):
        told(data)  # it raises nothing


def test_threads_that_write_at_once_leave_no_gap(ledger, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (time.sleep(0.002), real(fd, data))[1])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: ledger.healed(f"one#{n}", proven=True, rung="undo"), range(12)))
    ledger.ended(clean=True)
    story = Ledger.read(ledger.path)
    assert story.damage == [] and len(story.healed) == 12


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
    assert Ledger.read(ledger.path).damage == []


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
