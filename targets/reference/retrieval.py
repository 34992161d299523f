"""Retrieval: full-text search with bm25 over SQLite FTS5, in memory.

Routes: GET /v1/search?q=, POST /v1/documents {id?, text}, GET /health, and POST /admin/faults with
the switches of dependency.* faults: ``stale`` (searches answer from a copy made then),
``frozen_feed`` (writes are accepted and wait; indexed once it is off), ``key_revoked`` (401 on
every /v1 route). The corpus is made from the context's seeded chance, so a restarted replica has
the same one (and lost what was posted since).
"""

from __future__ import annotations

import random
import re
import sqlite3
from urllib.parse import parse_qs

from survive.contracts import AsgiApp, Json, ServiceContext

from .asgi import Exchange, RefusalError, json_object, routed
from .stand_in import StandIn

DOCUMENTS = 300
TOP = 5
MAX_TERMS = 32  # of a query; the rest is ignored
MAX_QUERY = 4096  # characters
MAX_DOCUMENTS = 100_000  # the store is bounded; more is 507


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECTS = _words(
    "gpu accelerator replica gateway scheduler autoscaler cluster node pod container kernel driver "
    "cache batch queue token prompt model checkpoint weights adapter embedding vector database "
    "index retrieval document pipeline stream topic partition broker tokenizer router proxy "
    "balancer circuit breaker connection server semaphore mutex http method network link switch "
    "memory disk snapshot tensor shard attention decoder prefill inference training serving"
)
CUSTOMERS = _words(
    "parcel delivery address invoice refund return policy warranty laptop phone headset password "
    "account subscription order scooter bicycle tyre kayak coffee machine electronics van train "
    "telescope bakery fridge rice dinner wedding invitation interview meeting minutes template "
    "review summer sale free country norway lisbon tokyo australia hiking history time zone date "
    "saving maintenance error children plot paint prime number interest regular expression "
    "photosynthesis fahrenheit celsius"
)
VERBS = _words(
    "fails recovers restarts drains throttles saturates scales routes retries ejects admits "
    "preempts evicts batches streams measures degrades heals shards replicates balances queues "
    "prefetches warms cools reboots migrates cancels declines exports resets changes decides"
)
THINGS = _words(
    "latency throughput timeout deadline budget objective percentile tail burst backlog pressure "
    "overload failure outage incident fault chaos recovery health check probe canary rollout "
    "upgrade capacity cost price quota limit utilisation temperature power clock error rate "
    "traffic request response session user tenant key secret audit log trace metric first retry "
    "backoff histogram dashboard alert runbook production prototype staging deployment"
)


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext."""
    stand_in = StandIn(context, "stale", "frozen_feed", "key_revoked")
    retrieval = Retrieval(context.random, stand_in)
    return routed(
        {
            "/v1/search": {"GET": retrieval.search},
            "/v1/documents": {"POST": retrieval.add},
            "/health": {"GET": retrieval.health},
            **stand_in.routes(),
        },
        context.env.get("SURVIVE_REPLICA", ""),
    )


class Retrieval:
    """The handlers and their store."""

    def __init__(self, chance: random.Random, stand_in: StandIn) -> None:
        self._stand_in = stand_in
        self._unseen: dict[str, str] = {}  # by id: accepted, and not indexed yet
        self._past: sqlite3.Connection | None = None  # what searches see while it is stale
        # Autocommit: a copy cannot be made of a store within a transaction.
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.execute("CREATE VIRTUAL TABLE documents USING fts5(id UNINDEXED, text)")
        self._rows: dict[str, int] = {}
        self._added = 0
        for number in range(DOCUMENTS):
            self._put(f"doc-{number}", make_text(chance))

    async def search(self, exchange: Exchange) -> None:
        """The best documents for ``q``, best first; bm25 as SQLite gives it (lower is better)."""
        self._admit()
        values = parse_qs(exchange.query.decode("latin-1"), keep_blank_values=True).get("q")
        if not values:
            raise RefusalError(400, "the query parameter q is missing")
        if len(values[0]) > MAX_QUERY:
            raise RefusalError(400, f"q is over {MAX_QUERY} characters")
        found = self._find(values[0])
        await exchange.json(200, {"query": values[0], "results": found})

    async def add(self, exchange: Exchange) -> None:
        """Store a document; one with the same id is replaced. It is found by the next search."""
        self._admit()
        body = json_object(await exchange.body())
        text, name = body.get("text"), body.get("id")
        if not isinstance(text, str) or not text.strip():
            raise RefusalError(400, "text must be a string that is not empty")
        if name is None:
            self._added += 1
            name = f"added-{self._added}"
        if not isinstance(name, str) or not 1 <= len(name) <= 200:
            raise RefusalError(400, "id must be a string of 1 to 200 characters")
        name = _clean(name)
        known = name in self._rows or name in self._unseen
        if not known and len(self._rows) + len(self._unseen) >= MAX_DOCUMENTS:
            raise RefusalError(507, "the store is full")
        self._unseen[name] = _clean(text)
        self._index()
        await exchange.json(201, {"id": name})

    def _admit(self) -> None:
        """What every call to /v1 begins with."""
        if self._stand_in.on("key_revoked"):
            raise RefusalError(401, "the key of the caller is revoked")
        if not self._stand_in.on("stale"):
            self._past = None
        elif self._past is None:
            self._past = sqlite3.connect(":memory:")
            self._db.backup(self._past)
        self._index()

    def _index(self) -> None:
        """Let searches find what was accepted, unless a fault holds it back."""
        if self._stand_in.on("frozen_feed"):
            return
        for name, text in self._unseen.items():
            self._put(name, text)
        self._unseen.clear()

    async def health(self, exchange: Exchange) -> None:
        """200 if the index answers."""
        self._db.execute("SELECT rowid FROM documents LIMIT 1").fetchone()
        await exchange.json(200, {"status": "ok", "documents": len(self._rows)})

    def _put(self, name: str, text: str) -> None:
        row = self._rows.get(name)
        if row is not None:
            self._db.execute("DELETE FROM documents WHERE rowid = ?", (row,))
        cursor = self._db.execute("INSERT INTO documents (id, text) VALUES (?, ?)", (name, text))
        assert cursor.lastrowid is not None
        self._rows[name] = cursor.lastrowid

    def _find(self, query: str) -> list[Json]:
        match = match_expression(query)
        if not match:
            return []
        rows = (self._past or self._db).execute(
            "SELECT id, text, bm25(documents) FROM documents WHERE documents MATCH ? "
            "ORDER BY bm25(documents), rowid LIMIT ?",
            (match, TOP),
        )
        return [{"id": name, "text": text, "bm25": round(rank, 6)} for name, text, rank in rows]


def match_expression(query: str) -> str:
    """A query by people as an FTS5 expression: each word quoted, any of them may match.

    Only letters, digits and underscores survive, so FTS5's own syntax cannot be reached.
    """
    words = re.findall(r"\w+", query)[:MAX_TERMS]
    return " OR ".join(f'"{word}"' for word in words)


def make_text(chance: random.Random) -> str:
    """A few sentences about AI infrastructure, and about what its users ask."""
    sentences = [
        f"The {chance.choice(SUBJECTS)} {chance.choice(SUBJECTS)} {chance.choice(VERBS)} under "
        f"{chance.choice(THINGS)} and {chance.choice(THINGS)}: "
        f"{chance.choice(CUSTOMERS)} {chance.choice(CUSTOMERS)}."
        for _ in range(chance.randint(3, 8))
    ]
    return " ".join(sentences)


def _clean(text: str) -> str:
    """JSON may hold lone surrogates, which no UTF-8 store can."""
    return text.encode("utf-8", "replace").decode("utf-8")
