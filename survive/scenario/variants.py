"""The same scenario with another load, or without its faults; what is written of it says the same.

Made in memory, so that many runs of one file are of one text, whatever happens to the file. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from survive.scenario.arrivals import lanes_needed
from survive.scenario.model import LoadSpec, Metric, Objective, Scenario
from survive.scenario.traffic import MAX_LANES
from survive.units import SECOND


def peak_rps(load: LoadSpec) -> Fraction:
    """The highest rate of what is judged; of the warm-up if there is nothing else."""
    judged = [phase for phase in load.phases if not phase.warm_up]
    return max(phase.peak_rps for phase in judged or load.phases)


def with_factor(scenario: Scenario, factor: Fraction) -> Scenario:
    """Every rate times ``factor``: a ramp keeps its shape, time and faults stay as they are.

    Of an open model. It has as many lanes as that rate can need, and no fewer than before.
    """
    load = scenario.load
    phases = tuple(
        replace(phase, start_rps=phase.start_rps * factor, end_rps=phase.end_rps * factor)
        for phase in load.phases
    )
    timeout = max((kind.timeout_us for kind in scenario.requests.values()), default=SECOND)
    peak = max(phase.peak_rps for phase in phases)
    needed = lanes_needed(load.arrivals, peak * Fraction(timeout, SECOND))
    lanes = max(load.lanes, min(needed, MAX_LANES))
    faster = replace(
        load, scale=load.scale * factor, lanes=lanes, lanes_needed=needed, phases=phases
    )
    written = {**scenario.raw["load"], "scale": _ratio(faster.scale), "lanes": lanes}
    return replace(scenario, load=faster, raw={**scenario.raw, "load": written})


def _ratio(scale: Fraction) -> str:
    return f"{scale.numerator}/{scale.denominator}"


def calm(scenario: Scenario) -> Scenario:
    """Without faults, and without what speaks of them.

    Raises ValueError if no objective is left: a run that judges nothing proves nothing.
    """
    kept = {name: o for name, o in scenario.objectives.items() if not needs_faults(o)}
    if not kept:
        raise ValueError("no objective is left in calm weather: give one `during: steady` or `run`")
    gone = {"faults", "kills", "claims", "profiles"}
    raw = {key: value for key, value in scenario.raw.items() if key not in gone}
    raw["objectives"] = {name: raw["objectives"][name] for name in kept}
    return replace(scenario, faults={}, objectives=kept, kills={}, claims={}, raw=raw)


def needs_faults(objective: Objective) -> bool:
    """It is judged in windows that only faults open."""
    windows = ("each fault", "fault:", "recovery:")
    return objective.metric is Metric.RECOVERY or objective.during.startswith(windows)
