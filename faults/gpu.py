"""Faults on the *simulated* GPU of a replica: grade simulated, and said wherever it shows.

Injected by the replica's admin route; observed by its data path alone, straight to the replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from survive.contracts import (
    Active,
    FaultFailedError,
    GpuHandle,
    Grade,
    HandleSpec,
    Injection,
    Json,
    Needs,
    Observation,
)
from survive.transport import Broken, CallFailedError
from survive.units import Factor, Share, UnitError

from .chat_looks import (
    ANSWER_S,
    BUSY,
    GLANCE_S,
    chat,
    head_of,
    health,
    kv_tokens,
    mean_gap_us,
    metric,
    one_token,
)

MOST_TOKENS = 4096  # of one answer: what a single probe can ask room for
SOME_RETRIES = Share(0.1)
DEATHS = ("red", "lying", "exit")


@dataclass(frozen=True, slots=True)
class Nothing:
    """No settings."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """Every step takes ``slow_down`` times as long."""

    slow_down: Factor


@dataclass(frozen=True, slots=True)
class EccSlow:
    """Every step takes ``slow_down`` times as long, and a share of ``retries`` is done twice."""

    slow_down: Factor
    retries: Share = SOME_RETRIES

    def __post_init__(self) -> None:
        if self.slow_down * (1 - self.retries) < 1.2:
            raise UnitError("slow_down x (1 - retries) must be 1.2 or more, or no look can tell")


@dataclass(frozen=True, slots=True)
class VramPressure:
    """Something else takes ``share`` of the KV space."""

    share: Share

    def __post_init__(self) -> None:
        if not 0.75 <= self.share <= 0.999:
            raise UnitError(
                "share must be from 75% to 99.9%: the stand-in's users would not feel less"
            )


@dataclass(frozen=True, slots=True)
class Xid:
    """How the replica takes it: ``red`` | ``lying`` | ``exit``."""

    death: str = "red"

    def __post_init__(self) -> None:
        if self.death not in DEATHS:
            raise UnitError(f"death is one of {', '.join(DEATHS)}")


class _OnGpu:
    """What all faults of this file share."""

    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.SIMULATED
    layer: ClassVar[str] = "gpu"
    needs: ClassVar[Needs] = Needs.GPU
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False
    healthy: ClassVar[dict[str, Json]]  # what heal sets

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that have a simulated GPU."""
        return [victim for victim in victims if "gpu" in victim.simulates.split()]

    async def heal(self, injection: Injection, handle: GpuHandle) -> None:
        """Mend it; a replica that is gone has nothing to mend, for its GPU went with it."""
        try:
            await handle.set_state(**self.healthy)
        except FaultFailedError:
            if await one_token(handle) is not Broken.REFUSED:
                raise

    async def round_trip(self, injection: Injection, handle: GpuHandle) -> bool:
        """A one-token call is answered."""
        return await one_token(handle) == 200


class GpuLost(_OnGpu):
    """``gpu.lost``: it falls off the bus; streams break, calls fail, health says unhealthy."""

    kind: ClassVar[str] = "gpu.lost"
    settings: ClassVar[type] = Nothing
    healthy: ClassVar[dict[str, Json]] = {"lost": False}
    certifies: ClassVar[str] = (
        "routing around a replica whose simulated GPU is lost: broken streams, fast errors, "
        "an honest health route"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU, driver or Xid; a replica whose health route lies; node repair"
    )

    async def inject(self, injection: Injection, handle: GpuHandle) -> None:
        """Lose it."""
        await handle.set_state(lost=True)

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """Active if a one-token call straight to the replica fails, or hangs for 500 ms."""
        seen = await one_token(handle)
        text = f"one-token call to {handle.spec.replica_id} (simulated GPU): {seen}"
        if seen == 200:
            return Observation(Active.NO, text)
        return Observation(Active.YES if _failed(seen) else Active.UNKNOWN, text)


class GpuHang(_OnGpu):
    """``gpu.hang``: calls are accepted and never answered, and the health route says 200."""

    kind: ClassVar[str] = "gpu.hang"
    settings: ClassVar[type] = Nothing
    healthy: ClassVar[dict[str, Json]] = {"hung": False}
    certifies: ClassVar[str] = (
        "calls survive a replica whose simulated GPU hangs while its health route says 200: "
        "deadlines and passive checks do the work, not health checks"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU or driver; a hang that stops the whole process (node.pause)"
    )

    async def inject(self, injection: Injection, handle: GpuHandle) -> None:
        """Take no step any more."""
        await handle.set_state(hung=True)

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """Active if a one-token call hangs, health says 200, and no token was made for anybody.

        The last tells a hang from a queue: a replica that is merely busy makes tokens meanwhile.
        """
        made = await metric(handle, "vllm:generation_tokens_total")
        seen = await one_token(handle)
        text = f"one-token call to {handle.spec.replica_id} (simulated GPU): {seen}"
        if seen == 200:
            return Observation(Active.NO, text)
        says, now = await asyncio.gather(
            health(handle), metric(handle, "vllm:generation_tokens_total")
        )
        hangs = seen is Broken.TIMEOUT and says == 200 and made is not None and made == now
        text += f"; health: {says}; tokens made before and after: {made}, {now}"
        return Observation(Active.YES if hangs else Active.UNKNOWN, text)


class GpuXid(_OnGpu):
    """``gpu.xid``: Xid 79, in the three ways in which servers were seen to take it."""

    kind: ClassVar[str] = "gpu.xid"
    keeps_down: ClassVar[bool] = True
    settings: ClassVar[type] = Xid
    healthy: ClassVar[dict[str, Json]] = {"xid": ""}
    certifies: ClassVar[str] = (
        "routing around a replica that dies of its simulated GPU: with a red health route and an "
        "exit code of 1, with exit code 0, or not at all while health goes on saying 200"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU, driver or kernel log; what a supervisor makes of the exit code (it is held "
        "back until the heal, as on a node whose GPU is gone); node repair"
    )

    async def inject(self, injection: Injection, handle: GpuHandle) -> None:
        """Let it die."""
        await handle.set_state(xid=_death(injection))

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """``lying``: a one-token call fails and health says 200. Else: nobody listens any more."""
        seen = await one_token(handle)
        text = f"one-token call to {handle.spec.replica_id} (simulated GPU): {seen}"
        if seen == 200:
            return Observation(Active.NO, text)
        if _death(injection) != "lying":
            return Observation(Active.YES if seen is Broken.REFUSED else Active.UNKNOWN, text)
        says = await health(handle)
        # A call that hangs may be one that waits its turn; an error is not.
        lies = _failed(seen) and seen is not Broken.TIMEOUT and says == 200
        return Observation(Active.YES if lies else Active.UNKNOWN, f"{text}; health: {says}")


class GpuVramPressure(_OnGpu):
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

    async def inject(self, injection: Injection, handle: GpuHandle) -> None:
        """Take the space."""
        await handle.set_state(taken=float(_share(injection)))

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """Active if a call for one token more than what is left fails, and a tiny one does not.

        The call is left at its first byte, so that where it fits it costs one token.
        """
        total = await kv_tokens(handle)
        if total is None:
            return Observation(Active.UNKNOWN, f"{handle.spec.replica_id} tells no KV size")
        needs = min(int(total * (1 - _share(injection))) + 1, MOST_TOKENS)  # and its prompt
        seen = await head_of(handle, chat(needs, stream=True), ANSWER_S - GLANCE_S)
        text = (
            f"a call for {needs} tokens of KV to {handle.spec.replica_id} (simulated GPU): {seen}"
        )
        if seen == 200:
            return Observation(Active.NO, text)
        tiny = await head_of(handle, chat(1, stream=True), GLANCE_S)
        bites = seen == 500 and (tiny == 200 or tiny in BUSY or tiny is Broken.TIMEOUT)
        return Observation(Active.YES if bites else Active.UNKNOWN, f"{text}; for one: {tiny}")


class _Slows(_OnGpu):
    """A GPU that is slower by a factor that can be measured."""

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
        needed = before * (1 + (_factor(injection) - 1) / 2)
        active = Active.YES if gap_us >= needed else Active.NO
        return Observation(active, f"{text}, before {before / 1000:.1f} ms", gap_us)


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

    async def inject(self, injection: Injection, handle: GpuHandle) -> None:
        """Slow it down."""
        await handle.set_state(slow_down=float(_factor(injection)))


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

    async def inject(self, injection: Injection, handle: GpuHandle) -> None:
        """Slow it down, unevenly."""
        wanted = _ecc(injection)
        await handle.set_state(slow_down=float(wanted.slow_down), retries=float(wanted.retries))


def _failed(seen: int | Broken) -> bool:
    """An error that is not for load, or no answer from one that listens."""
    if isinstance(seen, int):
        return seen >= 500 and seen not in BUSY
    return seen not in {Broken.REFUSED, Broken.PROTOCOL}


def _factor(injection: Injection) -> float:
    """How much slower a step is in the mean."""
    if "retries" in injection.settings or injection.kind == GpuEccSlow.kind:
        wanted = _ecc(injection)
        return wanted.slow_down * (1 + wanted.retries)
    return Factor.parse(injection.settings["slow_down"])


def _ecc(injection: Injection) -> EccSlow:
    settings = injection.settings
    return EccSlow(
        Factor.parse(settings["slow_down"]), Share.parse(settings.get("retries", str(SOME_RETRIES)))
    )


def _share(injection: Injection) -> Share:
    return Share.parse(injection.settings["share"])


def _death(injection: Injection) -> str:
    return str(injection.settings.get("death", Xid().death))
