"""A stored run, as the judge and the reporters see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from survive.contracts import Json
from survive.errors import RecordError
from survive.plan.model import Plan
from survive.record.events import Event, EventName, read_events
from survive.record.rates import mean_rps
from survive.record.samples import BAD, Outcome
from survive.record.table import COLUMN, INFINITE, OUTCOME_CODE, Table
from survive.record.writer import EVENTS, HLOG, PLAN, TABLE, seals
from survive.units import SECOND

if TYPE_CHECKING:
    from survive.scenario.model import Scenario

_PLAN_VERSION = 1
_RUNS = "give one of runs/*/*"


@dataclass(frozen=True, slots=True)
class SecondRow:
    """One second of the load, by intended start. Percentiles of latency with failures as "inf";
    None if nothing was settled."""

    t_s: float
    n: int  # settled
    ok: int
    bad: int
    p50_ms: float | str | None
    p99_ms: float | str | None
    planned_rps: float


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Everything observed in a run. Immutable; made by ``load`` (or by tests, by hand)."""

    folder: Path
    plan: Plan
    events: tuple[Event, ...]
    table: Table
    manifest: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path, *, from_hlog: bool = False) -> Record:
        """Read a run directory. RecordError if it is empty, cut short, damaged, of another version
        or made of parts of different runs: what is not whole gets no verdict.

        ``from_hlog`` derives the table from ``latency.hlog`` instead of reading ``table.npz``.
        """
        if not folder.is_dir():
            raise RecordError(f"{folder} is not a run directory", hint=_RUNS)
        if not (folder / PLAN).exists() and not (folder / EVENTS).exists():
            last = folder / "latest"
            hint = f"its last run is {last}" if last.is_dir() else _RUNS
            raise RecordError(f"{folder} is not a run directory", hint=hint)
        plan = _read_plan(folder / PLAN)
        events = tuple(read_events(folder / EVENTS))
        if not any(event.name == EventName.RUN_ENDED for event in events):
            raise RecordError(
                f"{folder / EVENTS} is cut short: it has no {EventName.RUN_ENDED} event",
                hint="the run was killed; what it saw is in its files, but there is no verdict",
            )
        seen = [event.text("kind") for event in events if event.name == EventName.KIND_SEEN]
        plan = plan.with_kinds(seen)
        if from_hlog:
            table = Table.from_hlog(folder / HLOG, plan)
        else:
            table, sealed = Table.load(folder / TABLE)
            _check_seals(folder, sealed)
        return cls(folder, plan, events, table, _read_object(folder / "manifest.json", {}))

    @property
    def scenario(self) -> Scenario:
        """The scenario as stored beside the record; read afresh at each call. ScenarioError."""
        from survive.scenario.loader import load_stored

        return load_stored(self.folder)

    def verdict_json(self) -> Mapping[str, Json]:
        """The stored ``verdict.json``; RecordError if there is none."""
        return _read_object(self.folder / "verdict.json")

    def named(self, name: EventName) -> list[Event]:
        """All events of one name, in order of writing."""
        return [event for event in self.events if event.name == name]

    def seconds(self, kind: str | None = None) -> list[SecondRow]:
        """Every second of the plan, of one kind or of all together. KeyError: unknown kind."""
        if kind is not None and kind not in self.plan.kinds:
            raise KeyError(kind)
        at = len(self.plan.kinds) if kind is None else self.plan.kinds.index(kind)
        ok, bad = self._settled(at)
        chart = {int(row[0]): row for row in self.table.chart[self.table.chart[:, 1] == at]}
        return [
            SecondRow(
                t_s=float(second),
                n=int(ok[second] + bad[second]),
                ok=int(ok[second]),
                bad=int(bad[second]),
                p50_ms=_chart_ms(chart[second][2]) if second in chart else None,
                p99_ms=_chart_ms(chart[second][3]) if second in chart else None,
                planned_rps=self._planned(second, kind),
            )
            for second in range(len(ok))
        ]

    def failures(self) -> tuple[tuple[str, int], ...]:
        """Why → requests that failed in the whole run, most first."""
        why = self.table.why
        failed = why[why[:, 3] == OUTCOME_CODE[Outcome.FAILED]]
        n = np.bincount(failed[:, -2], weights=failed[:, -1], minlength=len(self.table.why_names))
        found = zip(self.table.why_names, n.astype(np.int64).tolist(), strict=True)
        return tuple(sorted(((k, n) for k, n in found if n), key=lambda one: (-one[1], one[0])))

    def _settled(self, kind: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        rows, counts = self.table.rows, self.table.row_counts
        pooled = kind == len(self.plan.kinds)
        mine = (rows[:, 0] < kind) if pooled else (rows[:, 0] == kind)
        seconds = np.array([start // SECOND for start, _ in self.plan.slices], dtype=np.int64)
        at = seconds[rows[mine, 1]]
        length = -(-self.plan.end_us // SECOND)
        bad = counts[mine][:, [COLUMN[outcome] for outcome in BAD]].sum(axis=1)
        ok = counts[mine][:, COLUMN[Outcome.OK]]
        return (
            np.bincount(at, weights=ok, minlength=length).astype(np.int64),
            np.bincount(at, weights=bad, minlength=length).astype(np.int64),
        )

    def _planned(self, second: int, kind: str | None) -> float:
        start_us = second * SECOND
        rps = mean_rps(self.plan, start_us, min(start_us + SECOND, self.plan.end_us))
        if kind is None:
            return rps
        phase = next(phase for phase in self.plan.phases if start_us < phase.end_us)
        return rps * phase.shares.get(kind, 0.0)


def _chart_ms(us: Any) -> float | str:
    return "inf" if us == INFINITE else float(us) / 1000


def _check_seals(folder: Path, sealed: Mapping[str, str]) -> None:
    found = seals(folder)
    for name in sorted(found):
        if sealed.get(name) != found[name]:
            raise RecordError(
                f"{folder / name} is not the one that {TABLE} was written with",
                hint="it was changed after the run, or belongs to another one",
            )


def _read_object(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        if default is not None:
            return default
        raise RecordError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise RecordError(f"{path} is damaged: not an object")
    return document


def _read_plan(path: Path) -> Plan:
    document = _read_object(path)
    if document.get("version") != _PLAN_VERSION:
        raise RecordError(
            f"{path} has version {document.get('version')!r}, not {_PLAN_VERSION}",
            hint="judge it with the version of survive that recorded it",
        )
    try:
        plan = Plan.from_json(document)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise RecordError(f"{path} is damaged: {error!r}") from error
    if not plan.slices or not plan.phases or not (plan.kinds or plan.locustfile):
        raise RecordError(f"{path} is damaged: it plans nothing")
    return plan
