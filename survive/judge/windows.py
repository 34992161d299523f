"""Which requests belong to which window (DESIGN law 3). The plan fixes all; only lateness of an
actual cut can take slices out, never put one in.

A request is known by its *place*: the slice of its intended start, and the first mark (planned
inject) that it crossed. Everything here is a mask over places.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from survive.catalog import nearest
from survive.errors import RecordError
from survive.plan.model import GUARD_US, FaultWindow, Plan
from survive.record.table import I64, phases_of, segments_of
from survive.scenario.model import Metric, Objective

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Group:
    """Faults that overlap: one recovery, from the last heal (law 7)."""

    faults: tuple[FaultWindow, ...]

    @property
    def start_us(self) -> int:
        """First inject."""
        return self.faults[0].inject_us

    @property
    def last_heal_us(self) -> int:
        """When the last of them ends; a one-shot ends as it begins."""
        return max(f.heal_us if f.held else f.inject_us for f in self.faults)

    @property
    def recovery_us(self) -> int:
        """From here on requests count for recovery: the guard after a heal is the fault's."""
        held = [f.heal_us + GUARD_US for f in self.faults if f.held]
        return max([*held, *(f.inject_us for f in self.faults if not f.held)])

    @property
    def end_us(self) -> int:
        """End of the watch."""
        return max(f.recovery_end_us for f in self.faults)


def groups(plan: Plan) -> tuple[Group, ...]:
    """The plan's faults by their common recovery, in order of time."""
    by_end: dict[int, list[FaultWindow]] = {}
    for fault in plan.faults:
        by_end.setdefault(fault.recovery_end_us, []).append(fault)
    found = [Group(tuple(sorted(f, key=lambda w: w.inject_us))) for f in by_end.values()]
    return tuple(sorted(found, key=lambda group: group.start_us))


def windows_of(objective: Objective, plan: Plan) -> tuple[str, ...]:
    """The windows that an objective is judged in, one cell each (and for each of its kinds)."""
    if objective.metric is Metric.RECOVERY:
        return tuple(f"recovery:{fault.fault}" for fault in plan.faults)
    if objective.during == "each fault":
        pools = dict.fromkeys(fault.pool for fault in plan.faults if fault.pool)
        return tuple(f"fault:{name}" for name in [*(f.fault for f in plan.faults), *pools])
    return (objective.during,)


class Windows:
    """Masks over places, for one plan and the cuts as they really were.

    ``late`` are the spans [planned, actual) of cuts that came over 250 ms late. A segment that
    such a span touches is *transition* as a whole (segments are single slices around faults).
    """

    def __init__(self, plan: Plan, late: Iterable[tuple[int, int]] = ()) -> None:
        self.plan = plan
        self.starts: I64 = np.array([start for start, _ in plan.slices], dtype=np.int64)
        self.ends: I64 = np.array([end for _, end in plan.slices], dtype=np.int64)
        self.phase = phases_of(plan, self.starts)
        segments = segments_of(plan)
        self.first_slice: I64 = np.unique(segments, return_index=True)[1].astype(np.int64)
        self.transition = self._transition(late, segments)
        self._under = {f.fault: self._between(f.inject_us, _fault_end(f)) for f in plan.faults}
        self._any_under = np.logical_or.reduce(
            [np.zeros(len(self.starts), dtype=np.bool_), *self._under.values()]
        )
        self._recovering = {
            fault.fault: self._between(group.recovery_us, group.end_us)
            for group in groups(plan)
            for fault in group.faults
        }
        self._steady = self._steady_slices()

    def _between(self, start_us: int, end_us: int) -> Mask:
        return (self.starts >= start_us) & (self.starts < end_us)

    def _hint(self, window: str) -> str:
        faults = [f"{kind}:{name}" for name in self._under for kind in ("fault", "recovery")]
        phases = [f"phase:{phase.name}" for phase in self.plan.phases]
        return nearest(window, ["run", "steady", *phases, *faults])

    def _transition(self, late: Iterable[tuple[int, int]], segments: I64) -> Mask:
        touched = np.zeros(len(self.starts), dtype=np.bool_)
        for planned_us, actual_us in late:
            touched |= (self.ends > planned_us) & (self.starts < actual_us)
        return np.isin(segments, segments[touched])

    def _steady_slices(self) -> Mask:
        quiet = np.array([p.constant and not p.warm_up for p in self.plan.phases], dtype=np.bool_)
        disturbed = self.transition.copy()
        for fault in self.plan.faults:
            disturbed |= self._between(fault.inject_us, fault.recovery_end_us)
        steady: Mask = quiet[self.phase] & ~disturbed
        return steady

    def segment_of(self, slices: I64) -> I64:
        """The table's segment of each slice."""
        found = np.searchsorted(self.first_slice, slices, side="right") - 1
        return found.astype(np.int64)

    def mask(self, window: str, slices: I64, crossed: I64) -> Mask:
        """Which places belong to a window. RecordError if the plan has no such window."""
        kind, _, name = window.partition(":")
        if kind in {"fault", "recovery"} and (repeats := self.repeats(name)):
            pooled: Mask = np.logical_or.reduce(
                [self.mask(f"{kind}:{one}", slices, crossed) for one in repeats]
            )
            return pooled
        if kind == "fault" and name in self._under:
            return self._of_fault(name, slices, crossed)
        if kind == "recovery" and name in self._under:
            return self._of_recovery(name, slices, crossed)
        found: Mask | None = None
        if window == "run":
            warm = np.array([phase.warm_up for phase in self.plan.phases], dtype=np.bool_)
            found = ~warm[self.phase[slices]]
        elif window == "steady":
            found = self._steady[slices] & (crossed < 0)
        elif kind == "phase" and name in (names := [p.name for p in self.plan.phases]):
            found = self.phase[slices] == names.index(name)
        elif kind == "calm":  # of a phase, what met no inject
            found = self.mask(f"phase:{name}", slices, crossed) & (crossed < 0)
        if found is None:
            raise RecordError(
                f"the plan of this run has no window {window!r}", hint=self._hint(window)
            )
        return found

    def repeats(self, name: str) -> tuple[str, ...]:
        """The repeats that a name pools (law 3); () if it is the name of one fault."""
        return tuple(f.fault for f in self.plan.faults if name and f.pool == name)

    def _of_fault(self, name: str, slices: I64, crossed: I64) -> Mask:
        """Begun under it, or begun under none and its inject was the first that it crossed."""
        mark = self.plan.marks.index(self.plan.fault(name).inject_us)
        came_in = ~self._any_under[slices] & (crossed == mark)
        mine: Mask = ~self.transition[slices] & (self._under[name][slices] | came_in)
        return mine

    def _of_recovery(self, name: str, slices: I64, crossed: I64) -> Mask:
        """After the last heal of its group. One-shots: the very same span as the fault."""
        if not self.plan.fault(name).held:
            return self._of_fault(name, slices, crossed)
        stays = (crossed < 0) | self._any_under[slices]  # one that met the next fault is its
        mine: Mask = ~self.transition[slices] & self._recovering[name][slices] & stays
        return mine

    def slices_of(self, window: str) -> Mask:
        """The slices whose uncrossed requests belong to a window."""
        every = np.arange(len(self.starts), dtype=np.int64)
        return self.mask(window, every, np.full(len(every), -1, dtype=np.int64))

    def span_us(self, window: str) -> int:
        """How long a window lasts, in slices."""
        chosen = self.slices_of(window)
        return int((self.ends[chosen] - self.starts[chosen]).sum())

    def overlapping(self, name: str) -> tuple[str, ...]:
        """Other faults that are on at some time while this one (or a repeat of it) is."""
        those = self.repeats(name) or (name,)
        mine = np.logical_or.reduce([self._under[one] for one in those])
        return tuple(
            other
            for other, on in self._under.items()
            if other not in those and bool((mine & on).any())
        )


def _fault_end(fault: FaultWindow) -> int:
    """The guard after a heal belongs to the fault; a one-shot is one span to its end."""
    return fault.heal_us + GUARD_US if fault.held else fault.recovery_end_us
