"""Verdicts on runs with known truth: proofs, baselines, recoveries, guilt, exit codes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import (
    ANSWERS,
    BACK,
    DEGRADE,
    FAST,
    MS,
    OUTAGE,
    Fate,
    S,
    Story,
    down,
    phase,
    scenario,
    without,
)

from survive.errors import RecordError
from survive.judge.judge import judge
from survive.judge.verdict import Word
from survive.record.reader import Record
from survive.record.samples import Outcome, Series
from survive.scenario.model import FaultPlan, Metric, Objective

KILL = FaultPlan("kill", "node.kill", 20 * S, None, service="inference")
SLOW = FaultPlan("slow", "network.latency", 24 * S, 8 * S, link="gateway -> inference")


def verdict_of(story, tmp_path, of=None):
    return judge(story.record(tmp_path / "run"), of or story.scenario)


def cells(verdict, window):
    return {cell.request: cell for cell in verdict.objectives if cell.window == window}


def cell(verdict, name, request="", window=None):
    (found,) = (
        c for c in verdict.objectives
        if c.name == name and c.request == request and window in {None, c.window}
    )  # fmt: skip
    return found


# ------------------------------------------------------------------------- the whole


def test_a_sound_run_survives(tmp_path):
    verdict = verdict_of(Story(scenario()), tmp_path)
    assert (verdict.verdict, verdict.exit_code, verdict.reasons) == (Word.SURVIVED, 0, ())
    assert {c.verdict for c in verdict.objectives} == {Word.SURVIVED}
    assert [(c.name, c.request, c.window) for c in verdict.objectives] == [
        ("answers", "chat", "steady"), ("answers", "search", "steady"), ("fast", "chat", "steady"),
        ("degrade", "chat", "fault:outage"), ("degrade", "search", "fault:outage"),
        ("back", "", "recovery:outage"),
    ]  # fmt: skip
    (fault,) = verdict.faults
    assert (fault.proof, fault.heal_proof, fault.active_share) == ("proven", "proven", 1.0)
    assert fault.absorbed_after_s == 0 and fault.error_window_s == 0
    assert (verdict.grade, fault.grade) == ("real", "real")
    load = verdict.load
    assert load.planned == load.sent == load.ok == load.attempts
    assert load.send_lag_ms.p99 == pytest.approx(0.05, rel=0.01)
    json.dumps(verdict.to_json(), allow_nan=False)


def test_judging_twice_and_from_the_log_gives_the_same_document(tmp_path):
    story = Story(scenario(), down(20, 31))
    folder = story.write(tmp_path / "run")
    documents = [
        json.dumps(judge(Record.load(folder, from_hlog=way), story.scenario).to_json())
        for way in (False, False, True)
    ]
    assert documents[0] == documents[1] == documents[2]


def test_a_broken_fault_window_fails_and_says_which(tmp_path):
    story = Story(scenario(), down(20, 28, kinds=("chat",), who="inference-1"))
    verdict = verdict_of(story, tmp_path)
    assert (verdict.verdict, verdict.exit_code) == (Word.FAILED, 1)
    broken = cell(verdict, "degrade", "chat")
    assert (broken.verdict, round(broken.observed, 2)) == (Word.FAILED, 0.03)  # the guard was well
    assert verdict.reasons == (
        "degrade broke for chat during fault:outage: "
        f"success {broken.observed * 100:.4g} %, limit 90 %",
    )
    assert cell(verdict, "degrade", "search").verdict is Word.SURVIVED
    (fault,) = verdict.faults
    (share,) = fault.replicas
    assert (share.replica, share.share, share.fair) == ("inference-1", 1.0, 1 / 3)
    assert share.factor == pytest.approx(3)
    assert fault.failures == (("reset", share.failed),)


def test_only_the_cell_whose_limit_changes_changes(tmp_path):
    story = Story(scenario(), down(22, 22.3))
    record = story.record(tmp_path / "run")
    before = judge(record, story.scenario)
    strict = replace(DEGRADE, limit=0.99)
    after = judge(
        record,
        replace(story.scenario, objectives={**story.scenario.objectives, "degrade": strict}),
    )
    changed = {b.name for b, a in zip(before.objectives, after.objectives, strict=True) if a != b}
    assert changed == {"degrade"}
    assert (before.exit_code, after.exit_code) == (0, 1)
    assert before.faults == after.faults and before.load == after.load


def test_time_limits_can_change_after_the_run(tmp_path):
    record = Story(scenario(), lambda t, k: Fate(ttft=300 * MS)).record(tmp_path / "run")
    for limit_ms, word in ((290, Word.FAILED), (310, Word.SURVIVED)):
        changed = replace(FAST, limit=limit_ms * MS)
        base = scenario(objectives=(ANSWERS, changed))
        assert cell(judge(record, base), "fast", "chat").verdict is word


# ------------------------------------------------------------------------- metrics


def test_percentiles_count_failures_as_infinite(tmp_path):
    objective = Objective("p", Metric.LATENCY, 100 * MS, 0.95, ("search",), "steady")
    base = scenario(faults=(), objectives=(objective,))
    verdict = verdict_of(Story(base, down(2, 8, after=1 * MS)), tmp_path)
    found = cell(verdict, "p", "search")
    assert found.verdict is Word.FAILED
    assert found.observed == "inf" and found.high == "inf"
    assert found.observed_ok == pytest.approx(20, rel=1e-3)
    assert (found.limit, found.unit, found.metric) == (100.0, "ms", "latency.p95")


def test_a_percentile_is_the_one_of_the_truth(tmp_path):
    values = {}

    def fate(t_us, kind):
        values.setdefault(kind, []).append(t_us % 97 * MS + MS)
        return Fate(after=values[kind][-1], ttft=None if kind == "search" else 5 * MS)

    objective = Objective("p", Metric.LATENCY, 99 * MS, 0.9, ("search",), "run")
    phases = (phase("main", 0, 30, 60),)
    base = scenario(phases=phases, faults=(), objectives=(objective,))
    found = cell(verdict_of(Story(base, fate), tmp_path), "p", "search")
    ordered = sorted(values["search"])
    truth = ordered[-(-len(ordered) * 9 // 10) - 1] / 1000
    assert found.observed == pytest.approx(truth, rel=1e-3)
    assert found.low <= found.observed <= found.high
    assert found.n == len(ordered) and found.bad == 0


def test_a_value_in_the_limits_own_bucket_is_within_and_not_shown_above_it(tmp_path):
    objective = Objective("p", Metric.TTFT, 800 * MS, 0.95, ("chat",), "run")
    base = scenario(faults=(), objectives=(objective,))
    for us, word in ((800_200, Word.SURVIVED), (802_000, Word.FAILED)):
        story = Story(base, lambda t, k, us=us: Fate(after=us, ttft=us))
        found = cell(verdict_of(story, tmp_path / str(us)), "p", "chat")
        assert found.verdict is word
        assert (found.observed <= 800) is (word is Word.SURVIVED)


@pytest.mark.parametrize("metric", [Metric.SUCCESS, Metric.COMPLETE])
def test_every_bad_outcome_counts_against_success(tmp_path, metric):
    objective = Objective("o", metric, 0.99, None, ("chat",), "run")
    base = scenario(faults=(), objectives=(objective,), end_s=12)
    for outcome in (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.ABANDONED, Outcome.EXPIRED):
        found = cell(verdict_of(Story(base, down(3, 6, outcome)), tmp_path / outcome), "o", "chat")
        assert found.verdict is Word.FAILED and found.bad > 60


@pytest.mark.parametrize(
    "metric", [Metric.LATENCY, Metric.SERVICE_TIME, Metric.TTFT, Metric.TPOT, Metric.ITL]
)
def test_who_failed_was_late_by_every_clock(tmp_path, metric):
    objective = Objective("o", metric, 800 * MS, 0.95, ("chat",), "run")
    base = scenario(faults=(), objectives=(objective,), end_s=22)
    found = cell(verdict_of(Story(base, down(10, 13)), tmp_path), "o", "chat")
    assert (found.verdict, found.observed) == (Word.FAILED, "inf")
    assert found.bad == pytest.approx(3 * 36, abs=30)


def test_a_stream_without_content_is_over_every_ttft_limit(tmp_path):
    base = scenario(faults=(), objectives=(replace(FAST, during="run"),))
    story = Story(base, lambda t, k: Fate(ttft=None if 10 * S < t < 20 * S else MS))
    found = cell(verdict_of(story, tmp_path), "fast", "chat")
    assert found.verdict is Word.FAILED
    assert found.observed == "inf"


def test_gaps_of_one_stream_are_no_independent_evidence(tmp_path):
    """One in twenty requests stalls in all its gaps; the others have many good ones."""
    objective = Objective("i", Metric.ITL, 50 * MS, 0.9, ("chat",), "run")
    base = scenario(faults=(), objectives=(objective,))
    story = Story(base, lambda t, k: Fate(gaps=(200 * MS,) * 10 if t % 20 == 0 else (5 * MS,) * 10))
    found = cell(verdict_of(story, tmp_path), "i", "chat")
    record = Record.load(tmp_path / "run")
    assert record.table.total(Series.ITL) > 9 * found.n
    assert found.n < 2000 and found.verdict is Word.SURVIVED
    assert found.bad / found.n == pytest.approx(0.05, abs=0.02)


def test_a_cluster_in_a_short_steady_window_is_counted_plainly(tmp_path):
    """Below a minute there are too few blocks to measure how far it stands for others."""
    base = scenario(faults=(), objectives=(ANSWERS,), rps=200, end_s=42)
    found = cell(verdict_of(Story(base, down(10, 10.15)), tmp_path / "a"), "answers", "chat")
    assert (found.verdict, found.why) == (Word.SURVIVED, "") and found.bad > 10
    long = scenario(faults=(), objectives=(ANSWERS,), rps=200, end_s=64)
    found = cell(verdict_of(Story(long, down(10, 10.15)), tmp_path / "b"), "answers", "chat")
    assert found.verdict is Word.INCONCLUSIVE and "comes in clusters" in found.why


def test_too_few_requests_say_how_much_longer(tmp_path):
    base = scenario(faults=(), objectives=(ANSWERS,), rps=5, end_s=20)
    verdict = verdict_of(Story(base), tmp_path)
    assert (verdict.verdict, verdict.exit_code) == (Word.INCONCLUSIVE, 3)
    assert "more seconds would decide" in cell(verdict, "answers", "chat").why
    assert verdict.reasons[0].startswith("answers is undecided for chat during steady")


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.UNSENT, Outcome.IN_FLIGHT])
def test_unknown_fates_leave_a_cell_at_best_inconclusive(tmp_path, outcome):
    base = scenario(faults=(), objectives=(ANSWERS,))
    one = iter([True])
    story = Story(base, lambda t, k: Fate(outcome) if t > 10 * S and next(one, False) else Fate())
    verdict = verdict_of(story, tmp_path)
    assert verdict.exit_code == 3
    assert any("not known" in c.why for c in verdict.objectives)
    assert {c.verdict for c in verdict.objectives} == {Word.SURVIVED, Word.INCONCLUSIVE}


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.UNSENT, Outcome.IN_FLIGHT])
def test_what_no_objective_counts_must_have_been_delivered_too(tmp_path, outcome):
    """In a phase that nobody judges, or where only rates are: no green without the whole load."""
    goodput = Objective("g", Metric.GOODPUT, 30.0, None, ("chat", "search"), "phase:main")
    phases = (phase("main", 0, 20, 60), phase("after", 20, 24, 60))
    base = scenario(phases=phases, faults=(), objectives=(goodput,))
    assert verdict_of(Story(base), tmp_path / "whole").exit_code == 0
    for where, moment_us in (("inside", 10 * S), ("outside", 22 * S)):
        one = iter([True])

        def fate(t_us, kind, moment_us=moment_us, one=one):
            return Fate(outcome) if t_us > moment_us and next(one, False) else Fate()

        verdict = verdict_of(Story(base, fate), tmp_path / where)
        said = f"the load was not delivered: requests 1 {outcome.replace('_', ' ')}"
        assert (verdict.exit_code, verdict.reasons) == (3, (said,))


def test_what_found_no_connection_was_no_attempt_and_the_target_is_to_blame(tmp_path):
    story = Story(scenario(faults=(), objectives=(ANSWERS,)), down(10, 30, why="refused"))
    sets = story.sets

    def wired(plan, key):
        return not 10 * S <= plan.slices[key.slice][0] < 30 * S

    story.sets = lambda plan: [
        s for s in sets(plan) if s[1].series is not Series.ATTEMPT or wired(plan, s[1])
    ]
    verdict = verdict_of(story, tmp_path)
    assert verdict.load.attempts < verdict.load.sent
    assert (verdict.verdict, verdict.exit_code) == (Word.FAILED, 1)


def test_answers_cannot_be_more_than_attempts(tmp_path):
    base = scenario(faults=(), objectives=(Objective(
        "calm", Metric.AMPLIFICATION, 1.5, None, ("chat", "search"), "run"),))  # fmt: skip
    story = Story(base)
    sets = story.sets
    story.sets = lambda plan: [s for s in sets(plan) if s[1].series is not Series.ATTEMPT]
    verdict = verdict_of(story, tmp_path)
    assert verdict.exit_code == 3
    assert "answered in only 0 attempts" in verdict.reasons[0]


def test_a_hundred_streams_are_no_evidence_of_gaps_that_few_of_them_had(tmp_path):
    objective = Objective("i", Metric.ITL, 50 * MS, 0.9, ("chat",), "run")
    base = scenario(faults=(), objectives=(objective,))
    story = Story(base, lambda t, k: Fate(gaps=(MS,) if t % 100 == 0 else ()))
    found = cell(verdict_of(story, tmp_path), "i", "chat")
    assert found.n == Record.load(tmp_path / "run").table.total(Series.ITL) < 29
    assert found.verdict is Word.INCONCLUSIVE


def test_a_virtual_run_is_simulated_though_nothing_was_broken_in_it(tmp_path):
    calm = scenario(faults=(), objectives=(ANSWERS,))
    for host, grade in (("virtual", "simulated"), ("real", "real")):
        assert verdict_of(Story(calm, host=host), tmp_path / host).grade == grade
    asked = Story(calm, host="virtual", asked={"require_grade": "no such grade"})
    assert verdict_of(asked, tmp_path / "asked").exit_code == 3


# ------------------------------------------------------------------------- proofs


def healed_early(story, by_us):
    """What the events of a run say whose faults all ended so much before their time."""
    events = story._events
    heal_us = story.plan.faults[0].heal_us

    def moved(t_us, name, fields):
        after = name in {"fault_healed", "heal_proven"} or fields.get("stage") == "after"
        if not after:
            return t_us, name, fields
        times = {key: fields[key] - by_us for key in ("began_us", "ended_us") if key in fields}
        return t_us - by_us, name, {**fields, **times}

    story._events = lambda plan: [
        moved(*event) for event in events(plan)
        if not (event[2].get("stage") == "during" and event[0] >= heal_us - by_us)
    ]  # fmt: skip
    return story


def test_a_window_that_outlives_its_fault_is_not_survived(tmp_path):
    long = without(scenario(), "back")
    found = verdict_of(healed_early(Story(long), 5 * S), tmp_path / "early")
    assert found.faults[0].proof == "it was healed 5.0 s early"
    assert (cell(found, "degrade", "chat").verdict, found.exit_code) == (Word.INCONCLUSIVE, 3)
    assert verdict_of(healed_early(Story(long), 200 * MS), tmp_path / "guard").exit_code == 0
    stopped = healed_early(Story(long, ended="stopped", stopped={"by": "signal"}), 5 * S)
    assert verdict_of(stopped, tmp_path / "stopped").faults[0].proof == "proven"


def seen_no_at(t_s):
    return lambda fault, t_us, stage: "no" if stage == "after" or abs(
        t_us - t_s * S) < 130 * MS else "yes"  # fmt: skip


def unknown_every(n):
    count = iter(range(10**6))
    return lambda fault, t_us, stage: (
        "no" if stage == "after" else "unknown" if next(count) % n == 0 else "yes"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"silent": ("fault_observed",)}, "nobody looked before inject"),
        ({"look": lambda f, t, stage: "no"}, "seen inactive"),
        ({"look": seen_no_at(24)}, "seen inactive at 24"),
        ({"look": unknown_every(4)}, "looks could not tell"),
        ({"before": ("no", "yes", "no")}, "active before inject already"),
        ({"before": ("no", "unknown", "no")}, "baseline before inject is unknown"),
        ({"before": ()}, "nobody looked before inject"),
        ({"inject_error": "no such link"}, "inject failed: no such link"),
        ({"silent": ("fault_injected",)}, "never injected"),
    ],
)
def test_a_fault_that_is_not_proven_is_never_survived(tmp_path, change, says):
    verdict = verdict_of(Story(scenario(), **change), tmp_path)
    assert says in verdict.faults[0].proof
    for window in ("fault:outage", "recovery:outage"):
        assert {c.verdict for c in cells(verdict, window).values()} == {Word.INCONCLUSIVE}
    assert {c.verdict for c in cells(verdict, "steady").values()} == {Word.SURVIVED}
    assert verdict.exit_code == 3


def test_guards_and_a_few_unknown_looks_do_not_spoil_a_proof(tmp_path):
    for number, look in enumerate([unknown_every(6), seen_no_at(20.1)]):
        verdict = verdict_of(Story(scenario(), look=look), tmp_path / str(number))
        assert (verdict.faults[0].proof, verdict.exit_code) == ("proven", 0)


def test_a_watch_with_a_hole_proves_nothing(tmp_path):
    story = Story(scenario())
    events = story._events
    story._events = lambda plan: [
        e for e in events(plan)
        if not (e[1] == "fault_observed" and e[2]["stage"] == "during" and 22 * S < e[0] < 26 * S)
    ]  # fmt: skip
    assert "nobody looked for 4.2 s" in verdict_of(story, tmp_path).faults[0].proof


def long_looks(take_us, from_us):
    """In a story's place: looks that take so long, one after the other, and none before then."""

    def swap(events):
        looks = [e for e in events if e[1] == "fault_observed" and e[2]["stage"] == "during"]
        ends = range(from_us + take_us, 28 * S + 1, take_us)
        long = [(t, looks[0][1], {**looks[0][2], "began_us": t - take_us}) for t in ends]
        return [e for e in events if e not in looks] + long

    return swap


@pytest.mark.parametrize(("take_s", "from_s", "says"), [
    (4, 20, "proven"),  # 20..24..28: somebody looked all the time
    (3, 20, "proven"),  # 20..23..26
    (3, 24, "nobody looked for 3.8 s"),  # from 20.25, the end of the guard
    (5, 20, "nobody looked for 3.0 s"),  # 25..28
])  # fmt: skip
def test_who_takes_long_to_look_is_looking_all_the_while(tmp_path, take_s, from_s, says):
    story = Story(scenario())
    events = story._events
    swap = long_looks(take_s * S, from_s * S)
    story._events = lambda plan: sorted(swap(list(events(plan))), key=lambda e: e[:2])
    assert says in verdict_of(story, tmp_path).faults[0].proof


def twofold(story, of_second):
    """Every fault hits two things. ``of_second(t_us, name, fields)`` → its event, or None."""
    events = story._events

    def both(plan):
        for t_us, name, fields in events(plan):
            yield t_us, name, fields
            if "injection" in fields:
                second = {**fields, "injection": f"{fields['fault']}#1"}
                if (found := of_second(t_us, name, second)) is not None:
                    yield found

    story._events = both
    return story


def as_the_first(t_us, name, fields):
    return t_us, name, fields


def without_event(wanted):
    return lambda t_us, name, fields: None if name == wanted else (t_us, name, fields)


def unseen(t_us, name, fields):
    """It was never seen to bite."""
    during = fields.get("stage") == "during"
    return t_us, name, {**fields, "active": "no"} if during else fields


@pytest.mark.parametrize(
    ("of_second", "proof", "heal_proof", "code"),
    [
        (as_the_first, "proven", "proven", 0),
        (unseen, "seen inactive", "proven", 3),
        (without_event("fault_injected"), "outage#1 was never injected", "proven", 3),
        (without_event("heal_proven"), "proven", "outage#1: no heal was recorded", 5),
    ],
)
def test_each_thing_that_a_fault_hits_needs_a_proof_of_its_own(
    tmp_path, of_second, proof, heal_proof, code
):
    verdict = verdict_of(twofold(Story(scenario()), of_second), tmp_path)
    fault = verdict.faults[0]
    assert proof in fault.proof and heal_proof in fault.heal_proof
    assert verdict.exit_code == code


def test_a_fault_is_healed_when_the_last_of_its_things_is(tmp_path):
    def later(t_us, name, fields):
        after = name in {"fault_healed", "heal_proven"} or fields.get("stage") == "after"
        if after and "ended_us" in fields:
            fields = {**fields, "ended_us": fields["ended_us"] + S}
        return t_us + S * after, name, fields

    fault = verdict_of(twofold(Story(scenario()), later), tmp_path / "late").faults[0]
    assert fault.healed_at_s == pytest.approx(29.02)
    never = twofold(Story(scenario()), without_event("fault_healed"))
    assert verdict_of(never, tmp_path / "never").faults[0].healed_at_s is None


def test_a_roll_is_in_place_with_its_first_and_late_by_nothing_else(tmp_path):
    """What it hits later is planned for later."""

    def later(t_us, name, fields):
        if name == "fault_injected":
            moved = {key: fields[key] + 3 * S for key in ("planned_us", "began_us", "ended_us")}
            return t_us + 3 * S, name, {**fields, **moved}
        return t_us + 3 * S * (fields.get("stage") == "during"), name, fields

    verdict = verdict_of(twofold(Story(scenario(faults=(KILL,))), later), tmp_path)
    assert (verdict.faults[0].proof, verdict.exit_code) == ("proven", 0)
    assert verdict.faults[0].injected_at_s == pytest.approx(20.02)


def test_the_pool_of_repeats_is_proven_if_each_of_them_is(tmp_path):
    thrice = [
        replace(OUTAGE, name=f"outage#{n}", at_us=(5 + 15 * n) * S, for_us=2 * S, pool="outage")
        for n in (1, 2, 3)
    ]
    base = scenario(faults=thrice, objectives=(ANSWERS, FAST, DEGRADE), end_s=70)
    sound = verdict_of(Story(base), tmp_path / "sound")
    assert cell(sound, "degrade", "chat", "fault:outage").verdict is Word.SURVIVED
    last = Story(base, look=lambda fault, t, stage: "no" if fault == "outage#3" else (
        "no" if stage == "after" else "yes"))  # fmt: skip
    verdict = verdict_of(last, tmp_path / "last")
    pooled = cell(verdict, "degrade", "chat", "fault:outage")
    assert pooled.verdict is Word.INCONCLUSIVE
    assert pooled.why.startswith("outage#3 was not proven active")


def test_every_heal_that_was_tried_must_have_been_its_own(tmp_path):
    story = Story(scenario())
    events = story._events
    story._events = lambda plan: [
        again for t_us, name, fields in events(plan) for again in (
            [(t_us - 1, name, {**fields, "by_own_heal": False})] if name == "heal_proven" else []
        ) + [(t_us, name, fields)]
    ]  # fmt: skip
    verdict = verdict_of(story, tmp_path)
    assert verdict.exit_code == 5
    assert "its own heal did not do it" in verdict.reasons[0]


def test_what_was_seen_before_a_one_shot_is_not_its_doing(tmp_path):
    story = Story(scenario(faults=(KILL,)))
    events = story._events

    def early(t_us, name, fields):
        during = fields.get("stage") == "during"
        return (t_us - S, name, fields) if during else (t_us, name, fields)

    story._events = lambda plan: [early(*event) for event in events(plan)]
    verdict = verdict_of(story, tmp_path)
    assert (verdict.faults[0].proof, verdict.exit_code) == ("it was never seen to bite", 3)


def test_an_unproven_fault_does_not_excuse_failures(tmp_path):
    story = Story(scenario(), down(20, 28), look=lambda f, t, stage: "no")
    verdict = verdict_of(story, tmp_path)
    assert verdict.exit_code == 1
    assert "not proven active" in cell(verdict, "degrade", "chat").why


def test_a_one_shot_is_proven_by_one_yes(tmp_path):
    story = Story(scenario(faults=(KILL,)))
    verdict = verdict_of(story, tmp_path)
    assert (verdict.faults[0].proof, verdict.faults[0].heal_proof, verdict.exit_code) == (
        "proven", "none (one-shot)", 0,
    )  # fmt: skip
    story = Story(scenario(faults=(KILL,)), look=lambda f, t, stage: "no")
    verdict = verdict_of(story, tmp_path / "b")
    assert (verdict.faults[0].proof, verdict.exit_code) == ("it was never seen to bite", 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"proven": False}, "by hand: rm -rf fault"),
        ({"own": False}, "its own heal did not do it"),
        ({"silent": ("heal_proven",)}, "no heal was recorded"),
        ({"look": lambda f, t, stage: "yes"}, "last look after heal"),
        ({"unproven_heals": [{"fault": "outage", "by_hand": "kill 7"}]}, "by hand: kill 7"),
    ],
)
def test_a_heal_that_is_not_proven_is_exit_5(tmp_path, change, says):
    verdict = verdict_of(Story(scenario(), down(20, 40), **change), tmp_path)
    assert (verdict.verdict, verdict.exit_code) == (Word.INCONCLUSIVE, 5)
    assert verdict.reasons[0].startswith("the heal of outage is not proven")
    assert says in verdict.reasons[0]
    assert cell(verdict, "back").verdict is Word.INCONCLUSIVE
    assert verdict.faults[0].recovered_after_s is None


def test_what_went_with_the_target_needs_no_hand_any_more(tmp_path):
    left = [{"fault": "outage", "by_hand": "", "why": "it went with the target"}]
    verdict = verdict_of(Story(scenario(), proven=False, unproven_heals=left), tmp_path)
    assert verdict.exit_code == 5
    assert "it went with the target" in verdict.reasons[0]
    assert "rm -rf fault" not in verdict.reasons[0]


def test_the_proof_of_a_heal_is_owed_even_if_inject_failed(tmp_path):
    story = Story(scenario(), inject_error="half done", silent=("heal_proven",))
    assert verdict_of(story, tmp_path).exit_code == 5


def test_a_heal_is_owed_of_what_an_agent_died_over(tmp_path):
    """Its ledger told of it, its events did not: there may be a half done inject."""
    left = [{"fault": "outage", "by_hand": "tc qdisc del", "why": "the agent died"}]
    story = Story(
        scenario(), ended="agent_died", unproven_heals=left,
        silent=("fault_injected", "fault_healed", "heal_proven"),
    )  # fmt: skip
    verdict = verdict_of(story, tmp_path)
    assert verdict.exit_code == 5
    assert "half done; by hand: tc qdisc del" in verdict.reasons[0]


def test_what_a_dead_agents_ledger_cannot_tell_may_still_be_on(tmp_path):
    left = [{"fault": "", "why": "its ledger: line 3 cannot be read", "by_hand": "look at it"}]
    for faults in ((OUTAGE,), ()):
        base = scenario(faults=faults, objectives=(ANSWERS,))
        story = Story(base, ended="agent_died", unproven_heals=left)
        verdict = verdict_of(story, tmp_path / str(len(faults)))
        assert verdict.exit_code == 5
        assert verdict.reasons[0].endswith("line 3 cannot be read; by hand: look at it")


# ------------------------------------------------------------------------- recovery


def test_the_limit_of_a_recovery_is_not_rounded(tmp_path):
    slow = replace(BACK, name="slow", limit=8 * S)
    base = scenario(objectives=(ANSWERS, replace(BACK, limit=4.5 * S), slow), end_s=60)
    verdict = verdict_of(Story(base, down(20, 33)), tmp_path)
    found, patient = cell(verdict, "back"), cell(verdict, "slow")
    assert found.observed == patient.observed == pytest.approx(4.92)
    assert (found.verdict, patient.verdict) == (Word.FAILED, Word.SURVIVED)


def test_one_bad_request_too_many_is_not_yet_recovered(tmp_path):
    """96 searches in four seconds may have 0.96 bad ones: one is too many."""
    one = iter([True])

    def fate(t_us, kind):
        hit = kind == "search" and t_us > 30.5 * S and next(one, False)
        return Fate(Outcome.FAILED, why="reset") if hit else Fate()

    verdict = verdict_of(Story(scenario(end_s=60), fate), tmp_path)
    assert cell(verdict, "back").observed == pytest.approx(2.92)


@pytest.mark.parametrize(
    ("until_s", "recovered_s", "word"),
    [
        (27, 0.0, Word.SURVIVED),
        (29, 0.92, Word.SURVIVED),  # proven at 28.08
        (32, 3.92, Word.SURVIVED),
        (34, 5.92, Word.SURVIVED),
        (36, "inf", Word.FAILED),
        (60, "inf", Word.FAILED),
    ],
)
def test_recovered_after_is_when_it_holds_for_good(tmp_path, until_s, recovered_s, word):
    base = without(scenario(end_s=60), "degrade")
    verdict = verdict_of(Story(base, down(20, until_s)), tmp_path)
    found = cell(verdict, "back")
    assert found.verdict is word
    if recovered_s == "inf":
        assert found.observed == "inf"
        assert verdict.faults[0].recovered_after_s is None
    else:
        assert found.observed == pytest.approx(recovered_s, abs=0.21)
    assert verdict.faults[0].error_window_s == pytest.approx(min(until_s, 38) - 20, abs=0.01)


def test_a_relapse_puts_recovery_off(tmp_path):
    base = without(scenario(), "degrade")

    def fate(t_us, kind):
        return Fate(Outcome.FAILED, why="x") if 20 * S <= t_us < 29 * S or (
            32 * S <= t_us < 33 * S) else Fate()  # fmt: skip

    found = cell(verdict_of(Story(base, fate), tmp_path), "back")
    assert (found.verdict, found.observed) == (Word.SURVIVED, pytest.approx(4.92, abs=0.01))


def test_slow_answers_are_no_recovery(tmp_path):
    """Every answer is ok, yet the steady ttft objective is still broken."""
    base = without(scenario(), "degrade")
    story = Story(base, lambda t, k: Fate(ttft=900 * MS, after=S) if t > 20 * S else Fate())
    verdict = verdict_of(story, tmp_path)
    assert cell(verdict, "back").verdict is Word.FAILED
    (fault,) = verdict.faults
    assert fault.metastable and fault.note == ""
    late = Story(base, lambda t, k: replace(story.fate(t, k), lag=15 * MS))
    assert not verdict_of(late, tmp_path / "late").faults[0].metastable  # the harness may be why
    assert fault.residual == pytest.approx(0.5, abs=0.5)


def test_absorbed_while_the_fault_is_on(tmp_path):
    verdict = verdict_of(Story(scenario(), down(20, 22)), tmp_path)
    assert verdict.faults[0].absorbed_after_s == pytest.approx(2.0)
    assert verdict.faults[0].recovered_after_s == pytest.approx(0.17, abs=0.01)
    late = verdict_of(Story(scenario(), down(20, 26)), tmp_path / "b")
    assert late.faults[0].absorbed_after_s is None


def test_a_one_shot_recovers_from_its_inject(tmp_path):
    base = without(scenario(faults=(KILL,)), "degrade")
    verdict = verdict_of(Story(base, down(20, 23)), tmp_path)
    assert cell(verdict, "back").observed == pytest.approx(2.98)
    assert verdict.faults[0].absorbed_after_s is None


def test_a_short_watch_calls_nothing_metastable(tmp_path):
    """Seen for 6 s, and twice `stable_for` is 8 s."""
    base = scenario(objectives=(ANSWERS, replace(BACK, limit=2 * S)))
    verdict = verdict_of(Story(base, down(20, 60)), tmp_path)
    assert cell(verdict, "back").verdict is Word.FAILED
    assert not verdict.faults[0].metastable


def test_too_few_requests_leave_recovery_undecided(tmp_path):
    base = without(scenario(rps=10), "degrade")  # 16 searches in 4 s
    verdict = verdict_of(Story(base), tmp_path)
    found = cell(verdict, "back")
    assert found.verdict is Word.INCONCLUSIVE and "fewer than 30" in found.why
    assert verdict.faults[0].recovered_after_s is None


def test_not_recovered_on_a_risen_ramp_is_not_metastable(tmp_path):
    phases = (phase("calm", 0, 29, 60), phase("up", 29, 60, 60, 200))
    base = without(scenario(phases=phases), "degrade")
    verdict = verdict_of(Story(base, down(20, 60)), tmp_path)
    (fault,) = verdict.faults
    assert not fault.metastable
    assert fault.note.startswith("not recovered, load rose ")
    assert cell(verdict, "back").why == fault.note


def test_overlapping_faults_recover_together_from_the_last_heal(tmp_path):
    base = without(scenario(faults=(OUTAGE, SLOW)), "degrade")
    verdict = verdict_of(Story(base, down(20, 34)), tmp_path)
    for name in ("outage", "slow"):
        found = cell(verdict, "back", window=f"recovery:{name}")
        assert found.observed == pytest.approx(34 - 32.08, abs=0.01)
    base = scenario(faults=(OUTAGE, SLOW))
    other = verdict_of(Story(base), tmp_path / "b")
    assert cell(other, "degrade", "chat", "fault:outage").with_faults == ("slow",)


def test_an_unproven_heal_of_a_neighbour_stops_the_recovery_clock(tmp_path):
    story = Story(scenario(faults=(OUTAGE, SLOW)))
    story.unproven_heals = [{"fault": "slow", "why": "late"}]
    verdict = verdict_of(story, tmp_path)
    assert verdict.exit_code == 5
    assert "the heal of slow" in cell(verdict, "back", window="recovery:outage").why


def test_a_late_cut_makes_transition_slices(tmp_path):
    on_time = verdict_of(Story(scenario()), tmp_path / "a")
    late = verdict_of(Story(scenario(), down(20, 21), inject_late_us=S), tmp_path / "b")
    n = [cell(v, "degrade", "chat").n for v in (on_time, late)]
    assert n[0] - 55 < n[1] < n[0] - 20
    assert cell(late, "degrade", "chat").bad == 0  # what broke before it was on is not its doing
    assert late.faults[0].injected_at_s == 21


# ------------------------------------------------------------------------- baseline, harness


def test_an_undecided_baseline_leaves_faults_undecided(tmp_path):
    phases = (phase("warm", 0, 18, 60, warm_up=True), phase("main", 18, 38, 60))
    verdict = verdict_of(Story(scenario(phases=phases)), tmp_path)
    assert verdict.exit_code == 3
    found = cell(verdict, "degrade", "chat")
    assert found.verdict is Word.INCONCLUSIVE and "baseline" in found.why
    broken = verdict_of(Story(scenario(phases=phases), down(20, 28)), tmp_path / "b")
    assert cell(broken, "degrade", "chat").verdict is Word.FAILED
    assert broken.exit_code == 1


def test_a_broken_baseline_fails(tmp_path):
    verdict = verdict_of(Story(scenario(), down(5, 8)), tmp_path)
    assert verdict.exit_code == 1
    assert cell(verdict, "answers", "chat").verdict is Word.FAILED


def test_a_late_harness_takes_back_even_a_red(tmp_path):
    story = Story(
        scenario(), lambda t, k: Fate(Outcome.FAILED, why="x", lag=15 * MS if t % 30 == 0 else 50)
    )
    verdict = verdict_of(story, tmp_path)
    assert (verdict.verdict, verdict.exit_code) == (Word.INCONCLUSIVE, 3)
    assert verdict.reasons[0].startswith("the harness was the bottleneck: 3.")
    sent_rps = Story(scenario()).plan.planned[1]
    assert f"it sent {sum(sent_rps) / 48:.4g}/s of" in verdict.reasons[0]
    assert any(c.verdict is Word.FAILED for c in verdict.objectives)


def test_guilt_by_lateness_tells_the_rate_that_was_kept_up_with(tmp_path):
    phases = (phase("calm", 0, 20, 30), phase("busy", 20, 50, 90))
    stalls = ((25 * S, Series.STALL, 40 * MS), (26 * S, Series.PREEMPTED, 250 * MS))
    story = Story(
        scenario(phases), lambda t, k: Fate(lag=15 * MS if t >= 20 * S else 50), harness=stalls
    )
    verdict = verdict_of(story, tmp_path)
    assert verdict.exit_code == 3
    told = re.search(r"it kept up with ([\d.]+)/s; its loop", verdict.reasons[0])
    assert told and 30 <= float(told[1]) <= 50  # the fullest second of the calm phase
    assert "stood still 2 times for up to 250" in verdict.reasons[0]
    assert "1 of them while others had its core" in verdict.reasons[0]
    found = verdict.load.stalls
    assert (found.over_10_ms, found.over_100_ms, found.preempted) == (2, 1, 1)
    assert found.longest_ms == pytest.approx(250, rel=0.002)


def test_a_harness_that_never_kept_up_says_so(tmp_path):
    story = Story(scenario(), lambda t, k: Fate(lag=15 * MS))
    assert "it kept up in no second" in verdict_of(story, tmp_path).reasons[0]


@pytest.mark.parametrize(("every", "code"), [(90, 3), (110, 0)])
def test_one_in_a_hundred_sent_late_is_the_line(tmp_path, every, code):
    count = iter(range(10**6))
    story = Story(scenario(), lambda t, k: Fate(lag=50 if next(count) % every else 15 * MS))
    assert verdict_of(story, tmp_path).exit_code == code


@pytest.mark.parametrize(("late", "code"), [(4, 0), (5, 3)])
def test_in_a_short_phase_five_late_requests_are_many(tmp_path, late, code):
    base = scenario((phase("main", 0, 40, 60), phase("short", 40, 45, 60)), faults=(), end_s=45,
                    objectives=(ANSWERS,))  # fmt: skip
    left = iter(range(late))
    story = Story(
        base, lambda t, k: Fate(lag=15 * MS if t > 41 * S and next(left, None) is not None else 50)
    )
    assert verdict_of(story, tmp_path).exit_code == code


def test_what_was_sent_must_come_to_an_end(tmp_path):
    story = Story(scenario(), down(10, 10.5, Outcome.TIMED_OUT))
    sets = story.sets
    story.sets = lambda plan: [s for s in sets(plan) if s[1].outcome != "timed_out"]
    verdict = verdict_of(story, tmp_path)
    assert verdict.exit_code == 3
    assert re.search(r"\d+ sent, yet \d+ came to an end", verdict.reasons[0])


def test_one_late_gap_in_many_is_one_bad_stream(tmp_path):
    """A share of a stream is rounded up: what is bad is never nothing."""
    objective = Objective("i", Metric.ITL, 50 * MS, 0.9, ("chat",), "run")
    base = scenario(faults=(), objectives=(objective,))
    one = iter([True])
    slow, quick = (200 * MS, *(5 * MS,) * 9), (5 * MS,) * 10
    story = Story(
        base, lambda t, k: Fate(gaps=slow if k == "chat" and t > 9 * S and next(one, 0) else quick)
    )
    assert cell(verdict_of(story, tmp_path), "i", "chat").bad == 1


def test_one_hiccup_is_no_bottleneck(tmp_path):
    story = Story(scenario(), lambda t, k: Fate(lag=50 * MS if 10 * S < t < 10.3 * S else 50))
    assert verdict_of(story, tmp_path).exit_code == 0


@pytest.mark.parametrize(
    ("seconds", "code"), [((), 0), ((10,), 0), ((10, 40), 0), ((10, 11, 12), 3), ((21, 23), 3)]
)
def test_starved_seconds_tell_a_slow_harness_from_a_slow_target(tmp_path, seconds, code):
    harness = tuple((t * S, Series.STARVED, 30) for t in seconds)
    harness += tuple((t * S, Series.IDLE, 800 * MS) for t in range(50))
    story = Story(scenario(), lambda t, k: Fate(wait=10 * MS), harness=harness)
    verdict = verdict_of(story, tmp_path)
    assert verdict.exit_code == code
    assert verdict.load.starved_s == len(seconds)
    if code:
        assert "it kept up with" in verdict.reasons[0]  # in the seconds that were not starved


def test_errors_of_our_own_host_are_never_the_targets(tmp_path):
    verdict = verdict_of(Story(scenario(), down(10, 11, why="client:EMFILE")), tmp_path)
    assert verdict.exit_code == 3
    assert "could not send" in verdict.reasons[0] and "EMFILE" in verdict.reasons[0]


def test_ports_that_ran_out_are_explained(tmp_path):
    verdict = verdict_of(Story(scenario(), down(10, 11, why="client:no_ports")), tmp_path)
    assert verdict.exit_code == 3
    assert "no local port was free" in verdict.reasons[0]
    assert "net.ipv4.ip_local_port_range" in verdict.reasons[0]


def test_books_that_do_not_balance_are_the_harness_fault(tmp_path):
    verdict = verdict_of(Story(scenario(), mislay=3), tmp_path)
    assert verdict.exit_code == 3
    assert "books do not balance" in verdict.reasons[0]
    load = verdict.load
    assert load.planned == load.sent + 3


# ------------------------------------------------------------------------- ways to end


@pytest.mark.parametrize(
    ("change", "code", "word", "says"),
    [
        ({"ended": "target_unhealthy", "detail": "gateway never became healthy"}, 3,
         Word.INCONCLUSIVE, "gateway never became healthy"),
        ({"ended": "agent_died"}, 3, Word.INCONCLUSIVE, "the chaos agent died"),
        ({"ended": "load_died"}, 3, Word.INCONCLUSIVE, "the load process died"),
        ({"ended": "stopped", "stopped": {"by": "stop_if", "rule": "meltdown"}}, 4,
         Word.FAILED, "stopped by meltdown"),
        ({"ended": "stopped", "stopped": {"by": "signal", "signal": "SIGINT"}}, 130,
         Word.INCONCLUSIVE, "interrupted by SIGINT"),
        ({"ended": "stopped", "stopped": {"by": "signal", "signal": "SIGTERM"}}, 143,
         Word.INCONCLUSIVE, "interrupted by SIGTERM"),
        ({"ended": "stopped"}, 3, Word.INCONCLUSIVE, "the run was stopped"),
    ],
)  # fmt: skip
def test_how_a_run_ended_decides_before_what_it_measured(tmp_path, change, code, word, says):
    verdict = verdict_of(Story(scenario(), **change), tmp_path)
    assert (verdict.exit_code, verdict.verdict) == (code, word)
    assert verdict.reasons[0] == says


@pytest.mark.parametrize(("ended", "says"), [("refused", "no verdict"), ("party", "does not know")])
def test_runs_that_get_no_verdict(tmp_path, ended, says):
    with pytest.raises(RecordError, match=says):
        verdict_of(Story(scenario(), ended=ended, detail="no such host"), tmp_path)


def test_a_scenario_of_another_run_is_refused(tmp_path):
    record = Story(scenario()).record(tmp_path / "run")
    with pytest.raises(RecordError, match="other faults"):
        judge(record, scenario(faults=(KILL,)))
    stranger = replace(ANSWERS, of=("upload",))
    with pytest.raises(RecordError, match="'upload'"):
        judge(record, scenario(objectives=(stranger,)))


def test_grades(tmp_path):
    assert verdict_of(Story(scenario(), host="virtual"), tmp_path / "v").grade == "simulated"
    base = scenario()
    gpu = replace(base.target.services["inference"], gpu="simulated")
    services = {**base.target.services, "inference": gpu}
    base = replace(base, target=replace(base.target, services=services))
    verdict = verdict_of(Story(base), tmp_path / "g")
    assert (verdict.grade, verdict.faults[0].grade) == ("simulated", "real")


# ------------------------------------------------------------------------- properties

RANK = {Word.SURVIVED: 0, Word.INCONCLUSIVE: 1, Word.FAILED: 2}
SMALL = scenario(
    phases=(phase("main", 0, 40, 30),),
    faults=(replace(OUTAGE, at_us=10 * S, for_us=6 * S),),
    objectives=(ANSWERS, FAST, DEGRADE, BACK),
)
fates = st.sampled_from([
    Fate(), Fate(ttft=900 * MS, after=S), Fate(Outcome.FAILED, why="reset"), Fate(Outcome.EXPIRED),
])  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    start=st.integers(0, 38), length=st.integers(0, 10), fate=fates, every=st.integers(1, 30),
    victim=st.integers(0, 1100), worse=st.sampled_from(
        [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.ABANDONED, Outcome.EXPIRED]),
)  # fmt: skip
def test_a_bad_event_never_improves_a_verdict(
    tmp_path_factory, start, length, fate, every, victim, worse
):
    """Take any run, let one more request go bad: no cell gets better, nor does the run."""

    def before(t_us, kind):
        hit = start * S <= t_us < (start + length) * S and t_us % every == 0
        return fate if hit else Fate()

    def after():
        count = iter(range(10**9))
        return lambda t_us, kind: (
            Fate(worse, why="reset") if next(count) == victim else before(t_us, kind)
        )

    folder = tmp_path_factory.mktemp("property")
    verdicts = [
        judge(Story(SMALL, how).record(folder / name), SMALL)
        for name, how in (("before", before), ("after", after()))
    ]
    for old, new in zip(verdicts[0].objectives, verdicts[1].objectives, strict=True):
        assert RANK[new.verdict] >= RANK[old.verdict], (old, new)
    assert RANK[verdicts[1].verdict] >= RANK[verdicts[0].verdict]


@pytest.mark.parametrize(("late_us", "word"), [(2 * S, Word.SURVIVED), (6 * S, Word.INCONCLUSIVE)])
def test_a_fault_that_came_for_its_last_moments_proves_nothing(tmp_path, late_us, word):
    verdict = verdict_of(Story(scenario(rps=600), inject_late_us=late_us), tmp_path)
    assert verdict.verdict is word
    if word is Word.INCONCLUSIVE:
        assert verdict.faults[0].proof == "it was in place 6.0 s late, of the 8 s planned"
        assert cell(verdict, "degrade", "chat").verdict is Word.INCONCLUSIVE


def test_a_late_heal_takes_no_time_from_the_recovery_limit(tmp_path):
    """Healed 2.9 s late and back 5 s after that: the watch ended before the limit of 6 s did."""
    story = Story(scenario(rps=600), down(20, 35.5), heal_late_us=2_900 * MS)
    back = cell(verdict_of(story, tmp_path), "back")
    assert back.verdict is Word.INCONCLUSIVE
    assert back.observed is None
    assert back.why.startswith("not back 3.") and "where the watch ended" in back.why


def test_a_limit_beyond_the_watch_cannot_be_broken_by_it(tmp_path):
    story = Story(scenario(rps=600), down(20, 36))
    assert cell(verdict_of(story, tmp_path), "back").verdict is Word.FAILED
    raised = replace(BACK, limit=60 * S)
    patient = replace(story.scenario, objectives={**story.scenario.objectives, "back": raised})
    again = judge(Record.load(tmp_path / "run"), patient)
    assert cell(again, "back").verdict is Word.INCONCLUSIVE


def test_a_required_grade_is_a_gap_of_its_own_and_takes_no_red(tmp_path):
    story = Story(scenario(), asked={"require_grade": "induced"}, host="virtual")
    verdict = verdict_of(story, tmp_path)
    assert (verdict.verdict, verdict.exit_code) == (Word.INCONCLUSIVE, 3)
    assert verdict.reasons == ("its grade is simulated, and induced is required (--require-grade)",)
    red = Story(scenario(), down(0, 50), asked={"require_grade": "induced"}, host="virtual")
    assert verdict_of(red, tmp_path / "red").exit_code == 1
    met = Story(scenario(), asked={"require_grade": "induced"})
    assert verdict_of(met, tmp_path / "met").exit_code == 0


@pytest.mark.parametrize(("asked", "code"), [("fail", 1), ("pass", 0)])
def test_an_inconclusive_run_may_exit_as_asked_and_stays_inconclusive(tmp_path, asked, code):
    def in_doubt(fault, t_us, stage):
        return "unknown" if stage == "during" else "no"

    story = Story(scenario(), look=in_doubt, asked={"inconclusive": asked})
    verdict = verdict_of(story, tmp_path)
    assert (verdict.verdict, verdict.exit_code) == (Word.INCONCLUSIVE, code)
    assert verdict.reasons[-1] == f"exit {code}, as --inconclusive {asked} asks"
