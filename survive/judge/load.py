"""Was the load delivered, and is what is missing the harness's doing? (DESIGN laws 2, 5 and 8)

Every count is measured by itself, so the two sums of law 5 are checks, not definitions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from survive.judge.verdict import LoadReport, Number, People, Spread, Stalls
from survive.judge.windows import Windows
from survive.plan.model import Plan
from survive.plan.users import users_at
from survive.record.hdr import highest_of, index_of
from survive.record.samples import UNDECIDED, Outcome, Series
from survive.record.table import COLUMN, I64, OUTCOME_CODE, Table
from survive.transport import Broken
from survive.units import SECOND

LATE_US = 10_000  # send lag that distorts what users would have seen
LATE_SHARE = 0.01
LATE_LEAST = 5  # requests: one hiccup of a quiet phase is no bottleneck
STARVED_LEAST_S = 2
STARVED_SHARE = 0.05
LONG_STALL_US = 100_000
SOUND_SPAN_US = 500_000  # a rate of less is chance

CLIENT = "client:"  # how the class of a failure begins that was never the target's
_LACKED = {
    "no_ports": "no local port was free for a new connection (net.ipv4.ip_local_port_range); a "
    "closed connection can keep its port for 60 s: widen the range, let the target keep "
    "connections alive, or send from more machines",
    "no_fds": "no file descriptor was free for a new connection (ulimit -n)",
    "no_buffers": "the kernel had no room for a new connection",
    "no_memory": "this machine has no memory for a new connection",
}

MISSING_SHARE = 0.05  # of the users of a phase, before its load counts as not delivered

_SENT = (Outcome.OK, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.ABANDONED, Outcome.IN_FLIGHT)
_NOT_SENT = (Outcome.EXPIRED, Outcome.UNSENT, Outcome.LOST)


def conservation(plan: Plan, table: Table, windows: Windows) -> list[str]:
    """Where the sums of law 5 do not hold, phase by phase and kind by kind; [] if they do.

    A closed model plans no requests: there, what was sent has come to an end, and that is all.
    """
    kinds = len(plan.kinds)
    users = table.rows[:, 0] < kinds
    rows, counts = table.rows[users], table.row_counts[users]
    cell = windows.phase[rows[:, 1]] * kinds + rows[:, 0]
    length = len(plan.phases) * kinds

    def total(columns: list[str]) -> I64:
        values = counts[:, [COLUMN[name] for name in columns]].sum(axis=1)
        return np.bincount(cell, weights=values, minlength=length).astype(np.int64)

    sent, gone, settled = total([Series.SEND_LAG]), total([*_NOT_SENT]), total([*_SENT])
    attempts, answered = total([Series.ATTEMPT]), total([Outcome.OK])
    planned = np.array(plan.planned, dtype=np.int64).reshape(-1)
    wrong = []
    for at in range(length):
        where = f"{plan.kinds[at % kinds]} in {plan.phases[at // kinds].name}"
        if not plan.closed and planned[at] != sent[at] + gone[at]:
            wrong.append(
                f"{where}: {planned[at]} planned, yet {sent[at]} sent + {gone[at]} never sent"
            )
        if sent[at] != settled[at]:
            wrong.append(f"{where}: {sent[at]} sent, yet {settled[at]} came to an end")
        if attempts[at] < answered[at]:  # what found no connection was sent and never attempted
            wrong.append(f"{where}: {answered[at]} answered in only {attempts[at]} attempts")
    return wrong


def undelivered(table: Table) -> Iterator[str]:
    """Why a run that went to its end delivered less than it planned: no green rests on that."""
    fates = {str(outcome).replace("_", " "): table.total(outcome) for outcome in UNDECIDED}
    missing = [f"{n:,} {fate}" for fate, n in fates.items() if n]
    if missing:
        yield f"the load was not delivered: requests {', '.join(missing)}"


def _users_by_phase(plan: Plan, table: Table, windows: Windows) -> tuple[I64, I64]:
    """(those who were there, those who should have been) of each phase, added up over the whole
    seconds that begin in it."""
    sets = table.block(Series.USERS, "", len(plan.kinds))
    entries = table.entries(sets)
    seen = [highest_of(int(index)) for index in table.index[entries]]
    phase = windows.phase[windows.first_slice[table.sets[sets][:, 3]]][table.owners(sets)]
    there = _added(phase, np.array(seen, dtype=np.int64) * table.count[entries], len(plan.phases))
    due: I64 = np.zeros(len(plan.phases), dtype=np.int64)
    for second in range(plan.end_us // SECOND):
        at = next(i for i, p in enumerate(plan.phases) if second * SECOND < p.end_us)
        due[at] += users_at(plan.phases, (second + 1) * SECOND - 1)
    return there, due


def absent(plan: Plan, table: Table, windows: Windows) -> list[str]:
    """Phases of a closed model whose users were not there; [] if they were.

    Told as a gap in the evidence, not as the harness's failing: a user of a locustfile may be gone
    because the target threw it out, and that takes away no red.
    """
    if not plan.closed:
        return []
    there, due = _users_by_phase(plan, table, windows)
    return [
        f"the load was not delivered: {there[at] / due[at]:.1%} of the users of {phase.name} "
        "were there"
        for at, phase in enumerate(plan.phases)
        if due[at] - there[at] > MISSING_SHARE * due[at]
    ]


def _people(plan: Plan, table: Table, windows: Windows) -> People | None:
    if not plan.closed:
        return None
    there, due = _users_by_phase(plan, table, windows)
    whole = int(due.sum())
    return People(plan.most_users, min(1.0, int(there.sum()) / whole) if whole else 1.0)


def guilt(plan: Plan, table: Table, windows: Windows) -> list[str]:
    """Why the harness was the bottleneck; [] if it was not.

    Guilty: more than 1 % of a constant phase's requests were sent over 10 ms late by our own
    doing, or lanes were waited for while the load's loop never idled: in at least two seconds and
    over 5 % of the run, of a phase or of a fault's time. Or it could not send at all: a failure of
    class ``client:…`` (no ports, no descriptors) is never the target's.
    """
    return [*_client_errors(table), *_late(plan, table, windows), *_starved(plan, table)]


def _client_errors(table: Table) -> Iterator[str]:
    counts: dict[str, int] = {}
    for *_, name, n in table.why.tolist():
        why = table.why_names[name]
        if why.startswith(CLIENT):
            what = why.removeprefix(CLIENT)
            counts[what] = counts.get(what, 0) + n
    for what, n in sorted(counts.items()):
        said = f"{what}: {_LACKED[what]}" if what in _LACKED else what
        yield f"the harness could not send {n} requests: {said}"


def _late(plan: Plan, table: Table, windows: Windows) -> Iterator[str]:
    sent_of, late_of = _sent_and_late(plan, table, len(windows.first_slice))
    phase_of = windows.phase[windows.first_slice]
    sent = _added(phase_of, sent_of, len(plan.phases))
    late = _added(phase_of, late_of, len(plan.phases))
    aside = _in_time(windows, sent_of, late_of) + _stood_still(stalls(plan, table))
    constant = [p.constant and not p.warm_up for p in plan.phases]
    judged = constant if any(constant) else [not p.warm_up for p in plan.phases]
    for at, phase_plan in enumerate(plan.phases):
        if judged[at] and late[at] >= LATE_LEAST and late[at] > LATE_SHARE * sent[at]:
            span_s = (phase_plan.end_us - phase_plan.start_us) / SECOND
            planned = "" if plan.closed else f" of {sum(plan.planned[at]) / span_s:.4g}/s"
            yield (
                f"the harness was the bottleneck: {late[at] / sent[at]:.1%} of requests in "
                f"{phase_plan.name} were sent more than {LATE_US // 1000} ms late; it sent "
                f"{sent[at] / span_s:.4g}/s{planned}{aside}"
            )


def _sent_and_late(plan: Plan, table: Table, segments: int) -> tuple[I64, I64]:
    """Of each segment: requests sent, and those of them that were sent late by our own doing."""
    sent: I64 = np.zeros(segments, dtype=np.int64)
    late = sent.copy()
    for kind in range(len(plan.kinds)):
        sets = table.block(Series.SEND_LAG, "", kind)
        where = table.sets[sets][:, 3]
        over = table.sums(sets, table.index[table.entries(sets)] > index_of(LATE_US))
        sent += _added(where, table.sums(sets), segments)
        late += _added(where, over, segments)
    return sent, late


def _added(where: I64, values: I64, length: int) -> I64:
    return np.bincount(where, weights=values, minlength=length).astype(np.int64)


def _in_time(windows: Windows, sent: I64, late: I64) -> str:
    """The rate that would have been possible: the highest of a segment that was sent in time."""
    ends = np.append(windows.starts[windows.first_slice[1:]], windows.ends[-1])
    spans_us = ends - windows.starts[windows.first_slice]
    sound = (sent > 0) & (late <= LATE_SHARE * sent) & (spans_us >= SOUND_SPAN_US)
    if not sound.any():
        return "; it kept up in no second"
    return f"; it kept up with {np.max(sent[sound] * SECOND / spans_us[sound]):.4g}/s"


def _stood_still(found: Stalls) -> str:
    if not found.over_10_ms:
        return ""
    by_others = f", {found.preempted} of them while others had its core" if found.preempted else ""
    return (
        f"; its loop stood still {found.over_10_ms} times for up to {found.longest_ms:.4g} ms"
        f"{by_others}"
    )


def stalls(plan: Plan, table: Table) -> Stalls:
    """Turns of the load's loops that were too long, by everybody's doing."""
    harness = len(plan.kinds)
    own, others = (
        table.dense(sets, np.ones(sets.stop - sets.start, dtype=np.bool_))
        for series in (Series.STALL, Series.PREEMPTED)
        for sets in [table.block(series, "", harness)]
    )
    lengths = np.flatnonzero(both := own + others)
    if not len(lengths):
        return Stalls()
    return Stalls(
        over_10_ms=int(both.sum()),
        over_100_ms=int(both[index_of(LONG_STALL_US) + 1 :].sum()),
        preempted=int(others.sum()),
        longest_ms=highest_of(int(lengths[-1])) / 1000,
    )


def starved_seconds(plan: Plan, table: Table) -> I64:
    """The distinct seconds in which the load's loop never idled while lanes were waited for."""
    harness = table.rows[:, 0] == len(plan.kinds)
    hungry = harness & (table.row_counts[:, COLUMN[Series.STARVED]] > 0)
    starts = np.array([start for start, _ in plan.slices], dtype=np.int64)
    return np.unique(starts[table.rows[hungry, 1]] // SECOND)


def _starved(plan: Plan, table: Table) -> Iterator[str]:
    seconds = starved_seconds(plan, table)
    spans = [("the run", 0, plan.end_us)]
    spans += [(phase.name, phase.start_us, phase.end_us) for phase in plan.phases]
    spans += [(fault.fault, fault.inject_us, fault.heal_us) for fault in plan.faults]
    for name, start_us, end_us in spans:
        inside = int(((seconds >= start_us // SECOND) & (seconds * SECOND < end_us)).sum())
        length_s = (end_us - start_us) / SECOND
        if inside >= STARVED_LEAST_S and inside > STARVED_SHARE * length_s:
            kept_up = _kept_up_rps(plan, table, seconds)
            possible = f"; it kept up with {kept_up:.4g}/s" if kept_up else ""
            yield (
                f"the harness was the bottleneck: requests waited while its loop never idled in "
                f"{inside} s of {name}{possible}"
            )
            return


def _kept_up_rps(plan: Plan, table: Table, starved: I64) -> int:
    """The most requests that were due in a second in which the harness was not the bottleneck."""
    users = table.rows[:, 0] < len(plan.kinds)
    starts = np.array([start for start, _ in plan.slices], dtype=np.int64)
    seconds = starts[table.rows[users, 1]] // SECOND
    sent = np.bincount(seconds, weights=table.row_counts[users, COLUMN[Series.SEND_LAG]])
    sent[starved[starved < len(sent)]] = 0
    return int(sent.max(initial=0))


def load_report(plan: Plan, table: Table, windows: Windows) -> LoadReport:
    """The whole run's sums and the harness's own health."""
    span_s = plan.end_us / SECOND
    planned = None if plan.closed else sum(sum(row) for row in plan.planned)
    return LoadReport(
        planned=planned,
        sent=table.total(Series.SEND_LAG),
        expired=table.total(Outcome.EXPIRED),
        unsent=table.total(Outcome.UNSENT),
        lost=table.total(Outcome.LOST),
        ok=table.total(Outcome.OK),
        failed=table.total(Outcome.FAILED),
        timed_out=table.total(Outcome.TIMED_OUT),
        abandoned=table.total(Outcome.ABANDONED),
        in_flight=table.total(Outcome.IN_FLIGHT),
        attempts=table.total(Series.ATTEMPT),
        offered_rps=None if planned is None else planned / span_s,
        achieved_rps=_answers(plan, table, windows) / span_s,
        lane_wait_ms=_spread(plan, table, Series.LANE_WAIT),
        send_lag_ms=_spread(plan, table, Series.SEND_LAG),
        starved_s=len(starved_seconds(plan, table)),
        stalls=stalls(plan, table),
        model="closed" if plan.closed else "open",
        users=_people(plan, table, windows),
    )


def _answers(plan: Plan, table: Table, windows: Windows) -> int:
    """Answers received inside the phases: all but those without HTTP and those after the end.

    An answer's end is known to within its slice; half a slice is the error of each late one.
    """
    unanswered = {str(how) for how in Broken}
    named = table.why[table.why[:, 3] == OUTCOME_CODE[Outcome.FAILED]]
    broken = sum(int(n) for *_, name, n in named if table.why_names[int(name)] in unanswered)
    answered = table.total(Outcome.OK) + table.total(Outcome.FAILED) - broken
    return answered - sum(_after_end(plan, table, windows, kind) for kind in range(len(plan.kinds)))


def _after_end(plan: Plan, table: Table, windows: Windows, kind: int) -> int:
    sets = table.block(Series.LATENCY, "ok", kind)
    first = windows.first_slice[table.sets[sets][:, 3]]
    left_us = plan.end_us - (windows.starts[first] + windows.ends[first]) // 2
    limit = np.array([index_of(int(us)) for us in left_us], dtype=np.int64)
    entries = table.entries(sets)
    late = table.index[entries] > limit[table.owners(sets)]
    return int(table.count[entries][late].sum())


def _spread(plan: Plan, table: Table, series: Series) -> Spread:
    if plan.locustfile:
        return Spread(None, None, None)  # Locust does not tell when a request was due
    total = sum(
        (
            table.dense(sets, np.ones(sets.stop - sets.start, dtype=np.bool_))
            for kind in range(len(plan.kinds))
            for sets in [table.block(series, "", kind)]
        ),
        start=np.zeros(1, dtype=np.int64),
    )
    cumulative = np.cumsum(total)
    n = int(cumulative[-1])

    def at(rank: int) -> Number:
        return highest_of(int(np.searchsorted(cumulative, rank, side="left"))) / 1000

    if n == 0:
        return Spread(None, None, None)
    return Spread(at(-(-n // 2)), at(-(-n * 99 // 100)), at(n))
