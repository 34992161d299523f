"""Law 3: cells ``fault:x#1``, ..., and ``fault:x`` pools them, no request twice."""

from __future__ import annotations

import numpy as np

from survive.judge.windows import Windows, windows_of
from survive.plan.model import FaultWindow, Plan
from survive.plan.plan import slices
from survive.scenario.model import Metric, Objective, Phase
from survive.units import SECOND

REPEATS = tuple(
    FaultWindow(f"x#{n}", True, at * SECOND, (at + 2) * SECOND, (at + 5) * SECOND, "x")
    for n, at in ((1, 10), (2, 20), (3, 30))
)
OTHER = FaultWindow("y", True, 21 * SECOND, 22 * SECOND, 25 * SECOND)


def plan(*faults):
    end_us = 60 * SECOND
    return Plan(
        1, "p", "t", 1, "poisson", "1", ("get",), (SECOND,), (False,), None, 1,
        (Phase("flat", 0, end_us, 1, 1),),
        faults,
        tuple(sorted({f.inject_us for f in faults})),
        slices(end_us, [end_us], faults),
        end_us,
        ((0,),),
    )  # fmt: skip


def every_place(the_plan):
    """Each slice with each mark that its requests can have crossed, and with none."""
    n, marks = len(the_plan.slices), len(the_plan.marks)
    pairs = np.array([(s, m) for s in range(n) for m in range(-1, marks)], dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


def test_the_pool_is_the_union_of_its_repeats_and_each_place_counts_once():
    the_plan = plan(*REPEATS, OTHER)
    windows, places = Windows(the_plan), every_place(the_plan)
    for kind in ("fault", "recovery"):
        parts = [windows.mask(f"{kind}:x#{n}", *places) for n in (1, 2, 3)]
        pooled = windows.mask(f"{kind}:x", *places)
        assert all(part.any() for part in parts)
        assert (pooled == np.logical_or.reduce(parts)).all()
        assert pooled.sum() == sum(int(part.sum()) for part in parts)


def test_each_fault_means_each_repeat_and_their_pool():
    each = Objective("o", Metric.SUCCESS, 0.9, during="each fault")
    assert windows_of(each, plan(*REPEATS, OTHER)) == (
        "fault:x#1", "fault:x#2", "fault:x#3", "fault:y", "fault:x",
    )  # fmt: skip
    assert windows_of(each, plan(OTHER)) == ("fault:y",)


def test_a_recovery_is_of_each_repeat():
    back = Objective("o", Metric.RECOVERY, 1.0, during="each fault")
    assert windows_of(back, plan(*REPEATS)) == tuple(f"recovery:x#{n}" for n in (1, 2, 3))


def test_a_pool_names_the_others_that_were_on_but_not_itself():
    windows = Windows(plan(*REPEATS, OTHER))
    assert windows.overlapping("x") == ("y",)
    assert windows.overlapping("x#1") == ()
    assert windows.overlapping("y") == ("x#2",)


def test_a_plan_from_before_repeats_is_still_read():
    data = plan(OTHER).to_json()
    for fault in data["faults"]:
        del fault["pool"]
    assert Plan.from_json(data) == plan(OTHER)
