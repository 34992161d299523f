"""A dead run's private folder goes with it; nothing else that a ledger names ever does."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from survive.chaos import processes
from survive.chaos.heal import heal_leftovers
from survive.chaos.ledger import Ledger, Named, Owner
from survive.host.real import _keep_logs

GONE = Owner(processes.boot_id(), Named(2**22 + 1, 1), Named(2**22 + 2, 1))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def dead_run(scratch: Path, *, ended: bool = False) -> None:
    ledger = Ledger.create("run-1", "t", GONE, scratch=scratch)
    if ended:
        ledger.ended(clean=True)
    ledger.close()


def full(folder: Path) -> Path:
    folder.mkdir()
    (folder / "load.json").write_text("a key")
    return folder


@pytest.mark.parametrize("ended", [False, True])
def test_heal_takes_the_folder_away_and_check_only_tells(temporary, ended):
    scratch = full(temporary / "survive-abc")
    dead_run(scratch, ended=ended)
    assert not heal_leftovers(check=True).clean
    assert scratch.exists()
    assert heal_leftovers().clean
    assert not scratch.exists()
    assert heal_leftovers(check=True).clean


def test_a_folder_that_is_not_ours_by_name_or_place_stays(temporary, tmp_path):
    for folder in (temporary / "precious", tmp_path / "survive-elsewhere"):
        dead_run(full(folder))
        assert heal_leftovers().clean
        assert (folder / "load.json").exists()


def test_a_link_is_not_followed(temporary, tmp_path):
    precious = full(tmp_path / "precious")
    (temporary / "survive-abc").symlink_to(precious)
    dead_run(temporary / "survive-abc")
    assert heal_leftovers().clean
    assert (precious / "load.json").exists()


def test_a_living_survive_keeps_its_folder(temporary):
    scratch = full(temporary / "survive-abc")
    me = Named.of(os.getpid())
    ledger = Ledger.create("run-1", "t", Owner(processes.boot_id(), me, GONE.agent), None, scratch)
    ledger.ended(clean=False)
    ledger.close()
    heal_leftovers()
    assert scratch.exists()


def test_a_full_disk_costs_the_logs_and_never_leaves_the_folder(tmp_path, monkeypatch):
    """It holds the target's key."""
    scratch, record = tmp_path / "survive-x", tmp_path / "record"
    (scratch / "logs").mkdir(parents=True)
    (scratch / "logs" / "web-0.log").write_text("its last words")
    record.mkdir()

    def full(self, data):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    _keep_logs(scratch, record)
    assert not scratch.exists()
