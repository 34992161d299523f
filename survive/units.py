"""Quantities as people write them: ``300ms``, ``400M/day``, ``99.5%``, ``1/1000``, ``2.50 USD/h``.

Inside, a duration is an integer of microseconds, a rate is requests per second, a share is 0..1.
Every number carries its unit; a bare number is an error, so that nobody has to guess.
Numbers are plain decimals without sign or exponent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

US = 1
MS = 1_000
SECOND = 1_000_000

_DURATION_UNITS = {
    "us": 1,
    "µs": 1,
    "ms": MS,
    "s": SECOND,
    "m": 60 * SECOND,
    "min": 60 * SECOND,
    "h": 3600 * SECOND,
    "d": 86_400 * SECOND,
}
_PER_UNITS = {
    "s": 1,
    "sec": 1,
    "min": 60,
    "m": 60,
    "h": 3600,
    "hour": 3600,
    "day": 86_400,
    "d": 86_400,
}
_MULTIPLES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}

_NUMBER = r"(\d+(?:\.\d+)?)"
_DURATION = re.compile(rf"{_NUMBER}\s*(us|µs|ms|s|min|m|h|d)")
_RATE = re.compile(rf"{_NUMBER}\s*([kKMBG]?)\s*/\s*(sec|s|min|m|hour|h|day|d)")
_SHARE = re.compile(rf"{_NUMBER}\s*%")
_SCALE = re.compile(r"(\d+)\s*/\s*(\d+)")
_FACTOR = re.compile(rf"{_NUMBER}\s*x")
_COST = re.compile(rf"{_NUMBER}\s*([A-Z]{{3}})\s+per\s+(\d+)\s*([kM]?)\s+(tokens|answers)")
_MONEY = re.compile(rf"{_NUMBER}\s*([A-Z]{{3}})\s*/\s*(h|hour|d|day|s|min)")


class UnitError(ValueError):
    """A quantity that cannot be read; the message says what was meant."""


# Other tools' and people's ways to write a time: 1m30s, 42 seconds, 1:30. Said back, never guessed.
_SPOKEN = re.compile(rf"{_NUMBER}\s*([a-zµ]+)")
_CLOCK = re.compile(r"(\d+):([0-5]\d)")


def _meant_us(text: str) -> int | None:
    clock = _CLOCK.fullmatch(text)
    if clock:
        return (60 * int(clock[1]) + int(clock[2])) * SECOND
    if not re.fullmatch(rf"(?:{_SPOKEN.pattern}\s*)+", text):
        return None
    units = {**_DURATION_UNITS, "sec": SECOND, "second": SECOND, "minute": 60 * SECOND}
    units |= {"hour": 3600 * SECOND, "day": 86_400 * SECOND, "hr": 3600 * SECOND}
    parts = [(n, units.get(u) or units.get(u.removesuffix("s"))) for n, u in _SPOKEN.findall(text)]
    return round(sum(Fraction(n) * u for n, u in parts if u)) if all(u for _, u in parts) else None


def _match(pattern: re.Pattern[str], text: object, what: str, example: str) -> re.Match[str]:
    found = pattern.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise UnitError(f"{text!r} is not a {what}; write it like {example}")
    return found


def duration_us(text: object) -> int:
    """``"300ms"`` → 300_000. Units: us ms s m min h d. Zero is legal here; callers say if not."""
    meant = _meant_us(text.strip()) if isinstance(text, str) else None
    if meant is not None and not _DURATION.fullmatch(str(text).strip()):
        raise UnitError(f"{text!r} is not a duration; write {show_us(meant)}")
    found = _match(_DURATION, text, "duration", "300ms, 8s or 10m")
    exact = Fraction(found[1]) * _DURATION_UNITS[found[2]]
    return round(exact)


def rate_rps(text: object) -> Fraction:
    """``"400M/day"`` → requests per second, exact. Multiples k M B; per s min h day."""
    found = _match(_RATE, text, "rate", "400M/day or 50/s")
    return Fraction(found[1]) * _MULTIPLES[found[2]] / _PER_UNITS[found[3]]


def share(text: object) -> float:
    """``"99.5%"`` → 0.995. Over 100 % is an error."""
    found = _match(_SHARE, text, "share", "60%")
    value = Fraction(found[1]) / 100
    if value > 1:
        raise UnitError(f"{text!r} is over 100%")
    return float(value)


def scale(text: object) -> Fraction:
    """``"1/1000"`` → Fraction(1, 1000)."""
    found = _match(_SCALE, text, "scale", "1/1000")
    if int(found[1]) == 0 or int(found[2]) == 0:
        raise UnitError(f"{text!r} is zero")
    return Fraction(int(found[1]), int(found[2]))


def factor(text: object) -> float:
    """``"3x"`` → 3.0."""
    return float(_match(_FACTOR, text, "factor", "3x")[1])


@dataclass(frozen=True, slots=True)
class Price:
    """Money per time of one replica."""

    amount: float
    currency: str
    per_s: int


def price(text: object) -> Price:
    """``"2.50 USD/h"`` → Price(2.5, "USD", 3600)."""
    found = _match(_MONEY, text, "price", "2.50 USD/h")
    return Price(float(found[1]), found[2], {"min": 60}.get(found[3]) or _PER_UNITS[found[3]])


@dataclass(frozen=True, slots=True)
class Cost:
    """Money for so many tokens or good answers."""

    amount: float
    currency: str
    each: str  # "1M", "1k", "500", as written
    count: int
    what: str  # tokens | answers

    @property
    def unit(self) -> str:
        """``USD per 1M tokens``."""
        return f"{self.currency} per {self.each} {self.what}"


def cost(text: object) -> Cost:
    """``"3 USD per 1M tokens"``, ``"2 USD per 1k answers"``."""
    found = _match(_COST, text, "cost", "3 USD per 1M tokens or 2 USD per 1k answers")
    count = int(found[3]) * _MULTIPLES[found[4]]
    if not count:
        raise UnitError(f"{text!r} is per nothing")
    return Cost(float(found[1]), found[2], f"{int(found[3])}{found[4]}", count, found[5])


class Duration(int):
    """Microseconds; a fault setting of this type is written ``300ms``."""

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read ``300ms``; raises UnitError."""
        return cls(duration_us(text))

    def __str__(self) -> str:
        return show_us(self)


class Share(float):
    """0..1; a fault setting of this type is written ``20%``."""

    @classmethod
    def parse(cls, text: object) -> Share:
        """Read ``20%``; raises UnitError."""
        return cls(share(text))

    def __str__(self) -> str:
        return f"{float(self) * 100:.6g}%"


class Factor(float):
    """A multiple; a fault setting of this type is written ``3x``."""

    @classmethod
    def parse(cls, text: object) -> Factor:
        """Read ``3x``; raises UnitError."""
        return cls(factor(text))

    def __str__(self) -> str:
        return f"{float(self):.6g}x"


def show_us(us: float) -> str:
    """A duration for people: ``1.2 ms`` style without losing exactness of round values."""
    for unit, size in (("h", 3600 * SECOND), ("m", 60 * SECOND), ("s", SECOND), ("ms", MS)):
        if us >= size:
            if unit in {"h", "m"} and us % size:
                continue
            return f"{us / size:.6g}{unit}"
    return f"{us:.6g}us"


def show_rps(rps: float) -> str:
    """A rate for people: ``69.4/s``, ``10.2k/s``."""
    return (
        f"{rps / 1000:.3g}k/s"
        if rps >= 10_000
        else f"{rps:.3g}/s"
        if rps < 1000
        else f"{rps:.0f}/s"
    )
