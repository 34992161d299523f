"""One cell in words, and where its objective is written: the same in every report for CI."""

from __future__ import annotations

from survive.judge.verdict import Cell

from . import told, words
from .inputs import StoredRun
from .sentence import observed_text


def seen_text(cell: Cell) -> str:
    """``ttft.p95 141 ms (138..147), limit ≤ 800 ms, n 1,214, 2 bad``."""
    seen = observed_text(cell) if cell.observed is not None else "not measured"
    interval = words.interval(cell.low, cell.high, cell.unit)
    limit = told.limit(cell).removeprefix(f"{cell.metric} ")
    parts = [
        f"{cell.metric} {seen}" + (f" ({interval})" if interval else ""),
        f"limit {limit}",
        f"n {words.count(cell.n)}",
        *([f"{words.count(cell.bad)} bad"] if cell.bad else []),
    ]
    return ", ".join(parts)


def place_of(record: StoredRun, objective: str) -> tuple[str, int]:
    """The scenario file in its repository, and the line of an objective; ("", 0) if unknown."""
    lines = record.manifest.get("lines")
    line = lines.get(objective) if isinstance(lines, dict) else None
    return str(record.manifest.get("file", "")), line if isinstance(line, int) else 0
