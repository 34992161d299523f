"""What every driver needs: the order of start, addresses, environments, proxies, health."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from survive.address import HTTPS
from survive.contracts import HandleSpec
from survive.errors import RefusedError, SurviveError
from survive.host.driver import DriverContext, TargetUnhealthyError, data_path
from survive.scenario.model import Link, Service, TargetSpec
from survive.transport import CallFailedError, Request, Transport, read_all

if TYPE_CHECKING:
    from survive.chaos.lent import LentProxies
    from survive.chaos.toxiproxy import ProxyServer

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_HEALTH_EVERY_S = 0.05
_HEALTH_TIMEOUT_S = 1.0


def resolve(text: str, env: Mapping[str, str], what: str) -> str:
    """Replace each ``${NAME}``. Raises RefusedError (6) naming a variable that is not set."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in env:
            raise RefusedError(
                f"{what} needs the environment variable {found[1]}, which is not set",
                hint=f"export {found[1]}=…",
            )
        return env[found[1]]

    return _VARIABLE.sub(value, text)


def unresolved(spec: TargetSpec, env: Mapping[str, str]) -> list[SurviveError]:
    """A refusal for each text of the services' environments and of the proxy that cannot be had."""
    texts = {
        f"env {name} of service {service.name}": value
        for service in spec.services.values()
        for name, value in service.env.items()
    }
    texts[f"proxy of target {spec.name}"] = spec.toxiproxy
    found: list[SurviveError] = []
    for what, text in texts.items():
        try:
            resolve(text, env, what)
        except RefusedError as error:
            found.append(error)
    return found


def start_order(spec: TargetSpec) -> list[list[Service]]:
    """Services in groups that may start at once; whoever is called comes before its callers.

    Services that call each other in a circle, and those that wait for the circle, are one group.
    """
    waiting = dict(spec.services)
    groups: list[list[Service]] = []
    while waiting:
        blocked = {
            link.source
            for link in spec.links.values()
            if link.dest in waiting and link.dest != link.source
        }
        group = [s for name, s in waiting.items() if name not in blocked] or list(waiting.values())
        groups.append(group)
        for service in group:
            del waiting[service.name]
    return groups


def links_from(spec: TargetSpec, source: str) -> list[Link]:
    """The links by which a service calls others."""
    return [link for link in spec.links.values() if link.source == source]


def tls_ends(spec: TargetSpec) -> tuple[set[str], set[str]]:
    """The services that call over TLS links, and those that are called so."""
    secure = [link for link in spec.links.values() if link.tls]
    return {link.source for link in secure}, {link.dest for link in secure}


def spoken(link: Link, addresses: Sequence[str]) -> list[str]:
    """The addresses as the source is told them."""
    return [HTTPS + address for address in addresses] if link.tls else list(addresses)


def destination(spec: TargetSpec, link: str) -> str:
    """The service behind a link, ``load -> <entry>`` included. RefusedError if there is none."""
    if link == spec.entry_link:
        return spec.entry
    if link not in spec.links:
        raise RefusedError(f"target {spec.name} has no link {link!r}")
    return spec.links[link].dest


def replica_names(service: Service) -> list[str]:
    """``inference-0``, …"""
    return [f"{service.name}-{number}" for number in range(service.replicas)]


def environment(
    context: DriverContext, service: Service, replica: int, links: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """What a replica is told; see ServiceContext.env. ``links``: addresses by variable."""
    env = {
        "SURVIVE_REPLICA": f"{service.name}-{replica}",
        "SURVIVE_SEED": str(context.seed),
        "SURVIVE_KEY": context.key,
        "SURVIVE_WEAKNESSES": ",".join(context.spec.weaknesses),
        "SURVIVE_DATA": str(data_folder(context.scratch, f"{service.name}-{replica}")),
        **{variable: ",".join(addresses) for variable, addresses in links.items()},
        **{
            name: resolve(value, context.env, f"env {name} of service {service.name}")
            for name, value in service.env.items()
        },
    }
    if service.gpu:
        env["SURVIVE_GPU_TOKEN"] = context.token
    if service.simulates:
        env["SURVIVE_ADMIN_TOKEN"] = context.token
    return env


def data_folder(scratch: Path, replica_id: str) -> Path:
    """What a replica keeps over its restarts; it lives as long as the run."""
    folder = data_path(scratch, replica_id)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def stand_in_spec(service: Service, token: str) -> dict[str, Any]:
    """What a HandleSpec says of a service that simulates something, and of its metrics."""
    parts = [*(["gpu"] if service.gpu else []), *service.simulates]
    return {
        "token": token if parts else "",
        "simulates": " ".join(parts),
        "metrics_path": service.metrics,
    }


def proxy_name(run_id: str, link: str, number: int) -> str:
    """Names a fault proxy's listener after its run, so that whoever finds it knows whose it is."""
    return f"sv-{run_id[:8]}-{re.sub(r'[^A-Za-z0-9]+', '-', link)}-{number}"


def link_spec(
    driver: str,
    service: Service,
    number: int,
    *,
    link: str,
    address: str,
    via: str,
    proxy: str = "",
    name: str = "",
    lent: bool = False,
    tls: str = "",
) -> HandleSpec:
    """One listener of a link as plain data."""
    return HandleSpec(
        driver=driver,
        service=service.name,
        replica=number,
        address=address,
        probe_path=service.health.path,
        link=link,
        via=via,
        proxy=proxy,
        proxy_name=name,
        lent=lent,
        tls=tls,
    )


def replica_spec(
    driver: str, service: Service, number: int, address: str, token: str, **more: Any
) -> HandleSpec:
    """One replica as plain data; ``more``: what only its driver knows."""
    return HandleSpec(
        driver=driver,
        service=service.name,
        replica=number,
        address=address,
        probe_path=service.health.path,
        **stand_in_spec(service, token),
        **more,
    )


FaultProxy: TypeAlias = "ProxyServer | LentProxies"


async def start_proxy(context: DriverContext, log: Path) -> FaultProxy:
    """The run's fault proxy: the embedded one, or proxies on the target's own Toxiproxy server.

    Raises HarnessError, RefusedError.
    """
    from survive.chaos.lent import LentProxies  # their library is slow to import
    from survive.chaos.toxiproxy import ProxyServer

    spec = context.spec
    if not spec.toxiproxy:
        return await ProxyServer.start(context.run_id, context.started, log, seed=context.seed)
    address = resolve(spec.toxiproxy, context.env, f"proxy of target {spec.name}")
    return await LentProxies.start(context.run_id, address, spec.allow_hosts, context.making)


async def put_proxies(
    driver: str,
    context: DriverContext,
    proxy: FaultProxy,
    link: str,
    victims: Sequence[tuple[Service, int, str, str]],
    **where: str,
) -> list[HandleSpec]:
    """A listener before each (service, number, address, tls folder) that is behind the link.

    ``where``: on which ``host``, if not where the proxy likes.
    """
    found = []
    for service, number, address, tls in victims:
        name = proxy_name(context.run_id, link, number)
        via = await proxy.create(name, address, **where)
        lent = bool(context.spec.toxiproxy)
        found.append(
            link_spec(
                driver,
                service,
                number,
                link=link,
                address=address,
                via=via,
                proxy=proxy.api,
                name=name,
                lent=lent,
                tls=tls,
            )
        )
    return found


async def healthy(transport: Transport, address: str, path: str, *, timeout_s: float) -> str:
    """ "" if GET ``path`` is answered 2xx, else why not."""
    try:
        async with asyncio.timeout(timeout_s):  # the call bounds only its head
            response = await transport.call(address, Request("GET", path), timeout_s=timeout_s)
            body = await read_all(response)
    except CallFailedError as error:
        return f"GET {path}: {error}"
    except TimeoutError:
        return f"GET {path}: no whole answer in {timeout_s:g} s"
    if 200 <= response.status < 300:
        return ""
    # A word of why, if there is one; a page for browsers is none.
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    text = "" if text.startswith("<") else text
    return f"GET {path}: status {response.status} {text}".rstrip()


async def await_health(
    transport: Transport,
    service: Service,
    address: str,
    *,
    last_lines: Callable[[], list[str]],
    name: str = "",
) -> None:
    """Return once a replica is healthy. Raises TargetUnhealthyError after ``health.within``."""
    why = "it was never asked"
    within_s = service.health.within_us / 1e6
    try:
        async with asyncio.timeout(within_s):
            while True:
                why = await healthy(
                    transport,
                    address,
                    service.health.path,
                    timeout_s=min(within_s, _HEALTH_TIMEOUT_S),
                )
                if not why:
                    return
                await asyncio.sleep(_HEALTH_EVERY_S)
    except TimeoutError:
        raise TargetUnhealthyError(
            name or service.name, f"{why} (for {within_s:g} s)", last_lines()
        ) from None


async def all_of(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run together; the first error ends the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
