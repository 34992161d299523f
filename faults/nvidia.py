"""Faults on a real NVIDIA GPU, without privileges: a neighbour that takes memory, bandwidth, SMs.

Injected by a helper process that drives CUDA; proven by NVML, which is another channel. Refused
where there is no card: see preflight.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from survive.contracts import Active, Grade, HandleSpec, Injection, Observation, ProcessHandle
from survive.units import Share, UnitError

from .around import AroundProcess, lifetime_s
from .nvml import card, need_card, sm_use

HALF = Share(0.5)
BUFFER = 256 << 20  # bytes of each side of a copy
SPUN = 4096  # bytes that the computing kernel needs, with room


@dataclass(frozen=True, slots=True)
class Hog:
    """Settings: ``share`` of the card's whole memory; the ``device`` by NVML's number."""

    share: Share
    device: int = 0

    def __post_init__(self) -> None:
        if not 0.01 <= self.share <= 0.95:
            raise UnitError("share must be from 1% to 95% of the card's memory")


@dataclass(frozen=True, slots=True)
class Contention:
    """Settings: the share of the time in which it works; the ``device`` by NVML's number."""

    duty: Share = HALF
    device: int = 0

    def __post_init__(self) -> None:
        if not 0.1 <= self.duty <= 1:
            raise UnitError("duty must be from 10% to 100%")


class _OnCard(AroundProcess):
    """What all faults of this file share."""

    grade: ClassVar[Grade] = Grade.INDUCED
    layer: ClassVar[str] = "gpu"
    kind: ClassVar[str]
    how: ClassVar[str]

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """One victim's host has the card. Raises RefusedError (6) without one, and says why."""
        need_card(self.kind, settings.device, victims)
        return list(victims[:1])

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """End the helper; the driver takes back all that it held."""
        await handle.pressure.end_helpers(injection.id)

    async def _use(self, injection: Injection, handle: ProcessHandle, size: int) -> None:
        await self.heal(injection, handle)
        device = str(injection.settings.get("device", 0))
        duty = str(float(Share.parse(injection.settings.get("duty", "50%"))))
        library = os.environ.get("SURVIVE_LIBCUDA", "libcuda.so.1")  # a helper inherits nothing
        what = ["cuda", self.how, device, str(size), duty, library]
        await handle.pressure.start_helper(injection.id, what, lifetime_s(injection))


class NvidiaVramHog(_OnCard):
    """``nvidia.vram_hog``: a neighbour takes device memory."""

    kind: ClassVar[str] = "nvidia.vram_hog"
    how: ClassVar[str] = "vram"
    settings: ClassVar[type] = Hog
    certifies: ClassVar[str] = "requests survive a card whose memory a neighbour has taken"
    does_not_certify: ClassVar[str] = (
        "a server that took all its memory at its start will not notice; no virtual twin"
    )

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Take the memory; what an earlier inject left is ended first."""
        with card(injection.settings.get("device", 0)) as (nvml, it):
            size = int(nvml.nvmlDeviceGetMemoryInfo(it).total * _share(injection))
        await self._use(injection, handle, size)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if NVML shows at least half of the asked bytes less free than before."""
        with card(injection.settings.get("device", 0)) as (nvml, it):
            memory = nvml.nvmlDeviceGetMemoryInfo(it)
        text = f"{memory.free >> 20} MiB of {memory.total >> 20} free by NVML"
        taken = (before or memory.free) - memory.free
        active = Active.YES if taken >= memory.total * _share(injection) / 2 else Active.NO
        return Observation(active, text, float(memory.free))


class NvidiaMembwContention(_OnCard):
    """``nvidia.membw_contention``: a neighbour copies within the card's memory."""

    kind: ClassVar[str] = "nvidia.membw_contention"
    how: ClassVar[str] = "membw"
    settings: ClassVar[type] = Contention
    certifies: ClassVar[str] = "requests survive a card whose memory bandwidth a neighbour uses"
    does_not_certify: ClassVar[str] = (
        "how much the victim lost: its own latency under the fault shows that; no virtual twin"
    )

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Start copying; what an earlier inject left is ended first."""
        await self._use(injection, handle, BUFFER)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if NVML counts the helper among those that compute on the card.

        A card in use by the victim is busy anyway, so its overall utilisation could prove nothing.
        """
        mine = set(handle.pressure.helpers(injection.id))
        with card(injection.settings.get("device", 0)) as (nvml, it):
            there = {p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(it)}
            busy = nvml.nvmlDeviceGetUtilizationRates(it).gpu
        text = f"{len(mine & there)} helpers on the card by NVML, which is busy {busy} %"
        if mine & there:
            return Observation(Active.YES if busy else Active.UNKNOWN, text)
        return Observation(Active.UNKNOWN if mine else Active.NO, text)


class NvidiaPcieContention(NvidiaMembwContention):
    """``nvidia.pcie_contention``: a neighbour copies from the host to the card."""

    kind: ClassVar[str] = "nvidia.pcie_contention"
    how: ClassVar[str] = "pcie"
    certifies: ClassVar[str] = "requests survive a card whose bus a neighbour uses"


class NvidiaSmContention(NvidiaMembwContention):
    """``nvidia.sm_contention``: a neighbour computes on all multiprocessors of the card."""

    kind: ClassVar[str] = "nvidia.sm_contention"
    how: ClassVar[str] = "sm"
    certifies: ClassVar[str] = "requests survive a card whose multiprocessors a neighbour uses"

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Start computing; what an earlier inject left is ended first."""
        await self._use(injection, handle, SPUN)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if NVML measured that the helper itself used the multiprocessors."""
        mine = set(handle.pressure.helpers(injection.id))
        with card(injection.settings.get("device", 0)) as (nvml, it):
            there = {p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(it)}
            used = sm_use(nvml, it, mine) if mine else 0
        text = f"{len(mine & there)} helpers on the card by NVML, their use of its SMs: {used} %"
        if mine:
            return Observation(Active.YES if used else Active.UNKNOWN, text)
        return Observation(Active.NO, text)


def _share(injection: Injection) -> Share:
    return Share.parse(injection.settings["share"])
