"""When the windows of a run were, and whether it came that far."""

from __future__ import annotations

from survive.judge.windows import Windows
from survive.units import SECOND

from .inputs import StoredRun, ended_us


class Spans:
    """The planned windows of one run."""

    def __init__(self, record: StoredRun) -> None:
        self._windows = Windows(record.plan)
        stops = [event.t_us for event in record.events if event.name == "stopped"]
        self._end_us = min([*stops, ended_us(record)])

    def length_s(self, window: str) -> float:
        """How long a window was planned to last. RecordError: there is no such window."""
        return self._windows.span_us(window) / SECOND

    def reached(self, window: str) -> bool:
        """Whether the run was still on when that window began. RecordError as above."""
        starts = self._windows.starts[self._windows.slices_of(window)]
        return bool((starts < self._end_us).any()) if len(starts) else True
