"""The driver of the virtual host: services are ASGI apps on nodes of the memory network."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from survive.catalog import load_module
from survive.chaos.handles import SimulatedGpu, StandIn
from survive.clock import Clock, LoopClock, seeded
from survive.contracts import (
    AsgiApp,
    FaultFailedError,
    Handle,
    HandleSpec,
    MakeApp,
    Needs,
    ServiceContext,
    Toxic,
)
from survive.errors import RefusedError
from survive.host.driver import DriverContext, TargetUnhealthyError
from survive.host.listener import Listener
from survive.host.loop import VirtualClock, VirtualLoop
from survive.host.memory import MemoryNetwork, MemoryTransport, Node
from survive.scenario.model import Service
from survive.tls import secured
from survive.transport import CallFailedError

from . import wiring
from .roster import Replica, Roster, healthy_or_gone

_NAME = "virtual"


@dataclass(slots=True)
class _Replica(Replica):
    address: str
    make: MakeApp
    node: Node | None = None


class VirtualReplica:
    """One boot of one node. See survive.contracts.ReplicaHandle."""

    def __init__(self, spec: HandleSpec, clock: Clock, transport: MemoryTransport) -> None:
        self.spec = spec
        self.clock = clock
        self.transport = secured(transport, spec)
        self._network = transport.network

    async def kill(self) -> None:
        """End it at once."""
        if node := self._node():
            node.kill()

    async def stop(self) -> None:
        """Ask it to end; it has a second for what it has begun."""
        if node := self._node():
            node.stop()

    async def pause(self) -> None:
        """Stop its clock."""
        if node := self._node():
            node.pause()

    async def resume(self) -> None:
        """Let it go on."""
        if node := self._node():
            node.resume()

    async def certify(self, *, expired: bool) -> None:
        """See survive.contracts.CertifiedHandle."""
        self._network.expire(self.spec.address, on=expired)

    async def exists(self) -> bool:
        """A connection to the address is accepted by that very boot."""
        try:
            return self._network.connect(self.spec.address) == self.spec.pid
        except CallFailedError:
            return False

    def _node(self) -> Node | None:
        return self._network.node_of(self.spec.address, self.spec.pid)


class VirtualLink:
    """One listener of the fault proxy in memory. See survive.contracts.LinkHandle."""

    def __init__(self, spec: HandleSpec, clock: Clock, transport: MemoryTransport) -> None:
        self.spec = spec
        self.clock = clock
        self.transport = secured(transport, spec)
        self._network = transport.network

    async def add(self, toxic: Toxic) -> None:
        """Create or replace the toxic."""
        try:
            self._listener().add(toxic)
        except ValueError as error:
            raise FaultFailedError(f"{self.spec.via}: {error}") from error

    async def remove(self, name: str) -> None:
        """Remove the toxic; absent is success, so is a listener that is gone."""
        if listener := self._network.listener(self.spec.via):
            listener.remove(name)

    async def counts(self, name: str) -> Mapping[str, int]:
        """What an HTTP toxic counted."""
        listener = self._network.listener(self.spec.via)
        return {} if listener is None else listener.http.counts(name)

    async def seen(self) -> Mapping[str, int]:
        """What connected, by its first bytes."""
        return dict(self._listener().seen)

    async def enable(self, on: bool) -> None:
        """Open or close the listener and its connections."""
        self._listener().enable(on)

    def _listener(self) -> Listener:
        listener = self._network.listener(self.spec.via)
        if listener is None:
            raise FaultFailedError(f"no fault proxy listens at {self.spec.via}")
        return listener


class Driver(Roster[_Replica]):
    """See survive.host.driver.Driver. The context's transport must be a MemoryTransport.

    Boots are not reported to ``context.started``: a boot number in a ledger would read as the pid
    of a process of this host, and there is nothing to clean up after a virtual run.
    ``replicas`` has the boot number as ``pid``, its µs since time began as ``start_time``.
    """

    soonest_restart_us: ClassVar[int] = 10_000

    def __init__(self, context: DriverContext) -> None:
        if not isinstance(context.transport, MemoryTransport):
            raise TypeError("the virtual driver needs a MemoryTransport")
        super().__init__(context)
        self._transport: MemoryTransport = context.transport
        self._network: MemoryNetwork = context.transport.network

    async def stop(self) -> None:
        """Nothing of the target runs or listens any more. Idempotent."""
        await self._end_supervisors()
        for specs in self._listeners.values():
            for spec in specs:
                self._network.unlisten(spec.via)
        for replica in self._all():
            if replica.node is not None:
                replica.node.kill("stopped")
                await replica.node.join()

    def entry(self) -> str:
        """Where load goes to."""
        spec = self._context.spec
        return self._addresses(spec.entry_link, spec.entry)[0]

    def open(self, spec: HandleSpec, needs: Needs) -> Handle:
        """The handle for a spec."""
        clock = self._context.clock
        if needs is Needs.TARGET:
            raise RefusedError(
                "a simulated target is nothing that the world outside could act on",
                hint="run it without --virtual",
            )
        if needs is Needs.LINK:
            return VirtualLink(spec, clock, self._transport)
        if needs is Needs.GPU:
            return SimulatedGpu(spec, clock, secured(self._transport, spec))
        if needs is Needs.STAND_IN:
            return StandIn(spec, clock, secured(self._transport, spec))
        return VirtualReplica(spec, clock, self._transport)

    def release(self, spec: HandleSpec) -> None:
        """Restart it now if it is down. Idempotent."""
        replica = self._replica(spec)
        replica.watch.release(down=replica.node is None or replica.node.dead)

    def cpu_s(self) -> float:
        """Unknown: all nodes share one loop."""
        return 0.0

    async def _start(self) -> None:
        spec = self._context.spec
        for link in sorted(self._context.links):
            wiring.destination(spec, link)
        for service in spec.services.values():
            self._replicas[service.name] = self._declare(service)
            if service.name in wiring.tls_ends(spec)[1]:
                for replica in self._replicas[service.name]:
                    weak = "plaintext_link" in spec.weaknesses
                    self._network.secure(replica.address, also_plain=weak)
        await self._start_in_order()
        if spec.entry_link in self._context.links:
            self._put_proxy(spec.entry_link, spec.entry)

    def _declare(self, service: Service) -> list[_Replica]:
        make = _make_app(self._context.spec.folder, service)
        return [
            _Replica(service, number, self._network.address(), make)
            for number in range(service.replicas)
        ]

    async def _wire(self, service: Service) -> None:
        """Give a service the addresses of those that it calls."""
        addresses: dict[str, list[str]] = {}
        for link in wiring.links_from(self._context.spec, service.name):
            if link.name in self._context.links:
                self._put_proxy(link.name, link.dest)
            addresses[link.env] = wiring.spoken(link, self._addresses(link.name, link.dest))
        for replica in self._replicas[service.name]:
            replica.env = wiring.environment(self._context, service, replica.number, addresses)

    def _put_proxy(self, link: str, dest: str) -> None:
        specs = self._listeners.setdefault(link, [])
        for replica in self._replicas[dest]:
            name = wiring.proxy_name(self._context.run_id, link, replica.number)
            listener = self._network.proxy(
                replica.address, seeded(self._context.seed, "proxy", link, replica.number)
            )
            listener.http.seed = self._context.seed  # as the embedded proxy's
            specs.append(
                wiring.link_spec(
                    _NAME,
                    replica.service,
                    replica.number,
                    link=link,
                    address=replica.address,
                    via=listener.address,
                    name=name,
                    tls=self._tls(replica),
                )
            )

    def _tls(self, replica: _Replica) -> str:
        """There are no files; any word says that it speaks TLS."""
        return _NAME if replica.service.name in wiring.tls_ends(self._context.spec)[1] else ""

    def _addresses(self, link: str, dest: str) -> list[str]:
        if link in self._listeners:
            return [spec.via for spec in self._listeners[link]]
        return [replica.address for replica in self._replicas[dest]]

    async def _bring_up(self, replica: _Replica) -> None:
        node = self._boot(replica)
        health = wiring.await_health(
            secured(self._transport, self._spec(replica)),
            replica.service,
            replica.address,
            last_lines=lambda: list(node.log),
            name=replica.name,
        )
        if not await healthy_or_gone(health, replica.watch.gone):
            raise TargetUnhealthyError(replica.name, "it ended", list(node.log))
        self._supervise(replica)

    def _boot(self, replica: _Replica) -> Node:
        """A new boot; an app that cannot be made leaves a dead node, as a process that exits."""
        node = replica.node = self._network.node(replica.name)
        replica.watch.booted()
        node.on_end = lambda _reason: replica.watch.gone.set()
        try:
            node.mount(lambda: self._make(replica, node))
        except Exception as error:
            node.note("".join(traceback.format_exception(error)))
            node.kill(f"its app could not be made: {error!r}")
        else:
            self._network.listen(replica.address, node)
        return node

    def _make(self, replica: _Replica, node: Node) -> AsgiApp:
        return replica.make(
            ServiceContext(
                clock=_own_clock(),  # the run's origin is none of its business
                random=seeded(self._context.seed, replica.name),
                env=replica.env,
                call=self._transport.call,
                spawn=node.spawn,
                exit=lambda code: node.kill(f"exited with {code}"),
            )
        )

    async def _restart(self, replica: _Replica) -> None:
        self._boot(replica)

    def _spec(self, replica: _Replica) -> HandleSpec:
        node = replica.node
        return wiring.replica_spec(
            _NAME,
            replica.service,
            replica.number,
            replica.address,
            self._context.token,
            pid=node.boot if node else 0,
            start_time=node.born_us if node else 0,
            tls=self._tls(replica),
        )


def _own_clock() -> Clock:
    loop = asyncio.get_running_loop()
    return VirtualClock(loop, 0.0) if isinstance(loop, VirtualLoop) else LoopClock(0.0)


def _line(error: Exception, path: Path) -> str:
    """``:12``, where that file stopped; "" if it was never run."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def _make_app(folder: Path, service: Service) -> MakeApp:
    """Load ``file.py:function``. Raises RefusedError if the service is no ASGI app."""
    if not service.app:
        raise RefusedError(
            f"service {service.name} cannot run virtually: it has `run:` or `url:`, not `app:`",
            hint="run without --virtual",
        )
    file, _, function = service.app.partition(":")
    path = (folder / file).resolve()
    if not path.is_file():
        raise RefusedError(f"service {service.name}: there is no file {path}")
    try:
        make = getattr(load_module(path), function, None)
    except Exception as error:  # a team's own code, run on import
        why = f"{type(error).__name__}: {error}"
        raise RefusedError(
            f"service {service.name}: {path}{_line(error, path)} cannot be loaded: {why}"
        ) from error
    if not callable(make):
        raise RefusedError(f"service {service.name}: {path} defines no {function}")
    app: MakeApp = make
    return app
