"""The schedule is exact, reproducible and distributed as it says."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from survive.plan.arrivals import Schedule, expected, poisson_count
from survive.plan.chance import exp, ln
from survive.plan.gamma import gaps
from survive.scenario.model import Phase

SHARES = {"chat": 0.6, "search": 0.4}


def phase(name, start_s, end_s, rate, to=None, curve="linear"):
    return Phase(
        name,
        round(start_s * 1e6),
        round(end_s * 1e6),
        Fraction(rate),
        Fraction(to if to is not None else rate),
        curve,
        shares=SHARES,
    )


RAMP = [
    phase("low", 0, 10, 20),
    phase("up", 10, 30, 20, 300, "exponential"),
    phase("high", 30, 60, 300),
]


def times(schedule):
    return np.concatenate([b.intended_us for b in schedule.blocks()] or [np.zeros(0, np.int64)])


def digest(schedule):
    seen = hashlib.sha256()
    for block in schedule.blocks():
        for column in (block.intended_us, block.kind, block.row):
            seen.update(column.astype("<i8").tobytes())
    return seen.hexdigest()[:16]


@pytest.mark.parametrize(
    ("arrivals", "seed", "golden"),
    [
        ("poisson", 42, "7f722d9094dda2c6"),
        ("poisson", 43, "fef33223872824f9"),
        ("uniform", 42, "5694c64e102b3a5d"),
        ("bursty cv 3", 42, "44ae0d680b0b845a"),
        ("azure-conv", 42, "2ecce782caeed934"),
        ("azure-code", 42, "5a5d5a5b9d9b3609"),
    ],
)
def test_same_seed_gives_the_same_bytes_on_any_machine(arrivals, seed, golden):
    assert digest(Schedule(seed, arrivals, RAMP, list(SHARES))) == golden


def test_uniform_arrivals_are_evenly_spaced():
    got = times(Schedule(1, "uniform", [phase("flat", 0, 8, 200)], list(SHARES)))
    assert len(got) == 1600
    assert got[0] == 2500
    assert set(np.diff(got)) == {5000}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    arrivals=st.sampled_from(["poisson", "uniform", "bursty cv 3", "azure-code"]),
    rates=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    curve=st.sampled_from(["linear", "exponential"]),
    ramp=st.booleans(),
)
def test_every_arrival_lies_in_order_inside_the_load(seed, arrivals, rates, curve, ramp):
    phases, previous = [], None
    for i, rate in enumerate(rates):
        begin = previous if ramp and previous is not None else rate
        phases.append(phase(f"p{i}", i * 3, i * 3 + 3, begin, rate, curve))
        previous = rate
    schedule = Schedule(seed, arrivals, phases, list(SHARES))
    first = 0
    last = -1
    for block in schedule.blocks():
        assert block.first == first
        first += len(block.intended_us)
        assert block.intended_us[0] >= last
        assert (np.diff(block.intended_us) >= 0).all()
        last = int(block.intended_us[-1])
        assert set(np.unique(block.kind)) <= {0, 1}
    assert last < phases[-1].end_us
    if arrivals == "uniform":
        assert abs(first - schedule.expected) <= 1
    elif arrivals == "poisson":
        assert abs(first - schedule.expected) < 6.5 * math.sqrt(schedule.expected) + 1


def test_poisson_gaps_are_exponential_and_counts_are_dispersed_like_poisson():
    got = times(Schedule(7, "poisson", [phase("flat", 0, 400, 250)], list(SHARES)))
    gaps = np.sort(np.diff(got) / 1e6 * 250)
    # Kolmogorov-Smirnov distance to Exp(1); 1.95/sqrt(n) is the 0.1 % point.
    distance = np.max(np.abs((np.arange(len(gaps)) + 0.5) / len(gaps) - (1 - np.exp(-gaps))))
    assert distance < 1.95 / math.sqrt(len(gaps))
    per_second = np.bincount(got // 1_000_000, minlength=400)
    assert 0.8 < per_second.var() / per_second.mean() < 1.25


def test_block_counts_are_poisson_over_seeds():
    counts = np.array([poisson_count(seed, 3) for seed in range(4000)])
    assert abs(counts.mean() - 256) < 4 * math.sqrt(256 / 4000)
    assert 0.9 < counts.var() / 256 < 1.1


@pytest.mark.parametrize("curve", ["linear", "exponential"])
def test_a_ramp_follows_its_curve(curve):
    up = phase("up", 0, 100, 10, 400, curve)
    got = times(Schedule(5, "uniform", [up], list(SHARES))) / 1e6
    for t in (20.0, 50.0, 80.0):
        part = t / 100
        rate = 10 + 390 * part if curve == "linear" else 10 * 40**part
        seen = np.count_nonzero((got >= t - 1) & (got < t + 1)) / 2
        assert seen == pytest.approx(rate, rel=0.03, abs=1)
    assert len(got) == pytest.approx(expected(up), abs=1)


@pytest.mark.parametrize(("start", "end", "steps"), [(10, 60, 5), (90, 30, 3), (40, 41, 2)])
def test_a_ramp_in_steps_has_the_rate_of_each_step(start, end, steps):
    up = replace(phase("up", 0, 60, start, end, "steps"), steps=steps)
    got = times(Schedule(5, "uniform", [up], list(SHARES))) / 1e6
    length = 60 / steps
    seen = np.bincount((got // length).astype(int), minlength=steps)
    rates = [start + (end - start) * n / steps for n in range(1, steps + 1)]
    assert np.max(np.abs(seen - np.array(rates) * length)) <= 1
    assert rates[-1] == end
    assert len(got) == pytest.approx(expected(up), abs=1)
    # Inside a step arrivals are evenly spaced: that is a constant rate.
    last = got[got >= 60 - length]
    assert np.allclose(np.diff(last), 1 / end, atol=2e-6)
    poisson = times(Schedule(5, "poisson", [up], list(SHARES)))
    assert np.all(np.diff(poisson) >= 0)
    assert poisson[-1] < 60 * 10**6


def sine(swing, period_s, rate=200, end_s=120):
    at = (Fraction(rate), Fraction(rate), "sine")
    return Phase("s", 0, end_s * 10**6, *at, shares=SHARES, swing=swing, period_us=period_s * 10**6)


@pytest.mark.parametrize("swing", [0.1, 0.6, 0.99])
def test_a_sine_swings_around_its_rate(swing):
    got = times(Schedule(5, "uniform", [sine(swing, 40)], list(SHARES))) / 1e6
    assert len(got) == 200 * 120 == expected(sine(swing, 40))
    # Arrival n stands where n + 1/2 arrivals are due.
    due = 200 * (got + swing * 40 / math.tau * (1 - np.cos(math.tau * got / 40)))
    assert np.max(np.abs(due - np.arange(len(got)) - 0.5)) < 0.01
    second = np.bincount((got // 1).astype(int), minlength=120)
    assert second[9:11].mean() == pytest.approx(200 * (1 + swing), rel=0.01)
    assert second[29:31].mean() == pytest.approx(200 * (1 - swing), abs=3)


def test_poisson_on_a_sine_is_still_poisson():
    phases = [sine(0.8, 30, end_s=600)]
    got = times(Schedule(8, "poisson", phases, list(SHARES))) / 1e6
    due = 200 * (got + 0.8 * 30 / math.tau * (1 - np.cos(math.tau * got / 30)))
    gaps_due = np.sort(np.diff(due))
    rank = (np.arange(len(gaps_due)) + 0.5) / len(gaps_due)
    assert np.max(np.abs(rank - (1 - np.exp(-gaps_due)))) < 1.95 / math.sqrt(len(gaps_due))


def test_a_sine_has_the_same_bytes_on_any_machine():
    phases = [phase("low", 0, 10, 20), replace(sine(0.6, 20), start_us=10**7, end_us=7 * 10**7)]
    assert digest(Schedule(42, "poisson", phases, list(SHARES))) == "0f6a5e6fe9c1ad70"


def test_kinds_come_in_their_shares():
    kinds = np.concatenate(
        [
            b.kind
            for b in Schedule(9, "poisson", [phase("flat", 0, 100, 300)], list(SHARES)).blocks()
        ]
    )
    assert np.mean(kinds == 0) == pytest.approx(0.6, abs=0.01)


def test_our_logarithm_agrees_with_libm():
    x = np.exp(np.linspace(-30, 30, 20001))
    assert np.max(np.abs(ln(x) - np.log(x)) / np.maximum(np.abs(np.log(x)), 1e-3)) < 1e-15


def test_our_exponential_agrees_with_libm():
    x = np.linspace(-700, 700, 20001)
    assert np.max(np.abs(exp(x) / np.exp(x) - 1)) < 1e-15
    assert exp(np.array([-701.0, -1e9])).tolist() == [0.0, 0.0]


def gamma_cdf(shape, x):
    """P(a, x) = x^a e^-x Σ x^n / Γ(a + n + 1): all terms positive, so nothing cancels."""
    term = np.exp(shape * np.log(x) - x - math.lgamma(shape + 1))
    total = np.zeros_like(x)
    for n in range(1, 1000):
        total += term
        term = term * x / (shape + n)
    return total


@pytest.mark.parametrize("cv", [1, 1.1, 3, 13.2, 20])
def test_bursty_gaps_are_gamma(cv):
    drawn = np.sort(np.concatenate([gaps(11, chunk, cv) for chunk in range(1, 13)]))
    shape = 1 / cv**2
    low = np.count_nonzero(drawn < 1e-250)  # underflow: true values lie below what a float holds
    rank = (np.arange(len(drawn)) + 0.5) / len(drawn)
    distance = np.max(np.abs(rank[low:] - gamma_cdf(shape, drawn[low:] * shape)))
    assert distance < 1.95 / math.sqrt(len(drawn))
    assert drawn.mean() == pytest.approx(1, abs=4 * cv / math.sqrt(len(drawn)))


def test_bursty_gaps_with_cv_1_are_exponential():
    drawn = np.sort(gaps(12, 1, 1))
    rank = (np.arange(len(drawn)) + 0.5) / len(drawn)
    assert np.max(np.abs(rank - (1 - np.exp(-drawn)))) < 1.95 / math.sqrt(len(drawn))


@pytest.mark.parametrize("cv", [3, 13.2])
def test_bursty_arrivals_come_at_the_rate_asked_from_the_first_second(cv):
    counts = np.array([np.searchsorted(np.cumsum(gaps(s, 0, cv)), (20, 400)) for s in range(1500)])
    for expected_count, seen in zip((20, 400), counts.T, strict=True):
        assert abs(seen.mean() - expected_count) < 4 * seen.std() / math.sqrt(len(seen))


@pytest.mark.parametrize(
    ("arrivals", "least", "most"), [("azure-conv", 1.05, 1.4), ("bursty cv 3", 7.5, 10.5)]
)
def test_bursty_counts_are_dispersed_by_the_square_of_cv(arrivals, least, most):
    got = times(Schedule(7, arrivals, [phase("flat", 0, 1200, 250)], list(SHARES)))
    per_second = np.bincount(got // 1_000_000, minlength=1200)
    assert least < per_second.var() / per_second.mean() < most


@pytest.mark.parametrize(("arrivals", "cv"), [("azure-conv", 1.1), ("azure-code", 13.2)])
def test_presets_have_the_variation_of_their_traces(arrivals, cv):
    got = times(Schedule(7, arrivals, [phase("flat", 0, 4000, 50)], list(SHARES)))
    between = np.diff(got)
    assert len(got) == pytest.approx(200_000, rel=0.1)
    assert between.std() / between.mean() == pytest.approx(cv, rel=0.05)


def test_bursty_gaps_follow_each_other_without_memory():
    drawn = gaps(13, 2, 3)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / math.sqrt(len(drawn))
    assert abs(np.corrcoef(drawn, gaps(14, 2, 3))[0, 1]) < 4 / math.sqrt(len(drawn))


def test_bursty_workers_need_only_the_seed_to_stripe():
    """Worker k of n walks the same blocks and keeps its numbers: together they have the whole."""
    flat = [phase("flat", 0, 60, 300)]
    whole = times(Schedule(3, "bursty cv 3", flat, list(SHARES)))
    assert len(whole) > 3 * 4096  # over several chunks
    parts = []
    for k in range(3):
        for block in Schedule(3, "bursty cv 3", flat, list(SHARES)).blocks():
            number = block.first + np.arange(len(block.intended_us))
            parts.append(np.stack([number, block.intended_us])[:, number % 3 == k])
    union = np.concatenate(parts, axis=1)
    order = np.argsort(union[0])
    assert (union[0][order] == np.arange(len(whole))).all()
    assert (union[1][order] == whole).all()


def test_unknown_arrivals_are_refused():
    with pytest.raises(ValueError, match="unknown arrivals 'random'"):
        Schedule(1, "random", RAMP, list(SHARES))


def test_near_seeds_are_unrelated():
    a, b = (times(Schedule(s, "poisson", [phase("f", 0, 60, 200)], list(SHARES))) for s in (1, 2))
    size = min(len(a), len(b))
    assert abs(np.corrcoef(np.diff(a[:size]), np.diff(b[:size]))[0, 1]) < 0.05
