"""A simulated GPU with continuous batching: what one inference replica computes on.

Nothing here is a GPU. Each step takes a chunk of prefill for newly admitted sequences and makes one
token for each sequence that decodes; the step's *time* comes from the curves of NVIDIA Dynamo's
mocker (lib/mocker/src/common/perf_model.rs: prefill quadratic in new tokens, decode quadratic in
the tokens in use), scaled by the constants in ``Profile``. The loop sleeps that long and burns no
CPU. A sequence takes KV blocks as it grows; when none is free, the newest of the batch gives up its
own, waits again and is computed anew (vLLM's preemption by recompute). See kv.py, scheduler.py.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from survive.clock import Clock

from .gpu_state import GpuState
from .kv import BLOCK, KvCache, blocks_of
from .scheduler import Fair, Fifo


@dataclass(frozen=True, slots=True)
class Profile:
    """The constants of the stand-in, in one place.

    With the defaults a step of a lightly filled batch takes about 20 ms, so 16 tokens about 0.35 s,
    and one replica sustains about 30 chats/s of 16 tokens: three run at 45 % under 42 chats/s, two
    at 70 %.
    """

    max_sequences: int = 16  # decoding or in prefill at once
    max_batched_tokens: int = 512  # of prefill in one step; longer prompts take several
    kv_tokens: int = 16_384  # room for all sequences together
    curve_tokens: int = 16_384  # in use: where the decode curve ends, whatever the room is
    max_waiting: int = 64  # beyond a full batch; more are refused
    prefill_scale: float = 0.5
    decode_scale: float = 3.0

    def prefill_ms(self, tokens: int) -> float:
        """Time for ``tokens`` of new prompt in one step."""
        curve = 4.21e-7 * tokens * tokens + 0.01518 * tokens + 16.5
        return self.prefill_scale * curve if tokens else 0.0

    def decode_ms(self, used: float) -> float:
        """Time for one token of all sequences, ``used`` = tokens in use ÷ curve_tokens."""
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
        "admitted_us",
        "arrived_us",
        "blocks",
        "filled",
        "lost",
        "max_tokens",
        "prefill_left",
        "prefix",
        "produced",
        "prompt_tokens",
        "running",
        "shed",
        "tenant",
        "urgent",
    )

    def __init__(
        self,
        prompt_tokens: int,
        max_tokens: int,
        arrived_us: int,
        *,
        tenant: str = "",
        urgent: bool = True,
        prefix: Sequence[int] = (),
    ) -> None:
        """``prefix``: hashes of the prompt's blocks, see kv.prefix_of."""
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.arrived_us = arrived_us
        self.tenant = tenant
        self.urgent = urgent
        self.prefix = prefix
        self.admitted_us = -1
        self.prefill_left = prompt_tokens
        self.produced = 0
        self.blocks = 0  # of KV space that it holds
        self.filled = 0  # tokens in them
        self.running = False
        self.lost = False
        self.shed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def cost(self) -> int:
        """KV tokens that it holds at its end."""
        return self.prompt_tokens + self.max_tokens

    @property
    def finished(self) -> bool:
        """All its tokens are made."""
        return self.produced >= self.max_tokens

    async def beyond(self, seen: int) -> int:
        """Wait for more than ``seen`` tokens; how many there are now.

        Raises GpuLostError, QueueFullError.
        """
        while self.produced <= seen:
            if self.lost:
                raise GpuLostError
            if self.shed:
                raise QueueFullError
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
        self,
        clock: Clock,
        profile: Profile,
        chance: random.Random,
        *,
        bounded: bool = True,
        fair: bool = True,
        leaks: bool = False,
    ) -> None:
        """``bounded``, ``fair``, ``leaks``: as the weaknesses want it; see replica.py."""
        self.profile = profile
        self.state = GpuState()
        self.steps = 0
        self.preemptions = 0
        self.waiting: Fair[Generation] | Fifo[Generation] = Fair() if fair else Fifo()
        self.running: list[Generation] = []  # in the order of admission
        self.kv = KvCache(profile.kv_tokens, leaks=leaks)
        self.busy = BusyShare()
        self._clock = clock
        self._chance = chance
        self._bounded = bounded
        self._filled = 0  # tokens of all that run
        self._work = asyncio.Event()
        self._not_hung = asyncio.Event()
        self._not_hung.set()

    def submit(self, sequence: Generation) -> None:
        """Queue a sequence. Raises GpuLostError, OutOfMemoryError, QueueFullError."""
        if self.state.gone:
            raise GpuLostError
        if blocks_of(sequence.cost) > self.kv.room(self.state.taken):
            raise OutOfMemoryError
        most = self.profile.max_sequences + self.profile.max_waiting
        if self._bounded and len(self.running) + len(self.waiting) >= most:
            self._shed_for(sequence)
        self.waiting.push(sequence)
        self._work.set()

    def leave(self, sequence: Generation) -> None:
        """Free what the sequence holds. Idempotent."""
        if sequence.running:
            self._release(sequence, abandoned=True)
            self._work.set()
        elif not sequence.finished:
            self.waiting.remove(sequence)

    def set_state(self, state: GpuState) -> None:
        """Break or mend it. One that goes takes all that was on it, and comes back empty."""
        self.state = state
        if state.hung:
            self._not_hung.clear()
        else:
            self._not_hung.set()
        self._work.set()
        if state.gone:
            self.empty()

    def empty(self) -> None:
        """All that is on it is lost."""
        for sequence in [*self.running, *self.waiting]:
            sequence.lost = True
            if sequence.running:
                self._release(sequence)
            else:
                self.waiting.remove(sequence)
            sequence.wake()
        self.kv.forget()

    @property
    def capacity(self) -> int:
        """KV tokens of the longest sequence that it can ever hold."""
        return self.kv.total * BLOCK

    def busy_share(self) -> float:
        """Share of the last second in which it took steps, 0..1; a hung step is one."""
        return self.busy.share(self._clock.now_us())

    async def run(self) -> None:
        """Step for ever; wait without waking while there is nothing to do."""
        while True:
            self._admit()
            if not self.running:
                self._work.clear()
                await self._work.wait()
                continue
            await self._step()

    # --------------------------------------------------------------------------- admission

    def _shed_for(self, newcomer: Generation) -> None:
        victim = self.waiting.shed(newcomer)
        if victim is None:
            raise QueueFullError
        victim.shed = True
        victim.wake()

    def _admit(self) -> None:
        """The scheduler's next, while places in the batch and KV space last."""
        while self.waiting:
            sequence = self.waiting.head()
            if len(self.running) >= self.profile.max_sequences and not self._displace(sequence):
                return
            context = sequence.prompt_tokens + sequence.produced
            blocks = blocks_of(context + 1)
            while not self.kv.take(blocks, self.state.taken):
                if not self._displace(sequence):
                    return
            self.waiting.pop()
            self._start(sequence, context, blocks)

    def _displace(self, sequence: Generation) -> bool:
        """Interactive work takes the place of the newest batch work, if there is some."""
        if not (self.waiting.ranked and sequence.urgent):
            return False
        victim = next((s for s in reversed(self.running) if not s.urgent), None)
        if victim is None:
            return False
        self._preempt(victim)
        return True

    def _start(self, sequence: Generation, context: int, blocks: int) -> None:
        if sequence.admitted_us < 0:
            sequence.admitted_us = self._clock.now_us()
        known = self.kv.remembered(sequence.prompt_tokens, sequence.prefix)
        sequence.blocks = blocks
        sequence.filled = known
        sequence.prefill_left = context - known
        sequence.running = True
        self._filled += known
        self.running.append(sequence)

    def _release(self, sequence: Generation, *, abandoned: bool = False) -> None:
        """Out of the batch, and its KV space is free."""
        self.running.remove(sequence)
        sequence.running = False
        self._filled -= sequence.filled
        self.kv.give_back(sequence.blocks, abandoned=abandoned)
        sequence.blocks = sequence.filled = 0

    def _preempt(self, sequence: Generation) -> None:
        """It waits again, and all its tokens so far will be prefilled anew."""
        self._release(sequence)
        self.preemptions += 1
        self.waiting.push_back(sequence)

    # ------------------------------------------------------------------------------- steps

    async def _step(self) -> None:
        prefill = self._prefill_chunks()
        decoding = self._with_room([s for s in self.running if s.prefill_left == 0])
        took_ms = self.profile.prefill_ms(sum(tokens for _, tokens in prefill))
        if decoding:
            took_ms += self.profile.decode_ms(self._filled / self.profile.curve_tokens)
        took_ms *= self.state.slow_down
        if self.state.retries and self._chance.random() < self.state.retries:
            took_ms *= 2
        now_us = self._clock.now_us()
        self.busy.begin(now_us)
        await self._clock.sleep_until(now_us + round(took_ms * 1000))
        await self._not_hung.wait()
        self.busy.end(self._clock.now_us())
        self.steps += 1
        for sequence, tokens in prefill:
            if sequence.running:
                sequence.prefill_left -= tokens
                sequence.filled += tokens
                self._filled += tokens
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

    def _with_room(self, decoding: list[Generation]) -> list[Generation]:
        """Those that have, or get, a place for one more token; the newest give way to the rest."""
        for sequence in decoding:
            while sequence.running and sequence.filled >= sequence.blocks * BLOCK:
                if self.kv.take(1, self.state.taken):
                    sequence.blocks += 1
                else:
                    self._preempt(self._newest())
        return [s for s in decoding if s.running]

    def _newest(self) -> Generation:
        """Who gives way: batch work first, then who was admitted last."""
        if self.waiting.ranked:
            return next((s for s in reversed(self.running) if not s.urgent), self.running[-1])
        return self.running[-1]

    def _produce(self, sequences: Sequence[Generation]) -> None:
        """One token each, if it is still there: clients leave and GPUs are lost during a step."""
        for sequence in sequences:
            if not sequence.running:
                continue
            sequence.produced += 1
            sequence.filled += 1
            self._filled += 1
            if sequence.finished:
                self._release(sequence)
            sequence.wake()


class BusyShare:
    """The share of the last second that was spent in steps."""

    _WINDOW_US = 1_000_000

    def __init__(self) -> None:
        self._spans: deque[tuple[int, int]] = deque()
        self._began_us = -1  # of the step that is being taken; -1 = none

    def begin(self, now_us: int) -> None:
        """A step begins."""
        self._began_us = now_us

    def end(self, now_us: int) -> None:
        """It ends."""
        self._spans.append((self._began_us, now_us))
        self._began_us = -1
        while self._spans[0][1] < now_us - self._WINDOW_US:
            self._spans.popleft()

    def share(self, now_us: int) -> float:
        """0..1."""
        since_us = now_us - self._WINDOW_US
        busy_us = sum(max(0, end - max(begin, since_us)) for begin, end in self._spans)
        if self._began_us >= 0:
            busy_us += now_us - max(self._began_us, since_us)
        return min(1.0, busy_us / self._WINDOW_US)
