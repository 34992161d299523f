"""The replicas of a target and who brings them back: what drivers share that start something."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from survive.contracts import HandleSpec
from survive.host.driver import DriverContext
from survive.scenario.model import Service

from . import wiring


class Watch:
    """What a supervisor knows of one replica: is it gone, is it held down, may it come back."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self._held = False
        self._now = asyncio.Event()

    def booted(self) -> None:
        """A new boot runs."""
        self.gone.clear()
        self._now.clear()

    def hold(self) -> None:
        """It must stay down when it goes down."""
        self._held = True
        self._now.clear()

    def release(self, *, down: bool) -> None:
        """It may come back, at once if it is down."""
        self._held = False
        if down:
            self._now.set()

    async def restart_due(self, after_us: int | None) -> None:
        """Gone: return when it is to be started again; never, if unsupervised and not released."""
        await self.gone.wait()
        try:
            async with asyncio.timeout(None if after_us is None else after_us / 1e6):
                await self._now.wait()
        except TimeoutError:
            if self._held:
                await self._now.wait()


@dataclass(slots=True)
class Replica:
    """What a driver knows of one replica, whatever it is made of."""

    service: Service
    number: int
    env: dict[str, str] = field(default_factory=dict, kw_only=True)
    watch: Watch = field(default_factory=Watch, kw_only=True)

    @property
    def name(self) -> str:
        """``inference-1``."""
        return f"{self.service.name}-{self.number}"


R = TypeVar("R", bound=Replica)


class Roster(Generic[R]):
    """Looks replicas and proxied listeners up by name, starts them in order, brings them back.

    A driver says the rest: ``_wire``, ``_bring_up``, ``_restart``, ``_spec``, ``_start``, ``stop``.
    """

    soonest_restart_us: ClassVar[int] = 0  # what exits at once is not started in a tight loop

    def __init__(self, context: DriverContext) -> None:
        self._context = context
        self._replicas: dict[str, list[R]] = {}
        self._listeners: dict[str, list[HandleSpec]] = {}
        self._supervisors: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """All services up and healthy. Raises TargetUnhealthyError, RefusedError."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """See survive.host.driver.Driver."""
        raise NotImplementedError

    def replicas(self, service: str) -> list[HandleSpec]:
        """The replicas as they are now; of one that is down, its last boot."""
        return [self._spec(replica) for replica in self._replicas.get(service, [])]

    def listeners(self, link: str) -> list[HandleSpec]:
        """The listeners of a proxied link."""
        return list(self._listeners.get(link, []))

    def hold(self, spec: HandleSpec) -> None:
        """Do not restart this replica until released."""
        self._replica(spec).watch.hold()

    async def _start(self) -> None:
        raise NotImplementedError

    async def _wire(self, service: Service) -> None:
        """Give a service the addresses of those that it calls."""
        raise NotImplementedError

    async def _bring_up(self, replica: R) -> None:
        raise NotImplementedError

    async def _restart(self, replica: R) -> None:
        """It is gone, and due: boot it, or leave it gone."""
        raise NotImplementedError

    def _spec(self, replica: R) -> HandleSpec:
        raise NotImplementedError

    def _all(self) -> list[R]:
        return [replica for replicas in self._replicas.values() for replica in replicas]

    def _replica(self, spec: HandleSpec) -> R:
        return self._replicas[spec.service][spec.replica]

    async def _start_in_order(self) -> None:
        """Whoever is called comes before its callers."""
        for group in wiring.start_order(self._context.spec):
            for service in group:
                await self._wire(service)
            replicas = [r for service in group for r in self._replicas[service.name]]
            await wiring.all_of([self._bring_up(replica) for replica in replicas])

    def _supervise(self, replica: R) -> None:
        """From now on bring it back whenever it goes."""
        self._supervisors.append(asyncio.create_task(self._bring_back(replica)))

    async def _bring_back(self, replica: R) -> None:
        after_us = replica.service.restart_after_us
        if after_us is not None:
            after_us = max(after_us, self.soonest_restart_us)
        while True:
            await replica.watch.restart_due(after_us)
            await self._restart(replica)

    async def _end_supervisors(self) -> None:
        supervisors, self._supervisors = self._supervisors, []
        for task in supervisors:
            task.cancel()
        await asyncio.gather(*supervisors, return_exceptions=True)


async def healthy_or_gone(health: Coroutine[Any, Any, None], gone: asyncio.Event) -> bool:
    """True once it is healthy, False as soon as it is gone. Raises what ``health`` raises."""
    tasks = asyncio.ensure_future(gone.wait()), asyncio.ensure_future(health)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if gone.is_set():
            return False
        await tasks[1]
        return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
