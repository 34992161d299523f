"""What a comparison of runs says, on verdicts made by hand."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from synthetic import FAST, S, Story, scenario

from survive.errors import ExitCode, RecordError
from survive.judge.compare import Episode, Given, compare
from survive.judge.comparison import Change, LeftOut
from survive.judge.judge import judge
from survive.judge.schema import document_schema
from survive.judge.spectra import Place, Spectrum, beside
from survive.record.hdr import fold

WORSE, BETTER, ALIKE, UNDECIDED = Change.WORSE, Change.BETTER, Change.ALIKE, Change.UNDECIDED


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """One real verdict on a short record, to be varied."""
    story = Story(scenario(end_s=44, rps=40))
    record = story.record(tmp_path_factory.mktemp("run"))
    return Episode.of(record, story.scenario, judge(record, story.scenario))


def episode(sample, number, values=None, **changes):
    """The sample as another run: ``values`` by (objective, request, window), conditions by name."""
    conditions = {**sample.conditions, "host": "real", **changes.pop("conditions", {})}
    cells = tuple(
        replace(cell, observed=(values or {}).get((cell.name, cell.request, cell.window), 1 - 1e-4))
        for cell in sample.verdict.objectives
    )
    verdict = replace(sample.verdict, objectives=cells, **changes)
    return replace(
        sample, folder=Path(f"run-{number}"), seed=number, verdict=verdict, conditions=conditions
    )


CELL = ("degrade", "chat", "fault:outage")


def side(sample, name, values, start=0, **changes):
    """A run for each value of CELL."""
    runs = [
        episode(sample, start + at, {CELL: value}, **changes) for at, value in enumerate(values)
    ]
    return Given(name, runs)


def change_of(comparison, cell=CELL):
    return next(c for c in comparison.cells if (c.name, c.request, c.window) == cell)


def five(sample, old, new, **changes):
    return compare(
        side(sample, "base", old), side(sample, "new", new, start=len(old), **changes)
    )  # fmt: skip


GOOD, BAD = [0.95, 0.96, 0.97, 0.98, 0.99], [0.7, 0.71, 0.72, 0.73, 0.94]


@pytest.mark.parametrize(
    ("old", "new", "word", "code"),
    [
        (GOOD, BAD, WORSE, ExitCode.FAILED),
        (BAD, GOOD, BETTER, ExitCode.SURVIVED),
        (GOOD, GOOD, ALIKE, ExitCode.SURVIVED),
        (GOOD[:2], BAD[:2], UNDECIDED, ExitCode.INCONCLUSIVE),
        (GOOD[:1], BAD[:1], UNDECIDED, ExitCode.INCONCLUSIVE),
        (GOOD, BAD[:2], UNDECIDED, ExitCode.INCONCLUSIVE),
    ],
)
def test_a_change_has_its_word_and_the_gate_its_code(sample, old, new, word, code):
    found = five(sample, old, new)
    assert change_of(found).change is word
    assert found.change is word
    assert found.exit_code(fail_on_regression=True) is code
    assert found.exit_code(fail_on_regression=False) is ExitCode.SURVIVED


def test_a_max_is_worse_when_it_grows_and_never_is_the_worst(sample):
    back = ("back", "", "recovery:outage")
    old = Given("base", [episode(sample, n, {back: 1.0 + n}) for n in range(5)])
    new = Given("new", [episode(sample, n + 9, {back: "inf"}) for n in range(5)])
    found = change_of(compare(old, new), back)
    assert found.change is WORSE and found.new.median == "inf" and found.moved.by == "inf"


def test_less_than_three_a_side_say_how_many_would_decide(sample):
    cells = len(sample.verdict.objectives)
    why = change_of(five(sample, GOOD[:1], BAD[:1])).why
    assert "nothing is judged below 3 a side" in why and cells == 6 and "5 a side decide" in why


def test_one_run_against_one_has_the_interval_of_its_requests(sample):
    found = change_of(five(sample, [0.99], [0.5]))
    assert found.moved.basis == "within" and found.worse is None
    # squared and added from the cells' own 90 % intervals
    cell = next(c for c in sample.verdict.objectives if (c.name, c.request, c.window) == CELL)
    down, up = ((0.5 - cell.low) ** 2 + (cell.high - 0.99) ** 2) ** 0.5, None
    assert found.moved.low == pytest.approx(-0.49 - down) and up is None
    assert change_of(five(sample, [0.99], [0.5]), ("back", "", "recovery:outage")).moved.low is None


def test_several_runs_have_the_interval_between_them(sample):
    moved = change_of(five(sample, GOOD, BAD)).moved
    assert moved.basis == "between" and moved.low <= moved.by <= moved.high < 0
    assert moved.confidence == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(("margin", "word"), [(0.0, WORSE), (0.1, WORSE), (0.5, ALIKE)])
def test_what_is_tolerated_is_not_called_worse(sample, margin, word):
    first = ("fast", "chat", "steady")
    old = [episode(sample, n, {first: 100.0 + n}) for n in range(5)]
    new = [episode(sample, n + 9, {first: 130.0 + n}) for n in range(5)]
    found = compare(Given("base", old), Given("new", new), tolerate=margin)
    assert change_of(found, first).change is word and found.tolerated == margin
    back = compare(Given("base", new), Given("new", old), tolerate=margin)
    assert change_of(back, first).change is BETTER
    shares = compare(
        side(sample, "base", [0.98 + n / 1e4 for n in range(5)]),
        side(sample, "new", [0.974 + n / 1e4 for n in range(5)], 9),
        tolerate=margin,
    )
    assert change_of(shares).change is word  # 2.6 % missing, was 2 %: 30 % worse


def test_two_sides_exchanged_say_the_opposite(sample):
    there, back = five(sample, GOOD, BAD), five(sample, BAD, GOOD)
    mirror = {WORSE: BETTER, BETTER: WORSE, ALIKE: ALIKE}
    assert [mirror[c.change] for c in there.cells] == [c.change for c in back.cells]
    assert [c.worse for c in there.cells] == [c.better for c in back.cells]


def test_the_order_of_runs_changes_no_word_and_no_number(sample):
    wanted = five(sample, GOOD, BAD)
    for new in itertools.islice(itertools.permutations(BAD), 0, 120, 17):
        found = five(sample, GOOD[::-1], new)
        assert [(c.change, c.moved, c.worse) for c in found.cells] == [
            (c.change, c.moved, c.worse) for c in wanted.cells
        ]


# --------------------------------------------------------------------- gaps in the evidence


ALMOST = [0.9, 0.91, 0.945, 0.965, 0.975]  # a little less, and it would be called worse


@pytest.mark.parametrize(
    ("new", "left_out", "word"),
    [
        (GOOD, 0, ALIKE),
        (GOOD, 1, ALIKE),  # had that been the worst run of all, it would still not be worse
        (GOOD, 3, UNDECIDED),  # too many
        (ALMOST, 0, ALIKE),
        (ALMOST, 1, UNDECIDED),  # that one might have decided
        (BAD, 3, WORSE),
    ],
)
def test_runs_that_are_left_out_count_against_greens_and_never_against_a_red(
    sample, new, left_out, word
):
    out = [LeftOut(f"run-x{n}", "it is damaged") for n in range(left_out)]
    fresh = Given("new", side(sample, "new", new, 9).episodes, out)
    cell = change_of(compare(side(sample, "base", GOOD), fresh))
    assert cell.change is word
    if word is UNDECIDED:
        assert cell.why == f"not known for {left_out} of {5 + left_out} new runs"


def test_what_one_run_did_not_measure_is_taken_for_the_worst(sample):
    back = ("back", "", "recovery:outage")
    old = [episode(sample, n, {back: 1.0 + n}) for n in range(5)]

    def change(values):
        new = [episode(sample, n + 9, {back: value}) for n, value in enumerate(values)]
        return change_of(compare(Given("base", old), Given("new", new)), back).change

    assert change([1.5, 2.5, 3.5, 4.5, None]) is ALIKE
    assert change([4.5, 4.6, 3.6, 5.5, None]) is UNDECIDED
    assert change([6.5, 7.5, 8.5, 9.5, None]) is WORSE
    assert change([0.5, 0.6, 0.7, 0.8, 0.9]) is BETTER
    assert change([0.5, 0.6, 0.7, 0.8, None]) is ALIKE  # that one may have been bad


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"guilt": ("the harness was late",)}, "the harness was late"),
        ({"exit_code": ExitCode.HEAL_UNPROVEN}, "a heal is not proven"),
        ({"exit_code": ExitCode.INTERRUPTED}, "interrupted"),
    ],
)
def test_a_run_that_is_no_basis_is_left_out_and_named(sample, changes, why):
    new = side(sample, "new", GOOD, 9)
    odd = episode(sample, 99, {CELL: 0.1}, **changes)
    found = compare(side(sample, "base", GOOD), Given("new", [*new.episodes, odd]))
    assert [out.folder for out in found.new.left_out] == ["run-99"]
    assert why in found.new.left_out[0].why and len(found.new.runs) == 5
    with pytest.raises(RecordError, match="no run of new can be compared"):
        compare(side(sample, "base", GOOD), Given("new", [odd]))


def test_a_run_that_broke_off_is_no_basis(sample):
    odd = replace(episode(sample, 9), ended="load_died")
    with pytest.raises(RecordError, match="it did not come to its end: load died"):
        compare(side(sample, "base", GOOD), Given("new", [odd]))


def test_load_that_was_not_delivered_is_no_basis(sample):
    load = replace(sample.verdict.load, lost=3)
    odd = episode(sample, 9, load=load)
    with pytest.raises(RecordError, match="the load was not delivered: 3 requests"):
        compare(side(sample, "base", GOOD), Given("new", [odd]))


@pytest.mark.parametrize("stopped", [2, 5])
def test_runs_that_stop_if_ended_are_a_cell_of_their_own(sample, stopped):
    load = replace(sample.verdict.load, unsent=100)
    whole = side(sample, "", GOOD, 9).episodes[stopped:]
    cut = [
        episode(sample, n, {CELL: 0.0}, exit_code=ExitCode.STOPPED, load=load)
        for n in range(stopped)
    ]
    found = compare(side(sample, "base", GOOD), Given("new", [*whole, *cut]))
    own = change_of(found, ("stop_if", "", "run"))
    assert own.new_verdicts.failed == stopped and own.base_verdicts.survived == 5
    assert own.change is (WORSE if stopped == 5 else ALIKE)
    assert change_of(found).change is UNDECIDED  # what the others would have shown, nobody knows
    assert (found.change is WORSE) == (stopped == 5)
    assert compare(Given("base", cut), Given("new", cut)).cells[-1].moved.by == 0


def test_what_was_not_seen_under_its_fault_was_not_measured(sample):
    (fault,) = sample.verdict.faults
    unproven = (replace(fault, proof="it was not seen"),)
    found = five(sample, GOOD, BAD, faults=unproven)
    cell = change_of(found)
    assert cell.change is UNDECIDED and cell.new.values == (None,) * 5 and cell.new.median is None
    assert change_of(found, ("answers", "chat", "steady")).change is ALIKE


def test_the_same_seed_on_the_virtual_host_is_the_same_run(sample):
    virtual = {"conditions": {"host": "virtual"}}
    twice = [episode(sample, 7, {CELL: 0.5}, **virtual) for _ in range(5)]
    base = side(sample, "base", GOOD, **virtual)
    found = compare(base, Given("new", twice))
    assert len(found.new.runs) == 1 and change_of(found).change is UNDECIDED
    assert "new: 4 virtual runs repeat a seed: the same run, not counted" in found.notes


# ----------------------------------------------------------------- what cannot be compared


@pytest.mark.parametrize("what", ["machine", "version", "target", "grade", "lanes"])
def test_another_condition_is_told_and_nothing_judged_unless_it_is_accepted(sample, what):
    base = side(sample, "base", GOOD)
    new = side(sample, "new", BAD, 9, conditions={what: "another"})
    found = compare(base, new)
    assert [(d.what, d.new, d.accepted) for d in found.differences] == [(what, "another", False)]
    assert {c.change for c in found.cells} == {UNDECIDED}
    assert f"other {what}" in found.cells[0].why
    accepted = compare(base, new, [what])
    assert change_of(accepted).change is WORSE and accepted.differences[0].accepted


@pytest.mark.parametrize("what", ["load", "requests", "faults", "probes", "clients"])
def test_runs_that_did_other_things_are_not_compared(sample, what):
    with pytest.raises(RecordError, match=f"did not do the same: other {what}"):
        five(sample, GOOD, GOOD, conditions={what: "another"})


def test_virtual_and_real_runs_are_never_compared(sample):
    with pytest.raises(RecordError, match=r"other host \(real; virtual\)"):
        five(sample, GOOD, GOOD, conditions={"host": "virtual"})


def test_other_limits_are_compared_by_value_and_one_sided_objectives_are_told(sample):
    new = side(sample, "new", GOOD, 9)
    tighter = []
    for one in new.episodes:
        kept = [c for c in one.verdict.objectives if c.name != FAST.name]
        cells = tuple(replace(c, limit=0.5) for c in kept)
        tighter.append(replace(one, verdict=replace(one.verdict, objectives=cells)))
    found = compare(side(sample, "base", GOOD), Given("new", tighter))
    assert change_of(found).base_limit == 0.9 and change_of(found).new_limit == 0.5
    assert found.change is ALIKE and "fast (ttft.p95) is only in base" in found.notes


def test_the_target_file_may_differ_and_is_told(sample):
    other = replace(sample.scenario, raw_target={"weaknesses": ["no_health_checks"]})
    new = [replace(e, scenario=other) for e in side(sample, "new", GOOD).episodes]
    found = compare(side(sample, "base", GOOD), Given("new", new))
    assert found.change is ALIKE and "the target file differs in weaknesses" in found.notes


# ------------------------------------------------------------------------------- beside it


def test_a_run_beside_itself_differs_in_nothing(sample):
    found = compare(Given("base", [sample]), Given("new", [sample]))
    assert {c.moved.by for c in found.cells} <= {0, None}
    assert {m.moved.by for m in found.measures} <= {0, None}
    assert all(s.largest is None and s.base == s.new for s in found.spectra)
    assert "runs that are on both sides: 1" in found.notes


def test_histograms_beside_each_other_count_failures_as_infinity(sample, tmp_path):
    chat = next(s for s in compare(Given("base", [sample]), Given("new", [sample])).spectra)
    cell = next(c for c in sample.verdict.objectives if c.name == "answers" and c.request == "chat")
    assert (chat.window, chat.request, chat.series) == ("steady", "chat", "latency")
    assert chat.base.n == cell.n and chat.base.bad == cell.bad
    assert chat.base.p50_ms == pytest.approx(20, rel=1e-3)  # Fate(): 20 ms
    assert chat.base.p99_9_ms is None  # too few requests to tell
    from synthetic import down

    story = Story(scenario(end_s=44, rps=40), fate=down(21, 27))
    record = story.record(tmp_path)
    broken = Episode.of(record, story.scenario, judge(record, story.scenario))
    found = compare(Given("base", [sample]), Given("new", [broken]))
    outage = next(s for s in found.spectra if (s.window, s.request) == ("fault:outage", "chat"))
    assert outage.new.p90_ms == "inf" and outage.base.p90_ms == pytest.approx(20, rel=1e-3)
    assert outage.largest.new_ms == "inf" and outage.largest.factor == "inf"
    took = next(m for m in found.measures if m.name == "error_window")
    assert took.base.median == 0 and took.new.median == pytest.approx(6, abs=1)
    assert record.plan.faults[0].inject_us == 20 * S


def test_a_jump_between_two_modes_is_no_shift_and_a_shift_is():
    def side_of(fast, slow, slow_us=400_000):
        values = fold([*range(8_000, 8_000 + fast), *range(slow_us, slow_us + slow)])
        return {Place("run", "chat", "ttft"): Spectrum(*map(np.array, values), 0)}

    (jump,) = beside([side_of(500, 490)], [side_of(490, 500)])
    assert jump.largest is None and jump.base.p50_ms < 10 < 300 < jump.new.p50_ms
    (shift,) = beside([side_of(500, 490)], [side_of(500, 490, 520_000)])
    assert shift.largest.quantile > 0.5 and shift.largest.factor == pytest.approx(1.3, rel=0.01)
    (pooled,) = beside([side_of(250, 245)] * 2, [side_of(500, 490)])
    assert pooled.base.n == pooled.new.n


def test_its_json_is_what_the_schema_says_and_the_same_each_time(sample):
    schema = document_schema("diff")
    jsonschema.Draft7Validator.check_schema(schema)
    for found in (
        five(sample, GOOD, BAD),
        compare(Given("base", [sample]), Given("new", [sample])),
    ):
        text = json.dumps(found.to_json(), allow_nan=False)
        jsonschema.validate(json.loads(text), schema)
        assert list(json.loads(text)) == list(schema["properties"])
    assert five(sample, GOOD, BAD).to_json() == five(sample, GOOD, BAD).to_json()


def test_a_verdict_is_what_its_schema_says(sample):
    schema = document_schema("verdict")
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(json.loads(json.dumps(sample.verdict.to_json())), schema)
    broken = {**sample.verdict.to_json(), "verdict": "splendid"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)
