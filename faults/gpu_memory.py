"""``gpu.vram_pressure``: a simulated GPU with little KV space left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, GpuHandle, Injection, Json, Observation
from survive.transport import Broken
from survive.units import Share, UnitError

from .calls import head_of
from .chat_looks import ANSWER_S, BUSY, GLANCE_S, chat, kv_tokens
from .common import asked
from .gpus import OnGpu

MOST_TOKENS = 4096  # of one answer: what a single probe can ask room for


@dataclass(frozen=True, slots=True)
class VramPressure:
    """Something else takes ``share`` of the KV space."""

    share: Share

    def __post_init__(self) -> None:
        if not 0.75 <= self.share <= 0.999:
            raise UnitError(
                "share must be from 75% to 99.9%: the stand-in's users would not feel less"
            )


class GpuVramPressure(OnGpu):
    """``gpu.vram_pressure``: KV space is taken; calls that no longer fit fail, others queue."""

    kind: ClassVar[str] = "gpu.vram_pressure"
    settings: ClassVar[type] = VramPressure
    healthy: ClassVar[dict[str, Json]] = {"taken": 0}
    certifies: ClassVar[str] = (
        "calls survive a replica whose simulated GPU has little KV space left: smaller batches, "
        "longer queues, 500 for what cannot fit"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU or its memory; swapping of sequences: the stand-in preempts and computes anew"
    )

    def switches(self, injection: Injection) -> dict[str, Json]:
        """Take the space."""
        return {"taken": float(asked(VramPressure, injection).share)}

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """Active if a call for one token more than what is left fails, and a tiny one does not.

        The call is left at its first byte, so that where it fits it costs one token.
        """
        total, who = await kv_tokens(handle), handle.spec.replica_id
        if total is None:
            return Observation(Active.UNKNOWN, f"{who} tells no KV size")
        left = total * (1 - asked(VramPressure, injection).share)
        needs = min(int(left) + 1, MOST_TOKENS)  # and its prompt
        seen = await head_of(handle, chat(needs, stream=True), ANSWER_S - GLANCE_S)
        text = f"a call for {needs} tokens of KV to {who} (simulated GPU): {seen}"
        if seen == 200:
            return Observation(Active.NO, text)
        tiny = await head_of(handle, chat(1, stream=True), GLANCE_S)
        bites = seen == 500 and (tiny == 200 or tiny in BUSY or tiny is Broken.TIMEOUT)
        return Observation(Active.YES if bites else Active.UNKNOWN, f"{text}; for one: {tiny}")
