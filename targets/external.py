"""The driver for services that run already: starts nothing, checks health, proxies the entry."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from survive.address import HTTPS, UNIX, Address, through
from survive.chaos.handles import open_handle
from survive.contracts import Handle, HandleSpec, Needs
from survive.errors import HarnessError, RefusedError, SurviveError
from survive.host.driver import DriverContext
from survive.scenario.model import Service, TargetSpec
from survive.tls import Trusting

from . import wiring

_NAME = "external"
_KNOCK_S = 0.3


class Driver:
    """See survive.host.driver.Driver. It has no replicas to act on: faults on nodes refuse."""

    def __init__(self, context: DriverContext) -> None:
        self._context = context
        self._addresses: dict[str, str] = {}
        self._listeners: list[HandleSpec] = []
        self._proxy: wiring.FaultProxy | None = None

    async def start(self) -> None:
        """All services healthy. Raises TargetUnhealthyError, RefusedError."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Our proxy is gone; the services go on. Idempotent."""
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            await proxy.stop()

    @staticmethod
    async def lacks(spec: TargetSpec, env: Mapping[str, str]) -> list[SurviveError]:
        """See survive.host.driver.lacks: variables, hosts, and on this host who listens."""
        found = wiring.unresolved(spec, env)
        for service in spec.services.values():
            try:
                url = wiring.resolve(service.url, env, f"url of service {service.name}")
                address = Address.parse(address_of(url, service, spec))
            except RefusedError as error:
                found.append(error)
                continue
            if _is_here(address) and not await _listens(address):
                found.append(HarnessError(f"nothing listens at {url} yet", hint="start it"))
        return found

    def entry(self) -> str:
        """Where load goes to."""
        if self._listeners:
            return self._listeners[0].via
        return self._addresses[self._context.spec.entry]

    def replicas(self, service: str) -> list[HandleSpec]:
        """None: survive did not start them, so it may not end them."""
        return []

    def listeners(self, link: str) -> list[HandleSpec]:
        """The listener of the entry link, if it is proxied."""
        return list(self._listeners) if link == self._context.spec.entry_link else []

    def open(self, spec: HandleSpec, needs: Needs) -> Handle:
        """The handle for a spec."""
        if needs not in {Needs.LINK, Needs.TARGET}:
            raise RefusedError(f"an external target has no {needs} to act on")
        return open_handle(spec, needs, self._context.clock, self._context.transport)

    def hold(self, spec: HandleSpec) -> None:
        """Nothing is restarted anyway."""

    def release(self, spec: HandleSpec) -> None:
        """Nothing is held."""

    def cpu_s(self) -> float:
        """Unknown."""
        return 0.0

    async def _start(self) -> None:
        spec, context = self._context.spec, self._context
        other = sorted(context.links - {spec.entry_link})
        if other:
            raise RefusedError(
                f"an external target offers only the link {spec.entry_link!r}, not {other[0]!r}"
            )
        for service in spec.services.values():
            url = wiring.resolve(service.url, context.env, f"url of service {service.name}")
            self._addresses[service.name] = address_of(url, service, spec)
        authorities = dict.fromkeys(str(spec.folder / s.ca) for s in spec.services.values() if s.ca)
        if authorities and isinstance(context.transport, Trusting):
            context.transport.trust(os.pathsep.join(authorities), "")
        await wiring.all_of(
            [
                wiring.await_health(
                    context.transport, service, self._addresses[service.name], last_lines=list
                )
                for service in spec.services.values()
            ]
        )
        if context.links:
            await self._put_proxy(spec.services[spec.entry])

    async def _put_proxy(self, service: Service) -> None:
        context = self._context
        logs = context.scratch / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        link, address = context.spec.entry_link, self._addresses[service.name]
        if address.startswith(UNIX):
            raise RefusedError(
                f"the link {link!r} is a Unix socket, which no fault can break",
                hint="give the service a port, or break something else",
            )
        place = Address.parse(address)
        host = f"[{place.dial_host}]" if ":" in place.dial_host else place.dial_host
        self._proxy = await wiring.start_proxy(context, logs / "fault-proxy.log")
        name = wiring.proxy_name(context.run_id, link, 0)
        via = through(address, await self._proxy.create(name, f"{host}:{place.dial_port}"))
        self._listeners = [
            wiring.link_spec(
                _NAME,
                service,
                0,
                link=link,
                address=address,
                via=via,
                proxy=self._proxy.api,
                name=name,
                lent=bool(self._context.spec.toxiproxy),
                tls=str(context.spec.folder / service.ca) if service.ca else "",
            )
        ]


def _is_here(place: Address) -> bool:
    """On this very host: only there is anybody called before a run."""
    host = place.dial_host
    return bool(place.path) or host in {"localhost", "::1"} or host.startswith("127.")


async def _listens(place: Address) -> bool:
    try:
        async with asyncio.timeout(_KNOCK_S):
            if place.path:
                _, writer = await asyncio.open_unix_connection(place.path)
            else:
                _, writer = await asyncio.open_connection(place.dial_host, place.dial_port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def address_of(url: str, service: Service, spec: TargetSpec) -> str:
    """The address of a ``url:`` (see survive.address). RefusedError: none, or host not allowed."""
    if not url:
        raise RefusedError(f"service {service.name} has no `url:`, which `driver: external` needs")
    if url.startswith(f"{UNIX}/"):
        return url
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    try:
        host, port = parts.hostname, parts.port or (443 if secure else 80)
    except ValueError as error:
        raise RefusedError(f"url of service {service.name}: {error}") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise RefusedError(
            f"url of service {service.name} is {url!r}",
            hint="write http://host:port, https://host:port or unix:/path",
        )
    if parts.path not in {"", "/"} or parts.query or parts.fragment or parts.username is not None:
        raise RefusedError(
            f"url of service {service.name} is {url!r}: it may hold a host and a port only",
            hint="paths belong to the requests",
        )
    if host not in spec.allow_hosts:
        raise RefusedError(
            f"host {host} of service {service.name} is not allowed",
            hint=f"add it to `allow: {{hosts: [...]}}` of target {spec.name} if it is yours",
        )
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{HTTPS}{place}" if secure else place
