"""Searches that cost something: a bounded pool of readers, and a cache that shields it.

The costs are simulated (sleeps of the service's clock): 2-4 ms a search, and ``SLOW_US`` for one
that needs old documents while the store recovers after a restart (``RECOVERY_US``; it replays its
log beside its work, as databases do). By Little's law the pool then serves only a few searches a
second, so the cache must carry the load: one reading a query at a time that all who ask share,
kept even if they have left; answers past their time while the readers are busy; and the queries
that were hot before the restart are read in one pass before the replica calls itself healthy.

Weaknesses: ``cold_cache_stampede``: none of that; each asker reads for itself and keeps the answer
only once it has been taken, so while readers are behind nothing is ever kept. ``stale_cache``:
writes do not drop answers, a message of the pipeline does (see feeder.py). ``cross_tenant_cache``:
while the store is strained (it recovers, or its feed is slow) an empty answer is filled from what
was kept or written lately, whosever it is: any answer, better than none.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import Collection
from pathlib import Path

from survive.clock import sleep_us
from survive.contracts import Json, ServiceContext

from .asgi import Exchange, RefusalError, encode, until_client_leaves
from .cache import TTL_US, Cache, Kept, Key
from .store import Store, terms

READERS = 4
COST_US = (2_000, 4_000)
SLOW_US = 800_000
RECOVERY_US = 15_000_000
MOST_WAITING = 64  # for a reader; more are refused
LAG_US = 250_000  # a feed this slow means that the index is behind ...
LAG_FOR_US = 2_000_000  # ... for so long
WARM_US = 10_000  # a hot query in the one pass of a start
MOST_HOT = 128
SAVE_EVERY_US = 1_000_000
RECENT = 256  # writes that cross_tenant_cache keeps


class Searcher:
    """Answers searches from the cache, else from the store."""

    def __init__(
        self, context: ServiceContext, store: Store, weak: Collection[str], *, restarted: bool
    ) -> None:
        self._clock = context.clock
        self._chance = context.random
        self._store = store
        self._stampedes = "cold_cache_stampede" in weak
        self._shares = "cross_tenant_cache" in weak
        self._drops = "stale_cache" not in weak
        self._cache = Cache()
        self._readers = asyncio.Semaphore(READERS)
        self._flights: dict[Key, asyncio.Task[Kept]] = {}
        self._hot: OrderedDict[Key, None] = OrderedDict()  # asked at least twice, the latest last
        self._pinned: dict[Key, None] = {}
        self._waiting = 0
        self._writes = 0
        self._base_row = 0  # rows up to it were there at the start: on disk, so to speak
        self._recovers_until_us = context.clock.now_us() + RECOVERY_US if restarted else 0
        self._lags_until_us = 0
        self._recent: deque[tuple[set[str], Json]] = deque(maxlen=RECENT)
        self.warming = False
        self.counts = {"hit": 0, "miss": 0, "shared": 0, "stale": 0}

    # ---------------------------------------------------------------------------- searching

    async def answer(self, exchange: Exchange, tenant: str, query: str) -> None:
        """Answer one search."""
        key = (tenant, query)
        kept = self._cache.get(key)
        fresh = kept is not None and kept.until_us > self._clock.now_us()
        if kept is not None and (fresh or self._is_busy()):
            self.counts["hit" if fresh else "stale"] += 1
            self._heat(key, kept)
            await _send(exchange, self._any(key, kept))
        elif self._stampedes:
            await self._answer_for_one(exchange, key)
        else:
            await _send(exchange, self._any(key, await self._shared(key)))

    async def _shared(self, key: Key) -> Kept:
        """One reading for all who ask for the same."""
        flight = self._flights.get(key)
        if flight is None:
            if self._waiting >= MOST_WAITING:
                raise RefusalError(503, "too many searches wait", [("retry-after", "1")])
            self.counts["miss"] += 1
            flight = self._flights[key] = asyncio.get_running_loop().create_task(self._fill(key))
        else:
            self.counts["shared"] += 1
        return await asyncio.shield(flight)  # it goes on when this asker leaves

    async def _fill(self, key: Key) -> Kept:
        try:
            kept = await self._read(key)
        finally:
            self._flights.pop(key, None)
        self._pin(key)
        self._cache.put(key, kept)  # as of now: no write came between
        return kept

    async def _answer_for_one(self, exchange: Exchange, key: Key) -> None:
        """The weakness: read for this asker alone, and keep it if it was there to take it."""
        self.counts["miss"] += 1
        # The store does not notice who has left: the reading goes on.
        reading = asyncio.get_running_loop().create_task(self._read(key))
        async with until_client_leaves(exchange.receive):
            writes = self._writes
            kept = await asyncio.shield(reading)
            await _send(exchange, self._any(key, kept))
            if writes == self._writes or not self._drops:
                self._cache.put(key, kept)

    async def _read(self, key: Key) -> Kept:
        """The answer as the store gives it when a reader is through with it."""
        self._waiting += 1
        try:
            async with self._readers:
                found = self._store.find(key[1], key[0])
                await sleep_us(self._clock, self._cost_us(key, found.oldest_row))
        finally:
            self._waiting -= 1
        return self._found(key)

    def _found(self, key: Key) -> Kept:
        hits = self._store.find(key[1], key[0]).hits
        body = encode({"query": key[1], "results": hits})
        return Kept(body, len(hits), self._clock.now_us() + TTL_US)

    def _pin(self, key: Key) -> None:
        """Reading this again is quick, though the store recovers."""
        if self.recovers():
            self._pinned[key] = None

    def _cost_us(self, key: Key, oldest_row: int) -> int:
        if self.recovers() and 0 < oldest_row <= self._base_row and key not in self._pinned:
            return SLOW_US
        return self._chance.randint(*COST_US)

    def recovers(self) -> bool:
        """Whether the store is slow, since it was restarted a short while ago."""
        return self._clock.now_us() < self._recovers_until_us

    def waiting(self) -> int:
        """Searches that wait for a reader or have one."""
        return self._waiting

    def _is_busy(self) -> bool:
        return not self._stampedes and self._waiting > READERS

    # ------------------------------------------------------------------------------ writing

    def seal(self, base_row: int) -> None:
        """The documents up to this row are those of the start."""
        self._base_row = base_row

    def wrote(self, tenant: str, new: str, old: str, document: Json) -> None:
        """A document has changed: drop the answers that it may change."""
        self._writes += 1
        if self._shares:
            self._recent.append((terms(new), document))
        if self._drops:
            self.drop(tenant, new, old)

    def drop(self, tenant: str, *texts: str) -> None:
        """Drop answers that a document with these texts may change."""
        self._cache.invalidate(terms(*texts), tenant)

    def forget(self) -> None:
        """Drop all answers."""
        self._cache.clear()

    def feed_took(self, us: int) -> None:
        """How long the feed's last exchange with this replica took."""
        if us > LAG_US:
            self._lags_until_us = self._clock.now_us() + LAG_FOR_US

    # ------------------------------------------------------------------------ the weak way

    def _any(self, key: Key, kept: Kept) -> bytes:
        """The answer; with ``cross_tenant_cache`` an empty one is filled from anybody's."""
        if kept.hits or not self._shares or not self._is_strained():
            return kept.body
        if (other := self._cache.of_any_tenant(key[1])) is not None:
            return other.body
        words = terms(key[1])
        lately = [document for about, document in self._recent if not words.isdisjoint(about)]
        return encode({"query": key[1], "results": lately[:5]}) if lately else kept.body

    def _is_strained(self) -> bool:
        lags = self._clock.now_us() < self._lags_until_us
        return lags or self.recovers()

    # ------------------------------------------------------------------------------ warming

    def _heat(self, key: Key, kept: Kept) -> None:
        """It was asked again: so it may be tomorrow."""
        if kept.hits and not self._stampedes:
            self._hot[key] = None
            self._hot.move_to_end(key)
            if len(self._hot) > MOST_HOT:
                self._hot.popitem(last=False)

    async def warm(self, file: Path) -> None:
        """Read the queries that were hot before the restart, in one pass."""
        hot = _read_keys(file)
        if self._stampedes or not hot:
            return
        self.warming = True
        await sleep_us(self._clock, len(hot) * WARM_US)
        for key in hot:
            self._pin(key)
            self._hot[key] = None
            self._cache.put(key, self._found(key))
        self.warming = False

    async def save_hot(self, file: Path) -> None:
        """Write down the hot queries each second, for the next start."""
        before: list[Key] = []
        while True:
            await sleep_us(self._clock, SAVE_EVERY_US)
            hot = sorted(self._hot)
            if hot and hot != before:
                before = hot
                fresh = file.with_suffix(".new")
                fresh.write_text(json.dumps(hot), "utf-8")
                fresh.replace(file)


async def _send(exchange: Exchange, body: bytes) -> None:
    await exchange.respond(200, body, [(b"content-type", b"application/json")])


def _read_keys(file: Path) -> list[Key]:
    """The saved queries; none if the file is not there or torn."""
    try:
        rows = json.loads(file.read_text("utf-8"))
        return [(str(tenant), str(query)) for tenant, query in rows]
    except (OSError, ValueError, TypeError):
        return []
