"""Bounded calls for looks, straight to a thing or to another address: how they end is data."""

from __future__ import annotations

import asyncio
import json

from survive.contracts import Handle
from survive.transport import Broken, CallFailedError, Request, read_all


def posted(path: str, body: dict[str, object]) -> Request:
    """A POST of JSON."""
    return Request("POST", path, (("content-type", "application/json"),), json.dumps(body).encode())


async def answer_of(
    handle: Handle, request: Request, within_s: float, address: str = ""
) -> tuple[int | Broken, bytes]:
    """Status and body of an answer once it is whole, or how it failed and b""."""
    where = address or handle.spec.address
    try:
        async with asyncio.timeout(within_s):
            answer = await handle.transport.call(where, request, timeout_s=within_s)
            return answer.status, await read_all(answer)
    except TimeoutError:
        return Broken.TIMEOUT, b""
    except CallFailedError as error:
        return error.how, b""


async def status_of(
    handle: Handle, request: Request, within_s: float, address: str = ""
) -> int | Broken:
    """The status of an answer once it is whole, or how it failed."""
    return (await answer_of(handle, request, within_s, address))[0]


async def head_of(handle: Handle, request: Request, within_s: float) -> int | Broken:
    """The status alone; the answer is left at once."""
    try:
        answer = await handle.transport.call(handle.spec.address, request, timeout_s=within_s)
        await answer.close()
    except CallFailedError as error:
        return error.how
    return answer.status


async def get(handle: Handle, path: str, within_s: float) -> int | Broken:
    """The status of a whole answer to a GET straight to it, or how it failed."""
    return await status_of(handle, Request("GET", path), within_s)


async def health(handle: Handle, within_s: float, address: str = "") -> int | Broken:
    """What the health route says, whole."""
    return await status_of(handle, Request("GET", handle.spec.probe_path), within_s, address)
