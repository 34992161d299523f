"""The calls of an API in JSON over HTTP/1.1: as they come by, and as they are answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias, TypeVar, cast
from urllib.parse import unquote

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Answer: TypeAlias = "tuple[int, Json]"  # HTTP status and body; 204 has none
T = TypeVar("T")

BODY_MAX = 1 << 20
IDLE_S = 60.0


class ApiError(Exception):
    """An answer that is an error, in Toxiproxy's shape."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """One call. ``parts`` are the unquoted segments of its path."""

    method: str
    parts: tuple[str, ...]
    agent: str
    body: bytes

    def json(self) -> object:
        """The body. Raises ApiError 400."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ApiError(400, f"bad request body: {error or 'EOF'}") from error

    def fields(self) -> Fields:
        """The body as an object. Raises ApiError 400."""
        return Fields(self.json())


class Fields:
    """A JSON object, read by type; null counts as absent, as in Toxiproxy."""

    def __init__(self, data: object) -> None:
        if not isinstance(data, dict):
            raise ApiError(400, "bad request body: an object is wanted")
        self._data = cast("Mapping[str, object]", data)

    def text(self, name: str, default: str = "") -> str:
        """A string field."""
        return self._typed(name, str, default)

    def flag(self, name: str, default: bool) -> bool:
        """A true or false field."""
        return self._typed(name, bool, default)

    def number(self, name: str, default: float) -> float:
        """A number field."""
        value = self._data.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ApiError(400, f"bad request body: {name} must be a number")
        return default if value is None else value

    def attributes(self) -> Mapping[str, object]:
        """The settings of a toxic."""
        found: Mapping[str, object] = self._typed("attributes", dict, {})
        return found

    def _typed(self, name: str, kind: type[T], default: T) -> T:
        value = self._data.get(name)
        if value is not None and not isinstance(value, kind):
            raise ApiError(400, f"bad request body: {name} must be a {kind.__name__}")
        return default if value is None else value


async def serve(
    answer: Callable[[Request], Awaitable[Answer]],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Answer the calls of one API connection, in order, until it ends or idles for a minute."""
    try:
        while True:
            async with asyncio.timeout(IDLE_S):
                request, keep = await _read(reader)
            status, body = await answer(request)
            writer.write(_written(status, body, keep))
            await writer.drain()
            if not keep:
                break
    except ApiError as error:
        shape: Json = {"error": str(error), "status": error.status}
        writer.write(_written(error.status, shape, keep=False))
    except (OSError, EOFError, TimeoutError):
        pass  # the client left: nobody is there to be told
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[Request, bool]:
    """One HTTP/1.x request and whether the connection stays. EOFError, OSError, ApiError."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError as error:
        raise ApiError(431, "request header too large") from error
    line, *rest = head[:-4].split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise ApiError(400, "malformed HTTP request")
    headers = {name.strip().lower(): value.strip() for name, _, value in
               (item.partition(":") for item in rest)}  # fmt: skip
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not (length.isascii() and length.isdigit()):
        raise ApiError(411, "a content-length is wanted")
    if int(length) > BODY_MAX:
        raise ApiError(413, "request body too large")
    parts = tuple(unquote(part) for part in words[1].partition("?")[0].strip("/").split("/"))
    connection = headers.get("connection", "").lower()
    keep = connection == "keep-alive" if words[2] == "HTTP/1.0" else connection != "close"
    body = await reader.readexactly(int(length))
    return Request(words[0], parts, headers.get("user-agent", ""), body), keep


def _written(status: int, body: Json, keep: bool) -> bytes:
    """An HTTP answer; like Toxiproxy, errors are JSON under a plain-text type."""
    content = b"" if status == 204 else json.dumps(body).encode() + b"\n" * (status >= 400)
    kind = "application/json" if status < 400 else "text/plain; charset=utf-8"
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    if status != 204:
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(content)}"]
    lines += [] if keep else ["Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode() + content
