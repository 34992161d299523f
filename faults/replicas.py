"""What faults on replicas share: whom they hit, a glance at one, and that it is well again."""

from __future__ import annotations

from typing import Any, ClassVar

from survive.contracts import Injection, Needs, ReplicaHandle
from survive.transport import Broken, Request

from .calls import head_of, health
from .common import Common

ANSWER_S = 0.25  # a health probe that takes longer is no answer


class OnReplica(Common):
    """Some replicas of a service, each known by name."""

    layer: ClassVar[str] = "node"
    needs: ClassVar[Needs] = Needs.REPLICA

    async def round_trip(self, injection: Injection, handle: Any) -> bool:
        """The replica answers its health probe, whole."""
        return await health(handle, 2 * ANSWER_S) == 200


async def probe(handle: ReplicaHandle) -> int | Broken:
    """One health probe straight to the replica: the status that it began to answer, or how not."""
    return await head_of(handle, Request("GET", handle.spec.probe_path), ANSWER_S)
