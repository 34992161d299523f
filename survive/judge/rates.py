"""What is counted per second, per intent or per money: goodput, tokens, amplification, cost.

All are of this episode, exact but for goodput, which is a share in disguise: of the requests that
were offered, so many may be bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from survive.judge.metrics import Shares
from survive.judge.probed import Seen
from survive.judge.statistics import Decision, decide, lower_bound, upper_bound
from survive.judge.verdict import Number, Word
from survive.judge.windows import Windows
from survive.record.hdr import highest_of, lowest_of
from survive.record.samples import Outcome, Series
from survive.record.table import COLUMN, Table
from survive.scenario.model import TIMED, Objective, Service
from survive.units import SECOND, Price

LEAST_ANSWERS = 30  # fewer say nothing of what one costs


@dataclass(frozen=True, slots=True)
class Rated:
    """The numbers of one cell."""

    decision: Decision
    observed: Number
    low: Number
    high: Number
    n: int
    bad: int = 0


def users_limits(objectives: Iterable[Objective], kind: str) -> list[Objective]:
    """The times that a request of a kind must keep to be good: of every time the highest
    percentile, since the limit of a median is no limit for each request."""
    strictest: dict[str, Objective] = {}
    for objective in objectives:
        if objective.metric in TIMED and kind in objective.of and objective.percentile is not None:
            known = strictest.get(objective.metric)
            if known is None or (known.percentile or 0.0) < objective.percentile:
                strictest[objective.metric] = objective
    return list(strictest.values())


def goodput(
    kinds: Sequence[tuple[Shares, Sequence[Shares]]], window: str, seconds: float, limit: float
) -> Rated:
    """Requests within all their limits, per second. For each kind its success and its times.

    With one time the bad are counted. With several the table does not tell which requests broke
    two of them: at least the worst one's are bad, at most all together, and where that makes a
    difference the cell is undecided.
    """
    n = fewest = most = 0
    for success, timed in kinds:
        settled, failed = success.total(window)
        late = [max(0, bad - failed) for _, bad in (tally.total(window) for tally in timed)]
        n += settled
        fewest += failed + max(late, default=0)
        most += min(settled, failed + sum(late))
    if not n or not seconds:
        return Rated(Decision(Word.INCONCLUSIVE, "nothing was measured"), None, None, None, 0)
    offered = n / seconds
    numbers = (
        (n - fewest) / seconds,
        offered * (1 - upper_bound(most, n)),
        offered * (1 - lower_bound(fewest, n)),
    )
    return Rated(_goodput(n, fewest, most, offered, limit), *numbers, n, fewest)


def _goodput(n: int, fewest: int, most: int, offered: float, limit: float) -> Decision:
    allowed = 1 - limit / offered
    if allowed <= 0:
        said = f"only {offered:.4g}/s were offered in this window"
        return Decision(Word.INCONCLUSIVE, said)
    best, worst = (decide(bad, n, allowed, offered) for bad in (fewest, most))
    if best.word is worst.word:
        return best
    return Decision(
        Word.INCONCLUSIVE,
        f"{fewest:,} to {most:,} of {n:,} were bad: one request may have broken several limits",
    )


def tokens_in(table: Table, windows: Windows, kinds: Sequence[int], window: str) -> float:
    """Output tokens of the ok answers of a window; exact up to 2,047 an answer, then to 0.05 %."""
    total = 0.0
    for kind in kinds:
        sets = table.block(Series.TOKENS, str(Outcome.OK), kind)
        places = table.sets[sets]
        inside = windows.mask(window, windows.first_slice[places[:, 3]], places[:, 4])
        dense = table.dense(sets, inside)
        for index in np.flatnonzero(dense).tolist():
            total += int(dense[index]) * (lowest_of(index) + highest_of(index)) / 2
    return total


def counted(
    table: Table, windows: Windows, kinds: Sequence[int], window: str, column: Outcome | Series
) -> int:
    """Samples of an outcome or a series in a window."""
    mine = np.isin(table.rows[:, 0], kinds)
    inside = windows.mask(window, table.rows[mine, 1], table.rows[mine, 2])
    return int(table.row_counts[mine, COLUMN[column]][inside].sum())


def tokens_per_s(
    table: Table, windows: Windows, kinds: Sequence[int], window: str, limit: float
) -> Rated:
    """Output tokens of good streams per second of the window."""
    answers = counted(table, windows, kinds, window, Outcome.OK)
    seconds = windows.span_us(window) / SECOND
    if not seconds:
        return Rated(Decision(Word.INCONCLUSIVE, "nothing was measured"), None, None, None, 0)
    rate = tokens_in(table, windows, kinds, window) / seconds
    return Rated(_exact(rate >= limit, answers), rate, None, None, answers)


def amplification(
    table: Table, windows: Windows, kinds: Sequence[int], window: str
) -> tuple[float | None, int, int]:
    """(attempts ÷ intents, attempts, intents) of what was sent; None if nothing was."""
    attempts = counted(table, windows, kinds, window, Series.ATTEMPT)
    sent = counted(table, windows, kinds, window, Series.SEND_LAG)
    return (attempts / sent if sent else None), attempts, sent


def amplified(
    table: Table, windows: Windows, kinds: Sequence[int], window: str, limit: float
) -> Rated:
    """The cell of an amplification objective: exact counts of this episode."""
    ratio, attempts, sent = amplification(table, windows, kinds, window)
    if ratio is None:
        return Rated(Decision(Word.INCONCLUSIVE, "nothing was sent"), None, None, None, 0)
    return Rated(_exact(ratio <= limit, sent), ratio, None, None, sent, max(0, attempts - sent))


def _exact(holds: bool, answers: int) -> Decision:
    if answers < LEAST_ANSWERS:
        why = f"{answers} requests, {LEAST_ANSWERS} needed"
        return Decision(Word.INCONCLUSIVE, why)
    return Decision(Word.SURVIVED if holds else Word.FAILED)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a window cost, and what was got for it."""

    money: float
    got: float  # tokens or answers
    answers: int
    declared: tuple[str, ...]  # services whose replicas were not scraped: the declared count


def bill(
    table: Table,
    windows: Windows,
    told: Seen,
    services: Iterable[tuple[Service, Price]],
    kinds: Sequence[int],
    window: str,
    what: str,
) -> Bill:
    """Prices × replicas × time, against the good answers of the window or their tokens."""
    slices = windows.slices_of(window)
    spans = [
        (int(start), int(end))
        for start, end in zip(windows.starts[slices], windows.ends[slices], strict=True)
    ]
    money, declared = 0.0, []
    for service, price in services:
        replicas = told.of(service.name, "replicas")
        if not replicas:
            replicas = [(0, float(service.replicas))]
            declared.append(service.name)
        busy_us = _integral(replicas, spans)
        money += price.amount * busy_us / (price.per_s * SECOND)
    answers = counted(table, windows, kinds, window, Outcome.OK)
    got = tokens_in(table, windows, kinds, window) if what == "tokens" else float(answers)
    return Bill(money, got, answers, tuple(declared))


def _integral(steps: Sequence[tuple[int, float]], spans: Sequence[tuple[int, int]]) -> float:
    """Of a step function over spans of time; before its first step it has that value."""
    times = np.array([at for at, _ in steps], dtype=np.float64)
    values = np.array([value for _, value in steps], dtype=np.float64)
    times[0] = 0.0
    area = np.concatenate(([0.0], np.cumsum(np.diff(times) * values[:-1])))

    def upto(t_us: int) -> float:
        at = max(0, int(np.searchsorted(times, t_us, side="right")) - 1)
        return float(area[at] + (t_us - times[at]) * values[at])

    return sum(upto(end) - upto(start) for start, end in spans)


def cost(paid: Bill, limit: float, count: int) -> Rated:
    """Money per so many tokens or answers."""
    if paid.answers < LEAST_ANSWERS or not paid.got:
        why = f"{paid.answers} good answers, {LEAST_ANSWERS} needed"
        return Rated(Decision(Word.INCONCLUSIVE, why), None, None, None, paid.answers)
    price = paid.money / paid.got * count
    return Rated(
        Decision(Word.SURVIVED if price <= limit else Word.FAILED), price, None, None, paid.answers
    )
