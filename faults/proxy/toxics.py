"""What may happen to bytes on their way: one short class a toxic, in Toxiproxy's own words.

How to write the next one: a slotted dataclass whose fields are the API's integer attributes, with
one method, and a line in ``TOXICS``::

    @dataclass(frozen=True, slots=True)
    class SlowClose(_Toxic):
        delay: int = 0  # ms

        def leaves(self, chunk: Chunk, at: float, flow: Flow) -> Pieces:
            return [(at if chunk else at + self.delay / 1000, chunk)]

``leaves`` says which pieces of a chunk leave, and when. An empty chunk is an end of the stream.
Times are loop seconds; the stage around the toxic keeps the order, whatever times it returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from random import Random
from typing import Any, ClassVar, Protocol, TypeAlias

INSTALMENT_S = 0.1  # Toxiproxy pays out slow bandwidth in pieces of this time


class Cut(bytes):
    """An end that takes the connection with it. Empty, as every end is; told apart by identity."""

    __slots__ = ()


END = b""  # one direction is done; the other may go on
CLOSE = Cut()  # both are closed
RESET = Cut()  # both are reset

Chunk: TypeAlias = bytes
Pieces: TypeAlias = Sequence[tuple[float, Chunk]]  # (when it leaves, what)


class Flow:
    """What one toxic remembers of one direction of one connection."""

    __slots__ = ("free", "passed", "random")

    def __init__(self, random: Random) -> None:
        self.random = random
        self.free = 0.0  # when the last piece has left
        self.passed = 0  # bytes so far


class Toxic(Protocol):
    """The settings of one toxic (a dataclass of ints), and what they do to a chunk."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    room: ClassVar[int]  # pieces it holds before its source is no longer read

    def begins(self, at: float) -> Pieces:
        """What leaves though no chunk comes: it stands on a connection from ``at`` on."""

    def leaves(self, chunk: Chunk, at: float, flow: Flow) -> Pieces:
        """The pieces of a chunk that arrived ``at``; an empty one is an end of the stream."""


@dataclass(frozen=True, slots=True)
class _Toxic:
    """What is the same for most."""

    room: ClassVar[int] = 2

    def begins(self, at: float) -> Pieces:
        """See Toxic."""
        return ()


@dataclass(frozen=True, slots=True)
class Latency(_Toxic):
    """Every chunk leaves ``latency`` ± ``jitter`` ms after it arrived; chunks overlap in flight."""

    room: ClassVar[int] = 1024  # as Toxiproxy
    latency: int = 0
    jitter: int = 0

    def leaves(self, chunk: Chunk, at: float, flow: Flow) -> Pieces:
        """See Toxic."""
        spread = flow.random.uniform(-self.jitter, self.jitter) if self.jitter else 0
        return [(at + (self.latency + spread) / 1000, chunk)]


@dataclass(frozen=True, slots=True)
class Bandwidth(_Toxic):
    """``rate`` KB/s (1 KB = 1000 bytes), paid out at least every 100 ms; at 0 nothing passes."""

    rate: int = 0

    def leaves(self, chunk: Chunk, at: float, flow: Flow) -> Pieces:
        """See Toxic."""
        if self.rate <= 0:
            return [(math.inf, chunk)]
        free = max(at, flow.free)
        size = round(self.rate * 1000 * INSTALMENT_S)
        pieces = []
        for start in range(0, len(chunk) or 1, size):
            piece = chunk[start : start + size] if chunk else chunk
            free += len(piece) / (self.rate * 1000)
            pieces.append((free, piece))
        flow.free = free
        return pieces


@dataclass(frozen=True, slots=True)
class SlowClose(_Toxic):
    """The end of the stream comes ``delay`` ms later than its last byte."""

    delay: int = 0

    def leaves(self, chunk: Chunk, at: float, flow: Flow) -> Pieces:
        """See Toxic."""
        return [(at if chunk else at + self.delay / 1000, chunk)]


@dataclass(frozen=True, slots=True)
class Timeout(_Toxic):
    """Nothing passes; the connection is closed after ``timeout`` ms, at 0 when the toxic goes."""

    timeout: int = 0

    def begins(self, at: float) -> Pieces:
        """See Toxic."""
        return [(at + self.timeout / 1000 if self.timeout > 0 else math.inf, CLOSE)]

    def leaves(self, chunk: Chunk, at: float, flow: Flow) -> Pieces:
        """See Toxic."""
        return ()


@dataclass(frozen=True, slots=True)
class ResetPeer(_Toxic):
    """The first chunk is lost, and the connection reset ``timeout`` ms after it came."""

    timeout: int = 0

    def leaves(self, chunk: Chunk, at: float, flow: Flow) -> Pieces:
        """See Toxic."""
        return [(at + self.timeout / 1000, RESET)]


@dataclass(frozen=True, slots=True)
class Slicer(_Toxic):
    """Chunks are cut to ``average_size`` ± ``size_variation`` bytes, ``delay`` µs after each."""

    average_size: int = 0
    size_variation: int = 0
    delay: int = 0

    def leaves(self, chunk: Chunk, at: float, flow: Flow) -> Pieces:
        """See Toxic."""
        free = max(at, flow.free)
        pieces = []
        for piece in self._slices(chunk, flow.random) if chunk else [chunk]:
            pieces.append((free, piece))
            free += self.delay / 1e6 if piece else 0.0
        flow.free = free
        return pieces

    def _slices(self, chunk: bytes, random: Random) -> list[bytes]:
        """In two about the middle until each part is small enough, as Toxiproxy does."""
        small, spread = max(1, self.average_size), max(0, self.size_variation)
        slices, rest = [], [chunk]
        while rest:
            part = rest.pop()
            if len(part) - small <= spread:
                slices.append(part)
                continue
            middle = len(part) // 2 + (random.randrange(-spread, spread) if spread else 0)
            middle = min(max(1, middle), len(part) - 1)
            rest += [part[middle:], part[:middle]]
        return slices


@dataclass(frozen=True, slots=True)
class LimitData(_Toxic):
    """The connection is closed once ``bytes`` have passed."""

    bytes: int = 0

    def leaves(self, chunk: Chunk, at: float, flow: Flow) -> Pieces:
        """See Toxic."""
        left = max(0, self.bytes - flow.passed)
        flow.passed += len(chunk)
        if len(chunk) < left:
            return [(at, chunk)]
        return [*([(at, chunk[:left])] if left else []), (at, CLOSE)]


TOXICS: dict[str, type[Toxic]] = {
    "latency": Latency,
    "bandwidth": Bandwidth,
    "slow_close": SlowClose,
    "timeout": Timeout,
    "reset_peer": ResetPeer,
    "slicer": Slicer,
    "limit_data": LimitData,
}


def attributes(toxic: Toxic) -> dict[str, int]:
    """The settings as the API shows them."""
    return asdict(toxic)


def changed(toxic: Toxic, wanted: Mapping[str, object]) -> Toxic:
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
