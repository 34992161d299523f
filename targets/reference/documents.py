"""What retrieval and the pipeline share of documents: whose they are, and how they are posted.

The gateway sets the header x-tenant once it knows the caller.
"""

from __future__ import annotations

from collections.abc import Mapping

from survive.contracts import Json

from .asgi import Exchange, RefusalError
from .store import clean

PUBLIC = ""  # what the default tenant writes is everybody's
_DEFAULT = "default"


def tenant_of(exchange: Exchange) -> str:
    """The tenant; "" for the default one, whose documents are public."""
    name = exchange.header(b"x-tenant").decode("latin-1")
    return PUBLIC if name == _DEFAULT else name


def read_document(body: Mapping[str, Json]) -> tuple[str, str]:
    """(id or "", text) of a document that somebody posts. Raises RefusalError 400."""
    text, name = body.get("text"), body.get("id")
    if not isinstance(text, str) or not text.strip():
        raise RefusalError(400, "text must be a string that is not empty")
    if name is None:
        return "", clean(text)
    if not isinstance(name, str) or not 1 <= len(name) <= 200:
        raise RefusalError(400, "id must be a string of 1 to 200 characters")
    return clean(name), clean(text)
