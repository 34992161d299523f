"""Faults that only a container has: cut from its network, held to a share, stopped in good order.

Killing, pausing and keeping away are ``node.*``: those kinds work on containers as on processes.
Docker does the deed; the kernel (control groups, network namespaces, pids) bears witness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from survive.contracts import (
    Active,
    FaultFailedError,
    Grade,
    HandleSpec,
    Injection,
    Needs,
    Observation,
    ReplicaHandle,
)
from survive.errors import RefusedError
from survive.transport import Broken, CallFailedError, Request, read_all

ANSWER_S = 0.25  # a health probe that takes longer is no answer
FULL = 0.9  # of a memory limit: the kernel takes pages back in batches, so use stays just below
_NO_TWIN = "; no twin on the virtual host, where it is refused"


class _Limit(Protocol):
    """What the kernel holds a control group to (None = nothing), how often it had to, its use."""

    value: float | None
    hits: int
    used: int  # bytes, of memory only


class ContainerHandle(ReplicaHandle, Protocol):
    """A replica that is a container. All verbs are idempotent and read back."""

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after a second."""

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

    async def cpu_seen(self) -> _Limit | None:
        """By the kernel; None = its process is gone."""

    async def memory_seen(self) -> _Limit | None:
        """The same of memory, in bytes."""


def _containers(kind: str, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
    """Victims that are containers. Raises RefusedError if any is not: half a fault is none."""
    if any(not victim.container for victim in victims):
        raise RefusedError(
            f"{kind} needs containers; {victims[0].service} is run by driver {victims[0].driver}",
            hint="use a target with driver compose",
        )
    return list(victims)


async def _probe(handle: ContainerHandle) -> int | Broken:
    """One health probe to where the container is published: its status, or how it failed."""
    request = Request("GET", handle.spec.probe_path)
    try:
        answer = await handle.transport.call(handle.spec.address, request, timeout_s=ANSWER_S)
        await answer.close()
    except CallFailedError as error:
        return error.how
    return answer.status


async def _healthy(handle: ContainerHandle) -> bool:
    """The whole way: a 200 with its whole body."""
    request = Request("GET", handle.spec.probe_path)
    try:
        answer = await handle.transport.call(handle.spec.address, request, timeout_s=2 * ANSWER_S)
        await read_all(answer)
    except CallFailedError:
        return False
    return answer.status == 200


@dataclass(frozen=True, slots=True)
class NoSettings:
    """These faults have none."""


class ContainerNetworkDisconnect:
    """Off its network for a time: it runs, and nobody reaches it, nor it anybody."""

    kind: ClassVar[str] = "container.network_disconnect"
    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.REAL
    layer: ClassVar[str] = "container"
    needs: ClassVar[Needs] = Needs.REPLICA
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False
    certifies: ClassVar[str] = (
        "requests survive a container that lost its network while its processes go on, and its "
        "return with all that it held"
    )
    does_not_certify: ClassVar[str] = (
        "a lossy or slow network; one way open, the other shut; callers from the host are refused "
        "at once (docker takes its port away), only those beside it on the network meet silence"
        + _NO_TWIN
    )
    settings: ClassVar[type] = NoSettings

    def preflight(self, settings: NoSettings, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Containers."""
        return _containers(self.kind, victims)

    async def inject(self, injection: Injection, handle: ContainerHandle) -> None:
        """Disconnect it."""
        await handle.disconnect()

    async def observe(
        self, injection: Injection, handle: ContainerHandle, before: float | None
    ) -> Observation:
        """Active if its namespace has no interface left and its port does not answer."""
        seen, cards = await _probe(handle), await handle.interfaces()
        name = handle.spec.replica_id
        if isinstance(seen, int):
            return Observation(Active.NO, f"{name} answers {seen}, interfaces {cards}")
        if cards is None:
            return Observation(Active.UNKNOWN, f"{name} does not run ({seen})")
        if cards:
            return Observation(Active.NO, f"{name}: {seen}, but it has {', '.join(cards)}")
        return Observation(Active.YES, f"{name} runs without any interface: {seen}")

    async def heal(self, injection: Injection, handle: ContainerHandle) -> None:
        """Connect it again, with its old address."""
        await handle.connect()

    async def round_trip(self, injection: Injection, handle: ContainerHandle) -> bool:
        """It answers its health probe."""
        return await _healthy(handle)


@dataclass(frozen=True, slots=True)
class CpuSettings:
    """``cpus``: how many CPUs it may use, like 0.2."""

    cpus: float

    def __post_init__(self) -> None:
        """Raises ValueError. The kernel takes no quota below a hundredth of a CPU."""
        if not 0.01 <= self.cpus <= 1024:
            raise ValueError("cpus is a number from 0.01 up")


class ContainerCpu:
    """A CPU limit for a time, as a noisy neighbour's or a wrong manifest's."""

    kind: ClassVar[str] = "container.cpu"
    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.REAL
    layer: ClassVar[str] = "container"
    needs: ClassVar[Needs] = Needs.REPLICA
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False
    certifies: ClassVar[str] = (
        "requests survive a container that is throttled to a part of a CPU, in periods of 100 ms"
    )
    does_not_certify: ClassVar[str] = (
        "a busy host, where waiting is spread evenly; anything while the container wants less than "
        "its limit: then the kernel never throttles and the run is inconclusive" + _NO_TWIN
    )
    settings: ClassVar[type] = CpuSettings

    def preflight(self, settings: CpuSettings, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Containers."""
        return _containers(self.kind, victims)

    async def inject(self, injection: Injection, handle: ContainerHandle) -> None:
        """Set the limit."""
        await handle.limit_cpu(_number(injection, "cpus"))

    async def observe(
        self, injection: Injection, handle: ContainerHandle, before: float | None
    ) -> Observation:
        """Active if the kernel holds it to that, and has throttled it since."""
        seen = await handle.cpu_seen()
        return _bites(seen, _number(injection, "cpus"), before, f"CPUs of {handle.spec.replica_id}")

    async def heal(self, injection: Injection, handle: ContainerHandle) -> None:
        """Back to the compose file's limit."""
        await handle.limit_cpu(None)

    async def round_trip(self, injection: Injection, handle: ContainerHandle) -> bool:
        """It answers its health probe."""
        return await _healthy(handle)


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """``mib``: how much memory it may use, swap included, in MiB."""

    mib: int

    def __post_init__(self) -> None:
        """Raises ValueError. Docker refuses less than 6 MiB."""
        if not 6 <= self.mib <= 1 << 30:
            raise ValueError("mib is a whole number from 6 up")


class ContainerMemory:
    """A memory limit for a time. What it cannot reclaim, the kernel kills for."""

    kind: ClassVar[str] = "container.memory"
    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.REAL
    layer: ClassVar[str] = "container"
    needs: ClassVar[Needs] = Needs.REPLICA
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = False
    certifies: ClassVar[str] = (
        "requests survive a container at its memory limit: reclaim, and death by the kernel where "
        "that is not enough"
    )
    does_not_certify: ClassVar[str] = (
        "a host that is out of memory; a leak's slow growth; anything while the container stays "
        "below nine tenths of its limit (inconclusive); a limit that is less than it uses now may "
        "not take (control groups, version 1): that is a failed inject" + _NO_TWIN
    )
    settings: ClassVar[type] = MemorySettings

    def preflight(
        self, settings: MemorySettings, victims: Sequence[HandleSpec]
    ) -> list[HandleSpec]:
        """Containers."""
        return _containers(self.kind, victims)

    async def inject(self, injection: Injection, handle: ContainerHandle) -> None:
        """Set the limit."""
        await handle.limit_memory(_bytes(injection))

    async def observe(
        self, injection: Injection, handle: ContainerHandle, before: float | None
    ) -> Observation:
        """Active if the kernel holds it to that, and it is at the limit or has met it since."""
        seen = await handle.memory_seen()
        return _bites(seen, _bytes(injection), before, f"bytes of {handle.spec.replica_id}")

    async def heal(self, injection: Injection, handle: ContainerHandle) -> None:
        """Back to the compose file's limit, else to the host's whole memory."""
        await handle.limit_memory(None)

    async def round_trip(self, injection: Injection, handle: ContainerHandle) -> bool:
        """It answers its health probe."""
        return await _healthy(handle)


class ContainerStop:
    """Stopped in good order (SIGTERM, a second, SIGKILL) and kept away, as by a rolling update."""

    kind: ClassVar[str] = "container.stop"
    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.REAL
    layer: ClassVar[str] = "container"
    needs: ClassVar[Needs] = Needs.REPLICA
    privileges: ClassVar[str] = ""
    keeps_down: ClassVar[bool] = True
    certifies: ClassVar[str] = (
        "requests survive a container that is stopped in good order, with a second to finish what "
        "it has, and its cold return"
    )
    does_not_certify: ClassVar[str] = (
        "a longer grace than a second; an orchestrator that takes it out of rotation before"
        + _NO_TWIN
    )
    settings: ClassVar[type] = NoSettings

    def preflight(self, settings: NoSettings, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Containers."""
        return _containers(self.kind, victims)

    async def inject(self, injection: Injection, handle: ContainerHandle) -> None:
        """Stop it; ``keeps_down`` already made the agent hold the supervisor back."""
        await handle.stop()

    async def observe(
        self, injection: Injection, handle: ContainerHandle, before: float | None
    ) -> Observation:
        """Active if its published port refuses: only a container that runs has one."""
        seen, name = await _probe(handle), handle.spec.replica_id
        if isinstance(seen, int):
            return Observation(Active.NO, f"{name} answers {seen}")
        if seen is Broken.REFUSED and not await handle.exists():
            return Observation(Active.YES, f"pid {handle.spec.pid} of {name} is gone: {seen}")
        return Observation(Active.UNKNOWN, f"{name}: {seen}")

    async def heal(self, injection: Injection, handle: ContainerHandle) -> None:
        """The release itself is the agent's, which held (``keeps_down``); no other undo."""

    async def round_trip(self, injection: Injection, handle: ContainerHandle) -> bool:
        """The new boot answers its health probe."""
        return await _healthy(handle)


def _bites(seen: _Limit | None, asked: float, before: float | None, what: str) -> Observation:
    """A limit is a fault only once it holds something back; ``value`` counts how often it did."""
    if seen is None:
        return Observation(Active.UNKNOWN, f"{what}: its process is gone")
    shown = f"{what}: limit {seen.value or 'none'}, {seen.hits} hits, {seen.used} used"
    if seen.value is None or seen.value > asked * 1.01:
        return Observation(Active.NO, shown, seen.hits)
    if before is not None and (seen.hits > before or seen.used >= FULL * seen.value):
        return Observation(Active.YES, f"{shown}; {before:g} hits before", seen.hits)
    return Observation(Active.UNKNOWN, f"{shown}: in force, but it wants no more", seen.hits)


def _number(injection: Injection, name: str) -> float:
    value = injection.settings[name]
    if not isinstance(value, int | float):
        raise FaultFailedError(f"{name} is {value!r}, not a number")
    return float(value)


def _bytes(injection: Injection) -> int:
    return int(_number(injection, "mib")) << 20
