"""What an incident costs of an error budget, and whether it would page (DESIGN, metrics).

- Budget: a steady objective that allows a share ``a`` of bad requests allows ``a x R x 30 d`` of
  them in 30 days at the rate ``R`` of requests while the incident was on. Its cost is the bad
  requests from inject to the end of its watch over that.
- Burn rate over a span ``W``: bad share in the span ÷ ``a``. Where the incident was shorter than
  ``W``, the rest of ``W`` is taken to be like steady: that is what a dashboard would show. A longer
  one is read at its worst ``W``.
- It pages by the multi-window rule of the SRE workbook (Beyer et al. 2018, ch. 5): 14.4 over 1 h
  and 5 min (2 % of the budget in an hour), or 6 over 6 h and 30 min. An incident that was not over
  when its watch ended is counted as if it had been: the real page can only come earlier.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from survive.judge.metrics import Shares
from survive.judge.recovery import Steady
from survive.judge.verdict import Budget
from survive.judge.windows import Windows
from survive.plan.model import FaultWindow
from survive.record.rates import mean_rps
from survive.units import SECOND

PERIOD_S = 30 * 86_400
FAST, SLOW = 14.4, 6.0
_HOUR_S = 3600.0
_RULES = ((FAST, _HOUR_S, 300.0), (SLOW, 6 * _HOUR_S, 1800.0))


def budget_of(
    fault: FaultWindow, steady: Iterable[tuple[str, Steady]], windows: Windows
) -> Budget | None:
    """The cost of one fault for the objective that it costs most; None if none has a budget."""
    found = [_cost(name, one, fault, windows) for name, one in steady if 0 < one.allowed < 1]
    return max((b for b in found if b is not None), key=lambda b: b.share, default=None)


def _cost(name: str, one: Steady, fault: FaultWindow, windows: Windows) -> Budget | None:
    n, bad = one.tally.per_slice("run")
    inside = (windows.starts >= fault.inject_us) & (windows.starts < fault.recovery_end_us)
    span_s = (fault.recovery_end_us - fault.inject_us) / SECOND
    rate = float(n[inside].sum()) / span_s if span_s else 0.0
    if not rate or not mean_rps(windows.plan, fault.inject_us, fault.recovery_end_us):
        return None
    calm = _calm(one.tally)

    def burn(width_s: float) -> float:
        share = _worst(n[inside], bad[inside], windows.starts[inside], width_s, calm, rate)
        return share / one.allowed

    total = int(bad[inside].sum())
    return Budget(
        objective=name,
        request=one.kind,
        bad=total,
        share=total / (one.allowed * rate * PERIOD_S),
        burn_1h=burn(_HOUR_S),
        burn_5m=burn(300.0),
        pages=any(min(burn(long), burn(short)) >= rule for rule, long, short in _RULES),
    )


def _calm(tally: Shares) -> float:
    n, bad = tally.total("steady")
    return bad / n if n else 0.0


def _worst(
    n: np.ndarray[tuple[int], np.dtype[np.int64]],
    bad: np.ndarray[tuple[int], np.dtype[np.int64]],
    starts: np.ndarray[tuple[int], np.dtype[np.int64]],
    width_s: float,
    calm: float,
    rate: float,
) -> float:
    """The bad share of the worst span of a width, filled up with calm where there is too little."""
    sums_n, sums_bad = (np.concatenate(([0], np.cumsum(values))) for values in (n, bad))
    last = np.searchsorted(starts, starts + int(width_s * SECOND), side="left")
    of_n = sums_n[last] - sums_n[:-1]
    of_bad = sums_bad[last] - sums_bad[:-1]
    full = np.maximum(rate * width_s, of_n)
    return float(((of_bad + (full - of_n) * calm) / full).max())
