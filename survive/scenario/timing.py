"""When faults happen: repeats, and the caps that a target puts on all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from survive.scenario.check import Check
from survive.scenario.model import FaultPlan, LoadSpec
from survive.scenario.models import FaultModel
from survive.scenario.tree import Path as Loc
from survive.units import show_us


def repeats(check: Check, path: Loc, model: FaultModel, once: FaultPlan) -> list[FaultPlan]:
    """The fault itself, or each of its repeats as a fault of its own: ``x#1``, ``x#2``, ...

    A name cannot hold ``#``, so a repeat is never taken for another fault.
    """
    if not check.draft.sound(*path, "every") or not check.draft.sound(*path, "times"):
        return [once]
    if model.every is None or model.times is None:
        given, missing = ("every", "times") if model.every is not None else ("times", "every")
        if getattr(model, given) is not None:
            example = "times: 3" if missing == "times" else "every: 30s"
            check.wrong((*path, given), f"means nothing without {missing}", example, key=True)
        return [once]
    if model.for_ is not None and model.every < model.for_:
        check.wrong(
            (*path, "every"),
            f"{show_us(model.every)} is less than the {show_us(model.for_)} that it stays on",
            "a fault has to be healed before it comes again",
        )
        return [once]
    return [
        replace(
            once,
            name=f"{once.name}#{number + 1}",
            at_us=once.at_us + number * model.every,
            pool=once.name,
        )
        for number in range(model.times)
    ]


def check_inside_load(check: Check, path: Loc, faults: Sequence[FaultPlan], load: LoadSpec) -> None:
    """Every repeat begins and ends while load runs; only the first that does not is told."""
    for fault in faults:
        which = f"{fault.name} " if fault.pool else ""
        if fault.at_us >= load.end_us:
            check.wrong(
                (*path, "times" if fault.pool and fault is not faults[0] else "at"),
                f"{which}begins at {show_us(fault.at_us)}, "
                f"after the load has ended ({show_us(load.end_us)})",
            )
            return
        if fault.until_us is not None and fault.until_us > load.end_us:
            check.wrong(
                (*path, "for"),
                f"{which}ends at {show_us(fault.until_us)}, "
                f"after the load ({show_us(load.end_us)})",
                "shorten it, or lengthen a phase",
            )
            return


def check_caps(check: Check, faults: Mapping[str, FaultPlan]) -> None:
    """``allow.max_duration`` for each fault, ``allow.max_faults`` for all that are on at once.

    A stored run is judged as it was: caps are for what is still to happen.
    """
    if check.stored or not check.knows("allow") or not check.draft.sound("faults"):
        return
    allowed_us, allowed = check.spec.allow_max_duration_us, check.spec.allow_max_faults
    for name, model in check.model.faults.items():
        if model.for_ is not None and model.for_ > allowed_us:
            check.wrong(
                ("faults", name, "for"),
                f"{show_us(model.for_)} is longer than target {check.spec.name!r} allows "
                f"({show_us(allowed_us)})",
                "shorten it, or raise allow.max_duration of the target",
            )
    for fault in sorted(faults.values(), key=lambda f: (f.at_us, f.name)):
        on = [other.name for other in faults.values() if _is_on(other, fault.at_us)]
        if len(on) > allowed:
            check.wrong(
                ("faults", fault.pool or fault.name),
                f"{len(on)} faults at once at {show_us(fault.at_us)} ({', '.join(sorted(on))}); "
                f"target {check.spec.name!r} allows {allowed}",
                "move one, or raise allow.max_faults of the target",
                key=True,
            )
            return


def _is_on(fault: FaultPlan, at_us: int) -> bool:
    """A one-shot is on at its own instant."""
    if fault.until_us is None:
        return fault.at_us == at_us
    return fault.at_us <= at_us < fault.until_us
