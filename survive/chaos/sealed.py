"""Lines that show their own damage: each bears its number, and a sum of its bytes at its end.

::

    {"n":3,"entry":"healed","id":"slow#0","proven":true,"rung":"undo","sum":"5d0c1ba7"}

A line whose sum is wrong was not written so. A number that no line bears belongs to a line that
was written, and so acted on, and is gone. A write that never came to its end (its writer was
killed) is neither: nothing was done for it, and whoever writes next gives its number again.

What no reader can tell is a file that lost its end and nothing else: that looks as if the last
lines had not been written. They were fsynced before anything was done.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_SUM = re.compile(rb',"sum":"([0-9a-f]{8})"\}')


def seal(number: int, entry: Mapping[str, Any]) -> bytes:
    """One line. Number 0: as ledgers were written before lines had numbers and sums."""
    if not number:
        return json.dumps(entry, separators=(",", ":")).encode() + b"\n"
    text = json.dumps({"n": number, **entry}, separators=(",", ":")).encode()
    return b'%s,"sum":"%08x"}\n' % (text[:-1], zlib.crc32(text))


@dataclass(frozen=True, slots=True)
class Entry:
    """One line that could be read; ``number`` 0 = it bears none."""

    line: int
    number: int
    fields: dict[str, Any]


@dataclass(slots=True)
class Sealed:
    """Such a file, read. The last three are known once ``entries`` came to its end."""

    data: bytes
    damage: list[str] = field(default_factory=list)  # "line 3 cannot be read"
    next: int = 1  # the number of the line that is written next; 0 = this file has no numbers
    torn: bool = False  # it ends within a line
    unread_at_end: bool = False  # what comes after the last entry cannot be read

    def entries(self) -> Iterator[Entry]:
        """What can be read, in order; ``damage`` holds what could not be before each."""
        lines = self.data.split(b"\n")
        self.torn = bool(lines[-1])
        opened = [(at, _opened(at, line)) for at, line in enumerate(lines, 1) if line]
        numbers = [entry.number for _, entry in opened if entry is not None]
        sealed = any(numbers) or not numbers
        unread: list[int] = []
        for at, entry in opened:
            if entry is None or bool(entry.number) != sealed:
                unread.append(at)
            else:
                if entry.number >= self.next or not sealed:
                    if entry.number > self.next or not sealed:
                        self._tell(unread, entry.number - self.next, at)
                    unread = []  # with no number missing they were never whole, nor acted on
                    self.next = entry.number + 1
                yield entry
        if self.torn and unread[-1:] == [len(lines)] and not _SUM.search(lines[-1]):
            unread.pop()
        self._tell(unread, 0, len(lines))
        self.unread_at_end = bool(unread)
        self.next = self.next + len(unread) if sealed else 0  # so that the gap stays

    def unreadable(self, entry: Entry) -> None:
        """Its bytes are as they were written, and yet its reader does not know what it means."""
        self._tell([entry.line], 0, entry.line)

    def _tell(self, unread: list[int], missing: int, before: int) -> None:
        if len(unread) == 1:
            self.damage.append(f"line {unread[0]} cannot be read")
        elif unread:
            self.damage.append(f"lines {', '.join(map(str, unread))} cannot be read")
        elif missing > 0:
            self.damage.append(f"what stood before line {before} is gone")


def _opened(at: int, line: bytes) -> Entry | None:
    """None = it cannot be read."""
    found = _SUM.search(line)
    if found is not None:
        text = line[: found.start()] + b"}"
        if found.end() != len(line) or zlib.crc32(text) != int(found[1], 16):
            return None
        line = text
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    number = fields.pop("n", 0) if found is not None else 0
    return Entry(at, number, fields) if type(number) is int and number >= 0 else None
