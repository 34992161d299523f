"""The survival report: what a person reads when the run is over.

Every line is laid out by hand to the width of the console (60 to 140 cells), so that nothing is
wrapped by chance; colour only ever repeats what a word says. Human text, no contract: machines
read verdict.json.
"""

from __future__ import annotations

import math
import shlex
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
    Verdict,
    Word,
)
from survive.plan.model import Plan
from survive.plan.users import mean_users
from survive.record.rates import mean_rps
from survive.units import SECOND

from . import axis as draw
from . import told, words
from .glyphs import UNICODE, Glyphs, fill
from .inputs import Second, StoredRun, ended_us
from .matrix import Square, matrix_of, rows
from .printed import print_lines
from .sentence import observed_text, sentence

PLAIN = 80
PAGE = "report.html"  # of the run directory; older runs and those of others may have none
_ROOMY = 76  # from here on there is room for explanations beside numbers
_WINDOW = 18  # cells that the name of a window may claim before an interval is shown
_SIDE = 9  # right-hand column of the timeline
_NAMES = (10, 18)  # least and greatest width of its left-hand column
_LABEL = 10  # left-hand column of the blocks below it
_REASONS = 8  # more stand in verdict.json
_SQUARE = 6  # least width of a square of the matrix: FAILED

_STYLE = {Word.SURVIVED: "green", Word.FAILED: "bold red", Word.INCONCLUSIVE: "bold yellow"}
_TONE = {"": "", "open": "bold yellow", "bad": "bold red"}


class TerminalReporter:
    """``survive report RUN --format terminal``."""

    def render(self, record: StoredRun, verdict: Verdict) -> bytes:
        """The report as plain UTF-8 text, 80 cells wide."""
        lines = Report(record, verdict, PLAIN, UNICODE).lines()
        return "".join(f"{line.plain.rstrip()}\n" for line in lines).encode()


def print_report(
    console: Console, record: StoredRun, verdict: Verdict, program: str = "survive"
) -> None:
    """Print the report in the width, colours and characters that the console can show.

    ``program``: how to type this program where the reader is.
    """
    print_lines(
        console, lambda width, glyphs: Report(record, verdict, width, glyphs, program).lines()
    )


reporter = TerminalReporter()


@dataclass(frozen=True, slots=True)
class Report:
    """One report, laid out for one width and one set of characters."""

    record: StoredRun
    verdict: Verdict
    width: int
    glyphs: Glyphs
    program: str = "survive"  # how it is typed here

    def lines(self) -> Iterator[Text]:
        """The whole report, top to bottom; the verdict stands last, where the eye ends."""
        yield from self._header()
        # Sixty lines of "nothing was measured" would hide the one that says why.
        if told.began(self.record) or self.verdict.exit_code is ExitCode.HEAL_UNPROVEN:
            yield from self._measured()
        else:
            yield Text("the load never began: nothing was measured, nothing injected")
        yield Text()
        yield from self._sentence()
        yield from self._next()

    def _measured(self) -> Iterator[Text]:
        yield from self._objectives()
        yield from self.timeline()
        for fault in self.verdict.faults:
            yield Text()
            yield from self._fault(fault)
        yield from self._matrix()
        yield from self._section("episodes", self._episodes())
        yield from self._section("load", self._load(self.verdict.load))
        yield from self._section("also", self._reasons())

    # ------------------------------------------------------------------ frame

    def _header(self) -> Iterator[Text]:
        plan = self.record.plan
        name = self.glyphs.short(f"{plan.name} on {plan.target}", self.width - 34)
        seed = self.glyphs.short(f"{words.span(ended_us(self.record))}  seed {plan.seed}", 24)
        left = Text.assemble(("survive ", draw.FAINT), (name, "bold"))
        yield self._apart(left, Text(seed))
        for piece in self.glyphs.wrapped(told.conditions(self.record, self.verdict), self.width):
            yield Text(piece)
        if plan.closed:
            for piece in self.glyphs.wrapped(words.CLOSED, self.width):
                yield Text(piece, "bold")
        if told.host(self.record) == "virtual":
            yield Text(told.VIRTUAL)

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
        pieces = self.glyphs.wrapped(text, room)
        for index, piece in enumerate(pieces):
            shown = label if index == 0 else ""
            yield Text.assemble((f"  {shown:<{_LABEL}}", draw.FAINT), (piece, style))

    def _line(self, line: told.Line) -> Iterator[Text]:
        yield from self._labelled(line.label, line.text, _TONE[line.tone])

    # ------------------------------------------------------------- objectives

    def _objectives(self) -> Iterator[Text]:
        cells = self.verdict.objectives
        if not cells:
            return
        table = _Columns.fit(cells, self.width)
        yield from (Text(), self._titled("objectives", table.heading()))
        last: list[str] = []  # a reason that several cells share in a row is told once
        for name, group in groupby(cells, key=lambda cell: cell.name):
            same = list(group)
            limits = {(cell.metric, cell.limit) for cell in same}
            title = self.glyphs.short(name, self.width // 2)
            limit = ",  ".join(told.limit(cell, self.glyphs) for cell in same[: len(limits)])
            yield Text.assemble(
                "  ", (title, "bold"), "  ", (self.glyphs.short(limit, self.width // 2 - 4), "")
            )
            for cell in same:
                yield from self._cell(table, cell)
                notes = list(told.notes(cell))
                for note in () if notes == last else notes:
                    for piece in self.glyphs.wrapped(note, self.width - 6):
                        yield Text(f"      {piece}", draw.FAINT)
                last = notes

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

    # --------------------------------------------------------------- timeline

    def timeline(self) -> Iterator[Text]:
        """Load, latency, failures and faults under each other, on one axis of time."""
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
        if any(told.is_infinite(value) for value in p99):
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
        for line in told.of_fault(self.verdict, fault, self.glyphs):
            yield from self._line(line)
        for said in told.unfair(fault):
            for index, piece in enumerate(self.glyphs.wrapped(said, self.width - 4)):
                yield Text(f"  {'  ' if index else ''}{piece}", "bold")

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
            fault = self.glyphs.short(one.fault, _LABEL)
            yield from self._labelled(fault, told.of_episodes(one))

    # ------------------------------------------------------------------- load

    def _load(self, load: LoadReport) -> Iterator[Text]:
        for line in told.of_load(self.record, load, self.glyphs):
            if line.aside:
                aside = f"  {line.aside}" if self.width >= _ROOMY else ""
                label = f"  {line.label:<{_LABEL}}"
                yield Text.assemble((label, draw.FAINT), line.text, (aside, draw.FAINT))
            else:
                yield from self._line(line)

    # ---------------------------------------------------------------- verdict

    def _reasons(self) -> Iterator[Text]:
        rest = self.verdict.reasons[1:]  # the first one is what the sentence below says
        for reason in rest[:_REASONS]:
            for index, piece in enumerate(self.glyphs.wrapped(reason, self.width - 4)):
                yield Text(f"  {'-' if index == 0 else ' '} {piece}")
        if len(rest) > _REASONS:
            yield Text(f"  - and {len(rest) - _REASONS} more in verdict.json")
        for by_hand in told.by_hand(self.record):
            # Never wrapped: it is to be copied.
            yield Text.assemble("    by hand: ", (self.glyphs.clean(by_hand), "bold"))

    def _sentence(self) -> Iterator[Text]:
        word = self.verdict.verdict
        pieces = self.glyphs.wrapped(sentence(self.record, self.verdict), self.width - 2)
        for index, piece in enumerate(pieces):
            head, _, tail = piece.partition(" ") if index == 0 else ("", "", f"  {piece}")
            yield Text.assemble((head, _STYLE[word]), (f" {tail}" if index == 0 else tail, "bold"))

    def _next(self) -> Iterator[Text]:
        folder = self.glyphs.clean(str(self.record.folder))
        command = f"{self.program} judge {shlex.quote(folder)}"
        if self.verdict.exit_code is ExitCode.HEAL_UNPROVEN:
            command = f"{self.program} heal --check"
        yield Text(f"next: {command}", draw.FAINT)
        if (self.record.folder / PAGE).is_file():
            yield Text(f"page: {folder}/{PAGE}", draw.FAINT)


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


def _shout(word: Word) -> str:
    """FAILED stands out without colour."""
    return word.upper() if word is Word.FAILED else str(word)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _worst(rows: Sequence[Second]) -> Number:
    values = [row.p99_ms for row in rows if row.p99_ms is not None]
    if any(told.is_infinite(value) for value in values):
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
