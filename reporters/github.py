"""Annotations for GitHub Actions: workflow commands that point at the objective's own line.

GitHub keeps ten of a kind for each step, so nine are shown and the tenth says how many more there
are. Only what an author can act on: broken objectives, and one line for a run that says nothing.
The escapes are those of the runner, which undoes them: ``%``, line ends, and ``:`` and ``,`` in
properties.
"""

from __future__ import annotations

from collections.abc import Iterator

from survive.errors import ExitCode
from survive.judge.verdict import Cell, Verdict, Word

from . import words
from .cells import place_of, seen_text
from .glyphs import UNICODE
from .inputs import StoredRun

_MOST = 9
_LONGEST = 4000  # characters of a message; more is cut


class GithubReporter:
    """``survive report RUN --format github``; ``run`` does so by itself in GitHub Actions."""

    def render(self, record: StoredRun, verdict: Verdict) -> bytes:
        """One command a line; nothing for a run that survived."""
        return "".join(f"{line}\n" for line in _commands(record, verdict)).encode()


reporter = GithubReporter()


def _commands(record: StoredRun, verdict: Verdict) -> Iterator[str]:
    whole = list(_of_run(record, verdict))
    yield from whole
    broken = [cell for cell in verdict.objectives if cell.verdict is Word.FAILED]
    shown = broken[: _MOST - len(whole)]
    for cell in shown:
        yield _command("error", _title(cell), _message(cell), *place_of(record, cell.name))
    if more := len(broken) - len(shown):
        said = f"and {words.count(more)} more broke"
        yield _command("error", record.plan.name, said, *place_of(record, ""))


def _of_run(record: StoredRun, verdict: Verdict) -> Iterator[str]:
    """What no objective says: the run was stopped, left something behind, or decided nothing."""
    ended = verdict.exit_code in {ExitCode.STOPPED, ExitCode.HEAL_UNPROVEN}
    if not ended and verdict.verdict is not Word.INCONCLUSIVE:
        return
    reasons = verdict.reasons or ("no reason was recorded",)
    rest = f" (and {words.plural(len(reasons) - 1, 'reason')} more)" if len(reasons) > 1 else ""
    title = f"{record.plan.name}: {verdict.verdict}, exit {int(verdict.exit_code)}"
    level = "error" if ended else "warning"
    yield _command(level, title, reasons[0] + rest, *place_of(record, ""))


def _title(cell: Cell) -> str:
    whom = f" for {cell.request}" if cell.request else ""
    return f"{cell.name} broke{whom} during {cell.window}"


def _message(cell: Cell) -> str:
    return f"{seen_text(cell)}; {cell.why}" if cell.why else seen_text(cell)


def _command(level: str, title: str, message: str, file: str, line: int) -> str:
    given = {"file": file, "line": str(line or ""), "title": UNICODE.short(title, 200)}
    properties = ",".join(f"{name}={_property(text)}" for name, text in given.items() if text)
    return f"::{level} {properties}::{_data(UNICODE.short(message, _LONGEST))}"


def _data(text: str) -> str:
    """Clean text has no line ends; ``%`` would be taken for an escape."""
    return UNICODE.clean(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
