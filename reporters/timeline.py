"""The time axis of a page: faults, load, latency, success and gauges, each exactly under the other.

What a fault does is a band through all strips, from inject to heal, with its own strip on top that
shows when it was planned, when it was on, and when a look saw it bite.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from survive.judge.probed import Finding, Seen, seen
from survive.judge.verdict import Cell, Number, Verdict
from survive.plan.users import mean_users
from survive.record.events import EventName
from survive.record.reader import Record
from survive.record.samples import Outcome, Series
from survive.units import SECOND

from . import svg, words
from .axis import Band
from .markup import Markup, tag
from .measured import Heat, Measured, pools
from .told import host, is_infinite, limit

HEATS = 6  # times that get a strip
_CELL, _ROWS, _LOST = 4, 32, 10  # pixels a cell of heat, cells, pixels for what never came
_LEVELS = 7
_FEW_TO_MANY = (0.15, 0.28, 0.42, 0.56, 0.7, 0.85, 1)
_SOME_TO_ALL = (0.45, 0.54, 0.63, 0.72, 0.81, 0.9, 1)  # one in a thousand must be seen, too
_TITLE = 18  # room for the title of a strip
_GAP = 12
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400)
_GAUGES = {"replicas": "replicas ready", "queue": "queue", "gpu": "GPU in use", "kv": "KV cache"}
_SHARES = {"gpu", "kv"}
TIMED = {str(s): s for s in (Series.LATENCY, Series.SERVICE_TIME, Series.TTFT, Series.ITL,
                             Series.TPOT)}  # fmt: skip


@dataclass(slots=True)
class Timeline:
    """One picture, filled from top to bottom."""

    record: Record
    verdict: Verdict
    measured: Measured
    y: int = 0
    _parts: list[Markup] = field(default_factory=list)
    _strips_from: int = 0

    def picture(self) -> Markup:
        """The whole of it."""
        self._phases()
        self._faults()
        self._strips_from = self.y
        self._rates()
        for strip in self._heats()[:HEATS]:
            self._heat(*strip)
        self._success()
        told = seen(self.record.events)
        for gauge, title in _GAUGES.items():
            self._gauge(gauge, title, told)
        self._probes(told)
        self._lag()
        below = self._bands()
        self._parts.append(svg.times(self._end_us, self._ticks_s(), self.y + svg.SMALL))
        strips = "planned, sent and good requests a second, latency, success"
        return svg.picture(
            self.y + 16, below, *self._parts, name="timeline", title="Time axis",
            about=f"Phases, faults, then on the same axis {strips}. The tables have the numbers.",
        )  # fmt: skip

    # ------------------------------------------------------------------- axis

    @property
    def _end_us(self) -> int:
        return self.record.plan.end_us

    def _x(self, t_us: float) -> int:
        return round(min(1.0, max(0.0, t_us / max(1, self._end_us))) * svg.WIDE)

    def _edges(self) -> list[int]:
        return [self._x(edge) for edge in self.measured.columns.edges_us]

    def _ticks_s(self) -> range:
        total_s = self._end_us / SECOND
        step = next((s for s in _STEPS_S if total_s / s <= 8), 3600 * math.ceil(total_s / 28_800))
        return range(0, math.ceil(total_s) + 1, step)

    def _phases(self) -> None:
        y = self.y
        for phase in self.record.plan.phases:
            start, end = self._x(phase.start_us), self._x(phase.end_us)
            x = svg.at(start)
            self._parts.append(
                tag("line", x1=x, x2=x, y1=y, y2=y + 16, stroke=svg.INK, stroke_opacity=0.5)
            )
            self._parts.append(svg.boxed(start, end, y, phase.name))
        self.y += 22

    # ----------------------------------------------------------------- faults

    def _actual(self) -> dict[str, Band]:
        reports = {fault.name: fault for fault in self.verdict.faults}
        return {
            window.fault: Band.actual(window, reports[window.fault])
            for window in self.record.plan.faults
        }

    def _faults(self) -> None:
        bands = self._actual()
        for at, (name, faults) in enumerate(pools(self.record.plan).items()):
            colour = svg.fault_colour(at)
            looks = [path for fault in faults for path in self._looks(fault)]
            shapes = [self._fault(fault, bands[fault], colour) for fault in faults]
            shapes.append(svg.stroke("".join(path for path, _ in looks), colour, 5))
            self._parts.append(svg.plot(self.y, 16, *shapes))
            seen = max((end for _, end in looks), default=0)
            self._parts.append(self._name(name, [bands[fault] for fault in faults], seen))
            self.y += 18
        if bands:
            self.y += 4

    def _fault(self, name: str, band: Band, colour: str) -> Markup:
        """Planned as a frame, on as a bar, looks that saw it as a line in it, then recovery."""
        plan = Band.planned(self.record.plan.fault(name))
        until = plan.on_us if plan.off_us is None else plan.off_us
        frame = f"M{self._x(plan.on_us)} 1V15H{max(self._x(until), self._x(plan.on_us) + 3)}V1Z"
        off = band.on_us if band.off_us is None else band.off_us
        left = self._x(band.on_us)
        bar = f"M{left} 4V12H{max(self._x(off), left + 3)}V4Z"
        after = f"M{self._x(band.recovery_us)} 8H{self._x(band.end_us)}"
        shapes = [
            tag("path", d=bar, fill=colour, fill_opacity=0.35),
            svg.stroke(frame, colour, 1, stroke_dasharray="3 2"),
            svg.stroke(after, svg.INK, 1, stroke_dasharray="2 3", stroke_opacity=0.7),
        ]
        if band.back_us is not None:
            x = self._x(band.back_us)
            shapes.append(svg.stroke(f"M{x} 3V13", svg.GREEN, 3))
        return tag("g", tag("title", self._said(name, band)), *shapes)

    def _looks(self, name: str) -> Iterator[tuple[str, int]]:
        """Stretches between looks that saw it active, and where each ends."""
        last: int | None = None
        for event in self.record.named(EventName.FAULT_OBSERVED):
            if event.text("fault") != name or event.text("stage") == "before":
                continue
            x = self._x(event.t_us)
            if event.text("active") == "yes":
                yield f"M{x if last is None else last} 8H{x + (last is None)}", x
                last = x
            else:
                last = None

    def _said(self, name: str, band: Band) -> str:
        said = f"{name}: inject at {band.on_us / SECOND:.1f} s"
        if band.off_us is not None:
            said += f", heal at {band.off_us / SECOND:.1f} s"
        return said

    def _name(self, name: str, bands: Sequence[Band], seen: int) -> Markup:
        """Right of what is drawn where there is room, else left of it."""
        end = max(seen, *(self._x(band.end_us) for band in bands))
        if end <= 0.6 * svg.WIDE:
            return svg.label(end, self.y + 12, name, dx=4)
        start = min(self._x(band.on_us) for band in bands)
        return svg.label(start, self.y + 12, name, dx=-4, text_anchor="end")

    def _bands(self) -> Markup:
        """Faults and phases behind all strips."""
        y, height = self._strips_from, self.y - self._strips_from
        shapes = []
        colours = {
            fault: svg.fault_colour(at)
            for at, faults in enumerate(pools(self.record.plan).values())
            for fault in faults
        }
        for name, band in self._actual().items():
            start = self._x(band.on_us)
            end = max(start + 2, self._x(band.on_us if band.off_us is None else band.off_us))
            edges = f"M{start} 0V{height}M{end} 0V{height}"
            bar = f"M{start} 0V{height}H{end}V0Z"
            shapes.append(tag("path", d=bar, fill=colours[name], fill_opacity=0.13))
            shapes.append(svg.stroke(edges, colours[name], 1, stroke_opacity=0.6))
        for phase in self.record.plan.phases[1:]:
            line = f"M{self._x(phase.start_us)} 0V{height}"
            shapes.append(svg.stroke(line, svg.INK, 1, stroke_opacity=0.3))
        return svg.plot(y, max(1, height), *shapes)

    # ----------------------------------------------------------------- strips

    def _strip(
        self,
        title: str,
        scale: svg.Linear | svg.Log,
        texts: Sequence[str],
        shapes: Sequence[object],
        keys: Sequence[tuple[str, str, str]] = (),
        top: int = 0,
    ) -> None:
        """One strip: its title, the grid, what is drawn. ``top`` pixels lie above the scale."""
        self.y += _GAP
        self._parts.append(svg.heading(self.y + svg.SMALL, title, keys))
        self.y += _TITLE
        self._parts.append(svg.plot(self.y, scale.height + top + 1, *shapes))
        self._parts.extend(svg.gridlines(scale, self.y + top, texts))
        self.y += scale.height + top + 1

    def _steps(self, values: Sequence[float | None], scale: svg.Linear) -> str:
        return svg.steps(self._edges(), [None if v is None else scale(v) for v in values])

    def _rates(self) -> None:
        plan, measured = self.record.plan, self.measured
        good = measured.per_second([Outcome.OK])
        sent = measured.per_second([Series.SEND_LAG])
        attempts = measured.per_second([Series.ATTEMPT])
        retried = any(a > 1.02 * s for a, s in zip(attempts, sent, strict=True))
        lines = [(good, svg.GREEN, 2.0, "", "━━ good")]
        if not plan.locustfile:
            lines.insert(0, (sent, svg.BLUE, 1.2, "", "── sent"))
        if retried:
            lines.insert(0, (attempts, svg.ORANGE, 1.2, "2 2", "┄┄ attempts"))
        if not plan.closed:
            lines.insert(0, (measured.planned(), svg.INK, 1.2, "6 3", "╌╌ planned"))
        high = max((max(values, default=0.0) for values, *_ in lines), default=0.0)
        scale = svg.Linear(0.0, max(high * 1.08, 1e-3), 84)
        shapes = [
            svg.stroke(self._steps(values, scale), colour, width, stroke_dasharray=dash or None)
            for values, colour, width, dash, _ in lines
        ]
        keys = [(key[:2], colour, key[3:]) for _, colour, _, _, key in lines]
        self._strip("requests a second", scale, [_rate(v) for v in scale.ticks()], shapes, keys)
        if plan.closed:
            self._users()

    def _users(self) -> None:
        edges = self.measured.columns.edges_us
        users = [
            mean_users(self.record.plan.phases, start, end)
            for start, end in itertools.pairwise(edges)
        ]
        scale = svg.Linear(0.0, max(1.0, max(users, default=0.0) * 1.08), 48)
        shape = svg.stroke(self._steps(users, scale), svg.INK, 1.5)
        self._strip("users (planned)", scale, [_rate(v) for v in scale.ticks()], [shape])

    # ------------------------------------------------------------------- heat

    def without_strip(self) -> list[str]:
        """Times for which there is no room."""
        return [title for title, *_ in self._heats()[HEATS:]]

    def _heats(self) -> list[tuple[str, Series, int, list[Cell]]]:
        """(title, series, kind, limits): every time that is limited, else the latency of a kind."""
        kinds = self.record.plan.kinds
        limited = limited_times(self.verdict, kinds)
        known = {kind for _, kind in limited}
        rest = [(Series.LATENCY, kind) for kind in range(len(kinds)) if kind not in known]
        return [
            (f"{series} of {kinds[kind]}", series, kind, limited.get((series, kind), []))
            for series, kind in [*limited, *rest]
        ]

    def _heat(self, title: str, series: Series, kind: int, cells: list[Cell]) -> None:
        heat = self.measured.heat(series, [kind], _ROWS, [cell.limit for cell in cells])
        scale = svg.Log(heat.low_ms, heat.high_ms, _ROWS * _CELL)
        edges = self._edges()
        shapes = [
            tag("g", svg.heat(edges, _levels(heat), _CELL, svg.BLUE, _FEW_TO_MANY),
                transform=f"translate(0 {_LOST})"),
            self._lost(heat, edges),
            *self._limits(cells, scale),
            self._percentile(heat.p50, scale, edges, ""),
            self._percentile(heat.p99, scale, edges, "4 2"),
        ]  # fmt: skip
        keys = [
            *(("━━", svg.RED, said) for said in dict.fromkeys(limit(cell) for cell in cells)),
            ("▀▀", svg.RED, "failed"),
            ("──", svg.INK, "p50"),
            ("╌╌", svg.INK, "p99"),
        ]
        texts = [words.milliseconds(value) for value in scale.ticks()]
        self._strip(title, scale, texts, shapes, keys, top=_LOST)

    def _lost(self, heat: Heat, edges: Sequence[int]) -> Markup:
        """Along the top, the share of each column that never came."""
        shares = [0.0 if math.isnan(share) else share for share in heat.gone.tolist()]
        levels = [[math.ceil(share * _LEVELS)] for share in shares]
        return svg.heat(edges, levels, _LOST - 2, svg.RED, _SOME_TO_ALL)

    def _percentile(
        self, values: Sequence[Number], scale: svg.Log, edges: Sequence[int], dash: str
    ) -> Markup:
        heights = [_height(value, scale) for value in values]
        path = svg.steps(edges, heights)
        return svg.stroke(path, svg.INK, 1.3, stroke_dasharray=dash or None)

    def _limits(self, cells: Sequence[Cell], scale: svg.Log) -> Iterator[Markup]:
        """A limit stands where it is judged."""
        for cell in cells:
            y = _LOST + scale(cell.limit)
            spans = self.measured.spans(cell.window)
            path = "".join(f"M{self._x(start)} {y}H{self._x(end)}" for start, end in spans)
            if path:
                yield svg.stroke(path, svg.RED, 2)

    # ---------------------------------------------------------------- success

    def _success(self) -> None:
        shares = self.measured.good_share()
        cells = [c for c in self.verdict.objectives if c.metric == "success" and c.unit == "share"]
        least = min([s for s in shares if s is not None], default=1.0)
        least = min([least, 0.95, *(cell.limit for cell in cells)])
        # A strip of a few failures must look like a few: it never shows less than 5 %.
        low = max(0.0, 1 - svg.nice((1 - least) * 1.05))
        scale = svg.Linear(low, 1.0, 64)
        shapes = [svg.stroke(self._steps(shares, scale), svg.GREEN, 2.0)]
        for cell in cells:
            spans = self.measured.spans(cell.window)
            y = scale(cell.limit)
            path = "".join(f"M{self._x(start)} {y}H{self._x(end)}" for start, end in spans)
            shapes.append(svg.stroke(path, svg.RED, 1.5))
        texts = [words.share(min(1.0, round(value, 9))) for value in scale.ticks()]
        keys = [("━━", svg.GREEN, "good"), *([("──", svg.RED, "limit")] if cells else [])]
        self._strip("success", scale, texts, shapes, keys)

    # ----------------------------------------------------------------- probes

    def _gauge(self, gauge: str, title: str, told: Seen) -> None:
        services = list(dict.fromkeys(s.service for s in told.scrapes if gauge in s.values))
        series = [[(t, v) for t, v in told.of(name, gauge) if t >= 0] for name in services]
        most = max((value for line in series for _, value in line), default=None)
        if most is None:
            return
        high = 1.0 if gauge in _SHARES else max(1.0, most * 1.1)
        scale = svg.Linear(0.0, high, 48)
        shapes, keys = [], []
        for at, (name, line) in enumerate(zip(services, series, strict=True)):
            colour, dash = svg.FAULTS[-1 - at % len(svg.FAULTS)], svg.DASHES[at % len(svg.DASHES)]
            path = svg.steps(*self._column_means(line, scale))
            shapes.append(svg.stroke(path, colour, 1.6, stroke_dasharray=dash or None))
            keys.append(("╌╌" if dash else "━━", colour, name))
        show = words.share if gauge in _SHARES else _rate
        self._strip(title, scale, [show(value) for value in scale.ticks()], shapes, keys)

    def _column_means(
        self, line: Sequence[tuple[int, float]], scale: svg.Linear
    ) -> tuple[list[int], list[int | None]]:
        """Edges and heights: the mean of what was scraped in each column."""
        edges = self.measured.columns.edges_us
        inside: list[list[float]] = [[] for _ in edges]
        for t_us, value in line:
            inside[min(len(edges) - 1, bisect.bisect_right(edges, t_us)) - 1].append(value)
        means = [sum(values) / len(values) if values else None for values in inside[:-1]]
        return self._edges(), [None if mean is None else scale(mean) for mean in means]

    def _probes(self, told: Seen) -> None:
        by_probe: dict[str, list[Finding]] = {}
        for finding in told.findings:
            by_probe.setdefault(f"{finding.probe}: {finding.metric}", []).append(finding)
        for name, findings in by_probe.items():
            good = sorted({self._x(f.start_us) for f in findings if f.good is True})
            bad = sorted({self._x(f.start_us) for f in findings if f.good is False})
            marks = [
                svg.stroke("".join(f"M{x} 6v4" for x in good), svg.GREEN, 1),
                svg.stroke("".join(f"M{x} 0v14" for x in bad), svg.RED, 2.5),
            ]
            said = f"probe {name}: {words.count(sum(f.good is False for f in findings))} bad"
            self.y += _GAP
            keys = [("▌", svg.RED, "bad"), ("╷", svg.GREEN, "good")]
            self._parts.append(svg.heading(self.y + svg.SMALL, said, keys))
            self.y += _TITLE
            self._parts.append(svg.plot(self.y, 14, *marks))
            self.y += 14

    # ---------------------------------------------------------------- harness

    def _lag(self) -> None:
        """When the harness itself was late, if it is known and time was real."""
        lags = [float(v) if isinstance(v, int | float) else None for v in self.measured.lag()]
        known = [lag for lag in lags if lag]
        if not known or host(self.record) == "virtual":
            return
        scale = svg.Log(min(known) / 1.2, max(max(known) * 1.2, min(known) * 4), 48)
        heights = [None if lag is None else scale(lag) for lag in lags]
        shape = svg.stroke(svg.steps(self._edges(), heights), svg.ORANGE, 1.5)
        keys = [("━━", svg.ORANGE, "p99")]
        texts = [words.milliseconds(value) for value in scale.ticks()]
        self._strip("send lag: the harness's own lateness", scale, texts, [shape], keys)


def limited_times(verdict: Verdict, kinds: Sequence[str]) -> dict[tuple[Series, int], list[Cell]]:
    """The times of requests that objectives limit, with their cells, in order."""
    found: dict[tuple[Series, int], list[Cell]] = {}
    for cell in verdict.objectives:
        series = TIMED.get(cell.metric.partition(".")[0])
        if series is not None and cell.unit == "ms" and cell.request in kinds:
            found.setdefault((series, kinds.index(cell.request)), []).append(cell)
    return found


def _levels(heat: Heat) -> list[list[int]]:
    """Densities as 0 (nothing) to `_LEVELS`, by their logarithm."""
    most = float(heat.density.max()) if heat.density.size else 0.0
    least = min((float(v) for v in heat.density[heat.density > 0]), default=1.0)
    room = math.log(max(most / least, 4.0))
    return [
        [
            0 if not value else 1 + min(_LEVELS - 1, int(_LEVELS * math.log(value / least) / room))
            for value in column
        ]
        for column in heat.density.tolist()
    ]


def _height(value: Number, scale: svg.Log) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) or is_infinite(value):
        return _LOST // 2
    return _LOST + scale(value)


def _rate(value: float) -> str:
    return words.digits(round(value, 9))
