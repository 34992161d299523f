"""Brings documents to one replica of the index, in order, at least once.

Each batch begins with the question who answers there (GET /v1/feed): a boot that is new has lost
all, and everything is fed again. Fresh writes go before a replay, a replay before bulk. Whatever
fails is tried again with a pause that doubles and is jittered; documents are idempotent by id.

Weaknesses: ``frozen_feed``: the first failure ends the feed of all replicas for good, and nobody
notices. ``stale_cache``: documents do not make cached answers old; a message of our own does, best
effort: not to a replica that takes over ``TELL_WITHIN_US`` to say who it is, and not for a batch
that needed a second try.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from survive.clock import sleep_us
from survive.contracts import Json, ServiceContext
from survive.transport import CallFailedError, Request, read_all

from .asgi import encode
from .journal import Entry, Lane

BATCH = 16
REPLAY_BATCH = 128
TIMEOUT_S = 2.0
LOOK_EVERY_S = 0.5  # who answers there, when nothing is to be fed
PAUSE_US = (100_000, 1_000_000)
TELL_WITHIN_US = 50_000
COMPACT_EVERY = 4096
_HEADERS = (("content-type", "application/json"),)


class FeedFailedError(Exception):
    """A replica did not take what it was given."""


@dataclass(slots=True)
class Health:
    """What the feeders share; ``dead`` = the weakness has struck."""

    dead: bool = False
    failures: int = 0


class Feeder:
    """The feed of one replica."""

    def __init__(
        self,
        context: ServiceContext,
        address: str,
        weak: Collection[str],
        health: Health,
        everything: Callable[[], Iterable[Entry]],
        indexed: Callable[[list[Entry]], None],
    ) -> None:
        self._clock = context.clock
        self._call = context.call
        self._chance = context.random
        self._address = address
        self._ends = "frozen_feed" in weak
        self._tells = "stale_cache" in weak
        self._health = health
        self._everything = everything
        self._indexed = indexed
        self._lanes: tuple[deque[Entry], deque[Entry]] = (deque(), deque())
        self._replay: deque[Entry] = deque()
        self._tried: dict[int, bool] = {}  # by seq: False = it failed before (stale_cache only)
        self._boot = ""
        self._fed_all = False  # since this boot answers
        self._woken = asyncio.Event()

    def add(self, entries: Iterable[Entry]) -> None:
        """Feed these, each in its lane."""
        for entry in entries:
            lane = self._lanes[entry.lane]
            lane.append(entry)
            if len(lane) % COMPACT_EVERY == 0:  # a replica is down: keep what it still needs
                kept = [one for one in lane if not one.old]
                lane.clear()
                lane.extend(kept)
        self._woken.set()

    def behind(self) -> int:
        """How many are still to be fed, older versions among them."""
        return sum(map(len, self._lanes)) + len(self._replay)

    async def run(self) -> None:
        """Feed for ever; a background task."""
        pause_us, longest_us = PAUSE_US
        while not self._health.dead:
            try:
                await self._step()
                pause_us = PAUSE_US[0]
            except FeedFailedError:
                self._health.failures += 1
                self._health.dead = self._ends
                await sleep_us(self._clock, self._chance.randint(pause_us // 2, pause_us))
                pause_us = min(2 * pause_us, longest_us)

    async def _step(self) -> None:
        if not self.behind() and self._fed_all:
            await self._wait()
        began_us = self._clock.now_us()
        await self._look()
        looked_us = self._clock.now_us() - began_us
        batch, replay = self._next()
        if batch or not self._fed_all:
            try:
                await self._feed(batch, looked_us, replay=replay)
            except FeedFailedError:
                self._put_back(batch, replay=replay)
                raise
            if self._tells:
                await self._tell(batch, looked_us)

    async def _wait(self) -> None:
        self._woken.clear()
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _look(self) -> None:
        """Who answers there? A boot that we do not know is fed everything."""
        answer = await self._ask(Request("GET", "/v1/feed"))
        boot = str(answer.get("boot", ""))
        if boot != self._boot:
            self._boot = boot
            self._fed_all = False
            waiting = {id(entry) for lane in self._lanes for entry in lane}
            self._replay = deque(e for e in self._everything() if id(e) not in waiting)

    def _next(self) -> tuple[list[Entry], bool]:
        """The next batch, and whether it is a replay."""
        fresh, bulk = self._lanes
        if batch := _take(fresh, BATCH):
            return batch, False
        if batch := _take(self._replay, REPLAY_BATCH):
            return batch, True
        return _take(bulk, BATCH), False

    def _put_back(self, batch: list[Entry], *, replay: bool) -> None:
        for entry in reversed(batch):
            (self._replay if replay else self._lanes[entry.lane]).appendleft(entry)
            if self._tells:
                self._tried[entry.seq] = False

    async def _feed(self, batch: list[Entry], looked_us: int, *, replay: bool) -> None:
        last = not self._replay and not self._lanes[Lane.FRESH]
        body: Json = {
            "boot": self._boot,
            "took_us": looked_us,
            "replay": replay,
            "last": last,
            "documents": [_document(entry) for entry in batch],
        }
        await self._ask(Request("POST", "/v1/feed", _HEADERS, encode(body)))
        self._fed_all = self._fed_all or last
        self._indexed(batch)

    async def _tell(self, batch: list[Entry], looked_us: int) -> None:
        """The message that ``stale_cache`` relies on."""
        first = [entry for entry in batch if self._tried.pop(entry.seq, True)]
        if looked_us > TELL_WITHIN_US or not first:
            return
        told: Json = [{"tenant": entry.tenant, "id": entry.name} for entry in first]
        try:
            await self._ask(
                Request("POST", "/v1/invalidate", _HEADERS, encode({"documents": told}))
            )
        except FeedFailedError:
            return  # best effort

    async def _ask(self, request: Request) -> dict[str, Json]:
        """The answer's JSON object. Raises FeedFailedError."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                response = await self._call(self._address, request, timeout_s=TIMEOUT_S)
                body = await read_all(response)
        except (CallFailedError, TimeoutError) as error:
            raise FeedFailedError(str(error)) from error
        if response.status != 200:
            raise FeedFailedError(f"status {response.status}")
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise FeedFailedError("no JSON") from error
        if not isinstance(answer, dict):
            raise FeedFailedError("no JSON object")
        return answer


def _take(lane: deque[Entry], most: int) -> list[Entry]:
    """The first ones that no newer version has replaced."""
    batch: list[Entry] = []
    while lane and len(batch) < most:
        entry = lane.popleft()
        if not entry.old:
            batch.append(entry)
    return batch


def _document(entry: Entry) -> Json:
    document: dict[str, Json] = {"tenant": entry.tenant, "id": entry.name, "text": entry.text}
    if entry.vector:
        document["vector"] = list(entry.vector)
    return document
