"""Traces of real traffic: when calls came, and how long they and their answers were.

Two public forms are read. Azure's (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) and Mooncake's
(a JSON object a line: timestamp in ms, input_length, output_length). A trace gives the *pattern* of
arrivals, the phases give the rates: at a phase whose rate is the trace's own it is replayed to its
own clock, at ten times that rate ten times as fast. A load longer than the trace begins it anew.

Rows of such a file are in step with arrivals, and have ``input_tokens`` and ``output_tokens``.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

MAX_ARRIVALS = 200_000  # a plan holds them all
_AZURE, _MOONCAKE = "TIMESTAMP", "timestamp"
_LENGTHS = {
    "ContextTokens": "input_tokens",
    "GeneratedTokens": "output_tokens",
    "input_length": "input_tokens",
    "output_length": "output_tokens",
}
_TICKS_DIGITS = 6  # Azure writes 100 ns; a run counts microseconds


def read_trace(path: Path) -> tuple[int, ...]:
    """Moments of a trace in µs since its first. ValueError says what is wrong, with the line."""
    moments: list[int] = []
    for number, at_us in _csv_moments(path) if path.suffix == ".csv" else _json_moments(path):
        if moments and at_us < moments[-1]:
            raise ValueError(f"line {number} goes back in time")
        moments.append(at_us)
        if len(moments) > MAX_ARRIVALS:
            raise ValueError(f"has more than {MAX_ARRIVALS:,} arrivals")
    if len(moments) < 2 or moments[0] == moments[-1]:
        raise ValueError("has not two arrivals at different times")
    return tuple(at_us - moments[0] for at_us in moments)


def variation(moments_us: tuple[int, ...]) -> float:
    """The coefficient of variation of the gaps, two decimals."""
    gaps = [b - a for a, b in itertools.pairwise(moments_us)]
    mean = moments_us[-1] / len(gaps)
    return round(math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean, 2)


def with_lengths(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a trace with its lengths as numbers under one name each; other rows as they are."""
    found = {
        name: int(row[given])
        for given, name in _LENGTHS.items()
        if given in row and str(row[given]).isdecimal()
    }
    return {**found, **row} if found else row


def _csv_moments(path: Path) -> Iterator[tuple[int, int]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        if _AZURE not in (reader.fieldnames or ()):
            raise ValueError(f"has no column {_AZURE}")
        for row in reader:
            yield reader.line_num, _moment_us(row[_AZURE] or "", reader.line_num)


def _moment_us(text: str, number: int) -> int:
    whole, _, part = text.strip().partition(".")
    try:
        since = datetime.fromisoformat(whole) - datetime(1970, 1, 1)
        digits = int(part[:_TICKS_DIGITS].ljust(_TICKS_DIGITS, "0"))
    except (ValueError, TypeError):
        raise ValueError(
            f"line {number}: {text[:40]!r} is not like 2023-11-16 18:15:46.68"
        ) from None
    return (since.days * 86_400 + since.seconds) * 1_000_000 + digits


def _json_moments(path: Path) -> Iterator[tuple[int, int]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                at_ms = json.loads(line)[_MOONCAKE]
                yield number, round(at_ms * 1000)
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                raise ValueError(f"line {number} has no {_MOONCAKE} in ms") from None
