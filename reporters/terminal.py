"""The survival report: what a person reads when the run is over.

Every line is laid out by hand to the width of the console (60 to 140 cells), so that nothing is
wrapped by chance; colour only ever repeats what a word says. Human text, no contract: machines
read verdict.json.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from survive.errors import ExitCode
from survive.judge.verdict import (
    Cell,
    FaultReport,
    LoadReport,
    Number,
    Spread,
    Stalls,
    Verdict,
    Word,
)
from survive.plan.model import Plan
from survive.plan.users import mean_users
from survive.record.rates import mean_rps
from survive.units import SECOND

from . import axis as draw
from . import words
from .glyphs import UNICODE, Glyphs, fill, glyphs_for
from .inputs import Second, StoredRun, ended_us, fields_of
from .matrix import Square, matrix_of, rows
from .sentence import observed_text, sentence

NARROWEST, WIDEST, PLAIN = 60, 140, 80
_ROOMY = 76  # from here on there is room for explanations beside numbers
_WINDOW = 18  # cells that the name of a window may claim before an interval is shown
_SIDE = 9  # right-hand column of the timeline
_NAMES = (10, 18)  # least and greatest width of its left-hand column
_LABEL = 10  # left-hand column of the blocks below it
# Spaces that must not end a line: before a number, between a number and its unit.
_BOUND = re.compile(r"(?<=\w) (?=\d)|(?<=\d) (?=(?:%|ms|s|requests?)(?!\w))|(?<=requests,) ")
_REASONS = 8  # more stand in verdict.json
_SQUARE = 6  # least width of a square of the matrix: FAILED
_AMPLIFIED = 1.01  # attempts per intent that are worth a word
_UNFAIR_FACTOR, _UNFAIR_FAILURES = 1.25, 5  # a lucky draw among few failures accuses nobody

_STYLE = {Word.SURVIVED: "green", Word.FAILED: "bold red", Word.INCONCLUSIVE: "bold yellow"}
_SAID = {
    "real": "faults are effects of the OS or of physics",
    "induced": "real symptoms of another cause",
    "reported": "some faults are in telemetry only",
    "emulated": "some faults are a proxy's or shim's",
    "simulated": "stand-ins, not the real thing",
}


class TerminalReporter:
    """``survive report RUN --format terminal``."""

    def render(self, record: StoredRun, verdict: Verdict) -> bytes:
        """The report as plain UTF-8 text, 80 cells wide."""
        lines = Report(record, verdict, PLAIN, UNICODE).lines()
        return "".join(f"{line.plain.rstrip()}\n" for line in lines).encode()


def print_report(console: Console, record: StoredRun, verdict: Verdict) -> None:
    """Print the report in the width, colours and characters that the console can show."""
    width = min(WIDEST, max(NARROWEST, console.width))
    for line in Report(record, verdict, width, glyphs_for(console.encoding)).lines():
        line.rstrip()
        console.print(line, soft_wrap=True)


reporter = TerminalReporter()


@dataclass(frozen=True, slots=True)
class Report:
    """One report, laid out for one width and one set of characters."""

    record: StoredRun
    verdict: Verdict
    width: int
    glyphs: Glyphs

    def lines(self) -> Iterator[Text]:
        """The whole report, top to bottom; the verdict stands last, where the eye ends."""
        yield from self._header()
        yield from self._objectives()
        yield from self._timeline()
        for fault in self.verdict.faults:
            yield Text()
            yield from self._fault(fault)
        yield from self._matrix()
        yield from self._section("episodes", self._episodes())
        yield from self._section("load", self._load(self.verdict.load))
        yield from self._section("also", self._reasons())
        yield Text()
        yield from self._sentence()
        yield from self._next()

    # ------------------------------------------------------------------ frame

    def _header(self) -> Iterator[Text]:
        plan = self.record.plan
        name = self.glyphs.short(f"{plan.name} on {plan.target}", self.width - 34)
        seed = self.glyphs.short(f"{words.span(ended_us(self.record))}  seed {plan.seed}", 24)
        left = Text.assemble(("survive ", draw.FAINT), (name, "bold"))
        yield self._apart(left, Text(seed))
        host = str(self._started("host") or "unknown")
        grade = f"grade {self.verdict.grade}: {_SAID.get(self.verdict.grade, '')}".rstrip(": ")
        for piece in self._wrapped(f"{host} host, scale {plan.scale}, {grade}", self.width):
            yield Text(piece)
        if plan.closed:
            for piece in self._wrapped(words.CLOSED, self.width):
                yield Text(piece, "bold")
        if host == "virtual":
            yield Text("time, network and services were simulated in one process")

    def _started(self, field: str) -> object:
        return fields_of(self.record, "run_started").get(field, self.record.manifest.get(field))

    def _section(self, title: str, body: Iterable[Text]) -> Iterator[Text]:
        """A blank line, the title, the body; nothing at all without a body."""
        lines = list(body)
        if lines:
            yield from (Text(), Text(title.upper(), "bold"))
            yield from lines

    def _titled(self, title: str, beside: str) -> Text:
        """A section's title with the headings of its columns on the same line."""
        return Text.assemble((title.upper(), "bold"), (beside[len(title) :], draw.FAINT))

    def _apart(self, left: Text, right: Text) -> Text:
        room = self.width - left.cell_len - right.cell_len
        return Text.assemble(left, " " * max(1, room), right)

    def _labelled(self, label: str, text: str, style: str = "") -> Iterator[Text]:
        """A faint label and a text, wrapped between words under itself."""
        room = self.width - _LABEL - 2
        pieces = self._wrapped(text, room)
        for index, piece in enumerate(pieces):
            shown = label if index == 0 else ""
            yield Text.assemble((f"  {shown:<{_LABEL}}", draw.FAINT), (piece, style))

    def _wrapped(self, text: str, room: int) -> list[str]:
        """Broken between words only, never between a number and its unit or name."""
        clean = self.glyphs.clean(text)
        if cell_len(clean) != len(clean):  # wide characters: count two cells for each
            room = max(10, room // 2)
        bound = _BOUND.sub("\N{NO-BREAK SPACE}", clean)
        pieces = textwrap.wrap(bound, room, break_on_hyphens=False) or [""]
        return [piece.replace("\N{NO-BREAK SPACE}", " ") for piece in pieces]

    # ------------------------------------------------------------- objectives

    def _objectives(self) -> Iterator[Text]:
        cells = self.verdict.objectives
        if not cells:
            return
        table = _Columns.fit(cells, self.width)
        yield from (Text(), self._titled("objectives", table.heading()))
        told: list[str] = []  # a reason that several cells share in a row is told once
        for name, group in groupby(cells, key=lambda cell: cell.name):
            same = list(group)
            limits = {(cell.metric, cell.limit) for cell in same}
            title = self.glyphs.short(name, self.width // 2)
            limit = ",  ".join(self._limit(cell) for cell in same[: len(limits)])
            yield Text.assemble(
                "  ", (title, "bold"), "  ", (self.glyphs.short(limit, self.width // 2 - 4), "")
            )
            for cell in same:
                yield from self._cell(table, cell)
                notes = list(self._notes(cell))
                for note in () if notes == told else notes:
                    for piece in self._wrapped(note, self.width - 6):
                        yield Text(f"      {piece}", draw.FAINT)
                told = notes

    def _limit(self, cell: Cell) -> str:
        sign = self.glyphs.at_least if cell.bound == "min" else self.glyphs.at_most
        return f"{cell.metric} {sign} {words.quantity(cell.limit, cell.unit)}"

    def _cell(self, table: _Columns, cell: Cell) -> Iterator[Text]:
        request = self.glyphs.short(cell.request or "all", table.request)
        window = self.glyphs.short(cell.window, table.window)
        observed = observed_text(cell)
        yield Text.assemble(
            "    ",
            fill(request, table.request),
            "  ",
            fill(window, table.window),
            "  ",
            (f"{observed:>{table.observed}}", "bold" if cell.verdict is Word.FAILED else ""),
            (table.interval_of(cell), draw.FAINT),
            f"  {words.count(cell.n):>{table.n}}  ",
            (_shout(cell.verdict), _STYLE[cell.verdict]),
        )

    def _notes(self, cell: Cell) -> Iterator[str]:
        if cell.unit == "ms" and (
            _is_infinite(cell.observed) or _shown(cell.observed_ok) != _shown(cell.observed)
        ):
            share = words.share(cell.bad / cell.n, significant=2) if cell.n else "none"
            quantile = cell.metric.rpartition(".")[2]
            yield (
                f"{quantile} = {_shown(cell.observed)} ({share} failed or late), "
                f"of successes alone {_shown(cell.observed_ok)}"
            )
        if cell.with_faults:
            yield f"with {', '.join(cell.with_faults)}"
        if cell.why:
            yield cell.why

    # --------------------------------------------------------------- timeline

    def _timeline(self) -> Iterator[Text]:
        plan = self.record.plan
        windows = {window.fault: window for window in plan.faults}
        faults = [fault for fault in self.verdict.faults if fault.name in windows]
        longest = max([cell_len(self.glyphs.clean(f.name)) for f in faults], default=0)
        names = min(_NAMES[1], max(_NAMES[0], longest))
        axis = draw.Axis(plan.end_us, self.width - 2 - names - 2 - 2 - _SIDE)
        bands = [draw.Band.actual(windows[fault.name], fault) for fault in faults]

        def strip(label: str, row: draw.Row, side: str = "", style: str = draw.FAINT) -> Text:
            return Text.assemble(
                (f"  {fill(self.glyphs.short(label, names), names)}  ", draw.FAINT),
                draw.text(row),
                (f"  {side:>{_SIDE}}", style),
            )

        yield from (Text(), self._titled("timeline", f"{'most':>{self.width}}"))
        yield strip("phase", draw.phase_row(axis, plan, self.glyphs))
        for label, cells, most in self._strips(axis):
            colours = draw.styles(axis, bands)
            yield strip(label, list(zip(cells, colours, strict=True)), most)
        for fault, band in zip(faults, bands, strict=True):
            proven = fault.proof == "proven"
            said, style = ("proven", "green") if proven else ("UNPROVEN", "bold yellow")
            yield strip(fault.name, draw.band_row(axis, [band], self.glyphs), said, style)
        yield strip("", draw.tick_row(axis, self.glyphs))
        if faults:
            g = self.glyphs
            legend = f"{g.opens}{g.on}{g.closes} on until healed  {g.once} one-shot  "
            legend += f"{g.after} recovery window  {g.back} recovered"
            legend = self.glyphs.short(legend, self.width - names - 4)
            yield Text(f"  {' ' * names}  {legend}", draw.FAINT)

    def _strips(self, axis: draw.Axis) -> Iterator[tuple[str, list[str], str]]:
        seconds = self.record.seconds(None)
        columns = draw.resample(axis, seconds)
        planned = [_planned(self.record.plan, axis, column) for column in range(axis.columns)]
        good = [_mean([row.ok for row in rows]) for rows in columns]
        top = max([0.0, *(value for value in good if value is not None)])
        if self.record.plan.closed:
            users = words.count(self.record.plan.most_users)
            yield "users", draw.linear(planned, max(planned), self.glyphs), users
        else:
            top = max(top, *planned)
            yield "offered/s", draw.linear(planned, top, self.glyphs), words.rate(max(planned))
        peak = max([float(row.ok) for row in seconds], default=0.0)
        yield "good/s", draw.linear(good, top, self.glyphs), words.rate(peak)
        p99 = [_worst(rows) for rows in columns]
        known = [v for v in p99 if isinstance(v, int | float) and not math.isinf(v)]
        worst = words.milliseconds(max(known)) if known else words.NOTHING
        if any(_is_infinite(value) for value in p99):
            worst = "inf"
        yield "p99 (log)", draw.logarithmic(p99, self.glyphs), worst
        bad = [_bad_share(rows) for rows in columns]
        top = max([value for value in bad if value is not None], default=0.0)
        most = max([row.bad / row.n for row in seconds if row.n], default=0.0)
        # A strip of a few failures must look like a few: full height is never below 5 %.
        yield "bad", draw.linear(bad, max(top, 0.05), self.glyphs), words.share(most, significant=3)

    # ----------------------------------------------------------------- faults

    def _fault(self, fault: FaultReport) -> Iterator[Text]:
        name = self.glyphs.short(fault.name, self.width // 3)
        rest = f"  {fault.kind}, grade {fault.grade}, on {fault.target}"
        yield Text.assemble((name, "bold"), self.glyphs.short(rest, self.width - cell_len(name)))
        yield from self._labelled("when", _when(fault))
        proven = fault.proof == "proven"
        said = "proven" if proven else f"NOT PROVEN: {fault.proof}"
        yield from self._labelled("proof", said + _seen(fault), "" if proven else "bold yellow")
        if fault.planned_heal_s is not None:
            gone = fault.heal_proof == "proven"
            healed = "proven gone" if gone else f"NOT PROVEN: {fault.heal_proof}"
            yield from self._labelled("heal", healed, "" if gone else "bold red")
        yield from self._labelled("effect", _effect(fault))
        if fault.metastable:
            metastable = "METASTABLE: the fault is gone, the load is as before, and it stays broken"
            yield from self._labelled("", metastable, "bold red")
        if fault.note:
            yield from self._labelled("note", fault.note)
        for loop in self.verdict.loops if fault.metastable else ():
            yield from self._labelled("loop", loop.told)
        if cost := _cost(fault):
            yield from self._labelled("cost", cost)
        if fault.failures:
            yield from self._labelled("failures", self._classes(fault.failures))
        for line in self._unfair(fault):
            for index, piece in enumerate(self._wrapped(line, self.width - 4)):
                yield Text(f"  {'  ' if index else ''}{piece}", "bold")

    def _classes(self, failures: Sequence[tuple[str, int]]) -> str:
        shown = [f"{why or 'unknown'} {self.glyphs.times} {words.count(n)}" for why, n in failures]
        rest = len(shown) - 5
        return ", ".join(shown[:5]) + (f", and {words.plural(rest, 'other class')}" * (rest > 0))

    def _unfair(self, fault: FaultReport) -> Iterator[str]:
        total = sum(replica.failed for replica in fault.replicas)
        for one in fault.replicas:
            if total >= _UNFAIR_FAILURES and one.factor >= _UNFAIR_FACTOR:
                yield (
                    f"{one.replica} took {words.digits(one.share * 100, 2)} % of failures, "
                    f"fair share {words.digits(one.fair * 100, 2)} % "
                    f"(black-hole factor {words.digits(one.factor, 2)})"
                )

    # ----------------------------------------------------------------- matrix

    def _matrix(self) -> Iterator[Text]:
        """Faults × objectives, where there are several of either. A narrow console goes without."""
        matrix = matrix_of(self.verdict)
        if len(matrix.faults) < 2 or not matrix.objectives:
            return
        names = max(8, min(18, max(cell_len(self.glyphs.clean(f)) for f in matrix.faults)))
        width = min(18, (self.width - 2 - names) // len(matrix.objectives) - 2)
        if width < _SQUARE:
            return
        heads = "".join(
            f"  {fill(self.glyphs.short(name, width), width)}" for name in matrix.objectives
        )
        yield from (Text(), self._titled("matrix", f"{'':{2 + names}}{heads}"))
        for fault, squares in rows(matrix):
            line = Text(f"  {fill(self.glyphs.short(fault, names), names)}")
            for square in squares:
                said = self.glyphs.short(_in_square(square, width), width)
                style = _STYLE[square.verdict] if square.verdict else draw.FAINT
                line.append("  ").append(fill(said, width), style)
            yield line

    def _episodes(self) -> Iterator[Text]:
        """Repeats of a fault, summed up."""
        for one in self.verdict.episodes:
            unit = "share" if one.measure == "success" else "s"
            spread = (
                f"median {words.quantity(one.median, unit)}, "
                f"worst {words.quantity(one.worst, unit)} of {len(one.values)}"
            )
            interval = words.interval(one.low, one.high, unit)
            held = f" ({interval}, {words.share(one.confidence, significant=2)} CI)"
            measure = one.measure.removesuffix("_s").replace("_", " ")
            yield from self._labelled(
                self.glyphs.short(one.fault, _LABEL), f"{measure}: {spread}{held * bool(interval)}"
            )

    # ------------------------------------------------------------------- load

    def _load(self, load: LoadReport) -> Iterator[Text]:
        planned = (
            ("sent", load.sent),
            ("expired", load.expired),
            ("unsent", load.unsent),
            ("lost", load.lost),
        )
        fates = (
            ("ok", load.ok),
            ("failed", load.failed),
            ("timed_out", load.timed_out),
            ("abandoned", load.abandoned),
            ("in_flight", load.in_flight),
        )
        if load.planned is not None:
            yield from self._sum("planned", load.planned, planned)
        if load.users is not None:
            there = words.share(load.users.present, significant=3)
            yield from self._labelled(
                "users", f"{words.count(load.users.most)} at most, there for {there} of their time"
            )
        yield from self._sum("sent", load.sent, fates)
        ratio = load.attempts / load.sent if load.sent else 0.0
        offered = "" if load.offered_rps is None else f"offered {words.rate(load.offered_rps)}, "
        yield from self._labelled(
            "rate",
            f"{offered}achieved {words.rate(load.achieved_rps)}; "
            f"{words.plural(load.attempts, 'attempt')}, {words.digits(ratio, 4, [1.0])} each",
        )
        if self.record.plan.locustfile:
            yield from self._labelled("send lag", "not known: when to ask is Locust's own matter")
        else:
            yield from self._spread("send lag", load.send_lag_ms, "the harness's lateness")
        machine = self._machine()
        if machine:
            yield from self._labelled("machine", machine)
        affinity = self._affinity()
        if affinity:
            yield from self._labelled("affinity", affinity)
        if not self.record.plan.closed:
            yield from self._spread("lane wait", load.lane_wait_ms, "for a free connection")
        if load.starved_s:
            starved = words.plural(load.starved_s, "second")
            yield from self._labelled(
                "starved", f"in {starved} THE HARNESS WAS THE BOTTLENECK", "bold red"
            )
        if load.stalls.over_10_ms:
            yield from self._labelled("stalls", _stood_still(load.stalls))
        cpu = self._cpu()
        if cpu:
            yield from self._labelled("CPU", cpu)

    def _sum(self, label: str, total: int, parts: Sequence[tuple[str, int]]) -> Iterator[Text]:
        """A conservation sum, checked here once more: a report must not print a false equation."""
        holds = total == sum(number for _, number in parts)
        sign = "=" if holds else self.glyphs.unequal
        terms = " + ".join(f"{name} {words.count(number)}" for name, number in parts)
        lost = "" if holds else "  NOT CONSERVED"
        text = f"{words.count(total)} {sign} {terms}{lost}"
        yield from self._labelled(label, text, "" if holds else "bold red")

    def _spread(self, label: str, spread: Spread, meaning: str) -> Iterator[Text]:
        values = (("p50", spread.p50), ("p99", spread.p99), ("max", spread.max))
        text = "  ".join(f"{name} {_shown(value):>8}" for name, value in values)
        meaning = f"  {meaning}" if self.width >= _ROOMY else ""
        yield Text.assemble((f"  {label:<{_LABEL}}", draw.FAINT), text, (meaning, draw.FAINT))

    def _machine(self) -> str:
        """What send lag is to be compared with: nobody wakes up earlier than the machine can."""
        usage = fields_of(self.record, "run_ended").get("usage") or {}
        woken, stalled = usage.get("wake_up_ms_p99"), usage.get("cpu_stalled_share")
        said = []
        if isinstance(woken, int | float):
            said.append(f"own wake-ups p99 {_shown(float(woken)).strip()}")
        if isinstance(stalled, int | float):
            said.append(f"cores waited for {words.digits(100 * stalled, 2)} % of the time")
        return ", ".join(said)

    def _affinity(self) -> str:
        """Who ran where, if the scenario asked; "" if it did not."""
        usage = fields_of(self.record, "run_ended").get("usage") or {}
        asked = usage.get("affinity")
        if not isinstance(asked, dict):
            return ""
        if asked.get("why"):
            return f"nothing was pinned: {self.glyphs.clean(str(asked['why']))}"
        load, rest = (", ".join(map(str, asked.get(who) or ())) for who in ("load", "rest"))
        return f"load alone on core {load}, all else on {rest}"

    def _cpu(self) -> str:
        usage = fields_of(self.record, "run_ended").get("usage") or {}
        known = [(who, usage.get(f"{who}_cores")) for who in ("target", "harness")]
        said = [
            f"{who} {words.digits(float(cores), 2)} cores"
            for who, cores in known
            if isinstance(cores, int | float)
        ]
        return ", ".join(said)

    # ---------------------------------------------------------------- verdict

    def _reasons(self) -> Iterator[Text]:
        rest = self.verdict.reasons[1:]  # the first one is what the sentence below says
        for reason in rest[:_REASONS]:
            for index, piece in enumerate(self._wrapped(reason, self.width - 4)):
                yield Text(f"  {'-' if index == 0 else ' '} {piece}")
        if len(rest) > _REASONS:
            yield Text(f"  - and {len(rest) - _REASONS} more in verdict.json")
        unproven = fields_of(self.record, "run_ended").get("unproven_heals") or ()
        hands = [left.get("by_hand") for left in unproven if isinstance(left, dict)]
        for by_hand in dict.fromkeys(str(line) for line in hands if line):
            # Never wrapped: it is to be copied.
            yield Text.assemble("    by hand: ", (self.glyphs.clean(by_hand), "bold"))

    def _sentence(self) -> Iterator[Text]:
        word = self.verdict.verdict
        pieces = self._wrapped(sentence(self.record, self.verdict), self.width - 2)
        for index, piece in enumerate(pieces):
            head, _, tail = piece.partition(" ") if index == 0 else ("", "", f"  {piece}")
            yield Text.assemble((head, _STYLE[word]), (f" {tail}" if index == 0 else tail, "bold"))

    def _next(self) -> Iterator[Text]:
        folder = self.glyphs.clean(str(self.record.folder))
        command = f"survive judge {folder}"
        if self.verdict.exit_code is ExitCode.HEAL_UNPROVEN:
            command = "survive heal --check"
        yield Text(f"next: {command}", draw.FAINT)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Widths of the objectives table; the window gets what the others leave."""

    request: int
    window: int
    observed: int
    interval: int
    n: int

    @classmethod
    def fit(cls, cells: Sequence[Cell], width: int) -> _Columns:
        """As wide as the contents need; a narrow console goes without the intervals."""
        request = max(3, min(16, width // 8, max(cell_len(cell.request) for cell in cells)))
        observed = max(8, *(len(observed_text(cell)) for cell in cells))
        interval = max(8, *(len(words.interval(c.low, c.high, c.unit)) for c in cells))
        n = max(1, *(len(words.count(cell.n)) for cell in cells))
        longest = max(cell_len(cell.window) for cell in cells)
        rest = width - 4 - request - observed - interval - n - 5 * 2 - len(Word.INCONCLUSIVE)
        if rest < min(longest, _WINDOW):
            rest += interval + 2
            interval = 0
        return cls(request, max(8, min(rest, max(longest, 22))), observed, interval, n)

    def heading(self) -> str:
        left = 4 + self.request + 2 + self.window + 2
        interval = f"  {'90 % CI':<{self.interval}}" if self.interval else ""
        return f"{'':<{left}}{'observed':>{self.observed}}{interval}  {'n':>{self.n}}  verdict"

    def interval_of(self, cell: Cell) -> str:
        """The two-sided 90 % interval, padded; nothing where there is no room for it."""
        if not self.interval:
            return ""
        return f"  {words.interval(cell.low, cell.high, cell.unit):<{self.interval}}"


def _stood_still(stalls: Stalls) -> str:
    """Turns of the load's loop in which nothing could be sent, and whose doing they were."""
    text = (
        f"{words.count(stalls.over_10_ms)} over 10 ms, {words.count(stalls.over_100_ms)} over "
        f"100 ms, longest {_shown(stalls.longest_ms).strip()}"
    )
    others = f"; {words.count(stalls.preempted)} while others had the core" * bool(stalls.preempted)
    return text + others


def _shown(value: Number) -> str:
    return words.quantity(value, "ms")


def _shout(word: Word) -> str:
    """FAILED stands out without colour."""
    return word.upper() if word is Word.FAILED else str(word)


def _is_infinite(value: Number) -> bool:
    return value == "inf" or (isinstance(value, float) and math.isinf(value))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _worst(rows: Sequence[Second]) -> Number:
    values = [row.p99_ms for row in rows if row.p99_ms is not None]
    if any(_is_infinite(value) for value in values):
        return "inf"
    return max((float(value) for value in values), default=None)


def _bad_share(rows: Sequence[Second]) -> float | None:
    n = sum(row.n for row in rows)
    return sum(row.bad for row in rows) / n if n else None


def _planned(plan: Plan, axis: draw.Axis, column: int) -> float:
    """Requests a second, or users."""
    start, end = (round(axis.edge_s(edge) * SECOND) for edge in (column, column + 1))
    return mean_users(plan.phases, start, end) if plan.closed else mean_rps(plan, start, end)


def _in_square(square: Square, width: int) -> str:
    """The word and the number of the worst cell; the word alone where both do not fit."""
    if square.worst is None or square.verdict is None:
        return words.NOTHING
    word = {Word.FAILED: "FAILED", Word.INCONCLUSIVE: "?"}.get(square.verdict, "ok")
    number = observed_text(square.worst)
    return f"{word} {number}" if len(word) + 1 + len(number) <= width else word


def _cost(fault: FaultReport) -> str:
    """What an incident like this one costs of a month, and whether somebody is woken."""
    parts = []
    if fault.budget is not None and fault.budget.bad:
        budget = fault.budget
        pages = "would page" if budget.pages else "would not page"
        parts.append(
            f"{words.share(budget.share, significant=2)} of a 30-day error budget "
            f"({budget.objective}), {pages} "
            f"(burn {words.digits(budget.burn_1h, 2)} over 1 h, "
            f"{words.digits(budget.burn_5m, 2)} over 5 min)"
        )
    if fault.amplification is not None and fault.amplification > _AMPLIFIED:
        parts.append(f"{words.digits(fault.amplification, 3)} attempts each")
    return "; ".join(parts)


def _when(fault: FaultReport) -> str:
    def moment(planned: float, actual: float | None) -> str:
        late = "never" if actual is None else f"{actual - planned:+.2f} s"
        return f"{planned:.1f} s ({late})"

    said = f"inject {moment(fault.planned_at_s, fault.injected_at_s)}"
    if fault.planned_heal_s is None:
        return f"{said}, one-shot"
    return f"{said}, heal {moment(fault.planned_heal_s, fault.healed_at_s)}"


def _seen(fault: FaultReport) -> str:
    seen = "" if fault.active_share is None else f", active in {words.share(fault.active_share)}"
    of = " of looks" if seen else ""
    return f"{seen}{of}" + (f": {fault.evidence}" if fault.evidence else "")


def _effect(fault: FaultReport) -> str:
    if fault.proof != "proven":
        return "not judged: the fault was not proven"
    since = "heal" if fault.planned_heal_s is not None else "inject"
    hurt = fault.error_window_s != 0  # else there was nothing to absorb or to recover from
    parts = []
    if fault.planned_heal_s is not None:
        absorbed = _after("absorbed", fault.absorbed_after_s, "inject")
        parts.append(absorbed or ("not seen to be absorbed" if hurt else ""))
    recovered = _after("recovered", fault.recovered_after_s, since)
    parts.append(recovered or ("not seen to recover" if hurt else ""))
    if fault.error_window_s is not None:
        window = f"error window {words.seconds(fault.error_window_s)}"
        parts.append(window if fault.error_window_s else "no error window")
    if fault.residual is not None:
        residual = f"residual {fault.residual * 100:+.2g} % bad"
        parts.append(residual if fault.residual else "no residual")
    return ", ".join(part for part in parts if part)


def _after(what: str, seconds: float | None, since: str) -> str:
    """Resolution is 1 s, so 0 means within the first second; "" if it was not seen."""
    if seconds is None:
        return ""
    return f"{what} {words.seconds(seconds)} after {since}" if seconds else f"{what} at once"
