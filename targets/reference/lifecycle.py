"""Whether a replica may be asked: its model loads, it sleeps, or it lets its last work end.

LOAD_TIME (``3s``; none = at once) is how long the model loads after a boot and after each wake.
AWAKE (a count; none = all) says how many replicas are awake after their boot: those numbered from
there on sleep, until an autoscaler wakes them. A sleeping replica holds no memory of the GPU.
"""

from __future__ import annotations

from enum import StrEnum

from survive.clock import sleep_us
from survive.contracts import ServiceContext
from survive.units import duration_us

from .asgi import RefusalError
from .gpu import Gpu

_LOOK_EVERY_US = 20_000  # whether the last work has ended
STATE_HEADER = "x-replica-state"


class Stage(StrEnum):
    """Where a replica stands."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"  # ends what it has begun, then sleeps
    ASLEEP = "asleep"


class Lifecycle:
    """The stage of one replica, and how it changes."""

    def __init__(self, context: ServiceContext, gpu: Gpu) -> None:
        self.stage = Stage.READY
        self._context = context
        self._gpu = gpu
        self._load_us = duration_us(context.env.get("LOAD_TIME", "0s"))
        self._loaded_us = 0  # when the load that was begun last ends
        number = context.env.get("SURVIVE_REPLICA", "").rpartition("-")[2]
        awake = context.env.get("AWAKE", "")
        if awake and number.isdigit() and int(number) >= int(awake):
            self.stage = Stage.ASLEEP
        else:
            self._load()

    def refuse_unless_ready(self) -> None:
        """Raises RefusalError 503, which names the stage in x-replica-state."""
        if self.stage is not Stage.READY:
            raise RefusalError(503, f"the replica is {self.stage}", [(STATE_HEADER, self.stage)])

    def wake(self) -> None:
        """Load the model again. Idempotent."""
        if self.stage is Stage.DRAINING:
            self.stage = Stage.READY  # it has not let go of anything yet
        elif self.stage is Stage.ASLEEP:
            self._load()

    def sleep(self) -> None:
        """Take no new work, end what was begun, then free the GPU. Idempotent."""
        if self.stage is Stage.READY:
            self.stage = Stage.DRAINING
            self._context.spawn(self._drain())
        elif self.stage is Stage.LOADING:
            self.stage = Stage.ASLEEP

    def _load(self) -> None:
        if self._load_us == 0:
            self.stage = Stage.READY
            return
        self.stage = Stage.LOADING
        self._loaded_us = self._context.clock.now_us() + self._load_us
        self._context.spawn(self._loaded(self._loaded_us))

    async def _loaded(self, at_us: int) -> None:
        await self._context.clock.sleep_until(at_us)
        if self.stage is Stage.LOADING and at_us == self._loaded_us:
            self.stage = Stage.READY

    async def _drain(self) -> None:
        while self._gpu.running or self._gpu.waiting:
            await sleep_us(self._context.clock, _LOOK_EVERY_US)
            if self.stage is not Stage.DRAINING:
                return
        self.stage = Stage.ASLEEP
        self._gpu.kv.forget()
