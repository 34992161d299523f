"""Faults on the *simulated* GPU of a replica: grade simulated, and said wherever it shows.

Injected by the replica's admin route; observed by its data path alone, straight to the replica.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import (
    Active,
    FaultFailedError,
    GpuHandle,
    Grade,
    HandleSpec,
    Injection,
    Needs,
    Observation,
)
from survive.transport import Broken, CallFailedError, Request, Response, read_all
from survive.units import Factor

ANSWER_S = 0.5  # of a one-token call
STREAM_S = 0.8  # of a look at the step time; observe as a whole has 1 s
TOKENS = 6
_BUSY = {429, 503}  # refused for load: says nothing of the GPU


def _chat(tokens: int, *, stream: bool) -> Request:
    body = {
        "model": "probe",
        "max_tokens": tokens,
        "stream": stream,
        "messages": [{"role": "user", "content": "ping"}],
    }
    return Request(
        "POST",
        "/v1/chat/completions",
        (("content-type", "application/json"),),
        json.dumps(body).encode(),
    )


async def _one_token(handle: GpuHandle) -> int | Broken:
    """A one-token call straight to the replica: its status once whole, or how it failed."""
    try:
        async with asyncio.timeout(ANSWER_S):
            answer = await handle.transport.call(
                handle.spec.address, _chat(1, stream=False), timeout_s=ANSWER_S
            )
            await read_all(answer)
    except TimeoutError:
        return Broken.TIMEOUT
    except CallFailedError as error:
        return error.how
    return answer.status


def _with_gpu(victims: Sequence[HandleSpec]) -> list[HandleSpec]:
    """Only replicas that have a simulated GPU carry its token."""
    return [victim for victim in victims if victim.token]


async def _restore(handle: GpuHandle, **state: bool | float) -> None:
    """Set the state, or find that the replica is gone and its simulated GPU with it."""
    try:
        await handle.set_state(**state)
    except FaultFailedError:
        if await _one_token(handle) is not Broken.REFUSED:
            raise


class GpuLost:
    """The simulated GPU falls off the bus: streams break, calls fail, health says unhealthy."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """None."""

    kind: ClassVar[str] = "gpu.lost"
    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.SIMULATED
    layer: ClassVar[str] = "gpu"
    needs: ClassVar[Needs] = Needs.GPU
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False
    certifies: ClassVar[str] = (
        "routing around a replica whose simulated GPU is lost: broken streams, fast errors, "
        "an honest health route"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU, driver or Xid; a replica whose health route lies; node repair"
    )
    settings: ClassVar[type] = Settings

    def preflight(self, settings: Settings, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that have a simulated GPU."""
        return _with_gpu(victims)

    async def inject(self, injection: Injection, handle: GpuHandle) -> None:
        """Lose it."""
        await handle.set_state(lost=True)

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """Active if a one-token call straight to the replica fails, or hangs for 500 ms."""
        seen = await _one_token(handle)
        text = f"one-token call to {handle.spec.replica_id} (simulated GPU): {seen}"
        if seen == 200:
            return Observation(Active.NO, text)
        if isinstance(seen, int):
            failed = seen >= 500 and seen not in _BUSY
            return Observation(Active.YES if failed else Active.UNKNOWN, text)
        # Nobody listens: the process is gone, which is no lost GPU.
        unknown = seen in {Broken.REFUSED, Broken.PROTOCOL}
        return Observation(Active.UNKNOWN if unknown else Active.YES, text)

    async def heal(self, injection: Injection, handle: GpuHandle) -> None:
        """Bring it back; a replica that is gone has nothing to bring back."""
        await _restore(handle, lost=False)

    async def round_trip(self, injection: Injection, handle: GpuHandle) -> bool:
        """A one-token call is answered."""
        return await _one_token(handle) == 200


class GpuThrottle:
    """Every step of the simulated GPU takes ``slow_down`` times as long."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        """How much slower."""

        slow_down: Factor

    kind: ClassVar[str] = "gpu.throttle"
    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.SIMULATED
    layer: ClassVar[str] = "gpu"
    needs: ClassVar[Needs] = Needs.GPU
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False
    certifies: ClassVar[str] = (
        "latency under a replica whose simulated GPU runs slower (heat, power, a noisy neighbour)"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU: no clocks, power limits or memory bandwidth are touched"
    )
    settings: ClassVar[type] = Settings

    def preflight(self, settings: Settings, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that have a simulated GPU; a factor of 1 or less slows nothing down."""
        return _with_gpu(victims) if settings.slow_down > 1 else []

    async def inject(self, injection: Injection, handle: GpuHandle) -> None:
        """Slow it down."""
        await handle.set_state(slow_down=float(_factor(injection)))

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """Active if the mean gap between tokens (µs) is ≥ before × (1 + (slow_down − 1) / 2)."""
        try:
            gap_us = await _mean_gap_us(handle)
        except CallFailedError as error:
            return Observation(Active.UNKNOWN, f"{handle.spec.replica_id}: {error}")
        if gap_us is None:
            return Observation(Active.UNKNOWN, f"{handle.spec.replica_id}: too few tokens in time")
        text = f"{gap_us / 1000:.1f} ms a token from {handle.spec.replica_id} (simulated GPU)"
        if before is None:
            return Observation(Active.NO, text, gap_us)
        needed = before * (1 + (_factor(injection) - 1) / 2)
        active = Active.YES if gap_us >= needed else Active.NO
        return Observation(active, f"{text}, before {before / 1000:.1f} ms", gap_us)

    async def heal(self, injection: Injection, handle: GpuHandle) -> None:
        """Full speed; a replica that is gone has nothing to speed up."""
        await _restore(handle, slow_down=1.0)

    async def round_trip(self, injection: Injection, handle: GpuHandle) -> bool:
        """A one-token call is answered."""
        return await _one_token(handle) == 200


def _factor(injection: Injection) -> Factor:
    return Factor.parse(injection.settings["slow_down"])


async def _mean_gap_us(handle: GpuHandle) -> float | None:
    """Mean time between content events of one short stream; None if fewer than two came in time.

    A stream that outlasts the look counts with the gap that was still open, as far as it had
    grown: a lower bound, so that a very slow GPU shows and a fast one never looks slow.
    """
    times: list[int] = []
    try:
        async with asyncio.timeout(STREAM_S):
            answer = await handle.transport.call(
                handle.spec.address, _chat(TOKENS, stream=True), timeout_s=STREAM_S
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
