"""What a run would do, and what each objective could tell, before anything runs. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from survive.contracts import Fault
from survive.judge.cells import unit_of
from survive.judge.metrics import allowed_share
from survive.judge.probed import SCRAPE_US
from survive.judge.statistics import NONE_LEAST, tolerates
from survive.judge.windows import Windows, windows_of
from survive.plan.arrivals import expected
from survive.plan.model import Plan
from survive.plan.plan import make_plan, planned_per_slice
from survive.plan.probing import SCRAPE_EVERY_US, probe_slots, scraped_services
from survive.scenario.model import (
    GAUGES,
    PROBED,
    TALLIED,
    FaultPlan,
    Metric,
    Objective,
    Phase,
    Probe,
    Scenario,
    Service,
    Users,
)
from survive.units import SECOND, show_rps, show_us

FaultOf = Callable[[str], Fault]


@dataclass(frozen=True, slots=True)
class _Moment:
    at_us: int
    text: str


def explain(scenario: Scenario, plan: Plan, fault_of: FaultOf) -> str:
    """The resolved timeline, the faults, and "tolerates k bad of n" for each cell, as text."""
    sections = [
        _header(scenario, plan),
        _timeline(scenario, plan, fault_of),
        _faults(scenario, fault_of),
        _probes(scenario),
        _cells(scenario, plan),
        [f"warning: {warning}" for warning in scenario.warnings],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


def _header(scenario: Scenario, plan: Plan) -> list[str]:
    total = sum(map(sum, plan.planned))
    if plan.closed:
        how, sent = "users", f"up to {plan.most_users:,} users, who ask when they are ready"
    else:
        how, sent = f"{plan.arrivals} arrivals", f"{total:,} requests"
    shares = ", ".join(f"{kind.name} {kind.share:.0%}" for kind in scenario.requests.values())
    return [
        f"{scenario.name} on {scenario.target.name} (driver {scenario.target.driver})"
        f"  scale {plan.scale}  seed {plan.seed}  {how}",
        *([f"  {scenario.about}"] if scenario.about else []),
        f"  {sent} in {_at(plan.end_us)}: {shares or plan.locustfile}",
        f"  {plan.lanes} lanes ({scenario.load.lanes_needed} needed)",
    ]


def _timeline(scenario: Scenario, plan: Plan, fault_of: FaultOf) -> list[str]:
    moments = [_Moment(p.start_us, _phase(p, plan.locustfile)) for p in plan.phases]
    for window in plan.faults:
        fault = scenario.faults[window.fault]
        watched = f"recovery watched until {_at(window.recovery_end_us)}"
        kind = fault_of(fault.kind)
        done = f"  inject {fault.name}: {fault.kind} ({kind.grade}) on {_on(fault, kind)}"
        moments.append(_Moment(window.inject_us, done))
        if window.held:
            moments.append(_Moment(window.heal_us, f"  heal {fault.name}; {watched}"))
        else:
            moments[-1] = _Moment(window.inject_us, f"{moments[-1].text}; {watched}")
    moments.append(_Moment(plan.end_us, "end of load; waiting requests drain"))
    ordered = sorted(moments, key=lambda m: m.at_us)
    return ["timeline", *(f"  {_at(m.at_us):>8}  {m.text}" for m in ordered)]


def _at(us: int) -> str:
    """Seconds throughout: moments of one timeline compare at a glance."""
    return f"{us / SECOND:,g}s"


def _phase(phase: Phase, locustfile: str) -> str:
    label = ", warm-up, not judged" if phase.warm_up else ""
    span = _at(phase.end_us - phase.start_us)
    if phase.users is not None:
        return f"phase {phase.name}: {_users(phase.users, locustfile)} for {span}{label}"
    rate = show_rps(float(phase.start_rps))
    if phase.curve == "sine":
        rate += f" ± {phase.swing:.0%} in a sine of {_at(phase.period_us)}"
    elif phase.spike:
        rate = f"a spike of {rate}"
    elif phase.curve == "steps":
        rate += f" to {show_rps(float(phase.end_rps))} in {phase.steps} steps"
    elif not phase.constant:
        rate += f" to {show_rps(float(phase.end_rps))}, {phase.curve}"
    return f"phase {phase.name}: {rate} for {span}, {expected(phase):,.0f} expected{label}"


def _users(users: Users, locustfile: str) -> str:
    many = f"{users.start} users" if users.start == users.end else f"{users.start} to {users.end}"
    many = many if many.endswith("users") else f"{many} users"
    if locustfile:
        return f"{many} of {locustfile}"
    if not users.think_us:
        return f"{many} who do not think"
    mean = " on average" if users.exponential else ""
    return f"{many} who think {show_us(users.think_us)}{mean}"


def _on(fault: FaultPlan, kind: Fault) -> str:
    if not fault.service:
        return fault.link or "the target"
    return f"{'all' if getattr(kind, 'rolling', False) else fault.count} of {fault.service}"


def _faults(scenario: Scenario, fault_of: FaultOf) -> list[str]:
    """Blast radius and privileges: what may be touched, and by what right."""
    if not scenario.faults:
        return ["faults", "  none: this run breaks nothing"]
    lines = ["faults"]
    for fault in scenario.faults.values():
        kind = fault_of(fault.kind)
        lines += [
            f"  {fault.name}: hits {_on(fault, kind)}; privileges: {kind.privileges or 'none'}",
            f"    certifies: {kind.certifies}",
            f"    does not certify: {kind.does_not_certify}",
        ]
    return [*lines, f"  blast radius: {_radius(scenario)}"]


def _probes(scenario: Scenario) -> list[str]:
    """What is checked beside the load, how often, and whose metrics are read."""
    slots = probe_slots(scenario)
    lines = [
        f"  {probe.name}: {probe.metric}, every {show_us(probe.every_us)}, "
        f"{len(slots[probe.name])} probings{_probed(probe)}"
        for probe in scenario.probes.values()
    ]
    if services := scraped_services(scenario):
        names = ", ".join(service.name for service in services)
        lines.append(f"  metrics of {names}: every {show_us(SCRAPE_EVERY_US)}")
    return ["probes", *lines] if lines else []


def _probed(probe: Probe) -> str:
    if probe.metric is Metric.FRESHNESS:
        return f", never within {show_us(probe.within_us)} counts"
    if probe.metric is Metric.ISOLATED and probe.write is not None and probe.read is not None:
        return f", {probe.read.auth} must not read what {probe.write.auth} wrote"
    where = probe.link or probe.service
    return f", {'on' if probe.link else 'in the audit log of'} {where}" if where else ""


def _radius(scenario: Scenario) -> str:
    target = scenario.target
    if target.driver == "external":
        return f"hosts {', '.join(target.allow_hosts)}, through our own proxy only"
    started = [_replicas(service) for service in target.services.values()]
    return f"only what the run starts itself: {', '.join(started)}"


def _replicas(service: Service) -> str:
    return service.name if service.replicas == 1 else f"{service.replicas} × {service.name}"


def too_few(scenario: Scenario, plan: Plan | None = None) -> list[str]:
    """Warnings: cells that not even a perfect run could decide, by the samples planned.

    Counting takes 0.2 µs a request; loads with over 2 million have samples enough. How often users
    ask is known afterwards.
    """
    if scenario.load.closed or sum(expected(phase) for phase in scenario.load.phases) > 2e6:
        return []
    plan = plan or make_plan(scenario)
    return [
        f"{cell.objective.name} for {cell.request} during {cell.window} {_power(cell)}"
        for cell in _planned_cells(scenario, plan)
        if _tolerated(cell) is None
    ]


@dataclass(frozen=True, slots=True)
class _PlannedCell:
    """One cell of shares, and how many requests it will be judged on."""

    objective: Objective
    request: str
    window: str
    n: int | None  # None = nobody knows before


def _planned_cells(scenario: Scenario, plan: Plan) -> Iterator[_PlannedCell]:
    windows = Windows(plan)
    planned = planned_per_slice(plan)
    for objective in scenario.objectives.values():
        if objective.metric not in TALLIED | PROBED | GAUGES:
            continue
        for window in windows_of(objective, plan):
            inside = windows.slices_of(window)
            for name in objective.of:
                n: int | None = None
                if objective.metric in TALLIED and plan.closed:
                    pass
                elif objective.metric in TALLIED:
                    n = int(planned[inside, plan.kinds.index(name)].sum())
                else:
                    n = windows.span_us(window) // _every_us(scenario, objective, name)
                yield _PlannedCell(objective, name, window, n)


def _every_us(scenario: Scenario, objective: Objective, name: str) -> int:
    """How often is looked, by a probe or at a service's own metrics."""
    return SCRAPE_US if objective.metric in GAUGES else scenario.probes[name].every_us


def _cells(scenario: Scenario, plan: Plan) -> list[str]:
    rows = [
        (cell.objective.name, cell.request, cell.window, _power(cell))
        for cell in _planned_cells(scenario, plan)
    ]
    rows += [
        (objective.name, "", window, _exact(objective, plan, window))
        for objective in scenario.objectives.values()
        if objective.metric not in TALLIED | PROBED | GAUGES
        for window in windows_of(objective, plan)
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        "objectives",
        *("  " + "  ".join(map(str.ljust, row[:3], widths)) + f"  {row[3]}" for row in rows),
    ]


def _exact(objective: Objective, plan: Plan, window: str) -> str:
    """What is no share: one number of this episode."""
    stable = f", stable for {show_us(objective.stable_for_us)}"
    if objective.metric is Metric.RECOVERY:
        name = window.partition(":")[2].partition("#")[0]
        held = any(f.held for f in plan.faults if f.fault.partition("#")[0] == name)
        since = "heal" if held else "inject"
        return f"within {show_us(objective.limit)} of the {since}{stable}"
    if objective.metric is Metric.SCALE_UP:
        return f"within {show_us(objective.limit)} of the phase's start{stable}"
    side = "at least" if objective.at_least else "at most"
    return f"{objective.metric} {side} {objective.limit:g} {unit_of(objective)}"


def _tolerated(cell: _PlannedCell) -> int | None:
    """How many bad ones still survive; None if not even none is enough."""
    allowed = allowed_share(cell.objective)
    if cell.n is None:
        return None
    if allowed <= 0 and cell.objective.metric not in TALLIED:
        return 0 if cell.n >= NONE_LEAST else None
    return tolerates(cell.n, allowed)


def _power(cell: _PlannedCell) -> str:
    allowed = allowed_share(cell.objective)
    if cell.n is None:
        return "on as many requests as the users make"
    bad = _tolerated(cell)
    if bad is not None:
        return f"tolerates {bad:,} bad of {cell.n:,}"
    if allowed <= 0 and cell.objective.metric in TALLIED:
        return "cannot be decided: no number of requests can show 100 %"
    # Zero bad of n convinces when (1 - allowed)^n <= 5 %.
    least = math.ceil(math.log(0.05) / math.log1p(-allowed)) if allowed > 0 else NONE_LEAST
    return f"cannot be decided: {cell.n:,} planned, {least:,} needed with none bad"
