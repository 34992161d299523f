"""The replicas behind a gateway: whom to ask next, and who is not to be asked for now.

Least-loaded routing: the fewest in flight, ties in rotation. A replica is ejected by two failed
active checks, by three failed calls in a row, or at once when it refuses or resets; one passed
check readmits it. An overloaded replica (503 with Retry-After) is no failing one: ejecting it would
only push its load on the others.

``Care`` adds what a production gateway does. Each replica has a circuit breaker: one that *calls*
ejected is open, and a passed check alone does not close it, for a check may lie; one real call is
let through as a trial, again and again with growing waits, until one succeeds. Whoever comes back
is given its load little by little. Callers with a session stay on one replica while it is well.

Weaknesses: ``sticky_dead_replica``: a session stays where it is, well or not.
``metrics_dependency``: load is read from the replicas' /metrics, and who shows none gets none.
"""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from survive.clock import Clock, sleep_us
from survive.contracts import Call
from survive.transport import Broken, CallFailedError, Request, Response, read_all

CHECK_EVERY_US = 500_000
CHECK_FIRST_US = 100_000  # until the first pass, so that a fresh stack is ready early
CHECK_TIMEOUT_S = 1.0  # above a link that is merely slow
CHECKS_TO_EJECT = 2
FAILURES_TO_EJECT = 3
TRIAL_US = 500_000  # until the first trial; doubled after each that fails
MAX_TRIAL_US = 2_000_000  # below any limit on recovery
SCRAPE_EVERY_US = 1_000_000
SCRAPE_STALE_US = 2_500_000
MAX_SESSIONS = 100_000  # that a weak gateway keeps
CROWDED = 8  # in flight: a session moves on from a replica with twice as many and more than others

_CHECK = Request("GET", "/health")
_METRICS = Request("GET", "/metrics")
_WAITING = re.compile(rb"^vllm:num_requests_waiting(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)
_AT_ONCE = frozenset({Broken.REFUSED, Broken.RESET, Broken.TLS})


@dataclass(frozen=True, slots=True)
class Care:
    """How replicas are chosen and watched; the defaults are the small reference stack's."""

    check_s: float = CHECK_TIMEOUT_S  # how long a health check may take
    checked: bool = True  # False = the weakness no_health_checks: everyone is always asked
    trials: bool = False  # breakers
    slow_start_us: int = 0
    sessions: bool = False
    sticky: bool = False  # sessions stay even with the dead
    round_robin: bool = False
    by_metrics: bool = False


@dataclass(slots=True)
class Upstream:
    """One replica as the gateway knows it."""

    id: str
    address: str
    healthy: bool
    in_flight: int = 0
    attempts: int = 0
    failures: dict[str, int] = field(default_factory=dict)  # why → count
    failed_in_row: int = 0
    failed_checks: int = 0
    ejections: int = 0
    suspect: bool = False  # calls ejected it: only a call readmits it
    checks_well: bool = False
    asleep: bool = False  # by the autoscaler's will: it is no member of the pool
    trying: bool = False  # a trial is under way
    trials_failed: int = 0
    trial_at_us: int = 0
    back_us: int = -(10**12)  # since when it is asked again
    seen_us: int = -(10**12)  # when its metrics were read last
    waiting: float = 0.0  # as they said

    def eject(self) -> None:
        """Ask it no more until a check passes."""
        self.healthy = False
        self.ejections += 1

    @property
    def breaker(self) -> str:
        """closed, open or half-open."""
        if self.healthy:
            return "closed"
        return "half-open" if self.trying else "open"


class Upstreams:
    """All replicas of one service, in the order of their link variable."""

    def __init__(
        self,
        service: str,
        addresses: Sequence[str],
        care: Care,
        clock: Clock,
        chance: random.Random,
    ) -> None:
        self.service = service
        self.checked = care.checked
        self.all = [
            Upstream(f"{service}-{number}", address, healthy=not care.checked)
            for number, address in enumerate(addresses)
        ]
        self._care = care
        self._clock = clock
        self._chance = chance
        self._stuck: dict[bytes, Upstream] = {}  # sessions, of a weak gateway only
        self._turn = 0
        self._suspects = 0
        self._ramp_until_us = 0
        self._back = asyncio.Event()

    def any_healthy(self) -> bool:
        """At least one may be asked."""
        return any(self._may_be_asked(upstream) for upstream in self.all)

    def pick(
        self, not_this: Upstream | None = None, session: bytes = b"", *, trial: bool = False
    ) -> Upstream | None:
        """Whom to ask; None if nobody is healthy. Without checks ``not_this`` has no effect.

        ``trial``: the caller could bear it if the call failed.
        """
        care = self._care
        if self._suspects and (trial or not self.any_healthy()):
            tried = self._due_trial(not_this)
            if tried is not None:
                return tried
        if session and care.sessions:
            kept = self._of_session(session, not_this)
            if kept is not None:
                return kept
        weighted = care.by_metrics or self._clock.now_us() < self._ramp_until_us
        count = len(self.all)
        self._turn += 1
        best: Upstream | None = None
        least = 0.0
        for step in range(count):
            upstream = self.all[(self._turn + step) % count]
            if not upstream.healthy or (self.checked and upstream is not_this):
                continue
            if care.by_metrics and not self._may_be_asked(upstream):
                continue
            if care.round_robin:
                return upstream
            load = self._weighted(upstream) if weighted else upstream.in_flight
            if best is None or load < least:
                best, least = upstream, load
        return best

    def answered(self, upstream: Upstream) -> None:
        """A call to it went well."""
        upstream.failed_in_row = 0
        if upstream.trying:
            upstream.trying = upstream.suspect = False
            upstream.trials_failed = 0
            self._suspects -= 1
            self._readmit(upstream)

    def undecided(self, upstream: Upstream) -> None:
        """A call to it ended without showing whether it is well."""
        if upstream.trying:
            upstream.trying = False
            upstream.trial_at_us = self._clock.now_us() + TRIAL_US

    def leaves(self, upstream: Upstream, answer: Response) -> bool:
        """Whether a refusal says that the replica goes to sleep; if so it is asked no more."""
        if not (self.checked and _sleeps(answer)):
            return False
        self.undecided(upstream)
        upstream.asleep = True
        if upstream.healthy:
            upstream.eject()
        return True

    def failed(self, upstream: Upstream, why: str) -> None:
        """A call to it failed; ``why`` is a Broken or ``status_<n>``."""
        upstream.failures[why] = upstream.failures.get(why, 0) + 1
        upstream.failed_in_row += 1
        if upstream.trying:
            self._open(upstream)
        enough = why in _AT_ONCE or (
            upstream.failed_in_row >= FAILURES_TO_EJECT and not self._panics()
        )
        if self.checked and upstream.healthy and enough:
            upstream.eject()
            if self._care.trials:
                upstream.suspect = True
                self._suspects += 1
                self._open(upstream)

    async def check(self, upstream: Upstream, call: Call) -> None:
        """Ask ``/health`` for ever; a background task."""
        passed_once = False
        while True:
            ejections = upstream.ejections
            upstream.checks_well = await _passes(upstream, call, self._care.check_s)
            if upstream.checks_well:
                passed_once = True
                upstream.failed_checks = 0
                # A pass that was asked for before an ejection says nothing about it.
                if not (upstream.healthy or upstream.suspect) and upstream.ejections == ejections:
                    self._readmit(upstream)
            else:
                upstream.failed_checks += 1
                if upstream.healthy and upstream.failed_checks >= CHECKS_TO_EJECT:
                    upstream.eject()
            await sleep_us(self._clock, CHECK_EVERY_US if passed_once else CHECK_FIRST_US)

    async def discover(self, upstream: Upstream, call: Call) -> None:
        """Who sleeps is not asked, even without health checks; a background task.

        That is membership, not health: a replica that answers nothing stays where it is.
        """
        while True:
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    answer = await call(upstream.address, _CHECK, timeout_s=CHECK_TIMEOUT_S)
                    await read_all(answer)
            except (CallFailedError, TimeoutError):
                pass
            else:
                upstream.asleep = _sleeps(answer)
                if upstream.asleep or answer.status == 200:
                    upstream.healthy = not upstream.asleep
            await sleep_us(self._clock, CHECK_EVERY_US)

    async def scrape(self, upstream: Upstream, call: Call) -> None:
        """Read its metrics for ever: the weakness ``metrics_dependency``; a background task."""
        while True:
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    answer = await call(upstream.address, _METRICS, timeout_s=CHECK_TIMEOUT_S)
                    found = _WAITING.search(await read_all(answer))
            except (CallFailedError, TimeoutError):
                found = None
            if found is not None:
                upstream.waiting = float(found[1])
                upstream.seen_us = self._clock.now_us()
            await sleep_us(self._clock, SCRAPE_EVERY_US if found else CHECK_FIRST_US)

    async def somebody_back(self) -> None:
        """Return once a replica is readmitted."""
        await self._back.wait()

    def _readmit(self, upstream: Upstream) -> None:
        now_us = self._clock.now_us()
        first = upstream.ejections == 0
        upstream.healthy = True
        upstream.failed_in_row = 0
        if self._care.slow_start_us and not first:
            upstream.back_us = now_us
            self._ramp_until_us = now_us + self._care.slow_start_us
        self._back.set()
        self._back = asyncio.Event()

    def _open(self, upstream: Upstream) -> None:
        """The breaker opens (again): the next trial is later each time, and not on the beat."""
        if upstream.trying:
            upstream.trials_failed += 1
        upstream.trying = False
        wait_us = min(MAX_TRIAL_US, TRIAL_US << min(upstream.trials_failed, 10))
        upstream.trial_at_us = self._clock.now_us() + round(
            wait_us * self._chance.uniform(0.75, 1.25)
        )

    def _panics(self) -> bool:
        """Half are out: slow ones are better than none (Envoy's maximum of ejections)."""
        members = [upstream for upstream in self.all if not upstream.asleep]
        out = sum(not upstream.healthy for upstream in members)
        return self._care.trials and out > 0 and 2 * out >= len(members)

    def _due_trial(self, not_this: Upstream | None) -> Upstream | None:
        now_us = self._clock.now_us()
        for upstream in self.all:
            due = upstream.suspect and not upstream.trying and upstream.checks_well
            if due and upstream is not not_this and now_us >= upstream.trial_at_us:
                upstream.trying = True
                return upstream
        return None

    def _of_session(self, session: bytes, not_this: Upstream | None) -> Upstream | None:
        """Rendezvous hashing: when a replica goes, only its own sessions move.

        A replica that is far more loaded than the least loaded one gives sessions away, too.
        """
        stuck = self._stuck.get(session)
        if stuck is not None:
            return stuck
        least = min((u.in_flight for u in self.all if u.healthy), default=0)
        best: Upstream | None = None
        highest = -1
        for upstream in self.all:
            well = self._may_be_asked(upstream) and upstream is not not_this
            if not well or upstream.in_flight >= max(CROWDED, 2 * least + 2):
                continue
            rank = zlib.crc32(upstream.id.encode(), zlib.crc32(session)) * 2654435761 % 2**32
            if rank > highest:
                best, highest = upstream, rank
        if self._care.sticky and best is not None and len(self._stuck) < MAX_SESSIONS:
            self._stuck[session] = best
        return best

    def _may_be_asked(self, upstream: Upstream) -> bool:
        if not self._care.by_metrics:
            return upstream.healthy
        fresh = self._clock.now_us() - upstream.seen_us < SCRAPE_STALE_US
        return upstream.healthy and fresh

    def _weighted(self, upstream: Upstream) -> float:
        """Its load as routing sees it: more than it is while it comes back."""
        ramp_us = self._care.slow_start_us
        load = upstream.in_flight + upstream.waiting
        back_for_us = self._clock.now_us() - upstream.back_us
        if ramp_us and back_for_us < ramp_us:
            return (load + 1) / max(0.05, back_for_us / ramp_us) - 1
        return load


def _sleeps(answer: Response) -> bool:
    return answer.headers.get("x-replica-state", "") in {"asleep", "draining"}


async def _passes(upstream: Upstream, call: Call, within_s: float) -> bool:
    try:
        response = await call(upstream.address, _CHECK, timeout_s=within_s)
        await read_all(response)
    except CallFailedError:
        return False
    upstream.asleep = _sleeps(response)
    return response.status == 200
