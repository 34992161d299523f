"""Chance with the same bytes everywhere: counter-based bits, and ln and exp of our own.

Random bits are the splitmix64 finaliser over (seed, stream, block, position). ln and exp use
exactly rounded operations only, which no libm promises, so the same seed gives the same bytes on
any IEEE-754 machine.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

MOST_WORDS = 8192  # of one stream of one block
# The Weyl sequence of splitmix64: position i of a block's words.
_STEPS: U64 = np.arange(1, MOST_WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def _mix(x: U64) -> U64:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014), element-wise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*parts: int) -> int:
    """Fold integers to a 64-bit key; each part passes the mixer, so near seeds are unrelated."""
    key = 0x9E3779B97F4A7C15
    for part in parts:
        x = key ^ (part & _MASK)  # _mix for one number, without the cost of an array
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
        key = ((x ^ (x >> 31)) + 0x9E3779B97F4A7C15) & _MASK
    return key


def bits(seed: int, stream: int, block: int, count: int) -> U64:
    """``count`` raw 64-bit words of one stream of one block."""
    if count > MOST_WORDS:
        raise ValueError(f"a stream of a block has at most {MOST_WORDS} words")
    return _mix(_STEPS[:count] + np.uint64(_key(seed, stream, block)))


def one_uniform(seed: int, stream: int, *counters: int) -> float:
    """A single number in [0, 1), for events that are few: no array is made."""
    return (_key(seed, stream, *counters, 0) >> 11) * 2.0**-53


def uniforms(words: U64) -> F64:
    """53 bits each, in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def inner_uniforms(words: U64) -> F64:
    """52 bits each, in (0, 1): fit for a logarithm, from either end."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


_LN2 = 0.6931471805599453


def ln(x: F64) -> F64:
    """Natural logarithm by 2·artanh((m−1)/(m+1)) with exactly rounded operations only.

    Error below 4 units in the last place for normal positive x; the same bits everywhere, which
    no libm promises.
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponent = np.where(low, exponent - 1, exponent).astype(np.float64)
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square = z * z
    series = np.zeros_like(z)
    for k in range(25, 0, -2):
        series = series * square + 1.0 / k
    return exponent * _LN2 + 2.0 * z * series


def ln1(x: float) -> float:
    """The same of one number."""
    return float(ln(np.array([x], dtype=np.float64))[0])


# ln 2 in two parts: the first has 32 bits, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_EXP_LEAST, _EXP_MOST = -700.0, 700.0


def exp(x: F64) -> F64:
    """e^x by 2^k · Taylor(x − k ln 2) with exactly rounded operations only.

    Relative error below 1e-15 in [−700, 700]; below it 0, and above it is held at e^700.
    """
    within = np.clip(x, _EXP_LEAST, _EXP_MOST)
    power = np.rint(within * (1.0 / _LN2))
    rest = (within - power * _LN2_HIGH) - power * _LN2_LOW
    series = np.ones_like(rest)
    for k in range(14, 0, -1):
        series = 1.0 + series * rest / k
    result: F64 = np.ldexp(series, power.astype(np.int32))
    return np.where(x < _EXP_LEAST, 0.0, result)
