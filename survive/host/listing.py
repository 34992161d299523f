"""What ``survive faults`` shows: the class data of faults, from the code itself."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

from survive.catalog import Catalog
from survive.contracts import Fault, Json, Needs
from survive.scenario.settings import takes

_READABLE = 40  # columns
_ACTS_ON = {Needs.LINK: "a link", Needs.TARGET: "the target as a whole"}


def show_faults(kind: str | None, form: str, width: int | None = None) -> str:
    """All faults a line each, or of one family, or one whole; ``json``: a list of descriptions.

    Raises UsageError for a kind that is none, with the nearest name.
    """
    catalog = Catalog(Path.cwd())
    family = [known for known in catalog.fault_kinds() if known.startswith(f"{kind}.")]
    one = kind is not None and (kind in catalog.fault_kinds() or not family)
    names = [kind] if one and kind else family or list(catalog.fault_kinds())
    faults = [catalog.fault(name) for name in names]
    if form == "json":
        return json.dumps([describe(fault) for fault in faults], indent=2)
    return _page(faults[0], width) if one else "\n".join(_lines(faults, width))


def _lines(faults: Sequence[Fault], width: int | None) -> Iterator[str]:
    """What each certifies behind it, or below it where the terminal is too narrow for both.

    ``width`` None = nothing is cut, for other tools.
    """
    kinds = max(len(fault.kind) for fault in faults)
    for fault in faults:
        how = "held" if fault.held else "one-shot"
        line = f"{fault.kind:{kinds}}  {how:8}  {fault.grade:9}  {fault.needs:8}"
        if width is None:
            yield f"{line}  {fault.certifies}"
        elif width - len(line) - 2 >= _READABLE:
            yield f"{line}  {_shortened(fault.certifies, width - len(line) - 2)}"
        else:
            yield line.rstrip()
            yield f"    {_shortened(fault.certifies, width - 4)}"


def _shortened(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    return text[: room - 1].rpartition(" ")[0].rstrip(",:;") + "…"


def describe(fault: Fault) -> dict[str, Json]:
    """Plain data for ``--format json``; its keys are in docs/stability.md."""
    return {
        "kind": fault.kind,
        "about": about(fault),
        "held": fault.held,
        "grade": str(fault.grade),
        "layer": fault.layer,
        "needs": str(fault.needs),
        "privileges": fault.privileges,
        "active": _proof(fault),
        "certifies": fault.certifies,
        "does_not_certify": fault.does_not_certify,
        "settings": {
            field.name: {
                "type": _type(field),
                "required": field.default is MISSING,
                "default": None if field.default is MISSING else str(field.default),
            }
            for field in fields(fault.settings)
        },
    }


def about(fault: Fault) -> str:
    """What it does, in its own words."""
    text = inspect.cleandoc(type(fault).__doc__ or "")
    return _plain(text.removeprefix(f"``{fault.kind}``: "))


def _proof(fault: Fault) -> str:
    """What its looks ask for."""
    text = (inspect.getdoc(fault.observe) or "").partition("\n\n")[0]
    return _plain(text.removeprefix("Active "))


def _plain(text: str) -> str:
    """Without the marks and line breaks of a docstring."""
    return " ".join(text.replace("``", "`").split())


def acts_on(fault: Fault) -> str:
    """In words."""
    return _ACTS_ON.get(fault.needs, "replicas of a service")


def settings_of(fault: Fault) -> list[tuple[str, str]]:
    """(name, what it takes) of each setting."""
    types = get_type_hints(fault.settings)
    return [
        (
            field.name,
            f"{takes(types[field.name])}; "
            + ("required" if field.default is MISSING else f"default {field.default}"),
        )
        for field in fields(fault.settings)
    ]


def settings_told(fault: Fault) -> str:
    """What the settings mean together; "" if there are none."""
    text = _plain(inspect.cleandoc(fault.settings.__doc__ or "")).removeprefix("Settings: ")
    return text if fields(fault.settings) else ""


def _type(field: Field[Any]) -> str:
    return str(getattr(field.type, "__name__", field.type))


def _page(fault: Fault, width: int | None) -> str:
    settings = settings_of(fault)
    told = {
        "what it does": about(fault),
        "active": _proof(fault),
        "grade": fault.grade,
        "layer": fault.layer,
        "privileges": fault.privileges or "none",
        "certifies": fault.certifies,
        "does not certify": fault.does_not_certify,
        "write": _stanza(fault),
        "settings": settings_told(fault) or "none",
    }
    lines = [
        f"{fault.kind}: {'held (has for:)' if fault.held else 'one-shot'}, acts on "
        f"{acts_on(fault)}",
        *(_wrapped(f"  {name:16}  {text}", width) for name, text in told.items()),
        *(_wrapped(f"    {name:14}  {text}", width) for name, text in settings),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _stanza(fault: Fault) -> str:
    """The line of a scenario's ``faults:``, what is the team's own in capitals."""
    where = {Needs.LINK: ["link: SOURCE -> DEST"], Needs.TARGET: []}
    held = ["for: DURATION"] if fault.held else []
    needed = [field for field in fields(fault.settings) if field.default is MISSING]
    given = ", ".join(f"{field.name}: {_type(field).upper()}" for field in needed)
    parts = [
        f"kind: {fault.kind}",
        *where.get(fault.needs, ["service: NAME"]),
        "at: PHASE + DURATION",
        *held,
        *([f"with: {{{given}}}"] if given else []),
    ]
    return f"NAME: {{{', '.join(parts)}}}"


def _wrapped(line: str, width: int | None) -> str:
    return line if width is None else textwrap.fill(line, width, subsequent_indent=" " * 20)
