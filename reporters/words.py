"""Numbers as people read them: few digits, a unit, and never a rounding that hides a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from survive.judge.verdict import Number
from survive.units import SECOND

NOTHING = "-"
CLOSED = (
    "closed loop: latency excludes the time users could not ask; see docs/coordinated-omission.md"
)
_TINY = 1e-4


def digits(value: float, significant: int = 3, beside: Sequence[float] = ()) -> str:
    """``1234.5`` → ``1,230``; never an exponent, no trailing zeros.

    More digits are shown until the text differs from every number of ``beside`` that the value
    itself differs from: 800.4 beside a limit of 800 is ``800.4``, not ``800``.
    """
    if value == 0:
        return "0"
    if abs(value) < _TINY:
        return f"<{_TINY:.4f}"
    for shown in range(significant, 16):
        text = _fixed(value, shown)
        seen = float(text.replace(",", ""))
        if not any(
            seen == other and not math.isclose(value, other, rel_tol=1e-14) for other in beside
        ):
            break
    return text


def _fixed(value: float, significant: int) -> str:
    magnitude = math.floor(math.log10(abs(value)))
    places = significant - 1 - magnitude
    text = f"{round(value, places):,.{max(0, places)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(number: int) -> str:
    """``2104`` → ``2,104``."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """``1 fault``, ``2 faults``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def share(value: float, beside: float | None = None, significant: int = 4) -> str:
    """``0.99712`` → ``99.71 %``; 100 % and 0 % only if they are exact."""
    others = [0.0, 100.0] + ([] if beside is None else [beside * 100])
    return f"{digits(value * 100, significant, others)} %"


def milliseconds(value: float, beside: float | None = None) -> str:
    """``412.3`` → ``412 ms``; from 10 s on in seconds."""
    if value >= 10_000:
        return f"{digits(value / 1000, 3, [] if beside is None else [beside / 1000])} s"
    return f"{digits(value, 3, [] if beside is None else [beside])} ms"


def seconds(value: float | None, beside: float | None = None) -> str:
    """``1.43`` → ``1.4 s`` (recovery is seen to the second only); None → ``-``."""
    if value is None:
        return NOTHING
    return f"{digits(value, 2, [] if beside is None else [beside])} s"


def quantity(value: Number, unit: str, beside: float | None = None) -> str:
    """A number of a cell in its unit; ``inf`` stays, None is ``-``."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "inf"
    if unit == "share":
        return share(value, beside)
    if unit in {"ms", "s"}:
        return milliseconds(value, beside) if unit == "ms" else seconds(value, beside)
    said = digits(value, 4, [] if beside is None else [beside])
    return {"per s": f"{said}/s", "x": f"{said}x", "": said}.get(unit, f"{said} {unit}")


def interval(low: Number, high: Number, unit: str) -> str:
    """``99.63..99.77``, in the unit of the quantity beside it; empty if there is none."""
    if (low is None and high is None) or (unit == "s" and low == high):
        return ""
    if unit == "share":
        return f"{_end(low, _percent)}..{_end(high, _percent)}"
    if unit == "ms" and any(
        isinstance(v, int | float) and 1e4 <= v < math.inf for v in (low, high)
    ):
        return f"{_end(low, _thousandth)}..{_end(high, _thousandth)} s"
    return f"{_end(low, digits)}..{_end(high, digits)}"


def _end(value: Number, show: Callable[[float], str]) -> str:
    if value is None:
        return "?"
    return "inf" if isinstance(value, str) or math.isinf(value) else show(value)


def _percent(value: float) -> str:
    """Two decimals, so that both ends align; more where they would claim 0 or 100."""
    text = f"{value * 100:.2f}"
    exact = value in (0.0, 1.0) or text in ("0.00", "100.00")
    return digits(value * 100, 4, [0.0, 100.0]) if exact else text


def _thousandth(value: float) -> str:
    return digits(value / 1000)


def rate(rps: float) -> str:
    """``69.44`` → ``69.4/s``."""
    return f"{digits(rps)}/s"


def span(us: float) -> str:
    """``84_000_000`` → ``1m24s``; below a minute with a tenth, ``8.5s``."""
    total = us / SECOND
    if total < 59.95:
        return f"{round(total, 1):g}s"
    whole = round(total)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}h{minutes:02}m{left:02}s" if hours else f"{minutes}m{left:02}s"


def tick(t_s: int) -> str:
    """A label of the time axis: ``20s``, ``2m``, ``1m30``, ``1h``, ``1h30``."""
    if t_s < 60:
        return f"{t_s}s"
    if t_s < 3600:
        return f"{t_s // 60}m{t_s % 60:02}" if t_s % 60 else f"{t_s // 60}m"
    minutes = t_s % 3600 // 60
    return f"{t_s // 3600}h{minutes:02}" if minutes else f"{t_s // 3600}h"
