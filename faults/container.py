"""Faults that take a container away: cut from its network, or stopped in good order.

Killing, pausing and keeping away are ``node.*``: those kinds work on containers as on processes.
"""

from __future__ import annotations

from typing import ClassVar

from survive.contracts import Active, Injection, Observation
from survive.transport import Broken

from .common import KeepsDown
from .containers import NO_TWIN, ContainerHandle, OnContainer
from .replicas import probe


class ContainerNetworkDisconnect(OnContainer):
    """Off its network for a time: it runs, and nobody reaches it, nor it anybody."""

    kind: ClassVar[str] = "container.network_disconnect"
    certifies: ClassVar[str] = (
        "requests survive a container that lost its network while its processes go on, and its "
        "return with all that it held"
    )
    does_not_certify: ClassVar[str] = (
        "a lossy or slow network; one way open, the other shut; callers from the host are refused "
        "at once (docker takes its port away), only those beside it on the network meet silence"
        + NO_TWIN
    )

    async def inject(self, injection: Injection, handle: ContainerHandle) -> None:
        """Disconnect it."""
        await handle.disconnect()

    async def observe(
        self, injection: Injection, handle: ContainerHandle, before: float | None
    ) -> Observation:
        """Active if its namespace has no interface left and its port does not answer."""
        seen, cards = await probe(handle), await handle.interfaces()
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


class ContainerStop(KeepsDown, OnContainer):
    """Stopped in good order (SIGTERM, a second, SIGKILL) and kept away, as by a rolling update."""

    kind: ClassVar[str] = "container.stop"
    certifies: ClassVar[str] = (
        "requests survive a container that is stopped in good order, with a second to finish what "
        "it has, and its cold return"
    )
    does_not_certify: ClassVar[str] = (
        "a longer grace than a second; an orchestrator that takes it out of rotation before"
        + NO_TWIN
    )

    async def inject(self, injection: Injection, handle: ContainerHandle) -> None:
        """Stop it; ``keeps_down`` already made the agent hold the supervisor back."""
        await handle.stop()

    async def observe(
        self, injection: Injection, handle: ContainerHandle, before: float | None
    ) -> Observation:
        """Active if its published port refuses: only a container that runs has one."""
        seen, name = await probe(handle), handle.spec.replica_id
        if isinstance(seen, int):
            return Observation(Active.NO, f"{name} answers {seen}")
        if seen is Broken.REFUSED and not await handle.exists():
            return Observation(Active.YES, f"pid {handle.spec.pid} of {name} is gone: {seen}")
        return Observation(Active.UNKNOWN, f"{name}: {seen}")
