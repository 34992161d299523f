"""Streams in every split: what is read must not depend on how the bytes came."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from survive.load.sse import MAX_EVENT_BYTES, StreamReader


def delta(text: str | None, finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {} if text is None else {"content": text},
              "finish_reason": finish}  # fmt: skip
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
OPENAI = (
    b"data: " + json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]}).encode()
    + b"\n\n" + delta("he said \"error\": {1} \u00e9\u4f60", usage=None) + b": ping\n\n"
    + delta("two") + delta("\n\n") + delta("", "stop")
    + b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n' + DONE
)  # fmt: skip
CORPUS = {
    "openai": OPENAI,
    "crlf": OPENAI.replace(b"\n", b"\r\n"),
    "cr": OPENAI.replace(b"\n", b"\r"),
    "bom": b"\xef\xbb\xbf" + OPENAI,
    "multi-line": b'event: x\ndata: {"choices":\ndata: [{"text": "a"}]}\nid: 4\n\n' + DONE,
    "plain": b"data: hello\n\ndata:world\n\ndata\n\n" + DONE,
    "not utf-8": b"data: \xff\xfe\x00\n\ndata: \xc3\n\n" + DONE,
    "error": delta("a") + b'data: {"error": {"message": "gpu lost"}}\n\n',
    "error null": delta("a", error=None) + delta("b", "stop", error=None) + DONE,
    "no end": delta("a") + delta("b"),
    "no finish": delta("a") + DONE,
    "no last blank": delta("a", "stop") + b"data: [DONE]\n",
    "deep": b"data: " + b"[" * 20_000 + b"\n\n" + DONE,
    "hostile usage": delta("a", "length", usage={"completion_tokens": -5}) + DONE,
    "only comments": b": a\n\n: b\n\n",
    "empty": b"",
}


def read(parts: list[bytes]) -> StreamReader:
    reader = StreamReader()
    for at, part in enumerate(parts):
        reader.feed(part, at)
    reader.close(len(parts))
    return reader


def said(reader: StreamReader) -> tuple[object, ...]:
    return (reader.contents, reader.done, reader.finished, reader.error, reader.oversized,
            reader.tokens, reader.complete, len(reader.gaps_us),
            reader.first_us is None)  # fmt: skip


@pytest.mark.parametrize("name", CORPUS)
def test_every_split_in_two_and_byte_by_byte_says_the_same(name: str) -> None:
    data = CORPUS[name]
    whole = said(read([data]))
    assert said(read([bytes([b]) for b in data])) == whole
    for cut in range(0, len(data), max(1, len(data) // 400)):
        assert said(read([data[:cut], data[cut:]])) == whole


@given(st.sampled_from(sorted(CORPUS)), st.lists(st.integers(0, 2_000), max_size=8))
def test_any_split_says_the_same(name: str, cuts: list[int]) -> None:
    data = CORPUS[name]
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert said(read(parts)) == said(read([data]))


def test_what_the_corpus_means() -> None:
    seen = {name: read([data]) for name, data in CORPUS.items()}
    for name in ("openai", "crlf", "cr", "bom"):
        reader = seen[name]
        assert (reader.contents, reader.output_tokens, reader.complete) == (3, 7, True), name
    assert seen["multi-line"].contents == 1
    assert (seen["plain"].contents, seen["plain"].complete) == (2, True)
    assert seen["not utf-8"].contents == 2
    assert seen["error"].error
    assert not seen["error null"].error
    assert seen["error null"].complete
    assert not seen["no end"].complete
    assert not seen["no finish"].complete
    assert seen["no last blank"].complete
    assert seen["hostile usage"].tokens is None
    assert seen["only comments"].contents == 0


def test_gaps_are_between_reads_and_zero_inside_one() -> None:
    reader = StreamReader()
    reader.feed(delta(""), 50)
    reader.feed(delta("a"), 100)
    reader.feed(delta("b") + delta("c"), 350)
    reader.feed(delta("d")[:10], 500)
    reader.feed(delta("d")[10:], 600)
    assert reader.first_us == 100
    assert reader.gaps_us == [250, 0, 250]
    assert reader.coalesced == 1


def test_an_event_without_end_is_oversized_and_not_kept() -> None:
    reader = StreamReader()
    for at in range(40):
        reader.feed(b"x" * (MAX_EVENT_BYTES // 20), at)
    assert reader.oversized
    assert len(reader._buffer) == 0


@given(st.binary(max_size=300), st.integers(0, 300))
def test_garbage_never_raises(data: bytes, cut: int) -> None:
    read([data[:cut], data[cut:]])
