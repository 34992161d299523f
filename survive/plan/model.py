"""The plan: everything about time that is fixed before the run starts. Plain data, stored as JSON.

Words are those of DESIGN: a cut splits windows, a slice is at most 1 s of load, a mark is an
inject cut (the only cuts that requests can *cross*; load knows no more of faults than this).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from survive.contracts import Json
from survive.scenario.model import Phase, Users

GUARD_US = 250_000  # after every cut: its own slice, since neither state is certain in it
SLICE_US = 1_000_000
JOURNEY_END_US = 30_000_000  # in which users of a locustfile end what they are at, at the end
BLOCK = 256  # mean arrivals of one block of the schedule, see arrivals.py


@dataclass(frozen=True, slots=True)
class FaultWindow:
    """The planned life of one fault. One-shots: ``heal_us == recovery_end_us`` (one span)."""

    fault: str
    held: bool
    inject_us: int
    heal_us: int  # one-shot: end of its single span
    recovery_end_us: int
    pool: str = ""  # of a repeated fault (`x#1`): the name that pools its repeats (`x`)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will happen, to the microsecond.

    ``slices`` are [start, end) and cover [0, end_us) without gaps. ``marks`` are the sorted
    distinct inject times. ``planned[phase][kind]`` counts of intended starts, from the schedule.
    """

    version: int
    name: str
    target: str
    seed: int
    arrivals: str
    scale: str
    kinds: tuple[str, ...]
    timeouts_us: tuple[int, ...]
    streamed: tuple[bool, ...]
    gives_up_after_us: int | None
    lanes: int
    phases: tuple[Phase, ...]
    faults: tuple[FaultWindow, ...]  # in order of inject time
    marks: tuple[int, ...]
    slices: tuple[tuple[int, int], ...]
    end_us: int  # of the last phase
    planned: tuple[tuple[int, ...], ...]  # [phase][kind]
    trace_us: tuple[int, ...] = ()  # of a replayed trace: its moments, from its first
    locustfile: str = ""  # its users make the requests: the kinds are known when they were seen

    def to_json(self) -> dict[str, Json]:
        """Plain data; rates as exact fractions in text."""
        data: dict[str, Any] = asdict(self)
        for phase in data["phases"]:
            phase["start_rps"] = str(phase["start_rps"])
            phase["end_rps"] = str(phase["end_rps"])
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of to_json. Raises KeyError/TypeError/ValueError on damaged data."""
        phases = tuple(_phase(phase) for phase in data["phases"])
        return cls(
            **{
                **data,
                "kinds": tuple(data["kinds"]),
                "timeouts_us": tuple(data["timeouts_us"]),
                "streamed": tuple(data["streamed"]),
                "phases": phases,
                "faults": tuple(FaultWindow(**f) for f in data["faults"]),
                "marks": tuple(data["marks"]),
                "slices": tuple((s, e) for s, e in data["slices"]),
                "trace_us": tuple(data.get("trace_us", ())),
                "planned": tuple(tuple(row) for row in data["planned"]),
            }
        )

    @property
    def closed(self) -> bool:
        """Users instead of a rate: nothing is planned but who is there, and when."""
        return bool(self.phases) and self.phases[-1].users is not None

    @property
    def most_users(self) -> int:
        """The most users at once; 0 = an open model."""
        return max((p.users.most for p in self.phases if p.users is not None), default=0)

    def with_kinds(self, names: Sequence[str]) -> Plan:
        """The same with the kinds that were seen; of a locustfile only."""
        if not self.locustfile or not names:
            return self
        kinds = tuple(dict.fromkeys(names))
        return replace(
            self,
            kinds=kinds,
            timeouts_us=(JOURNEY_END_US,) * len(kinds),
            streamed=(False,) * len(kinds),
            planned=((0,) * len(kinds),) * len(self.phases),
        )

    def fault(self, name: str) -> FaultWindow:
        """The planned life of the fault of that name; KeyError if none."""
        for window in self.faults:
            if window.fault == name:
                return window
        raise KeyError(name)

    def deadline_us(self, kind: int) -> int:
        """From intended start: when an unsent request expires (DESIGN law 5)."""
        timeout = self.timeouts_us[kind]
        return timeout if self.gives_up_after_us is None else min(timeout, self.gives_up_after_us)


def _phase(data: Mapping[str, Any]) -> Phase:
    rates = {key: Fraction(data[key]) for key in ("start_rps", "end_rps")}
    users = data.get("users")
    return Phase(**{**data, **rates, "users": None if users is None else Users(**users)})
