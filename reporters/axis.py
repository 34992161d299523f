"""One time axis for everything that a text report draws: each column is the same stretch of time.

Rows are lists of one-cell strings with one style each, so that strips, phases and fault bands stand
exactly under each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from survive.judge.verdict import FaultReport, Number
from survive.plan.model import FaultWindow, Plan
from survive.units import SECOND

from .glyphs import Glyphs
from .inputs import Second
from .words import tick

FAULT, RECOVERY, CALM, FAINT = "magenta", "yellow", "cyan", "bright_black"
_STEPS_S = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600)
_LABEL_CELLS = 9  # a labelled tick at most this often


@dataclass(frozen=True, slots=True)
class Axis:
    """[0, end_us) in ``columns`` equal parts."""

    end_us: int
    columns: int

    def column(self, t_us: float) -> int:
        """The column that holds that moment; moments outside go to the nearest."""
        return min(self.columns - 1, max(0, int(t_us * self.columns / max(1, self.end_us))))

    def edge_s(self, column: int) -> float:
        """Start of a column."""
        return column * self.end_us / self.columns / SECOND


@dataclass(frozen=True, slots=True)
class Band:
    """The life of one fault. ``off_us`` None = one-shot; ``back_us`` when it had recovered."""

    on_us: float
    off_us: float | None
    end_us: float
    back_us: float | None = None

    @property
    def recovery_us(self) -> float:
        """Where its recovery begins: the heal, of a one-shot the inject."""
        return self.on_us if self.off_us is None else self.off_us

    @classmethod
    def planned(cls, window: FaultWindow) -> Band:
        """As the plan has it."""
        off = window.heal_us if window.held else None
        return cls(window.inject_us, off, window.recovery_end_us)

    @classmethod
    def actual(cls, window: FaultWindow, fault: FaultReport) -> Band:
        """As it was; the plan where it is not known."""
        plan = cls.planned(window)
        on = _us(fault.injected_at_s, plan.on_us)
        off = None if plan.off_us is None else _us(fault.healed_at_s, plan.off_us)
        start = on if off is None else off
        after = fault.recovered_after_s
        return cls(on, off, plan.end_us, None if after is None else start + after * SECOND)


def _us(at_s: float | None, otherwise: float) -> float:
    return otherwise if at_s is None else at_s * SECOND


Row = list[tuple[str, str]]  # one cell: character, style


def text(row: Row) -> Text:
    """A row as Rich text, neighbours of one style joined (far cheaper to print)."""
    joined = Text()
    start = 0
    for index in range(1, len(row) + 1):
        if index == len(row) or row[index][1] != row[start][1]:
            joined.append("".join(cell for cell, _ in row[start:index]), row[start][1])
            start = index
    return joined


def styles(axis: Axis, bands: Sequence[Band]) -> list[str]:
    """The colour of each column: a fault is on, its recovery is awaited, or all is calm."""
    found = [CALM] * axis.columns
    for band in bands:
        start = band.recovery_us
        _paint(found, axis, start, band.end_us, RECOVERY)
    for band in bands:
        if band.off_us is not None:
            _paint(found, axis, band.on_us, band.off_us, FAULT)
    return found


def _paint(found: list[str], axis: Axis, start: float, end: float, style: str) -> None:
    for column in range(axis.column(start), axis.column(end) + 1):
        found[column] = style


def band_row(axis: Axis, bands: Sequence[Band], glyphs: Glyphs) -> Row:
    """``┣━━━━┫┄┄●┄┄``: on from inject to heal, then the recovery window, and when it was back."""
    row: Row = [(" ", "")] * axis.columns
    for band in bands:
        start = band.recovery_us
        for column in range(axis.column(start), axis.column(max(start, band.end_us - 1)) + 1):
            row[column] = (glyphs.after, RECOVERY)
    for band in bands:
        if band.back_us is not None:
            # Back within the heal's own column: beside its mark, or nobody would see it.
            at = max(axis.column(band.back_us), axis.column(band.recovery_us) + 1)
            row[min(at, axis.columns - 1)] = (glyphs.back, "green")
    for band in bands:
        _draw_on(row, axis, band, glyphs)
    return row


def _draw_on(row: Row, axis: Axis, band: Band, glyphs: Glyphs) -> None:
    first = axis.column(band.on_us)
    last = first if band.off_us is None else axis.column(band.off_us)
    for column in range(first, last + 1):
        row[column] = (glyphs.on, FAULT)
    row[last] = (glyphs.closes, FAULT)
    row[first] = (glyphs.opens if last > first else glyphs.once, FAULT)


def phase_row(axis: Axis, plan: Plan, glyphs: Glyphs) -> Row:
    """``│prototype│growth   │production     ``: every phase at its place, long names cut."""
    row: Row = [(" ", "")] * axis.columns
    starts = [axis.column(phase.start_us) for phase in plan.phases] + [axis.columns]
    for phase, start, end in zip(plan.phases, starts, starts[1:], strict=False):
        room = end - start - 1
        name = glyphs.short(phase.name, room) if room >= 3 else ""
        if start < axis.columns:
            row[start] = (glyphs.edge, FAINT)
        _write(row, start + 1, name)
    return row


def _write(row: Row, at: int, name: str) -> None:
    """One character a cell; a wide one takes the place of two."""
    for character in name:
        cells = cell_len(character)
        if cells:
            row[at : at + cells] = [(character, ""), *[("", "")] * (cells - 1)]
        at += cells


def tick_row(axis: Axis, glyphs: Glyphs) -> Row:
    """``╵0s      ╵10s     ╵20s``."""
    row: Row = [(" ", "")] * axis.columns
    total_s = axis.end_us / SECOND
    step = next((s for s in _STEPS_S if s * axis.columns / max(total_s, 1e-6) >= _LABEL_CELLS), 0)
    step = step or 3600 * math.ceil(_LABEL_CELLS * total_s / axis.columns / 3600)
    for at_s in range(0, math.ceil(total_s), step):
        label = glyphs.tick + tick(at_s)
        start = axis.column(at_s * SECOND)
        if start + len(label) <= axis.columns:
            for offset, character in enumerate(label):
                row[start + offset] = (character, FAINT)
    return row


def resample(axis: Axis, rows: Sequence[Second]) -> list[list[Second]]:
    """The seconds of each column: those whose middle it holds, else the one it lies in."""
    by_second = {int(row.t_s): row for row in rows}
    columns = []
    for column in range(axis.columns):
        start, end = axis.edge_s(column), axis.edge_s(column + 1)
        middles = range(math.ceil(start - 0.5), math.ceil(end - 0.5))
        seconds = middles if len(middles) else [int((start + end) / 2)]
        columns.append([by_second[s] for s in seconds if s in by_second])
    return columns


def linear(values: Sequence[float | None], top: float, glyphs: Glyphs) -> list[str]:
    """A bar for each value on [0, top]; a dot for zero, a blank where nothing is known."""
    return [_bar(value, value / top if value and top else 0.0, glyphs) for value in values]


def logarithmic(values: Sequence[Number], glyphs: Glyphs) -> list[str]:
    """A bar for each value between the least and the greatest, by its logarithm."""
    known = [v for v in values if isinstance(v, int | float) and 0 < v < math.inf]
    low, high = (math.log(min(known)), math.log(max(known))) if known else (0.0, 0.0)
    # Less than a factor of two is calm: it must not fill the strip from bottom to top.
    room = max(high - low, math.log(2))
    cells = []
    for value in values:
        if value is None:
            cells.append(" ")
        elif isinstance(value, str) or math.isinf(value):
            cells.append(glyphs.infinite)
        else:
            cells.append(_bar(value, (math.log(value) - low) / room if value > 0 else 0.0, glyphs))
    return cells


def _bar(value: float | None, part: float, glyphs: Glyphs) -> str:
    if value is None:
        return " "
    if value <= 0:
        return glyphs.zero
    steps = len(glyphs.bars)
    return glyphs.bars[min(steps - 1, max(0, math.ceil(part * steps) - 1))]
