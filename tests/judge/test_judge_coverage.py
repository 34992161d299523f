"""The design effect, by simulation with known truth (docs/coverage.md has the whole table)."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.coverage import RPS, SHARE, row
from survive.judge.dispersion import design_effect

blocks = st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1)), min_size=30, max_size=90)


def test_where_failures_come_one_by_one_nothing_is_lost():
    found = row("iid", 120, 400, seed=3)
    assert found.survived <= 0.08 and found.failed <= 0.08
    assert min(found.power_2, found.power_4, found.power_half) >= 0.97


def test_clustered_failures_are_not_taken_for_many():
    found = row("seconds", 600, 400, seed=3)
    assert found.survived <= 0.05 and found.failed <= 0.05
    assert found.plain_survived >= 0.3 and found.plain_failed >= 0.3  # what a binomial does
    assert found.power_4 >= 0.97


@settings(deadline=None)
@given(blocks)
def test_an_effect_is_never_below_one_nor_above_the_largest_cluster_could_be(drawn):
    n = np.array([count for count, _ in drawn], dtype=np.int64)
    bad = np.array([int(count * share) for count, share in drawn], dtype=np.int64)
    effect = design_effect(n, bad)
    assert 1.0 <= effect <= 2 * max(1, n.sum())


def test_one_outage_is_one_event():
    n = np.full(120, 50)
    bad = np.zeros(120, dtype=np.int64)
    bad[60] = 35
    assert n.sum() / design_effect(n, bad) < 180  # so that 0.6 % seen do not prove 99 %
    assert design_effect(n, np.zeros(120, dtype=np.int64)) == 1.0
    assert RPS > 0 and SHARE > 0


def test_the_largest_effect_of_any_width_counts():
    """Every other block is half bad: pairs of them are all alike, and tell of no cluster."""
    n, bad = np.full(64, 100), np.tile([50, 0], 32)
    assert design_effect(n, bad) > 10
    assert design_effect(n[:32] * 2, bad.reshape(-1, 2).sum(axis=1)) == 1
