"""The replicas behind a gateway: whom to ask next, and who is not to be asked for now.

Least-loaded routing: the fewest in flight, ties in rotation. A replica is ejected by two failed
active checks, by three failed calls in a row, or at once when it refuses or resets; one passed
check readmits it. An overloaded replica (503 with Retry-After) is no failing one: ejecting it would
only push its load on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from survive.clock import Clock, sleep_us
from survive.contracts import Call
from survive.transport import Broken, CallFailedError, Request, read_all

CHECK_EVERY_US = 500_000
CHECK_FIRST_US = 100_000  # until the first pass, so that a fresh stack is ready early
CHECK_TIMEOUT_S = 1.0  # above a link that is merely slow
CHECKS_TO_EJECT = 2
FAILURES_TO_EJECT = 3

_CHECK = Request("GET", "/health")
_AT_ONCE = frozenset({Broken.REFUSED, Broken.RESET})


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

    def eject(self) -> None:
        """Ask it no more until a check passes."""
        self.healthy = False
        self.ejections += 1


class Upstreams:
    """All replicas of one service, in the order of their link variable."""

    def __init__(self, service: str, addresses: Sequence[str], *, checked: bool) -> None:
        """``checked`` False = the weakness ``no_health_checks``: everyone is always asked."""
        self.service = service
        self.checked = checked
        self.all = [
            Upstream(f"{service}-{number}", address, healthy=not checked)
            for number, address in enumerate(addresses)
        ]
        self._turn = 0

    def any_healthy(self) -> bool:
        """At least one may be asked."""
        return any(upstream.healthy for upstream in self.all)

    def pick(self, not_this: Upstream | None = None) -> Upstream | None:
        """Whom to ask; None if nobody is healthy. Without checks ``not_this`` has no effect."""
        count = len(self.all)
        self._turn += 1
        best: Upstream | None = None
        for step in range(count):
            upstream = self.all[(self._turn + step) % count]
            if not upstream.healthy or (self.checked and upstream is not_this):
                continue
            if best is None or upstream.in_flight < best.in_flight:
                best = upstream
        return best

    def answered(self, upstream: Upstream) -> None:
        """A call to it went well."""
        upstream.failed_in_row = 0

    def failed(self, upstream: Upstream, why: str) -> None:
        """A call to it failed; ``why`` is a Broken or ``status_<n>``."""
        upstream.failures[why] = upstream.failures.get(why, 0) + 1
        upstream.failed_in_row += 1
        enough = why in _AT_ONCE or upstream.failed_in_row >= FAILURES_TO_EJECT
        if self.checked and upstream.healthy and enough:
            upstream.eject()

    async def check(self, upstream: Upstream, clock: Clock, call: Call) -> None:
        """Ask ``/health`` for ever; a background task."""
        passed_once = False
        while True:
            ejections = upstream.ejections
            if await _passes(upstream, call):
                passed_once = True
                upstream.failed_checks = 0
                # A pass that was asked for before an ejection says nothing about it.
                if not upstream.healthy and upstream.ejections == ejections:
                    upstream.healthy = True
                    upstream.failed_in_row = 0
            else:
                upstream.failed_checks += 1
                if upstream.healthy and upstream.failed_checks >= CHECKS_TO_EJECT:
                    upstream.eject()
            await sleep_us(clock, CHECK_EVERY_US if passed_once else CHECK_FIRST_US)


async def _passes(upstream: Upstream, call: Call) -> bool:
    try:
        response = await call(upstream.address, _CHECK, timeout_s=CHECK_TIMEOUT_S)
        await read_all(response)
    except CallFailedError:
        return False
    return response.status == 200
