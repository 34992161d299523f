"""Retrieval: full-text search with bm25 over SQLite FTS5, in memory.

Routes: GET /v1/search?q=, POST /v1/documents {id?, text}, GET /v1/similar?id= (by vector), GET
/health, and POST /admin/faults with the switches of dependency.* faults: ``stale`` (searches answer
from a copy made then), ``frozen_feed`` (writes are accepted and wait; indexed once it is off),
``key_revoked`` (401 on every /v1 route). Documents belong to the tenant of the header x-tenant.

With ``CACHE: on`` searches cost time and are cached (searcher.py), a pipeline feeds the replicas
(feed.py), there is GET /metrics, and all replicas have one corpus, made from the run's seed;
without it each has its own. Either way a restarted replica has the same one as before, and lost
what was posted since: a pipeline feeds it all again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from survive.clock import seeded
from survive.contracts import AsgiApp, Json, ServiceContext

from .asgi import Exchange, RefusalError, Routes, json_object, routed
from .corpus import DOCUMENTS, make_text
from .documents import PUBLIC, read_document, tenant_of
from .feed import Feed
from .metrics import Labels, family, page
from .searcher import Searcher
from .stand_in import StandIn
from .store import MAX_DOCUMENTS, Store

MAX_QUERY = 4096  # characters


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext."""
    stand_in = StandIn(context, "stale", "frozen_feed", "key_revoked")
    cached = context.env.get("CACHE") == "on"
    chance = seeded(int(context.env.get("SURVIVE_SEED", "0")), "corpus") if cached else None
    retrieval = Retrieval(stand_in)
    for number in range(DOCUMENTS):
        retrieval.store.put(PUBLIC, f"doc-{number}", make_text(chance or context.random))
    more = _cached(context, retrieval).routes() if cached else {}
    routes = {**retrieval.routes(), **more, **stand_in.routes()}
    return routed(routes, context.env.get("SURVIVE_REPLICA", ""))


@dataclass(frozen=True, slots=True)
class _Unseen:
    """A document that was accepted and is not indexed yet."""

    text: str
    vector: Sequence[float] | None


class Retrieval:
    """The handlers, and the store behind them."""

    def __init__(self, stand_in: StandIn) -> None:
        self.store = Store()
        self.searcher: Searcher | None = None
        self.feed: Feed | None = None
        self._stand_in = stand_in
        self._unseen: dict[tuple[str, str], _Unseen] = {}
        self._added = 0

    def routes(self) -> Routes:
        """What it answers, cached or not."""
        return {
            "/v1/search": {"GET": self.search},
            "/v1/similar": {"GET": self.similar},
            "/v1/documents": {"POST": self.add},
            "/health": {"GET": self.health},
        }

    async def search(self, exchange: Exchange) -> None:
        """The best documents for ``q``, best first; bm25 as SQLite gives it (lower is better)."""
        self.admit()
        query = _parameter(exchange, "q")
        tenant = tenant_of(exchange)
        if self.searcher is not None:
            await self.searcher.answer(exchange, tenant, query)
            return
        found = self.store.find(query, tenant).hits
        await exchange.json(200, {"query": query, "results": found})

    async def similar(self, exchange: Exchange) -> None:
        """The documents whose vectors are nearest to that of ``id``."""
        self.admit()
        name, tenant = _parameter(exchange, "id"), tenant_of(exchange)
        owner = tenant if self.store.has(tenant, name) else PUBLIC
        found = self.store.similar(owner, name)
        if found is None:
            raise RefusalError(404, "no such document, or none that has a vector")
        await exchange.json(200, {"id": name, "results": found})

    async def add(self, exchange: Exchange) -> None:
        """Store a document; one with the same id is replaced. It is found by the next search."""
        self.admit()
        body = json_object(await exchange.body())
        name, text = read_document(body)
        if not name:
            self._added += 1
            name = f"added-{self._added}"
        tenant = tenant_of(exchange)
        known = self.store.has(tenant, name) or (tenant, name) in self._unseen
        if not known and len(self.store) + len(self._unseen) >= MAX_DOCUMENTS:
            raise RefusalError(507, "the store is full")
        self.accept(tenant, name, text, None)
        await exchange.json(201, {"id": name})

    async def health(self, exchange: Exchange) -> None:
        """200 if the index answers, and has caught up with what was written before its start."""
        self.store.ping()
        if self.feed is not None and not self.feed.caught_up():
            raise RefusalError(503, "it catches up with its feed", [("retry-after", "1")])
        if self.searcher is not None and self.searcher.warming:
            raise RefusalError(503, "it warms its cache", [("retry-after", "1")])
        await exchange.json(200, {"status": "ok", "documents": len(self.store)})

    def admit(self) -> None:
        """What every call to /v1 begins with. Raises RefusalError 401."""
        if self._stand_in.on("key_revoked"):
            raise RefusalError(401, "the key of the caller is revoked")
        back = self._stand_in.on("stale")
        if back != self.store.is_past:
            self.store.look_back(back)
            if self.searcher is not None:
                self.searcher.forget()
        self._index()

    def accept(self, tenant: str, name: str, text: str, vector: Sequence[float] | None) -> None:
        """Take a document in; it is indexed at once unless a fault holds it back."""
        self._unseen[tenant, name] = _Unseen(text, vector)
        self._index()

    def _index(self) -> None:
        """Let searches find what was accepted, unless a fault holds it back."""
        if not self._unseen or self._stand_in.on("frozen_feed"):
            return
        for (tenant, name), document in self._unseen.items():
            before = self.store.text(tenant, name)
            self.store.put(tenant, name, document.text, document.vector)
            if self.searcher is not None:
                shown: Json = {"id": name, "text": document.text, "bm25": 0.0}
                self.searcher.wrote(tenant, document.text, before, shown)
        self._unseen.clear()


class _Cached:
    """What ``CACHE: on`` adds to a replica."""

    def __init__(self, retrieval: Retrieval, searcher: Searcher, feed: Feed) -> None:
        self._retrieval = retrieval
        self._searcher = searcher
        self._feed = feed

    def routes(self) -> Routes:
        """More that it answers."""
        return {
            "/v1/feed": {"GET": self._feed.show, "POST": self._feed.take},
            "/v1/invalidate": {"POST": self._feed.invalidate},
            "/metrics": {"GET": self.metrics},
        }

    async def metrics(self, exchange: Exchange) -> None:
        """Prometheus text."""
        searches: dict[Labels, float] = {
            (("cache", how),): count for how, count in self._searcher.counts.items()
        }
        waiting: dict[Labels, float] = {(): self._searcher.waiting()}
        documents: dict[Labels, float] = {(): len(self._retrieval.store)}
        fed: dict[Labels, float] = {(): self._feed.fed}
        await exchange.text(
            200,
            page(
                family("retrieval_searches_total", "counter", "Searches.", searches),
                family("retrieval_searches_waiting", "gauge", "In the pool.", waiting),
                family("retrieval_documents", "gauge", "In the store.", documents),
                family("retrieval_fed_total", "counter", "Taken from the feed.", fed),
            ),
        )


def _cached(context: ServiceContext, retrieval: Retrieval) -> _Cached:
    weak = context.env.get("SURVIVE_WEAKNESSES", "").split(",")
    feed = Feed(context, retrieval.accept, retrieval.admit)
    searcher = Searcher(context, retrieval.store, weak, restarted=feed.restarted)
    searcher.seal(len(retrieval.store))
    feed.on_took = searcher.feed_took
    feed.on_invalidate = lambda tenant, name: searcher.drop(
        tenant, retrieval.store.text(tenant, name)
    )
    retrieval.searcher, retrieval.feed = searcher, feed
    if folder := context.env.get("SURVIVE_DATA", ""):
        context.spawn(_keep_warm(searcher, feed, Path(folder) / "hot.json"))
    return _Cached(retrieval, searcher, feed)


async def _keep_warm(searcher: Searcher, feed: Feed, file: Path) -> None:
    if feed.restarted:
        await searcher.warm(file)
    await searcher.save_hot(file)


def _parameter(exchange: Exchange, name: str) -> str:
    """A parameter of the query. Raises RefusalError 400."""
    values = parse_qs(exchange.query.decode("latin-1"), keep_blank_values=True).get(name)
    if not values:
        raise RefusalError(400, f"the query parameter {name} is missing")
    if len(values[0]) > MAX_QUERY:
        raise RefusalError(400, f"{name} is over {MAX_QUERY} characters")
    return values[0]
