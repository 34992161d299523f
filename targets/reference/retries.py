"""How often a gateway may ask once more: a budget over all requests, so that retries never storm.

The budget is the one of Envoy and Finagle: retries of the last ten seconds stay under a fifth of
its requests, and a floor for quiet times. Weakness ``retry_storm`` is its absence.
"""

from __future__ import annotations

from survive.clock import Clock

SHARE = 0.2
FLOOR = 10  # retries of the window that are always allowed
WINDOW_S = 10


class RetryBudget:
    """Requests and retries of the last ten whole seconds."""

    def __init__(self, clock: Clock, share: float = SHARE) -> None:
        self._clock = clock
        self._share = share
        self._second = 0
        self._requests = [0] * WINDOW_S
        self._retries = [0] * WINDOW_S
        self.taken = 0
        self.refused = 0

    def request(self) -> None:
        """A first attempt begins."""
        self._turn()
        self._requests[self._second % WINDOW_S] += 1

    def take(self) -> bool:
        """Whether one more retry is within the budget; if so it is taken."""
        self._turn()
        if sum(self._retries) >= FLOOR + self._share * sum(self._requests):
            self.refused += 1
            return False
        self._retries[self._second % WINDOW_S] += 1
        self.taken += 1
        return True

    def _turn(self) -> None:
        second = self._clock.now_us() // 1_000_000
        if second == self._second:
            return
        for passed in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
            self._requests[passed % WINDOW_S] = self._retries[passed % WINDOW_S] = 0
        self._second = second
