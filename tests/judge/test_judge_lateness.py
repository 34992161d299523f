"""The harness's own lateness takes back the reds that rest on it, and no other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import (
    ANSWERS,
    BACK,
    DEGRADE,
    MS,
    Fate,
    S,
    Story,
    phase,
    scenario,
)

from survive.judge.judge import judge
from survive.judge.verdict import Word
from survive.record.samples import Outcome, Series
from survive.scenario.model import Metric, Objective

DEADLINE = {"chat": 4 * S, "search": 2 * S}
SERVICE = 20 * MS
QUICK = Objective("quick", Metric.LATENCY, 800 * MS, 0.95, ("chat", "search"), "each fault")
NEVER = (0, 0)


def span(start_s, end_s):
    return round(start_s * S), round(end_s * S)


def world(stall=NEVER, freeze=NEVER):
    """The fate of each request where the load stands still in one span, the target in another."""

    def fate(t_us, kind):
        deadline = DEADLINE[kind]
        sent = stall[1] if stall[0] <= t_us < stall[1] else t_us
        if sent - t_us > deadline:
            return Fate(Outcome.EXPIRED, after=deadline)
        done = sent + SERVICE
        if freeze[0] < done and sent < freeze[1]:
            done = freeze[1] + SERVICE
        seen = stall[1] if stall[0] <= done < stall[1] else done
        lag = max(50, sent - t_us)
        if seen - t_us > deadline:
            outcome = Outcome.ABANDONED if kind == "chat" else Outcome.TIMED_OUT
            return Fate(outcome, after=deadline, lag=lag)
        return Fate(after=seen - t_us, ttft=seen - t_us, lag=lag)

    return fate


def away(plan, stall):
    """What the load files of a stall."""
    pieces = (
        (start, min(end, stall[1]) - max(start, stall[0]))
        for start, end in plan.slices
        if start < stall[1] and stall[0] < end
    )
    idle = ((second * S, Series.IDLE, 800 * MS) for second in range(plan.end_us // S))
    return (*((start, Series.AWAY, us) for start, us in pieces), *idle)


def ramp(seed=11, objectives=(ANSWERS, QUICK)):
    """The fault falls into a ramp, whose lateness nothing judges as a whole."""
    phases = (phase("flat", 0, 15, 60), phase("rise", 15, 50, 60, 120))
    return replace(scenario(phases, objectives=objectives), seed=seed)


def judged(tmp_path, base, fate, stall=NEVER, **more):
    story = Story(base, fate, **more)
    story.harness = away(story.plan, stall)
    return judge(story.record(tmp_path / "run"), base)


def during(verdict, name="quick"):
    return {cell.request: cell for cell in verdict.objectives if cell.name == name}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("stall", "freeze", "code"),
    [
        (span(22, 24.5), NEVER, 3),
        (NEVER, span(22, 24.5), 1),
        (span(22, 24.5), span(22, 24.5), 3),  # nobody was there to see the target stand
        (span(23, 24), span(21, 27), 1),  # most of it was seen by who was in time
        (span(20.5, 22), span(23, 26), 1),
        (NEVER, NEVER, 0),
    ],
)
def test_whose_stall_it_was(tmp_path, seed, stall, freeze, code):
    verdict = judged(tmp_path, ramp(seed), world(stall, freeze), stall)
    assert verdict.exit_code == code, verdict.reasons
    assert ("the harness itself sent or read late" in str(verdict.reasons)) is (code == 3)


def test_a_long_stall_is_ours_whole(tmp_path):
    """Longer than any deadline: most of it is never sent, and has no send lag to tell of it."""
    stall = span(20.5, 27)
    verdict = judged(tmp_path, ramp(objectives=(ANSWERS, DEGRADE)), world(stall), stall)
    assert verdict.exit_code == 3
    cell = during(verdict, "degrade")["search"]
    assert cell.verdict is Word.INCONCLUSIVE and cell.bad > 0.5 * cell.n
    # The same without what the load's loop told of itself: lateness that nothing shows.
    assert judged(tmp_path / "b", ramp(objectives=(ANSWERS, DEGRADE)), world(stall)).exit_code == 1


def test_in_a_long_constant_phase_a_window_is_spared_all_the_same(tmp_path):
    """2 s of 298 are no bottleneck of the phase, and yet all that broke the fault's window."""
    base = scenario(
        (phase("warm", 0, 2, 60, warm_up=True), phase("main", 2, 300, 60)),
        objectives=(ANSWERS, QUICK), end_s=300,
    )  # fmt: skip
    stall = span(22, 24)
    verdict = judged(tmp_path, base, world(stall), stall)
    assert verdict.exit_code == 3
    (reason,) = (r for r in verdict.reasons if r.startswith("quick is undecided for chat"))
    assert "bad requests that the harness itself sent or read late" in reason


def lag_from_20(lag):
    return lambda t, k: Fate(lag=lag if t > 20 * S else 50)


@pytest.mark.parametrize(
    ("fate", "code"),
    [
        (Fate(after=3 * S, lag=15 * MS), 1),  # a little late, and slow by far more
        (Fate(after=900 * MS, lag=850 * MS), 3),
        (Fate(after=900 * MS, wait=850 * MS), 1),  # waiting for a lane is the target's doing
        (Fate(Outcome.FAILED, after=30 * MS, why="reset", lag=50 * MS), 1),
        (Fate(Outcome.FAILED, after=300 * MS, why="status:503", lag=250 * MS), 3),
        (Fate(Outcome.TIMED_OUT, after=5 * S, lag=100 * MS), 1),
        (Fate(Outcome.TIMED_OUT, after=5 * S, lag=3 * S), 3),
        (Fate(Outcome.EXPIRED, after=4 * S), 1),
    ],
)
def test_only_what_was_taken_from_a_request_excuses_it(tmp_path, fate, code):
    good = Fate()
    base = ramp(objectives=(QUICK,))
    verdict = judged(tmp_path, base, lambda t, k: fate if 21 * S < t < 26 * S else good)
    assert verdict.exit_code == code, verdict.reasons


def test_requests_in_time_decide_about_those_that_were_late(tmp_path):
    """A third was sent 250 ms late and all failed: the other two thirds are evidence enough."""
    count = iter(range(10**6))

    def fate(t_us, kind):
        if not 20 * S < t_us < 28 * S:
            return Fate()
        lag = 50 if next(count) % 3 else 250 * MS
        return Fate(Outcome.FAILED, after=300 * MS, why="status:503", lag=lag)

    assert judged(tmp_path, ramp(objectives=(DEGRADE,)), fate).exit_code == 1


def test_a_spared_red_is_never_passed(tmp_path):
    stall = span(22, 24.5)
    verdict = judged(tmp_path, ramp(), world(stall), stall, asked={"inconclusive": "pass"})
    assert verdict.exit_code == 3


def test_a_red_elsewhere_stays_red(tmp_path):
    """The harness was late in the fault's window; what broke before it is the target's."""
    stall = span(22, 24.5)
    ours = world(stall)
    verdict = judged(
        tmp_path, ramp(),
        lambda t, k: Fate(Outcome.FAILED, after=MS, why="x") if t < 3 * S else ours(t, k), stall,
    )  # fmt: skip
    assert verdict.exit_code == 1
    assert {cell.verdict for cell in during(verdict).values()} == {Word.INCONCLUSIVE}


def test_a_stall_of_ours_in_the_recovery_is_no_relapse(tmp_path):
    limits = (ANSWERS, Objective("fast", Metric.LATENCY, 500 * MS, 0.9, ("chat",), "steady"), BACK)
    stall, code = span(29, 36), {}
    for name, fate in (("load", world(stall)), ("target", world(freeze=stall))):
        told = stall if name == "load" else NEVER
        verdict = judged(tmp_path / name, ramp(objectives=limits), fate, told)
        code[name] = (verdict.exit_code, during(verdict, "back")[""].verdict)
    assert code == {"load": (3, Word.INCONCLUSIVE), "target": (1, Word.FAILED)}


@pytest.mark.parametrize(("late_s", "code"), [(0.3, 0), (1.5, 3)])
def test_a_green_rests_on_the_planned_load(tmp_path, late_s, code):
    """All is answered at once, though late: in the ramp nobody asked for what was planned."""
    after = round((28 - late_s) * S)
    base = ramp(objectives=(ANSWERS, DEGRADE))
    fate = lambda t, k: Fate(lag=200 * MS, after=220 * MS) if after < t < 28 * S else Fate()  # noqa: E731
    verdict = judged(tmp_path, base, fate, asked={"inconclusive": "pass"})
    assert verdict.exit_code == code
    assert ("not the planned load" in str(verdict.reasons)) is bool(code)


def test_goodput_that_the_harness_did_not_deliver_is_undecided(tmp_path):
    limits = (Objective("useful", Metric.GOODPUT, 55, of=("chat", "search"), during="each fault"),)
    stall = span(20.5, 27)
    assert judged(tmp_path / "a", ramp(objectives=limits), world(stall), stall).exit_code == 3
    assert judged(tmp_path / "b", ramp(objectives=limits), world(NEVER, stall)).exit_code == 1


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    start=st.floats(20, 26), length=st.floats(0.2, 7), wait=st.integers(0, 3 * S),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_no_slowness_of_the_target_is_ever_excused(tmp_path_factory, start, length, wait, seed):
    """However it stands still, and however long lanes are waited for: no red is spared."""
    frozen = world(freeze=span(start, start + length))
    fate = lambda t, k: replace(frozen(t, k), wait=wait)  # noqa: E731
    verdict = judged(tmp_path_factory.mktemp("run"), ramp(seed), fate)
    assert "the harness itself" not in str(verdict.reasons)
