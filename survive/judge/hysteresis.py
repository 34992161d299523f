"""Does the load alone hold the system down? (metastable failure, Bronson et al. 2021)

A fault is healed, the load is what it was, and it stays broken. Three phases tell what that is:
the load goes far down (``relief``) and comes back (``again``). Broken, well, well: the same load
carries both states, and only the way there differs: a loop. Broken, well, broken: capacity is gone.
Broken at the relief, too: it is no question of load.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from survive.judge.recovery import LEAST, Steady
from survive.judge.verdict import Loop
from survive.judge.windows import Windows
from survive.scenario.model import Objective
from survive.units import show_rps

WELL, BROKEN, UNDECIDED = "well", "broken", "undecided"


def loop_of(objective: Objective, steady: Sequence[Steady], windows: Windows) -> Loop | None:
    """The loop of a recovery objective; None if it does not ask for one."""
    asked = objective.hysteresis
    if asked is None:
        return None
    phases = {phase.name: phase for phase in windows.plan.phases}
    before, relief, again = phases[asked.before], phases[asked.relief], phases[asked.again]
    faults = [fault for fault in windows.plan.faults if fault.inject_us < before.end_us]
    stable = objective.stable_for_us

    def state(from_us: int, until_us: int) -> str:
        return _state(steady, windows, (from_us, until_us), stable)

    healed_us = max((f.heal_us for f in faults if f.held), default=before.start_us)
    first = UNDECIDED
    if faults:
        first = state(before.start_us, min(fault.inject_us for fault in faults))
    states = [
        state(min(max(before.start_us, healed_us), before.end_us), before.end_us),
        state(relief.start_us, relief.end_us),
        state(again.start_us, again.end_us),
    ]
    return Loop(
        objective=objective.name,
        rps=float(before.start_rps),
        relief_rps=float(relief.start_rps),
        before=states[0],
        relief=states[1],
        again=states[2],
        hysteresis=first == WELL and states == [BROKEN, WELL, WELL],
        told=_told(
            first, states, show_rps(float(before.start_rps)), show_rps(float(relief.start_rps))
        ),
    )


def _state(
    steady: Sequence[Steady], windows: Windows, span: tuple[int, int], stable_us: int
) -> str:
    """By point estimate, as law 7 does, over the last ``stable_us`` of a span; where the load is
    low over as much more of it as holds enough requests."""
    inside = np.flatnonzero((windows.starts >= span[0]) & (windows.ends <= span[1]))
    last = int((windows.starts[inside] >= span[1] - stable_us).sum())
    found = WELL
    for one in steady:
        n, bad = (np.cumsum(values[inside][::-1]) for values in one.tally.per_slice("run"))
        enough = np.flatnonzero(n >= LEAST)
        if not len(enough):
            found = UNDECIDED if found == WELL else found
            continue
        at = max(last - 1, int(enough[0]))
        if bad[at] > one.allowed * n[at] + 1e-9:
            found = BROKEN
    return found


def _told(first: str, states: Sequence[str], rate: str, low: str) -> str:
    before, relief, again = states
    path = f"{before} at {rate}, {relief} at {low}, {again} at {rate} again"
    if before == WELL:
        return f"{path}: it came back by itself"
    if UNDECIDED in states:
        return f"{path}: too few requests to tell"
    if relief == BROKEN:
        return f"{path}: less load does not heal it"
    if again == BROKEN:
        return f"{path}: what it carried before it carries no more"
    if first != WELL:
        return f"{path}: before the fault it was {first}, too"
    return f"{path}: a loop, it is the load that holds it down"
