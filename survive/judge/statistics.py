"""Exact binomial inference on the share of bad requests (DESIGN law 6). No dependency but math.

One-sided 95 % Clopper–Pearson bounds decide, the two-sided 90 % interval that they form is what
is printed. Clopper & Pearson 1934; bounds through the regularised incomplete beta function by
Lentz' continued fraction (Press et al., Numerical Recipes, §6.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from survive.judge.verdict import Word

ALPHA = 0.05  # of each one-sided test
_TINY = 1e-300
_MAX_TERMS = 1_000_000  # the fraction needs about sqrt(n) of them
_DAY_S = 86_400.0


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by modified Lentz."""
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    result = d
    for m in range(1, _MAX_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + term * d
            d = 1 / (d if abs(d) > _TINY else _TINY)
            c = 1 + term / c
            c = c if abs(c) > _TINY else _TINY
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            return result
    raise ArithmeticError(f"incomplete beta({a}, {b}) at {x} does not converge")


def _log_weight(a: float, b: float, x: float) -> float:
    """ln of x^a (1−x)^b / B(a, b)."""
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return a * math.log(x) + b * math.log1p(-x) - log_beta


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for a, b > 0."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    weight = math.exp(_log_weight(a, b, x))
    if x < (a + 1) / (a + b + 2):
        return weight * _fraction(a, b, x) / a
    return 1 - weight * _fraction(b, a, 1 - x) / b


@lru_cache(maxsize=4096)
def binomial_cdf(k: float, n: float, p: float) -> float:
    """P(X ≤ k) of X ~ Binomial(n, p), continued to real k and n by the beta function."""
    if k < 0:
        return 0.0
    return 1.0 if k >= n else incomplete_beta(n - k, k + 1, 1 - p)


def upper_bound(bad: float, n: float, alpha: float = ALPHA) -> float:
    """The largest share that ``bad`` of ``n`` does not rule out at ``alpha``; 1 if n is 0."""
    if bad >= n:
        return 1.0
    # P(X ≤ bad; p) = 1 − I_p(bad + 1, n − bad) = alpha
    return _beta_quantile(1 - alpha, bad + 1, n - bad)


def lower_bound(bad: float, n: float, alpha: float = ALPHA) -> float:
    """The smallest share that ``bad`` of ``n`` does not rule out at ``alpha``; 0 if none is bad."""
    if bad <= 0:
        return 0.0
    # P(X ≥ bad; p) = I_p(bad, n − bad + 1) = alpha
    return _beta_quantile(alpha, bad, n - bad + 1)


@lru_cache(maxsize=4096)
def _beta_quantile(wanted: float, a: float, b: float) -> float:
    """x with I_x(a, b) = wanted: Newton's steps kept inside a bracket."""
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(200):
        miss = incomplete_beta(a, b, x) - wanted
        low, high = (low, x) if miss > 0 else (x, high)
        density = math.exp(_log_weight(a, b, x)) / (x * (1 - x))
        step = x - miss / density if density > _TINY else -1.0
        following = step if low < step < high else (low + high) / 2
        if abs(following - x) <= 1e-12 * x or high - low <= 1e-15:
            return following
        x = following
    raise ArithmeticError(f"no quantile {wanted} of beta({a}, {b})")


@dataclass(frozen=True, slots=True)
class Decision:
    """What the numbers of a cell say, and what would decide if they do not."""

    word: Word
    why: str = ""


def significantly_good(bad: float, n: float, allowed: float) -> bool:
    """The one-sided upper bound of the bad share is within what is allowed."""
    if n <= 0 or allowed <= 0:
        return False
    return allowed >= 1 or binomial_cdf(bad, n, allowed) <= ALPHA


def significantly_bad(bad: float, n: float, allowed: float) -> bool:
    """The one-sided lower bound of the bad share is above what is allowed."""
    return bad > 0 and allowed < 1 and 1 - binomial_cdf(bad - 1, n, max(allowed, 0.0)) < ALPHA


def decide(bad: int, n: int, allowed: float, rps: float, effect: float = 1.0) -> Decision:
    """Survived, failed, or undecided at 95 %. ``rps``: requests per second that would come on.

    ``effect`` is the design effect of clusters: so many requests weigh as one.
    """
    if significantly_good(bad / effect, n / effect, allowed):
        return Decision(Word.SURVIVED)
    if significantly_bad(bad / effect, n / effect, allowed):
        return Decision(Word.FAILED)
    if significantly_good(bad, n, allowed) or significantly_bad(bad, n, allowed):
        return Decision(
            Word.INCONCLUSIVE,
            f"what is bad comes in clusters: {n:,} requests weigh as {n / effect:,.0f}; "
            "a longer steady load would decide",
        )
    if n == 0:
        return Decision(Word.INCONCLUSIVE, "nothing was measured in this window")
    if allowed <= 0:
        return Decision(Word.INCONCLUSIVE, "no number of requests can show 100 %")
    worse = "; what was seen is worse than the limit" if bad / n > allowed else ""
    return Decision(Word.INCONCLUSIVE, _more_needed(bad, n, allowed, rps) + worse)


NONE_LEAST = 59  # good ones that show 95 % at 95 %: 0.95^59 < 5 %


def decide_none(bad: int, n: int) -> Decision:
    """A limit of 100 % means none: one bad is one too many, and enough must have been looked at
    (docs/decisions/0004)."""
    if bad:
        return Decision(Word.FAILED)
    if n >= NONE_LEAST:
        return Decision(Word.SURVIVED)
    return Decision(Word.INCONCLUSIVE, f"{n} findings, {NONE_LEAST} needed with none bad")


def _more_needed(bad: int, n: int, allowed: float, rps: float) -> str:
    needed = requests_to_decide(bad, n, allowed, rps)
    if needed is None:
        return f"{bad} bad of {n} is too near the limit to decide"
    seconds = max(1, math.ceil((needed - n) / rps)) if rps > 0 else 0
    more = f"about {seconds} more second{'s' if seconds != 1 else ''} would decide"
    return f"too few requests: {bad} bad of {n}; {more}" if rps > 0 else f"too few requests: {n}"


def requests_to_decide(bad: int, n: int, allowed: float, rps: float) -> int | None:
    """How many requests in all would decide if the observed share stayed; None: not in a day."""
    share = bad / n if n else 0.0
    most = n + math.ceil(max(rps, 1.0) * _DAY_S)

    def decided(total: int) -> bool:
        expected = round(share * total)
        return significantly_good(expected, total, allowed) or significantly_bad(
            expected, total, allowed
        )

    low, high = n, max(2 * n, 64)
    while not decided(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:  # decidedness is all but monotone: good enough for "about"
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def tolerates(n: int, allowed_share: float) -> int | None:
    """The most bad requests of n that still survive; None if not even none is enough."""
    if allowed_share >= 1:
        return n
    if not significantly_good(0, n, allowed_share):
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        good = significantly_good(middle, n, allowed_share)
        low, high = (middle, high) if good else (low, middle)
    return low


def rank_interval(n: int, share: float) -> tuple[int, int]:
    """Ranks (1-based) of the order statistics that hold the quantile ``share`` with 90 %.

    The first may be 0 (no lower bound), the second n + 1 (no upper bound). With X ~ Bin(n, share)
    the quantile lies below the r-th of n values with probability at most P(X ≤ r − 1).
    """
    low = _least(n, share, ALPHA)  # the least k with P(X ≤ k) > 5 %: rank k is still too low
    high = _least(n, share, 1 - ALPHA)
    return low, high + 1


def _least(n: int, share: float, wanted: float) -> int:
    """The least k with P(X ≤ k) > wanted (≥ for the upper tail, which no float tells apart)."""
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if binomial_cdf(middle, n, share) > wanted else (middle, high)
    return high
