"""How the target came back (DESIGN law 7), by the steady objectives over sliding spans.

A span holds if every steady objective holds in it by point estimate with at least 30 requests of
each kind; with fewer it is undecided. Recovered at the first slice from which on every span of the
watch holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from survive.judge.faults import Life
from survive.judge.metrics import Shares
from survive.judge.verdict import Word
from survive.judge.windows import Group, Windows
from survive.plan.model import GUARD_US, SLICE_US, FaultWindow, Plan
from survive.plan.users import mean_users
from survive.record.rates import mean_rps
from survive.record.table import I64
from survive.units import SECOND

LEAST = 30
SAME_LOAD = 1.05  # up to here the load counts as what it was before the fault
_ROUNDING = 1e-9
_SLACK_US = SLICE_US + 2 * GUARD_US  # a watch as planned may end so much before the limit

_HOLDS, _UNDECIDED, _BROKEN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Steady:
    """One steady objective on one kind: what recovery is recovery *of*."""

    kind: str
    allowed: float
    tally: Shares


@dataclass(frozen=True, slots=True)
class Moment:
    """When something held for good: between ``possible_us`` and ``certain_us`` (equal if decided).

    None = not within the watch; ``certain_us`` None alone = too few requests to say.
    """

    possible_us: int | None
    certain_us: int | None
    spans: int  # looked at
    last_us: int | None = None  # start of the last of them

    @property
    def decided(self) -> bool:
        """Known, be it that it never held."""
        return self.spans > 0 and self.possible_us == self.certain_us


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the watch over one fault saw. Spans of time in µs."""

    recovered_after_us: int | None
    earliest_after_us: int | None  # best case where too few requests leave it open
    decided: bool
    absorbed_after_us: int | None
    error_window_us: int | None
    residual: float | None
    still_broken: bool
    risen: float  # planned load while watched ÷ before the fault
    n: int
    bad: int
    watched_us: int  # from the origin to the last moment at which it could be seen to be back


def first_holding(
    steady: Sequence[Steady],
    windows: Windows,
    window: str,
    span: tuple[int, int],
    stable_us: int,
) -> Moment:
    """The first slice of a span of time from which on every stretch of ``stable_us`` holds."""
    starts, states = _states(steady, windows, window, span, stable_us)
    broken = np.flatnonzero(states == _BROKEN)
    unsure = np.flatnonzero(states != _HOLDS)
    first_possible = int(broken[-1]) + 1 if len(broken) else 0
    first_certain = int(unsure[-1]) + 1 if len(unsure) else 0
    return Moment(
        int(starts[first_possible]) if first_possible < len(starts) else None,
        int(starts[first_certain]) if first_certain < len(starts) else None,
        len(starts),
        int(starts[-1]) if len(starts) else None,
    )


def _states(
    steady: Sequence[Steady],
    windows: Windows,
    window: str,
    span: tuple[int, int],
    stable_us: int,
) -> tuple[I64, I64]:
    """(starts, state) of every stretch that begins at a slice and lies inside the span."""
    inside = (windows.starts >= span[0]) & (windows.starts + stable_us <= span[1])
    first = np.flatnonzero(inside & ~windows.transition)
    after = np.searchsorted(windows.starts, windows.starts[first] + stable_us, side="left")
    states: I64 = np.zeros(len(first), dtype=np.int64)
    for one in steady:
        n, bad = (
            np.concatenate(([0], np.cumsum(values)))[after]
            - np.concatenate(([0], np.cumsum(values)))[first]
            for values in one.tally.per_slice(window)
        )
        over = bad > one.allowed * n + _ROUNDING
        state = np.where(n < LEAST, _UNDECIDED, np.where(over, _BROKEN, _HOLDS))
        states = np.maximum(states, state)
    return windows.starts[first], states


def watch(
    group: Group,
    life: Life,
    origin_us: int | None,
    steady: Sequence[Steady],
    windows: Windows,
    stable_us: int,
) -> Recovery:
    """Everything about one fault's recovery. ``origin_us``: when the clock starts (the last proven
    heal of the group, or the inject of a one-shot), None if it may not start."""
    fault = life.window
    window = f"recovery:{_bearer(group).fault}"
    back = first_holding(steady, windows, window, (group.recovery_us, group.end_us), stable_us)
    n, bad = _requests(steady, window)
    return Recovery(
        recovered_after_us=_after(back.certain_us, origin_us),
        earliest_after_us=_after(back.possible_us, origin_us),
        decided=back.decided and origin_us is not None,
        absorbed_after_us=_absorbed(life, steady, windows, stable_us),
        error_window_us=_error_window(steady, windows, fault.inject_us, group.end_us),
        residual=_residual(steady, windows, window, group.end_us, stable_us),
        still_broken=back.spans > 0 and back.possible_us is None,
        risen=_risen(group, windows),
        n=n,
        bad=bad,
        watched_us=_after(back.last_us, origin_us) or 0,
    )


def _bearer(group: Group) -> FaultWindow:
    """The member whose recovery window is the group's: the last held one, else the last."""
    held = [fault for fault in group.faults if fault.held]
    return max(held, key=lambda f: f.heal_us) if held else group.faults[-1]


def _after(at_us: int | None, origin_us: int | None) -> int | None:
    return None if at_us is None or origin_us is None else max(0, at_us - origin_us)


def _absorbed(life: Life, steady: Sequence[Steady], windows: Windows, stable_us: int) -> int | None:
    """The same from inject, if it held again while the fault was still on."""
    if not life.window.held or life.injected_us is None:
        return None
    span = (life.window.inject_us, life.window.heal_us)
    moment = first_holding(steady, windows, f"fault:{life.window.fault}", span, stable_us)
    return _after(moment.certain_us, life.window.inject_us) if moment.decided else None


def _error_window(
    steady: Sequence[Steady], windows: Windows, start_us: int, end_us: int
) -> int | None:
    """From the first to the last bad second: those in which a steady objective does not hold."""
    inside = (windows.starts >= start_us) & (windows.starts < end_us)
    bad_slices = np.zeros(len(windows.starts), dtype=np.bool_)
    seen = False
    for one in steady:
        n, bad = one.tally.per_slice("run")
        seen = seen or bool(n[inside].any())
        bad_slices |= inside & (bad > one.allowed * n + _ROUNDING)
    if not seen:
        return None
    at = np.flatnonzero(bad_slices)
    return int(windows.ends[at[-1]] - windows.starts[at[0]]) if len(at) else 0


def _residual(
    steady: Sequence[Steady], windows: Windows, window: str, end_us: int, stable_us: int
) -> float | None:
    """The worst objective's share of bad in the last stretch minus that of steady."""
    last = (windows.starts >= end_us - stable_us) & (windows.starts < end_us)
    found = []
    for one in steady:
        n, bad = one.tally.per_slice(window)
        steady_n, steady_bad = one.tally.total("steady")
        if n[last].sum() and steady_n:
            found.append(float(bad[last].sum() / n[last].sum() - steady_bad / steady_n))
    return max(found, default=None)


def _risen(group: Group, windows: Windows) -> float:
    """Planned rates, not counted ones: at 50/s chance alone moves a count by more than 5 %."""
    length = group.end_us - group.recovery_us
    before = _mean_load(windows.plan, max(0, group.start_us - length), group.start_us)
    during = _mean_load(windows.plan, group.recovery_us, group.end_us)
    return during / before if before else 1.0


def _mean_load(plan: Plan, start_us: int, end_us: int) -> float:
    """By the plan: requests a second, or users."""
    if plan.closed:
        return mean_users(plan.phases, start_us, end_us)
    return mean_rps(plan, start_us, end_us)


def _requests(steady: Sequence[Steady], window: str) -> tuple[int, int]:
    """(n, bad) of the watch: of each kind by the objective that found most bad."""
    worst: dict[str, tuple[int, int]] = {}
    for one in steady:
        n, bad = one.tally.total(window)
        if bad >= worst.get(one.kind, (0, -1))[1]:
            worst[one.kind] = (n, bad)
    return sum(n for n, _ in worst.values()), sum(bad for _, bad in worst.values())


def recovery_word(recovery: Recovery, limit_us: float) -> tuple[Word, str]:
    """Survived, failed or undecided for one limit, and why if it is not plain."""
    if recovery.decided and recovery.recovered_after_us is None:
        if recovery.watched_us < limit_us - _SLACK_US:
            seen = recovery.watched_us / SECOND
            return Word.INCONCLUSIVE, f"not back {seen:.1f} s after its heal, where the watch ended"
        return Word.FAILED, "it did not come back while it was watched"
    certain, best = recovery.recovered_after_us, recovery.earliest_after_us
    if certain is not None and certain <= limit_us:
        return Word.SURVIVED, ""
    if recovery.decided or (best is not None and best > limit_us):
        return Word.FAILED, ""
    return (
        Word.INCONCLUSIVE,
        f"fewer than {LEAST} requests of a kind in a stretch, or none that is long enough",
    )
