"""Simulated GPUs that are slow: throttled evenly, or unevenly by memory errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, GpuHandle, HandleSpec, Injection, Json, Observation
from survive.transport import CallFailedError
from survive.units import Factor, Share, UnitError

from .chat_looks import mean_gap_us
from .common import asked
from .gpus import OnGpu

SOME_RETRIES = Share(0.1)


class _Slows(OnGpu):
    """A GPU that is slower by a factor that can be measured."""

    def factor(self, injection: Injection) -> float:
        """How much longer a step takes in the mean."""
        slow_down: Factor = asked(self.settings, injection).slow_down
        return slow_down

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """Active if the mean gap between tokens (µs) is ≥ before × (1 + (factor − 1) / 2)."""
        try:
            gap_us = await mean_gap_us(handle)
        except CallFailedError as error:
            return Observation(Active.UNKNOWN, f"{handle.spec.replica_id}: {error}")
        if gap_us is None:
            return Observation(Active.UNKNOWN, f"{handle.spec.replica_id}: too few tokens in time")
        text = f"{gap_us / 1000:.1f} ms a token from {handle.spec.replica_id} (simulated GPU)"
        if before is None:
            return Observation(Active.NO, text, gap_us)
        needed = before * (1 + (self.factor(injection) - 1) / 2)
        active = Active.YES if gap_us >= needed else Active.NO
        return Observation(active, f"{text}, before {before / 1000:.1f} ms", gap_us)


@dataclass(frozen=True, slots=True)
class Throttle:
    """Every step takes ``slow_down`` times as long."""

    slow_down: Factor


class GpuThrottle(_Slows):
    """``gpu.throttle``: every step takes ``slow_down`` times as long."""

    kind: ClassVar[str] = "gpu.throttle"
    settings: ClassVar[type] = Throttle
    healthy: ClassVar[dict[str, Json]] = {"slow_down": 1.0}
    certifies: ClassVar[str] = (
        "latency under a replica whose simulated GPU runs slower (heat, power, a noisy neighbour)"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU: no clocks, power limits or memory bandwidth are touched"
    )

    def preflight(self, settings: Throttle, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that have a simulated GPU; a factor of 1 or less slows nothing down."""
        return super().preflight(settings, victims) if settings.slow_down > 1 else []

    def switches(self, injection: Injection) -> dict[str, Json]:
        """Slow it down."""
        return {"slow_down": float(self.factor(injection))}


@dataclass(frozen=True, slots=True)
class EccSlow:
    """Every step takes ``slow_down`` times as long, and a share of ``retries`` is done twice."""

    slow_down: Factor
    retries: Share = SOME_RETRIES

    def __post_init__(self) -> None:
        if self.slow_down * (1 - self.retries) < 1.2:
            raise UnitError("slow_down x (1 - retries) must be 1.2 or more, or no look can tell")


class GpuEccSlow(_Slows):
    """``gpu.ecc_slow``: memory errors; each step slower, and some of them done twice."""

    kind: ClassVar[str] = "gpu.ecc_slow"
    settings: ClassVar[type] = EccSlow
    healthy: ClassVar[dict[str, Json]] = {"slow_down": 1.0, "retries": 0}
    certifies: ClassVar[str] = (
        "latency under a replica whose simulated GPU is slow and uneven, as one that corrects and "
        "retries memory errors"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU; ECC counters, page retirement, or wrong results of uncorrected errors"
    )

    def factor(self, injection: Injection) -> float:
        """Retried steps count twice."""
        given = asked(EccSlow, injection)
        return given.slow_down * (1 + given.retries)

    def switches(self, injection: Injection) -> dict[str, Json]:
        """Slow it down, unevenly."""
        given = asked(EccSlow, injection)
        return {"slow_down": float(given.slow_down), "retries": float(given.retries)}
