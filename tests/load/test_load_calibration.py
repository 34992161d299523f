"""The arithmetic of `survive calibrate`; the load itself has tests of its own."""

from __future__ import annotations

from collections import Counter

import pytest
from loadtools import make_kind, make_plan

from survive.load.calibration import Point, _compare, _of_counts, _played, _rank
from survive.load.known import delays
from survive.record.hdr import index_of
from survive.record.samples import Series
from survive.units import MS, SECOND


def test_nearest_ranks_are_the_same_of_values_and_of_buckets() -> None:
    values = list(range(1, 1001))
    counts = Counter(index_of(value) for value in values)
    for percentile in (50.0, 90.0, 99.0, 99.9):
        assert _rank(values, percentile) == _of_counts(counts, percentile)
    assert _rank(values, 99.9) == 999 and _rank(values, 50.0) == 500


def test_what_a_freeze_does_to_every_percentile_is_played_from_the_schedule() -> None:
    """200/s for 8 s, frozen for 2 s: a quarter of all waits, evenly up to 2 s"""
    plan = make_plan([make_kind()], rps=200, for_us=8 * SECOND, lanes=10_000)
    truth = sorted(_played(plan, (2 * SECOND, 4 * SECOND), 5 * MS))
    assert len(truth) == 1_600
    assert _rank(truth, 50.0) == 5 * MS
    assert _rank(truth, 90.0) == pytest.approx(1_200 * MS, rel=0.01)
    assert _rank(truth, 99.0) == pytest.approx(1_920 * MS, rel=0.01)


def test_few_lanes_make_the_queue_longer_and_are_part_of_the_truth() -> None:
    plan = make_plan([make_kind()], rps=200, for_us=8 * SECOND, lanes=1)
    frozen = (2 * SECOND, 4 * SECOND)
    one = sorted(_played(plan, frozen, 4 * MS))
    many = sorted(_played(make_plan([make_kind()], rps=200, for_us=8 * SECOND), frozen, 4 * MS))
    assert _rank(one, 90.0) > 1.4 * _rank(many, 90.0)  # 400 wait for one lane


def test_an_error_over_one_percent_and_the_floor_is_off() -> None:
    assert Point(50.0, 20.0, 20.19).sound
    assert Point(50.0, 0.1, 0.35).sound  # below the floor nothing can be told
    assert not Point(50.0, 100.0, 101.5).sound
    plan = make_plan([make_kind()])
    counts = {series: Counter({index_of(30 * MS): 100}) for series in Series}
    found = _compare("constant", plan, 0, counts, [20 * MS] * 100, None)
    assert not found.sound and found.series == "service_time" and found.n == 100


def test_the_servers_draw_what_they_say() -> None:
    drawn = [delays("bimodal", 3)() for _ in range(1)]
    hold = delays("bimodal", 3)
    many = Counter(hold() for _ in range(5_000))
    assert set(many) == {0.005, 0.080} and 0.08 < many[0.080] / 5_000 < 0.12
    assert drawn[0] in many
    tail = delays("long-tailed", 3)
    values = sorted(tail() for _ in range(5_000))
    assert values[2_500] == pytest.approx(0.008, rel=0.08)
    assert values[4_950] > 5 * values[2_500]
