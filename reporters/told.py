"""What every report says of a run, in words: one place says a thing, each report lays it out.

A `Line` is a label and a text; ``tone`` repeats in one word what the text says anyway, so that a
report may colour it. Texts hold what targets said: whoever prints them makes them harmless first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from survive.judge.verdict import (
    Cell,
    Episodes,
    FaultReport,
    LoadReport,
    Number,
    Spread,
    Stalls,
    Verdict,
)

from . import words
from .glyphs import UNICODE, Glyphs
from .inputs import StoredRun, fields_of

_CLASSES = 5  # of failures that are told by name
_AMPLIFIED = 1.01  # attempts per intent that are worth a word
_UNFAIR_FACTOR, _UNFAIR_FAILURES = 1.25, 5  # a lucky draw among few failures accuses nobody
_GRADES = {
    "real": "faults are effects of the OS or of physics",
    "induced": "real symptoms of another cause",
    "reported": "some faults are in telemetry only",
    "emulated": "some faults are a proxy's or shim's",
    "simulated": "stand-ins, not the real thing",
}
VIRTUAL = "time, network and services were simulated in one process"

Tone = Literal["", "open", "bad"]


@dataclass(frozen=True, slots=True)
class Line:
    """``aside`` is what the text means, for whoever has room for it."""

    label: str
    text: str
    tone: Tone = ""
    aside: str = ""


# ------------------------------------------------------------------------- run


def started(record: StoredRun, field: str) -> object:
    """A fact of the beginning of the run; the manifest's if the events do not say."""
    return fields_of(record, "run_started").get(field, record.manifest.get(field))


def host(record: StoredRun) -> str:
    """real, virtual, or unknown."""
    return str(started(record, "host") or "unknown")


def conditions(record: StoredRun, verdict: Verdict) -> str:
    """Under what the verdict was found: host, scale, grade."""
    grade = f"grade {verdict.grade}: {_GRADES.get(verdict.grade, '')}".rstrip(": ")
    return f"{host(record)} host, scale {record.plan.scale}, {grade}"


def by_hand(record: StoredRun) -> tuple[str, ...]:
    """What remains to do by hand, as lines to be copied."""
    unproven = fields_of(record, "run_ended").get("unproven_heals") or ()
    hands = [left.get("by_hand") for left in unproven if isinstance(left, dict)]
    return tuple(dict.fromkeys(str(line) for line in hands if line))


# ------------------------------------------------------------------ objectives


def limit(cell: Cell, glyphs: Glyphs = UNICODE) -> str:
    """``ttft.p95 ≤ 800 ms``."""
    sign = glyphs.at_least if cell.bound == "min" else glyphs.at_most
    return f"{cell.metric} {sign} {words.quantity(cell.limit, cell.unit)}"


def notes(cell: Cell) -> Iterator[str]:
    """What stands under a cell: failures as infinity, other faults, why it is not plain."""
    if cell.unit == "ms" and (
        is_infinite(cell.observed) or shown(cell.observed_ok) != shown(cell.observed)
    ):
        share = words.share(cell.bad / cell.n, significant=2) if cell.n else "none"
        quantile = cell.metric.rpartition(".")[2]
        yield (
            f"{quantile} = {shown(cell.observed)} ({share} failed or late), "
            f"of successes alone {shown(cell.observed_ok)}"
        )
    if cell.with_faults:
        yield f"with {', '.join(cell.with_faults)}"
    if cell.why:
        yield cell.why


# ---------------------------------------------------------------------- faults


def of_fault(verdict: Verdict, fault: FaultReport, glyphs: Glyphs = UNICODE) -> Iterator[Line]:
    """When, by what proof, with what effect and cost, and what failed."""
    yield Line("when", _when(fault))
    proven = fault.proof == "proven"
    said = "proven" if proven else f"NOT PROVEN: {fault.proof}"
    yield Line("proof", said + _seen(fault), "" if proven else "open")
    if fault.planned_heal_s is not None:
        gone = fault.heal_proof == "proven"
        healed = "proven gone" if gone else f"NOT PROVEN: {fault.heal_proof}"
        yield Line("heal", healed, "" if gone else "bad")
    yield Line("effect", _effect(fault))
    if fault.metastable:
        metastable = "METASTABLE: the fault is gone, the load is as before, and it stays broken"
        yield Line("", metastable, "bad")
    if fault.note:
        yield Line("note", fault.note)
    for loop in verdict.loops if fault.metastable else ():
        yield Line("loop", loop.told)
    if cost := _cost(fault):
        yield Line("cost", cost)
    if fault.failures:
        yield Line("failures", _classes(fault.failures, glyphs))


def unfair(fault: FaultReport) -> Iterator[str]:
    """Replicas that took more than their share of the failures."""
    total = sum(replica.failed for replica in fault.replicas)
    for one in fault.replicas:
        if total >= _UNFAIR_FAILURES and one.factor >= _UNFAIR_FACTOR:
            yield (
                f"{one.replica} took {words.digits(one.share * 100, 2)} % of failures, "
                f"fair share {words.digits(one.fair * 100, 2)} % "
                f"(black-hole factor {words.digits(one.factor, 2)})"
            )


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


def _classes(failures: Sequence[tuple[str, int]], glyphs: Glyphs) -> str:
    said = [f"{why or 'unknown'} {glyphs.times} {words.count(n)}" for why, n in failures]
    rest = len(said) - _CLASSES
    more = f", and {words.plural(rest, 'other class')}" * (rest > 0)
    return ", ".join(said[:_CLASSES]) + more


def of_episodes(one: Episodes) -> str:
    """One measure of a repeated fault, summed up."""
    unit = "share" if one.measure == "success" else "s"
    spread = (
        f"median {words.quantity(one.median, unit)}, "
        f"worst {words.quantity(one.worst, unit)} of {len(one.values)}"
    )
    interval = words.interval(one.low, one.high, unit)
    held = f" ({interval}, {words.share(one.confidence, significant=2)} CI)"
    measure = one.measure.removesuffix("_s").replace("_", " ")
    return f"{measure}: {spread}{held * bool(interval)}"


# ------------------------------------------------------------------------ load


def of_load(record: StoredRun, load: LoadReport, glyphs: Glyphs = UNICODE) -> Iterator[Line]:
    """Where every request went, and how well the harness did its own part."""
    yield from _sums(record, load, glyphs)
    if failures := record.failures():
        yield Line("failed", _classes(failures, glyphs))
    yield _rate(load)
    if record.plan.locustfile:
        yield Line("send lag", "not known: when to ask is Locust's own matter")
    else:
        yield _spread("send lag", load.send_lag_ms, "the harness's lateness")
    if machine := _machine(record):
        yield Line("machine", machine)
    if affinity := _affinity(record):
        yield Line("affinity", affinity)
    if not record.plan.closed:
        yield _spread("lane wait", load.lane_wait_ms, "for a free connection")
    if load.starved_s:
        starved = words.plural(load.starved_s, "second")
        yield Line("starved", f"in {starved} THE HARNESS WAS THE BOTTLENECK", "bad")
    if load.stalls.over_10_ms:
        yield Line("stalls", _stood_still(load.stalls))
    if cpu := _cpu(record):
        yield Line("CPU", cpu)


def _sums(record: StoredRun, load: LoadReport, glyphs: Glyphs) -> Iterator[Line]:
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
    if load.planned is not None and not began(record):
        said = f"{words.count(load.planned)}, of which none was sent: the load never began"
        yield Line("planned", said)
    elif load.planned is not None:
        yield _sum("planned", load.planned, planned, glyphs)
    if load.users is not None:
        there = words.share(load.users.present, significant=3)
        said = f"{words.count(load.users.most)} at most, there for {there} of their time"
        yield Line("users", said)
    yield _sum("sent", load.sent, fates, glyphs)


def began(record: StoredRun) -> bool:
    """Whether there was any load: a run may end while its target starts."""
    ended = [event.t_us for event in record.events if event.name == "run_ended"]
    return not ended or ended[-1] >= 0


def _sum(label: str, total: int, parts: Sequence[tuple[str, int]], glyphs: Glyphs) -> Line:
    """A conservation sum, checked here once more: a report must not print a false equation."""
    holds = total == sum(number for _, number in parts)
    sign = "=" if holds else glyphs.unequal
    terms = " + ".join(f"{name} {words.count(number)}" for name, number in parts)
    lost = "" if holds else "  NOT CONSERVED"
    return Line(label, f"{words.count(total)} {sign} {terms}{lost}", "" if holds else "bad")


def _rate(load: LoadReport) -> Line:
    ratio = load.attempts / load.sent if load.sent else 0.0
    offered = "" if load.offered_rps is None else f"offered {words.rate(load.offered_rps)}, "
    return Line(
        "rate",
        f"{offered}achieved {words.rate(load.achieved_rps)}; "
        f"{words.plural(load.attempts, 'attempt')}, {words.digits(ratio, 4, [1.0])} each",
    )


def _spread(label: str, spread: Spread, meaning: str) -> Line:
    values = (("p50", spread.p50), ("p99", spread.p99), ("max", spread.max))
    text = "  ".join(f"{name} {shown(value):>8}" for name, value in values)
    return Line(label, text, aside=meaning)


def _machine(record: StoredRun) -> str:
    """What send lag is to be compared with: nobody wakes up earlier than the machine can."""
    usage = fields_of(record, "run_ended").get("usage") or {}
    woken, stalled = usage.get("wake_up_ms_p99"), usage.get("cpu_stalled_share")
    said = []
    if isinstance(woken, int | float):
        said.append(f"own wake-ups p99 {shown(float(woken))}")
    if isinstance(stalled, int | float):
        said.append(f"cores waited for {words.digits(100 * stalled, 2)} % of the time")
    return ", ".join(said)


def _affinity(record: StoredRun) -> str:
    """Who ran where, if the scenario asked; "" if it did not."""
    usage = fields_of(record, "run_ended").get("usage") or {}
    asked = usage.get("affinity")
    if not isinstance(asked, dict):
        return ""
    if asked.get("why"):
        return f"nothing was pinned: {asked['why']}"
    load, rest = (", ".join(map(str, asked.get(who) or ())) for who in ("load", "rest"))
    return f"load alone on core {load}, all else on {rest}"


def _stood_still(stalls: Stalls) -> str:
    """Turns of the load's loop in which nothing could be sent, and whose doing they were."""
    text = (
        f"{words.count(stalls.over_10_ms)} over 10 ms, {words.count(stalls.over_100_ms)} over "
        f"100 ms, longest {shown(stalls.longest_ms)}"
    )
    others = f"; {words.count(stalls.preempted)} while others had the core" * bool(stalls.preempted)
    return text + others


def _cpu(record: StoredRun) -> str:
    usage = fields_of(record, "run_ended").get("usage") or {}
    known = [(who, usage.get(f"{who}_cores")) for who in ("target", "harness")]
    said = [
        f"{who} {words.digits(float(cores), 2)} cores"
        for who, cores in known
        if isinstance(cores, int | float)
    ]
    return ", ".join(said)


# --------------------------------------------------------------------- numbers


def shown(value: Number) -> str:
    """Milliseconds, as people read them."""
    return words.quantity(value, "ms")


def is_infinite(value: Number) -> bool:
    """A percentile that failures dominate."""
    return value == "inf" or (isinstance(value, float) and math.isinf(value))
