"""Users of a closed model: when each asks, and what. Free of sockets and loops.

A user comes in somewhere in the middle of thinking, asks, waits for the answer, thinks, and asks
again, until it leaves; what it has asked by then it waits for. Everything about a user is drawn
from (seed, user, turn): the same seed gives the same questions and the same pauses, whatever the
answers. A request is due when its user has thought to the end, and latency counts from there.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from itertools import accumulate

from survive.load.core import Filing, Job
from survive.plan.chance import bits, ln, uniforms
from survive.plan.model import Plan
from survive.plan.users import spells
from survive.scenario.model import Users

_THINK, _KIND, _ROW = (1 << 33, (1 << 33) + 1, (1 << 33) + 2)  # streams of bits, see chance.py
_TURNS = 64  # drawn at once
_LEAST_US = 1  # between an answer and the next question: time must pass, even if nobody thinks


class User:
    """One user. ``next_turn`` is called once at the start, and after each answer."""

    def __init__(self, plan: Plan, filing: Filing, number: int) -> None:
        self.number = number
        self._seed = plan.seed
        self._filing = filing
        self._users = plan.most_users
        self._phases = plan.phases
        self._mixes = [[*accumulate(p.shares[kind] for kind in plan.kinds)] for p in plan.phases]
        self._spells = spells(plan.phases, number)
        self._spell = -1
        self._turn = 0
        self._phase = 0
        self._thinks: list[float] = []
        self._waits: list[float] = []
        self._kinds: list[float] = []
        self._rows: list[int] = []

    def next_turn(self, now_us: int) -> Job | None:
        """Its next question; None = it has left for good. ``now_us``: of the last answer."""
        at = self._turn % _TURNS
        if at == 0:
            self._draw(self._turn // _TURNS)
        due = self._due_us(now_us, at)
        if due is None:
            return None
        index = self._phase_at(due)
        kind = min(bisect_right(self._mixes[index], self._kinds[at]), len(self._mixes[index]) - 1)
        number = self._turn * self._users + self.number
        self._turn += 1
        return Job(number, due, kind, self._rows[at], self._filing.slice_of(due), due)

    def here(self, t_us: int) -> bool:
        """Whether it is there at a moment."""
        return any(came <= t_us < leaves for came, leaves in self._spells)

    def _due_us(self, now_us: int, at: int) -> int | None:
        if self._spell >= 0:
            due = now_us + max(_LEAST_US, self._think_us(self._of(now_us), self._thinks[at]))
            if due < self._spells[self._spell][1]:
                return due
        while self._spell + 1 < len(self._spells):
            self._spell += 1
            came, leaves = self._spells[self._spell]
            due = max(came, now_us) + self._first_us(self._of(came), at)
            if due < leaves:
                return due
        return None

    def _think_us(self, users: Users, drawn: float) -> int:
        return round(users.think_us * drawn) if users.exponential else users.think_us

    def _first_us(self, users: Users, at: int) -> int:
        """Of a pause that is under way: the rest. An exponential one is as long as a whole one."""
        drawn = self._thinks[at] if users.exponential else self._waits[at]
        return round(users.think_us * drawn)

    def _of(self, t_us: int) -> Users:
        users = self._phases[self._phase_at(t_us)].users
        assert users is not None
        return users

    def _phase_at(self, t_us: int) -> int:
        """Time only goes on."""
        last = len(self._phases) - 1
        while self._phase < last and self._phases[self._phase].end_us <= t_us:
            self._phase += 1
        return self._phase

    def _draw(self, block: int) -> None:
        place = (self.number << 32) + block
        waits = uniforms(bits(self._seed, _THINK, place, _TURNS))
        self._waits = waits.tolist()
        self._thinks = (-ln(1.0 - waits)).tolist()
        self._kinds = uniforms(bits(self._seed, _KIND, place, _TURNS)).tolist()
        self._rows = [int(word) >> 32 for word in bits(self._seed, _ROW, place, _TURNS)]


def users_of(plan: Plan, filing: Filing, worker: int = 0, workers: int = 1) -> list[User]:
    """Everybody who is ever there, by number; nobody in an open model. Of several workers each has
    every so-manieth, for good: nobody can take over in the middle of a question."""
    return [User(plan, filing, number) for number in range(worker, plan.most_users, workers)]


class Turns:
    """Whose turn it is: a Cursor of those who think. Nobody waits in line, so nothing expires."""

    def __init__(self, plan: Plan, filing: Filing, worker: int = 0, workers: int = 1) -> None:
        self._most = plan.most_users
        self._users = {user.number: user for user in users_of(plan, filing, worker, workers)}
        self._waiting: list[tuple[int, int, Job]] = []
        for user in self._users.values():
            self._ask_next(user, 0)

    def next_due_us(self) -> int | None:
        """When the next question is due; None = all who are there wait for answers."""
        return self._waiting[0][0] if self._waiting else None

    def take(self, now_us: int, _free_us: int) -> Job | None:
        """A question that is due."""
        if not self._waiting or self._waiting[0][0] > now_us:
            return None
        return heapq.heappop(self._waiting)[2]

    def answered(self, job: Job, now_us: int) -> None:
        """Its user begins to think."""
        self._ask_next(self._users[self.user_of(job)], now_us)

    def user_of(self, job: Job) -> int:
        """The number of who asks."""
        return job.number % self._most

    def present(self, t_us: int) -> int:
        """How many are there."""
        return sum(user.here(t_us) for user in self._users.values())

    def expire(self, now_us: int) -> None:
        """Nothing waits but for its own user."""

    def forget(self, now_us: int) -> None:
        """Nothing is kept."""

    def stop(self, now_us: int) -> None:
        """Who thinks has asked nothing yet."""
        self._waiting.clear()

    def _ask_next(self, user: User, now_us: int) -> None:
        job = user.next_turn(now_us)
        if job is not None:
            heapq.heappush(self._waiting, (job.intended_us, user.number, job))
