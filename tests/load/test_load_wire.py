"""Frames over a pipe: what goes in comes out, and damage is said."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from survive.errors import HarnessError
from survive.load.wire import (
    LoadFailed,
    Message,
    Ready,
    decode,
    decode_frame,
    encode,
    encode_frame,
    read_messages,
)
from survive.record.hdr import BUCKETS
from survive.record.samples import Counts, Frame, Key, Series

KEYS = st.builds(
    Key, st.integers(0, 10**6), st.text(max_size=9), st.integers(-1, 99),
    st.sampled_from(Series), st.sampled_from(["", "ok", "failed"]), st.text(max_size=9),
    st.text(max_size=9),
)  # fmt: skip
COUNTS = st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(1, 2**32 - 1), max_size=9).map(
    lambda found: Counts(sorted(found), [found[i] for i in sorted(found)])
)
FRAMES = st.builds(
    Frame, st.integers(-(10**6), 10**12), st.lists(st.tuples(KEYS, COUNTS), max_size=5).map(tuple),
    st.booleans(),
)  # fmt: skip


@given(FRAMES)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


async def read(data: bytes) -> list[Message]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return [message async for message in read_messages(reader)]


def test_messages_follow_each_other() -> None:
    frame = Frame(5, ((Key(0, "a", -1, Series.IDLE), Counts([3], [4])),), True)
    sent: list[Message] = [Ready(), frame, LoadFailed("why", refused=True)]
    assert asyncio.run(read(b"".join(map(encode, sent)))) == sent


@pytest.mark.parametrize(
    "data",
    [b"\0", encode(Ready())[:-1], b"\0\0\0\1\xc1", b"\xff\xff\xff\xff", b"\0\0\0\1\x80",
     b"\0\0\0\1\x05"],
)  # fmt: skip
def test_damage_is_an_error_of_the_harness(data: bytes) -> None:
    with pytest.raises(HarnessError):
        asyncio.run(read(data))


@given(st.binary(max_size=60))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    try:
        decode(data)
    except HarnessError:
        pass
