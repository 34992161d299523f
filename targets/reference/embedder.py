"""Texts to vectors: one call to an inference replica for a batch, and what to do if none answers.

A batch is tried on ``TRIES`` replicas, with a pause that doubles and is jittered. If all fail the
documents go on without vectors (full text finds them), and for ``REST_US`` nobody is asked, so that
a lost GPU does not make what is written late. Documents that went on so get no vector later.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TypeAlias

from survive.clock import sleep_us
from survive.contracts import Json, ServiceContext
from survive.transport import CallFailedError, Request, read_all

from .asgi import encode
from .store import vector_of

TRIES = 3
PAUSE_US = 50_000
REST_US = 2_000_000
TIMEOUT_S = 0.6
_HEADERS = (("content-type", "application/json"), ("x-priority", "batch"))

Vector: TypeAlias = "Sequence[float] | None"


class Embedder:
    """The way to POST /v1/embeddings."""

    def __init__(self, context: ServiceContext, addresses: Sequence[str]) -> None:
        self._clock = context.clock
        self._call = context.call
        self._chance = context.random
        self._addresses = addresses
        self._at = 0
        self._rests_until_us = 0
        self.failures = 0

    async def embed(self, texts: Sequence[str]) -> Sequence[Vector]:
        """A vector a text; None where there is none. Never fails."""
        if not self._addresses or self._clock.now_us() < self._rests_until_us:
            return [None] * len(texts)
        body = encode({"model": "embed", "input": list(texts)})
        request = Request("POST", "/v1/embeddings", _HEADERS, body)
        for attempt in range(TRIES):
            if attempt:
                pause_us = PAUSE_US << (attempt - 1)
                await sleep_us(self._clock, self._chance.randint(pause_us // 2, pause_us))
            vectors = await self._ask(request, len(texts))
            if vectors is not None:
                return vectors
            self.failures += 1
            self._at += 1  # another one
        self._rests_until_us = self._clock.now_us() + REST_US
        return [None] * len(texts)

    async def _ask(self, request: Request, count: int) -> Sequence[Vector] | None:
        address = self._addresses[self._at % len(self._addresses)]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                response = await self._call(address, request, timeout_s=TIMEOUT_S)
                body = await read_all(response)
        except (CallFailedError, TimeoutError):
            return None
        return _vectors(body, count) if response.status == 200 else None


def _vectors(body: bytes, count: int) -> list[Vector] | None:
    """The vectors of an answer in OpenAI's shape; None if it is not whole."""
    try:
        answer: Json = json.loads(body)
    except ValueError:
        return None
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or len(data) != count:
        return None
    return [vector_of(item.get("embedding")) if isinstance(item, dict) else None for item in data]
