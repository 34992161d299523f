"""Retrieval's end of the feed: the pipeline asks where a replica stands and hands it documents.

GET /v1/feed tells the boot that answers; POST /v1/feed {boot, took_us, documents, replay, last}
indexes a batch, or is 409 if another boot answered before: what was fed to that one is lost, and
the pipeline feeds all again. Batches are written one after another (one writer, ``INDEX_COST`` a
document; a tenth of that in a replay). POST /v1/invalidate is the message that ``stale_cache``
relies on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from survive.clock import sleep_us
from survive.contracts import Json, ServiceContext
from survive.units import duration_us

from .asgi import Exchange, RefusalError, json_object
from .store import clean, vector_of

CATCH_UP_US = 3_000_000  # so long a restarted replica waits for its feed before it serves without
MOST = 512  # documents of a batch
REPLAY_SHARE = 10  # a replay is written in one go: so much cheaper a document

Accept: TypeAlias = Callable[[str, str, str, Sequence[float] | None], None]
Admit: TypeAlias = Callable[[], None]


class Feed:
    """What a replica knows of its feed."""

    def __init__(self, context: ServiceContext, accept: Accept, admit: Admit) -> None:
        self._clock = context.clock
        self._accept = accept
        self._admit = admit
        self._cost_us = duration_us(context.env.get("INDEX_COST", "0ms"))
        self._writer = asyncio.Lock()
        boots = _count_boot(context.env.get("SURVIVE_DATA", ""))
        self.restarted = boots > 1
        self._boot = f"{boots}-{context.clock.now_us()}"
        self._waits_until_us = context.clock.now_us() + CATCH_UP_US if self.restarted else 0
        self.fed = 0
        self.on_took: Callable[[int], None] = lambda us: None
        self.on_invalidate: Callable[[str, str], None] = lambda tenant, name: None

    def caught_up(self) -> bool:
        """Whether it has all that was written before its start, or has waited long enough."""
        return self._clock.now_us() >= self._waits_until_us

    async def show(self, exchange: Exchange) -> None:
        """Who answers."""
        self._admit()
        await exchange.json(200, {"boot": self._boot})

    async def take(self, exchange: Exchange) -> None:
        """Index a batch."""
        self._admit()
        body = json_object(await exchange.body())
        if body.get("boot") != self._boot:
            raise RefusalError(409, "another boot of this replica answers now")
        documents = read_documents(body)
        took = body.get("took_us", 0)
        self.on_took(took if isinstance(took, int) else 0)
        await self._write(documents, replay=body.get("replay") is True)
        if body.get("last") is True:
            self._waits_until_us = 0
        await exchange.json(200, {"indexed": len(documents)})

    async def invalidate(self, exchange: Exchange) -> None:
        """Drop the answers that these documents may change."""
        for document in read_documents(json_object(await exchange.body())):
            self.on_invalidate(_text(document, "tenant"), _text(document, "id"))
        await exchange.json(200, {})

    async def _write(self, documents: Sequence[Mapping[str, Json]], *, replay: bool) -> None:
        async with self._writer:
            each_us = self._cost_us // REPLAY_SHARE if replay else self._cost_us
            if each_us and documents:
                await sleep_us(self._clock, each_us * len(documents))
            for document in documents:
                self._accept(
                    _text(document, "tenant"),
                    _text(document, "id"),
                    _text(document, "text"),
                    vector_of(document.get("vector")),
                )
            self.fed += len(documents)


def read_documents(body: Mapping[str, Json]) -> list[dict[str, Json]]:
    """The ``documents`` of a body. Raises RefusalError 400."""
    documents = body.get("documents")
    if not isinstance(documents, list) or len(documents) > MOST:
        raise RefusalError(400, f"documents must be a list of at most {MOST}")
    objects = [document for document in documents if isinstance(document, dict)]
    if len(objects) != len(documents):
        raise RefusalError(400, "each document must be an object")
    return objects


def _text(document: Mapping[str, Json], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise RefusalError(400, f"{key} must be a string")
    return clean(value)


def _count_boot(folder: str) -> int:
    """Which boot of this replica it is, from 1; it is written down if there is a folder."""
    if not folder:
        return 1
    file = Path(folder) / "boots"
    boots = len(file.read_bytes()) if file.exists() else 0
    with file.open("ab") as out:
        out.write(b".")
    return boots + 1
