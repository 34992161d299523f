"""HDR bucket arithmetic: 1 µs to 1 h, 3 significant digits, 23,552 buckets.

The same indices as HdrHistogram's own counts array (checked against the library in the tests), so
that sparse counts can be merged by index and encoded by the library's codec.
"""

from __future__ import annotations

from collections.abc import Iterable

LOWEST_US = 1
HIGHEST_US = 3_600_000_000
DIGITS = 3
BUCKETS = 23_552
_SUB_BITS = 11  # 2 × 10^3 rounded up to a power of two = 2048 sub-buckets
_HALF_BITS = _SUB_BITS - 1


def index_of(value_us: int) -> int:
    """Bucket of a value; clamped to the trackable range."""
    value = min(max(int(value_us), LOWEST_US), HIGHEST_US)
    bucket = max(0, value.bit_length() - _SUB_BITS)
    return (bucket << _HALF_BITS) + (value >> bucket)


def lowest_of(index: int) -> int:
    """Least value that falls into a bucket."""
    bucket = max(0, (index >> _HALF_BITS) - 1)
    return (index - (bucket << _HALF_BITS)) << bucket


def highest_of(index: int) -> int:
    """Greatest value that falls into a bucket (what HdrHistogram reports as a percentile)."""
    bucket = max(0, (index >> _HALF_BITS) - 1)
    return lowest_of(index) + (1 << bucket) - 1


def fold(values_us: Iterable[int]) -> tuple[list[int], list[int]]:
    """Raw values to (indices ascending, counts). For control paths; load folds with numpy."""
    counts: dict[int, int] = {}
    for value in values_us:
        index = index_of(value)
        counts[index] = counts.get(index, 0) + 1
    indices = sorted(counts)
    return indices, [counts[i] for i in indices]
