"""Striping and leases: the union over workers is the schedule, and nothing has two owners."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loadtools import Tally, make_kind, make_plan

from survive.errors import HarnessError
from survive.load.core import Cursor, Filing, Job
from survive.load.leases import LEASE_US, NOTICE_US, SAFE_US, Leases
from survive.load.stripes import PLACES, Ownership, Striped, first_table, numbers_of, without
from survive.plan.arrivals import Schedule
from survive.plan.model import Plan
from survive.record.samples import Counts, Frame, Key, Outcome, Series
from survive.units import MS, SECOND


def plan_of(seed: int = 7, rps: int = 900, arrivals: str = "poisson", seconds: int = 4) -> Plan:
    kinds = [make_kind(name=name, timeout_us=10 * SECOND) for name in ("chat", "search")]
    return make_plan(kinds, rps=rps, for_us=seconds * SECOND, arrivals=arrivals, seed=seed)


def rows_of(blocks: object) -> list[tuple[int, int, int, int]]:
    return [
        row
        for block in blocks  # type: ignore[attr-defined]
        for row in zip(
            numbers_of(block).tolist(),
            block.intended_us.tolist(),
            block.kind.tolist(),
            block.row.tolist(),
            strict=True,
        )
    ]


@pytest.mark.parametrize("arrivals", ["poisson", "uniform", "bursty cv 3"])
@pytest.mark.parametrize("workers", [2, 3, 7, 11])
def test_the_union_over_workers_is_the_schedule_of_one(arrivals: str, workers: int) -> None:
    plan = plan_of(arrivals=arrivals)
    whole = rows_of(Schedule.of(plan).blocks())
    parts = [
        rows_of(Striped(Schedule.of(plan).blocks(), Ownership.of(workers), k))
        for k in range(workers)
    ]
    assert sorted(row for part in parts for row in part) == whole
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 2 + len(whole) // PLACES


def test_a_dead_workers_part_is_dealt_to_all_others() -> None:
    table = without(first_table(4), 1)
    counts = Counter(table.tolist())
    assert set(counts) == {0, 2, 3} and max(counts.values()) - min(counts.values()) <= 1
    unmoved = first_table(4) != 1
    assert (table[unmoved] == first_table(4)[unmoved]).all()
    with pytest.raises(ValueError, match="nobody is left"):
        without(np.zeros(PLACES, dtype=np.int64), 0)


def take_until(cursor: Cursor, now_us: int) -> list[Job]:
    found = []
    while (job := cursor.take(now_us, 0)) is not None:
        found.append(job)
    return found


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rps=st.sampled_from([3, 60, 700]),
    workers=st.integers(2, 5),
    at_ms=st.integers(1, 3_900),
    late_ms=st.integers(-120, 400),
    hears=st.integers(0, 4),
)
def test_whoever_hears_late_of_a_change_loses_and_never_doubles(
    seed: int, rps: int, workers: int, at_ms: int, late_ms: int, hears: int
) -> None:
    """Worker 0 goes; one survivor hears of it early or late. Each arrival has one fate."""
    plan = plan_of(seed, rps)
    at_us = at_ms * MS
    table = without(first_table(workers), 0)
    numbers: list[int] = []
    lost = 0
    for worker in range(1, workers):
        filing = Filing(plan)
        blocks = Striped(Schedule.of(plan).blocks(), Ownership.of(workers), worker)
        cursor = Cursor(plan, blocks, filing)
        late = late_ms if worker == 1 + hears % (workers - 1) else -120
        heard_us = max(0, at_us + late * MS)
        jobs = take_until(cursor, heard_us)
        cursor.forget(heard_us)
        cursor.restripe(at_us, table, heard_us)
        for step in range(0, 5_000, 250):  # in small steps, so that nothing expires
            jobs += take_until(cursor, heard_us + step * MS)
        assert cursor.next_due_us() is None
        numbers += [job.number for job in jobs]
        for key, counts in filing.cut(0).sets:
            assert key.outcome == Outcome.LOST
            lost += sum(counts.counts)
    old = [
        row[0]
        for row in rows_of(Striped(Schedule.of(plan).blocks(), Ownership.of(workers), 0))
        if row[1] < at_us
    ]
    total = len(rows_of(Schedule.of(plan).blocks()))
    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & set(old)
    assert len(numbers) + len(old) + lost == total
    if late_ms <= 0:
        assert lost == 0


def settled(where: int, kind: str, count: int, *, done: bool = False) -> Frame:
    key = Key(where, kind, -1, Series.LATENCY, "ok")
    sets = ((key, Counts([5], [count])),) if count else ()
    return Frame(0, sets, done)


def leases_of(plan: Plan, workers: int) -> Leases:
    return Leases(plan, workers, lambda: Schedule.of(plan).blocks())


def test_a_lease_is_granted_renewed_and_taken_only_when_it_has_surely_ended() -> None:
    leases = leases_of(plan_of(), 2)
    assert leases.asked(0, SECOND) == SECOND + LEASE_US
    assert leases.asked(1, 2 * SECOND) == 2 * SECOND + LEASE_US
    assert leases.tick(SECOND + LEASE_US + SAFE_US - 1) == []
    (over,) = leases.tick(SECOND + LEASE_US + SAFE_US)
    assert over.worker == 0 and over.at_us == 3 * SECOND + NOTICE_US
    assert set(over.table.tolist()) == {1}
    assert leases.asked(0, over.at_us) is None  # it came back: it has to leave
    assert leases.living == [1]


def test_losses_are_what_was_owned_and_not_reported() -> None:
    plan = plan_of(rps=800, arrivals="uniform")
    leases = leases_of(plan, 2)
    mine = rows_of(Striped(Schedule.of(plan).blocks(), Ownership.of(2), 1))
    per = Counter(plan.kinds[row[2]] for row in mine if row[1] < SECOND)
    assert leases.frame(1, settled(0, "chat", per["chat"]))
    assert leases.frame(1, settled(0, "search", per["search"] - 3))
    over = leases.died(1, 1_200 * MS)
    assert over is not None and list(leases.losses(over.at_us - 1)) == []
    tally = Tally()
    for frame in leases.losses(over.at_us):
        tally.add(frame)
    owned = sum(1 for row in mine if row[1] < over.at_us)
    assert tally.n(Series.LATENCY, Outcome.LOST) == owned - per["chat"] - per["search"] + 3
    assert list(leases.losses(over.at_us)) == []
    assert not leases.frame(1, settled(0, "chat", 1))  # a ghost is not listened to
    assert leases.died(1, 5 * SECOND) is None


def test_reporting_more_than_owned_is_a_broken_harness() -> None:
    leases = leases_of(plan_of(), 2)
    leases.frame(1, settled(0, "chat", 10_000))
    over = leases.died(1, SECOND)
    assert over is not None
    with pytest.raises(HarnessError, match="more chat than it owned"):
        list(leases.losses(over.at_us))


def test_the_last_worker_cannot_be_taken_over() -> None:
    leases = leases_of(plan_of(), 2)
    leases.died(0, SECOND)
    with pytest.raises(HarnessError, match="no load worker is left"):
        leases.died(1, 2 * SECOND)


def test_done_is_when_all_are_done_or_out() -> None:
    leases = leases_of(plan_of(), 3)
    leases.frame(0, settled(0, "chat", 0, done=True))
    leases.frame(2, settled(0, "chat", 0, done=True))
    assert not leases.done and leases.tick(2 * SECOND)[0].worker == 1
    assert not leases.done
    list(leases.losses(3 * SECOND))
    assert leases.done and leases.died(0, 4 * SECOND) is None
