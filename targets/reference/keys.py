"""Who calls: tenants, their keys, and the tokens that a gateway signs for them.

Env ``TENANTS`` is ``acme:standard,globex:batch,revoked:revoked``: a tenant's name and its tier. The
tenant's key is SURVIVE_KEY, a dot and its name; the bare key is tenant ``default``, which may do
all. A key of tier ``revoked`` was once good. Tier ``batch`` gives way to all others.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

BATCH = "batch"
REVOKED = "revoked"
TOKEN_LIFE_S = 60
_TOKEN = "svt"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whoever a key belongs to."""

    name: str
    tier: str = "standard"

    @property
    def active(self) -> bool:
        """May call."""
        return self.tier != REVOKED


DEFAULT = Tenant("default")


def keys(env: Mapping[str, str]) -> dict[bytes, Tenant]:
    """All keys that ever were good, by the tenant that they belong to; empty without a key."""
    key = env.get("SURVIVE_KEY", "").encode()
    if not key:
        return {}
    known = {key: DEFAULT}
    for entry in filter(None, env.get("TENANTS", "").split(",")):
        name, _, tier = entry.strip().partition(":")
        known[key + b"." + name.encode()] = Tenant(name, tier or "standard")
    return known


def owner(known: Mapping[bytes, Tenant], given: bytes) -> Tenant | None:
    """Whose key it is; takes as long for a wrong key as for a right one."""
    found = None
    for key, tenant in known.items():
        if hmac.compare_digest(key, given):
            found = tenant
    return found


class Tokens:
    """Short-lived bearers: ``svt.<tenant>.<tier>.<expiry, µs of the clock>.<signature>``."""

    def __init__(self, key: str) -> None:
        self._secret = hashlib.sha256(b"tokens of " + key.encode()).digest()

    def make(self, tenant: Tenant, now_us: int) -> str:
        """A token that is good for TOKEN_LIFE_S."""
        text = f"{_TOKEN}.{tenant.name}.{tenant.tier}.{now_us + TOKEN_LIFE_S * 1_000_000}"
        return f"{text}.{self._signature(text.encode())}"

    def owner(self, given: bytes, now_us: int) -> Tenant | None:
        """Whose token it is; None if it is none of ours, or has expired."""
        if not given.startswith(b"svt."):
            return None
        text, _, signature = given.rpartition(b".")
        if not hmac.compare_digest(self._signature(text).encode(), signature):
            return None
        _, name, tier, expiry = text.decode().split(".")
        return Tenant(name, tier) if now_us < int(expiry) else None

    def _signature(self, text: bytes) -> str:
        return hmac.digest(self._secret, text, "sha256").hex()
