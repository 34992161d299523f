"""What becomes of the body of an HTTP answer that is hit. No framing here, and no clock.

A piece comes, and pieces leave, each at its time. How to write the next one: an ``Effect``, and a
toxic that gives a fresh one for each answer (``http_toxics.py``). Both hosts use these very files:
the embedded proxy frames what leaves for the wire (``http1.py``), the virtual host for ASGI.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TypeAlias

WHOLE_MAX = 1 << 20  # bytes of one event or document that are kept together; longer ones pass
PACE_S = 0.05  # a paced answer leaves in pieces of this time


class Mark(Enum):
    """What an answer may end with."""

    END = "end"  # its regular end
    CUT = "cut"  # the connection closes before it


Item: TypeAlias = "bytes | Mark"
Outs: TypeAlias = Sequence[tuple[float, Item]]  # (when it leaves, loop seconds; what)


class Effect:
    """What happens to one body. This one: nothing."""

    def body(self, data: bytes, at: float) -> Outs:
        """A piece came ``at``."""
        return [(at, data)]

    def end(self, at: float) -> Outs:
        """The body is whole."""
        return [*((at, rest) for rest in (self.rest(),) if rest), (at, Mark.END)]

    def rest(self) -> bytes:
        """Take what is kept for want of its other half."""
        return b""


class Late(Effect):
    """The first piece leaves later, and so does what follows."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def body(self, data: bytes, at: float) -> Outs:
        """See Effect."""
        delay_s, self._delay_s = self._delay_s, 0.0
        return [(at + delay_s, data)]


class Paced(Effect):
    """So many bytes a second, in small pieces."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._free = 0.0

    def body(self, data: bytes, at: float) -> Outs:
        """See Effect."""
        size = max(1, round(self._rate * PACE_S))
        outs: list[tuple[float, Item]] = []
        self._free = max(self._free, at)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self._free += len(piece) / self._rate
            outs.append((self._free, piece))
        return outs


class Half(Effect):
    """The document ends in its middle, and says that it is whole."""

    def __init__(self) -> None:
        self._kept = b""
        self._too_long = False

    def body(self, data: bytes, at: float) -> Outs:
        """See Effect."""
        self._kept += data
        self._too_long = self._too_long or len(self._kept) > WHOLE_MAX
        return [(at, self.rest())] if self._too_long else []

    def end(self, at: float) -> Outs:
        """See Effect."""
        kept = self.rest()
        return [*([(at, kept[: len(kept) // 2])] if len(kept) > 1 else []), (at, Mark.END)]

    def rest(self) -> bytes:
        """See Effect."""
        kept, self._kept = self._kept, b""
        return kept


_BLANK = re.compile(rb"\r\n\r\n|\n\n|\r\r")  # the end of an event, HTML standard 9.2.6
_DATA = re.compile(rb"(?:^|[\r\n])data:")


class OnEvent(Effect):
    """Something happens at one event of a stream; the others pass, each as a whole."""

    def __init__(self, after: int, act: Callable[[bytes, float], Outs]) -> None:
        self._left = after
        self._act = act
        self._kept = b""
        self._over = False

    def body(self, data: bytes, at: float) -> Outs:
        """See Effect."""
        if self._over:
            return [(at, data)]
        self._kept += data
        outs: list[tuple[float, Item]] = []
        while not self._over and (blank := _BLANK.search(self._kept)):
            event, self._kept = self._kept[: blank.end()], self._kept[blank.end() :]
            outs += self._event(event, at)
        if self._over or len(self._kept) > WHOLE_MAX:
            self._over = True
            outs += [(at, rest) for rest in (self.rest(),) if rest]
        return outs

    def _event(self, event: bytes, at: float) -> Outs:
        if not _DATA.search(event):  # a comment that keeps the connection alive
            return [(at, event)]
        self._left -= 1
        if self._left >= 0:
            return [(at, event)]
        self._over = True
        return self._act(event, at)

    def rest(self) -> bytes:
        """See Effect."""
        kept, self._kept = self._kept, b""
        return kept
