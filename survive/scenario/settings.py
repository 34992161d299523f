"""A fault's settings from the text of a scenario: ``{"latency": "300ms"}`` → its dataclass.

Light to import, since every chaos child does so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from survive.catalog import nearest
from survive.contracts import Json
from survive.units import Duration, Factor, Share, UnitError

_BARE_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


class SettingError(UnitError):
    """One setting that cannot be used. ``setting`` names it; the message does too."""

    def __init__(self, setting: str, message: str, hint: str = "") -> None:
        super().__init__(f"{setting}: {message}" if not hint else f"{setting}: {message} ({hint})")
        self.setting = setting
        self.message = message
        self.hint = hint


def parse_settings(cls: type, raw: Mapping[str, Json]) -> object:
    """Build the settings dataclass of a fault; fields with a default are optional.

    Fields are Duration (µs, from ``300ms``), Share (0..1, from ``20%``), Factor (from ``3x``),
    int, float, str, bool, or a type of the fault's own that has ``parse`` (raises UnitError) and
    ``form`` (what to write, for messages). Raises SettingError, a UnitError and so a ValueError, on
    the first bad setting; errors of the dataclass's own ``__post_init__`` come through as they are.
    """
    problems = setting_problems(cls, raw)
    if problems:
        raise problems[0]
    types = get_type_hints(cls)
    values = {name: _parse(name, types[name], value) for name, value in raw.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise SettingError("with", str(error)) from error


def setting_problems(cls: type, raw: Mapping[str, Json]) -> list[SettingError]:
    """Everything that is wrong with the single settings; empty = parse_settings may try."""
    known: dict[str, Field[Any]] = {f.name: f for f in fields(cls)}
    types = get_type_hints(cls)
    problems = []
    for name, value in raw.items():
        if name not in known:
            hint = nearest(name, list(known)) or "this fault has no settings"
            problems.append(SettingError(name, "unknown setting", hint))
            continue
        try:
            _parse(name, types[name], value)
        except SettingError as error:
            problems.append(error)
    for name, spec in known.items():
        optional = spec.default is not MISSING or spec.default_factory is not MISSING
        if name not in raw and not optional:
            problems.append(SettingError(name, f"is missing; {_form(types[name])}"))
    return problems


def check_bare(value: object, example: str) -> None:
    """Raise UnitError if a quantity was written as a number without its unit."""
    bare = isinstance(value, int | float) and not isinstance(value, bool)
    if bare or (isinstance(value, str) and _BARE_NUMBER.fullmatch(value.strip())):
        raise UnitError(f"{value} has no unit; write it like {example}")


_EXAMPLES: dict[Any, str] = {Duration: "300ms", Share: "20%", Factor: "3x"}
_PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
}


def takes(kind: Any) -> str:
    """What to write for a setting of that type: ``like 300ms``, ``a whole number``."""
    example = _EXAMPLES.get(kind)
    return f"like {example}" if example else str(getattr(kind, "form", _PLAIN.get(kind, kind)))


def _form(kind: Any) -> str:
    return f"write it {takes(kind)}" if kind in _EXAMPLES else f"it is {takes(kind)}"


def _parse(name: str, kind: Any, value: Json) -> Any:
    if hasattr(kind, "parse"):
        try:
            if kind in _EXAMPLES:
                check_bare(value, _EXAMPLES[kind])
            return kind.parse(value)
        except UnitError as error:
            raise SettingError(name, str(error)) from error
    right = isinstance(value, int | float if kind is float else kind)
    if kind in _PLAIN and right and (kind is bool or not isinstance(value, bool)):
        return kind(value)
    raise SettingError(name, f"{value!r} is not {_PLAIN.get(kind, kind)}")
