"""What must hold: objectives and the rules that stop a run."""

from __future__ import annotations

import re
from fractions import Fraction

from survive.catalog import nearest
from survive.contracts import Json
from survive.scenario.check import Check
from survive.scenario.model import (
    Metric,
    Objective,
    StopIf,
)
from survive.scenario.models import (
    ObjectiveModel,
)
from survive.scenario.settings import check_bare
from survive.scenario.target import WEAKNESSES
from survive.scenario.tree import Path as Loc
from survive.units import UnitError, duration_us, share

STREAM_METRICS = frozenset({Metric.TTFT, Metric.ITL, Metric.TPOT, Metric.COMPLETE})
SHARE_METRICS = frozenset({Metric.SUCCESS, Metric.COMPLETE})
JUDGED = (*STREAM_METRICS, Metric.SUCCESS, Metric.LATENCY, Metric.SERVICE_TIME, Metric.RECOVERY)
_PERCENTILE = re.compile(r"p([0-9]{2}(?:\.[0-9]{1,2})?)")


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
    known = [str(m) for m in JUDGED]
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
            and not any(
                p.rate is not None and p.curve != "sine" and not p.warm_up
                for p in check.model.load.phases
            )
        ):
            check.wrong(path, "no phase with a constant rate outside warm-up makes up `steady`")
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


def _repeats(check: Check) -> list[str]:
    """``x#1``, ``x#2``, ... of every fault that comes several times; ``x`` pools them."""
    return [
        f"{name}#{number}"
        for name, model in check.model.faults.items()
        if model.every is not None and model.times is not None
        for number in range(1, model.times + 1)
    ]


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


def make_kills(check: Check) -> dict[str, str]:
    """Weakness → the objective that breaks on it."""
    objectives = check.draft.names("objectives")
    for weakness, objective in check.model.kills.items():
        path: Loc = ("kills", weakness)
        if weakness not in WEAKNESSES:
            hint = nearest(weakness, WEAKNESSES)
            check.wrong(path, f"unknown weakness {weakness!r}", hint, key=True)
        if objective not in objectives:
            check.wrong(path, f"unknown objective {objective!r}", nearest(objective, objectives))
    return dict(check.model.kills)


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
