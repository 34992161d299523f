"""What a locustfile's users were seen to ask, and the objectives that name it (pure).

Names are known when the run is over: `of: Shopper/*` is laid over them here. `*` stands for any
text, everything else for itself (a Locust name may hold brackets). What nothing was called stays
as it was written, finds no request, and so is decided by nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from survive.plan.model import Plan
from survive.scenario.model import TALLIED, Metric, Objective, Scenario

_OF_REQUESTS = TALLIED | {Metric.GOODPUT}


def with_journeys(scenario: Scenario, plan: Plan) -> Scenario:
    """The scenario with names for patterns; itself if its requests are its own."""
    if not plan.locustfile:
        return scenario
    objectives = {
        name: replace(objective, of=tuple(_names(objective.of, plan.kinds)))
        if objective.metric in _OF_REQUESTS
        else objective
        for name, objective in scenario.objectives.items()
    }
    return replace(scenario, objectives=objectives)


def never_asked(objective: Objective, plan: Plan) -> str:
    """Which of its patterns no request was called, in words; "" if all were."""
    if not plan.locustfile or objective.metric not in _OF_REQUESTS:
        return ""
    missing = [name for name in objective.of if name not in plan.kinds]
    return f"no request was called {' or '.join(missing)}" if missing else ""


def _names(patterns: Iterable[str], kinds: Sequence[str]) -> Iterator[str]:
    told: set[str] = set()
    for pattern in patterns:
        form = re.compile(".*".join(re.escape(part) for part in pattern.split("*")))
        found = sorted(kind for kind in kinds if form.fullmatch(kind)) or [pattern]
        yield from (name for name in found if name not in told)
        told.update(found)
