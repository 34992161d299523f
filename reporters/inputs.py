"""What a report needs of a stored run: the part of ``survive.record.reader`` that it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from survive.judge.verdict import Number
from survive.plan.model import Plan


class Event(Protocol):
    """One line of events.ndjson."""

    @property
    def t_us(self) -> int:
        """Microseconds of the run's clock."""

    @property
    def name(self) -> str:
        """One of the closed set of event names."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The rest of the line."""


class Second(Protocol):
    """One second of the load, by intended start."""

    @property
    def t_s(self) -> float:
        """Start of the second."""

    @property
    def n(self) -> int:
        """Requests whose fate is known."""

    @property
    def ok(self) -> int:
        """Those answered well."""

    @property
    def bad(self) -> int:
        """The others."""

    @property
    def p99_ms(self) -> Number:
        """99th percentile of latency; "inf" if failures dominate, None if nothing was measured."""


class StoredRun(Protocol):
    """A record, as far as reports go."""

    @property
    def folder(self) -> Path:
        """The run directory, as it was named to us."""

    @property
    def plan(self) -> Plan:
        """What was planned."""

    @property
    def events(self) -> Sequence[Event]:
        """All events, in order of writing."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """manifest.json."""

    def seconds(self, kind: str | None) -> Sequence[Second]:
        """The seconds of one kind, or of all together."""

    def failures(self) -> Sequence[tuple[str, int]]:
        """Why → requests that failed in the whole run, most first."""


def fields_of(run: StoredRun, name: str) -> Mapping[str, Any]:
    """Fields of the last event of that name; empty if there is none."""
    return next((event.fields for event in reversed(run.events) if event.name == name), {})


def ended_us(run: StoredRun) -> int:
    """How long there was load and drain; the plan's end if the run does not say.

    0 for a run that ended before its load began (its events have negative times).
    """
    ended = [event.t_us for event in run.events if event.name == "run_ended"]
    return max(0, ended[-1]) if ended else run.plan.end_us
