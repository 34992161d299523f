"""What ties the keys of a scenario together, and the parts of a Scenario made of it.

Each function notes what is wrong and goes on with what is left, so that all problems appear at
once. The parts it returns are only used when nothing was noted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from fractions import Fraction
from pathlib import Path

from survive.catalog import Catalog, nearest
from survive.contracts import Fault, Json, Needs
from survive.errors import SurviveError
from survive.scenario.data import Variable, data_problem, variables
from survive.scenario.grammar import Draft
from survive.scenario.model import (
    Expect,
    FaultPlan,
    LoadSpec,
    Metric,
    Objective,
    Phase,
    RequestKind,
    Service,
    StopIf,
    TargetSpec,
)
from survive.scenario.models import (
    FaultModel,
    ObjectiveModel,
    PhaseModel,
    RequestModel,
    ScenarioModel,
)
from survive.scenario.settings import check_bare, parse_settings, setting_problems
from survive.scenario.target import PLUGINS_HINT, TargetSource
from survive.scenario.tree import Path as Loc
from survive.scenario.tree import strings
from survive.units import SECOND, UnitError, duration_us, share, show_rps, show_us

METHODS = ("get", "post", "put", "patch", "delete")
MAX_RPS = 10_000_000
MAX_LOAD_US = 24 * 3600 * SECOND
MAX_LANES = 10_000
LANE_MARGIN = Fraction(6, 5)  # DESIGN law 2: peak rate × timeout × 1.2
STREAM_METRICS = frozenset({Metric.TTFT, Metric.ITL, Metric.TPOT, Metric.COMPLETE})
SHARE_METRICS = frozenset({Metric.SUCCESS, Metric.COMPLETE})

_AT = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)\s*\+\s*(\S+)")
_PERCENTILE = re.compile(r"p([0-9]{2}(?:\.[0-9]{1,2})?)")
_EPSILON = 1e-9


@dataclass(slots=True)
class Check:
    """A scenario under check, with the target it runs on (None if that could not be read)."""

    model: ScenarioModel
    draft: Draft
    target: TargetSpec | None
    source: TargetSource | None
    catalog: Catalog
    folder: Path
    stored: bool = False
    warnings: list[str] = field(default_factory=list)
    known_kinds: dict[str, Path] = field(default_factory=dict)  # looked up once
    loaded: dict[str, Fault] = field(default_factory=dict)

    def wrong(self, path: Loc, message: str, hint: str = "", *, key: bool = False) -> None:
        """See Draft.wrong."""
        self.draft.wrong(path, message, hint, key=key)

    @property
    def spec(self) -> TargetSpec:
        """The target; ask only for the parts that it ``knows``."""
        assert self.target is not None
        return self.target

    def knows(self, *part: str) -> bool:
        """The target could be read, and this part of it as it stands."""
        return self.target is not None and self.source is not None and self.source.sound(*part)

    @property
    def services(self) -> list[str]:
        """Names of services, broken ones included."""
        return self.source.names("services") if self.source is not None else []

    @property
    def links(self) -> list[str]:
        """Links that a fault can act on. An external target offers only the way in."""
        if self.target is None or self.source is None:
            return []
        inner = [] if self.target.driver == "external" else self.source.names("links")
        return [*inner, self.target.entry_link]

    @property
    def kinds(self) -> list[str]:
        """Names of request kinds, broken ones included."""
        return self.draft.names("requests")

    @property
    def phases(self) -> list[str]:
        """Names of phases, as written: broken ones are no less known."""
        items = self.draft.node("load", "phases")
        nodes = items.value if items is not None and isinstance(items.value, list) else []
        named = (node.get("name") for node in nodes)
        return [*dict.fromkeys(str(name.value) for name in named if name is not None)]

    @property
    def streamed(self) -> list[str]:
        """Names of the kinds that ask for a stream."""
        return [name for name, model in self.model.requests.items() if _streams(model)]


def _streams(model: RequestModel) -> bool:
    return isinstance(model.body, dict) and model.body.get("stream") is True


# -------------------------------------------------------------------------------- requests


def make_requests(check: Check) -> dict[str, RequestKind]:
    """Every request kind, with the shares that were left open."""
    shares = _shares(check)
    return {
        name: _request(check, name, model, shares.get(name, 0.0))
        for name, model in check.model.requests.items()
    }


def _shares(check: Check) -> dict[str, float]:
    requests = check.model.requests
    given = {name: model.share for name, model in requests.items() if model.share is not None}
    total = math.fsum(given.values())
    open_kinds = [name for name in requests if name not in given]
    sound = check.draft.sound("requests")
    if total > 1 + _EPSILON:
        check.wrong(
            ("requests",), f"shares sum to {total * 100:.6g}%, which is over 100%", key=True
        )
    elif not open_kinds and sound and total < 1 - _EPSILON:
        check.wrong(
            ("requests",),
            f"shares sum to {total * 100:.6g}%, not 100%",
            "a kind without a share takes the rest",
            key=True,
        )
    elif open_kinds and sound and total > 1 - _EPSILON:
        check.wrong(
            ("requests", open_kinds[0]),
            "the other kinds leave no share for it",
            "lower them, or give it a share",
            key=True,
        )
    rest = max(0.0, 1 - total) / len(open_kinds) if open_kinds else 0.0
    return {name: given.get(name, rest) for name in requests}


def _request(check: Check, name: str, model: RequestModel, part: float) -> RequestKind:
    path = ("requests", name)
    used = [method for method in METHODS if getattr(model, method) is not None]
    if len(used) != 1 and all(check.draft.sound(*path, method) for method in METHODS):
        given = " and ".join(used) if used else "no method"
        check.wrong(
            path, f"request {name!r} has {given}", f"exactly one of {', '.join(METHODS)}", key=True
        )
    method = used[0] if used else "get"
    if method == "get" and used and model.body is not None:
        check.wrong((*path, "json"), "a get has no body", "use post, or remove json", key=True)
    if model.expect.stream is not None and not _streams(model):
        check.wrong(
            (*path, "expect", "stream"),
            "this request does not ask for a stream",
            "set `stream: true` in its json",
            key=True,
        )
    if model.expect.status is not None and not model.expect.status:
        check.wrong((*path, "expect", "status"), "is empty; at least one is needed")
    _check_templates(check, name, model)
    return RequestKind(
        name=name,
        share=part,
        method=method.upper(),
        path=getattr(model, method) or "/",
        headers=tuple((key.lower(), value) for key, value in model.headers.items()),
        json=model.body,
        auth=model.auth == "bearer",
        data=Path(model.data) if model.data is not None else None,
        expect=Expect(frozenset(model.expect.status or [200]), model.expect.stream == "complete"),
        timeout_us=model.timeout,
    )


def _check_templates(check: Check, name: str, model: RequestModel) -> None:
    path: Loc = ("requests", name)
    rows: set[str] = set()
    for key in (*METHODS, "json", "headers"):
        node = check.draft.node(*path, key)
        for below, text in strings(node) if node is not None else ():
            for variable in variables(text):
                _check_variable(check, (*path, key, *below), variable)
                if variable.source == "row":
                    rows.add(variable.name)
    if model.data is None:
        if rows and check.draft.sound(*path, "data"):
            check.wrong(
                path,
                f"{{{{ row.{min(rows)} }}}} needs rows",
                "name a file: `data: rows.jsonl`",
                key=True,
            )
    elif not check.stored:
        problem = data_problem(check.folder / model.data, rows)
        if problem is not None and problem.where.line:
            check.draft.problems.append(problem)
        elif problem is not None:
            check.wrong((*path, "data"), f"{model.data}: {problem.message}", problem.hint)


def _check_variable(check: Check, path: Loc, variable: Variable) -> None:
    if not variable.source:
        check.wrong(
            path,
            f"{variable.text} is not a template",
            "write {{ row.name }} or {{ target.name }}",
        )
    elif variable.source == "target" and check.knows("vars"):
        known = [*check.spec.vars]
        if variable.name not in known:
            hint = nearest(variable.name, known) or "the target file has no vars"
            check.wrong(path, f"the target has no var {variable.name!r}", hint)


# ------------------------------------------------------------------------------------ load


def make_load(check: Check, requests: Mapping[str, RequestKind]) -> LoadSpec:
    """The schedule, in requests per second after scale."""
    model = check.model.load
    phases: list[Phase] = []
    for index, phase in enumerate(model.phases):
        phases.append(_phase(check, index, phase, phases, requests))
    end = phases[-1].end_us
    if end > MAX_LOAD_US:
        check.wrong(("load", "phases"), f"the load lasts {show_us(end)}, over 24h", key=True)
    peak = max(max(p.start_rps, p.end_rps) for p in phases)
    timeout = max((r.timeout_us for r in requests.values()), default=SECOND)
    needed = max(1, math.ceil(peak * Fraction(timeout, SECOND) * LANE_MARGIN))
    lanes = model.lanes if model.lanes is not None else min(needed, MAX_LANES)
    if lanes < needed:
        check.warnings.append(
            f"{lanes} lanes are fewer than the {needed} that {show_rps(float(peak))} with "
            f"timeouts of {show_us(timeout)} can need; waiting for a lane counts as latency"
        )
    return LoadSpec(model.arrivals, model.scale, lanes, needed, tuple(phases))


def _phase(
    check: Check,
    index: int,
    model: PhaseModel,
    before: Sequence[Phase],
    requests: Mapping[str, RequestKind],
) -> Phase:
    path: Loc = ("load", "phases", index)
    if model.name in {p.name for p in before}:
        check.wrong((*path, "name"), f"a second phase is called {model.name!r}")
    _check_rates(check, path, model, first=not before)
    start_us = before[-1].end_us if before else 0
    factor: Fraction = check.model.load.scale
    asked = model.rate if model.rate is not None else model.ramp_to
    end_rps = (asked if asked is not None else Fraction(1)) * factor
    if end_rps > MAX_RPS:
        key = "rate" if model.rate is not None else "ramp_to"
        check.wrong((*path, key), f"{float(end_rps):,.0f}/s after scale is over 10M/s")
    ramp = model.rate is None and model.ramp_to is not None and bool(before)
    return Phase(
        name=model.name,
        start_us=start_us,
        end_us=start_us + model.for_,
        start_rps=before[-1].end_rps if ramp else end_rps,
        end_rps=end_rps,
        curve=model.curve or "linear",
        warm_up=model.warm_up,
        shares=_phase_shares(check, (*path, "share"), model.share, requests),
    )


def _check_rates(check: Check, path: Loc, model: PhaseModel, *, first: bool) -> None:
    both = all(check.draft.sound(*path, key) for key in ("rate", "ramp_to"))
    if both and (model.rate is None) == (model.ramp_to is None):
        given = "both rate and ramp_to" if model.rate is not None else "neither rate nor ramp_to"
        check.wrong(path, f"phase {model.name!r} has {given}", "it needs exactly one")
    if model.ramp_to is not None and first:
        check.wrong(
            (*path, "ramp_to"),
            "the first phase has no rate to ramp from",
            "begin with a phase that has a rate",
            key=True,
        )
    if model.curve is not None and model.ramp_to is None and check.draft.sound(*path, "ramp_to"):
        check.wrong(
            (*path, "curve"), "only a ramp has a curve", "use ramp_to, or remove it", key=True
        )


def _phase_shares(
    check: Check, path: Loc, given: Mapping[str, float], requests: Mapping[str, RequestKind]
) -> dict[str, float]:
    """The mix of one phase: kinds that it names, the others rescaled to fill the rest."""
    for name in given:
        if name not in check.kinds:
            check.wrong(
                (*path, name), f"unknown request {name!r}", nearest(name, check.kinds), key=True
            )
    named = math.fsum(given.values())
    others = math.fsum(r.share for name, r in requests.items() if name not in given)
    if named > 1 + _EPSILON:
        check.wrong(path, f"shares sum to {named * 100:.6g}%, which is over 100%", key=True)
    elif given and named < 1 - _EPSILON and others <= 0 and check.draft.sound("requests"):
        check.wrong(
            path, f"shares sum to {named * 100:.6g}%, and no other kind takes the rest", key=True
        )
    factor = max(0.0, 1 - named) / others if others > 0 else 0.0
    if not given:
        factor = 1.0
    return {
        name: given[name] if name in given else request.share * factor
        for name, request in requests.items()
    }


# ---------------------------------------------------------------------------------- faults


def make_faults(check: Check, load: LoadSpec) -> dict[str, FaultPlan]:
    """Every fault with its time resolved."""
    return {name: _fault(check, name, model, load) for name, model in check.model.faults.items()}


def _fault(check: Check, name: str, model: FaultModel, load: LoadSpec) -> FaultPlan:
    path: Loc = ("faults", name)
    fault = _kind(check, path, model)
    at_us = _moment(check, (*path, "at"), model.at, load)
    if fault is not None:
        _check_hold(check, path, model, fault)
        _check_needs(check, path, model, fault)
        _check_settings(check, path, model, fault)
    _check_victims(check, path, model, fault)
    for_us = model.for_
    if at_us is not None and _times_sound(check):
        if at_us >= load.end_us:
            check.wrong(
                (*path, "at"),
                f"begins at {show_us(at_us)}, after the load has ended ({show_us(load.end_us)})",
            )
        elif for_us is not None and at_us + for_us > load.end_us:
            check.wrong(
                (*path, "for"),
                f"ends at {show_us(at_us + for_us)}, after the load ({show_us(load.end_us)})",
                "shorten it, or lengthen a phase",
            )
    return FaultPlan(
        name=name,
        kind=model.kind,
        at_us=at_us or 0,
        for_us=for_us,
        service=model.service or "",
        link=model.link or "",
        count=model.count or 1,
        settings=dict(model.with_),
    )


def _times_sound(check: Check) -> bool:
    return check.draft.sound("load")


def _kind(check: Check, path: Loc, model: FaultModel) -> Fault | None:
    """The fault's class; None (and noted) if the kind is unknown or not allowed."""
    kind = model.kind
    if not check.draft.sound(*path, "kind"):
        return None
    if check.stored:
        return None
    try:
        known = check.known_kinds
        if not known:
            known.update(check.catalog.fault_kinds())
        if kind not in known:
            check.wrong((*path, "kind"), f"unknown fault kind {kind!r}", _kind_hint(check, kind))
            return None
        _check_allowed(check, (*path, "kind"), kind)
        if kind not in check.loaded:
            check.loaded[kind] = check.catalog.fault(kind)
        fault = check.loaded[kind]
    except SurviveError as error:
        check.wrong((*path, "kind"), error.message, error.hint)
    except Exception as error:  # a plug-in's own code, executed on import
        check.wrong((*path, "kind"), f"{known[kind]} cannot be loaded: {error}"[:200])
    else:
        return _complete(check, (*path, "kind"), fault)
    return None


def _complete(check: Check, path: Loc, fault: Fault) -> Fault | None:
    """The fault if its class declares what the checks ask of it."""
    missing = [name for name in ("held", "needs", "settings") if not hasattr(fault, name)]
    if missing:
        check.wrong(path, f"the class of {fault.kind} does not declare {', '.join(missing)}")
        return None
    if not is_dataclass(fault.settings):
        check.wrong(path, f"the settings of {fault.kind} are no dataclass")
        return None
    return fault


def _kind_hint(check: Check, kind: str) -> str:
    if not check.catalog.plugins and kind in Catalog(check.catalog.start).fault_kinds():
        return PLUGINS_HINT
    return nearest(kind, check.known_kinds)


def _check_allowed(check: Check, path: Loc, kind: str) -> None:
    family = kind.partition(".")[0]
    if check.knows("allow") and family not in check.spec.allow_faults:
        check.wrong(
            path,
            f"target {check.spec.name!r} does not allow {family!r} faults",
            f"add {family} to its allow.faults",
        )


def _check_hold(check: Check, path: Loc, model: FaultModel, fault: Fault) -> None:
    if fault.held and model.for_ is None and check.draft.sound(*path, "for"):
        check.wrong(path, f"{model.kind} is held, so it needs a time", "add `for: 8s`", key=True)
    if not fault.held and model.for_ is not None:
        check.wrong(
            (*path, "for"),
            f"{model.kind} happens at once and has no time",
            "remove `for:`",
            key=True,
        )


def _check_needs(check: Check, path: Loc, model: FaultModel, fault: Fault) -> None:
    needed, other = ("link", "service") if fault.needs is Needs.LINK else ("service", "link")
    if getattr(model, needed) is None and check.draft.sound(*path, needed):
        check.wrong(path, f"{model.kind} needs `{needed}:`", _choices(check, needed), key=True)
    if getattr(model, other) is not None:
        check.wrong(
            (*path, other),
            f"{model.kind} acts on a {needed}, not on a {other}",
            f"use `{needed}:`",
            key=True,
        )
    if needed == "link" and model.count is not None:
        check.wrong((*path, "count"), "a link is hit as a whole", "remove the key", key=True)


def _choices(check: Check, needed: str) -> str:
    known = check.links if needed == "link" else check.services
    return f"one of: {', '.join(known)}" if known else ""


def _check_settings(check: Check, path: Loc, model: FaultModel, fault: Fault) -> None:
    if not check.draft.sound(*path, "with"):
        return
    known = {setting.name for setting in fields(fault.settings)}
    problems = setting_problems(fault.settings, model.with_)
    for problem in problems:
        name = problem.setting
        if name not in model.with_:
            where = (*path, "with") if check.draft.node(*path, "with") is not None else path
            check.wrong(where, f"{model.kind}: {name!r} {problem.message}", key=True)
        elif name not in known:
            said = f"{model.kind} has no setting {name!r}"
            check.wrong((*path, "with", name), said, problem.hint, key=True)
        else:
            check.wrong((*path, "with", name), problem.message, problem.hint)
    if not problems:
        try:
            parse_settings(fault.settings, model.with_)
        except ValueError as error:
            check.wrong((*path, "with"), str(error).removeprefix("with: "), key=True)


def _check_victims(check: Check, path: Loc, model: FaultModel, fault: Fault | None) -> None:
    if check.target is None:
        return
    if model.service is not None and model.service not in check.services:
        hint = nearest(model.service, check.services)
        check.wrong((*path, "service"), f"unknown service {model.service!r}", hint)
    elif model.service is not None and check.knows("services", model.service):
        _check_service(check, path, model, fault, check.spec.services[model.service])
    if model.link is not None and model.link not in check.links and check.knows("entry"):
        hint = nearest(model.link, check.links)
        if check.spec.driver == "external":
            hint = f"of an external target only {check.spec.entry_link} can be hit"
        check.wrong((*path, "link"), f"unknown link {model.link!r}", hint)


def _check_service(
    check: Check, path: Loc, model: FaultModel, fault: Fault | None, service: Service
) -> None:
    if model.count is not None and model.count > service.replicas:
        plural = "s" if service.replicas != 1 else ""
        check.wrong(
            (*path, "count"),
            f"{model.count} is more than the {service.replicas} replica{plural} of {service.name}",
        )
    if fault is None:
        return
    if check.spec.driver == "external":
        check.wrong(
            (*path, "service"),
            "an external target's replicas are not ours to break",
            f"use a fault on link: {check.spec.entry_link}",
        )
    elif fault.needs is Needs.GPU and not service.gpu:
        having = ", ".join(s.name for s in check.spec.services.values() if s.gpu)
        hint = f"with one: {having}" if having else "no service has `gpu:`"
        check.wrong((*path, "service"), f"{service.name!r} has no GPU", hint)


def _moment(check: Check, path: Loc, text: str, load: LoadSpec) -> int | None:
    """``30s`` from the start, or ``production + 8s`` from the start of a phase."""
    if not check.draft.sound(*path):
        return None
    after_phase = _AT.fullmatch(text.strip())
    try:
        if after_phase is None:
            return duration_us(text)
        offset = duration_us(after_phase[2])
    except UnitError:
        is_phase = text.strip() in check.phases
        wrong = "is a phase, not a moment" if is_phase else "is not a moment"
        hint = f"write {text} + 0s" if is_phase else "write it like 30s or production + 8s"
        check.wrong(path, f"{text!r} {wrong}", hint)
        return None
    for phase in load.phases:
        if phase.name == after_phase[1]:
            return phase.start_us + offset
    hint = nearest(after_phase[1], check.phases)
    check.wrong(path, f"unknown phase {after_phase[1]!r}", hint)
    return None


def check_recoveries(
    check: Check,
    faults: Mapping[str, FaultPlan],
    objectives: Mapping[str, Objective],
    load: LoadSpec,
) -> None:
    """DESIGN law 7: after the last heal of a group its recovery fits before what comes next."""
    from survive.plan.plan import groups, recovery_span_us  # numpy is slow to import

    sound = all(check.draft.sound(*part) for part in (("load",), ("faults",), ("objectives",)))
    span = recovery_span_us(objectives.values())
    if not sound or span is None or not faults:
        return
    ordered = groups(faults.values())
    for index, group in enumerate(ordered):
        last = max(group.faults, key=lambda f: f.at_us if f.until_us is None else f.until_us)
        watched = group.last_heal_us + span
        path = ("faults", last.name)
        told = f"the recovery of {last.name!r} is watched until {show_us(watched)}"
        following = ordered[index + 1].faults[0] if index + 1 < len(ordered) else None
        if following is not None and watched > following.at_us:
            check.wrong(
                path,
                f"{told}, past {following.name!r} at {show_us(following.at_us)}",
                f"leave {show_us(span)} after each heal, or let them overlap",
                key=True,
            )
        elif group.last_heal_us <= load.end_us < watched:
            check.wrong(
                path,
                f"{told}, past the end of the load at {show_us(load.end_us)}",
                f"leave {show_us(span)} after the last heal",
                key=True,
            )


# ------------------------------------------------------------------------------ objectives


def make_objectives(check: Check) -> dict[str, Objective]:
    """Every objective with its kinds and window resolved."""
    found = {name: _objective(check, name, model) for name, model in check.model.objectives.items()}
    steady = any(o.during == "steady" for o in found.values())
    for name, objective in found.items():
        if objective.metric is Metric.RECOVERY and not steady and check.draft.sound("objectives"):
            check.wrong(
                ("objectives", name),
                "there is no objective to come back to",
                "recovery means that objectives with `during: steady` hold again",
                key=True,
            )
        if objective.metric is Metric.RECOVERY and not check.draft.names("faults"):
            check.wrong(
                ("objectives", name),
                "no fault to recover from",
                "add faults, or remove it",
                key=True,
            )
    return found


def _objective(check: Check, name: str, model: ObjectiveModel) -> Objective:
    path: Loc = ("objectives", name)
    metric, percentile = _metric(check, (*path, "metric"), model.metric)
    limit = _limit(check, path, model, metric) if metric is not None else 0.0
    metric_ = metric or Metric.SUCCESS
    recovery = metric is Metric.RECOVERY
    if metric is not None and check.draft.sound(*path, "metric"):
        _check_recovery_keys(check, path, model, recovery=recovery)
    if model.during is not None:
        _check_window(check, (*path, "during"), model.during)
    return Objective(
        name=name,
        metric=metric_,
        limit=limit,
        percentile=percentile,
        of=_of(check, path, model.of, metric_),
        during="each fault" if recovery else (model.during or ""),
        stable_for_us=model.stable_for or 0,
    )


def _metric(check: Check, path: Loc, text: str) -> tuple[Metric | None, float | None]:
    word, dot, rank = text.partition(".")
    known = [str(m) for m in Metric]
    if word not in known:
        check.wrong(path, f"unknown metric {word!r}", nearest(word, known))
        return None, None
    metric = Metric(word)
    plain_metric = metric in SHARE_METRICS or metric is Metric.RECOVERY
    if plain_metric:
        if dot:
            check.wrong(path, f"{word} has no percentiles", f"write {word}")
        return metric, None
    found = _PERCENTILE.fullmatch(rank)
    value = float(Fraction(found[1]) / 100) if found else 0.0
    if not 0.5 <= value <= 0.9999:
        given = f"{rank!r} is not a percentile" if dot else f"{word} needs a percentile"
        check.wrong(path, given, f"p50 to p99.99, like {word}.p95")
        return metric, None
    return metric, value


def _limit(check: Check, path: Loc, model: ObjectiveModel, metric: Metric) -> float:
    wanted, other = ("min", "max") if metric in SHARE_METRICS else ("max", "min")
    raw: Json = getattr(model, wanted)
    wrong_one = getattr(model, other) is not None
    example = "min: 99%" if wanted == "min" else "max: 800ms"
    if wrong_one:
        both = raw is not None
        check.wrong(
            (*path, other),
            "both min and max" if both else f"{metric} is limited by {wanted}, not {other}",
            f"write {example}",
            key=True,
        )
    elif raw is None:
        check.wrong(path, "has no limit", f"write {example}", key=True)
    if raw is None:
        return 0.0
    try:
        check_bare(raw, "99%" if wanted == "min" else "800ms")
        value = share(raw) if wanted == "min" else float(duration_us(raw))
    except UnitError as error:
        check.wrong((*path, wanted), str(error))
        return 0.0
    if value <= 0:
        check.wrong((*path, wanted), f"{raw} is zero; it must be more")
    return value


def _check_recovery_keys(check: Check, path: Loc, model: ObjectiveModel, *, recovery: bool) -> None:
    name = path[-1]
    if recovery and model.during is not None:
        check.wrong((*path, "during"), "recovery means each fault", "remove `during:`", key=True)
    if not recovery and model.during is None and check.draft.sound(*path, "during"):
        check.wrong(
            path,
            f"objective {name!r} does not say when",
            "add `during: steady`, run, each fault, …",
            key=True,
        )
    if recovery and model.stable_for is None and check.draft.sound(*path, "stable_for"):
        check.wrong(
            path,
            "recovery needs `stable_for:`",
            "how long the steady objectives must hold again, like 4s",
            key=True,
        )
    if not recovery and model.stable_for is not None:
        check.wrong((*path, "stable_for"), "only recovery has stable_for", "remove it", key=True)
    if recovery and model.of is not None:
        check.wrong((*path, "of"), "recovery is of the steady objectives", "remove it", key=True)


def _check_window(check: Check, path: Loc, text: str) -> None:
    faults = check.draft.names("faults")
    words = {"steady", "run", "each fault"}
    if text in words:
        if text == "each fault" and not faults:
            check.wrong(path, "there are no faults", "add one, or choose steady or run")
        if (
            text == "steady"
            and check.draft.sound("load")
            and not any(p.rate is not None and not p.warm_up for p in check.model.load.phases)
        ):
            check.wrong(path, "no phase with a constant rate outside warm-up makes up `steady`")
        return
    kind, colon, name = text.partition(":")
    sets = {"phase": check.phases, "fault": faults, "recovery": faults}
    if not colon or kind not in sets:
        known = [*words, "phase:NAME", "fault:NAME", "recovery:NAME"]
        check.wrong(path, f"unknown window {text!r}", nearest(text, known))
    elif name not in sets[kind]:
        what = "phase" if kind == "phase" else "fault"
        check.wrong(
            path, f"unknown {what} {name!r}", nearest(name, sets[kind]) or "the scenario has none"
        )


def _of(check: Check, path: Loc, given: list[str] | None, metric: Metric) -> tuple[str, ...]:
    if metric is Metric.RECOVERY:
        return tuple(check.model.requests)
    streams = metric in STREAM_METRICS
    kinds = check.streamed if streams else [*check.model.requests]
    if given is None:
        if not kinds and check.draft.sound("requests"):
            check.wrong(
                (*path, "metric"),
                f"{metric} is of streams, and no request is streamed",
                "set `stream: true` in a request's json",
            )
        return tuple(kinds)
    _check_of(check, (*path, "of"), given, metric if streams else None)
    return tuple(given)


def _check_of(check: Check, path: Loc, given: list[str], metric: Metric | None) -> None:
    if not given:
        check.wrong(path, "is empty; at least one is needed")
    for index, name in enumerate(given):
        where = (*path, index) if len(given) > 1 else path
        if name not in check.kinds:
            check.wrong(where, f"unknown request {name!r}", nearest(name, check.kinds))
        elif name in given[:index]:
            check.wrong(where, f"{name!r} is there twice")
        elif (
            metric is not None
            and name not in check.streamed
            and check.draft.sound("requests", name)
        ):
            check.wrong(where, f"{metric} is of streams, and {name!r} is not streamed")


def make_stop_if(check: Check) -> dict[str, StopIf]:
    """Every rule that stops the run."""
    rules = {}
    for name, model in check.model.stop_if.items():
        path: Loc = ("stop_if", name)
        if model.of is not None:
            _check_of(check, (*path, "of"), model.of, None)
        if model.below <= 0:
            check.wrong((*path, "below"), "0% is never undercut", "like 20%")
        rules[name] = StopIf(name, model.below, model.over, tuple(model.of or check.model.requests))
    return rules
