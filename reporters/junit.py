"""``junit.xml``: a case for each cell, for the test views of GitLab, Jenkins and their like.

There is no one specification. This is the part that all of them read: ``testsuites``,
``testsuite``, ``properties``, ``testcase`` with one ``failure``, ``error`` or ``skipped`` and a
``system-out``; and ``file`` and ``line``, in no schema and yet read by most. GitLab drops cases of
one name, so names differ. Nothing here tells the time of day: the same seed gives the same file.

=============  =====================================================================
survived       nothing
failed         ``<failure>``
inconclusive   ``<error>``: nobody knows, so it is not green
not reached    ``<skipped>``: the run ended before the cell's window began
the run        a case of its own: ``<failure>`` if ``stop_if`` ended it, ``<error>`` if it
               is inconclusive; so whatever was not survived has a case that says so
=============  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from xml.etree import ElementTree

from survive.errors import ExitCode
from survive.judge.verdict import Cell, Verdict, Word
from survive.units import SECOND

from .cells import place_of, seen_text
from .glyphs import UNICODE
from .inputs import StoredRun, ended_us, fields_of
from .sentence import sentence
from .spans import Spans

_REASONS = 50  # more stand in verdict.json
_BAD = ("failure", "error", "skipped")


class JunitReporter:
    """``survive report RUN --format junit``."""

    def render(self, record: StoredRun, verdict: Verdict) -> bytes:
        """One suite, as XML that every parser takes: what XML cannot hold is shown as ``?``."""
        spans = Spans(record)
        cases = [
            _run_case(record, verdict),
            *(_cell_case(cell, record, spans) for cell in verdict.objectives),
        ]
        root = ElementTree.Element("testsuites", name="survive")
        suite = ElementTree.SubElement(root, "testsuite", name=_line(record.plan.name))
        for element in (root, suite):
            _tell_sums(element, cases, ended_us(record) / SECOND)
        suite.append(_properties(record, verdict))
        suite.extend(case.element() for case in _distinct(cases))
        ElementTree.indent(root)
        text: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
        return text + b"\n"


reporter = JunitReporter()


@dataclass(frozen=True, slots=True)
class _Case:
    """One testcase; ``message`` and ``body`` are of what is ``bad`` about it."""

    name: str
    classname: str
    time_s: float
    seen: str
    bad: str = ""  # one of _BAD
    message: str = ""
    body: str = ""
    file: str = ""
    line: int = 0

    def element(self) -> ElementTree.Element:
        """As XML."""
        given = {"name": self.name, "classname": self.classname, "time": f"{self.time_s:.3f}"}
        if self.file:
            given["file"] = _line(self.file)
        if self.line:
            given["line"] = str(self.line)
        case = ElementTree.Element("testcase", given)
        if self.bad:
            bad = ElementTree.SubElement(case, self.bad, message=_line(self.message))
            bad.text = _lines(self.body)
        ElementTree.SubElement(case, "system-out").text = _lines(self.seen)
        return case


def _cell_case(cell: Cell, record: StoredRun, spans: Spans) -> _Case:
    whom = f" for {cell.request}" if cell.request else ""
    file, line = place_of(record, cell.name)
    case = _Case(
        name=_line(f"{cell.name}{whom} during {cell.window}"),
        classname=_line(f"{record.plan.name}.{cell.window}"),
        time_s=spans.length_s(cell.window),
        seen=seen_text(cell),
        file=file,
        line=line,
    )
    if cell.verdict is Word.SURVIVED:
        return case
    body = f"{case.seen}\n{cell.why}".rstrip()
    if cell.verdict is Word.FAILED:
        return replace(case, bad="failure", message=case.seen, body=body)
    why = cell.why or "too little was seen to tell"
    if not cell.n and not spans.reached(cell.window):
        said = f"not reached: {why}"
        return replace(case, bad="skipped", message=said, body=said)
    return replace(case, bad="error", message=f"inconclusive: {why}", body=body)


def _run_case(record: StoredRun, verdict: Verdict) -> _Case:
    case = _Case(
        name="the run",
        classname=_line(record.plan.name),
        time_s=ended_us(record) / SECOND,
        seen=sentence(record, verdict),
        file=place_of(record, "")[0],
    )
    stopped = verdict.exit_code is ExitCode.STOPPED
    if not stopped and verdict.verdict is not Word.INCONCLUSIVE:
        return case  # survived, or failed by cells that say so themselves
    reasons = verdict.reasons or ("no reason was recorded",)
    return replace(
        case,
        bad="failure" if stopped else "error",
        message=f"{verdict.verdict}: {reasons[0]}",
        body="\n".join(_line(reason) for reason in reasons[:_REASONS]),
    )


def _distinct(cases: Sequence[_Case]) -> Iterator[_Case]:
    """The same with names that differ; what is told apart by nothing else gets a number."""
    taken: set[str] = set()
    for case in cases:
        name, number = case.name, 2
        while name in taken:
            name, number = f"{case.name} ({number})", number + 1
        taken.add(name)
        yield replace(case, name=name)


def _tell_sums(element: ElementTree.Element, cases: Sequence[_Case], time_s: float) -> None:
    counts = {bad: sum(case.bad == bad for case in cases) for bad in _BAD}
    element.set("tests", str(len(cases)))
    element.set("failures", str(counts["failure"]))
    element.set("errors", str(counts["error"]))
    if element.tag == "testsuite":
        element.set("skipped", str(counts["skipped"]))
    element.set("time", f"{time_s:.3f}")


def _properties(record: StoredRun, verdict: Verdict) -> ElementTree.Element:
    plan = record.plan
    known = {
        "target": plan.target,
        "seed": plan.seed,
        "scale": plan.scale,
        "host": fields_of(record, "run_started").get("host", record.manifest.get("host", "")),
        "grade": verdict.grade,
        "verdict": verdict.verdict,
        "exit_code": int(verdict.exit_code),
        "survive": record.manifest.get("survive", ""),
    }
    found = ElementTree.Element("properties")
    for name, value in known.items():
        ElementTree.SubElement(found, "property", name=name, value=_line(str(value)))
    return found


def _line(text: str) -> str:
    """One line of nothing but what XML can hold."""
    return UNICODE.clean(" ".join(text.split()))


def _lines(text: str) -> str:
    return "\n".join(map(_line, text.splitlines()))
