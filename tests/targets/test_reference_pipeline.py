"""Live data: durable queue, vectors, feed of every replica; and its weaknesses."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from reference_world import FOLDER, Answer, World, play, post, retrieval

from survive.catalog import load_module
from survive.contracts import AsgiApp, Receive, Scope, Send, ServiceContext, Toxic
from survive.host.listener import Listener
from survive.host.memory import Node
from survive.transport import Request

pipeline = load_module(FOLDER / "pipeline.py")
journal = load_module(FOLDER / "journal.py")
store = load_module(FOLDER / "store.py")
NAME = "pipeline-0"
REPLICAS = ("retrieval-0", "retrieval-1")


class Stack:
    """Two replicas of retrieval, each behind a link of its own, and a pipeline that feeds them."""

    def __init__(self, world: World, folder: Path, weak: str = "", **env: str) -> None:
        self.world = world
        self._weak = weak
        self._folder = folder
        self._env = env
        self.links: list[Listener] = []
        for name in REPLICAS:
            self.boot_index(name)
            self.links.append(world.network.proxy(world.addresses[name], random.Random(1)))
        self.boot()

    def boot(self) -> Node:
        """The pipeline, again."""
        return self._boot(NAME, pipeline.make_app, INDEX=",".join(k.address for k in self.links))

    def boot_index(self, name: str) -> Node:
        """A replica, again."""
        return self._boot(name, retrieval.make_app, CACHE="on", INDEX_COST="8ms")

    def _boot(self, name: str, make: Any, **env: str) -> Node:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        more = {**self._env, **env, "SURVIVE_WEAKNESSES": self._weak}
        return self.world.boot(name, make, SURVIVE_DATA=str(folder), **more)

    async def write(self, name: str, text: str, tenant: str = "") -> int:
        headers = [("x-tenant", tenant)] if tenant else []
        request = post("/v1/documents", {"id": name, "text": text}, *headers)
        return (await self.world.ask(NAME, request)).status

    async def bulk(self, count: int, prefix: str = "bulk") -> Answer:
        documents = [{"id": f"{prefix}-{n}", "text": f"okapi {prefix} {n}"} for n in range(count)]
        return await self.world.ask(NAME, post("/v1/documents/bulk", {"documents": documents}))

    async def finds(self, word: str, tenant: str = "", where: str = REPLICAS[0]) -> list[str]:
        headers = (("x-tenant", tenant),) if tenant else ()
        answer = await self.world.ask(where, Request("GET", f"/v1/search?q={word}", headers))
        return [hit["text"] for hit in answer.json["results"]]

    async def fresh_after(self, word: str, within_s: float = 60.0) -> float:
        """Seconds from a write until any replica finds it, asked by turns, 20 times a second."""
        assert await self.write(f"id-{word}", word) == 202
        began = self.world.now_s()
        turn = 0
        while self.world.now_s() < began + within_s:
            if await self.finds(word, where=REPLICAS[turn % 2]):
                return self.world.now_s() - began
            turn += 1
            await self.world.sleep(0.05)
        return float("inf")

    async def depth(self) -> float:
        return await self.world.metric(NAME, "pipeline_queue_depth")


def slow(ms: int) -> Toxic:
    return Toxic("slow", "latency", attributes={"latency": ms})


def test_what_is_written_is_soon_found_in_every_replica(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        stack = Stack(world, tmp_path)
        assert await stack.finds("zebrafinch") == []
        assert await stack.write("a", "zebrafinch", "acme") == 202
        await world.sleep(0.1)
        for replica in REPLICAS:
            assert await stack.finds("zebrafinch", "acme", replica) == ["zebrafinch"]
            assert await stack.finds("zebrafinch", "globex", replica) == []
        assert await stack.depth() == 0

    play(main)


def test_versions_of_a_document_arrive_in_order(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        stack = Stack(world, tmp_path)
        for number in range(40):
            await stack.write("a", f"zebrafinch {number}")
            await world.sleep(0.003)
        await world.sleep(0.5)
        assert await stack.finds("zebrafinch") == ["zebrafinch 39"]
        assert await stack.depth() == 0

    play(main)


def test_bulk_may_be_lines(tmp_path: Path) -> None:
    async def main(world: World) -> list[int]:
        stack = Stack(world, tmp_path)
        lines = b'{"id": "a", "text": "okapi"}\n{"text": "okapi"}\n'
        bodies = [lines, b"[", b"", b"3", b'{"documents": []}', b'{"documents": [{"text": ""}]}']
        path = "/v1/documents/bulk"
        answers = [await world.ask(NAME, Request("POST", path, (), body)) for body in bodies]
        await world.sleep(0.2)
        assert len(await stack.finds("okapi")) == 2
        return [answer.status for answer in answers]

    assert play(main) == [202, 400, 400, 400, 400, 400]


def test_a_killed_pipeline_goes_on_where_it_stood(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        stack = Stack(world, tmp_path)
        assert (await stack.bulk(100)).status == 202
        await world.sleep(0.2)
        assert 0 < await stack.depth() < 100
        world.nodes[NAME].kill()
        stack.boot()
        await world.sleep(2)
        for replica in REPLICAS:
            health = await world.ask(replica, Request("GET", "/health"))
            assert health.json["documents"] == retrieval.DOCUMENTS + 100
        assert await stack.depth() == 0

    play(main)


def test_a_restarted_replica_gets_all_again(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        stack = Stack(world, tmp_path)
        await stack.bulk(50)
        await world.sleep(1)
        world.nodes[REPLICAS[0]].kill()
        assert await stack.write("late", "zebrafinch") == 202
        await world.sleep(1)
        stack.boot_index(REPLICAS[0])
        await world.sleep(1.5)
        health = await world.ask(REPLICAS[0], Request("GET", "/health"))
        assert (health.status, health.json["documents"]) == (200, retrieval.DOCUMENTS + 51)
        assert await stack.finds("zebrafinch") == ["zebrafinch"]

    play(main)


def test_bulk_is_refused_when_the_queue_is_full_and_fresh_goes_ahead(tmp_path: Path) -> None:
    async def main(world: World) -> float:
        stack = Stack(world, tmp_path)
        statuses = [(await stack.bulk(100, f"b{n}")).status for n in range(6)]
        assert statuses == [202, 202, 202, 202, 429, 429]
        return await stack.fresh_after("zebrafinch")

    assert play(main) < 0.5


def test_without_backpressure_a_backlog_starves_what_is_fresh(tmp_path: Path) -> None:
    async def main(world: World) -> tuple[float, float]:
        stack = Stack(world, tmp_path, "no_backpressure")
        await stack.bulk(50)
        calm = await stack.fresh_after("zebrafinch")
        statuses = [(await stack.bulk(100, f"b{n}")).status for n in range(8)]
        assert set(statuses) == {202}
        return calm, await stack.fresh_after("okapia")

    calm, behind = play(main)
    assert calm < 1
    assert behind > 6


@pytest.mark.parametrize(("weak", "comes_back"), [("", True), ("frozen_feed", False)])
def test_a_broken_link_stops_the_feed_for_good_only_if_weak(
    tmp_path: Path, weak: str, comes_back: bool
) -> None:
    async def main(world: World) -> None:
        stack = Stack(world, tmp_path, weak)
        assert await stack.fresh_after("before") < 0.2
        stack.links[0].enable(False)
        await world.sleep(1)
        stack.links[0].enable(True)
        await world.sleep(1)
        assert (await stack.fresh_after("zebrafinch", 5) < 0.2) is comes_back
        assert await stack.depth() == (0 if comes_back else 1)

    play(main)


@pytest.mark.parametrize(("weak", "is_fresh"), [("", True), ("stale_cache", False)])
def test_a_slow_link_loses_invalidations_only_if_weak(
    tmp_path: Path, weak: str, is_fresh: bool
) -> None:
    async def main(world: World) -> None:
        stack = Stack(world, tmp_path, weak)
        assert await stack.fresh_after("before") < 0.3
        for link in stack.links:
            link.add(slow(300))
        assert (await stack.fresh_after("zebrafinch", 5) < 1) is is_fresh

    play(main)


def test_a_slow_feed_leaks_to_another_tenant_only_if_weak(tmp_path: Path) -> None:
    async def main(world: World, weak: str, ms: int) -> list[str]:
        stack = Stack(world, tmp_path / f"{weak}{ms}", weak)
        for link in stack.links:
            link.add(slow(ms))
        await stack.write("a", "zebrafinch", "acme")
        assert await stack.finds("zebrafinch", "globex") == []
        await world.sleep(1)
        assert await stack.finds("zebrafinch", "acme") == ["zebrafinch"]
        return await stack.finds("zebrafinch", "globex")

    for weak in ("", "cross_tenant_cache"):
        for ms in (1, 300):
            (tmp_path / f"{weak}{ms}").mkdir()
            found = play(lambda world, weak=weak, ms=ms: main(world, weak, ms))  # type: ignore[misc]
            assert found == (["zebrafinch"] if weak and ms == 300 else [])


class Vectors:
    """An inference replica that only embeds, if it does."""

    def __init__(self) -> None:
        self.status = 200
        self.sizes: list[int] = []

    def make(self, context: ServiceContext) -> AsgiApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            texts = json.loads((await receive())["body"])["input"]
            self.sizes.append(len(texts))
            data = [{"index": n, "embedding": [float(len(t)), 1.0]} for n, t in enumerate(texts)]
            await send({"type": "http.response.start", "status": self.status, "headers": []})
            body = json.dumps({"data": data}).encode()
            await send({"type": "http.response.body", "body": body})

        return app


def test_documents_get_vectors_and_are_indexed_without_them_if_nobody_embeds(
    tmp_path: Path,
) -> None:
    async def main(world: World) -> None:
        vectors = Vectors()
        world.boot("inference-0", vectors.make)
        stack = Stack(world, tmp_path, EMBEDDINGS=world.addresses["inference-0"])
        await asyncio.gather(*(stack.write(f"d{n}", "okapi " * (n + 1)) for n in range(5)))
        await world.sleep(0.2)
        assert vectors.sizes == [5]
        answer = await world.ask(REPLICAS[1], Request("GET", "/v1/similar?id=d1"))
        assert len(answer.json["results"]) == 4
        vectors.status = 500
        assert await stack.fresh_after("zebrafinch") < 0.5
        assert await stack.fresh_after("grison") < 0.2  # nobody is asked for a while
        assert vectors.sizes == [5, 1, 1, 1]
        line = 'pipeline_documents_total{what="without_vector"}'
        assert await world.metric(NAME, line) == 2

    play(main)


def test_the_journal_keeps_the_latest_versions(tmp_path: Path) -> None:
    kept = journal.Journal(str(tmp_path))
    documents = [("", "a", "one"), ("", "a", "two")]
    first, second = kept.append(documents, journal.Lane.BULK, 5)
    assert (first.old, second.old) == (True, False)
    second.vector, second.indexed = (0.5, 0.25), True
    kept.note([second])
    [third] = kept.append([("acme", "", "three")], journal.Lane.FRESH, 6)
    again = journal.Journal(str(tmp_path)).entries()
    assert [(e.key, e.text, e.vector, e.indexed) for e in again] == [
        (("", "a"), "two", (0.5, 0.25), True),
        (third.key, "three", None, False),
    ]


def test_databases_are_closed_with_the_node_that_had_them(tmp_path: Path) -> None:
    """A killed virtual node closes nothing itself; from Python 3.13 on that would be a warning."""
    kept, index = journal.Journal(str(tmp_path)), store.Store()
    index.look_back(True)
    left = [kept._db, index._db, index._past]
    cycle: list[Any] = [kept, index]
    cycle.append(cycle)
    del kept, index, cycle
    collector = threading.Thread(target=gc.collect)  # as it may be, with helpers about
    collector.start()
    collector.join()
    for database in left:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            database.execute("SELECT 1")
