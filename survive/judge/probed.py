"""What the probes saw, as the judge counts it (docs/decisions/0004). Pure, from events alone."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from survive.contracts import Json
from survive.errors import RecordError
from survive.judge.metrics import allowed_share
from survive.judge.statistics import (
    Decision,
    decide,
    decide_none,
    lower_bound,
    rank_interval,
    upper_bound,
)
from survive.judge.verdict import Number
from survive.judge.windows import Mask, Windows
from survive.plan.model import Plan
from survive.record.events import Event, EventName
from survive.scenario.model import GAUGES, PROBED, Metric, Objective, Scenario
from survive.units import SECOND

SCRAPE = "scrape"
SCRAPE_US = SECOND
_SCRAPES_LEAST = 0.8  # of those due: one may be slow, a fifth may not


@dataclass(frozen=True, slots=True)
class Finding:
    """One probing. ``good`` None: it proves nothing."""

    probe: str
    metric: Metric
    start_us: int
    end_us: int
    good: bool | None
    value_us: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one service said of itself at one moment."""

    service: str
    start_us: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that the probes told."""

    findings: tuple[Finding, ...]
    scrapes: tuple[Scrape, ...]
    sent: int | None  # how many of both the last line tells of; None = there was none

    def of(self, service: str, gauge: str) -> list[tuple[int, float]]:
        """(when, value) of one gauge of a service, in order of time."""
        told = [s for s in self.scrapes if s.service == service and gauge in s.values]
        return sorted((s.start_us, s.values[gauge]) for s in told)


def seen(events: Iterable[Event]) -> Seen:
    """All that probes told. RecordError for an event that is not as decision 4 has it."""
    findings, scrapes, sent = [], [], None
    for event in events:
        if event.name != EventName.PROBE_SEEN:
            continue
        if event.true("done"):
            sent = event.integer("sent")
        elif event.text("probe") == SCRAPE:
            scrapes.append(_scrape(event))
        else:
            findings.append(_finding(event))
    return Seen(tuple(findings), tuple(scrapes), sent)


def _finding(event: Event) -> Finding:
    start_us, end_us = event.integer("start_us"), event.integer("end_us")
    good = event.fields.get("ok")
    value = None if event.fields.get("value_us") is None else event.integer("value_us")
    metric = next((m for m in PROBED if m == event.text("metric")), None)
    probe = event.fields.get("probe")
    sound = isinstance(probe, str) and probe and (good is None or isinstance(good, bool))
    if not sound or metric is None or end_us < start_us or (value is not None and value < 0):
        raise _malformed(event)
    assert isinstance(probe, str) and (good is None or isinstance(good, bool))
    return Finding(probe, metric, start_us, end_us, good, value, event.text("why"))


def _scrape(event: Event) -> Scrape:
    service, values = event.fields.get("service"), event.fields.get("values")
    if not isinstance(service, str) or not service or not isinstance(values, dict):
        raise _malformed(event)
    told = {str(name): _number(event, value) for name, value in values.items() if value is not None}
    return Scrape(service, event.integer("start_us"), told)


def _number(event: Event, value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _malformed(event)
    return float(value)


def _malformed(event: Event) -> RecordError:
    return RecordError(f"event {event.name} at {event.t_us} µs is not what a probe says")


def missing(told: Seen, scenario: Scenario, plan: Plan) -> Iterator[str]:
    """What the harness owes: probes that an objective needs and that were not made as planned."""
    objectives = scenario.objectives.values()
    asked = dict.fromkeys(n for o in objectives if o.metric in PROBED for n in o.of)
    scraped = dict.fromkeys(n for o in objectives if o.metric in GAUGES for n in o.of)
    heard = len(told.findings) + len(told.scrapes)
    if (asked or scraped) and told.sent is None:
        yield "the probes did not report to their end"
    elif (asked or scraped) and told.sent != heard:
        yield f"the probes told of {told.sent} findings, and {heard} are on record"
    for name in asked:
        if (probe := scenario.probes.get(name)) is None:
            raise RecordError(f"the scenario of this run has no probe {name!r}")
        starts = {f.start_us for f in told.findings if f.probe == name}
        made = sum(0 <= start_us < plan.end_us for start_us in starts)
        due = plan.end_us // probe.every_us
        if made < due - 1:
            yield f"the probe {name} was made {made} of {due} times"
    for name in scraped:
        made = len({s.start_us // SCRAPE_US for s in told.scrapes if s.service == name})
        due = plan.end_us // SCRAPE_US
        if made < _SCRAPES_LEAST * due:
            yield f"the metrics of {name} were read in {made} of {due} seconds"


@dataclass(frozen=True, slots=True)
class Counted:
    """One cell of findings or scrapes."""

    n: int
    bad: int
    unknown: int
    observed: Number
    observed_ok: Number
    low: Number
    high: Number
    decision: Decision
    why: str  # the first bad one, in its own words


def judge_probe(
    told: Seen, windows: Windows, objective: Objective, probe: str, window: str
) -> Counted:
    """The cell of one probe in one window."""
    mine = [f for f in told.findings if f.probe == probe]
    if any(finding.metric is not objective.metric for finding in mine):
        raise RecordError(f"{probe} looked for another thing than {objective.metric} in this run")
    inside = _inside(windows, window, [(f.start_us, f.end_us) for f in mine])
    found = [finding for finding, is_in in zip(mine, inside, strict=True) if is_in]
    known = [finding for finding in found if finding.good is not None]
    bad = [finding for finding in known if _bad(finding, objective)]
    share = _share(objective, len(known), len(bad), windows.span_us(window))
    observed: tuple[Number, Number, Number] = share.observed
    observed_ok: Number = None
    if objective.percentile is not None:
        times = [_ms(f) for f in known]
        observed = _percentiles(times, objective.percentile, least=False)
        observed_ok = _percentiles(
            [t for t in times if t < math.inf], objective.percentile, least=False
        )[0]
    why = next((f.why for f in bad if f.why), "")
    return Counted(
        len(known), len(bad), len(found) - len(known),
        observed[0], observed_ok, observed[1], observed[2], share.decision, why,
    )  # fmt: skip


def _bad(finding: Finding, objective: Objective) -> bool:
    return not finding.good or (
        objective.percentile is not None
        and (finding.value_us is None or finding.value_us > objective.limit)
    )


def _ms(finding: Finding) -> float:
    gone = not finding.good or finding.value_us is None
    return math.inf if gone or finding.value_us is None else finding.value_us / 1000


def judge_gauge(
    told: Seen, windows: Windows, objective: Objective, service: str, window: str
) -> Counted:
    """The cell of one service's gauge in one window."""
    series = [(s.start_us, s.values.get(str(objective.metric))) for s in told.scrapes
              if s.service == service]  # fmt: skip
    inside = _inside(windows, window, [(at_us, at_us) for at_us, _ in series])
    found = [value for (_, value), is_in in zip(series, inside, strict=True) if is_in]
    values = [value for value in found if value is not None]
    least = objective.at_least
    bad = sum(v < objective.limit if least else v > objective.limit for v in values)
    share = _share(objective, len(values), bad, windows.span_us(window))
    observed: tuple[Number, Number, Number] = (None, None, None)
    if values and objective.percentile is None:
        observed = (min(values) if least else max(values), None, None)
    elif objective.percentile is not None:
        observed = _percentiles(values, objective.percentile, least=least)
    return Counted(
        len(values), bad, len(found) - len(values),
        observed[0], None, observed[1], observed[2], share.decision, "",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Share:
    decision: Decision
    observed: tuple[Number, Number, Number]  # value, low, high of the share that is limited


def _share(objective: Objective, n: int, bad: int, span_us: int) -> _Share:
    allowed = allowed_share(objective)
    rps = n * SECOND / span_us if span_us else 0.0
    decision = decide_none(bad, n) if allowed <= 0 else decide(bad, n, allowed, rps)
    if not n:
        return _Share(decision, (None, None, None))
    low, high = lower_bound(bad, n), upper_bound(bad, n)
    if objective.metric is Metric.LEAKED:
        return _Share(decision, (bad / n, low, high))
    return _Share(decision, (1 - bad / n, 1 - high, 1 - low))


def _inside(windows: Windows, window: str, spans: Sequence[tuple[int, int]]) -> Mask:
    """Which probings belong to a window: by their intended start and the first inject crossed,
    as requests do."""
    plan = windows.plan
    starts = np.array([start for start, _ in spans], dtype=np.int64)
    during = (starts >= 0) & (starts < plan.end_us)
    slices = np.searchsorted(windows.starts, starts, side="right").astype(np.int64) - 1
    crossed = [_crossed(plan.marks, start, end) for start, end in spans]
    of_window = windows.mask(window, slices.clip(0), np.array(crossed, dtype=np.int64))
    inside: Mask = during & of_window
    return inside


def _crossed(marks: Sequence[int], start_us: int, end_us: int) -> int:
    at = bisect.bisect_right(marks, start_us)
    return at if at < len(marks) and marks[at] <= end_us else -1


def _percentiles(
    values: Sequence[float], share: float, *, least: bool
) -> tuple[Number, Number, Number]:
    """(value, low, high): what a share of them does not pass, from above or (least) from below."""
    if not values:
        return None, None, None
    ordered = sorted(values, reverse=least)

    def at(rank: int) -> Number:
        if not 1 <= rank <= len(ordered):
            return None
        return "inf" if math.isinf(ordered[rank - 1]) else ordered[rank - 1]

    low, high = rank_interval(len(ordered), share)
    ends = (at(low), at(high))
    due = max(1, math.ceil(round(share * len(ordered), 9)))
    return at(due), *(reversed(ends) if least else ends)
