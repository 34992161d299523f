"""``nvidia.power_limit``: a real NVIDIA card that may draw less power, set as root.

What was set before is in the ledger before anything is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import (
    Active,
    FaultFailedError,
    HandleSpec,
    Injection,
    Json,
    Observation,
    ProcessHandle,
)
from survive.errors import RefusedError
from survive.units import Share, UnitError

from .cards import OnLimits, number
from .nvml import card_of, card_or_refused

NEAR = 1.02  # of a limit: the card has steps of its own
DRAWN = 1.1  # of a power limit: the reading is a mean over time


@dataclass(frozen=True, slots=True)
class PowerLimit:
    """Settings: ``limit`` as a share of the limit before; the ``device`` by NVML's number."""

    limit: Share
    device: int = 0

    def __post_init__(self) -> None:
        if not 0.05 <= self.limit <= 0.95:
            raise UnitError("limit must be from 5% to 95% of the card's limit")


class NvidiaPowerLimit(OnLimits):
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
        with card_of(injection) as (nvml, it):
            enforced = nvml.nvmlDeviceGetEnforcedPowerLimit(it)
            drawn = nvml.nvmlDeviceGetPowerUsage(it)
            reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(it)
        capped = bool(reasons & nvml.nvmlClocksThrottleReasonSwPowerCap)
        wanted = number(injection, "wanted_mw")
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


def _set_power(injection: Injection, name: str) -> None:
    """Idempotent. Raises FaultFailedError unless the setting reads back."""
    wanted = int(number(injection, name))
    with card_of(injection) as (nvml, it):
        if nvml.nvmlDeviceGetPowerManagementLimit(it) != wanted:
            nvml.nvmlDeviceSetPowerManagementLimit(it, wanted)
        found = nvml.nvmlDeviceGetPowerManagementLimit(it)
    if abs(found - wanted) > 1000:  # the card may round to watts
        raise FaultFailedError(f"the limit is {found} mW, not {wanted} mW")
