"""Faults on the replicas of a service: a process that dies, hangs, or stays away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from survive.contracts import Active, Grade, HandleSpec, Injection, Observation, ReplicaHandle
from survive.transport import Broken
from survive.units import SECOND, Duration

from .common import KeepsDown, OneShot
from .replicas import OnReplica, probe


@runtime_checkable
class _SeesOs(Protocol):
    """A handle that knows the operating system's own word for its process."""

    async def os_state(self) -> str: ...


class _OnNode(OnReplica):
    """What all faults of this file share."""

    grade: ClassVar[Grade] = Grade.REAL


class NodeKill(OneShot, _OnNode):
    """SIGKILL, once. The supervisor may bring it back; that is the recovery to be judged."""

    kind: ClassVar[str] = "node.kill"
    certifies: ClassVar[str] = (
        "requests survive the sudden death of a replica's process, and its restart"
    )
    does_not_certify: ClassVar[str] = (
        "the loss of a whole machine, of its disk or of its network; a crash that corrupts data"
    )

    async def inject(self, injection: Injection, handle: ReplicaHandle) -> None:
        """Kill its process group."""
        await handle.kill()

    async def observe(
        self, injection: Injection, handle: ReplicaHandle, before: float | None
    ) -> Observation:
        """Active once the very process that was hit is gone; a successor does not count."""
        spec = handle.spec
        if await handle.exists():
            return Observation(Active.NO, f"{spec.replica_id} still runs as pid {spec.pid}")
        return Observation(Active.YES, f"pid {spec.pid} of {spec.replica_id} is gone")


class NodeRestart(NodeKill):
    """SIGTERM, once: what a deploy does to one replica. The supervisor brings it back."""

    kind: ClassVar[str] = "node.restart"
    certifies: ClassVar[str] = (
        "requests survive the orderly end of a replica: it drains, refuses, and comes back"
    )
    does_not_certify: ClassVar[str] = (
        "an orchestrator that takes a replica out of rotation before it ends it; a replica that "
        "ignores SIGTERM, which shows as never having been hit"
    )

    async def inject(self, injection: Injection, handle: ReplicaHandle) -> None:
        """Ask its process group to end."""
        await handle.stop()


@dataclass(frozen=True, slots=True)
class Rolling:
    """Settings: ``pause`` between the return of one replica and the end of the next."""

    pause: Duration = Duration(SECOND)  # noqa: RUF009 - an immutable integer


class NodeRollingRestart(NodeRestart):
    """``node.restart`` on every replica of a service, one after another."""

    kind: ClassVar[str] = "node.rolling_restart"
    rolling: ClassVar[bool] = True  # the agent hits the next once the last has come back
    certifies: ClassVar[str] = (
        "requests survive a deploy: every replica ends and comes back, one at a time"
    )
    does_not_certify: ClassVar[str] = (
        "two versions side by side, or a migration between them; surge replicas; a replica that "
        "ignores SIGTERM"
    )
    settings: ClassVar[type] = Rolling

    def preflight(self, settings: Rolling, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """All replicas of the service; a single one is no roll."""
        return list(victims) if len(victims) > 1 else []


class NodePause(_OnNode):
    """SIGSTOP for a time: ports stay open, connections are accepted, nothing answers."""

    kind: ClassVar[str] = "node.pause"
    certifies: ClassVar[str] = (
        "requests survive a replica that hangs with its ports open (deadlock, long collection, "
        "stuck driver), and its sudden return with all that it had queued"
    )
    does_not_certify: ClassVar[str] = (
        "a lost machine or network: peers still get TCP acknowledgements, and the kernel still "
        "accepts connections until the backlog is full"
    )

    async def inject(self, injection: Injection, handle: ReplicaHandle) -> None:
        """Stop its process group."""
        await handle.pause()

    async def observe(
        self, injection: Injection, handle: ReplicaHandle, before: float | None
    ) -> Observation:
        """Active if a probe straight to it gets no answer in 250 ms, and it is not merely slow."""
        seen = await probe(handle)
        state = await handle.os_state() if isinstance(handle, _SeesOs) else ""
        shown = f", state {state}" if state else ""
        name = handle.spec.replica_id
        if isinstance(seen, int):
            return Observation(Active.NO, f"{name} answers {seen}{shown}")
        if seen is not Broken.TIMEOUT:
            active = Active.NO if seen is Broken.REFUSED else Active.UNKNOWN
            return Observation(active, f"{name}: {seen}{shown}")
        if state and state not in "Tt":
            return Observation(Active.UNKNOWN, f"{name} is silent but runs{shown}")
        return Observation(Active.YES, f"{name} is silent for 250 ms{shown}")

    async def heal(self, injection: Injection, handle: ReplicaHandle) -> None:
        """Let its process group go on."""
        await handle.resume()


class NodeDown(KeepsDown, _OnNode):
    """Killed and kept away: its port refuses until the heal lets the supervisor start it."""

    kind: ClassVar[str] = "node.down"
    certifies: ClassVar[str] = (
        "requests survive a replica that is gone for a time, and its cold return"
    )
    does_not_certify: ClassVar[str] = (
        "an unreachable host: a dead process refuses connections at once, a dead host swallows "
        "them; the restart is the test stack's supervisor's, not an orchestrator's"
    )

    async def inject(self, injection: Injection, handle: ReplicaHandle) -> None:
        """Kill it; ``keeps_down`` already made the agent hold the supervisor back."""
        await handle.kill()

    async def observe(
        self, injection: Injection, handle: ReplicaHandle, before: float | None
    ) -> Observation:
        """Active if its own address refuses connections."""
        seen = await probe(handle)
        if isinstance(seen, int):
            return Observation(Active.NO, f"{handle.spec.replica_id} answers {seen}")
        active = Active.YES if seen is Broken.REFUSED else Active.UNKNOWN
        return Observation(active, f"{handle.spec.replica_id}: {seen}")
