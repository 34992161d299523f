"""Bursty arrivals: the gaps of a gamma renewal process with a coefficient of variation ≥ 1.

Gaps on the Λ axis are independent, Gamma(a, mean 1) with a = 1/CV². They are drawn by rejection
(Ahrens and Dieter 1974, algorithm GS, exact for 0 < a ≤ 1), which needs uniforms, ln and exp only.
Gap i of chunk c is a function of (seed, c, i) and of nothing else: a rejected candidate takes its
next words from the stream of the next attempt, not from its neighbour's.
"""

from __future__ import annotations

import numpy as np

from survive.plan.chance import F64, MOST_WORDS, bits, exp, inner_uniforms, ln

CHUNK = MOST_WORDS // 2  # gaps drawn at once: many, since arrays of 256 cost ten times as much each
_E = 2.718281828459045
_WAIT = 4  # stream of the first wait; 0..3 belong to arrivals.py
_ATTEMPT = 5  # and all streams from here up: one for each attempt


def gaps(seed: int, chunk: int, cv: float) -> F64:
    """The 4096 gaps of a chunk, in mean gaps; each ends at an arrival.

    The first of all is the wait of a process that has run for ever: E[N(Λ)] = Λ exactly. Begun
    with a whole gap instead, it would bring (CV² − 1)/2 arrivals too many (Cox 1962, §4.2): 87
    at CV 13.2.
    """
    shape = 1.0 / (cv * cv)
    drawn = _gamma(seed, chunk, shape)
    if chunk == 0:
        drawn[0] = _first_wait(seed, float(drawn[0]))
    return drawn / shape


def _first_wait(seed: int, gap: float) -> float:
    """A uniform part of a length-biased gap, which is Gamma(a + 1) = Gamma(a) + Exp(1)."""
    part, other = inner_uniforms(bits(seed, _WAIT, 0, 2))
    return float(part * (gap - ln(np.array([other]))[0]))


def _gamma(seed: int, chunk: int, shape: float) -> F64:
    """4096 variates of Gamma(shape, scale 1), 0 < shape ≤ 1; what underflows is 0."""
    found = np.empty(CHUNK, dtype=np.float64)
    waiting = np.arange(CHUNK)
    attempt = 0
    edge = (_E + shape) / _E
    while len(waiting):
        words = inner_uniforms(bits(seed, _ATTEMPT + attempt, chunk, MOST_WORDS))
        p, log_u = edge * words[waiting], ln(words[CHUNK + waiting])
        small = p <= 1.0
        log = ln(np.where(small, p, (edge - p) / shape))
        candidate, bound = np.empty_like(p), np.empty_like(p)
        candidate[small] = exp(log[small] / shape)
        bound[small] = -candidate[small]
        # At least 1 but for rounding at the edge.
        candidate[~small] = np.maximum(-log[~small], 1.0)
        bound[~small] = (shape - 1.0) * ln(candidate[~small])
        accept = log_u <= bound
        found[waiting[accept]] = candidate[accept]
        waiting = waiting[~accept]
        attempt += 1
    return found
