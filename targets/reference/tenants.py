"""Whose call it is: the header x-tenant that the gateway sets once it knows the caller."""

from __future__ import annotations

from .asgi import Exchange

PUBLIC = ""  # what the default tenant writes is everybody's
_DEFAULT = "default"


def tenant_of(exchange: Exchange) -> str:
    """The tenant; "" for the default one, whose documents are public."""
    name = exchange.header(b"x-tenant").decode("latin-1")
    return PUBLIC if name == _DEFAULT else name
