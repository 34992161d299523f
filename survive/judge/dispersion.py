"""How much less clustered failures tell than scattered ones (DESIGN law 6). Pure.

The binomial takes requests for independent. One outage of 0.7 s in two minutes makes dozens of bad
requests and is one event: by chance alone the next two minutes have none, or three. So the counts
are deflated by the design effect of the run itself (Kish 1965, ratio estimator over blocks of
time)::

    deff = k / (k - 1) * sum (bad_i - n_i p)^2 / sum n_i p (1 - p),   p = sum bad / sum n

1 = scattered as the binomial has it. Blocks are of one slice, then of 2, 4, ... adjacent ones while
at least 30 are left; the largest effect counts, since bursts may be longer than one block.
"""

from __future__ import annotations

import numpy as np

from survive.record.table import I64

LEAST_BLOCKS = 30
LEAST_US = 60_000_000  # shorter steady windows have too few blocks to measure it


def design_effect(n: I64, bad: I64) -> float:
    """Of blocks in order of time; at least 1, and 1 where nothing can be measured."""
    seen = n > 0
    n, bad = n[seen], bad[seen]
    effect = 1.0
    while len(n) >= LEAST_BLOCKS:
        effect = max(effect, _effect(n, bad))
        n, bad = _in_pairs(n), _in_pairs(bad)
    return effect


def _effect(n: I64, bad: I64) -> float:
    share = float(bad.sum() / n.sum())
    if share <= 0 or share >= 1:
        return 1.0
    blocks = len(n)
    misses = float(((bad - n * share) ** 2).sum())
    return blocks / (blocks - 1) * misses / (float(n.sum()) * share * (1 - share))


def _in_pairs(values: I64) -> I64:
    """Sums of neighbours; an odd last one stays alone."""
    return np.add.reduceat(values, np.arange(0, len(values), 2))
