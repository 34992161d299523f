"""Simulated GPUs that fail: lost, hung, or dead of an Xid in one of three ways."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, GpuHandle, Injection, Json, Observation
from survive.transport import Broken
from survive.units import UnitError

from .calls import health
from .chat_looks import GLANCE_S, metric
from .common import asked
from .gpus import OnGpu, failed, token_look

DEATHS = ("red", "lying", "exit")
MADE = "vllm:generation_tokens_total"


class GpuLost(OnGpu):
    """``gpu.lost``: it falls off the bus; streams break, calls fail, health says unhealthy."""

    kind: ClassVar[str] = "gpu.lost"
    broken: ClassVar[dict[str, Json]] = {"lost": True}
    healthy: ClassVar[dict[str, Json]] = {"lost": False}
    certifies: ClassVar[str] = (
        "routing around a replica whose simulated GPU is lost: broken streams, fast errors, "
        "an honest health route"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU, driver or Xid; a replica whose health route lies; node repair"
    )

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """Active if a one-token call straight to the replica fails, or hangs for 500 ms."""
        seen, text = await token_look(handle)
        if seen == 200:
            return Observation(Active.NO, text)
        return Observation(Active.YES if failed(seen) else Active.UNKNOWN, text)


class GpuHang(OnGpu):
    """``gpu.hang``: calls are accepted and never answered, and the health route says 200."""

    kind: ClassVar[str] = "gpu.hang"
    broken: ClassVar[dict[str, Json]] = {"hung": True}
    healthy: ClassVar[dict[str, Json]] = {"hung": False}
    certifies: ClassVar[str] = (
        "calls survive a replica whose simulated GPU hangs while its health route says 200: "
        "deadlines and passive checks do the work, not health checks"
    )
    does_not_certify: ClassVar[str] = (
        "any real GPU or driver; a hang that stops the whole process (node.pause)"
    )

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """Active if a one-token call hangs, health says 200, and no token was made for anybody.

        The last tells a hang from a queue: a replica that is merely busy makes tokens meanwhile.
        """
        made = await metric(handle, MADE)
        seen, text = await token_look(handle)
        if seen == 200:
            return Observation(Active.NO, text)
        says, now = await asyncio.gather(health(handle, GLANCE_S), metric(handle, MADE))
        hangs = seen is Broken.TIMEOUT and says == 200 and made is not None and made == now
        text += f"; health: {says}; tokens made before and after: {made}, {now}"
        return Observation(Active.YES if hangs else Active.UNKNOWN, text)


@dataclass(frozen=True, slots=True)
class Xid:
    """How the replica takes it: ``red`` | ``lying`` | ``exit``."""

    death: str = "red"

    def __post_init__(self) -> None:
        if self.death not in DEATHS:
            raise UnitError(f"death is one of {', '.join(DEATHS)}")


class GpuXid(OnGpu):
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

    def switches(self, injection: Injection) -> dict[str, Json]:
        """How it dies."""
        return {"xid": asked(Xid, injection).death}

    async def observe(
        self, injection: Injection, handle: GpuHandle, before: float | None
    ) -> Observation:
        """``lying``: a one-token call fails and health says 200. Else: nobody listens any more."""
        seen, text = await token_look(handle)
        if seen == 200:
            return Observation(Active.NO, text)
        if asked(Xid, injection).death != "lying":
            return Observation(Active.YES if seen is Broken.REFUSED else Active.UNKNOWN, text)
        says = await health(handle, GLANCE_S)
        # A call that hangs may be one that waits its turn; an error is not.
        lies = failed(seen) and seen is not Broken.TIMEOUT and says == 200
        return Observation(Active.YES if lies else Active.UNKNOWN, f"{text}; health: {says}")
