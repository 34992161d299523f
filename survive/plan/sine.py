"""A rate that swings: 1 + swing · sin(2πu) at u periods, and the time at which its integral is due.

The sine is a polygon of 1024 corners a period, so its integral is a parabola between corners and
has an exact inverse, made of exactly rounded operations. The polygon strays from the sine by less
than 5 millionths of the swing.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from survive.plan.chance import F64

CORNERS = 1024
_PI = 3.141592653589793


@cache
def _sine() -> F64:
    """sin(2πk / 1024), k = 0 … 1024, by Taylor on the first quarter; the rest mirrors it."""
    quarter = np.arange(CORNERS // 4 + 1, dtype=np.float64) * (2.0 * _PI / CORNERS)
    square, series = quarter * quarter, np.ones_like(quarter)
    for k in range(24, 0, -2):
        series = 1.0 - series * square / (k * (k + 1))
    first = quarter * series
    half = np.concatenate([first, first[-2::-1]])
    return np.concatenate([half, -half[1:]])


@cache
def _corners(swing: float) -> tuple[F64, F64]:
    """(rate, its integral from 0) at each corner; the whole integral is 1 but for rounding."""
    rate = 1.0 + swing * _sine()
    steps = np.cumsum((rate[:-1] + rate[1:]) / (2.0 * CORNERS))
    return rate, np.concatenate([np.zeros(1), steps])


def sine_time(due: F64, swing: float) -> F64:
    """When ``due`` mean periods of arrivals have come, in periods; 0 ≤ swing < 1."""
    rate, integral = _corners(swing)
    whole = np.floor(due)
    rest = due - whole
    corner = np.clip(np.searchsorted(integral, rest, side="right") - 1, 0, CORNERS - 1)
    start, slope = rate[corner], (rate[corner + 1] - rate[corner]) * CORNERS
    left = rest - integral[corner]
    # t = (√(r₀² + 2·slope·Λ) − r₀) / slope, in the form that does not cancel.
    root = np.sqrt(np.maximum(start * start + 2.0 * slope * left, 0.0))
    result: F64 = whole + corner / CORNERS + 2.0 * left / (start + root)
    return result
