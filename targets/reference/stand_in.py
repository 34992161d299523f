"""Switches by which faults change what a reference service does: POST /admin/faults.

The control channel of dependency.* and observability.* faults that no proxy can stand for; header
x-admin-token. A service names its switches; all are off until a fault turns one on.
"""

from __future__ import annotations

import asyncio
import hmac

from survive.contracts import Json, ServiceContext

from .asgi import Exchange, Handler, RefusalError, Routes, json_object, until_client_leaves


class StandIn:
    """The switches of one service, and their route."""

    def __init__(self, context: ServiceContext, *names: str) -> None:
        self._token = context.env.get("SURVIVE_ADMIN_TOKEN", "").encode()
        self._on: dict[str, Json] = dict.fromkeys(names, False)

    def on(self, name: str) -> bool:
        """Whether a fault has turned it on."""
        return self._on[name] is True

    def routes(self) -> Routes:
        """To be mounted beside the service's own."""
        return {"/admin/faults": {"GET": self._show, "POST": self._set}}

    def unless(self, name: str, handler: Handler) -> Handler:
        """The handler; while the switch is on the call is accepted and never answered."""

        async def guarded(exchange: Exchange) -> None:
            if not self.on(name):
                await handler(exchange)
                return
            await exchange.body()
            async with until_client_leaves(exchange.receive):
                await asyncio.Event().wait()

        return guarded

    async def _show(self, exchange: Exchange) -> None:
        self._authorise(exchange)
        await exchange.json(200, dict(self._on))

    async def _set(self, exchange: Exchange) -> None:
        self._authorise(exchange)
        wanted = json_object(await exchange.body())
        if wanted == {"reset": True}:
            wanted = dict.fromkeys(self._on, False)
        if not set(wanted) <= set(self._on) or not all(
            isinstance(v, bool) for v in wanted.values()
        ):
            raise RefusalError(400, f"true or false for any of: {', '.join(self._on)}")
        self._on.update(wanted)
        await exchange.json(200, dict(self._on))

    def _authorise(self, exchange: Exchange) -> None:
        given = exchange.header(b"x-admin-token")
        if not self._token or not hmac.compare_digest(given, self._token):
            raise RefusalError(403, "the x-admin-token is wrong")
