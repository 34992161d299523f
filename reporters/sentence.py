"""The verdict in one sentence: the same at the end of every report, whatever its form."""

from __future__ import annotations

import math

from survive.errors import ExitCode
from survive.judge.verdict import Cell, Number, Verdict, Word

from . import words
from .inputs import StoredRun, ended_us


def sentence(record: StoredRun, verdict: Verdict) -> str:
    """The verdict in one sentence, as it stands at the end of every report."""
    name = f"{record.plan.name} (closed loop)" if record.plan.closed else record.plan.name
    word = str(verdict.verdict).upper()
    if verdict.verdict is Word.SURVIVED:
        return f"{word} {name}: {_held(record, verdict)}"
    broken = [cell for cell in verdict.objectives if cell.verdict is Word.FAILED]
    if verdict.verdict is Word.FAILED and verdict.exit_code is ExitCode.FAILED and broken:
        more = f" ({len(broken) - 1} more broke)" if len(broken) > 1 else ""
        return f"{word} {name}: {_broke(broken[0])}{more}"
    undecided = [c.why for c in verdict.objectives if c.verdict is Word.INCONCLUSIVE and c.why]
    why = next(iter([*verdict.reasons, *undecided]), "no reason was recorded")
    return f"{word} {name}: {why}"


def _held(record: StoredRun, verdict: Verdict) -> str:
    cells = len(verdict.objectives)
    proven = sum(fault.proof == "proven" for fault in verdict.faults)
    faults = f"{words.plural(proven, 'fault')} proven" if verdict.faults else "no faults"
    requests = words.plural(verdict.load.sent, "request")
    held = sum(cell.verdict is Word.SURVIVED for cell in verdict.objectives)
    took = words.span(ended_us(record))
    return f"{held} of {cells} objectives held, {faults} ({requests}, {took})"


def _broke(cell: Cell) -> str:
    whom = f" for {cell.request}" if cell.request else ""
    limit = words.quantity(cell.limit, cell.unit)
    if cell.unit == "s":
        observed = (
            "not recovered" if not _is_number(cell.observed) else f"took {observed_text(cell)}"
        )
    else:
        observed = f"{cell.metric} {observed_text(cell)}"
    return f"{cell.name} broke{whom} during {cell.window}: {observed}, limit {limit}"


def observed_text(cell: Cell) -> str:
    """What was observed, in digits that do not hide on which side of the limit it lies."""
    if cell.unit == "s" and cell.verdict is Word.FAILED and not _is_number(cell.observed):
        return "never"
    return words.quantity(cell.observed, cell.unit, cell.limit)


def _is_number(value: Number) -> bool:
    return isinstance(value, int | float) and not math.isinf(value)
