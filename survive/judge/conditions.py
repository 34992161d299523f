"""What differs between runs besides the stack under test. Pure.

Runs that did other things cannot be compared at all. Runs under other conditions can be shown side
by side, but a difference may be that of the conditions, so nothing is judged unless somebody
accepts it by name. What the target file says may differ: that is what is being compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from survive.errors import ExitCode
from survive.judge.verdict import Verdict
from survive.record.reader import Record
from survive.scenario.model import Scenario

# Must be the same, or there is nothing to compare. Parts of the scenario file by their digest.
SAME = ("name", "host", "requests", "clients", "load", "faults", "probes")
# May be accepted as the same, `survive diff --accept`.
ACCEPTABLE = ("target", "machine", "version", "grade", "lanes")
_PARTS = ("requests", "clients", "load", "faults", "probes")
_OF_A_MACHINE = ("machine", "lanes")  # no matter where time is counted

_NO_BASIS = {
    ExitCode.HEAL_UNPROVEN: "a heal is not proven",
    ExitCode.INTERRUPTED: "it was interrupted",
    ExitCode.TERMINATED: "it was interrupted",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A condition that is not the same on both sides (or within one)."""

    what: str
    base: str
    new: str
    accepted: bool


def conditions_of(record: Record, scenario: Scenario, verdict: Verdict) -> dict[str, str]:
    """Everything of a run that must be the same on both sides, by name."""
    manifest, raw = record.manifest, scenario.raw
    virtual = manifest.get("host") == "virtual"
    found = {
        "name": scenario.name,
        "host": str(manifest.get("host", "unknown")),
        **{part: _digest(raw.get(part)) for part in _PARTS},
        "target": record.plan.target,
        "machine": str(manifest.get("machine", "unknown")),
        "version": str(manifest.get("survive", "unknown")),
        "grade": verdict.grade,
        "lanes": str(manifest.get("lanes", "unknown")),
    }
    return {what: "" if virtual and what in _OF_A_MACHINE else said for what, said in found.items()}


def no_basis(verdict: Verdict, ended: str) -> str:
    """Why a run can be no part of a comparison; "" if it can. ``ended``: as its record says."""
    if verdict.guilt:
        return verdict.guilt[0]
    if why := _NO_BASIS.get(verdict.exit_code):
        return why
    if verdict.exit_code is ExitCode.STOPPED:
        return ""  # that it was stopped is what it shows
    if ended != "complete":
        return f"it did not come to its end: {ended.replace('_', ' ')}"
    load = verdict.load
    missing = load.unsent + load.lost + load.in_flight
    return f"the load was not delivered: {missing} requests" if missing else ""


def differing(
    what: Iterable[str],
    base: Sequence[Mapping[str, str]],
    new: Sequence[Mapping[str, str]],
    accepted: Sequence[str] = (),
) -> tuple[Difference, ...]:
    """Those conditions in which not all runs of both sides agree."""
    found = []
    for name in what:
        old, fresh = (dict.fromkeys(run[name] for run in side) for side in (base, new))
        if len({*old, *fresh}) > 1:
            found.append(Difference(name, ", ".join(old), ", ".join(fresh), name in accepted))
    return tuple(found)


def changed_keys(base: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Top-level keys of two files that do not say the same."""
    keys = dict.fromkeys((*base, *new))
    return [key for key in keys if _digest(base.get(key)) != _digest(new.get(key))]


def _digest(raw: object) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode()).hexdigest()[:12]
