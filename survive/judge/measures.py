"""Beside the cells: what faults did and how the load went, on both sides. Shown, not judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from survive.judge.between import middle, minus, shift
from survive.judge.comparison import Measure, Moved, Values
from survive.judge.faults import PROVEN, back_after_s
from survive.judge.spectra import number
from survive.judge.verdict import LoadReport, Number, Verdict


def measures_of(base: Sequence[Verdict], new: Sequence[Verdict]) -> Iterator[Measure]:
    """Of every fault that both sides know, then of the load; those that anybody measured."""
    for name in (fault.name for verdict in base[:1] for fault in verdict.faults):
        for measure, unit in _OF_FAULTS.items():
            sides = [
                [_of_fault(verdict, name, measure) for verdict in side] for side in (base, new)
            ]
            yield from _measure(name, measure, unit, *sides)
    for measure, unit in _OF_LOAD.items():
        sides = [[_of_load(verdict.load, measure) for verdict in side] for side in (base, new)]
        yield from _measure("load", measure, unit, *sides)


_OF_FAULTS = {
    "recovered_after": "s",
    "error_window": "s",
    "residual": "share",
    "amplification": "x",
    "error_budget": "share",
}
_OF_LOAD = {
    "offered": "per s",
    "achieved": "per s",
    "lane_wait.p99": "ms",
    "send_lag.p99": "ms",
}


def _measure(
    of: str, name: str, unit: str, base: Sequence[Number], new: Sequence[Number]
) -> Iterator[Measure]:
    if _known(base) or _known(new):
        yield Measure(of, name, unit, values_of(base), values_of(new), moved(base, new))


def _of_fault(verdict: Verdict, name: str, measure: str) -> Number:
    fault = next((f for f in verdict.faults if f.name == name), None)
    if fault is None or fault.proof != PROVEN:
        return None
    match measure:
        case "recovered_after":
            return back_after_s(fault)
        case "error_window":
            return fault.error_window_s
        case "residual":
            return fault.residual
        case "amplification":
            return fault.amplification
        case _:
            return fault.budget.share if fault.budget else None


def _of_load(load: LoadReport, measure: str) -> Number:
    match measure:
        case "offered":
            return load.offered_rps
        case "achieved":
            return load.achieved_rps
        case "lane_wait.p99":
            return load.lane_wait_ms.p99
        case _:
            return load.send_lag_ms.p99


def _known(values: Sequence[Number]) -> list[float]:
    return sorted(float(value) for value in values if value is not None)


def values_of(values: Sequence[Number]) -> Values:
    """Of the episodes of one side, and their median."""
    known = _known(values)
    return Values(tuple(values), number(middle(known)) if known else None)


def moved(base: Sequence[Number], new: Sequence[Number]) -> Moved:
    """Between episodes: that of the medians, with an interval from LEAST a side."""
    old, fresh = _known(base), _known(new)
    if not old or not fresh:
        return Moved(None, None, None, None, "")
    if found := shift(old, fresh):
        by, low, high = number(found.by), number(found.low), number(found.high)
        return Moved(by, low, high, found.confidence, "between")
    return Moved(number(minus(middle(fresh), middle(old))), None, None, None, "")
