"""Percentile spectra: every time of every request kind, in the steady window and around each fault.

The axis of shares is log 1/(1 − p), so that each nine has the same room. A curve that reaches the
upper edge went to infinity there: so large a share of its requests failed. An objective is a step:
what keeps it runs below and to the right of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from survive.judge.verdict import Cell, Number, Verdict
from survive.record.samples import Series

from . import svg, words
from .markup import Markup, joined, number, right, row, table, tag
from .measured import Measured, Spread, held, pools
from .timeline import limited_times
from .told import is_infinite, limit, shown

MOST = 12  # pictures of a page
FAULTS = len(svg.FAULTS)  # in one picture: as many as there are colours
_HEIGHT, _TOP = 170, 8
_NAMED = (0.5, 0.9, 0.95, 0.99, 0.999)
_POINTS = 12  # of a curve, for each nine


@dataclass(frozen=True, slots=True)
class Line:
    """One window's curve, and how it is drawn."""

    window: str
    spread: Spread
    colour: str
    dash: str

    @property
    def width(self) -> float:
        """Steady stands out."""
        return 2.4 if self.colour == svg.INK else 1.6


def spectra(verdict: Verdict, measured: Measured) -> Iterator[Markup]:
    """Pictures with their tables; where there are too many, what is missing is said."""
    charts = list(_charts(verdict, measured))
    for at, (series, kind, cells, faults) in enumerate(charts[:MOST]):
        lines = [line for line in _lines(measured, series, kind, faults) if line.spread.n]
        if lines:
            yield _one(f"spectrum-{at}", _title(measured, series, kind, faults), lines, cells)
    if len(charts) > MOST:
        more = words.plural(len(charts) - MOST, "more picture")
        yield tag("p", f"{more} would follow: latency.hlog has every histogram.")


def _charts(
    verdict: Verdict, measured: Measured
) -> Iterator[tuple[Series, int, list[Cell], list[str]]]:
    """What is limited first, then the latency of every other kind."""
    kinds = measured.plan.kinds
    limited = limited_times(verdict, kinds)
    rest = [(Series.LATENCY, kind) for kind in range(len(kinds))]
    wanted = list(dict.fromkeys([*limited, *rest]))
    faults = list(pools(measured.plan))
    groups = [faults[at : at + FAULTS] for at in range(0, len(faults), FAULTS)] or [[]]
    for group in groups:
        for series, kind in wanted:
            yield series, kind, limited.get((series, kind), []), group


def _title(measured: Measured, series: Series, kind: int, faults: Sequence[str]) -> str:
    title = f"{series} of {measured.plan.kinds[kind]}"
    parts = len(pools(measured.plan)) > FAULTS
    return f"{title}: {', '.join(faults)}" if parts else title


def _lines(measured: Measured, series: Series, kind: int, faults: Sequence[str]) -> Iterator[Line]:
    yield Line("steady", measured.spread(series, kind, "steady"), svg.INK, "")
    if not measured.plan.faults:
        yield Line("run", measured.spread(series, kind, "run"), svg.BLUE, "6 3")
    for at, fault in enumerate(faults):
        colour = svg.fault_colour(at)
        during = f"fault:{fault}"
        yield Line(during, measured.spread(series, kind, during), colour, "")
        if held(measured.plan, fault):  # of a one-shot the same span
            after = f"recovery:{fault}"
            yield Line(after, measured.spread(series, kind, after), colour, "5 3")


def _one(name: str, title: str, lines: Sequence[Line], cells: Sequence[Cell]) -> Markup:
    nines = max(2.0, min(5.0, math.log10(max(line.spread.n for line in lines))))
    scale = _scale(lines, cells)
    shapes: list[Markup] = [
        svg.stroke(f"M{_x(share, nines)} 0V{_HEIGHT + _TOP}", svg.INK, 1, stroke_opacity=0.18)
        for share, _ in _shares(nines)
    ]
    for line in lines:
        path = _path(line.spread, scale, nines)
        shapes.append(
            tag("g", tag("title", line.window), svg.stroke(
                path, line.colour, line.width, stroke_dasharray=line.dash or None))
        )  # fmt: skip
    steps = {(cell.limit, _share_of(cell)): cell for cell in cells}
    shapes += [svg.stroke(_step(cell, scale, nines), svg.RED, 2.2) for cell in steps.values()]
    said = [("━━", svg.RED, limit(cell)) for cell in steps.values()]
    grid = svg.gridlines(scale, 18 + _TOP, [words.milliseconds(v) for v in scale.ticks()])
    below = [
        tag("text", text, x=svg.at(_x(share, nines)), y=18 + _TOP + _HEIGHT + 14,
            text_anchor="middle" if share else "start")
        for share, text in _shares(nines)
    ]  # fmt: skip
    drawn = svg.picture(
        18 + _TOP + _HEIGHT + 20, svg.heading(svg.SMALL, title, said),
        svg.plot(18, _HEIGHT + _TOP, *shapes), *grid, *below, name=name, title=title,
        about="Percentiles by window; the table below has the numbers.",
    )  # fmt: skip
    return joined((drawn, _table(title, lines)))


def _scale(lines: Sequence[Line], cells: Sequence[Cell]) -> svg.Log:
    values = [cell.limit for cell in cells]
    for line in lines:
        ends = (line.spread.at(0.0), line.spread.most())
        values += [float(v) for v in ends if v is not None and not is_infinite(v)]
    low, high = min(values, default=1.0), max(values, default=10.0)
    return svg.Log(low / 1.15, max(high * 1.15, low * 3), _HEIGHT)


def _x(share: float, nines: float) -> int:
    """log 1/(1 − p), of which ``nines`` decades fit."""
    return round(min(1.0, -math.log10(max(1e-9, 1 - share)) / nines) * svg.WIDE)


def _shares(nines: float) -> list[tuple[float, str]]:
    """Where lines stand: 0, p50, p90, p99, ..."""
    known = [(0.0, "0"), (0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"),
             (0.9999, "p99.99")]  # fmt: skip
    return [(share, text) for share, text in known if _x(share, nines) < 0.97 * svg.WIDE]


def _path(spread: Spread, scale: svg.Log, nines: float) -> str:
    """From the least to the share that the number of requests can tell."""
    end = min(nines, math.log10(spread.n))
    points = round(_POINTS * end) + 1
    shares = [1 - 10 ** (-end * at / points) for at in range(points + 1)]
    drawn: list[tuple[int, int]] = []
    for share in shares:
        value = spread.at(share)
        if is_infinite(value):
            drawn += _to_infinity(spread, scale, nines)
            break
        assert isinstance(value, int | float)
        drawn.append((_x(share, nines), _TOP + scale(value)))
    return svg.curve(drawn)


def _to_infinity(spread: Spread, scale: svg.Log, nines: float) -> Iterator[tuple[int, int]]:
    """Straight up, at the share of requests that came at all."""
    x = _x(spread.finite / spread.n, nines)
    last = spread.most()
    if isinstance(last, int | float) and spread.finite:
        yield x, _TOP + scale(last)
    yield x, 0


def _share_of(cell: Cell) -> float:
    return float(cell.metric.rpartition(".p")[2]) / 100


def _step(cell: Cell, scale: svg.Log, nines: float) -> str:
    return f"M0 {_TOP + scale(cell.limit)}H{_x(_share_of(cell), nines)}V0"


def _table(title: str, lines: Sequence[Line]) -> Markup:
    named = [f"p{words.digits(100 * share, 4)}" for share in _NAMED]
    head = ["window", *map(right, ("requests", "bad", *named, "max"))]
    body = [
        row(
            joined((_sample(line), f" {line.window}")),
            number(words.count(line.spread.n)),
            number(words.count(line.spread.gone)),
            *(number(_percentile(line.spread, share)) for share in _NAMED),
            number(shown(line.spread.most())),
        )
        for line in lines
    ]
    return table(head, body, f"{title}, failures as infinity; max: of what came")


def _sample(line: Line) -> Markup:
    """How its curve looks."""
    path = svg.stroke("M0 5H26", line.colour, line.width, stroke_dasharray=line.dash or None)
    return tag("svg", path, width=26, height=10, aria_hidden="true")


def _percentile(spread: Spread, share: float) -> str:
    """Nothing where no request lies beyond it, but for those that failed."""
    value: Number = spread.at(share)
    beyond = spread.n * (1 - share) >= 1 - 1e-9
    return shown(value if beyond or is_infinite(value) else None)
