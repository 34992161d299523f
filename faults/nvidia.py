"""Neighbours on a real NVIDIA card, without privileges: they take its bandwidth or its SMs.

Injected by a helper process that drives CUDA; proven by NVML, which is another channel. Refused
where there is no card: see preflight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, Injection, Observation, ProcessHandle
from survive.units import Share, UnitError

from .cards import SPUN, Neighbour
from .common import asked
from .nvml import card_of, sm_use

HALF = Share(0.5)


@dataclass(frozen=True, slots=True)
class Contention:
    """Settings: the share of the time in which it works; the ``device`` by NVML's number."""

    duty: Share = HALF
    device: int = 0

    def __post_init__(self) -> None:
        if not 0.1 <= self.duty <= 1:
            raise UnitError("duty must be from 10% to 100%")


class NvidiaMembwContention(Neighbour):
    """``nvidia.membw_contention``: a neighbour copies within the card's memory."""

    kind: ClassVar[str] = "nvidia.membw_contention"
    how: ClassVar[str] = "membw"
    size: ClassVar[int] = 256 << 20  # bytes of each side of a copy
    settings: ClassVar[type] = Contention
    certifies: ClassVar[str] = "requests survive a card whose memory bandwidth a neighbour uses"
    does_not_certify: ClassVar[str] = (
        "how much the victim lost: its own latency under the fault shows that; no virtual twin"
    )

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Start it."""
        await self.use(injection, handle, self.size, float(asked(Contention, injection).duty))

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if NVML counts the helper among those that compute on the card.

        A card in use by the victim is busy anyway, so its overall utilisation could prove nothing.
        """
        mine = set(handle.pressure.helpers(injection.id))
        with card_of(injection) as (nvml, it):
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
    size: ClassVar[int] = SPUN
    certifies: ClassVar[str] = "requests survive a card whose multiprocessors a neighbour uses"

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if NVML measured that the helper itself used the multiprocessors."""
        mine = set(handle.pressure.helpers(injection.id))
        with card_of(injection) as (nvml, it):
            there = {p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(it)}
            used = sm_use(nvml, it, mine) if mine else 0
        text = f"{len(mine & there)} helpers on the card by NVML, their use of its SMs: {used} %"
        if mine:
            return Observation(Active.YES if used else Active.UNKNOWN, text)
        return Observation(Active.NO, text)
