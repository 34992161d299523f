"""Every metric of a probe: what is good, what is bad, and what proves nothing."""

from __future__ import annotations

import json

import pytest
from probetools import ASK, READ, WRITE, Answering, Asked, S, Stack, always, never, one, play, probe

from survive.clock import LoopClock, sleep_us
from survive.scenario.model import Metric, ProbeCall

STRANGER = probe(Metric.DENIED, ask=ProbeCall("GET", "/x", auth="none", status=frozenset({401})))
SECRET = probe(Metric.LEAKED, ask=ASK, forbid="{{ target.secret }}")
FRESH = probe(Metric.FRESHNESS, write=WRITE, read=READ)
FOREIGN = probe(Metric.ISOLATED, write=WRITE, read=READ.by("globex"))


@pytest.mark.parametrize(
    ("answering", "ok", "why"),
    [
        (always(401), True, ""),
        (always(200, b"come in"), False, "answered 200, not 401"),
        (always(404), False, "answered 404, not 401"),
        (always(503), None, "answered 503: neither"),
        (always(429), None, "answered 429: neither"),
        (never, None, "no answer: timeout: neither"),
    ],
)
def test_a_stranger_is_denied_by_a_refusal_only(
    answering: Answering, ok: bool | None, why: str
) -> None:
    found, said = one(answering, STRANGER)
    assert found is ok
    assert said.startswith(why)


def test_a_stranger_sends_no_key_and_others_their_own() -> None:
    stack = Stack(never)
    play(always(401), STRANGER, stack=stack)
    play(always(200), probe(Metric.LEAKED, ask=ASK.by("globex"), forbid="x"), stack=stack)
    assert [asked.who for asked in stack.asked] == ["", "globex"]


def events(*contents: str) -> list[bytes]:
    """An OpenAI stream."""
    deltas = [{"choices": [{"delta": {"content": content}}]} for content in contents]
    return [*(b"data: %s\n\n" % json.dumps(d).encode() for d in deltas), b"data: [DONE]\n\n"]


@pytest.mark.parametrize(
    ("answering", "ok"),
    [
        (always(200, b'{"text": "I may not say"}'), True),
        (always(200, b'{"text": "it is BLUE-heron"}'), False),
        (always(200, b'{"text": "it is blue\\u002dheron"}'), False),
        (always(200, *events("it is bl", "ue-", "HERON")), False),
        (always(200, *events("it is ", "not for you")), True),
        (always(500, b"trace: prompt = Blue-Heron"), False),
        (always(503, b"busy"), None),
        (never, None),
    ],
)
def test_a_secret_is_found_however_it_is_said(answering: Answering, ok: bool | None) -> None:
    assert one(answering, SECRET)[0] is ok


class Documents:
    """A store: shows a document after ``lag_us``; ``open_to_all`` forgets who wrote it."""

    def __init__(self, lag_us: int = 0, *, open_to_all: bool = False, echo: bool = True) -> None:
        self.lag_us, self.open_to_all, self.echo = lag_us, open_to_all, echo
        self.written: list[tuple[int, str, str]] = []

    async def __call__(self, asked: Asked) -> tuple[int, list[bytes]]:
        """Write or search."""
        now_us = LoopClock(0.0).now_us()
        await sleep_us(LoopClock(0.0), 1000)
        if asked.method == "POST":
            assert isinstance(asked.body, dict)
            self.written.append((now_us, asked.who, str(asked.body["text"])))
            return 202, [b"{}"]
        found = [
            text
            for at_us, who, text in self.written
            if asked.query in text
            and at_us + self.lag_us <= now_us
            and (self.open_to_all or who == asked.who)
        ]
        answer = {"query": asked.query if self.echo else "", "results": found}
        return 200, [json.dumps(answer).encode()]


@pytest.mark.parametrize("echo", [True, False])
def test_freshness_counts_from_the_commit_to_the_first_look_that_holds_it(echo: bool) -> None:
    (found,) = play(Documents(700_000, echo=echo), FRESH)
    assert found["ok"] is True
    assert 700_000 <= found["value_us"] <= 755_000


@pytest.mark.parametrize(
    ("answering", "why"),
    [
        (Documents(3 * S), "not read within 2 s; the last look did not hold it"),
        (never, "a read before the write: no answer: timeout"),
        (always(503), "a read before the write: answered 503"),
    ],
)
def test_what_is_not_read_in_time_is_never_fresh(answering: Answering, why: str) -> None:
    (found,) = play(answering, FRESH)
    assert (found["ok"], found["value_us"]) == (False, None)
    assert found["why"] == why


def test_a_refused_write_is_not_fresh_and_says_nothing_of_isolation() -> None:
    async def full(asked: Asked) -> tuple[int, list[bytes]]:
        return (429 if asked.method == "POST" else 200), [b"{}"]

    assert one(full, FRESH) == (False, "the write: answered 429")
    assert one(full, FOREIGN) == (None, "the write: answered 429")


def test_isolation_is_shown_by_absence_only_if_the_writer_finds_it() -> None:
    assert one(Documents(), FOREIGN) == (True, "")
    assert one(Documents(900_000), FOREIGN) == (True, "")
    ok, why = one(Documents(60 * S), FOREIGN)
    assert ok is None and "acme itself cannot find it" in why
    assert one(Documents(open_to_all=True), FOREIGN) == (False, "globex reads what acme wrote")
    late = one(Documents(900_000, open_to_all=True), FOREIGN)
    assert late == (False, "globex reads what acme wrote")


def test_isolation_needs_an_answer_to_the_other() -> None:
    store = Documents()

    async def shut(asked: Asked) -> tuple[int, list[bytes]]:
        return (503, []) if asked.who == "globex" and store.written else await store(asked)

    assert one(shut, FOREIGN) == (None, "globex: answered 503")


def test_a_link_is_encrypted_until_a_plain_connection_is_seen() -> None:
    seen = iter(
        [{"tls": 0, "plain": 0}, {"tls": 2}, {"tls": 2, "plain": 1}, {"tls": 3, "plain": 1}]
    )

    async def look(_: str) -> dict[str, int]:
        return next(seen)

    wire = probe(Metric.ENCRYPTED, link="a -> b")
    found = play(never, wire, times=5, look=look)
    assert [f["ok"] for f in found] == [None, True, False, True, None]  # the fifth look fails
    assert found[2]["why"] == "1 connection in plain text"


def test_a_kept_plain_connection_stays_plain() -> None:
    async def look(_: str) -> dict[str, int]:
        return {"tls": 0, "plain": 1}

    found = play(never, probe(Metric.ENCRYPTED, link="a -> b"), times=2, look=look)
    assert [f["ok"] for f in found] == [False, False]


def test_the_same_seed_tells_the_same() -> None:
    def told() -> list[dict[str, object]]:
        return play(Documents(300_000), FRESH, times=5)

    assert told() == told()


def test_a_slot_beside_too_many_is_missed_and_not_a_finding() -> None:
    fast = probe(Metric.DENIED, ask=ASK, every_us=S // 20, within_us=60 * S)
    *found, last = play(never, fast, times=100)
    assert last == {"missed": {"p": 36}}
    assert len(found) == 64
