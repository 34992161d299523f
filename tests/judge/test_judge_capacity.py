"""The search for an envelope on targets whose limit is known: no run is played here."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from survive.errors import ExitCode
from survive.judge.capacity import (
    Envelope,
    Finding,
    LevelRun,
    cost_of_faults,
    exit_of,
    finding_of,
    holds,
)
from survive.judge.search import Grid, Search, halfway
from survive.judge.verdict import LoadReport, Spread, Verdict, Word

S, F, U, H = Finding.SURVIVED, Finding.FAILED, Finding.UNDECIDED, Finding.HARNESS
Stack = Callable[[Fraction, int], Finding]  # factor, number of the run → what it shows
MOST = 40


def played(search: Search | Grid, stack: Stack, most: int = MOST) -> Envelope:
    found = Envelope()
    for number in range(most):
        factor = search.next(found)
        if factor is None:
            return found
        found = found.with_run(factor, LevelRun(number, f"run-{number}", 0, stack(factor, number)))
    raise AssertionError(f"not done after {most} runs")


def search(start: float = 1, most: float = 1000, **wanted: object) -> Search:
    return replace(Search(Fraction(start), Fraction(most)), **wanted)  # type: ignore[arg-type]


def limit(at: float) -> Stack:
    return lambda factor, _: S if factor <= at else F


def bounds(found: Envelope) -> tuple[float | None, float | None]:
    low, high = found.survives, found.fails
    return low and float(low.factor), high and float(high.factor)


@given(at=st.floats(0.02, 60), resolution=st.sampled_from([0.01, 0.05, 0.1, 0.3]))
@settings(max_examples=150, deadline=None)
def test_the_limit_lies_between_the_bounds_which_are_near(at: float, resolution: float) -> None:
    found = played(search(resolution=resolution), limit(at))
    low, high = found.survives, found.fails
    assert low is not None and high is not None
    assert low.factor <= at < high.factor <= low.factor * Fraction(1 + resolution)
    assert exit_of(found, None) is ExitCode.SURVIVED and found.violations == ()


@given(at=st.floats(0.5, 60), seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_a_grey_zone_is_inside_the_bounds(at: float, seed: int) -> None:
    """Within 10 % of its limit a run survives, fails or is undecided by chance."""
    chance = random.Random(seed)

    def stack(factor: Fraction, _: int) -> Finding:
        if at / 1.1 < factor < at * 1.1:
            return chance.choice([S, F, U])
        return S if factor <= at else F

    found = played(search(), stack)
    low, high = found.survives, found.fails
    assert low is not None and high is not None
    assert low.factor < at * 1.1 and high.factor > at / 1.1
    for level in found.levels:  # nothing that failed is at or below what is said to survive
        assert level.factor > low.factor or level.finding in {S, U}
    for bound in (low, high):  # one run alone is no bound
        side = [x for x in found.levels if (x.factor <= bound.factor) == (bound is low)]
        side = [x for x in side if x.finding is bound.finding] + [bound] * (bound not in side)
        assert sum(len(x.runs) for x in side) >= 2


def test_the_harness_bounds_itself_and_never_the_target() -> None:
    found = played(search(), lambda factor, _: S if factor <= 5 else H)
    assert found.fails is None and found.harness is not None and found.survives is not None
    assert found.survives.factor <= 5 < found.harness.factor <= found.survives.factor * 1.1
    assert found.levels[-1].factor == 8  # what it cannot send it is not asked for twice as much of
    assert exit_of(found, None) is ExitCode.INCONCLUSIVE
    assert holds(found, Fraction(3)) is Word.SURVIVED
    assert holds(found, Fraction(8)) is Word.INCONCLUSIVE


def test_a_harness_that_was_late_once_is_asked_again() -> None:
    found = played(search(), lambda factor, n: H if n == 1 else limit(3)(factor, n))
    low, high = bounds(found)
    assert low is not None and high is not None and low <= 3 < high
    assert found.harness is None


def test_a_target_that_fails_at_once_is_followed_down() -> None:
    assert bounds(played(search(start=8), limit(1.0))) == (1.0, pytest.approx(1.09))


def test_a_target_that_always_fails_has_no_envelope() -> None:
    found = played(search(), lambda *_: F)
    assert bounds(found) == (None, 1 / 64)
    assert exit_of(found, None) is ExitCode.FAILED and holds(found, Fraction(1)) is Word.FAILED


def test_what_survives_the_highest_load_has_an_open_end() -> None:
    found = played(search(most=10), lambda *_: S)
    assert bounds(found) == (10.0, None)
    assert found.whole and exit_of(found, None) is ExitCode.SURVIVED


def test_what_no_load_decides_is_given_up_soon() -> None:
    found = played(search(), lambda *_: U)
    assert [len(level.runs) for level in found.levels] == [2, 2]
    assert exit_of(found, None) is ExitCode.INCONCLUSIVE


def test_where_nothing_above_is_decided_the_lower_bound_is_still_found() -> None:
    found = played(search(), lambda factor, _: S if factor <= 5 else U)
    low, high = bounds(found)
    assert low is not None and 5 / 1.1 < low <= 5 and high is None
    assert exit_of(found, None) is ExitCode.INCONCLUSIVE
    assert holds(found, Fraction(4)) is Word.SURVIVED


def test_too_few_requests_at_low_load_are_passed() -> None:
    found = played(search(), lambda factor, n: U if factor < 2 else limit(7)(factor, n))
    low, high = bounds(found)
    assert low is not None and high is not None and low <= 7 < high


def test_a_single_failure_that_does_not_come_again_is_no_bound() -> None:
    """Everything below 4x survives: nothing but that one run says that 4x fails."""
    found = played(search(), lambda factor, n: F if factor == 4 and n == 2 else limit(9)(factor, n))
    at_4 = next(level for level in found.levels if level.factor == 4)
    assert at_4.finding is Finding.MIXED and len(at_4.runs) == 2
    high = found.fails
    assert high is not None and high.factor > 9
    low = found.survives  # and what failed once bounds what is promised
    assert low is not None and low.factor < 4
    assert [(x.factor, y.factor > 4) for x, y in found.violations] == [(4, True)]


def test_what_somebody_asks_for_is_played() -> None:
    for at, word in ((8.3, Word.FAILED), (8.7, Word.SURVIVED)):
        found = played(search(least=Fraction("8.5"), resolution=0.5), limit(at))
        assert any(level.factor == Fraction("8.5") for level in found.levels)
        assert holds(found, Fraction("8.5")) is word
    assert exit_of(found, Fraction("8.5")) is ExitCode.SURVIVED
    assert exit_of(found, Fraction(20)) is ExitCode.FAILED


def test_every_run_of_a_level_has_to_agree() -> None:
    found = played(search(repeat=3), lambda factor, n: F if n % 3 == 2 else S)
    assert all(len(level.runs) == 3 for level in found.levels)
    assert found.survives is None and {x.finding for x in found.levels} == {Finding.MIXED}
    assert exit_of(found, None) is ExitCode.INCONCLUSIVE


def test_a_grid_plays_its_loads_and_tells_what_is_not_monotone() -> None:
    grid = Grid(tuple(map(Fraction, (1, 2, 3, 4))))
    found = played(grid, lambda factor, _: F if factor == 2 else S)
    assert [float(level.factor) for level in found.levels] == [1, 2, 3, 4]
    assert bounds(found) == (1.0, 2.0)
    assert [(x.factor, y.factor) for x, y in found.violations] == [(2, 4)]


@given(low=st.fractions(Fraction(1, 1000), 1000), part=st.floats(1e-6, 10))
def test_half_way_is_always_between(low: Fraction, part: float) -> None:
    high = low * (1 + Fraction(part))
    assert low < halfway(low, high) < high


def test_what_faults_cost_is_an_interval() -> None:
    broken, sound = played(search(), limit(2)), played(search(), limit(3))
    cost = cost_of_faults(broken, sound)
    assert cost is not None and cost[0] <= 1 / 3 <= cost[1] and cost[1] - cost[0] < 0.2
    assert cost_of_faults(broken, played(search(), lambda *_: S)) is None


# ------------------------------------------------------------------- from verdicts


def verdict(code: ExitCode, *, waited_ms: float = 0.0, guilt: tuple[str, ...] = ()) -> Verdict:
    spread = Spread(0.0, waited_ms, waited_ms)
    load = LoadReport(
        planned=0,
        sent=0,
        expired=0,
        unsent=0,
        lost=0,
        ok=0,
        failed=0,
        timed_out=0,
        abandoned=0,
        in_flight=0,
        attempts=0,
        offered_rps=1.0,
        achieved_rps=1.0,
        lane_wait_ms=spread,
        send_lag_ms=spread,
        starved_s=0,
    )
    return Verdict(Word.FAILED, code, ("the reason",), (), (), load, "real", guilt=guilt)


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        (ExitCode.SURVIVED, S),
        (ExitCode.FAILED, F),
        (ExitCode.STOPPED, F),
        (ExitCode.INCONCLUSIVE, U),
        (ExitCode.HEAL_UNPROVEN, U),
    ],
)
def test_a_verdict_says_something_of_the_target(code: ExitCode, finding: Finding) -> None:
    assert finding_of(verdict(code), 10, 10)[0] is finding


def test_a_guilty_harness_says_nothing_of_it_even_where_a_rule_stopped_the_run() -> None:
    for code in (ExitCode.STOPPED, ExitCode.INCONCLUSIVE):
        assert finding_of(verdict(code, guilt=("late",)), 10, 10) == (H, "late")
    broken = verdict(ExitCode.FAILED, guilt=("late in a ramp",))  # and yet broken elsewhere
    assert finding_of(broken, 10, 10)[0] is F


def test_too_few_lanes_that_were_waited_for_are_the_harness() -> None:
    short = finding_of(verdict(ExitCode.FAILED, waited_ms=200), 10, 100)
    assert short[0] is H and "10 lanes" in short[1] and "100" in short[1]
    assert finding_of(verdict(ExitCode.FAILED, waited_ms=200), 100, 100)[0] is F  # its own doing
    assert finding_of(verdict(ExitCode.FAILED, waited_ms=1), 10, 100)[0] is F  # nobody waited
    assert finding_of(verdict(ExitCode.SURVIVED, waited_ms=200), 10, 100)[0] is S
