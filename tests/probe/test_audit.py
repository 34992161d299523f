"""The audit log against the calls that were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from probetools import ASK, Answering, Asked, always, play, probe

from survive.probe.audit import chain_hash, read_log
from survive.scenario.model import Metric

AUDIT = probe(Metric.AUDITED, ask=ASK, service="gateway")


class Auditor:
    """Answers 200 and writes a record for each call, ``records(n)`` of them for the n-th."""

    def __init__(self, file: Path, records: Any = lambda n: 1) -> None:
        self.file, self.records = file, records
        self.prev, self.seq = "", 0

    async def __call__(self, asked: Asked) -> tuple[int, list[bytes]]:
        """One call."""
        number = int(asked.request_id.split("-")[2])
        for _ in range(self.records(number)):
            self.write(asked.request_id)
        return 200, [b"{}"]

    def write(self, request_id: str) -> None:
        """One line of the chain."""
        self.seq += 1
        record: dict[str, Any] = {"seq": self.seq, "request_id": request_id, "prev": self.prev}
        self.prev = record["hash"] = chain_hash(record)
        with self.file.open("a") as log:
            log.write(json.dumps(record) + "\n")


def audited(answering: Answering, file: Path, times: int = 3) -> list[tuple[bool | None, str]]:
    """Each finding's ok and why."""
    found = play(answering, AUDIT, times=times, logs={"gateway": (str(file),)})
    return [(f["ok"], f["why"]) for f in found]


def test_each_admitted_call_has_exactly_one_record(tmp_path: Path) -> None:
    file = tmp_path / "audit.ndjson"
    assert audited(Auditor(file), file) == [(True, "")] * 3
    file.unlink()
    lossy = Auditor(file, lambda n: 0 if n == 1 else 1)
    assert audited(lossy, file) == [(True, ""), (False, "no audit record"), (True, "")]
    file.unlink()
    double = Auditor(file, lambda n: 2 if n == 2 else 1)
    assert audited(double, file)[2] == (False, "2 audit records")


def test_a_log_that_was_never_begun_has_lost_all_and_one_out_of_reach_says_nothing(
    tmp_path: Path,
) -> None:
    assert audited(always(200), tmp_path / "audit.ndjson", 1) == [(False, "no audit record")]
    away = tmp_path / "elsewhere" / "audit.ndjson"
    assert audited(always(200), away, 1) == [(None, "the audit log cannot be read")]


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_call_that_was_not_admitted_needs_no_record(tmp_path: Path, status: int) -> None:
    ((ok, why),) = audited(always(status), tmp_path / "audit.ndjson", 1)
    assert ok is None and f"answered {status}" in why


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda lines: [lines[0], lines[2]], "line 2: does not follow"),
        (lambda lines: [line.replace(": 2,", ": 9,") for line in lines], "line 2: its hash"),
        (lambda lines: [lines[0], lines[1][:20], lines[2]], "line 2: is no record"),
    ],
)  # fmt: skip
def test_a_broken_chain_is_one_bad_finding(tmp_path: Path, harm: Any, why: str) -> None:
    file = tmp_path / "audit.ndjson"
    auditor = Auditor(file)
    for name in ("a", "b", "c"):
        auditor.write(name)
    lines = harm(file.read_text().splitlines())
    file.write_text("\n".join(lines) + "\n")
    log = read_log(file.read_text())
    assert log.broken.startswith(why) and log.whole == ("a",)
    found = audited(Auditor(tmp_path / "other"), file, 1)
    assert found[0] == (False, "no audit record")
    assert found[1][0] is False and "the chain is broken: line 2" in found[1][1]
    assert len(found) == 2
