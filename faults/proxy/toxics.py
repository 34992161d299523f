"""What may happen to bytes on their way: one short class a toxic, in Toxiproxy's own words.

How to write the next one: a slotted dataclass whose fields are the API's integer attributes, with
one method, and a line in ``TOXICS``::

    @dataclass(frozen=True, slots=True)
    class SlowClose:
        delay: int = 0  # ms

        def leaves(self, chunk: bytes, at: float, random: Random) -> Pieces:
            return [(at if chunk else at + self.delay / 1000, chunk)]

``leaves`` says which pieces of a chunk leave, and when. An empty chunk is the end of the stream.
Times are loop seconds; the stage around the toxic keeps the order, whatever times it returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from random import Random
from typing import Protocol, TypeAlias

Pieces: TypeAlias = Sequence[tuple[float, bytes]]  # (when it leaves, what)


class Toxic(Protocol):
    """The settings of one toxic, and what they do to a chunk."""

    def leaves(self, chunk: bytes, at: float, random: Random) -> Pieces:
        """The pieces of a chunk that arrived ``at``; ``b""`` is the end of the stream."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Every chunk leaves ``latency`` ± ``jitter`` ms after it arrived; chunks overlap in flight."""

    latency: int = 0
    jitter: int = 0

    def leaves(self, chunk: bytes, at: float, random: Random) -> Pieces:
        """See Toxic."""
        delay_ms = self.latency + (random.uniform(-self.jitter, self.jitter) if self.jitter else 0)
        return [(at + delay_ms / 1000, chunk)]


TOXICS: dict[str, type[Latency]] = {"latency": Latency}


def attributes(toxic: Latency) -> dict[str, int]:
    """The settings as the API shows them."""
    return asdict(toxic)


def changed(toxic: Latency, wanted: Mapping[str, object]) -> Latency:
    """The toxic with some attributes replaced; unknown ones are passed over, as Toxiproxy does.

    Raises ValueError if a value is not a whole number.
    """
    values = attributes(toxic)
    for field in fields(toxic):
        value = wanted.get(field.name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"attribute {field.name} must be a whole number")
        values[field.name] = value
    return type(toxic)(**values)
