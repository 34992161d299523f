"""``events.ndjson``: what happened, one object a line, ``{"t_us": …, "event": …, …}``.

The set of names is closed: a reader that knows this version knows every line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from survive.contracts import Json
from survive.errors import RecordError


class EventName(StrEnum):
    """Everything that can be told about a run besides its samples."""

    RUN_STARTED = "run_started"
    PHASE_STARTED = "phase_started"
    FAULT_OBSERVED = "fault_observed"
    FAULT_INJECTED = "fault_injected"
    FAULT_REINJECTED = "fault_reinjected"  # its victim had been restarted meanwhile
    FAULT_HEALED = "fault_healed"
    HEAL_PROVEN = "heal_proven"
    PROBE_SEEN = "probe_seen"
    KIND_SEEN = "kind_seen"  # of a locustfile: the first request of that name
    STOPPED = "stopped"
    RUN_ENDED = "run_ended"


@dataclass(frozen=True, slots=True)
class Event:
    """One line. ``t_us`` on the run's clock; negative before load starts."""

    t_us: int
    name: str
    fields: Mapping[str, Json] = field(default_factory=dict)

    def integer(self, key: str) -> int:
        """A field that must be a whole number; RecordError if it is none."""
        value = self.fields.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise RecordError(f"event {self.name} at {self.t_us} µs has no whole number {key!r}")
        return value

    def text(self, key: str) -> str:
        """A field as text; "" if absent or null."""
        value = self.fields.get(key)
        return "" if value is None else str(value)

    def true(self, key: str) -> bool:
        """Whether a field is exactly true; anything else proves nothing."""
        return self.fields.get(key) is True


def encode(name: str, fields: Mapping[str, Json], t_us: int) -> bytes:
    """One line. ValueError for a name outside EventName or a field that hides ours."""
    if hidden := {"t_us", "event"} & fields.keys():
        raise ValueError(f"event {name} has a field of its own called {sorted(hidden)}")
    document = {"t_us": t_us, "event": str(EventName(name)), **fields}
    return json.dumps(_finite(document), ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _finite(value: object) -> object:
    """JSON has no infinities; a measured one is written as text, as in verdict.json."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def read_events(path: Path, *, whole: bool = True) -> list[Event]:
    """Every event in order of writing.

    Without ``whole`` (a run that was killed) a torn last line is passed over. RecordError with
    file and line for anything else that is not an event of this version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    lines = data.split(b"\n")
    last = lines.pop()
    if last and whole:
        raise RecordError(f"{path} is cut short inside line {len(lines) + 1}")
    return [_event(path, number, line) for number, line in enumerate(lines, 1)]


def _event(path: Path, number: int, line: bytes) -> Event:
    try:
        document = json.loads(line)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        t_us, name = document.pop("t_us"), EventName(document.pop("event"))
        if isinstance(t_us, bool) or not isinstance(t_us, int):
            raise ValueError("t_us is not a whole number")
    except (ValueError, KeyError, RecursionError) as error:
        raise RecordError(f"{path}:{number}: not an event of ours: {error!r}") from error
    return Event(t_us, name, document)
