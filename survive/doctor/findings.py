"""What was found, as plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum

from survive.contracts import Json
from survive.errors import SurviveError


class Level(StrEnum):
    """How one thing is. The words are in docs/stability.md."""

    OK = "ok"
    NOTE = "note"  # a run can begin; what it measures may suffer
    ABSENT = "absent"  # only what needs it is lost
    MISSING = "missing"  # the scenario needs it: its run would be refused
    WRONG = "wrong"  # to be mended before any run


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, in a line, and what to do about it ("" = nothing)."""

    name: str
    level: Level
    found: str
    hint: str = ""

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        return {**asdict(self), "level": str(self.level)}


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a thing cannot be had here; falsy if it can."""

    why: str = ""
    hint: str = ""

    def __bool__(self) -> bool:
        return bool(self.why)


def lack_of(ask: Callable[[], object]) -> Lack:
    """What an error of ours says, if asking raises one."""
    try:
        ask()
    except SurviveError as error:
        return Lack(error.message, error.hint)
    return Lack()
