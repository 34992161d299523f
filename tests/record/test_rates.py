"""The planned rate of a span is the schedule's, without its chance; plans keep a sine's shape."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from survive.plan.arrivals import Schedule
from survive.plan.model import Plan
from survive.record.rates import mean_rps
from survive.scenario.model import Phase
from survive.units import SECOND

END_US = 40 * SECOND
RATE = Fraction(1000)
SINE = Phase(
    "s", 0, END_US, RATE, RATE, "sine", shares={"a": 1.0}, swing=0.5, period_us=20 * SECOND
)
PLAN = Plan(
    1, "n", "t", 1, "uniform", "1", ("a",), (SECOND,), (False,), None, 1, (SINE,), (), (),
    ((0, END_US),), END_US, ((40_000,),),
)  # fmt: skip

STEPS = Phase("u", 0, END_US, Fraction(100), RATE, "steps", shares={"a": 1.0}, steps=3)


@pytest.mark.parametrize("shape", [SINE, STEPS])
@pytest.mark.parametrize(("start_s", "end_s"), [(0, 5), (3, 9), (10, 20), (0, 40), (33, 34)])
def test_a_shape_plans_what_its_schedule_sends(shape, start_s, end_s):
    made = replace(PLAN, phases=(shape,))
    plan = Plan.from_json(json.loads(json.dumps(made.to_json())))
    assert plan == made
    got = np.concatenate([b.intended_us for b in Schedule.of(plan).blocks()])
    seen = np.count_nonzero((got >= start_s * SECOND) & (got < end_s * SECOND))
    planned = mean_rps(plan, start_s * SECOND, end_s * SECOND) * (end_s - start_s)
    assert planned == pytest.approx(seen, abs=1.01)
