"""The driver for containers of this host: the services of a docker compose file, supervised.

It does itself what ``docker compose`` would do, because each replica needs what compose cannot give
it: an environment of its own (who it is, whom it calls, through which fault proxy), an entry in the
ledger before it exists, labels that say whose it is, an address that stays when it is restarted.
What it understands of the file stands in composefile.py; the rest is refused.

Every replica has a fixed address on a network of the run, for other containers, and a port on
127.0.0.1, for survive. A fault proxy between two containers listens on the network's own gateway
address, which only this host and the run's containers reach.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import docker

from survive.chaos import containers, processes
from survive.chaos.cgroups import Cgroups
from survive.chaos.containers import Engine
from survive.chaos.handles import open_handle
from survive.contracts import FaultFailedError, Handle, HandleSpec, Needs
from survive.errors import HarnessError, RefusedError, SurviveError
from survive.host.driver import DriverContext, TargetUnhealthyError
from survive.scenario.model import Service, TargetSpec

from . import wiring
from .composefile import ComposeService, read_compose
from .process import free_ports
from .roster import Replica, Roster, healthy_or_gone

_NAME = "compose"
_HOST = "127.0.0.1"
_CREATE_S = 20.0  # of one call while the target starts: several side by side, on a loaded host
_FIRST_HOST = 10  # of the network: below are the gateway and whatever docker wants
_LAST_LINES = 20
_EXIT_SEEN_S = 5.0  # from the end of its process to docker's knowing it


@dataclass(slots=True)
class _Replica(Replica):
    made: ComposeService
    port: int
    ip: str
    container: str
    pid: int = 0
    start_time: int = 0
    cpu_s: float = 0.0  # of this boot, when last looked at
    past_cpu_s: float = 0.0

    @property
    def address(self) -> str:
        return f"{_HOST}:{self.port}"

    @property
    def inner(self) -> str:
        """Where other containers reach it."""
        return f"{self.ip}:{self.made.port}"

    def alive(self) -> bool:
        return processes.exists(self.pid, self.start_time)


class Driver(Roster[_Replica]):
    """See survive.host.driver.Driver."""

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._engine = Engine(containers.engine_url(context.env))
        # A run's id begins with its time: runs of one day would share its first letters.
        self._mark = f"sv-{hashlib.sha256(context.run_id.encode()).hexdigest()[:8]}"
        self._proxy: wiring.FaultProxy | None = None
        self._gateway = ""
        self._made = False
        self._stop_lock = asyncio.Lock()

    async def start(self) -> None:
        """All services up and healthy. Raises TargetUnhealthyError, RefusedError."""
        try:
            await super().start()
        except FaultFailedError as error:
            raise HarnessError(f"docker: {error}") from error

    async def stop(self) -> None:
        """Containers, network and proxy are gone. Idempotent. Raises HarnessError if not."""
        async with self._stop_lock:
            await self._end_supervisors()
            self.cpu_s()
            proxy, self._proxy = self._proxy, None
            left = (await asyncio.gather(self._remove(), *([proxy.stop()] if proxy else [])))[0]
            if left:
                raise HarnessError(
                    f"cannot remove {', '.join(left)}",
                    hint=containers.by_hand(self._context.run_id, self._engine.url),
                )

    @staticmethod
    async def lacks(spec: TargetSpec, env: Mapping[str, str]) -> list[SurviveError]:
        """See survive.host.driver.lacks: variables, the compose file, docker, images."""
        found = wiring.unresolved(spec, env)
        try:
            await _check_images(Engine(containers.engine_url(env)), _described(spec))
        except RefusedError as error:
            found.append(error)
        return found

    def entry(self) -> str:
        """Where load goes to."""
        spec = self._context.spec
        if spec.entry_link in self._listeners:
            return self._listeners[spec.entry_link][0].via
        return self._replicas[spec.entry][0].address

    def open(self, spec: HandleSpec, needs: Needs) -> Handle:
        """The handle for a spec."""
        return open_handle(spec, needs, self._context.clock, self._context.transport)

    def release(self, spec: HandleSpec) -> None:
        """Restart it now if it is down. Idempotent."""
        replica = self._replica(spec)
        replica.watch.release(down=not replica.alive())

    def cpu_s(self) -> float:
        """CPU seconds of all containers; of a boot that ended, what was seen at the last look."""
        for replica in self._all():
            replica.cpu_s = max(replica.cpu_s, Cgroups(replica.pid).used_cpu_s())
        return sum(replica.past_cpu_s + replica.cpu_s for replica in self._all())

    # ---------------------------------------------------------------------------------- start

    async def _start(self) -> None:
        spec, context = self._context.spec, self._context
        for link in sorted(context.links):
            wiring.destination(spec, link)
        made = _described(spec)
        await _check_images(self._engine, made)
        logs = context.scratch / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        context.making("containers", self._engine.url)
        self._made = True
        hosts = iter(await self._make_network(sum(s.replicas for s in spec.services.values())))
        for service in spec.services.values():
            ports = free_ports(service.replicas)
            self._replicas[service.name] = [
                _Replica(
                    service,
                    number,
                    made[service.name],
                    ports[number],
                    next(hosts),
                    f"{self._mark}-{service.name}-{number}",
                )
                for number in range(service.replicas)
            ]
        if context.links:
            self._proxy = await wiring.start_proxy(context, logs / "fault-proxy.log")
        await self._start_in_order()
        if spec.entry_link in context.links:
            await self._put_proxy(spec.entry_link, spec.entry, _HOST)

    async def _make_network(self, count: int) -> list[str]:
        """The run's own network; addresses for so many containers.

        Fixed addresses need a subnet of our naming, and only docker knows which are free: so it
        chooses one, and the network is made anew with just that.
        """
        labels = {containers.RUN: self._context.run_id}

        def make(client: docker.APIClient) -> str:
            chosen = client.create_network(f"{self._mark}-try", driver="bridge", labels=labels)
            config = client.inspect_network(chosen["Id"])["IPAM"]["Config"][0]
            client.remove_network(chosen["Id"])
            pool = docker.types.IPAMPool(subnet=config["Subnet"], gateway=config["Gateway"])
            ipam = docker.types.IPAMConfig(pool_configs=[pool])
            client.create_network(self._mark, driver="bridge", labels=labels, ipam=ipam)
            self._gateway = config["Gateway"]
            return str(config["Subnet"])

        net = ipaddress.ip_network(await self._engine.ask("make a network", make, _CREATE_S))
        if net.num_addresses < count + _FIRST_HOST + 2:
            raise RefusedError(f"docker's network {net} has no room for {count} containers")
        return [str(net[_FIRST_HOST + index]) for index in range(count)]

    async def _wire(self, service: Service) -> None:
        """Give a service the addresses of those that it calls."""
        addresses: dict[str, list[str]] = {}
        for link in wiring.links_from(self._context.spec, service.name):
            if link.name in self._context.links:
                await self._put_proxy(link.name, link.dest, self._gateway)
                addresses[link.env] = [listener.via for listener in self._listeners[link.name]]
            else:
                addresses[link.env] = [replica.inner for replica in self._replicas[link.dest]]
        for replica in self._replicas[service.name]:
            own = wiring.environment(self._context, service, replica.number, addresses)
            replica.env = {**replica.made.environment, **own, "PYTHONUNBUFFERED": "1"}

    async def _put_proxy(self, link: str, dest: str, host: str) -> None:
        assert self._proxy is not None
        behind = [(r.service, r.number, r.address, "") for r in self._replicas[dest]]
        self._listeners[link] = await wiring.put_proxies(
            _NAME, self._context, self._proxy, link, behind, host=host
        )

    async def _bring_up(self, replica: _Replica) -> None:
        await self._engine.ask(f"create {replica.container}", self._creation(replica), _CREATE_S)
        await self._boot(replica)
        lines: list[str] = []
        health = wiring.await_health(
            self._context.transport,
            replica.service,
            replica.address,
            last_lines=lambda: lines,
            name=replica.name,
        )
        try:
            if not await healthy_or_gone(health, replica.watch.gone):
                raise TargetUnhealthyError(replica.name, "it exited", lines)
        except TargetUnhealthyError as error:
            lines += await self._last_lines(replica)
            why = error.message.partition(" never became healthy: ")[2]
            raise TargetUnhealthyError(replica.name, why, lines) from None
        self._supervise(replica)

    def _creation(self, replica: _Replica) -> Any:
        """The call that makes its container."""
        made, inside = replica.made, f"{replica.made.port}/tcp"
        labels = {
            containers.RUN: self._context.run_id,
            containers.NETWORK: self._mark,
            containers.ADDRESS: replica.ip,
            containers.CPUS: str(made.cpus or ""),
            containers.MEMORY: str(made.memory or ""),
        }
        period = containers.PERIOD_US
        limits = {
            **({"cpu_period": period, "cpu_quota": round(made.cpus * period)} if made.cpus else {}),
            **({"mem_limit": made.memory, "memswap_limit": made.memory} if made.memory else {}),
        }

        def create(client: docker.APIClient) -> None:
            host = client.create_host_config(
                port_bindings={inside: (_HOST, replica.port)},
                network_mode=self._mark,
                restart_policy={"Name": "no"},  # one supervisor: this driver
                log_config={"type": "json-file", "config": {"max-size": "8m", "max-file": "1"}},
                cap_drop=["NET_RAW", "NET_ADMIN"],
                **limits,
            )
            endpoint = client.create_endpoint_config(ipv4_address=replica.ip)
            client.create_container(
                made.image,
                list(made.command) or None,
                name=replica.container,
                hostname=replica.name,
                environment={**replica.env, "PORT": str(made.port)},
                labels=labels,
                ports=[(made.port, "tcp")],
                host_config=host,
                networking_config=client.create_networking_config({self._mark: endpoint}),
            )

        return create

    async def _boot(self, replica: _Replica) -> None:
        """Start its container and watch its first process. Raises FaultFailedError."""
        await self._engine.ask(
            f"start {replica.container}", lambda c: c.start(replica.container), _CREATE_S
        )
        pid = int((await self._engine.state(replica.container))["State"]["Pid"])
        replica.past_cpu_s, replica.cpu_s = replica.past_cpu_s + replica.cpu_s, 0.0
        replica.pid, replica.start_time = pid, processes.start_time(pid) if pid else 0
        replica.watch.booted()
        try:
            fd = os.pidfd_open(pid) if replica.alive() else -1
        except OSError:
            fd = -1  # it ended between the two lines
        if fd < 0:
            replica.watch.gone.set()
            return
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            replica.watch.gone.set()

        loop.add_reader(fd, ended)

    async def _last_lines(self, replica: _Replica) -> list[str]:
        try:
            said: bytes = await self._engine.ask(
                f"logs of {replica.container}",
                lambda c: c.logs(replica.container, tail=_LAST_LINES),
            )
        except FaultFailedError as error:
            return [f"(its log cannot be read: {error})"]
        return said.decode("utf-8", "replace").splitlines()

    # ------------------------------------------------------------------------------ supervise

    async def _restart(self, replica: _Replica) -> None:
        try:
            await self._engine.until(
                replica.container,
                "the end of",
                lambda seen: not seen["State"]["Running"],
                _EXIT_SEEN_S,
            )
            await self._boot(replica)
        except FaultFailedError as error:
            self._note(f"{replica.name} cannot be restarted: {error}")
            replica.watch.booted()
            replica.watch.gone.set()
            await asyncio.sleep(0.2)  # a daemon that is not there now may be soon

    def _note(self, line: str) -> None:
        with (self._context.scratch / "logs" / "compose.log").open("a", encoding="utf-8") as log:
            log.write(f"survive: {line}\n")

    # ----------------------------------------------------------------------------------- stop

    async def _remove(self) -> list[str]:
        """What is left of the run's containers and networks afterwards."""
        if not self._made:
            return []
        try:
            return await containers.clean(self._context.run_id, self._engine.url)
        except FaultFailedError as error:
            raise HarnessError(f"docker: {error}") from error

    def _spec(self, replica: _Replica) -> HandleSpec:
        return wiring.replica_spec(
            _NAME,
            replica.service,
            replica.number,
            replica.address,
            self._context.token,
            pid=replica.pid,
            start_time=replica.start_time,
            container=replica.container,
            engine=self._engine.url,
        )


async def _check_images(engine: Engine, made: Mapping[str, ComposeService]) -> None:
    """Nothing is pulled: what runs here must have been put here on purpose. Or RefusedError."""
    for image in sorted({service.image for service in made.values()}):
        try:
            await engine.ask(f"image {image}", partial(_look_at, image), _CREATE_S)
        except containers.GoneError:
            own = image.startswith("survive-reference")
            raise RefusedError(
                f"docker has no image {image!r}, and survive pulls none",
                hint="python compose/build_image.py" if own else f"docker pull {image}",
            ) from None
        except FaultFailedError as error:
            raise RefusedError(
                f"no docker daemon to be used at {engine.url}: {error}",
                hint="start dockerd, or set DOCKER_HOST to its unix:// socket",
            ) from error


def _look_at(image: str, client: docker.APIClient) -> object:
    return client.inspect_image(image)


def _described(spec: TargetSpec) -> dict[str, ComposeService]:
    """The compose file's services, which must be the target's. Raises RefusedError."""
    path = Path(spec.compose)
    made = read_compose(path)
    if set(made) != set(spec.services):
        raise RefusedError(
            f"target {spec.name} has the services {', '.join(sorted(spec.services))}, "
            f"{path} has {', '.join(sorted(made))}",
            hint="both must name the same",
        )
    for name, service in spec.services.items():
        said = made[name].replicas
        if said is not None and said != service.replicas:
            raise RefusedError(
                f"service {name} has {service.replicas} replicas in target {spec.name}, "
                f"{said} in {path}"
            )
    return made
