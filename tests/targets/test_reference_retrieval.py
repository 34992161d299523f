from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from reference_world import Answer, World, play, post, retrieval

from survive.catalog import builtin_root
from survive.transport import Request

NAME = "retrieval-0"


def search(query: str) -> Request:
    return Request("GET", f"/v1/search?q={quote(query, safe='')}")


def asked(*requests: Request) -> list[Answer]:
    async def main(world: World) -> list[Answer]:
        world.boot(NAME, retrieval.make_app)
        return [await world.ask(NAME, request) for request in requests]

    return play(main)


def test_a_search_gives_the_best_five_in_order() -> None:
    [answer] = asked(search("gpu replica timeout"))
    assert (answer.status, answer.replica) == (200, NAME)
    results = answer.json["results"]
    assert len(results) == 5
    ranks = [result["bm25"] for result in results]
    assert ranks == sorted(ranks) and ranks[0] < 0
    for result in results:
        assert any(word in result["text"] for word in ("gpu", "replica", "timeout"))


def test_the_corpus_depends_on_the_seed_alone() -> None:
    request = search("latency of the gateway")
    assert asked(request)[0].body == asked(request)[0].body


def test_the_queries_of_the_shipped_scenarios_find_something() -> None:
    rows = (builtin_root() / "scenarios" / "queries.jsonl").read_text("utf-8").splitlines()
    answers = asked(*(search(json.loads(row)["query"]) for row in rows))
    found = [len(answer.json["results"]) for answer in answers]
    assert len(found) >= 50 and found.count(0) <= len(found) // 20


HOSTILE = [
    '"',
    '" OR "1"="1',
    "gpu AND",
    "NEAR(gpu, 3",
    "text:gpu",
    "id:doc-1",
    "gpu*",
    "^gpu",
    "-gpu",
    "(((",
    "'; DROP TABLE documents; --",
    "_",
    "\x00gpu",
    "日本語 gpu",
    "a " * 1000,
    "OR OR OR",
    "{gpu replica}: x",
]


@pytest.mark.parametrize("query", HOSTILE)
def test_hostile_queries_are_searches_like_any_other(query: str) -> None:
    answer, health = asked(search(query), Request("GET", "/health"))
    assert answer.status == 200
    assert isinstance(answer.json["results"], list)
    assert health.json["documents"] == retrieval.DOCUMENTS


def test_fts_syntax_in_a_query_is_only_words() -> None:
    plain, hostile = asked(search("gpu"), search('"gpu" *'))
    assert plain.json["results"] == hostile.json["results"] != []


def test_nothing_to_search_for() -> None:
    missing, empty, long, marks = asked(
        Request("GET", "/v1/search"), search(""), search("x" * 5000), search("?!")
    )
    assert (missing.status, long.status) == (400, 400)
    assert empty.json["results"] == marks.json["results"] == []


def test_a_document_is_found_by_the_next_search_and_can_be_replaced() -> None:
    added, found, _, gone, again, health = asked(
        post("/v1/documents", {"id": "canary", "text": "zebrafinch sings"}),
        search("zebrafinch"),
        post("/v1/documents", {"id": "canary", "text": "okapi grazes"}),
        search("zebrafinch"),
        search("okapi"),
        Request("GET", "/health"),
    )
    assert (added.status, added.json) == (201, {"id": "canary"})
    assert [r["id"] for r in found.json["results"]] == ["canary"]
    assert gone.json["results"] == []
    assert [r["id"] for r in again.json["results"]] == ["canary"]
    assert health.json["documents"] == retrieval.DOCUMENTS + 1


def test_a_document_without_id_gets_one() -> None:
    first, second = asked(
        post("/v1/documents", {"text": "one"}), post("/v1/documents", {"text": "\ud800 two"})
    )
    assert first.json["id"] != second.json["id"]


@pytest.mark.parametrize("body", [{}, {"text": ""}, {"text": 3}, {"text": "a", "id": ""}])
def test_bad_documents_are_400(body: dict[str, str]) -> None:
    [answer] = asked(post("/v1/documents", dict(body)))
    assert answer.status == 400
