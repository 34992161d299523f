"""From a scenario to its plan: windows, cuts, slices, planned counts. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from survive.plan.arrivals import Schedule
from survive.plan.model import GUARD_US, JOURNEY_END_US, SLICE_US, FaultWindow, Plan
from survive.scenario.model import FaultPlan, Metric, Objective, Scenario
from survive.units import SECOND

VERSION = 1
DEFAULT_RECOVERY_US = 10 * SECOND  # watched after a heal when no objective says how long


@dataclass(frozen=True, slots=True)
class Group:
    """Faults that overlap in time: one recovery, from the last heal (DESIGN law 7).

    One-shots overlap when the inject of the next falls into nothing but their own instant, so a
    one-shot is a group of its own unless it happens while a held fault is on.
    """

    faults: tuple[FaultPlan, ...]

    @property
    def last_heal_us(self) -> int:
        """When the last of them ends (a one-shot ends as it begins)."""
        return max(f.until_us if f.until_us is not None else f.at_us for f in self.faults)


def groups(faults: Iterable[FaultPlan]) -> list[Group]:
    """Faults by overlap, in order of time."""
    found: list[list[FaultPlan]] = []
    end = -1
    for fault in sorted(faults, key=lambda f: (f.at_us, f.name)):
        until = fault.until_us if fault.until_us is not None else fault.at_us
        if found and fault.at_us < end:
            found[-1].append(fault)
        else:
            found.append([fault])
        end = max(end, until)
    return [Group(tuple(members)) for members in found]


def recovery_span_us(objectives: Iterable[Objective]) -> int | None:
    """How long a recovery is watched: the longest limit + stable_for; None without objectives."""
    spans = [round(o.limit) + o.stable_for_us for o in objectives if o.metric is Metric.RECOVERY]
    return max(spans) if spans else None


def fault_windows(
    faults: Iterable[FaultPlan], span_us: int | None, end_us: int
) -> tuple[FaultWindow, ...]:
    """The planned life of each fault, in order of inject.

    Without a recovery objective the watch is 10 s, cut short by the next group and by the end; with
    one the loader has already refused what does not fit.
    """
    ordered = groups(faults)
    windows = []
    for index, group in enumerate(ordered):
        following = ordered[index + 1].faults[0].at_us if index + 1 < len(ordered) else end_us
        span = DEFAULT_RECOVERY_US if span_us is None else span_us
        recovered = min(group.last_heal_us + span, following, end_us)
        for fault in group.faults:
            heal = recovered if fault.until_us is None else fault.until_us
            windows.append(
                FaultWindow(
                    fault.name, fault.until_us is not None, fault.at_us, heal, recovered, fault.pool
                )
            )
    return tuple(sorted(windows, key=lambda w: (w.inject_us, w.fault)))


def cuts(windows: Sequence[FaultWindow]) -> tuple[int, ...]:
    """Every planned inject and heal."""
    moments = {w.inject_us for w in windows} | {w.heal_us for w in windows if w.held}
    return tuple(sorted(moments))


def slices(
    end_us: int, phase_ends: Iterable[int], windows: Sequence[FaultWindow]
) -> tuple[tuple[int, int], ...]:
    """[0, end) in pieces of at most 1 s, ended at cuts, guards, phase and window ends."""
    edges = set(range(0, end_us, SLICE_US)) | {end_us} | set(phase_ends)
    for cut in cuts(windows):
        edges |= {cut, cut + GUARD_US}
    edges |= {w.recovery_end_us for w in windows}
    ordered = sorted(edge for edge in edges if 0 <= edge <= end_us)
    return tuple(itertools.pairwise(ordered))


def make_plan(scenario: Scenario) -> Plan:
    """Everything about time that is fixed before the run starts."""
    load = scenario.load
    span = recovery_span_us(scenario.objectives.values())
    windows = fault_windows(scenario.faults.values(), span, load.end_us)
    kinds = tuple(scenario.requests)
    schedule = Schedule(scenario.seed, load.arrivals, load.phases, kinds, load.trace_us)
    return Plan(
        version=VERSION,
        name=scenario.name,
        target=scenario.target.name,
        seed=scenario.seed,
        arrivals=load.arrivals,
        scale=str(load.scale),
        kinds=kinds,
        timeouts_us=tuple(kind.timeout_us for kind in scenario.requests.values())
        or (JOURNEY_END_US,),
        streamed=tuple(kind.streamed for kind in scenario.requests.values()),
        gives_up_after_us=scenario.gives_up_after_us,
        lanes=load.lanes,
        phases=load.phases,
        faults=windows,
        marks=tuple(sorted({w.inject_us for w in windows})),
        slices=slices(load.end_us, (p.end_us for p in load.phases), windows),
        end_us=load.end_us,
        planned=_counts(schedule, [p.start_us for p in load.phases], len(kinds)),
        trace_us=load.trace_us,
        locustfile="" if load.locustfile is None else str(load.locustfile),
    )


def planned_per_slice(plan: Plan) -> npt.NDArray[np.int64]:
    """Intended starts per slice and kind: int64 of shape (slices, kinds)."""
    counts = _counts(Schedule.of(plan), [start for start, _ in plan.slices], len(plan.kinds))
    return np.array(counts, dtype=np.int64)


def _counts(schedule: Schedule, starts: Sequence[int], kinds: int) -> tuple[tuple[int, ...], ...]:
    """Arrivals per stretch (given by ascending starts) and kind."""
    edges = np.array(starts, dtype=np.int64)
    totals = np.zeros(len(edges) * kinds, dtype=np.int64)
    for block in schedule.blocks():
        stretch = np.searchsorted(edges, block.intended_us, side="right") - 1
        totals += np.bincount(stretch * kinds + block.kind, minlength=len(totals))
    return tuple(tuple(int(n) for n in row) for row in totals.reshape(len(edges), kinds))
