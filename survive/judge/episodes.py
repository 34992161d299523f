"""What the repeats of a fault have in common, and how far they differ. From three up.

The statistics of one episode say how sure we are of *that* episode; between episodes there is a
spread of its own, and only repeats show it. The interval is that of the median by rank (no law of
the spread is assumed): with fewer than five no rank pair holds 90 %, so the widest one is given
with what it really holds (three: 75 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from survive.judge.statistics import binomial_cdf, rank_interval
from survive.judge.verdict import Episodes, Number

LEAST = 3


def episodes(
    fault: str, measure: str, values: Sequence[Number], *, more_is_better: bool
) -> Episodes | None:
    """The statistics of one measure; None with fewer than three values. "inf" is a value."""
    known = sorted(_plain(value) for value in values if value is not None)
    n = len(known)
    if n < LEAST:
        return None
    low, high = rank_interval(n, 0.5)
    low, high = max(1, low), min(n, high)
    middle = (known[(n - 1) // 2] + known[n // 2]) / 2
    return Episodes(
        fault=fault,
        measure=measure,
        values=tuple(values),
        median=_number(middle),
        worst=_number(known[0] if more_is_better else known[-1]),
        low=_number(known[low - 1]),
        high=_number(known[high - 1]),
        confidence=binomial_cdf(high - 1, n, 0.5) - binomial_cdf(low - 1, n, 0.5),
    )


def _plain(value: float | str) -> float:
    return math.inf if isinstance(value, str) else float(value)


def _number(value: float) -> Number:
    return "inf" if math.isinf(value) else value
