"""What a fault is unless it says otherwise, and what it writes on whatever it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, TypeVar, cast, get_type_hints

from survive.contracts import HandleSpec, Injection, Json

_Settings = TypeVar("_Settings")


@dataclass(frozen=True, slots=True)
class Nothing:
    """No settings."""


class Common:
    """Class data and verbs of most faults; each says only in what it differs."""

    kind: ClassVar[str]
    held: ClassVar[bool] = True
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False
    settings: ClassVar[type] = Nothing

    def check_host(self, settings: Any, here: HandleSpec) -> None:
        """See survive.contracts.check_host: any host will do."""

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Every victim, if this host can have it there."""
        for victim in victims:
            self.check_host(settings, victim)
        return list(victims)


class OneShot:
    """What one-shots share; comes first among the bases."""

    held: ClassVar[bool] = False

    async def heal(self, injection: Injection, handle: Any) -> None:
        """Nothing to undo: a one-shot."""


class KeepsDown:
    """What faults share whose victim the supervisor must not restart; comes first too."""

    keeps_down: ClassVar[bool] = True

    async def heal(self, injection: Injection, handle: Any) -> None:
        """The release itself is the agent's, which held; no other undo."""


def asked(settings: Callable[..., _Settings], injection: Injection) -> _Settings:
    """The injection's settings, written as in the scenario; what a fault remembers is left out."""
    written = injection.settings
    readers = _readers(settings)
    return settings(**{name: readers[name](written[name]) for name in readers if name in written})


@cache
def _readers(settings: Callable[..., object]) -> dict[str, Callable[[Json], Any]]:
    """By a setting's name: ``parse`` of its type (Duration, Share, ...), else it is plain."""
    types = get_type_hints(settings)
    return {
        field.name: getattr(types[field.name], "parse", lambda value: value)
        for field in fields(cast(Any, settings))
    }


def mark(injection: Injection) -> str:
    """Names what a fault makes after it, so that whoever finds it knows whose it is."""
    return f"sv-{injection.id}"
