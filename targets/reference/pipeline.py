"""Live data: what is written goes to a durable queue, gets its vector, and is fed to the index.

Routes: POST /v1/documents {id?, text} (202 once it is durable), POST /v1/documents/bulk (NDJSON, or
{"documents": [...]}; at most 1000), GET /health, GET /metrics, POST /admin/faults.
Links: EMBEDDINGS (replicas that answer /v1/embeddings; optional), INDEX (replicas of retrieval:
each gets every document; see feeder.py). The header x-tenant says whose a document is; with
x-priority: batch a single one goes by the bulk lane too.

Fresh writes go ahead of bulk at every station, and the queue is bounded: when ``BULK_CAP`` wait,
bulk is refused (429 with Retry-After), and at ``CAP`` everything is. What waits is what no replica
has indexed: a replica that is down does not fill the queue, it is fed all when it is back.

Weakness ``no_backpressure``: one lane, no bound. See feeder.py for two more.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Collection, Iterable, Mapping

from survive.clock import sleep_us
from survive.contracts import AsgiApp, Json, ServiceContext

from .asgi import Exchange, RefusalError, json_object, routed
from .documents import read_document, tenant_of
from .embedder import Embedder
from .feeder import Feeder, Health
from .journal import Entry, Journal, Lane
from .metrics import Labels, family, page
from .stand_in import StandIn
from .store import MAX_DOCUMENTS

BULK_CAP = 400
CAP = 1000
MOST = 1000  # documents of a bulk write
BATCH = 16  # texts that get their vectors in one call
LINGER_US = 10_000  # what is written within shares a call


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext. Starts the workers."""
    weak = context.env.get("SURVIVE_WEAKNESSES", "").split(",")
    stand_in = StandIn(context, "metrics_down")
    pipeline = Pipeline(context, weak)
    return routed(
        {
            "/v1/documents": {"POST": pipeline.add},
            "/v1/documents/bulk": {"POST": pipeline.add_bulk},
            "/health": {"GET": pipeline.health},
            "/metrics": {"GET": stand_in.unless("metrics_down", pipeline.metrics)},
            **stand_in.routes(),
        },
        context.env.get("SURVIVE_REPLICA", ""),
    )


class Pipeline:
    """The handlers and the stations behind them."""

    def __init__(self, context: ServiceContext, weak: Collection[str]) -> None:
        self._clock = context.clock
        self._bounded = "no_backpressure" not in weak
        self._journal = Journal(context.env.get("SURVIVE_DATA", ""))
        self._embedder = Embedder(context, _addresses(context.env, "EMBEDDINGS"))
        self._raw: tuple[deque[Entry], deque[Entry]] = (deque(), deque())
        self._woken = asyncio.Event()
        self._waiting: dict[tuple[str, str], Entry] = {}  # accepted, and indexed nowhere
        self._feed_health = Health()
        self._counts = {"accepted": 0, "refused": 0, "indexed": 0, "without_vector": 0}
        self._feeders = [
            Feeder(context, address, weak, self._feed_health, self._done, self._indexed)
            for address in _addresses(context.env, "INDEX")
        ]
        self._resume()
        context.spawn(self._embed_all())
        for feeder in self._feeders:
            context.spawn(feeder.run())

    # ----------------------------------------------------------------------------- routes

    async def add(self, exchange: Exchange) -> None:
        """Take one document in."""
        name, text = read_document(json_object(await exchange.body()))
        is_batch = exchange.header(b"x-priority") == b"batch"
        lane = Lane.BULK if is_batch else Lane.FRESH
        [entry] = self._accept([(tenant_of(exchange), name, text)], lane)
        await exchange.json(202, {"id": entry.name, "seq": entry.seq})

    async def add_bulk(self, exchange: Exchange) -> None:
        """Take many in, all or none."""
        tenant = tenant_of(exchange)
        documents = [read_document(body) for body in _read_bulk(await exchange.body())]
        entries = self._accept([(tenant, name, text) for name, text in documents], Lane.BULK)
        await exchange.json(202, {"accepted": len(entries), "seq": entries[-1].seq})

    async def health(self, exchange: Exchange) -> None:
        """200 if the queue answers; a backlog is no reason to be restarted."""
        self._journal.ping()
        await exchange.json(200, {"status": "ok", "waiting": len(self._waiting)})

    async def metrics(self, exchange: Exchange) -> None:
        """Prometheus text."""
        counts: dict[Labels, float] = {
            (("what", what),): count for what, count in self._counts.items()
        }
        failures: dict[Labels, float] = {
            (("station", "embed"),): self._embedder.failures,
            (("station", "feed"),): self._feed_health.failures,
        }
        behind: dict[Labels, float] = {
            (("replica", str(number)),): feeder.behind()
            for number, feeder in enumerate(self._feeders)
        }
        depth: dict[Labels, float] = {(): len(self._waiting)}
        age: dict[Labels, float] = {(): self._oldest_age_s()}
        await exchange.text(
            200,
            page(
                family("pipeline_documents_total", "counter", "By what became of them.", counts),
                family("pipeline_failures_total", "counter", "Failed calls.", failures),
                family("pipeline_queue_depth", "gauge", "Indexed nowhere yet.", depth),
                family("pipeline_oldest_age_seconds", "gauge", "Of those.", age),
                family("pipeline_feed_behind", "gauge", "To be fed to a replica.", behind),
            ),
        )

    def _oldest_age_s(self) -> float:
        oldest = next(iter(self._waiting.values()), None)
        return 0.0 if oldest is None else (self._clock.now_us() - oldest.accepted_us) / 1e6

    # -------------------------------------------------------------------------- the way in

    def _accept(self, documents: list[tuple[str, str, str]], lane: Lane) -> list[Entry]:
        """Promise to index them, durably. Raises RefusalError 429, 507."""
        if self._bounded:
            self._refuse_if_full(len(documents), lane)
        else:
            lane = Lane.FRESH  # the one lane
        new = sum(not self._journal.knows(tenant, name) for tenant, name, _ in documents)
        if len(self._journal) + new > MAX_DOCUMENTS:
            raise RefusalError(507, "the store is full")
        entries = self._journal.append(documents, lane, self._clock.now_us())
        self._counts["accepted"] += len(entries)
        self._enqueue(entries)
        return entries

    def _refuse_if_full(self, more: int, lane: Lane) -> None:
        cap = BULK_CAP if lane is Lane.BULK else CAP
        # An empty queue takes any write that is allowed at all.
        if self._waiting and len(self._waiting) + more > cap:
            self._counts["refused"] += more
            raise RefusalError(429, "the queue is full", [("retry-after", "1")])

    def _enqueue(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._waiting.pop(entry.key, None)  # a new version goes to the end
            self._waiting[entry.key] = entry
            self._raw[entry.lane].append(entry)
        self._woken.set()

    def _resume(self) -> None:
        """Go on where the boot before stood."""
        for entry in self._journal.entries():
            if not entry.indexed:
                entry.accepted_us = self._clock.now_us()
                self._enqueue([entry])

    # ------------------------------------------------------------------------- the stations

    async def _embed_all(self) -> None:
        """Give documents their vectors and hand them to the feeders; a background task."""
        while True:
            if not any(self._raw):
                self._woken.clear()
                await self._woken.wait()
                await sleep_us(self._clock, LINGER_US)
            batch = self._next_raw()
            lacking = [entry for entry in batch if entry.vector is None]
            vectors = await self._embedder.embed([entry.text for entry in lacking])
            for entry, vector in zip(lacking, vectors, strict=True):
                entry.vector = vector
                self._counts["without_vector"] += vector is None
            for feeder in self._feeders:
                feeder.add(batch)

    def _next_raw(self) -> list[Entry]:
        fresh, bulk = self._raw
        lane = fresh or bulk
        batch: list[Entry] = []
        while lane and len(batch) < BATCH:
            entry = lane.popleft()
            if not entry.old:
                batch.append(entry)
        return batch

    def _done(self) -> list[Entry]:
        """What a replica that has lost all is to be fed again: what some replica had."""
        return [entry for entry in self._journal.entries() if entry.indexed]

    def _indexed(self, batch: list[Entry]) -> None:
        """One replica has them."""
        first = [entry for entry in batch if not entry.indexed]
        for entry in first:
            entry.indexed = True
            if not entry.old:
                self._waiting.pop(entry.key, None)
        if first:
            self._counts["indexed"] += len(first)
            self._journal.note(first)


def _addresses(env: Mapping[str, str], variable: str) -> list[str]:
    return [address.strip() for address in env.get(variable, "").split(",") if address.strip()]


def _read_bulk(body: bytes) -> list[dict[str, Json]]:
    """The documents of a bulk write, of NDJSON or of one object. Raises RefusalError 400."""
    documents = _read_object(body) or _read_lines(body)
    if not 1 <= len(documents) <= MOST:
        raise RefusalError(400, f"between 1 and {MOST} documents at once")
    objects = [document for document in documents if isinstance(document, dict)]
    if len(objects) != len(documents):
        raise RefusalError(400, "each document must be an object")
    return objects


def _read_object(body: bytes) -> list[Json]:
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return []
    documents = whole.get("documents") if isinstance(whole, dict) else None
    return documents if isinstance(documents, list) else []


def _read_lines(body: bytes) -> list[Json]:
    try:
        return [json.loads(line) for line in body.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise RefusalError(400, "the body is neither JSON nor NDJSON") from error
