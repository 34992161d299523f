"""The page of a run: one file, for people.

It needs no network and no script, and its style sheet only refines: under a policy that forbids
styles (Jenkins' default) headings, tables and pictures read as well. Words are those of the
terminal's report; numbers come from the record by the judge's own windows.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from survive.errors import SurviveError
from survive.judge.verdict import Cell, FaultReport, Verdict, Word
from survive.record.reader import Record

from . import told, words
from .inputs import ended_us
from .markup import NEWLINE, Markup, facts, joined, lines, number, right, row, table, tag
from .matrix import Square, matrix_of
from .matrix import rows as matrix_rows
from .measured import Class, Measured, held, pools
from .sentence import observed_text, sentence
from .spectra import spectra
from .timeline import Timeline

_HASHED = ("scenario.yaml", "target.yaml", "plan.json")
_REASONS = 12  # the others stand beside their cells
_CLASSES = 60  # lines of the table of failures
_NUMBERS = ("observed", "90 % CI", "n", "bad")
_TONES = {Word.SURVIVED: "good", Word.FAILED: "bad", Word.INCONCLUSIVE: "open"}
_GLOSSARY = (
    ("steady", "requests of constant load whose whole life lies outside warm-up, fault, recovery"),
    ("fault:x", "begun while fault x was on, or met by its inject"),
    ("recovery:x", "begun after its heal, until the end of the time it has to recover"),
    ("observed", "of a percentile, with every failed request as infinity"),
    ("90 % CI", "two-sided interval of this episode; other episodes may differ by more"),
    ("survived", "the one-sided 95 % bound lies on the good side of the limit"),
    ("inconclusive", "the evidence does not decide; it is never counted as survived"),
    ("latency", "from the intended start, so that a request that had to wait is as late as it is"),
    ("proven", "an observation that does not use the channel that injected saw the fault bite"),
    ("grade", "how real a fault is: real > induced > reported > emulated > simulated"),
)


class HtmlReporter:
    """``survive report RUN --format html``."""

    def render(self, record: Record, verdict: Verdict) -> bytes:
        """The page. The same record and verdict give the same bytes."""
        return f"<!DOCTYPE html>\n{_Page(record, verdict).markup()}\n".encode()


reporter = HtmlReporter()


class _Page:
    """One page, from the verdict down to how to see it again."""

    def __init__(self, record: Record, verdict: Verdict) -> None:
        self.record, self.verdict = record, verdict
        self.measured = Measured(record)

    def markup(self) -> Markup:
        """The document."""
        return tag("html", NEWLINE, self._head(), NEWLINE, self._body(), NEWLINE, lang="en")

    def _head(self) -> Markup:
        plan, verdict = self.record.plan, self.verdict
        title = f"{verdict.verdict}: {plan.name} on {plan.target}, seed {plan.seed}"
        style = Path(__file__).with_name("html.css").read_text(encoding="utf-8")
        return tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name_="color-scheme", content="light dark"),
            tag("title", title),
            tag("style", Markup(style)),
        )

    def _body(self) -> Markup:
        sections = (
            ("Objectives", self._objectives()),
            ("Survival matrix", self._matrix()),
            ("Timeline", self._timeline()),
            ("Faults", self._faults()),
            ("Percentiles", self._spectra()),
            ("Failures", self._failures()),
            ("Load and the harness's own health", self._load()),
            ("How to see this again", self._again()),
            ("Words", self._glossary()),
        )
        whole = (self._section(title, body) for title, body in sections)
        return tag("body", NEWLINE, tag("main", lines((self._top(), *whole))), NEWLINE)

    def _section(self, title: str, body: Iterable[Markup]) -> Markup:
        """Nothing at all where there is nothing to say."""
        inside = list(body)
        return tag("section", tag("h2", title), NEWLINE, lines(inside)) if inside else Markup("")

    # ---------------------------------------------------------------- verdict

    def _top(self) -> Markup:
        record, verdict = self.record, self.verdict
        word, _, rest = sentence(record, verdict).partition(" ")
        tone = _TONES[verdict.verdict]
        parts = [tag("h1", tag("strong", word, class_=tone), f" {rest}")]
        if about := self._about():
            parts.append(tag("p", about, class_="about"))
        took = words.span(ended_us(record))
        where = f"{record.plan.name} on {record.plan.target}, {took}, seed {record.plan.seed}"
        parts.append(tag("p", f"{where}; {told.conditions(record, verdict)}.", class_="faint"))
        if record.plan.closed:
            parts.append(tag("p", tag("strong", words.CLOSED)))
        if told.host(record) == "virtual":
            parts.append(tag("p", f"{told.VIRTUAL}.".capitalize()))
        parts.extend(_list("Also", self._also()))
        parts.extend(_list("By hand", [tag("code", hand) for hand in told.by_hand(record)]))
        return tag("header", lines(parts))

    def _also(self) -> list[str]:
        """Every reason but the first: that is what the sentence says."""
        rest = self.verdict.reasons[1:]
        more = [f"and {len(rest) - _REASONS} more, in the table below"]
        return [*rest[:_REASONS], *more * (len(rest) > _REASONS)]

    def _about(self) -> str:
        try:
            return self.record.scenario.about
        except (SurviveError, OSError):
            return ""

    # ------------------------------------------------------------- objectives

    def _objectives(self) -> Iterator[Markup]:
        cells = self.verdict.objectives
        if not cells:
            return
        head = ["objective", "request", "window", "verdict", *map(right, _NUMBERS)]
        body: list[Markup] = []
        for name, group in groupby(cells, key=lambda cell: cell.name):
            body += self._group(name, list(group), len(head))
        yield table(head, body, "Every objective in every window that it is judged in")

    def _group(self, name: str, cells: Sequence[Cell], columns: int) -> Iterator[Markup]:
        """The cells of one objective; its name and limit stand beside all of them."""
        found: list[Markup] = []
        last: list[str] = []  # a reason that several cells share in a row is told once
        for cell in cells:
            found.append(self._cell(cell))
            notes = list(told.notes(cell))
            if notes and notes != last:
                found.append(tag("td", "; ".join(notes), colspan=columns - 1, class_="note"))
            last = notes
        limits = dict.fromkeys(told.limit(cell) for cell in cells)
        title = (tag("b", name), *(joined((tag("br"), said)) for said in limits))
        yield tag("tr", tag("th", *title, scope="rowgroup", rowspan=len(found)), found[0])
        yield from (tag("tr", cells) for cells in found[1:])

    def _cell(self, cell: Cell) -> Markup:
        return joined(
            (
                tag("td", cell.request or "all"),
                tag("td", cell.window),
                _word(cell.verdict),
                number(observed_text(cell)),
                number(words.interval(cell.low, cell.high, cell.unit)),
                number(words.count(cell.n)),
                number(words.count(cell.bad)),
            )
        )

    def _matrix(self) -> Iterator[Markup]:
        matrix = matrix_of(self.verdict)
        if not matrix.faults or not matrix.objectives:
            return
        body = [row(fault, *map(_square, squares)) for fault, squares in matrix_rows(matrix)]
        caption = "What each fault did to each objective, by its worst cell"
        yield table(["fault", *matrix.objectives], body, caption)

    # ----------------------------------------------------------------- faults

    def _timeline(self) -> Iterator[Markup]:
        timeline = Timeline(self.record, self.verdict, self.measured)
        yield timeline.picture()
        of_faults = (
            "Of each fault: dashed frame = planned, bar = from inject to heal, thick line = seen "
            "active, dotted line = time it has to recover, upright green mark = back. Its band "
            "runs through all strips. "
        )
        of_requests = (
            "Requests stand at their intended start; more of them are a stronger blue. Red along "
            "the top: the share that failed."
        )
        faulted = bool(self.record.plan.faults)
        yield tag("p", of_faults * faulted + of_requests, class_="faint")
        if left_out := timeline.without_strip():
            yield tag("p", f"No room above for: {', '.join(left_out)}.", class_="faint")

    def _faults(self) -> Iterator[Markup]:
        for fault in self.verdict.faults:
            yield self._fault(fault)
        of_repeats = [row(one.fault, told.of_episodes(one)) for one in self.verdict.episodes]
        if of_repeats:
            yield facts(of_repeats, "Over the repeats of a fault")

    def _fault(self, fault: FaultReport) -> Markup:
        proven = fault.proof == "proven"
        said = tag("strong", "proven" if proven else "NOT PROVEN", class_=_tone(proven))
        what = f" · {fault.kind}, grade {fault.grade}, on {fault.target} · "
        body = [
            row(line.label, tag("td", line.text, class_=line.tone or None))
            for line in told.of_fault(self.verdict, fault)
        ]
        body += [row("unfair", tag("td", line, class_="bad")) for line in told.unfair(fault)]
        title = tag("h3", fault.name, tag("small", what, said))
        return joined((title, NEWLINE, facts(body, f"Fault {fault.name}")))

    # -------------------------------------------------------------------- load

    def _spectra(self) -> Iterator[Markup]:
        yield from spectra(self.verdict, self.measured)

    def _failures(self) -> Iterator[Markup]:
        plan = self.record.plan
        around = [
            f"{kind}:{name}"
            for name in pools(plan)
            for kind in (("fault", "recovery") if held(plan, name) else ("fault",))
        ]
        windows = ["run", "steady", *around]
        found = [one for window in windows for one in self.measured.classes(window)]
        if not found:
            yield tag("p", "No request failed.")
            return
        caption = "Bad requests by window, kind and class"
        head = [
            "window",
            "request",
            "what happened",
            right("requests"),
            right("of this kind there"),
        ]
        yield table(head, [_class(one) for one in found[:_CLASSES]], caption)
        rest = len(found) - _CLASSES
        if rest > 0:
            yield tag("p", f"And {words.plural(rest, 'line')} more: latency.hlog has them.")

    def _load(self) -> Iterator[Markup]:
        body = [
            row(line.label, tag("td", line.text, _aside(line), class_=line.tone or None))
            for line in told.of_load(self.record, self.verdict.load)
        ]
        yield facts(body, "Where every request went, and the harness itself")

    # ------------------------------------------------------------------- again

    def _again(self) -> Iterator[Markup]:
        manifest, plan = self.record.manifest, self.record.plan
        said: list[tuple[str, object]] = []
        argv = manifest.get("argv")
        if isinstance(argv, list):
            command = shlex.join(["survive", *map(str, argv)])
            said.append(("command", tag("code", command)))
        said.append(("seed", plan.seed))
        for name in ("run", "started_utc", "survive", "python", "machine", "lanes"):
            if name in manifest:
                said.append((name.replace("_", " "), manifest[name]))
        said += [(f"sha256 of {name}", tag("code", digest)) for name, digest in self._hashes()]
        body = [row(name, tag("td", value, class_="long")) for name, value in said]
        yield facts(body, "Command, seed, versions, hashes")
        yield tag(
            "p",
            "The same seed plans the same requests to the microsecond. ",
            tag("code", "survive judge"),
            " on the run directory judges this record again.",
        )

    def _hashes(self) -> Iterator[tuple[str, str]]:
        for name in _HASHED:
            path = self.record.folder / name
            if path.is_file():
                yield name, hashlib.sha256(path.read_bytes()).hexdigest()

    def _glossary(self) -> Iterator[Markup]:
        terms = (joined((tag("dt", word), tag("dd", means))) for word, means in _GLOSSARY)
        yield tag("dl", lines(terms))


def _list(title: str, items: Sequence[str]) -> Iterator[Markup]:
    """Nothing where there is nothing to tell."""
    if items:
        yield tag("h2", title)
        yield tag("ul", lines(tag("li", item) for item in items))


def _aside(line: told.Line) -> Markup:
    return tag("small", f" ({line.aside})") if line.aside else Markup("")


def _tone(good: bool) -> str:
    return "good" if good else "open"


def _word(word: Word) -> Markup:
    """FAILED stands out without colour."""
    said = word.upper() if word is Word.FAILED else str(word)
    return tag("td", tag("strong", said, class_=_TONES[word]))


def _square(square: Square) -> Markup:
    if square.worst is None or square.verdict is None:
        return tag("td", words.NOTHING)
    tone = _TONES[square.verdict]
    said = tag("strong", square.verdict.upper() if tone == "bad" else square.verdict, class_=tone)
    return tag("td", said, " ", observed_text(square.worst), class_="short")


def _class(one: Class) -> Markup:
    of = words.share(one.bad / one.n, significant=3) if one.n else words.NOTHING
    return row(one.window, one.kind, one.why, number(words.count(one.bad)), number(of))
