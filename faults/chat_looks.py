"""How faults look at an inference replica: by calls straight to it, as its users make them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from survive.contracts import Handle
from survive.transport import Broken, CallFailedError, Request, Response

from .calls import answer_of, posted, status_of

ANSWER_S = 0.5  # of a one-token call
STREAM_S = 0.8  # of a look at the step time; observe as a whole has 1 s
GLANCE_S = 0.2  # of a health or metrics route
TOKENS = 6
BUSY = {429, 503}  # refused for load: says nothing of the GPU


def chat_body(
    tokens: int, *, stream: bool, prompt: str = "ping", model: str = "probe"
) -> dict[str, object]:
    """The JSON of a small chat."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": model, "max_tokens": tokens, "stream": stream, "messages": messages}


def chat(tokens: int, *, stream: bool, prompt: str = "ping", model: str = "probe") -> Request:
    """A chat of so many tokens."""
    return posted(
        "/v1/chat/completions", chat_body(tokens, stream=stream, prompt=prompt, model=model)
    )


async def one_token(handle: Handle, model: str = "probe") -> int | Broken:
    """A one-token call: its status once whole, or how it failed."""
    return await status_of(handle, chat(1, stream=False, model=model), ANSWER_S)


async def metric(handle: Handle, name: str) -> float | None:
    """A metric of vLLM, summed over its labels; None if there is none to be had."""
    text = await _metrics(handle)
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values)) if values else None


async def kv_tokens(handle: Handle) -> int | None:
    """The KV space that the replica was started with, from vLLM's cache_config_info."""
    found = re.search(r"^vllm:cache_config_info\{([^}]*)\}", await _metrics(handle), re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', found[1])) if found else {}
    try:
        return int(labels["block_size"]) * int(labels["num_gpu_blocks"])
    except (KeyError, ValueError):
        return None


async def _metrics(handle: Handle) -> str:
    status, body = await answer_of(handle, Request("GET", handle.spec.metrics_path), GLANCE_S)
    return body.decode(errors="replace") if status == 200 else ""


async def mean_gap_us(handle: Handle) -> float | None:
    """Mean time between content events of one short stream; None if fewer than two came in time.

    A stream that outlasts the look counts with the gap that was still open, as far as it had
    grown: a lower bound, so that a very slow GPU shows and a fast one never looks slow. Raises
    CallFailedError.
    """
    times: list[int] = []
    try:
        async with asyncio.timeout(STREAM_S):
            answer = await handle.transport.call(
                handle.spec.address, chat(TOKENS, stream=True), timeout_s=STREAM_S
            )
            if answer.status != 200:
                await answer.close()
                raise CallFailedError(Broken.PROTOCOL, f"status {answer.status}")
            async with aclosing(_content_events(answer)) as events:
                async for _ in events:
                    times.append(handle.clock.now_us())
    except TimeoutError:
        if len(times) >= 2:
            mean = (times[-1] - times[0]) / (len(times) - 1)
            return max(mean, handle.clock.now_us() - times[-1])
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) >= 2 else None


async def _content_events(answer: Response) -> AsyncGenerator[str, None]:
    """The non-empty contents of a chat stream, as they arrive; leaves the stream when left."""
    rest = b""
    try:
        async for chunk in answer.chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if content := _content(line):
                    yield content
    finally:
        await answer.close()


def _content(line: bytes) -> str:
    """The content of one ``data:`` line; "" for any other."""
    data = line.removeprefix(b"data:").strip()
    if not line.startswith(b"data:") or data == b"[DONE]":
        return ""
    try:
        return str(json.loads(data)["choices"][0]["delta"].get("content") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""  # a role, a usage or a foreign event: no content
