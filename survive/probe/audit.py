"""Audit logs against the calls that were made: one record each, in an unbroken chain. Pure."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from survive.probe.findings import Finding
from survive.scenario.model import Metric

NOT_ADMITTED = frozenset({401, 403, 429})


@dataclass(frozen=True, slots=True)
class Audited:
    """One call whose record is looked for."""

    probe: str
    request_id: str
    start_us: int
    end_us: int
    status: int  # 0 = no answer
    said: str


@dataclass(frozen=True, slots=True)
class Log:
    """One audit log as read. ``broken`` tells where its chain breaks, "" nowhere."""

    ids: Counter[str]
    broken: str = ""
    whole: tuple[str, ...] = ()  # request ids up to the break, in order


def read_log(text: str) -> Log:
    """The records of a log, and whether each continues the one before it.

    A line is ``{..., "prev": hex, "hash": hex}`` with hash = sha256(prev + the line without hash
    as canonical JSON); ``prev`` is the hash of the line before. Records after a break still count.
    """
    ids: Counter[str] = Counter()
    broken, before = "", None
    whole: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        record = _record(line)
        wrong = _wrong(record, before)
        if wrong and not broken:
            broken = f"line {number}: {wrong}"
        if record is None:
            continue
        before = record.get("hash")
        ids[str(record.get("request_id"))] += 1
        if not broken:
            whole.append(str(record.get("request_id")))
    return Log(ids, broken, tuple(whole))


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _wrong(record: dict[str, Any] | None, before: object) -> str:
    if record is None:
        return "is no record"
    if before is not None and record.get("prev") != before:
        return "does not follow the line before it"
    if record.get("hash") != chain_hash(record):
        return "its hash is not that of its text"
    return ""


def chain_hash(record: dict[str, Any]) -> str:
    """The hash that a record must have."""
    rest = {key: value for key, value in record.items() if key != "hash"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256((str(record.get("prev")) + canonical).encode()).hexdigest()


def reconcile(calls: Sequence[Audited], logs: Sequence[Log] | None) -> list[Finding]:
    """A finding for each call, and one more for each broken chain. ``logs`` None = unreadable."""
    if logs is None:
        return [_found(call, None, "the audit log cannot be read") for call in calls]
    ids: Counter[str] = Counter()
    for log in logs:
        ids += log.ids
    return [*(_of_call(call, ids[call.request_id]) for call in calls), *_breaks(calls, logs)]


def _of_call(call: Audited, records: int) -> Finding:
    if not call.status or call.status >= 500:
        return _found(call, None, f"{call.said}: it may or may not have been admitted")
    if call.status in NOT_ADMITTED:
        return _found(call, None, f"{call.said}: it was not admitted")
    if records != 1:
        return _found(call, False, f"{records} audit records" if records else "no audit record")
    return _found(call, True)


def _breaks(calls: Sequence[Audited], logs: Iterable[Log]) -> list[Finding]:
    """A break is dated by the last of our calls that was recorded before it."""
    by_id = {call.request_id: call for call in calls}
    found = []
    for log in logs:
        if log.broken and calls:
            near = next((by_id[i] for i in reversed(log.whole) if i in by_id), calls[0])
            found.append(_found(near, False, f"the chain is broken: {log.broken}"))
    return found


def _found(call: Audited, ok: bool | None, why: str = "") -> Finding:
    return Finding(call.probe, Metric.AUDITED, call.start_us, call.end_us, ok, why)
