"""``nvidia.vram_hog``: a neighbour on a real NVIDIA card takes its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, Injection, Observation, ProcessHandle
from survive.units import Share, UnitError

from .cards import Neighbour
from .common import asked
from .nvml import card_of

HALF = 0.5  # of the time, which memory that is held does not take


@dataclass(frozen=True, slots=True)
class Hog:
    """Settings: ``share`` of the card's whole memory; the ``device`` by NVML's number."""

    share: Share
    device: int = 0

    def __post_init__(self) -> None:
        if not 0.01 <= self.share <= 0.95:
            raise UnitError("share must be from 1% to 95% of the card's memory")


class NvidiaVramHog(Neighbour):
    """``nvidia.vram_hog``: a neighbour takes device memory."""

    kind: ClassVar[str] = "nvidia.vram_hog"
    how: ClassVar[str] = "vram"
    settings: ClassVar[type] = Hog
    certifies: ClassVar[str] = "requests survive a card whose memory a neighbour has taken"
    does_not_certify: ClassVar[str] = (
        "a server that took all its memory at its start will not notice; no virtual twin"
    )

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Take the memory."""
        with card_of(injection) as (nvml, it):
            size = int(nvml.nvmlDeviceGetMemoryInfo(it).total * asked(Hog, injection).share)
        await self.use(injection, handle, size, HALF)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if NVML shows at least half of the asked bytes less free than before."""
        with card_of(injection) as (nvml, it):
            memory = nvml.nvmlDeviceGetMemoryInfo(it)
        text = f"{memory.free >> 20} MiB of {memory.total >> 20} free by NVML"
        taken = (before or memory.free) - memory.free
        active = (
            Active.YES if taken >= memory.total * asked(Hog, injection).share / 2 else Active.NO
        )
        return Observation(active, text, float(memory.free))
