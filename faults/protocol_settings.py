"""Which calls a protocol fault hits, and where in their streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.units import Share, UnitError

from .protocol_looks import CHAT

ALL, NONE = Share(1), Share(0)
MOST_AFTER = 20  # events of a stream that a look can wait for


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Which calls: ``share`` of those to ``call`` are hit, ``control`` of them never.

    A query in ``call`` is the proof's own; any query is hit. With ``first`` only the first so many
    of users' calls are hit, at each replica of the link; 0 = all.
    """

    least: ClassVar[float] = 0.5  # share with which a look needs few calls
    share: Share = ALL
    control: Share = NONE
    call: str = CHAT
    first: int = 0

    def __post_init__(self) -> None:
        """Raises UnitError. Called by name below: a slotted dataclass has no ``super()``."""
        if self.share < self.least:
            raise UnitError(
                f"share must be {self.least:.0%} or more, or the proof would be half the load"
            )
        if self.share + self.control > 1 + 1e-9:
            raise UnitError("share and control are together 100% at most")
        if not 0 <= self.first <= 1_000_000:
            raise UnitError("first is 0 (all calls) to 1000000")
        method, _, path = self.call.partition(" ")
        if method not in {"GET", "POST"} or not path.startswith("/"):
            raise UnitError(f"call is written like {CHAT!r}: GET or POST, and a path")


@dataclass(frozen=True, slots=True, kw_only=True)
class After(Calls):
    """After how many data events of the stream; the opening one, with the role, counts."""

    after: int = 3

    def __post_init__(self) -> None:
        """Raises UnitError."""
        Calls.__post_init__(self)
        if not 0 <= self.after <= MOST_AFTER:
            raise UnitError(f"after is from 0 to {MOST_AFTER}: the proof waits for so many events")
