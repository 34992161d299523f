"""Runs made by hand, with known truth: a real plan and schedule, fates decided by a function.

Everything goes through RecordWriter, as in a real run; nothing here knows the judge.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from survive.plan.arrivals import Schedule
from survive.plan.model import Plan
from survive.plan.plan import make_plan
from survive.record.hdr import fold
from survive.record.reader import Record
from survive.record.samples import HARNESS, Counts, Frame, Key, Outcome, Series
from survive.record.writer import RecordWriter
from survive.scenario.model import (
    FaultPlan,
    LoadSpec,
    Metric,
    Objective,
    Phase,
    RequestKind,
    Scenario,
    Service,
    TargetSpec,
)

S = 1_000_000
MS = 1_000


@dataclass(frozen=True)
class Fate:
    """What becomes of one request. Times in µs from intended start."""

    outcome: Outcome = Outcome.OK
    after: int = 20 * MS
    ttft: int | None = 10 * MS
    gaps: tuple[int, ...] = (5 * MS, 5 * MS)
    lag: int = 50
    wait: int = 0
    who: str = ""
    why: str = ""
    tokens: int = 0


def phase(name, start_s, end_s, rps, end_rps=None, *, warm_up=False, shares=None):
    return Phase(
        name, int(start_s * S), int(end_s * S), Fraction(rps), Fraction(end_rps or rps),
        warm_up=warm_up, shares=shares or {"chat": 0.6, "search": 0.4},
    )  # fmt: skip


ANSWERS = Objective("answers", Metric.SUCCESS, 0.99, None, ("chat", "search"), "steady")
FAST = Objective("fast", Metric.TTFT, 800 * MS, 0.95, ("chat",), "steady")
DEGRADE = Objective("degrade", Metric.SUCCESS, 0.9, None, ("chat", "search"), "each fault")
BACK = Objective("back", Metric.RECOVERY, 6 * S, stable_for_us=4 * S)
OUTAGE = FaultPlan("outage", "network.down", 20 * S, 8 * S, link="gateway -> inference")


def scenario(
    phases=None, faults=(OUTAGE,), objectives=(ANSWERS, FAST, DEGRADE, BACK), rps=60, end_s=50
):
    phases = phases or (phase("warm", 0, 2, rps, warm_up=True), phase("main", 2, end_s, rps))
    kinds = {
        "chat": RequestKind("chat", 0.6, "POST", "/chat", json={"stream": True}, timeout_us=5 * S),
        "search": RequestKind("search", 0.4, "GET", "/search", timeout_us=2 * S),
    }
    services = {
        "gateway": Service("gateway", app="g.py:make_app"),
        "inference": Service("inference", app="r.py:make_app", replicas=3),
    }
    return Scenario(
        name="synthetic", about="", seed=11,
        target=TargetSpec("hand-made", "process", "gateway", services, {}),
        requests=kinds, gives_up_after_us=4 * S,
        load=LoadSpec("poisson", Fraction(1), 400, 360, tuple(phases)),
        faults={f.name: f for f in faults},
        objectives={o.name: o for o in objectives},
        stop_if={}, folder=Path(),
    )  # fmt: skip


@dataclass
class Story:
    """Everything that happens in a run. ``fate(t_us, kind)`` decides each request."""

    scenario: Scenario
    fate: Callable[[int, str], Fate] = lambda t_us, kind: Fate()
    ended: str = "complete"
    detail: str = ""
    stopped: dict | None = None
    host: str = "real"
    asked: dict = field(default_factory=dict)  # of the judge, by the command line
    unproven_heals: list = field(default_factory=list)
    look: Callable[[str, int, str], str] | None = None  # (fault, t_us, stage) → active
    before: tuple[str, ...] = ("no", "no", "no")
    inject_error: str | None = None
    inject_late_us: int = 20 * MS
    heal_late_us: int = 20 * MS
    proven: bool = True
    own: bool = True
    silent: tuple[str, ...] = ()  # events that never happen
    harness: tuple[tuple[int, Series, int], ...] = ()  # (t_us, series, value)
    extra: tuple[tuple[Key, Counts], ...] = ()
    mislay: int = 0  # requests that the load forgets to file
    probed: tuple[dict, ...] = ()  # fields of probe_seen events
    probes_done: bool = True

    @property
    def plan(self) -> Plan:
        return make_plan(self.scenario)

    def write(self, folder: Path, *, order: Callable[[list], list] = lambda sets: sets) -> Path:
        plan = self.plan
        with RecordWriter(folder, plan) as writer:
            events = sorted(self._events(plan), key=lambda event: event[0])
            for t_us, name, fields in events:
                if name not in self.silent:
                    writer.event(name, fields, t_us)
            for at_us, sets in frames(order(self.sets(plan))):
                writer.frame(Frame(at_us, tuple(sets)))
        return folder

    def record(self, folder: Path) -> Record:
        return Record.load(self.write(folder))

    def sets(self, plan):
        """[(second, key, counts)] of the whole run."""
        raw: dict[tuple[int, Key], list[int]] = {}
        left = self.mislay
        for block in Schedule.of(plan).blocks():
            for t_us, kind in zip(block.intended_us.tolist(), block.kind.tolist(), strict=True):
                if left:
                    left -= 1
                    continue
                name = plan.kinds[kind]
                for key, second, value in samples(plan, t_us, name, self.fate(t_us, name)):
                    raw.setdefault((second, key), []).append(value)
        for t_us, series, value in self.harness:
            key = Key(slice_of(plan, t_us), HARNESS, -1, series)
            raw.setdefault((t_us // S, key), []).append(value)
        found = [(second, key, Counts(*fold(values))) for (second, key), values in raw.items()]
        found += [(0, key, counts) for key, counts in self.extra]
        return sorted(found, key=lambda item: (item[0], item[1]))

    def _events(self, plan):
        grades = dict.fromkeys(self.scenario.faults, "real")
        yield -5 * S, "run_started", {"host": self.host, "grades": grades, **self.asked}
        for fault in plan.faults:
            yield from self._fault_events(fault)
        for fields in self.probed:
            yield fields["end_us" if "end_us" in fields else "start_us"], "probe_seen", fields
        if self.probed and self.probes_done:
            done = {"probe": "", "done": True, "sent": len(self.probed)}
            yield plan.end_us + 100 * MS, "probe_seen", done
        if self.stopped:
            yield plan.end_us, "stopped", self.stopped
        yield plan.end_us + S, "run_ended", {
            "ended": self.ended, "detail": self.detail, "unproven_heals": self.unproven_heals,
        }  # fmt: skip

    def _fault_events(self, fault):
        who = {"fault": fault.fault, "injection": f"{fault.fault}#0"}

        def look(t_us, stage, active):
            said = self.look(fault.fault, t_us, stage) if self.look else active
            return t_us, "fault_observed", {
                **who, "stage": stage, "active": said, "evidence": "seen", "value": 1.0,
            }  # fmt: skip

        for number, active in enumerate(self.before):
            t_us = fault.inject_us - 3 * S + number * 250 * MS
            yield t_us, "fault_observed", {
                **who, "stage": "before", "active": active, "evidence": "seen", "value": 1.0,
            }  # fmt: skip
        began = fault.inject_us + min(self.inject_late_us, 5 * MS)
        ended = fault.inject_us + self.inject_late_us
        yield ended, "fault_injected", {
            **who, "planned_us": fault.inject_us, "began_us": began, "ended_us": ended,
            "error": self.inject_error,
        }  # fmt: skip
        if not fault.held:
            yield look(ended + 100 * MS, "during", "yes")
            return
        for t_us in range(ended + 10 * MS, fault.heal_us, 250 * MS):
            yield look(t_us, "during", "yes")
        healed = fault.heal_us + self.heal_late_us
        yield healed, "fault_healed", {
            **who, "planned_us": fault.heal_us, "began_us": fault.heal_us, "ended_us": healed,
            "rung": "undo", "error": None,
        }  # fmt: skip
        yield look(healed + 50 * MS, "after", "no")
        yield healed + 60 * MS, "heal_proven", {
            **who, "proven": self.proven, "by_own_heal": self.own, "evidence": "a round trip",
            "by_hand": "" if self.proven else "rm -rf fault",
        }  # fmt: skip


def findings(probe, metric, every_ms, end_s, judge=lambda t_us: True, value=None, took=5 * MS):
    """Probings at a fixed schedule; ``judge(t_us)`` says how each went, ``value(t_us)`` its µs."""
    for start in range(every_ms * MS // 2, end_s * S, every_ms * MS):
        ok = judge(start)
        yield {
            "probe": probe, "metric": metric, "start_us": start, "end_us": start + took, "ok": ok,
            "value_us": value(start) if value and ok else None,
            "why": "" if ok else "it was not so",
        }  # fmt: skip


def scrapes(service, end_s, values):
    """One scrape a second; ``values(second)``."""
    for second in range(end_s):
        yield {
            "probe": "scrape", "service": service, "start_us": second * S + 300 * MS,
            "values": values(second),
        }  # fmt: skip


def slice_of(plan, t_us):
    return bisect.bisect_right(plan.slices, (t_us, 1 << 62)) - 1


def samples(plan, t_us, kind, fate):
    """(key, second of settling, value) of one request: what the load would file."""
    place = slice_of(plan, t_us)
    end_us = t_us + fate.after
    crossed = next((i for i, mark in enumerate(plan.marks) if t_us < mark <= end_us), -1)
    second = end_us // S

    def sample(series, value, outcome="", **more):
        return Key(place, kind, crossed, series, outcome, **more), second, value

    yield sample(Series.LATENCY, fate.after, str(fate.outcome), who=fate.who, why=fate.why)
    if fate.outcome in {Outcome.EXPIRED, Outcome.UNSENT, Outcome.LOST}:
        return
    yield sample(Series.SEND_LAG, fate.lag)
    yield sample(Series.LANE_WAIT, fate.wait)
    yield sample(Series.ATTEMPT, fate.after)
    if fate.outcome is not Outcome.OK:
        return
    yield sample(Series.SERVICE_TIME, fate.after - fate.wait - fate.lag, "ok")
    if plan.streamed[plan.kinds.index(kind)]:
        if fate.ttft is not None:
            yield sample(Series.TTFT, fate.ttft, "ok")
        for gap in fate.gaps:
            yield sample(Series.ITL, gap, "ok")
        if fate.tokens:
            yield sample(Series.TOKENS, fate.tokens, "ok")
        if fate.gaps:
            yield sample(Series.TPOT, sum(fate.gaps) // len(fate.gaps), "ok")


def frames(sets):
    """(at_us, [(key, counts)]) in the given order, a new frame at each change of second."""
    current, second = [], None
    for at, key, counts in sets:
        if second is not None and at != second:
            yield (second + 1) * S, current
            current = []
        second = at
        current.append((key, counts))
    if current:
        yield (second + 1) * S, current


def down(start_s, end_s, outcome=Outcome.FAILED, kinds=("chat", "search"), **fate):
    """A fate function: requests begun in a span of time go bad."""

    def decide(t_us, kind):
        if start_s * S <= t_us < end_s * S and kind in kinds:
            return Fate(outcome, **{"after": 30 * MS, "why": "reset", **fate})
        return Fate()

    return decide


def without(base: Scenario, name: str) -> Scenario:
    return replace(base, objectives={k: v for k, v in base.objectives.items() if k != name})
