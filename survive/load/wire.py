"""What a load process tells its parent: length-prefixed msgpack messages over a pipe.

Imported by the parent too, so free of Locust and gevent. Buckets travel as packed u16 indices and
u32 counts: a second of load is a few kilobytes.
"""

from __future__ import annotations

import asyncio
import struct
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgpack

from survive.errors import HarnessError
from survive.record.samples import Counts, Frame, Key, Series

MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Ready:
    """Locust is up, the spec is read, lanes wait for the start."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The load process cannot go on. ``refused``: this host cannot run it (fds); ``theirs``: the
    team's own locustfile is wrong; else a bug."""

    error: str
    refused: bool = False
    theirs: bool = False


Message: TypeAlias = Ready | LoadFailed | Frame


def encode(message: Message) -> bytes:
    """One message with its length in front."""
    if isinstance(message, Frame):
        payload = encode_frame(message)
    elif isinstance(message, Ready):
        payload = msgpack.packb({"ready": True})
    else:
        told = {"error": message.error, "refused": message.refused, "theirs": message.theirs}
        payload = msgpack.packb(told)
    return _LENGTH.pack(len(payload)) + payload


def encode_frame(frame: Frame) -> bytes:
    """One frame as msgpack, without the length."""
    sets = [
        (*key, array("H", counts.indices).tobytes(), array("I", counts.counts).tobytes())
        for key, counts in frame.sets
    ]
    packed: bytes = msgpack.packb({"frame": [frame.at_us, frame.done, sets]})
    return packed


def decode_frame(payload: bytes) -> Frame:
    """The inverse of encode_frame. Raises HarnessError on damaged data."""
    message = decode(payload)
    if not isinstance(message, Frame):
        raise HarnessError("the load process sent something else than a frame")
    return message


def decode(payload: bytes) -> Message:
    """Any message without its length. Raises HarnessError on damaged data."""
    try:
        data = msgpack.unpackb(payload)
        if "frame" in data:
            return _frame(*data["frame"])
        if "error" in data:
            return LoadFailed(str(data["error"]), bool(data["refused"]), bool(data["theirs"]))
        if data["ready"] is True:
            return Ready()
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise HarnessError(f"the load process sent a damaged message: {error}") from error
    raise HarnessError("the load process sent an unknown message")


def _frame(at_us: int, done: bool, sets: list[list[Any]]) -> Frame:
    return Frame(at_us, tuple(_set(*row) for row in sets), done)


def _set(
    slice_index: int,
    kind: str,
    crossed: int,
    series: str,
    outcome: str,
    who: str,
    why: str,
    indices: bytes,
    counts: bytes,
) -> tuple[Key, Counts]:
    key = Key(slice_index, kind, crossed, Series(series), outcome, who, why)
    found = Counts(array("H", indices).tolist(), array("I", counts).tolist())
    if len(found.indices) != len(found.counts):
        raise ValueError("indices and counts differ in length")
    return key, found


async def read_messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    """Every message until the pipe ends. HarnessError if it ends inside one or is damaged."""
    while True:
        try:
            head = await reader.readexactly(_LENGTH.size)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise HarnessError("the load process died inside a message") from error
            return
        (length,) = _LENGTH.unpack(head)
        if length > MAX_MESSAGE_BYTES:
            raise HarnessError(f"the load process announced a message of {length} bytes")
        try:
            payload = await reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise HarnessError("the load process died inside a message") from error
        yield decode(payload)
