"""What faults on containers share: the handle, whom they hit, and how a limit is seen to bite.

Docker does the deed; the kernel (control groups, network namespaces, pids) bears witness.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from survive.contracts import Active, Grade, HandleSpec, Observation, ReplicaHandle
from survive.errors import WrongTargetError

from .replicas import OnReplica

NO_TWIN = "; no twin on the virtual host, where it is refused"
_FULL = 0.9  # of a memory limit: the kernel takes pages back in batches, so use stays just below


class Limit(Protocol):
    """What the kernel holds a control group to (None = nothing), how often it had to, its use."""

    value: float | None
    hits: int
    used: int  # bytes, of memory only


class ContainerHandle(ReplicaHandle, Protocol):
    """A replica that is a container. All verbs are idempotent and read back."""

    async def disconnect(self) -> None:
        """Off its network."""

    async def connect(self) -> None:
        """Back on it, at its old address."""

    async def limit_cpu(self, cpus: float | None) -> None:
        """None = as before any fault."""

    async def limit_memory(self, limit: int | None) -> None:
        """Bytes, swap included; None = as before any fault."""

    async def interfaces(self) -> list[str] | None:
        """All but loopback, by the kernel; None = its process is gone."""

    async def cpu_seen(self) -> Limit | None:
        """By the kernel; None = its process is gone."""

    async def memory_seen(self) -> Limit | None:
        """The same of memory, in bytes."""


class OnContainer(OnReplica):
    """What all faults on containers share."""

    grade: ClassVar[Grade] = Grade.REAL
    layer: ClassVar[str] = "container"

    def check_host(self, settings: Any, here: HandleSpec) -> None:
        """Containers only: half a fault is none."""
        if not here.container:
            raise WrongTargetError(
                f"{self.kind} needs containers; {here.service} is run by driver {here.driver}",
                hint="use a target with driver compose",
            )


def bites(seen: Limit | None, asked: float, before: float | None, what: str) -> Observation:
    """A limit is a fault only once it holds something back; ``value`` counts how often it did."""
    if seen is None:
        return Observation(Active.UNKNOWN, f"{what}: its process is gone")
    shown = f"{what}: limit {seen.value or 'none'}, {seen.hits} hits, {seen.used} used"
    if seen.value is None or seen.value > asked * 1.01:
        return Observation(Active.NO, shown, seen.hits)
    if before is not None and (seen.hits > before or seen.used >= _FULL * seen.value):
        return Observation(Active.YES, f"{shown}; {before:g} hits before", seen.hits)
    return Observation(Active.UNKNOWN, f"{shown}: in force, but it wants no more", seen.hits)
