"""HdrHistogram V2 interval logs: ``latency.hlog``, readable by every HDR tool.

One line a set: ``Tag=<tag>,<start s>,<length s>,<max ms>,<base64>``. The times are those of the
slice that the set is filed under, so several lines of one slice and tag are normal (late deltas)
and readers add them. The StartTime is the epoch: the record holds no wall time.

The library's own writer raises, drops tags and floors maxima (hdrhistogram 0.10.8), and its codec
walks all 23,552 counters; this one writes the same bytes from sparse counts in about 20 µs.
Format: HdrHistogram's ``AbstractHistogram.encodeIntoCompressedByteBuffer``, V2 (ZigZag LEB128 of
counts, a run of k zeros written as −k).
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from survive.errors import RecordError
from survive.record.hdr import BUCKETS, DIGITS, HIGHEST_US, LOWEST_US, highest_of
from survive.record.samples import Counts

_COOKIE = 0x1C849303 | 0x10
_COMPRESSED_COOKIE = 0x1C849304 | 0x10
_PAYLOAD = struct.Struct(">IIIIQQd")  # cookie, length, offset, digits, lowest, highest, ratio
_OUTER = struct.Struct(">II")  # cookie, length
_MAX_COUNT = 1 << 48  # keeps every word within seven bytes, far from the format's odd ninth

HEADER = (
    "#[Histogram log format version 1.3]\n"
    "#[StartTime: 0.000 (seconds since epoch), Thu Jan 01 00:00:00 UTC 1970]\n"
    '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
)
_COMPLETE = "#[Complete: {} intervals]\n"


def encode(sets: Counts) -> bytes:
    """A sparse histogram as base64 V2. ValueError: indices do not ascend, a count is not ≥ 1."""
    words = bytearray()
    at = 0
    for index, count in zip(sets.indices, sets.counts, strict=True):
        if not at <= index < BUCKETS or not 0 < count < _MAX_COUNT:
            raise ValueError(f"bucket {index} with count {count} cannot be written after {at - 1}")
        zeros = index - at
        if zeros:
            _put(words, 2 * zeros - 1)
        _put(words, 2 * count)
        at = index + 1
    head = _PAYLOAD.pack(_COOKIE, len(words), 0, DIGITS, LOWEST_US, HIGHEST_US, 1.0)
    squeezed = zlib.compress(head + bytes(words))
    return base64.b64encode(_OUTER.pack(_COMPRESSED_COOKIE, len(squeezed)) + squeezed)


def decode(text: bytes) -> Counts:
    """The inverse of encode. ValueError on damage or another configuration of buckets."""
    try:
        raw = base64.b64decode(text, validate=True)
        cookie, length = _OUTER.unpack_from(raw)
        if cookie != _COMPRESSED_COOKIE or length != len(raw) - _OUTER.size:
            raise ValueError("not a whole V2 histogram")
        plain = _inflate(raw[_OUTER.size :])
        head = _PAYLOAD.unpack_from(plain)
    except (binascii.Error, struct.error, zlib.error) as error:
        raise ValueError(f"damaged histogram: {error}") from error
    if head != (_COOKIE, len(plain) - _PAYLOAD.size, 0, DIGITS, LOWEST_US, HIGHEST_US, 1.0):
        raise ValueError("a histogram of another range or precision")
    return _counts(plain[_PAYLOAD.size :])


def _inflate(squeezed: bytes) -> bytes:
    """Bounded: no honest payload passes nine bytes a bucket."""
    reader = zlib.decompressobj()
    plain = reader.decompress(squeezed, _PAYLOAD.size + 9 * BUCKETS)
    if not reader.eof or reader.unused_data:
        raise ValueError("not a whole V2 histogram")
    return plain


def _put(out: bytearray, word: int) -> None:
    while word > 0x7F:
        out.append(word & 0x7F | 0x80)
        word >>= 7
    out.append(word)


def _counts(words: bytes) -> Counts:
    indices: list[int] = []
    counts: list[int] = []
    at = word = shift = 0
    for byte in words:
        word |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            continue
        if word & 1:
            at += (word + 1) >> 1  # a run of zeros
        else:
            if word:
                indices.append(at)
                counts.append(word >> 1)
            at += 1
        word = shift = 0
    if shift or at > BUCKETS:
        raise ValueError("a histogram that ends inside a count or past its range")
    return Counts(indices, counts)


def _seconds(us: int) -> str:
    return f"{us // 1_000_000}.{us % 1_000_000:06d}"


class HlogWriter:
    """Appends intervals; whole lines only, nothing held back after ``flush``."""

    __slots__ = ("_file", "lines")

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("xb")
        self._file.write(HEADER.encode())
        self._file.flush()
        self.lines = 0

    def write(self, start_us: int, end_us: int, tag: str, sets: Counts) -> None:
        """One interval. The tag must hold no comma, space or line end (Key.tag makes such)."""
        if not sets.indices:
            return
        most_ms = highest_of(sets.indices[-1]) / 1000
        head = f"Tag={tag},{_seconds(start_us)},{_seconds(end_us - start_us)},{most_ms:.3f},"
        self._file.write(head.encode() + encode(sets) + b"\n")
        self.lines += 1

    def flush(self) -> None:
        """Hand what was written to the operating system: it survives a kill -9 of this process."""
        self._file.flush()

    def close(self) -> None:
        """Say that the log is whole. Idempotent."""
        if not self._file.closed:
            self._file.write(_COMPLETE.format(self.lines).encode())
            self._file.close()


def read_hlog(path: Path, *, whole: bool = True) -> Iterator[tuple[int, int, str, Counts]]:
    """Every interval in order of writing: (start_us, end_us, tag, counts).

    ``whole``: the log must have been closed. Without it (a run that was killed) a torn last line
    is passed over. RecordError with file and line for everything else that is wrong.
    """
    lines = 0
    complete = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                torn = not line.endswith(b"\n")
                if torn and not whole:
                    break
                if line.startswith(b"#[Complete:"):
                    complete = not torn and line.decode("ascii") == _COMPLETE.format(lines)
                elif not line.startswith((b"#", b'"')):
                    yield _interval(path, number, line)
                    lines += 1
                    complete = False
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if whole and not complete:
        raise RecordError(f"{path} is cut short: its last line does not say that it is complete")


def _interval(path: Path, number: int, line: bytes) -> tuple[int, int, str, Counts]:
    try:
        tag, start, length, _, payload = line.rstrip(b"\n").decode("ascii").split(",")
        if not tag.startswith("Tag="):
            raise ValueError("no tag")
        start_us = _microseconds(start)
        return start_us, start_us + _microseconds(length), tag[4:], decode(payload.encode())
    except ValueError as error:
        raise RecordError(f"{path}:{number}: not an interval of ours: {error}") from error


def _microseconds(text: str) -> int:
    whole, _, part = text.partition(".")
    if len(part) != 6:
        raise ValueError(f"{text!r} is not a time in s to the µs")
    return int(whole) * 1_000_000 + int(part)
