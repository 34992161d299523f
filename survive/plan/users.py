"""Who is there, and when: the users of a closed model, by number.

Users come in order of their number and leave in the reverse order. A ramp from a to b users takes
them in evenly, so that over it there are (a + b) / 2 on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from survive.scenario.model import Phase


def spells(phases: Sequence[Phase], number: int) -> list[tuple[int, int]]:
    """The times [from, until) for which a user is there, in order."""
    found: list[tuple[int, int]] = []
    for start, end in _of_each(phases, number):
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, end))
    return found


def users_at(phases: Sequence[Phase], t_us: int) -> int:
    """How many are there at a moment; 0 outside the phases."""
    for phase in phases:
        if phase.start_us <= t_us < phase.end_us and phase.users is not None:
            users = phase.users
            part = (t_us - phase.start_us) / (phase.end_us - phase.start_us)
            return users.start + round((users.end - users.start) * part)
    return 0


def mean_users(phases: Sequence[Phase], start_us: int, end_us: int) -> float:
    """The mean number of users in [start, end)."""
    total = 0.0
    for phase in phases:
        first, last = max(start_us, phase.start_us), min(end_us, phase.end_us)
        if phase.users is None or first >= last:
            continue
        slope = (phase.users.end - phase.users.start) / (phase.end_us - phase.start_us)
        middle = (first + last) / 2 - phase.start_us
        total += (phase.users.start + slope * middle) * (last - first)
    return total / (end_us - start_us) if end_us > start_us else 0.0


def _of_each(phases: Sequence[Phase], number: int) -> Iterator[tuple[int, int]]:
    for phase in phases:
        assert phase.users is not None, "either all phases have users, or none"
        first, last = phase.users.start, phase.users.end
        if number < min(first, last):
            yield phase.start_us, phase.end_us
        elif number < max(first, last):
            place = number - first if last > first else first - 1 - number
            span = phase.end_us - phase.start_us
            turn = phase.start_us + span * (2 * place + 1) // (2 * abs(last - first))
            yield (turn, phase.end_us) if last > first else (phase.start_us, turn)
