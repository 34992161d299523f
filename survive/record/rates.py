"""The planned rate of load over any span, exact: free of the noise of what chance made of it."""

from __future__ import annotations

import math

from survive.plan.model import Plan
from survive.scenario.model import Phase
from survive.units import SECOND


def _rate(phase: Phase, t_us: int) -> float:
    start, end = float(phase.start_rps), float(phase.end_rps)
    part = (t_us - phase.start_us) / (phase.end_us - phase.start_us)
    if phase.curve == "exponential" and not phase.constant:
        return start * math.pow(end / start, part)
    return start + (end - start) * part


def _sine_since_start(phase: Phase, t_us: int) -> float:
    """Arrivals planned from the start of a sine to a moment."""
    rate, period_s = float(phase.start_rps), phase.period_us / SECOND
    turned = math.tau * ((t_us - phase.start_us) / phase.period_us)
    swung = phase.swing * period_s / math.tau * (1 - math.cos(turned))
    return rate * ((t_us - phase.start_us) / SECOND + swung)


def _stepped_since_start(phase: Phase, t_us: int) -> float:
    """Arrivals planned from the start of a ramp in steps to a moment."""
    step_s = (phase.end_us - phase.start_us) / SECOND / phase.steps
    since_s = (t_us - phase.start_us) / SECOND
    inside = (
        float(phase.step_rps(n)) * min(step_s, max(0.0, since_s - (n - 1) * step_s))
        for n in range(1, phase.steps + 1)
    )
    return sum(inside)


def _planned(phase: Phase, start_us: int, end_us: int) -> float:
    if phase.curve == "sine":
        return _sine_since_start(phase, end_us) - _sine_since_start(phase, start_us)
    if phase.curve == "steps":
        return _stepped_since_start(phase, end_us) - _stepped_since_start(phase, start_us)
    first, last = _rate(phase, start_us), _rate(phase, end_us)
    span_s = (end_us - start_us) / SECOND
    if phase.curve == "exponential" and not math.isclose(first, last):
        return (last - first) / math.log(last / first) * span_s
    return (first + last) / 2 * span_s


def mean_rps(plan: Plan, start_us: int, end_us: int) -> float:
    """Mean planned arrivals per second in [start, end); nothing is planned outside the phases."""
    if end_us <= start_us:
        return 0.0
    parts = (
        _planned(phase, max(start_us, phase.start_us), min(end_us, phase.end_us))
        for phase in plan.phases
        if max(start_us, phase.start_us) < min(end_us, phase.end_us)
    )
    return sum(parts) * SECOND / (end_us - start_us)
