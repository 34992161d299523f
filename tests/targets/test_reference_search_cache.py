"""Retrieval with ``CACHE: on``: tenants, the cache and its weaknesses, restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest
from reference_world import Answer, World, play, post, retrieval

from survive.host.memory import Node
from survive.transport import CallFailedError, Request

NAME = "retrieval-0"
HOT = [
    "gpu replica timeout", "cache warms", "latency budget", "broker drains", "refund parcel",
    "kernel reboots", "token stream", "shard preempts", "tail backlog", "invoice address",
    "norway train", "disk snapshot", "quota limit", "mutex retries", "paint plot",
]  # fmt: skip


def search(query: str, tenant: str = "") -> Request:
    headers = (("x-tenant", tenant),) if tenant else ()
    return Request("GET", f"/v1/search?q={quote(query, safe='')}", headers)


def write(name: str, text: str, tenant: str = "") -> Request:
    headers = [("x-tenant", tenant)] if tenant else []
    return post("/v1/documents", {"id": name, "text": text}, *headers)


def boot(world: World, weak: str = "", folder: Path | None = None) -> Node:
    data = {"SURVIVE_DATA": str(folder)} if folder else {}
    return world.boot(NAME, retrieval.make_app, CACHE="on", SURVIVE_WEAKNESSES=weak, **data)


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200
    return [hit["id"] for hit in answer.json["results"]]


async def timed(world: World, request: Request) -> float:
    began = world.now_s()
    assert (await world.ask(NAME, request)).status == 200
    return world.now_s() - began


def test_a_tenant_finds_the_public_documents_and_its_own() -> None:
    async def main(world: World) -> None:
        boot(world)
        await world.ask(NAME, write("a", "zebrafinch of acme", "acme"))
        await world.ask(NAME, write("a", "zebrafinch of all", "default"))
        assert ids(await world.ask(NAME, search("zebrafinch", "acme"))) == ["a", "a"]
        assert ids(await world.ask(NAME, search("zebrafinch", "globex"))) == ["a"]
        assert ids(await world.ask(NAME, search("zebrafinch"))) == ["a"]
        assert ids(await world.ask(NAME, search("acme", "globex"))) == []

    play(main)


def test_the_second_search_is_from_the_cache() -> None:
    async def main(world: World) -> tuple[float, float]:
        boot(world)
        times = [await timed(world, search("gpu replica")) for _ in range(2)]
        assert await world.metric(NAME, 'retrieval_searches_total{cache="hit"}') == 1
        return times[0], times[1]

    first, second = play(main)
    assert 0.002 <= first <= 0.004
    assert second == 0


def test_a_search_before_the_write_does_not_hide_it() -> None:
    async def main(world: World) -> None:
        boot(world)
        assert ids(await world.ask(NAME, search("Crème"))) == []
        await world.ask(NAME, write("c", "creme brulee"))
        assert ids(await world.ask(NAME, search("Crème"))) == ["c"]
        await world.ask(NAME, write("c", "pudding"))
        assert ids(await world.ask(NAME, search("Crème"))) == []

    play(main)


def test_those_who_ask_the_same_share_one_reading() -> None:
    async def main(world: World) -> None:
        boot(world)
        answers = await asyncio.gather(*(world.ask(NAME, search("gpu")) for _ in range(20)))
        assert len({answer.body for answer in answers}) == 1
        assert await world.metric(NAME, 'retrieval_searches_total{cache="miss"}') == 1
        assert world.now_s() < 0.005

    play(main)


def test_a_reading_whose_askers_left_is_kept(tmp_path: Path) -> None:
    async def main(world: World) -> float:
        await restarted(world, tmp_path)
        with pytest.raises(CallFailedError):
            await world.ask(NAME, search("gpu"), timeout_s=0.1)
        await world.sleep(1)
        return await timed(world, search("gpu"))

    assert play(main) == 0


async def restarted(
    world: World, folder: Path, weak: str = "", hot: list[str] | None = None
) -> None:
    """A replica that knew some hot queries, was killed, and has waited for its feed."""
    node = boot(world, weak, folder)
    for query in hot or []:
        for _ in range(2):
            assert await timed(world, search(query)) < 0.005  # calm: weak or not
    await world.sleep(1.5)
    node.kill()
    boot(world, weak, folder)
    await world.sleep(3.1)


async def burst(world: World, seconds: float) -> list[bool]:
    """30 searches a second of the hot queries, each with a deadline of a second."""

    async def one(number: int) -> bool:
        await world.sleep(number / 30)
        try:
            await world.ask(NAME, search(HOT[number * 7 % len(HOT)]), timeout_s=1.0)
        except CallFailedError:
            return False
        return True

    return await asyncio.gather(*(one(number) for number in range(round(30 * seconds))))


def test_a_restarted_replica_warms_what_was_hot(tmp_path: Path) -> None:
    async def main(world: World) -> list[bool]:
        await restarted(world, tmp_path, hot=HOT)
        return await burst(world, 6)

    assert all(play(main))


def test_cold_cache_stampede_drowns_a_restarted_replica(tmp_path: Path) -> None:
    async def main(world: World) -> list[bool]:
        await restarted(world, tmp_path, "cold_cache_stampede", HOT)
        return await burst(world, 8)

    good = play(main)
    assert sum(good) < len(good) / 2
    assert sum(good[-60:]) < 45  # and in its last two seconds it has not recovered


def test_a_replica_is_not_healthy_before_its_feed_has_caught_up(tmp_path: Path) -> None:
    async def main(world: World) -> None:
        boot(world, folder=tmp_path).kill()
        boot(world, folder=tmp_path)
        health = Request("GET", "/health")
        assert (await world.ask(NAME, health)).status == 503
        told = (await world.ask(NAME, Request("GET", "/v1/feed"))).json["boot"]
        batch = {"boot": told, "documents": [{"id": "x", "text": "okapi"}], "last": True}
        assert (await world.ask(NAME, post("/v1/feed", {**batch, "boot": "old"}))).status == 409
        assert (await world.ask(NAME, post("/v1/feed", batch))).status == 200
        assert (await world.ask(NAME, health)).status == 200
        assert ids(await world.ask(NAME, search("okapi"))) == ["x"]

    play(main)


@pytest.mark.parametrize("strain", ["calm", "slow feed"])
@pytest.mark.parametrize("weak", ["", "cross_tenant_cache"])
def test_cross_tenant_cache_leaks_only_under_strain(weak: str, strain: str) -> None:
    async def main(world: World) -> list[str]:
        boot(world, weak)
        told = (await world.ask(NAME, Request("GET", "/v1/feed"))).json["boot"]
        assert ids(await world.ask(NAME, search("okapi", "globex"))) == []
        document = {"tenant": "acme", "id": "x", "text": "okapi"}
        took_us = 300_000 if strain == "slow feed" else 1_000
        batch = {"boot": told, "documents": [document], "took_us": took_us}
        await world.ask(NAME, post("/v1/feed", batch))
        assert ids(await world.ask(NAME, search("okapi", "acme"))) == ["x"]
        return ids(await world.ask(NAME, search("okapi", "globex")))

    assert play(main) == (["x"] if weak and strain == "slow feed" else [])


def test_stale_cache_keeps_old_answers_unless_told() -> None:
    async def main(world: World) -> None:
        boot(world, "stale_cache")
        told = (await world.ask(NAME, Request("GET", "/v1/feed"))).json["boot"]
        documents = [{"id": "x", "text": "okapi"}]
        assert ids(await world.ask(NAME, search("okapi"))) == []
        await world.ask(NAME, post("/v1/feed", {"boot": told, "documents": documents}))
        assert ids(await world.ask(NAME, search("okapi"))) == []
        await world.ask(NAME, post("/v1/invalidate", {"documents": documents}))
        assert ids(await world.ask(NAME, search("okapi"))) == ["x"]

    play(main)


def test_near_documents_by_vector() -> None:
    async def main(world: World) -> Answer:
        boot(world)
        told = (await world.ask(NAME, Request("GET", "/v1/feed"))).json["boot"]
        vectors = {"a": [1.0, 0.0], "b": [1.0, 0.1], "c": [0.0, 1.0]}
        documents = [{"id": n, "text": n, "vector": v} for n, v in vectors.items()]
        await world.ask(NAME, post("/v1/feed", {"boot": told, "documents": documents}))
        return await world.ask(NAME, Request("GET", "/v1/similar?id=a"))

    assert ids(play(main)) == ["b", "c"]
