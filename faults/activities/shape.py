"""Chaos Toolkit's own shapes in a scenario, checked without Chaos Toolkit: no code is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from survive.units import UnitError

_KEYS = {"name", "type", "provider", "tolerance"}
_NEEDED = {"python": ("module", "func"), "process": ("path",), "http": ("url",)}
_ELSEWHERE = {
    "pauses": "times stand in `at:` and `for:`",
    "background": "faults overlap by their times",
    "timeout": "inject has 2 s, heal 3 s and verify 1 s",
    "ref": "write the activity out",
    "controls": "controls are Chaos Toolkit's own, for whole experiments",
    "dry": "`survive explain` changes nothing",
}
_NAME = re.compile(r"\$\{([^}]*)\}")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class Activity:
    """An action or a probe: ``{provider: {type, ...}, tolerance}``."""

    form: ClassVar[str] = "an activity: {provider: {type: python | process | http, ...}}"
    raw: Mapping[str, Any]

    @classmethod
    def parse(cls, value: object) -> Activity:
        """Check the shape. Raises UnitError."""
        if not isinstance(value, dict) or not isinstance(value.get("provider"), dict):
            raise UnitError(f"is not {cls.form}")
        for key in value.keys() - _KEYS:
            raise UnitError(f"{key!r} cannot stand here: {_ELSEWHERE.get(key, 'unknown key')}")
        provider = value["provider"]
        kind = provider.get("type")
        if kind not in _NEEDED:
            raise UnitError(f"provider type {kind!r} is not one of {', '.join(_NEEDED)}")
        for key in _NEEDED[kind]:
            if not isinstance(provider.get(key), str) or not provider[key]:
                raise UnitError(f"a {kind} provider needs `{key}:`")
        if kind == "python" and not _MODULE.fullmatch(provider["module"]):
            raise UnitError(f"{provider['module']!r} is not the name of a module")
        if "timeout" in provider:
            raise UnitError(f"'timeout' cannot stand here: {_ELSEWHERE['timeout']}")
        return cls(value)

    def call(self) -> tuple[object, ...]:
        """What it calls, its arguments left out: two that call the same share a channel."""
        provider = self.raw["provider"]
        return (provider["type"], *(provider[key] for key in _NEEDED[provider["type"]]),
                str(provider.get("method", "GET")).upper())  # fmt: skip

    def names(self) -> set[str]:
        """Every ``${name}`` in it."""
        return {match[1] for text in _strings(self.raw) for match in _NAME.finditer(text)}


@dataclass(frozen=True, slots=True)
class Block:
    """A ``configuration:`` or ``secrets:`` block, as Chaos Toolkit reads it."""

    form: ClassVar[str] = "a map, like {namespace: {type: env, key: NAMESPACE}}"
    raw: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: object) -> Block:
        """Raises UnitError."""
        if not isinstance(value, dict):
            raise UnitError(f"is not {cls.form}")
        return cls(value)

    def names(self) -> set[str]:
        """What it declares, second level included (secrets have two)."""
        below = {name for inner in self.raw.values() if isinstance(inner, dict) for name in inner}
        return set(self.raw) | below

    def __str__(self) -> str:
        return ", ".join(self.raw) or "none"

    def literals(self) -> Iterator[str]:
        """Names whose values are written out."""
        for name, value in self.raw.items():
            if isinstance(value, dict) and "type" not in value:
                yield from (f"{name}.{inner}" for inner in Block(value).literals())
            elif not isinstance(value, dict):
                yield str(name)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
