"""The gateway's door: whose bearer is it, and may it call?

Without ``IDENTITY`` the gateway knows the keys itself. With it, it asks the identity service and
remembers each answer: for a second it is fresh, then it is asked for again behind the back of the
callers. While identity does not answer, what was known *within the last 30 s* still holds, yes or
no; any other key gets 503, never 200: fail closed, yet an outage of identity is no outage of all.

Weakness ``fail_open_auth``: while identity does not answer, whoever comes is let in.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from survive.clock import Clock
from survive.contracts import ServiceContext
from survive.transport import CallFailedError, Request, read_all

from .asgi import Exchange, RefusalError, encode
from .keys import DEFAULT, Tenant, Tokens, keys, owner

FRESH_US = 1_000_000
GRACE_US = 30_000_000  # above any restart of identity, below what a revocation may take
ASK_TIMEOUT_S = 0.3
ASK_AGAIN_US = 500_000  # while it is down, strangers are not made to wait for it each time
MAX_KNOWN = 1024
_SCHEME = b"Bearer "


@dataclass(slots=True)
class _Known:
    """What identity said of one key."""

    tenant: Tenant | None  # None = it may not call
    at_us: int
    asking: bool = False


class Door:
    """Authenticates callers."""

    def __init__(self, context: ServiceContext, *, fails_open: bool) -> None:
        self._clock: Clock = context.clock
        self._call = context.call
        self._spawn = context.spawn
        self._keys = keys(context.env)
        self._identity = context.env.get("IDENTITY", "").split(",")[0].strip()
        self._tokens = Tokens(context.env.get("SURVIVE_KEY", ""))
        self._fails_open = fails_open
        self._known: dict[bytes, _Known] = {}  # by digest: a lookup tells nothing by its time
        self._down_us: int | None = None  # since when identity does not answer
        self._asked_us = 0

    async def caller(self, exchange: Exchange) -> Tenant:
        """Who calls. Raises RefusalError: 401, or 503 if nobody can say."""
        if not self._keys:
            return DEFAULT
        given = exchange.header(b"authorization")
        bearer = given[len(_SCHEME) :] if given.startswith(_SCHEME) else b""
        tenant = self._tokens.owner(bearer, self._clock.now_us())
        if tenant is None:
            tenant = await self._of_key(bearer) if self._identity else owner(self._keys, bearer)
        if tenant is None or not tenant.active:
            challenge = [("www-authenticate", "Bearer")]
            raise RefusalError(401, "the bearer key is missing or wrong", challenge)
        return tenant

    def token(self, tenant: Tenant) -> str:
        """A short-lived bearer for it."""
        return self._tokens.make(tenant, self._clock.now_us())

    @property
    def down(self) -> bool:
        """Identity did not answer when it was asked last."""
        return self._down_us is not None

    async def _of_key(self, bearer: bytes) -> Tenant | None:
        if self._fails_open and self.down:
            return DEFAULT if not await self._asked_again(bearer) else self._found(bearer)
        if not bearer:
            return None
        known = self._known.get(hashlib.sha256(bearer).digest())
        age_us = GRACE_US if known is None else self._clock.now_us() - known.at_us
        if known is None or age_us >= GRACE_US:
            if not await self._asked_again(bearer):
                if self._fails_open:
                    return DEFAULT
                raise RefusalError(503, "nobody can say whose key that is", [("retry-after", "1")])
            return self._found(bearer)
        if age_us >= FRESH_US and not known.asking:
            known.asking = True
            self._spawn(self._refresh(bearer, known))
        return known.tenant

    def _found(self, bearer: bytes) -> Tenant | None:
        known = self._known.get(hashlib.sha256(bearer).digest())
        return known.tenant if known is not None else None

    async def _refresh(self, bearer: bytes, known: _Known) -> None:
        try:
            await self._ask(bearer)
        finally:
            known.asking = False

    async def _asked_again(self, bearer: bytes) -> bool:
        """Ask, unless identity was found to be down a moment ago; whether it answered."""
        if self.down and self._clock.now_us() - self._asked_us < ASK_AGAIN_US:
            return False
        return await self._ask(bearer)

    async def _ask(self, bearer: bytes) -> bool:
        """Ask identity; whether it answered."""
        self._asked_us = self._clock.now_us()
        body = encode({"key": bearer.decode("utf-8", "replace")})
        request = Request("POST", "/v1/introspect", (("content-type", "application/json"),), body)
        try:
            answer = await self._call(self._identity, request, timeout_s=ASK_TIMEOUT_S)
            said = json.loads(await read_all(answer)) if answer.status == 200 else None
        except (CallFailedError, ValueError):
            said = None
        if not isinstance(said, dict):
            self._down_us = self._down_us or self._clock.now_us()
            return False
        self._down_us = None
        tenant = Tenant(said["tenant"], said["tier"]) if said.get("active") is True else None
        self._remember(bearer, tenant)
        return True

    def _remember(self, bearer: bytes, tenant: Tenant | None) -> None:
        digest = hashlib.sha256(bearer).digest()
        if digest not in self._known and len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]  # the oldest: a guesser cannot fill memory
        self._known[digest] = _Known(tenant, self._clock.now_us())
