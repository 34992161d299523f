"""What must hold: objectives and the rules that stop a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from survive.catalog import nearest
from survive.contracts import Json
from survive.scenario.check import Check
from survive.scenario.model import (
    GAUGES,
    PROBED,
    STREAMS,
    TALLIED,
    TIMED,
    Hysteresis,
    Metric,
    Objective,
    Probe,
    StopIf,
)
from survive.scenario.models import (
    HysteresisModel,
    ObjectiveModel,
    PhaseModel,
)
from survive.scenario.settings import check_bare
from survive.scenario.target import WEAKNESSES
from survive.scenario.tree import Path as Loc
from survive.units import Cost, UnitError, cost, duration_us, factor, rate_rps, share

_BACK_AGAIN = frozenset({Metric.RECOVERY, Metric.SCALE_UP})  # of the steady objectives
_PERCENTILE = re.compile(r"p([0-9]{2}(?:\.[0-9]{1,2})?)")
_NO_PROBES: Mapping[str, Probe] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Form:
    """How the limit of a metric is written. ``read`` may return a Cost: its amount is the limit."""

    bounds: tuple[str, ...]  # the first one stands in the example
    read: Callable[[object], float | Fraction | Cost]
    example: str
    zero: bool = False

    def written(self, bound: str = "") -> str:
        """``min: 99%``."""
        return f"{bound or self.bounds[0]}: {self.example}"


def _count(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UnitError(f"{value!r} is not a count; write it like 3")
    return float(value)


_TIME = _Form(("max",), lambda value: float(duration_us(value)), "800ms")
_LEAST_SHARE = _Form(("min",), share, "99%")
_PER_S = _Form(("min",), rate_rps, "90/s")
_FORMS = {
    **dict.fromkeys((*TIMED, *_BACK_AGAIN, Metric.FRESHNESS), _TIME),
    **dict.fromkeys((Metric.SUCCESS, Metric.COMPLETE), _LEAST_SHARE),
    **dict.fromkeys(PROBED - {Metric.LEAKED, Metric.FRESHNESS}, _LEAST_SHARE),
    **dict.fromkeys((Metric.GOODPUT, Metric.TOKENS_PER_S), _PER_S),
    Metric.LEAKED: _Form(("max",), share, "0%", zero=True),
    Metric.AMPLIFICATION: _Form(("max",), factor, "1.5x"),
    Metric.COST: _Form(("max",), cost, "3 USD per 1M tokens"),
    Metric.REPLICAS: _Form(("min", "max"), _count, "3", zero=True),
    Metric.QUEUE: _Form(("max", "min"), _count, "20", zero=True),
    **dict.fromkeys((Metric.GPU, Metric.KV), _Form(("max", "min"), share, "95%", zero=True)),
}


def make_objectives(check: Check, probes: Mapping[str, Probe] = _NO_PROBES) -> dict[str, Objective]:
    """Every objective with its kinds, probes or services, and its window resolved."""
    models = check.model.objectives.items()
    found = {name: _objective(check, name, model, probes) for name, model in models}
    steady = any(o.during == "steady" and o.metric in TALLIED for o in found.values())
    for name, objective in found.items():
        if objective.metric in _BACK_AGAIN and not steady and check.draft.sound("objectives"):
            check.wrong(
                ("objectives", name),
                "there is no objective to come back to",
                f"{objective.metric} means that objectives with `during: steady` hold again",
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


def _objective(
    check: Check, name: str, model: ObjectiveModel, probes: Mapping[str, Probe]
) -> Objective:
    path: Loc = ("objectives", name)
    metric, percentile = None, None
    if check.draft.sound(*path, "metric"):  # else a stand-in: nothing that follows from it is said
        metric, percentile = _metric(check, (*path, "metric"), model.metric)
    bound, limit = _limit(check, path, model, metric) if metric is not None else ("", 0.0)
    metric_ = metric or Metric.SUCCESS
    if metric is not None:
        _check_keys(check, path, model, metric)
    if model.during is not None:
        _check_window(check, (*path, "during"), model.during)
    paid = limit if isinstance(limit, Cost) else None
    return Objective(
        name=name,
        metric=metric_,
        limit=paid.amount if paid else float(limit),  # type: ignore[arg-type]
        percentile=percentile,
        of=_of(check, path, model.of, metric_, paid, probes),
        during="each fault" if metric is Metric.RECOVERY else (model.during or ""),
        stable_for_us=model.stable_for or 0,
        bound=bound if metric_ in GAUGES else "",
        cost=paid,
        hysteresis=_hysteresis(check, (*path, "hysteresis"), model.hysteresis),
    )


def _metric(check: Check, path: Loc, text: str) -> tuple[Metric | None, float | None]:
    word, dot, rank = text.partition(".")
    known = [str(m) for m in Metric]
    if word not in known:
        bare = _PERCENTILE.fullmatch(text)
        hint = f"of what? like latency.{text} or ttft.{text}" if bare else nearest(word, known)
        check.wrong(path, f"unknown metric {word!r}", hint)
        return None, None
    metric = Metric(word)
    needed = metric in TIMED or metric is Metric.FRESHNESS
    if not needed and metric not in GAUGES:
        if dot:
            check.wrong(path, f"{word} has no percentiles", f"write {word}")
        return metric, None
    if metric in GAUGES and not dot:
        return metric, None
    found = _PERCENTILE.fullmatch(rank)
    value = float(Fraction(found[1]) / 100) if found else 0.0
    if not 0.5 <= value <= 0.9999:
        given = f"{rank!r} is not a percentile" if dot else f"{word} needs a percentile"
        check.wrong(path, given, f"p50 to p99.99, like {word}.p95")
        return metric, None
    return metric, value


def _limit(
    check: Check, path: Loc, model: ObjectiveModel, metric: Metric
) -> tuple[str, float | Fraction | Cost]:
    """Which bound was given, and what it says; ("", 0) if that cannot be told."""
    form = _FORMS[metric]
    given: dict[str, Json] = {"min": model.min, "max": model.max}
    bound = next((b for b in form.bounds if given[b] is not None), form.bounds[0])
    other = "max" if bound == "min" else "min"
    raw = given[bound]
    if given[other] is not None:
        both = raw is not None
        check.wrong(
            (*path, other),
            "both min and max" if both else f"{metric} is limited by {bound}, not {other}",
            f"write {form.written()}",
            key=True,
        )
    elif raw is None:
        check.wrong(path, "has no limit", f"write {form.written()}", key=True)
    if raw is None:
        return bound, 0.0
    try:
        if form.read is not _count:
            check_bare(raw, form.example)
        value = form.read(raw)
    except UnitError as error:
        check.wrong((*path, bound), str(error))
        return bound, 0.0
    amount = value.amount if isinstance(value, Cost) else value
    if amount <= 0 and not form.zero:
        check.wrong((*path, bound), f"{raw} is zero; it must be more")
    if isinstance(value, Cost):
        _check_prices(check, (*path, bound), value)
    return bound, value


def _check_prices(check: Check, path: Loc, limit: Cost) -> None:
    if not check.knows("prices"):
        return
    prices = check.spec.prices
    if not prices:
        check.wrong(path, "the target has no `prices:`", "like prices: {inference: 2.50 USD/h}")
    for name, one in prices.items():
        if one.currency != limit.currency:
            check.wrong(path, f"{name} is paid in {one.currency}, not in {limit.currency}")


def _check_keys(check: Check, path: Loc, model: ObjectiveModel, metric: Metric) -> None:
    """The keys that only some metrics have, or must have."""
    name, recovery, sound = path[-1], metric is Metric.RECOVERY, check.draft.sound
    if recovery and model.during is not None:
        check.wrong((*path, "during"), "recovery means each fault", "remove `during:`", key=True)
    if not recovery and model.during is None and sound(*path, "during"):
        check.wrong(
            path,
            f"objective {name!r} does not say when",
            "add `during: steady`, run, each fault, …",
            key=True,
        )
    if metric is Metric.SCALE_UP and model.during and not model.during.startswith("phase:"):
        check.wrong((*path, "during"), "scale_up is from a phase's start", "write phase:NAME")
    back = metric in _BACK_AGAIN
    if back and model.stable_for is None and sound(*path, "stable_for"):
        check.wrong(
            path,
            f"{metric} needs `stable_for:`",
            "how long the steady objectives must hold again, like 4s",
            key=True,
        )
    if not back and model.stable_for is not None:
        why = "only recovery and scale_up have stable_for"
        check.wrong((*path, "stable_for"), why, "remove it", key=True)
    if back and model.of is not None:
        check.wrong((*path, "of"), f"{metric} is of the steady objectives", "remove it", key=True)
    if not recovery and model.hysteresis is not None:
        check.wrong((*path, "hysteresis"), "only recovery has hysteresis", "remove it", key=True)


def _hysteresis(check: Check, path: Loc, model: HysteresisModel | None) -> Hysteresis | None:
    """Three constant phases in order, the middle one low and the others alike."""
    if model is None:
        return None
    found: list[PhaseModel] = []
    for key, name in model.model_dump().items():
        phase = next((p for p in check.model.load.phases if p.name == name), None)
        if name not in check.phases:
            check.wrong((*path, key), f"unknown phase {name!r}", nearest(name, check.phases))
        elif phase is not None and (phase.rate is None or phase.curve == "sine"):
            check.wrong((*path, key), f"{name!r} has no constant rate", "choose one with `rate:`")
        elif phase is not None:
            found.append(phase)
    if len(found) == 3 and check.draft.sound("load"):
        order = [check.phases.index(phase.name) for phase in found]
        before, relief, again = (phase.rate or Fraction(0) for phase in found)
        if order != sorted(set(order)):
            check.wrong(path, "its phases are not in order of time", "before, relief, again")
        elif not (relief < before and before == again):
            check.wrong(path, "`relief` is lower, and `again` the same rate as `before`")
    return Hysteresis(model.before, model.relief, model.again)


def _check_window(check: Check, path: Loc, text: str) -> None:
    faults = check.draft.names("faults")
    words = {"steady", "run", "each fault"}
    if text in words:
        if text == "each fault" and not faults:
            check.wrong(path, "there are no faults", "add one, or choose steady or run")
        if (
            text == "steady"
            and check.draft.sound("load")
            and not any(_is_constant(p) and not p.warm_up for p in check.model.load.phases)
        ):
            what = "constant rate (or number of users)"
            check.wrong(path, f"no phase with a {what} outside warm-up makes up `steady`")
        return
    kind, colon, name = text.partition(":")
    windows = [*faults, *_repeats(check)]
    sets = {"phase": check.phases, "fault": windows, "recovery": windows}
    if not colon or kind not in sets:
        known = [*words, "phase:NAME", "fault:NAME", "recovery:NAME"]
        check.wrong(path, f"unknown window {text!r}", nearest(text, known))
    elif name not in sets[kind]:
        what = "phase" if kind == "phase" else "fault"
        check.wrong(
            path, f"unknown {what} {name!r}", nearest(name, sets[kind]) or "the scenario has none"
        )


def _is_constant(phase: PhaseModel) -> bool:
    if phase.users is not None:
        return isinstance(phase.users, int)
    return phase.rate is not None and phase.curve != "sine"


def _repeats(check: Check) -> list[str]:
    """``x#1``, ``x#2``, ... of every fault that comes several times; ``x`` pools them."""
    return [
        f"{name}#{number}"
        for name, model in check.model.faults.items()
        if model.every is not None and model.times is not None
        for number in range(1, model.times + 1)
    ]


def _of(
    check: Check,
    path: Loc,
    given: list[str] | None,
    metric: Metric,
    paid: Cost | None,
    probes: Mapping[str, Probe],
) -> tuple[str, ...]:
    """Of which request kinds, probes or services a metric is."""
    if metric in _BACK_AGAIN:
        return tuple(check.model.requests)
    if metric in PROBED:
        return _of_probes(check, path, given, metric, probes)
    if metric in GAUGES:
        return _of_services(check, path, given, metric)
    if check.model.load.locustfile is not None:
        return _of_journeys(check, path, given, metric)
    streams = metric in STREAMS | {Metric.TOKENS_PER_S} or (paid and paid.what == "tokens")
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


def _of_journeys(
    check: Check, path: Loc, given: list[str] | None, metric: Metric
) -> tuple[str, ...]:
    """Names or patterns of what a locustfile's users will ask; the run shows what there is."""
    if metric not in {Metric.SUCCESS, Metric.LATENCY, Metric.SERVICE_TIME, Metric.GOODPUT}:
        known = "success, latency, service_time and goodput are"
        check.wrong((*path, "metric"), f"{metric} is not known of a locustfile's users; {known}")
    if given is not None and not given:
        check.wrong((*path, "of"), "is empty; at least one is needed")
    return tuple(dict.fromkeys(given or ["*"]))


def _of_probes(
    check: Check,
    path: Loc,
    given: list[str] | None,
    metric: Metric,
    probes: Mapping[str, Probe],
) -> tuple[str, ...]:
    having = [name for name, probe in probes.items() if probe.metric is metric]
    if given is None and not having and check.draft.sound("probes"):
        check.wrong((*path, "metric"), f"{metric} is found by probes, and none looks for it")
    for name in given or ():
        if name in having or not check.draft.sound("probes", name):
            continue
        if name in probes:
            check.wrong((*path, "of"), f"{name!r} looks for {probes[name].metric}, not {metric}")
        else:
            hint = nearest(name, having) or "the scenario has none"
            check.wrong((*path, "of"), f"unknown probe {name!r}", hint)
    return tuple(having if given is None else dict.fromkeys(given))


def _of_services(
    check: Check, path: Loc, given: list[str] | None, metric: Metric
) -> tuple[str, ...]:
    """Services that say something of themselves: those with GPUs, else all with metrics."""
    if not check.knows("services"):
        return tuple(given or ())
    services = check.spec.services.values()
    telling = [service.name for service in services if service.metrics]
    with_gpu = [service.name for service in services if service.metrics and service.gpu]
    if not telling:
        check.wrong(
            (*path, "metric"),
            f"{metric} is read from metrics, and no service has any",
            "add `metrics: /metrics` to a service of the target",
        )
    for name in given or ():
        if name not in telling:
            check.wrong((*path, "of"), f"no service {name!r} has metrics", nearest(name, telling))
    return tuple(dict.fromkeys(given or with_gpu or telling))


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


def make_kills(check: Check) -> dict[str, str]:
    """Weakness → the objective that breaks on it."""
    for weakness in check.model.kills:
        if weakness not in WEAKNESSES:
            hint = nearest(weakness, WEAKNESSES)
            check.wrong(("kills", weakness), f"unknown weakness {weakness!r}", hint, key=True)
    return _known_objectives(check, "kills", check.model.kills)


def make_claims(check: Check) -> dict[str, str]:
    """What people say → the objective that measures it."""
    return _known_objectives(check, "claims", check.model.claims)


def _known_objectives(check: Check, key: str, given: Mapping[str, str]) -> dict[str, str]:
    known = check.draft.names("objectives")
    for name, objective in given.items():
        if objective not in known:
            hint = nearest(objective, known)
            check.wrong((key, name), f"unknown objective {objective!r}", hint)
    return dict(given)


def make_stop_if(check: Check) -> dict[str, StopIf]:
    """Every rule that stops the run."""
    rules = {}
    for name, model in check.model.stop_if.items():
        path: Loc = ("stop_if", name)
        if model.of is not None and check.model.load.locustfile is not None:
            check.wrong((*path, "of"), "a locustfile's requests are stopped all together", key=True)
        elif model.of is not None:
            _check_of(check, (*path, "of"), model.of, None)
        if model.below <= 0:
            check.wrong((*path, "below"), "0% is never undercut", "like 20%")
        rules[name] = StopIf(name, model.below, model.over, tuple(model.of or check.model.requests))
    return rules
