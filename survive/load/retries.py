"""Users who ask again: what they try again, and how long they wait before.

Clients as people: a failed call is asked again after a while, each time later, with jitter, until
the user's deadline. The lane stays with its intent meanwhile, since a person who waits sends
nothing else. Chance is counter-based (seed, number of the request, number of the attempt), so a
retried run repeats to the microsecond whatever else happens in it.

Tried again: what came to nothing (refused, reset, closed, no connect in time) and what a server
says of itself (429, 5xx), POSTs too: people press reload. Never: other 4xx (the request is wrong,
not the moment), a stream that was seen in part, an error inside a 200, what is not HTTP, what our
own host could not send.
"""

from __future__ import annotations

from survive.load.sse import StreamReader
from survive.plan.chance import one_uniform
from survive.scenario.model import Retries
from survive.transport import Broken
from survive.units import SECOND

_CHANCE = 1 << 32  # a stream of random bits of its own; those of arrivals count up from 0
_WORTH = frozenset({Broken.REFUSED, Broken.RESET, Broken.CLOSED, Broken.TIMEOUT})
_TOO_MANY, _SERVER_ERRORS = 429, 500
_MOST_DIGITS = 9


def may_try_again(status: int, how: Broken | None, stream: StreamReader | None) -> bool:
    """Whether users ask again after an attempt that ended like this.

    ``how`` None: the answer is whole, with a status that nobody wanted. ``stream``: what is known
    of a streamed answer; one of which the user has read something is not asked for again.
    """
    if how is None:
        return status == _TOO_MANY or status >= _SERVER_ERRORS
    return how in _WORTH and (stream is None or stream.first_us is None)


def wait_us(retries: Retries, seed: int, number: int, attempt: int) -> int:
    """The wait before an attempt: drawn from [first, first x 2^attempt], at most ``last``."""
    highest = min(retries.last_us, retries.first_us << min(attempt, 32))
    lowest = min(retries.first_us, highest)
    drawn = one_uniform(seed, _CHANCE, number, attempt)
    return lowest + round(drawn * (highest - lowest))


def retry_after_us(value: str) -> int:
    """Retry-After in whole seconds (RFC 9110, 10.2.3); 0 for a date or for nonsense.

    A date would need a wall clock that both sides share; who means a load balancer sends seconds.
    """
    plain = value.strip()
    if not (plain.isascii() and plain.isdigit()):
        return 0
    return int(plain[:_MOST_DIGITS]) * SECOND
