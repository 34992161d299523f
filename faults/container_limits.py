"""Faults that hold a container to less than it wants: of a CPU's time, or of memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Injection, Observation

from .common import asked
from .containers import NO_TWIN, ContainerHandle, OnContainer, bites


@dataclass(frozen=True, slots=True)
class CpuSettings:
    """``cpus``: how many CPUs it may use, like 0.2."""

    cpus: float

    def __post_init__(self) -> None:
        """Raises ValueError. The kernel takes no quota below a hundredth of a CPU."""
        if not 0.01 <= self.cpus <= 1024:
            raise ValueError("cpus is a number from 0.01 up")


class ContainerCpu(OnContainer):
    """A CPU limit for a time, as a noisy neighbour's or a wrong manifest's."""

    kind: ClassVar[str] = "container.cpu"
    settings: ClassVar[type] = CpuSettings
    certifies: ClassVar[str] = (
        "requests survive a container that is throttled to a part of a CPU, in periods of 100 ms"
    )
    does_not_certify: ClassVar[str] = (
        "a busy host, where waiting is spread evenly; anything while the container wants less than "
        "its limit: then the kernel never throttles and the run is inconclusive" + NO_TWIN
    )

    async def inject(self, injection: Injection, handle: ContainerHandle) -> None:
        """Set the limit."""
        await handle.limit_cpu(asked(CpuSettings, injection).cpus)

    async def observe(
        self, injection: Injection, handle: ContainerHandle, before: float | None
    ) -> Observation:
        """Active if the kernel holds it to that, and has throttled it since."""
        seen, cpus = await handle.cpu_seen(), asked(CpuSettings, injection).cpus
        return bites(seen, cpus, before, f"CPUs of {handle.spec.replica_id}")

    async def heal(self, injection: Injection, handle: ContainerHandle) -> None:
        """Back to the compose file's limit."""
        await handle.limit_cpu(None)


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """``mib``: how much memory it may use, swap included, in MiB."""

    mib: int

    def __post_init__(self) -> None:
        """Raises ValueError. Docker refuses less than 6 MiB."""
        if not 6 <= self.mib <= 1 << 30:
            raise ValueError("mib is a whole number from 6 up")


class ContainerMemory(OnContainer):
    """A memory limit for a time. What it cannot reclaim, the kernel kills for."""

    kind: ClassVar[str] = "container.memory"
    settings: ClassVar[type] = MemorySettings
    certifies: ClassVar[str] = (
        "requests survive a container at its memory limit: reclaim, and death by the kernel where "
        "that is not enough"
    )
    does_not_certify: ClassVar[str] = (
        "a host that is out of memory; a leak's slow growth; anything while the container stays "
        "below nine tenths of its limit (inconclusive); a limit that is less than it uses now may "
        "not take (control groups, version 1): that is a failed inject" + NO_TWIN
    )

    async def inject(self, injection: Injection, handle: ContainerHandle) -> None:
        """Set the limit."""
        await handle.limit_memory(_bytes(injection))

    async def observe(
        self, injection: Injection, handle: ContainerHandle, before: float | None
    ) -> Observation:
        """Active if the kernel holds it to that, and it is at the limit or has met it since."""
        seen = await handle.memory_seen()
        return bites(seen, _bytes(injection), before, f"bytes of {handle.spec.replica_id}")

    async def heal(self, injection: Injection, handle: ContainerHandle) -> None:
        """Back to the compose file's limit, else to the host's whole memory."""
        await handle.limit_memory(None)


def _bytes(injection: Injection) -> int:
    return asked(MemorySettings, injection).mib << 20
