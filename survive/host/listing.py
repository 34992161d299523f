"""What ``survive faults`` shows: the class data of faults, from the code itself."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path

from survive.catalog import Catalog
from survive.contracts import Fault, Json, Needs

_ACTS_ON = {Needs.LINK: "a link", Needs.TARGET: "the target as a whole"}


def show_faults(kind: str | None, form: str) -> str:
    """All faults a line each, or one whole; ``json`` is a list of full descriptions."""
    catalog = Catalog(Path.cwd())
    if form == "json":
        kinds = [kind] if kind else list(catalog.fault_kinds())
        return json.dumps([describe(catalog.fault(name)) for name in kinds], indent=2)
    if kind:
        return _page(catalog.fault(kind))
    rows = [catalog.fault(name) for name in catalog.fault_kinds()]
    return "\n".join(
        f"{f.kind:18} {'held' if f.held else 'one-shot':9} {f.grade:10} {f.needs:8} {f.certifies}"[
            :100
        ].rstrip()
        for f in rows
    )


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


def _page(fault: Fault) -> str:
    lines = [
        f"{fault.kind}: {'held (has for:)' if fault.held else 'one-shot'}, acts on "
        f"{acts_on(fault)}",
        f"  grade             {fault.grade}",
        f"  layer             {fault.layer}",
        f"  privileges        {fault.privileges or 'none'}",
        f"  certifies         {fault.certifies}",
        f"  does not certify  {fault.does_not_certify}",
        "  settings          " + ("none" if not settings_of(fault) else ""),
    ]
    lines += [f"    {name:15} {text}" for name, text in settings_of(fault)]
    return "\n".join(line.rstrip() for line in lines)
