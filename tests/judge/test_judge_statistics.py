"""Exact inference: known values, exact coverage, and what ranks promise."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from survive.judge.statistics import (
    ALPHA,
    binomial_cdf,
    decide,
    incomplete_beta,
    lower_bound,
    rank_interval,
    requests_to_decide,
    significantly_good,
    tolerates,
    upper_bound,
)
from survive.judge.verdict import Word

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def exact_cdf(k, n, p):
    p = Fraction(p)
    return float(sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)))


@given(st.integers(1, 60), st.data())
def test_the_binomial_is_exact(n, data):
    k = data.draw(st.integers(0, n))
    p = data.draw(st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.99]))
    assert binomial_cdf(k, n, p) == pytest.approx(exact_cdf(k, n, p), rel=1e-10, abs=1e-13)


def test_known_bounds():
    """R: binom.test(5, 100, conf.level = 0.9), binom.test(0, 59, …), binom.test(7, 12, …)."""
    assert lower_bound(5, 100) == pytest.approx(0.01990556, rel=1e-6)
    assert upper_bound(5, 100) == pytest.approx(0.1022534, rel=1e-6)
    assert upper_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59), rel=1e-9)
    assert lower_bound(59, 59) == pytest.approx(0.05 ** (1 / 59), rel=1e-9)
    assert (lower_bound(0, 10), upper_bound(10, 10), upper_bound(0, 0)) == (0.0, 1.0, 1.0)


@given(counts)
def test_bounds_are_where_the_tails_are_five_percent(count):
    bad, n = count
    if bad < n:
        assert binomial_cdf(bad, n, upper_bound(bad, n)) == pytest.approx(ALPHA, rel=1e-6)
    if bad > 0:
        assert 1 - binomial_cdf(bad - 1, n, lower_bound(bad, n)) == pytest.approx(ALPHA, rel=1e-6)


@pytest.mark.parametrize("n", [1, 5, 20, 59, 100])
@pytest.mark.parametrize("truth", [0.005, 0.01, 0.05, 0.1, 0.3, 0.7])
def test_bounds_cover_the_truth_in_all_possible_samples(n, truth):
    """Every outcome of n requests, weighed by its probability: no chance involved."""
    weight = [math.comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in range(n + 1)]
    above = sum(w for k, w in enumerate(weight) if upper_bound(k, n) >= truth)
    below = sum(w for k, w in enumerate(weight) if lower_bound(k, n) <= truth)
    assert min(above, below) >= 0.95 - 1e-9


@pytest.mark.parametrize("truth", [0.01, 0.05, 0.1])
def test_a_stack_at_the_limit_is_called_survived_or_failed_at_most_one_time_in_twenty(truth):
    n = 500
    weight = [math.comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in range(n + 1)]
    words = [decide(k, n, truth, 10).word for k in range(n + 1)]
    for word in (Word.SURVIVED, Word.FAILED):
        assert sum(w for w, said in zip(weight, words, strict=True) if said is word) <= ALPHA + 1e-9


@pytest.mark.parametrize(("allowed", "needed"), [(0.05, 59), (0.01, 299), (0.001, 2995)])
def test_how_many_without_a_bad_one_survive(allowed, needed):
    assert tolerates(needed, allowed) == 0
    assert tolerates(needed - 1, allowed) is None
    assert decide(0, needed, allowed, 1).word is Word.SURVIVED
    assert decide(0, needed - 1, allowed, 1).word is Word.INCONCLUSIVE


@given(st.integers(1, 3000), st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.5]))
def test_tolerates_is_the_most_that_survives(n, allowed):
    most = tolerates(n, allowed)
    if most is None:
        assert not significantly_good(0, n, allowed)
    else:
        assert significantly_good(most, n, allowed)
        assert not significantly_good(most + 1, n, allowed)


@given(counts, st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0]))
def test_one_more_bad_request_never_improves_a_decision(count, allowed):
    bad, n = count
    rank = [Word.SURVIVED, Word.INCONCLUSIVE, Word.FAILED].index
    before = rank(decide(bad, n, allowed, 10).word)
    assert rank(decide(bad + 1, n + 1, allowed, 10).word) >= before
    if bad < n:
        assert rank(decide(bad + 1, n, allowed, 10).word) >= before


def test_limits_that_nothing_or_everything_meets():
    assert decide(0, 10**6, 0.0, 1).word is Word.INCONCLUSIVE
    assert "100 %" in decide(0, 10**6, 0.0, 1).why
    assert decide(1, 10, 0.0, 1).word is Word.FAILED
    assert decide(10, 10, 1.0, 1).word is Word.SURVIVED
    assert decide(0, 0, 0.01, 1).why == "nothing was measured in this window"
    assert tolerates(100, 0.0) is None
    assert tolerates(100, 1.0) == 100
    assert tolerates(0, 0.05) is None


def test_undecided_says_how_much_longer():
    decision = decide(0, 200, 0.01, 20)
    assert decision.word is Word.INCONCLUSIVE
    assert "about 5 more seconds would decide" in decision.why  # (299 − 200) / 20
    assert requests_to_decide(0, 200, 0.01, 20) == 299
    worse = decide(3, 100, 0.01, 10)
    assert worse.word is Word.INCONCLUSIVE and "worse than the limit" in worse.why
    assert "too near" in decide(1, 100, 0.01, 10).why


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [10, 59, 100, 1000])
def test_ranks_hold_the_quantile(n, share):
    """P(the quantile lies below rank r) = P(X ≤ r − 1), X ~ Bin(n, share): exact."""
    low, high = rank_interval(n, share)
    assert binomial_cdf(low - 1, n, share) <= ALPHA < binomial_cdf(low, n, share)
    if high <= n:
        assert binomial_cdf(high - 1, n, share) >= 1 - ALPHA > binomial_cdf(high - 2, n, share)
    else:
        assert binomial_cdf(n - 1, n, share) < 1 - ALPHA


def test_ranks_and_shares_agree():
    """p95 is shown below a limit with its upper rank exactly when the bad share survives."""
    for n in (58, 59, 93, 400):
        _, high = rank_interval(n, 0.95)
        most = tolerates(n, 0.05)
        assert (n - high if high <= n else None) == most


def test_large_counts_are_quick_and_sane():
    assert upper_bound(12_345, 10**7) == pytest.approx(0.0012345, rel=0.02)
    assert incomplete_beta(5e6, 5e6, 0.5) == pytest.approx(0.5, abs=1e-6)


def test_nothing_measured_is_never_good_however_much_is_allowed():
    assert decide(0, 0, 1.0, 1.0).word is Word.INCONCLUSIVE
    assert decide(7, 7, 1.0, 1.0).word is Word.SURVIVED
