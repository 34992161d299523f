"""Pictures of a page: scales, steps, curves, heat, all as SVG with presentation attributes only.

A picture is as wide as its page and keeps its height. What is drawn lies in a *plot*, whose x goes
from 0 to `WIDE` and is stretched to the page; text stands outside of it, at shares of the width,
so that letters never are. Colours are seen on white and on black; none says anything alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import words
from .markup import Markup, joined, tag

WIDE = 1200
SMALL = 11  # size of letters
_APART = 24  # least pixels between two ticks
_LABEL_ROOM = 90  # parts of WIDE that a label of an axis may claim

# Of at least 3 : 1 against white and against the dark page (tests).
BLUE, GREEN, RED, ORANGE = "#3b82c4", "#1f9a68", "#dc4b43", "#c8681e"
FAULTS = ("#c2549d", ORANGE, "#8267c9", "#15909c", "#a07d12", "#a8685a")
DASHES = ("", "7 3", "2 2", "9 2 2 2")
INK, PAPER = "currentColor", "Canvas"


def fault_colour(number: int) -> str:
    """The same wherever a fault is drawn."""
    return FAULTS[number % len(FAULTS)]


@dataclass(frozen=True, slots=True)
class Linear:
    """Values to heights: ``low`` at the bottom, ``high`` at 0."""

    low: float
    high: float
    height: int

    def __call__(self, value: float) -> int:
        """From the top, within the plot."""
        part = (value - self.low) / (self.high - self.low)
        return round(self.height * (1 - min(1.0, max(0.0, part))))

    def ticks(self) -> list[float]:
        """Round values, as many as there is room for."""
        step = nice((self.high - self.low) * _APART / self.height)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Log:
    """The same by the logarithm."""

    low: float
    high: float
    height: int

    def __call__(self, value: float) -> int:
        """From the top, within the plot."""
        part = math.log(max(value, 1e-12) / self.low) / math.log(self.high / self.low)
        return round(self.height * (1 - min(1.0, max(0.0, part))))

    def ticks(self) -> list[float]:
        """Powers of ten; 1, 2 and 5 where there are few."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        few = math.log10(self.high / self.low) < 2
        values = [digit * 10.0**d for d in decades for digit in ((1, 2, 5) if few else (1,))]
        return [value for value in values if self.low <= value <= self.high]


def nice(value: float) -> float:
    """The next of 1, 2, 5 × 10^n."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


# ------------------------------------------------------------------------ plots


def picture(height: int, *children: object, name: str, title: str, about: str) -> Markup:
    """A whole picture: read out as its title and what it shows."""
    heard = (tag("title", title, id=f"{name}-t"), tag("desc", about, id=f"{name}-d"))
    return tag(
        "svg",
        *heard,
        *children,
        role="img",
        aria_labelledby=f"{name}-t {name}-d",
        width="100%",
        height=height,
        font_family="system-ui, sans-serif",
        font_size=SMALL,
        fill=INK,
    )


def plot(y: int, height: int, *shapes: object) -> Markup:
    """A part of a picture that is stretched to its width."""
    return tag(
        "svg",
        *shapes,
        y=y,
        width="100%",
        height=height,
        viewBox=f"0 0 {WIDE} {height}",
        preserveAspectRatio="none",
    )


def at(x: float) -> str:
    """A place of the plot as a share of the width."""
    return f"{min(100.0, max(0.0, 100 * x / WIDE)):.2f}".rstrip("0").rstrip(".") + "%"


def label(x: float, y: float, text: object, **more: object) -> Markup:
    """Letters over a plot, readable on whatever is under them."""
    return tag(
        "text", text, x=at(x), y=y, stroke=PAPER, stroke_width=3, paint_order="stroke",
        stroke_linejoin="round", **more,
    )  # fmt: skip


def boxed(x: float, end: float, y: int, text: str) -> Markup:
    """Letters that are cut off where their place ends."""
    inner = tag("text", text, x=3, y=SMALL + 1)
    width = at(max(0.0, end - x))
    return tag("svg", tag("title", text), inner, x=at(x), y=y, width=width, height=SMALL + 5)


def heading(y: int, title: str, keys: Sequence[tuple[str, str, str]] = ()) -> Markup:
    """The title of a strip, then what its lines mean: (sample, colour, name)."""
    parts: list[Markup] = [tag("tspan", title, font_weight="bold")]
    for sample, colour, name in keys:
        parts.append(Markup("&#160; "))
        parts.append(tag("tspan", sample, fill=colour))
        parts.append(tag("tspan", f" {name}"))
    return tag("text", *parts, x=0, y=y)


def gridlines(scale: Linear | Log, y: int, texts: Sequence[str]) -> Iterator[Markup]:
    """A faint line for each tick of a scale, its text on it where that has room."""
    free = scale.height
    for value, text in zip(scale.ticks(), texts, strict=True):
        at_y = y + scale(value)
        yield tag("line", x1="0%", x2="100%", y1=at_y, y2=at_y, stroke=INK, stroke_opacity=0.18)
        # A tick at the very top would leave the strip: its text hangs below it.
        below = scale(value) + (SMALL if scale(value) < SMALL else -2)
        if below <= free:
            yield label(4, y + below, text, fill_opacity=0.85)
            free = below - SMALL


# ----------------------------------------------------------------------- shapes


def stroke(path: str, colour: str, width: float = 1.5, **more: object) -> Markup:
    """A line that keeps its width however the plot is stretched."""
    return tag(
        "path", d=path, fill="none", stroke=colour, stroke_width=width,
        vector_effect="non-scaling-stroke", stroke_linejoin="round", **more,
    )  # fmt: skip


def steps(edges: Sequence[int], heights: Sequence[int | None]) -> str:
    """A path that is level over each column; None leaves a gap."""
    path: list[str] = []
    start, y = 0, None
    for height, same in itertools.groupby(heights):
        end = start + len(list(same))
        if height is not None:
            path.append(f"M{edges[start]} {height}" if y is None else f"v{height - y}")
            path.append(f"h{edges[end] - edges[start]}")
        start, y = end, height
    return "".join(path)


def curve(points: Sequence[tuple[int, int]]) -> str:
    """A path through points, as short as it can be said."""
    if not points:
        return ""
    path = [f"M{points[0][0]} {points[0][1]}"]
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        dx, dy = next_x - x, next_y - y
        if dx and dy:
            path.append(f"l{dx} {dy}" if dy >= 0 else f"l{dx}{dy}")
        elif dx or dy:
            path.append(f"h{dx}" if dx else f"v{dy}")
    return "".join(path)


def heat(
    edges: Sequence[int],
    levels: Sequence[Sequence[int]],
    cell: int,
    colour: str,
    opacities: Sequence[float],
) -> Markup:
    """Cells by column and row (row 0 at the bottom) as runs of equal level: one path a level.

    Level 0 is empty; ``opacities`` are those of levels 1, 2, ...
    """
    rows = len(levels[0]) if levels else 0
    runs: dict[int, list[str]] = {}
    for row in range(rows):
        y = (rows - 1 - row) * cell + cell // 2
        start, along = 0, (column[row] for column in levels)
        for level, same in itertools.groupby(along):
            end = start + len(list(same))
            if level:
                left = edges[start]
                runs.setdefault(level, []).append(f"M{left} {y}h{edges[end] - left}")
            start = end
    paths = [
        tag("path", d="".join(runs[level]), stroke_opacity=opacities[level - 1])
        for level in sorted(runs)
    ]
    return tag("g", *paths, stroke=colour, stroke_width=cell, shape_rendering="crispEdges")


def times(end_us: int, ticks_s: Sequence[int], y: int) -> Markup:
    """Labels of the time axis; those that would leave the picture are left out."""
    texts = []
    for at_s in ticks_s:
        x = at_s * 1e6 * WIDE / max(1, end_us)
        if x <= WIDE - _LABEL_ROOM / 2:
            anchor = "middle" if x else "start"
            texts.append(tag("text", words.tick(at_s), x=at(x), y=y, text_anchor=anchor))
    return joined(texts)
