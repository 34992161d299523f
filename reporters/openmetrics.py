"""``openmetrics``: the verdict as metrics, for GitLab's metrics report and for Prometheus.

Few names with labels that stay the same from run to run, so that two runs can be compared line by
line. GitLab compares values as text: measured numbers have three digits, more only where a limit,
0 or 1 lies closer. Seconds and ratios, as Prometheus has them; ``+Inf`` where failures dominate,
``NaN`` where nothing was measured or decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from survive.judge.verdict import Cell, FaultReport, LoadReport, Number, Verdict, Word

from .glyphs import UNICODE
from .inputs import StoredRun
from .told import host

_SUFFIX = {"share": "ratio", "ms": "seconds", "s": "seconds"}
_HELD = {Word.SURVIVED: 1.0, Word.FAILED: 0.0, Word.INCONCLUSIVE: math.nan}
_FATES = (
    *("planned", "sent", "expired", "unsent", "lost"),
    *("ok", "failed", "timed_out", "abandoned", "in_flight"),
)

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Family:
    """One metric with its samples; a family without samples is not written."""

    name: str
    help: str
    samples: Sequence[tuple[Labels, str]]
    kind: str = "gauge"
    unit: str = ""

    def lines(self) -> Iterator[str]:
        """TYPE, UNIT and HELP, then the samples, all of one family together."""
        if not self.samples:
            return
        yield f"# TYPE {self.name} {self.kind}"
        if self.unit:
            yield f"# UNIT {self.name} {self.unit}"
        yield f"# HELP {self.name} {self.help}"
        sample = f"{self.name}_info" if self.kind == "info" else self.name
        for labels, value in self.samples:
            told = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            yield f"{sample}{{{told}}} {value}" if told else f"{sample} {value}"


class OpenmetricsReporter:
    """``survive report RUN --format openmetrics``."""

    def render(self, record: StoredRun, verdict: Verdict) -> bytes:
        """OpenMetrics 1.0 text, up to its ``# EOF``; no time stamps."""
        lines = [line for family in _families(record, verdict) for line in family.lines()]
        return "".join(f"{line}\n" for line in [*lines, "# EOF"]).encode()


reporter = OpenmetricsReporter()


def _families(record: StoredRun, verdict: Verdict) -> Iterator[_Family]:
    yield _Family(
        "survive_run", "What ran, and under what.", [(_run(record, verdict), "1")], "info"
    )
    states = [((("survive_verdict", str(w)),), str(int(w is verdict.verdict))) for w in Word]
    yield _Family("survive_verdict", "The verdict on the run.", states, "stateset")
    code = [((), str(int(verdict.exit_code)))]
    yield _Family("survive_exit_code", "What the command exited with.", code)
    held = [(_where(cell), _number(_HELD[cell.verdict])) for cell in verdict.objectives]
    yield _Family("survive_objective_held", "1 survived, 0 failed, NaN inconclusive.", held)
    yield from _observed(verdict.objectives)
    yield from _faults(verdict.faults)
    yield from _load(verdict.load)


def _run(record: StoredRun, verdict: Verdict) -> Labels:
    plan = record.plan
    return (
        ("scenario", plan.name),
        ("target", plan.target),
        ("seed", str(plan.seed)),
        ("scale", plan.scale),
        ("host", host(record)),
        ("grade", verdict.grade),
        ("version", str(record.manifest.get("survive", ""))),
    )


def _where(cell: Cell) -> Labels:
    return (
        ("objective", cell.name),
        ("metric", cell.metric),
        ("request", cell.request),
        ("window", cell.window),
    )


def _observed(cells: Sequence[Cell]) -> Iterator[_Family]:
    """A family for each unit: one metric must not hold seconds and ratios."""
    for suffix in ("ratio", "seconds", "value"):
        mine = [cell for cell in cells if _SUFFIX.get(cell.unit, "value") == suffix]
        unit = "" if suffix == "value" else suffix
        for what, told in (("observed", "What was observed."), ("limit", "What was allowed.")):
            samples = [
                (
                    (*_where(cell), *((("unit", cell.unit),) if not unit else ())),
                    _in_base(getattr(cell, what), cell),
                )
                for cell in mine
            ]
            yield _Family(f"survive_objective_{what}_{suffix}", told, samples, unit=unit)


def _in_base(value: Number, cell: Cell) -> str:
    if not isinstance(value, int | float):
        return "NaN" if value is None else "+Inf"
    per = 1000.0 if cell.unit == "ms" else 1.0
    beside = [cell.limit / per, *([0.0, 1.0] if cell.unit == "share" else [])]
    return _number(value / per, beside)


def _faults(faults: Sequence[FaultReport]) -> Iterator[_Family]:
    def each(name: str, told: str, value: str, unit: str = "") -> _Family:
        samples = [
            ((("fault", fault.name), ("kind", fault.kind)), _known(getattr(fault, value)))
            for fault in faults
        ]
        return _Family(f"survive_fault_{name}", told, samples, unit=unit)

    proven = [
        ((("fault", fault.name), ("kind", fault.kind)), str(int(fault.proof == "proven")))
        for fault in faults
    ]
    yield _Family("survive_fault_proven", "1: it was seen to be active.", proven)
    yield each("recovered_seconds", "From heal to recovered.", "recovered_after_s", "seconds")
    yield each("error_window_seconds", "From first bad to last.", "error_window_s", "seconds")


def _load(load: LoadReport) -> Iterator[_Family]:
    fates = [
        ((("fate", fate),), str(count))
        for fate in _FATES
        if (count := getattr(load, fate)) is not None
    ]
    yield _Family("survive_requests", "Requests by what became of them.", fates)
    rates = [
        ((("rate", name),), _number(rate))
        for name, rate in (("offered", load.offered_rps), ("achieved", load.achieved_rps))
        if rate is not None
    ]
    yield _Family("survive_requests_per_second", "The load over all phases.", rates)
    lag = load.send_lag_ms.p99
    if isinstance(lag, int | float):
        told = "How late the harness itself sent, 99th percentile."
        samples: list[tuple[Labels, str]] = [((), _number(lag / 1000))]
        yield _Family("survive_send_lag_p99_seconds", told, samples, unit="seconds")


def _known(value: float | None) -> str:
    return "NaN" if value is None else _number(value)


def _number(value: float, beside: Sequence[float] = ()) -> str:
    """Three digits, or as many as keep it on its side of every number beside it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    for digits in range(3, 17):
        shown = float(f"{value:.{digits}g}")
        if all(_order(shown, other) == _order(value, other) for other in beside):
            break
    return f"{shown:g}" if shown == float(f"{shown:g}") else repr(shown)


def _order(one: float, other: float) -> int:
    return (one > other) - (one < other)


def _escaped(text: str) -> str:
    return UNICODE.clean(text).replace("\\", "\\\\").replace('"', '\\"')
