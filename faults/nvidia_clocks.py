"""``nvidia.locked_clocks``: a real NVIDIA card that runs slower, set as root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, HandleSpec, Injection, Json, Observation, ProcessHandle
from survive.units import Share, UnitError

from .cards import SPUN, OnLimits, busy, number
from .nvml import card_of, card_or_refused

LOAD_S = 4  # of the load under which a heal is proven
NEAR = 1.02  # of a clock: the card has steps of its own


@dataclass(frozen=True, slots=True)
class LockedClocks:
    """Settings: ``share`` of the highest SM clock; the ``device`` by NVML's number."""

    share: Share
    device: int = 0

    def __post_init__(self) -> None:
        if not 0.05 <= self.share <= 0.9:
            raise UnitError("share must be from 5% to 90% of the card's highest clock")


class NvidiaLockedClocks(OnLimits):
    """``nvidia.locked_clocks``: the card's multiprocessors run at a lower clock."""

    kind: ClassVar[str] = "nvidia.locked_clocks"
    settings: ClassVar[type] = LockedClocks
    certifies: ClassVar[str] = "requests survive a card that runs slower than it should"
    does_not_certify: ClassVar[str] = (
        "a card that computed nothing before and during: an idle clock proves nothing; heat; NVML "
        "does not tell a lock that somebody had set before: heal unlocks; no virtual twin"
    )

    def remember(self, settings: LockedClocks, victim: HandleSpec) -> dict[str, Json]:
        """The wanted clock in MHz. A lock that is on cannot be read: none is taken for granted."""
        with card_or_refused(self.kind, settings.device) as (nvml, it):
            highest = nvml.nvmlDeviceGetMaxClockInfo(it, nvml.NVML_CLOCK_SM)
        return {"wanted_mhz": int(highest * settings.share)}

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Lock it: lowest and highest alike."""
        wanted = int(number(injection, "wanted_mhz"))
        with card_of(injection) as (nvml, it):
            nvml.nvmlDeviceSetGpuLockedClocks(it, wanted, wanted)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the clock under load is no higher than wanted, and was higher before.

        The clock itself, which is no read-back of the lock.
        """
        with card_of(injection) as (nvml, it):
            clock = float(nvml.nvmlDeviceGetClockInfo(it, nvml.NVML_CLOCK_SM))
            busy = nvml.nvmlDeviceGetUtilizationRates(it).gpu
        most = number(injection, "wanted_mhz") * NEAR
        text = f"its SMs run at {clock:g} MHz, {busy} % busy"
        if clock > most:
            return Observation(Active.NO, text, clock)
        slower = busy and before is not None and before > most
        return Observation(Active.YES if slower else Active.UNKNOWN, text)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """Unlock it; an idle card gets a load of ours for 4 s, or no clock could prove it."""
        await handle.pressure.end_helpers(injection.id)
        with card_of(injection) as (nvml, it):
            nvml.nvmlDeviceResetGpuLockedClocks(it)
            idle = not nvml.nvmlDeviceGetUtilizationRates(it).gpu
        if idle:
            load = busy("sm", injection.settings.get("device", 0), SPUN, 0.5)
            await handle.pressure.start_helper(injection.id, load, LOAD_S)
