"""What is probed: the metric of each probe follows from its keys, and a wrong mix is refused."""

from __future__ import annotations

import re
from fractions import Fraction

from survive.catalog import nearest
from survive.scenario.check import Check
from survive.scenario.data import variables
from survive.scenario.model import LoadSpec, Metric, Probe, ProbeCall
from survive.scenario.models import CallModel, ProbeModel
from survive.scenario.traffic import METHODS, check_auth, check_variable
from survive.scenario.tree import Path as Loc
from survive.scenario.tree import strings
from survive.units import SECOND

CANARY = re.compile(r"\{\{\s*canary\s*\}\}")
REFUSED = (401, 403)
MOST_OF_LOAD = 0.02  # probes are to look at the target, not to load it
SHORTEST_US = 50_000

# Calls of one probing on a healthy target; see survive.probe.findings.
CALLS = {
    Metric.DENIED: 1,
    Metric.LEAKED: 1,
    Metric.AUDITED: 1,
    Metric.ISOLATED: 4,
    Metric.FRESHNESS: 3,
    Metric.ENCRYPTED: 0,
}
_KEYS = ("forbid", "audit", "write", "read", "link")
_MAY_HOLD = {
    Metric.DENIED: {"expect"},
    Metric.LEAKED: {"forbid"},
    Metric.AUDITED: {"audit"},
    Metric.ISOLATED: {"write", "read"},
    Metric.FRESHNESS: {"write", "read"},
    Metric.ENCRYPTED: {"link"},
}


def make_probes(check: Check, load: LoadSpec) -> dict[str, Probe]:
    """Every probe of the scenario."""
    probes = {name: _probe(check, name, model) for name, model in check.model.probes.items()}
    _warn_of_many(check, probes, load)
    return probes


def metric_of(model: ProbeModel) -> Metric:
    """What the keys of a probe say that it finds."""
    if model.link is not None:
        return Metric.ENCRYPTED
    if model.write is not None or model.read is not None:
        same = model.write is None or model.read is None or model.write.auth == model.read.auth
        return Metric.FRESHNESS if same else Metric.ISOLATED
    if model.forbid is not None:
        return Metric.LEAKED
    return Metric.AUDITED if model.audit is not None else Metric.DENIED


def _probe(check: Check, name: str, model: ProbeModel) -> Probe:
    path: Loc = ("probes", name)
    metric = metric_of(model)
    asks = metric in {Metric.DENIED, Metric.LEAKED, Metric.AUDITED}
    _check_mix(check, path, model, metric)
    if model.every < SHORTEST_US:
        check.wrong((*path, "every"), "is shorter than 50ms", "probes are slow; load is fast")
    statuses = _refusals(check, path, model)
    return Probe(
        name=name,
        metric=metric,
        every_us=model.every,
        ask=_call(check, path, model, statuses) if asks else None,
        write=_call(check, (*path, "write"), model.write) if model.write is not None else None,
        read=_call(check, (*path, "read"), model.read) if model.read is not None else None,
        within_us=model.within or 5 * SECOND,
        forbid=_forbid(check, path, model),
        service=_audited(check, path, model),
        link=_link(check, path, model),
    )


def _check_mix(check: Check, path: Loc, model: ProbeModel, metric: Metric) -> None:
    """Keys that belong to another metric, and those that are missing."""
    if not check.draft.sound(*path):
        return
    calls = [method for method in METHODS if getattr(model, method) is not None]
    given = [key for key in (*_KEYS, "expect") if getattr(model, key) is not None]
    of_call = [*calls, *(key for key in ("json", "headers", "auth") if _has(check, path, key))]
    asks = not _MAY_HOLD[metric] & {"write", "read", "link"}
    odd = [key for key in given if key not in _MAY_HOLD[metric]]
    for key in [*odd, *([] if asks else of_call)]:
        said = ", ".join(sorted(_MAY_HOLD[metric] & {*given}))
        check.wrong(
            (*path, key),
            f"{key!r} does not go with {said}: that is a probe of {metric}"
            if said
            else f"{key!r} is not a key of a probe of {metric}",
            "remove it, or make two probes",
            key=True,
        )
    for key in ("write", "read"):
        if metric is Metric.FRESHNESS and getattr(model, key) is None:
            hint = f"add `{key}:`; who reads must be told what was written"
            check.wrong(path, f"a probe of {metric} has no {key!r}", hint, key=True)


def _has(check: Check, path: Loc, key: str) -> bool:
    return check.draft.node(*path, key) is not None


def _call(
    check: Check, path: Loc, model: CallModel, statuses: frozenset[int] = frozenset({200})
) -> ProbeCall:
    used = [method for method in METHODS if getattr(model, method) is not None]
    if len(used) != 1 and all(check.draft.sound(*path, method) for method in METHODS):
        given = " and ".join(used) if used else "no method"
        hint = f"exactly one of {', '.join(METHODS)}"
        check.wrong(path, f"{str(path[-1])!r} has {given}", hint, key=True)
    method = used[0] if used else "get"
    if method == "get" and used and model.body is not None:
        check.wrong((*path, "json"), "a get has no body", "use post, or remove json", key=True)
    check_auth(check, (*path, "auth"), model.auth)
    held = _check_templates(check, path)
    if path[-1] == "write" and not held and check.draft.sound(*path):
        hint = 'like json: {id: "c-{{ canary }}", text: "{{ canary }}"}'
        check.wrong(path, "writes no {{ canary }}", hint, key=True)
    return ProbeCall(
        method=method.upper(),
        path=getattr(model, method) or "/",
        headers=tuple((key.lower(), value) for key, value in model.headers.items()),
        json=model.body,
        auth=model.auth,
        status=statuses,
    )


def _check_templates(check: Check, path: Loc) -> bool:
    """Whether a call holds ``{{ canary }}``."""
    held = False
    for key in (*METHODS, "json", "headers"):
        node = check.draft.node(*path, key)
        for below, text in strings(node) if node is not None else ():
            held = held or CANARY.search(text) is not None
            _check_text(check, (*path, key, *below), text)
    return held


def _check_text(check: Check, path: Loc, text: str) -> None:
    for variable in variables(CANARY.sub("", text)):
        if variable.source == "row":
            check.wrong(path, f"{variable.text}: a probe has no rows", "use {{ canary }}")
        elif not variable.source:
            hint = "write {{ canary }} or {{ target.name }}"
            check.wrong(path, f"{variable.text} is not a template of a probe", hint)
        else:
            check_variable(check, path, variable)


def _refusals(check: Check, path: Loc, model: ProbeModel) -> frozenset[int]:
    given = model.expect.status if model.expect is not None else None
    if given is None:
        return frozenset(REFUSED)
    where = (*path, "expect", "status")
    if not given:
        check.wrong(where, "is empty; at least one is needed")
    for status in given:
        if status < 400:
            check.wrong(where, f"{status} is no refusal", "like [401, 403]")
    return frozenset(given)


def _forbid(check: Check, path: Loc, model: ProbeModel) -> str:
    if model.forbid is None:
        return ""
    if not model.forbid.strip():
        check.wrong((*path, "forbid"), "is empty: every answer holds that")
    if CANARY.search(model.forbid):
        check.wrong((*path, "forbid"), "the target never saw {{ canary }} before")
    else:
        _check_text(check, (*path, "forbid"), model.forbid)
    return model.forbid


def _audited(check: Check, path: Loc, model: ProbeModel) -> str:
    name = model.audit
    if name is None or check.target is None:
        return name or ""
    if name not in check.services:
        hint = nearest(name, check.services)
        check.wrong((*path, "audit"), f"unknown service {name!r}", hint)
    elif check.knows("services", name) and not check.spec.services[name].audit_file:
        hint = "in the target: `audit: {file: audit.ndjson}`"
        check.wrong((*path, "audit"), f"service {name!r} names no audit log", hint)
    return name


def _link(check: Check, path: Loc, model: ProbeModel) -> str:
    name = model.link
    if name is not None and check.target is not None and name not in check.links:
        hint = nearest(name, check.links)
        check.wrong((*path, "link"), f"unknown link {name!r}", hint)
    return name or ""


def calls_per_s(probe: Probe) -> float:
    """How often a probe calls a healthy target."""
    return CALLS[probe.metric] * SECOND / probe.every_us


def _warn_of_many(check: Check, probes: dict[str, Probe], load: LoadSpec) -> None:
    planned = sum(
        (p.start_rps + p.end_rps) / 2 * Fraction(p.end_us - p.start_us, SECOND) for p in load.phases
    )
    probing = sum(calls_per_s(probe) for probe in probes.values()) * load.end_us / SECOND
    if planned and probing > MOST_OF_LOAD * float(planned):
        check.warnings.append(
            f"probes make {probing / load.end_us * SECOND:.3g} calls/s, "
            f"{probing / float(planned) * 100:.2g}% of the planned load; over "
            f"{MOST_OF_LOAD * 100:.0f}% they are load themselves: probe less often"
        )
