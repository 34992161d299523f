"""``markdown``: the verdict for a job summary or a merge request, in GitHub's dialect.

At most 64 kB: GitHub drops a step's summary over 1 MiB, and a step may run several scenarios. No
pictures, which summaries do not show: the timeline is text. Whatever a target or a request said is
escaped, so that it is neither markup nor a link, and mentions nobody.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from survive.judge.verdict import Cell, FaultReport, Verdict, Word

from . import told, words
from .glyphs import UNICODE
from .inputs import StoredRun, ended_us
from .sentence import observed_text, sentence
from .terminal import PLAIN, Report

_MOST_BYTES = 64_000
_CELLS, _FAULTS, _REASONS = 120, 20, 8  # more stand in verdict.json
_COLUMNS = ("verdict", "objective", "request", "window", "observed", "limit", "n")
_LONG = 300  # characters of one text
_ORDER = (Word.FAILED, Word.INCONCLUSIVE, Word.SURVIVED)
_MARKUP = re.compile(r"([\\`*_\[\]<>|~$#&{}!]|^[-+=]|^\d+(?=[.)](?:\s|$)))")
_LINKS = re.compile(r"(?<=://)|(?<=@)|(?<=\bwww)(?=\.)", re.IGNORECASE)
_NOTHING = "\u200b"  # a character of no width parts what would become a link


class MarkdownReporter:
    """``survive report RUN --format markdown``; in GitHub Actions ``run`` adds it to the step."""

    def render(self, record: StoredRun, verdict: Verdict) -> bytes:
        """Headline, objectives, timeline, faults, reasons, and how to run it again."""
        sections = (
            _headline(record, verdict),
            _objectives(verdict.objectives),
            _timeline(record, verdict),
            _faults(verdict),
            _reasons(record, verdict),
            _again(record),
        )
        return bounded("\n".join("\n".join(section) for section in sections if section))


reporter = MarkdownReporter()


def _headline(record: StoredRun, verdict: Verdict) -> list[str]:
    plan = record.plan
    word, _, rest = sentence(record, verdict).partition(" ")
    took = words.span(ended_us(record))
    requests = words.plural(verdict.load.sent, "request")
    return [
        f"## {word}: {escaped(plan.name)} on {escaped(plan.target)}",
        "",
        f"**{word}** {escaped(rest)}",
        "",
        escaped(f"{told.conditions(record, verdict)}; {requests} in {took}, seed {plan.seed}"),
        *(["", escaped(words.CLOSED)] if plan.closed else []),
        "",
    ]


def _objectives(cells: Sequence[Cell]) -> list[str]:
    """Red first, then what is open: the top of a long table is what people see."""
    if not cells:
        return []
    shown = sorted(cells, key=lambda cell: _ORDER.index(cell.verdict))[:_CELLS]
    more = len(cells) - len(shown)
    return [
        *table("verdict", "objective", "request", "window", "observed", "limit", "n", last=" ---:"),
        *(row(*_of_cell(cell)) for cell in shown),
        *(["", f"and {words.count(more)} more in verdict.json"] if more else []),
        "",
    ]


def _of_cell(cell: Cell) -> tuple[str, ...]:
    interval = words.interval(cell.low, cell.high, cell.unit)
    observed = observed_text(cell) + (f" ({interval})" if interval else "")
    notes = "".join(f"<br>{escaped(note)}" for note in told.notes(cell))
    word = str(cell.verdict)
    return (
        word if cell.verdict is Word.SURVIVED else f"**{word.upper()}**",
        escaped(cell.name),
        escaped(cell.request or "all"),
        escaped(cell.window),
        _bound(escaped(observed)) + notes,
        _bound(escaped(told.limit(cell))),
        words.count(cell.n),
    )


def _bound(text: str) -> str:
    """Not to be broken between a number and its unit."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _timeline(record: StoredRun, verdict: Verdict) -> list[str]:
    lines = [line.plain.rstrip() for line in Report(record, verdict, PLAIN, UNICODE).timeline()]
    return _fenced("text", lines[1:])


def _faults(verdict: Verdict) -> list[str]:
    if not verdict.faults:
        return []
    more = len(verdict.faults) - _FAULTS
    return [
        *table("fault", "what", "proof", "effect"),
        *(row(*_of_fault(verdict, fault)) for fault in verdict.faults[:_FAULTS]),
        *(["", f"and {words.plural(more, 'more fault')}"] if more > 0 else []),
        "",
    ]


def _of_fault(verdict: Verdict, fault: FaultReport) -> tuple[str, ...]:
    said: dict[str, list[str]] = {}
    for line in told.of_fault(verdict, fault):
        column = "proof" if line.label in {"when", "proof", "heal"} else "effect"
        label = f"{line.label}: " if line.label not in {"", "proof", "effect"} else ""
        said.setdefault(column, []).append(escaped(label + line.text))
    said["effect"] += [escaped(line) for line in told.unfair(fault)]
    what = f"{fault.kind}, grade {fault.grade}, on {fault.target}"
    return escaped(fault.name), escaped(what), *("<br>".join(said[c]) for c in ("proof", "effect"))


def _reasons(record: StoredRun, verdict: Verdict) -> list[str]:
    rest = verdict.reasons[1:]  # the first one is what the headline says
    more = len(rest) - _REASONS
    lines = [
        *(f"- {escaped(reason)}" for reason in rest[:_REASONS]),
        *([f"- and {words.plural(more, 'more reason')} in verdict.json"] if more > 0 else []),
        *(f"- to be done by hand: {escaped(line)}" for line in told.by_hand(record)),
    ]
    return [*lines, ""] if lines else []


def _again(record: StoredRun) -> list[str]:
    """The command, as it was given."""
    given = record.manifest.get("argv")
    if not isinstance(given, list) or not given:
        return []
    command = UNICODE.clean(shlex.join(["survive", *map(str, given)]))
    return _fenced("console", [f"$ {command}"])


def _fenced(what: str, lines: Sequence[str]) -> list[str]:
    """A block that nothing in it can end."""
    longest = max((len(run) for run in re.findall("`+", "\n".join(lines))), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{what}", *lines, fence, ""]


def table(*columns: str, last: str = " ---") -> list[str]:
    """The head of a table."""
    return [row(*columns), f"|{' --- |' * (len(columns) - 1)}{last} |"]


def row(*values: str) -> str:
    """A row of a table; texts are escaped before."""
    return f"| {' | '.join(values)} |"


def escaped(text: str) -> str:
    """One line of plain text: no markup, no links, no mentions."""
    clean = UNICODE.short(" ".join(text.split()), _LONG)
    return _LINKS.sub(_NOTHING, _MARKUP.sub(_escape, clean))


def _escape(found: re.Match[str]) -> str:
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"  # `1\.` is no list


def bounded(text: str) -> bytes:
    """Whole lines up to the limit."""
    data = text.encode()
    if len(data) <= _MOST_BYTES:
        return data
    kept = data[:_MOST_BYTES].rpartition(b"\n")[0]
    return kept + b"\n\n(cut here; the rest is in verdict.json)\n"
