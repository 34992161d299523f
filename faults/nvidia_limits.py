"""Faults that set limits on a real NVIDIA card, as root: less power, a lower clock.

What was set before is in the ledger before anything is changed, as far as NVML tells it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from survive.contracts import (
    Active,
    FaultFailedError,
    Grade,
    HandleSpec,
    Injection,
    Json,
    Observation,
    ProcessHandle,
)
from survive.errors import RefusedError
from survive.units import Share, UnitError

from .around import AroundProcess
from .nvidia import SPUN
from .nvml import card, card_or_refused, need_card

LOAD_S = 4  # of the load under which a heal is proven
NEAR = 1.02  # of a clock or a limit: the card has steps of its own
DRAWN = 1.1  # of a power limit: the reading is a mean over time


@dataclass(frozen=True, slots=True)
class PowerLimit:
    """Settings: ``limit`` as a share of the limit before; the ``device`` by NVML's number."""

    limit: Share
    device: int = 0

    def __post_init__(self) -> None:
        if not 0.05 <= self.limit <= 0.95:
            raise UnitError("limit must be from 5% to 95% of the card's limit")


@dataclass(frozen=True, slots=True)
class LockedClocks:
    """Settings: ``share`` of the highest SM clock; the ``device`` by NVML's number."""

    share: Share
    device: int = 0

    def __post_init__(self) -> None:
        if not 0.05 <= self.share <= 0.9:
            raise UnitError("share must be from 5% to 90% of the card's highest clock")


class _OnLimits(AroundProcess):
    """What both faults share."""

    grade: ClassVar[Grade] = Grade.REAL
    layer: ClassVar[str] = "gpu"
    privileges: ClassVar[str] = "root: it sets limits of the card, for all that use it"
    outlives_victim: ClassVar[bool] = True  # they are the card's
    kind: ClassVar[str]

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """One victim's host has the card. Raises RefusedError (6) without one, or without root."""
        need_card(self.kind, settings.device, victims)
        if os.geteuid() != 0:
            raise RefusedError(f"{self.kind} needs {self.privileges}")
        self.remember(settings, victims[0])
        return list(victims[:1])

    def remember(self, settings: Any, victim: HandleSpec) -> dict[str, Json]:
        """What is set now, and what will be. Raises RefusedError if the card cannot do it."""
        raise NotImplementedError


class NvidiaPowerLimit(_OnLimits):
    """``nvidia.power_limit``: the card may draw less power."""

    kind: ClassVar[str] = "nvidia.power_limit"
    settings: ClassVar[type] = PowerLimit
    certifies: ClassVar[str] = "requests survive a card that is held back by its power limit"
    does_not_certify: ClassVar[str] = (
        "a limit that no load ever meets: then nothing is proven; a failing supply; no virtual twin"
    )

    def remember(self, settings: PowerLimit, victim: HandleSpec) -> dict[str, Json]:
        """The limit before and the wanted one, in mW."""
        with card_or_refused(self.kind, settings.device) as (nvml, it):
            before = int(nvml.nvmlDeviceGetPowerManagementLimit(it))
            lowest = int(nvml.nvmlDeviceGetPowerManagementLimitConstraints(it)[0])
        wanted = int(before * settings.limit)
        if wanted < lowest:
            raise RefusedError(
                f"{self.kind}: the card goes down to {lowest / 1000:g} W, not {wanted / 1000:g} W"
            )
        return {"before_mw": before, "wanted_mw": wanted}

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """Set it."""
        _set_power(injection, "wanted_mw")

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the card says that its power cap holds it back, and draws no more than that.

        That it is off again is the enforced limit alone: the driver's word, by another call.
        """
        with card(injection.settings.get("device", 0)) as (nvml, it):
            enforced = nvml.nvmlDeviceGetEnforcedPowerLimit(it)
            drawn = nvml.nvmlDeviceGetPowerUsage(it)
            reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(it)
        capped = bool(reasons & nvml.nvmlClocksThrottleReasonSwPowerCap)
        wanted = _number(injection, "wanted_mw")
        text = (
            f"{drawn / 1000:g} W drawn of {enforced / 1000:g} W enforced, "
            f"{'' if capped else 'not '}held back by its power cap"
        )
        if enforced > wanted * NEAR:
            return Observation(Active.NO, text, drawn / 1000)
        bites = capped and drawn <= wanted * DRAWN
        return Observation(Active.YES if bites else Active.UNKNOWN, text, drawn / 1000)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """The limit that the ledger has."""
        _set_power(injection, "before_mw")


class NvidiaLockedClocks(_OnLimits):
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
        wanted = int(_number(injection, "wanted_mhz"))
        with card(injection.settings.get("device", 0)) as (nvml, it):
            nvml.nvmlDeviceSetGpuLockedClocks(it, wanted, wanted)

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if the clock under load is no higher than wanted, and was higher before.

        The clock itself, which is no read-back of the lock.
        """
        with card(injection.settings.get("device", 0)) as (nvml, it):
            clock = float(nvml.nvmlDeviceGetClockInfo(it, nvml.NVML_CLOCK_SM))
            busy = nvml.nvmlDeviceGetUtilizationRates(it).gpu
        most = _number(injection, "wanted_mhz") * NEAR
        text = f"its SMs run at {clock:g} MHz, {busy} % busy"
        if clock > most:
            return Observation(Active.NO, text, clock)
        slower = busy and before is not None and before > most
        return Observation(Active.YES if slower else Active.UNKNOWN, text)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """Unlock it; an idle card gets a load of ours for 4 s, or no clock could prove it."""
        await handle.pressure.end_helpers(injection.id)
        device = injection.settings.get("device", 0)
        with card(device) as (nvml, it):
            nvml.nvmlDeviceResetGpuLockedClocks(it)
            idle = not nvml.nvmlDeviceGetUtilizationRates(it).gpu
        if idle:
            library = os.environ.get("SURVIVE_LIBCUDA", "libcuda.so.1")
            load = ["cuda", "sm", str(device), str(SPUN), "0.5", library]
            await handle.pressure.start_helper(injection.id, load, LOAD_S)


def _number(injection: Injection, name: str) -> float:
    return float(str(injection.settings[name]))


def _set_power(injection: Injection, name: str) -> None:
    """Idempotent. Raises FaultFailedError unless the setting reads back."""
    wanted = int(_number(injection, name))
    with card(injection.settings.get("device", 0)) as (nvml, it):
        if nvml.nvmlDeviceGetPowerManagementLimit(it) != wanted:
            nvml.nvmlDeviceSetPowerManagementLimit(it, wanted)
        found = nvml.nvmlDeviceGetPowerManagementLimit(it)
    if abs(found - wanted) > 1000:  # the card may round to watts
        raise FaultFailedError(f"the limit is {found} mW, not {wanted} mW")
