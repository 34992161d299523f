"""How intended starts are spread: the words of ``arrivals:``, and how bursty each is.

A bursty process is described by the coefficient of variation (CV) of its gaps: 0 is a clock, 1 is
Poisson, more comes in bursts. The presets have the CV of the gaps in Azure's public traces of LLM
inference, about an hour of November 2023 each (Azure/AzurePublicDataset,
AzureLLMInferenceTrace_conv.csv and _code.csv, CC-BY; Patel et al., "Splitwise", ISCA 2024).
Measured from those files:

| preset | requests | rate | CV | busiest 10 s ÷ mean | tokens in p50, p90, p99 | tokens out |
|---|---|---|---|---|---|---|
| azure-conv | 19,366 | 5.5/s | 1.09 | 1.8 | 1020, 2735, 4142 | 129, 424, 601 |
| azure-code | 8,819 | 2.6/s | 13.2 | 12.8 | 1469, 5188, 7436 | 13, 55, 252 |

The word takes the CV and nothing else: rates are the phases', and lengths are rows of the requests
(``data: azure-conv``, see lengths.py). And a gamma process with the CV of a trace is not that
trace. Index of dispersion of counts per second, per 10 s, per minute: azure-code has 13, 71, 161 in
the trace and about 67, 100, 125 here, for the gaps inside a burst are nearly nothing (93 % below
0.1 ms at the trace's rate; in the trace 6 %): seconds are harsher than life, minutes alike. azure-
conv has 1.4, 4.0, 21 in the trace, whose rate drifts, and 1.2, 1.3, 3.4 here: let phases drift.
What is due at the same instant can only be sent one after the other: send lag is larger under
azure-code (p99 8 ms at 69/s on two busy cores, seen once) than under Poisson, and is counted: over
10 ms for more than 1 % makes a run inconclusive, as always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

PRESETS: Mapping[str, float] = {"azure-conv": 1.1, "azure-code": 13.2}
_BURSTY = "bursty cv "
_TRACE = "trace cv "
_SIGMAS = 3


def bursty(cv: float) -> str:
    """The word of a plan for gamma arrivals with that coefficient of variation."""
    return f"{_BURSTY}{cv!r}".removesuffix(".0")


def traced(cv: float) -> str:
    """The word of a plan that replays a trace whose gaps have that coefficient of variation."""
    return f"{_TRACE}{cv!r}".removesuffix(".0")


def burstiness(arrivals: str) -> float | None:
    """The CV of gamma arrivals or of a trace; None for poisson and uniform.

    Raises ValueError for an unknown word.
    """
    if arrivals in {"poisson", "uniform"}:
        return None
    if arrivals in PRESETS:
        return PRESETS[arrivals]
    for word in (_BURSTY, _TRACE):
        if arrivals.startswith(word):
            return float(arrivals.removeprefix(word))
    raise ValueError(f"unknown arrivals {arrivals!r}")


def lanes_needed(arrivals: str, mean: Fraction) -> int:
    """Lanes for what can be under way at once, ``mean`` of it expected (peak rate × timeout).

    DESIGN law 2: the mean × 1.2. Bursts need more: three standard deviations of the count, CV²
    times the mean being its variance. That is no bound, and what exceeds it waits for a lane.
    """
    cv = burstiness(arrivals)
    spread = 0.0 if cv is None else _SIGMAS * cv * math.sqrt(mean)
    return max(1, math.ceil(mean * Fraction(6, 5)), math.ceil(float(mean) + spread))
