"""What a tenant may ask for: a token bucket each, and who gives way when the gateway fills.

Env ``QUOTAS`` is ``standard:200,batch:50``: requests a second for each tenant of a tier, with one
second's worth of burst. A tier without a quota, and tenant ``default``, has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from survive.clock import Clock

from .asgi import RefusalError
from .keys import DEFAULT, Tenant

BATCH_SHARE = 0.5  # of the calls in flight that a gateway bears: above it batch work is shed


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_us: int


class Quotas:
    """The buckets of all tenants."""

    def __init__(self, clock: Clock, env: Mapping[str, str]) -> None:
        self._clock = clock
        self._rates: dict[str, float] = {}
        for entry in filter(None, env.get("QUOTAS", "").split(",")):
            tier, _, rate = entry.strip().partition(":")
            self._rates[tier] = float(rate)
        self._buckets: dict[str, _Bucket] = {}  # bounded: only known tenants get here

    def take(self, tenant: Tenant) -> None:
        """One request of a tenant. Raises RefusalError 429 with Retry-After."""
        rate = self._rates.get(tenant.tier)
        if rate is None or tenant.name == DEFAULT.name:
            return
        now_us = self._clock.now_us()
        bucket = self._buckets.get(tenant.name)
        if bucket is None:
            bucket = self._buckets[tenant.name] = _Bucket(max(1.0, rate), now_us)
        grown = bucket.tokens + (now_us - bucket.at_us) / 1e6 * rate
        bucket.tokens, bucket.at_us = min(max(1.0, rate), grown), now_us
        if bucket.tokens < 1:
            wait_s = max(1, round((1 - bucket.tokens) / rate + 0.5))
            message = f"tenant {tenant.name} is over its quota of {rate:g} requests/s"
            raise RefusalError(429, message, [("retry-after", str(wait_s))])
        bucket.tokens -= 1
