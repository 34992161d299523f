"""Prometheus text exposition, version 0.0.4: as much as the reference services need."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

Labels: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Histogram:
    """Counts of values in buckets with the given upper bounds, in seconds."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


def sample(name: str, labels: Labels, value: float) -> str:
    """One line."""
    return f"{name}{_braces(labels)} {value:.12g}"


def family(name: str, kind: str, about: str, values: Mapping[Labels, float]) -> list[str]:
    """A counter or gauge with all its samples."""
    lines = [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
    return lines + [sample(name, labels, value) for labels, value in values.items()]


def histogram(name: str, about: str, labels: Labels, values: Histogram) -> list[str]:
    """A histogram with cumulative buckets."""
    lines = [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
    seen = 0
    for bound, count in zip([*values.bounds, float("inf")], values.counts, strict=True):
        seen += count
        edge = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(sample(f"{name}_bucket", (*labels, ("le", edge)), seen))
    return [
        *lines,
        sample(f"{name}_sum", labels, values.total),
        sample(f"{name}_count", labels, seen),
    ]


def page(*families: Sequence[str]) -> str:
    """The whole document."""
    return "\n".join(line for lines in families for line in lines) + "\n"


@lru_cache(maxsize=4096)  # the same labels stand in each page
def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
