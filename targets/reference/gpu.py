"""A simulated GPU with continuous batching: what one inference replica computes on.

Nothing here is a GPU. Each step takes a chunk of prefill for newly admitted sequences and makes one
token for each sequence that decodes; the step's *time* comes from the curves of NVIDIA Dynamo's
mocker (lib/mocker/src/common/perf_model.rs: prefill quadratic in new tokens, decode quadratic in
the share of the KV cache in use), scaled by the constants in ``Profile``. The loop sleeps that long
and burns no CPU. KV space is reserved whole at admission (prompt + max_tokens, as TensorRT-LLM
does), so a running sequence is never preempted.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from survive.clock import Clock

from .gpu_state import GpuState


@dataclass(frozen=True, slots=True)
class Profile:
    """The constants of the stand-in, in one place.

    With the defaults a step of a lightly filled batch takes about 20 ms, so 16 tokens about 0.35 s,
    and one replica sustains about 30 chats/s of 16 tokens: three run at 45 % under 42 chats/s, two
    at 70 %.
    """

    max_sequences: int = 16  # decoding or in prefill at once
    max_batched_tokens: int = 512  # of prefill in one step; longer prompts take several
    kv_tokens: int = 16_384  # room for all reserved sequences together
    max_waiting: int = 64  # beyond a full batch; more are refused
    prefill_scale: float = 0.5
    decode_scale: float = 3.0

    def prefill_ms(self, tokens: int) -> float:
        """Time for ``tokens`` of new prompt in one step."""
        curve = 4.21e-7 * tokens * tokens + 0.01518 * tokens + 16.5
        return self.prefill_scale * curve if tokens else 0.0

    def decode_ms(self, used: float) -> float:
        """Time for one token of all sequences, ``used`` = share of the KV cache in use."""
        return self.decode_scale * max(1.0, -25.74 * used * used + 54.01 * used + 5.74)


class GpuLostError(Exception):
    """The (simulated) GPU is gone; so is every sequence on it."""


class QueueFullError(Exception):
    """As many sequences wait as may."""


class OutOfMemoryError(Exception):
    """A sequence needs more KV space than something else has left to this (simulated) GPU."""


class Generation:
    """One prompt and the tokens made for it. Times in µs of the context's clock."""

    __slots__ = (
        "_waiter",
        "arrived_us",
        "lost",
        "max_tokens",
        "prefill_left",
        "produced",
        "prompt_tokens",
    )

    def __init__(self, prompt_tokens: int, max_tokens: int, arrived_us: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.arrived_us = arrived_us
        self.prefill_left = prompt_tokens
        self.produced = 0
        self.lost = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def reserved(self) -> int:
        """KV tokens it holds from admission to its end."""
        return self.prompt_tokens + self.max_tokens

    @property
    def finished(self) -> bool:
        """All its tokens are made."""
        return self.produced >= self.max_tokens

    async def beyond(self, seen: int) -> int:
        """Wait for more than ``seen`` tokens; how many there are now. Raises GpuLostError."""
        while self.produced <= seen:
            if self.lost:
                raise GpuLostError
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.produced

    def wake(self) -> None:
        """Tell who waits that something changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Gpu:
    """The simulated GPU, its batch and its queue. ``run`` is its step loop, a background task."""

    def __init__(
        self, clock: Clock, profile: Profile, chance: random.Random, *, bounded: bool = True
    ) -> None:
        self.profile = profile
        self.state = GpuState()
        self.steps = 0
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        self._clock = clock
        self._chance = chance
        self._bounded = bounded
        self._work = asyncio.Event()
        self._not_hung = asyncio.Event()
        self._not_hung.set()

    def submit(self, sequence: Generation) -> None:
        """Queue a sequence. Raises GpuLostError, OutOfMemoryError, QueueFullError."""
        if self.state.gone:
            raise GpuLostError
        if sequence.reserved > self.room():
            raise OutOfMemoryError
        most = self.profile.max_sequences + self.profile.max_waiting
        if self._bounded and len(self.running) + len(self.waiting) >= most:
            raise QueueFullError
        self.waiting.append(sequence)
        self._work.set()

    def leave(self, sequence: Generation) -> None:
        """Free what the sequence holds. Idempotent."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def set_state(self, state: GpuState) -> None:
        """Break or mend it. One that goes takes all that was on it, and comes back empty."""
        self.state = state
        if state.hung:
            self._not_hung.clear()
        else:
            self._not_hung.set()
        self._work.set()
        if not state.gone:
            return
        victims = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        for sequence in victims:
            sequence.lost = True
            sequence.wake()

    def room(self) -> int:
        """KV tokens that its sequences may reserve together."""
        return int(self.profile.kv_tokens * (1 - self.state.taken))

    def kv_used(self) -> float:
        """Share of the KV cache that holds tokens now."""
        used = sum(s.prompt_tokens - s.prefill_left + s.produced for s in self.running)
        return used / self.profile.kv_tokens

    async def run(self) -> None:
        """Step for ever; wait without waking while there is nothing to do."""
        while True:
            self._admit()
            if not self.running:
                self._work.clear()
                await self._work.wait()
                continue
            await self._step()

    def _admit(self) -> None:
        """First come, first served, while sequences and KV space last."""
        reserved = sum(s.reserved for s in self.running)
        while self.waiting and len(self.running) < self.profile.max_sequences:
            reserved += self.waiting[0].reserved
            if reserved > self.room():
                return
            self.running.append(self.waiting.popleft())

    async def _step(self) -> None:
        prefill = self._prefill_chunks()
        decoding = [s for s in self.running if s.prefill_left == 0]
        took_ms = self.profile.prefill_ms(sum(tokens for _, tokens in prefill))
        if decoding:
            took_ms += self.profile.decode_ms(self.kv_used())
        took_ms *= self.state.slow_down
        if self.state.retries and self._chance.random() < self.state.retries:
            took_ms *= 2
        await self._clock.sleep_until(self._clock.now_us() + round(took_ms * 1000))
        await self._not_hung.wait()
        self.steps += 1
        for sequence, tokens in prefill:
            sequence.prefill_left -= tokens
        # Prefill of a whole prompt yields its first token in the same step.
        self._produce([*decoding, *(s for s, _ in prefill if s.prefill_left == 0)])

    def _prefill_chunks(self) -> list[tuple[Generation, int]]:
        room, chunks = self.profile.max_batched_tokens, []
        for sequence in self.running:
            if sequence.prefill_left and room:
                tokens = min(room, sequence.prefill_left)
                chunks.append((sequence, tokens))
                room -= tokens
        return chunks

    def _produce(self, sequences: Sequence[Generation]) -> None:
        """One token each, if it is still there: clients leave and GPUs are lost during a step."""
        for sequence in sequences:
            if sequence.lost or sequence not in self.running:
                continue
            sequence.produced += 1
            if sequence.finished:
                self.running.remove(sequence)
            sequence.wake()
