"""Probe findings and scrapes, on runs with known truth (docs/decisions/0004)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import ANSWERS, MS, OUTAGE, S, Story, findings, scenario, scrapes

from survive.errors import RecordError
from survive.judge.judge import judge
from survive.judge.verdict import Word
from survive.scenario.model import Metric, Objective, Probe

DENIED = Objective("refuses", Metric.DENIED, 1.0, of=("stranger",), during="run")
STRANGER = Probe("stranger", Metric.DENIED, 500 * MS)
END_S = 50


def with_probes(*probes, objectives, **more):
    base = scenario(objectives=(ANSWERS, *objectives), **more)
    return replace(base, probes={probe.name: probe for probe in probes})


def judged(base, probed, tmp_path, **story):
    made = Story(base, probed=tuple(probed), **story)
    verdict = judge(made.record(tmp_path / "run"), base)
    return verdict, {(c.name, c.request, c.window): c for c in verdict.objectives}


def stranger(judge_at=lambda t_us: True):
    return findings("stranger", "denied", 500, END_S, judge_at)


def test_every_call_refused_survives_a_limit_of_all(tmp_path):
    base = with_probes(STRANGER, objectives=(DENIED,))
    verdict, cells = judged(base, stranger(), tmp_path)
    cell = cells["refuses", "stranger", "run"]
    assert (verdict.exit_code, cell.verdict, cell.n, cell.bad) == (0, Word.SURVIVED, 96, 0)
    assert (cell.metric, cell.unit, cell.limit, cell.bound) == ("denied", "share", 1.0, "min")
    assert cell.observed == 1.0 and 0.95 < cell.low < 1


def test_one_admitted_call_is_one_too_many_and_says_what_happened(tmp_path):
    base = with_probes(STRANGER, objectives=(DENIED,))
    at = 30 * S + 250 * MS
    verdict, cells = judged(base, stranger(lambda t: t != at), tmp_path)
    cell = cells["refuses", "stranger", "run"]
    assert (verdict.exit_code, cell.verdict, cell.bad) == (1, Word.FAILED, 1)
    assert cell.why == "it was not so"


def test_fewer_than_59_good_ones_prove_nothing(tmp_path):
    objective = replace(DENIED, during="each fault")
    base = with_probes(STRANGER, objectives=(objective,))
    verdict, cells = judged(base, stranger(), tmp_path)
    cell = cells["refuses", "stranger", "fault:outage"]
    assert (verdict.exit_code, cell.verdict, cell.n) == (3, Word.INCONCLUSIVE, 16)
    assert "59 needed" in cell.why


def test_findings_of_which_nothing_can_be_said_are_neither_good_nor_bad(tmp_path):
    base = with_probes(STRANGER, objectives=(DENIED,))
    _, cells = judged(base, stranger(lambda t: None if t < 30 * S else True), tmp_path)
    cell = cells["refuses", "stranger", "run"]
    assert (cell.verdict, cell.n, cell.bad) == (Word.INCONCLUSIVE, 40, 0)
    assert "56 more could not tell" in cell.why


def test_a_finding_belongs_to_the_fault_whose_inject_it_crossed(tmp_path):
    objective = replace(DENIED, limit=0.9, during="each fault")
    base = with_probes(
        STRANGER, objectives=(objective, replace(DENIED, name="calm", during="steady"))
    )
    crossing = {"start_us": 19_990 * MS, "end_us": 20_010 * MS, "ok": False}
    probed = [*stranger(), {"probe": "stranger", "metric": "denied", "why": "in", **crossing}]
    _, cells = judged(base, probed, tmp_path)
    assert cells["refuses", "stranger", "fault:outage"].bad == 1
    assert cells["calm", "stranger", "steady"].bad == 0


def test_a_leak_is_limited_from_above(tmp_path):
    objective = Objective("secret", Metric.LEAKED, 0.0, of=("ask",), during="run")
    base = with_probes(Probe("ask", Metric.LEAKED, 500 * MS), objectives=(objective,))
    for leak_at, word in ((None, Word.SURVIVED), (10 * S + 250 * MS, Word.FAILED)):
        probed = findings("ask", "leaked", 500, END_S, lambda t, at=leak_at: t != at)
        _, cells = judged(base, probed, tmp_path / str(leak_at))
        cell = cells["secret", "ask", "run"]
        assert (cell.verdict, cell.bound) == (word, "max")
        assert cell.observed == (0 if word is Word.SURVIVED else pytest.approx(1 / 96))


def test_freshness_that_never_comes_is_infinite(tmp_path):
    objective = Objective("fresh", Metric.FRESHNESS, 3 * S, 0.9, ("feed",), "run")
    base = with_probes(Probe("feed", Metric.FRESHNESS, 500 * MS), objectives=(objective,))
    well = findings("feed", "freshness", 500, END_S, value=lambda t: 800 * MS)
    _, cells = judged(base, well, tmp_path / "well")
    cell = cells["fresh", "feed", "run"]
    assert (cell.verdict, cell.observed, cell.limit, cell.unit) == (Word.SURVIVED, 800, 3000, "ms")
    frozen = findings("feed", "freshness", 500, END_S, lambda t: t < 30 * S, lambda t: 800 * MS)
    _, cells = judged(base, frozen, tmp_path / "frozen")
    cell = cells["fresh", "feed", "run"]
    assert (cell.verdict, cell.observed, cell.observed_ok) == (Word.FAILED, "inf", 800)


def test_a_probe_that_stopped_is_the_harnesss_failing_and_takes_a_red_away(tmp_path):
    base = with_probes(STRANGER, objectives=(DENIED,))
    bad = [*stranger(lambda t: False)]
    for story, why in (({"probes_done": False}, "did not report"), ({}, "made 40 of 100")):
        probed = bad if story else bad[:40]
        verdict, _ = judged(base, probed, tmp_path / why, **story)
        assert (verdict.exit_code, verdict.verdict) == (3, Word.INCONCLUSIVE)
        assert why in verdict.reasons[0]


def test_one_probing_may_be_missing_and_no_more(tmp_path):
    base = with_probes(STRANGER, objectives=(DENIED,))
    for made, code in ((99, 0), (98, 3)):
        verdict, _ = judged(base, [*stranger()][:made], tmp_path / str(made))
        assert verdict.exit_code == code


def test_one_probing_told_twice_stands_for_no_other(tmp_path):
    base = with_probes(STRANGER, objectives=(DENIED,))
    half = [*stranger()][:50]
    verdict, _ = judged(base, [*half, *half], tmp_path)
    assert verdict.exit_code == 3 and "made 50 of 100 times" in verdict.reasons[0]


def test_a_finding_that_was_told_of_and_is_not_on_record_is_missed(tmp_path):
    """The probes say how many lines they wrote; a record that lost one is not whole."""
    base = with_probes(STRANGER, objectives=(DENIED,))
    story = Story(base, probed=tuple(stranger()))
    events = story._events
    lost = iter([True])
    story._events = lambda plan: [
        e for e in events(plan)
        if not (e[1] == "probe_seen" and e[2].get("start_us", 0) > 20 * S and next(lost, False))
    ]  # fmt: skip
    verdict = judge(story.record(tmp_path / "run"), base)
    assert verdict.exit_code == 3
    assert verdict.reasons[0] == "the probes told of 100 findings, and 99 are on record"


def test_a_fifth_of_the_scrapes_may_be_missing_and_no_more(tmp_path):
    base = with_probes(objectives=(QUEUE,))
    every = [*scrapes("inference", 50, lambda s: {"queue": 1})]
    for read, guilty in ((40, False), (39, True)):
        twice = [*every[:read], *every[: 50 - read]]  # a second look into a second is no second
        verdict, _ = judged(base, twice, tmp_path / str(read))
        assert any("were read in" in reason for reason in verdict.reasons) is guilty


def test_a_probe_that_no_objective_needs_owes_nothing(tmp_path):
    base = with_probes(STRANGER, objectives=())
    assert judged(base, [*stranger()][:3], tmp_path, probes_done=False)[0].exit_code == 0


QUEUE = Objective("queue", Metric.QUEUE, 20, 0.9, ("inference",), "run", bound="max")
REPLICAS = Objective("replicas", Metric.REPLICAS, 3, None, ("inference",), "run", bound="min")


def test_gauges_are_judged_by_scrapes(tmp_path):
    base = with_probes(objectives=(QUEUE, REPLICAS), end_s=80)
    cases = (
        ("well", lambda s: {"queue": s % 10, "replicas": 3}, Word.SURVIVED, Word.SURVIVED),
        (
            "full",
            lambda s: {"queue": 30 if s % 2 else 1, "replicas": 3},
            Word.FAILED,
            Word.SURVIVED,
        ),
        ("lost", lambda s: {"queue": 2, "replicas": 3 - (s == 40)}, Word.SURVIVED, Word.FAILED),
    )
    for name, values, queue, replicas in cases:
        _, cells = judged(base, scrapes("inference", 80, values), tmp_path / name)
        assert cells["queue", "inference", "run"].verdict is queue, name
        assert cells["replicas", "inference", "run"].verdict is replicas, name
    assert cells["replicas", "inference", "run"].observed == 2
    assert cells["queue", "inference", "run"].unit == ""


def test_metrics_that_nobody_read_are_the_harnesss_failing(tmp_path):
    base = with_probes(objectives=(QUEUE,))
    few = [*scrapes("inference", 50, lambda s: {"queue": 1})][:20]
    verdict, _ = judged(base, few, tmp_path)
    assert verdict.exit_code == 3 and "in 20 of 50 seconds" in verdict.reasons[0]


@pytest.mark.parametrize(
    "broken",
    [
        {"probe": "stranger", "metric": "denied", "start_us": 5, "end_us": 4, "ok": True},
        {"probe": "stranger", "metric": "denied", "start_us": 1, "end_us": 4, "ok": "yes"},
        {"probe": "stranger", "metric": "denied", "start_us": "1", "end_us": 4, "ok": True},
        {"probe": "stranger", "metric": "latency", "start_us": 1, "end_us": 4, "ok": True},
        {"probe": "stranger", "metric": "leaked", "start_us": 1, "end_us": 4, "ok": True},
        {"probe": None, "metric": "denied", "start_us": 1, "end_us": 4, "ok": True},
        {"probe": "stranger", "metric": "denied", "start_us": 1, "end_us": 4, "ok": True,
         "value_us": -3},
        {"probe": "scrape", "service": "", "start_us": 1, "values": {}},
        {"probe": "scrape", "service": "inference", "start_us": 1, "values": {"queue": "many"}},
        {"probe": "scrape", "service": "inference", "start_us": 1, "values": [1]},
    ],
)  # fmt: skip
def test_a_broken_event_is_an_error_and_never_a_verdict(tmp_path, broken):
    base = with_probes(STRANGER, objectives=(DENIED,))
    at = {"end_us": 4, **{k: v for k, v in broken.items() if isinstance(v, int)}}
    story = Story(base, probed=tuple(stranger()))
    folder = story.write(tmp_path / "run")
    events = folder / "events.ndjson"
    from survive.record.events import encode
    from survive.record.reader import Record

    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join([lines[0], encode("probe_seen", broken, at["end_us"]), *lines[1:]]))
    record = Record.load(folder, from_hlog=True)
    with pytest.raises(RecordError):
        judge(record, base)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(flips=st.sets(st.integers(0, 99), max_size=6), limit=st.sampled_from([1.0, 0.95]))
def test_a_bad_finding_never_improves_a_verdict(tmp_path_factory, flips, limit):
    """Whatever the others were: turning one finding bad leaves every cell as it was or worse."""
    objective = replace(DENIED, limit=limit)
    base = with_probes(STRANGER, objectives=(objective,))
    before = [*stranger()]
    for at in flips:
        before[at] = {**before[at], "ok": None if at % 2 else False}
    order = [Word.SURVIVED, Word.INCONCLUSIVE, Word.FAILED]
    worse = [{**f, "ok": False} if i == 50 else f for i, f in enumerate(before)]
    _, first = judged(base, before, tmp_path_factory.mktemp("a"))
    _, second = judged(base, worse, tmp_path_factory.mktemp("b"))
    for key, cell in first.items():
        assert order.index(second[key].verdict) >= order.index(cell.verdict)


def test_with_its_proof_missing_a_fault_cell_of_probes_is_undecided(tmp_path):
    objective = replace(DENIED, limit=0.5, during="each fault")
    base = with_probes(STRANGER, objectives=(objective,))
    look = lambda fault, t_us, stage: "no"  # noqa: E731
    _, cells = judged(base, stranger(), tmp_path, look=look)
    cell = cells["refuses", "stranger", "fault:outage"]
    assert cell.verdict is Word.INCONCLUSIVE and "not proven active" in cell.why
    assert OUTAGE.name == "outage"
