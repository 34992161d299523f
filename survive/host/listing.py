"""What ``survive faults`` shows: the class data of faults, from the code itself."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from survive.catalog import Catalog
from survive.contracts import Fault, Json, Needs

_READABLE = 40  # columns
_ACTS_ON = {Needs.LINK: "a link", Needs.TARGET: "the target as a whole"}


def show_faults(kind: str | None, form: str, width: int | None = None) -> str:
    """All faults a line each, or one whole; ``json`` is a list of full descriptions."""
    catalog = Catalog(Path.cwd())
    if form == "json":
        kinds = [kind] if kind else list(catalog.fault_kinds())
        return json.dumps([describe(catalog.fault(name)) for name in kinds], indent=2)
    if kind:
        return _page(catalog.fault(kind), width)
    return "\n".join(_lines([catalog.fault(name) for name in catalog.fault_kinds()], width))


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
    """Plain data for ``--format json``."""
    return {
        "kind": fault.kind,
        "held": fault.held,
        "grade": str(fault.grade),
        "layer": fault.layer,
        "privileges": fault.privileges or "none",
        "certifies": fault.certifies,
        "does_not_certify": fault.does_not_certify,
        "settings": dict(settings_of(fault)),
    }


def acts_on(fault: Fault) -> str:
    """In words."""
    return _ACTS_ON.get(fault.needs, "replicas of a service")


def settings_of(fault: Fault) -> list[tuple[str, str]]:
    """(name, what it takes) of each setting."""
    return [
        (
            field.name,
            f"{getattr(field.type, '__name__', field.type)}, "
            + ("required" if field.default is MISSING else f"default {field.default}"),
        )
        for field in fields(fault.settings)
    ]


def _page(fault: Fault, width: int | None) -> str:
    told = {
        "grade": fault.grade,
        "layer": fault.layer,
        "privileges": fault.privileges or "none",
        "certifies": fault.certifies,
        "does not certify": fault.does_not_certify,
        "settings": "" if settings_of(fault) else "none",
    }
    lines = [
        f"{fault.kind}: {'held (has for:)' if fault.held else 'one-shot'}, acts on "
        f"{acts_on(fault)}",
        *(_wrapped(f"  {name:16}  {text}", width) for name, text in told.items()),
        *(f"    {name:15} {text}" for name, text in settings_of(fault)),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(line: str, width: int | None) -> str:
    return line if width is None else textwrap.fill(line, width, subsequent_indent=" " * 20)
