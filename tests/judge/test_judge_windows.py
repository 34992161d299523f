"""Who belongs to which window (DESIGN law 3), told place by place."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import MS, OUTAGE, S, phase, scenario, slice_of

from survive.errors import RecordError
from survive.judge.windows import Windows, groups, windows_of
from survive.plan.plan import make_plan
from survive.record.table import segments_of
from survive.scenario.model import FaultPlan

KILL = FaultPlan("kill", "node.kill", 20 * S, None, service="inference")
SLOW = FaultPlan("slow", "network.latency", 24 * S, 8 * S, link="gateway -> inference")


def belongs(plan, window, t_s, crossed=-1, late=()):
    at = np.array([slice_of(plan, round(t_s * S))])
    return bool(Windows(plan, late).mask(window, at, np.array([crossed]))[0])


def where(plan, t_s, crossed=-1, late=()):
    windows = ["steady", "run", *(f"phase:{p.name}" for p in plan.phases)]
    windows += [f"{kind}:{f.fault}" for f in plan.faults for kind in ("fault", "recovery")]
    return {window for window in windows if belongs(plan, window, t_s, crossed, late)}


BASE = {"run", "phase:main"}


@pytest.mark.parametrize(
    ("t_s", "crossed", "expected"),
    [
        (1.0, -1, {"phase:warm"}),
        (2.5, -1, BASE | {"steady"}),
        (19.9, -1, BASE | {"steady"}),
        (19.9, 0, BASE | {"fault:outage"}),  # its life crossed the inject
        (1.9, 0, {"phase:warm", "fault:outage"}),
        (20.0, -1, BASE | {"fault:outage"}),
        (20.1, -1, BASE | {"fault:outage"}),
        (27.9, -1, BASE | {"fault:outage"}),
        (28.1, -1, BASE | {"fault:outage"}),  # the guard after a heal is the fault's
        (28.25, -1, BASE | {"recovery:outage"}),
        (37.9, -1, BASE | {"recovery:outage"}),
        (38.0, -1, BASE | {"steady"}),  # heal + limit 6 s + stable_for 4 s
    ],
)
def test_a_held_fault(t_s, crossed, expected):
    assert where(make_plan(scenario()), t_s, crossed) == expected


@pytest.mark.parametrize(
    ("t_s", "crossed", "expected"),
    [
        (19.9, -1, BASE | {"steady"}),
        (19.9, 0, BASE | {"fault:kill", "recovery:kill"}),
        (20.1, -1, BASE | {"fault:kill", "recovery:kill"}),
        (29.9, -1, BASE | {"fault:kill", "recovery:kill"}),
        (30.0, -1, BASE | {"steady"}),
    ],
)
def test_a_one_shot_is_one_span(t_s, crossed, expected):
    assert where(make_plan(scenario(faults=(KILL,))), t_s, crossed) == expected


@pytest.mark.parametrize(
    ("t_s", "crossed", "expected"),
    [
        (19.9, 0, {"fault:outage"}),
        (21.0, -1, {"fault:outage"}),
        (23.9, 1, {"fault:outage"}),  # begun under a fault: stays with it
        (24.0, -1, {"fault:outage", "fault:slow"}),
        (28.1, -1, {"fault:outage", "fault:slow"}),
        (28.3, -1, {"fault:slow"}),
        (32.1, -1, {"fault:slow"}),
        (32.3, -1, {"recovery:outage", "recovery:slow"}),  # one recovery, from the last heal
        (41.9, -1, {"recovery:outage", "recovery:slow"}),
        (42.0, -1, {"steady"}),
    ],
)
def test_overlapping_faults(t_s, crossed, expected):
    plan = make_plan(scenario(faults=(OUTAGE, SLOW)))
    assert where(plan, t_s, crossed) - BASE == expected
    assert Windows(plan).overlapping("slow") == ("outage",)
    (group,) = groups(plan)
    assert (group.last_heal_us, group.end_us) == (32 * S, 42 * S)


def test_a_request_of_a_recovery_that_meets_the_next_fault_is_that_faults():
    later = FaultPlan("later", "network.latency", 38 * S, 4 * S, link="a -> b")
    plan = make_plan(scenario(faults=(OUTAGE, later), end_s=60))
    assert where(plan, 37.9) == BASE | {"recovery:outage"}
    assert where(plan, 37.9, crossed=1) == BASE | {"fault:later"}
    assert len(groups(plan)) == 2


def test_slices_until_a_late_cut_are_in_no_window_but_run_and_phase():
    plan = make_plan(scenario())
    late = [(20 * S, 21 * S)]
    assert where(plan, 20.1, late=late) == BASE
    assert where(plan, 20.9, late=late) == BASE
    assert where(plan, 21.1, late=late) == BASE | {"fault:outage"}
    assert where(plan, 19.9, late=late) == BASE | {"steady"}
    heal_late = [(28 * S, 28 * S + 700 * MS)]
    assert where(plan, 28.1, late=heal_late) == BASE
    assert where(plan, 28.5, late=heal_late) == BASE
    assert where(plan, 29.1, late=heal_late) == BASE | {"recovery:outage"}


def test_ramps_are_not_steady():
    phases = (phase("a", 0, 5, 10), phase("up", 5, 10, 10, 50), phase("b", 10, 60, 50))
    plan = make_plan(scenario(phases=phases))
    assert belongs(plan, "steady", 4) and belongs(plan, "steady", 12)
    assert not belongs(plan, "steady", 7) and belongs(plan, "phase:up", 7)


def test_windows_the_plan_does_not_have_are_an_error():
    plan = make_plan(scenario())
    for window in ("phase:nope", "fault:nope", "recovery:nope", "nope", ""):
        with pytest.raises(RecordError, match="no window") as caught:
            belongs(plan, window, 1)
        assert "steady" in caught.value.hint or "did you mean" in caught.value.hint


def test_no_window_divides_a_segment():
    """What lets merged sets stand for their slices: all windows agree within a segment."""
    phases = (phase("warm", 0, 2.5, 20, warm_up=True), phase("up", 2.5, 9, 20, 60),
              phase("main", 9, 620, 60))  # fmt: skip
    plan = make_plan(scenario(phases=phases, faults=(OUTAGE, SLOW)))
    segments, windows = segments_of(plan), Windows(plan)
    assert len(set(segments)) < len(plan.slices) / 2
    names = ["steady", "run", "phase:up", "fault:slow", "recovery:outage", "fault:outage"]
    for name in names:
        mask = windows.slices_of(name)
        for segment in set(segments.tolist()):
            assert len(set(mask[segments == segment].tolist())) == 1


def test_the_windows_of_an_objective():
    base = scenario(faults=(OUTAGE, SLOW))
    plan = make_plan(base)
    assert windows_of(base.objectives["degrade"], plan) == ("fault:outage", "fault:slow")
    assert windows_of(base.objectives["back"], plan) == ("recovery:outage", "recovery:slow")
    assert windows_of(base.objectives["answers"], plan) == ("steady",)
