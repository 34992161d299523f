"""The envelope on the terminal: the interval, what breaks first, and every level that was played.

Human text, no contract: machines read envelope.json.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from survive.judge.capacity import Envelope, Finding, Finished, Level, holds
from survive.judge.verdict import Cell, Word

from . import words
from .axis import FAINT
from .glyphs import Glyphs, fill
from .printed import print_lines
from .sentence import observed_text

_STYLE = {
    Finding.SURVIVED: "green",
    Finding.FAILED: "bold red",
    Finding.MIXED: "bold yellow",
    Finding.UNDECIDED: "bold yellow",
    Finding.HARNESS: "cyan",
}
_MARK = {Word.SURVIVED: " ", Word.INCONCLUSIVE: "?", Word.FAILED: "!"}
_CELL_STYLE = {Word.SURVIVED: "", Word.INCONCLUSIVE: "yellow", Word.FAILED: "bold red"}
_ORDER = (Word.SURVIVED, Word.INCONCLUSIVE, Word.FAILED)
_HEAD = 36  # factor, rate, runs and finding
_COLUMN = (9, 18)  # least and greatest width of an objective
_ENDED = {
    "runs": "no more runs were allowed (--max-runs): the bounds may be further apart",
    "interrupted": "interrupted: this is what is known so far",
    "stopped": "the last run ended in a way after which no other is begun; see above",
}
_WHY = 200  # cells of a reason; the whole of it is in envelope.json
_BROKEN_MOST = 6  # cells; all are in envelope.json


def print_envelope(console: Console, found: Finished) -> None:
    """Print it in the width, colours and characters that the console can show."""
    print_lines(console, lambda width, glyphs: EnvelopeReport(found, width, glyphs).lines())


@dataclass(frozen=True, slots=True)
class EnvelopeReport:
    """One report, laid out for one width and one set of characters."""

    found: Finished
    width: int
    glyphs: Glyphs

    def lines(self) -> Iterator[Text]:
        """Top to bottom; the answer stands last, where the eye ends."""
        yield from self._header()
        for envelope in self.found.envelopes:
            yield from self._levels(envelope)
            yield from self._breaks_first(envelope)
            yield from self._notes(envelope)
        yield Text()
        for envelope in self.found.envelopes:
            yield from self._answer(envelope)
        yield from self._cost()
        yield from self._wanted()
        yield Text(
            f"every run: {self.glyphs.clean(self.found.folder)}", FAINT
        )  # to be copied whole

    # ------------------------------------------------------------------ frame

    def _said(self, text: str, style: str = "", indent: str = "") -> Iterator[Text]:
        """Clean text, wrapped; what is continued is indented once more."""
        clean = self.glyphs.clean(text)
        for piece in textwrap.wrap(
            clean,
            self.width,
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_long_words=False,
            break_on_hyphens=False,
        ):
            yield Text(piece, style)

    def _header(self) -> Iterator[Text]:
        found = self.found
        runs = words.plural(len(found.runs), "run")
        grade = f", grade {found.grade}" if found.grade else ""
        yield from self._said(f"survive envelope: {found.scenario} on {found.target}", "bold")
        yield from self._said(
            f"{found.host} host{grade}; {runs} of {words.span(found.span_us)}; "
            f"1x = {words.rate(float(found.one_rps))}, the highest rate of the scenario",
            FAINT,
        )

    def _rate(self, level: Level) -> str:
        return words.rate(self.found.rps(level))

    def _why(self, level: Level) -> str:
        return self.glyphs.short(level.told.why, _WHY)

    def _load(self, level: Level) -> str:
        return f"{self._rate(level)} ({_times(level)})"

    # ----------------------------------------------------------------- levels

    def _levels(self, envelope: Envelope) -> Iterator[Text]:
        """Load × objective, in blocks where the objectives do not fit beside each other."""
        names = list(dict.fromkeys(c.name for x in envelope.levels for c in _cells(x)))
        yield from (Text(), self._title("levels", "" if envelope.faults else "without faults"))
        first = True
        while first or names:
            head = _HEAD if first else 10
            column = min(_COLUMN[1], max([_COLUMN[0], *(cell_len(n) + 1 for n in names)]))
            fit = max(1, (self.width - head) // (column + 1))
            block, names = names[:fit], names[fit:]
            yield from self._heads(envelope, block, column, whole=first)
            for level in envelope.levels:
                yield self._row(level, block, column, whole=first)
            first = False
            if names:
                yield Text()
        if any(cell.verdict is not Word.SURVIVED for x in envelope.levels for cell in _cells(x)):
            yield from self._said("! broken   ? undecided   the worst cell of each", FAINT, "  ")

    def _title(self, name: str, beside: str) -> Text:
        return Text.assemble((name.upper(), "bold"), (f"  {beside}" if beside else "", FAINT))

    def _heads(
        self, envelope: Envelope, block: Sequence[str], column: int, *, whole: bool
    ) -> Iterator[Text]:
        """The names of the columns, and below them the limits."""
        line = f"  {'load':<8}" + (f"{'rate':>9}  {'runs':>4}  {'found':<9}  " if whole else "")
        limits = [self._limit(envelope, name) for name in block]
        for before, texts in ((line, block), (" " * len(line), limits)):
            shown = (self.glyphs.short(text, column - 1) for text in texts)
            yield Text(before + "".join(fill(f" {text}", column + 1) for text in shown), FAINT)

    def _limit(self, envelope: Envelope, name: str) -> str:
        cells = (cell for level in envelope.levels for cell in _cells(level))
        return next(self._bound(cell) for cell in cells if cell.name == name)

    def _bound(self, cell: Cell) -> str:
        sign = self.glyphs.at_least if cell.bound == "min" else self.glyphs.at_most
        return f"{sign} {words.quantity(cell.limit, cell.unit)}"

    def _row(self, level: Level, block: Sequence[str], column: int, *, whole: bool) -> Text:
        line = Text(f"  {_times(level):<8}")
        if whole:
            line.append(f"{self._rate(level):>9}  {len(level.runs):>4}  ")
            line.append(f"{level.finding:<9}  ", _STYLE[level.finding])
        for name in block:
            cell = _worst([cell for cell in _cells(level) if cell.name == name])
            verdict = Word.SURVIVED if cell is None else cell.verdict
            if level.finding is Finding.HARNESS and verdict is Word.FAILED:
                verdict = Word.INCONCLUSIVE  # broken, and nobody can say by whom
            said = "" if cell is None else f"{_MARK[verdict]}{observed_text(cell)}"
            style = _CELL_STYLE[verdict]
            line.append(fill(self.glyphs.short(said, column), column + 1), style)
        return line

    def _breaks_first(self, envelope: Envelope) -> Iterator[Text]:
        """The failed cells of the lowest level that failed, beside the same ones below it."""
        high, low = envelope.fails, envelope.survives
        if high is None:
            return
        yield from (Text(), self._title("breaks first", f"at {self._load(high)}"))
        for cell in envelope.limits[:_BROKEN_MOST]:
            before = next((c for c in (_cells(low) if low else []) if _same(c, cell)), None)
            beside = f"; {observed_text(before)} at {_times(low)}" if before and low else ""
            whom = f" {cell.request}" if cell.request else ""
            yield from self._said(
                f"{cell.name}{whom}, {cell.window}: {cell.metric} {observed_text(cell)}, "
                f"limit {self._bound(cell)}{beside}",
                indent="  ",
            )
        if len(envelope.limits) > _BROKEN_MOST:
            yield Text(f"  and {len(envelope.limits) - _BROKEN_MOST} more", FAINT)
        if not envelope.limits:
            yield from self._said(high.told.why, indent="  ")

    def _notes(self, envelope: Envelope) -> Iterator[Text]:
        notes = [*self._disagreements(envelope), *self._unknown(envelope)]
        if self.found.ended in _ENDED and envelope is self.found.envelopes[-1]:
            notes.append(_ENDED[self.found.ended])
        if notes:
            yield from (Text(), self._title("also", ""))
        for note in notes:
            yield from self._said(f"- {note}", indent="  ")

    def _disagreements(self, envelope: Envelope) -> Iterator[str]:
        for level in envelope.open:
            if level.finding is Finding.MIXED:
                good = sum(run.finding is Finding.SURVIVED for run in level.runs)
                yield (
                    f"at {self._load(level)} the seeds disagree: {good} of {level.decided} runs "
                    f"survived ({self._why(level)})"
                )
        for failed, survived in envelope.violations:
            yield (
                f"not monotone: failed at {self._load(failed)}, survived at "
                f"{self._load(survived)}; what survived above a failure moves no bound"
            )

    def _unknown(self, envelope: Envelope) -> Iterator[str]:
        for level in envelope.levels:
            if level.finding is Finding.UNDECIDED:
                yield f"undecided at {self._load(level)}: {self._why(level)}"
            if level.finding is Finding.HARNESS:
                yield (
                    f"at {self._load(level)} the harness is the limit, which says nothing of the "
                    f"target: {self._why(level)}"
                )

    # ----------------------------------------------------------------- answer

    def _answer(self, envelope: Envelope) -> Iterator[Text]:
        name = self.found.scenario + ("" if envelope.faults else " without faults")
        yield from self._said(f"ENVELOPE {name}: {self._interval(envelope)}", "bold")

    def _interval(self, envelope: Envelope) -> str:
        low, high, harness = envelope.survives, envelope.fails, envelope.harness
        at_least, at_most = self.glyphs.at_least, self.glyphs.at_most
        survives = f"survives at {at_least} {self._load(low)}" if low else "survived at no load"
        if high is not None:
            broken = dict.fromkeys(cell.name for cell in envelope.limits)
            first = f"{next(iter(broken))} breaks first" if broken else high.told.why
            return f"{survives}, fails at {at_most} {self._load(high)}; {first}"
        if harness is not None:
            return (
                f"{survives}; at {self._load(harness)} the harness is the limit, and where the "
                "target fails is not known"
            )
        if low is not None and envelope.whole and self.found.ended == "complete":
            return f"{survives}, the highest load played"
        return f"{survives}; where it fails is not known"

    def _cost(self) -> Iterator[Text]:
        cost = self.found.cost
        if cost is not None:
            low, high = (words.share(max(0.0, part), significant=2) for part in cost)
            yield from self._said(f"the faults cost {low} to {high} of what it takes without them")

    def _wanted(self) -> Iterator[Text]:
        least = self.found.least
        if least is None or not self.found.envelopes:
            return
        rate = words.rate(float(self.found.one_rps * least))
        said = {
            Word.SURVIVED: ("holds", "bold green"),
            Word.FAILED: ("does not hold", "bold red"),
            Word.INCONCLUSIVE: ("is undecided", "bold yellow"),
        }
        word, style = said[holds(self.found.envelopes[0], least)]
        yield from self._said(f"at least {rate} ({float(least):.4g}x): {word}", style)


def _times(level: Level) -> str:
    return f"{float(level.factor):.4g}x"


def _cells(level: Level) -> tuple[Cell, ...]:
    """Of all its runs that say what it says."""
    wanted = {level.finding, level.told.finding}
    return tuple(cell for run in level.runs if run.finding in wanted for cell in run.cells)


def _worst(cells: Sequence[Cell]) -> Cell | None:
    """Among cells of one word the one with the greater share of bad."""
    return max(
        cells,
        key=lambda c: (_ORDER.index(c.verdict), c.bad / c.n if c.n else 0.0),
        default=None,
    )


def _same(one: Cell, other: Cell) -> bool:
    return (one.name, one.request, one.window) == (other.name, other.request, other.window)
