"""What faults on the *simulated* GPU of a replica share: it is well when it makes a token."""

from __future__ import annotations

from typing import ClassVar

from survive.contracts import GpuHandle, Injection, Needs
from survive.transport import Broken

from .chat_looks import BUSY, one_token
from .stand_ins import OnStandIn


class OnGpu(OnStandIn):
    """Grade simulated, and said wherever it shows."""

    layer: ClassVar[str] = "gpu"
    needs: ClassVar[Needs] = Needs.GPU
    part: ClassVar[str] = "gpu"

    async def round_trip(self, injection: Injection, handle: GpuHandle) -> bool:
        """A one-token call is answered."""
        return await one_token(handle) == 200


async def token_look(handle: GpuHandle) -> tuple[int | Broken, str]:
    """A one-token call straight to the replica, and how to tell of it."""
    seen = await one_token(handle)
    return seen, f"one-token call to {handle.spec.replica_id} (simulated GPU): {seen}"


def failed(seen: int | Broken) -> bool:
    """An error that is not for load, or no answer from one that listens."""
    if isinstance(seen, int):
        return seen >= 500 and seen not in BUSY
    return seen not in {Broken.REFUSED, Broken.PROTOCOL}
