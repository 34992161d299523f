"""Windows, cuts and slices are what law 3 says, for any scenario."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from survive.plan.model import GUARD_US, Plan
from survive.plan.plan import fault_windows, groups, make_plan, planned_per_slice, slices
from survive.scenario.model import (
    FaultPlan,
    LoadSpec,
    Metric,
    Objective,
    Phase,
    RequestKind,
    Scenario,
    Service,
    TargetSpec,
)

S = 1_000_000


def fault(name, at_s, for_s=None):
    return FaultPlan(
        name,
        "network.down" if for_s else "node.kill",
        round(at_s * S),
        None if for_s is None else round(for_s * S),
    )


def scenario(faults=(), objectives=(), rate=50, seconds=60):
    shares = {"chat": 0.6, "search": 0.4}
    flat = Phase("flat", 0, seconds * S, Fraction(rate), Fraction(rate), shares=shares)
    target = TargetSpec("t", "process", "web", {"web": Service("web", run=("x",))}, {})
    from pathlib import Path

    return Scenario(
        "s",
        "",
        42,
        target,
        {k: RequestKind(k, v, "GET", "/") for k, v in shares.items()},
        None,
        LoadSpec("poisson", Fraction(1), 8, 8, (flat,)),
        {f.name: f for f in faults},
        {o.name: o for o in objectives},
        {},
        Path(),
    )


RECOVERY = Objective("back", Metric.RECOVERY, 6 * S, stable_for_us=4 * S)


def test_a_held_fault_has_two_windows_and_a_one_shot_one_span():
    held, shot = make_plan(scenario([fault("a", 10, 5), fault("b", 30)], [RECOVERY])).faults
    assert (held.inject_us, held.heal_us, held.recovery_end_us) == (10 * S, 15 * S, 25 * S)
    assert (shot.inject_us, shot.heal_us, shot.recovery_end_us) == (30 * S, 40 * S, 40 * S)


def test_without_a_recovery_objective_the_watch_is_capped_at_the_next_inject_and_the_end():
    first, last = make_plan(scenario([fault("a", 10, 5), fault("b", 20, 36)])).faults
    assert first.recovery_end_us == 20 * S
    assert last.recovery_end_us == 60 * S


def test_overlapping_faults_share_one_recovery_from_the_last_heal():
    a, b = make_plan(scenario([fault("a", 10, 10), fault("b", 15, 10)], [RECOVERY])).faults
    assert (a.heal_us, b.heal_us) == (20 * S, 25 * S)
    assert a.recovery_end_us == b.recovery_end_us == 35 * S


def test_marks_are_the_injects_only_and_guards_are_slices_of_their_own():
    plan = make_plan(scenario([fault("a", 10.4, 5)], [RECOVERY]))
    assert plan.marks == (10_400_000,)
    assert (10_400_000, 10_400_000 + GUARD_US) in plan.slices
    assert (15_400_000, 15_400_000 + GUARD_US) in plan.slices


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 500), st.one_of(st.none(), st.integers(1, 200))), max_size=6),
    st.integers(1, 70_000_000),
)
def test_slices_tile_the_load_and_end_at_every_edge(raw, end_us):
    faults = [
        fault(f"f{i}", at / 10, None if held is None else held / 10)
        for i, (at, held) in enumerate(raw)
        if at * S / 10 < end_us
    ]
    windows = fault_windows(faults, None, end_us)
    got = slices(end_us, [end_us], windows)
    assert got[0][0] == 0
    assert got[-1][1] == end_us
    assert all(a[1] == b[0] for a, b in itertools.pairwise(got))
    assert all(0 < end - start <= S for start, end in got)
    starts = {start for start, _ in got} | {end_us}
    for window in windows:
        for edge in (
            window.inject_us,
            window.inject_us + GUARD_US,
            window.heal_us,
            window.recovery_end_us,
        ):
            assert edge >= end_us or edge in starts
    assert sum(len(g.faults) for g in groups(faults)) == len(faults)


def test_planned_counts_agree_however_they_are_cut():
    plan = make_plan(scenario([fault("a", 10, 5)], [RECOVERY]))
    per_slice = planned_per_slice(plan)
    assert per_slice.sum(axis=0).tolist() == [sum(k) for k in zip(*plan.planned, strict=True)]
    assert per_slice.shape == (len(plan.slices), 2)


def test_a_plan_survives_its_way_through_json():
    plan = make_plan(scenario([fault("a", 10, 5), fault("b", 30)], [RECOVERY]))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
