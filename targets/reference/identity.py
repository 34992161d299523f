"""The identity service: it alone knows whose a key is, and which keys were revoked.

Routes: POST /v1/introspect {"key": "..."} -> {"active": bool, "tenant": "...", "tier": "..."} (as
RFC 7662 has it: an unknown key is an answer, not an error), GET /health.
"""

from __future__ import annotations

from survive.contracts import AsgiApp, ServiceContext

from .asgi import Exchange, RefusalError, json_object, routed
from .keys import keys, owner


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext."""
    known = keys(context.env)

    async def introspect(exchange: Exchange) -> None:
        key = json_object(await exchange.body()).get("key")
        if not isinstance(key, str):
            raise RefusalError(400, "key must be a string")
        tenant = owner(known, key.encode("utf-8", "replace"))
        if tenant is None or not tenant.active:
            await exchange.json(200, {"active": False})
            return
        await exchange.json(200, {"active": True, "tenant": tenant.name, "tier": tenant.tier})

    async def health(exchange: Exchange) -> None:
        await exchange.json(200, {"status": "ok"})

    return routed(
        {"/v1/introspect": {"POST": introspect}, "/health": {"GET": health}},
        context.env.get("SURVIVE_REPLICA", ""),
    )
