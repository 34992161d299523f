"""Cells of everything that is not a share of requests: probes, gauges, rates, cost, scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from survive.errors import RecordError
from survive.judge import scaling
from survive.judge.metrics import Shares
from survive.judge.probed import Counted, Seen, judge_gauge, judge_probe
from survive.judge.rates import (
    Rated,
    amplified,
    bill,
    cost,
    goodput,
    tokens_per_s,
    users_limits,
)
from survive.judge.recovery import Steady
from survive.judge.verdict import Cell, Number, Word
from survive.judge.windows import Windows, windows_of
from survive.record.reader import Record
from survive.record.table import FINE_US
from survive.scenario.model import GAUGES, PROBED, Metric, Objective, Scenario
from survive.units import SECOND

_UNITS = {
    Metric.GOODPUT: "per s",
    Metric.TOKENS_PER_S: "per s",
    Metric.AMPLIFICATION: "x",
    Metric.SCALE_UP: "s",
    Metric.REPLICAS: "",
    Metric.QUEUE: "",
}
_EACH = Objective("", Metric.SUCCESS, 1.0)  # counts what is not ok


@dataclass(frozen=True, slots=True)
class Evidence:
    """What such a cell is made from."""

    record: Record
    scenario: Scenario
    windows: Windows
    seen: Seen
    steady: Sequence[Steady]
    tally: Callable[[Objective, str], Shares]

    def kinds(self, names: Sequence[str]) -> list[int]:
        """Request kinds as the table counts them; those that there are."""
        known = self.record.plan.kinds
        return [known.index(name) for name in names if name in known]

    def seconds(self, window: str) -> float:
        """How long a window lasts."""
        return self.windows.span_us(window) / SECOND


def metric_name(objective: Objective) -> str:
    """``ttft.p95``."""
    if objective.percentile is None:
        return str(objective.metric)
    return f"{objective.metric}.p{round(objective.percentile * 100, 6):g}"


def unit_of(objective: Objective) -> str:
    """In which unit a cell shows what it observed."""
    if objective.cost is not None:
        return objective.cost.unit
    if objective.percentile is not None and objective.metric not in GAUGES:
        return "ms"
    return _UNITS.get(objective.metric, "share")


def shown_limit(objective: Objective) -> float:
    """The limit in the unit of its cell."""
    per = {"ms": 1000, "s": SECOND}.get(unit_of(objective), 1)
    return objective.limit / per


def other_cells(evidence: Evidence, objective: Objective) -> Iterator[Cell]:
    """Every cell of an objective on such a metric."""
    for window in windows_of(objective, evidence.record.plan):
        if objective.metric in PROBED:
            for name in objective.of:
                counted = judge_probe(evidence.seen, evidence.windows, objective, name, window)
                yield _counted(objective, name, window, counted)
        elif objective.metric in GAUGES:
            for name in objective.of:
                counted = judge_gauge(evidence.seen, evidence.windows, objective, name, window)
                yield _counted(objective, name, window, counted)
        elif objective.metric is Metric.SCALE_UP:
            yield _scale_up(evidence, objective)
        else:
            yield _rate(evidence, objective, window)


def _cell(
    objective: Objective,
    request: str,
    window: str,
    word: Word,
    numbers: tuple[Number, Number, Number],
    n: int,
    bad: int,
    why: str,
    observed_ok: Number = None,
) -> Cell:
    return Cell(
        name=objective.name,
        metric=metric_name(objective),
        request=request,
        window=window,
        verdict=word,
        limit=shown_limit(objective),
        unit=unit_of(objective),
        observed=numbers[0],
        low=numbers[1],
        high=numbers[2],
        n=n,
        bad=bad,
        why=why,
        observed_ok=observed_ok,
        bound="min" if objective.at_least else "max",
    )


def _counted(objective: Objective, request: str, window: str, found: Counted) -> Cell:
    said = found.why if found.decision.word is Word.FAILED else ""
    unknown = f"{found.unknown} more could not tell" if found.unknown else ""
    why = "; ".join(part for part in (found.decision.why, said, unknown) if part)
    numbers = (found.observed, found.low, found.high)
    word = found.decision.word
    return _cell(
        objective, request, window, word, numbers, found.n, found.bad, why, found.observed_ok
    )


def _rate(evidence: Evidence, objective: Objective, window: str) -> Cell:
    rated, why = _rated(evidence, objective, window)
    said = "; ".join(part for part in (rated.decision.why, why) if part)
    request = objective.of[0] if len(objective.of) == 1 else ""
    numbers = (rated.observed, rated.low, rated.high)
    return _cell(objective, request, window, rated.decision.word, numbers, rated.n, rated.bad, said)


def _rated(evidence: Evidence, objective: Objective, window: str) -> tuple[Rated, str]:
    table, windows, kinds = evidence.record.table, evidence.windows, evidence.kinds(objective.of)
    match objective.metric:
        case Metric.GOODPUT:
            seconds = evidence.seconds(window)
            return goodput(_users(evidence, objective), window, seconds, objective.limit), ""
        case Metric.TOKENS_PER_S:
            return tokens_per_s(table, windows, kinds, window, objective.limit), ""
        case Metric.AMPLIFICATION:
            return amplified(table, windows, kinds, window, objective.limit), ""
        case Metric.COST:
            return _cost(evidence, objective, kinds, window)
        case _:
            raise RecordError(f"nothing judges {objective.metric}")


def _users(evidence: Evidence, objective: Objective) -> list[tuple[Shares, list[Shares]]]:
    limits = evidence.scenario.objectives.values()
    return [
        (
            evidence.tally(_EACH, kind),
            [evidence.tally(limit, kind) for limit in users_limits(limits, kind)],
        )
        for kind in objective.of
    ]


def _cost(
    evidence: Evidence, objective: Objective, kinds: Sequence[int], window: str
) -> tuple[Rated, str]:
    target, of = evidence.scenario.target, objective.cost
    if of is None:
        raise RecordError(f"the objective {objective.name} does not say what is paid for")
    priced = [(target.services[name], price) for name, price in target.prices.items()]
    table, windows = evidence.record.table, evidence.windows
    paid = bill(table, windows, evidence.seen, priced, kinds, window, of.what)
    said = f"{paid.money:.4g} {of.currency} for {paid.got:,.0f} {of.what}"
    if paid.declared:
        said += f"; declared replicas of {', '.join(paid.declared)}, as none were scraped"
    return cost(paid, objective.limit, of.count), said


def _scale_up(evidence: Evidence, objective: Objective) -> Cell:
    name = objective.during.partition(":")[2]
    phase = next((p for p in evidence.record.plan.phases if p.name == name), None)
    if phase is None:
        raise RecordError(f"the plan of this run has no window {objective.during!r}")
    fine = phase.end_us - phase.start_us <= FINE_US
    found = scaling.scale_up(objective, phase, evidence.steady, evidence.windows, evidence.seen)
    decided = scaling.decision(found, objective.limit, fine=fine)
    after, earliest = (
        None if us is None else us / SECOND for us in (found.after_us, found.earliest_us)
    )
    never = decided.word is Word.FAILED and after is None
    return _cell(
        objective,
        "",
        objective.during,
        decided.word,
        ("inf" if never else after, earliest, after),
        found.n,
        found.bad,
        decided.why,
    )
