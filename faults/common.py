"""What a fault is unless it says otherwise, and what it writes on whatever it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from survive.contracts import HandleSpec, Injection


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

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Every victim."""
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


def mark(injection: Injection) -> str:
    """Names what a fault makes after it, so that whoever finds it knows whose it is."""
    return f"sv-{injection.id}"
