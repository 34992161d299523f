"""``--inconclusive extend``: can a longer last phase decide, and how long has it to be? Pure.

See docs/decisions/0005: what is undecided is run again as an episode of its own, not prolonged.
"""

from __future__ import annotations

import math
from dataclasses import replace

from survive.errors import ExitCode
from survive.judge.judge import BASELINE_UNDECIDED
from survive.judge.metrics import allowed_share
from survive.judge.statistics import decide, requests_to_decide
from survive.judge.verdict import Cell, Verdict, Word
from survive.scenario.model import PROBED, Metric, Phase, Scenario
from survive.units import SECOND

# "About so many seconds would decide" holds if the share stays; chance needs some room.
_ROOM = 1.25


def extension_us(verdict: Verdict, scenario: Scenario) -> int | None:
    """Whole seconds, as µs, that the last phase must last longer; None: that would not help.

    It helps if nothing but a lack of requests is in the way, in cells that the last phase feeds;
    a replayed trace has no more arrivals to give, and how often users ask nobody knows before.
    """
    last = scenario.load.phases[-1]
    open_ = [cell for cell in verdict.objectives if cell.verdict is Word.INCONCLUSIVE]
    # Every other gap (a proof, the harness, the grade) has a reason of its own.
    only_cells = len(verdict.reasons) == len(open_)
    sound = verdict.exit_code is ExitCode.INCONCLUSIVE and only_cells
    load = scenario.load
    if not sound or not last.constant or last.warm_up or load.trace_us or load.closed:
        return None
    needed = [_seconds(cell, scenario, last) for cell in open_ if cell.why != BASELINE_UNDECIDED]
    if not needed or None in needed:
        return None
    seconds = math.ceil(max(s for s in needed if s is not None) * _ROOM)
    within = seconds * SECOND <= scenario.load.max_extend_us
    return seconds * SECOND if within else None


def _seconds(cell: Cell, scenario: Scenario, last: Phase) -> float | None:
    """More seconds of the last phase that would decide this cell; None: none would."""
    objective = scenario.objectives[cell.name]
    fed = cell.window in {"steady", "run", f"phase:{last.name}"}
    counted = objective.metric not in {*PROBED, Metric.RECOVERY} and cell.request in last.shares
    if not fed or not counted:
        return None
    allowed = allowed_share(objective)
    rps = float(last.start_rps) * last.shares[cell.request]
    decided = decide(cell.bad, cell.n, allowed, rps).word is not Word.INCONCLUSIVE
    if decided or allowed <= 0 or rps <= 0:
        return None  # its numbers are not what is in the way, or no number would do
    total = requests_to_decide(cell.bad, cell.n, allowed, rps)
    return None if total is None else max(1.0, (total - cell.n) / rps)


def extended(scenario: Scenario, by_us: int) -> Scenario:
    """The same scenario with a longer last phase: same seed, so the same arrivals and then more."""
    last = scenario.load.phases[-1]
    longer = replace(last, end_us=last.end_us + by_us)
    load = replace(scenario.load, phases=(*scenario.load.phases[:-1], longer))
    return replace(scenario, load=load, raw={**scenario.raw, "load": _raw(scenario, longer)})


def _raw(scenario: Scenario, longer: Phase) -> dict[str, object]:
    written = scenario.raw["load"]
    *others, last = written["phases"]
    span = f"{longer.end_us - longer.start_us}us"
    return {**written, "phases": [*others, {**last, "for": span}]}
