"""What is broken, and when: faults, their victims, settings and recoveries."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from survive.address import HTTPS
from survive.catalog import Catalog, nearest
from survive.contracts import OBSERVE_S, Fault, Needs, look_s
from survive.errors import SurviveError
from survive.scenario.check import Check
from survive.scenario.model import (
    LINKS_JOINED_BY,
    FaultPlan,
    LoadSpec,
    Objective,
    Service,
)
from survive.scenario.models import (
    FaultModel,
)
from survive.scenario.settings import parse_settings, setting_problems
from survive.scenario.target import PLUGINS_HINT
from survive.scenario.timing import check_caps, check_inside_load, repeats
from survive.scenario.tree import Path as Loc
from survive.units import SECOND, UnitError, duration_us, show_us

_HOW_MANY = ("count", "share")
_LOOK_MARGIN_S = 0.5  # the guard after inject, and as much again
_AT = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)\s*\+\s*(\S+)")


def make_faults(check: Check, load: LoadSpec) -> dict[str, FaultPlan]:
    """Every fault with its time resolved."""
    every = (_fault(check, name, model, load) for name, model in check.model.faults.items())
    found = {fault.name: fault for faults in every for fault in faults}
    if _times_sound(check):
        check_caps(check, found)
    return found


def _fault(check: Check, name: str, model: FaultModel, load: LoadSpec) -> list[FaultPlan]:
    """One, or one for each repeat."""
    path: Loc = ("faults", name)
    fault = _kind(check, path, model)
    at_us = _moment(check, (*path, "at"), model.at, load)
    if fault is not None:
        _check_hold(check, path, model, fault)
        _check_needs(check, path, model, fault)
        _check_settings(check, path, model, fault)
    _check_victims(check, path, model, fault)
    once = FaultPlan(
        name=name,
        kind=model.kind,
        at_us=at_us or 0,
        for_us=model.for_,
        service=model.service or "",
        link=LINKS_JOINED_BY.join(model.link or ()),
        count=_count(check, model),
        settings=dict(model.with_),
    )
    planned = repeats(check, path, model, once)
    if at_us is not None and _times_sound(check):
        check_inside_load(check, path, planned, load)
    return planned


def _count(check: Check, model: FaultModel) -> int:
    """How many replicas: as said, or the share of those that serve, never more than was said."""
    name = model.service or ""
    if model.share is None or name not in check.services or not check.knows("services", name):
        return model.count or 1
    service = check.spec.services[name]
    awake = service.replicas - service.standby
    return max(1, math.floor(model.share * awake + 1e-9))  # 0.29 × 100 is 28.999…


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
    if fault.needs is Needs.TARGET:
        for given in ("service", "link", *_HOW_MANY):
            if getattr(model, given) is not None:
                said = f"{model.kind} acts on the target as a whole"
                check.wrong((*path, given), said, "remove the key", key=True)
        return
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
    _check_how_many(check, path, model, fault)


def _check_how_many(check: Check, path: Loc, model: FaultModel, fault: Fault) -> None:
    """``count`` or ``share``, and neither where nothing is to be chosen."""
    given = [key for key in _HOW_MANY if getattr(model, key) is not None]
    if len(given) > 1:
        check.wrong((*path, "share"), "count and share say the same", "keep one", key=True)
    elif given and fault.needs is Needs.LINK:
        calls = any(setting.name == "share" for setting in fields(fault.settings))
        hint = "a share of the calls is `with: {share: ...}`" if calls else "remove the key"
        check.wrong((*path, given[0]), "a link is hit as a whole", hint, key=True)
    elif given and getattr(fault, "rolling", False):
        said = f"{model.kind} hits every replica, one after another"
        check.wrong((*path, given[0]), said, "remove the key", key=True)
    elif model.share == 0:
        check.wrong((*path, "share"), "a fault that hits nobody proves nothing", "write more")


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
        else:
            _check_time_to_look(check, path, model, look_s(fault, model.with_))


def _check_time_to_look(check: Check, path: Loc, model: FaultModel, needed_s: float) -> None:
    """A fault that ends before the first look at it has could never be proven."""
    least_us = round((needed_s + _LOOK_MARGIN_S) * SECOND)
    if needed_s > OBSERVE_S and model.for_ is not None and model.for_ < least_us:
        check.wrong(
            (*path, "for"),
            f"one look at this {model.kind} takes {needed_s:g}s, so nothing is proven in "
            f"{show_us(model.for_)}",
            f"hold it for {show_us(least_us)} or longer",
        )


def _check_victims(check: Check, path: Loc, model: FaultModel, fault: Fault | None) -> None:
    if check.target is None:
        return
    if model.service is not None and model.service not in check.services:
        hint = nearest(model.service, check.services)
        check.wrong((*path, "service"), f"unknown service {model.service!r}", hint)
    elif model.service is not None and check.knows("services", model.service):
        _check_service(check, path, model, fault, check.spec.services[model.service])
    _check_links(check, path, model, fault)


def _check_links(check: Check, path: Loc, model: FaultModel, fault: Fault | None) -> None:
    """Each is one of the target's, and named once."""
    links = model.link or []
    if model.link is not None and not links:
        check.wrong((*path, "link"), "names no link", _choices(check, "link"))
    if len(set(links)) < len(links):
        check.wrong((*path, "link"), "names a link twice")
    for link in links if check.knows("entry") else ():
        if link in check.links:
            _check_readable(check, path, model, fault, link)
            continue
        hint = nearest(link, check.links)
        if check.spec.driver == "external":
            hint = f"of an external target only {check.spec.entry_link} can be hit"
        check.wrong((*path, "link"), f"unknown link {link!r}", hint)


def _check_readable(
    check: Check, path: Loc, model: FaultModel, fault: Fault | None, link: str
) -> None:
    """What acts on HTTP needs to read it; others may say ``not_on_tls``, and why."""
    spec = check.spec
    known, entry = spec.links.get(link), spec.services.get(spec.entry)
    secure = known.tls if known is not None else False
    if link == spec.entry_link and entry is not None:
        secure = entry.url.startswith(HTTPS)
    why: str = getattr(fault, "not_on_tls", "")
    if model.kind.startswith("protocol."):
        why = "no proxy reads what goes through it"
    if why and secure:
        check.wrong(
            (*path, "link"),
            f"{link} is TLS: {why}, so {model.kind} cannot act",
            "other network faults can; or break a link without `tls: true`",
        )


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
        path = ("faults", last.pool or last.name)
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
