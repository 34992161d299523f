"""The test between episodes: against every relabelling by hand, published laws, and pure chance."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from survive.judge.between import (
    MOST_LABELS,
    _rank,
    _ways,
    episodes_to_decide,
    examined,
    labels,
    shift,
)
from survive.judge.statistics import ALPHA


def test_every_way_to_deal_the_labels_comes_once_and_the_real_one_first():
    dealt = labels(3, 4)
    assert dealt.shape == (35, 7)
    assert dealt[0].tolist() == [False] * 3 + [True] * 4
    assert len({tuple(row) for row in dealt.tolist()}) == 35
    assert set(dealt.sum(axis=1)) == {4}


def test_too_many_ways_are_drawn_the_same_each_time():
    dealt = labels(10, 12)
    assert dealt.shape == (MOST_LABELS, 22) and set(dealt.sum(axis=1)) == {12}
    assert dealt[0].tolist() == [False] * 10 + [True] * 12
    assert (dealt == labels(10, 12)).all()
    assert abs(dealt[1:].mean(axis=0) - 12 / 22).max() < 0.02  # nobody is preferred


@pytest.mark.parametrize(
    ("base", "new"),
    [([1, 5, 2, 8], [3, 9, 7]), ([1, 1, 2], [2, 2, 1, 3]), ([4, math.inf, 2], [math.inf, 5, 6])],
)
def test_a_p_value_is_the_share_of_relabellings_with_as_high_a_rank_sum(base, new):
    values = [*base, *new]
    ranks = [sum(v < x for v in values) + (values.count(x) + 1) / 2 for x in values]
    sums = [sum(ranks[i] for i in c) for c in combinations(range(len(values)), len(new))]
    real = sum(ranks[len(base) :])
    (found,) = examined([base], [new])
    assert found.worse.alone == found.worse.among_all == pytest.approx(
        sum(s >= real for s in sums) / len(sums)
    )  # fmt: skip
    assert found.better.alone == pytest.approx(sum(s <= real for s in sums) / len(sums))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda cells: st.tuples(
            *(st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n), min_size=cells,
                       max_size=cells) for n in (3, 4))
        )
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_among_all_is_never_less_than_alone_and_no_order_matters(sides, dice):
    base, new = sides
    found = examined(base, new)
    assert all(one.worse.alone <= one.worse.among_all + 1e-12 <= 1 + 1e-9 for one in found)
    runs = [dice.sample(range(len(side[0])), len(side[0])) for side in sides]
    cells = dice.sample(range(len(base)), len(base))
    other = examined(
        *([[side[cell][run] for run in order] for cell in cells]
          for side, order in zip(sides, runs, strict=True))
    )  # fmt: skip
    assert [other[at] for at in range(len(cells))] == [found[cell] for cell in cells]


def test_worse_one_way_is_better_the_other_way():
    base, new = [[1, 2, 3, 4, 6], [5, 5, 5, 5, 5]], [[5, 7, 8, 9, 10], [5, 5, 5, 5, 5]]
    there, back = examined(base, new), examined(new, base)
    assert [one.worse for one in there] == [one.better for one in back]
    assert there[0].worse.significant and not there[0].better.significant


def test_what_never_varies_costs_the_others_nothing_and_is_never_judged():
    apart = ([1, 2, 3, 4], [5, 6, 7, 8])
    alone = examined([apart[0]], [apart[1]])[0]
    beside = examined([apart[0]] + [[1] * 4] * 40, [apart[1]] + [[1] * 4] * 40)
    assert beside[0].worse == alone.worse and alone.worse.significant
    assert {one.worse.alone for one in beside[1:]} == {1.0}


def test_three_a_side_decide_one_cell_and_not_nine():
    rng = np.random.default_rng(7)
    one = examined([[1, 2, 3]], [[4, 5, 6]])[0]
    assert one.worse.among_all == pytest.approx(1 / 20) and one.worse.significant and one.decidable
    noise = rng.random((9, 6))
    many = examined(noise[:, :3].tolist(), noise[:, 3:].tolist())
    assert not any(cell.decidable for cell in many)
    noise = rng.random((9, 10))
    assert all(c.decidable for c in examined(noise[:, :5].tolist(), noise[:, 5:].tolist()))
    assert [episodes_to_decide(cells) for cells in (1, 2, 9, 27)] == [3, 4, 5, 6]


def test_what_was_not_measured_takes_no_part():
    nan = math.nan
    with_gap = examined([[1, 2, 3, nan]], [[4, 5, 6, nan]])[0]
    assert with_gap.worse.alone <= examined([[1, 2, 3]], [[4, 5, 6]])[0].worse.alone
    assert with_gap.better.alone > 0.9


def test_sound_cells_are_called_worse_in_five_comparisons_of_a_hundred_at_most():
    """All cells of a comparison together; 400 of them, half with what cells have in common."""
    rng = np.random.default_rng(11)
    wrong, runs = 0, 400
    for run in range(runs):
        common = rng.normal(size=10) * (run % 2)
        values = common + rng.normal(size=(9, 10))
        if run % 4 < 2:
            values = np.round(values)  # ties
        cells = examined(values[:, :5].tolist(), values[:, 5:].tolist())
        wrong += any(cell.worse.significant for cell in cells)
    assert wrong <= runs * ALPHA + 2.33 * math.sqrt(runs * ALPHA * (1 - ALPHA))


def test_a_shift_is_found_and_its_interval_is_that_of_the_rank_test():
    found = shift([1, 2, 3], [11, 12, 13])
    assert (found.by, found.low, found.high) == (10, 8, 12)
    assert found.confidence == pytest.approx(0.9)  # 1 - 2/20
    assert shift([1, 2], [3, 4, 5]) is None
    assert _ways(3, 3).tolist() == [1, 1, 2, 3, 3, 3, 3, 2, 1, 1]  # Mann & Whitney 1947
    assert _ways(2, 5).sum() == math.comb(7, 2)
    rank, confidence = _rank(5, 5)
    assert rank == 5 and confidence == pytest.approx(1 - 2 * 12 / 252)  # tables: U = 4 at 5 %
    assert 0.85 < _rank(60, 60)[1] <= 0.9


def test_never_is_the_worst_of_times_and_two_nevers_are_alike():
    never = math.inf
    assert shift([1, 2, never], [never] * 3).by == never
    assert shift([never] * 3, [never] * 3).by == 0
    assert examined([[1, 2, 3]], [[never] * 3])[0].worse.significant


def test_a_side_without_episodes_is_no_side():
    with pytest.raises(ValueError, match="0 episodes against 1"):
        examined([[]], [[1]])
