"""Goodput, tokens, amplification, cost, scale-up, budgets, episodes and loops with known truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic import (
    ANSWERS,
    BACK,
    MS,
    OUTAGE,
    Fate,
    S,
    Story,
    down,
    phase,
    scenario,
    scrapes,
    slice_of,
)

from survive.judge.episodes import episodes
from survive.judge.judge import judge
from survive.judge.rates import Bill, cost
from survive.judge.verdict import Word
from survive.record.hdr import fold
from survive.record.samples import Counts, Key, Outcome, Series
from survive.scenario.model import FaultPlan, Hysteresis, Metric, Objective
from survive.units import Cost, Price

LATENCY = Objective("slow", Metric.LATENCY, 100 * MS, 0.9, ("search",), "run")
TTFT = Objective("first", Metric.TTFT, 100 * MS, 0.9, ("chat",), "run")
MAIN = 48  # seconds of the phase `main`


def judged(base, tmp_path, fate=lambda t, k: Fate(), **story):
    record = Story(base, fate, **story).record(tmp_path / "run")
    verdict = judge(record, base)
    return verdict, {(c.name, c.window): c for c in verdict.objectives}


def calm(*objectives, **more):
    return scenario(faults=(), objectives=(ANSWERS, *objectives), **more)


def test_goodput_is_what_is_within_all_its_limits(tmp_path):
    def fate(t_us, kind):
        late = kind == "search" and t_us % 1000 < 500  # about half, by chance of the schedule
        return Fate(after=300 * MS if late else 20 * MS)

    wanted = {}
    for limit, word in ((35, Word.SURVIVED), (55, Word.FAILED)):
        good = Objective("good", Metric.GOODPUT, limit, None, ("chat", "search"), "phase:main")
        base = calm(LATENCY, TTFT, good)
        _, cells = judged(base, tmp_path / str(limit), fate)
        cell = cells["good", "phase:main"]
        assert (cell.verdict, cell.unit, cell.bound) == (word, "per s", "min")
        assert cell.low < cell.observed < cell.high
        assert cell.observed == pytest.approx((cell.n - cell.bad) / MAIN)
        wanted[limit] = cell.bad, cells["slow", "run"].n
    assert wanted[35][0] == pytest.approx(wanted[35][1] / 2, rel=0.1)


def test_a_goodput_that_was_never_offered_is_no_verdict_on_the_target(tmp_path):
    good = Objective("good", Metric.GOODPUT, 200, None, ("chat", "search"), "phase:main")
    cell = judged(calm(good), tmp_path)[1]["good", "phase:main"]
    assert cell.verdict is Word.INCONCLUSIVE and "were offered" in cell.why


def test_two_limits_that_the_table_cannot_join_leave_goodput_between_bounds(tmp_path):
    """10 % late in one time, 10 % in another: 10 to 20 % bad; a limit between them is undecided."""

    def fate(t_us, kind):
        tenth = t_us % 1000 < 100
        return Fate(after=300 * MS if tenth else 90 * MS, ttft=200 * MS if tenth else 10 * MS)

    slow = replace(LATENCY, of=("chat",))
    words = {}
    for share in (0.7, 0.85, 0.95):
        limit = 60 * 0.6 * share
        good = Objective("good", Metric.GOODPUT, limit, None, ("chat",), "phase:main")
        cell = judged(calm(slow, TTFT, good), tmp_path / str(share), fate)[1]["good", "phase:main"]
        words[share] = cell.verdict
    assert words == {0.7: Word.SURVIVED, 0.85: Word.INCONCLUSIVE, 0.95: Word.FAILED}
    assert "several limits" not in cell.why


def test_tokens_per_second_are_counted_exactly(tmp_path):
    tokens = Objective("speed", Metric.TOKENS_PER_S, 500, None, ("chat",), "phase:main")
    cell = judged(calm(tokens), tmp_path, lambda t, k: Fate(tokens=16))[1]["speed", "phase:main"]
    assert cell.observed == pytest.approx(cell.n * 16 / MAIN)
    assert (cell.verdict, cell.unit) == (Word.SURVIVED, "per s")


def retried(base, share):
    """One more attempt for about a share of all requests under the outage."""
    plan = Story(base).plan
    at = slice_of(plan, 22 * S)
    return ((Key(at, "chat", -1, Series.ATTEMPT), Counts(*fold([20 * MS] * share))),)


def test_amplification_is_attempts_over_intents(tmp_path):
    storm = Objective("storm", Metric.AMPLIFICATION, 1.5, None, ("chat", "search"), "each fault")
    base = scenario(objectives=(ANSWERS, storm, BACK))
    for more, word in ((50, Word.SURVIVED), (500, Word.FAILED)):
        verdict, cells = judged(base, tmp_path / str(more), extra=retried(base, more))
        cell = cells["storm", "fault:outage"]
        assert cell.observed == pytest.approx(1 + more / cell.n)
        assert (cell.verdict, cell.unit) == (word, "x")
        assert verdict.faults[0].amplification == pytest.approx(cell.observed)


def priced(base, *replicas):
    services = dict(base.target.services)
    target = replace(base.target, services=services, prices={"inference": Price(3.6, "USD", 3600)})
    return replace(base, target=target)


def test_cost_is_price_times_replicas_times_time_over_what_was_got(tmp_path):
    """3.60 USD/h = 0.001 USD/s for each replica."""
    answers = Objective(
        "cheap", Metric.COST, 0.06, None, ("chat", "search"), "run",
        cost=Cost(0.06, "USD", "1k", 1000, "answers"),
    )  # fmt: skip
    million = Cost(4.0, "USD", "1M", 10**6, "tokens")
    tokens = Objective("tokens", Metric.COST, 4.0, None, ("chat",), "run", cost=million)
    base = priced(calm(answers, tokens))
    fate = lambda t, k: Fate(tokens=16 if k == "chat" else 0)  # noqa: E731
    cells = judged(base, tmp_path / "declared", fate)[1]
    cell = cells["cheap", "run"]
    assert cell.observed == pytest.approx(0.003 * MAIN / cell.n * 1000)
    assert (cell.verdict, cell.unit) == (Word.SURVIVED, "USD per 1k answers")
    assert "declared replicas of inference" in cell.why
    cell = cells["tokens", "run"]
    assert cell.observed == pytest.approx(0.003 * MAIN / (cell.n * 16) * 1e6)
    assert cell.verdict is Word.FAILED

    half = scrapes("inference", 50, lambda s: {"replicas": 1 if s < 26 else 3})
    cell = judged(base, tmp_path / "scraped", fate, probed=tuple(half))[1]["cheap", "run"]
    assert cell.observed == pytest.approx(0.002 * MAIN / cell.n * 1000, rel=0.03)


def test_scale_up_is_from_the_step_until_it_is_well_for_good(tmp_path):
    phases = (phase("low", 0, 20, 40), phase("peak", 20, 60, 80))
    steady = replace(ANSWERS, limit=0.95)
    for limit, word in ((10, Word.SURVIVED), (4, Word.FAILED)):
        up = Objective("up", Metric.SCALE_UP, limit * S, during="phase:peak", stable_for_us=4 * S)
        base = scenario(phases=phases, faults=(), objectives=(steady, up))
        told = scrapes(
            "inference", 60, lambda s: {"queue": 9 * (22 <= s < 28), "replicas": 2 + (s > 25)}
        )
        cell = judged(base, tmp_path / str(limit), down(20, 27), probed=tuple(told))[1][
            "up", "phase:peak"
        ]
        assert (cell.verdict, cell.observed, cell.unit) == (word, pytest.approx(7, abs=1), "s")
        assert "the queue of inference rose after 2.3 s" in cell.why
        assert "3 replicas of inference instead of 2 after 6.3 s" in cell.why
        assert f"{cell.bad:,} of {cell.n:,} requests were bad" in cell.why and cell.bad > 400


def test_a_step_that_is_never_absorbed_fails(tmp_path):
    phases = (phase("low", 0, 20, 40), phase("peak", 20, 60, 80))
    up = Objective("up", Metric.SCALE_UP, 10 * S, during="phase:peak", stable_for_us=4 * S)
    base = scenario(phases=phases, faults=(), objectives=(ANSWERS, up))
    cell = judged(base, tmp_path, down(20, 60))[1]["up", "phase:peak"]
    assert (cell.verdict, cell.observed) == (Word.FAILED, "inf")


def test_what_the_next_fault_breaks_in_flight_is_no_failure_to_scale(tmp_path):
    phases = (phase("low", 0, 10, 40), phase("peak", 10, 60, 80))
    up = Objective("up", Metric.SCALE_UP, 5 * S, during="phase:peak", stable_for_us=4 * S)
    base = scenario(phases=phases, objectives=(ANSWERS, up, BACK))
    inject_us = base.faults["outage"].at_us

    def fate(t_us, kind):
        crosses = inject_us - S <= t_us < inject_us
        return Fate(Outcome.FAILED, after=S + 200 * MS, why="reset") if crosses else Fate()

    cell = judged(base, tmp_path, fate)[1]["up", "phase:peak"]
    assert (cell.verdict, cell.bad) == (Word.SURVIVED, 0)


def test_what_a_later_fault_breaks_is_no_failure_to_scale(tmp_path):
    phases = (phase("low", 0, 10, 40), phase("peak", 10, 60, 80))
    up = Objective("up", Metric.SCALE_UP, 5 * S, during="phase:peak", stable_for_us=4 * S)
    base = scenario(phases=phases, objectives=(ANSWERS, up, BACK))
    cell = judged(base, tmp_path, down(20, 28))[1]["up", "phase:peak"]
    assert (cell.verdict, cell.observed) == (Word.SURVIVED, 0)


@pytest.mark.parametrize(("answers", "word"), [(29, Word.INCONCLUSIVE), (30, Word.SURVIVED)])
def test_a_price_needs_thirty_answers(answers, word):
    assert cost(Bill(1.0, float(answers), answers, ()), limit=1.0, count=1).decision.word is word


# ------------------------------------------------------------------- clusters (law 6)


def long_run(limit=0.99):
    return scenario(
        phases=(phase("main", 0, 122, 50),), faults=(),
        objectives=(replace(ANSWERS, limit=limit, of=("chat",)),),
    )  # fmt: skip


def test_one_outage_in_two_minutes_is_one_event_and_no_proof_of_99_percent(tmp_path):
    cell = judged(long_run(), tmp_path, down(60, 60.7))[1]["answers", "steady"]
    assert 0 < cell.bad < 0.01 * cell.n  # iid, it would have survived
    assert cell.verdict is Word.INCONCLUSIVE and "clusters" in cell.why
    assert cell.low < 0.99


def test_as_many_failures_scattered_survive(tmp_path):
    left = iter(range(10**6))
    fate = lambda t, k: Fate(Outcome.FAILED, why="reset") if next(left) % 250 == 0 else Fate()  # noqa: E731
    cell = judged(long_run(), tmp_path, fate)[1]["answers", "steady"]
    assert cell.bad and cell.verdict is Word.SURVIVED


# ---------------------------------------------------------- budgets, episodes and loops


def test_what_an_incident_costs_of_thirty_days(tmp_path):
    base = scenario(objectives=(ANSWERS, BACK))
    verdict, _ = judged(base, tmp_path, down(20, 28))
    budget = verdict.faults[0].budget
    incident_s = 8 + 10  # under the fault and while its recovery was watched
    assert budget.objective == "answers"
    assert budget.share == pytest.approx(8 / (0.01 * 30 * 86_400), rel=0.15)
    assert budget.burn_1h == pytest.approx(8 / 3600 / 0.01, rel=0.15)
    assert budget.burn_5m == pytest.approx(8 / 300 / 0.01, rel=0.15)
    assert not budget.pages and incident_s < 300


def test_a_long_enough_outage_pages(tmp_path):
    strict = replace(ANSWERS, limit=0.9999)
    base = scenario(objectives=(strict, BACK))
    budget = judged(base, tmp_path, down(20, 28))[0].faults[0].budget
    assert budget.pages and budget.burn_1h > 14.4 and budget.burn_5m > budget.burn_1h


def test_a_short_outage_pages_nobody_though_its_five_minutes_burn(tmp_path):
    base = scenario(objectives=(replace(ANSWERS, limit=0.9985), BACK))
    budget = judged(base, tmp_path, down(20, 28))[0].faults[0].budget
    assert budget.burn_5m > 14.4 > budget.burn_1h and not budget.pages


def test_episodes_are_told_from_three_up():
    assert episodes("x", "m", [1.0, 2.0], more_is_better=False) is None
    three = episodes("x", "m", [3.0, 1.0, "inf"], more_is_better=False)
    assert (three.median, three.worst, three.low, three.high) == (3.0, "inf", 1.0, "inf")
    assert three.confidence == pytest.approx(0.75)
    nine = episodes("x", "m", [float(i) for i in range(9)], more_is_better=True)
    assert (nine.median, nine.worst, nine.low, nine.high) == (4.0, 0.0, 1.0, 7.0)
    assert nine.confidence >= 0.9


def test_repeats_are_summed_up(tmp_path):
    faults = tuple(
        FaultPlan(f"x#{n}", "network.down", at * S, 3 * S, link="gateway -> inference", pool="x")
        for n, at in ((1, 10), (2, 25), (3, 40))
    )
    base = scenario(faults=faults, objectives=(ANSWERS, BACK), end_s=60)
    verdict, _ = judged(base, tmp_path, down(25, 29))
    found = {e.measure: e for e in verdict.episodes}
    assert set(found) == {"recovered_after_s", "error_window_s", "success"}
    assert found["success"].worst < 0.1 and found["success"].median == 1.0
    assert len(found["success"].values) == 3 and found["error_window_s"].worst > 3


@pytest.mark.parametrize(
    ("from_s", "until_s", "again_s", "hysteresis", "said"),
    [
        (20, 70, None, True, "the load that holds it down"),
        (0, 70, None, False, "before the fault it was broken, too"),
        (20, 70, 90, False, "carries no more"),
        (20, 90, None, False, "less load does not heal it"),
        (20, 28, None, False, "came back by itself"),
    ],
)
def test_lowering_the_load_tells_a_loop_from_lost_capacity(
    tmp_path, from_s, until_s, again_s, hysteresis, said
):
    phases = (
        phase("production", 0, 70, 50),
        phase("relief", 70, 90, 10),
        phase("again", 90, 120, 50),
    )
    back = replace(BACK, hysteresis=Hysteresis("production", "relief", "again"))
    base = scenario(
        phases=phases, faults=(OUTAGE,), objectives=(replace(ANSWERS, of=("chat",)), back)
    )

    def fate(t_us, kind):
        broken = from_s * S <= t_us < until_s * S or (again_s and t_us >= again_s * S)
        return Fate(Outcome.FAILED, why="reset") if broken else Fate()

    base = replace(base, requests=base.requests, objectives={**base.objectives, "back": back})
    (loop,) = judged(base, tmp_path, fate)[0].loops
    assert (loop.hysteresis, loop.rps, loop.relief_rps) == (hysteresis, 50, 10)
    assert said in loop.told
