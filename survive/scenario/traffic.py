"""What is sent, and when: request kinds, their shares, phases, lanes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from survive.catalog import nearest
from survive.scenario.arrivals import bursty, lanes_needed, traced
from survive.scenario.check import Check, is_streamed
from survive.scenario.data import Variable, data_problem, variables
from survive.scenario.lengths import FIELDS, LENGTHS
from survive.scenario.model import (
    Expect,
    LoadSpec,
    Phase,
    RequestKind,
    Retries,
    Users,
)
from survive.scenario.models import (
    BurstyModel,
    ClientsModel,
    ExpectModel,
    ExponentialModel,
    LoadModel,
    PhaseModel,
    RequestModel,
    UserRampModel,
)
from survive.scenario.traces import read_trace, variation
from survive.scenario.tree import Path as Loc
from survive.scenario.tree import strings
from survive.units import SECOND, show_rps, show_us

METHODS = ("get", "post", "put", "patch", "delete")
MAX_RPS = 10_000_000
MAX_LOAD_US = 24 * 3600 * SECOND
MAX_LANES = 10_000
_EPSILON = 1e-9
_RATES = ("rate", "ramp_to", "spike")
_SOUND_RATES = ("name", *_RATES, "users")  # broken ones are no less given
_OPEN_ONLY = ("arrivals", "scale", "lanes")  # of `load:`


def make_requests(check: Check) -> dict[str, RequestKind]:
    """Every request kind, with the shares that were left open."""
    shares = _shares(check)
    return {
        name: _request(check, name, model, shares.get(name, 0.0))
        for name, model in check.model.requests.items()
    }


def _shares(check: Check) -> dict[str, float]:
    requests = check.model.requests
    _check_whose(check)
    given = {name: model.share for name, model in requests.items() if model.share is not None}
    total = math.fsum(given.values())
    open_kinds = [name for name in requests if name not in given]
    sound = check.draft.sound("requests")
    if total > 1 + _EPSILON:
        check.wrong(
            ("requests",), f"shares sum to {total * 100:.6g}%, which is over 100%", key=True
        )
    elif requests and not open_kinds and sound and total < 1 - _EPSILON:
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


def _check_whose(check: Check) -> None:
    """Requests are of the scenario or of a locustfile; one of them makes the traffic."""
    ours = check.draft.names("requests")
    if check.model.load.locustfile is None:
        if not ours and check.draft.sound("requests") and check.draft.sound("load"):
            why = "is empty; at least one is needed" if check.draft.node("requests") else ""
            check.wrong(
                ("requests",), why or "the scenario has no `requests:`", "like home: {get: /}"
            )
        return
    for key in ("requests", "clients"):
        if check.draft.node(key) is not None:
            hint = "remove it, or the locustfile"
            check.wrong((key,), f"the users of a locustfile have their own {key}", hint, key=True)


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
    if model.expect.stream is not None and not is_streamed(model):
        check.wrong(
            (*path, "expect", "stream"),
            "this request does not ask for a stream",
            "set `stream: true` in its json",
            key=True,
        )
    if model.expect.status is not None and not model.expect.status:
        check.wrong((*path, "expect", "status"), "is empty; at least one is needed")
    _check_expected_json(check, (*path, "expect"), model)
    _check_templates(check, name, model)
    check_auth(check, (*path, "auth"), model.auth)
    return RequestKind(
        name=name,
        share=part,
        method=method.upper(),
        path=getattr(model, method) or "/",
        headers=tuple((key.lower(), value) for key, value in model.headers.items()),
        json=model.body,
        auth=model.auth,
        data=Path(model.data) if model.data is not None else None,
        expect=_expect(model.expect),
        timeout_us=model.timeout,
    )


def _expect(model: ExpectModel) -> Expect:
    has = tuple(model.has or ())
    return Expect(
        status=frozenset(model.status or [200]),
        stream_complete=model.stream == "complete",
        tokens=model.tokens,
        json=model.is_json or bool(has),
        has=has,
    )


def _check_expected_json(check: Check, path: Loc, model: RequestModel) -> None:
    """JSON is asked of whole answers only; a place is names joined by dots."""
    for key, given in (("json", model.expect.is_json), ("has", model.expect.has)):
        if given and is_streamed(model):
            check.wrong(
                (*path, key), "a stream is no JSON", "`tokens` and `stream` look at streams"
            )
    for place in model.expect.has or ():
        if not all(place.split(".")):
            check.wrong((*path, "has"), f"{place!r} is no place", "like choices.0.message")


def check_auth(check: Check, path: Loc, auth: str) -> None:
    """``auth:`` of a call names an identity of the target."""
    if auth in {"bearer", "none"} or not check.knows("auth"):
        return
    known = ["bearer", "none", *check.spec.identities]
    if auth not in known:
        hint = nearest(auth, known)
        check.wrong(path, f"the target has no identity {auth!r}", hint)


def make_retries(model: ClientsModel) -> Retries:
    """How users try again."""
    given = model.retries
    if given is None:
        return Retries()
    first_us, last_us = given.backoff
    return Retries(given.max, first_us, last_us, given.honour_retry_after)


def _check_templates(check: Check, name: str, model: RequestModel) -> None:
    path: Loc = ("requests", name)
    rows: set[str] = set()
    for key in (*METHODS, "json", "headers"):
        node = check.draft.node(*path, key)
        for below, text in strings(node) if node is not None else ():
            for variable in variables(text):
                check_variable(check, (*path, key, *below), variable)
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
    elif model.data in LENGTHS:
        for field in sorted(rows.difference(FIELDS)):
            hint = nearest(field, [*FIELDS])
            check.wrong((*path, "data"), f"the rows of {model.data} have no {field!r}", hint)
    elif not check.stored:
        problem = data_problem(check.folder / model.data, rows)
        if problem is not None and problem.where.line:
            check.draft.problems.append(problem)
        elif problem is not None:
            check.wrong((*path, "data"), f"{model.data}: {problem.message}", problem.hint)


def check_variable(check: Check, path: Loc, variable: Variable) -> None:
    """A template names something that there is."""
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


def make_load(check: Check, requests: Mapping[str, RequestKind]) -> LoadSpec:
    """The schedule, in requests per second after scale."""
    model = check.model.load
    phases: list[Phase] = []
    for index, phase in enumerate(model.phases):
        phases.append(_phase(check, index, phase, phases, requests))
    end = phases[-1].end_us
    if end > MAX_LOAD_US:
        check.wrong(("load", "phases"), f"the load lasts {show_us(end)}, over 24h", key=True)
    if _is_closed(check):
        _check_closed(check, model)
        most = max(phase.users.most for phase in phases if phase.users is not None)
        return LoadSpec(
            arrivals="poisson",
            scale=Fraction(1),
            lanes=most,
            lanes_needed=most,
            phases=tuple(phases),
            max_extend_us=model.max_extend,
            affinity=model.affinity,
            locustfile=_locustfile(check, model),
        )
    if model.locustfile is not None:
        check.wrong(
            ("load", "locustfile"),
            "its users need phases with `users:`",
            "like users: 50",
            key=True,
        )
    peak = max(p.peak_rps for p in phases)
    timeout = max((r.timeout_us for r in requests.values()), default=SECOND)
    arrivals, trace_us = _arrivals(check, model)
    needed = lanes_needed(arrivals, peak * Fraction(timeout, SECOND))
    lanes = model.lanes if model.lanes is not None else min(needed, MAX_LANES)
    if lanes < needed:
        check.warnings.append(
            f"{lanes} lanes are fewer than the {needed} that {show_rps(float(peak))} with "
            f"timeouts of {show_us(timeout)} can need; waiting for a lane counts as latency"
        )
    return LoadSpec(
        arrivals, model.scale, lanes, needed, tuple(phases), trace_us, model.max_extend,
        model.affinity,
    )  # fmt: skip


def _is_closed(check: Check) -> bool:
    return any(phase.users is not None for phase in check.model.load.phases)


def _check_closed(check: Check, model: LoadModel) -> None:
    """What a rate means nothing to users; and one run has users or a rate, never both.

    Latency of one counts from when somebody wanted to ask, of the other from when somebody could:
    a cell of both would be of neither.
    """
    for index, phase in enumerate(model.phases):
        path: Loc = ("load", "phases", index)
        if phase.users is None and check.draft.sound(*path):
            check.wrong(
                path,
                f"phase {phase.name!r} has a rate, and others have users",
                "users in all phases or in none: their latencies do not mean the same",
            )
    for key in _OPEN_ONLY:
        if check.draft.node("load", key) is not None:
            check.wrong(
                ("load", key), f"users have no {key}", "remove it, or give phases a rate", key=True
            )


def _locustfile(check: Check, model: LoadModel) -> Path | None:
    """The file, unread: what is in it is run by `survive run` only."""
    if model.locustfile is None:
        return None
    if not check.stored and not (check.folder / model.locustfile).is_file():
        check.wrong(("load", "locustfile"), f"there is no file {model.locustfile}")
    for index, phase in enumerate(model.phases):
        if phase.think is not None:
            check.wrong(
                ("load", "phases", index, "think"),
                "the users of a locustfile think for its `wait_time`",
                "remove it",
                key=True,
            )
    return Path(model.locustfile)


def _users(model: PhaseModel) -> Users | None:
    if model.users is None:
        return None
    first, last = (
        (model.users.from_, model.users.to)
        if isinstance(model.users, UserRampModel)
        else (model.users, model.users)
    )
    drawn = isinstance(model.think, ExponentialModel)
    think = model.think.exponential if isinstance(model.think, ExponentialModel) else model.think
    return Users(first, last, think or 0, drawn)


def _arrivals(check: Check, model: LoadModel) -> tuple[str, tuple[int, ...]]:
    """The word of the plan for how arrivals are spread, and the moments of a trace."""
    given = model.arrivals
    if isinstance(given, str):
        return given, ()
    if isinstance(given, BurstyModel):
        return bursty(given.bursty.cv), ()
    if check.stored:
        return traced(1.0), ()  # the plan of the record has the moments
    try:
        moments = read_trace(check.folder / given.trace)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        check.wrong(("load", "arrivals", "trace"), f"{given.trace}: {why}")
        return traced(1.0), ()
    return traced(variation(moments)), moments


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
    if model.users is not None:
        return _users_phase(check, path, model, before, requests)
    _check_rates(check, path, model, first=not before)
    _check_sine(check, path, model)
    start_us = before[-1].end_us if before else 0
    factor: Fraction = check.model.load.scale
    key, asked = next(iter(_rates(model).items()), ("rate", Fraction(1)))
    end_rps = asked * factor
    if end_rps > MAX_RPS:
        check.wrong((*path, key), f"{float(end_rps):,.0f}/s after scale is over 10M/s")
    ramp = key == "ramp_to" and bool(before)
    sine = model.curve == "sine" and model.swing is not None and model.period is not None
    return Phase(
        name=model.name,
        start_us=start_us,
        end_us=start_us + model.for_,
        start_rps=before[-1].end_rps if ramp else end_rps,
        end_rps=end_rps,
        curve="steps" if ramp and model.steps is not None else model.curve or "linear",
        warm_up=model.warm_up,
        shares=_phase_shares(check, (*path, "share"), model.share, requests),
        swing=(model.swing or 0.0) if sine else 0.0,
        period_us=(model.period or 0) if sine else 0,
        steps=(model.steps or 0) if ramp else 0,
        spike=key == "spike",
    )


def _users_phase(
    check: Check,
    path: Loc,
    model: PhaseModel,
    before: Sequence[Phase],
    requests: Mapping[str, RequestKind],
) -> Phase:
    for key in (*_RATES, "steps", "curve", "swing", "period"):
        if getattr(model, key) is not None:
            hint = "a ramp of users is users: {from: 1, to: 50}"
            check.wrong((*path, key), f"users have no {key}", hint, key=True)
    start_us = before[-1].end_us if before else 0
    return Phase(
        name=model.name,
        start_us=start_us,
        end_us=start_us + model.for_,
        start_rps=Fraction(0),
        end_rps=Fraction(0),
        warm_up=model.warm_up,
        shares=_phase_shares(check, (*path, "share"), model.share, requests),
        users=_users(model),
    )


def _rates(model: PhaseModel) -> dict[str, Fraction]:
    """Which of the three rates a phase has, before scale."""
    found = {"rate": model.rate, "ramp_to": model.ramp_to, "spike": model.spike}
    return {key: rate for key, rate in found.items() if rate is not None}


def _check_rates(check: Check, path: Loc, model: PhaseModel, *, first: bool) -> None:
    given = _rates(model)
    if model.think is not None:
        check.wrong((*path, "think"), "only users think", "give the phase `users:`", key=True)
    if len(given) != 1 and all(check.draft.sound(*path, key) for key in _SOUND_RATES):
        shown = " and ".join(given) if given else "none of rate, ramp_to, spike and users"
        check.wrong(path, f"phase {model.name!r} has {shown}", "it needs exactly one")
    if model.steps is not None and "ramp_to" not in given and check.draft.sound(*path, "ramp_to"):
        check.wrong((*path, "steps"), "only a ramp has steps", "use ramp_to", key=True)
    elif model.steps is not None and model.curve is not None:
        check.wrong((*path, "curve"), "a ramp in steps has no curve", "remove it", key=True)
    if model.ramp_to is not None and first:
        check.wrong(
            (*path, "ramp_to"),
            "the first phase has no rate to ramp from",
            "begin with a phase that has a rate",
            key=True,
        )
    ramps = model.ramp_to is not None or model.curve in {None, "sine"}
    if not ramps and check.draft.sound(*path, "ramp_to"):
        check.wrong(
            (*path, "curve"), "only a ramp has a curve", "use ramp_to, or remove it", key=True
        )


def _check_sine(check: Check, path: Loc, model: PhaseModel) -> None:
    """A sine has a rate, a swing below 100 % and whole periods, so that its mean is its rate."""
    if not all(check.draft.sound(*path, key) for key in ("curve", "swing", "period", "for")):
        return
    for key, given in (("swing", model.swing), ("period", model.period)):
        if model.curve != "sine" and given is not None:
            check.wrong((*path, key), f"only a sine has a {key}", "add `curve: sine`", key=True)
        if model.curve == "sine" and given is None:
            example = "swing: 60%" if key == "swing" else "period: 20s"
            check.wrong((*path, "curve"), f"a sine needs a {key}", f"like `{example}`", key=True)
    if model.curve != "sine":
        return
    if model.spike is not None:
        check.wrong((*path, "spike"), "a sine swings around a rate", "use rate", key=True)
    if model.ramp_to is not None:
        check.wrong((*path, "ramp_to"), "a sine swings around a rate", "use rate", key=True)
    if model.swing is not None and not 0 < model.swing < 1:
        check.wrong((*path, "swing"), f"{model.swing * 100:.6g}% is not between 0% and 100%")
    if model.period is not None and model.for_ % model.period:
        check.wrong(
            (*path, "for"),
            f"{show_us(model.for_)} is not a whole number of periods of {show_us(model.period)}",
            "whole periods keep the mean at the rate",
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
