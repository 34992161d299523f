"""From a step of the load until the steady objectives hold again: law 7 with the start of a phase
as its origin, and what the target's own metrics tell of the way there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from survive.judge.probed import Seen
from survive.judge.recovery import Moment, Steady, first_holding
from survive.judge.statistics import Decision
from survive.judge.verdict import Word
from survive.judge.windows import Windows
from survive.scenario.model import Objective, Phase
from survive.units import SECOND

_QUEUED = 1.0  # requests that wait, above what waited when the phase began


@dataclass(frozen=True, slots=True)
class ScaledUp:
    """What was seen of one step. Times in µs from the phase's start."""

    moment: Moment
    after_us: int | None
    earliest_us: int | None
    n: int
    bad: int  # from the phase's start until it was well again, or to its end
    told: str  # the way there, in words


def scale_up(
    objective: Objective, phase: Phase, steady: Sequence[Steady], windows: Windows, told: Seen
) -> ScaledUp:
    """When the steady objectives held again in a phase, and on all of its later stretches.

    Watched until the first inject in it: what comes then is a fault's doing, and recovery's.
    """
    injects = [f.inject_us for f in windows.plan.faults if f.inject_us > phase.start_us]
    span = (phase.start_us, min([phase.end_us, *injects]))
    calm = f"calm:{phase.name}"
    moment = first_holding(steady, windows, calm, span, objective.stable_for_us)
    until_us = span[1] if moment.certain_us is None else moment.certain_us
    n, bad = _until(steady, windows, calm, until_us)
    way = ", ".join(_way(phase, told))
    lost = f"{bad:,} of {n:,} requests were bad meanwhile"
    return ScaledUp(
        moment,
        _since(moment.certain_us, phase),
        _since(moment.possible_us, phase),
        n,
        bad,
        f"{way}; {lost}" if way else lost,
    )


def decision(found: ScaledUp, limit_us: float, *, fine: bool) -> Decision:
    """Survived, failed or undecided."""
    if not fine:
        return Decision(Word.INCONCLUSIVE, "the phase is too long to be kept second by second")
    if found.after_us is not None and found.after_us <= limit_us:
        return Decision(Word.SURVIVED, found.told)
    if not found.moment.spans:
        return Decision(Word.INCONCLUSIVE, "the phase is shorter than `stable_for`")
    if found.moment.decided or (found.earliest_us is not None and found.earliest_us > limit_us):
        return Decision(Word.FAILED, found.told)
    return Decision(Word.INCONCLUSIVE, "too few requests of a kind in a stretch")


def _since(at_us: int | None, phase: Phase) -> int | None:
    return None if at_us is None else at_us - phase.start_us


def _until(
    steady: Sequence[Steady], windows: Windows, window: str, until_us: int
) -> tuple[int, int]:
    """(n, bad) before a moment: of each kind by the objective that found most bad."""
    worst: dict[str, tuple[int, int]] = {}
    for one in steady:
        n, bad = (int(values[windows.starts < until_us].sum())
                  for values in one.tally.per_slice(window))  # fmt: skip
        if bad >= worst.get(one.kind, (0, -1))[1]:
            worst[one.kind] = (n, bad)
    return sum(n for n, _ in worst.values()), sum(bad for _, bad in worst.values())


def _way(phase: Phase, told: Seen) -> Iterator[str]:
    """When the queue rose and when replicas came, of the services that tell."""
    for service in dict.fromkeys(scrape.service for scrape in told.scrapes):
        if (rose := _first_above(told.of(service, "queue"), phase, _QUEUED)) is not None:
            yield f"the queue of {service} rose after {rose[0] / SECOND:.1f} s"
        if (grew := _first_above(told.of(service, "replicas"), phase, 1.0)) is not None:
            yield (
                f"{grew[1]:g} replicas of {service} instead of {grew[2]:g} "
                f"after {grew[0] / SECOND:.1f} s"
            )


def _first_above(
    series: Sequence[tuple[int, float]], phase: Phase, by: float
) -> tuple[int, float, float] | None:
    """(µs since the phase's start, value, value before it) of the first one that is higher."""
    before = [value for at_us, value in series if at_us <= phase.start_us]
    if not before:
        return None
    for at_us, value in series:
        if phase.start_us < at_us <= phase.end_us and value >= before[-1] + by:
            return at_us - phase.start_us, value, before[-1]
    return None
